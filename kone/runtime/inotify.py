"""inotify(7), which Python's library lacks: told at once when something in a directory comes, goes or changes."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

_CREATE, _MOVED_FROM, _MOVED_TO, _DELETE, _DELETE_SELF, _ATTRIB = 0x100, 0x40, 0x80, 0x200, 0x400, 0x4
_CLOSE_WRITE = 0x8
_MASK = _CREATE | _MOVED_FROM | _MOVED_TO | _DELETE | _DELETE_SELF | _ATTRIB
_READ_BYTES = 64 * 1024


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Calls `changed` after any change of names in the directories that were added. What changed is not told: look.

    With `content`, also after a file there was written to and closed.
    Belongs to the running event loop. `close` it at the end.
    """

    def __init__(self, changed: Callable[[], None], *, content: bool = False) -> None:
        self._changed = changed
        self._mask = _MASK | _CLOSE_WRITE if content else _MASK
        self._handle = _libc().inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._handle < 0:
            raise _error("")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._handle, self._read)

    def add(self, folder: Path) -> None:
        """Watch a directory too; adding one twice is as good as once. Raises OSError."""
        if _libc().inotify_add_watch(self._handle, os.fsencode(folder), ctypes.c_uint32(self._mask)) < 0:
            raise _error(str(folder))

    def close(self) -> None:
        self._loop.remove_reader(self._handle)
        os.close(self._handle)

    def _read(self) -> None:
        try:
            while os.read(self._handle, _READ_BYTES):
                pass
        except BlockingIOError:
            pass  # all is read
        self._changed()


def _error(path: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)
