"""The scheduler: one pod at a time, one cycle each, from the queue to a binding.

A cycle decides without waiting: it filters, scores, and assumes the pod on its node. Telling the API (the binding, or
that no node fits, or whom to preempt) goes on beside the next cycle. Nothing is polled: informers fill the queue and
say what might help the pods that wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, PODS
from kone.apimachinery.objects import (
    Object,
    dig,
    find_condition,
    generation_of,
    is_deleting,
    is_pod_terminal,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kone.apimachinery.pod_resources import pod_requests
from kone.apimachinery.timestamps import format_time
from kone.client.client import Client, EventType, Handler, Unsubscribe
from kone.scheduler.claim_reservation import ClaimReservation
from kone.scheduler.configuration import POINTS, Configuration, Profile, default_configuration
from kone.scheduler.feed import Feed
from kone.scheduler.framework import (
    ClusterEvent,
    Framework,
    Happened,
    NoFit,
    Nominator,
    Placement,
    Plugin,
    PluginError,
)
from kone.scheduler.plugins import DEFAULT
from kone.scheduler.plugins.default_preemption import DefaultPreemption
from kone.scheduler.plugins.dynamic_resources import DynamicResources
from kone.scheduler.plugins.volume_binding import VolumeBinding
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.preemption import Victims
from kone.scheduler.queue import QueuedPod, SchedulingQueue
from kone.scheduler.snapshot import Cluster
from kone.scheduler.volume_binder import VolumeBinder

log = logging.getLogger(__name__)

NO_NODES = "no nodes available to schedule pods"
NOT_TRIED = "not found"  # what upstream says of preemption where no node was looked at
TELLING_MAX = 64  # bindings under way; the next pod waits then
NOTE_MAX = 1024  # of an event's message
UNSCHEDULABLE, SCHEDULER_ERROR = "Unschedulable", "SchedulerError"


class Recorder(Protocol):
    """The part of client.events.EventRecorder that the scheduler speaks to."""

    def event(
        self,
        about: Object,
        kind: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        *,
        action: str = "",
    ) -> None: ...


class Scheduler:
    """Binds the pods whose spec.schedulerName is one of the configuration's profiles."""

    def __init__(
        self,
        client: Client,
        recorders: Mapping[str, Recorder],
        clock: Clock,
        configuration: Configuration | None = None,
    ) -> None:
        """`recorders`: one for each profile, by its name."""
        self._client = client
        self._recorders = recorders
        self._clock = clock
        self._cluster = Cluster()
        self._nominator = Nominator()
        self._volumes = VolumeBinder(client, clock)
        self._devices = ClaimReservation(client, clock, self._tell_of)
        found = configuration or default_configuration()
        self._frameworks = {profile.name: self._framework_of(profile) for profile in found.profiles}
        backoff = found.backoff_first_s, found.backoff_max_s
        self._queue = SchedulingQueue(self._frameworks, clock, *backoff)
        self._feed = Feed(self._cluster, self._queue.move, self._volumes.changed, self._devices.changed)
        self._tasks = TaskGroup("scheduler")
        self._telling = 0  # bindings that the API has not answered
        self._told = asyncio.Event()
        self.placing_s = 0.0  # that plugins have taken to find nodes
        self._subscriptions: list[Unsubscribe] = []

    def _framework_of(self, profile: Profile) -> Framework:
        points = {own: of for point, owns in POINTS.items() for own in owns for of in [profile.points[point]]}
        plugins = [self._plugin(plugin, profile.args.get(plugin.name, {})) for plugin in DEFAULT]
        return Framework(self._cluster, plugins, self._nominator, points=points, percentage=profile.percentage)

    def _plugin(self, plugin: type[Plugin], args: Object) -> Plugin:
        """Plugins are pure but for these, which are given what they tell the API with."""
        if plugin is VolumeBinding:
            return VolumeBinding(self._cluster, args, self._volumes.bind)
        if plugin is DefaultPreemption:
            return DefaultPreemption(self._cluster, args, self._preempt)
        if plugin is DynamicResources:
            return DynamicResources(
                self._cluster,
                args,
                new_id=lambda: str(uuid.uuid4()),
                reserve_claims=self._devices.reserve,
                deallocate=self._devices.deallocate,
                delete=self._devices.delete,
                now=self._clock.now,
            )
        return plugin(self._cluster, args)

    def _framework(self, pod: PodInfo) -> Framework:
        return self._frameworks[pod.scheduler_name]

    async def start(self) -> None:
        """Read the cluster, then schedule until `stop`."""
        # Pods come last: the first one that waits shall see all the rest.
        handlers: dict[GVR, Handler] = {**self._feed.handlers(), PODS: self._on_pod}
        informers = {resource: self._client.informer(resource) for resource in handlers}
        for informer in informers.values():
            await informer.wait_synced()
        self._subscriptions = [informers[resource].subscribe(handler) for resource, handler in handlers.items()]
        self._queue.start()
        self._tasks.guard(self._run, name="scheduler")

    async def stop(self) -> None:
        """End after what is being told to the API now; assumed pods that are not bound yet are scheduled anew."""
        for unsubscribe in self._subscriptions:
            unsubscribe()
        self._subscriptions = []
        await self._tasks.cancel()
        await self._queue.stop()

    # -- one cycle -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(0)  # the API is served between two cycles
            if self._telling >= TELLING_MAX:
                self._told.clear()
                await self._told.wait()
            queued = await self._queue.pop()
            try:
                self._schedule(queued)
            except PluginError as error:
                log.warning("pod=%s/%s: %s", queued.info.namespace, queued.info.name, error)
                self._queue.requeue(queued, (), is_error=True)
                self._failed(queued.info, str(error))
            except Exception as error:
                # One pod that cannot be worked out (an affinity term nobody understands) must not stop the others.
                log.exception("scheduling failed: pod=%s/%s", queued.info.namespace, queued.info.name)
                self._queue.requeue(queued, (), is_error=True)
                self._failed(queued.info, str(error))

    def _schedule(self, queued: QueuedPod) -> None:
        pod = queued.info
        if pod.is_terminating or self._cluster.is_assumed(pod.uid):
            self._queue.remove(pod.uid)
            return
        if not self._cluster.nodes():
            self._queue.requeue(queued, ())
            self._nominator.remove(pod.uid)
            self._report_failure(pod, UNSCHEDULABLE, NO_NODES, "")
            return
        began = time.perf_counter()
        found = self._framework(pod).place(pod)
        self.placing_s += time.perf_counter() - began
        if isinstance(found, NoFit):
            self._no_fit(queued, found)
            return
        assumed = pod.on(found.node.name)
        self._cluster.assume(assumed)
        self._nominator.remove(pod.uid)
        if (status := self._framework(pod).reserve(found.state, assumed, found.node)) is not None:
            self._cluster.forget(pod.uid)
            self._queue.requeue(queued, [status.plugin])
            self._report_failure(pod, UNSCHEDULABLE, f"0/1 nodes are available: 1 {status.message}.")
            return
        self._tasks.spawn(self._bind(queued, assumed, found), name=f"bind {pod.namespace}/{pod.name}")

    def _no_fit(self, queued: QueuedPod, failure: NoFit) -> None:
        pod = queued.info
        if failure.diagnosis.pre_filter_message:
            failure.diagnosis.post_filter_message = NOT_TRIED
            self._queue.requeue(queued, failure.diagnosis.plugins)
            self._report_failure(pod, UNSCHEDULABLE, failure.diagnosis.message(failure.node_count))
            return
        remedy = self._framework(pod).post_filter(pod, failure)
        failure.diagnosis.post_filter_message = remedy.message
        if remedy.nominated:
            self._nominator.set(pod, remedy.nominated)
        elif remedy.nominated is not None:
            self._nominator.remove(pod.uid)
        self._queue.requeue(queued, failure.diagnosis.plugins)
        self._report_failure(pod, UNSCHEDULABLE, failure.diagnosis.message(failure.node_count), remedy.nominated)
        if remedy.deed is not None:
            self._tasks.spawn(self._carry_out(pod, remedy.deed), name=f"make room for {pod.namespace}/{pod.name}")

    async def _carry_out(self, pod: PodInfo, deed: Callable[[], Awaitable[None]]) -> None:
        """When it is done, the pod may be tried as soon as something changes for it."""
        try:
            await deed()
        finally:
            queued = self._queue.find(pod.uid)
            if queued is not None and queued.gated_by:
                self._queue.activate(pod.uid)

    # -- telling the API -----------------------------------------------------------------------------------------

    async def _bind(self, queued: QueuedPod, pod: PodInfo, placement: Placement) -> None:
        node = placement.node
        try:
            busy = [p for p in self._framework(pod).at("pre_bind") if p.will_pre_bind(placement.state, pod, node)]
            if busy:
                await self._try_patch(pod, {"nominatedNodeName": node.name})
            for plugin in busy:
                if (status := await plugin.pre_bind(placement.state, pod, node)) is not None:
                    raise PreBindError(f'running PreBind plugin "{plugin.name}": {status.message}')
            binding: Object = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "target": {"kind": "Node", "name": node.name},
            }
            await self._tell(binding)
        except (StatusError, OSError, PreBindError) as error:
            self._binding_failed(queued, pod, placement, error)
            return
        self._queue.remove(pod.uid)
        message = f"Successfully assigned {pod.namespace}/{pod.name} to {node.name}"
        self._recorders[pod.scheduler_name].event(pod.pod, "Normal", "Scheduled", message, action="Binding")
        for plugin in self._framework(pod).at("post_bind"):
            await plugin.post_bind(placement.state, pod, node)

    async def _tell(self, binding: Object) -> None:
        self._telling += 1
        try:
            namespace, name = namespace_of(binding), name_of(binding)
            await self._client.create(PODS, binding, namespace=namespace, subresource="binding", name=name)
        finally:
            self._telling -= 1
            self._told.set()

    def _binding_failed(
        self, queued: QueuedPod, pod: PodInfo, placement: Placement, error: StatusError | OSError | PreBindError
    ) -> None:
        self._framework(pod).unreserve(placement.state, pod, placement.node)
        if not self._cluster.is_assumed(pod.uid):
            return  # the pod is bound or gone: its event has come meanwhile
        self._cluster.forget(pod.uid)
        self._queue.move(ClusterEvent(Happened.POD_GONE, pod.pod, None))
        if isinstance(error, StatusError) and error.code == 404:
            self._queue.remove(pod.uid)
            return
        log.warning("binding failed: pod=%s/%s node=%s error=%s", pod.namespace, pod.name, placement.node.name, error)
        self._queue.requeue(queued, (), is_error=True)
        why = str(error) if isinstance(error, PreBindError) else f'running Bind plugin "DefaultBinder": {error}'
        self._failed(queued.info, why)

    def _failed(self, pod: PodInfo, why: str) -> None:
        """Something went wrong that is none of the pod's: what was promised to it is taken back."""
        self._nominator.remove(pod.uid)
        self._report_failure(pod, SCHEDULER_ERROR, why, "")

    def _tell_of(self, pod: PodInfo, reason: str, message: str) -> None:
        self._recorders[pod.scheduler_name].event(pod.pod, "Normal", reason, message, action="Scheduling")

    def _report_failure(self, pod: PodInfo, reason: str, message: str, nominated: str | None = None) -> None:
        """Tell users why the pod waits; `nominated` is the node promised to it, "" none any more, None unchanged."""
        note = message if len(message) <= NOTE_MAX else message[: NOTE_MAX - 4] + " ..."
        self._recorders[pod.scheduler_name].event(pod.pod, "Warning", "FailedScheduling", note, action="Scheduling")
        self._tasks.spawn(
            self._patch_status(pod, _not_scheduled(reason, message), nominated),
            name=f"status of {pod.namespace}/{pod.name}",
        )

    async def _patch_status(self, pod: PodInfo, condition: Object, nominated: str | None) -> None:
        live = self._client.informer(PODS).get(pod.namespace, pod.name)
        if live is None or uid_of(live) != pod.uid or dig(live, "spec", "nodeName"):
            return
        status: dict[str, Any] = {}
        known = find_condition(live, condition["type"])
        if known is None or any(known.get(key) != condition[key] for key in ("status", "reason", "message")):
            changed = known is None or known.get("status") != condition["status"]
            since = format_time(self._clock.now()) if changed or known is None else known.get("lastTransitionTime")
            generation = {"observedGeneration": generation_of(live)} if generation_of(live) else {}
            status["conditions"] = [{**condition, **generation, "lastProbeTime": None, "lastTransitionTime": since}]
        if nominated is not None and nominated != dig(live, "status", "nominatedNodeName", default=""):
            status["nominatedNodeName"] = nominated or None
        if status:
            await self._try_patch(pod, status)

    async def _try_patch(self, pod: PodInfo, status: Object) -> bool:
        patch: Object = {"metadata": {"uid": pod.uid}, "status": status}
        try:
            await self._client.patch(
                PODS, pod.name, patch, namespace=pod.namespace, subresource="status", kind="strategic"
            )
        except (StatusError, OSError) as error:
            log.info("status of pod not written: pod=%s/%s error=%s", pod.namespace, pod.name, error)
            return False
        return True

    async def _preempt(self, preemptor: PodInfo, victims: Victims) -> None:
        """Ask the victims away, and take back what was promised on their node to less important pods."""
        node = victims.node.name
        for victim in victims.pods:
            if not victim.is_terminating:
                await self._ask_away(preemptor, victim, node)
        for other in self._nominator.on(node):
            if other.priority < preemptor.priority:
                self._nominator.remove(other.uid)
                await self._try_patch(other, {"nominatedNodeName": None})

    async def _ask_away(self, preemptor: PodInfo, victim: PodInfo, node: str) -> None:
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": f"{preemptor.scheduler_name}: preempting to accommodate a higher priority pod",
            "lastProbeTime": None,
            "lastTransitionTime": format_time(self._clock.now()),
        }
        await self._try_patch(victim, {"conditions": [condition]})
        try:
            await self._client.delete(PODS, victim.name, namespace=victim.namespace, uid=victim.uid)
        except (StatusError, OSError) as error:
            if not isinstance(error, StatusError) or error.code != 404:
                log.warning("victim not deleted: pod=%s/%s error=%s", victim.namespace, victim.name, error)
                return
        message = f"Preempted by pod {preemptor.uid} on node {node}"
        self._recorders[preemptor.scheduler_name].event(victim.pod, "Normal", "Preempted", message, action="Preempting")

    # -- what informers say --------------------------------------------------------------------------------------

    def _on_pod(self, kind: EventType, pod: Object, old: Object | None) -> None:
        uid = uid_of(pod)
        if kind == "DELETED":
            self._volumes.changed()
        known = self._cluster.pod(uid)
        if kind != "DELETED" and is_bound(pod):
            was_waiting = known is None or self._cluster.is_assumed(uid)
            self._cluster.set_pod(PodInfo(pod))
            self._nominator.remove(uid)
            self._queue.remove(uid)
            if was_waiting:
                self._queue.move(ClusterEvent(Happened.POD_ADDED, None, pod))
            elif old is not None and (what := bound_pod_changes(old, pod)):
                self._queue.move(ClusterEvent(what, old, pod))
            return
        is_waiting = kind != "DELETED" and not dig(pod, "spec", "nodeName") and not is_pod_terminal(pod)
        if known is not None and not (is_waiting and self._cluster.is_assumed(uid)):
            self._cluster.remove_pod(uid)
            self._queue.move(ClusterEvent(Happened.POD_GONE, known.pod, None))
        if is_waiting and not is_deleting(pod):
            if PodInfo(pod).scheduler_name in self._frameworks:
                self._on_waiting_pod(pod, old)
        else:
            self._forget_waiting(uid, pod)

    def _on_waiting_pod(self, pod: Object, old: Object | None) -> None:
        info = PodInfo(pod)
        is_promised = self._nominator.node_of(info.uid) or self._cluster.is_assumed(info.uid)
        if info.nominated_node and not is_promised:
            self._nominator.set(info, info.nominated_node)
        events = [ClusterEvent(what, old, pod) for what in waiting_pod_changes(old, pod)] if old is not None else []
        self._queue.update(info, events)

    def _forget_waiting(self, uid: str, pod: Object) -> None:
        self._queue.remove(uid)
        if promised := self._nominator.node_of(uid):
            # Others may have been kept from the node that was promised to this pod.
            self._nominator.remove(uid)
            log.debug("promised node is free: node=%s pod=%s/%s", promised, namespace_of(pod), name_of(pod))
            self._queue.move(ClusterEvent(Happened.POD_GONE, pod, None))


