"""A host of its own for a test: fresh network namespaces with an uplink, pods and an outside.

The test's own thread moves into the new namespace, so that what it starts (threads, iptables) is there too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

HOST_IP = "192.0.2.2"
OUTSIDE_IP = "192.0.2.1"
HOST_IP6 = "2001:db8::2"
OUTSIDE_IP6 = "2001:db8::1"


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def run(*command: str) -> str:
    """Run in the current namespace; the output."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class World:
    """`enter` makes the host's namespace and an outside that is its default route; `leave` takes all away."""

    def __init__(self) -> None:
        self._original = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._namespaces: list[str] = []
        self.host = -1
        self.outside = ""
        self._dad = True  # whether new namespaces ask around before they use an IPv6 address

    @classmethod
    @contextlib.contextmanager
    def entered(cls) -> Iterator[World]:
        """A world for as long as the block lasts."""
        world = cls()
        try:
            world.enter()
            yield world
        finally:
            world.leave()

    def enter(self) -> None:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        self.host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        run("ip", "link", "set", "lo", "up")
        self.outside = self.namespace()
        name = self.outside.rpartition("/")[2]
        run("ip", "link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "up1", "netns", name)
        run("ip", "addr", "add", f"{HOST_IP}/24", "dev", "up0")
        run("ip", "link", "set", "up0", "up")
        run("ip", "-n", name, "addr", "add", f"{OUTSIDE_IP}/24", "dev", "up1")
        run("ip", "-n", name, "link", "set", "up1", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "route", "add", "default", "via", OUTSIDE_IP)

    def add_ipv6(self) -> None:
        """The same by IPv6: addresses that need no waiting for, a default route, forwarding."""
        name = self.outside.rpartition("/")[2]
        run("ip", "addr", "add", f"{HOST_IP6}/64", "dev", "up0", "nodad")
        run("ip", "-n", name, "addr", "add", f"{OUTSIDE_IP6}/64", "dev", "up1", "nodad")
        run("ip", "route", "add", "default", "via", OUTSIDE_IP6)
        self._dad = False
        for setting in ("conf/all/forwarding=1", "conf/default/accept_dad=0"):
            path, _, value = setting.partition("=")
            Path(f"/proc/sys/net/ipv6/{path}").write_text(value)

    def leave(self) -> None:
        _check(_libc.setns(self._original, CLONE_NEWNET), "setns")
        for path in self._namespaces:
            run("ip", "netns", "del", path.rpartition("/")[2])
        os.close(self._original)
        if self.host >= 0:
            os.close(self.host)

    def namespace(self) -> str:
        """A new, empty namespace; its path."""
        name = f"kone-test-{secrets.token_hex(4)}"
        run("ip", "netns", "add", name)
        path = f"/run/netns/{name}"
        self._namespaces.append(path)
        if not self._dad:
            with self.inside(path):
                Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
        return path

    def forget(self, path: str) -> None:
        """The namespace goes, as when a pod's last process ends."""
        self._namespaces.remove(path)
        run("ip", "netns", "del", path.rpartition("/")[2])

    @contextlib.contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """Sockets that are made here belong to that namespace; "" is the host's own."""
        if not path:
            yield
            return
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        _check(_libc.setns(namespace, CLONE_NEWNET), "setns")
        try:
            yield
        finally:
            _check(_libc.setns(self.host, CLONE_NEWNET), "setns")
            os.close(namespace)

    @staticmethod
    def has_sctp() -> bool:
        """Whether this kernel knows the protocol."""
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
        except OSError:
            return False
        return True

    async def serve(
        self, path: str, port: int, name: str, *, address: str = "0.0.0.0", protocol: int = socket.IPPROTO_TCP
    ) -> asyncio.Server:
        """A TCP or SCTP server that answers each connection with "NAME PEER"."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(f"{name} {writer.get_extra_info('peername')[0]}".encode())
            writer.close()

        with self.inside(path):
            listening = socket.socket(_family(address), socket.SOCK_STREAM, protocol)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ":" in address:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((address, port))
            listening.listen(100)
        return await asyncio.start_server(answer, sock=listening)

    async def ask(
        self,
        path: str,
        address: str,
        port: int,
        *,
        timeout_s: float = 2.0,
        source: str = "",
        protocol: int = socket.IPPROTO_TCP,
    ) -> tuple[str, str]:
        """What the server there answers: (its name, our address as it sees it). Raises OSError, TimeoutError."""
        with self.inside(path):
            client = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK, protocol)
        with client:
            if source:
                client.bind((source, 0))
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(client, (address, port))
                text = (await asyncio.get_running_loop().sock_recv(client, 1000)).decode()
        name, _, peer = text.partition(" ")
        return name, peer

    async def serve_udp(
        self, path: str, port: int, name: str, *, address: str = "0.0.0.0"
    ) -> asyncio.DatagramTransport:
        """A UDP server that answers each datagram with "NAME PEER"."""

        class Answer(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = cast(asyncio.DatagramTransport, transport)

            def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
                self.transport.sendto(f"{name} {peer[0]}".encode(), peer)

        with self.inside(path):
            listening = socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            listening.bind((address, port))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Answer, sock=listening)
        return transport

    def udp_client(self, path: str, *, source_port: int = 0, address: str = "0.0.0.0") -> socket.socket:
        with self.inside(path):
            client = socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        client.bind((address, source_port))
        return client

    async def ask_udp(self, client: socket.socket, address: str, port: int, *, timeout_s: float = 1.0) -> str:
        """The name of the server that answers a datagram. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            await loop.sock_sendto(client, b"?", (address, port))
            return (await loop.sock_recv(client, 1000)).decode().partition(" ")[0]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def kernel_state() -> dict[str, str]:
    """What must be the same after kone has come and gone."""
    state = {
        "iptables": "\n".join(line for line in run("iptables-save").splitlines() if not line.startswith("#")),
        "nft": run("nft", "list", "ruleset"),
        "links": run("ip", "-br", "link"),
        "addresses": run("ip", "-br", "addr"),
        # The uplink's own link-local route comes when the kernel has made sure of the address.
        "routes": "\n".join(r for r in run("ip", "route", "show", "table", "all").splitlines() if "fe80:" not in r),
        "rules": run("ip", "rule"),
    }
    return {key: text.strip() for key, text in state.items()}
