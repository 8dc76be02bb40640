"""Which pod has which address: a table in memory with a file behind it, so that kill -9 neither leaks nor doubles one.

The file is replaced as a whole on every change and read once at start. It need not outlive a power cut: no pod does
(its network namespace is gone), so there is no fsync. If it cannot be read the table starts empty, and the bridge
fills in what the kernel still has (`adopt`).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressesExhausted(Exception):
    """Every address of the range is in use."""


class Pool:
    """The addresses of one range: the first is the gateway's, the rest the pods', handed out in a circle.

    An address that was just freed is thus the last to be used again, when stale connections have forgotten it.
    """

    def __init__(self, cidr: str) -> None:
        self.network: IPNetwork = ipaddress.ip_network(cidr)
        # Network address, gateway and (in IPv4) broadcast are no pod's.
        self._first = 2
        self._count = self.network.num_addresses - (3 if self.network.version == 4 else 2)
        if self._count < 1:
            raise ValueError(f"{cidr} has no room for pods")
        self._next = 0
        self.used: dict[str, str] = {}

    @property
    def gateway(self) -> str:
        return str(self.network[1])

    def allocate(self, owner: str) -> str:
        """Raises AddressesExhausted."""
        if len(self.used) >= self._count:
            raise AddressesExhausted(f"no free address in {self.network}: {len(self.used)} are in use")
        while True:
            address = str(self.network[self._first + self._next])
            self._next = (self._next + 1) % self._count
            if address not in self.used:
                self.used[address] = owner
                return address

    def free(self, owner: str) -> None:
        """Take back what the owner has."""
        self.used = {address: other for address, other in self.used.items() if other != owner}

    def claim(self, address: str, owner: str) -> bool:
        """Take this very address; False where it is not a pod's address here, or somebody else's."""
        try:
            number = int(ipaddress.ip_address(address)) - int(self.network.network_address) - self._first
        except ValueError:
            return False
        if not 0 <= number < self._count or self.used.get(address, owner) != owner:
            return False
        self.used[address] = owner
        return True

    def continue_after(self, address: str) -> None:
        """Hand out what follows `address` next."""
        number = int(ipaddress.ip_address(address)) - int(self.network.network_address) - self._first
        if 0 <= number < self._count:
            self._next = (number + 1) % self._count


class Ipam:
    """Addresses by pod UID, one of each pool, IPv4 first."""

    def __init__(self, path: Path, cidrs: Sequence[str]) -> None:
        self._path = path
        self.pools = sorted((Pool(cidr) for cidr in cidrs), key=lambda pool: pool.network.version)
        self._pods: dict[str, list[str]] = {}
        self._last: dict[str, str] = {}

    @property
    def pods(self) -> Mapping[str, Sequence[str]]:
        return self._pods

    @property
    def gateways(self) -> list[str]:
        return [pool.gateway for pool in self.pools]

    def load(self) -> None:
        """Read the file. Addresses outside of today's ranges are dropped: the range was changed by flag."""
        try:
            content = json.loads(self._path.read_text())
            pods = {str(uid): [str(a) for a in addresses] for uid, addresses in content["pods"].items()}
            last = [str(address) for address in content.get("last", [])]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("pod addresses in %s cannot be read (%s): taking what the kernel has", self._path, error)
            return
        for uid, addresses in pods.items():
            self.adopt(uid, addresses)
        for pool, address in zip(self.pools, last, strict=False):
            pool.continue_after(address)
            self._last[str(pool.network)] = address

    def adopt(self, pod_uid: str, addresses: Iterable[str]) -> bool:
        """Note what a pod is known to have; True where that is one of today's addresses.

        Where a family was added since then, the pod is given one of that family too.
        """
        if pod_uid in self._pods:
            return True
        offered = list(addresses)
        taken: list[tuple[Pool, str]] = []
        for pool in self.pools:
            if (address := next((a for a in offered if pool.claim(a, pod_uid)), None)) is not None:
                taken.append((pool, address))
        if not taken:
            return False
        claimed = dict(taken)
        try:
            self._pods[pod_uid] = [claimed.get(pool) or pool.allocate(pod_uid) for pool in self.pools]
        except AddressesExhausted:
            for pool in self.pools:
                pool.free(pod_uid)
            return False
        return True

    def allocate(self, pod_uid: str) -> list[str]:
        """The pod's addresses, the same on every call. Raises AddressesExhausted, OSError."""
        if (known := self._pods.get(pod_uid)) is not None:
            return list(known)
        taken: list[tuple[Pool, str]] = []
        try:
            for pool in self.pools:
                taken.append((pool, pool.allocate(pod_uid)))
            self._pods[pod_uid] = [address for _, address in taken]
            self._last |= {str(pool.network): address for pool, address in taken}
            self._save()
        except BaseException:
            self._pods.pop(pod_uid, None)
            for pool, address in taken:
                del pool.used[address]
            raise
        return list(self._pods[pod_uid])

    def release(self, *pod_uids: str) -> None:
        """Free what these pods have. Idempotent."""
        freed = [self._pods.pop(uid) for uid in pod_uids if uid in self._pods]
        if not freed:
            return
        for addresses in freed:
            for pool, address in zip(self.pools, addresses, strict=True):
                pool.used.pop(address, None)
        self._save()

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        last = [self._last[str(pool.network)] for pool in self.pools if str(pool.network) in self._last]
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"last": last, "pods": self._pods}))
        os.replace(temporary, self._path)
