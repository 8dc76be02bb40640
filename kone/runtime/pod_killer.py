"""Ending containers: preStop hook, signal, grace, in the right order; the time a hook takes counts as grace.

Sidecars end after the containers they serve, the last one first, as far as the grace period lets them (KEP 753).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from kone.aio.clock import Clock
from kone.apimachinery.objects import Object, dig
from kone.client.events import EventKind, EventRecorder
from kone.runtime.parts import HookError, HookRunner
from kone.runtime.pleg import Pleg
from kone.runtime.pod_actions import KillReason
from kone.runtime.pod_spec import (
    ContainerKind,
    all_containers,
    find_container,
    grace_period_s,
    regular_containers,
    sidecars,
)
from kone.runtime.runtime import ContainerStatus, Runtime

log = logging.getLogger(__name__)

MIN_GRACE_S = 2.0  # minimumGracePeriodInSeconds: everybody gets a moment to leave


def field_path(pod: Object, name: str) -> str:
    """Where in the pod an event about a container points: "spec.containers{web}"."""
    kind: ContainerKind = next((k for k, c in all_containers(pod) if c["name"] == name), "regular")
    field = {"init": "initContainers", "regular": "containers", "ephemeral": "ephemeralContainers"}[kind]
    return f"spec.{field}{{{name}}}"


def kill_grace_s(pod: Object, container: Object | None, reason: KillReason) -> float:
    """How long a container gets; a failed probe may name a time of its own."""
    if container and reason in ("liveness", "startup") and dig(pod, "metadata", "deletionGracePeriodSeconds") is None:
        own = dig(container, f"{reason}Probe", "terminationGracePeriodSeconds")
        if own is not None:
            return float(own)
    return float(grace_period_s(pod))


def waits_for(pod: Object, running: Iterable[str]) -> dict[str, list[str]]:
    """Which running containers must have ended before one is asked to end: {sidecar: [names]}.

    Worked case: sidecars s1, s2 and container c, all running: s2 waits for c, s1 for c and s2.
    """
    here = set(running)
    mains = [c["name"] for c in regular_containers(pod) if c["name"] in here]
    found: dict[str, list[str]] = {}
    later = ""
    for container in reversed(sidecars(pod)):
        name = container["name"]
        found[name] = [*mains, *([later] if later in here else [])]
        later = name
    return found


class PodKiller:
    """Ends containers of a pod. What it has begun for a container (its hook) it does not begin twice."""

    def __init__(
        self,
        runtime: Runtime,
        pleg: Pleg,
        hooks: HookRunner,
        recorder: EventRecorder,
        clock: Clock,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._runtime, self._pleg, self._hooks = runtime, pleg, hooks
        self._recorder, self._clock = recorder, clock
        self._on_end = on_end
        self._hooked: set[str] = set()  # container ids whose preStop hook ran
        self._told: set[str] = set()  # container ids whose Killing event was recorded

    async def kill_all(self, pod: Object, running: Sequence[ContainerStatus], pod_ip: str, grace_s: float) -> None:
        """End these containers within `grace_s`. Raises RuntimeUnavailable."""
        order = waits_for(pod, (status.name for status in running))
        ended: Mapping[str, asyncio.Event] = {status.name: asyncio.Event() for status in running}

        async def end(status: ContainerStatus) -> None:
            await self.kill(
                pod,
                status,
                message=f"Stopping container {status.name}",
                grace_s=grace_s,
                pod_ip=pod_ip,
                first=[ended[name] for name in order.get(status.name, ())],
            )
            ended[status.name].set()

        results = await asyncio.gather(*(end(status) for status in running), return_exceptions=True)
        for result in results:  # all have been tried before the first failure counts
            if isinstance(result, BaseException):
                raise result

    async def kill(
        self,
        pod: Object,
        status: ContainerStatus,
        *,
        message: str,
        grace_s: float,
        pod_ip: str,
        first: Sequence[asyncio.Event] = (),
    ) -> None:
        """End one container: tell, hook, wait for its turn, signal, and SIGKILL when the grace period is over."""
        container = find_container(pod, status.name)
        if status.id not in self._told:
            self._told.add(status.id)
            self._tell(pod, status.name, "Normal", "Killing", message)
        began = self._clock.monotonic()

        def left_s() -> float:
            return grace_s - (self._clock.monotonic() - began)

        handler = dig(container, "lifecycle", "preStop") if container else None
        if handler and container and grace_s > 0 and status.id not in self._hooked:
            await self._run_hook(pod, container, status, handler, pod_ip, left_s())
            self._hooked.add(status.id)
        for other in first:
            if left_s() > 0:
                await self._within(other.wait(), left_s())
        await self._runtime.stop_container(status.id, max(left_s(), MIN_GRACE_S))
        await self._pleg.refresh_container(status.pod.uid, status.id)
        self._on_end()

    def forget(self, container_ids: Iterable[str]) -> None:
        gone = set(container_ids)
        self._hooked -= gone
        self._told -= gone

    async def _run_hook(
        self, pod: Object, container: Object, status: ContainerStatus, handler: Object, pod_ip: str, limit_s: float
    ) -> None:
        try:
            await self._within(self._hooks.run(pod, container, status.id, handler, pod_ip), limit_s)
        except HookError as error:
            log.warning("preStop hook failed: pod=%s container=%s: %s", status.pod.name, status.name, error)
            self._tell(pod, status.name, "Warning", "FailedPreStopHook", "PreStopHook failed")

    async def _within(self, work: Coroutine[Any, Any, object], limit_s: float) -> None:
        """Wait for `work`, at most so long by the clock; cut it off then."""
        task = asyncio.ensure_future(work)
        timer = asyncio.ensure_future(self._clock.sleep(limit_s))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            timer.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _tell(self, pod: Object, name: str, kind: EventKind, reason: str, message: str) -> None:
        self._recorder.event(pod, kind, reason, message, field_path=field_path(pod, name))
