"""StatefulSets: names and numbers, one after another, claims, revisions and rolling updates."""

import pytest

from kone.apimachinery import errors
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONTROLLERREVISIONS, GVR, PERSISTENTVOLUMECLAIMS, PODS, STATEFULSETS
from kone.apimachinery.objects import Object, controller_of, controller_reference, dig, labels_of, name_of
from kone.controllers.stateful_claims import corrected_owners
from kone.controllers.stateful_rules import View, make_plan, plan_rolling_update
from kone.controllers.statefulset import STATEFULSET_CONTROLLER
from tests.controllers.world import World, named
from tests.fakes import names, ready_pod, set_pod_status

NOW = 1_700_000_000.0


def stateful_set(replicas: int = 3, claims: tuple[str, ...] = (), **spec: object) -> Object:
    template = {
        "metadata": {"labels": {"app": "db"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}], "volumes": [{"name": "tmp", "emptyDir": {}}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "db", "namespace": "shop", "uid": "uid-db"},
        "spec": {
            "replicas": replicas,
            "serviceName": "dbs",
            "selector": {"matchLabels": {"app": "db"}},
            "template": template,
            "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "volumeClaimTemplates": [{"metadata": {"name": claim, "labels": {"tier": "x"}}} for claim in claims],
            **spec,
        },
    }


def pods_of(world: World) -> list[str]:
    return names(world.client.of(PODS))


async def get_ready(world: World, *pods: str) -> None:
    for name in pods:
        ready_pod(world.client, named(world.client.of(PODS))[name])
        await world.settle()


async def go(world: World, pod: str) -> None:
    """The kubelet has stopped the pod."""
    await world.client.delete(PODS, pod, namespace="shop", grace_s=0)
    await world.settle()


async def all_ready(world: World) -> None:
    """Get every pod ready, however many come after one another."""
    while waiting := [pod for pod in world.client.of(PODS) if not dig(pod, "status", "conditions")]:
        await get_ready(world, *names(waiting))


async def change_image(world: World, owner: Object, image: str) -> Object:
    containers = [{"name": "c", "image": image}]
    return await world.edit(STATEFULSETS, owner, "spec", "template", "spec", "containers", value=containers)


def images(world: World) -> dict[str, str]:
    return {name_of(pod): pod["spec"]["containers"][0]["image"] for pod in world.client.of(PODS)}


async def test_pods_come_one_after_another_with_name_number_and_network(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(2))
        assert pods_of(world) == ["db-0"]
        await get_ready(world, "db-0")
        assert pods_of(world) == ["db-0", "db-1"]
        await get_ready(world, "db-1")
        pod = world.client.of(PODS)[1]
        [revision] = world.client.of(CONTROLLERREVISIONS)
        assert labels_of(pod) == {
            "app": "db",
            "controller-revision-hash": name_of(revision),
            "statefulset.kubernetes.io/pod-name": "db-1",
            "apps.kubernetes.io/pod-index": "1",
        }
        assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("db-1", "dbs")
        assert pod["metadata"]["generateName"] == "db-"
        assert controller_of(pod) == controller_reference(owner)
        assert revision["revision"] == 1
        assert labels_of(revision) == {
            "app": "db",
            "controller.kubernetes.io/hash": name_of(revision).removeprefix("db-"),
        }
        assert world.client.look(STATEFULSETS, owner)["status"] == {
            "replicas": 2,
            "readyReplicas": 2,
            "availableReplicas": 2,
            "currentReplicas": 2,
            "updatedReplicas": 2,
            "collisionCount": 0,
            "observedGeneration": 1,
            "currentRevision": name_of(revision),
            "updateRevision": name_of(revision),
        }
        assert await world.events() == [
            ("Normal", "SuccessfulCreate", "Create Pod db-0 in StatefulSet db successful"),
            ("Normal", "SuccessfulCreate", "Create Pod db-1 in StatefulSet db successful"),
        ]


async def test_parallel_pods_come_and_go_together(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(4, podManagementPolicy="Parallel"))
        assert pods_of(world) == ["db-0", "db-1", "db-2", "db-3"]
        await world.edit(STATEFULSETS, owner, "spec", "replicas", value=1)
        assert pods_of(world) == ["db-0"]


