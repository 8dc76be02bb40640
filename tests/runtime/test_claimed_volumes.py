"""What a claim leads to, when a pod is refused it, and in which words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import NODES, PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, PODS
from kone.apimachinery.objects import Object, replace_in, uid_of
from kone.runtime import mounts
from kone.runtime.parts import MountedVolume, VolumeError
from kone.runtime.volumes import Volumes
from tests.fakes import FakeClient, make_node

PROCESSING = (
    "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], "
    "failed to process volumes=[data]: "
)


class World:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.client = FakeClient(FakeClock())
        self.synced: list[str] = []
        self.volumes = Volumes(
            self.client, path / "root", self.client.clock, lambda pod, item: "", sync_pod=self.synced.append
        )
        self.client.put(NODES, make_node("n1"))
        self.content = path / "content"
        self.content.mkdir()

    def claim(self, name: str = "c", *, phase: str = "Bound", bound_to: str = "v", **meta: Any) -> Object:
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "n", **meta},
            "spec": {"volumeName": bound_to},
            "status": {"phase": phase},
        }
        return self.client.put(PERSISTENTVOLUMECLAIMS, claim)

    def volume(self, claim: Object | None, **spec: Any) -> Object:
        reference = {"claimRef": {"namespace": "n", "name": "c", "uid": uid_of(claim)}} if claim else {}
        meta = {"name": "v"}
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": meta, "spec": {**reference, **spec}}
        return self.client.put(PERSISTENTVOLUMES, volume)

    def pod(self, source: Object | None = None, **spec: Any) -> Object:
        volume = {"name": "data", **(source or {"persistentVolumeClaim": {"claimName": "c"}})}
        containers = [{"name": "c", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"nodeName": "n1", "containers": containers, "volumes": [volume], **spec},
        }
        return self.client.put(PODS, pod)

    async def refusal(self, pod: Object) -> str:
        with pytest.raises(VolumeError) as caught:
            await self.volumes.mount(pod)
        return str(caught.value)

    def place(self, pod: Object) -> str:
        """Where a pod's local volume "v" is mounted."""
        return str(self.path / "root" / "pods" / uid_of(pod) / "volumes" / "kubernetes.io~local-volume" / "v")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for point in mounts.mounts_below(str(tmp_path)):
        mounts.unmount(point)


async def test_a_host_path_volume_is_used_where_it_lies(world: World) -> None:
    path = world.path / "elsewhere"
    world.volume(world.claim(), hostPath={"path": str(path), "type": "DirectoryOrCreate"})
    assert await world.volumes.mount(world.pod()) == {"data": MountedVolume(str(path))}
    assert path.is_dir()


async def test_a_pod_may_ask_to_read_only(world: World) -> None:
    world.volume(world.claim(), local={"path": str(world.content)})
    pod = world.pod({"persistentVolumeClaim": {"claimName": "c", "readOnly": True}})
    assert await world.volumes.mount(pod) == {"data": MountedVolume(world.place(pod), read_only=True)}
    with pytest.raises(OSError, match="Read-only file system"):
        Path(world.place(pod), "file").touch()


async def test_an_ephemeral_volume_means_the_pods_own_claim(world: World) -> None:
    pod = world.pod({"ephemeral": {"volumeClaimTemplate": {}}})
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid_of(pod), "controller": True}
    world.volume(world.claim("p-data", ownerReferences=[owner]), local={"path": str(world.content)})
    assert (await world.volumes.mount(pod))["data"].host_path == world.place(pod)


async def test_an_ephemeral_volumes_claim_of_somebody_else_is_refused(world: World) -> None:
    world.volume(world.claim("p-data"), local={"path": str(world.path)})
    text = await world.refusal(world.pod({"ephemeral": {"volumeClaimTemplate": {}}}))
    assert text == f"{PROCESSING}PVC n/p-data was not created for pod n/p (pod is not owner)"


async def test_a_claim_that_goes_stays_with_the_pods_that_have_it(world: World) -> None:
    world.volume(world.claim(finalizers=["kubernetes.io/pvc-protection"]), local={"path": str(world.content)})
    pod = world.pod()
    await world.volumes.mount(pod)
    await world.client.delete(PERSISTENTVOLUMECLAIMS, "c", namespace="n")
    assert (await world.volumes.mount(pod))["data"].host_path == world.place(pod)
    await world.volumes.unmount(uid_of(pod))
    assert await world.refusal(pod) == f"{PROCESSING}error processing PVC n/c: PVC is being deleted"


