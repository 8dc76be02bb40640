"""Deployments with their ReplicaSets and pods: what a user sees of rollouts."""

from kone.apimachinery import errors
from kone.apimachinery.kinds import DEPLOYMENTS, PODS, REPLICASETS
from kone.apimachinery.objects import Object, annotations_of, dig, is_deleting, is_pod_ready, labels_of, name_of
from kone.controllers.deployment import DEPLOYMENT_CONTROLLER
from kone.controllers.replicaset import REPLICASET_CONTROLLER
from tests.controllers.world import World, conditions
from tests.fakes import names, ready_pod

BOTH = (DEPLOYMENT_CONTROLLER, REPLICASET_CONTROLLER)


def deployment(replicas: int = 2, image: str = "v1", surge: object = "25%", unavailable: object = "25%") -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
            "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600,
        },
    }


async def make_ready(world: World) -> None:
    """Play the kubelet until nothing changes: new pods become ready, deleted ones go."""
    for _ in range(50):
        pods = world.client.of(PODS)
        todo = [p for p in pods if is_deleting(p) or not is_pod_ready(p)]
        if not todo:
            return
        for p in todo:
            if is_deleting(p):
                await world.client.delete(PODS, name_of(p), namespace="shop", grace_s=0)
            else:
                ready_pod(world.client, p)
        await world.settle()
    raise AssertionError("the rollout does not end")


def images(world: World) -> list[str]:
    return sorted(p["spec"]["containers"][0]["image"] for p in world.client.of(PODS) if not is_deleting(p))


async def set_image(world: World, image: str) -> None:
    web = world.client.of(DEPLOYMENTS)[0]
    await world.edit(DEPLOYMENTS, web, "spec", "template", "spec", "containers", value=[{"name": "c", "image": image}])


async def test_a_new_deployment_makes_a_set_and_becomes_available(world: World) -> None:
    async with world.running(*BOTH):
        web = await world.put(DEPLOYMENTS, deployment())
        [rs] = world.client.of(REPLICASETS)
        digest = labels_of(rs)["pod-template-hash"]
        assert name_of(rs) == f"web-{digest}"
        assert dig(rs, "spec", "selector", "matchLabels") == {"app": "web", "pod-template-hash": digest}
        assert annotations_of(rs) == {
            "deployment.kubernetes.io/revision": "1",
            "deployment.kubernetes.io/desired-replicas": "2",
            "deployment.kubernetes.io/max-replicas": "3",
        }
        web = world.client.look(DEPLOYMENTS, web)
        assert annotations_of(web) == {"deployment.kubernetes.io/revision": "1"}
        assert conditions(web) == {
            "Available": ("False", "MinimumReplicasUnavailable"),
            "Progressing": ("True", "ReplicaSetUpdated"),
        }
        await make_ready(world)
        web = world.client.look(DEPLOYMENTS, web)
        assert conditions(web) == {
            "Available": ("True", "MinimumReplicasAvailable"),
            "Progressing": ("True", "NewReplicaSetAvailable"),
        }
        status = {k: v for k, v in web["status"].items() if k != "conditions"}
        assert status == {
            "observedGeneration": 1,
            "replicas": 2,
            "updatedReplicas": 2,
            "readyReplicas": 2,
            "availableReplicas": 2,
            "terminatingReplicas": 0,
        }
        message = f"Scaled up replica set web-{digest} from 0 to 2"
        assert await world.events("ScalingReplicaSet") == [("Normal", "ScalingReplicaSet", message)]


async def test_a_changed_template_rolls_out_and_back(world: World) -> None:
    async with world.running(*BOTH):
        web = await world.put(DEPLOYMENTS, deployment(4))
        await make_ready(world)
        first = name_of(world.client.of(REPLICASETS)[0])
        await set_image(world, "v2")
        assert len(images(world)) <= 5
        await make_ready(world)
        assert images(world) == ["v2"] * 4
        assert annotations_of(world.client.look(DEPLOYMENTS, web))["deployment.kubernetes.io/revision"] == "2"
        await set_image(world, "v1")
        await make_ready(world)
        assert images(world) == ["v1"] * 4
        sets = {name_of(rs): rs for rs in world.client.of(REPLICASETS)}
        assert len(sets) == 2
        assert annotations_of(sets[first])["deployment.kubernetes.io/revision"] == "3"
        assert annotations_of(sets[first])["deployment.kubernetes.io/revision-history"] == "1"


async def test_a_rollout_never_has_too_many_pods_nor_too_few_available(world: World) -> None:
    async with world.running(*BOTH):
        await world.put(DEPLOYMENTS, deployment(10, surge=3, unavailable=2))
        await make_ready(world)
        await set_image(world, "v2")
        while set(images(world)) != {"v2"}:
            alive = [p for p in world.client.of(PODS) if not is_deleting(p)]
            assert len(alive) <= 13
            assert sum(map(is_pod_ready, alive)) >= 8
            waiting = [p for p in alive if not is_pod_ready(p)]
            for p in waiting[:1]:
                ready_pod(world.client, p)
            for p in world.client.of(PODS):
                if is_deleting(p):
                    await world.client.delete(PODS, name_of(p), namespace="shop", grace_s=0)
            await world.settle()


