"""The proxiers that the contract is held against, and the stage on which: a host, pods, and a client outside.

A new mode is one more Contestant; what it does not promise stands in `lacks`, with a test asking for it by `needs`.
KONE_TEST_PROXIERS=ipvs,… names those that must be tested here: then what the kernel lacks is a failure, not a skip.
KONE_TEST_SLOWNESS is how many times slower than a host this machine is (an emulated guest): it waits so much longer.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kone.net import modes
from kone.net.bridge import BridgeNetwork, NetworkConfig
from kone.net.firewall import Backend, Firewall
from kone.net.ipvs_table import IpvsTable
from kone.net.names import Names
from kone.net.proxier import Proxier
from kone.net.rule_config import RuleConfig
from kone.net.service_map import Endpoint, ServicePort, ServicePortName
from tests.net.world import HOST_IP, HOST_IP6, OUTSIDE_IP, OUTSIDE_IP6, World, run

NAMES = Names()
WEB = ServicePortName("default", "web", "http", "TCP")
DNS = ServicePortName("default", "dns", "dns", "UDP")
SLOWNESS = float(os.environ.get("KONE_TEST_SLOWNESS", "1"))
REQUIRED = [name for name in os.environ.get("KONE_TEST_PROXIERS", "").split(",") if name]

Harm = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A mode in one variant and family.

    `lacks`: promises that it does not make, of "source address" (servers see the client), "drop" (rather than refuse),
    "affinity across addresses", "affinity ends on time" (rather than when the last connection is forgotten) and
    "takeover" (serving goes on while no process runs). `harms`: what someone else may do to its rules.
    """

    mode: modes.Mode
    family: int = 4
    backend: Backend = "nft"  # of the Firewall beside it
    lacks: frozenset[str] = frozenset()
    harms: tuple[Harm, ...] = ()

    def __str__(self) -> str:
        variant = f"-{self.backend}" if self.mode == "iptables" else ""
        return f"{self.mode}{variant}-v{self.family}"


def _commands(*commands: str) -> Harm:
    def harm() -> None:
        for command in commands:
            run(*command.split())

    return harm


def _iptables_harms(tool: str) -> tuple[Harm, ...]:
    return (
        lambda: _edit_rule(tool),
        _commands(f"{tool} -F", f"{tool} -t nat -F"),
        _commands(f"{tool} -t nat -D PREROUTING -j {NAMES.chain('SERVICES')}"),
    )


def _edit_rule(tool: str) -> None:
    """The Service's rule leads to another port: as many rules as before."""
    rules = run(tool, "-t", "nat", "-S").splitlines()
    rule = next(line for line in rules if "--to-destination" in line)
    chain = rule.split()[1]
    number = [line for line in rules if line.startswith(f"-A {chain} ")].index(rule) + 1
    words = shlex.split(rule.replace(":8080", ":8099"))[2:]
    run(tool, "-t", "nat", "-R", chain, str(number), *words)


def _ipvs_harms(family: int) -> tuple[Harm, ...]:
    def flush() -> None:
        table = IpvsTable()
        rows, _ = table.read(family)
        table.change((server, entry, None) for server, entry in rows.items())
        table.close()

    def edit() -> None:
        table = IpvsTable()
        rows, _ = table.read(family)
        table.change((server, entry, replace(entry, weights={})) for server, entry in rows.items())
        table.close()

    tool = "iptables-nft" if family == 4 else "ip6tables-nft"
    return (
        flush,
        edit,
        _commands(f"ip link del {NAMES.dummy}"),
        _commands(f"ipset flush {NAMES.chain('SERVED')}{family}"),
        _commands(f"{tool} -F", f"{tool} -t nat -F"),
    )


def _nftables_harms(family: int) -> tuple[Harm, ...]:
    table = NAMES.service_table(family)
    return (
        _commands("nft flush ruleset"),
        _commands(f"nft flush map {table} services"),
        _commands(f"nft flush chain {table} prerouting"),
    )


IPVS_LACKS = frozenset({"affinity across addresses", "affinity ends on time"})
USERSPACE_LACKS = frozenset({"source address", "drop", "takeover"})

