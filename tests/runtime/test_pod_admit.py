"""What a node does not take, in upstream's words; and how long what failed is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.objects import Object
from kone.runtime.backoff import Backoff
from kone.runtime.pod_admit import matches_node, refuse
from kone.runtime.pod_resize import (
    allocated_before,
    asked_resources,
    is_resized,
    pending,
    resize_message,
    with_allocated,
)
from tests.runtime.kubelet_world import make_container, make_pod

NODE: Object = {
    "metadata": {"name": "n1", "labels": {"zone": "a", "size": "5"}},
    "spec": {},
    "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "3", "example.com/gpu": "1"}},
}


def asking(name: str = "p", **requests: str) -> Object:
    return make_pod(name, make_container(resources={"requests": {k.replace("_", "/"): v for k, v in requests.items()}}))


def reason_of(pod: Object, *others: Object, node: Object = NODE) -> tuple[str, str] | None:
    found = refuse(pod, node, others)
    return None if found is None else (found.reason, found.message)


def test_a_pod_that_fits_is_taken() -> None:
    assert reason_of(asking(cpu="1"), asking("q", cpu="1")) is None
    assert reason_of(asking(cpu="500"), node={}) is None  # a node that nothing is known of yet


@pytest.mark.parametrize(
    ("pod", "others", "reason", "message"),
    [
        (asking(cpu="1500m"), 1, "OutOfcpu", "cpu, requested: 1500, used: 1000, capacity: 2000"),
        (asking(memory="5Gi"), 0, "OutOfmemory", f"memory, requested: {5 << 30}, used: 0, capacity: {4 << 30}"),
        (asking(), 3, "OutOfpods", "pods, requested: 1, used: 3, capacity: 3"),
        (
            asking(**{"example.com_gpu": "2"}),
            0,
            "OutOfexample.com/gpu",
            "example.com/gpu, requested: 2, used: 0, capacity: 1",
        ),
    ],
)
def test_too_much(pod: Object, others: int, reason: str, message: str) -> None:
    beside = [asking(f"q{i}", cpu="1" if i == 0 else "0") for i in range(others)]
    assert reason_of(pod, *beside) == (reason, f"Node didn't have enough resource: {message}")


def test_what_the_node_does_not_count_may_be_the_clusters() -> None:
    assert reason_of(asking(**{"example.com_other": "2"})) is None


def affinity(*terms: Object) -> Object:
    required = {"nodeSelectorTerms": list(terms)}
    return make_pod("p", affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}})


def expression(key: str, operator: str, *values: str, field: str = "matchExpressions") -> Object:
    return {field: [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("pod", "fits"),
    [
        (make_pod("p"), True),
        (make_pod("p", nodeSelector={"zone": "a"}), True),
        (make_pod("p", nodeSelector={"zone": "b"}), False),
        (affinity(expression("zone", "In", "a", "b")), True),
        (affinity(expression("zone", "NotIn", "a")), False),
        (affinity(expression("zone", "NotIn", "a"), expression("size", "Gt", "4")), True),
        (affinity(expression("size", "Lt", "5")), False),
        (affinity(expression("none", "DoesNotExist")), True),
        (affinity(expression("metadata.name", "In", "n1", field="matchFields")), True),
        (affinity({}), False),
        (affinity(), False),
    ],
)
def test_node_selection(pod: Object, fits: bool) -> None:
    assert matches_node(pod, NODE) is fits


def port(number: int, **more: Any) -> Object:
    return make_pod("p", make_container(ports=[{"containerPort": 80, "hostPort": number, "protocol": "TCP", **more}]))


def test_ports_of_the_node_are_given_once() -> None:
    taken = ("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports")
    assert reason_of(port(80), port(80)) == taken
    assert reason_of(port(80, hostIP="127.0.0.1"), port(80)) == taken
    assert reason_of(port(80), port(80, protocol="UDP")) is None
    assert reason_of(port(80, hostIP="127.0.0.1"), port(80, hostIP="127.0.0.2")) is None


def test_no_execute_taints_must_be_tolerated() -> None:
    node = {**NODE, "spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}}
    refused = ("TaintToleration", "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate")
    assert reason_of(make_pod("p"), node=node) == refused
    assert reason_of(make_pod("p", tolerations=[{"key": "k", "operator": "Exists"}]), node=node) is None
    assert reason_of(make_pod("p", tolerations=[{"operator": "Exists"}]), node=node) is None
    assert reason_of(make_pod("p", tolerations=[{"key": "k", "value": "x"}]), node=node) == refused


@pytest.mark.parametrize(
    ("sysctl", "spec", "problem"),
    [
        ("kernel.shm_rmid_forced", {}, ""),
        ("net/ipv4/tcp_syncookies", {}, ""),
        ("kernel.msgmax", {}, '"kernel.msgmax" not allowlisted'),
        (
            "net.ipv4.tcp_syncookies",
            {"hostNetwork": True},
            '"net.ipv4.tcp_syncookies" not allowed with host net enabled',
        ),
    ],
)
def test_sysctls(sysctl: str, spec: Object, problem: str) -> None:
    pod = make_pod("p", securityContext={"sysctls": [{"name": sysctl, "value": "1"}]}, **spec)
    assert reason_of(pod) == (("SysctlForbidden", f"forbidden sysctl: {problem}") if problem else None)


def test_features_that_this_kubelet_does_not_have() -> None:
    assert reason_of(make_pod("p", hostNetwork=True, hostUsers=False)) == (
        "PodFeatureUnsupported",
        "Pod requires node features that are not available: UserNamespacesHostNetworkSupport",
    )
    rules = [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]
    assert reason_of(make_pod("p", make_container(restartPolicyRules=rules))) is None


def test_another_operating_system() -> None:
    assert reason_of(make_pod("p", os={"name": "windows"})) == (
        "PodOSNotSupported",
        "Failed to admit pod as the OS field doesn't match node OS",
    )


# Resizes


def test_a_resize_that_is_never_possible_and_one_that_is_not_possible_now() -> None:
    never = pending(asking(cpu="3"), NODE, [])
    assert never is not None
    assert (never.reason, never.message) == (
        "Infeasible",
        "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000",
    )
    later = pending(asking(cpu="1500m"), NODE, [asking("q", cpu="1")])
    assert later is not None
    assert later.reason == "Deferred"
    assert pending(asking(cpu="1"), NODE, [asking("q", cpu="1")]) is None


def test_a_pod_goes_on_with_what_it_was_given() -> None:
    given = asked_resources(asking(cpu="100m"))
    asks = asking(cpu="200m")
    assert is_resized(asks, given)
    assert with_allocated(asks, given)["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "100m"}}
    assert not is_resized(asking(cpu="0.1"), given)  # the same amount in other words


def test_what_was_given_is_read_from_the_status_after_a_restart() -> None:
    pod = asking(cpu="200m")
    pod["status"]["containerStatuses"] = [{"name": "c", "allocatedResources": {"cpu": "100m"}}]
    assert allocated_before(pod) == {"c": {"requests": {"cpu": "100m"}}}


def test_the_text_of_a_resize() -> None:
    assert resize_message("Pod resize started", asking(cpu="1")) == (
        'Pod resize started: {"containers":[{"name":"c","resources":{"requests":{"cpu":"1"}}}],"generation":0}'
    )


# Back-off


async def test_back_off_doubles_to_five_minutes_and_forgets() -> None:
    clock = FakeClock()
    backoff = Backoff(clock)
    delays = []
    for _ in range(8):
        failed_at = clock.now()
        backoff.next("k", failed_at)
        delays.append(backoff.delay_s("k"))
        await clock.advance(backoff.remaining_s("k", failed_at))
    assert delays == [10, 20, 40, 80, 160, 300, 300, 300]
    assert backoff.remaining_s("k", clock.now() + 601) == 0
    backoff.forget("k")
    assert backoff.remaining_s("k", clock.now()) == 0
