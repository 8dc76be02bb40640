"""The pods' network: one bridge, one link a pod with an address of each family, ways out, and ports that lead in.

It is the kubelet's PodNetwork. Everything is idempotent, since kone may be killed between any two steps: what the file
of addresses, the kernel and the kubelet say is brought together by `start` and `restore`.

Pod to pod, pod to host and pod to world go through the host's IP layer (see links.py). What leaves for anything but
pods is masqueraded; forwarding is accepted before Docker's policy DROP, and by firewalld (firewalld.py).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kone.aio.tasks import TaskGroup
from kone.net.cni_conf import bandwidth_of
from kone.net.conntrack import Address, forget_stale_udp
from kone.net.firewall import ChainId, Firewall, Jump
from kone.net.firewalld import Firewalld
from kone.net.host_ports import (
    HostPortLike,
    HostPortTable,
    PodPorts,
    PortTaken,
    dnat_rules,
    host_ports_of,
    ports_of_family,
    return_rules,
)
from kone.net.ipam import Ipam
from kone.net.link_watch import watch_link
from kone.net.links import DEFAULT_MTU, BridgeSpec, LinkError, Links, forward
from kone.net.names import Names
from kone.net.pod_locks import PodLocks

log = logging.getLogger(__name__)

SETTLE_S = 0.1  # a loss is usually several notices
RETRY_S = 2.0
MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The ranges of this node. One range a family, IPv4 first."""

    pod_cidrs: Sequence[str]  # this node's pods
    cluster_cidrs: Sequence[str]  # all nodes' pods: what goes there keeps its source address
    service_cidrs: Sequence[str] = ()  # led to the bridge, so that Services are reached without a default route
    local_addresses: Sequence[str] = ()  # further addresses of the node's own, on the bridge: cluster DNS
    plain_cidrs: Sequence[str] = ()  # what goes here keeps its source address too
    mtu: int = 0  # 0: as the link of the default route


class Isolation(Protocol):
    """Who judges pods' traffic: told of addresses before a pod's first process, and when they are free again."""

    async def wired(self, pod_uid: str, ips: Sequence[str]) -> None: ...

    def unwired(self, pod_uid: str) -> None: ...


