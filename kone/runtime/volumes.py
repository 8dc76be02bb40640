"""Volumes of this node's pods: made before the containers start, kept up to date while they run, removed after them.

Everything lies under <root>/pods/<uid>/volumes/<plugin>/<name>, as upstream's kubelet has it. Files from the API are
written atomically and follow their objects by informer, so a changed configMap is in its pods at once. Secrets and
tokens lie on tmpfs, never on disk. What a claim leads to is used where it lies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.kinds import (
    CLUSTERTRUSTBUNDLES,
    CONFIGMAPS,
    GVR,
    NODES,
    PERSISTENTVOLUMECLAIMS,
    PERSISTENTVOLUMES,
    PODS,
    SECRETS,
)
from kone.apimachinery.objects import Object, annotations_of, dig, labels_of, name_of, namespace_of, uid_of
from kone.client.client import Client, EventType, Unsubscribe
from kone.runtime import (
    atomic_writer,
    claimed_volumes,
    csi_rules,
    empty_dir,
    host_path,
    mounts,
    nfs_volumes,
    subpath,
    volume_payloads,
)
from kone.runtime.atomic_writer import File
from kone.runtime.claimed_volumes import Claimed
from kone.runtime.csi_volumes import CsiVolumes
from kone.runtime.local_volumes import LocalVolumes, Tell
from kone.runtime.parts import MountedVolume, SyncPod, VolumeError, VolumeLimitReached, VolumesWaiting
from kone.runtime.pod_certificates import PodCertificates
from kone.runtime.tokens import Tokens
from kone.runtime.volume_payloads import Source

log = logging.getLogger(__name__)

REFRESH_EVERY_S = 60.0  # the kubelet's sync period: a token that is due is renewed at most this late
WAIT_MAX_S = 123.0  # how long a pod waits for its volumes before it is asked why (podAttachAndMountTimeout)
FOLDER = "volumes"
DEVICES_FOLDER = "volumeDevices"

DownwardValue = Callable[[Object, Object], str]
"""(pod, volume item) -> the text of its fieldRef or resourceFieldRef; ValueError where it has none."""

_PLUGINS = {"configMap": "configmap", "secret": "secret", "downwardAPI": "downward-api", "projected": "projected"}
_FOLLOWED: Mapping[str, GVR] = {"configMap": CONFIGMAPS, "secret": SECRETS}
_ONE_OF = _PLUGINS.keys() | {"hostPath", "emptyDir"}
_CLAIM = "persistentVolumeClaim"


class Volumes:
    """The VolumeManager of parts.py on a real file system.

    `allocatable_memory` bounds memory volumes (0: no bound). `sync_pod` is called when something a pod's volumes name
    has changed, so that a pod that waits for it need not wait for its next try. Without `certificates` this node has
    none for pods; without `csi`, none of CSI drivers. `tell` records warnings about what is mounted nevertheless.
    """

    def __init__(
        self,
        client: Client,
        root: Path,
        clock: Clock,
        downward_value: DownwardValue,
        *,
        allocatable_memory: Callable[[], int] = lambda: 0,
        sync_pod: SyncPod = lambda uid: None,
        certificates: PodCertificates | None = None,
        csi: CsiVolumes | None = None,
        tell: Tell = lambda obj, reason, message: None,
    ) -> None:
        self._client = client
        self._root = root / "pods"
        self._clock = clock
        self._downward_value = downward_value
        self._allocatable_memory = allocatable_memory
        self._sync_pod = sync_pod
        self._tokens = Tokens(client, clock)
        self._certificates = certificates
        self._csi = csi
        self._local = LocalVolumes(root, tell)
        self._holders: dict[str, set[str]] = {}  # persistent volume -> UIDs of the pods that have it
        self._waiting: dict[str, float] = {}  # pod UID -> since when (monotonic) it waits for its volumes
        self._pods: dict[str, Object] = {}  # mounted here and now, by UID: those that follow their objects
        self._users: dict[tuple[str, str, str], set[str]] = defaultdict(set)  # (kind, namespace, name) -> pod UIDs
        self._claimed: dict[tuple[str, str], MountedVolume] = {}  # (pod UID, volume): claims found good once
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by pod UID: one change at a time
        self._tasks = TaskGroup("volumes")
        self._subscriptions: list[Unsubscribe] = []
        self._follows_pods = self._follows_bundles = False

    async def start(self) -> None:
        for kind, resource in _FOLLOWED.items():
            informer = self._client.informer(resource)
            await informer.wait_synced()
            self._subscriptions.append(informer.subscribe(self._on_change(kind)))
        await self._client.informer(NODES).wait_synced()
        volumes = self._client.informer(PERSISTENTVOLUMES)
        await volumes.wait_synced()
        self._subscriptions.append(volumes.subscribe(self._on_volume))
        if self._csi is not None:
            self._csi.changed = self._on_csi
            await self._csi.start()
        claims = self._client.informer(PERSISTENTVOLUMECLAIMS)
        await claims.wait_synced()
        self._subscriptions.append(claims.subscribe(self._on_claim))
        if self._certificates is not None:
            self._certificates.changed = self._on_certificate
            self._subscriptions.append(await self._certificates.start())
        self._tasks.guard(self._renew, name="volumes.renew")

    async def stop(self) -> None:
        for unsubscribe in self._subscriptions:
            unsubscribe()
        self._subscriptions.clear()
        self._follows_pods = self._follows_bundles = False
        await self._tasks.cancel()
        if self._csi is not None:
            await self._csi.stop()

    async def mount(self, pod: Object) -> Mapping[str, MountedVolume]:
        uid = uid_of(pod)
        async with self._locks[uid]:
            self._follow(pod)
            try:
                mounted = await self._mount_all(pod)
            except VolumesWaiting as waiting:
                await self._wait_on(uid, str(waiting))
                raise
            self._waiting.pop(uid, None)
            return mounted

    async def subpath(self, pod: Object, volume: MountedVolume, sub_path: str) -> str:
        subpath.check(sub_path)
        async with self._locks[uid_of(pod)]:
            return subpath.bind(self._root / uid_of(pod), volume.host_path, sub_path)

    async def unmount(self, pod_uid: str) -> None:
        async with self._locks[pod_uid]:
            self._forget(pod_uid)
            if self._csi is not None:
                await self._csi.unmount(pod_uid)
            try:
                await self._local.unmount(pod_uid)
            except OSError as error:
                raise VolumeError(f"local volumes stay: {error}") from None
            folder = self._root / pod_uid
            for point in [*_mounts_of(folder / FOLDER), *_mounts_of(folder / subpath.FOLDER)]:
                mounts.unmount(point)
            await asyncio.to_thread(_remove, folder)
        self._locks.pop(pod_uid, None)

    def mounted(self) -> set[str]:
        folders = (FOLDER, DEVICES_FOLDER, subpath.FOLDER)
        return {uid for uid in _names(self._root) if any((self._root / uid / name).exists() for name in folders)}

    # ---- one volume

    async def _mount_all(self, pod: Object) -> Mapping[str, MountedVolume]:
        """Every volume is tried, so that they wait together. Raises the first failure, else that one waits."""
        mounted = {}
        failed: list[VolumeError] = []
        for volume in pod["spec"].get("volumes") or ():
            if volume.get("image") is not None:
                continue  # needs the runtime: image_volumes.py
            try:
                mounted[volume["name"]] = await self._mount_any(pod, volume)
            except VolumeError as error:
                failed.append(error)
        if failed:
            raise next((error for error in failed if not isinstance(error, VolumesWaiting)), failed[0])
        return mounted

    async def _mount_any(self, pod: Object, volume: Object) -> MountedVolume:
        """Raises VolumeError with the whole text of the event."""
        if claimed_volumes.claim_name(pod, volume):
            return await self._mount_claimed(pod, volume)
        if self._csi is not None and volume.get("csi") is not None:
            return await self._csi.mount(pod, csi_rules.of_inline(pod, volume))
        if (source := volume.get("nfs")) is not None:
            return await nfs_volumes.mount(self._root.parent, pod, volume["name"], source, read_only=False)
        if not _ONE_OF & volume.keys():
            raise claimed_volumes.no_plugin(volume, volume["name"])
        try:
            return await self._mount_one(pod, volume)
        except (VolumeError, OSError, ValueError) as error:
            what = f'MountVolume.SetUp failed for volume "{volume["name"]}"'
            raise VolumeError(f"{what} : {_text(error)}") from None

    async def _wait_on(self, uid: str, volume: str) -> None:
        """Raises VolumeLimitReached when the pod has waited for long, and would for ever."""
        now = self._clock.monotonic()
        if now - self._waiting.setdefault(uid, now) >= WAIT_MAX_S:
            self._waiting[uid] = now
            if self._csi is not None and await self._csi.is_out_of_slots(uid):
                raise VolumeLimitReached(
                    f"Node has reached its volume attachment limit, rejecting pod. unmounted volumes=[{volume}], "
                    f"unattached volumes=[{volume}], failed to process volumes=[]: context deadline exceeded",
                    "VolumeAttachmentLimitExceeded",
                ) from None

    async def _mount_one(self, pod: Object, volume: Object) -> MountedVolume:
        if (place := volume.get("hostPath")) is not None:
            host_path.prepare(place.get("path", ""), place.get("type") or "")
            return MountedVolume(place["path"])
        if volume.get("emptyDir") is not None:
            path = self._place(pod, "empty-dir", volume)
            empty_dir.make(path, volume, pod, self._allocatable_memory())
            return MountedVolume(str(path))
        sources = volume_payloads.sources_of(volume)
        assert sources is not None, "every other kind has been seen"
        kind = next(k for k in _PLUGINS if k in volume)
        path = self._place(pod, _PLUGINS[kind], volume)
        files = await self._files(pod, volume["name"], sources)
        if kind in ("secret", "projected"):
            empty_dir.make_tmpfs(path, empty_dir.memory_bytes(0, pod, self._allocatable_memory()))
        else:
            empty_dir.make_directory(path)
        for nested in volume_payloads.nested_mount_points(pod, volume["name"]):
            (path / nested).mkdir(mode=0o755, parents=True, exist_ok=True)
        stamp = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y_%m_%d_%H_%M_%S")
        atomic_writer.write(path, files, stamp, dig(pod, "spec", "securityContext", "fsGroup"))
        return MountedVolume(str(path), read_only=True)

    async def _mount_claimed(self, pod: Object, volume: Object) -> MountedVolume:
        """Raises VolumeError with the whole text of the event."""
        key = (uid_of(pod), volume["name"])
        if (known := self._claimed.get(key)) is not None:
            return known
        name = claimed_volumes.claim_name(pod, volume)
        claim = self._client.informer(PERSISTENTVOLUMECLAIMS).get(namespace_of(pod), name)
        bound_to = claimed_volumes.judge_claim(pod, volume, claim)
        assert claim is not None, "a claim that is not there was refused"
        found = self._client.informer(PERSISTENTVOLUMES).get("", bound_to)
        node = self._client.informer(NODES).get("", dig(pod, "spec", "nodeName", default=""))
        claimed = claimed_volumes.judge_volume(pod, volume, claim, found, node)
        held = self._holders.setdefault(bound_to, set())
        if held - {uid_of(pod)} and dig(claimed.volume, "spec", "accessModes") == ["ReadWriteOncePod"]:
            raise claimed_volumes.in_use_by_another(claimed.volume)
        held.add(uid_of(pod))
        mounted = await self._mount_persistent(pod, volume, claimed)
        self._claimed[key] = mounted
        return mounted

    async def _mount_persistent(self, pod: Object, volume: Object, claimed: Claimed) -> MountedVolume:
        """Raises VolumeError with the whole text of the event."""
        found, read_only = claimed.volume, claimed.read_only
        kind = claimed_volumes.kind_of(found)
        if kind == "csi" and self._csi is not None:
            return await self._csi.mount(pod, csi_rules.of_persistent(found, read_only=read_only))
        if kind == "local":
            return await self._local.mount(pod, found, read_only=read_only)
        if kind not in ("hostPath", "nfs"):
            raise claimed_volumes.no_plugin(volume, name_of(found))
        if dig(found, "spec", "volumeMode") == "Block":
            raise claimed_volumes.no_devices(found)
        if kind == "hostPath":
            return claimed_volumes.place(claimed)
        options = dig(found, "spec", "mountOptions", default=())
        source = found["spec"]["nfs"]
        root = self._root.parent
        return await nfs_volumes.mount(root, pod, name_of(found), source, read_only=read_only, options=options)

    def _place(self, pod: Object, plugin: str, volume: Object) -> Path:
        return self._root / uid_of(pod) / FOLDER / f"kubernetes.io~{plugin}" / str(volume["name"])

    async def _files(self, pod: Object, volume: str, sources: Sequence[Source]) -> dict[str, File]:
        """The files of all sources; where two name the same path, the later. Raises VolumeError with all that fail."""
        files: dict[str, File] = {}
        failed: list[str] = []
        for source in sources:
            try:
                files |= await self._files_of(pod, volume, source)
            except VolumeError as error:
                failed.append(str(error))
        if failed:
            texts = list(dict.fromkeys(failed))
            raise VolumeError(texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]")
        return files

    async def _files_of(self, pod: Object, volume: str, source: Source) -> dict[str, File]:
        namespace = namespace_of(pod)
        match source.kind:
            case "configMap":
                found = self._client.informer(CONFIGMAPS).get(namespace, source.name)
                return volume_payloads.config_map_files(source, found)
            case "secret":
                found = self._client.informer(SECRETS).get(namespace, source.name)
                return volume_payloads.secret_files(source, found)
            case "downwardAPI":
                return volume_payloads.downward_files(source, pod, self._downward_value)
            case "serviceAccountToken":
                return volume_payloads.token_files(source, (await self._tokens.get(pod, source)).text, pod)
            case "clusterTrustBundle":
                return volume_payloads.trust_bundle_files(source, await self._trust_bundles(), pod)
            case "podCertificate" if self._certificates is not None:
                bundle = await self._certificates.get(pod, volume, source.index, source.spec)
                return volume_payloads.certificate_files(source, bundle.key, bundle.chain, pod)
        raise VolumeError(f"projected source {source.kind} is not available on this node")

    async def _trust_bundles(self) -> list[Object]:
        """All ClusterTrustBundles, followed from the first pod on that wants one."""
        informer = self._client.informer(CLUSTERTRUSTBUNDLES)
        await informer.wait_synced()
        if not self._follows_bundles:
            self._follows_bundles = True
            self._subscriptions.append(informer.subscribe(self._on_change("clusterTrustBundle")))
        return informer.list()

    # ---- following objects

    def _follow(self, pod: Object) -> None:
        uid = uid_of(pod)
        if uid not in self._pods:
            for key in _keys(pod):
                self._users[key].add(uid)
        self._pods[uid] = pod
        node = dig(pod, "spec", "nodeName", default="")
        if not self._follows_pods and node:
            self._follows_pods = True
            informer = self._client.informer(PODS, fields=f"spec.nodeName={node}")
            self._subscriptions.append(informer.subscribe(self._on_pod))

    def _forget(self, uid: str) -> None:
        self._pods.pop(uid, None)
        self._waiting.pop(uid, None)
        for volume in [volume for volume, held in self._holders.items() if uid in held]:
            self._holders[volume].discard(uid)
            if not self._holders[volume]:
                del self._holders[volume]
        for known in [known for known in self._claimed if known[0] == uid]:
            del self._claimed[known]
        for key in [key for key, users in self._users.items() if uid in users]:
            self._users[key].discard(uid)
            if not self._users[key]:
                del self._users[key]
        self._tokens.forget(uid)
        if self._certificates is not None:
            self._certificates.forget(uid)

    def _on_change(self, kind: str) -> Callable[[EventType, Object, Object | None], None]:
        def changed(event: EventType, obj: Object, previous: Object | None) -> None:
            name = "" if kind == "clusterTrustBundle" else name_of(obj)
            for uid in tuple(self._users.get((kind, namespace_of(obj), name), ())):
                self._tasks.spawn(self._refresh(uid), name=f"volumes.refresh/{uid}")

        return changed

    def _on_claim(self, event: EventType, claim: Object, previous: Object | None) -> None:
        """A pod may wait for it to be bound."""
        for uid in tuple(self._users.get((_CLAIM, namespace_of(claim), name_of(claim)), ())):
            self._sync_pod(uid)

    def _on_volume(self, event: EventType, volume: Object, previous: Object | None) -> None:
        if previous is not None and dig(volume, "spec", "capacity") != dig(previous, "spec", "capacity"):
            try:
                self._local.grow(volume)
            except OSError as error:
                log.warning("the device of volume %s keeps its size: %s", name_of(volume), error)

    def _on_csi(self) -> None:
        """Pods may wait for a driver, or for a volume to be attached."""
        for uid in {*self._waiting, *(uid for uid, pod in self._pods.items() if claimed_volumes.may_use_csi(pod))}:
            self._sync_pod(uid)

    def _on_pod(self, event: EventType, pod: Object, previous: Object | None) -> None:
        """Labels, annotations and resources of a pod are what its own downwardAPI files say."""
        uid = uid_of(pod)
        mounted = self._pods.get(uid)
        if event != "MODIFIED" or mounted is None or not _reads_itself(pod):
            return
        facts = (labels_of(pod), annotations_of(pod), pod["spec"])
        if facts != (labels_of(mounted), annotations_of(mounted), mounted["spec"]):
            self._pods[uid] = pod
            self._tasks.spawn(self._refresh(uid), name=f"volumes.refresh/{uid}")

    def _on_certificate(self, uid: str) -> None:
        self._tasks.spawn(self._refresh(uid), name=f"volumes.refresh/{uid}")

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(REFRESH_EVERY_S)
            due = set(self._tokens.due())
            if self._certificates is not None:
                due.update(self._certificates.due())
            for uid in due:
                await self._refresh(uid)
            if self._csi is not None:
                await self._csi.republish()

    async def _refresh(self, uid: str) -> None:
        """Write a mounted pod's files anew. What cannot be read now stays as it was: running pods are not disturbed."""
        async with self._locks[uid]:
            pod = self._pods.get(uid)
            if pod is not None:
                try:
                    await self._mount_all(pod)
                except VolumeError as error:
                    log.info("volumes of pod %s/%s stay as they are: %s", namespace_of(pod), name_of(pod), error)
        if pod is None:
            self._locks.pop(uid, None)
        else:
            self._sync_pod(uid)


