"""Nodes that fall silent, pods that must leave, pods that nobody else ends."""

import pytest

from kone.apimachinery.kinds import LEASES, NODES, PODS
from kone.apimachinery.objects import Object, dig, find_condition, is_deleting, replace_in
from kone.apimachinery.timestamps import format_micro_time, format_time
from kone.controllers.node_lifecycle import NODE_LIFECYCLE_CONTROLLER, eviction_qps
from kone.controllers.pod_gc import POD_GC_CONTROLLER, terminated_to_delete
from kone.controllers.taint_eviction import TAINT_EVICTION_CONTROLLER
from tests.controllers.world import World, conditions
from tests.fakes import make_node, names, ready_pod, set_pod_status


def node(name: str = "n1", ready: str = "True", **spec: object) -> Object:
    stamp = format_time(1_700_000_000.0)
    condition = {"type": "Ready", "status": ready, "lastHeartbeatTime": stamp, "lastTransitionTime": stamp}
    return make_node(name, spec=spec, status={"conditions": [condition]} if ready else {})


def pod(name: str = "p", node_name: str = "n1", **spec: object) -> Object:
    meta = {"name": name, "namespace": "shop"}
    bound = {"nodeName": node_name} if node_name else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {**bound, **spec},
        "status": {"phase": "Running"},
    }


def taint_set(world: World, name: str = "n1") -> set[tuple[str, str]]:
    found = next(n for n in world.client.of(NODES) if n["metadata"]["name"] == name)
    return {
        (t["key"].removeprefix("node.kubernetes.io/"), t["effect"]) for t in dig(found, "spec", "taints", default=[])
    }


async def renew(world: World, name: str = "n1") -> None:
    meta = {"namespace": "kube-node-lease", "name": name}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": {}}
    if not any(found["metadata"]["name"] == name for found in world.client.of(LEASES)):
        await world.put(LEASES, lease)
    await world.edit(LEASES, lease, "spec", "renewTime", value=format_micro_time(world.clock.now()))


async def test_a_node_silent_for_50_s_is_unknown_and_its_pods_not_ready(world: World) -> None:
    await world.put(NODES, node("other"))
    async with world.running(NODE_LIFECYCLE_CONTROLLER):
        n1 = await world.put(NODES, node())
        ready_pod(world.client, await world.put(PODS, pod()))
        for _ in range(5):
            await renew(world)
            await renew(world, "other")
            await world.advance(10)
        assert conditions(world.client.look(NODES, n1))["Ready"][0] == "True"
        for _ in range(5):
            await renew(world, "other")
            await world.advance(10)
        told = world.client.look(NODES, n1)
        assert find_condition(told, "Ready")["reason"] == "NodeStatusUnknown"  # type: ignore[index]
        assert conditions(told)["MemoryPressure"] == ("Unknown", "NodeStatusNeverUpdated")
        assert find_condition(world.client.of(PODS)[0], "Ready")["status"] == "False"  # type: ignore[index]
        events = [(reason, message) for _, reason, message in await world.events()]
        assert ("NodeNotReady", "Node n1 status is now: NodeNotReady") in events
        assert ("NodeNotReady", "Node is not ready") in events
        assert taint_set(world) == {("unreachable", "NoSchedule"), ("unreachable", "NoExecute")}


async def test_a_lease_alone_keeps_a_node_alive(world: World) -> None:
    async with world.running(NODE_LIFECYCLE_CONTROLLER):
        n1 = await world.put(NODES, node())
        for _ in range(20):
            await renew(world)
            await world.advance(10)
        assert conditions(world.client.look(NODES, n1)) == {"Ready": ("True", "")}


async def test_a_node_that_never_posted_a_status_has_60_s(world: World) -> None:
    async with world.running(NODE_LIFECYCLE_CONTROLLER):
        n1 = await world.put(NODES, node(ready=""))
        await world.advance(59)
        assert conditions(world.client.look(NODES, n1)) == {}
        await world.advance(2)
        assert conditions(world.client.look(NODES, n1))["Ready"] == ("Unknown", "NodeStatusNeverUpdated")


