"""ReplicaSets: how many pods, whose, and which go first."""

import pytest

from kone.apimachinery import errors
from kone.apimachinery.kinds import PODS, REPLICASETS, REPLICATIONCONTROLLERS
from kone.apimachinery.objects import Object, controller_of, dig, name_of, replace_in
from kone.apimachinery.timestamps import format_time
from kone.controllers.pod_control import deletion_cost, plan_claims, rank_for_deletion
from kone.controllers.replicaset import REPLICASET_CONTROLLER, REPLICATION_CONTROLLER_CONTROLLER
from tests.controllers.world import World, conditions
from tests.fakes import names, ready_pod, set_pod_status

NOW = 1_700_000_000.0


def replica_set(name: str = "web", replicas: int = 3, **spec: object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            **spec,
        },
    }


def pod(name: str, labels: dict[str, str] | None = None, **more: object) -> Object:
    meta = {"name": name, "namespace": "shop", "labels": labels or {"app": "web"}, "uid": f"uid-{name}"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}, "status": {"phase": "Running"}, **more}


async def test_makes_pods_from_the_template_and_counts_them(world: World) -> None:
    async with world.running(REPLICASET_CONTROLLER):
        rs = await world.put(REPLICASETS, replica_set())
        pods = world.client.of(PODS)
        assert len(pods) == 3
        assert all(p["metadata"]["labels"] == {"app": "web"} for p in pods)
        assert all(p["metadata"]["generateName"] == "web-" for p in pods)
        reference = controller_of(pods[0])
        assert reference is not None
        assert reference["uid"] == rs["metadata"]["uid"]
        assert reference["blockOwnerDeletion"] is True
        assert world.client.look(REPLICASETS, rs)["status"] == {
            "replicas": 3,
            "fullyLabeledReplicas": 3,
            "observedGeneration": 1,
            "terminatingReplicas": 0,
        }
        assert [e[2] for e in await world.events("SuccessfulCreate")] == [f"Created pod: {name_of(p)}" for p in pods]


async def test_ready_and_available_after_min_ready_seconds(world: World) -> None:
    async with world.running(REPLICASET_CONTROLLER):
        rs = await world.put(REPLICASETS, replica_set(replicas=1, minReadySeconds=10))
        ready_pod(world.client, world.client.of(PODS)[0])
        await world.settle()
        status = world.client.look(REPLICASETS, rs)["status"]
        assert (status["readyReplicas"], status.get("availableReplicas")) == (1, None)
        await world.advance(9)
        assert "availableReplicas" not in world.client.look(REPLICASETS, rs)["status"]
        await world.advance(1)
        assert world.client.look(REPLICASETS, rs)["status"]["availableReplicas"] == 1


async def test_a_deleted_or_failed_pod_is_replaced_at_once(world: World) -> None:
    async with world.running(REPLICASET_CONTROLLER):
        await world.put(REPLICASETS, replica_set(replicas=2))
        first, second = world.client.of(PODS)
        ready_pod(world.client, first)
        await world.client.delete(PODS, name_of(first), namespace="shop")
        await world.settle()
        assert len(world.client.of(PODS)) == 3
        set_pod_status(world.client, second, phase="Failed")
        await world.settle()
        assert len(world.client.of(PODS)) == 4


async def test_pods_being_deleted_are_terminating_until_they_finish(world: World) -> None:
    async with world.running(REPLICASET_CONTROLLER):
        rs = await world.put(REPLICASETS, replica_set(replicas=1))
        [first] = world.client.of(PODS)
        ready_pod(world.client, first)
        await world.client.delete(PODS, name_of(first), namespace="shop")
        await world.settle()
        assert world.client.look(REPLICASETS, rs)["status"]["terminatingReplicas"] == 1
        await world.client.delete(PODS, name_of(first), namespace="shop", grace_s=0)
        await world.settle()
        assert world.client.look(REPLICASETS, rs)["status"]["terminatingReplicas"] == 0


async def test_scaling_down_deletes_the_surplus(world: World) -> None:
    async with world.running(REPLICASET_CONTROLLER):
        rs = await world.put(REPLICASETS, replica_set(replicas=3))
        keep = world.client.of(PODS)[1]
        ready_pod(world.client, keep)
        await world.edit(REPLICASETS, rs, "spec", "replicas", value=1)
        assert names(world.client.of(PODS)) == [name_of(keep)]
        assert len(await world.events("SuccessfulDelete")) == 2


async def test_adopts_matching_orphans_and_releases_what_no_longer_matches(world: World) -> None:
    world.client.put(PODS, pod("stray"))
    async with world.running(REPLICASET_CONTROLLER):
        rs = await world.put(REPLICASETS, replica_set(replicas=1))
        [stray] = world.client.of(PODS)
        assert dig(controller_of(stray), "uid") == rs["metadata"]["uid"]
        await world.edit(PODS, stray, "metadata", "labels", value={"app": "other"})
        released, made = sorted(world.client.of(PODS), key=lambda p: name_of(p) != "stray")
        assert controller_of(released) is None
        assert dig(controller_of(made), "uid") == rs["metadata"]["uid"]


