"""Local persistent volumes: a directory, a file system on a block device, or the device itself.

Each pod gets a bind mount (or, for a device, a link) of its own among its volumes, as upstream's kubelet makes it, so
what is used is read from the disk. A device's file system is mounted once, below plugins/kubernetes.io/local-volume,
and let go with its last pod; so is the loop device of a regular file. Rules: kubernetes/pkg/volume/local.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from kone.apimachinery.objects import Object, dig, name_of, uid_of
from kone.runtime import filesystems, loop_devices, mounts
from kone.runtime.filesystems import MountFailed
from kone.runtime.group_ownership import give_to_group
from kone.runtime.parts import MountedVolume, VolumeError

ESCAPED: Final = "kubernetes.io~local-volume"
_PLUGIN: Final = Path("plugins", "kubernetes.io", "local-volume", "mounts")

Tell = Callable[[Object, str, str], None]
"""(object, reason, message): a Warning event about a pod or a persistent volume."""


class LocalVolumes:
    """`root` is the kubelet's directory."""

    def __init__(self, root: Path, tell: Tell) -> None:
        self._root = root
        self._tell = tell
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by persistent volume

    async def mount(self, pod: Object, volume: Object, *, read_only: bool) -> MountedVolume:
        """Raises VolumeError with the whole text of the event."""
        async with self._locks[name_of(volume)]:
            if dig(volume, "spec", "volumeMode") == "Block":
                return self._map(pod, volume, read_only)
            return await self._mount(pod, volume, read_only)

    async def _mount(self, pod: Object, volume: Object, read_only: bool) -> MountedVolume:
        name, path = name_of(volume), dig(volume, "spec", "local", "path", default="")
        target = self._root / "pods" / uid_of(pod) / "volumes" / ESCAPED / name
        if mounts.is_mount_point(str(target)):
            return MountedVolume(str(target), read_only)
        if not os.path.exists(path):
            why = f'path "{path}" does not exist'
            raise VolumeError(f'MountVolume.NewMounter initialization failed for volume "{name}" : {why}')
        source = await self._source(volume, path)
        others = [each for each in self._targets(name) if each != target and mounts.is_mount_point(str(each))]
        group: int | None = dig(pod, "spec", "securityContext", "fsGroup")
        try:
            if group is not None and others and os.stat(source).st_gid != group:
                self._tell(
                    pod,
                    "AlreadyMountedVolume",
                    f"The requested fsGroup is {group}, but the volume {name} has GID {os.stat(source).st_gid}. The "
                    "volume may not be shareable.",
                )
            target.mkdir(mode=0o750, parents=True, exist_ok=True)
            options = [*dig(volume, "spec", "mountOptions", default=()), *(["ro"] if read_only else [])]
            if options:
                await filesystems.mount(source, target, "", ["bind"])
                await filesystems.mount(source, target, "", ["bind", "remount", *options])
            else:
                mounts.bind(source, str(target))
            if group is not None and not read_only and not others:
                await give_to_group(pod, target, group)
        except (OSError, MountFailed) as error:
            raise VolumeError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from None
        return MountedVolume(str(target), read_only)

    async def _source(self, volume: Object, path: str) -> str:
        """The directory that a volume's path means. Raises VolumeError."""
        mode, name = os.stat(path).st_mode, name_of(volume)
        if stat.S_ISDIR(mode):
            return os.path.realpath(path)
        failed = f'MountVolume.MountDevice failed for volume "{name}" :'
        if not stat.S_ISBLK(mode):
            raise VolumeError(f"{failed} only directory and block device are supported")
        place = self._root / _PLUGIN / name
        if not mounts.is_mount_point(str(place)):
            place.mkdir(mode=0o750, parents=True, exist_ok=True)
            fs_type = dig(volume, "spec", "local", "fsType", default="") or filesystems.DEFAULT_TYPE
            options = dig(volume, "spec", "mountOptions", default=())
            try:
                await filesystems.format_and_mount(path, place, fs_type, options)
            except MountFailed as error:
                with contextlib.suppress(OSError):
                    place.rmdir()
                what = f"local: failed to mount device {path} at {place} (fstype: {fs_type}), error {error}"
                if error.mismatch:
                    message = f'MountVolume failed for volume "{name}" {what}'
                    self._tell(volume, "FailedMountOnFilesystemMismatch", message)
                raise VolumeError(f"{failed} {what}") from None
        return str(place)

    def _map(self, pod: Object, volume: Object, read_only: bool) -> MountedVolume:
        name, path = name_of(volume), dig(volume, "spec", "local", "path", default="")
        link = self._link(uid_of(pod), name)
        try:
            real = os.path.realpath(path, strict=True)
            mode = os.stat(real).st_mode
            if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
                why = f"{path} is neither a block device nor a file"
                raise VolumeError(f'MapVolume.MapBlockVolume failed for volume "{name}" : {why}', "FailedMapVolume")
            device = real if stat.S_ISBLK(mode) else loop_devices.attach(Path(real))
            link.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(real)
        except OSError as error:
            why = f"lstat {error.filename}: {(error.strerror or str(error)).lower()}"
            raise VolumeError(
                f'MapVolume.EvalHostSymlinks failed for volume "{name}" : {why}', "FailedMapVolume"
            ) from None
        return MountedVolume(device, read_only, is_device=True)

    def grow(self, volume: Object) -> None:
        """A volume has another capacity: the device that stands for its file is to have the file's size. Raises
        OSError."""
        path = Path(dig(volume, "spec", "local", "path", default=""))
        if dig(volume, "spec", "volumeMode") == "Block" and path.is_file():
            device = loop_devices.find(path)
            if device is not None:
                loop_devices.resize(device)

    async def unmount(self, pod_uid: str) -> None:
        """Let go of what a pod had; what no other pod has goes too. Raises OSError."""
        folder = self._root / "pods" / pod_uid / "volumes" / ESCAPED
        for target in list(_entries(folder)):
            async with self._locks[target.name]:
                if mounts.is_mount_point(str(target)):
                    mounts.unmount(str(target))
                target.rmdir()
                self._let_go(target.name)
        for link in list(_entries(self._root / "pods" / pod_uid / "volumeDevices" / ESCAPED)):
            async with self._locks[link.name]:
                self._unmap(link)

    def _let_go(self, name: str) -> None:
        place = self._root / _PLUGIN / name
        if place.is_dir() and not any(True for _ in self._targets(name)):
            if mounts.is_mount_point(str(place)):
                mounts.unmount(str(place))
            place.rmdir()

    def _unmap(self, link: Path) -> None:
        file = Path(os.readlink(link))
        link.unlink()
        others = self._root.glob(f"pods/*/volumeDevices/{ESCAPED}/{link.name}")
        if any(True for _ in others) or file.is_block_device():
            return
        if (device := loop_devices.find(file)) is not None:
            loop_devices.detach(device)

    def _targets(self, name: str) -> Iterator[Path]:
        return self._root.glob(f"pods/*/volumes/{ESCAPED}/{name}")

    def _link(self, pod_uid: str, name: str) -> Path:
        return self._root / "pods" / pod_uid / "volumeDevices" / ESCAPED / name


def _entries(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from folder.iterdir()
