"""Images that nothing needs any more are removed when their disk fills up: at 85 % used, down to 80 %.

kone lives on a host that has images of its own. So only images are removed that kone itself pulled and that were not
there before, that no container of anybody uses, and that have no second name; and the least recently used first.
Thresholds and texts: kubernetes/pkg/kubelet/images/image_gc_manager.go.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.objects import Object, uid_of
from kone.client.events import EventRecorder
from kone.runtime.disk_usage import FileSystem
from kone.runtime.parts import PodSource
from kone.runtime.runtime import Image, NotFound, Runtime, RuntimeFault

log = logging.getLogger(__name__)

HIGH_PERCENT: Final = 85
LOW_PERCENT: Final = 80
MIN_AGE_S: Final = 120.0
LOOK_S: Final = 300.0


@dataclass(slots=True)
class Record:
    """An image that kone pulled: when, and when a container of kone's was last seen with it (Unix seconds)."""

    pulled_at: float
    used_at: float


class ImageRecords:
    """Which images are kone's to remove, by id; kept in a file, written when something is pulled or removed."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._records = _read(path)

    def pulled(self, image: Image) -> None:
        """This image is here because kone pulled it."""
        now = self._clock.now()
        self._records[image.id] = Record(now, now)
        self._write()

    def used(self, image_ids: Iterable[str]) -> None:
        now = self._clock.now()
        for image_id in image_ids:
            if image_id in self._records:
                self._records[image_id].used_at = now

    def keep_only(self, image_ids: Iterable[str]) -> None:
        """Forget what is no longer here."""
        here = set(image_ids)
        gone = [image_id for image_id in self._records if image_id not in here]
        for image_id in gone:
            del self._records[image_id]
        if gone:
            self._write()

    def oldest_first(self) -> list[tuple[str, Record]]:
        """Least recently used first; of equals, the one that was pulled first."""
        return sorted(self._records.items(), key=lambda item: (item[1].used_at, item[1].pulled_at))

    def _write(self) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            fresh.write_text(json.dumps({image_id: asdict(record) for image_id, record in self._records.items()}))
            fresh.rename(self._path)
        except OSError as error:  # without it images stay longer than they must, which harms less than failing
            log.warning("which images were pulled is not written: %s", error)


def _read(path: Path) -> dict[str, Record]:
    try:
        return {image_id: Record(**record) for image_id, record in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        log.warning("which images were pulled cannot be read, none of them will be removed: %s", error)
        return {}


class ImageGc:
    """Looks at the disk every five minutes. `file_system` gives the one that images lie on, `node` is what events are
    about, `seen` is told which images were here at which time (Unix seconds)."""

    def __init__(
        self,
        source: PodSource,
        runtime: Runtime,
        records: ImageRecords,
        recorder: EventRecorder,
        clock: Clock,
        node: Object,
        file_system: Callable[[], FileSystem],
        mounted: Callable[[], set[str]] = set,
        seen: Callable[[Iterable[str], float], None] = lambda image_ids, at: None,
    ) -> None:
        self._source, self._runtime, self._records = source, runtime, records
        self._recorder, self._clock, self._node, self._file_system = recorder, clock, node, file_system
        self._mounted, self._seen = mounted, seen
        self._tasks = TaskGroup("image-gc")

    async def start(self) -> None:
        self._tasks.guard(self._keep_looking, name="image-gc")

    async def stop(self) -> None:
        await self._tasks.cancel()

    async def _keep_looking(self) -> None:
        while True:
            await self._clock.sleep(LOOK_S)
            try:
                await self.look()
            except RuntimeFault as fault:
                log.info("images are not looked at: %s", fault)

    async def look(self) -> None:
        """Free space down to the low threshold where the high one is passed. Raises RuntimeFault."""
        await self._note_use()
        disk = self._file_system()
        available = min(disk.available_bytes, disk.capacity_bytes)
        if disk.capacity_bytes == 0:
            return
        used_percent = 100 - available * 100 // disk.capacity_bytes
        if used_percent < HIGH_PERCENT:
            return
        wanted = disk.capacity_bytes * (100 - LOW_PERCENT) // 100 - available
        freed = await self.remove_unused(wanted)
        if freed < wanted:
            message = (
                f"Insufficient free disk space on the node's image filesystem ({used_percent}% of "
                f"{_size(disk.capacity_bytes)} used). Failed to free sufficient space by deleting unused images "
                f"(freed {freed} bytes). Investigate disk usage, as it could be used by active images, logs, volumes, "
                "or other data."
            )
            self._recorder.event(self._node, "Warning", "FreeDiskSpaceFailed", message)

    async def remove_unused(self, wanted_bytes: int | None = None) -> int:
        """Remove unused images until that many bytes are free; all of them for None. The bytes that were freed.

        Raises RuntimeFault where the runtime does not answer at all.
        """
        images, in_use = await self._note_use()
        now = self._clock.now()
        freed = 0
        for image_id, record in self._records.oldest_first():
            if wanted_bytes is not None and freed >= wanted_bytes:
                break
            if image_id in in_use or now - record.pulled_at < MIN_AGE_S:
                continue
            try:
                await self._runtime.remove_image(image_id)
            except NotFound:
                continue
            except RuntimeFault as fault:  # a container of somebody else, or a name that somebody gave it
                log.info("image %s stays: %s", image_id, fault)
                continue
            log.info("removed image %s to free %d bytes", image_id, images[image_id].size_bytes)
            freed += images[image_id].size_bytes
        if freed:
            self._records.keep_only(image.id for image in await self._runtime.images())
        return freed

    async def _note_use(self) -> tuple[dict[str, Image], set[str]]:
        """All images that are here, and the ids of those that a container of ours has."""
        at = self._clock.now()
        images = {image.id: image for image in await self._runtime.images()}
        self._seen(images, at)
        in_use = {c.image_id for pod in self._source.pods() for c in self._source.containers(uid_of(pod))}
        in_use |= self._mounted()
        self._records.keep_only(images)
        self._records.used(in_use)
        return images, in_use


def _size(amount: int) -> str:
    """With one digit, in the unit that fits: "19.5 GiB"."""
    if amount < 1024:
        return f"{amount} B"
    power = min((amount.bit_length() - 1) // 10, 4)
    return f"{amount / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"
