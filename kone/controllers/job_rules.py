"""What Jobs make of their pods, as pure functions: which failed, what that means for the Job, and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kone.apimachinery.objects import (
    Object,
    annotations_of,
    dig,
    find_condition,
    is_deleting,
    is_pod_ready,
    metadata,
    name_of,
    namespace_of,
    uid_of,
)
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import Objects
from kone.controllers.job_indexes import parse_indexes

FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
INDEX_FAILURES = "batch.kubernetes.io/job-index-failure-count"
INDEX_IGNORED_FAILURES = "batch.kubernetes.io/job-index-ignored-failure-count"
BACKOFF_FIRST_S, BACKOFF_MAX_S = 10.0, 600.0  # between a pod's failure and its replacement
THIS_CONTROLLER = "kubernetes.io/job-controller"

Action = Literal["FailJob", "FailIndex", "Ignore", "Count"]


# The Job's fields


def is_indexed(job: Object) -> bool:
    return bool(dig(job, "spec", "completionMode") == "Indexed")


def has_backoff_per_index(job: Object) -> bool:
    return dig(job, "spec", "backoffLimitPerIndex") is not None


def is_suspended(job: Object) -> bool:
    return bool(dig(job, "spec", "suspend"))


def replaces_only_failed(job: Object) -> bool:
    """podReplacementPolicy Failed: a pod being deleted is replaced when it has ended, not before."""
    return bool(dig(job, "spec", "podReplacementPolicy") == "Failed")


def is_managed_elsewhere(job: Object) -> bool:
    return str(dig(job, "spec", "managedBy", default=THIS_CONTROLLER)) != THIS_CONTROLLER


def true_condition(job: Object, *kinds: str) -> Object | None:
    """The first true condition of one of the types, in the order in which the Job got them."""
    conditions = dig(job, "status", "conditions", default=())
    return next((c for c in conditions if c["type"] in kinds and c["status"] == "True"), None)


def is_finished(job: Object) -> bool:
    return true_condition(job, "Complete", "Failed") is not None


def make_condition(kind: str, status: str, reason: str, message: str, now: float) -> Object:
    stamp = format_time(now)
    return {
        "type": kind,
        "status": status,
        "lastProbeTime": stamp,
        "lastTransitionTime": stamp,
        "reason": reason,
        "message": message,
    }


def with_condition(conditions: Sequence[Object], new: Object) -> list[Object]:
    """The conditions with the new one; a false one is only written where there was one before."""
    old = next((c for c in conditions if c["type"] == new["type"]), None)
    if old is None:
        return [*conditions, new] if new["status"] != "False" else list(conditions)
    if all(old.get(field) == new[field] for field in ("status", "reason", "message")):
        return list(conditions)
    return [new if c is old else c for c in conditions]


# Its pods


def is_tracked(pod: Object) -> bool:
    """Has the finalizer that holds a pod until it is counted."""
    return FINALIZER in (metadata(pod).get("finalizers") or ())


def index_of(pod: Object) -> int | None:
    """The completion index; None where there is none or it is no number."""
    text = annotations_of(pod).get(INDEX, "")
    return int(text) if text.isascii() and text.isdigit() else None


def has_valid_index(job: Object, pod: Object) -> bool:
    index = index_of(pod)
    return index is not None and index < dig(job, "spec", "completions", default=0)


def is_pod_failed(job: Object, pod: Object) -> bool:
    """Failed, or being deleted without having succeeded: it may never come to fail."""
    phase = dig(pod, "status", "phase")
    if phase == "Failed":
        return True
    return not replaces_only_failed(job) and is_deleting(pod) and phase != "Succeeded"


def failures_of_index(pod: Object) -> int:
    """How often the pod's index had failed before it, not counting what a policy ignored."""
    return _count(annotations_of(pod).get(INDEX_FAILURES, ""))


def all_failures_of_index(pod: Object) -> int:
    return failures_of_index(pod) + _count(annotations_of(pod).get(INDEX_IGNORED_FAILURES, ""))


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and int(text) < 2**31 else 0


def finished_at(pod: Object) -> float:
    """When the pod ended: its last container; else when it ceased to be ready; else its deletion; else its birth."""
    if (at := _containers_finished_at(pod)) is not None:
        return at
    ready = find_condition(pod, "Ready")
    if ready is not None and ready["status"] == "False" and ready.get("lastTransitionTime"):
        return parse_time(ready["lastTransitionTime"])
    meta = metadata(pod)
    if meta.get("deletionTimestamp"):
        return parse_time(meta["deletionTimestamp"]) - float(meta.get("deletionGracePeriodSeconds") or 0)
    return parse_time(meta["creationTimestamp"])


