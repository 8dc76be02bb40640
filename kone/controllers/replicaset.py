"""ReplicaSets, and ReplicationControllers from the same code: as many pods as asked for, adopted, made or deleted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, PODS, REPLICASETS, REPLICATIONCONTROLLERS
from kone.apimachinery.objects import (
    Key,
    Object,
    controller_of,
    dig,
    find_condition,
    generation_of,
    is_deleting,
    is_pod_active,
    is_pod_ready,
    labels_of,
    replace_in,
)
from kone.apimachinery.selectors import LabelSelector, from_label_selector, from_labels
from kone.apimachinery.timestamps import format_time
from kone.client.client import Informer, Objects
from kone.controllers.controller import (
    NAMESPACE_TERMINATING,
    Context,
    Controller,
    Reconciler,
    Result,
    Watch,
    for_members,
    for_object,
    has_cause,
)
from kone.controllers.pod_control import (
    BURST,
    CONTROLLER_INDEX,
    PodControl,
    claim,
    controlled_by,
    first_error,
    index_by_controller,
    is_pod_available,
    is_pod_terminating,
    next_availability_s,
    orphans_in,
    pod_from_template,
    rank_for_deletion,
    slow_start,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What tells the two kinds apart."""

    kind: str
    resource: GVR
    counts_terminating: bool

    def selector(self, owner: Object) -> LabelSelector:
        if self.kind == "ReplicaSet":
            return from_label_selector(dig(owner, "spec", "selector"))
        labels = dig(owner, "spec", "selector")
        return from_labels(labels) if labels else LabelSelector(nothing=True)


REPLICA_SET = Kind("ReplicaSet", REPLICASETS, counts_terminating=True)
REPLICATION_CONTROLLER = Kind("ReplicationController", REPLICATIONCONTROLLERS, counts_terminating=False)


# Decide


def replicas_of(owner: Object) -> int:
    return int(dig(owner, "spec", "replicas", default=1))


@dataclass(frozen=True, slots=True)
class Counts:
    """The pods of a set, as its status counts them. All but `terminating` are of active pods only."""

    replicas: int = 0
    fully_labeled: int = 0
    ready: int = 0
    available: int = 0
    terminating: int = 0


def count_pods(owner: Object, active: Iterable[Object], terminating: int, now: float) -> Counts:
    """Fully labeled: with all the labels of the template; available: ready for minReadySeconds."""
    template_labels = from_labels(dig(owner, "spec", "template", "metadata", "labels", default={}))
    min_ready_s = int(dig(owner, "spec", "minReadySeconds", default=0))
    counts = Counts(terminating=terminating)
    for pod in active:
        counts = replace(
            counts,
            replicas=counts.replicas + 1,
            fully_labeled=counts.fully_labeled + template_labels.matches(labels_of(pod)),
            ready=counts.ready + is_pod_ready(pod),
            available=counts.available + is_pod_available(pod, min_ready_s, now),
        )
    return counts


def make_status(kind: Kind, owner: Object, counts: Counts, failure: StatusError | None, now: float) -> Object:
    """The status to write; zero counts are left out as the API would, but for `replicas`.

    A failure to make or delete pods is told by the condition ReplicaFailure, which stays as it is until it is over.
    """
    condition = find_condition(owner, "ReplicaFailure")
    conditions = list(dig(owner, "status", "conditions", default=[]))
    if failure is not None and condition is None:
        reason = "FailedCreate" if counts.replicas < replicas_of(owner) else "FailedDelete"
        conditions.append(
            {
                "type": "ReplicaFailure",
                "status": "True",
                "lastTransitionTime": format_time(now),
                "reason": reason,
                "message": str(failure),
            }
        )
    elif failure is None and condition is not None:
        conditions.remove(condition)
    status: Object = {
        "fullyLabeledReplicas": counts.fully_labeled,
        "readyReplicas": counts.ready,
        "availableReplicas": counts.available,
        "observedGeneration": generation_of(owner),
        "conditions": conditions,
    }
    status = {"replicas": counts.replicas, **{field: value for field, value in status.items() if value}}
    if kind.counts_terminating:
        status["terminatingReplicas"] = counts.terminating
    return status


