"""Pods that wait to be scheduled: active, backing off, or unschedulable until something changes.

A pod that fitted nowhere goes to the unschedulable ones, with the plugins that refused it. An event that one of these
plugins takes for good news moves it: to the active ones, or first to those backing off (1 s after the first failure,
doubling to 10 s). What nothing has moved for five minutes is tried again anyway. While nothing is active, pods that
back off are tried early, save those whose last attempt ended in an error.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.scheduler.framework import ClusterEvent, Framework
from kone.scheduler.plugins.priority_sort import sort_key
from kone.scheduler.pod_info import PodInfo

BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 10.0
UNSCHEDULABLE_MAX_S = 300.0

Place = Literal["active", "backoff", "unschedulable", "in flight"]


@dataclass(slots=True, eq=False)
class QueuedPod:
    """A pod on its way. `plugins` refused it last; `gated_by` keeps it from being tried at all."""

    info: PodInfo
    since: float  # when it came to where it is, in seconds of the monotonic clock
    place: Place = "in flight"
    attempts: int = 0
    failures: int = 0  # attempts that found no node
    errors: int = 0  # attempts in a row that ended in an error
    plugins: frozenset[str] = frozenset()
    gated_by: str = ""
    backoff_until: float = 0.0
    ticket: int = 0  # of its newest entry in a heap; older entries are dead

    @property
    def uid(self) -> str:
        return self.info.uid


K = TypeVar("K", float, tuple[int, float])
Heap = list[tuple[K, int, QueuedPod]]


class SchedulingQueue:
    """One scheduler's queue, for all its profiles; `pop` waits for the next pod to try."""

    def __init__(
        self,
        frameworks: Mapping[str, Framework],
        clock: Clock,
        backoff_first_s: float = BACKOFF_FIRST_S,
        backoff_max_s: float = BACKOFF_MAX_S,
    ) -> None:
        """`frameworks` by the scheduler's name that pods give."""
        self._frameworks = frameworks
        self._clock = clock
        self._backoff_s = backoff_first_s, backoff_max_s
        self._pods: dict[str, QueuedPod] = {}
        self._active: Heap[tuple[int, float]] = []
        self._backoff: Heap[float] = []  # after finding no node
        self._error_backoff: Heap[float] = []
        self._unschedulable: dict[str, QueuedPod] = {}  # by uid; who waits longest comes first
        self._gated: dict[str, QueuedPod] = {}
        self._tickets = itertools.count(1)
        self._filled = asyncio.Event()
        self._timer_moved = asyncio.Event()
        self._tasks = TaskGroup("scheduling queue")

    def __len__(self) -> int:
        return len(self._pods)

    def start(self) -> None:
        self._tasks.guard(self._run_timer, name="scheduler: back-off")

    async def stop(self) -> None:
        await self._tasks.cancel()

    def find(self, uid: str) -> QueuedPod | None:
        return self._pods.get(uid)

    def place_of(self, uid: str) -> Place | None:
        found = self._pods.get(uid)
        return found.place if found else None

    # -- coming and going ----------------------------------------------------------------------------------------

    def add(self, info: PodInfo) -> None:
        """A pod that has no node yet."""
        if info.uid not in self._pods:
            queued = self._pods[info.uid] = QueuedPod(info, self._clock.monotonic())
            self._try_to_activate(queued)

    def update(self, info: PodInfo, events: Iterable[ClusterEvent]) -> None:
        """The pod itself has changed; `events` say what of it that could matter."""
        queued = self._pods.get(info.uid)
        if queued is None:
            self.add(info)
            return
        queued.info = info
        if queued.place == "active":
            self._push_active(queued)  # its priority may be another
        elif queued.gated_by:
            self._try_to_activate(queued)
        elif queued.place == "unschedulable" and any(self._is_good_news(queued, event) for event in events):
            self._move(queued)

    def remove(self, uid: str) -> None:
        """The pod was deleted, or bound."""
        queued = self._pods.pop(uid, None)
        if queued is not None:
            queued.ticket = 0
            self._unschedulable.pop(uid, None)
            self._gated.pop(uid, None)

    async def pop(self) -> QueuedPod:
        """The next pod to try; it is in flight until `requeue` or `remove`."""
        while True:
            if (queued := self._next()) is not None:
                queued.place = "in flight"
                queued.attempts += 1
                return queued
            self._filled.clear()
            await self._filled.wait()

    def _next(self) -> QueuedPod | None:
        # Idle: who backs off after finding no node may as well try now. An error backs off in full.
        return _pop_living(self._active) or _pop_living(self._backoff)

    def requeue(self, queued: QueuedPod, plugins: Iterable[str], *, is_error: bool = False) -> None:
        """The attempt found no node (`plugins` refused), or ended in an error: then the pod backs off at once."""
        if self._pods.get(queued.uid) is not queued:
            return
        queued.plugins = frozenset(plugins)
        queued.since = self._clock.monotonic()
        if is_error:
            queued.errors += 1
        else:
            queued.errors = 0
            queued.failures += 1
        queued.backoff_until = queued.since + backoff_s(queued.errors or queued.failures, *self._backoff_s)
        if is_error:
            self._push_backoff(queued)
        else:
            queued.place = "unschedulable"
            self._unschedulable[queued.uid] = queued
            self._timer_moved.set()

    # -- moving --------------------------------------------------------------------------------------------------

    def move(self, event: ClusterEvent) -> None:
        """Something changed in the cluster: move the pods for which that may be good news."""
        for queued in (*self._unschedulable.values(), *self._gated.values()):
            if self._is_good_news(queued, event):
                self._move(queued)

    def activate(self, uid: str) -> None:
        """Try the pod now, whatever kept it."""
        queued = self._pods.get(uid)
        if queued is not None and queued.place in ("unschedulable", "backoff"):
            self._try_to_activate(queued)

    def _is_good_news(self, queued: QueuedPod, event: ClusterEvent) -> bool:
        names = {queued.gated_by} if queued.gated_by else queued.plugins
        if not names:
            return True  # nobody refused it (there was no node at all): any news is good news
        for name in names:
            plugin = self._frameworks[queued.info.scheduler_name].by_name.get(name)
            if plugin is not None and plugin.wakes_on & event.what and plugin.wakes(queued.info, event):
                return True
        return False

    def _move(self, queued: QueuedPod) -> None:
        if queued.backoff_until > self._clock.monotonic():
            self._push_backoff(queued)
        else:
            self._try_to_activate(queued)

    def _try_to_activate(self, queued: QueuedPod) -> None:
        status = self._frameworks[queued.info.scheduler_name].pre_enqueue(queued.info)
        self._unschedulable.pop(queued.uid, None)
        self._gated.pop(queued.uid, None)
        if status is not None:
            queued.gated_by = status.plugin
            queued.place = "unschedulable"
            queued.ticket = 0
            self._gated[queued.uid] = queued
            return
        queued.gated_by = ""
        self._push_active(queued)

    def _push_active(self, queued: QueuedPod) -> None:
        if queued.place != "active":
            queued.place = "active"
            queued.since = self._clock.monotonic()
        queued.ticket = next(self._tickets)
        heapq.heappush(self._active, (sort_key(queued.info, queued.since), queued.ticket, queued))
        self._filled.set()

    def _push_backoff(self, queued: QueuedPod) -> None:
        queued.place = "backoff"
        queued.ticket = next(self._tickets)
        self._unschedulable.pop(queued.uid, None)
        heapq.heappush(
            self._error_backoff if queued.errors else self._backoff, (queued.backoff_until, queued.ticket, queued)
        )
        self._timer_moved.set()
        self._filled.set()

    # -- time ----------------------------------------------------------------------------------------------------

    async def _run_timer(self) -> None:
        while True:
            self._timer_moved.clear()
            self._flush()
            due = self._next_due()
            waiting: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._timer_moved.wait())}
            if due is not None:
                waiting.add(asyncio.ensure_future(self._clock.sleep(max(due - self._clock.monotonic(), 0.001))))
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for future in waiting:
                    future.cancel()

    def _next_due(self) -> float | None:
        """When the next pod is to be moved by time alone, in seconds of the monotonic clock."""
        times = [heap[0][0] for heap in self._backoffs()]
        times += [queued.since + UNSCHEDULABLE_MAX_S for queued in itertools.islice(self._unschedulable.values(), 1)]
        return min(times, default=None)

    def _flush(self) -> None:
        now = self._clock.monotonic()
        for heap in self._backoffs():
            while heap and heap[0][0] <= now:
                _, ticket, queued = heapq.heappop(heap)
                if queued.ticket == ticket:
                    self._try_to_activate(queued)
        for queued in list(self._unschedulable.values()):
            if queued.since + UNSCHEDULABLE_MAX_S > now:
                break
            self._move(queued)

    def _backoffs(self) -> list[Heap[float]]:
        """The heaps that are not empty, with a living entry on top."""
        for heap in (self._backoff, self._error_backoff):
            while heap and heap[0][2].ticket != heap[0][1]:
                heapq.heappop(heap)
        return [heap for heap in (self._backoff, self._error_backoff) if heap]


def _pop_living(heap: Heap[K]) -> QueuedPod | None:
    """The first entry that is still its pod's newest."""
    while heap:
        _, ticket, queued = heapq.heappop(heap)
        if queued.ticket == ticket:
            queued.ticket = 0
            return queued
    return None


def backoff_s(failures: int, first_s: float = BACKOFF_FIRST_S, most_s: float = BACKOFF_MAX_S) -> float:
    """Back-off after so many failures: 1 s, 2 s, 4 s, 8 s, then 10 s, unless configured otherwise."""
    return min(first_s * (1 << min(max(failures - 1, 0), 10)), most_s)