def _containers_finished_at(pod: Object) -> float | None:
    sidecars = {
        container["name"]
        for container in dig(pod, "spec", "initContainers", default=())
        if container.get("restartPolicy") == "Always"
    }
    statuses = list(dig(pod, "status", "containerStatuses", default=()))
    statuses += [s for s in dig(pod, "status", "initContainerStatuses", default=()) if s["name"] in sidecars]
    ends = [dig(status, "state", "terminated", "finishedAt") for status in statuses]
    if not ends or not all(ends):
        return None
    return max(parse_time(end) for end in ends)


# Policies


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the pod failure policy says of a failed pod."""

    action: Action | None = None
    message: str = ""
    """Why the Job fails, for FailJob."""

    @property
    def counts(self) -> bool:
        return self.action != "Ignore"


def judge(job: Object, pod: Object) -> Verdict:
    """The first rule of spec.podFailurePolicy that matches; without one the failure counts."""
    for number, rule in enumerate(dig(job, "spec", "podFailurePolicy", "rules", default=())):
        action: Action = rule["action"]
        if exit_codes := rule.get("onExitCodes"):
            status = _matching_container(pod, exit_codes)
            if status is not None:
                code = dig(status, "state", "terminated", "exitCode")
                return Verdict(
                    action,
                    f"Container {status['name']} for pod {namespace_of(pod)}/{name_of(pod)} failed with exit code "
                    f"{code} matching {action} rule at index {number}",
                )
        elif patterns := rule.get("onPodConditions"):
            kind = _matching_condition(pod, patterns)
            if kind is not None:
                where = f"{namespace_of(pod)}/{name_of(pod)}"
                return Verdict(action, f"Pod {where} has condition {kind} matching {action} rule at index {number}")
    return Verdict()


def _matching_container(pod: Object, requirement: Mapping[str, Any]) -> Object | None:
    statuses: list[Object] = [
        *dig(pod, "status", "containerStatuses", default=()),
        *dig(pod, "status", "initContainerStatuses", default=()),
    ]
    wanted = requirement.get("containerName")
    for status in statuses:
        code = dig(status, "state", "terminated", "exitCode")
        if not code or wanted not in (None, status["name"]):
            continue
        if (code in requirement["values"]) is (requirement["operator"] == "In"):
            return status
    return None


def _matching_condition(pod: Object, patterns: Iterable[Mapping[str, str]]) -> str | None:
    wanted = [(pattern["type"], pattern.get("status", "True")) for pattern in patterns]
    conditions = dig(pod, "status", "conditions", default=())
    return next((c["type"] for c in conditions if (c["type"], c["status"]) in wanted), None)


def met_success_rule(job: Object, succeeded: set[int]) -> int | None:
    """The number of the first rule of spec.successPolicy that is met."""
    if not succeeded:
        return None
    completions = dig(job, "spec", "completions", default=0)
    for number, rule in enumerate(dig(job, "spec", "successPolicy", "rules", default=())):
        count = rule.get("succeededCount")
        if rule.get("succeededIndexes") is not None:
            required = parse_indexes(rule["succeededIndexes"], completions)
            having = len(required & succeeded)
            if required and (having == len(required) or (count is not None and having >= count)):
                return number
        elif count is not None and len(succeeded) >= count:
            return number
    return None


def restarts_exceed_limit(job: Object, pods: Iterable[Object]) -> bool:
    """restartPolicy OnFailure: the restarts of living pods together reach the back-off limit."""
    if dig(job, "spec", "template", "spec", "restartPolicy") != "OnFailure":
        return False
    restarts = sum(
        status.get("restartCount", 0)
        for pod in pods
        if dig(pod, "status", "phase") in ("Running", "Pending")
        for field in ("initContainerStatuses", "containerStatuses")
        for status in dig(pod, "status", field, default=())
    )
    limit = backoff_limit(job)
    return bool(restarts > 0 if limit == 0 else restarts >= limit)


def backoff_limit(job: Object) -> int:
    return int(dig(job, "spec", "backoffLimit", default=6))


# Back-off


@dataclass(frozen=True, slots=True)
class Backoff:
    """Failures of a Job since its last success."""

    failures: int = 0
    last_failure: float = 0.0

    def after(self, succeeded: Iterable[Object], failed: Iterable[Object]) -> Backoff:
        """With pods that have finished since."""
        failures = sorted(finished_at(pod) for pod in failed)
        successes = sorted(finished_at(pod) for pod in succeeded)
        if not successes:
            return Backoff(self.failures + len(failures), failures[-1]) if failures else self
        failures = [at for at in failures if at > successes[-1]]
        return Backoff(len(failures), failures[-1]) if failures else Backoff()

    def left_s(self, now: float) -> float:
        """Seconds until a new pod may be made: 10 s after the first failure, doubling to 600 s."""
        if self.failures == 0:
            return 0.0
        delay_s = min(BACKOFF_FIRST_S * 2.0 ** min(self.failures - 1, 30), BACKOFF_MAX_S)
        return max(0.0, self.last_failure + delay_s - now)


def left_of_index_s(last_failed: Object | None, now: float) -> float:
    """The same for one index, whose failures its last failed pod knows."""
    if last_failed is None:
        return 0.0
    return Backoff(all_failures_of_index(last_failed) + 1, finished_at(last_failed)).left_s(now)


# Indexes


def indexes_of(pods: Iterable[Object]) -> set[int]:
    return {index for pod in pods if (index := index_of(pod)) is not None}


def is_index_failed(job: Object, pod: Object) -> bool:
    """Whether the pod's failure is the last that its index may have."""
    if not is_pod_failed(job, pod):
        return False
    verdict = judge(job, pod)
    if verdict.action == "FailIndex":
        return True
    return verdict.counts and failures_of_index(pod) >= int(job["spec"]["backoffLimitPerIndex"])


