"""metrics.k8s.io, served by kone itself: what `kubectl top` and autoscalers ask. No other program is needed; one that
is installed for it (an APIService that leads to metrics-server) takes over.

Kubelets are looked at every 15 s, but only while somebody asks: the first question after a while waits for two looks
that are 2 s apart, so that a node at rest does nothing for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Final

import aiohttp

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError, not_found
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object, dig, labels_of, name_of, namespace_of
from kone.apimachinery.timestamps import format_time
from kone.apiserver.kubelet_client import KubeletClient
from kone.apiserver.metric_points import Look, Points
from kone.cache.watch_cache import Caches

log = logging.getLogger(__name__)

GROUP: Final = "metrics.k8s.io"
RESOLUTION_S: Final = 15.0
FIRST_WINDOW_S: Final = 2.0
IDLE_S: Final = 300.0  # looks end that long after the last question
TIMEOUT_S: Final = 10.0


class ResourceMetrics:
    """Answers get and list of NodeMetrics and PodMetrics (reads.Computed)."""

    def __init__(self, caches: Caches, kubelets: KubeletClient, clock: Clock) -> None:
        self._caches, self._kubelets, self._clock = caches, kubelets, clock
        self._points = Points()
        self._tasks = TaskGroup("resource-metrics")
        self._asked_at = 0.0
        self._begun: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        await self._tasks.cancel()

    async def get(self, gvr: GVR, name: str, namespace: str) -> Object:
        """Raises 404 for what is not there or not measured yet."""
        await self._fresh()
        entry = self._caches.of("", gvr.resource).get(namespace, name)
        if entry is None:
            raise not_found(gvr.resource, name)
        measured = self._measured(gvr, entry.obj)
        if measured is None:
            raise not_found(f"{gvr.resource}.{GROUP}", f"{namespace}/{name}" if namespace else name)
        return measured

    async def list(self, gvr: GVR, namespace: str) -> list[Object]:
        await self._fresh()
        return list(self._all(gvr, namespace))

    def _all(self, gvr: GVR, namespace: str) -> Iterator[Object]:
        for entry in self._caches.of("", gvr.resource).list(namespace):
            if (measured := self._measured(gvr, entry.obj)) is not None:
                yield measured

    def _measured(self, gvr: GVR, obj: Object) -> Object | None:
        """What a node or a running pod uses."""
        meta: Object = {"name": name_of(obj), "creationTimestamp": format_time(self._clock.now())}
        if labels := labels_of(obj):
            meta["labels"] = dict(labels)
        if gvr.resource == "nodes":
            found, kind = self._points.node(name_of(obj)), "NodeMetrics"
        elif dig(obj, "status", "phase") == "Running":
            meta["namespace"] = namespace_of(obj)
            found, kind = self._points.pod(namespace_of(obj), name_of(obj)), "PodMetrics"
        else:
            return None
        return {"kind": kind, "apiVersion": gvr.api_version, "metadata": meta, **found} if found is not None else None

    # -- looking -----------------------------------------------------------------------------------------------------

    async def _fresh(self) -> None:
        """Returns once there is something to compare; from here on kubelets are looked at regularly."""
        self._asked_at = self._clock.monotonic()
        if self._begun is None:
            self._begun = self._tasks.spawn(self._begin(), name="resource-metrics.begin")
        await asyncio.shield(self._begun)

    async def _begin(self) -> None:
        await self._look()
        await self._clock.sleep(FIRST_WINDOW_S)
        await self._look()
        self._tasks.spawn(self._go_on(), name="resource-metrics")

    async def _go_on(self) -> None:
        try:
            while self._clock.monotonic() - self._asked_at < IDLE_S:
                await self._clock.sleep(RESOLUTION_S)
                await self._look()
        finally:
            self._points, self._begun = Points(), None

    async def _look(self) -> None:
        look = Look()
        nodes = [name_of(entry.obj) for entry in self._caches.of("", "nodes").list()]
        await asyncio.gather(*(self._scrape(node, look) for node in nodes))
        self._points.store(look)

    async def _scrape(self, node: str, look: Look) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            url = self._kubelets.url(node, "/metrics/resource")
            async with self._kubelets.session.get(url, timeout=timeout) as answer:
                text = await answer.text()
                if answer.status != 200:
                    log.info("metrics of node %s: status=%d %s", node, answer.status, text[:200])
                    return
        except (aiohttp.ClientError, OSError, TimeoutError, StatusError) as error:
            log.info("metrics of node %s cannot be had: %s", node, error)
            return
        look.take(node, text, self._clock.now())
