"""Image volumes: the files of an image as a directory of a pod, read-only and without execution.

Docker keeps the layers of an image as directories (overlay2); they are mounted over each other for each pod. Such a
mount goes with the pod's other volumes. An image that is mounted is in use: the garbage collector asks here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kone.apimachinery.objects import Object, uid_of
from kone.runtime import mounts
from kone.runtime.parts import MountedVolume
from kone.runtime.runtime import Image, Runtime, RuntimeFault

FOLDER: Final = "kubernetes.io~image"
MAX_OPTIONS_BYTES: Final = 4000  # the kernel takes a page of them


class ImageVolumeFailed(RuntimeFault):
    """The image is here and cannot be mounted."""

    def __init__(self, why: str) -> None:
        super().__init__(f"ImageVolumeMountFailed: {why}")


class ImageVolumes:
    """The mounts of all pods. `root` is the folder below which each pod has its own, by UID.

    A mount's directory is named after its image: a container that is started with a newer one gets another, and which
    images are in use is found on disk, after a restart too.
    """

    def __init__(self, runtime: Runtime, root: Path) -> None:
        self._runtime, self._root = runtime, root

    async def mount(self, pod: Object, volume: str, image: Image) -> MountedVolume:
        """Where the files of the image are for this pod. Raises RuntimeFault."""
        path = self._root / uid_of(pod) / "volumes" / FOLDER / volume / image.id.replace(":", "-")
        if not mounts.is_mount_point(str(path)):
            layers = await self._runtime.image_layers(image.id)
            try:
                path.mkdir(mode=0o750, parents=True, exist_ok=True)
                _mount(layers, str(path))
            except OSError as error:
                raise ImageVolumeFailed(str(error)) from error
        # Read-only by itself: to say it again would make the runtime mount it anew, with execution.
        return MountedVolume(str(path))

    def in_use(self) -> set[str]:
        """Ids of the images that pods have mounted."""
        return {path.name.replace("-", ":", 1) for path in self._root.glob(f"*/volumes/{FOLDER}/*/*")}


def _mount(layers: Sequence[str], path: str) -> None:
    """Topmost layer first. Raises ImageVolumeFailed, OSError."""
    options = f"lowerdir={':'.join(layers)}"
    if not layers or not all(os.path.isdir(layer) for layer in layers):
        raise ImageVolumeFailed("the runtime does not keep this image as directories of this host (overlay2)")
    if any(set(layer) & set(":,\\") for layer in layers) or len(options) > MAX_OPTIONS_BYTES:
        raise ImageVolumeFailed(f"the kernel cannot be told of its {len(layers)} layers")
    if len(layers) == 1:
        mounts.bind_read_only(layers[0], path)
    else:
        mounts.mount_overlay(path, options)
