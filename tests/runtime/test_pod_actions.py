"""compute_actions: what is to be done for a pod, by what there is of it. Each case is a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kone.apimachinery.objects import Object, replace_in
from kone.runtime.observed import PodObserved
from kone.runtime.parts import ProbeResults
from kone.runtime.pod_actions import PodActions, Start, compute_actions
from kone.runtime.runtime import ContainerState, ContainerStatus, PodMeta, Resources, Sandbox
from tests.runtime.kubelet_world import make_container, make_pod

META = PodMeta("p", "default", "u")
FINE = ProbeResults(started=True, ready=True)


def sandbox(attempt: int = 0, *, ready: bool = True, host_network: bool = False) -> Sandbox:
    return Sandbox(f"s{attempt}", META, attempt, ready, 0.0, host_network=host_network)


def runs(name: str, attempt: int = 0, *, in_sandbox: str = "s0", resources: Resources | None = None) -> ContainerStatus:
    return made(name, ContainerState.RUNNING, attempt, in_sandbox=in_sandbox, resources=resources or Resources())


def ended(name: str, code: int = 0, attempt: int = 0, *, in_sandbox: str = "s0") -> ContainerStatus:
    return made(name, ContainerState.EXITED, attempt, in_sandbox=in_sandbox, exit_code=code)


def made(name: str, state: ContainerState, attempt: int = 0, *, in_sandbox: str = "s0", **more: Any) -> ContainerStatus:
    return ContainerStatus(
        f"{name}-{attempt}", in_sandbox, META, name, state, float(attempt), attempt, "busybox:test", **more
    )


def decide(
    pod: Object,
    *containers: ContainerStatus,
    sandboxes: Sequence[Sandbox] = (sandbox(),),
    probes: dict[str, ProbeResults] | None = None,
    resources: Resources | None = None,
) -> PodActions:
    observed = PodObserved.of(sandboxes, containers, ["10.0.0.1"])
    found = probes or {}
    return compute_actions(
        pod,
        observed,
        lambda container, _: found.get(container["name"], FINE),
        lambda kind, container: resources or Resources(),
    )


def names(starts: Sequence[Start]) -> list[str]:
    return [start.name for start in starts]


def pod_of(*names: str, **spec: Any) -> Object:
    return make_pod("p", *(make_container(name) for name in names), **spec)


SIDECAR = make_container("s", restartPolicy="Always")
INIT = [make_container("i1"), make_container("i2")]


def test_a_new_pod_gets_a_sandbox_and_all_its_containers() -> None:
    actions = decide(pod_of("a", "b"), sandboxes=[])
    assert actions.create_sandbox
    assert (actions.attempt, names(actions.start), actions.sandbox_changed) == (0, ["a", "b"], False)


def test_a_new_pod_starts_with_its_first_init_container() -> None:
    actions = decide(pod_of("a", initContainers=INIT), sandboxes=[])
    assert actions.start == (Start("init", "i1"),)


def test_a_pod_that_runs_needs_nothing() -> None:
    assert decide(pod_of("a", "b"), runs("a"), runs("b")) == PodActions(initialized=True)


def test_a_dead_sandbox_takes_everything_with_it() -> None:
    actions = decide(pod_of("a"), runs("a"), sandboxes=[sandbox(2, ready=False)])
    assert (actions.kill_pod, actions.create_sandbox, actions.attempt) == (True, True, 3)
    assert actions.sandbox_changed


def test_a_dead_sandbox_of_a_pod_that_never_restarts_is_the_end() -> None:
    actions = decide(pod_of("a", restartPolicy="Never"), ended("a", 1), sandboxes=[sandbox(ready=False)])
    assert actions.pod_is_over


def test_a_dead_sandbox_starts_only_what_has_not_succeeded() -> None:
    pod = pod_of("a", "b", restartPolicy="OnFailure")
    assert names(decide(pod, ended("a", 0), ended("b", 1), sandboxes=[sandbox(ready=False)]).start) == ["b"]
    assert decide(pod, ended("a", 0), ended("b", 0), sandboxes=[sandbox(ready=False)]).pod_is_over


def test_init_containers_are_purged_with_a_dead_sandbox() -> None:
    pod = pod_of("a", initContainers=INIT)
    actions = decide(pod, ended("i1"), ended("i2"), runs("a"), sandboxes=[sandbox(ready=False)])
    assert names(actions.start) == ["i1"]
    assert set(actions.remove) == {"i1-0", "i2-0"}


@pytest.mark.parametrize(
    ("policy", "code", "restarted"),
    [("Always", 0, True), ("Always", 1, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)],
)
def test_who_has_ended_is_started_again_by_policy(policy: str, code: int, restarted: bool) -> None:
    actions = decide(pod_of("a", "b", restartPolicy=policy), ended("a", code), runs("b"))
    assert names(actions.start) == (["a"] if restarted else [])
    assert not actions.kill_pod


def test_a_rule_of_the_container_may_restart_it() -> None:
    rule = {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}
    container = make_container("a", restartPolicy="Never", restartPolicyRules=[rule])
    pod = make_pod("p", container, restartPolicy="Never")
    assert names(decide(pod, ended("a", 42)).start) == ["a"]
    assert decide(pod, ended("a", 1)).pod_is_over


def test_when_all_is_done_the_pod_is_over() -> None:
    assert decide(pod_of("a", "b", restartPolicy="Never"), ended("a", 0), ended("b", 1)).pod_is_over


def test_what_was_made_but_never_started_is_made_again() -> None:
    assert names(decide(pod_of("a"), made("a", ContainerState.CREATED)).start) == ["a"]


@pytest.mark.parametrize(
    ("there", "started"),
    [
        ([], ["i1"]),
        ([runs("i1")], []),
        ([ended("i1")], ["i2"]),
        ([ended("i1", 1)], ["i1"]),
        ([ended("i1"), runs("i2")], []),
        ([ended("i1"), ended("i2")], ["a"]),
        ([ended("i2")], ["a"]),
        ([runs("a")], []),
    ],
    ids=[
        "nothing yet",
        "the first runs",
        "the first is done",
        "the first failed",
        "the second runs",
        "both are done",
        "the first was removed after its work",
        "both were removed, the pod runs",
    ],
)
def test_init_containers_in_order(there: list[ContainerStatus], started: list[str]) -> None:
    assert names(decide(pod_of("a", initContainers=INIT), *there).start) == started


def test_an_init_container_that_fails_for_good_ends_the_pod() -> None:
    assert decide(pod_of("a", initContainers=INIT, restartPolicy="Never"), ended("i1", 1)).pod_is_over


def test_a_sidecar_that_is_started_lets_the_others_start() -> None:
    pod = pod_of("a", initContainers=[SIDECAR, INIT[0]])
    assert names(decide(pod, runs("s")).start) == ["i1"]
    waiting = {"s": ProbeResults(started=False, ready=False)}
    assert decide(pod, runs("s"), probes=waiting).start == ()


def test_a_sidecar_that_ends_is_started_again_also_beside_a_job() -> None:
    pod = pod_of("a", initContainers=[SIDECAR], restartPolicy="Never")
    actions = decide(pod, ended("s", 0), runs("a"))
    assert actions.start == (Start("init", "s"),)
    assert not actions.kill_pod


def test_a_sidecar_does_not_keep_a_pod_that_is_done() -> None:
    pod = pod_of("a", initContainers=[SIDECAR], restartPolicy="Never")
    assert decide(pod, runs("s"), ended("a", 0)).pod_is_over


def test_containers_of_a_former_sandbox_do_not_count_as_initialization() -> None:
    pod = pod_of("a", initContainers=INIT)
    actions = decide(pod, ended("a", 1, in_sandbox="s0"), sandboxes=[sandbox(1), sandbox(0, ready=False)])
    assert names(actions.start) == ["i1"]


@pytest.mark.parametrize("kind", ["liveness", "startup"])
def test_a_failed_probe_restarts_by_policy(kind: Any) -> None:
    failed = {"a": ProbeResults(started=True, ready=False, failed=kind)}
    actions = decide(pod_of("a", "b"), runs("a"), runs("b"), probes=failed)
    assert [(k.container_id, k.message, k.reason) for k in actions.kill] == [
        ("a-0", f"Container a failed {kind} probe, will be restarted", kind)
    ]
    assert names(actions.start) == ["a"]
    once = decide(pod_of("a", "b", restartPolicy="Never"), runs("a"), runs("b"), probes=failed)
    assert [k.message for k in once.kill] == [f"Container a failed {kind} probe"]
    assert once.start == ()


def test_a_failed_probe_of_the_last_container_that_must_not_restart_ends_the_pod() -> None:
    failed = {"a": ProbeResults(started=True, ready=False, failed="liveness")}
    assert decide(pod_of("a", restartPolicy="Never"), runs("a"), probes=failed).pod_is_over


def test_another_image_means_another_container() -> None:
    pod = make_pod("p", make_container("a", image="busybox:new"))
    actions = decide(pod, runs("a"))
    assert [k.message for k in actions.kill] == ["Container a definition changed, will be restarted"]
    assert names(actions.start) == ["a"]


def test_other_limits_are_set_under_a_running_container() -> None:
    wanted = Resources(cpu_shares=512)
    actions = decide(pod_of("a"), runs("a"), resources=wanted)
    assert [(r.name, r.resources) for r in actions.resize] == [("a", wanted)]
    assert actions.kill == actions.start == ()


def test_other_limits_restart_where_the_container_says_so() -> None:
    policy = [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]
    pod = make_pod("p", make_container("a", resizePolicy=policy))
    actions = decide(pod, runs("a"), resources=Resources(memory_bytes=1 << 20))
    assert [k.message for k in actions.kill] == ["Container a resize requires restart"]
    assert names(actions.start) == ["a"]
    assert decide(pod, runs("a"), resources=Resources(cpu_shares=3)).kill == ()


def test_ephemeral_containers_start_once_whatever_else() -> None:
    pod = pod_of("a", initContainers=INIT, ephemeralContainers=[make_container("e")])
    assert names(decide(pod, runs("i1")).start) == ["e"]
    assert names(decide(pod, runs("i1"), ended("e", 1)).start) == []


def test_nothing_is_started_for_a_pod_that_is_deleted() -> None:
    pod = replace_in(pod_of("a", initContainers=INIT), ("metadata", "deletionTimestamp"), "2026-01-01T00:00:00Z")
    assert decide(pod, ended("i1")).start == ()
    assert decide(pod, sandboxes=[]).pod_is_over


def test_of_ended_containers_the_newest_and_the_one_before_it_are_kept() -> None:
    actions = decide(pod_of("a"), runs("a", 3), ended("a", 1, 2), ended("a", 1, 1), ended("a", 1, 0))
    assert set(actions.remove) == {"a-1", "a-0"}