async def test_ordinals_may_start_elsewhere(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(2, podManagementPolicy="Parallel", ordinals={"start": 5}))
        assert pods_of(world) == ["db-5", "db-6"]
        await world.edit(STATEFULSETS, owner, "spec", "ordinals", value={"start": 6})
        assert pods_of(world) == ["db-6", "db-7"]


async def test_scaling_down_takes_the_highest_first_and_waits_for_it(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(3))
        await all_ready(world)
        await world.edit(STATEFULSETS, owner, "spec", "replicas", value=1)
        going = [name_of(pod) for pod in world.client.of(PODS) if "deletionTimestamp" in pod["metadata"]]
        assert going == ["db-2"]
        await go(world, "db-2")
        going = [name_of(pod) for pod in world.client.of(PODS) if "deletionTimestamp" in pod["metadata"]]
        assert going == ["db-1"]
        await go(world, "db-1")
        assert pods_of(world) == ["db-0"]
        assert len(await world.events("SuccessfulDelete")) == 2


async def test_scaling_down_waits_for_a_replica_that_is_not_ready(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(3))
        await all_ready(world)
        set_pod_status(world.client, named(world.client.of(PODS))["db-0"], conditions=[])
        await world.edit(STATEFULSETS, owner, "spec", "replicas", value=1)
        assert not [pod for pod in world.client.of(PODS) if "deletionTimestamp" in pod["metadata"]]
        await get_ready(world, "db-0")
        assert [name_of(pod) for pod in world.client.of(PODS) if "deletionTimestamp" in pod["metadata"]] == ["db-2"]


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
async def test_a_finished_pod_is_deleted_and_made_anew(world: World, phase: str) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        await world.put(STATEFULSETS, stateful_set(1))
        [before] = world.client.of(PODS)
        set_pod_status(world.client, before, phase=phase)
        await world.settle()
        [after] = world.client.of(PODS)
        assert after["metadata"]["uid"] != before["metadata"]["uid"]


async def test_available_after_min_ready_seconds_before_the_next_comes(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(2, minReadySeconds=10))
        await get_ready(world, "db-0")
        await world.advance(9)
        status = world.client.look(STATEFULSETS, owner)["status"]
        assert (status["readyReplicas"], status["availableReplicas"]) == (1, 0)
        assert pods_of(world) == ["db-0"]
        await world.advance(1)
        assert pods_of(world) == ["db-0", "db-1"]
        assert world.client.look(STATEFULSETS, owner)["status"]["availableReplicas"] == 1


async def test_adopts_pods_of_its_name_only(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        for name in ("db-0", "stray"):
            meta = {"name": name, "namespace": "shop", "labels": {"app": "db"}}
            await world.put(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}})
        await world.put(STATEFULSETS, stateful_set(1))
        pods = named(world.client.of(PODS))
        assert (controller_of(pods["db-0"]) or {})["name"] == "db"
        assert controller_of(pods["stray"]) is None


# Claims


async def test_claims_come_before_their_pod_and_stay(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(1, claims=("data", "logs")))
        [pod] = world.client.of(PODS)
        assert pod["spec"]["volumes"] == [
            {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}},
            {"name": "logs", "persistentVolumeClaim": {"claimName": "logs-db-0"}},
            {"name": "tmp", "emptyDir": {}},
        ]
        claims = world.client.of(PERSISTENTVOLUMECLAIMS)
        assert names(claims) == ["data-db-0", "logs-db-0"]
        assert labels_of(claims[0]) == {"app": "db", "tier": "x"}
        assert "ownerReferences" not in claims[0]["metadata"]
        assert ("Normal", "SuccessfulCreate", "Create Claim data-db-0 Pod db-0 in StatefulSet db success") in (
            await world.events()
        )
        await world.edit(STATEFULSETS, owner, "spec", "replicas", value=0)
        assert (pods_of(world), len(world.client.of(PERSISTENTVOLUMECLAIMS))) == ([], 2)


