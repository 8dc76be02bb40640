"""The scheduler at scale: 10,000 pods on 1,000 nodes, and on one. Nodes are objects without kubelets, as kwok has them;
the API, durable, and the scheduler run in this process, so that what placing costs can be told from what telling costs.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvloop

from benchmarks.report import Figure
from kone.aio.clock import SystemClock
from kone.apimachinery.kinds import NODES, PODS, SERVICEACCOUNTS
from kone.apimachinery.objects import Object, dig
from kone.client.client import Client
from kone.client.events import EventRecorder
from kone.config import Settings, resolve
from kone.node import Node
from kone.scheduler.scheduler import Scheduler

PODS_MADE = int(os.environ.get("KONE_BENCH_PODS", "10000"))
NODES_MADE = 1000
AT_ONCE = 64  # requests
GROWTH_MAX = 1.25  # of the CPU of a pod, from the first fifth to the last


@asynccontextmanager
async def bare_api() -> AsyncIterator[Client]:
    """A durable API without loops, in this process."""
    with tempfile.TemporaryDirectory(prefix="kone-bench-") as folder:
        settings = Settings(
            data_dir=folder,
            bind_address="127.0.0.1",
            secure_port=0,
            node_ip="127.0.0.1",
            disable="controllers,scheduler,kubelet,proxy,dns",
        )
        node = Node(resolve(settings))
        await node.start()
        try:
            yield node.client
        finally:
            await node.stop()


def bench_node(name: str, pods: int) -> Object:
    amounts = {"cpu": "32000", "memory": "256000Gi", "pods": str(pods)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"capacity": amounts, "allocatable": amounts},
    }


def bench_pod(name: str) -> Object:
    requests = {"cpu": "100m", "memory": "64Mi"}
    container = {"name": "c", "image": "registry.example/app:1", "resources": {"requests": requests}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "bench"}},
        "spec": {"automountServiceAccountToken": False, "containers": [container]},
    }


async def at_once(work: Callable[[str], Awaitable[object]], names: Iterable[str]) -> None:
    """Do the work for each name, AT_ONCE together."""
    left = iter(names)

    async def worker() -> None:
        for name in left:
            await work(name)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def add_node(client: Client, name: str, pods: int) -> None:
    """A node that is ready: nobody else is here to take away the taint that a new one has."""
    await client.create(NODES, bench_node(name, pods))
    await client.patch(NODES, name, {"spec": {"taints": None}})


@dataclass(frozen=True, slots=True)
class Outcome:
    """Pods bound a second; CPU of this process for one, API and store included; the share of the time that placing
    took; the CPU of a pod in the last fifth to that in the first."""

    rate: float
    cpu_ms: float
    placing: float
    growth: float


async def schedule(node_count: int, pod_count: int) -> Outcome:
    """Bind `pod_count` pods, all waiting when the scheduler starts."""
    async with bare_api() as client:
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": "default"},
        }
        room = 2 * pod_count // node_count + 110
        await client.create(SERVICEACCOUNTS, account)
        await at_once(lambda name: add_node(client, name, room), (f"n{number:04}" for number in range(node_count)))
        await at_once(
            lambda name: client.create(PODS, bench_pod(name)), (f"p{number:05}" for number in range(pod_count))
        )
        bound_at: list[float] = []
        done = asyncio.Event()

        def count(_kind: str, pod: Object, previous: Object | None) -> None:
            if dig(pod, "spec", "nodeName") and not dig(previous, "spec", "nodeName"):
                bound_at.append(time.process_time())
                if len(bound_at) == pod_count:
                    done.set()

        clock = SystemClock()
        recorder = EventRecorder(client, "default-scheduler", clock=clock)
        scheduler = Scheduler(client, {recorder.component: recorder}, clock)
        unsubscribe = client.informer(PODS).subscribe(count)
        began, cpu_began = time.perf_counter(), time.process_time()
        await scheduler.start()
        await done.wait()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        unsubscribe()
        await scheduler.stop()
        await recorder.stop()
    fifth = pod_count // 5
    first, last = bound_at[fifth - 1] - cpu_began, bound_at[-1] - bound_at[-1 - fifth]
    return Outcome(pod_count / took, cpu / pod_count * 1000, scheduler.placing_s / took, last / first)


def measure() -> Iterator[Figure]:
    for node_count, words in ((NODES_MADE, "1,000 nodes"), (1, "one node")):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(schedule(node_count, PODS_MADE))
        yield Figure(f"schedule {PODS_MADE} pods on {words}", found.rate, "pods/s", 500)
        yield Figure(f"{words}: CPU of a pod, API and all", found.cpu_ms, "ms")
        yield Figure(f"{words}: share of plugins in the time", found.placing * 100, "%")
        yield Figure(f"{words}: CPU, last fifth to first", found.growth, "x", GROWTH_MAX, "less")
