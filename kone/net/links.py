"""The door to rtnetlink (pyroute2): the bridge, the pods' links, their addresses and routes.

Every call runs in one thread of its own, so that neither the kernel's lock on links nor pyroute2's coding holds up the
event loop; deletions, which the kernel takes 20 to 40 ms for, run in a second one so that no pod waits for another's
end. pyroute2's asyncio classes cannot be used: uvloop refuses netlink sockets. Nor can its `netns=`: that forks this
whole process. Entering a pod's namespace is done here, by setns(2) in the thread, around the making of one socket.

A pod's end carries its whole address as /32 (/128) and sends everything to the gateway, which is the bridge: traffic
between pods passes the host's IP layer, where replies meet the connection tracking that rewrote the request. So
Services work from pod to pod, and to a pod itself, without br_netfilter.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kone.aio.one_thread import OneThread

log = logging.getLogger(__name__)

CLONE_NEWNET = 0x40000000
IFF_UP = 1
IFA_F_NODAD = 2  # an IPv6 address that is used at once: nobody else can have it
RT_SCOPE_LINK = 253
RT_TABLE_MAIN = 254
RTPROT_STATIC = 4
HAIRPIN = 1
DEFAULT_MTU = 1500
POD_LINK = "eth0"
_libc = ctypes.CDLL(None, use_errno=True)


class LinkError(Exception):
    """The kernel refused a change to links, addresses or routes; the text says which."""


@dataclass(frozen=True, slots=True)
class Veth:
    """The host's end of a pod's link, as the kernel has it."""

    name: str
    index: int
    addresses: Sequence[str]  # the pod's, as the link's alias says; () where it says none


@dataclass(frozen=True, slots=True)
class BridgeSpec:
    """What the bridge shall be. Addresses and routes as CIDR."""

    name: str
    gateways: Sequence[str]  # e.g. 10.244.0.1/24: the pods' way out
    addresses: Sequence[str] = ()  # further ones, e.g. 10.96.0.10/32 for cluster DNS
    routes: Sequence[str] = ()  # ranges that lead here, e.g. 10.96.0.0/16: Services are reached without a default route
    ports: str = ""  # links whose names begin so are the bridge's


class Links:
    """Links of the namespace in which this process runs."""

    def __init__(self) -> None:
        self._thread = OneThread("kone-links")
        self._deletions = OneThread("kone-unlinks")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host: Any = None
        self._home = -1
        self._closed = False

    async def close(self) -> None:
        """Let go of the sockets and end the threads. Idempotent; nothing can be asked afterwards."""
        if self._closed:
            return
        self._closed = True
        await self._thread.call(self._close)
        self._thread.end()
        self._deletions.end()

    async def uplink_mtu(self) -> int:
        """The MTU of the link that the default route leads to; 1500 where there is none."""
        uplink = await self.uplink()
        return uplink[1] if uplink is not None else DEFAULT_MTU

    async def uplink(self) -> tuple[int, int] | None:
        """The link that the default route leads to: its index and MTU."""
        return await self._thread.call(self._uplink)

    async def set_mtu(self, name: str, netns: str, mtu: int) -> None:
        """Give both ends of a pod's link another MTU; nothing where the pod is gone. Raises LinkError."""
        await self._thread.call(lambda: self._set_mtu(name, netns, mtu))

    async def limit(self, name: str, netns: str, ingress: int, egress: int) -> None:
        """Shape what comes to a pod, and what it sends, in bits a second; 0 is as it comes. Raises LinkError."""
        await self._thread.call(lambda: self._limit(name, netns, ingress, egress))

    async def leads_elsewhere(self, bridge: str, cidrs: Sequence[str]) -> list[str]:
        """The host's routes, but for default ones and the bridge's, that share addresses with the ranges: in words."""
        return await self._thread.call(lambda: self._leads_elsewhere(bridge, cidrs))

    async def ensure_bridge(self, spec: BridgeSpec, mtu: int) -> tuple[int, list[str]]:
        """Make the bridge what `spec` says; its index, and what had to be done, in words. Raises LinkError."""
        return await self._thread.call(lambda: self._ensure_bridge(spec, mtu))

    async def veths(self, bridge: str, prefix: str) -> list[Veth]:
        """The pods' links on the bridge; none where there is no bridge."""
        return await self._thread.call(lambda: self._veths(bridge, prefix))

    async def ensure_veth(
        self, bridge: str, name: str, netns: str, ips: Sequence[str], gateways: Sequence[str], mtu: int
    ) -> None:
        """Give the namespace a link to the bridge, its addresses and its ways out.

        Idempotent; a half-made link of the same name is made anew. Raises LinkError.
        """
        await self._thread.call(lambda: self._ensure_veth(bridge, name, netns, ips, gateways, mtu))

    async def delete(self, *names: str) -> None:
        """Delete links; those that are gone already are none to worry about."""
        await self._deletions.call(lambda: _delete(names))

    async def delete_prefixed(self, prefix: str, *names: str) -> list[str]:
        """Delete the links of these names and every one that begins with `prefix`; what was deleted."""
        return await self._thread.call(lambda: self._delete_prefixed(prefix, names))

    # In the thread

    def _open(self) -> Any:
        if self._host is None:
            self._loop = asyncio.SelectorEventLoop()
            self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._host = _iproute(self._loop)
        return self._host

    def _close(self) -> None:
        if self._host is not None:
            self._host.close()
            self._host = None
            os.close(self._home)
            if self._loop is not None:
                # One turn lets closed transports finish.
                self._loop.run_until_complete(asyncio.sleep(0))
                self._loop.close()

    @contextlib.contextmanager
    def _inside(self, netns: int, *, ipv6: bool) -> Iterator[tuple[Any, int | None]]:
        """An IPRoute of another namespace, and its pod link's index. Settings are made while it is opened."""
        _setns(netns)
        try:
            # A redirect would have the pod talk past the host, where Services and policies are.
            _set("all", "accept_redirects", 0)
            _set(POD_LINK, "accept_redirects", 0)
            if ipv6:
                for link in ("all", "lo", POD_LINK):  # Docker turns it off where its own networks have none
                    _set(link, "disable_ipv6", 0, "ipv6")
                    _set(link, "accept_redirects", 0, "ipv6")
                _set(POD_LINK, "accept_ra", 0, "ipv6")
            inside, index = _iproute(self._loop), _index(POD_LINK)
        finally:
            _setns(self._home)
        try:
            yield inside, index
        finally:
            inside.close()

    def _uplink(self) -> tuple[int, int] | None:
        host = self._open()
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in host.get_default_routes(family=family):
                if (index := route.get("oif")) and (links := tuple(host.get_links(index))):
                    return index, int(links[0].get("mtu") or DEFAULT_MTU)
        return None

    def _set_mtu(self, name: str, netns: str, mtu: int) -> None:
        host, index = self._open(), _index(name)
        with _refusal(f"setting the MTU of {name}"):
            if index is not None:
                host.link("set", index=index, mtu=mtu)
                with self._namespace(netns) as (inside, pod_index):
                    inside.link("set", index=pod_index, mtu=mtu)

    def _limit(self, name: str, netns: str, ingress: int, egress: int) -> None:
        """Each direction where it is sent: on the host's end, and on the pod's."""
        host, index = self._open(), _index(name)
        with _refusal(f"limiting the bandwidth of {name}"):
            if ingress:
                host.tc("replace", "tbf", index, **_shaper(ingress))
            if egress:
                with self._namespace(netns) as (inside, pod_index):
                    inside.tc("replace", "tbf", pod_index, **_shaper(egress))

    @contextlib.contextmanager
    def _namespace(self, netns: str) -> Iterator[tuple[Any, int | None]]:
        try:
            namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LinkError(f"opening network namespace {netns}: {error.strerror}") from error
        try:
            with self._inside(namespace, ipv6=False) as inside:
                yield inside
        finally:
            os.close(namespace)

    def _leads_elsewhere(self, bridge: str, cidrs: Sequence[str]) -> list[str]:
        host, own, found = self._open(), _index(bridge), []
        ranges = [ipaddress.ip_network(cidr) for cidr in cidrs]
        for route in host.get_routes(table=RT_TABLE_MAIN):
            index = route.get("oif")
            if not route.get("dst") or index is None or index == own:
                continue
            network = ipaddress.ip_network(f"{route.get('dst')}/{route['dst_len']}", strict=False)
            for mine in ranges:
                if mine.version == network.version and mine.overlaps(network):
                    found.append(f"{mine} and the host's {network} on {socket.if_indextoname(index)}")
        return found

    def _ensure_bridge(self, spec: BridgeSpec, mtu: int) -> tuple[int, list[str]]:
        host = self._open()
        done: list[str] = []
        with _refusal(f"making bridge {spec.name}"):
            index = _index(spec.name)
            if index is None:
                address = _mac(0x0A, next(iter((*spec.gateways, *spec.addresses)), "0.0.0.0"))
                host.link("add", ifname=spec.name, kind="bridge", mtu=mtu, address=address)
                index = _index(spec.name)
                done.append("made it")
            assert index is not None
            (link,) = host.get_links(index)
            if link.get("mtu") != mtu:
                host.link("set", index=index, mtu=mtu)
            if not link["flags"] & IFF_UP:
                host.link("set", index=index, state="up")
                done.append("set it up")
            for port in host.get_links():
                if spec.ports and str(port.get("ifname")).startswith(spec.ports) and port.get("master") != index:
                    host.link("set", index=port["index"], master=index)
                    host.brport("set", index=port["index"], mode=HAIRPIN)
                    done.append(f"took back {port.get('ifname')}")
            if any(":" in cidr for cidr in spec.gateways):
                _set(spec.name, "disable_ipv6", 0, "ipv6")
                _set(spec.name, "accept_ra", 0, "ipv6")
            done += _ensure_addresses(host, index, [*spec.gateways, *spec.addresses])
            done += _ensure_routes(host, index, spec.routes)
        # So that a NodePort or hostPort answers on 127.0.0.1: the address may then be rewritten on its way here.
        _set(spec.name, "route_localnet", 1)
        # A packet from pod to pod goes out where it came in. The kernel would tell the sender of a shorter way, which
        # there is not, and count that against the refusals that it may send. The setting of "all" is or-ed with each
        # link's own, which is 1 unless somebody said otherwise: other links go on as before.
        _set(spec.name, "send_redirects", 0)
        _set("all", "send_redirects", 0)
        return index, done

    def _veths(self, bridge: str, prefix: str) -> list[Veth]:
        host = self._open()
        index = _index(bridge)
        if index is None:
            return []
        found = []
        for link in host.get_links(master=index):
            name = str(link.get("ifname") or "")
            if name.startswith(prefix):
                found.append(Veth(name, link["index"], str(link.get("ifalias") or "").split()))
        return found

    def _ensure_veth(
        self, bridge: str, name: str, netns: str, ips: Sequence[str], gateways: Sequence[str], mtu: int
    ) -> None:
        host, ipv6 = self._open(), any(":" in ip for ip in ips)
        try:
            namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LinkError(f"opening network namespace {netns}: {error.strerror}") from error
        try:
            if os.fstat(namespace).st_ino == os.stat("/proc/thread-self/ns/net").st_ino:
                raise LinkError(f"network namespace {netns} is the host's own: it is no pod's")
            with _refusal(f"wiring {netns} to {bridge}"):
                index = _index(name)
                if index is not None:
                    with self._inside(namespace, ipv6=ipv6) as (inside, pod_index):
                        if _is_wired(inside, pod_index, ips):
                            return
                    with _tolerating(errno.ENODEV):  # its namespace was just going
                        host.link("del", index=index)
                host.link(
                    "add",
                    ifname=name,
                    kind="veth",
                    master=_index(bridge),
                    state="up",
                    mtu=mtu,
                    address=_mac(0x0E, ips[0]),
                    peer={
                        "ifname": POD_LINK,
                        "net_ns_fd": namespace,
                        "address": _mac(0x0A, ips[0]),
                        "mtu": mtu,
                    },
                )
                index = _index(name)
                # So that the kernel itself remembers which addresses the pod has.
                host.link("set", index=index, ifalias=" ".join(ips))
                # Where br_netfilter is loaded the bridge itself sends on what a rule led back to the pod it came from.
                host.brport("set", index=index, mode=HAIRPIN)
                with self._inside(namespace, ipv6=ipv6) as (inside, pod_index):
                    _wire(inside, pod_index, ips, gateways)
        finally:
            os.close(namespace)

    def _delete_prefixed(self, prefix: str, names: Sequence[str]) -> list[str]:
        found = [str(link.get("ifname")) for link in self._open().get_links()]
        doomed = [name for name in found if name in names or (prefix and name.startswith(prefix))]
        _delete(doomed)
        return doomed


