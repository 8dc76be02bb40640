"""Cluster DNS: the cluster's own names answered from what the informers know, all others by the host's resolvers, or
those that the ConfigMap kube-system/kube-dns says (config.py).

It listens on the cluster DNS address itself, which the bridge carries, so pods reach it without any packet rule. Where
the host's own name server has port 53 of every address, it takes another port and a rule leads there. What was answered
once is kept as it went over the wire, per question as it came, until an object changes: the next one
costs a dictionary's look-up. Messages are read and written by dnspython.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from kone.aio.clock import Clock, SystemClock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.kinds import CONFIGMAPS, ENDPOINTSLICES, NAMESPACES, SERVICES
from kone.apimachinery.objects import Key, Object, key_of, labels_of, namespace_of
from kone.client.client import EventType, Reader
from kone.net.dns.config import DnsConfig, parse_config
from kone.net.dns.forward import Forwarder, ResolversGone
from kone.net.dns.zone import Answer, Record, Zone
from kone.net.firewall import ChainId, Firewall, Jump
from kone.net.service_map import SERVICE_NAME

log = logging.getLogger(__name__)

PORT = 53
TTL_S = 5  # how long a client may believe an answer; CoreDNS's default for cluster names
UDP_MAX = 1232  # what passes everywhere unfragmented (DNS flag day 2020)
UDP_MAX_PLAIN = 512  # without EDNS (RFC 1035)
TCP_IDLE_S = 10.0
TCP_MAX = 200  # connections
ASKING_MAX = 1000  # questions that wait for resolvers
KEPT_MAX = 10_000
ROTATIONS = 8  # of an answer with several addresses: clients take the first
ALIASES_MAX = 8
IP_FREEBIND = 15

CONFIG_MAP = Key("kube-system", "kube-dns")

BY_SERVICE = "dns.service"
BY_CLUSTER_IP = "dns.cluster-ip"
BY_ENDPOINT = "dns.endpoint"


class DnsServer:
    """Serves DNS on the given addresses, UDP and TCP."""

    def __init__(
        self,
        client: Reader,
        cluster_domain: str,
        addresses: Sequence[str],
        *,
        port: int = PORT,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        clock: Clock | None = None,
        resolver_port: int = PORT,
        firewall: Firewall | None = None,
    ) -> None:
        self._zone = Zone(cluster_domain, addresses)
        self._addresses = addresses
        self._port = port
        self._firewall = firewall
        self._world = _Informed(client)
        self._forwarder = Forwarder(clock or SystemClock(), resolv_conf, addresses, resolver_port, self._address_of)
        self._settings = client.informer(CONFIGMAPS, fields=f"metadata.name={CONFIG_MAP.name}")
        self._kept: dict[tuple[bool, bytes], Callable[[], bytes]] = {}
        self._tasks = TaskGroup("dns")
        self._udp: list[tuple[asyncio.DatagramTransport, _Datagrams]] = []
        self._tcp: list[asyncio.Server] = []
        self._connections: set[asyncio.StreamWriter] = set()
        self._unsubscribe: list[Callable[[], None]] = []

    @property
    def ports(self) -> list[int]:
        """The ports in use, one for each address."""
        return [int(transport.get_extra_info("sockname")[1]) for transport, _ in self._udp]

    async def start(self) -> None:
        """Serve once the first objects are in. Raises OSError where an address is taken and there is no firewall."""
        await self._world.wait_synced()
        await self._settings.wait_synced()
        self._unsubscribe = [*self._world.subscribe(self._kept.clear), self._settings.subscribe(self._configured)]
        loop = asyncio.get_running_loop()
        try:
            for address in self._addresses:
                udp, tcp = self._sockets(address)
                self._udp.append(await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp))
                self._tcp.append(await asyncio.start_server(self._converse, sock=tcp))
            if self._firewall is not None:
                await lead_to(self._firewall, dict(zip(self._addresses, self.ports, strict=True)))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        for transport, protocol in self._udp:
            transport.close()
            await protocol.closed
        for server in self._tcp:
            server.close()
        for writer in list(self._connections):
            writer.close()
        for server in self._tcp:
            await server.wait_closed()
        self._udp.clear()
        self._tcp.clear()
        await self._tasks.cancel()
        await self._forwarder.stop()

    def _sockets(self, address: str) -> tuple[socket.socket, socket.socket]:
        try:
            return _bound_pair(address, self._port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or self._firewall is None:
                raise
        pair = _bound_pair(address, 0)
        log.info("port %d of %s is taken: listening on %d", self._port, address, pair[0].getsockname()[1])
        return pair

    def _configured(self, kind: EventType, config_map: Object, previous: Object | None) -> None:
        """The ConfigMap came, changed or went. What cannot be understood changes nothing."""
        if key_of(config_map) != CONFIG_MAP:
            return
        try:
            config = DnsConfig() if kind == "DELETED" else parse_config(config_map.get("data") or {})
        except ValueError as error:
            log.warning("ConfigMap %s is not understood, DNS goes on as it was: %s", CONFIG_MAP, error)
            return
        log.info("ConfigMap %s: %d stub domains, %d upstreams", CONFIG_MAP, len(config.stubs), len(config.upstreams))
        self._forwarder.configure(config)

    async def _address_of(self, name: str) -> str:
        """An address of a name server that is given by its name. Raises OSError."""
        for kind in ("A", "AAAA"):
            reply = dns.message.from_wire(await self.answer(dns.message.make_query(name, kind).to_wire()))
            for rrset in reply.answer:
                if dns.rdatatype.to_text(rrset.rdtype) == kind:
                    return str(rrset[0])
        raise OSError(f"{name} has no address")

    # Answering

    def answer_now(self, query: bytes, *, tcp: bool = False) -> bytes | None:
        """The answer, where it is known or costs no waiting; None: `answer` has to be awaited. b"" is no answer."""
        if (kept := self._kept.get((tcp, query[2:]))) is not None:
            return query[:2] + kept()
        if (remembered := self._forwarder.remembered(query)) is not None and not (tcp and remembered[2] & 0x02):
            return remembered
        if len(query) < 12 or query[2] & 0x80:
            return b""  # no header, or a response
        if query[2] & 0x78:
            return _curt(query, dns.rcode.NOTIMP)  # an operation other than a query
        try:
            message = dns.message.from_wire(query)
        except dns.exception.DNSException:
            return _curt(query, dns.rcode.FORMERR)
        if (refusal := _refusal(message)) is not None:
            return refusal
        question = message.question[0]
        found = self._look_up(_labels(question.name), dns.rdatatype.to_text(question.rdtype))
        if found is None or found.alias:
            return None
        return self._keep(query, message, found, tcp)

    async def answer(self, query: bytes, *, tcp: bool = False) -> bytes:
        """The answer, with the help of resolvers where it is not the cluster's own."""
        if (answer := self.answer_now(query, tcp=tcp)) is not None:
            return answer
        message = dns.message.from_wire(query)
        question = message.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        found = self._look_up(_labels(question.name), kind)
        try:
            if found is None:
                return await self._forwarder.ask(query, tcp=tcp)
            return await self._follow(message, found, kind, tcp)
        except ResolversGone as error:
            log.debug("no answer for %s %s: %s", question.name, kind, error)
            return _plain(message, dns.rcode.SERVFAIL)

    def _look_up(self, name: Sequence[str], kind: str) -> Answer | None:
        """What the cluster knows; None where the name is not its own."""
        if self._zone.holds(name):
            return self._zone.resolve(name, kind, self._world)
        if name[-1:] == ("arpa",):
            return self._zone.reverse(name, kind, self._world)
        return None

    async def _follow(self, message: dns.message.Message, found: Answer, kind: str, tcp: bool) -> bytes:
        """A chain of aliases to its end, inside the cluster and out of it."""
        records = list(found.records)
        beyond: list[dns.rrset.RRset] = []
        rcode = dns.rcode.NOERROR
        for _ in range(ALIASES_MAX):
            if not found.alias:
                break
            target = dns.name.from_text(found.alias)
            inside = self._look_up(_labels(target), kind)
            if inside is None:
                request = dns.message.make_query(target, kind, use_edns=True, payload=UDP_MAX)
                reply = dns.message.from_wire(await self._forwarder.ask(request.to_wire(), tcp=tcp))
                beyond, rcode = list(reply.answer), reply.rcode()
                break
            records += inside.records
            rcode = dns.rcode.NOERROR if inside.exists else dns.rcode.NXDOMAIN
            found = inside
        response = _response(message)
        response.set_rcode(rcode)
        response.answer = [*_rrsets(records, message.question[0].name), *beyond]
        return _wire(response, message, tcp)

    def _keep(self, query: bytes, message: dns.message.Message, found: Answer, tcp: bool) -> bytes:
        response = _response(message)
        response.set_rcode(dns.rcode.NOERROR if found.exists else dns.rcode.NXDOMAIN)
        response.additional = _rrsets(found.additional)
        if not found.records:
            response.authority = _rrsets([self._zone.soa])
        turns = min(len(found.records), ROTATIONS) or 1
        wires = []
        for turn in range(turns):
            turned = [*found.records[turn:], *found.records[:turn]]
            response.answer = _rrsets(turned, message.question[0].name)
            wires.append(_wire(response, message, tcp)[2:])
        if len(self._kept) >= KEPT_MAX:
            self._kept.clear()
        self._kept[tcp, query[2:]] = (lambda: wires[0]) if turns == 1 else itertools.cycle(wires).__next__
        return query[:2] + wires[-1]

    # Serving

    def received(self, query: bytes, peer: tuple[str, int], transport: asyncio.DatagramTransport) -> None:
        """A datagram came."""
        answer = self.answer_now(query)
        if answer is None:
            if len(self._tasks) < ASKING_MAX:
                self._tasks.spawn(self._answer_later(query, peer, transport), name="dns-question")
        elif answer:
            transport.sendto(answer, peer)

    async def _answer_later(self, query: bytes, peer: tuple[str, int], transport: asyncio.DatagramTransport) -> None:
        answer = await self.answer(query)
        if answer and not transport.is_closing():
            transport.sendto(answer, peer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Questions over one TCP connection, each with its length before it (RFC 7766)."""
        if len(self._connections) >= TCP_MAX:
            writer.close()
            return
        self._connections.add(writer)
        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_S):
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    query = await reader.readexactly(length)
                if not (answer := await self.answer(query, tcp=True)):
                    return
                writer.write(struct.pack(">H", len(answer)) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            return  # the client has what it wanted, or went away
        finally:
            self._connections.discard(writer)
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    """The server's end of one UDP socket."""

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.received(data, addr, self._transport)


class _Informed:
    """The zone's World, from informers."""

    def __init__(self, client: Reader) -> None:
        self._services = client.informer(SERVICES)
        self._slices = client.informer(ENDPOINTSLICES)
        self._namespaces = client.informer(NAMESPACES)
        self._services.add_index(BY_CLUSTER_IP, _cluster_ips)
        self._slices.add_index(BY_SERVICE, _service_keys)
        self._slices.add_index(BY_ENDPOINT, _endpoint_ips)

    async def wait_synced(self) -> None:
        for informer in (self._services, self._slices, self._namespaces):
            await informer.wait_synced()

    def subscribe(self, changed: Callable[[], None]) -> list[Callable[[], None]]:
        return [
            informer.subscribe(lambda kind, obj, previous: changed())
            for informer in (self._services, self._slices, self._namespaces)
        ]

    def service(self, namespace: str, name: str) -> Object | None:
        return self._services.get(namespace, name)

    def slices(self, namespace: str, service: str) -> Iterable[Object]:
        return self._slices.by_index(BY_SERVICE, str(Key(namespace, service)))

    def has_namespace(self, name: str) -> bool:
        return self._namespaces.get("", name) is not None

    def services_at(self, ip: str) -> Iterable[Object]:
        return self._services.by_index(BY_CLUSTER_IP, ip)

    def slices_at(self, ip: str) -> Iterable[Object]:
        return self._slices.by_index(BY_ENDPOINT, ip)


def _cluster_ips(service: Object) -> list[str]:
    spec = service.get("spec") or {}
    return [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip and ip != "None"]


def _service_keys(endpoint_slice: Object) -> list[str]:
    name = labels_of(endpoint_slice).get(SERVICE_NAME)
    return [str(Key(namespace_of(endpoint_slice), name))] if name else []


def _endpoint_ips(endpoint_slice: Object) -> list[str]:
    entries = endpoint_slice.get("endpoints") or ()
    return list({entry["addresses"][0] for entry in entries if entry.get("addresses")})


async def lead_to(firewall: Firewall, ports: Mapping[str, int]) -> None:
    """Lead port 53 of these addresses to the ports in use, where those are others. Raises FirewallError."""
    chain = ChainId("nat", firewall.names.chain("DNS"))
    rules = [
        f"-d {address}/{128 if ':' in address else 32} -p {protocol} -m {protocol} --dport {PORT} "
        f"-j DNAT --to-destination {f'[{address}]' if ':' in address else address}:{port}"
        for address, port in ports.items()
        if port != PORT
        for protocol in ("udp", "tcp")
    ]
    if rules:
        jumps = [Jump("nat", builtin, chain.chain, rank=1) for builtin in ("PREROUTING", "OUTPUT")]
        await firewall.apply({chain: rules}, jumps=jumps)
    elif firewall.knows(chain):  # an earlier run had to
        await firewall.cleanup(lambda other: other == chain)


def _bound_pair(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket on the same port; port 0 is any that is free for both."""
    for attempt in range(10):
        udp = _bound(socket.SOCK_DGRAM, address, port)
        try:
            return udp, _bound(socket.SOCK_STREAM, address, udp.getsockname()[1])
        except OSError:
            udp.close()
            if port or attempt == 9:
                raise
    raise AssertionError("the loop returns or raises")


def _bound(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if kind == socket.SOCK_STREAM else 0)
        bound.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)  # the bridge may yet have to be made, or be made anew
        bound.bind((address, port))
    except OSError:
        bound.close()
        raise
    return bound


def _labels(name: dns.name.Name) -> tuple[str, ...]:
    """The labels in lower case, without the root's."""
    return tuple(label.decode("ascii", "backslashreplace").lower() for label in name.labels if label)


def _rrsets(records: Iterable[Record], asked: dns.name.Name | None = None) -> list[dns.rrset.RRset]:
    """Records by owner and type; where the owner is what was asked for, in the letters in which it was."""
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        groups.setdefault((record.owner, record.type), []).append(record.data)
    sets = []
    for (owner, kind), values in groups.items():
        name = dns.name.from_text(owner)
        rdtype = dns.rdatatype.from_text(kind)
        rdatas = [dns.rdata.from_text(dns.rdataclass.IN, rdtype, value) for value in values]
        sets.append(dns.rrset.from_rdata_list(asked if asked is not None and asked == name else name, TTL_S, rdatas))
    return sets


def _response(message: dns.message.Message) -> dns.message.Message:
    response = dns.message.make_response(message, recursion_available=True, our_payload=UDP_MAX)
    response.flags |= dns.flags.AA
    return response


def _wire(response: dns.message.Message, message: dns.message.Message, tcp: bool) -> bytes:
    """The response, cut to what the client takes (with the flag that says so) if it came by UDP."""
    if tcp:
        return response.to_wire(max_size=65535, want_shuffle=False)
    room = min(max(message.payload, UDP_MAX_PLAIN), UDP_MAX) if message.edns >= 0 else UDP_MAX_PLAIN
    return response.to_wire(max_size=room, prefer_truncation=True, want_shuffle=False)


def _plain(message: dns.message.Message, rcode: dns.rcode.Rcode) -> bytes:
    response = dns.message.make_response(message, recursion_available=True, our_payload=UDP_MAX)
    response.set_rcode(rcode)
    return response.to_wire()


def _refusal(message: dns.message.Message) -> bytes | None:
    """The answer to what is no single question in class IN."""
    if len(message.question) != 1:
        return _plain(message, dns.rcode.FORMERR)
    if message.question[0].rdclass != dns.rdataclass.IN:
        return _plain(message, dns.rcode.REFUSED)
    return None


def _curt(query: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """A header that says no, for a message that is not worth reading."""
    return query[:2] + bytes([0x80 | query[2] & 0x79, 0x80 | rcode]) + bytes(8)
