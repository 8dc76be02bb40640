"""Doors: a port's two listening sockets, of which one at a time gets the new connections.

A change of Caddy's configuration starts new servers and stops the old ones. On one socket that loses requests: what the
old server has accepted and not yet read when it stops is dropped. So the new servers get the other socket, new
connections are steered there, and the old servers have time to lead their clients over before they stop, with nothing
left in their queue. Steering is a classic BPF program of one instruction on the sockets' SO_REUSEPORT group.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from typing import Literal

Side = Literal[0, 1]

BACKLOG = 4096
SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h
BPF_RETURN_CONSTANT = 0x06  # BPF_RET | BPF_K
PIDFD_GETFD = 438  # the same on every architecture

_libc = ctypes.CDLL(None, use_errno=True)


class Door:
    """One port. The sockets are listened on in their order, which is their place in the group."""

    def __init__(self, sockets: tuple[socket.socket, socket.socket]) -> None:
        self.sockets = sockets

    @property
    def port(self) -> int:
        return int(self.sockets[0].getsockname()[1])

    def steer(self, side: Side) -> None:
        """New connections come by this socket from now on. Raises OSError where the kernel has no such program."""
        instruction = ctypes.create_string_buffer(struct.pack("@HBBI", BPF_RETURN_CONSTANT, 0, 0, side))
        program = struct.pack("@HP", 1, ctypes.addressof(instruction))
        self.sockets[0].setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)

    def stop_listening(self) -> None:
        """Whoever else has the sockets, nobody can connect any more. They stay bound to their port."""
        for each in self.sockets:
            with contextlib.suppress(OSError):  # not connected, where it did not listen
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self.sockets:
            each.close()


class SpareDoor:
    """Two sockets that a program inherits before anybody knows their port.

    A socket is shared with who inherits it: one that is bound here later listens there as well. So a running Caddy gets
    other ports, which no program could be given from outside. Once bound a socket is bound to that port for good.
    """

    def __init__(self, sockets: tuple[socket.socket, socket.socket]) -> None:
        self.sockets = sockets

    @property
    def port(self) -> int:
        """0 while it can become any."""
        return int(self.sockets[0].getsockname()[1])

    def open(self, port: int, side: Side) -> Door:
        """Listen; the sockets are the door's from now on. Raises OSError, e.g. where somebody else does."""
        if self.port != port:
            _family(port)
            address = "::" if self.sockets[0].family == socket.AF_INET6 else "0.0.0.0"
            for each in self.sockets:
                each.bind((address, port))
        for each in self.sockets:
            each.listen(BACKLOG)
        door = Door(self.sockets)
        door.steer(side)
        return door

    def close(self) -> None:
        for each in self.sockets:
            each.close()


def make_spare_door() -> SpareDoor:
    family, _ = _family(0)
    return SpareDoor((_made(family, shared=True), _made(family, shared=True)))


def take_spare_door(pid: int, numbers: tuple[int, int]) -> SpareDoor:
    """The spare door that another process has, by the numbers of its sockets there. Raises OSError."""
    return SpareDoor(take_door(pid, numbers).sockets)


def open_door(port: int) -> Door:
    """Listen on the port of every address of the host. Raises OSError, e.g. where somebody else does."""
    family, address = _family(port)
    with contextlib.ExitStack() as undo:
        pair = []
        for _ in range(2):
            each = undo.enter_context(_bound(family, address, port, shared=True))
            each.listen(BACKLOG)
            pair.append(each)
        door = Door((pair[0], pair[1]))
        door.steer(0)
        undo.pop_all()
        return door


def take_door(pid: int, numbers: tuple[int, int]) -> Door:
    """The door that another process has, by the numbers of its sockets there. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        with contextlib.ExitStack() as undo:
            pair = []
            for number in numbers:
                fd = _libc.syscall(PIDFD_GETFD, pidfd, number, 0)
                if fd < 0:
                    raise OSError(ctypes.get_errno(), f"socket {number} of process {pid} cannot be had")
                pair.append(undo.enter_context(socket.socket(fileno=fd)))
            undo.pop_all()
            return Door((pair[0], pair[1]))
    finally:
        os.close(pidfd)


def _family(port: int) -> tuple[socket.AddressFamily, str]:
    """IPv6, which has IPv4 with it, where the host has it. Raises OSError where the port is somebody else's.

    Sockets that share a port also share it with any other that asks to: so one that does not is tried first.
    """
    try:
        _bound(socket.AF_INET6, "::", port, shared=False).close()
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        _bound(socket.AF_INET, "0.0.0.0", port, shared=False).close()
        return socket.AF_INET, "0.0.0.0"
    return socket.AF_INET6, "::"


def _bound(family: socket.AddressFamily, address: str, port: int, *, shared: bool) -> socket.socket:
    made = _made(family, shared=shared)
    try:
        made.bind((address, port))
        if not shared:
            made.listen(1)  # with SO_REUSEADDR only listening tells that somebody else does
    except OSError:
        made.close()
        raise
    return made


def _made(family: socket.AddressFamily, *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:
        made.close()
        raise
    return made
