"""mount(2) and umount(2): the two system calls that volumes need and Python's library lacks."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

MNT_DETACH = 2


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def mount_tmpfs(path: str, options: str = "") -> None:
    """Mount a tmpfs; options as mount(8) writes them, e.g. "size=1048576". Raises OSError."""
    _check(_libc().mount(b"tmpfs", path.encode(), b"tmpfs", ctypes.c_ulong(0), options.encode()), path)


def unmount(path: str) -> None:
    """Detach a mount; it goes for good when its last user does. Raises OSError."""
    _check(_libc().umount2(path.encode(), MNT_DETACH), path)


def mounts_below(path: str) -> list[str]:
    """Mount points at or below a path, deepest first."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    points = [os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1")) for line in lines]
    inside = {p for p in points if p == path or p.startswith(path.rstrip("/") + "/")}
    return sorted(inside, key=lambda p: p.count("/"), reverse=True)


def is_mount_point(path: str) -> bool:
    """Whether something is mounted right there; os.path.ismount misses bind mounts of the same file system."""
    return path in mounts_below(path)