async def test_a_refused_pod_is_told_by_condition_and_event_and_stops_the_batch(world: World) -> None:
    refusals = []

    def refuse(verb: str, resource: object, obj: Object) -> errors.StatusError | None:
        if verb == "create" and resource == PODS:
            refusals.append(obj)
            return errors.forbidden("pods", "web-", "exceeded quota: q")
        return None

    world.client.refuse = refuse
    async with world.running(REPLICASET_CONTROLLER):
        rs = await world.put(REPLICASETS, replica_set(replicas=30))
        assert len(refusals) <= 2  # the status write brings the set back once
        assert conditions(world.client.look(REPLICASETS, rs)) == {"ReplicaFailure": ("True", "FailedCreate")}
        message = 'Error creating: pods "web-" is forbidden: exceeded quota: q'
        assert ("Warning", "FailedCreate", message) in await world.events()
        world.client.refuse = lambda *args: None
        await world.advance(60)
        assert len(world.client.of(PODS)) == 30
        assert conditions(world.client.look(REPLICASETS, rs)) == {}


async def test_one_that_is_being_deleted_makes_nothing(world: World) -> None:
    async with world.running(REPLICASET_CONTROLLER):
        rs = replica_set()
        rs["metadata"] |= {"deletionTimestamp": format_time(NOW), "finalizers": ["foregroundDeletion"]}
        await world.put(REPLICASETS, rs)
        assert world.client.of(PODS) == []


async def test_replication_controllers_do_the_same_without_counting_terminating_pods(world: World) -> None:
    async with world.running(REPLICATION_CONTROLLER_CONTROLLER):
        rc = replica_set(replicas=2, selector={"app": "web"})
        rc |= {"apiVersion": "v1", "kind": "ReplicationController"}
        rc = await world.put(REPLICATIONCONTROLLERS, rc)
        assert world.client.look(REPLICATIONCONTROLLERS, rc)["status"] == {
            "replicas": 2,
            "fullyLabeledReplicas": 2,
            "observedGeneration": 1,
        }
        reference = controller_of(world.client.of(PODS)[0])
        assert (dig(reference, "apiVersion"), dig(reference, "kind")) == ("v1", "ReplicationController")


# Which pod goes first


def running(name: str, *, node: str = "n1", ready_s: float | None = None, age_s: float = 100, **more: object) -> Object:
    made = pod(name, **more)
    made["metadata"]["creationTimestamp"] = format_time(NOW - age_s)
    made["spec"] = {"nodeName": node} if node else {}
    if ready_s is not None:
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": format_time(NOW - ready_s)}
        made["status"]["conditions"] = [ready]
    return made


def with_cost(made: Object, cost: str) -> Object:
    return replace_in(made, ("metadata", "annotations"), {"controller.kubernetes.io/pod-deletion-cost": cost})


def restarted(made: Object, times: int) -> Object:
    return replace_in(made, ("status", "containerStatuses"), [{"name": "c", "restartCount": times}])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(running("b", node=""), running("a"), id="unassigned before assigned"),
        pytest.param(running("b", status={"phase": "Pending"}), running("a"), id="pending before running"),
        pytest.param(running("b"), running("a", ready_s=50), id="not ready before ready"),
        pytest.param(
            with_cost(running("b", ready_s=90), "-5"), running("a", ready_s=1), id="lower deletion cost first"
        ),
        pytest.param(running("b", ready_s=9), running("a", ready_s=90), id="shorter ready first"),
        pytest.param(
            restarted(running("b", ready_s=50), 3), restarted(running("a", ready_s=50), 1), id="more restarts first"
        ),
        pytest.param(running("b", age_s=10), running("a", age_s=100), id="younger first"),
        pytest.param(running("a", age_s=100), running("b", age_s=101), id="of much the same age: by UID"),
    ],
)
def test_ranking(first: Object, second: Object) -> None:
    for order in ([first, second], [second, first]):
        assert names(rank_for_deletion(order, [], NOW)) == [name_of(first), name_of(second)]


def test_pods_on_a_crowded_node_go_first() -> None:
    lonely, crowded = running("a", node="n1", ready_s=5), running("b", node="n2", ready_s=50)
    related = [lonely, crowded, running("c", node="n2")]
    assert names(rank_for_deletion([lonely, crowded], related, NOW)) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "cost"), [("10", 10), ("-3", -3), ("", 0), ("+5", 0), ("007", 0), ("x", 0), ("2147483648", 0), ("-0", 0)]
)
def test_deletion_cost(text: str, cost: int) -> None:
    assert deletion_cost(with_cost(pod("a"), text)) == cost


def test_claims_of_one_being_deleted_are_only_what_it_has() -> None:
    owner = {"metadata": {"name": "web", "namespace": "shop", "uid": "o", "deletionTimestamp": "x"}}
    mine = {"metadata": {"name": "m", "ownerReferences": [{"uid": "o", "controller": True}], "labels": {"ok": "y"}}}
    misfit = {"metadata": {"name": "f", "ownerReferences": [{"uid": "o", "controller": True}]}}
    orphan = {"metadata": {"name": "s", "labels": {"ok": "y"}}}
    claims = plan_claims(owner, [mine, misfit, orphan], lambda obj: "labels" in obj["metadata"])
    assert (names(claims.owned), claims.adopt, claims.release) == (["m"], [], [])