def first_pending(taken: set[int], completions: int, count: int) -> list[int]:
    """The first `count` indexes that are not taken."""
    found: list[int] = []
    for index in range(completions):
        if len(found) >= count:
            break
        if index not in taken:
            found.append(index)
    return found


def held_back(job: Object, pods: Iterable[Object], settled: set[int]) -> dict[int, Object]:
    """By index, the failed pod that must stay until its replacement is made, since it knows the index's failures.
    `settled`: indexes that have succeeded, failed, or have an active pod."""
    held: dict[int, Object] = {}
    for pod in pods:
        index = index_of(pod)
        if index is None or index in settled or not is_tracked(pod) or not is_pod_failed(job, pod):
            continue
        if not has_valid_index(job, pod):
            continue
        rank = (all_failures_of_index(pod), finished_at(pod))
        other = held.get(index)
        if other is None or rank >= (all_failures_of_index(other), finished_at(other)):
            held[index] = pod
    return held


def surplus_pods(
    job: Object, active: Sequence[Object], at_least: int, rank: Callable[[Sequence[Object]], Objects]
) -> Objects:
    """Pods to delete: those with no index, a wrong one or one twice (Indexed), then as many as it takes."""
    doomed: Objects = []
    left = list(active)
    if is_indexed(job):
        by_index: dict[int, Objects] = {}
        left = []
        for pod in active:
            index = index_of(pod)
            if index is None or not has_valid_index(job, pod):
                doomed.append(pod)
            else:
                by_index.setdefault(index, []).append(pod)
        for _, twins in sorted(by_index.items()):
            *surplus, last = rank(twins)
            doomed += surplus
            left.append(last)
    if len(doomed) < at_least:
        doomed += rank(left)[: at_least - len(doomed)]
    return doomed


# Counting


@dataclass(frozen=True, slots=True)
class Finished:
    """Pods that ended since the last status, not counted yet."""

    succeeded: Objects
    failed: Objects


def newly_finished(job: Object, pods: Iterable[Object]) -> Finished:
    uncounted = dig(job, "status", "uncountedTerminatedPods", default={})
    known = {*uncounted.get("succeeded", ()), *uncounted.get("failed", ())}
    finished = Finished([], [])
    for pod in pods:
        if not is_tracked(pod) or (is_indexed(job) and not has_valid_index(job, pod)):
            continue
        if dig(pod, "status", "phase") == "Succeeded":
            if uid_of(pod) not in uncounted.get("succeeded", ()):
                finished.succeeded.append(pod)
        elif uid_of(pod) not in known and is_pod_failed(job, pod):
            finished.failed.append(pod)
    return finished


def count_ready(pods: Iterable[Object]) -> int:
    return sum(map(is_pod_ready, pods))
