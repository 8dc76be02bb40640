"""The arithmetic of a Deployment's rollout, as pure functions on the Deployment and its ReplicaSets.

Worked case: 10 replicas, maxUnavailable 2, maxSurge 3. At most 13 pods exist and at least 8 are available. The new set
starts with 3, the old one shrinks to 8, the new one grows to 5, and so on until it has 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.objects import (
    Object,
    annotations_of,
    dig,
    find_condition,
    generation_of,
    is_deleting,
    name_of,
    other_conditions,
    replace_in,
    uid_of,
)
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import Objects
from kone.controllers.int_or_percent import scaled_value
from kone.controllers.pod_template import equal_ignoring_hash

REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED_REPLICAS = "deployment.kubernetes.io/desired-replicas"
MAX_REPLICAS = "deployment.kubernetes.io/max-replicas"
NOT_COPIED = {
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.rollbackTo",
}
REVISION_HISTORY_MAX = 2000  # characters
NEVER = 2**31 - 1  # a deadline or history limit of this value means none

NEW_SET_AVAILABLE = "NewReplicaSetAvailable"
TIMED_OUT = "ProgressDeadlineExceeded"


# The Deployment's numbers


def desired(deployment: Object) -> int:
    return int(dig(deployment, "spec", "replicas", default=1))


def size(replica_set: Object) -> int:
    return int(dig(replica_set, "spec", "replicas", default=1))


def total(replica_sets: Iterable[Object]) -> int:
    """Pods that the sets should have."""
    return sum(size(rs) for rs in replica_sets)


def counted(replica_sets: Iterable[Object], field: str) -> int:
    """Pods that the sets say they have, by a field of their status."""
    return sum(int(dig(rs, "status", field, default=0)) for rs in replica_sets)


def active(replica_sets: Iterable[Object]) -> Objects:
    return [rs for rs in replica_sets if size(rs) > 0]


def is_rolling(deployment: Object) -> bool:
    return bool(dig(deployment, "spec", "strategy", "type", default="RollingUpdate") == "RollingUpdate")


def fenceposts(surge: Any, unavailable: Any, replicas: int) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods: surge rounds up, unavailable down; were both 0, one may be unavailable."""
    surge_pods = scaled_value(surge, replicas, round_up=True)
    unavailable_pods = scaled_value(unavailable, replicas, round_up=False)
    if surge_pods == 0 and unavailable_pods == 0:
        unavailable_pods = 1
    return surge_pods, unavailable_pods


def max_surge(deployment: Object) -> int:
    return _limits(deployment)[0] if is_rolling(deployment) else 0


def max_unavailable(deployment: Object) -> int:
    if not is_rolling(deployment) or desired(deployment) == 0:
        return 0
    return min(_limits(deployment)[1], desired(deployment))


def _limits(deployment: Object) -> tuple[int, int]:
    rolling: Mapping[str, Any] = dig(deployment, "spec", "strategy", "rollingUpdate", default={})
    return fenceposts(rolling.get("maxSurge", 0), rolling.get("maxUnavailable", 0), desired(deployment))


def max_replicas(deployment: Object) -> int:
    return desired(deployment) + max_surge(deployment)


# Which set is the new one, and what its annotations say


def by_age(replica_sets: Iterable[Object]) -> Objects:
    """Oldest first, names breaking ties."""
    return sorted(replica_sets, key=lambda rs: (dig(rs, "metadata", "creationTimestamp", default=""), name_of(rs)))


def split(deployment: Object, replica_sets: Iterable[Object]) -> tuple[Object | None, Objects]:
    """(the set with the Deployment's template, the oldest of several; the others)."""
    ordered = by_age(replica_sets)
    template = deployment["spec"]["template"]
    new = next((rs for rs in ordered if equal_ignoring_hash(rs["spec"]["template"], template)), None)
    return new, [rs for rs in ordered if new is None or uid_of(rs) != uid_of(new)]


def revision(obj: Object) -> int:
    """The revision annotation; 0 where it is missing. Raises ValueError."""
    return int(annotations_of(obj).get(REVISION) or "0")


def max_revision(replica_sets: Iterable[Object]) -> int:
    """The highest revision; what cannot be read does not count."""
    return max((number for rs in replica_sets if (number := _revision_or_none(rs)) is not None), default=0)


def _revision_or_none(obj: Object) -> int | None:
    try:
        return revision(obj)
    except ValueError:
        return None


