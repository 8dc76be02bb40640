"""Pod workers. One pod is handled serially, different pods in parallel; a worker with nothing to do has no task.

A pod's life here: *syncing* (made equal to its spec), *terminating* (its containers are being ended, for good),
*terminated* (its resources are free; once it is deleted in the API, its containers are removed). Each step reads the
world and makes it right, so that it may be cut off anywhere, by a cancellation as by a kill.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import Enum

from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import PODS
from kone.apimachinery.objects import Object, annotations_of, dig, is_deleting, labels_of, name_of, namespace_of, uid_of
from kone.apimachinery.timestamps import parse_time
from kone.runtime.container_config import container_resources
from kone.runtime.device_plugins import Unavailable
from kone.runtime.dra import NotPrepared
from kone.runtime.kubelet_parts import KubeletParts
from kone.runtime.observed import PodObserved
from kone.runtime.parts import ProbeResults, VolumeError, VolumeLimitReached, VolumesWaiting
from kone.runtime.pod_actions import PodActions, Resize, compute_actions
from kone.runtime.pod_admit import REJECTED
from kone.runtime.pod_killer import PodKiller, kill_grace_s
from kone.runtime.pod_resize import (
    allocated_before,
    asked_resources,
    is_resized,
    resize_condition,
    resize_message,
    with_allocated,
)
from kone.runtime.pod_spec import ContainerKind, find_container, format_pod, grace_period_s, is_host_network
from kone.runtime.pod_starter import PodStarter, SandboxProblem, StartProblem
from kone.runtime.pod_status import OWNED_CONDITIONS, TERMINAL, Verdict, generate_status
from kone.runtime.runtime import ContainerState, Resources, RuntimeFault, RuntimeUnavailable

log = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 10.0  # kubelet's back-off for a sync that failed
RUNTIME_RETRY_S = 1.0
RESIZE_RETRY_S = 30.0  # a resize that waits for room is looked at again so often
UNEXPECTED = "UnexpectedAdmissionError"
DEADLINE = Verdict("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")


class Phase(Enum):
    SYNCING = "syncing"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    GONE = "gone"


class PodWorker:
    """The life of one pod on this node. `update` and `wake` may be called at any time; the rest happens in its task."""

    def __init__(self, parts: KubeletParts, pod: Object, tasks: TaskGroup, on_gone: Callable[[str], None]) -> None:
        self._parts = parts
        self._tasks = tasks
        self._on_gone = on_gone
        self._killer = PodKiller(parts.runtime, parts.pleg, parts.hooks, parts.recorder, parts.clock, self._report_end)
        self._starter = PodStarter(parts, self._killer)
        self.uid = uid_of(pod)
        self.pod = pod
        self.phase = Phase.SYNCING
        self.verdict: Verdict | None = None
        self.exists = True  # in the API
        self._grace_s: float | None = None  # shorter than the pod's own
        self._task: asyncio.Task[None] | None = None
        self._step: asyncio.Task[float | None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self._wanted = False
        self._seen = False  # a step was taken
        self._since: float | None = parts.clock.monotonic() if not dig(pod, "status", "startTime") else None
        self._failed = 0  # syncs in a row
        self._blocked = False  # what all containers need is missing: a volume, the sandbox
        self._allocated = asked_resources(pod) if not dig(pod, "status", "startTime") else allocated_before(pod)
        self._resize: Object | None = None  # the condition of a resize under way
        self._mounted: tuple[Object, Object] | None = None  # labels and annotations that volumes know
        self.ended = asyncio.Event()  # no container runs, none will

    # From outside

    def update(self, pod: Object) -> None:
        """A newer state of the pod."""
        before, self.pod = self.pod, pod
        if is_deleting(pod):
            shorter = is_deleting(before) and grace_period_s(pod) < grace_period_s(before)
            self._terminate(again=shorter)
        if _differs(before, pod) or not self._parts.statuses.agrees(pod):
            self.wake()

    def gone(self, pod: Object | None = None) -> None:
        """The pod is deleted from the API: whatever still runs ends."""
        if pod is not None:
            self.pod = pod
        self.exists = False
        self._parts.statuses.forget(self.uid)
        self._terminate(again=False)
        self.wake()

    def end(self, verdict: Verdict, grace_s: float | None = None) -> None:
        """End the pod as Failed, for this reason."""
        if self.verdict is None and self.phase is Phase.SYNCING:
            self.verdict = verdict
        self._grace_s = grace_s
        self._terminate(again=False)
        self.wake()

    def wake(self) -> None:
        """Look at the pod again, now or right after the step under way."""
        self._wanted = True
        if self.phase is not Phase.GONE and (self._task is None or self._task.done()):
            self._task = self._tasks.spawn(self._run(), name=f"pod {namespace_of(self.pod)}/{name_of(self.pod)}")

    @property
    def pod_ip(self) -> str:
        return next(iter(self._starter.ips), "")

    @property
    def ips(self) -> tuple[str, ...]:
        return self._starter.ips

    @property
    def is_idle(self) -> bool:
        return self._task is None or self._task.done()

    def observed(self) -> PodObserved:
        found = self._parts.pleg.observed(self.uid)
        return PodObserved(
            found.sandboxes,
            found.containers,
            self._starter.ips,
            dict(self._starter.failures),
            self._parts.recursive_read_only,
        )

    def _terminate(self, *, again: bool) -> None:
        """Go over to terminating; a step of syncing, or one that ends containers too slowly, is cut off."""
        cut = self.phase is Phase.SYNCING or (again and self.phase is Phase.TERMINATING)
        if self.phase is Phase.SYNCING:
            self.phase = Phase.TERMINATING
        if cut and self._step is not None and not self._step.done():
            self._step.cancel()

    # The task

    async def _run(self) -> None:
        try:
            await self._take_steps()
        finally:
            if self._step is not None and not self._step.done():
                self._step.cancel()
                await asyncio.wait({self._step})

    async def _take_steps(self) -> None:
        while self._wanted and self.phase is not Phase.GONE:
            self._wanted = False
            self._cancel_timer()
            self._step = asyncio.create_task(self._one_step(), name=f"step of pod {name_of(self.pod)}")
            await asyncio.wait({self._step})
            if self._step.cancelled():
                self._wanted = True  # only the step was cut off
                continue
            delay_s = self._step.result()
            if delay_s is not None and not self._wanted:
                self._timer = self._tasks.spawn(self._wake_after(delay_s), name=f"timer of pod {name_of(self.pod)}")

    async def _wake_after(self, delay_s: float) -> None:
        await self._parts.clock.sleep(delay_s)
        self._timer = None
        self.wake()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _one_step(self) -> float | None:
        """One look; answers in how many seconds the next is due without an event (None: never)."""
        if not self._parts.pleg.connected:
            return None  # what runs is not known; the list that comes wakes every worker
        began = self._parts.clock.monotonic()
        try:
            match self.phase:
                case Phase.SYNCING:
                    return await self._sync()
                case Phase.TERMINATING:
                    return await self._end_containers()
                case Phase.TERMINATED:
                    return await self._clean_up()
                case Phase.GONE:
                    return None
        except RuntimeUnavailable as fault:
            log.debug("pod %s waits for the runtime: %s", format_pod(self.pod), fault)
            return RUNTIME_RETRY_S
        except Exception:  # a worker outlives every surprise; the next look tries again
            log.exception("pod %s: %s failed", format_pod(self.pod), self.phase.value)
            return self._retry_s()
        finally:
            operation, self._seen = "sync" if self._seen else "create", True
            self._parts.meters.pod_worker_s.observe(self._parts.clock.monotonic() - began, operation)

    def _retry_s(self) -> float:
        self._failed += 1
        return float(min(RETRY_FIRST_S * 2 ** min(self._failed - 1, 10), RETRY_MAX_S))

    # Syncing

    async def _sync(self) -> float | None:
        await self._learn_ips()
        self._decide_resize()
        pod = self.given
        await self._refresh_volumes(pod)
        status = self._report()
        if (over := self._deadline_s(status)) is not None and over <= 0:
            self.verdict = DEADLINE
            self._parts.recorder.event(pod, "Normal", DEADLINE.reason, DEADLINE.message)
            self.phase = Phase.TERMINATING
        if self.phase is Phase.TERMINATING or self._is_over():
            self.phase = Phase.TERMINATING
            self._wanted = True
            return None
        actions = compute_actions(pod, self.observed(), self._results, self._resources_of)
        if actions.pod_is_over:
            self.phase = Phase.TERMINATING
            self._wanted = True
            return None
        delay_s = await self._perform(pod, actions)
        status = self._report()
        if delay_s is None:
            self._failed = 0
        if self._is_over() or self._has_more_to_do(failed=delay_s is not None):
            self._wanted = True
        deferred = RESIZE_RETRY_S if self._resize is not None else None
        times = [time for time in (delay_s, self._deadline_s(status), deferred) if time is not None]
        return min(times) if times else None

    def _is_over(self) -> bool:
        """Whether the pod's phase, as its containers stand, is a terminal one."""
        return self._status(ended=False)["phase"] in TERMINAL

    def _has_more_to_do(self, *, failed: bool) -> bool:
        """Whether what was just done calls for more at once: the next init container, one that has ended already.

        What has `failed` waits for its time; only containers that had no part in it go on.
        """
        actions = compute_actions(self.given, self.observed(), self._results, self._resources_of)
        waiting = self._starter.failures.keys()
        starts = any(start.name not in waiting for start in actions.start)
        if failed:
            return starts and not actions.create_sandbox and not self._blocked
        return actions.kill_pod or starts or bool(actions.kill or actions.remove or actions.reset)

    async def _perform(self, pod: Object, actions: PodActions) -> float | None:
        """Do what is planned; answers when to try again what could not be done."""
        self._blocked = False
        observed = self.observed()
        if actions.kill_pod:
            await self._killer.kill_all(pod, observed.running, self.pod_ip, grace_period_s(pod))
            for old in observed.sandboxes:
                await self._parts.runtime.stop_sandbox(old.id)
            if actions.sandbox_changed:
                message = "Pod sandbox changed, it will be killed and re-created."
                self._parts.recorder.event(pod, "Normal", "SandboxChanged", message)
        for kill in actions.kill:
            status = next(c for c in observed.containers if c.id == kill.container_id)
            grace = kill_grace_s(pod, find_container(pod, kill.name), kill.reason)
            await self._killer.kill(pod, status, message=kill.message, grace_s=grace, pod_ip=self.pod_ip)
        await self._resize_containers(pod, actions.resize)
        await self._remove(actions.remove)
        if actions.reset:
            await self._reset(pod, actions.reset)
        observed = self.observed()
        try:
            if actions.create_sandbox:
                await self._remove_dead_sandboxes(observed)
                self._mounted = _told_to_volumes(pod)
                await self._starter.start_pod(pod, actions, observed, self._report_quietly)
            elif actions.start:
                sandbox = observed.ready_sandbox
                assert sandbox is not None
                parent = await self._starter.prepare(pod)
                self._mounted = _told_to_volumes(pod)
                await self._starter.start_containers(pod, actions.start, sandbox.id, observed, parent)
        except Unavailable as error:
            message = f"Allocate failed due to {error}, which is unexpected"
            self._parts.recorder.event(pod, "Warning", UNEXPECTED, message)
            self.end(Verdict(UNEXPECTED, REJECTED + message))
            return None
        except (VolumeError, SandboxProblem) as error:
            if isinstance(error, VolumeLimitReached):
                self.end(Verdict(error.reason, REJECTED + str(error)))
            if isinstance(error, VolumeError) and not isinstance(error, VolumesWaiting):
                self._parts.recorder.event(pod, "Warning", error.reason, str(error))
            self._blocked = True
            return self._retry_s()
        except StartProblem as problem:
            return self._retry_s() if problem.retry_s is None else problem.retry_s
        return None

    async def _resize_containers(self, pod: Object, resizes: Sequence[Resize]) -> None:
        """Change limits under running containers: the pod's group grows before them and shrinks after them."""
        if resizes:
            await self._parts.cgroups.ensure(pod)
        for resize in resizes:
            try:
                await self._parts.runtime.update_resources(resize.container_id, resize.resources)
            except RuntimeUnavailable:
                raise
            except RuntimeFault as fault:
                message = resize_message("Pod resize error", pod, str(fault))
                self._parts.recorder.event(pod, "Warning", "ResizeError", message)
                raise
            await self._parts.pleg.refresh_container(self.uid, resize.container_id)
        if resizes:
            await self._parts.cgroups.ensure(pod)
        if self._resize is not None and self._resize["type"] == "PodResizeInProgress":
            self._resize = None
            self._parts.recorder.event(pod, "Normal", "ResizeCompleted", resize_message("Pod resize completed", pod))

    def _decide_resize(self) -> None:
        """A spec that asks for other resources than the pod was given: give them where the node has them."""
        if not is_resized(self.pod, self._allocated):
            if self._resize is not None and self._resize["type"] == "PodResizePending":
                self._resize = None
            return
        why = self._parts.resize_pending(self.pod)
        if why is None:
            self._allocated = asked_resources(self.pod)
            self._resize = resize_condition("PodResizeInProgress", self.pod)
            self._parts.recorder.event(
                self.pod, "Normal", "ResizeStarted", resize_message("Pod resize started", self.pod)
            )
            return
        condition = resize_condition("PodResizePending", self.pod, why.reason, why.message)
        if condition != self._resize:
            self._resize = condition
            message = resize_message(f"Pod resize {why.reason}", self.pod, why.message)
            self._parts.recorder.event(self.pod, "Warning", f"Resize{why.reason}", message)

    @property
    def given(self) -> Object:
        """The pod with the resources that it was given."""
        return with_allocated(self.pod, self._allocated)

    def _resources_of(self, kind: ContainerKind, container: Object) -> Resources:
        memory = self._parts.allocatable().get("memory", 0)
        return container_resources(self.given, kind, container, node_memory_bytes=memory)

    async def _refresh_volumes(self, pod: Object) -> None:
        """A running pod whose labels or annotations changed, or that was adopted: its volumes are to know of it."""
        known = _told_to_volumes(pod)
        if self._mounted != known and self._parts.pleg.observed(self.uid).ready_sandbox is not None:
            try:
                await self._parts.volumes.mount(pod)
            except VolumeError as error:
                log.warning("pod %s: its volumes cannot be refreshed: %s", format_pod(pod), error)
            self._mounted = known

    async def _reset(self, pod: Object, container_ids: Sequence[str]) -> None:
        """End them at once and remove them; the next look starts the pod from its first init container."""
        running = {status.id: status for status in self.observed().running}
        for container_id in container_ids:
            if (status := running.get(container_id)) is not None:
                await self._killer.kill(pod, status, message="killing", grace_s=0.0, pod_ip=self.pod_ip)
            await self._remove((container_id,))
        self._report()

    async def _remove(self, container_ids: tuple[str, ...]) -> None:
        for container_id in container_ids:
            await self._parts.runtime.remove_container(container_id)
            self._parts.pleg.drop(self.uid, container_id)
        self._killer.forget(container_ids)

    async def _remove_dead_sandboxes(self, observed: PodObserved) -> None:
        """All but the newest, which tells the next attempt its number."""
        for sandbox in observed.sandboxes[1:]:
            await self._parts.runtime.remove_sandbox(sandbox.id)
            self._parts.pleg.drop(self.uid, sandbox.id)

    async def _learn_ips(self) -> None:
        """After a restart of kone: the sandbox is there, its addresses are the network's to tell."""
        sandbox = self._parts.pleg.observed(self.uid).ready_sandbox
        if sandbox is not None and not self._starter.ips:
            try:
                await self._starter.attach(self.pod, sandbox.pid)
            except SandboxProblem:
                log.warning("pod %s: its sandbox has no network", format_pod(self.pod))

    def _deadline_s(self, status: Object) -> float | None:
        """Seconds until activeDeadlineSeconds are over."""
        limit = dig(self.pod, "spec", "activeDeadlineSeconds")
        if limit is None or not status.get("startTime"):
            return None
        return float(limit) - (self._parts.clock.now() - parse_time(status["startTime"]))

    # Status

    def _results(self, container: Object, container_id: str) -> ProbeResults:
        return self._parts.probes.results(self.pod, container, container_id)

    def _status(self, *, ended: bool) -> Object:
        return generate_status(
            self.given,
            self.observed(),
            self._results,
            old=self._parts.statuses.get(self.uid) or self.pod.get("status") or {},
            now=self._parts.clock.now(),
            host_ips=self._parts.config.node_ips,
            ended=ended,
            verdict=self.verdict,
            resize=self._resize,
        )

    def _report(self, *, ended: bool = False) -> Object:
        """Tell the API how the pod is; tell the probes what runs."""
        running = {c.name: c for c in reversed(self._parts.pleg.observed(self.uid).running)}
        self._parts.probes.sync(self.pod, running, self.pod_ip)
        status = self._status(ended=ended)
        if self._since is not None and status["phase"] == "Running":
            self._parts.meters.pod_start_s.observe(self._parts.clock.monotonic() - self._since)
            self._since = None
        if self.exists:
            self._parts.statuses.set(self.pod, status)
        return status

    def _report_quietly(self) -> None:
        self._report()

    def _report_end(self) -> None:
        """A container was ended: worth telling where others may still take their time."""
        if self.phase is Phase.TERMINATING and self._parts.pleg.observed(self.uid).running:
            self._report()

    # Terminating

    async def _end_containers(self) -> float | None:
        """End what runs, until nothing does; then the sandbox, the network, and what the pod held."""
        parts, pod = self._parts, self.pod
        await parts.pleg.refresh(self.uid)
        self._report()
        while running := self.observed().running:
            grace = float(grace_period_s(pod)) if self._grace_s is None else self._grace_s
            await self._killer.kill_all(pod, running, self.pod_ip, grace)
        parts.probes.remove(self.uid)
        for status in self.observed().containers:
            if status.state is ContainerState.CREATED:  # made, and cut off before its start
                await self._remove((status.id,))
        if not is_host_network(pod):
            await parts.network.detach(pod_uid=self.uid)
        for sandbox in self.observed().sandboxes:
            if sandbox.ready:
                await parts.runtime.stop_sandbox(sandbox.id)
        await parts.pleg.refresh(self.uid)
        if self.observed().running:
            return 0.0
        self.ended.set()
        self._report(ended=True)
        parts.devices.release(self.uid)
        try:
            await parts.volumes.unmount(self.uid)
            await parts.dra.release(self.uid)
        except (VolumeError, NotPrepared) as error:
            log.warning("pod %s: %s", format_pod(pod), error)
            return self._retry_s()
        await parts.cgroups.remove(self.uid)
        self.phase = Phase.TERMINATED
        self._wanted = True
        return None

    async def _clean_up(self) -> float | None:
        """Deleted in the API: say that the node is done with it; gone from the API: remove what is left."""
        observed = self.observed()
        if observed.running or any(sandbox.ready for sandbox in observed.sandboxes):
            self.phase, self._wanted = Phase.TERMINATING, True  # a start that was cut off came through after all
            return None
        if self.exists:
            self._report(ended=True)
            if not is_deleting(self.pod):
                return None
            await self._parts.statuses.flush(self.uid)
            return await self._delete_from_api()
        for status in self.observed().containers:
            await self._remove((status.id,))
        for sandbox in self.observed().sandboxes:
            await self._parts.runtime.remove_sandbox(sandbox.id)
            self._parts.pleg.drop(self.uid, sandbox.id)
        self._parts.files.remove(self.uid)
        self._parts.images.forget(self.uid)
        self._parts.restarts.forget(f"{self.uid}/")
        self.phase = Phase.GONE
        self._on_gone(self.uid)
        return None

    async def _delete_from_api(self) -> float | None:
        pod = self.pod
        if dig(pod, "metadata", "finalizers") and dig(pod, "metadata", "deletionGracePeriodSeconds") == 0:
            return None  # it was told already that the node is done; the write that removes the last one wakes us
        try:
            await self._parts.client.delete(PODS, name_of(pod), namespace=namespace_of(pod), uid=self.uid, grace_s=0)
        except StatusError as error:
            if error.code not in (404, 409):
                log.warning("pod %s cannot be deleted: %s", format_pod(pod), error)
                return self._retry_s()
        return None


def _told_to_volumes(pod: Object) -> tuple[Object, Object]:
    return labels_of(pod), annotations_of(pod)


def _differs(old: Object, new: Object) -> bool:
    """Whether anything changed that is not the kubelet's own word: spec, metadata, others' conditions."""
    return _foreign(old) != _foreign(new)


def _foreign(pod: Object) -> tuple[Object, Object, list[Object]]:
    meta = {key: value for key, value in pod["metadata"].items() if key not in ("resourceVersion", "managedFields")}
    conditions = dig(pod, "status", "conditions", default=())
    return meta, pod.get("spec") or {}, [c for c in conditions if c["type"] not in OWNED_CONDITIONS]
