"""Volumes of this node's pods: made before the containers start, kept up to date while they run, removed after them.

Everything lies under <root>/pods/<uid>/volumes/<plugin>/<name>, as upstream's kubelet has it. Files from the API are
written atomically and follow their objects by informer, so a changed configMap is in its pods at once. Secrets and
tokens lie on tmpfs, never on disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import stat
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, SECRETS, SERVICEACCOUNTS
from kone.apimachinery.objects import Object, dig, name_of, namespace_of, uid_of
from kone.apimachinery.quantity import parse_quantity
from kone.apimachinery.timestamps import parse_time
from kone.client.client import Client, EventType
from kone.runtime import atomic_writer, mounts, volume_payloads
from kone.runtime.atomic_writer import File
from kone.runtime.parts import MountedVolume, VolumeError
from kone.runtime.volume_payloads import PayloadError, Source

log = logging.getLogger(__name__)

TOKEN_MAX_AGE_S = 24 * 3600.0  # a token is renewed at 80 % of its life or after a day, whichever is sooner (kubelet)
REFRESH_EVERY_S = 60.0  # also the kubelet's sync period: what is due is renewed at most this late

DownwardValue = Callable[[Object, Object], str]
"""(pod, volume item) -> the text of its fieldRef or resourceFieldRef; ValueError where it has none."""


@dataclass(slots=True)
class _Token:
    text: str
    renew_at: float


class Volumes:
    """The VolumeManager of parts.py on a real file system."""

    def __init__(self, client: Client, root: Path, clock: Clock, downward_value: DownwardValue) -> None:
        self._client = client
        self._root = root / "pods"
        self._clock = clock
        self._downward_value = downward_value
        self._pods: dict[str, Object] = {}  # mounted here and now, by UID: those that follow their objects
        self._users: dict[tuple[str, str, str], set[str]] = defaultdict(set)  # (kind, namespace, name) -> pod UIDs
        self._tokens: dict[tuple[str, str, str], _Token] = {}  # (pod UID, volume, path)
        self._tasks = TaskGroup("volumes")
        self._subscriptions: list[Callable[[], None]] = []

    async def start(self) -> None:
        for resource, kind in ((CONFIGMAPS, "configMap"), (SECRETS, "secret")):
            informer = self._client.informer(resource)
            await informer.wait_synced()
            self._subscriptions.append(informer.subscribe(self._on_change(kind)))
        self._tasks.guard(self._renew_tokens, name="volumes.renew-tokens")

    async def stop(self) -> None:
        for unsubscribe in self._subscriptions:
            unsubscribe()
        self._subscriptions.clear()
        await self._tasks.cancel()

    async def mount(self, pod: Object) -> Mapping[str, MountedVolume]:
        uid = uid_of(pod)
        self._follow(pod)
        mounted = {}
        for volume in pod["spec"].get("volumes") or ():
            try:
                mounted[volume["name"]] = await self._mount_one(pod, uid, volume)
            except (PayloadError, OSError) as error:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise VolumeError(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {text}') from None
        return mounted

    async def subpath(self, pod: Object, volume: MountedVolume, sub_path: str) -> str:
        top = os.path.realpath(volume.host_path)
        wanted = os.path.normpath(os.path.join(top, sub_path))
        found = os.path.realpath(wanted)
        if os.path.isabs(sub_path) or not _is_inside(wanted, top) or not _is_inside(found, top):
            raise VolumeError(f'subPath "{sub_path}" not within volume path "{volume.host_path}"')
        if not os.path.exists(found):
            mode = stat.S_IMODE(os.stat(top).st_mode)
            try:
                _make_directories(top, found, mode)
            except OSError as error:
                raise VolumeError(f'failed to create subPath directory "{found}": {error.strerror}') from None
        return found

    async def unmount(self, pod_uid: str) -> None:
        self._forget(pod_uid)
        folder = self._root / pod_uid
        if not folder.exists():
            return
        for point in mounts.mounts_below(str(folder)):
            mounts.unmount(point)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def mounted(self) -> set[str]:
        return {entry.name for entry in os.scandir(self._root)} if self._root.is_dir() else set()

    # ---- one volume

    async def _mount_one(self, pod: Object, uid: str, volume: Object) -> MountedVolume:
        if (host_path := volume.get("hostPath")) is not None:
            _check_host_path(host_path.get("path", ""), host_path.get("type") or "")
            return MountedVolume(host_path["path"])
        if (empty := volume.get("emptyDir")) is not None:
            path = self._place(uid, "empty-dir", volume["name"])
            await self._make_empty_dir(path, empty, dig(pod, "spec", "securityContext", "fsGroup"))
            return MountedVolume(str(path))
        sources = volume_payloads.sources_of(volume)
        if sources is None:
            plugin = next((key for key in volume if key != "name"), "")
            raise PayloadError(f"no volume plugin matched: this node has none for {plugin}")
        kind = next(k for k in ("configMap", "secret", "downwardAPI", "projected") if k in volume)
        path = self._place(uid, _PLUGINS[kind], volume["name"])
        files = await self._files(pod, volume["name"], sources)
        path.mkdir(parents=True, exist_ok=True)
        if kind in ("secret", "projected") and not mounts.is_mount_point(str(path)):
            mounts.mount_tmpfs(str(path))
        if not (path / atomic_writer.DATA).exists():
            path.chmod(0o777)
        stamp = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y_%m_%d_%H_%M_%S")
        atomic_writer.write(path, files, stamp, dig(pod, "spec", "securityContext", "fsGroup"))
        return MountedVolume(str(path), read_only=True)

    async def _make_empty_dir(self, path: Path, empty: Object, group: int | None) -> None:
        made = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        medium = empty.get("medium") or ""
        if medium == "Memory" and not mounts.is_mount_point(str(path)):
            limit = parse_quantity(empty["sizeLimit"]).value() if empty.get("sizeLimit") else 0
            mounts.mount_tmpfs(str(path), f"size={limit}" if limit else "")  # its mode is 1777, as upstream leaves it
            made = True
        elif medium.startswith("HugePages"):
            raise PayloadError(f"medium {medium} is not available on this node")
        elif made:
            path.chmod(0o777)
        if made and group is not None:
            atomic_writer.own(path, group, read_only=False)

    async def _files(self, pod: Object, volume: str, sources: Sequence[Source]) -> dict[str, File]:
        files: dict[str, File] = {}
        namespace = namespace_of(pod)
        for source in sources:
            if source.kind == "configMap":
                found = self._client.informer(CONFIGMAPS).get(namespace, source.name)
                files |= volume_payloads.config_map_files(source, found)
            elif source.kind == "secret":
                found = self._client.informer(SECRETS).get(namespace, source.name)
                files |= volume_payloads.secret_files(source, found)
            elif source.kind == "downwardAPI":
                files |= volume_payloads.downward_files(source, pod, self._downward_value)
            elif source.kind == "serviceAccountToken":
                files |= volume_payloads.token_files(source, await self._token(pod, volume, source), pod)
            else:
                raise PayloadError(f"projected source {source.kind} is not available on this node")
        return files

    def _place(self, uid: str, plugin: str, name: str) -> Path:
        return self._root / uid / "volumes" / f"kubernetes.io~{plugin}" / name

    # ---- tokens

    async def _token(self, pod: Object, volume: str, source: Source) -> str:
        key = (uid_of(pod), volume, source.spec["path"])
        token = self._tokens.get(key)
        if token is None or token.renew_at <= self._clock.now():
            account = dig(pod, "spec", "serviceAccountName", default="default")
            try:
                answer = await self._client.create(
                    SERVICEACCOUNTS,
                    volume_payloads.token_request(source, pod),
                    namespace=namespace_of(pod),
                    name=account,
                    subresource="token",
                )
            except StatusError as error:
                raise PayloadError(f"failed to fetch token: {error}") from None
            now = self._clock.now()
            lives_s = parse_time(answer["status"]["expirationTimestamp"]) - now
            token = _Token(answer["status"]["token"], now + min(lives_s * 0.8, TOKEN_MAX_AGE_S))
            self._tokens[key] = token
        return token.text

    async def _renew_tokens(self) -> None:
        while True:
            await self._clock.sleep(REFRESH_EVERY_S)
            now = self._clock.now()
            for uid in {key[0] for key, token in self._tokens.items() if token.renew_at <= now}:
                await self._refresh(uid)

    # ---- following objects

    def _follow(self, pod: Object) -> None:
        uid = uid_of(pod)
        if uid not in self._pods:
            for volume in pod["spec"].get("volumes") or ():
                for source in volume_payloads.sources_of(volume) or ():
                    if source.name:
                        self._users[source.kind, namespace_of(pod), source.name].add(uid)
        self._pods[uid] = pod

    def _forget(self, uid: str) -> None:
        self._pods.pop(uid, None)
        for key in [key for key, users in self._users.items() if uid in users]:
            self._users[key].discard(uid)
            if not self._users[key]:
                del self._users[key]
        for token in [key for key in self._tokens if key[0] == uid]:
            del self._tokens[token]

    def _on_change(self, kind: str) -> Callable[[EventType, Object, Object | None], None]:
        def changed(event: EventType, obj: Object, previous: Object | None) -> None:
            for uid in self._users.get((kind, namespace_of(obj), name_of(obj)), ()):
                self._tasks.spawn(self._refresh(uid), name=f"volumes.refresh/{uid}")

        return changed

    async def _refresh(self, uid: str) -> None:
        """Write a mounted pod's files anew. What cannot be read now stays as it was: running pods are not disturbed."""
        pod = self._pods.get(uid)
        if pod is None or not (self._root / uid).exists():
            return
        try:
            await self.mount(pod)
        except VolumeError as error:
            log.info("volumes of pod %s/%s stay as they are: %s", namespace_of(pod), name_of(pod), error)


