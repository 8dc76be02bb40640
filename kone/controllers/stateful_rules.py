"""What a StatefulSet decides: its pods by ordinal, and which to make, mend or delete next. Nothing here acts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kone.apimachinery.objects import (
    Object,
    dig,
    generation_of,
    is_deleting,
    is_pod_ready,
    is_pod_terminal,
    labels_of,
    name_of,
    namespace_of,
    replace_in,
)
from kone.controllers.history import REVISION_LABEL, template_of
from kone.controllers.int_or_percent import scaled_value
from kone.controllers.pod_control import is_pod_available, pod_from_template
from kone.controllers.stateful_claims import claim_name, claims_for, templates_of

POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"
INDEX_LABEL = "apps.kubernetes.io/pod-index"


# Identity


def parent_and_ordinal(pod: Object) -> tuple[str, int]:
    """ "db-3" is ("db", 3); a name that no set gives is ("", -1)."""
    found = re.fullmatch("(.*)-([0-9]+)", name_of(pod), re.DOTALL)
    if found is None or int(found[2]) >= 2**31:
        return "", -1
    return found[1], int(found[2])


def ordinal_of(pod: Object) -> int:
    return parent_and_ordinal(pod)[1]


def revision_of(pod: Object) -> str:
    return labels_of(pod).get(REVISION_LABEL, "")


def replicas_of(owner: Object) -> int:
    return int(dig(owner, "spec", "replicas", default=1))


def ordinals_of(owner: Object) -> range:
    start = int(dig(owner, "spec", "ordinals", "start", default=0))
    return range(start, start + replicas_of(owner))


def is_parallel(owner: Object) -> bool:
    return bool(dig(owner, "spec", "podManagementPolicy") == "Parallel")


def min_ready_of(owner: Object) -> int:
    return int(dig(owner, "spec", "minReadySeconds", default=0))


def partition_of(owner: Object) -> int:
    return int(dig(owner, "spec", "updateStrategy", "rollingUpdate", "partition", default=0))


def revision_for(owner: Object, ordinal: int, current: Object, update: Object) -> Object:
    """The revision that a missing pod is made from: below the partition of a rolling update, the current one."""
    strategy = dig(owner, "spec", "updateStrategy", default={})
    below = 0
    if dig(strategy, "rollingUpdate") is not None:
        below = partition_of(owner)
    elif strategy.get("type", "RollingUpdate") == "RollingUpdate":
        below = int(dig(owner, "status", "currentReplicas", default=0))
    return current if ordinal < ordinals_of(owner).start + below else update


def make_pod(owner: Object, ordinal: int, revision: Object) -> Object:
    pod = pod_from_template(template_of(revision), owner)
    pod = replace_in(pod, ("metadata", "name"), f"{name_of(owner)}-{ordinal}")
    pod = replace_in(pod, ("metadata", "labels", REVISION_LABEL), name_of(revision))
    pod = with_identity(pod, ordinal)
    pod["spec"] = {**pod["spec"], "hostname": name_of(pod)}
    if service := dig(owner, "spec", "serviceName"):
        pod["spec"]["subdomain"] = service
    return with_storage(owner, pod, ordinal)


def with_identity(pod: Object, ordinal: int) -> Object:
    labels = {**labels_of(pod), POD_NAME_LABEL: name_of(pod), INDEX_LABEL: str(ordinal)}
    return replace_in(pod, ("metadata", "labels"), labels)


def with_storage(owner: Object, pod: Object, ordinal: int) -> Object:
    """The set's claims as volumes, in the place of volumes of the same names."""
    templates = templates_of(owner)
    if not templates:
        return pod
    names = {name_of(template) for template in templates}
    volumes = [
        {"name": name_of(t), "persistentVolumeClaim": {"claimName": claim_name(t, owner, ordinal)}} for t in templates
    ]
    volumes += [volume for volume in dig(pod, "spec", "volumes", default=()) if volume["name"] not in names]
    return replace_in(pod, ("spec", "volumes"), volumes)


def has_identity(pod: Object) -> bool:
    return labels_of(pod).get(POD_NAME_LABEL) == name_of(pod)


