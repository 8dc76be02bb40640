"""How soon a changed Service is in the kernel, among 1,000 and among 5,000 with two endpoints each, in every mode.

Each in a network namespace of its own, from the informer's event to the kernel's answer, beside what kube-proxy's
iptables mode does for a full sync: `iptables-restore` of every chain. ipvs is in few kernels of machines that run
benchmarks: it is measured in the virtual machine of tests/vm, whose emulated clock makes only ratios worth reading.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvloop

from benchmarks.report import Figure
from kone.aio.clock import SystemClock
from kone.apimachinery.kinds import ENDPOINTSLICES, SERVICES
from kone.apimachinery.objects import Object
from kone.net import modes
from kone.net.firewall import Backend, Firewall
from kone.net.modes import Mode
from kone.net.names import Names
from kone.net.proxier import Desired, Proxier, ServiceProxy
from kone.net.rule_config import RuleConfig
from tests.fakes import FakeClient
from tests.net.objects import endpoint, endpoint_slice, service
from tests.net.world import World, run

RULES = RuleConfig(Names(), ["10.244.0.0/16"], ["10.96.0.0/16"], pod_cidrs=["10.244.0.0/24"])
COUNTS = (1000, 5000)
CHANGES = 100
APART_S = 0.06  # longer than the proxy gathers: each change is alone
IN_VM = "KONE_BENCH_IN_VM"
VM_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Way:
    """A mode in one variant; `flush` is what someone else may do to its rules, `lists` shows how many there are."""

    mode: Mode
    backend: Backend
    flush: str
    lists: str

    def __str__(self) -> str:
        return f"iptables-{self.backend}" if self.mode == "iptables" else self.mode


WAYS = (
    Way("nftables", "nft", "nft flush ruleset", f"nft list table {RULES.names.service_table(4)}"),
    Way("iptables", "nft", "iptables-nft -t nat -F", "iptables-nft-save -t nat"),
    Way("iptables", "legacy", "iptables-legacy -t nat -F", "iptables-legacy-save -t nat"),
    Way("userspace", "nft", "", ""),
)
IPVS = Way("ipvs", "nft", f"ip link del {RULES.names.dummy}", f"ip -o addr show dev {RULES.names.dummy}")


def measure() -> Iterator[Figure]:
    for way in WAYS:
        for count in COUNTS:
            yield from uvloop.run(_services(way, count))
    if not modes.KINDS["ipvs"].why_not():
        yield from measure_ipvs()
        return
    sys.stdout.flush()
    command = [sys.executable, "-m", "tests.vm", "--timeout", str(VM_TIMEOUT_S), "--", sys.executable]
    done = subprocess.run([*command, "-m", "benchmarks", "ipvs"], env={**os.environ, IN_VM: "1"}, check=False)
    if done.returncode:
        print(f"ipvs could not be measured in the virtual machine (exit code {done.returncode})")


def measure_ipvs() -> Iterator[Figure]:
    """ipvs alone, on a kernel that has it."""
    for count in COUNTS:
        yield from uvloop.run(_services(IPVS, count))


class Timed:
    """A Proxier that notes when its syncs end."""

    def __init__(self, proxier: Proxier) -> None:
        self._proxier = proxier
        self.synced = asyncio.Event()
        self.ended = 0.0

    async def start(self) -> None:
        await self._proxier.start()

    async def sync(self, desired: Desired) -> None:
        await self._proxier.sync(desired)
        self.ended = time.perf_counter()
        self.synced.set()

    async def stop(self) -> None:
        await self._proxier.stop()

    async def cleanup(self) -> None:
        await self._proxier.cleanup()


@asynccontextmanager
async def _served(way: Way, client: FakeClient) -> AsyncIterator[Timed]:
    """A service proxy of this mode that serves what the client knows."""
    firewall = Firewall(Names(), backend=way.backend)
    timed = Timed(modes.make(way.mode, firewall, RULES))
    proxy = ServiceProxy(client, {"IPv4": timed}, "n1", SystemClock())
    await firewall.start()
    await proxy.start()
    try:
        await proxy.wait_synced()
        yield timed
    finally:
        await proxy.stop()
        await firewall.stop()


async def _services(way: Way, count: int) -> list[Figure]:
    is_emulated = IN_VM in os.environ
    budget = None if is_emulated or way.mode in ("iptables", "userspace") else 50
    first_budget = None if is_emulated else 5
    with World.entered():
        client = FakeClient(SystemClock())
        for number in range(count):
            client.put(SERVICES, service(f"web-{number}", clusterIP=_address(number)))
            client.put(ENDPOINTSLICES, _slice(number, (0, 1)))
        began = time.perf_counter()
        async with _served(way, client) as timed:
            first = timed.ended - began
            took = [await _change(client, timed, change, count) for change in range(CHANGES)]
            mended = await _flushed(way)
    with World.entered():
        baseline: Backend = way.backend if way.mode == "iptables" else "legacy"
        restored = _full_restore(baseline, count)
    took.sort()
    p99 = took[CHANGES * 99 // 100 - 1]
    name, tool = f"{way}, {count:,} Services", f"iptables-{baseline}-restore of all"
    figures = [
        Figure(f"{name}: first sync", first, "s", first_budget, "less", restored, tool),
        Figure(f"{name}: one changed, median", took[CHANGES // 2] * 1000, "ms", None, "less"),
        Figure(f"{name}: one changed, p99", p99 * 1000, "ms", budget, "less", restored * 1000, tool),
    ]
    return figures + ([Figure(f"{name}: a flush mended", mended, "s", first_budget, "less")] if mended else [])


async def _change(client: FakeClient, timed: Timed, change: int, count: int) -> float:
    """Seconds from a changed EndpointSlice to its Service in the kernel."""
    await asyncio.sleep(APART_S)
    timed.synced.clear()
    began = time.perf_counter()
    await client.update(ENDPOINTSLICES, _slice(change * 37 % count, (0, 2 + change)))
    await timed.synced.wait()
    return timed.ended - began


async def _flushed(way: Way) -> float:
    """Seconds until all of it is there again after someone else took it away; 0 where nobody can."""
    if not way.flush:
        return 0
    before = _lines(way.lists)
    run(*way.flush.split())
    began = time.perf_counter()
    for _ in range(1000):
        if _lines(way.lists) >= before:
            break
        await asyncio.sleep(0.05)
    return time.perf_counter() - began


def _lines(command: str) -> int:
    try:
        return run(*command.split()).count("\n")
    except subprocess.CalledProcessError:  # there is no such table or link
        return 0


def _full_restore(backend: Backend, count: int) -> float:
    """Seconds that `iptables-restore` takes for all rules, a chain a Service and one an endpoint, as kube-proxy's."""
    chains, rules = [":KUBE-SERVICES - [0:0]"], []
    for number in range(count):
        address, service_chain = _address(number), f"KUBE-SVC-{number:016d}"
        chains.append(f":{service_chain} - [0:0]")
        rules.append(f"-A KUBE-SERVICES -d {address}/32 -p tcp -m tcp --dport 80 -j {service_chain}")
        for place, ip in enumerate(_endpoints(number, (0, 1))):
            chain = f"KUBE-SEP-{number:015d}{place}"
            chains.append(f":{chain} - [0:0]")
            chance = " -m statistic --mode random --probability 0.5000000000" if place == 0 else ""
            rules.append(f"-A {service_chain}{chance} -j {chain}")
            rules.append(f"-A {chain} -s {ip}/32 -j MARK --set-xmark 0x4000/0x4000")
            rules.append(f"-A {chain} -p tcp -m tcp -j DNAT --to-destination {ip}:8080")
    text = "\n".join(["*nat", *chains, *rules, "COMMIT", ""])
    began = time.perf_counter()
    subprocess.run([f"iptables-{backend}-restore", "--noflush"], input=text, text=True, check=True)
    return time.perf_counter() - began


def _address(number: int) -> str:
    return f"10.96.{1 + number // 250}.{1 + number % 250}"


def _endpoints(number: int, which: tuple[int, ...]) -> list[str]:
    return [f"10.244.{1 + place}.{1 + number % 250}" for place in which]


def _slice(number: int, which: tuple[int, ...]) -> Object:
    return endpoint_slice(f"web-{number}", *(endpoint(ip) for ip in _endpoints(number, which)))