async def test_a_pending_pod_gets_its_claim_again(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        await world.put(STATEFULSETS, stateful_set(1, claims=("data",)))
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "data-db-0", namespace="shop")
        await world.settle()
        assert names(world.client.of(PERSISTENTVOLUMECLAIMS)) == ["data-db-0"]


async def test_no_pod_while_its_claim_is_being_deleted(world: World) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data-db-0", "namespace": "shop", "finalizers": ["kubernetes.io/pvc-protection"]},
    }
    async with world.running(STATEFULSET_CONTROLLER):
        held = await world.put(PERSISTENTVOLUMECLAIMS, claim)
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "data-db-0", namespace="shop")
        await world.put(STATEFULSETS, stateful_set(1, claims=("data",)))
        assert pods_of(world) == []
        message = "Create Pod db-0 in StatefulSet db failed error: pvc data-db-0 is being deleted"
        assert await world.events("FailedCreate") == [("Warning", "FailedCreate", message)]
        await world.edit(PERSISTENTVOLUMECLAIMS, held, "metadata", "finalizers", value=[])
        assert pods_of(world) == ["db-0"]


async def test_a_refused_claim_is_told_of_and_tried_again(world: World) -> None:
    def refuse(verb: str, resource: GVR, obj: Object) -> StatusError | None:
        if verb == "create" and resource == PERSISTENTVOLUMECLAIMS:
            return errors.forbidden("persistentvolumeclaims", "data-db-0", "no room")
        return None

    world.client.refuse = refuse
    why = 'persistentvolumeclaims "data-db-0" is forbidden: no room'
    async with world.running(STATEFULSET_CONTROLLER):
        await world.put(STATEFULSETS, stateful_set(1, claims=("data",)))
        assert {message for _, _, message in await world.events("FailedCreate")} == {
            f"Create Claim data-db-0 for Pod db-0 in StatefulSet db failed error: {why}",
            f"Create Pod db-0 in StatefulSet db failed error: failed to create PVC data-db-0: {why}",
        }
        world.client.refuse = lambda verb, resource, obj: None
        await world.advance(10)
        assert pods_of(world) == ["db-0"]


async def test_claims_are_owned_as_the_retention_policy_says(world: World) -> None:
    policy = {"whenDeleted": "Delete", "whenScaled": "Delete"}
    spec = stateful_set(1, claims=("data",), persistentVolumeClaimRetentionPolicy=policy)
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, spec)
        await all_ready(world)
        [claim] = world.client.of(PERSISTENTVOLUMECLAIMS)
        assert claim["metadata"]["ownerReferences"] == [controller_reference(owner)]
        [pod] = world.client.of(PODS)
        await world.edit(STATEFULSETS, owner, "spec", "replicas", value=0)
        [claim] = world.client.of(PERSISTENTVOLUMECLAIMS)
        assert claim["metadata"]["ownerReferences"] == [controller_reference(pod)]
        # The pod has gone, its claim not yet: the next pod must not take it.
        await go(world, "db-0")
        await world.edit(STATEFULSETS, owner, "spec", "replicas", value=1)
        assert pods_of(world) == []
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "data-db-0", namespace="shop")
        await world.settle()
        assert pods_of(world) == ["db-0"]


def a_claim(*references: Object) -> Object:
    return {"metadata": {"name": "data-db-0", "namespace": "shop", "ownerReferences": list(references)}}


POD: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db-0", "namespace": "shop", "uid": "uid-pod"}}
SET_REFERENCE = controller_reference(stateful_set())
POD_REFERENCE = controller_reference(POD)