def has_storage(owner: Object, pod: Object) -> bool:
    claims = {v["name"]: dig(v, "persistentVolumeClaim", "claimName") for v in dig(pod, "spec", "volumes", default=())}
    ordinal = ordinal_of(pod)
    return all(claims.get(name_of(t)) == claim_name(t, owner, ordinal) for t in templates_of(owner))


def claim_names(owner: Object, ordinal: int) -> list[str]:
    return [name_of(claim) for claim in claims_for(owner, ordinal)]


# Health


def is_running_and_ready(pod: Object) -> bool:
    return bool(dig(pod, "status", "phase") == "Running") and is_pod_ready(pod)


def is_pending(pod: Object) -> bool:
    return bool(dig(pod, "status", "phase", default="Pending") == "Pending")


@dataclass(frozen=True, slots=True)
class View:
    """The set, its pods and its revisions at one moment."""

    owner: Object
    pods: Sequence[Object]
    current: Object
    update: Object
    now: float

    def is_available(self, pod: Object) -> bool:
        return is_pod_available(pod, min_ready_of(self.owner), self.now)

    def is_unavailable(self, pod: Object | None) -> bool:
        return pod is None or is_deleting(pod) or not self.is_available(pod)


# Decide


@dataclass(frozen=True, slots=True)
class Step:
    """What to do about one ordinal.

    "create" or "delete" its pod; "mend" the pod's labels, volumes and claims; make the "claims" that are missing; or
    only give its claims the right owners ("own").
    """

    act: Literal["create", "delete", "mend", "claims", "own"]
    ordinal: int
    pod: Object | None = None


@dataclass(slots=True)
class Plan:
    """Phases one after another; the steps of a phase one after another too, or together where the set is Parallel."""

    phases: list[list[Step]] = field(default_factory=list)
    parallel: bool = False

    def steps(self) -> list[tuple[str, int]]:
        return [(step.act, step.ordinal) for phase in self.phases for step in phase]


Mending = Callable[[Object], bool]


def make_plan(view: View, *, is_stale: Callable[[int], bool], needs_mending: Mending, needs_owners: Mending) -> Plan:
    """What to do now. `is_stale` tells of an ordinal whose claims are about to be deleted, `needs_mending` of a pod
    that is not as the set wants it, `needs_owners` of a pod beyond the replicas whose claims have the wrong owners.

    An ordered set waits at each pod that is missing, going or not ready; a parallel one waits for none.
    """
    parallel = is_parallel(view.owner)
    plan = Plan(parallel=parallel)
    by_ordinal = {ordinal_of(pod): pod for pod in view.pods}
    ordinals = ordinals_of(view.owner)
    replicas = [(ordinal, by_ordinal.get(ordinal)) for ordinal in ordinals]
    condemned = [by_ordinal[ordinal] for ordinal in sorted(by_ordinal, reverse=True) if ordinal not in ordinals]

    settled = True
    mends: list[Step] = []
    plan.phases.append(mends)
    for ordinal, pod in replicas:
        steps, goes_on = _plan_replica(view, ordinal, pod, is_stale, needs_mending)
        mends += steps
        if not goes_on and not parallel:
            settled = False
            break
    if not settled:
        return plan

    plan.phases.append([Step("own", ordinal_of(pod), pod) for pod in condemned if needs_owners(pod)])
    deletions, goes_on = _plan_scale_down(view, replicas, condemned)
    plan.phases.append([Step("delete", ordinal_of(pod), pod) for pod in deletions])
    if not goes_on or dig(view.owner, "spec", "updateStrategy", "type", default="RollingUpdate") != "RollingUpdate":
        return plan
    going = {step.ordinal for step in mends if step.act == "delete"}
    updates = plan_rolling_update(view, [pod for _, pod in replicas])
    plan.phases.append([Step("delete", ordinal_of(pod), pod) for pod in updates if ordinal_of(pod) not in going])
    return plan


def _plan_replica(
    view: View, ordinal: int, pod: Object | None, is_stale: Callable[[int], bool], needs_mending: Mending
) -> tuple[list[Step], bool]:
    """(what to do about one replica, whether an ordered set goes on to the next)."""
    if pod is None:
        return ([] if is_stale(ordinal) else [Step("create", ordinal)]), False
    if is_pod_terminal(pod):
        return ([] if is_deleting(pod) else [Step("delete", ordinal, pod)]), False
    steps = [Step("claims", ordinal, pod)] if is_pending(pod) else []
    waits = is_deleting(pod) or not is_running_and_ready(pod) or not view.is_available(pod)
    if waits and not is_parallel(view.owner):
        return steps, False
    if needs_mending(pod):
        steps.append(Step("mend", ordinal, pod))
    return steps, True


