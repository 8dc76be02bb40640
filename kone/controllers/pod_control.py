"""What controllers of pods share: who owns a pod, making pods from a template, and which pod to part with first."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, PODS
from kone.apimachinery.objects import (
    Object,
    annotations_of,
    controller_of,
    controller_reference,
    dig,
    find_condition,
    generation_of,
    is_controlled_by,
    is_deleting,
    is_pod_active,
    is_pod_ready,
    is_pod_terminal,
    labels_of,
    name_of,
    namespace_of,
    replace_in,
    uid_of,
)
from kone.apimachinery.selectors import LabelSelector
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import Client, Informer, Objects
from kone.client.events import EventRecorder
from kone.controllers.controller import NAMESPACE_TERMINATING, has_cause

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
CONTROLLER_INDEX = "controller"
BURST = 500  # pods that one pass makes or deletes at most
NAME_MAX = 253


# Whose pod is it?


def index_by_controller(informer: Informer) -> None:
    """Let `controlled_by` and `orphans_in` look pods (or ReplicaSets, Jobs, ...) up by their controller."""
    informer.add_index(CONTROLLER_INDEX, _controller_keys)


def _controller_keys(obj: Object) -> Iterable[str]:
    reference = controller_of(obj)
    return (reference["uid"] if reference is not None else f"orphans/{namespace_of(obj)}",)


def controlled_by(informer: Informer, owner: Object) -> Objects:
    return [
        obj for obj in informer.by_index(CONTROLLER_INDEX, uid_of(owner)) if namespace_of(obj) == namespace_of(owner)
    ]


def orphans_in(informer: Informer, namespace: str) -> Objects:
    return informer.by_index(CONTROLLER_INDEX, f"orphans/{namespace}")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a controller's selector and the owner references say of some objects."""

    owned: Objects
    adopt: Objects
    release: Objects


def plan_claims(owner: Object, candidates: Iterable[Object], matches: Callable[[Object], bool]) -> Claims:
    """Owned and matching: keep. Orphaned and matching: adopt. Owned and not matching: release. A controller that is
    being deleted neither adopts nor releases (ControllerRefManager.ClaimObject)."""
    claims = Claims([], [], [])
    for obj in candidates:
        if controller_of(obj) is None:
            if not is_deleting(owner) and not is_deleting(obj) and matches(obj):
                claims.adopt.append(obj)
        elif is_controlled_by(obj, owner):
            if matches(obj):
                claims.owned.append(obj)
            elif not is_deleting(owner):
                claims.release.append(obj)
    return claims


async def claim(
    client: Client,
    resource: GVR,
    owner_resource: GVR,
    owner: Object,
    candidates: Iterable[Object],
    selector: LabelSelector,
    *,
    fits: Callable[[Object], bool] = lambda obj: True,
    finalizer: str = "",
) -> Objects:
    """Adopt and release as planned, and return what the owner now has.

    Before the first adoption the owner is read afresh: one that is gone or being deleted must not adopt. An object that
    has gone meanwhile is no error; anything else raises after all have been tried.
    """
    claims = plan_claims(owner, candidates, lambda obj: selector.matches(labels_of(obj)) and fits(obj))
    owned = list(claims.owned)
    errors: list[StatusError] = []
    if claims.adopt:
        fresh = await client.get(owner_resource, name_of(owner), namespace_of(owner))
        if uid_of(fresh) != uid_of(owner) or is_deleting(fresh):
            return owned
    for obj in claims.adopt:
        try:
            owned.append(await _adopt(client, resource, owner, obj, finalizer))
        except StatusError as error:
            if error.code != 404:
                errors.append(error)
    for obj in claims.release:
        try:
            await _release(client, resource, owner, obj, finalizer)
        except StatusError as error:
            # 422: the object was made anew under this name, so it is no longer the one that we owned.
            if error.code not in (404, 422):
                errors.append(error)
    if errors:
        raise errors[0]
    return owned


async def _adopt(client: Client, resource: GVR, owner: Object, obj: Object, finalizer: str) -> Object:
    meta: Object = {"uid": uid_of(obj), "ownerReferences": [controller_reference(owner)]}
    if finalizer:
        meta["finalizers"] = [finalizer]
    return await client.patch(resource, name_of(obj), {"metadata": meta}, namespace=namespace_of(obj), kind="strategic")


async def _release(client: Client, resource: GVR, owner: Object, obj: Object, finalizer: str) -> None:
    meta: Object = {"uid": uid_of(obj), "ownerReferences": [{"$patch": "delete", "uid": uid_of(owner)}]}
    if finalizer:
        meta["$deleteFromPrimitiveList/finalizers"] = [finalizer]
    await client.patch(resource, name_of(obj), {"metadata": meta}, namespace=namespace_of(obj), kind="strategic")