@pytest.mark.parametrize(
    ("deleted", "scaled", "in_range", "wanted"),
    [
        ("Retain", "Retain", True, []),
        ("Retain", "Retain", False, []),
        ("Delete", "Retain", True, [SET_REFERENCE]),
        ("Delete", "Retain", False, [SET_REFERENCE]),
        ("Retain", "Delete", True, []),
        ("Retain", "Delete", False, [POD_REFERENCE]),
        ("Delete", "Delete", True, [SET_REFERENCE]),
        ("Delete", "Delete", False, [POD_REFERENCE]),
    ],
)
def test_who_owns_a_claim(deleted: str, scaled: str, in_range: bool, wanted: list[Object]) -> None:
    owner = stateful_set(persistentVolumeClaimRetentionPolicy={"whenDeleted": deleted, "whenScaled": scaled})
    for before in ([], [SET_REFERENCE], [POD_REFERENCE], [SET_REFERENCE, POD_REFERENCE]):
        corrected = corrected_owners(a_claim(*before), owner, POD, in_range=in_range)
        assert corrected == (None if before == wanted else wanted)


def test_claims_of_others_are_left_alone() -> None:
    owner = stateful_set(persistentVolumeClaimRetentionPolicy={"whenDeleted": "Delete", "whenScaled": "Retain"})
    stale = {**SET_REFERENCE, "uid": "uid-of-before"}
    assert corrected_owners(a_claim(stale), owner, POD, in_range=True) is None
    other = {**SET_REFERENCE, "kind": "Operator", "uid": "uid-x"}
    assert corrected_owners(a_claim(other), owner, POD, in_range=True) is None
    assert corrected_owners(a_claim(other, SET_REFERENCE), owner, POD, in_range=True) == [other]


# Updates


async def test_a_rolling_update_goes_from_the_top_one_at_a_time(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(2))
        await all_ready(world)
        await change_image(world, owner, "i:2")
        status = world.client.look(STATEFULSETS, owner)["status"]
        assert status["currentRevision"] != status["updateRevision"]
        assert (status["currentReplicas"], status.get("updatedReplicas")) == (1, None)
        await go(world, "db-1")
        assert images(world) == {"db-0": "i:1", "db-1": "i:2"}
        await get_ready(world, "db-1")
        await go(world, "db-0")
        assert images(world) == {"db-0": "i:2", "db-1": "i:2"}
        await get_ready(world, "db-0")
        status = world.client.look(STATEFULSETS, owner)["status"]
        assert status["currentRevision"] == status["updateRevision"]
        assert (status["currentReplicas"], status["updatedReplicas"]) == (2, 2)


async def test_an_update_stops_above_the_partition(world: World) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(2, updateStrategy=strategy))
        await all_ready(world)
        await change_image(world, owner, "i:2")
        await go(world, "db-1")
        await get_ready(world, "db-1")
        assert images(world) == {"db-0": "i:1", "db-1": "i:2"}
        # What is lost below the partition comes back as it was.
        await go(world, "db-0")
        assert images(world) == {"db-0": "i:1", "db-1": "i:2"}


async def test_on_delete_leaves_pods_until_they_are_deleted(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(2, updateStrategy={"type": "OnDelete"}))
        await all_ready(world)
        await change_image(world, owner, "i:2")
        assert images(world) == {"db-0": "i:1", "db-1": "i:1"}
        await go(world, "db-0")
        assert images(world) == {"db-0": "i:2", "db-1": "i:1"}


async def test_going_back_makes_the_old_revision_the_newest(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(1))
        await all_ready(world)
        first = world.client.look(STATEFULSETS, owner)["status"]["currentRevision"]
        await change_image(world, owner, "i:2")
        await go(world, "db-0")
        await all_ready(world)
        await change_image(world, owner, "i:1")
        assert world.client.look(STATEFULSETS, owner)["status"]["updateRevision"] == first
        numbers = {name_of(r): r["revision"] for r in world.client.of(CONTROLLERREVISIONS)}
        assert (numbers[first], len(numbers)) == (3, 2)


async def test_old_revisions_are_kept_up_to_the_limit(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(1, revisionHistoryLimit=1))
        await all_ready(world)
        for number in range(2, 6):
            await change_image(world, owner, f"i:{number}")
            await go(world, "db-0")
            await all_ready(world)
        assert sorted(r["revision"] for r in world.client.of(CONTROLLERREVISIONS)) == [4, 5]


