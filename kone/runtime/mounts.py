"""mount(2) and umount(2): the system calls that volumes need and Python's library lacks."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from functools import cache
from pathlib import Path

MS_RDONLY = 0x1
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SHARED = 0x100000
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(source: str, path: str, kind: str, flags: int, options: str) -> None:
    result = _libc().mount(
        os.fsencode(source), os.fsencode(path), os.fsencode(kind), ctypes.c_ulong(flags), os.fsencode(options)
    )
    _check(result, path)


def _check(result: int, path: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def mount_tmpfs(path: str, options: str = "") -> None:
    """Mount a tmpfs that is never swapped out, where the kernel can promise that (6.4 and newer, outside containers).

    Options are as mount(8) writes them, e.g. "size=1048576". Raises OSError.
    """
    if _knows_noswap():
        try:
            return _mount("tmpfs", path, "tmpfs", 0, ",".join(filter(None, (options, "noswap"))))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return _mount("tmpfs", path, "tmpfs", 0, options)


@cache
def _knows_noswap() -> bool:
    """By the version: an older kernel complains in its log at each try."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= (6, 4)


def mount_hugetlbfs(path: str, options: str) -> None:
    """Mount huge pages of one size, e.g. "pagesize=2Mi". Raises OSError."""
    _mount("nodev", path, "hugetlbfs", 0, options)


def bind(source: str, path: str) -> None:
    """Make `source` (a file or directory) appear at `path` as well. Raises OSError."""
    _mount(source, path, "", MS_BIND, "")


def bind_read_only(source: str, path: str) -> None:
    """Make a directory appear at `path` as well, read-only and without execution. Raises OSError."""
    bind(source, path)
    try:
        _mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOEXEC, "")
    except OSError:
        unmount(path)
        raise


def share(path: str) -> bool:
    """Make what is mounted below a directory seen in mounts of it elsewhere and the other way round, where it is not so
    already: by a mount of it over itself, which would hide what is mounted below already. Whether that was done. Raises
    OSError."""
    if _is_shared(path) or mounts_below(path):
        return False
    bind(path, path)
    _mount("", path, "", MS_SHARED | MS_REC, "")
    return True


def _is_shared(path: str) -> bool:
    """Whether the mount that a path lies on is a shared one."""
    shared, longest = False, ""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        point = _unescaped(fields[4])
        if len(point) >= len(longest) and (path == point or path.startswith(point.rstrip("/") + "/")):
            longest, shared = point, any(f.startswith(b"shared:") for f in fields[6 : fields.index(b"-")])
    return shared


def mount_overlay(path: str, options: str) -> None:
    """Mount directories over each other, read-only and without execution. Raises OSError."""
    _mount("overlay", path, "overlay", MS_RDONLY | MS_NOEXEC, options)


def unmount(path: str) -> None:
    """Detach a mount; it goes for good when its last user does. Raises OSError."""
    _check(_libc().umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW), path)


def mounts_below(path: str) -> list[str]:
    """Mount points at or below a path, deepest and newest first; one mounted over another is listed twice."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    points = [_unescaped(line.split(b" ", 5)[4]) for line in reversed(lines)]
    inside = [p for p in points if p == path or p.startswith(path.rstrip("/") + "/")]
    return sorted(inside, key=lambda p: p.count("/"), reverse=True)


def _unescaped(field: bytes) -> str:
    """A path of mountinfo: space, tab, newline and backslash are written as three octal digits."""
    if b"\\" in field:
        for octal, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
            field = field.replace(octal, byte)
    return os.fsdecode(field)


def is_mount_point(path: str) -> bool:
    """Whether something is mounted right there; os.path.ismount misses bind mounts of the same file system."""
    return path in mounts_below(path)