# Making and deleting pods


def pod_from_template(template: Mapping[str, Any], owner: Object) -> Object:
    """The pod that a template and its owner make (controller.GetPodFromTemplate); its name is left to the API."""
    meta = template.get("metadata") or {}
    prefix = f"{name_of(owner)}-"
    made: Object = {
        "generateName": prefix if len(prefix) <= NAME_MAX else name_of(owner),
        "namespace": namespace_of(owner),
        "labels": dict(meta.get("labels") or {}),
        "annotations": dict(meta.get("annotations") or {}),
        "finalizers": list(meta.get("finalizers") or []),
        "ownerReferences": [controller_reference(owner)],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {key: value for key, value in made.items() if value},
        "spec": dict(template.get("spec") or {}),
    }


class PodControl:
    """Makes and deletes pods on behalf of an owner, and tells the owner's users."""

    def __init__(self, client: Client, recorder: EventRecorder) -> None:
        self._client, self._recorder = client, recorder

    async def create(self, pod: Object, owner: Object) -> Object:
        """Raises StatusError; a namespace that is being deleted is not worth an event."""
        try:
            created = await self._client.create(PODS, pod, namespace=namespace_of(owner))
        except StatusError as error:
            if not has_cause(error, NAMESPACE_TERMINATING):
                self._recorder.event(owner, "Warning", "FailedCreate", f"Error creating: {error}")
            raise
        self._recorder.event(owner, "Normal", "SuccessfulCreate", f"Created pod: {name_of(created)}")
        return created

    async def delete(self, pod: Object, owner: Object) -> None:
        """Raises StatusError, 404 where the pod has gone already."""
        try:
            await self._client.delete(PODS, name_of(pod), namespace=namespace_of(pod))
        except StatusError as error:
            if error.code != 404:
                self._recorder.event(owner, "Warning", "FailedDelete", f"Error deleting: {error}")
            raise
        self._recorder.event(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {name_of(pod)}")


async def slow_start(count: int, create: Callable[[int], Awaitable[object]]) -> StatusError | None:
    """Call create(0..count-1) in batches of 1, 2, 4, ...; a batch with an error is the last. Returns that error."""
    done, size = 0, 1
    while done < count:
        batch = range(done, min(done + size, count))
        error = await first_error(create(number) for number in batch)
        if error is not None:
            return error
        done, size = done + len(batch), size * 2
    return None


async def first_error(calls: Iterable[Awaitable[object]]) -> StatusError | None:
    """Await all calls together; the first StatusError among them. Anything else that is raised is raised."""
    first: StatusError | None = None
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, StatusError):
            first = first or result
        elif isinstance(result, BaseException):
            raise result
    return first


# Ready, available, terminating


def ready_since(pod: Object) -> float | None:
    """Unix seconds since when the pod is ready; None when it is not, 0 when the condition does not say."""
    condition = find_condition(pod, "Ready")
    if condition is None or condition.get("status") != "True":
        return None
    stamp = condition.get("lastTransitionTime")
    return parse_time(stamp) if stamp else 0.0


def is_pod_available(pod: Object, min_ready_s: int, now: float) -> bool:
    """Ready for at least `min_ready_s` (podutil.IsPodAvailable)."""
    since = ready_since(pod)
    if since is None:
        return False
    return min_ready_s == 0 or (since > 0 and since + min_ready_s <= now)


def next_availability_s(pods: Iterable[Object], min_ready_s: int, now: float) -> float | None:
    """Seconds until the next of the ready pods becomes available; None when there is none to wait for."""
    waits = [since + min_ready_s - now for pod in pods if (since := ready_since(pod))]
    return min((wait for wait in waits if wait > 0), default=None)


def is_pod_terminating(pod: Object) -> bool:
    """Being deleted, and not finished (controller.IsPodTerminating)."""
    return is_deleting(pod) and not is_pod_terminal(pod)


# Which pod goes first

_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


def rank_for_deletion(pods: Sequence[Object], related: Iterable[Object], now: float) -> Objects:
    """The pods, those to delete first in front (controller.ActivePodsWithRanks).

    Unassigned before assigned; pending before unknown before running; not ready before ready; lower deletion cost
    first; more siblings (`related`) on the same node first; ready for a shorter time first; more restarts first;
    younger first. Times are compared by powers of two, equal ones by UID, so that no age is always the victim.
    """
    on_node: dict[str, int] = {}
    for pod in related:
        if is_pod_active(pod):
            node = dig(pod, "spec", "nodeName", default="")
            on_node[node] = on_node.get(node, 0) + 1

    def compare(a: Object, b: Object) -> int:
        for key in (_is_assigned, _phase, is_pod_ready, deletion_cost):
            if key(a) != key(b):
                return -1 if key(a) < key(b) else 1
        crowd_a, crowd_b = (on_node.get(dig(pod, "spec", "nodeName", default=""), 0) for pod in (a, b))
        if crowd_a != crowd_b:
            return -1 if crowd_a > crowd_b else 1
        if is_pod_ready(a) and is_pod_ready(b) and (order := _compare_times(a, b, ready_since(a), ready_since(b), now)):
            return order
        if _restarts(a) != _restarts(b):
            return -1 if _restarts(a) > _restarts(b) else 1
        return _compare_times(a, b, _created(a), _created(b), now)

    return sorted(pods, key=functools.cmp_to_key(compare))


