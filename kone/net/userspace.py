"""The userspace proxier: asyncio relays between clients and endpoints, where the kernel cannot serve Services itself.

Node ports need nothing but the right to listen. Cluster IPs, external and load balancer addresses are made the host's
own by local routes on a bridge of kone's without ports, which needs root; without it only node ports are served.
Packets pass through Python, so this is the last resort, as kube-proxy's mode of that name was. Servers see the node's
address, not the client's, SCTP is not served, and nothing is while kone does not run.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import itertools
import logging
import os
import random
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kone.aio.tasks import TaskGroup
from kone.net.dummy_link import DummyLink
from kone.net.firewall import Firewall
from kone.net.link_watch import watch_link
from kone.net.netlink import NETLINK_ROUTE, NLM_F_CREATE, Message, Netlink, attribute
from kone.net.proxier import Desired, ProxySyncError
from kone.net.rule_config import RuleConfig, whole
from kone.net.service_map import Endpoint, ServicePort, ServicePortName

log = logging.getLogger(__name__)

RTM_NEWROUTE, RTM_DELROUTE, RTA_DST, RTA_OIF = 24, 25, 1, 4
NLM_F_REPLACE = 0x100
TABLE_LOCAL, PROTOCOL_STATIC, SCOPE_HOST, TYPE_LOCAL = 255, 4, 254, 2
IP_FREEBIND, IPV6_FREEBIND = 15, 78
CONNECT_TIMEOUTS_S = (0.25, 0.5, 1.0, 2.0)  # kube-proxy's own: four tries, the endpoints in turn
UDP_IDLE_S = 10.0  # kube-proxy's --udp-timeout in this mode was 250 ms; DNS clients wait 5 s
CHUNK = 65536
BURST = 64  # datagrams that are relayed before others have a turn
SETTLE_S = 0.2
LINK_ERRORS = (errno.EPERM, errno.EACCES)


class Door(NamedTuple):
    """Where a relay listens; ip "" is every address of the host."""

    protocol: str  # "TCP", "UDP"
    ip: str
    port: int


@dataclass(slots=True)
class Way:
    """What stands behind a door: whose port, and whether those who come from outside come this way."""

    name: ServicePortName
    port: ServicePort
    kind: str  # "internal", "external", "balancer"


class Choice:
    """Which endpoint a client goes to. Pure but for the given clock and chance."""

    def __init__(self, config: RuleConfig, rng: random.Random) -> None:
        self._inside = [ipaddress.ip_network(cidr) for cidr in config.cluster_cidrs]
        self._node_ips = frozenset(config.node_ips)
        self._rng = rng
        self._known: dict[ServicePortName, dict[str, tuple[Endpoint, float]]] = {}

    def endpoints(self, way: Way, client: str, own: str) -> Sequence[Endpoint]:
        """Where the client may go; `own` is the address at which it came, the same as its own when it is the node."""
        port = way.port
        if way.kind == "internal":
            return port.internal_endpoints
        address = ipaddress.ip_address(client)
        if way.kind == "balancer" and port.source_ranges:
            ranges = [ipaddress.ip_network(text) for text in port.source_ranges]
            if not any(address in network for network in ranges):
                return ()
        is_node = client == own or client in self._node_ips or address.is_loopback
        if is_node or any(address in network for network in self._inside):
            return port.cluster_endpoints
        return port.external_endpoints

    def order(self, way: Way, client: str, own: str, now: float) -> list[Endpoint]:
        """Endpoints in the order to try, the one that the client sticks to first."""
        endpoints = list(self.endpoints(way, client, own))
        self._rng.shuffle(endpoints)
        if way.port.affinity_s:
            endpoint, until = self._known.get(way.name, {}).get(client, (None, 0.0))
            if endpoint in endpoints and now < until:
                endpoints.remove(endpoint)
                endpoints.insert(0, endpoint)
        return endpoints

    def went(self, way: Way, client: str, endpoint: Endpoint, now: float) -> None:
        """The client was led there."""
        if way.port.affinity_s:
            self._known.setdefault(way.name, {})[client] = (endpoint, now + way.port.affinity_s)

    def forget(self, names: Iterable[ServicePortName]) -> None:
        for name in names:
            self._known.pop(name, None)


def doors_of(name: ServicePortName, port: ServicePort, node: Sequence[str] = ("",)) -> dict[Door, Way]:
    """Where a port is served; `node` are the addresses of node ports. One that leads nowhere is not served, so that the
    kernel refuses."""
    if port.protocol not in ("TCP", "UDP"):
        return {}
    doors: dict[Door, Way] = {}
    if port.internal_endpoints:
        doors[Door(port.protocol, port.cluster_ip, port.port)] = Way(name, port, "internal")
    if port.cluster_endpoints or port.external_endpoints:
        outside = Way(name, port, "external")
        doors |= {Door(port.protocol, ip, port.port): outside for ip in port.external_ips}
        doors |= {Door(port.protocol, ip, port.port): Way(name, port, "balancer") for ip in port.load_balancer_ips}
        if port.node_port:
            doors |= {Door(port.protocol, ip, port.node_port): outside for ip in node}
    return doors


class UserspaceProxier:
    """A Proxier of relays."""

    def __init__(self, firewall: Firewall, config: RuleConfig) -> None:
        self._config = config
        self._inet = socket.AF_INET6 if config.family == 6 else socket.AF_INET
        self._choice = Choice(config, random.Random())
        loopback = "::1" if config.family == 6 else "127.0.0.1"
        chosen = [ip for ip in (*config.node_ips, loopback) if config.has_node_ports(ip)]
        self._node = chosen if config.node_port_cidrs else [""]
        self._link = config.names.userspace_link
        self._index = -1  # of the link, as it was made last: one that is gone has no name any more
        self._routes: set[str] = set()
        self._has_routes = True
        self._served: dict[ServicePortName, ServicePort] = {}
        self._relays: dict[Door, TcpRelay | UdpRelay] = {}
        self._lost = asyncio.Event()
        self._tasks = TaskGroup("userspace-proxy")

    async def start(self) -> None:
        """Watch over the routes."""
        lost = self._lost.set
        self._tasks.guard(
            lambda: watch_link(lambda: self._index, lost, lambda: -1, lambda: None), name="userspace-watch"
        )
        self._tasks.guard(self._mend, name="userspace-mend")

    async def sync(self, desired: Desired) -> None:
        changed = {name: port for name, port in desired.items() if self._served.get(name) is not port}
        gone = [name for name in self._served if name not in desired]
        self._choice.forget(gone)
        touched = {name: self._served[name] for name in (*changed, *gone) if name in self._served}
        before = {door for name, port in touched.items() for door in doors_of(name, port, self._node)}
        self._served = dict(desired)
        now: dict[Door, Way] = {}
        for name, port in changed.items():
            now |= doors_of(name, port, self._node)
        self._lead(desired)
        for door in before - now.keys():
            relay = self._relays.get(door)
            if relay is not None and relay.way.name in touched:
                del self._relays[door]
                relay.close()
        refused: dict[Door, OSError] = {}
        for door, way in now.items():
            relay = self._relays.get(door)
            if relay is not None and relay.way.name != way.name and relay.way.name not in touched:
                refused[door] = OSError(errno.EADDRINUSE, f"{relay.way.name} is served there")
                continue
            try:
                self._open(door, way)
            except OSError as error:
                if door.ip and not self._has_routes:
                    continue  # told already
                refused[door] = error
        if refused:
            for door in refused:
                self._served.pop(now[door].name, None)
            first, why = next(iter(refused.items()))
            raise ProxySyncError(f"{len(refused)} ports cannot be listened on, first {first}: {why}")

    async def stop(self) -> None:
        """Relays end with the process that runs them."""
        await self._tasks.cancel()
        for relay in self._relays.values():
            relay.close()
            await relay.end()
        self._relays.clear()
        self._served.clear()

    async def cleanup(self) -> None:
        await self.stop()
        link = DummyLink(self._link, self._config.family)
        try:
            link.delete()
        except OSError as error:
            raise ProxySyncError(str(error)) from error
        finally:
            link.close()
        self._routes.clear()

    def _open(self, door: Door, way: Way) -> None:
        relay = self._relays.get(door)
        if relay is None:
            kind = socket.SOCK_STREAM if door.protocol == "TCP" else socket.SOCK_DGRAM
            listening = socket.socket(self._inet, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                if door.protocol == "TCP":
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if self._inet == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    listening.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
                listening.bind((door.ip, door.port))
                if door.protocol == "TCP":
                    listening.listen(1024)
            except OSError:
                listening.close()
                raise
            make = TcpRelay if door.protocol == "TCP" else UdpRelay
            relay = self._relays[door] = make(listening, way, self._choice)
        relay.lead(way)

    # Addresses

    def _lead(self, desired: Desired) -> None:
        """Make the Services' addresses the host's own."""
        others = {ip for port in desired.values() for ip in (*port.external_ips, *port.load_balancer_ips)}
        wanted = {*self._config.service_cidrs, *(whole(ip) for ip in others if ip not in self._config.node_ips)}
        if wanted == self._routes or not self._has_routes:
            return
        try:
            self._route(wanted, self._routes - wanted)
        except OSError as error:
            if error.errno not in LINK_ERRORS:
                raise ProxySyncError(f"the addresses of Services cannot be had: {error}") from error
            log.warning("only node ports are served: the addresses of Services need root (%s)", error.strerror)
            self._has_routes = False
            return
        self._routes = wanted

    def _route(self, wanted: Iterable[str], gone: Iterable[str]) -> None:
        link = DummyLink(self._link, self._config.family, "bridge")
        netlink = Netlink(NETLINK_ROUTE)
        try:
            link.ensure()
            index = self._index = link.index
            messages = [_local_route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, cidr, index) for cidr in wanted]
            messages += [_local_route(RTM_DELROUTE, 0, cidr, index) for cidr in gone]
            for number in netlink.request(messages):
                if number not in (0, errno.ESRCH, errno.EEXIST):
                    raise OSError(number, os.strerror(number))
        finally:
            netlink.close()
            link.close()

    async def _watch(self) -> None:
        await watch_link(lambda: self._index, self._lost.set, lambda: -1, lambda: None)

    async def _mend(self) -> None:
        while True:
            await self._lost.wait()
            await asyncio.sleep(SETTLE_S)
            self._lost.clear()
            if self._routes and self._has_routes:
                try:
                    self._route(self._routes, ())
                except OSError as error:
                    log.warning("the addresses of Services could not be had back: %s", error)


def _local_route(kind: int, flags: int, cidr: str, index: int) -> Message:
    network = ipaddress.ip_network(cidr)
    inet = socket.AF_INET if network.version == 4 else socket.AF_INET6
    head = (inet, network.prefixlen, 0, 0, TABLE_LOCAL, PROTOCOL_STATIC, SCOPE_HOST, TYPE_LOCAL, 0)
    body = struct.pack("BBBBBBBBI", *head) + attribute(RTA_DST, network.network_address.packed)
    return Message(kind, flags, body + attribute(RTA_OIF, struct.pack("I", index)))


class TcpRelay:
    """One door for TCP. `close` ends listening and leaves connections be; `end` ends them."""

    def __init__(self, listening: socket.socket, way: Way, choice: Choice) -> None:
        self._listening = listening
        self.way = way
        self._choice = choice
        self._tasks = TaskGroup("userspace-tcp")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listening, self._accept)

    def lead(self, way: Way) -> None:
        self.way = way

    def close(self) -> None:
        self._loop.remove_reader(self._listening)
        self._listening.close()

    async def end(self) -> None:
        await self._tasks.cancel()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            client, peer = self._listening.accept()
            client.setblocking(False)
            self._tasks.spawn(self._serve(client, peer[0], self.way), name="userspace-tcp")

    async def _serve(self, client: socket.socket, peer: str, way: Way) -> None:
        with client:
            try:
                server = await self._connect(way, peer, client.getsockname()[0])
                if server is None:
                    return
                with server:
                    async with asyncio.TaskGroup() as both:
                        both.create_task(_pump(client, server))
                        both.create_task(_pump(server, client))
            except* OSError:
                pass  # one side broke off: so does the other

    async def _connect(self, way: Way, peer: str, own: str) -> socket.socket | None:
        """A connection to the first endpoint that answers; a lone one is tried again, as its packets may be lost."""
        endpoints = self._choice.order(way, peer, own, self._loop.time())
        for endpoint, timeout_s in zip(itertools.cycle(endpoints), CONNECT_TIMEOUTS_S, strict=False):
            server = socket.socket(self._listening.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                async with asyncio.timeout(timeout_s):
                    await self._loop.sock_connect(server, (endpoint.ip, endpoint.port))
            except (OSError, TimeoutError):
                server.close()
                continue
            except BaseException:
                server.close()
                raise
            self._choice.went(way, peer, endpoint, self._loop.time())
            return server
        return None


async def _pump(source: socket.socket, target: socket.socket) -> None:
    """All that comes, then the end of it. Raises OSError."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, CHUNK):
        await loop.sock_sendall(target, data)
    target.shutdown(socket.SHUT_WR)


