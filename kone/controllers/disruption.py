"""PodDisruptionBudgets: how many of the selected pods may be disrupted now; and evictions that never came.

The API server's eviction takes from `disruptionsAllowed` and notes the pod in `disruptedPods`; this controller gives it
back when the pod is gone, or after two minutes when nobody deleted it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import (
    DEPLOYMENTS,
    GVR,
    PODDISRUPTIONBUDGETS,
    PODS,
    REPLICASETS,
    REPLICATIONCONTROLLERS,
    STATEFULSETS,
)
from kone.apimachinery.objects import (
    Key,
    Object,
    controller_of,
    dig,
    find_condition,
    generation_of,
    is_deleting,
    is_pod_ready,
    is_pod_terminal,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    other_conditions,
    replace_in,
    uid_of,
)
from kone.apimachinery.selectors import from_label_selector
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import EventType, Informer, Objects
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch, for_object
from kone.controllers.int_or_percent import scaled_value
from kone.controllers.pod_control import with_condition

DELETION_TIMEOUT_S = 120.0  # an evicted pod that is not being deleted after this is not disrupted
STALE_CONDITION_S = 120.0


class CannotTell(Exception):
    """How many pods there should be cannot be found out."""


# Decide


@dataclass(frozen=True, slots=True)
class Counts:
    healthy: int
    desired: int
    expected: int

    @property
    def allowed(self) -> int:
        """A budget that expects no pods allows nothing, so that the first pods to come are safe."""
        return max(0, self.healthy - self.desired) if self.expected > 0 else 0


def needs_scale(budget: Object) -> bool:
    """Whether the number of pods that there should be matters: a bare minimum speaks of those that there are."""
    spec = budget["spec"]
    return spec.get("maxUnavailable") is not None or isinstance(spec.get("minAvailable"), str)


def desired_healthy(budget: Object, expected: int) -> int:
    spec = budget["spec"]
    if (most := spec.get("maxUnavailable")) is not None:
        return max(0, expected - scaled_value(most, expected, round_up=True))
    if (least := spec.get("minAvailable")) is not None:
        return scaled_value(least, expected, round_up=True)
    return 0


@dataclass(frozen=True, slots=True)
class Disrupted:
    """The pods whose eviction was allowed and that are still here."""

    waiting: dict[str, str]
    """Name to the time of the eviction."""
    overdue: Objects
    """Nobody deleted them."""
    wait_s: float | None
    """Until the next of the waiting ones is overdue."""


def split_disrupted(budget: Object, pods: Iterable[Object], now: float) -> Disrupted:
    noted: Mapping[str, str] = dig(budget, "status", "disruptedPods", default={})
    waiting: dict[str, str] = {}
    overdue: Objects = []
    waits: list[float] = []
    for pod in pods:
        stamp = noted.get(name_of(pod))
        if stamp is None or is_deleting(pod):
            continue
        left_s = parse_time(stamp) + DELETION_TIMEOUT_S - now
        if left_s < 0:
            overdue.append(pod)
        else:
            waiting[name_of(pod)] = stamp
            waits.append(left_s)
    return Disrupted(waiting, overdue, min(waits, default=None))


def count_healthy(pods: Iterable[Object], disrupted: Mapping[str, str], now: float) -> int:
    """Ready, not being deleted, and not about to be."""

    def is_going(pod: Object) -> bool:
        stamp = disrupted.get(name_of(pod))
        return is_deleting(pod) or (stamp is not None and parse_time(stamp) + DELETION_TIMEOUT_S > now)

    return sum(is_pod_ready(pod) for pod in pods if not is_going(pod))


def make_status(budget: Object, counts: Counts, disrupted: Mapping[str, str], now: float) -> Object:
    allowed = counts.allowed
    verdict = ("True", "SufficientPods") if allowed > 0 else ("False", "InsufficientPods")
    status: Object = {
        "currentHealthy": counts.healthy,
        "desiredHealthy": counts.desired,
        "disruptionsAllowed": allowed,
        "expectedPods": counts.expected,
        "observedGeneration": generation_of(budget),
        "conditions": _conditions(budget, *verdict, "", generation_of(budget), now),
    }
    return {**status, "disruptedPods": dict(disrupted)} if disrupted else status


def failed_status(budget: Object, why: str, now: float) -> Object:
    """What is not known allows no disruption."""
    old = budget.get("status") or {}
    observed = old.get("observedGeneration", 0)
    conditions = _conditions(budget, "False", "SyncFailed", why, observed, now)
    counts = dict.fromkeys(("currentHealthy", "desiredHealthy", "expectedPods"), 0)
    return {**counts, **old, "disruptionsAllowed": 0, "conditions": conditions}


def _conditions(budget: Object, status: str, reason: str, message: str, generation: int, now: float) -> list[Object]:
    old = find_condition(budget, "DisruptionAllowed")
    since = format_time(now)
    if old is not None and old["status"] == status:
        since = old["lastTransitionTime"]
    condition: Object = {"type": "DisruptionAllowed", "status": status, "reason": reason, "message": message}
    condition["lastTransitionTime"] = since
    if generation:
        condition["observedGeneration"] = generation
    return [*other_conditions(budget, "DisruptionAllowed"), condition]


def selector_text(selector: Object | None) -> str:
    """As Go prints a *metav1.LabelSelector, which is what the event shows."""
    labels = "".join(f"{key}: {value}," for key, value in sorted(dig(selector, "matchLabels", default={}).items()))
    terms = "".join(
        f"LabelSelectorRequirement{{Key:{t.get('key', '')},Operator:{t.get('operator', '')},"
        f"Values:[{' '.join(t.get('values') or ())}],}},"
        for t in dig(selector, "matchExpressions", default=())
    )
    expressions = f"[]LabelSelectorRequirement{{{terms}}}"
    return f"&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:{expressions},}}"


_UNMANAGED = (
    "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. "
    "As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "
    'To account for these pods please set ".spec.minAvailable" field of the PDB to an integer value.'
)


# Act


class PodDisruptionBudgets(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PODDISRUPTIONBUDGETS)
        self._pods: Informer = ctx.client.informer(PODS)
        self._replica_sets: Informer = ctx.client.informer(REPLICASETS)
        self._owners: dict[tuple[str, str], Informer] = {
            ("apps", "Deployment"): ctx.client.informer(DEPLOYMENTS),
            ("apps", "ReplicaSet"): self._replica_sets,
            ("apps", "StatefulSet"): ctx.client.informer(STATEFULSETS),
            ("", "ReplicationController"): ctx.client.informer(REPLICATIONCONTROLLERS),
        }

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)
        yield Watch(self._pods, self._keys_of_pod)
        for informer in self._owners.values():
            # Pods tell of the changes in these; they need only be in before the first budget is counted.
            yield Watch(informer, lambda event, obj, previous: ())

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        labels = [labels_of(state) for state in (pod, previous) if state is not None]
        for budget in self.primary.list(namespace_of(pod)):
            selector = from_label_selector(dig(budget, "spec", "selector"))
            if any(selector.matches(own) for own in labels):
                yield key_of(budget)

    async def reconcile(self, key: Key) -> Result | None:
        budget = self.primary.get(*key)
        if budget is None:
            return None
        recorder, now = self._ctx.recorder, self._ctx.clock.now()
        selector = from_label_selector(dig(budget, "spec", "selector"))
        pods = [pod for pod in self._pods.list(key.namespace) if selector.matches(labels_of(pod))]
        if not pods:
            recorder.event(budget, "Normal", "NoPods", "No matching pods found")
        try:
            expected = await self._expected(pods) if needs_scale(budget) else len(pods)
            desired = desired_healthy(budget, expected)
        except (CannotTell, ValueError, StatusError) as error:
            message = f"Failed to calculate the number of expected pods: {error}"
            recorder.event(budget, "Warning", "CalculateExpectedPodCountFailed", message)
            await self._write(budget, failed_status(budget, str(error), now))
            return None
        if needs_scale(budget) and any(controller_of(pod) is None for pod in pods):
            message = _UNMANAGED.format(selector=selector_text(dig(budget, "spec", "selector")))
            recorder.event(budget, "Warning", "UnmanagedPods", message)
        disrupted = split_disrupted(budget, pods, now)
        for pod in disrupted.overdue:
            message = f"Pod was expected by PDB {key.namespace}/{key.name} to be deleted but it wasn't"
            recorder.event(pod, "Warning", "NotDeleted", message)
        counts = Counts(count_healthy(pods, disrupted.waiting, now), desired, expected)
        await self._write(budget, make_status(budget, counts, disrupted.waiting, now))
        return None if disrupted.wait_s is None else Result(after_s=disrupted.wait_s + 0.001)

    async def _write(self, budget: Object, status: Object) -> None:
        if status != (budget.get("status") or {}):
            written = replace_in(budget, ("status",), status)
            await self._ctx.client.update(PODDISRUPTIONBUDGETS, written, subresource="status")

    # How many pods should there be?

    async def _expected(self, pods: Iterable[Object]) -> int:
        """The replicas of all controllers of the pods. Raises CannotTell."""
        scales: dict[str, int] = {}
        for pod in pods:
            reference = controller_of(pod)
            if reference is None or reference["uid"] in scales:
                continue
            found = await self._scale(reference, namespace_of(pod))
            if found is None:
                raise CannotTell(f'found no controllers for pod "{name_of(pod)}"')
            scales[found[0]] = found[1]
        return sum(scales.values())

    async def _scale(self, reference: Object, namespace: str) -> tuple[str, int] | None:
        """(uid, replicas) of a controller; of a Deployment for a ReplicaSet that one controls."""
        owner = self._owner(reference, namespace)
        if owner is not None and owner["kind"] == "ReplicaSet":
            above = controller_of(owner)
            if above is not None and above["kind"] == "Deployment":
                owner = self._owner(above, namespace)
        if owner is not None:
            return uid_of(owner), int(dig(owner, "spec", "replicas", default=1))
        return await self._scale_subresource(reference, namespace)

    def _owner(self, reference: Object, namespace: str) -> Object | None:
        group = reference["apiVersion"].rpartition("/")[0]
        informer = self._owners.get((group, reference["kind"]))
        found = informer.get(namespace, reference["name"]) if informer is not None else None
        return found if found is not None and uid_of(found) == reference["uid"] else None

    async def _scale_subresource(self, reference: Object, namespace: str) -> tuple[str, int] | None:
        kind, api_version = reference["kind"], reference["apiVersion"]
        known = self._ctx.settings.resource_of_kind(api_version, kind)
        if known is None:
            raise CannotTell(f'no matches for kind "{kind}" in version "{api_version}"')
        resource = known[0]
        try:
            scale = await self._ctx.client.get(resource, reference["name"], namespace, subresource="scale")
        except StatusError as error:
            if error.code != 404:
                raise
            if await self._exists(resource, reference["name"], namespace):
                raise CannotTell(f"{resource.group_resource} does not implement the scale subresource") from None
            return None
        if uid_of(scale) != reference["uid"]:
            return None
        return uid_of(scale), int(dig(scale, "spec", "replicas", default=0))

    async def _exists(self, resource: GVR, name: str, namespace: str) -> bool:
        try:
            await self._ctx.client.get(resource, name, namespace)
        except StatusError as error:
            if error.code != 404:
                raise
            return False
        return True


class StaleDisruptionTargets(Reconciler):
    """Takes the condition DisruptionTarget back from pods that nobody deleted after all; keys are pods."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PODS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        return (key_of(pod),) if event != "DELETED" and _is_target(pod) else ()

    async def reconcile(self, key: Key) -> Result | None:
        pod = self.primary.get(*key)
        if pod is None or not _is_target(pod):
            return None
        condition = find_condition(pod, "DisruptionTarget") or {}
        now = self._ctx.clock.now()
        wait_s = parse_time(condition["lastTransitionTime"]) + STALE_CONDITION_S - now
        if wait_s > 0:
            return Result(after_s=wait_s)
        changed = with_condition(pod, {"type": "DisruptionTarget", "status": "False"}, now)
        await self._ctx.client.update(PODS, changed, subresource="status")
        return None


def _is_target(pod: Object) -> bool:
    """Marked for an end that should come soon; those the kubelet marks may take their time."""
    condition = find_condition(pod, "DisruptionTarget")
    return (
        condition is not None
        and condition.get("status") == "True"
        and condition.get("reason") != "TerminationByKubelet"
        and not is_deleting(pod)
        and not is_pod_terminal(pod)
    )


DISRUPTION_CONTROLLER = Controller("disruption-controller", PodDisruptionBudgets, component="controllermanager")
STALE_DISRUPTION_CONTROLLER = Controller(
    "stale-disruption-target-controller", StaleDisruptionTargets, account="disruption-controller"
)