def _keys(pod: Object) -> Iterator[tuple[str, str, str]]:
    """What a pod's volumes name: (kind, namespace, name)."""
    for volume in pod["spec"].get("volumes") or ():
        if name := claimed_volumes.claim_name(pod, volume):
            yield _CLAIM, namespace_of(pod), name
    for source in _sources(pod):
        if source.kind in _FOLLOWED:
            yield source.kind, namespace_of(pod), source.name
        elif source.kind == "clusterTrustBundle":
            yield source.kind, "", ""


def _reads_itself(pod: Object) -> bool:
    return any(source.kind == "downwardAPI" for source in _sources(pod))


def _sources(pod: Object) -> Iterator[Source]:
    for volume in pod["spec"].get("volumes") or ():
        yield from volume_payloads.sources_of(volume) or ()


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror.lower()
    return str(error)


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _mounts_of(folder: Path) -> list[str]:
    return mounts.mounts_below(str(folder)) if folder.exists() else []


def _remove(pod_folder: Path) -> None:
    """A pod's volumes on disk. Raises OSError where something is mounted there still: its content is not ours."""
    for folder in (pod_folder / FOLDER, pod_folder / subpath.FOLDER):
        if left := _mounts_of(folder):
            raise OSError(f"{left[0]} is still mounted")
    subpath.remove(pod_folder)
    for name in (FOLDER, DEVICES_FOLDER):
        shutil.rmtree(pod_folder / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        pod_folder.rmdir()  # the pod's own files may be there still