def set_annotations(deployment: Object, replica_set: Object, new_revision: int, *, exists: bool) -> dict[str, str]:
    """The annotations that the new set should have: the Deployment's, its revision, and those it had (and, before it
    is made, its share). A set that had an older revision keeps that in its history: it was rolled back to."""
    annotations = dict(annotations_of(replica_set))
    annotations |= {key: value for key, value in annotations_of(deployment).items() if key not in NOT_COPIED}
    old = annotations.get(REVISION)
    try:
        old_number = int(old or "0")
    except ValueError:
        return annotations
    if old_number < new_revision:
        annotations[REVISION] = str(new_revision)
        if old is not None:
            history = _with_revision(annotations.get(REVISION_HISTORY, ""), old)
            annotations[REVISION_HISTORY] = history
    if not exists:
        annotations |= share(deployment)
    return annotations


def _with_revision(history: str, old: str) -> str:
    """The history with one more revision, the oldest falling out where it would get too long."""
    revisions = [text for text in history.split(",") if text]
    while revisions and len(",".join([*revisions, old])) > REVISION_HISTORY_MAX:
        revisions.pop(0)
    return ",".join([*revisions, old])


def share(deployment: Object) -> dict[str, str]:
    """What each set remembers of the Deployment's size, to scale in proportion when that changes."""
    return {DESIRED_REPLICAS: str(desired(deployment)), MAX_REPLICAS: str(max_replicas(deployment))}


def _number(replica_set: Object, annotation: str) -> int | None:
    text = annotations_of(replica_set).get(annotation, "")
    if not (text.isascii() and text.isdigit()) or int(text) > NEVER:
        return None
    return int(text)


def is_scaling(deployment: Object, replica_sets: Iterable[Object]) -> bool:
    """Whether the Deployment's size has changed since its active sets were last told."""
    remembered = (_number(rs, DESIRED_REPLICAS) for rs in active(replica_sets))
    return any(number is not None and number != desired(deployment) for number in remembered)


def is_saturated(deployment: Object, replica_set: Object | None) -> bool:
    """Whether the set has, was told, and has available, all that the Deployment wants."""
    if replica_set is None:
        return False
    wanted = desired(deployment)
    has_all = size(replica_set) == wanted and counted([replica_set], "availableReplicas") == wanted
    return has_all and _number(replica_set, DESIRED_REPLICAS) == wanted


# Plans: which set gets which size


@dataclass(frozen=True, slots=True)
class Scale:
    """Give the set this size. `always`: also when only its annotations must change."""

    name: str
    replicas: int
    always: bool = False


def new_set_size(deployment: Object, replica_sets: Iterable[Object], current: int) -> int:
    """The size that the new set, now of `current` pods among `replica_sets`, may grow to."""
    if not is_rolling(deployment):
        return desired(deployment)
    room = max_replicas(deployment) - total(replica_sets)
    if room <= 0:
        return current
    return current + min(room, desired(deployment) - current)


def plan_up(deployment: Object, new: Object, old: Sequence[Object]) -> list[Scale]:
    """First half of a rolling step: grow the new set (or shrink it, where it is too large)."""
    current, wanted = size(new), desired(deployment)
    if current == wanted:
        return []
    target = wanted if current > wanted else new_set_size(deployment, [*old, new], current)
    return [Scale(name_of(new), target)] if target != current else []


def plan_down(deployment: Object, new: Object, old: Sequence[Object]) -> list[Scale]:
    """Second half of a rolling step: shrink old sets, first by their unhealthy pods, then as far as availability
    allows.

    Worked case: 10 replicas, maxUnavailable 2, maxSurge 3; old 8, new 5 and none of the new is available: 13 pods, at
    least 8 to be available, 5 new ones unavailable: 13 - 8 - 5 = 0 may go. Rolled back, so that the 8 are the new set
    with 1 unavailable: 13 - 8 - 1 = 4 of the 5 others may go.
    """
    olds = by_age(active(old))
    if not olds:
        return []
    min_available = desired(deployment) - max_unavailable(deployment)
    new_unavailable = size(new) - counted([new], "availableReplicas")
    may_go = total([*old, new]) - min_available - new_unavailable
    if may_go <= 0:
        return []
    steps: list[Scale] = []
    sizes = {name_of(rs): size(rs) for rs in olds}
    for rs in olds:
        unhealthy = min(may_go, sizes[name_of(rs)] - counted([rs], "availableReplicas"))
        if unhealthy > 0:
            may_go -= unhealthy
            sizes[name_of(rs)] -= unhealthy
            steps.append(Scale(name_of(rs), sizes[name_of(rs)]))
    surplus = counted([*olds, new], "availableReplicas") - min_available
    for rs in olds:
        going = min(sizes[name_of(rs)], surplus)
        if going > 0:
            surplus -= going
            sizes[name_of(rs)] -= going
            steps.append(Scale(name_of(rs), sizes[name_of(rs)]))
    return steps


