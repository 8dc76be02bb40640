"""A pod's volumes on disk: what is there, how it follows the API, and that nothing is left."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import CONFIGMAPS, GVR, PODS, SECRETS
from kone.apimachinery.objects import Object, dig, labels_of, replace_in, uid_of
from kone.apimachinery.timestamps import format_time
from kone.runtime import mounts
from kone.runtime.parts import MountedVolume, VolumeError
from kone.runtime.volumes import Volumes
from tests.fakes import FakeClient


class Api(FakeClient):
    """Issues tokens too."""

    issued = 0

    async def create(
        self, resource: GVR, obj: Object, *, namespace: str = "", subresource: str = "", name: str = ""
    ) -> Object:
        if subresource != "token":
            return await super().create(resource, obj, namespace=namespace, subresource=subresource, name=name)
        self.issued += 1
        expires = format_time(self.clock.now() + obj["spec"]["expirationSeconds"])
        return {**obj, "status": {"token": f"{name}-{self.issued}", "expirationTimestamp": expires}}


def downward_value(pod: Object, item: Object) -> str:
    """Labels, and nothing else."""
    if dig(item, "fieldRef", "fieldPath") == "metadata.labels":
        return "\n".join(f'{key}="{value}"' for key, value in sorted(labels_of(pod).items()))
    raise ValueError("unsupported fieldPath: metadata.nope")


class World:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.client = Api(self.clock)
        self.synced: list[str] = []
        self.volumes = self.make()

    def make(self) -> Volumes:
        """A new process: it knows nothing of what the one before did."""
        return Volumes(self.client, self.path, self.clock, downward_value, sync_pod=self.synced.append)

    def put(self, resource: GVR, name: str, **content: Any) -> None:
        kind = {CONFIGMAPS: "ConfigMap", SECRETS: "Secret"}[resource]
        meta = {"name": name, "namespace": "n"}
        self.client.put(resource, {"apiVersion": "v1", "kind": kind, "metadata": meta, **content})

    def pod(self, *volumes: Object, **spec: Any) -> Object:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "1"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}], "volumes": list(volumes), **spec},
        }
        return self.client.put(PODS, pod)

    async def mount(self, pod: Object, volume: str = "v") -> Path:
        return Path((await self.volumes.mount(pod))[volume].host_path)

    def mounts(self) -> list[str]:
        return mounts.mounts_below(str(self.path))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.volumes.start()
    yield made
    await made.volumes.stop()
    for point in made.mounts():
        mounts.unmount(point)


CONFIG: Object = {"name": "v", "configMap": {"name": "cm"}}
DOWNWARD: Object = {
    "name": "v",
    "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]},
}
TOKEN: Object = {
    "name": "v",
    "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]},
}


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in sorted(os.listdir(folder)) if not name.startswith("..")}


async def test_a_config_map_lies_where_upstream_has_it(world: World) -> None:
    world.put(CONFIGMAPS, "cm", data={"a": "one"})
    pod = world.pod(CONFIG)
    mounted = await world.volumes.mount(pod)
    path = world.path / "pods" / uid_of(pod) / "volumes" / "kubernetes.io~configmap" / "v"
    assert mounted == {"v": MountedVolume(str(path), read_only=True)}
    assert contents(path) == {"a": "one"}
    assert path.stat().st_mode & 0o777 == 0o777


async def test_a_mounted_config_map_follows_its_object(world: World) -> None:
    world.put(CONFIGMAPS, "cm", data={"a": "old", "gone": "x"})
    path = await world.mount(world.pod(CONFIG))
    await world.client.patch(CONFIGMAPS, "cm", {"data": {"a": "new", "gone": None, "b": "added"}}, namespace="n")
    await settle()
    assert contents(path) == {"a": "new", "b": "added"}


async def test_files_of_an_object_that_is_deleted_stay(world: World) -> None:
    world.put(CONFIGMAPS, "cm", data={"a": "1"})
    path = await world.mount(world.pod(CONFIG))
    await world.client.delete(CONFIGMAPS, "cm", namespace="n")
    await settle()
    assert contents(path) == {"a": "1"}


async def test_a_pod_that_waits_for_an_object_is_looked_at_when_it_comes(world: World) -> None:
    pod = world.pod(CONFIG)
    with pytest.raises(VolumeError, match=r'^MountVolume.SetUp failed for volume "v" : configmap "cm" not found$'):
        await world.mount(pod)
    world.put(CONFIGMAPS, "cm", data={"a": "late"})
    await settle()
    assert world.synced == [uid_of(pod)]
    assert contents(await world.mount(pod)) == {"a": "late"}


async def test_all_sources_that_fail_are_named(world: World) -> None:
    sources = [{"configMap": {"name": "a"}}, {"secret": {"name": "b"}}, {"configMap": {"name": "a"}}]
    with pytest.raises(VolumeError) as caught:
        await world.mount(world.pod({"name": "v", "projected": {"sources": sources}}))
    what = 'MountVolume.SetUp failed for volume "v"'
    assert str(caught.value) == f'{what} : [configmap "a" not found, secret "b" not found]'


async def test_downward_files_follow_the_pod(world: World) -> None:
    pod = world.pod(DOWNWARD)
    path = await world.mount(pod)
    assert contents(path) == {"l": 'a="1"'}
    await world.client.patch(PODS, "p", {"metadata": {"labels": {"a": "2"}}}, namespace="n")
    await settle()
    assert contents(path) == {"l": 'a="2"'}
    before = (path / "..data").readlink()
    world.client.overwrite(PODS, replace_in(world.client.look(PODS, pod), ("status", "phase"), "Running"))
    await settle()
    assert (path / "..data").readlink() == before  # its status is no concern of files


async def test_a_mount_point_inside_a_read_only_volume_is_there(world: World) -> None:
    world.put(CONFIGMAPS, "cm", data={"a": "1"})
    inside = [{"name": "v", "mountPath": "/etc/app"}, {"name": "e", "mountPath": "/etc/app/cache/x"}]
    pod = world.pod(CONFIG, {"name": "e", "emptyDir": {}}, containers=[{"name": "c", "volumeMounts": inside}])
    path = await world.mount(pod)
    assert (path / "cache" / "x").is_dir()
    assert (path / "a").read_text() == "1"


async def test_a_source_that_this_node_has_no_plugin_for(world: World) -> None:
    with pytest.raises(VolumeError) as refused:
        await world.mount(world.pod({"name": "v", "iscsi": {"targetPortal": "t"}}))
    assert str(refused.value) == (
        "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process "
        'volumes=[v]: failed to get Plugin from volumeSpec for volume "v" err=no volume plugin matched'
    )


async def test_nfs_without_a_server_or_a_client(world: World) -> None:
    """The host's own mount(8) is asked, whatever it says is told; nothing is left."""
    pod = world.pod({"name": "v", "nfs": {"server": "fd00::1", "path": "/no/such", "readOnly": True}})
    place = world.path / "pods" / uid_of(pod) / "volumes/kubernetes.io~nfs/v"
    with pytest.raises(VolumeError) as refused:
        await world.mount(pod)
    told = str(refused.value).splitlines()
    assert told[0].startswith('MountVolume.SetUp failed for volume "v" : mount failed: exit status ')
    assert told[1:3] == [
        "Mounting command: mount",
        f"Mounting arguments: -t nfs -o ro [fd00::1]:/no/such {place}",
    ]
    assert not place.exists()