def _plan_scale_down(
    view: View, replicas: Sequence[tuple[int, Object | None]], condemned: Sequence[Object]
) -> tuple[list[Object], bool]:
    """(the pods to delete of those beyond the replicas, whether updates may follow).

    An ordered set deletes one at a time from the top, and waits for what is going; of those that are not available it
    deletes only the lowest, so that the others can come back first.
    """
    if is_parallel(view.owner):
        return [pod for pod in condemned if not is_deleting(pod)], True
    in_order = [pod for _, pod in replicas] + list(reversed(condemned))
    first_unavailable = next((pod for pod in in_order if view.is_unavailable(pod)), None)
    for pod in condemned:
        if is_deleting(pod):
            return [], False
        healthy = is_running_and_ready(pod) and view.is_available(pod)
        if not healthy and pod is not first_unavailable:
            return [], False
        return [pod], False
    return [], True


def plan_rolling_update(view: View, replicas: Sequence[Object | None]) -> list[Object]:
    """The pods to delete so that they come back at the update revision, from the top down to the partition, never more
    than maxUnavailable away. A parallel set starts with old pods that are not available anyway, whatever the limit."""
    parallel = is_parallel(view.owner)
    limit = max_unavailable(view.owner)
    unavailable = [pod for pod in replicas if view.is_unavailable(pod)]
    update = name_of(view.update)

    def is_old(pod: Object | None) -> bool:
        return pod is not None and revision_of(pod) != update

    candidates = [pod for pod in reversed(replicas[partition_of(view.owner) :]) if pod is not None and is_old(pod)]
    budget = max(0, limit - len(unavailable))
    if not parallel:
        return [pod for pod in candidates if not is_deleting(pod)][:budget]
    broken = [pod for pod in candidates if not is_deleting(pod) and not view.is_available(pod)]
    return broken + [pod for pod in candidates if not view.is_unavailable(pod)][:budget]


def max_unavailable(owner: Object) -> int:
    value = dig(owner, "spec", "updateStrategy", "rollingUpdate", "maxUnavailable", default=1)
    return max(1, scaled_value(value, replicas_of(owner), round_up=False))


def revisions_to_forget(
    owner: Object, revisions: Sequence[Object], pods: Iterable[Object], live: set[str]
) -> list[Object]:
    """The oldest of those that no pod has, beyond revisionHistoryLimit; `live` names more that must stay."""
    live = live | {revision_of(pod) for pod in pods}
    history = [revision for revision in revisions if name_of(revision) not in live]
    limit = int(dig(owner, "spec", "revisionHistoryLimit", default=10))
    return history[: max(0, len(history) - limit)]


# Status


def make_status(view: View, collisions: int) -> Object:
    """The counts, and the end of an update: once all pods are new and ready, the update revision is the current one."""
    current, update = name_of(view.current), name_of(view.update)
    staying = [pod for pod in view.pods if not is_deleting(pod)]
    replicas, wanted = len(view.pods), replicas_of(view.owner)
    ready = sum(map(is_running_and_ready, view.pods))
    available = sum(is_running_and_ready(pod) and view.is_available(pod) for pod in view.pods)
    current_replicas = sum(revision_of(pod) == current for pod in staying)
    updated_replicas = sum(revision_of(pod) == update for pod in staying)
    if updated_replicas == ready == replicas == wanted:
        current, current_replicas = update, updated_replicas
    counts: Object = {
        "readyReplicas": ready,
        "currentReplicas": current_replicas,
        "updatedReplicas": updated_replicas,
        "observedGeneration": generation_of(view.owner),
        "currentRevision": current,
        "updateRevision": update,
        "conditions": dig(view.owner, "status", "conditions", default=[]),
    }
    status: Object = {"replicas": replicas, "availableReplicas": available, "collisionCount": collisions}
    return status | {key: value for key, value in counts.items() if value}


def is_member(owner: Object, pod: Object) -> bool:
    return namespace_of(pod) == namespace_of(owner) and parent_and_ordinal(pod)[0] == name_of(owner)