def plan_scaling(deployment: Object, new: Object | None, old: Sequence[Object]) -> list[Scale]:
    """What a change of the Deployment's size does to its sets, in or out of a rollout: one active set gets it all; with
    several, each gets its proportion, so that a rollout is neither hastened nor turned back."""
    everything = [*old, *([new] if new is not None else [])]
    actives = active(everything)
    if len(actives) <= 1:
        target = actives[0] if actives else new if new is not None else by_age(old)[-1] if old else None
        if target is None or size(target) == desired(deployment):
            return []
        return [Scale(name_of(target), desired(deployment))]
    if is_saturated(deployment, new):
        return [Scale(name_of(rs), 0) for rs in active(old)]
    if not is_rolling(deployment):
        return []
    allowed = max_replicas(deployment) if desired(deployment) > 0 else 0
    to_add = allowed - total(actives)
    # Largest first; of equal ones, growth goes to the newest and shrinking to the oldest.
    ordered = by_age(actives)
    if to_add > 0:
        ordered.reverse()
    if to_add != 0:
        ordered.sort(key=size, reverse=True)
    sizes: dict[str, int] = {}
    added = 0
    for rs in ordered:
        part = _proportion(deployment, rs, to_add, added)
        sizes[name_of(rs)] = size(rs) + part
        added += part
    largest = name_of(ordered[0])
    sizes[largest] = max(0, sizes[largest] + to_add - added)
    return [Scale(name, replicas, always=True) for name, replicas in sizes.items()]


def _proportion(deployment: Object, rs: Object, to_add: int, added: int) -> int:
    """The set's part of `to_add` (which may be negative), of which `added` is given away already."""
    if size(rs) == 0 or to_add in (0, added):
        return 0
    fraction, left = _fraction(deployment, rs), to_add - added
    return min(fraction, left) if to_add > 0 else max(fraction, left)


def _fraction(deployment: Object, rs: Object) -> int:
    if desired(deployment) == 0:
        return -size(rs)
    # Where the annotation was tampered with, the current size must do for the one before.
    before = _number(rs, MAX_REPLICAS) or int(dig(deployment, "status", "replicas", default=0))
    if before == 0:
        return 0
    scaled = size(rs) * max_replicas(deployment) / before
    return int(scaled + 0.5) - size(rs)


def plan_history(deployment: Object, old: Iterable[Object]) -> Objects:
    """Old sets beyond the history limit that are empty and have said so."""
    limit = dig(deployment, "spec", "revisionHistoryLimit")
    if limit is None or limit == NEVER:
        return []
    cleanable = [rs for rs in old if not is_deleting(rs)]
    surplus = len(cleanable) - limit
    if surplus <= 0:
        return []
    oldest = sorted(by_age(cleanable), key=lambda rs: _revision_or_none(rs) or 0)[:surplus]
    return [
        rs
        for rs in oldest
        if size(rs) == 0
        and counted([rs], "replicas") == 0
        and generation_of(rs) <= int(dig(rs, "status", "observedGeneration", default=0))
    ]


# Status


def set_condition(deployment: Object, kind: str, status: str, reason: str, message: str, now: float) -> Object:
    """The Deployment with that condition, unless it has one of that status and reason already."""
    stamp = format_time(now)
    condition = {
        "type": kind,
        "status": status,
        "lastUpdateTime": stamp,
        "lastTransitionTime": stamp,
        "reason": reason,
        "message": message,
    }
    return _put_condition(deployment, condition)


def _put_condition(deployment: Object, condition: Object) -> Object:
    current = find_condition(deployment, condition["type"])
    if current is not None and current["status"] == condition["status"]:
        if current.get("reason") == condition["reason"]:
            return deployment
        condition = {**condition, "lastTransitionTime": current["lastTransitionTime"]}
    return _with_conditions(deployment, [*other_conditions(deployment, condition["type"]), condition])


def _with_conditions(deployment: Object, conditions: list[Object]) -> Object:
    return replace_in(deployment, ("status", "conditions"), conditions)


def has_deadline(deployment: Object) -> bool:
    return dig(deployment, "spec", "progressDeadlineSeconds") not in (None, NEVER)


def is_complete(deployment: Object, status: Mapping[str, Any]) -> bool:
    """All that is wanted is updated and available, and nothing else is left."""
    counts = {status.get(field, 0) for field in ("updatedReplicas", "replicas", "availableReplicas")}
    return counts == {desired(deployment)} and status.get("observedGeneration", 0) >= generation_of(deployment)


