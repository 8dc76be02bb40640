"""Volumes of CSI drivers on this node: staged once for the node, published for each pod, and taken back in reverse.

What was done is read from the disk (csi_records.py), so that a kone that starts anew takes back what an older one
published. Order and texts: kubernetes/pkg/volume/csi, pkg/volume/util/operationexecutor.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import NODES, PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, PODS, SECRETS, VOLUMEATTACHMENTS
from kone.apimachinery.objects import Object, dig, is_deleting, is_pod_terminal, name_of, namespace_of, uid_of
from kone.apimachinery.pod_references import claim_names
from kone.apimachinery.volume_attachments import attached_names, is_attachable, unique_name
from kone.client.client import Client, EventType, Unsubscribe
from kone.runtime import csi_records as records
from kone.runtime import csi_rules as rules
from kone.runtime.csi_drivers import CsiDrivers, Driver, DriverMissing
from kone.runtime.csi_records import Published, Staged
from kone.runtime.csi_rules import CsiVolume, Secret
from kone.runtime.group_ownership import give_to_group
from kone.runtime.grpc_status import RESOURCE_EXHAUSTED, RpcError
from kone.runtime.parts import MountedVolume, VolumeError, VolumesWaiting
from kone.runtime.pod_spec import format_pod
from kone.runtime.tokens import Tokens
from kone.runtime.volume_payloads import Source

log = logging.getLogger(__name__)

UNSTAGE_RETRY_FIRST_S: Final = 0.5
UNSTAGE_RETRY_MAX_S: Final = 122.0

# csi_messages' node capabilities
_STAGES, _COUNTS, _EXPANDS, _MULTI_WRITER, _MOUNT_GROUP = 1, 2, 3, 5, 6


class Mounted(NamedTuple):
    """A volume that this process has published for a pod."""

    pod: Object
    volume: CsiVolume
    where: MountedVolume


class CsiVolumes:
    """Mounts and unmounts volumes of CSI drivers. `public_root` is the kubelet's directory as drivers know it.

    `changed_use` is called when the volumes in use are others than before: the node's status tells of them. `changed`
    is called when something has come that a mount may wait for, `on_mounted` with each persistent volume mounted.
    """

    def __init__(
        self,
        client: Client,
        root: Path,
        drivers: CsiDrivers,
        tokens: Tokens,
        node_name: str,
        clock: Clock,
        *,
        public_root: Path | None = None,
        changed_use: Callable[[], None] = lambda: None,
    ) -> None:
        self._client, self._root, self._drivers, self._tokens = client, root, drivers, tokens
        self._node_name, self._clock = node_name, clock
        self.public_root = public_root or root
        self._changed_use = changed_use
        self._users: dict[tuple[str, str], set[str]] = defaultdict(set)  # (driver, handle) -> pod UIDs
        self._mounted: dict[tuple[str, str], Mounted] = {}  # (pod UID, volume): published by this process
        self._locks: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)  # by (driver, handle)
        self._staged: set[tuple[str, str]] = set()  # by this process
        self._on_disk: frozenset[tuple[str, str]] | None = None  # (driver, handle) that have data files, once read
        self._pods = client.informer(PODS, fields=f"spec.nodeName={node_name}")
        self._awaited: dict[str, CsiVolume] = {}  # pod UID -> the volume that it waits for
        self._unstaging = asyncio.Event()
        self._tasks = TaskGroup("csi-volumes")
        self._unsubscribe: Unsubscribe = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self.on_mounted: Callable[[str], None] = lambda name: None
        drivers.on_change = self._on_drivers

    async def start(self) -> None:
        nodes = self._client.informer(NODES)
        await nodes.wait_synced()
        await self._pods.wait_synced()
        self._unsubscribe = nodes.subscribe(self._on_node)
        await self._drivers.start()
        self._tasks.guard(self._keep_unstaging, name="csi-volumes.unstage")

    async def stop(self) -> None:
        self._unsubscribe()
        await self._tasks.cancel()
        await self._drivers.stop()

    def _on_drivers(self) -> None:
        """What waits for a driver is tried now."""
        self._unstaging.set()
        self.changed()

    def _on_node(self, event: EventType, node: Object, previous: Object | None) -> None:
        if name_of(node) == self._node_name and attached_names(node) != attached_names(previous):
            self.changed()

    def in_use(self) -> list[str]:
        """Unique names of the attachable volumes that this node must keep, sorted: node.status.volumesInUse."""
        keys = {key for key, users in self._users.items() if users}
        if self._on_disk is None:
            self._on_disk = frozenset(
                self._published() | {(each.driver, each.handle) for each in records.staged(self._root)}
            )
        keys |= self._on_disk
        return sorted(unique_name(*key) for key in keys if is_attachable({"spec": self._drivers.spec_of(key[0])}))

    def _published(self) -> set[tuple[str, str]]:
        """(driver, handle) of what some pod has, by the disk; inline volumes have no life beside their pods."""
        return {(each.driver, each.handle) for each in records.published(self._root) if not each.inline}

    # ---- mounting

    async def mount(self, pod: Object, volume: CsiVolume) -> MountedVolume:
        """Raises VolumeError with the whole text of the event; VolumesWaiting while it is not attached."""
        uid = uid_of(pod)
        if (known := self._mounted.get((uid, volume.name))) is not None:
            return known.where
        if not volume.inline and uid not in self._users[volume.key]:
            self._users[volume.key].add(uid)
            self._changed_use()
        spec = self._drivers.spec_of(volume.driver)
        attached = not volume.inline and is_attachable({"spec": spec})
        self._awaited[uid] = volume
        context = await self._attachment_metadata(volume) if attached else {}
        self._awaited.pop(uid, None)
        async with self._locks[volume.key]:
            if not volume.inline:
                await self._stage(pod, volume, context)
            mounted = await self._publish(pod, volume, context, spec, again=False)
        self._mounted[uid, volume.name] = Mounted(pod, volume, mounted)
        if not volume.inline:
            self.on_mounted(volume.name)
        return mounted

    async def is_out_of_slots(self, pod_uid: str) -> bool:
        """Whether what a pod waits for cannot be attached since the node has too many volumes of the driver already;
        then the CSINode says so at once (nodeAllocatableUpdatePeriodSeconds is what a driver asks for this with)."""
        volume = self._awaited.get(pod_uid)
        if volume is None or not (self._drivers.spec_of(volume.driver) or {}).get("nodeAllocatableUpdatePeriodSeconds"):
            return False
        try:
            attachment = await self._client.get(VOLUMEATTACHMENTS, volume.attachment(self._node_name))
        except StatusError:
            return False
        if dig(attachment, "status", "attachError", "errorCode") != RESOURCE_EXHAUSTED:
            return False
        await self._drivers.refresh_count(volume.driver)
        return True

    async def republish(self) -> None:
        """Publish mounted volumes once more whose drivers want that (requiresRepublish), since their tokens change.

        What is mounted stays, whatever comes of it.
        """
        for key, (pod, volume, _) in list(self._mounted.items()):
            spec = self._drivers.spec_of(volume.driver)
            if not (spec or {}).get("requiresRepublish"):
                continue
            attached = not volume.inline and is_attachable({"spec": spec})
            try:
                context = await self._attachment_metadata(volume) if attached else {}
                async with self._locks[volume.key]:
                    if key in self._mounted:
                        await self._publish(pod, volume, context, spec, again=True)
            except VolumeError as error:
                log.warning("pod %s: a volume is not published anew: %s", format_pod(pod), error)

    async def _attachment_metadata(self, volume: CsiVolume) -> dict[str, str]:
        """What the attacher left for the node, once the volume is attached."""
        name = unique_name(*volume.key)
        node = self._client.informer(NODES).get("", self._node_name)
        if name not in dig(node, "status", "volumesInUse", default=()):
            self._changed_use()
            raise VolumesWaiting(volume.name)
        if name not in attached_names(node):
            raise VolumesWaiting(volume.name)
        verb = "MapVolume" if volume.block else "MountVolume"
        failed = f'{verb}.WaitForAttach failed for volume "{volume.name}" : volume {volume.handle}'
        attachment_name = volume.attachment(self._node_name)
        reason = _reason(volume)
        try:
            attachment = await self._client.get(VOLUMEATTACHMENTS, attachment_name)
        except StatusError as error:
            text = f"{failed} has GET error for volume attachment {attachment_name}: {error.message}"
            raise VolumeError(text, reason) from None
        if not dig(attachment, "status", "attached"):
            raise VolumeError(f"{failed} is not attached for volume attachment {attachment_name}", reason)
        return dict(dig(attachment, "status", "attachmentMetadata", default={}))

    async def _stage(self, pod: Object, volume: CsiVolume, context: Mapping[str, str]) -> None:
        if volume.key in self._staged:
            return
        if volume.block:
            step, what = "MapVolume.SetUpDevice", "blockMapper.SetUpDevice failed to get CSI client"
        else:
            step, what = "MountVolume.MountDevice", "attacher.MountDevice failed to create newCsiDriverClient"
        place = self._root / rules.staging_path(volume)
        data = self._root / rules.data_path(volume)
        with _failing(volume, step, what):
            driver = self._drivers.get(volume.driver)
            abilities = await driver.capabilities()
            told = {"driverName": volume.driver, "volumeHandle": volume.handle, "specVolID": volume.name}
            if _STAGES not in abilities:
                if volume.block:
                    records.save(data, told)  # whose a published device is
                    self._on_disk = None
                return
            secrets = await self._secrets(volume.stage_secret, "NodeStageSecretRef")
            place.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._on_disk = None
            records.save(data, told)
            group = dig(pod, "spec", "securityContext", "fsGroup") if _MOUNT_GROUP in abilities else None
            request = {
                "volume_id": volume.handle,
                "publish_context": context,
                "staging_target_path": self._told(place),
                "volume_capability": _capability(volume, abilities, group),
                "secrets": secrets,
                "volume_context": volume.attributes,
            }
            try:
                await driver.call("STAGE", request)
            except RpcError as error:
                if rules.is_final(error):
                    records.tidy(place, (data, *records.parents(data, place)))
                raise
        self._staged.add(volume.key)

    async def _publish(
        self, pod: Object, volume: CsiVolume, context: Mapping[str, str], spec: Object | None, *, again: bool
    ) -> MountedVolume:
        if volume.block:
            step, what = "MapVolume.MapPodDevice", "blockMapper.MapPodDevice failed to get CSI client"
        else:
            step, what = "MountVolume.SetUp", "mounter.SetUpAt failed to get CSI client"
        uid = uid_of(pod)
        target = self._root / rules.target_path(volume, uid)
        folder = self._root / rules.pod_folder(volume, uid)
        with _failing(volume, step, what):
            driver = self._drivers.get(volume.driver)
            if why := rules.lifecycle_refusal(volume, spec):
                failed = "mounter.SetupAt failed to check volume lifecycle mode"
                raise VolumeError(f"{rules.PLUGIN}: {failed}: {why}")
            abilities = await driver.capabilities()
            secrets = await self._secrets(volume.publish_secret, "NodePublishSecretRef")
            attributes = dict(volume.attributes)
            if (spec or {}).get("podInfoOnMount"):
                attributes |= rules.pod_attributes(pod, volume)
            tokens = await self._token_attributes(pod, spec) if not volume.block else {}
            if (spec or {}).get("serviceAccountTokenInSecrets"):
                secrets |= tokens
            else:
                attributes |= tokens
            delegated = _MOUNT_GROUP in abilities
            group = dig(pod, "spec", "securityContext", "fsGroup")
            target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._on_disk = None
            if not volume.block:
                records.save(folder / rules.DATA_FILE, records.pod_data(volume, self._node_name))
            staged = not volume.inline and _STAGES in abilities
            request = {
                "volume_id": volume.handle,
                "publish_context": context,
                "staging_target_path": self._told(self._root / rules.staging_path(volume)) if staged else "",
                "target_path": self._told(target),
                "volume_capability": _capability(volume, abilities, group if delegated else None),
                "readonly": volume.read_only,
                "secrets": secrets,
                "volume_context": attributes,
            }
            try:
                await driver.call("PUBLISH", request)
            except RpcError as error:
                if rules.is_final(error) and not again:
                    records.tidy(target, (folder / rules.DATA_FILE, folder))
                raise
            if volume.block:
                return self._map(pod, volume, target)
            if group is not None and not delegated and not again and rules.takes_group(volume, spec):
                await give_to_group(pod, target, group)
        return MountedVolume(str(target), read_only=volume.read_only)

    def _map(self, pod: Object, volume: CsiVolume, target: Path) -> MountedVolume:
        link = self._root / rules.device_link(volume, uid_of(pod))
        link.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target)
        return MountedVolume(os.path.realpath(target), read_only=volume.read_only, is_device=True)

    async def _secrets(self, reference: Secret | None, field: str) -> dict[str, str]:
        if reference is None:
            return {}
        namespace, name = reference
        try:
            secret = await self._client.get(SECRETS, name, namespace)
        except StatusError as error:
            why = f"failed to find the secret {name} in the namespace {namespace} with error: {error.message}"
            raise VolumeError(f"fetching {field} {namespace}/{name} failed: {rules.PLUGIN}: {why}") from None
        return {key: base64.b64decode(value).decode(errors="replace") for key, value in secret.get("data", {}).items()}

    async def _token_attributes(self, pod: Object, spec: Object | None) -> dict[str, str]:
        """The service account's tokens for the audiences that the driver asks for, as JSON."""
        requests = (spec or {}).get("tokenRequests") or ()
        if not requests:
            return {}
        found = {}
        for request in requests:
            token = await self._tokens.get(pod, Source("serviceAccountToken", "", request, 0))
            found[request.get("audience", "")] = {
                "token": token.text,
                "expirationTimestamp": token.expiration,
            }
        return {rules.TOKENS: json.dumps(found, separators=(",", ":"), sort_keys=False)}

    def _told(self, path: Path) -> str:
        """A path of the kubelet's as drivers see it, who may have its directory mounted under its public name."""
        return str(self.public_root / path.relative_to(self._root))

    def _published_at(self, mounted: Mounted) -> str:
        """Where the driver was told to publish it, in the driver's own words: also for a device, whose host_path is
        what is found there."""
        return self._told(self._root / rules.target_path(mounted.volume, uid_of(mounted.pod)))

    # ---- growing, measuring

    def holder_of(self, volume_name: str) -> Mounted | None:
        """Some pod that has the persistent volume, once it is published."""
        found = (each for each in self._mounted.values() if each.volume.name == volume_name and not each.volume.inline)
        return next(found, None)

    async def expand(self, mounted: Mounted, size_bytes: int) -> bool:
        """Let the driver grow what is mounted; whether it has anything to do for that. Raises RpcError, VolumeError."""
        volume = mounted.volume
        driver = self._driver(volume)
        abilities = await driver.capabilities()
        if _EXPANDS not in abilities:
            return False
        request = {
            "volume_id": volume.handle,
            "volume_path": self._published_at(mounted),
            "capacity_range": {"required_bytes": size_bytes},
            "staging_target_path": self._told(self._root / rules.staging_path(volume)) if _STAGES in abilities else "",
            "volume_capability": _capability(volume, abilities, None),
            "secrets": await self._secrets(volume.expand_secret, "NodeExpandSecretRef"),
        }
        async with self._locks[volume.key]:
            await driver.call("EXPAND", request)
        return True

    async def usage(self, pod_uid: str, volume_name: str) -> list[dict[str, int]]:
        """What the driver counts of a mounted volume: csi_messages' usages; none where it does not count."""
        mounted = self._mounted.get((pod_uid, volume_name))
        if mounted is None:
            return []
        try:
            driver = self._drivers.get(mounted.volume.driver)
            if _COUNTS not in await driver.capabilities():
                return []
            request = {"volume_id": mounted.volume.handle, "volume_path": self._published_at(mounted)}
            return list((await driver.call("GET_STATS", request)).get("usage", ()))
        except (DriverMissing, RpcError) as error:
            log.info("no statistics of volume %s: %s", volume_name, error)
            return []

    def _driver(self, volume: CsiVolume) -> Driver:
        try:
            return self._drivers.get(volume.driver)
        except DriverMissing as error:
            raise VolumeError(str(error)) from None

    # ---- unmounting

    async def unmount(self, pod_uid: str) -> None:
        """Take back what was published for a pod. Raises VolumeError where a driver is away, or says no."""
        for each in list(records.published(self._root, pod_uid)):
            async with self._locks[each.driver, each.handle]:
                await self._unpublish(each)
            self._mounted.pop((pod_uid, each.name), None)
        for key in [key for key, users in self._users.items() if pod_uid in users]:
            self._users[key].discard(pod_uid)
            if not self._users[key]:
                del self._users[key]
        for mounted in [mounted for mounted in self._mounted if mounted[0] == pod_uid]:
            del self._mounted[mounted]
        self._tokens.forget(pod_uid)
        self._awaited.pop(pod_uid, None)
        self._unstaging.set()

    async def _unpublish(self, each: Published) -> None:
        failed = f'UnmountVolume.TearDown failed for volume "{each.name}" : {rules.PLUGIN}: Unmounter.TearDownAt failed'
        try:
            driver = self._drivers.get(each.driver)
            await driver.call("UNPUBLISH", {"volume_id": each.handle, "target_path": self._told(each.target)})
        except DriverMissing as error:
            raise VolumeError(f"{failed} to get CSI client: {error}") from None
        except RpcError as error:
            raise VolumeError(f"{failed}: {error}") from None
        records.tidy(each.target, each.left)
        self._on_disk = None

    # ---- unstaging

    async def _keep_unstaging(self) -> None:
        """Unstage what no pod uses any more; again after a while where that fails."""
        delay_s = UNSTAGE_RETRY_FIRST_S
        while True:
            if await self._unstage_unused():
                delay_s = UNSTAGE_RETRY_FIRST_S
                await self._unstaging.wait()
            else:
                with contextlib.suppress(TimeoutError):
                    await self._clock_wait(delay_s)
                delay_s = min(delay_s * 2, UNSTAGE_RETRY_MAX_S)
            self._unstaging.clear()

    async def _clock_wait(self, delay_s: float) -> None:
        sleeping = asyncio.ensure_future(self._clock.sleep(delay_s))
        told = asyncio.ensure_future(self._unstaging.wait())
        try:
            await asyncio.wait({sleeping, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            told.cancel()

    async def _unstage_unused(self) -> bool:
        """Whether nothing is left to do."""
        done = True
        for each in list(records.staged(self._root)):
            key = (each.driver, each.handle)
            async with self._locks[key]:
                if self._users.get(key) or any(
                    (other.driver, other.handle) == key for other in records.published(self._root)
                ):
                    continue
                if self._is_awaited(*key):
                    done = False
                    continue
                try:
                    await self._unstage(self._drivers.get(each.driver), each)
                except (DriverMissing, RpcError, OSError) as error:
                    log.warning("UnmountDevice failed for volume %s of driver %s : %s", each.handle, each.driver, error)
                    done = False
        self._changed_use()
        return done

    def _is_awaited(self, driver: str, handle: str) -> bool:
        """Whether a pod of this node will use it: right after a start of kone, none has asked yet."""
        for pod in self._pods.list():
            if is_deleting(pod) or is_pod_terminal(pod):
                continue
            for name in claim_names(pod):
                claim = self._client.informer(PERSISTENTVOLUMECLAIMS).get(namespace_of(pod), name)
                bound_to = dig(claim, "spec", "volumeName", default="")
                volume = self._client.informer(PERSISTENTVOLUMES).get("", bound_to) if bound_to else None
                source = dig(volume, "spec", "csi", default={})
                if (source.get("driver"), source.get("volumeHandle")) == (driver, handle):
                    return True
        return False

    async def _unstage(self, driver: Driver, each: Staged) -> None:
        if _STAGES in await driver.capabilities():
            request = {"volume_id": each.handle, "staging_target_path": self._told(each.path)}
            await driver.call("UNSTAGE", request)
        self._staged.discard((each.driver, each.handle))
        records.tidy(each.path, each.left)
        self._on_disk = None


def _reason(volume: CsiVolume) -> str:
    return "FailedMapVolume" if volume.block else "FailedMount"


@contextlib.contextmanager
def _failing(volume: CsiVolume, step: str, no_driver: str) -> Iterator[None]:
    """Whatever goes wrong as the event that users know: `MountVolume.SetUp failed for volume "v" : ...`."""
    failed = f'{step} failed for volume "{volume.name}" :'
    try:
        yield
    except DriverMissing as error:
        raise VolumeError(f"{failed} {rules.PLUGIN}: {no_driver}: {error}", _reason(volume)) from None
    except (VolumeError, RpcError) as error:
        raise VolumeError(f"{failed} {error}", _reason(volume)) from None
    except OSError as error:
        text = f"{error.filename}: {(error.strerror or str(error)).lower()}"
        raise VolumeError(f"{failed} {text}", _reason(volume)) from None


def _capability(volume: CsiVolume, abilities: frozenset[int], group: int | None) -> dict[str, Any]:
    return rules.capability(volume, single_node_multi_writer=_MULTI_WRITER in abilities, group=group)
