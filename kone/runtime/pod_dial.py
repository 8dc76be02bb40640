"""Connecting to a port inside a pod, as port-forward does: to the pod's own localhost, from within its network.

A socket belongs to the network namespace in which it was made. A thread of its own enters the pod's, makes the
sockets and ends; nothing else ever runs in that thread, so nothing else is ever in the wrong network.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence

CLONE_NEWNET = 0x40000000

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[int, int], Awaitable[Streams]]
"""(process id in the pod, port) -> a connection. Raises DialError."""


class DialError(Exception):
    """The port cannot be reached; `str(error)` is for the user of port-forward."""


async def dial(pid: int, port: int) -> Streams:
    """Connect to a port of the pod in whose network the process is: 127.0.0.1, or ::1 where nothing listens there."""
    namespace = f"/proc/{pid}/ns/net"
    try:
        sockets = await _sockets_in(namespace)
    except OSError as error:
        raise DialError(f'failed to enter network namespace "{namespace}": {error.strerror}') from None
    failed = []
    for made, host, name in zip(sockets, ("127.0.0.1", "::1"), ("4", "6"), strict=True):
        if made is None:
            continue
        try:
            await asyncio.get_running_loop().sock_connect(made, (host, port))
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            address = f"[{host}]" if ":" in host else host
            failed.append(f"IPv{name}: dial tcp{name} {address}:{port}: connect: {reason}")
            made.close()
            continue
        except BaseException:
            _close(sockets)
            raise
        _close([other for other in sockets if other is not made])
        return await asyncio.open_connection(sock=made)
    raise DialError(f'failed to connect to localhost:{port} inside namespace "{namespace}", {" ".join(failed)}')


def _close(sockets: Sequence[socket.socket | None]) -> None:
    for made in sockets:
        if made is not None:
            made.close()


async def _sockets_in(namespace: str) -> list[socket.socket | None]:
    """A TCP socket for IPv4 and one for IPv6, where the kernel has that. Raises OSError."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[list[socket.socket | None]] = loop.create_future()

    def enter() -> None:
        try:
            found = _make_sockets(namespace)
        except OSError as error:
            loop.call_soon_threadsafe(_settle, made, error, [])
        else:
            loop.call_soon_threadsafe(_settle, made, None, found)

    threading.Thread(target=enter, name=f"sockets in {namespace}", daemon=True).start()
    return await made


def _settle(
    made: asyncio.Future[list[socket.socket | None]], error: OSError | None, found: list[socket.socket | None]
) -> None:
    if made.done():  # whoever asked has gone
        _close(found)
    elif error is not None:
        made.set_exception(error)
    else:
        made.set_result(found)


def _make_sockets(namespace: str) -> list[socket.socket | None]:
    entered = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(entered, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(entered)
    found: list[socket.socket | None] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                _close(found)
                raise
            found.append(None)
        else:
            found.append(made)
    return found