def deletion_cost(pod: Object) -> int:
    """The pod-deletion-cost annotation; 0 where it is missing or not a number (helper.GetDeletionCost)."""
    text = annotations_of(pod).get(DELETION_COST, "")
    plain = text[1:] if text[:1] == "-" else text
    if not (plain.isascii() and plain.isdigit()) or (len(plain) > 1 and plain[0] == "0") or text == "-0":
        return 0
    cost = int(text)
    return cost if -(2**31) <= cost < 2**31 else 0


def _is_assigned(pod: Object) -> bool:
    return bool(dig(pod, "spec", "nodeName"))


def _phase(pod: Object) -> int:
    return _PHASES.get(dig(pod, "status", "phase", default=""), 0)


def _created(pod: Object) -> float | None:
    stamp = dig(pod, "metadata", "creationTimestamp")
    return parse_time(stamp) if stamp else None


def _restarts(pod: Object) -> tuple[int, int]:
    """The most restarts of a container, then of a sidecar."""
    sidecars = {
        container["name"]
        for container in dig(pod, "spec", "initContainers", default=())
        if container.get("restartPolicy") == "Always"
    }
    regular = [status.get("restartCount", 0) for status in dig(pod, "status", "containerStatuses", default=())]
    side = [
        status.get("restartCount", 0)
        for status in dig(pod, "status", "initContainerStatuses", default=())
        if status["name"] in sidecars
    ]
    return max(regular, default=0), max(side, default=0)


def _compare_times(a: Object, b: Object, time_a: float | None, time_b: float | None, now: float) -> int:
    """The later time first; an unknown time before any."""
    if time_a == time_b:
        return 0
    if not time_a or not time_b:
        return -1 if not time_a else 1
    rank_a, rank_b = _age_rank(now - time_a), _age_rank(now - time_b)
    if rank_a == rank_b:
        return -1 if uid_of(a) < uid_of(b) else 1
    return -1 if rank_a < rank_b else 1


def _age_rank(age_s: float) -> int:
    return int(math.log2(age_s * 1e9)) if age_s > 0 else -1


# Pods of a node, and their conditions

_NODE_INDEX = "node"


def index_by_node(pods: Informer) -> None:
    """Let `on_node` look pods up by the node that they are bound to."""
    pods.add_index(_NODE_INDEX, lambda pod: [name] if (name := dig(pod, "spec", "nodeName")) else [])


def on_node(pods: Informer, node_name: str) -> Objects:
    return pods.by_index(_NODE_INDEX, node_name)


def with_condition(pod: Object, condition: Mapping[str, Any], now: float) -> Object:
    """The pod with that condition in the place of the one of its type; unchanged where it has it already."""
    old = find_condition(pod, condition["type"])
    stamp = format_time(now)
    if old is not None and old["status"] == condition["status"]:
        stamp = old.get("lastTransitionTime", stamp)
    new = {**condition, "lastTransitionTime": stamp, "observedGeneration": generation_of(pod)}
    conditions = list(dig(pod, "status", "conditions", default=[]))
    if old is None:
        conditions.append(new)
    else:
        conditions[conditions.index(old)] = new
    return replace_in(pod, ("status", "conditions"), conditions)


async def add_condition(
    client: Client, pod: Object, condition: Mapping[str, Any] | None, now: float, *, phase: str = ""
) -> None:
    """Write a condition, or a phase, or both, into the pod's status."""
    changed = with_condition(pod, condition, now) if condition is not None else pod
    if phase:
        changed = replace_in(changed, ("status", "phase"), phase)
        changed = replace_in(changed, ("status", "observedGeneration"), generation_of(pod))
    if changed == pod:
        return
    status = {key: changed["status"][key] for key in ("phase", "observedGeneration") if key in changed["status"]}
    if condition is not None:
        status["conditions"] = [find_condition(changed, condition["type"])]
    patch = {"metadata": {"uid": uid_of(pod)}, "status": status}
    await client.patch(PODS, name_of(pod), patch, namespace=namespace_of(pod), subresource="status", kind="strategic")
