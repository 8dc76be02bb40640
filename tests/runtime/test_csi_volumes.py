"""Volumes of a CSI driver, which is real but for its storage: staged, published, taken back; what is told, what is
refused, what a new kone finds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import (
    CSIDRIVERS,
    CSINODES,
    NODES,
    PERSISTENTVOLUMECLAIMS,
    PERSISTENTVOLUMES,
    PODS,
    SECRETS,
    VOLUMEATTACHMENTS,
)
from kone.apimachinery.objects import Object, uid_of
from kone.apimachinery.volume_attachments import attachment_name, unique_name
from kone.runtime import csi_messages, mounts
from kone.runtime.csi_drivers import CsiDrivers
from kone.runtime.csi_volumes import CsiVolumes
from kone.runtime.grpc_status import INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE, RpcError
from kone.runtime.parts import VolumeError, VolumeLimitReached, VolumesWaiting
from kone.runtime.tokens import Tokens
from kone.runtime.volumes import WAIT_MAX_S, Volumes
from tests.csi_driver import CsiDriver
from tests.runtime.test_volumes import Api

DRIVER = "test.csi.kone.dev"
IN_USE = unique_name(DRIVER, "handle-1")


async def until(look: Callable[[], bool]) -> None:
    """Sockets are real: what comes over them takes its time."""
    async with asyncio.timeout(30):
        while not look():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class World:
    def __init__(self, path: Path) -> None:
        self.root = path / "kubelet"
        self.clock = FakeClock()
        self.client = Api(self.clock)
        self.driver = CsiDriver(path / "driver")
        self.client.put(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
        self.synced: list[str] = []
        self.make()

    def make(self) -> None:
        """A new process: it knows nothing of what the one before did."""
        self.drivers = CsiDrivers(self.client, "n1", self.clock)
        tokens = Tokens(self.client, self.clock)
        self.csi = CsiVolumes(self.client, self.root, self.drivers, tokens, "n1", self.clock)
        self.volumes = Volumes(
            self.client, self.root, self.clock, lambda pod, item: "", sync_pod=self.synced.append, csi=self.csi
        )

    async def start(self, *, registered: bool = True) -> None:
        await self.volumes.start()
        if registered:
            await self.register()

    async def register(self) -> None:
        await self.drivers.register(DRIVER, str(self.driver.socket), ["1.0.0"])

    async def restart(self, *, registered: bool = True) -> None:
        await self.volumes.stop()
        self.make()
        await self.start(registered=registered)

    def tell(self, **spec: Any) -> None:
        """The driver's CSIDriver object."""
        told = {"attachRequired": False, "volumeLifecycleModes": ["Persistent", "Ephemeral"], **spec}
        meta = {"name": DRIVER}
        self.client.put(
            CSIDRIVERS, {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": meta, "spec": told}
        )

    def volume(self, *, csi: Object | None = None, **spec: Any) -> None:
        """A volume "pv" that is bound to the claim "c"."""
        claim = self.client.put(
            PERSISTENTVOLUMECLAIMS,
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "c", "namespace": "n"},
                "spec": {"volumeName": "pv"},
                "status": {"phase": "Bound"},
            },
        )
        reference = {"namespace": "n", "name": "c", "uid": uid_of(claim)}
        source = {"driver": DRIVER, "volumeHandle": "handle-1", **(csi or {})}
        self.client.put(
            PERSISTENTVOLUMES,
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": "pv"},
                "spec": {"csi": source, "claimRef": reference, "accessModes": ["ReadWriteOnce"], **spec},
            },
        )

    def pod(self, name: str = "p", *, inline: Object | None = None, **spec: Any) -> Object:
        source: Object = {"persistentVolumeClaim": {"claimName": "c"}} if inline is None else {"csi": inline}
        return self.client.put(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "n"},
                "spec": {
                    "nodeName": "n1",
                    "serviceAccountName": "robot",
                    "containers": [{"name": "c"}],
                    "volumes": [{"name": "v", **source}],
                    **spec,
                },
            },
        )

    async def mount(self, pod: Object) -> Path:
        return Path((await self.volumes.mount(pod))["v"].host_path)

    async def refusal(self, pod: Object) -> str:
        with pytest.raises(VolumeError) as refused:
            await self.volumes.mount(pod)
        assert not isinstance(refused.value, VolumesWaiting)
        return str(refused.value)

    def node_status(self, *, in_use: list[str], attached: list[str]) -> None:
        node = self.client.of(NODES)[0]
        names = [{"name": name, "devicePath": ""} for name in attached]
        self.client.overwrite(NODES, {**node, "status": {"volumesInUse": in_use, "volumesAttached": names}})

    def attachment(self, *, attached: bool = True, **more: Any) -> None:
        name = attachment_name("handle-1", DRIVER, "n1")
        status = {"attached": attached, "attachmentMetadata": {"device": "vdb"}, **more}
        meta = {"name": name}
        self.client.put(
            VOLUMEATTACHMENTS,
            {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": meta, "status": status},
        )

    def left(self) -> list[str]:
        """Files and links that remain below the kubelet's directory."""
        return [os.path.join(place, name) for place, _, names in os.walk(self.root) for name in names]


@pytest.fixture
async def world(short_path: Path) -> AsyncIterator[World]:
    made = World(short_path)
    await made.driver.start()
    yield made
    await made.volumes.stop()
    await made.driver.stop()
    for point in mounts.mounts_below(str(made.root)):
        mounts.unmount(point)


async def test_a_volume_is_staged_then_published_where_upstream_has_it(world: World) -> None:
    world.tell()
    world.volume(csi={"fsType": "ext4", "volumeAttributes": {"a": "b"}}, mountOptions=["noatime"])
    await world.start()
    pod = world.pod()
    path = await world.mount(pod)
    assert path == world.root / "pods" / uid_of(pod) / "volumes/kubernetes.io~csi/pv/mount"
    assert mounts.is_mount_point(str(path))
    (staged,), (published,) = world.driver.called("NodeStageVolume"), world.driver.called("NodePublishVolume")
    place = Path(staged["staging_target_path"])
    sha = hashlib.sha256(b"handle-1").hexdigest()
    assert place == world.root / "plugins/kubernetes.io/csi" / DRIVER / sha / "globalmount"
    capability = {"mount": {"fs_type": "ext4", "mount_flags": ["noatime"]}, "access_mode": {"mode": 1}}
    assert (staged["volume_id"], staged["volume_capability"]) == ("handle-1", capability)
    assert published == {
        "volume_id": "handle-1",
        "staging_target_path": str(place),
        "target_path": str(path),
        "volume_capability": capability,
        "volume_context": {"a": "b"},
    }


async def test_it_is_taken_back_and_nothing_is_left(world: World) -> None:
    world.tell()
    world.volume()
    await world.start()
    first, second = world.pod("p1"), world.pod("p2")
    await world.mount(first)
    await world.mount(second)
    assert len(world.driver.called("NodeStageVolume")) == 1, "a node stages a volume once"
    await world.client.delete(PODS, "p1", namespace="n", grace_s=0)
    await world.volumes.unmount(uid_of(first))
    assert len(world.driver.called("NodeUnpublishVolume")) == 1
    assert world.driver.called("NodeUnstageVolume") == []
    await world.client.delete(PODS, "p2", namespace="n", grace_s=0)
    await world.volumes.unmount(uid_of(second))
    await until(lambda: world.left() == [])
    assert len(world.driver.called("NodeUnstageVolume")) == 1
    assert world.volumes.mounted() == set()


async def test_a_driver_without_staging_only_publishes(world: World) -> None:
    world.driver.abilities = ()
    world.tell()
    world.volume()
    await world.start()
    await world.mount(world.pod())
    (published,) = world.driver.called("NodePublishVolume")
    assert "staging_target_path" not in published
    assert world.driver.called("NodeStageVolume") == []


async def test_a_pod_waits_until_its_volume_is_attached(world: World) -> None:
    world.tell(attachRequired=True)
    world.volume()
    await world.start()
    pod = world.pod()
    with pytest.raises(VolumesWaiting):
        await world.volumes.mount(pod)
    assert world.csi.in_use() == [IN_USE], "or the controller could detach what the node is about to mount"
    world.node_status(in_use=[IN_USE], attached=[])
    with pytest.raises(VolumesWaiting):
        await world.volumes.mount(pod)
    world.attachment()
    world.node_status(in_use=[IN_USE], attached=[IN_USE])
    assert world.synced == [uid_of(pod)], "nobody waits for a timer"
    await world.mount(pod)
    (staged,) = world.driver.called("NodeStageVolume")
    assert staged["publish_context"] == {"device": "vdb"}


@pytest.mark.parametrize(("period_s", "full"), [(60, True), (None, False)], ids=["asked for", "not asked for"])
async def test_a_pod_whose_volume_is_one_too_many_is_rejected(world: World, period_s: int | None, full: bool) -> None:
    world.tell(attachRequired=True, nodeAllocatableUpdatePeriodSeconds=period_s)
    world.volume()
    await world.start()
    pod = world.pod()
    with pytest.raises(VolumesWaiting):
        await world.volumes.mount(pod)
    world.driver.max_volumes = 3
    world.attachment(attached=False, attachError={"errorCode": RESOURCE_EXHAUSTED, "message": "no slot"})
    await world.clock.advance(WAIT_MAX_S)
    if not full:
        with pytest.raises(VolumesWaiting):
            await world.volumes.mount(pod)
        return
    with pytest.raises(VolumeLimitReached) as reached:
        await world.volumes.mount(pod)
    assert reached.value.reason == "VolumeAttachmentLimitExceeded"
    assert str(reached.value).startswith("Node has reached its volume attachment limit, rejecting pod. ")
    assert world.client.of(CSINODES)[0]["spec"]["drivers"][0]["allocatable"] == {"count": 3}


async def test_attached_by_the_node_and_not_by_its_attachment(world: World) -> None:
    world.tell(attachRequired=True)
    world.volume()
    world.attachment(attached=False)
    world.node_status(in_use=[IN_USE], attached=[IN_USE])
    await world.start()
    name = attachment_name("handle-1", DRIVER, "n1")
    assert await world.refusal(world.pod()) == (
        'MountVolume.WaitForAttach failed for volume "pv" : volume handle-1 is not attached for volume attachment '
        + name
    )


async def test_a_driver_that_is_not_registered(world: World) -> None:
    world.tell()
    world.volume()
    await world.start(registered=False)
    pod, inline = world.pod(), world.pod("q", inline={"driver": DRIVER})
    assert await world.refusal(pod) == (
        'MountVolume.MountDevice failed for volume "pv" : kubernetes.io/csi: attacher.MountDevice failed to create '
        f"newCsiDriverClient: driver name {DRIVER} not found in the list of registered CSI drivers"
    )
    assert await world.refusal(inline) == (
        'MountVolume.SetUp failed for volume "v" : kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: '
        f"driver name {DRIVER} not found in the list of registered CSI drivers"
    )
    await world.register()
    assert set(world.synced) == {uid_of(pod), uid_of(inline)}, "nobody waits for a timer"
    await world.mount(pod)


@pytest.mark.parametrize(
    ("call", "step"), [("NodeStageVolume", "MountDevice"), ("NodePublishVolume", "SetUp")], ids=["stage", "publish"]
)
async def test_a_call_that_fails_leaves_nothing_behind(world: World, call: str, step: str) -> None:
    world.tell()
    world.volume()
    await world.start()
    pod = world.pod()
    world.driver.refuse[call] = RpcError(INTERNAL, "no disk")
    text = f'MountVolume.{step} failed for volume "pv" : rpc error: code = Internal desc = no disk'
    assert await world.refusal(pod) == text
    await world.client.delete(PODS, "p", namespace="n", grace_s=0)
    await world.volumes.unmount(uid_of(pod))
    await until(lambda: world.left() == [])
    assert world.driver.called("NodeUnpublishVolume") == []


async def test_a_call_whose_end_is_not_known_is_taken_back(world: World) -> None:
    world.tell()
    world.volume()
    await world.start()
    pod = world.pod()
    world.driver.refuse["NodePublishVolume"] = RpcError(UNAVAILABLE, "lost")
    await world.refusal(pod)
    await world.client.delete(PODS, "p", namespace="n", grace_s=0)
    await world.volumes.unmount(uid_of(pod))
    assert len(world.driver.called("NodeUnpublishVolume")) == 1
    await until(lambda: world.left() == [])


async def test_a_pod_keeps_its_volume_until_the_driver_takes_it_back(world: World) -> None:
    world.tell()
    world.volume()
    await world.start()
    pod = world.pod()
    path = await world.mount(pod)
    world.driver.refuse["NodeUnpublishVolume"] = RpcError(INTERNAL, "busy")
    with pytest.raises(VolumeError, match=r"Unmounter.TearDownAt failed: rpc error: code = Internal desc = busy"):
        await world.volumes.unmount(uid_of(pod))
    assert mounts.is_mount_point(str(path))
    world.driver.refuse.clear()
    await world.volumes.unmount(uid_of(pod))
    assert not path.exists()


async def test_a_new_kone_takes_back_what_an_older_one_published(world: World) -> None:
    world.tell(attachRequired=True)
    world.volume()
    world.attachment()
    world.node_status(in_use=[IN_USE], attached=[IN_USE])
    await world.start()
    pod = world.pod()
    await world.mount(pod)
    await world.restart(registered=False)
    assert world.csi.in_use() == [IN_USE]
    assert world.volumes.mounted() == {uid_of(pod)}
    with pytest.raises(VolumeError, match="not found in the list of registered CSI drivers"):
        await world.volumes.unmount(uid_of(pod))
    await world.register()
    assert world.driver.called("NodeUnstageVolume") == [], "a pod uses it"
    await world.client.delete(PODS, "p", namespace="n", grace_s=0)
    await world.volumes.unmount(uid_of(pod))
    await until(lambda: world.left() == [] and world.csi.in_use() == [])
    assert len(world.driver.called("NodeUnstageVolume")) == 1


async def test_what_is_staged_and_about_to_be_used_stays_staged(world: World) -> None:
    world.tell()
    world.volume()
    await world.start()
    world.driver.refuse["NodePublishVolume"] = RpcError(INTERNAL, "not yet")
    await world.refusal(world.pod())
    await world.restart()
    world.driver.refuse.clear()
    await world.clock.advance(1.0)
    assert world.driver.called("NodeUnstageVolume") == []


async def test_an_inline_volume_is_published_with_a_name_of_its_own(world: World) -> None:
    world.tell(podInfoOnMount=True)
    await world.start()
    pod = world.pod(inline={"driver": DRIVER, "volumeAttributes": {"size": "1"}, "readOnly": True})
    path = await world.mount(pod)
    (published,) = world.driver.called("NodePublishVolume")
    assert published["volume_id"].startswith("csi-")
    assert published["readonly"] is True
    assert published["volume_context"] == {
        "size": "1",
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": "p",
        "csi.storage.k8s.io/pod.namespace": "n",
        "csi.storage.k8s.io/pod.uid": uid_of(pod),
        "csi.storage.k8s.io/serviceAccount.name": "robot",
    }
    assert world.driver.called("NodeStageVolume") == []
    assert world.csi.in_use() == []
    await world.volumes.unmount(uid_of(pod))
    assert not path.exists()


async def test_a_driver_that_has_no_inline_volumes(world: World) -> None:
    world.tell(volumeLifecycleModes=["Persistent"])
    await world.start()
    assert await world.refusal(world.pod(inline={"driver": DRIVER})) == (
        'MountVolume.SetUp failed for volume "v" : kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle '
        f'mode: volume mode "Ephemeral" not supported by driver {DRIVER} (only supports ["Persistent"])'
    )


async def test_secrets_of_the_volume_are_read(world: World) -> None:
    world.tell()
    world.volume(
        csi={
            "nodeStageSecretRef": {"namespace": "s", "name": "stage"},
            "nodePublishSecretRef": {"namespace": "s", "name": "publish"},
        }
    )
    await world.start()
    pod = world.pod()
    assert "fetching NodeStageSecretRef s/stage failed" in await world.refusal(pod)
    for name in ("stage", "publish"):
        data = {"key": base64.b64encode(name.encode()).decode()}
        meta = {"name": name, "namespace": "s"}
        world.client.put(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    await world.mount(pod)
    assert world.driver.called("NodeStageVolume")[0]["secrets"] == {"key": "stage"}
    assert world.driver.called("NodePublishVolume")[0]["secrets"] == {"key": "publish"}


async def test_tokens_are_handed_over_and_renewed_by_publishing_anew(world: World) -> None:
    world.tell(tokenRequests=[{"audience": "vault", "expirationSeconds": 600}], requiresRepublish=True)
    world.volume()
    await world.start()
    pod = world.pod()
    await world.mount(pod)

    def tokens() -> list[str]:
        key = "csi.storage.k8s.io/serviceAccount.tokens"
        return [request["volume_context"][key] for request in world.driver.called("NodePublishVolume")]

    (first,) = tokens()
    assert first.startswith('{"vault":{"token":"robot-1","expirationTimestamp":"')
    await world.clock.advance(500.0)
    await until(lambda: any('"robot-2"' in each for each in tokens()))
    assert mounts.is_mount_point(str(await world.mount(pod)))


async def test_tokens_may_be_handed_over_as_secrets(world: World) -> None:
    world.tell(tokenRequests=[{"audience": ""}], serviceAccountTokenInSecrets=True)
    world.volume()
    await world.start()
    await world.mount(world.pod())
    (published,) = world.driver.called("NodePublishVolume")
    assert list(published["secrets"]) == ["csi.storage.k8s.io/serviceAccount.tokens"]
    assert "volume_context" not in published


@pytest.mark.parametrize(
    ("policy", "fs_type", "given"),
    [
        pytest.param("File", "", True, id="File"),
        pytest.param("None", "ext4", False, id="None"),
        pytest.param("ReadWriteOnceWithFSType", "ext4", True, id="with a file system type"),
        pytest.param("ReadWriteOnceWithFSType", "", False, id="without a file system type"),
    ],
)
async def test_fs_group_by_the_drivers_policy(world: World, policy: str, fs_type: str, given: bool) -> None:
    world.tell(fsGroupPolicy=policy)
    world.volume(csi={"fsType": fs_type})
    await world.start()
    path = await world.mount(world.pod(securityContext={"fsGroup": 4711}))
    assert (path.stat().st_gid == 4711) is given


async def test_fs_group_is_left_to_a_driver_that_can(world: World) -> None:
    world.driver.abilities = (csi_messages.STAGE_UNSTAGE_VOLUME, csi_messages.VOLUME_MOUNT_GROUP)
    world.tell(fsGroupPolicy="File")
    world.volume()
    await world.start()
    path = await world.mount(world.pod(securityContext={"fsGroup": 4711}))
    assert path.stat().st_gid != 4711
    (staged,) = world.driver.called("NodeStageVolume")
    assert staged["volume_capability"]["mount"]["volume_mount_group"] == "4711"


@pytest.mark.parametrize("stages", [True, False], ids=["staged", "without staging"])
async def test_a_block_device_is_published_to_a_file_and_linked_to_its_pod(world: World, stages: bool) -> None:
    world.driver.abilities = (csi_messages.STAGE_UNSTAGE_VOLUME,) if stages else ()
    world.tell()
    world.volume(volumeMode="Block")
    await world.start()
    device = world.driver.volume("handle-1")
    device.parent.mkdir(parents=True)
    device.write_text("as good as a device")
    pod = world.pod(containers=[{"name": "c", "volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}])
    mounted = (await world.volumes.mount(pod))["v"]
    target = world.root / "plugins/kubernetes.io/csi/volumeDevices/publish/pv" / uid_of(pod)
    link = world.root / "pods" / uid_of(pod) / "volumeDevices/kubernetes.io~csi/pv"
    assert (mounted.is_device, mounted.host_path, Path(os.readlink(link))) == (True, str(target), target)
    assert world.driver.called("NodePublishVolume")[0]["volume_capability"] == {"block": {}, "access_mode": {"mode": 1}}
    for staged in world.driver.called("NodeStageVolume"):
        assert staged["staging_target_path"] == str(world.root / "plugins/kubernetes.io/csi/volumeDevices/staging/pv")
        assert staged["volume_capability"] == {"block": {}, "access_mode": {"mode": 1}}
    await world.client.delete(PODS, "p", namespace="n", grace_s=0)
    await world.volumes.unmount(uid_of(pod))
    await until(lambda: world.left() == [])
    assert len(world.driver.called("NodeStageVolume")) == len(world.driver.called("NodeUnstageVolume")) == stages
    assert len(world.driver.called("NodeUnpublishVolume")) == 1
    assert not link.parent.exists()


async def test_a_device_grows_by_the_name_under_which_the_driver_published_it(world: World) -> None:
    public = world.root.parent / "public"
    public.symlink_to(world.root)
    world.csi.public_root = public
    world.driver.abilities = (csi_messages.EXPAND_VOLUME,)
    world.tell()
    world.volume(volumeMode="Block")
    await world.start()
    (disk := world.root.parent / "disk").write_text("as good as a device")
    world.driver.volume("handle-1").parent.mkdir(parents=True)
    world.driver.volume("handle-1").symlink_to(disk)
    pod = world.pod(containers=[{"name": "c", "volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}])
    await world.volumes.mount(pod)
    holder = world.csi.holder_of("pv")
    assert holder is not None
    assert await world.csi.expand(holder, 2 << 30)
    (asked,) = world.driver.called("NodeExpandVolume")
    assert asked["volume_path"] == str(public / "plugins/kubernetes.io/csi/volumeDevices/publish/pv" / uid_of(pod))