class BridgeNetwork:
    """PodNetwork on a Linux bridge.

    Raises LinkError, FirewallError, AddressesExhausted, PortTaken, CniError (a bandwidth that cannot be), OSError.
    """

    def __init__(self, names: Names, config: NetworkConfig, data_dir: Path, *firewalls: Firewall) -> None:
        """One firewall for each family of the ranges; they are started by their owner."""
        self._names = names
        self._config = config
        self._firewalls = firewalls
        self._firewalld = Firewalld(names, config.pod_cidrs)
        self._ipam = Ipam(data_dir / "net" / "ipam.json", config.pod_cidrs)
        self._links = Links()
        self._ports = HostPortTable(data_dir / "net" / "host-ports.json")
        self._mtu = 0
        self._uplink = 0  # its index
        self._netns: dict[str, str] = {}  # of the pods that were attached since the start
        self._moved = asyncio.Event()
        self._index = 0
        self._lost = asyncio.Event()
        self._tasks = TaskGroup("pod-network")
        self._locks = PodLocks()
        self.isolation: Isolation | None = None

    @property
    def gateways(self) -> list[str]:
        """The bridge's own addresses, as pods see the host."""
        return self._ipam.gateways

    @property
    def addresses(self) -> Mapping[str, Sequence[str]]:
        """Who has which: addresses by pod UID."""
        return self._ipam.pods

    @property
    def _versions(self) -> list[int]:
        return [pool.network.version for pool in self._ipam.pools]

    async def start(self) -> None:
        """Make bridge, routes and rules, and take over the addresses that pods of an earlier run have."""
        for version in self._versions:
            forward(version)
        uplink = await self._links.uplink()
        self._uplink, self._mtu = uplink or (0, DEFAULT_MTU)
        self._mtu = self._config.mtu or self._mtu
        self._index, _ = await self._links.ensure_bridge(self._spec(), self._mtu)
        ranges = [*self._config.cluster_cidrs, *self._config.service_cidrs]
        for overlap in await self._links.leads_elsewhere(self._names.bridge, ranges):
            log.warning("address ranges overlap, one of the two cannot be reached: %s", overlap)
        self._ipam.load()
        self._ports.load()
        known = {self._names.veth(uid) for uid in self._ipam.pods}
        for veth in await self._links.veths(self._names.bridge, self._names.veth_prefix):
            # A pod that only the kernel remembers keeps its address until `restore` says whether it lives.
            if veth.name not in known and veth.addresses and self._ipam.adopt(veth.name, veth.addresses):
                log.warning("pod link %s has %s, which the file did not know", veth.name, " ".join(veth.addresses))
        for firewall in self._firewalls:
            await firewall.apply(self._chains(firewall.family), jumps=self._jumps())
        await self._firewalld.start()
        self._tasks.guard(
            lambda: watch_link(lambda: self._index, self._lost.set, lambda: self._uplink, self._moved.set),
            name="bridge-watch",
        )
        self._tasks.guard(self._mend, name="bridge-mend")
        if not self._config.mtu:
            self._tasks.guard(self._follow_uplink, name="bridge-mtu")

    async def stop(self) -> None:
        """Let go; links, addresses and rules stay for the pods that use them."""
        await self._tasks.cancel()
        await self._firewalld.stop()
        await self._links.close()

    async def _mend(self) -> None:
        """Make the bridge right again when someone else took something from it."""
        while True:
            await self._lost.wait()
            await asyncio.sleep(SETTLE_S)
            self._lost.clear()
            try:
                done = [f"IPv{v} is forwarded again" for v in self._versions if forward(v)]
                self._index, mended = await self._links.ensure_bridge(self._spec(), self._mtu)
            except LinkError as error:
                log.error("the bridge could not be mended, trying again: %s", error)
                self._lost.set()
                await asyncio.sleep(RETRY_S)
                continue
            if done or mended:
                log.warning("mended bridge %s: %s", self._names.bridge, ", ".join([*mended, *done]))

    async def _follow_uplink(self) -> None:
        """Give the bridge and the pods the uplink's MTU when it is another; a host without uplink keeps what was."""
        while True:
            await self._moved.wait()
            await asyncio.sleep(SETTLE_S)
            self._moved.clear()
            uplink = await self._links.uplink()
            if uplink is None:
                continue
            self._uplink, mtu = uplink
            if mtu == self._mtu:
                continue
            log.info("the uplink's MTU is %d now, it was %d: pods follow", mtu, self._mtu)
            self._mtu = mtu
            try:
                await self._links.ensure_bridge(self._spec(), mtu)
            except LinkError as error:
                log.error("the bridge does not follow the uplink's MTU: %s", error)
            for uid, netns in list(self._netns.items()):
                try:
                    await self._links.set_mtu(self._names.veth(uid), netns, mtu)
                except LinkError as error:
                    log.warning("pod %s does not follow the uplink's MTU: %s", uid, error)

    async def restore(self, live_pod_uids: set[str]) -> None:
        """Keep what these pods have; free the addresses and links of all others."""
        live = {self._names.veth(uid): uid for uid in live_pod_uids}
        for owner, addresses in list(self._ipam.pods.items()):
            if owner in live:  # known by its link only: now the pod has a name
                self._ipam.release(owner)
                self._ipam.adopt(live[owner], addresses)
        veths = await self._links.veths(self._names.bridge, self._names.veth_prefix)
        await self._links.delete(*(veth.name for veth in veths if veth.name not in live))
        for uid in self._ports.pods.keys() - live_pod_uids:
            await self._lead(uid, None)
        self._ipam.release(*(uid for uid in self._ipam.pods if uid not in live_pod_uids))

    async def attach(
        self,
        *,
        pod_uid: str,
        pod_name: str,
        namespace: str,
        netns: str,
        host_ports: Sequence[HostPortLike],
        annotations: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Wire the pod's network namespace; its IPs, IPv4 first, the same on every call."""
        async with self._locks.alone(pod_uid):
            known = pod_uid in self._ipam.pods
            ips = self._ipam.allocate(pod_uid)
            name = self._names.veth(pod_uid)
            try:
                wire = self._links.ensure_veth(self._names.bridge, name, netns, ips, self._ipam.gateways, self._mtu)
                await asyncio.gather(wire, *([self.isolation.wired(pod_uid, ips)] if self.isolation else []))
                self._netns[pod_uid] = netns
                limits = bandwidth_of(annotations or {})
                if limits:
                    await self._links.limit(name, netns, limits.get("ingressRate", 0), limits.get("egressRate", 0))
                ports = host_ports_of(host_ports)
                for port, other in self._ports.taken(pod_uid, ports):
                    raise PortTaken(f"host port {port.host_port}/{port.protocol} is in use by pod {other}")
                await self._lead(pod_uid, (tuple(ips), ports) if ports else None)
            except BaseException:
                if not known:
                    await asyncio.shield(self._free(pod_uid))
                raise
            log.debug("wired pod %s/%s uid=%s link=%s ips=%s", namespace, pod_name, pod_uid, name, ips)
            return ips

    async def detach(self, *, pod_uid: str) -> None:
        """Free the pod's link, host ports and address, in this order. Idempotent."""
        async with self._locks.alone(pod_uid):
            await self._free(pod_uid)

    async def _free(self, pod_uid: str) -> None:
        await self._lead(pod_uid, None)
        await self._links.delete(self._names.veth(pod_uid))
        self._netns.pop(pod_uid, None)
        if self.isolation is not None:
            self.isolation.unwired(pod_uid)
        self._ipam.release(pod_uid)

    async def _lead(self, pod_uid: str, ports: PodPorts | None) -> None:
        """Have these ports of the node lead to the pod, and no others."""
        before = self._ports.pods.get(pod_uid)
        if before == ports:
            return
        self._ports.put(pod_uid, ports)
        try:
            for firewall in self._firewalls:
                await firewall.apply(self._port_chains(firewall.family))
        except BaseException:
            self._ports.put(pod_uid, before)
            raise
        await self._forget(before, ports)

    async def _forget(self, before: PodPorts | None, now: PodPorts | None) -> None:
        """UDP flows by these ports are led anew with their next datagram."""
        frontends: dict[Address, frozenset[Address]] = {}
        for pod in (before, now):
            for port in pod[1] if pod else ():
                if port.protocol == "UDP":
                    leads_to = [Address(ip, port.container_port) for ip in pod[0]] if pod and pod is now else []
                    frontends[Address(port.host_ip, port.host_port)] = frozenset(leads_to)
        if frontends:
            try:
                for firewall in self._firewalls:
                    await asyncio.get_running_loop().run_in_executor(None, forget_stale_udp, frontends, firewall.family)
            except OSError as error:
                log.warning("stale UDP flows of host ports could not be looked for: %s", error)

    # What is wanted of the kernel

    def _spec(self) -> BridgeSpec:
        gateways = [f"{pool.gateway}/{pool.network.prefixlen}" for pool in self._ipam.pools]
        own = [f"{a}/{128 if ':' in a else 32}" for a in self._config.local_addresses]
        return BridgeSpec(
            self._names.bridge, gateways, own, list(self._config.service_cidrs), ports=self._names.veth_prefix
        )

    def _chains(self, version: int) -> dict[ChainId, Sequence[str]]:
        bridge = self._names.bridge
        pods = list(_of_version(version, self._config.pod_cidrs))
        kept = [*_of_version(version, self._config.cluster_cidrs), *_of_version(version, self._config.plain_cidrs)]
        # route_localnet lets pods address 127.0.0.1 of the host; only what a rule led there may come in.
        to_loopback = f"-i {bridge} -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
        return {
            ChainId("filter", self._names.chain("FORWARD")): [
                # A packet that connection tracking cannot place would pass with its address unwritten, and reset the
                # connection it belongs to.
                f"-o {bridge} -m conntrack --ctstate INVALID -j DROP",
                f"-i {bridge} -m conntrack --ctstate INVALID -j DROP",
                f"-i {bridge} -j ACCEPT",
                f"-o {bridge} -j ACCEPT",
            ],
            ChainId("filter", self._names.chain("INPUT")): [
                *([to_loopback] if version == 4 else []),
                *(f"-i {bridge} -s {cidr} -j ACCEPT" for cidr in pods),
            ],
            ChainId("nat", self._names.chain("EGRESS")): [
                f"-d {MULTICAST[version]} -j RETURN",
                *(f"-d {cidr} -j RETURN" for cidr in kept),
                *(f"-s {cidr} -j MASQUERADE --random-fully" for cidr in pods),
            ],
            **self._port_chains(version),
        }

    def _port_chains(self, version: int) -> dict[ChainId, Sequence[str]]:
        pods = [ports_of_family(version, pod) for pod in self._ports.pods.values()]
        return {
            ChainId("nat", self._names.chain("HOSTPORTS")): dnat_rules(pods),
            ChainId("nat", self._names.chain("HOSTPORT-RET")): return_rules(pods, self._names.bridge),
        }

    def _jumps(self) -> list[Jump]:
        chain = self._names.chain
        return [
            Jump("filter", "FORWARD", chain("FORWARD"), rank=10),
            Jump("filter", "INPUT", chain("INPUT"), rank=10),
            Jump("nat", "PREROUTING", chain("HOSTPORTS"), rank=10),
            Jump("nat", "OUTPUT", chain("HOSTPORTS"), rank=10),
            Jump("nat", "POSTROUTING", chain("HOSTPORT-RET"), rank=10),
            Jump("nat", "POSTROUTING", chain("EGRESS"), rank=11),
        ]


def _of_version(version: int, cidrs: Sequence[str]) -> Iterator[str]:
    return (cidr for cidr in cidrs if ipaddress.ip_network(cidr).version == version)


async def remove_links(names: Names) -> list[str]:
    """Delete the instance's bridge and its pods' links; what was deleted."""
    links = Links()
    try:
        return await links.delete_prefixed(names.veth_prefix, names.bridge)
    finally:
        await links.close()
