"""Bindings and evictions, on the real kinds."""

from __future__ import annotations

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import PODDISRUPTIONBUDGETS, PODS
from kone.apimachinery.objects import Object
from kone.apiserver.pod_actions import check_budget, refuse_binding, set_condition
from tests.apiserver.conftest import Full

READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


def binding(name: str = "a", node: str = "n1", **metadata: object) -> Object:
    return {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, **metadata}, "target": {"name": node}}


def eviction(name: str = "a", **options: object) -> Object:
    return {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, "deleteOptions": options}


async def test_a_bound_pod_has_its_node_and_says_that_it_is_scheduled(full: Full) -> None:
    await full.pod("a")
    await full.client.create(PODS, binding(annotations={"x": "y"}), namespace="ns", subresource="binding", name="a")
    pod = full.get(PODS, "a")
    assert pod["spec"]["nodeName"] == "n1"
    assert pod["metadata"]["annotations"] == {"x": "y"}
    assert [(c["type"], c["status"]) for c in pod["status"]["conditions"]] == [("PodScheduled", "True")]


@pytest.mark.parametrize(
    ("pod", "text"),
    [
        ({"spec": {"nodeName": "n2"}}, 'pod a is already assigned to node "n2"'),
        ({"metadata": {"deletionTimestamp": "x"}}, "pod a is being deleted, cannot be assigned to a host"),
        ({"spec": {"schedulingGates": [{"name": "g"}]}}, "pod a has non-empty .spec.schedulingGates"),
    ],
)
def test_pods_that_are_not_bound(pod: Object, text: str) -> None:
    with pytest.raises(StatusError, match="cannot be fulfilled") as raised:
        refuse_binding({"metadata": {"name": "a", **pod.get("metadata", {})}, "spec": pod.get("spec", {})})
    assert text in raised.value.message
    assert raised.value.code == 409


async def test_a_binding_of_another_incarnation(full: Full) -> None:
    await full.pod("a")
    with pytest.raises(StatusError) as raised:
        await full.client.create(PODS, binding(uid="other"), namespace="ns", subresource="binding", name="a")
    assert raised.value.reason == "Conflict"
    assert "nodeName" not in full.get(PODS, "a")["spec"]


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    status: Object = {}
    set_condition(status, {"type": "T", "status": "True"}, 0.0)
    first = status["conditions"][0]["lastTransitionTime"]
    set_condition(status, {"type": "T", "status": "True", "reason": "R"}, 60.0)
    assert [(c["reason"], c["lastTransitionTime"]) for c in status["conditions"]] == [("R", first)]
    set_condition(status, {"type": "T", "status": "False"}, 60.0)
    assert status["conditions"][0]["lastTransitionTime"] != first


async def test_a_pending_pod_needs_no_budget(full: Full) -> None:
    await full.pod("a", labels={"app": "x"})
    await full.budget(allowed=0)
    await full.evict("a", eviction())
    assert full.find(PODS, "a") is None


async def test_an_eviction_spends_the_budget(full: Full) -> None:
    await full.pod("a", labels={"app": "x"}, node="n1", status=READY)
    await full.budget(allowed=1)
    await full.evict("a", eviction())
    status = full.get(PODDISRUPTIONBUDGETS, "b")["status"]
    assert (status["disruptionsAllowed"], list(status["disruptedPods"])) == (0, ["a"])
    pod = full.get(PODS, "a")
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 30
    assert [(c["type"], c["reason"]) for c in pod["status"]["conditions"] if c["type"] == "DisruptionTarget"] == [
        ("DisruptionTarget", "EvictionByEvictionAPI")
    ]


async def test_an_eviction_that_is_tried_changes_nothing(full: Full) -> None:
    await full.pod("a", labels={"app": "x"}, node="n1", status=READY)
    await full.budget(allowed=1)
    before = full.get(PODS, "a")
    await full.evict("a", eviction(dryRun=["All"]))
    assert full.get(PODS, "a") == before
    assert full.get(PODDISRUPTIONBUDGETS, "b")["status"]["disruptionsAllowed"] == 1


async def test_a_budget_that_is_spent_refuses(full: Full) -> None:
    await full.pod("a", labels={"app": "x"}, node="n1", status=READY)
    await full.budget(allowed=0, currentHealthy=1, desiredHealthy=1)
    with pytest.raises(StatusError) as raised:
        await full.evict("a", eviction())
    assert (raised.value.code, raised.value.reason) == (429, "TooManyRequests")
    assert (
        raised.value.details["causes"][0]["message"]
        == "The disruption budget b needs 1 healthy pods and has 1 currently"
    )


async def test_two_budgets_are_one_too_many(full: Full) -> None:
    await full.pod("a", labels={"app": "x"}, node="n1", status=READY)
    await full.budget("b", allowed=1)
    await full.budget("c", allowed=1)
    with pytest.raises(StatusError, match="more than one PodDisruptionBudget") as raised:
        await full.evict("a", eviction())
    assert raised.value.code == 500


async def test_a_pod_that_is_not_ready_goes_where_enough_others_are(full: Full) -> None:
    await full.pod("a", labels={"app": "x"}, node="n1", status={"phase": "Running"})
    await full.budget(allowed=0, currentHealthy=2, desiredHealthy=2)
    await full.evict("a", eviction())
    assert "deletionTimestamp" in full.get(PODS, "a")["metadata"]
    assert "disruptedPods" not in full.get(PODDISRUPTIONBUDGETS, "b")["status"]


@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        ({"observedGeneration": 1}, 429, "The disruption budget b is still being processed by the server."),
        (
            {"disruptionsAllowed": -1},
            403,
            "not allow evicting pods currently: pdb disruptions allowed is negative",
        ),
        ({"disruptedPods": dict.fromkeys(map(str, range(2001)), "")}, 403, "too many pending evictions not confirmed"),
        (
            {
                "currentHealthy": 3,
                "conditions": [
                    {"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "no scale"}
                ],
            },
            429,
            "does not allow evicting pods currently because it failed sync: no scale",
        ),
    ],
)
def test_what_a_budget_refuses_and_why(status: Object, code: int, cause: str) -> None:
    budget = {"metadata": {"name": "b", "generation": 2}, "status": {"observedGeneration": 2, **status}}
    with pytest.raises(StatusError) as raised:
        check_budget(budget)
    assert raised.value.code == code
    assert cause in raised.value.details["causes"][0]["message"]
