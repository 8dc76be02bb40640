"""What services claim and must not share: cluster IPs and node ports.

What is taken is known from the services themselves: `watch` follows the WatchCache of services, so a restart, a
deletion and a change of type need no bookkeeping of their own. What a write in flight has picked is held apart
until the write is seen (the cache applies it before it is answered) or given back by the undo of its allocation.
"""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from kone.apimachinery.objects import Object

Family = Literal["IPv4", "IPv6"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TRIES = 64


class AllocationError(Exception):
    """There is nothing left, or what was asked for is taken or out of range. The text is upstream's."""


class Change(Protocol):
    """What `watch` is told: an event of the store, or anything with these fields."""

    @property
    def type(self) -> str: ...
    @property
    def obj(self) -> Object: ...
    @property
    def previous(self) -> Object | None: ...


class Pool:
    """Whole numbers from `low` to `high`, handed out at random: the upper band first, so that numbers which
    people pick by hand (they pick low ones) stay free for longest.
    """

    def __init__(self, low: int, high: int, reserved: int, rng: random.Random) -> None:
        self.low = low
        self.high = high
        self._band = low + reserved
        self._rng = rng
        self._used: Counter[int] = Counter()
        self._held: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return self.low <= number <= self.high

    def is_free(self, number: int) -> bool:
        return number not in self._used and number not in self._held

    def take(self, numbers: Iterable[int]) -> None:
        self._used.update(n for n in numbers if n in self)

    def give_back(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if self._used[number] <= 1:
                del self._used[number]
            else:
                self._used[number] -= 1

    def hold(self, number: int) -> None:
        self._held.add(number)

    def release(self, number: int) -> None:
        self._held.discard(number)

    def next(self) -> int | None:
        """A free number, held; None when there is none."""
        for low, high in ((self._band, self.high), (self.low, self._band - 1)):
            if low > high:
                continue
            for _ in range(_TRIES):
                number = self._rng.randint(low, high)
                if self.is_free(number):
                    self._held.add(number)
                    return number
            number = next((n for n in range(low, min(high, low + 2**16) + 1) if self.is_free(n)), -1)
            if number >= 0:
                self._held.add(number)
                return number
        return None


class Allocators:
    """The allocators of one cluster. `service_cidrs`: one network a family, the first is the default family."""

    def __init__(
        self,
        service_cidrs: Sequence[str] = ("10.96.0.0/16",),
        node_ports: tuple[int, int] = (30000, 32767),
        rng: random.Random | None = None,
    ) -> None:
        self._rng = rng or random.Random()
        self.networks: dict[Family, Network] = {}
        self._ips: dict[Family, Pool] = {}
        for text in service_cidrs:
            network = ipaddress.ip_network(text)
            family: Family = "IPv4" if network.version == 4 else "IPv6"
            first, last = int(network.network_address) + 1, int(network.broadcast_address) - (network.version == 4)
            self.networks[family] = network
            self._ips[family] = Pool(first, last, _band(last - first + 1), self._rng)
        low, high = node_ports
        self._ports = Pool(low, high, _band(high - low + 1, most=128), self._rng)

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that services can have, the default one first."""
        return tuple(self.networks)

    @property
    def node_port_range(self) -> tuple[int, int]:
        return self._ports.low, self._ports.high

    def see(self, change: Change) -> None:
        """Follow the services: the handler for the WatchCache's subscribe."""
        if change.previous is not None:
            self._forget(change.previous)
        if change.type != "DELETED":
            self._learn(change.obj)

    def watch(self, services: Iterable[Object], subscribe: Callable[[Callable[[Change], None]], object]) -> None:
        """Learn what is there, then follow: watch([e.obj for e in cache.list()], cache.subscribe)."""
        for service in services:
            self._learn(service)
        subscribe(self.see)

    def allocate_ip(self, family: Family) -> str:
        """A free cluster IP, held. Raises AllocationError when the range is full."""
        number = self._ips[family].next()
        if number is None:
            raise AllocationError("range is full")
        return str(_address(family, number))

    def hold_ip(self, family: Family, address: str) -> None:
        """Hold the address that was asked for. Raises AllocationError when it is taken or out of range."""
        number = int(ipaddress.ip_address(address))
        pool = self._ips[family]
        if number not in pool:
            raise AllocationError("the provided network does not match the current range")
        if not pool.is_free(number):
            raise AllocationError("provided IP is already allocated")
        pool.hold(number)

    def release_ip(self, address: str) -> None:
        """End the hold; what a stored service claims stays taken."""
        ip = ipaddress.ip_address(address)
        family: Family = "IPv4" if ip.version == 4 else "IPv6"
        if family in self._ips:
            self._ips[family].release(int(ip))

    def allocate_port(self) -> int:
        """A free node port, held. Raises AllocationError when there is none."""
        port = self._ports.next()
        if port is None:
            raise AllocationError("range is full")
        return port

    def hold_port(self, port: int) -> None:
        """Hold the port that was asked for. Raises AllocationError when it is taken or out of range."""
        if port not in self._ports:
            low, high = self.node_port_range
            raise AllocationError(f"provided port is not in the valid range. The range of valid ports is {low}-{high}")
        if not self._ports.is_free(port):
            raise AllocationError("provided port is already allocated")
        self._ports.hold(port)

    def release_port(self, port: int) -> None:
        self._ports.release(port)

    def _learn(self, service: Object) -> None:
        for family, number in claimed_ips(service):
            if family in self._ips:
                self._ips[family].take((number,))
                self._ips[family].release(number)
        ports = claimed_ports(service)
        self._ports.take(ports)
        for port in ports:
            self._ports.release(port)

    def _forget(self, service: Object) -> None:
        for family, number in claimed_ips(service):
            if family in self._ips:
                self._ips[family].give_back((number,))
        self._ports.give_back(claimed_ports(service))


def _band(size: int, most: int = 256) -> int:
    """How many low numbers are kept for people: min(max(16, size/16), most), none in a tiny range (KEP-3070)."""
    return min(max(16, size // 16), most) if size > 16 else 0


def _address(family: Family, number: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.IPv4Address(number) if family == "IPv4" else ipaddress.IPv6Address(number)


def claimed_ips(service: Object) -> list[tuple[Family, int]]:
    """The cluster IPs of a stored service; none for headless services and external names."""
    spec = service.get("spec") or {}
    found: list[tuple[Family, int]] = []
    for text in spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else []):
        if text in ("", "None"):
            continue
        address = ipaddress.ip_address(text)
        found.append(("IPv4" if address.version == 4 else "IPv6", int(address)))
    return found


def claimed_ports(service: Object) -> set[int]:
    """The node ports of a stored service, the health check's among them."""
    spec = service.get("spec") or {}
    ports = {int(port["nodePort"]) for port in spec.get("ports") or () if port.get("nodePort")}
    if spec.get("healthCheckNodePort"):
        ports.add(int(spec["healthCheckNodePort"]))
    return ports