_PLUGINS = {"configMap": "configmap", "secret": "secret", "downwardAPI": "downward-api", "projected": "projected"}


def _is_inside(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _make_directories(top: str, path: str, mode: int) -> None:
    """mkdir -p below top with the mode of top, whatever the umask says."""
    place = top
    for part in os.path.relpath(path, top).split("/"):
        place = os.path.join(place, part)
        if not os.path.isdir(place):
            os.mkdir(place)
            os.chmod(place, mode)


def _check_host_path(path: str, kind: str) -> None:
    """hostPath.type: make what "OrCreate" asks for, refuse what is not as it says. Raises PayloadError, OSError."""
    if kind == "DirectoryOrCreate" and not os.path.exists(path):
        os.makedirs(path, mode=0o755)
        return
    if kind == "FileOrCreate" and not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
        return
    check, noun = _HOST_PATH_TYPES.get(kind, (None, ""))
    if check is not None and not (os.path.exists(path) and check(os.stat(path).st_mode)):
        raise PayloadError(f"hostPath type check failed: {path} is not {noun}")


_HOST_PATH_TYPES: Mapping[str, tuple[Callable[[int], bool], str]] = {
    "Directory": (stat.S_ISDIR, "a directory"),
    "DirectoryOrCreate": (stat.S_ISDIR, "a directory"),
    "File": (stat.S_ISREG, "a file"),
    "FileOrCreate": (stat.S_ISREG, "a file"),
    "Socket": (stat.S_ISSOCK, "a socket file"),
    "CharDevice": (stat.S_ISCHR, "a character device"),
    "BlockDevice": (stat.S_ISBLK, "a block device"),
}
