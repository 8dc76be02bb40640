"""The network's speed, in namespaces of its own: wiring pods, changing one Service among many."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.report import Figure
from kone.net import modes
from kone.net.bridge import BridgeNetwork, NetworkConfig
from kone.net.firewall import Backend, Firewall
from kone.net.modes import Mode
from kone.net.names import Names
from kone.net.rule_config import RuleConfig
from kone.net.service_map import Endpoint, ServicePort, ServicePortName
from tests.net.world import World, run

CONFIG = NetworkConfig(["10.244.0.0/24"], ["10.244.0.0/16"], ["10.96.0.0/16"])
RULES = RuleConfig(Names(), ["10.244.0.0/16"], ["10.96.0.0/16"], pod_cidrs=["10.244.0.0/24"])
CHANGES = 40
FLUSH: Mapping[Mode, str] = {"iptables": "iptables-{backend} -t nat -F", "nftables": "nft flush ruleset"}


def measure() -> Iterator[Figure]:
    yield from uvloop.run(_pods())
    for mode, backend in (("nftables", "nft"), ("iptables", "nft"), ("iptables", "legacy")):
        for count in (1000, 5000):
            yield from uvloop.run(_services(cast(Mode, mode), cast(Backend, backend), count))


async def _pods() -> list[Figure]:
    with World.entered() as world, tempfile.TemporaryDirectory() as folder:
        firewall = Firewall(Names())
        network = BridgeNetwork(Names(), CONFIG, Path(folder), firewall)
        await firewall.start()
        await network.start()
        paths = [world.namespace() for _ in range(31)]

        async def attach(number: int) -> float:
            began = time.perf_counter()
            uid = str(number)
            await network.attach(pod_uid=uid, pod_name=uid, namespace="", netns=paths[number], host_ports=())
            return time.perf_counter() - began

        await attach(0)
        alone = statistics.median([await attach(number) for number in range(1, 21)])
        began = time.perf_counter()
        await asyncio.gather(*(attach(number) for number in range(21, 31)))
        together = time.perf_counter() - began
        await network.stop()
        await firewall.stop()
    return [
        Figure("wire a pod", alone * 1000, "ms", 15, "less"),
        Figure("wire ten pods together, each", together * 100, "ms", 15, "less"),
    ]


async def _services(mode: Mode, backend: Backend, count: int) -> list[Figure]:
    with World.entered():
        firewall = Firewall(Names(), backend=backend)
        proxier = modes.make(mode, firewall, RULES)
        await firewall.start()
        await proxier.start()
        desired = {
            ServicePortName("default", f"web-{number}", "http", "TCP"): _port(number, (0, 1)) for number in range(count)
        }
        began = time.perf_counter()
        await proxier.sync(desired)
        first = time.perf_counter() - began
        took = []
        for change in range(CHANGES):
            number = change * 37 % count
            name = ServicePortName("default", f"web-{number}", "http", "TCP")
            desired = desired | {name: _port(number, (0, 2 + change))}
            began = time.perf_counter()
            await proxier.sync(desired)
            took.append(time.perf_counter() - began)
        before = _rules(mode, backend)
        run(*FLUSH[mode].format(backend=backend).split())
        began = time.perf_counter()
        for _ in range(100):
            if _rules(mode, backend) == before:
                break
            await asyncio.sleep(0.05)
        mended = time.perf_counter() - began
        await proxier.stop()
        await firewall.stop()
    took.sort()
    what = f"{f'iptables-{backend}' if mode == 'iptables' else mode}, {count:,} Services"
    return [
        Figure(f"{what}: first sync", first, "s", 5, "less"),
        Figure(f"{what}: one changed, median", statistics.median(took) * 1000, "ms", 50, "less"),
        Figure(f"{what}: one changed, worst of {CHANGES}", took[-1] * 1000, "ms"),
        Figure(f"{what}: a flush mended", mended, "s", 5, "less"),
    ]


def _rules(mode: Mode, backend: Backend) -> int:
    """How much there is, to see when all of it is there again."""
    listed = (
        f"iptables-{backend}-save -t nat" if mode == "iptables" else f"nft list table {RULES.names.service_table(4)}"
    )
    try:
        return run(*listed.split()).count("\n")
    except subprocess.CalledProcessError:  # there is no such table
        return 0


def _port(number: int, endpoints: tuple[int, ...]) -> ServicePort:
    address = f"10.96.{1 + number // 250}.{1 + number % 250}"
    backends = tuple(Endpoint(f"10.244.{1 + e}.{1 + number % 250}", 8080) for e in endpoints)
    return ServicePort("TCP", address, 80, cluster_endpoints=backends, has_endpoints=True)
