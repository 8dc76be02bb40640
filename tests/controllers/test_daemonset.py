"""DaemonSets: which nodes get a pod, failed ones replaced in time, and updates node after node."""

from collections.abc import Iterable

import pytest

from kone.apimachinery.kinds import CONTROLLERREVISIONS, DAEMONSETS, NODES, PODS
from kone.apimachinery.objects import Object, controller_of, controller_reference, labels_of, name_of
from kone.controllers.daemon_rules import Placement, View, place, plan_rolling_update, target_node, tolerations_of
from kone.controllers.daemonset import DAEMONSET_CONTROLLER
from tests.controllers.world import World
from tests.fakes import make_node, names, ready_pod, set_pod_status

NOW = 1_700_000_000.0


def daemon_set(pod_spec: Object | None = None, **spec: object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "log", "namespace": "kube-system", "uid": "uid-log"},
        "spec": {
            "selector": {"matchLabels": {"app": "log"}},
            "template": {
                "metadata": {"labels": {"app": "log"}},
                "spec": {"containers": [{"name": "c", "image": "i:1"}], **(pod_spec or {})},
            },
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            **spec,
        },
    }


def rolling(unavailable: int | str, surge: int | str = 0) -> Object:
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}


def tainted(name: str, *effects: str) -> Object:
    return make_node(name, spec={"taints": [{"key": "example.com/x", "effect": effect} for effect in effects]})


async def add_nodes(world: World, *nodes: str) -> None:
    for name in nodes:
        await world.put(NODES, make_node(name))


def nodes_of(pods: Iterable[Object]) -> list[str]:
    return sorted(target_node(pod) for pod in pods)


async def make_ready(world: World, pods: Iterable[Object] | None = None) -> None:
    for pod in list(pods or world.client.of(PODS)):
        ready_pod(world.client, pod, node=target_node(pod))
        await world.settle()


async def change_image(world: World, owner: Object, image: str) -> Object:
    containers = [{"name": "c", "image": image}]
    return await world.edit(DAEMONSETS, owner, "spec", "template", "spec", "containers", value=containers)


def images(world: World) -> dict[str, str]:
    return {target_node(pod): pod["spec"]["containers"][0]["image"] for pod in world.client.of(PODS)}


def going(world: World) -> list[str]:
    return nodes_of(pod for pod in world.client.of(PODS) if "deletionTimestamp" in pod["metadata"])


async def finish_deletions(world: World) -> None:
    for pod in world.client.of(PODS):
        if "deletionTimestamp" in pod["metadata"]:
            await world.client.delete(PODS, name_of(pod), namespace="kube-system", grace_s=0)
    await world.settle()


