"""Loop devices (loop(4)): a regular file as a block device, found again by the file behind it, not remembered."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SET_FD, _CLR_FD, _SET_CAPACITY, _CTL_GET_FREE = 0x4C00, 0x4C01, 0x4C07, 0x4C82
_SET_STATUS64: Final = 0x4C04
_LOOP_INFO64: Final = "QQQQQIIII64s64s32sQQ"
_MAJOR: Final = 7
_DELETED: Final = " (deleted)"  # how the kernel ends the name of a file that is gone
TRIES: Final = 10  # of taking a free device that somebody else was faster with


def find(file: Path) -> str | None:
    """The loop device of a file, e.g. "/dev/loop3"; also of one that was deleted meanwhile and has no successor."""
    wanted = os.stat(file) if file.exists() else None
    for device, behind in _all():
        if wanted is None:
            if behind == f"{file}{_DELETED}":
                return device
        elif not behind.endswith(_DELETED):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(behind), wanted):
                    return device
    return None


def below(folder: Path) -> list[str]:
    """The loop devices of files in a directory, deleted ones too."""
    return [device for device, behind in _all() if behind.startswith(f"{folder}/")]


def _all() -> Iterator[tuple[str, str]]:
    """(device, the name of the file behind it)."""
    for entry in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):
            yield f"/dev/{entry.name}", (entry / "loop" / "backing_file").read_text().rstrip("\n")


def attach(file: Path, *, read_only: bool = False) -> str:
    """The loop device of a file, made where it has none. Raises OSError."""
    if (known := find(file)) is not None:
        return known
    backing = os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            device = _free_device()
            handle = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(handle, _SET_FD, backing)
                name = os.fsencode(str(file))[:63]
                info = struct.pack(_LOOP_INFO64, 0, 0, 0, 0, 0, 0, 0, 0, 0, name, b"", b"", 0, 0)
                fcntl.ioctl(handle, _SET_STATUS64, info)
                return device
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            finally:
                os.close(handle)
        raise OSError(errno.EBUSY, "no free loop device", str(file))
    finally:
        os.close(backing)


def detach(device: str) -> None:
    """Let go of the file; a device that is still open lets go when it is closed. Raises OSError."""
    _ask(device, _CLR_FD)


def resize(device: str) -> None:
    """The file has another size. Raises OSError."""
    _ask(device, _SET_CAPACITY)


def _ask(device: str, request: int) -> None:
    handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, request)
    finally:
        os.close(handle)


def _free_device() -> str:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        number = fcntl.ioctl(control, _CTL_GET_FREE)
    finally:
        os.close(control)
    device = f"/dev/loop{number}"
    if not os.path.exists(device):
        os.mknod(device, 0o660 | 0o060000, os.makedev(_MAJOR, number))
    return device