CONTESTANTS = [
    Contestant("ipvs", 4, "nft", IPVS_LACKS, _ipvs_harms(4)),
    Contestant("ipvs", 6, "nft", IPVS_LACKS, _ipvs_harms(6)),
    Contestant("nftables", 4, "nft", harms=_nftables_harms(4)),
    Contestant("nftables", 6, "nft", harms=_nftables_harms(6)),
    Contestant("iptables", 4, "nft", harms=_iptables_harms("iptables-nft")),
    Contestant("iptables", 6, "nft", harms=_iptables_harms("ip6tables-nft")),
    Contestant("userspace", 4, lacks=USERSPACE_LACKS, harms=(_commands(f"ip link del {NAMES.userspace_link}"),)),
    Contestant("userspace", 6, lacks=USERSPACE_LACKS, harms=(_commands(f"ip link del {NAMES.userspace_link}"),)),
    Contestant("iptables", 4, "legacy", harms=_iptables_harms("iptables-legacy")),
]


@dataclass(frozen=True, slots=True)
class Addresses:
    """One family's addresses on the stage."""

    vip: str
    unknown_vip: str
    host: str
    outside: str
    bridge: str  # the host as its pods see it
    external: str
    balancer: str
    foreign: str  # a range that nobody on the stage is in
    everywhere: str

    def whole(self, address: str) -> str:
        return f"{address}/{128 if ':' in address else 32}"


ADDRESSES = {
    4: Addresses(
        vip="10.96.0.20",
        unknown_vip="10.96.0.99",
        host=HOST_IP,
        outside=OUTSIDE_IP,
        bridge="10.244.0.1",
        external="203.0.113.5",
        balancer="203.0.113.6",
        foreign="198.51.100.0/24",
        everywhere="0.0.0.0",
    ),
    6: Addresses(
        vip="fd00:10:96::20",
        unknown_vip="fd00:10:96::99",
        host=HOST_IP6,
        outside=OUTSIDE_IP6,
        bridge="fd00:10:244::1",
        external="2001:db8:5::5",
        balancer="2001:db8:5::6",
        foreign="2001:db8:9::/64",
        everywhere="::",
    ),
}
CLUSTER_CIDRS = {4: "10.244.0.0/16", 6: "fd00:10:244::/56"}
POD_CIDRS = {4: "10.244.0.0/24", 6: "fd00:10:244::/64"}
SERVICE_CIDRS = {4: "10.96.0.0/16", 6: "fd00:10:96::/112"}