@dataclass(slots=True)
class Flow:
    """One client of a UDP door, and the socket that speaks to its endpoint for it."""

    endpoint: Endpoint
    server: socket.socket
    timer: asyncio.TimerHandle


class UdpRelay:
    """One door for UDP: a socket for each client while it sends."""

    def __init__(self, listening: socket.socket, way: Way, choice: Choice) -> None:
        self._listening = listening
        self.way = way
        self._choice = choice
        self._flows: dict[tuple[str, int], Flow] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listening, self._from_clients)

    def lead(self, way: Way) -> None:
        """Flows to endpoints that are gone are led anew."""
        self.way = way
        left = {*way.port.cluster_endpoints, *way.port.local_endpoints}
        for client, flow in list(self._flows.items()):
            if flow.endpoint not in left:
                self._drop(client)

    def close(self) -> None:
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for client in list(self._flows):
            self._drop(client)

    async def end(self) -> None:
        """Nothing is left after `close`."""

    def _from_clients(self) -> None:
        with contextlib.suppress(OSError):
            for _ in range(BURST):
                data, address = self._listening.recvfrom(CHUNK)
                client = (address[0], address[1])
                flow = self._flows.get(client) or self._begin(client)
                if flow is not None:
                    flow.timer.cancel()
                    flow.timer = self._loop.call_later(UDP_IDLE_S, self._drop, client)
                    with contextlib.suppress(OSError):  # full, or refused: as lost
                        flow.server.send(data)

    def _begin(self, client: tuple[str, int]) -> Flow | None:
        now = self._loop.time()
        for endpoint in self._choice.order(self.way, client[0], self._listening.getsockname()[0], now)[:1]:
            server = socket.socket(self._listening.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                server.connect((endpoint.ip, endpoint.port))
            except OSError:
                server.close()
                return None
            self._choice.went(self.way, client[0], endpoint, now)
            timer = self._loop.call_later(UDP_IDLE_S, self._drop, client)
            flow = self._flows[client] = Flow(endpoint, server, timer)
            self._loop.add_reader(server, self._from_server, client, flow)
            return flow
        return None

    def _from_server(self, client: tuple[str, int], flow: Flow) -> None:
        with contextlib.suppress(OSError):
            for _ in range(BURST):
                self._listening.sendto(flow.server.recv(CHUNK), client)

    def _drop(self, client: tuple[str, int]) -> None:
        if (flow := self._flows.pop(client, None)) is not None:
            flow.timer.cancel()
            self._loop.remove_reader(flow.server)
            flow.server.close()
