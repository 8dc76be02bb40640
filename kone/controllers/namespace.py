"""Namespaces being deleted: all their content goes, pods first, then the namespace itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, NAMESPACES, PODS
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    find_condition,
    is_deleting,
    is_pod_terminal,
    key_of,
    metadata,
    name_of,
    namespace_of,
    replace_in,
)
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import EventType, Informer, Objects
from kone.controllers.controller import Context, Controller, NotYet, Reconciler, Result, Watch

FINALIZER = "kubernetes"
FINALIZERS_ESTIMATE_S = 15  # how long finalizers are given before the next look

DISCOVERY = "NamespaceDeletionDiscoveryFailure"
PARSING = "NamespaceDeletionGroupVersionParsingFailure"
CONTENT = "NamespaceDeletionContentFailure"
REMAINING = "NamespaceContentRemaining"
FINALIZERS = "NamespaceFinalizersRemaining"

_FINE: Mapping[str, tuple[str, str]] = {
    DISCOVERY: ("ResourcesDiscovered", "All resources successfully discovered"),
    PARSING: ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
    CONTENT: ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
    REMAINING: ("ContentRemoved", "All content successfully removed"),
    FINALIZERS: ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
}


# Decide


@dataclass(slots=True)
class Leftovers:
    """What a pass over a namespace could not remove yet."""

    counts: dict[GVR, int] = field(default_factory=dict)
    finalizers: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    estimate_s: int = 0

    def add(self, resource: GVR, objects: Objects, estimate_s: int) -> None:
        """Objects that are still there after they were deleted; `estimate_s` is 0 where none can be given."""
        if not objects:
            return
        self.counts[resource] = len(objects)
        held = Counter(finalizer for obj in objects for finalizer in metadata(obj).get("finalizers") or ())
        self.finalizers.update(held)
        if estimate_s == 0 and held:
            estimate_s = FINALIZERS_ESTIMATE_S
        self.estimate_s = max(self.estimate_s, estimate_s)


def pods_estimate_s(pods: Iterable[Object], deleted_at: float, now: float) -> int:
    """The longest grace of pods that still run; 0 when even that has passed since the namespace was deleted."""
    graces = (
        int(dig(pod, "spec", "terminationGracePeriodSeconds", default=0)) for pod in pods if not is_pod_terminal(pod)
    )
    longest = max(graces, default=0)
    return longest if now - deleted_at < longest else 0


def with_conditions(namespace: Object, left: Leftovers, now: float) -> Object:
    """The namespace with the five conditions of its deletion; those without a finding say that all is well."""
    found: dict[str, tuple[str, str]] = {}
    if left.counts:
        texts = sorted(f"{gvr.resource}.{gvr.group} has {n} resource instances" for gvr, n in left.counts.items())
        found[REMAINING] = ("SomeResourcesRemain", f"Some resources are remaining: {', '.join(texts)}")
    if left.finalizers:
        texts = sorted(f"{name} in {n} resource instances" for name, n in left.finalizers.items())
        message = f"Some content in the namespace has finalizers remaining: {', '.join(texts)}"
        found[FINALIZERS] = ("SomeFinalizersRemain", message)
    if left.errors:
        texts = sorted(left.errors)
        message = f"Failed to delete all resource types, {len(texts)} remaining: {', '.join(texts)}"
        found[CONTENT] = ("ContentDeletionFailed", message)
    conditions = list(dig(namespace, "status", "conditions", default=[]))
    for kind, (fine_reason, fine_message) in _FINE.items():
        status = "True" if kind in found else "False"
        reason, message = found.get(kind, (fine_reason, fine_message))
        old = find_condition(namespace, kind)
        transition = format_time(now)
        if old is not None:
            conditions.remove(old)
            transition = old["lastTransitionTime"] if old["status"] == status else transition
        conditions.append(
            {"type": kind, "status": status, "lastTransitionTime": transition, "reason": reason, "message": message}
        )
    order = list(_FINE)
    conditions.sort(key=lambda c: order.index(c["type"]) if c["type"] in order else -1)
    return replace_in(namespace, ("status", "conditions"), conditions)


# Act


class Namespaces(Reconciler):
    """Empties and finalizes namespaces that are being deleted."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(NAMESPACES)
        self._pods: Informer = ctx.client.informer(PODS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_deleted)
        yield Watch(self._pods, self._keys_of_pod)

    def _keys_of_deleted(self, event: EventType, namespace: Object, previous: Object | None) -> Iterable[Key]:
        return (key_of(namespace),) if is_deleting(namespace) and event != "DELETED" else ()

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        """The last pod of a namespace that waits for it: no need to wait on."""
        if event != "DELETED" or self._pods.list(namespace_of(pod)):
            return ()
        namespace = self.primary.get("", namespace_of(pod))
        return (key_of(namespace),) if namespace is not None and is_deleting(namespace) else ()

    async def reconcile(self, key: Key) -> Result | None:
        namespace = self.primary.get(*key)
        if namespace is None or not is_deleting(namespace) or not dig(namespace, "spec", "finalizers"):
            return None
        client = self._ctx.client
        if dig(namespace, "status", "phase") != "Terminating":
            namespace = replace_in(namespace, ("status", "phase"), "Terminating")
            namespace = await client.update(NAMESPACES, namespace, subresource="status")
        left = await self._delete_content(namespace)
        # While there are pods, nothing else was looked at: what remains is told only when all has been.
        seen = Leftovers(errors=left.errors) if PODS in left.counts else left
        told = with_conditions(namespace, seen, self._ctx.clock.now())
        if told != namespace:
            namespace = await client.update(NAMESPACES, told, subresource="status")
        if left.errors:
            raise NotYet("; ".join(left.errors))
        if left.estimate_s > 0:
            return Result(after_s=left.estimate_s // 2 + 1)
        others = [name for name in namespace["spec"]["finalizers"] if name != FINALIZER]
        await client.update(NAMESPACES, replace_in(namespace, ("spec", "finalizers"), others), subresource="finalize")
        return None

    async def _delete_content(self, namespace: Object) -> Leftovers:
        """Delete everything that the API has in the namespace; nothing but pods while there are pods."""
        left = Leftovers()
        await self._delete_all(PODS, namespace, left)
        if not left.counts:
            for resource in self._ctx.settings.namespaced_resources():
                if resource != PODS:
                    await self._delete_all(resource, namespace, left)
        return left

    async def _delete_all(self, resource: GVR, namespace: Object, left: Leftovers) -> None:
        client, name = self._ctx.client, name_of(namespace)
        try:
            objects = await client.list(resource, name)
            if not objects:
                return
            estimate_s = 0
            if resource == PODS:
                deleted_at = parse_time(namespace["metadata"]["deletionTimestamp"])
                estimate_s = pods_estimate_s(objects, deleted_at, self._ctx.clock.now())
            await client.delete_collection(resource, namespace=name, propagation="Background")
            objects = await client.list(resource, name)
        except StatusError as error:
            if error.code not in (404, 405):
                left.errors.append(str(error))
            return
        left.add(resource, objects, estimate_s)
        if objects and left.estimate_s == 0:
            gvr = f"{resource.group}/{resource.version}, Resource={resource.resource}"
            left.errors.append(f"unexpected items still remain in namespace: {name} for gvr: {gvr}")


NAMESPACE_CONTROLLER = Controller("namespace-controller", Namespaces, workers=10, backoff_max_s=60.0)