async def test_a_taken_name_gives_another_collision_count(world: World) -> None:
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, stateful_set(0))
        [revision] = world.client.of(CONTROLLERREVISIONS)
        await world.client.delete(STATEFULSETS, "db", namespace="shop")
        taken = {**revision, "data": {"other": True}}
        taken["metadata"] = {**revision["metadata"], "ownerReferences": [], "labels": {}}
        world.client.overwrite(CONTROLLERREVISIONS, taken)
        await world.put(STATEFULSETS, stateful_set(0))
        status = world.client.look(STATEFULSETS, owner)["status"]
        assert status["collisionCount"] == 1
        assert status["updateRevision"] != name_of(revision)


async def test_nothing_but_the_status_while_being_deleted(world: World) -> None:
    held = stateful_set(2)
    held["metadata"]["finalizers"] = ["foregroundDeletion"]
    async with world.running(STATEFULSET_CONTROLLER):
        owner = await world.put(STATEFULSETS, held)
        await world.client.delete(STATEFULSETS, "db", namespace="shop")
        [revision] = world.client.of(CONTROLLERREVISIONS)
        await world.client.delete(CONTROLLERREVISIONS, name_of(revision), namespace="shop")
        await go(world, "db-0")
        assert (pods_of(world), world.client.of(CONTROLLERREVISIONS)) == ([], [])
        assert world.client.look(STATEFULSETS, owner)["status"]["replicas"] == 0


# Plans


OLD, NEW = ({"metadata": {"name": name}} for name in ("old", "new"))


def member(ordinal: int, revision: str = "old", *, ready: bool = True, going: bool = False) -> Object:
    meta = {"name": f"db-{ordinal}", "namespace": "shop", "labels": {"controller-revision-hash": revision}}
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": "2023-11-14T00:00:00Z"}] if ready else []
    pod: Object = {"metadata": meta, "status": {"phase": "Running", "conditions": conditions}}
    if going:
        meta["deletionTimestamp"] = "2023-11-14T00:00:00Z"
    return pod


@pytest.mark.parametrize(
    ("policy", "limit", "pods", "doomed"),
    [
        ("OrderedReady", 1, [member(0), member(1), member(2)], ["db-2"]),
        ("OrderedReady", 2, [member(0), member(1), member(2)], ["db-2", "db-1"]),
        ("OrderedReady", "50%", [member(n) for n in range(4)], ["db-3", "db-2"]),
        ("OrderedReady", "10%", [member(n) for n in range(4)], ["db-3"]),
        ("OrderedReady", 1, [member(0), member(1, ready=False), member(2, "new")], []),
        ("OrderedReady", 2, [member(0), member(1), member(2, going=True)], ["db-1"]),
        ("OrderedReady", 2, [member(0), member(1), member(2, "new")], ["db-1", "db-0"]),
        ("Parallel", 1, [member(0, ready=False), member(1), member(2)], ["db-0"]),
        ("Parallel", 2, [member(0, ready=False), member(1), member(2)], ["db-0", "db-2"]),
        ("Parallel", 1, [member(0, ready=False), member(1, ready=False), member(2)], ["db-1", "db-0"]),
        ("Parallel", 1, [member(0), member(1), member(2, "new", ready=False)], []),
    ],
)
def test_who_is_updated_next(policy: str, limit: int | str, pods: list[Object], doomed: list[str]) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": limit}}
    owner = stateful_set(len(pods), podManagementPolicy=policy, updateStrategy=strategy)
    assert names(plan_rolling_update(View(owner, pods, OLD, NEW, NOW), pods)) == doomed


def test_of_pods_beyond_the_replicas_only_the_lowest_may_go_unready() -> None:
    def doomed(*pods: Object) -> list[tuple[str, int]]:
        view = View(stateful_set(1), [member(0), *pods], OLD, OLD, NOW)
        never = make_plan(
            view, is_stale=lambda ordinal: False, needs_mending=lambda pod: False, needs_owners=lambda pod: False
        )
        return never.steps()

    assert doomed(member(1), member(2)) == [("delete", 2)]
    assert doomed(member(1), member(2, ready=False)) == [("delete", 2)]
    assert doomed(member(1, ready=False), member(2, ready=False)) == []
    assert doomed(member(1), member(2, going=True)) == []
