"""The network's speed, in namespaces of its own: wiring pods here, Services in services.py."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from benchmarks import services
from benchmarks.report import Figure
from kone.net.bridge import BridgeNetwork, NetworkConfig
from kone.net.firewall import Firewall
from kone.net.names import Names
from tests.net.world import World

CONFIG = NetworkConfig(["10.244.0.0/24"], ["10.244.0.0/16"], ["10.96.0.0/16"])


def measure() -> Iterator[Figure]:
    yield from uvloop.run(_pods())
    yield from services.measure()


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
