"""How much of the disk files take: file systems as a whole, and trees of files, which are counted seldom.

Counting a tree reads every inode in it. So a count is kept for a while, the longer the more it cost, and is made in a
thread, one tree at a time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kone.aio.clock import Clock

MAX_AGE_S = 60.0  # the kubelet's volumeStatsAggPeriod
COST_SHARE = 0.01  # of the time may go into counting one tree


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What a tree takes: bytes on disk (not lengths of files) and inodes."""

    bytes: int = 0
    inodes: int = 0

    def __add__(self, other: DiskUsage) -> DiskUsage:
        return DiskUsage(self.bytes + other.bytes, self.inodes + other.inodes)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system as a whole. `device` tells two of them apart."""

    device: int
    capacity_bytes: int
    available_bytes: int
    used_bytes: int
    inodes: int
    inodes_free: int

    @property
    def inodes_used(self) -> int:
        return self.inodes - self.inodes_free


def file_system(path: str | Path) -> FileSystem:
    """The one that a path lies on. Raises OSError."""
    found = os.statvfs(path)
    return FileSystem(
        device=os.stat(path).st_dev,
        capacity_bytes=found.f_blocks * found.f_frsize,
        available_bytes=found.f_bavail * found.f_frsize,
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        inodes=found.f_files,
        inodes_free=found.f_ffree,
    )


def count(path: str | Path) -> DiskUsage:
    """What a file or directory takes, without what other file systems have below it. Hard links count once."""
    try:
        top = os.lstat(path)
    except OSError:
        return DiskUsage()
    seen = {top.st_ino}
    total = top.st_blocks * 512
    folders = [os.fspath(path)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    state = entry.stat(follow_symlinks=False)
                    if state.st_dev != top.st_dev or state.st_ino in seen:
                        continue
                    seen.add(state.st_ino)
                    total += state.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:  # it went while we looked, or is no directory
            continue
    return DiskUsage(total, len(seen))


@dataclass(frozen=True, slots=True)
class _Count:
    usage: DiskUsage
    made_at: float
    took_s: float


class DiskUsages:
    """Counts of trees, by path."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, _Count] = {}
        self._lock = asyncio.Lock()

    async def of(self, path: str | Path, *, max_age_s: float = MAX_AGE_S) -> DiskUsage:
        """What a tree takes, or took at most `max_age_s` ago, or longer where counting it takes long."""
        key = os.fspath(path)
        async with self._lock:
            known = self._counts.get(key)
            began = self._clock.monotonic()
            if known is not None and began - known.made_at <= max(max_age_s, known.took_s / COST_SHARE):
                return known.usage
            usage = await asyncio.to_thread(count, key)
            now = self._clock.monotonic()
            self._counts[key] = _Count(usage, now, now - began)
            return usage

    def forget_all_but(self, paths: Iterable[str]) -> None:
        kept = set(paths)
        self._counts = {path: known for path, known in self._counts.items() if path in kept}


def writable_layer(pid: int, proc: Path = Path("/proc")) -> str:
    """The directory in which a container's changes to its image lie, as seen from a process in it; "" where its root
    is no overlay.
    """
    try:
        lines = (proc / str(pid) / "mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split(" ")
        if fields[4] != "/":
            continue
        kind, _, options = fields[fields.index("-") + 1 :]
        found = next((o.removeprefix("upperdir=") for o in options.split(",") if o.startswith("upperdir=")), "")
        return found if kind == "overlay" else ""
    return ""