def pods_to_delete(active: Sequence[Object], related: Sequence[Object], surplus: int, now: float) -> Objects:
    """`surplus` of the active pods; ranking is spared when all must go."""
    if surplus >= len(active):
        return list(active)
    return rank_for_deletion(active, related, now)[:surplus]


# Act


class ReplicaSets(Reconciler):
    """Reconciles ReplicaSets or ReplicationControllers."""

    def __init__(self, ctx: Context, kind: Kind = REPLICA_SET) -> None:
        self._ctx, self._kind = ctx, kind
        self._pod_control = PodControl(ctx.client, ctx.recorder)
        self.primary: Informer = ctx.client.informer(kind.resource)
        self._pods: Informer = ctx.client.informer(PODS)
        index_by_controller(self._pods)
        index_by_controller(self.primary)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)
        yield Watch(self._pods, for_members(self.primary, self._kind.kind, self._kind.selector))

    async def reconcile(self, key: Key) -> Result | None:
        owner = self.primary.get(*key)
        if owner is None:
            return None
        selector = self._kind.selector(owner)
        client, resource = self._ctx.client, self._kind.resource
        candidates = [*controlled_by(self._pods, owner), *orphans_in(self._pods, key.namespace)]
        active = await claim(client, PODS, resource, owner, filter(is_pod_active, candidates), selector)
        failure = None if is_deleting(owner) else await self._manage(owner, active)

        # What was made or deleted above is in the informer by now, so the status says how things are.
        pods = [pod for pod in controlled_by(self._pods, owner) if selector.matches(labels_of(pod))]
        active = list(filter(is_pod_active, pods))
        terminating = sum(map(is_pod_terminating, pods))
        now = self._ctx.clock.now()
        status = make_status(self._kind, owner, count_pods(owner, active, terminating, now), failure, now)
        if status != (owner.get("status") or {}):
            await client.update(resource, replace_in(owner, ("status",), status), subresource="status")
        if failure is not None:
            raise failure
        min_ready_s = int(dig(owner, "spec", "minReadySeconds", default=0))
        wait_s = next_availability_s(active, min_ready_s, now)
        return None if wait_s is None else Result(after_s=wait_s)

    async def _manage(self, owner: Object, active: Objects) -> StatusError | None:
        """Make what is missing or delete the surplus, at most 500 pods at once. Returns the first error."""
        surplus = len(active) - replicas_of(owner)
        if surplus < 0:
            return await slow_start(min(-surplus, BURST), lambda number: self._create(owner))
        if surplus > 0:
            doomed = pods_to_delete(active, self._related(owner), min(surplus, BURST), self._ctx.clock.now())
            return await first_error(self._delete(pod, owner) for pod in doomed)
        return None

    async def _create(self, owner: Object) -> None:
        try:
            await self._pod_control.create(pod_from_template(owner["spec"]["template"], owner), owner)
        except StatusError as error:
            if not has_cause(error, NAMESPACE_TERMINATING):
                raise

    async def _delete(self, pod: Object, owner: Object) -> None:
        try:
            await self._pod_control.delete(pod, owner)
        except StatusError as error:
            if error.code != 404:
                raise

    def _related(self, owner: Object) -> Objects:
        """The pods of all sets of the same controller: those of one Deployment should leave crowded nodes first."""
        reference = controller_of(owner)
        if reference is None:
            return []
        siblings = self.primary.by_index(CONTROLLER_INDEX, reference["uid"])
        return [pod for sibling in siblings for pod in controlled_by(self._pods, sibling)]


REPLICASET_CONTROLLER = Controller("replicaset-controller", ReplicaSets)
REPLICATION_CONTROLLER_CONTROLLER = Controller(
    "replicationcontroller-controller",
    lambda ctx: ReplicaSets(ctx, REPLICATION_CONTROLLER),
    account="replication-controller",
    component="replication-controller",
)
