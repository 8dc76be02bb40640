"""What goes when its owners have gone, in each of the three ways of deleting."""

import pytest

from kone.apimachinery.kinds import CONFIGMAPS, EVENTS, GVR, NAMESPACES
from kone.apimachinery.objects import Object, is_deleting, name_of, owner_references, uid_of
from kone.client.client import Propagation
from kone.controllers.controller import Settings
from kone.controllers.garbage_collector import GARBAGE_COLLECTOR
from tests.controllers.world import World
from tests.fakes import names

KINDS: dict[tuple[str, str], tuple[GVR, bool]] = {
    ("v1", "ConfigMap"): (CONFIGMAPS, True),
    ("v1", "Namespace"): (NAMESPACES, False),
}
SETTINGS = Settings(
    collectable_resources=lambda: [CONFIGMAPS, NAMESPACES, EVENTS],
    resource_of_kind=lambda api_version, kind: KINDS.get((api_version, kind)),
)


def config_map(name: str, *owners: Object, namespace: str = "shop", blocking: bool = False, **meta: object) -> Object:
    references = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": name_of(owner),
            "uid": uid_of(owner),
            **({"blockOwnerDeletion": True} if blocking else {}),
        }
        for owner in owners
    ]
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "ownerReferences": references, **meta}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


async def delete(world: World, name: str, propagation: Propagation = "") -> None:
    await world.client.delete(CONFIGMAPS, name, namespace="shop", propagation=propagation)
    await world.settle()


async def unhold(world: World, obj: Object) -> None:
    await world.edit(CONFIGMAPS, obj, "metadata", "finalizers", value=[])


async def test_dependents_go_after_their_owner_also_down_a_chain(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        a = await world.put(CONFIGMAPS, config_map("a"))
        b = await world.put(CONFIGMAPS, config_map("b", a))
        await world.put(CONFIGMAPS, config_map("c", b))
        await world.put(CONFIGMAPS, config_map("other"))
        await delete(world, "a", "Background")
        assert names(world.client.of(CONFIGMAPS)) == ["other"]


async def test_an_owner_that_went_while_nobody_looked(world: World) -> None:
    world.client.put(CONFIGMAPS, config_map("b", config_map("gone")))
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        assert world.client.of(CONFIGMAPS) == []


async def test_an_owner_of_that_name_with_another_uid_is_no_owner(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        a = await world.put(CONFIGMAPS, config_map("a"))
        await world.put(CONFIGMAPS, config_map("b", {**a, "metadata": {"name": "a", "uid": "another"}}))
        assert names(world.client.of(CONFIGMAPS)) == ["a"]


async def test_with_one_owner_left_only_the_reference_to_the_other_goes(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        a, b = await world.put(CONFIGMAPS, config_map("a")), await world.put(CONFIGMAPS, config_map("b"))
        child = await world.put(CONFIGMAPS, config_map("c", a, b))
        await delete(world, "a")
        assert [ref["name"] for ref in owner_references(world.client.look(CONFIGMAPS, child))] == ["b"]


async def test_orphaning_takes_the_references_and_lets_the_owner_go(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        a = await world.put(CONFIGMAPS, config_map("a"))
        child = await world.put(CONFIGMAPS, config_map("b", a))
        await delete(world, "a", "Orphan")
        assert names(world.client.of(CONFIGMAPS)) == ["b"]
        assert owner_references(world.client.look(CONFIGMAPS, child)) == []


@pytest.mark.parametrize("blocking", [True, False])
async def test_in_the_foreground_the_owner_waits_for_those_that_block_it(world: World, blocking: bool) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        a = await world.put(CONFIGMAPS, config_map("a"))
        child = await world.put(CONFIGMAPS, config_map("b", a, blocking=blocking, finalizers=["example.com/hold"]))
        await delete(world, "a", "Foreground")
        assert is_deleting(world.client.look(CONFIGMAPS, child))
        assert names(world.client.of(CONFIGMAPS)) == (["a", "b"] if blocking else ["b"])
        await unhold(world, child)
        assert world.client.of(CONFIGMAPS) == []


async def test_in_the_foreground_grandchildren_go_before_children(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        a = await world.put(CONFIGMAPS, config_map("a"))
        b = await world.put(CONFIGMAPS, config_map("b", a, blocking=True))
        c = await world.put(CONFIGMAPS, config_map("c", b, blocking=True, finalizers=["example.com/hold"]))
        await delete(world, "a", "Foreground")
        assert names(world.client.of(CONFIGMAPS)) == ["a", "b", "c"]
        await unhold(world, c)
        assert world.client.of(CONFIGMAPS) == []


async def test_a_circle_of_blocking_references_still_ends(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        a = config_map("a", config_map("b"), blocking=True)
        b = config_map("b", config_map("a"), blocking=True)
        world.client.put(CONFIGMAPS, a)
        await world.put(CONFIGMAPS, b)
        await delete(world, "a", "Foreground")
        assert world.client.of(CONFIGMAPS) == []


async def test_unblocking_lets_a_waiting_owner_go(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        a = await world.put(CONFIGMAPS, config_map("a"))
        child = await world.put(CONFIGMAPS, config_map("b", a, blocking=True, finalizers=["example.com/hold"]))
        await delete(world, "a", "Foreground")
        freed = [{**ref, "blockOwnerDeletion": False} for ref in owner_references(child)]
        await world.edit(CONFIGMAPS, child, "metadata", "ownerReferences", value=freed)
        assert names(world.client.of(CONFIGMAPS)) == ["b"]


async def test_an_owner_in_another_namespace_is_none_and_that_is_told(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        a = await world.put(CONFIGMAPS, config_map("a", namespace="elsewhere"))
        await world.put(CONFIGMAPS, config_map("b", a))
        assert names(world.client.of(CONFIGMAPS)) == ["a"]
        message = 'ownerRef [v1/ConfigMap, namespace: shop, name: a, uid: uid-a] does not exist in namespace "shop"'
        assert await world.events() == [("Warning", "OwnerRefInvalidNamespace", message)]


async def test_a_cluster_scoped_object_is_never_collected_for_a_namespaced_owner(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        made = config_map("gone")
        owned = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": config_map("ns", made)["metadata"] | {"namespace": ""},
        }
        await world.put(NAMESPACES, owned)
        await world.advance(60)
        assert names(world.client.of(NAMESPACES)) == ["ns"]


async def test_an_owner_of_an_unknown_kind_decides_nothing(world: World) -> None:
    async with world.running(GARBAGE_COLLECTOR, settings=SETTINGS):
        owner = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w", "uid": "w"}}
        await world.put(CONFIGMAPS, config_map("b", owner))
        await world.advance(60)
        assert names(world.client.of(CONFIGMAPS)) == ["b"]
