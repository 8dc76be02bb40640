"""NFS volumes, where the host has the client (mount.nfs): each pod has its own mount (kubernetes/pkg/volume/nfs)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kone.apimachinery.objects import Object, uid_of
from kone.runtime import filesystems, mounts
from kone.runtime.filesystems import MountFailed
from kone.runtime.parts import MountedVolume, VolumeError

ESCAPED: Final = "kubernetes.io~nfs"


async def mount(
    root: Path, pod: Object, name: str, source: Object, *, read_only: bool, options: Sequence[str] = ()
) -> MountedVolume:
    """`source` is the nfs field of a volume or persistent volume of that name, `root` the kubelet's directory.

    Raises VolumeError with the whole text of the event.
    """
    target = root / "pods" / uid_of(pod) / "volumes" / ESCAPED / name
    read_only = read_only or bool(source.get("readOnly"))
    if not mounts.is_mount_point(str(target)):
        target.mkdir(mode=0o750, parents=True, exist_ok=True)
        server = source.get("server", "")
        host = f"[{server}]" if ":" in server and not server.startswith("[") else server
        words = [*(["ro"] if read_only else []), *options]
        try:
            await filesystems.mount(f"{host}:{source.get('path', '')}", target, "nfs", words)
        except MountFailed as error:
            with contextlib.suppress(OSError):
                target.rmdir()
            raise VolumeError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from None
    return MountedVolume(str(target), read_only)
