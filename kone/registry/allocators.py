"""What services claim and must not share: cluster IPs and node ports.

Cluster IPs come from the ranges of the ServiceCIDRs. What is taken is known from what is stored: `watch` follows the
WatchCaches of services, IPAddresses and ServiceCIDRs, so a restart, a deletion and a change of type need no bookkeeping
of their own. What a write in flight has picked is held apart until the write is seen (the cache applies it before it is
answered) or given back by the undo of its allocation. Rules and texts: k8s.io/kubernetes,
registry/core/service/ipallocator and portallocator.
"""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from kone.apimachinery.ip_addresses import Family, Network, cluster_ips, family_of, networks_of
from kone.apimachinery.objects import Object, dig, name_of
from kone.cache.watch_cache import Caches, WatchCache

DEFAULT_RANGE = "kubernetes"
"""The ServiceCIDR of the flags."""
LONGEST_MASK = {"IPv4": 0, "IPv6": 64}  # an IPv6 range that is wider than a /64 gives no addresses, as upstream


class AllocationError(Exception):
    """There is nothing left, or what was asked for is taken or out of range. The text is upstream's."""


class Claims:
    """Numbers that cannot be given: what is stored claims them, maybe more than once, or a write in flight holds
    them."""

    def __init__(self) -> None:
        self._stored: Counter[int] = Counter()
        self._held: set[int] = set()

    def is_free(self, number: int) -> bool:
        return number not in self._stored and number not in self._held

    def take(self, numbers: Iterable[int]) -> None:
        self._stored.update(numbers)

    def give_back(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if self._stored[number] <= 1:
                del self._stored[number]
            else:
                self._stored[number] -= 1

    def hold(self, number: int) -> None:
        self._held.add(number)

    def release(self, number: int) -> None:
        self._held.discard(number)


@dataclass(frozen=True, slots=True)
class Range:
    """Whole numbers from `low` to `high`; the first `band` of them are given last, so that numbers which people pick
    by hand (they pick low ones) stay free for longest."""

    low: int
    high: int
    band: int

    def __contains__(self, number: int) -> bool:
        return self.low <= number <= self.high

    def find(self, claims: Claims, rng: random.Random) -> int | None:
        """The first free number from a random one on; None when there is none."""
        for low, high in ((self.low + self.band, self.high), (self.low, self.low + self.band - 1)):
            if low > high:
                continue
            start = rng.randint(low, high)
            for number in chain(range(start, high + 1), range(low, start)):
                if claims.is_free(number):
                    return number
        return None


@dataclass(frozen=True, slots=True)
class _Networks:
    """The ranges of one ServiceCIDR; what is not ready gives no addresses."""

    ranges: Mapping[Family, Range]
    ready: bool = True


class Allocators:
    """The allocators of one cluster. `service_cidrs`: one network a family, the first is the default family. They are
    what the ServiceCIDR "kubernetes" says until that is seen."""

    def __init__(
        self,
        service_cidrs: Sequence[str] = ("10.96.0.0/16",),
        node_ports: tuple[int, int] = (30000, 32767),
        rng: random.Random | None = None,
    ) -> None:
        self._rng = rng or random.Random()
        self.families: tuple[Family, ...] = tuple(family_of(cidr) for cidr in service_cidrs)
        """The families that services can have, the default one first."""
        self._networks: dict[str, _Networks] = {
            DEFAULT_RANGE: _Networks(_ranges(map(ipaddress.ip_network, service_cidrs)))
        }
        self._ips: dict[Family, Claims] = {"IPv4": Claims(), "IPv6": Claims()}
        low, high = node_ports
        self._port_range = Range(low, high, _band(high - low + 1, most=128))
        self._ports = Claims()

    @property
    def node_port_range(self) -> tuple[int, int]:
        return self._port_range.low, self._port_range.high

    def watch(self, caches: Caches) -> None:
        """Learn what is there, then follow it."""
        _follow(caches.of("", "services"), self.see_service)
        _follow(caches.of("networking.k8s.io", "ipaddresses"), self.see_address)
        _follow(caches.of("networking.k8s.io", "servicecidrs"), self.see_networks)

    def see_service(self, obj: Object | None, previous: Object | None) -> None:
        """A service is now `obj` (None: gone) and was `previous` (None: it is new)."""
        if previous is not None:
            for family, number in claimed_ips(previous):
                self._ips[family].give_back((number,))
            self._ports.give_back(claimed_ports(previous))
        if obj is not None:
            for family, number in claimed_ips(obj):
                self._ips[family].take((number,))
                self._ips[family].release(number)
            ports = claimed_ports(obj)
            self._ports.take(ports)
            for port in ports:
                self._ports.release(port)

    def see_address(self, obj: Object | None, previous: Object | None) -> None:
        """As `see_service`, of an IPAddress: whoever made it, its address is taken."""
        if previous is not None:
            self._ips[family_of(name_of(previous))].give_back((int(ipaddress.ip_address(name_of(previous))),))
        if obj is not None:
            self._ips[family_of(name_of(obj))].take((int(ipaddress.ip_address(name_of(obj))),))

    def see_networks(self, obj: Object | None, previous: Object | None) -> None:
        """As `see_service`, of a ServiceCIDR."""
        if obj is None:
            if previous is not None:
                self._networks.pop(name_of(previous), None)
            return
        ready = not any(
            condition.get("type") == "Ready" and condition.get("status") != "True"
            for condition in dig(obj, "status", "conditions", default=())
        )
        gone = bool(obj["metadata"].get("deletionTimestamp"))
        self._networks[name_of(obj)] = _Networks(_ranges(networks_of(obj)), ready and not gone)

    def allocate_ip(self, family: Family) -> str:
        """A free cluster IP of any range, held. Raises AllocationError when all are full."""
        for one in self._ready(family):
            number = one.find(self._ips[family], self._rng)
            if number is not None:
                self._ips[family].hold(number)
                return str(_address(family, number))
        raise AllocationError("range is full")

    def hold_ip(self, family: Family, address: str) -> None:
        """Hold the address that was asked for. Raises AllocationError when it is taken or out of range."""
        number = int(ipaddress.ip_address(address))
        if not any(number in one for one in self._ready(family)):
            raise AllocationError("the provided network does not match the current range")
        if not self._ips[family].is_free(number):
            raise AllocationError("provided IP is already allocated")
        self._ips[family].hold(number)

    def release_ip(self, address: str) -> None:
        """End the hold; what is stored stays taken."""
        self._ips[family_of(address)].release(int(ipaddress.ip_address(address)))

    def allocate_port(self) -> int:
        """A free node port, held. Raises AllocationError when there is none."""
        port = self._port_range.find(self._ports, self._rng)
        if port is None:
            raise AllocationError("range is full")
        self._ports.hold(port)
        return port

    def hold_port(self, port: int) -> None:
        """Hold the port that was asked for. Raises AllocationError when it is taken or out of range."""
        if port not in self._port_range:
            low, high = self.node_port_range
            raise AllocationError(f"provided port is not in the valid range. The range of valid ports is {low}-{high}")
        if not self._ports.is_free(port):
            raise AllocationError("provided port is already allocated")
        self._ports.hold(port)

    def release_port(self, port: int) -> None:
        self._ports.release(port)

    def _ready(self, family: Family) -> list[Range]:
        """The ranges of a family that addresses come from, the default one first."""
        names = sorted(self._networks, key=lambda name: (name != DEFAULT_RANGE, name))
        found = (self._networks[name] for name in names)
        return [one.ranges[family] for one in found if one.ready and family in one.ranges]


def _follow(cache: WatchCache, see: Callable[[Object | None, Object | None], None]) -> None:
    for entry in cache.list():
        see(entry.obj, None)
    cache.subscribe(lambda event: see(None if event.type == "DELETED" else event.obj, event.previous))


def _ranges(networks: Iterable[Network]) -> dict[Family, Range]:
    """What can be given of each network: not its own address and, of IPv4, not its broadcast address."""
    found: dict[Family, Range] = {}
    for network in networks:
        family = family_of(str(network))
        first, last = int(network.network_address) + 1, int(network.broadcast_address) - (network.version == 4)
        if network.prefixlen >= LONGEST_MASK[family]:
            found[family] = Range(first, last, _band(last - first + 1))
    return found


def _band(size: int, most: int = 256) -> int:
    """How many low numbers are kept for people: min(max(16, size/16), most), none in a tiny range (KEP-3070)."""
    return min(max(16, size // 16), most) if size > 16 else 0


def _address(family: Family, number: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.IPv4Address(number) if family == "IPv4" else ipaddress.IPv6Address(number)


def claimed_ips(service: Object) -> list[tuple[Family, int]]:
    """The cluster IPs of a stored service; none for headless services and external names."""
    addresses = map(ipaddress.ip_address, cluster_ips(service))
    return [("IPv4" if address.version == 4 else "IPv6", int(address)) for address in addresses]


def claimed_ports(service: Object) -> set[int]:
    """The node ports of a stored service, the health check's among them."""
    spec = service.get("spec") or {}
    ports = {int(port["nodePort"]) for port in spec.get("ports") or () if port.get("nodePort")}
    if spec.get("healthCheckNodePort"):
        ports.add(int(spec["healthCheckNodePort"]))
    return ports
