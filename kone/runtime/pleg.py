"""What the runtime has of every pod, kept current by its events (upstream: pod lifecycle event generator).

The runtime is listed once, when its event stream opens, and again after each break; in between it is asked about one
container only when an event says that it changed. What the pod workers do themselves they put here at once, so that
they need not wait for the event of it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.runtime.observed import PodObserved
from kone.runtime.parts import SyncPod
from kone.runtime.runtime import (
    ContainerEvent,
    ContainerState,
    ContainerStatus,
    NotFound,
    Runtime,
    RuntimeFault,
    RuntimeUnavailable,
    Sandbox,
)

log = logging.getLogger(__name__)

RECONNECT_FIRST_S = 0.5
RECONNECT_MAX_S = 5.0

LastWords = Callable[[ContainerStatus], Awaitable[str]]


@dataclass(slots=True)
class _Pod:
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    containers: dict[str, ContainerStatus] = field(default_factory=dict)


class Pleg:
    """`observed(uid)` is what the runtime has now; `sync_pod` is called for a pod whenever that changes by itself."""

    def __init__(self, runtime: Runtime, clock: Clock, sync_pod: SyncPod, words: LastWords) -> None:
        self._runtime = runtime
        self._clock = clock
        self._sync_pod = sync_pod
        self._words = words
        self._pods: dict[str, _Pod] = {}
        self._worked_on: set[str] = set()  # ids whose events their worker does not need
        self._fresh: set[str] | None = None  # ids put while a list is under way
        self._tasks = TaskGroup("pleg")
        self._on_first_list: Callable[[], Awaitable[None]] | None = None
        self._on_list: Callable[[], None] = lambda: None
        self.connected = False

    async def start(self, on_first_list: Callable[[], Awaitable[None]], on_list: Callable[[], None]) -> None:
        """List, then follow. `on_first_list` is awaited before any pod is synced, `on_list` is called after each list:
        anything may have changed. Goes on trying while the runtime is not there."""
        self._on_first_list, self._on_list = on_first_list, on_list
        self._tasks.guard(self._follow, name="pleg.follow")

    async def stop(self) -> None:
        await self._tasks.cancel()

    def observed(self, uid: str) -> PodObserved:
        pod = self._pods.get(uid)
        if pod is None:
            return PodObserved()
        return PodObserved.of(pod.sandboxes.values(), pod.containers.values())

    def uids(self) -> set[str]:
        """Pods of which there is anything."""
        return {uid for uid, pod in self._pods.items() if pod.sandboxes or pod.containers}

    @contextmanager
    def working_on(self, container_id: str) -> Iterator[None]:
        """Its worker starts it right now and will put what comes of it: no need to ask for that."""
        self._worked_on.add(container_id)
        try:
            yield
        finally:
            self._worked_on.discard(container_id)

    def put_sandbox(self, sandbox: Sandbox) -> None:
        self._note(sandbox.id)
        self._pods.setdefault(sandbox.pod.uid, _Pod()).sandboxes[sandbox.id] = sandbox

    def put_container(self, status: ContainerStatus) -> bool:
        """Whether anything changed. What ended does not run again: an older answer that comes late is dropped."""
        self._note(status.id)
        containers = self._pods.setdefault(status.pod.uid, _Pod()).containers
        before = containers.get(status.id)
        if before is not None and before.state is ContainerState.EXITED and before.started_at == status.started_at:
            return False
        containers[status.id] = status
        return before != status

    async def put_ended(self, status: ContainerStatus) -> bool:
        """As put_container, with its last words where it has ended."""
        if status.state is ContainerState.EXITED:
            status = replace(status, message=await self._words(status))
        return self.put_container(status)

    def drop(self, uid: str, some_id: str) -> bool:
        """It was removed; whether it was known."""
        pod = self._pods.get(uid)
        if pod is None:
            return False
        known = pod.sandboxes.pop(some_id, None) is not None
        known = pod.containers.pop(some_id, None) is not None or known
        if not pod.sandboxes and not pod.containers:
            del self._pods[uid]
        return known

    async def refresh(self, uid: str) -> None:
        """Ask the runtime for all of one pod. Raises RuntimeFault."""
        sandboxes = await self._runtime.sandboxes(uid)
        containers = await self._runtime.containers(uid)
        known = self._pods.setdefault(uid, _Pod())
        before = dict(known.containers)
        known.sandboxes = {s.id: s for s in sandboxes}
        known.containers = {c.id: before[c.id] for c in containers if c.id in before}
        for status in containers:
            await self.put_ended(status)
        if not sandboxes and not containers:
            self._pods.pop(uid, None)

    async def refresh_container(self, uid: str, container_id: str) -> None:
        """Ask for one container. Raises RuntimeUnavailable."""
        try:
            await self.put_ended(await self._runtime.container(container_id))
        except NotFound:
            self.drop(uid, container_id)

    def _note(self, some_id: str) -> None:
        if self._fresh is not None:
            self._fresh.add(some_id)

    async def _follow(self) -> None:
        delay_s = RECONNECT_FIRST_S
        while True:
            try:
                async for event in self._runtime.events():
                    if event is None:
                        await self._list()
                        delay_s = RECONNECT_FIRST_S
                    else:
                        await self._handle(event)
            except RuntimeUnavailable as fault:
                if self.connected:
                    log.warning("the runtime is gone: %s", fault)
                self.connected = False
            except RuntimeFault:
                log.exception("the runtime's events cannot be followed")
            await self._clock.sleep(delay_s)
            delay_s = min(delay_s * 2, RECONNECT_MAX_S)

    async def _list(self) -> None:
        self._fresh = set()
        try:
            sandboxes = await self._runtime.sandboxes()
            containers = await self._runtime.containers()
            old, fresh = self._pods, self._fresh
            self._pods = {}
            for uid, pod in old.items():  # what was made while the list was on its way
                kept = _Pod(
                    {i: s for i, s in pod.sandboxes.items() if i in fresh},
                    {i: c for i, c in pod.containers.items() if i in fresh},
                )
                if kept.sandboxes or kept.containers:
                    self._pods[uid] = kept
            for sandbox in sandboxes:
                self._pods.setdefault(sandbox.pod.uid, _Pod()).sandboxes.setdefault(sandbox.id, sandbox)
            for status in containers:
                known = old.get(status.pod.uid)
                before = known.containers.get(status.id) if known else None
                if before is not None and before.state is ContainerState.EXITED:
                    status = before
                if status.id not in self._pods.get(status.pod.uid, _Pod()).containers:
                    await self.put_ended(status) if status is not before else self.put_container(status)
        finally:
            self._fresh = None
        self.connected = True
        if self._on_first_list is not None:
            await self._on_first_list()
            self._on_first_list = None
        self._on_list()

    async def _handle(self, event: ContainerEvent) -> None:
        uid = event.pod_uid
        try:
            match event.kind:
                case "removed":
                    changed = self.drop(uid, event.id)
                case "started" if event.id in self._worked_on or self._is_running(uid, event.id):
                    changed = False
                case "started" | "exited" if not event.name:
                    changed = await self._ask_sandbox(uid, event.id)
                case "started" | "exited":
                    changed = await self.put_ended(await self._runtime.container(event.id))
                case _:
                    changed = False
        except NotFound:
            changed = self.drop(uid, event.id)
        if changed:
            self._sync_pod(uid)

    def _is_running(self, uid: str, some_id: str) -> bool:
        pod = self._pods.get(uid) or _Pod()
        container, sandbox = pod.containers.get(some_id), pod.sandboxes.get(some_id)
        if container is not None:
            return container.state is ContainerState.RUNNING
        return sandbox is not None and sandbox.ready

    async def _ask_sandbox(self, uid: str, sandbox_id: str) -> bool:
        pod = self._pods.get(uid)
        before = pod.sandboxes.get(sandbox_id) if pod else None
        for sandbox in await self._runtime.sandboxes(uid):
            if sandbox.id == sandbox_id and sandbox != before:
                self.put_sandbox(sandbox)
                return True
        return False