def with_counts(deployment: Object, new: Object | None, old: Sequence[Object], now: float) -> Object:
    """The Deployment with its status counted anew from its sets, and the condition Available."""
    everything = [*old, *([new] if new is not None else [])]
    available = counted(everything, "availableReplicas")
    before = deployment.get("status") or {}
    counts = {
        "observedGeneration": generation_of(deployment),
        "replicas": counted(everything, "replicas"),
        "updatedReplicas": counted([new] if new is not None else [], "replicas"),
        "readyReplicas": counted(everything, "readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, total(everything) - available),
    }
    status: Object = {field: value for field, value in counts.items() if value}
    terminating = _terminating(everything)
    if terminating is not None:
        status["terminatingReplicas"] = terminating
    status |= {field: before[field] for field in ("conditions", "collisionCount") if field in before}
    deployment = replace_in(deployment, ("status",), status)
    if available >= desired(deployment) - max_unavailable(deployment):
        return set_condition(
            deployment, "Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", now
        )
    message = "Deployment does not have minimum availability."
    return set_condition(deployment, "Available", "False", "MinimumReplicasUnavailable", message, now)


def _terminating(replica_sets: Iterable[Object]) -> int | None:
    """Pods being deleted; None where a set that was looked at does not count them. Sets not yet looked at have none."""
    count = 0
    for rs in replica_sets:
        number = dig(rs, "status", "terminatingReplicas")
        if number is not None:
            count += number
        elif dig(rs, "status", "observedGeneration", default=0):
            return None
    return count


def with_progress(
    deployment: Object, before: Mapping[str, Any], new: Object | None, old: Sequence[Object], now: float
) -> Object:
    """The counted Deployment with the conditions Progressing and ReplicaFailure; `before` is the status that it had."""
    deployment = _with_progressing(deployment, before, new, now)
    failures = [
        condition
        for rs in [*([new] if new is not None else []), *old]
        if (condition := find_condition(rs, "ReplicaFailure")) is not None
    ]
    if not failures:
        if find_condition(deployment, "ReplicaFailure") is None:
            return deployment
        return _with_conditions(deployment, other_conditions(deployment, "ReplicaFailure"))
    failure = {**failures[0], "lastUpdateTime": failures[0].get("lastTransitionTime")}
    return _put_condition(deployment, failure)


def _with_progressing(deployment: Object, before: Mapping[str, Any], new: Object | None, now: float) -> Object:
    if not has_deadline(deployment):
        return _with_conditions(deployment, other_conditions(deployment, "Progressing"))
    status = deployment["status"]
    current = find_condition({"status": before}, "Progressing")
    done_before = current is not None and current.get("reason") == NEW_SET_AVAILABLE
    if done_before and status.get("replicas", 0) == status.get("updatedReplicas", 0):
        return deployment  # looked at again after a rollout: there is no progress to estimate
    who = f'Deployment "{name_of(deployment)}"' if new is None else f'ReplicaSet "{name_of(new)}"'
    if is_complete(deployment, status):
        message = f"{who} has successfully progressed."
        return set_condition(deployment, "Progressing", "True", NEW_SET_AVAILABLE, message, now)
    if _has_progressed(before, status):
        transition = format_time(now)
        if current is not None and current["status"] == "True":
            transition = current["lastTransitionTime"]
        condition = {
            "type": "Progressing",
            "status": "True",
            "lastUpdateTime": format_time(now),  # progress is dated even where it has the same reason as before
            "lastTransitionTime": transition,
            "reason": "ReplicaSetUpdated",
            "message": f"{who} is progressing.",
        }
        return _with_conditions(deployment, [*other_conditions(deployment, "Progressing"), condition])
    if _has_timed_out(deployment, now):
        message = f"{who} has timed out progressing."
        return set_condition(deployment, "Progressing", "False", TIMED_OUT, message, now)
    return deployment


def _has_progressed(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """More pods updated, ready or available, or fewer old ones."""

    def old_pods(status: Mapping[str, Any]) -> int:
        return int(status.get("replicas", 0)) - int(status.get("updatedReplicas", 0))

    grew = ("updatedReplicas", "readyReplicas", "availableReplicas")
    return any(after.get(f, 0) > before.get(f, 0) for f in grew) or old_pods(after) < old_pods(before)


def _has_timed_out(deployment: Object, now: float) -> bool:
    condition = find_condition(deployment, "Progressing")
    if condition is None or condition.get("reason") == NEW_SET_AVAILABLE:
        return False
    if condition.get("reason") == TIMED_OUT:
        return True
    return _deadline(deployment, condition) < now


def _deadline(deployment: Object, progressing: Object) -> float:
    return parse_time(progressing["lastUpdateTime"]) + float(deployment["spec"]["progressDeadlineSeconds"])


def deadline_in_s(deployment: Object, now: float) -> float | None:
    """Seconds until the deadline must be looked at, where the rollout stands still; None where there is none."""
    condition = find_condition(deployment, "Progressing")
    if not has_deadline(deployment) or condition is None or condition.get("reason") == TIMED_OUT:
        return None
    if is_complete(deployment, deployment.get("status") or {}):
        return None
    # Past it by a bit, as exactly at the deadline it is not over yet.
    return max(0.0, _deadline(deployment, condition) - now) + 0.01