async def test_a_pod_is_looked_at_again_when_its_claim_is_bound(world: World) -> None:
    await world.volumes.start()
    claim = world.claim(phase="Pending", bound_to="")
    pod = world.pod()
    assert await world.refusal(pod) == f"{PROCESSING}error processing PVC n/c: PVC is not bound"
    bound = replace_in(claim, ("status", "phase"), "Bound")
    await world.client.update(PERSISTENTVOLUMECLAIMS, bound, subresource="status")
    assert world.synced == [uid_of(pod)]
    await world.volumes.stop()


async def test_no_claim_and_no_volume(world: World) -> None:
    pod = world.pod()
    why = 'failed to fetch PVC from API server: persistentvolumeclaims "c" not found'
    assert await world.refusal(pod) == f"{PROCESSING}error processing PVC n/c: {why}"
    world.claim()
    why = 'failed to fetch PV v from API server: persistentvolumes "v" not found'
    assert await world.refusal(pod) == f"{PROCESSING}error processing PVC n/c: {why}"


AFFINITY = {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            {"claimRef": None, "local": {"path": "/"}},
            f"{PROCESSING}error processing PVC n/c: found PV object v but it has a nil pv.Spec.ClaimRef indicating it "
            "is not yet bound to the claim",
        ),
        (
            {"volumeMode": "Block", "local": {"path": "/"}},
            f"{PROCESSING}volume data has volumeMode Block, but is specified in volumeMounts",
        ),
        (
            {"nodeAffinity": AFFINITY, "local": {"path": "/"}},
            'MountVolume.NodeAffinity check failed for volume "v" : no matching NodeSelectorTerms',
        ),
        (
            {"local": {"path": "/no/such/path"}},
            'MountVolume.NewMounter initialization failed for volume "v" : path "/no/such/path" does not exist',
        ),
        (
            {"hostPath": {"path": "/etc/hostname", "type": "Directory"}},
            'MountVolume.SetUp failed for volume "v" : hostPath type check failed: /etc/hostname is not a directory, '
            "it's a File",
        ),
        (
            {"iscsi": {"targetPortal": "t"}, "capacity": {"storage": "1Gi"}},
            f'{PROCESSING}failed to get Plugin from volumeSpec for volume "v" err=no volume plugin matched',
        ),
    ],
)
async def test_volumes_that_cannot_be_mounted(world: World, spec: Object, text: str) -> None:
    world.volume(world.claim(), **spec)
    assert await world.refusal(world.pod()) == text


async def test_a_volume_of_another_claim_is_refused(world: World) -> None:
    world.volume({"metadata": {"uid": "other"}}, local={"path": "/"})
    claim = world.claim()
    text = f"found PV object v but its pv.Spec.ClaimRef.UID other does not point to claim.UID {uid_of(claim)}"
    assert await world.refusal(world.pod()) == f"{PROCESSING}error processing PVC n/c: {text}"


@pytest.mark.parametrize(
    ("kind", "policy", "group_before", "given"),
    [
        ("local", "Always", 0, True),
        ("local", "OnRootMismatch", 0, True),
        ("local", "OnRootMismatch", 4711, False),
        ("hostPath", "Always", 0, False),
    ],
)
async def test_local_volumes_get_the_pods_group(
    world: World, kind: str, policy: str, group_before: int, given: bool
) -> None:
    top = world.content
    (top / "file").touch(mode=0o600)
    if group_before:
        os.chown(top, -1, group_before)
        top.chmod(0o2775)
    world.volume(world.claim(), **{kind: {"path": str(top)}})
    context = {"fsGroup": 4711, "fsGroupChangePolicy": policy}
    await world.volumes.mount(world.pod(securityContext=context))
    state = (top / "file").stat()
    assert (state.st_gid == 4711, bool(state.st_mode & 0o060)) == (given, given)


async def test_a_volume_for_one_pod_is_refused_to_a_second(world: World) -> None:
    world.volume(world.claim(), local={"path": str(world.content)}, accessModes=["ReadWriteOncePod"])
    first = world.pod()
    second = world.client.put(PODS, {**first, "metadata": {"name": "q", "namespace": "n"}})
    await world.volumes.mount(first)
    why = "volume uses the ReadWriteOncePod access mode and is already in use by another pod"
    assert await world.refusal(second) == f'MountVolume.SetUp failed for volume "v" : {why}'
    await world.volumes.unmount(uid_of(first))
    assert (await world.volumes.mount(second))["data"].host_path == world.place(second)


async def test_a_host_path_is_no_block_device(world: World) -> None:
    world.volume(world.claim(), hostPath={"path": "/dev/null"}, volumeMode="Block")
    devices = [{"name": "c", "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}]
    with pytest.raises(VolumeError) as refused:
        await world.volumes.mount(world.pod(containers=devices))
    assert refused.value.reason == "FailedMapVolume"
    assert str(refused.value).startswith("MapVolume.FindMapperPluginBySpec failed to find BlockVolumeMapper plugin.")