async def test_recreate_waits_for_the_last_old_pod(world: World) -> None:
    async with world.running(*BOTH):
        web = deployment(2)
        web["spec"]["strategy"] = {"type": "Recreate"}
        await world.put(DEPLOYMENTS, web)
        await make_ready(world)
        await set_image(world, "v2")
        assert images(world) == []
        old = world.client.of(PODS)
        assert len(old) == 2
        await world.client.delete(PODS, name_of(old[0]), namespace="shop", grace_s=0)
        await world.settle()
        assert len(world.client.of(REPLICASETS)) == 1
        await world.client.delete(PODS, name_of(old[1]), namespace="shop", grace_s=0)
        await world.settle()
        assert images(world) == ["v2", "v2"]


async def test_paused_makes_nothing_new_but_scales(world: World) -> None:
    async with world.running(*BOTH):
        web = await world.put(DEPLOYMENTS, deployment())
        await make_ready(world)
        await world.edit(DEPLOYMENTS, web, "spec", "paused", value=True)
        assert conditions(world.client.look(DEPLOYMENTS, web))["Progressing"] == ("Unknown", "DeploymentPaused")
        await set_image(world, "v2")
        await world.edit(DEPLOYMENTS, web, "spec", "replicas", value=3)
        assert images(world) == ["v1"] * 3
        await world.edit(DEPLOYMENTS, web, "spec", "paused", value=False)
        await make_ready(world)
        assert images(world) == ["v2"] * 3
        assert conditions(world.client.look(DEPLOYMENTS, web))["Progressing"] == ("True", "NewReplicaSetAvailable")


async def test_no_progress_for_the_deadline_is_told_and_progress_takes_it_back(world: World) -> None:
    async with world.running(*BOTH):
        web = await world.put(DEPLOYMENTS, deployment())
        await world.advance(599)
        assert conditions(world.client.look(DEPLOYMENTS, web))["Progressing"] == ("True", "ReplicaSetUpdated")
        await world.advance(3)
        assert conditions(world.client.look(DEPLOYMENTS, web))["Progressing"] == ("False", "ProgressDeadlineExceeded")
        await make_ready(world)
        assert conditions(world.client.look(DEPLOYMENTS, web))["Progressing"] == ("True", "NewReplicaSetAvailable")


async def test_old_sets_beyond_the_history_limit_go(world: World) -> None:
    async with world.running(*BOTH):
        web = deployment(1)
        web["spec"]["revisionHistoryLimit"] = 1
        await world.put(DEPLOYMENTS, web)
        for image in ("v2", "v3", "v4"):
            await make_ready(world)
            await set_image(world, image)
        await make_ready(world)
        revisions = {annotations_of(rs)["deployment.kubernetes.io/revision"] for rs in world.client.of(REPLICASETS)}
        assert revisions == {"3", "4"}


async def test_scaling_in_the_middle_of_a_rollout_is_proportional(world: World) -> None:
    async with world.running(*BOTH):
        web = await world.put(DEPLOYMENTS, deployment(10, surge=3, unavailable=2))
        await make_ready(world)
        await set_image(world, "bad")
        sizes = sorted(dig(rs, "spec", "replicas") for rs in world.client.of(REPLICASETS))
        assert sizes == [5, 8]
        await world.edit(DEPLOYMENTS, web, "spec", "replicas", value=15)
        sizes = sorted(dig(rs, "spec", "replicas") for rs in world.client.of(REPLICASETS))
        assert sizes == [7, 11]


async def test_adopts_a_matching_set_that_has_its_template(world: World) -> None:
    async with world.running(*BOTH):
        orphan = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"name": "web-known", "namespace": "shop", "labels": {"app": "web"}},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "web"}},
                "template": deployment()["spec"]["template"],
            },
        }
        await world.put(REPLICASETS, orphan)
        await world.put(DEPLOYMENTS, deployment())
        [rs] = world.client.of(REPLICASETS)
        assert (name_of(rs), dig(rs, "spec", "replicas")) == ("web-known", 2)


async def test_a_name_taken_by_another_counts_a_collision_and_tries_the_next(world: World) -> None:
    async with world.running(*BOTH):
        await world.put(DEPLOYMENTS, deployment(0))
        taken = name_of(world.client.of(REPLICASETS)[0])
        await world.client.delete(DEPLOYMENTS, "web", namespace="shop")
        await world.settle()
        web = await world.put(DEPLOYMENTS, deployment(0))
        await world.advance(1)
        assert dig(world.client.look(DEPLOYMENTS, web), "status", "collisionCount") == 1
        assert len([n for n in names(world.client.of(REPLICASETS)) if n != taken]) == 1


async def test_a_refused_set_is_told(world: World) -> None:
    world.client.refuse = lambda verb, resource, obj: (
        errors.forbidden("replicasets.apps", "x", "quota") if (verb, resource) == ("create", REPLICASETS) else None
    )
    async with world.running(*BOTH):
        web = await world.put(DEPLOYMENTS, deployment())
        assert conditions(world.client.look(DEPLOYMENTS, web)) == {"Progressing": ("False", "ReplicaSetCreateError")}
        [(kind, _, message), *_] = await world.events("ReplicaSetCreateError")
        assert kind == "Warning"
        assert message.startswith('Failed to create new replica set "web-')


async def test_selecting_everything_is_refused(world: World) -> None:
    async with world.running(*BOTH):
        web = deployment()
        web["spec"]["selector"] = {}
        web = await world.put(DEPLOYMENTS, web)
        assert world.client.of(REPLICASETS) == []
        assert world.client.look(DEPLOYMENTS, web)["status"] == {"observedGeneration": 1}
        assert [reason for _, reason, _ in await world.events()] == ["SelectingAll"]