def _shaper(bits: int) -> dict[str, Any]:
    """A token bucket: the rate in octets a second, a burst of 10 ms and 32 KiB at the least."""
    rate = min(bits // 8, 2**32 - 1)
    return {"rate": rate, "burst": max(rate // 100, 32 << 10), "latency": "50ms"}


def _iproute(loop: asyncio.AbstractEventLoop | None) -> Any:
    from pyroute2 import IPRoute  # 110 ms and 13 MB: only where there is a network to make

    # The socket is made here, in the namespace of this thread; pyroute2 takes it over by its number.
    link_socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    return IPRoute(fileno=link_socket.detach(), use_event_loop=loop)


def _setns(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise LinkError(f"entering a network namespace: {os.strerror(number)}")


def _set(link: str, setting: str, value: int, family: str = "ipv4") -> None:
    """A link's setting, in the thread's present namespace; where /proc/sys is read-only it stays as it is."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/{family}/conf/{link}/{setting}").write_text(str(value))


def forward(version: int) -> bool:
    """Have the host pass on packets of that family; whether it did not. Raises LinkError."""
    settings = Path("/proc/sys/net")
    switch = settings / ("ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding")
    try:
        if switch.read_text().strip() == "1":
            return False
        # A host that forwards hears no router any more, and loses its default route, unless a link says 2.
        for heard in settings.glob("ipv6/conf/*/accept_ra") if version == 6 else ():
            if heard.read_text().strip() == "1":
                heard.write_text("2")
        switch.write_text("1")
        return True
    except OSError as error:
        raise LinkError(f"{switch} cannot be set to 1 ({error.strerror}): set it before kone starts") from error


def _index(name: str) -> int | None:
    """The link's index in the thread's present namespace (one system call, where netlink takes half a millisecond)."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _ensure_addresses(host: Any, index: int, wanted: Sequence[str]) -> list[str]:
    """Exactly these addresses (IPv6's own link-local ones aside); what had to be done."""
    done = []
    present = {f"{a.get('address')}/{a['prefixlen']}" for a in host.get_addr(index=index)}
    for cidr in wanted:
        if cidr not in present:
            address, _, length = cidr.partition("/")
            host.addr("add", index=index, address=address, prefixlen=int(length), **_at_once(address))
            done.append(f"gave it {cidr}")
    for cidr in present.difference(wanted):
        # Of an earlier run with other ranges: an address of the node's that others believe to be elsewhere.
        if not cidr.startswith("fe80:"):
            address, _, length = cidr.partition("/")
            host.addr("del", index=index, address=address, prefixlen=int(length))
            done.append(f"took {cidr} from it")
    return done


def _ensure_routes(host: Any, index: int, wanted: Sequence[str]) -> list[str]:
    """Exactly these ranges lead to the link, beside what the kernel made of its addresses; what had to be done."""
    done = []
    for family in (socket.AF_INET, socket.AF_INET6):
        version = 4 if family == socket.AF_INET else 6
        mine = [cidr for cidr in wanted if ipaddress.ip_network(cidr).version == version]
        present = {
            f"{route.get('dst')}/{route['dst_len']}"
            for route in host.get_routes(family=family, oif=index, table=RT_TABLE_MAIN)
            if route["proto"] == RTPROT_STATIC
        }
        for cidr in mine:
            if cidr not in present:
                with _tolerating(errno.EEXIST):  # the host leads the range elsewhere: that is its say
                    host.route("add", dst=cidr, oif=index, scope=RT_SCOPE_LINK, family=family)
                    done.append(f"led {cidr} to it")
        for cidr in present.difference(mine):
            host.route("del", dst=cidr, oif=index, scope=RT_SCOPE_LINK, family=family)
            done.append(f"led {cidr} away")
    return done


def _is_wired(inside: Any, index: int | None, ips: Sequence[str]) -> bool:
    """Whether the namespace has its link, up, with these addresses and a way out."""
    if index is None:
        return False
    (link,) = inside.get_links(index)
    present = {str(a.get("address")) for a in inside.get_addr(index=index)}
    ways = [route for route in inside.get_default_routes() if route.get("oif") == index]
    return bool(link["flags"] & IFF_UP) and present.issuperset(ips) and len(ways) >= len(ips)


def _wire(inside: Any, index: int | None, ips: Sequence[str], gateways: Sequence[str]) -> None:
    inside.link("set", index=1, state="up")  # lo
    inside.link("set", index=index, state="up")
    for ip, gateway in zip(ips, gateways, strict=True):
        v6 = ":" in ip
        length = 128 if v6 else 32
        inside.addr("add", index=index, address=ip, prefixlen=length, **_at_once(ip))
        family = socket.AF_INET6 if v6 else socket.AF_INET
        inside.route("add", dst=f"{gateway}/{length}", oif=index, scope=RT_SCOPE_LINK, family=family)
        inside.route("add", dst="::/0" if v6 else "0.0.0.0/0", gateway=gateway, oif=index, family=family)


def _delete(names: Sequence[str]) -> None:
    loop = asyncio.SelectorEventLoop()
    route = _iproute(loop)
    try:
        for name in names:
            with _refusal(f"deleting link {name}"), _tolerating(errno.ENODEV):
                if (index := _index(name)) is not None:
                    route.link("del", index=index)
    finally:
        route.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def _mac(first: int, ip: str) -> str:
    """A locally administered MAC that follows from the address: 0a:58:0a:f4:00:05 for 10.244.0.5.

    The host's end of a pod's link begins with 0e.
    """
    packed = ipaddress.ip_address(ip.partition("/")[0]).packed[-4:]
    return ":".join(f"{octet:02x}" for octet in (first, 0x58, *packed))


def _at_once(address: str) -> dict[str, int]:
    return {"flags": IFA_F_NODAD} if ":" in address else {}


@contextlib.contextmanager
def _refusal(doing: str) -> Iterator[None]:
    from pyroute2 import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise LinkError(f"{doing}: {os.strerror(error.code)}") from error


@contextlib.contextmanager
def _tolerating(code: int) -> Iterator[None]:
    from pyroute2 import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code != code:
            raise
