"""What files take of a disk, and how seldom that is counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kone.aio.clock import FakeClock
from kone.runtime import disk_usage
from kone.runtime.disk_usage import DiskUsage, DiskUsages, count, file_system, writable_layer


def fill(path: Path, size: int) -> int:
    """Write that much; what it takes on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path.stat().st_blocks * 512


def test_a_tree_is_the_sum_of_its_blocks_and_inodes(tmp_path: Path) -> None:
    taken = fill(tmp_path / "a", 10_000) + fill(tmp_path / "sub" / "b", 5000)
    os.link(tmp_path / "a", tmp_path / "again")
    (tmp_path / "link").symlink_to("/etc")
    folders = sum(p.stat().st_blocks * 512 for p in (tmp_path, tmp_path / "sub"))
    found = count(tmp_path)
    assert found == DiskUsage(taken + folders + (tmp_path / "link").lstat().st_blocks * 512, 5)


def test_a_hole_takes_nothing(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file:
        file.truncate(1 << 30)
    assert count(tmp_path / "f").bytes < 1 << 20


def test_what_is_not_there_takes_nothing(tmp_path: Path) -> None:
    assert count(tmp_path / "nothing") == DiskUsage()


def test_a_file_system_as_a_whole(tmp_path: Path) -> None:
    found = file_system(tmp_path)
    assert found.capacity_bytes >= found.available_bytes + found.used_bytes > 0
    assert found.device == os.stat(tmp_path).st_dev
    with pytest.raises(OSError):
        file_system(tmp_path / "nothing")


async def test_a_count_is_kept_for_a_minute(tmp_path: Path) -> None:
    clock = FakeClock()
    usages = DiskUsages(clock)
    first = await usages.of(tmp_path)
    fill(tmp_path / "a", 10_000)
    await clock.advance(60)
    assert await usages.of(tmp_path) == first
    await clock.advance(1)
    later = await usages.of(tmp_path)
    assert later.bytes > first.bytes
    fill(tmp_path / "b", 10_000)
    await clock.advance(6)
    assert await usages.of(tmp_path) == later
    assert (await usages.of(tmp_path, max_age_s=5)).bytes > later.bytes


async def test_what_is_dear_is_counted_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    usages = DiskUsages(clock)

    async def slow(what: object, path: str) -> DiskUsage:
        clock._monotonic += 3
        return DiskUsage(int(clock.monotonic()), 1)

    monkeypatch.setattr(disk_usage.asyncio, "to_thread", slow)
    first = await usages.of(tmp_path)
    await clock.advance(299)
    assert await usages.of(tmp_path) == first
    await clock.advance(2)
    assert await usages.of(tmp_path) != first


async def test_counts_of_what_is_gone_are_forgotten(tmp_path: Path) -> None:
    usages = DiskUsages(FakeClock())
    first = await usages.of(tmp_path)
    fill(tmp_path / "a", 10_000)
    usages.forget_all_but([])
    assert (await usages.of(tmp_path)).bytes > first.bytes


MOUNTS = """100 90 0:50 / /proc rw - proc proc rw
101 90 0:51 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/docker/x/diff,workdir=/x/work
"""


def test_where_a_container_writes(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "mountinfo").write_text(MOUNTS)
    assert writable_layer(7, tmp_path) == "/docker/x/diff"
    (tmp_path / "7" / "mountinfo").write_text("101 90 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert writable_layer(7, tmp_path) == ""
    assert writable_layer(8, tmp_path) == ""
