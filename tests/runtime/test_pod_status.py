"""Phases, conditions and container statuses that follow from what there is, and the patches that tell them."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import format_time
from kone.runtime.observed import PodObserved, StartFailure
from kone.runtime.parts import ProbeResults
from kone.runtime.pod_status import Verdict, generate_status, rejected_status
from kone.runtime.runtime import ContainerStatus, Resources
from kone.runtime.status_manager import status_patch
from tests.runtime.kubelet_world import make_container, make_pod
from tests.runtime.test_pod_actions import FINE, INIT, SIDECAR, ended, pod_of, runs, sandbox

NOW = 1_700_000_100.0


def status_of(
    pod: Object,
    *containers: ContainerStatus,
    old: Object | None = None,
    probes: dict[str, ProbeResults] | None = None,
    failures: dict[str, StartFailure] | None = None,
    ready: bool = True,
    **more: Any,
) -> Object:
    observed = PodObserved.of([sandbox(ready=ready)], containers, ["10.0.0.1"], failures)
    found = probes or {}
    return generate_status(
        pod,
        observed,
        lambda container, _: found.get(container["name"], FINE),
        old=old or {},
        now=NOW,
        host_ips=["192.0.2.1"],
        **more,
    )


@pytest.mark.parametrize(
    ("policy", "there", "phase"),
    [
        ("Always", [], "Pending"),
        ("Always", [runs("a")], "Pending"),
        ("Always", [runs("a"), runs("b")], "Running"),
        ("Always", [ended("a", 1), runs("b")], "Running"),
        ("Always", [ended("a", 0), ended("b", 0)], "Running"),
        ("OnFailure", [ended("a", 0), ended("b", 1)], "Running"),
        ("OnFailure", [ended("a", 0), ended("b", 0)], "Succeeded"),
        ("Never", [ended("a", 0), runs("b")], "Running"),
        ("Never", [ended("a", 0), ended("b", 1)], "Failed"),
        ("Never", [ended("a", 0), ended("b", 0)], "Succeeded"),
    ],
)
def test_the_phase_of_two_containers(policy: str, there: list[ContainerStatus], phase: str) -> None:
    assert status_of(pod_of("a", "b", restartPolicy=policy), *there)["phase"] == phase


@pytest.mark.parametrize(
    ("policy", "there", "phase"),
    [
        ("Always", [runs("i1")], "Pending"),
        ("Always", [ended("i1", 1)], "Pending"),
        ("Never", [ended("i1", 1)], "Failed"),
        ("Always", [ended("i1"), ended("i2")], "Pending"),
        ("Always", [ended("i1"), ended("i2"), runs("a")], "Running"),
        ("Always", [runs("a")], "Running"),
    ],
    ids=[
        "initializing",
        "to be tried again",
        "failed for good",
        "initialized",
        "running",
        "init containers are removed",
    ],
)
def test_the_phase_of_a_pod_with_init_containers(policy: str, there: list[ContainerStatus], phase: str) -> None:
    assert status_of(pod_of("a", initContainers=INIT, restartPolicy=policy), *there)["phase"] == phase


def test_a_sidecar_that_is_not_started_keeps_the_pod_pending() -> None:
    pod = pod_of("a", initContainers=[SIDECAR])
    waiting = {"s": ProbeResults(started=False, ready=False)}
    assert status_of(pod, runs("s"), probes=waiting)["phase"] == "Pending"
    restarting = status_of(pod, runs("s"), runs("a"), probes=waiting)
    assert restarting["phase"] == "Running"  # once initialized, always initialized


def test_a_terminal_phase_waits_until_nothing_runs() -> None:
    verdict = Verdict("Evicted", "memory")
    old = {"phase": "Running"}
    assert status_of(pod_of("a"), runs("a"), old=old, verdict=verdict)["phase"] == "Running"
    done = status_of(pod_of("a"), ended("a", 0), old=old, verdict=verdict)
    assert (done["phase"], done["reason"], done["message"]) == ("Failed", "Evicted", "memory")


def test_nothing_leaves_a_terminal_phase() -> None:
    old = {"phase": "Succeeded", "reason": "Because"}
    status = status_of(pod_of("a"), runs("a"), old=old)
    assert (status["phase"], status["reason"]) == ("Succeeded", "Because")


def test_what_is_gone_when_the_pod_ends_is_counted_as_lost() -> None:
    status = status_of(pod_of("a"), old={"phase": "Running"}, ended=True)
    state = status["containerStatuses"][0]["state"]["terminated"]
    assert (state["reason"], state["exitCode"]) == ("ContainerStatusUnknown", 137)
    assert state["message"] == "The container could not be located when the pod was terminated"
    assert status["phase"] == "Failed"


def test_a_pod_that_ends_before_it_was_initialized_keeps_its_containers_waiting() -> None:
    status = status_of(pod_of("a", initContainers=INIT), ended("i1", 137), old={"phase": "Pending"}, ended=True)
    assert status["phase"] == "Failed"
    assert status["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert status["initContainerStatuses"][1]["state"] == {"waiting": {"reason": "PodInitializing"}}


def test_a_container_that_vanished_is_told_as_ended() -> None:
    old = {"phase": "Running", "containerStatuses": [{"name": "a", "state": {"running": {}}, "restartCount": 1}]}
    found = status_of(pod_of("a"), old=old)["containerStatuses"][0]
    assert found["restartCount"] == 2
    assert found["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"


def test_why_a_container_waits() -> None:
    failures = {"a": StartFailure("CrashLoopBackOff", "back-off 10s")}
    found = status_of(pod_of("a"), ended("a", 3), failures=failures)["containerStatuses"][0]
    assert found["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    assert found["lastState"]["terminated"]["exitCode"] == 3
    never = status_of(pod_of("a", restartPolicy="Never"), ended("a", 3), failures=failures)
    assert never["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3


def test_containers_come_by_name_init_containers_in_order() -> None:
    pod = pod_of("b", "a", initContainers=[make_container("z"), make_container("y")])
    status = status_of(pod)
    assert [c["name"] for c in status["containerStatuses"]] == ["a", "b"]
    assert [c["name"] for c in status["initContainerStatuses"]] == ["z", "y"]


def test_what_was_given_and_what_the_kernel_has() -> None:
    container = make_container(
        "a", resources={"limits": {"cpu": "200m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}
    )
    actual = Resources(cpu_shares=153, cpu_quota=25_000, cpu_period=100_000, memory_bytes=64 << 20)
    found = status_of(make_pod("p", container), runs("a", resources=actual))["containerStatuses"][0]
    assert found["resources"] == {"limits": {"cpu": "250m", "memory": "64Mi"}, "requests": {"cpu": "150m"}}
    assert found["allocatedResources"] == {"cpu": "100m"}


def test_shares_that_come_back_to_the_request_are_the_request() -> None:
    container = make_container("a", resources={"requests": {"cpu": "333m"}})
    found = status_of(make_pod("p", container), runs("a", resources=Resources(cpu_shares=340)))
    assert found["containerStatuses"][0]["resources"] == {"requests": {"cpu": "333m"}}


def test_mounts_are_listed() -> None:
    mounts = [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/w", "readOnly": True}]
    found = status_of(make_pod("p", make_container("a", volumeMounts=mounts)))["containerStatuses"][0]
    assert found["volumeMounts"] == [
        {"name": "v", "mountPath": "/v"},
        {"name": "w", "mountPath": "/w", "readOnly": True, "recursiveReadOnly": "Disabled"},
    ]


def conditions(status: Object) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c.get("message", c.get("reason", ""))) for c in status["conditions"]}


def test_who_is_not_ready_is_named() -> None:
    unready = {"a": ProbeResults(True, False), "b": ProbeResults(False, False)}
    found = conditions(status_of(pod_of("a", "b"), runs("a"), runs("b"), probes=unready))
    assert found["Ready"] == found["ContainersReady"] == ("False", "containers with unready status: [a b]")


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    before = status_of(pod_of("a"))
    then = format_time(NOW - 50)
    old = {**before, "conditions": [{**c, "lastTransitionTime": then} for c in before["conditions"]]}
    after = {c["type"]: c["lastTransitionTime"] for c in status_of(pod_of("a"), runs("a"), old=old)["conditions"]}
    assert after["PodScheduled"] == then
    assert after["Ready"] == format_time(NOW)


def test_conditions_of_others_stay() -> None:
    pod = pod_of("a")
    pod["status"]["conditions"] = [{"type": "example.com/gate", "status": "False"}]
    assert "example.com/gate" in conditions(status_of(pod, runs("a")))


def test_a_pod_on_the_hosts_network_has_the_hosts_address() -> None:
    status = status_of(pod_of("a", hostNetwork=True), runs("a"))
    assert status["podIP"] == status["hostIP"] == "192.0.2.1"


def test_a_rejected_pod_has_no_conditions_of_the_kubelet() -> None:
    old = {"conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "x/y", "status": "True"}]}
    status = rejected_status(pod_of("a"), Verdict("OutOfcpu", "no"), old=old, now=NOW)
    assert [c["type"] for c in status["conditions"]] == ["x/y"]
    assert "containerStatuses" not in status


# Patches


def test_a_patch_names_what_changed() -> None:
    old = {"phase": "Pending", "hostIP": "192.0.2.1", "message": "gone soon"}
    new = {"phase": "Running", "hostIP": "192.0.2.1", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}
    assert status_patch(old, new) == {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}],
        "message": None,
    }


def test_what_the_api_adds_is_no_change() -> None:
    condition = {"type": "Ready", "status": "True"}
    old = {"phase": "Running", "conditions": [{**condition, "lastProbeTime": None}], "message": ""}
    assert status_patch(old, {"phase": "Running", "conditions": [condition]}) == {}


def test_addresses_are_replaced_not_merged() -> None:
    old, new = {"podIPs": [{"ip": "10.0.0.1"}]}, {"podIPs": [{"ip": "10.0.0.2"}]}
    assert status_patch(old, new) == {"podIPs": [{"ip": "10.0.0.2"}, {"$patch": "replace"}]}


def test_conditions_are_patched_one_by_one() -> None:
    old = {
        "conditions": [
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
            {"type": "x/y", "status": "True"},
            {"type": "PodScheduled", "status": "True"},
            {"type": "PodResizePending", "status": "True"},
        ]
    }
    new = {"conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]}
    assert status_patch(old, new) == {
        "conditions": [
            {"type": "Ready", "status": "True", "reason": None},
            {"$patch": "delete", "type": "PodResizePending"},
        ]
    }
