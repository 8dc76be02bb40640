"""Claims of the class local-path: a directory each, expanded, and gone with the claim."""

from pathlib import Path

import pytest

from kone.apimachinery.kinds import NODES, PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, STORAGECLASSES
from kone.apimachinery.objects import Object, dig, name_of, replace_in, uid_of
from kone.controllers.controller import Settings
from kone.controllers.local_path import CLASS, LOCAL_PATH_PROVISIONER, STORAGE_CLASS, is_to_be_removed
from kone.controllers.persistent_volumes import PERSISTENT_VOLUME_BINDER
from kone.controllers.volume_expansion import VOLUME_EXPANSION_CONTROLLER
from tests.controllers.test_persistent_volumes import claim, volume
from tests.controllers.world import World
from tests.fakes import make_node

CONTROLLERS = (LOCAL_PATH_PROVISIONER, PERSISTENT_VOLUME_BINDER, VOLUME_EXPANSION_CONTROLLER)
SELECTED = {"volume.kubernetes.io/selected-node": "n1"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(local_storage=str(tmp_path / "storage"), node_name="n1")


def local(**spec: object) -> Object:
    return claim(storageClassName=CLASS, **spec)


async def choose_node(world: World, made: Object) -> Object:
    """What the scheduler does once a pod uses the claim."""
    newest = world.client.look(PERSISTENTVOLUMECLAIMS, made)
    annotations = {**dig(newest, "metadata", "annotations", default={}), **SELECTED}
    return await world.edit(PERSISTENTVOLUMECLAIMS, made, "metadata", "annotations", value=annotations)


async def test_the_class_is_made_once_and_left_to_its_users(world: World, settings: Settings) -> None:
    async with world.running(LOCAL_PATH_PROVISIONER, settings=settings):
        [made] = world.client.of(STORAGECLASSES)
        assert made["provisioner"] == STORAGE_CLASS["provisioner"]
        await world.edit(STORAGECLASSES, made, "metadata", "annotations", value={})
    async with world.running(LOCAL_PATH_PROVISIONER, settings=settings):
        [kept] = world.client.of(STORAGECLASSES)
        assert kept["metadata"]["annotations"] == {}


async def test_without_a_node_there_is_no_class(world: World) -> None:
    async with world.running(LOCAL_PATH_PROVISIONER, settings=Settings()):
        assert world.client.of(STORAGECLASSES) == []


async def test_a_claim_gets_a_directory_of_the_node_that_was_chosen(
    world: World, settings: Settings, tmp_path: Path
) -> None:
    async with world.running(*CONTROLLERS, settings=settings):
        await world.put(
            NODES, replace_in(make_node("n1"), ("metadata", "labels"), {"kubernetes.io/hostname": "host-1"})
        )
        made = await world.put(PERSISTENTVOLUMECLAIMS, local(volumeMode="Filesystem"))
        assert world.client.of(PERSISTENTVOLUMES) == []
        await choose_node(world, made)
        [volume] = world.client.of(PERSISTENTVOLUMES)
        folder = tmp_path / "storage" / f"pvc-{uid_of(made)}_shop_c"
        assert dig(volume, "spec", "hostPath") == {"path": str(folder), "type": "DirectoryOrCreate"}
        assert folder.stat().st_mode & 0o7777 == 0o777
        [term] = dig(volume, "spec", "nodeAffinity", "required", "nodeSelectorTerms")
        assert term["matchExpressions"][0]["values"] == ["host-1"]
        bound = world.client.look(PERSISTENTVOLUMECLAIMS, made)
        assert (dig(bound, "status", "phase"), dig(bound, "spec", "volumeName")) == ("Bound", name_of(volume))


async def test_success_is_told(world: World, settings: Settings) -> None:
    asked = {**SELECTED, "volume.kubernetes.io/storage-provisioner": "kone.dev/local-path"}
    async with world.running(LOCAL_PATH_PROVISIONER, settings=settings):
        await world.put(PERSISTENTVOLUMECLAIMS, replace_in(local(), ("metadata", "annotations"), asked))
        text = f"Successfully provisioned volume {name_of(world.client.of(PERSISTENTVOLUMES)[0])}"
        assert await world.events() == [("Normal", "ProvisioningSucceeded", text)]


async def test_the_directory_goes_with_the_claim(world: World, settings: Settings, tmp_path: Path) -> None:
    async with world.running(*CONTROLLERS, settings=settings):
        made = await world.put(PERSISTENTVOLUMECLAIMS, local())
        await choose_node(world, made)
        (folder,) = (tmp_path / "storage").iterdir()
        (folder / "data").write_text("x")
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "c", namespace="shop")
        await world.settle()
        assert world.client.of(PERSISTENTVOLUMES) == []
        assert not folder.exists()


