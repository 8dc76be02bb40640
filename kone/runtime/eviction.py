"""Eviction: when the node runs short of memory or disk, and when a pod takes more local storage than it may.

Every ten seconds a few numbers of the kernel are looked at. Under pressure the node says so in its conditions and
takes no pods that would add to it; images that nobody needs go first, then pods, one at a time, by rank
(eviction_rank.py). Pods are measured only when that matters. Rules: kubernetes/pkg/kubelet/eviction.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.objects import Object, dig, is_deleting, is_pod_terminal, name_of, namespace_of, uid_of
from kone.apimachinery.pod_resources import qos_class
from kone.apimachinery.taints import MEMORY_PRESSURE_TAINT, tolerates_any
from kone.client.events import EventRecorder
from kone.runtime import eviction_rank, eviction_signals, usage
from kone.runtime.disk_usage import FileSystem, file_system
from kone.runtime.eviction_signals import Observation, Observations, Pressures
from kone.runtime.parts import PodSource
from kone.runtime.pod_status import Verdict
from kone.runtime.runtime import ContainerState, RuntimeFault
from kone.runtime.stats import PodUse, Stats

log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
AFTER_S: Final = 1.0  # until the next look when a pod has just gone: what it held comes back by and by
CLEAN_UP_S: Final = 30.0  # how long a pod that is evicted may take before the next look
GRACE_S: Final = 1
REASON: Final = "Evicted"
DISK_SIGNALS: Final = frozenset(s for s, kind in eviction_signals.CONDITIONS.items() if kind == "DiskPressure")


class Images(Protocol):
    """image_gc.py."""

    async def remove_unused(self, wanted_bytes: int | None = None) -> int: ...


class Host:
    """The node's own figures. `root` is where pods' volumes lie; `image_root` where the runtime keeps images."""

    def __init__(self, root: Path, image_root: Path) -> None:
        self._root, self._image_root = root, image_root

    def image_fs(self) -> FileSystem:
        """Raises OSError."""
        return file_system(self._image_root)

    @property
    def own_image_fs(self) -> bool:
        """Whether images have a disk of their own."""
        try:
            return file_system(self._root).device != self.image_fs().device
        except OSError:
            return False

    def observe(self) -> Observations:
        """All signals that can be read."""
        memory = usage.memory()
        running, most = usage.processes()
        found = {
            eviction_signals.MEMORY: Observation(memory.available, memory.total),
            eviction_signals.PIDS: Observation(most - running, most),
        }
        places = (
            (self._root, eviction_signals.NODE_DISK, eviction_signals.NODE_INODES),
            (self._image_root, eviction_signals.IMAGE_DISK, eviction_signals.IMAGE_INODES),
        )
        for path, disk, inodes in places:
            try:
                fs = file_system(path)
            except OSError as error:
                log.debug("%s cannot be looked at: %s", path, error)
                continue
            found[disk] = Observation(fs.available_bytes, fs.capacity_bytes)
            if fs.inodes:  # some file systems do not count them
                found[inodes] = Observation(fs.inodes_free, fs.inodes)
        return found


class Eviction:
    """Watches the node. `pressures` are the conditions that hold now; `on_change` is called when they change."""

    def __init__(
        self,
        source: PodSource,
        stats: Stats,
        images: Images,
        host: Host,
        recorder: EventRecorder,
        clock: Clock,
        node: Object,
        *,
        on_change: Callable[[], None] = lambda: None,
        thresholds: Mapping[str, str] = eviction_signals.HARD,
        count: Callable[[str], None] = lambda signal: None,
    ) -> None:
        self._source, self._stats, self._images, self._host = source, stats, images, host
        self._recorder, self._clock, self._node = recorder, clock, node
        self._on_change, self._thresholds, self._count = on_change, thresholds, count
        self._over_time = Pressures()
        self._tasks = TaskGroup("eviction")
        self.pressures: frozenset[str] = frozenset()

    async def start(self) -> None:
        self._tasks.guard(self._keep_looking, name="eviction")

    async def stop(self) -> None:
        await self._tasks.cancel()

    def refuse(self, pod: Object) -> Verdict | None:
        """Why a pod is not taken under pressure; None where it is."""
        if not self.pressures or eviction_rank.is_critical(pod):
            return None
        if self.pressures == {"MemoryPressure"}:
            tolerations = dig(pod, "spec", "tolerations", default=())
            if qos_class(pod) != "BestEffort" or tolerates_any(tolerations, MEMORY_PRESSURE_TAINT):
                return None
        return Verdict(REASON, f"The node had condition: [{' '.join(sorted(self.pressures))}]. ")

    async def _keep_looking(self) -> None:
        while True:
            evicted = False
            try:
                evicted = await self.look()
            except RuntimeFault as fault:
                log.info("eviction waits for the runtime: %s", fault)
            await self._clock.sleep(AFTER_S if evicted else LOOK_S)

    async def look(self) -> bool:
        """One look at the node; whether a pod was evicted."""
        observations = self._host.observe()
        short = eviction_signals.met(observations, self._thresholds)
        self._set(self._over_time.observe(short, self._clock.monotonic()))
        if await self._evict_over_limit():
            return True
        if not short:
            return False
        signal, resource = short[0], eviction_signals.RESOURCES[short[0]]
        self._recorder.event(self._node, "Warning", "EvictionThresholdMet", f"Attempting to reclaim {resource}")
        if signal in DISK_SIGNALS:
            await self._images.remove_unused()
            observations = self._host.observe()
            if not eviction_signals.met(observations, self._thresholds):
                return False
        return await self._evict_for(signal, observations)

    def _set(self, pressures: frozenset[str]) -> None:
        if pressures != self.pressures:
            log.warning("node conditions: %s", ", ".join(sorted(pressures)) or "no pressure")
            self.pressures = pressures
            self._on_change()

    async def _evict_for(self, signal: str, observations: Observations) -> bool:
        candidates = [use for use in await self._stats.pods(disk=signal in DISK_SIGNALS) if _may_go(use.pod)]
        for use in eviction_rank.ranked(candidates, signal, own_image_fs=self._host.own_image_fs):
            if eviction_rank.is_critical(use.pod):
                continue
            shortage = eviction_signals.shortage(signal, observations, self._thresholds)
            message, annotations = eviction_rank.low_on(signal, shortage, use)
            condition = {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "TerminationByKubelet",
                "message": message,
            }
            self._count(signal)
            await self._evict(use.pod, message, annotations=annotations, condition=condition)
            return True
        log.warning("the node is short of %s, and no pod can be evicted", eviction_signals.RESOURCES[signal])
        return False

    async def _evict_over_limit(self) -> bool:
        evicted = False
        for pod in self._source.pods():
            if not _may_go(pod) or eviction_rank.is_critical(pod) or not eviction_rank.has_storage_limit(pod):
                continue
            use = await self._measure(pod)
            if use is not None and (why := eviction_rank.over_limit(use, own_image_fs=self._host.own_image_fs)):
                await self._evict(pod, why)
                evicted = True
        return evicted

    async def _measure(self, pod: Object) -> PodUse | None:
        running = [c for c in self._source.containers(uid_of(pod)) if c.state is ContainerState.RUNNING and c.pid]
        return await self._stats.pod(pod, running, disk=True, max_age_s=LOOK_S / 2) if running else None

    async def _evict(
        self,
        pod: Object,
        message: str,
        *,
        annotations: Mapping[str, str] | None = None,
        condition: Object | None = None,
    ) -> None:
        log.warning("evicting pod %s/%s: %s", namespace_of(pod), name_of(pod), message)
        self._recorder.event(pod, "Warning", REASON, message, annotations=annotations)
        try:
            async with asyncio.timeout(CLEAN_UP_S):
                await self._source.evict(uid_of(pod), REASON, message, GRACE_S, condition=condition)
        except TimeoutError:
            log.warning("pod %s/%s takes long to end", namespace_of(pod), name_of(pod))


def _may_go(pod: Object) -> bool:
    return not is_pod_terminal(pod) and not is_deleting(pod)
