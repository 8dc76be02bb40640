"""ResourceQuotas: what is used, counted when a quota comes and when something comes or goes."""

from kone.apimachinery.kinds import (
    CONFIGMAPS,
    CUSTOMRESOURCEDEFINITIONS,
    DEPLOYMENTS,
    GVR,
    PERSISTENTVOLUMECLAIMS,
    PODS,
    RESOURCEQUOTAS,
    SERVICES,
)
from kone.apimachinery.objects import Object, replace_in
from kone.controllers.controller import Settings
from kone.controllers.resource_quota import RESOURCE_QUOTA_CONTROLLER
from tests.controllers.world import World
from tests.fakes import set_pod_status

SETTINGS = Settings(
    namespaced_resources=lambda: [CONFIGMAPS, DEPLOYMENTS, PERSISTENTVOLUMECLAIMS, PODS, RESOURCEQUOTAS, SERVICES]
)


def quota(name: str = "q", **hard: str) -> Object:
    meta = {"name": name, "namespace": "shop"}
    names = {key.replace("__", "/").replace("_", "."): value for key, value in hard.items()}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": names}}


def thing(kind: str, name: str, spec: Object | None = None, namespace: str = "shop") -> Object:
    return {"kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec or {}}


def used(world: World, made: Object) -> dict[str, str]:
    found: dict[str, str] = world.client.look(RESOURCEQUOTAS, made)["status"]["used"]
    return found


async def test_a_new_quota_tells_what_is_used_already(world: World) -> None:
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=SETTINGS):
        await world.put(CONFIGMAPS, thing("ConfigMap", "a"))
        await world.put(CONFIGMAPS, thing("ConfigMap", "elsewhere", namespace="other"))
        await world.put(PODS, thing("Pod", "p", {"containers": [{"resources": {"requests": {"memory": "64Mi"}}}]}))
        hard = {"configmaps": "5", "count__deployments_apps": "1", "requests_memory": "1Gi", "pods": "3"}
        made = await world.put(RESOURCEQUOTAS, quota(**hard))
        assert world.client.look(RESOURCEQUOTAS, made)["status"] == {
            "hard": {"configmaps": "5", "count/deployments.apps": "1", "requests.memory": "1Gi", "pods": "3"},
            "used": {"configmaps": "1", "count/deployments.apps": "0", "requests.memory": "64Mi", "pods": "1"},
        }


async def test_what_goes_is_given_back(world: World) -> None:
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=SETTINGS):
        await world.put(CONFIGMAPS, thing("ConfigMap", "a"))
        await world.put(CONFIGMAPS, thing("ConfigMap", "b"))
        made = await world.put(RESOURCEQUOTAS, quota(configmaps="5"))
        await world.client.delete(CONFIGMAPS, "a", namespace="shop")
        await world.settle()
        assert used(world, made) == {"configmaps": "1"}


async def test_what_comes_is_counted(world: World) -> None:
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=SETTINGS):
        made = await world.put(RESOURCEQUOTAS, quota(configmaps="5"))
        await world.put(CONFIGMAPS, thing("ConfigMap", "a"))
        assert used(world, made) == {"configmaps": "1"}


async def test_a_change_that_costs_nothing_writes_nothing(world: World) -> None:
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=SETTINGS):
        one = await world.put(CONFIGMAPS, thing("ConfigMap", "a"))
        made = await world.put(RESOURCEQUOTAS, quota(configmaps="5"))
        version = world.client.look(RESOURCEQUOTAS, made)["metadata"]["resourceVersion"]
        await world.edit(CONFIGMAPS, one, "data", value={"k": "v"})
        assert world.client.look(RESOURCEQUOTAS, made)["metadata"]["resourceVersion"] == version


async def test_a_finished_pod_is_given_back_but_still_an_object(world: World) -> None:
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=SETTINGS):
        pod = await world.put(PODS, thing("Pod", "p", {"containers": [{"name": "c"}]}))
        made = await world.put(RESOURCEQUOTAS, quota(pods="1", count__pods="5"))
        assert used(world, made) == {"pods": "1", "count/pods": "1"}
        set_pod_status(world.client, pod, phase="Succeeded")
        await world.settle()
        assert used(world, made) == {"pods": "0", "count/pods": "1"}


async def test_a_service_that_changes_its_type_costs_otherwise(world: World) -> None:
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=SETTINGS):
        service = await world.put(SERVICES, thing("Service", "s", {"type": "NodePort", "ports": [{"port": 80}]}))
        made = await world.put(RESOURCEQUOTAS, quota(services_nodeports="2"))
        assert used(world, made) == {"services.nodeports": "1"}
        await world.edit(SERVICES, service, "spec", "type", value="ClusterIP")
        assert used(world, made) == {"services.nodeports": "0"}


async def test_another_limit_shows_at_once(world: World) -> None:
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=SETTINGS):
        made = await world.put(RESOURCEQUOTAS, quota(configmaps="5"))
        await world.edit(RESOURCEQUOTAS, made, "spec", "hard", value={"services": "1"})
        assert world.client.look(RESOURCEQUOTAS, made)["status"] == {
            "hard": {"services": "1"},
            "used": {"services": "0"},
        }


async def test_names_that_nothing_counts_have_no_use(world: World) -> None:
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=SETTINGS):
        made = await world.put(RESOURCEQUOTAS, quota(count__games_example_com="5", configmaps="1"))
        assert used(world, made) == {"configmaps": "0"}


async def test_a_definition_makes_its_objects_count(world: World) -> None:
    games = GVR("example.com", "v1", "games")
    known = [CONFIGMAPS]
    settings = Settings(namespaced_resources=lambda: known, collectable_resources=lambda: [CUSTOMRESOURCEDEFINITIONS])
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=settings):
        made = await world.put(RESOURCEQUOTAS, quota(count__games_example_com="5"))
        known.append(games)
        await world.put(
            CUSTOMRESOURCEDEFINITIONS, {"kind": "CustomResourceDefinition", "metadata": {"name": "games.example.com"}}
        )
        assert used(world, made) == {"count/games.example.com": "0"}
        await world.put(games, thing("Game", "chess"))
        await world.put(games, thing("Game", "go"))
        await world.client.delete(games, "go", namespace="shop")
        await world.settle()
        assert used(world, made) == {"count/games.example.com": "1"}


async def test_what_somebody_else_wrote_into_the_status_is_put_right_within_5_minutes(world: World) -> None:
    async with world.running(RESOURCE_QUOTA_CONTROLLER, settings=SETTINGS):
        made = await world.put(RESOURCEQUOTAS, quota(configmaps="5"))
        wrong = replace_in(world.client.look(RESOURCEQUOTAS, made), ("status", "hard"), {"configmaps": "7"})
        await world.client.update(RESOURCEQUOTAS, wrong, subresource="status")
        await world.settle()
        assert world.client.look(RESOURCEQUOTAS, made)["status"]["hard"] == {"configmaps": "7"}
        await world.advance(301)
        assert world.client.look(RESOURCEQUOTAS, made)["status"]["hard"] == {"configmaps": "5"}