async def test_a_directory_elsewhere_is_never_removed(world: World, settings: Settings, tmp_path: Path) -> None:
    async with world.running(*CONTROLLERS, settings=settings):
        made = await world.put(PERSISTENTVOLUMECLAIMS, local())
        await choose_node(world, made)
        [volume] = world.client.of(PERSISTENTVOLUMES)
        precious = tmp_path / "precious"
        precious.mkdir()
        await world.edit(PERSISTENTVOLUMES, volume, "spec", "hostPath", "path", value=str(precious))
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "c", namespace="shop")
        await world.settle()
        assert world.client.of(PERSISTENTVOLUMES) == []
        assert precious.exists()


async def test_a_claim_of_mode_block_gets_a_file_that_grows_and_goes_with_it(
    world: World, settings: Settings, tmp_path: Path
) -> None:
    async with world.running(*CONTROLLERS, settings=settings):
        made = await world.put(PERSISTENTVOLUMECLAIMS, local(volumeMode="Block"))
        await choose_node(world, made)
        [volume] = world.client.of(PERSISTENTVOLUMES)
        file = tmp_path / "storage" / f"pvc-{uid_of(made)}_shop_c"
        assert (dig(volume, "spec", "local"), dig(volume, "spec", "volumeMode")) == ({"path": str(file)}, "Block")
        assert (file.stat().st_size, file.stat().st_blocks) == (1 << 30, 0)
        await world.edit(PERSISTENTVOLUMECLAIMS, made, "spec", "resources", "requests", value={"storage": "3Gi"})
        assert file.stat().st_size == 3 << 30
        assert dig(world.client.look(PERSISTENTVOLUMECLAIMS, made), "status", "capacity") == {"storage": "3Gi"}
        await world.client.delete(PERSISTENTVOLUMECLAIMS, "c", namespace="shop")
        await world.settle()
        assert world.client.of(PERSISTENTVOLUMES) == []
        assert not file.exists()


async def test_what_cannot_be_made_is_told(world: World, settings: Settings) -> None:
    spec, why = {"selector": {"matchLabels": {"a": "b"}}}, "claim.Spec.Selector is not supported"
    asked = {**SELECTED, "volume.kubernetes.io/storage-provisioner": "kone.dev/local-path"}
    async with world.running(LOCAL_PATH_PROVISIONER, settings=settings):
        await world.put(PERSISTENTVOLUMECLAIMS, replace_in(local(**spec), ("metadata", "annotations"), asked))
        text = f'failed to provision volume with StorageClass "local-path": {why}'
        assert ("Warning", "ProvisioningFailed", text) in await world.events("ProvisioningFailed")
        assert world.client.of(PERSISTENTVOLUMES) == []


async def test_a_claim_grows_at_once(world: World, settings: Settings) -> None:
    async with world.running(*CONTROLLERS, settings=settings):
        made = await world.put(PERSISTENTVOLUMECLAIMS, local())
        await choose_node(world, made)
        await world.edit(PERSISTENTVOLUMECLAIMS, made, "spec", "resources", "requests", value={"storage": "3Gi"})
        [volume] = world.client.of(PERSISTENTVOLUMES)
        assert dig(volume, "spec", "capacity", "storage") == "3Gi"
        assert dig(world.client.look(PERSISTENTVOLUMECLAIMS, made), "status", "capacity") == {"storage": "3Gi"}
        assert len(await world.events("VolumeResizeSuccessful")) == 1


@pytest.mark.parametrize(
    ("policy", "phase", "provisioner", "removed"),
    [
        ("Delete", "Released", "kone.dev/local-path", True),
        ("Delete", "Failed", "kone.dev/local-path", True),
        ("Delete", "Bound", "kone.dev/local-path", False),
        ("Retain", "Released", "kone.dev/local-path", False),
        ("Delete", "Released", "example.com/disk", False),
    ],
)
def test_which_volumes_are_removed(policy: str, phase: str, provisioner: str, removed: bool) -> None:
    made = replace_in(volume(persistentVolumeReclaimPolicy=policy), ("status", "phase"), phase)
    made["metadata"]["annotations"] = {"pv.kubernetes.io/provisioned-by": provisioner}
    assert is_to_be_removed(made) is removed
