"""PodDisruptionBudgets: counts, what is allowed, and evictions that did or did not come."""

import pytest

from kone.apimachinery.kinds import (
    DEPLOYMENTS,
    GVR,
    JOBS,
    PODDISRUPTIONBUDGETS,
    PODS,
    REPLICASETS,
    STATEFULSETS,
)
from kone.apimachinery.objects import Object, controller_reference, find_condition, replace_in
from kone.apimachinery.timestamps import format_time
from kone.controllers.controller import Settings
from kone.controllers.disruption import (
    DISRUPTION_CONTROLLER,
    STALE_DISRUPTION_CONTROLLER,
    Counts,
    desired_healthy,
    selector_text,
)
from tests.controllers.world import World, conditions
from tests.fakes import ready_pod, set_pod_status


def budget(**spec: object) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "b", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, **spec},
    }


def owner(kind: str, name: str, replicas: int, above: Object | None = None, api: str = "apps/v1") -> Object:
    meta: Object = {"name": name, "namespace": "shop"}
    if above is not None:
        meta["ownerReferences"] = [controller_reference(above)]
    return {"apiVersion": api, "kind": kind, "metadata": meta, "spec": {"replicas": replicas}}


def pod(name: str, above: Object | None = None) -> Object:
    meta: Object = {"name": name, "namespace": "shop", "labels": {"app": "web"}}
    if above is not None:
        meta["ownerReferences"] = [controller_reference(above)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}}


def counts(world: World) -> tuple[int, int, int, int]:
    """(healthy, desired, expected, allowed)."""
    [found] = world.client.of(PODDISRUPTIONBUDGETS)
    names = ("currentHealthy", "desiredHealthy", "expectedPods", "disruptionsAllowed")
    healthy, desired, expected, allowed = (found["status"][name] for name in names)
    return healthy, desired, expected, allowed


async def ready(world: World, *names: str) -> None:
    for made in world.client.of(PODS):
        if made["metadata"]["name"] in names:
            ready_pod(world.client, made)
    await world.settle()


async def test_without_pods_nothing_is_allowed(world: World) -> None:
    async with world.running(DISRUPTION_CONTROLLER):
        made = await world.put(PODDISRUPTIONBUDGETS, budget(minAvailable=1))
        status = world.client.look(PODDISRUPTIONBUDGETS, made)["status"]
        [condition] = status.pop("conditions")
        assert status == {
            "currentHealthy": 0,
            "desiredHealthy": 1,
            "disruptionsAllowed": 0,
            "expectedPods": 0,
            "observedGeneration": 1,
        }
        since = format_time(world.clock.now())
        assert condition == {
            "type": "DisruptionAllowed",
            "status": "False",
            "reason": "InsufficientPods",
            "message": "",
            "lastTransitionTime": since,
            "observedGeneration": 1,
        }
        assert await world.events() == [("Normal", "NoPods", "No matching pods found")]


async def test_a_minimum_counts_the_pods_that_are_there(world: World) -> None:
    async with world.running(DISRUPTION_CONTROLLER):
        made = await world.put(PODDISRUPTIONBUDGETS, budget(minAvailable=1))
        for name in ("p1", "p2"):
            await world.put(PODS, pod(name))
        assert counts(world) == (0, 1, 2, 0)
        await ready(world, "p1", "p2")
        assert counts(world) == (2, 1, 2, 1)
        assert conditions(world.client.look(PODDISRUPTIONBUDGETS, made)) == {
            "DisruptionAllowed": ("True", "SufficientPods")
        }
        await world.client.delete(PODS, "p1", namespace="shop")
        await world.settle()
        assert counts(world) == (1, 1, 2, 0), "what is being deleted is not healthy"


async def test_shares_are_of_the_scale_of_the_controllers(world: World) -> None:
    async with world.running(DISRUPTION_CONTROLLER):
        deployment = await world.put(DEPLOYMENTS, owner("Deployment", "web", 4))
        replica_set = await world.put(REPLICASETS, owner("ReplicaSet", "web-1", 3, deployment))
        stateful_set = await world.put(STATEFULSETS, owner("StatefulSet", "db", 2))
        await world.put(PODDISRUPTIONBUDGETS, budget(minAvailable="50%"))
        await world.put(PODS, pod("p1", replica_set))
        await world.put(PODS, pod("p2", stateful_set))
        assert counts(world) == (0, 3, 6, 0)


async def test_a_controller_of_any_kind_is_asked_for_its_scale(world: World) -> None:
    games = GVR("example.com", "v1", "games")
    known = {("example.com/v1", "Game"): (games, True), ("batch/v1", "Job"): (JOBS, True)}
    settings = Settings(resource_of_kind=lambda api, kind: known.get((api, kind)))
    async with world.running(DISRUPTION_CONTROLLER, settings=settings):
        game = await world.put(games, owner("Game", "g", 5, api="example.com/v1"))
        await world.put(PODDISRUPTIONBUDGETS, budget(maxUnavailable=2))
        await world.put(PODS, pod("p1", game))
        assert counts(world) == (0, 3, 5, 0)