async def test_a_pod_on_every_node_and_on_those_to_come(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1", "n2")
        owner = await world.put(DAEMONSETS, daemon_set())
        assert nodes_of(world.client.of(PODS)) == ["n1", "n2"]
        await add_nodes(world, "n3")
        assert nodes_of(world.client.of(PODS)) == ["n1", "n2", "n3"]
        await make_ready(world)
        assert world.client.look(DAEMONSETS, owner)["status"] == {
            "currentNumberScheduled": 3,
            "numberMisscheduled": 0,
            "desiredNumberScheduled": 3,
            "numberReady": 3,
            "observedGeneration": 1,
            "updatedNumberScheduled": 3,
            "numberAvailable": 3,
        }
        [revision] = world.client.of(CONTROLLERREVISIONS)
        pod = world.client.of(PODS)[0]
        assert labels_of(pod) == {"app": "log", "controller-revision-hash": name_of(revision).removeprefix("log-")}
        assert labels_of(revision) == labels_of(pod)
        assert controller_of(pod) == controller_reference(owner)
        assert len(await world.events("SuccessfulCreate")) == 3


async def test_pods_are_bound_by_affinity_and_tolerate_what_befalls_nodes(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1")
        await world.put(DAEMONSETS, daemon_set({"hostNetwork": True}))
        [pod] = world.client.of(PODS)
        terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]
        required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert required == {"nodeSelectorTerms": terms}
        assert [(t["key"].split("/")[1], t["operator"], t["effect"]) for t in pod["spec"]["tolerations"]] == [
            ("not-ready", "Exists", "NoExecute"),
            ("unreachable", "Exists", "NoExecute"),
            ("disk-pressure", "Exists", "NoSchedule"),
            ("memory-pressure", "Exists", "NoSchedule"),
            ("pid-pressure", "Exists", "NoSchedule"),
            ("unschedulable", "Exists", "NoSchedule"),
            ("network-unavailable", "Exists", "NoSchedule"),
        ]


async def test_leaves_a_node_that_fits_no_more(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1")
        node = await world.put(NODES, make_node("n2", metadata={"name": "n2", "labels": {"disk": "ssd"}}))
        owner = await world.put(DAEMONSETS, daemon_set({"nodeSelector": {"disk": "ssd"}}))
        assert nodes_of(world.client.of(PODS)) == ["n2"]
        await world.edit(NODES, node, "metadata", "labels", value={})
        assert world.client.of(PODS) == []
        assert world.client.look(DAEMONSETS, owner)["status"]["desiredNumberScheduled"] == 0


async def test_a_pod_stays_where_only_new_ones_are_kept_away(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        node = await world.put(NODES, make_node("n1"))
        owner = await world.put(DAEMONSETS, daemon_set())
        await make_ready(world)
        await world.edit(NODES, node, "spec", "taints", value=[{"key": "k", "effect": "NoSchedule"}])
        assert going(world) == []
        status = world.client.look(DAEMONSETS, owner)["status"]
        assert (status["desiredNumberScheduled"], status["numberMisscheduled"]) == (0, 1)
        await world.edit(NODES, node, "spec", "taints", value=[{"key": "k", "effect": "NoExecute"}])
        assert going(world) == ["n1"]


async def test_a_failed_pod_is_replaced_later_and_later(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1")
        await world.put(DAEMONSETS, daemon_set())

        async def fail() -> str:
            [pod] = world.client.of(PODS)
            set_pod_status(world.client, pod, phase="Failed")
            await world.settle()
            return name_of(pod)

        first = await fail()
        [second] = names(world.client.of(PODS))
        assert second != first
        await fail()
        assert names(world.client.of(PODS)) == [second]
        await world.advance(1)
        [third] = names(world.client.of(PODS))
        assert third != second
        await fail()
        await world.advance(1)
        assert names(world.client.of(PODS)) == [third]
        await world.advance(1)
        assert names(world.client.of(PODS)) != [third]
        message = f"Found failed daemon pod kube-system/{first} on node n1, will try to kill it"
        assert (await world.events("FailedDaemonPod"))[0] == ("Warning", "FailedDaemonPod", message)


async def test_of_two_pods_on_a_node_the_older_stays(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1")
        await world.put(DAEMONSETS, daemon_set())
        [kept] = world.client.of(PODS)
        await make_ready(world)
        await world.advance(5)
        meta = {"name": "bare", "namespace": "kube-system", "labels": labels_of(kept)}
        await world.put(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"nodeName": "n1"}})
        await finish_deletions(world)
        assert names(world.client.of(PODS)) == [name_of(kept)]


async def test_pods_meant_for_a_node_that_has_gone_are_deleted(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1", "n2")
        await world.put(DAEMONSETS, daemon_set())
        await world.client.delete(NODES, "n2")
        await world.settle()
        assert nodes_of(world.client.of(PODS)) == ["n1"]


async def test_available_after_min_ready_seconds(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1")
        owner = await world.put(DAEMONSETS, daemon_set(minReadySeconds=5))
        await make_ready(world)
        assert world.client.look(DAEMONSETS, owner)["status"]["numberUnavailable"] == 1
        await world.advance(5)
        assert world.client.look(DAEMONSETS, owner)["status"]["numberAvailable"] == 1


async def test_a_rolling_update_renews_one_node_after_another(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1", "n2")
        owner = await world.put(DAEMONSETS, daemon_set())
        await make_ready(world)
        await change_image(world, owner, "i:2")
        assert len(going(world)) == 1
        await finish_deletions(world)
        assert sorted(images(world).values()) == ["i:1", "i:2"]
        assert going(world) == []
        await make_ready(world)
        await finish_deletions(world)
        await make_ready(world)
        assert set(images(world).values()) == {"i:2"}
        assert world.client.look(DAEMONSETS, owner)["status"]["updatedNumberScheduled"] == 2


async def test_surging_starts_the_new_pod_before_the_old_one_goes(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1")
        owner = await world.put(DAEMONSETS, daemon_set(updateStrategy=rolling(0, 1)))
        await make_ready(world)
        [old] = world.client.of(PODS)
        await change_image(world, owner, "i:2")
        assert (len(world.client.of(PODS)), going(world)) == (2, [])
        await make_ready(world, [pod for pod in world.client.of(PODS) if name_of(pod) != name_of(old)])
        assert "deletionTimestamp" in world.client.look(PODS, old)["metadata"]


async def test_on_delete_waits_for_the_user(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1")
        owner = await world.put(DAEMONSETS, daemon_set(updateStrategy={"type": "OnDelete"}))
        await make_ready(world)
        await change_image(world, owner, "i:2")
        assert images(world) == {"n1": "i:1"}
        assert "updatedNumberScheduled" not in world.client.look(DAEMONSETS, owner)["status"]
        await world.client.delete(PODS, name_of(world.client.of(PODS)[0]), namespace="kube-system", grace_s=0)
        await world.settle()
        assert images(world) == {"n1": "i:2"}


async def test_old_revisions_are_kept_up_to_the_limit(world: World) -> None:
    async with world.running(DAEMONSET_CONTROLLER):
        await add_nodes(world, "n1")
        owner = await world.put(DAEMONSETS, daemon_set(revisionHistoryLimit=1))
        for number in range(2, 6):
            await change_image(world, owner, f"i:{number}")
            await finish_deletions(world)
        assert sorted(r["revision"] for r in world.client.of(CONTROLLERREVISIONS)) == [4, 5]


# Rules


@pytest.mark.parametrize(
    ("pod_spec", "node", "placement"),
    [
        ({}, make_node("n1"), Placement(run=True, keep=True)),
        ({"nodeName": "n2"}, make_node("n1"), Placement(run=False, keep=False)),
        ({"nodeSelector": {"a": "b"}}, make_node("n1"), Placement(run=False, keep=False)),
        ({}, tainted("n1", "NoSchedule"), Placement(run=False, keep=True)),
        ({}, tainted("n1", "PreferNoSchedule"), Placement(run=True, keep=True)),
        ({}, tainted("n1", "NoExecute"), Placement(run=False, keep=False)),
        ({"tolerations": [{"operator": "Exists"}]}, tainted("n1", "NoExecute"), Placement(run=True, keep=True)),
    ],
)
def test_where_a_daemon_runs(pod_spec: Object, node: Object, placement: Placement) -> None:
    owner = daemon_set(pod_spec)
    assert place(owner, node, tolerations_of(owner)) == placement


def on_node(name: str, node: str, digest: str = "old", *, ready: bool = True) -> Object:
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": "2023-11-14T00:00:00Z"}] if ready else []
    meta = {"name": name, "labels": {"controller-revision-hash": digest}}
    return {"metadata": meta, "spec": {"nodeName": node}, "status": {"phase": "Running", "conditions": conditions}}


@pytest.mark.parametrize(
    ("strategy", "pods", "deleted", "created"),
    [
        (rolling(1), [on_node("a", "n1"), on_node("b", "n2")], ["a"], []),
        (rolling("60%"), [on_node("a", "n1"), on_node("b", "n2")], ["a", "b"], []),
        (rolling(1), [on_node("a", "n1", "new", ready=False), on_node("b", "n2")], [], []),
        (rolling(1), [on_node("a", "n1", ready=False), on_node("b", "n2")], ["a"], []),
        (rolling(1), [on_node("b", "n2")], [], []),
        (rolling(0, 1), [on_node("a", "n1"), on_node("b", "n2")], [], ["n1"]),
        (rolling(0, 1), [on_node("a", "n1", ready=False), on_node("b", "n2")], [], ["n1", "n2"]),
        (rolling(0, 1), [on_node("a", "n1"), on_node("a2", "n1", "new"), on_node("b", "n2")], ["a"], ["n2"]),
        (rolling(0, 1), [on_node("a", "n1"), on_node("a2", "n1", "new", ready=False), on_node("b", "n2")], [], []),
    ],
)
def test_who_is_renewed_next(strategy: Object, pods: list[Object], deleted: list[str], created: list[str]) -> None:
    grouped: dict[str, list[Object]] = {}
    for pod in pods:
        grouped.setdefault(target_node(pod), []).append(pod)
    owner = daemon_set(updateStrategy=strategy)
    plan = plan_rolling_update(View(owner, [make_node("n1"), make_node("n2")], grouped, "new", NOW))
    assert (names(plan.delete), plan.create) == (deleted, created)
