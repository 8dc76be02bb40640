"""Namespaces: what each has, and how one that is deleted is emptied."""

from kone.apimachinery.kinds import CONFIGMAPS, NAMESPACES, PODS, SECRETS, SERVICEACCOUNTS
from kone.apimachinery.objects import Object, name_of
from kone.controllers.controller import Settings
from kone.controllers.namespace import NAMESPACE_CONTROLLER
from kone.controllers.root_ca import ROOT_CA_PUBLISHER
from kone.controllers.service_account import SERVICE_ACCOUNT_CONTROLLER
from tests.controllers.world import World, conditions
from tests.fakes import names, ready_pod

SETTINGS = Settings(ca_pem="PEM", namespaced_resources=lambda: [CONFIGMAPS, PODS, SECRETS])
FINE = {
    "NamespaceDeletionDiscoveryFailure": ("False", "ResourcesDiscovered"),
    "NamespaceDeletionGroupVersionParsingFailure": ("False", "ParsedGroupVersions"),
    "NamespaceDeletionContentFailure": ("False", "ContentDeleted"),
    "NamespaceContentRemaining": ("False", "ContentRemoved"),
    "NamespaceFinalizersRemaining": ("False", "ContentHasNoFinalizers"),
}


def namespace(name: str = "shop") -> Object:
    meta = {"name": name}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": meta,
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


def thing(kind: str, name: str, **meta: object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "shop", **meta}}


def pod(name: str, **meta: object) -> Object:
    return {**thing("Pod", name, **meta), "spec": {"terminationGracePeriodSeconds": 30}}


async def test_everything_goes_and_then_the_namespace(world: World) -> None:
    for n in range(3):
        world.client.put(CONFIGMAPS, thing("ConfigMap", f"c{n}"))
    world.client.put(PODS, pod("unbound"))
    async with world.running(NAMESPACE_CONTROLLER, settings=SETTINGS):
        await world.put(NAMESPACES, namespace())
        assert len(world.client.of(CONFIGMAPS)) == 3
        await world.client.delete(NAMESPACES, "shop")
        await world.settle()
        assert world.client.of(CONFIGMAPS) == world.client.of(PODS) == world.client.of(NAMESPACES) == []


async def test_pods_go_first_and_the_last_one_ends_the_wait(world: World) -> None:
    world.client.put(CONFIGMAPS, thing("ConfigMap", "c"))
    running = world.client.put(PODS, pod("p"))
    ready_pod(world.client, running)
    async with world.running(NAMESPACE_CONTROLLER, settings=SETTINGS):
        await world.put(NAMESPACES, namespace())
        await world.client.delete(NAMESPACES, "shop")
        await world.settle()
        assert names(world.client.of(CONFIGMAPS)) == ["c"]
        assert conditions(world.client.of(NAMESPACES)[0]) == FINE
        await world.client.delete(PODS, "p", namespace="shop", grace_s=0)
        await world.settle()
        assert world.client.of(NAMESPACES) == world.client.of(CONFIGMAPS) == []


async def test_finalizers_hold_it_and_are_told(world: World) -> None:
    held = world.client.put(CONFIGMAPS, thing("ConfigMap", "c", finalizers=["example.com/hold"]))
    world.client.put(SECRETS, thing("Secret", "s"))
    async with world.running(NAMESPACE_CONTROLLER, settings=SETTINGS):
        shop = await world.put(NAMESPACES, namespace())
        await world.client.delete(NAMESPACES, "shop")
        await world.settle()
        told = world.client.look(NAMESPACES, shop)
        assert conditions(told) == {
            **FINE,
            "NamespaceContentRemaining": ("True", "SomeResourcesRemain"),
            "NamespaceFinalizersRemaining": ("True", "SomeFinalizersRemain"),
        }
        messages = {c["type"]: c["message"] for c in told["status"]["conditions"]}
        remaining = "Some resources are remaining: configmaps. has 1 resource instances"
        finalizers = "example.com/hold in 1 resource instances"
        assert messages["NamespaceContentRemaining"] == remaining
        assert messages["NamespaceFinalizersRemaining"].endswith(finalizers)
        assert world.client.of(SECRETS) == []
        await world.edit(CONFIGMAPS, held, "metadata", "finalizers", value=[])
        await world.advance(8)
        assert world.client.of(NAMESPACES) == []


async def test_what_is_made_meanwhile_goes_too(world: World) -> None:
    held = world.client.put(CONFIGMAPS, thing("ConfigMap", "c", finalizers=["example.com/hold"]))
    async with world.running(NAMESPACE_CONTROLLER, settings=SETTINGS):
        await world.put(NAMESPACES, namespace())
        await world.client.delete(NAMESPACES, "shop")
        await world.settle()
        world.client.put(SECRETS, thing("Secret", "late"))
        await world.edit(CONFIGMAPS, held, "metadata", "finalizers", value=[])
        await world.advance(8)
        assert world.client.of(SECRETS) == world.client.of(NAMESPACES) == []


async def test_a_namespace_has_its_default_service_account(world: World) -> None:
    async with world.running(SERVICE_ACCOUNT_CONTROLLER):
        await world.put(NAMESPACES, namespace())
        assert names(world.client.of(SERVICEACCOUNTS, "shop")) == ["default"]
        await world.client.delete(SERVICEACCOUNTS, "default", namespace="shop")
        await world.settle()
        assert names(world.client.of(SERVICEACCOUNTS, "shop")) == ["default"]


async def test_a_terminating_namespace_gets_nothing_new(world: World) -> None:
    async with world.running(SERVICE_ACCOUNT_CONTROLLER, ROOT_CA_PUBLISHER, settings=SETTINGS):
        await world.put(NAMESPACES, {**namespace(), "status": {"phase": "Terminating"}})
        assert world.client.of(SERVICEACCOUNTS) == world.client.of(CONFIGMAPS) == []


async def test_the_root_ca_is_published_and_mended(world: World) -> None:
    async with world.running(ROOT_CA_PUBLISHER, settings=SETTINGS):
        await world.put(NAMESPACES, namespace())
        [config_map] = world.client.of(CONFIGMAPS)
        assert (name_of(config_map), config_map["data"]) == ("kube-root-ca.crt", {"ca.crt": "PEM"})
        assert config_map["metadata"]["annotations"]["kubernetes.io/description"].startswith("Contains a CA bundle")
        await world.edit(CONFIGMAPS, config_map, "data", value={"ca.crt": "bad", "more": "x"})
        assert world.client.look(CONFIGMAPS, config_map)["data"] == {"ca.crt": "PEM"}
        await world.client.delete(CONFIGMAPS, "kube-root-ca.crt", namespace="shop")
        await world.settle()
        assert names(world.client.of(CONFIGMAPS)) == ["kube-root-ca.crt"]