@pytest.mark.parametrize(
    ("above", "why"),
    [
        (
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "shop"}},
            "jobs.batch does not implement the scale subresource",
        ),
        (
            {"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "x", "namespace": "shop"}},
            'no matches for kind "X" in version "x.io/v1"',
        ),
    ],
)
async def test_what_cannot_be_counted_allows_nothing_and_says_so(world: World, above: Object, why: str) -> None:
    known = {("batch/v1", "Job"): (JOBS, True)}
    settings = Settings(resource_of_kind=lambda api, kind: known.get((api, kind)))
    async with world.running(DISRUPTION_CONTROLLER, settings=settings):
        made = await world.put(JOBS, above)
        await world.put(PODS, pod("p1", made))
        found = await world.put(PODDISRUPTIONBUDGETS, budget(maxUnavailable=1))
        condition = find_condition(world.client.look(PODDISRUPTIONBUDGETS, found), "DisruptionAllowed") or {}
        assert (condition["reason"], condition["message"]) == ("SyncFailed", why)
        message = f"Failed to calculate the number of expected pods: {why}"
        assert await world.events("CalculateExpectedPodCountFailed") == [
            ("Warning", "CalculateExpectedPodCountFailed", message)
        ]


async def test_pods_without_a_controller_make_shares_doubtful(world: World) -> None:
    async with world.running(DISRUPTION_CONTROLLER):
        await world.put(PODS, pod("p1"))
        await world.put(PODDISRUPTIONBUDGETS, budget(maxUnavailable="20%"))
        [(kind, _, message)] = await world.events("UnmanagedPods")
        assert kind == "Warning"
        assert "(selector: &LabelSelector{MatchLabels:map[string]string{app: web,}" in message


async def test_an_allowed_eviction_counts_until_the_pod_is_gone_or_overdue(world: World) -> None:
    async with world.running(DISRUPTION_CONTROLLER):
        made = await world.put(PODDISRUPTIONBUDGETS, budget(minAvailable=1))
        for name in ("p1", "p2"):
            await world.put(PODS, pod(name))
        await ready(world, "p1", "p2")
        newest = world.client.look(PODDISRUPTIONBUDGETS, made)
        stamp = format_time(world.clock.now())
        noted = {**newest["status"], "disruptionsAllowed": 0, "disruptedPods": {"p1": stamp, "gone": stamp}}
        await world.client.update(PODDISRUPTIONBUDGETS, {**newest, "status": noted}, subresource="status")
        await world.settle()
        assert counts(world) == (1, 1, 2, 0)
        assert world.client.look(PODDISRUPTIONBUDGETS, made)["status"]["disruptedPods"] == {"p1": stamp}
        await world.advance(121)
        assert counts(world) == (2, 1, 2, 1)
        assert "disruptedPods" not in world.client.look(PODDISRUPTIONBUDGETS, made)["status"]
        assert len(await world.events("NotDeleted")) == 1


async def test_a_condition_of_an_eviction_that_never_came_is_taken_back(world: World) -> None:
    async with world.running(STALE_DISRUPTION_CONTROLLER):
        found = {}
        for name, reason in (("p1", "EvictionByEvictionAPI"), ("p2", "TerminationByKubelet")):
            found[name] = await world.put(PODS, pod(name))
            stamp = format_time(world.clock.now())
            condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": stamp}
            set_pod_status(world.client, found[name], conditions=[condition])
        await world.settle()
        await world.advance(119)
        assert conditions(world.client.look(PODS, found["p1"]))["DisruptionTarget"][0] == "True"
        await world.advance(1)
        assert conditions(world.client.look(PODS, found["p1"]))["DisruptionTarget"][0] == "False"
        assert conditions(world.client.look(PODS, found["p2"]))["DisruptionTarget"][0] == "True"


# Arithmetic


@pytest.mark.parametrize(
    ("spec", "expected", "desired"),
    [
        ({"minAvailable": 2}, 5, 2),
        ({"minAvailable": "50%"}, 5, 3),
        ({"maxUnavailable": 2}, 5, 3),
        ({"maxUnavailable": "50%"}, 3, 1),
        ({"maxUnavailable": 9}, 3, 0),
        ({}, 3, 0),
    ],
)
def test_how_many_must_stay_healthy(spec: Object, expected: int, desired: int) -> None:
    assert desired_healthy(budget(**spec), expected) == desired


def test_how_many_may_be_disrupted() -> None:
    assert Counts(healthy=3, desired=1, expected=3).allowed == 2
    assert Counts(healthy=1, desired=3, expected=3).allowed == 0
    assert Counts(healthy=3, desired=1, expected=0).allowed == 0


def test_selectors_read_as_go_prints_them() -> None:
    selector = {"matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}]}
    assert selector_text(selector) == (
        "&LabelSelector{MatchLabels:map[string]string{},MatchExpressions:[]LabelSelectorRequirement{"
        "LabelSelectorRequirement{Key:a,Operator:In,Values:[x y],},},}"
    )
    assert selector_text(replace_in({}, ("matchLabels",), {"b": "2", "a": "1"})).startswith(
        "&LabelSelector{MatchLabels:map[string]string{a: 1,b: 2,}"
    )