async def test_when_no_node_is_ready_nobody_is_evicted(world: World) -> None:
    async with world.running(NODE_LIFECYCLE_CONTROLLER):
        await world.put(NODES, node())
        await world.advance(51)
        assert taint_set(world) == {("unreachable", "NoSchedule")}
        await world.put(NODES, node("other"))
        assert taint_set(world) == {("unreachable", "NoSchedule"), ("unreachable", "NoExecute")}


async def test_a_node_that_speaks_again_loses_its_taints(world: World) -> None:
    async with world.running(NODE_LIFECYCLE_CONTROLLER):
        n1 = await world.put(NODES, node(ready="False"))
        assert taint_set(world) == {("not-ready", "NoSchedule")}
        await world.edit(NODES, n1, "spec", "unschedulable", value=True)
        assert taint_set(world) == {("not-ready", "NoSchedule"), ("unschedulable", "NoSchedule")}
        newest = world.client.look(NODES, n1)
        await world.client.update(NODES, replace_in(newest, ("status",), node()["status"]), subresource="status")
        await world.settle()
        assert taint_set(world) == {("unschedulable", "NoSchedule")}


async def test_others_taints_stay_as_they_are(world: World) -> None:
    async with world.running(NODE_LIFECYCLE_CONTROLLER):
        mine = {"key": "mine", "effect": "NoExecute"}
        await world.put(NODES, node(taints=[mine, {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]))
        assert taint_set(world) == {("mine", "NoExecute")}


async def test_nodes_of_a_zone_are_evicted_one_in_10_s(world: World) -> None:
    await world.put(NODES, node("a"))
    async with world.running(NODE_LIFECYCLE_CONTROLLER):
        for name in ("b", "c"):
            await world.put(NODES, node(name, ready="False"))
        tainted = [name for name in ("b", "c") if ("not-ready", "NoExecute") in taint_set(world, name)]
        assert len(tainted) == 1
        await world.advance(11)
        assert all(("not-ready", "NoExecute") in taint_set(world, name) for name in ("b", "c"))


@pytest.mark.parametrize(
    ("ready", "silent", "qps"), [(1, 1, 0.1), (2, 3, 0.0), (20, 40, 0.01), (0, 3, 0.1), (10, 3, 0.1)]
)
def test_how_fast_a_zone_may_be_evicted(ready: int, silent: int, qps: float) -> None:
    zone = [node(f"r{n}") for n in range(ready)] + [node(f"s{n}", ready="Unknown") for n in range(silent)]
    assert eviction_qps(zone) == qps


async def test_registering_and_removing_are_told(world: World) -> None:
    async with world.running(NODE_LIFECYCLE_CONTROLLER):
        await world.put(NODES, node())
        await world.client.delete(NODES, "n1")
        await world.settle()
        assert [message for _, _, message in await world.events()] == [
            "Node n1 event: Registered Node n1 in Controller",
            "Node n1 event: Removing Node n1 from Controller",
        ]


async def test_beta_labels_follow_the_stable_ones(world: World) -> None:
    async with world.running(NODE_LIFECYCLE_CONTROLLER):
        n1 = node()
        n1["metadata"]["labels"] |= {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        n1 = await world.put(NODES, n1)
        labels = world.client.look(NODES, n1)["metadata"]["labels"]
        assert (labels["beta.kubernetes.io/os"], labels["beta.kubernetes.io/arch"]) == ("linux", "amd64")


# Taint eviction

OUT = {"key": "out", "effect": "NoExecute"}


def tolerating(seconds: int | None) -> list[Object]:
    return [{"key": "out", "operator": "Exists", **({} if seconds is None else {"tolerationSeconds": seconds})}]


async def test_pods_leave_a_tainted_node_at_once_later_or_never(world: World) -> None:
    async with world.running(TAINT_EVICTION_CONTROLLER):
        n1 = await world.put(NODES, node())
        await world.put(PODS, pod("now"))
        await world.put(PODS, pod("later", tolerations=tolerating(60)))
        await world.put(PODS, pod("never", tolerations=tolerating(None)))
        await world.edit(NODES, n1, "spec", "taints", value=[OUT])

        def leaving() -> list[str]:
            return names(p for p in world.client.of(PODS) if is_deleting(p))

        assert leaving() == ["now"]
        await world.advance(59)
        assert leaving() == ["now"]
        await world.advance(2)
        assert leaving() == ["later", "now"]
        assert conditions(world.client.of(PODS)[0])["DisruptionTarget"] == ("True", "DeletionByTaintManager")
        messages = [message for _, _, message in await world.events("TaintManagerEviction")]
        assert messages == ["Marking for deletion Pod shop/now", "Marking for deletion Pod shop/later"]


async def test_a_taint_taken_back_in_time_cancels(world: World) -> None:
    async with world.running(TAINT_EVICTION_CONTROLLER):
        n1 = await world.put(NODES, node(taints=[OUT]))
        await world.put(PODS, pod("later", tolerations=tolerating(60)))
        await world.advance(30)
        await world.edit(NODES, n1, "spec", "taints", value=[])
        await world.advance(60)
        assert not is_deleting(world.client.of(PODS)[0])
        messages = [message for _, _, message in await world.events()]
        assert messages == ["Cancelling deletion of Pod shop/later"]


# Pod garbage


async def test_pods_of_a_node_that_is_gone_for_40_s_are_failed_and_deleted(world: World) -> None:
    async with world.running(POD_GC_CONTROLLER):
        await world.put(NODES, node())
        await world.put(PODS, pod("p"))
        await world.put(PODS, pod("kept", finalizers=["x"]))
        kept = world.client.look(PODS, pod("kept"))
        world.client.overwrite(PODS, replace_in(kept, ("metadata", "finalizers"), ["example.com/hold"]))
        await world.client.delete(NODES, "n1")
        await world.advance(39)
        assert names(world.client.of(PODS)) == ["kept", "p"]
        await world.advance(2)
        [held] = world.client.of(PODS)
        assert held["status"]["phase"] == "Failed"
        assert conditions(held)["DisruptionTarget"] == ("True", "DeletionByPodGC")


async def test_a_node_that_comes_back_keeps_its_pods(world: World) -> None:
    async with world.running(POD_GC_CONTROLLER):
        await world.put(PODS, pod("p"))
        await world.advance(30)
        await world.put(NODES, node())
        await world.advance(60)
        assert names(world.client.of(PODS)) == ["p"]


async def test_a_deleted_pod_that_was_never_scheduled_goes(world: World) -> None:
    async with world.running(POD_GC_CONTROLLER):
        made = pod("p", "")
        made["metadata"] |= {"deletionTimestamp": format_time(1.0), "deletionGracePeriodSeconds": 30}
        await world.put(PODS, made)
        assert world.client.of(PODS) == []


async def test_terminating_pods_of_a_node_out_of_service_go(world: World) -> None:
    async with world.running(POD_GC_CONTROLLER):
        taint = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}
        await world.put(NODES, node(ready="Unknown", taints=[taint]))
        await world.put(PODS, pod("stays"))
        await world.put(PODS, pod("goes"))
        await world.client.delete(PODS, "goes", namespace="shop")
        await world.settle()
        assert names(world.client.of(PODS)) == ["stays"]


def test_beyond_the_threshold_evicted_pods_go_first_then_the_oldest() -> None:
    def finished(name: str, created: str, reason: str = "") -> Object:
        meta = {"name": name, "creationTimestamp": created}
        return {"metadata": meta, "status": {"phase": "Failed", "reason": reason}}

    pods = [finished("young", "3"), finished("old", "1"), finished("evicted", "4", "Evicted"), pod("running")]
    assert names(terminated_to_delete(pods, 1)) == ["evicted", "old"]
    assert terminated_to_delete(pods, 3) == []


async def test_a_finished_pod_is_not_failed_again(world: World) -> None:
    async with world.running(POD_GC_CONTROLLER):
        made = await world.put(PODS, pod("p"))
        set_pod_status(world.client, made, phase="Succeeded")
        await world.advance(41)
        assert world.client.of(PODS) == []