class Stage:
    """A host with a proxier, and pods that serve; `client` is a pod that does not."""

    def __init__(self, world: World, data_dir: Path, contestant: Contestant) -> None:
        self.world = world
        self.contestant = contestant
        self.family = contestant.family
        self.at = ADDRESSES[self.family]
        self.data_dir = data_dir
        if self.family == 6:
            world.add_ipv6()
        self.build()
        self.client = ""
        self.client_ip = ""
        self.pods: dict[str, str] = {}
        self.servers = AsyncExitStack()

    def build(self) -> None:
        """Everything anew, as a new process of kone has it."""
        families = (4,) if self.family == 4 else (4, 6)
        self.firewalls = {f: Firewall(NAMES, family=f, backend=self.contestant.backend) for f in families}
        network = NetworkConfig(
            [POD_CIDRS[f] for f in families],
            [CLUSTER_CIDRS[f] for f in families],
            [SERVICE_CIDRS[f] for f in families],
        )
        self.network = BridgeNetwork(NAMES, network, self.data_dir, *self.firewalls.values())
        self.proxier: Proxier = modes.make(self.contestant.mode, self.firewalls[self.family], self.rules)

    @property
    def rules(self) -> RuleConfig:
        family = self.family
        return RuleConfig(NAMES, [CLUSTER_CIDRS[family]], [SERVICE_CIDRS[family]], [self.at.host], [POD_CIDRS[family]])

    async def instead(self, **rules: object) -> None:
        """Another proxier in the place of this one, with these fields of its rules."""
        await self.proxier.stop()
        config = replace(self.rules, **rules)  # type: ignore[arg-type]
        self.proxier = modes.make(self.contestant.mode, self.firewalls[self.family], config)
        await self.proxier.start()

    async def start(self) -> None:
        for firewall in self.firewalls.values():
            await firewall.start()
        await self.network.start()
        await self.proxier.start()
        self.client, self.client_ip = await self.pod("client")

    async def let_go(self) -> None:
        """As a process that ends: the kernel stays as it is."""
        await self.proxier.stop()
        await self.network.stop()
        for firewall in self.firewalls.values():
            await firewall.stop()

    async def stop(self) -> None:
        await self.servers.aclose()
        await self.let_go()

    def needs(self, promise: str) -> None:
        """Skip the test where the mode does not promise this."""
        if promise in self.contestant.lacks:
            pytest.skip(f"{self.contestant.mode} does not promise: {promise}")

    async def pod(self, name: str) -> tuple[str, str]:
        path = self.world.namespace()
        ips = await self.network.attach(pod_uid=name, pod_name=name, namespace="", netns=path, host_ports=())
        self.pods[name] = path
        return path, next(ip for ip in ips if (":" in ip) == (self.family == 6))

    async def backend_pod(self, name: str, port: int = 8080) -> Endpoint:
        """A pod that answers with its name, by TCP and UDP."""
        path, ip = await self.pod(name)
        where = self.at.everywhere
        await self.servers.enter_async_context(await self.world.serve(path, port, name, address=where))
        transport = await self.world.serve_udp(path, port, name, address=where)
        self.servers.callback(transport.close)
        return Endpoint(ip, port)

    async def ask(self, address: str, port: int, *, path: str | None = None, timeout_s: float = 2) -> str:
        """Who answers a new connection, from the client pod unless another `path` is given."""
        asked = self.client if path is None else path
        return (await self.world.ask(asked, address, port, timeout_s=timeout_s))[0]

    async def peer(self, address: str, port: int, *, path: str | None = None) -> str:
        """As whom the server sees us."""
        return (await self.world.ask(self.client if path is None else path, address, port, timeout_s=2))[1]

    @property
    def inet(self) -> socket.AddressFamily:
        return socket.AF_INET6 if self.family == 6 else socket.AF_INET

    async def answers(self, address: str, port: int, *, path: str | None = None) -> bool:
        """Whether a new connection is answered soon."""
        try:
            return bool(await self.ask(address, port, path=path, timeout_s=0.4 * SLOWNESS))
        except (OSError, TimeoutError):
            return False

    def udp_client(self, path: str) -> socket.socket:
        return self.world.udp_client(path, address=self.at.everywhere)

    def lead_outside_here(self, *addresses: str) -> None:
        """The outside's router knows that these addresses are the host's."""
        outside = self.world.outside.rpartition("/")[2]
        for address in addresses:
            run("ip", "-n", outside, "route", "add", self.at.whole(address), "via", self.at.host)

    def web(self, *endpoints: Endpoint, **more: object) -> ServicePort:
        """The Service WEB's port 80."""
        fields: dict[str, object] = {"cluster_endpoints": endpoints, "has_endpoints": bool(endpoints)} | more
        return ServicePort(protocol="TCP", cluster_ip=self.at.vip, port=80, **fields)  # type: ignore[arg-type]

    def dns(self, *endpoints: Endpoint, **more: object) -> ServicePort:
        """The Service DNS's port 53, at the same address."""
        fields: dict[str, object] = {"cluster_endpoints": endpoints, "has_endpoints": bool(endpoints)} | more
        return ServicePort(protocol="UDP", cluster_ip=self.at.vip, port=53, **fields)  # type: ignore[arg-type]


def require(contestant: Contestant) -> None:
    """Skip where this host cannot have the mode, or fail where it was to be tested."""
    if REQUIRED and contestant.mode not in REQUIRED:
        pytest.skip(f"only {', '.join(REQUIRED)} here")
    if why := modes.KINDS[contestant.mode].why_not():
        if REQUIRED:
            pytest.fail(f"{contestant.mode} was to be tested: {why}")
        pytest.skip(f"{contestant.mode} cannot be had here: {why}")


def rules_text() -> str:
    """All packet filter rules of the host, to look for what should be gone; comments and counters left out."""
    text = ""
    for command in ("iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "nft list ruleset"):
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        text += re.sub(r"^#.*$", "", done.stdout, flags=re.MULTILINE)
    return text