async def test_an_unmounted_pod_leaves_only_what_is_not_a_volume(world: World) -> None:
    world.put(CONFIGMAPS, "cm", data={"a": "1"})
    pod = world.pod(CONFIG, {"name": "e", "emptyDir": {}})
    path = await world.mount(pod, "e")
    (path / "x").write_text("data")
    folder = world.path / "pods" / uid_of(pod)
    (folder / "etc").mkdir()
    assert world.volumes.mounted() == {uid_of(pod)}
    await world.volumes.unmount(uid_of(pod))
    assert os.listdir(folder) == ["etc"]
    assert world.volumes.mounted() == set()
    (folder / "etc").rmdir()
    await world.volumes.unmount(uid_of(pod))
    assert not folder.exists()
    await world.client.patch(CONFIGMAPS, "cm", {"data": {"a": "2"}}, namespace="n")
    await settle()
    assert not folder.exists()


async def test_after_a_restart_a_pod_is_unmounted_by_its_uid_alone(world: World) -> None:
    world.put(CONFIGMAPS, "cm", data={"a": "1"})
    pod = world.pod(CONFIG)
    await world.mount(pod)
    restarted = world.make()
    assert restarted.mounted() == {uid_of(pod)}
    await restarted.unmount(uid_of(pod))
    assert restarted.mounted() == set()


# With mounts


@pytest.mark.ring3
async def test_secrets_and_tokens_lie_in_memory_and_go_with_the_pod(world: World) -> None:
    world.put(SECRETS, "se", data={"k": "cHc="})
    pod = world.pod(TOKEN, {"name": "s", "secret": {"secretName": "se", "defaultMode": 0o440}})
    token, secret = await world.mount(pod), await world.mount(pod, "s")
    assert sorted(world.mounts()) == sorted([str(token), str(secret)])
    assert contents(token) == {"token": "default-1"}
    assert contents(secret) == {"k": "pw"}
    assert token.stat().st_mode & 0o7777 == 0o1777
    await world.volumes.unmount(uid_of(pod))
    assert world.mounts() == []
    assert not token.exists()


@pytest.mark.ring3
async def test_a_token_is_renewed_in_place(world: World) -> None:
    path = await world.mount(world.pod(TOKEN))
    await world.clock.advance(420)
    assert contents(path) == {"token": "default-1"}
    await world.clock.advance(120)
    assert contents(path) == {"token": "default-2"}


@pytest.mark.ring3
async def test_fs_group_reads_what_only_its_owner_would(world: World) -> None:
    pod = world.pod(TOKEN, securityContext={"runAsUser": 1234, "fsGroup": 55})
    token = (await world.mount(pod)) / "token"
    found = token.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, 1234, 55)


@pytest.mark.ring3
async def test_the_hosts_own_files_outlive_a_pod_that_had_a_part_of_them(world: World) -> None:
    host = world.path / "host"
    (host / "sub").mkdir(parents=True)
    (host / "sub" / "precious").write_text("mine")
    pod = world.pod({"name": "v", "hostPath": {"path": str(host)}})
    volume = (await world.volumes.mount(pod))["v"]
    bound = await world.volumes.subpath(pod, volume, "sub")
    assert (Path(bound) / "precious").read_text() == "mine"
    await world.volumes.unmount(uid_of(pod))
    assert world.mounts() == []
    assert (host / "sub" / "precious").read_text() == "mine"
    assert world.volumes.mounted() == set()