class PreBindError(Exception):
    """What had to come before the binding has failed."""


def _not_scheduled(reason: str, message: str) -> Object:
    return {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}


def is_bound(pod: Object) -> bool:
    """It has a node and uses what it asked for."""
    return bool(dig(pod, "spec", "nodeName")) and not is_pod_terminal(pod)


def bound_pod_changes(old: Object, new: Object) -> Happened:
    what = Happened(0)
    if labels_of(old) != labels_of(new):
        what |= Happened.POD_LABELS
    if old.get("spec") is not new.get("spec") and _asks_for_less(old, new):
        what |= Happened.POD_SCALED_DOWN
    return what


def waiting_pod_changes(old: Object, new: Object) -> Iterator[Happened]:
    if labels_of(old) != labels_of(new):
        yield Happened.SELF_LABELS
    if dig(old, "spec", "tolerations") != dig(new, "spec", "tolerations"):
        yield Happened.SELF_TOLERATIONS
    if dig(old, "status", "resourceClaimStatuses") != dig(new, "status", "resourceClaimStatuses"):
        yield Happened.SELF_CLAIMS
    if dig(old, "spec", "schedulingGates") and not dig(new, "spec", "schedulingGates"):
        yield Happened.SELF_GATES
    if _asks_for_less(old, new):
        yield Happened.SELF_SCALED_DOWN


def _asks_for_less(old: Object, new: Object) -> bool:
    if old.get("spec") == new.get("spec"):
        return False
    before, after = pod_requests(old), pod_requests(new)
    return any(after.get(name, 0) < amount for name, amount in before.items())
