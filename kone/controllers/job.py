"""Jobs: pods that run to completion, each counted exactly once.

A pod is held by a finalizer until it is counted: first its UID is written into status.uncountedTerminatedPods, then the
finalizer is taken off, then the UID becomes a number. A crash between any two of these loses and doubles nothing.
The rules are in job_rules.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import JOBS, PODS
from kone.apimachinery.objects import (
    Key,
    Object,
    controller_of,
    dig,
    generation_of,
    is_deleting,
    is_pod_active,
    is_pod_ready,
    key_of,
    metadata,
    name_of,
    namespace_of,
    replace_in,
    uid_of,
)
from kone.apimachinery.selectors import from_label_selector
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import EventType, Informer, Objects
from kone.controllers import job_rules as rules
from kone.controllers.controller import (
    NAMESPACE_TERMINATING,
    Context,
    Controller,
    Reconciler,
    Result,
    Watch,
    for_members,
    has_cause,
)
from kone.controllers.job_indexes import format_indexes, parse_indexes
from kone.controllers.pod_control import (
    BURST,
    PodControl,
    claim,
    controlled_by,
    first_error,
    index_by_controller,
    is_pod_terminating,
    orphans_in,
    pod_from_template,
    rank_for_deletion,
    slow_start,
)

BATCH_S = 0.1  # changes of pods and of the status are looked at together
MAX_UNCOUNTED = 500
GENERATED_MAX = 58  # a longer generateName is cut by the API
INDEX_ENV = "JOB_COMPLETION_INDEX"


@dataclass(slots=True)
class Sync:
    """One look at a Job: what is known of its pods, and what has been decided."""

    job: Object
    pods: Objects
    now: float
    backoff: rules.Backoff
    active: Objects = field(init=False)
    active_count: int = field(init=False)
    ready: int = field(init=False)
    terminating: int = field(init=False)
    succeeded: int = field(init=False)
    failed: int = field(init=False)
    succeeded_before: set[int] = field(default_factory=set)
    succeeded_indexes: set[int] = field(default_factory=set)
    failed_indexes: set[int] = field(default_factory=set)
    held: dict[int, Object] = field(default_factory=dict)
    """Failed pods that wait for their replacement, by index."""
    end: Object | None = None
    """The condition that ends the Job."""
    wait_s: float = float("inf")
    """When to look again, should nothing happen."""

    def __post_init__(self) -> None:
        job = self.job
        self.active = list(filter(is_pod_active, self.pods))
        self.active_count = len(self.active)
        self.ready = rules.count_ready(self.active)
        self.terminating = sum(map(is_pod_terminating, self.pods))
        finished = rules.newly_finished(job, self.pods)
        uncounted = dig(job, "status", "uncountedTerminatedPods", default={})
        counted = [pod for pod in finished.failed if rules.judge(job, pod).counts]
        self.succeeded = _status(job, "succeeded") + len(finished.succeeded) + len(uncounted.get("succeeded", ()))
        self.failed = _status(job, "failed") + len(counted) + len(uncounted.get("failed", ()))
        self.backoff = self.backoff.after(finished.succeeded, finished.failed)
        if rules.is_indexed(job):
            self._look_at_indexes()

    def _look_at_indexes(self) -> None:
        job, pods = self.job, self.pods
        completions = dig(job, "spec", "completions", default=0)
        counted = [pod for pod in pods if rules.is_tracked(pod) and rules.has_valid_index(job, pod)]
        self.succeeded_before = parse_indexes(dig(job, "status", "completedIndexes", default=""), completions)
        fresh = rules.indexes_of(pod for pod in counted if dig(pod, "status", "phase") == "Succeeded")
        self.succeeded_indexes = self.succeeded_before | fresh
        self.succeeded = len(self.succeeded_indexes)
        if rules.has_backoff_per_index(job):
            self.failed_indexes = parse_indexes(dig(job, "status", "failedIndexes", default=""), completions)
            self.failed_indexes |= rules.indexes_of(pod for pod in counted if rules.is_index_failed(job, pod))
            settled = self.succeeded_indexes | self.failed_indexes | rules.indexes_of(self.active)
            self.held = rules.held_back(job, pods, settled)


def _status(job: Object, count: str) -> int:
    return int(dig(job, "status", count, default=0))


# Decide


def decide_end(sync: Sync) -> Object | None:
    """The condition that ends the Job, if it is to end: what was decided before, then failures, then the success
    policy. FailureTarget and SuccessCriteriaMet come first; Failed and Complete follow when the pods are gone."""
    job, now = sync.job, sync.now
    if (met := rules.true_condition(job, "SuccessCriteriaMet")) is not None:
        return met
    if (target := rules.true_condition(job, "FailureTarget")) is not None:
        return rules.make_condition("Failed", "True", target.get("reason", ""), target.get("message", ""), now)

    def failing(reason: str, message: str) -> Object:
        return rules.make_condition("FailureTarget", "True", reason, message, now)

    for pod in sync.pods:
        if rules.is_pod_failed(job, pod) and (verdict := rules.judge(job, pod)).action == "FailJob":
            return failing("PodFailurePolicy", verdict.message)
    if sync.failed > rules.backoff_limit(job) or rules.restarts_exceed_limit(job, sync.pods):
        return failing("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    deadline_s = deadline_left_s(job, now)
    if deadline_s is not None and deadline_s <= 0:
        return failing("DeadlineExceeded", "Job was active longer than specified deadline")
    if rules.is_indexed(job):
        failed, completions = len(sync.failed_indexes), dig(job, "spec", "completions", default=0)
        most = dig(job, "spec", "maxFailedIndexes")
        if most is not None and failed > most:
            message = "Job has exceeded the specified maximal number of failed indexes"
            return failing("MaxFailedIndexesExceeded", message)
        if failed and failed + len(sync.succeeded_indexes) >= completions:
            return failing("FailedIndexes", "Job has failed indexes")
        if (rule := rules.met_success_rule(job, sync.succeeded_indexes)) is not None:
            message = f"Matched rules at index {rule}"
            return rules.make_condition("SuccessCriteriaMet", "True", "SuccessPolicy", message, now)
    return None


def deadline_left_s(job: Object, now: float) -> float | None:
    """Seconds until activeDeadlineSeconds is over; None where it does not run."""
    limit, start = dig(job, "spec", "activeDeadlineSeconds"), dig(job, "status", "startTime")
    if limit is None or start is None or rules.is_suspended(job):
        return None
    return parse_time(start) + float(limit) - now


def wanted_active(sync: Sync) -> int:
    """How many pods should run now."""
    job = sync.job
    parallelism, completions = dig(job, "spec", "parallelism", default=1), dig(job, "spec", "completions")
    if completions is None:
        # A work queue: after the first success nothing is started any more.
        return sync.active_count if sync.succeeded > 0 else int(parallelism)
    return max(0, min(int(completions) - sync.succeeded, int(parallelism)))


def is_complete(sync: Sync) -> bool:
    completions = dig(sync.job, "spec", "completions")
    if sync.active_count > 0:
        return False
    return sync.succeeded > 0 if completions is None else sync.succeeded >= completions


def may_release(sync: Sync, pod: Object) -> bool:
    """Whether a pod's finalizer may go: it succeeded, or failed and need not wait for its replacement, or all ends."""
    job = sync.job
    if is_deleting(job) or sync.end is not None or dig(pod, "status", "phase") == "Succeeded":
        return True
    if not rules.is_pod_failed(job, pod):
        return False
    index = rules.index_of(pod)
    held = sync.held.get(index) if index is not None else None
    return held is None or uid_of(held) != uid_of(pod)


def count_pods(sync: Sync, status: Object) -> tuple[Objects, bool]:
    """Note the UIDs (or indexes) of pods that have ended in the status. Returns the pods whose finalizers may go then,
    and whether there are more than one pass takes."""
    job, indexed = sync.job, rules.is_indexed(sync.job)
    uncounted = status["uncountedTerminatedPods"]
    succeeded, failed = list(uncounted.get("succeeded", ())), list(uncounted.get("failed", ()))
    fails_all = sync.end is not None and sync.end["type"] != "SuccessCriteriaMet"
    new_indexes: set[int] = set()
    releasable: Objects = []
    for pod in sorted(sync.pods, key=lambda pod: rules.index_of(pod) or 0) if indexed else sync.pods:
        if not rules.is_tracked(pod) or not may_release(sync, pod):
            continue
        releasable.append(pod)
        uid, valid = uid_of(pod), not indexed or rules.has_valid_index(job, pod)
        is_failure = (fails_all or rules.is_pod_failed(job, pod)) and rules.judge(job, pod).counts
        if dig(pod, "status", "phase") == "Succeeded" and uid not in failed:
            if indexed and valid:
                new_indexes |= rules.indexes_of([pod]) - sync.succeeded_before
            elif not indexed and uid not in succeeded:
                succeeded.append(uid)
        elif is_failure and valid and uid not in failed:
            failed.append(uid)
        if len(new_indexes) + len(succeeded) + len(failed) >= MAX_UNCOUNTED:
            break
    lists = {"succeeded": succeeded, "failed": failed}
    status["uncountedTerminatedPods"] = {name: uids for name, uids in lists.items() if uids}
    if indexed:
        done = sync.succeeded_before | new_indexes
        _put(status, "completedIndexes", format_indexes(done))
        _put(status, "succeeded", len(done))
        if rules.has_backoff_per_index(job):
            status["failedIndexes"] = format_indexes(sync.failed_indexes)
    return releasable, len(new_indexes) + len(succeeded) + len(failed) >= MAX_UNCOUNTED


def settle_counts(status: Object, held: set[str]) -> None:
    """Turn UIDs whose pods are no longer held into numbers."""
    uncounted = dict(status["uncountedTerminatedPods"])
    for name in ("succeeded", "failed"):
        uids = uncounted.get(name, [])
        waiting = [uid for uid in uids if uid in held]
        _put(uncounted, name, waiting)
        _put(status, name, status.get(name, 0) + len(uids) - len(waiting))
    status["uncountedTerminatedPods"] = uncounted


def _put(mapping: Object, key: str, value: Any) -> None:
    """Set, or leave out where the API leaves zero values out."""
    if value:
        mapping[key] = value
    else:
        mapping.pop(key, None)


# Pods


def pod_for(job: Object, index: int | None, replaces: Object | None) -> Object:
    """The Job's next pod; for an Indexed Job with its index in annotation, label, hostname and environment."""
    pod = pod_from_template(job["spec"]["template"], job)
    meta = dict(pod["metadata"])
    finalizers = meta.get("finalizers", [])
    meta["finalizers"] = finalizers if rules.FINALIZER in finalizers else [*finalizers, rules.FINALIZER]
    if index is None:
        return {**pod, "metadata": meta}
    suffix = f"-{index}-"
    meta["generateName"] = name_of(job)[: GENERATED_MAX - len(suffix)] + suffix
    meta["labels"] = {**meta.get("labels", {}), rules.INDEX: str(index)}
    meta["annotations"] = {**meta.get("annotations", {}), rules.INDEX: str(index)}
    if rules.has_backoff_per_index(job):
        meta["annotations"] |= _failure_counts(job, replaces)
    spec = {**pod["spec"], "hostname": f"{name_of(job)}-{index}"}
    for containers in ("initContainers", "containers"):
        if spec.get(containers):
            spec[containers] = [_with_index_env(container) for container in spec[containers]]
    return {**pod, "metadata": meta, "spec": spec}


def _failure_counts(job: Object, replaces: Object | None) -> dict[str, str]:
    failures = ignored = 0
    if replaces is not None:
        failures = rules.failures_of_index(replaces)
        ignored = rules.all_failures_of_index(replaces) - failures
        if rules.judge(job, replaces).counts:
            failures += 1
        else:
            ignored += 1
    counts = {rules.INDEX_FAILURES: str(failures)}
    return counts | ({rules.INDEX_IGNORED_FAILURES: str(ignored)} if ignored else {})


def _with_index_env(container: Mapping[str, Any]) -> Object:
    env = list(container.get("env") or ())
    if any(variable["name"] == INDEX_ENV for variable in env):
        return dict(container)
    source = {"fieldRef": {"fieldPath": f"metadata.labels['{rules.INDEX}']"}}
    return {**container, "env": [*env, {"name": INDEX_ENV, "valueFrom": source}]}


# Act


class Jobs(Reconciler):
    """Reconciles Jobs."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._pod_control = PodControl(ctx.client, ctx.recorder)
        self.primary: Informer = ctx.client.informer(JOBS)
        self._pods: Informer = ctx.client.informer(PODS)
        self._members = for_members(self.primary, "Job")
        self._backoffs: dict[Key, tuple[str, rules.Backoff]] = {}
        index_by_controller(self._pods)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_job)
        yield Watch(self._pods, self._keys_of_pod)

    def _keys_of_job(self, event: EventType, job: Object, previous: Object | None) -> Iterable[Key]:
        """What users change is looked at at once; what this controller writes, together with what follows."""

        def asked(state: Object) -> tuple[int, bool]:
            return generation_of(state), is_deleting(state)

        if event != "MODIFIED" or previous is None or asked(job) != asked(previous):
            return (key_of(job),)
        self._ctx.queue.add_after(key_of(job), BATCH_S)
        return ()

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        for key in self._members(event, pod, previous):
            self._ctx.queue.add_after(key, BATCH_S)
        return ()

    async def reconcile(self, key: Key) -> Result | None:
        job = self.primary.get(*key)
        if job is None or rules.is_managed_elsewhere(job) or rules.is_finished(job):
            self._backoffs.pop(key, None)
            return None
        selector = from_label_selector(dig(job, "spec", "selector"))
        candidates = [*controlled_by(self._pods, job), *orphans_in(self._pods, key.namespace)]
        client = self._ctx.client
        pods = await claim(client, PODS, JOBS, job, candidates, selector, finalizer=rules.FINALIZER)

        now = self._ctx.clock.now()
        known_uid, backoff = self._backoffs.get(key, ("", rules.Backoff()))
        if not dig(job, "status", "startTime") and not rules.is_suspended(job):
            job = replace_in(job, ("status", "startTime"), format_time(now))
        sync = Sync(job, pods, now, backoff if known_uid == uid_of(job) else rules.Backoff())
        sync.end = decide_end(sync)
        deadline_s = deadline_left_s(job, now)
        if deadline_s is not None and sync.end is None:
            sync.wait_s = deadline_s

        error = await self._end_pods(sync) if sync.end is not None else await self._manage(sync)
        await self._track(key, sync)
        if error is not None:
            raise error
        return Result(after_s=sync.wait_s) if sync.wait_s < float("inf") else None

    async def _end_pods(self, sync: Sync) -> StatusError | None:
        """The Job ends: delete what still runs. It has not ended before all of it is."""
        error = await first_error(self._delete(pod, sync) for pod in sync.active)
        if error is not None:
            sync.end = None
        return error

    async def _manage(self, sync: Sync) -> StatusError | None:
        """Bring the number of pods to what it should be; then see whether the Job is complete, or suspended."""
        job, error = sync.job, None
        if not is_deleting(job):
            error = await self._scale(sync)
        if is_complete(sync):
            message = "Reached expected number of succeeded pods"
            sync.end = rules.make_condition("SuccessCriteriaMet", "True", "CompletionsReached", message, sync.now)
        elif not is_deleting(job):
            self._note_suspension(sync)
        return error

    def _note_suspension(self, sync: Sync) -> None:
        job, suspended = sync.job, rules.is_suspended(sync.job)
        reason, message = ("JobSuspended", "Job suspended") if suspended else ("JobResumed", "Job resumed")
        new = rules.make_condition("Suspended", "True" if suspended else "False", reason, message, sync.now)
        before = dig(job, "status", "conditions", default=[])
        conditions = rules.with_condition(before, new)
        if conditions == before:
            return
        status = {**(job.get("status") or {}), "conditions": conditions}
        if suspended:
            status.pop("startTime", None)
        else:
            status["startTime"] = format_time(sync.now)
        sync.job = {**job, "status": status}
        self._ctx.recorder.event(job, "Normal", "Suspended" if suspended else "Resumed", message)

    async def _scale(self, sync: Sync) -> StatusError | None:
        job = sync.job

        def rank(pods: Sequence[Object]) -> Objects:
            return rank_for_deletion(pods, (), sync.now)

        if rules.is_suspended(job):
            return await first_error(self._give_up(pod, sync) for pod in list(sync.active))
        wanted = wanted_active(sync)
        doomed = rules.surplus_pods(job, sync.active, max(0, sync.active_count - wanted), rank)[:BURST]
        if doomed:
            return await first_error(self._give_up(pod, sync) for pod in doomed)
        missing = wanted - sync.active_count
        if rules.replaces_only_failed(job):
            missing -= sync.terminating
        if missing <= 0:
            return None
        indexes: list[int] | None = None
        wait_s = 0.0
        if rules.is_indexed(job):
            indexes = self._indexes_to_start(sync, min(missing, BURST))
            missing = len(indexes)
        if rules.has_backoff_per_index(job):
            assert indexes is not None, "validation asks for completionMode Indexed"
            waits = {index: rules.left_of_index_s(sync.held.get(index), sync.now) for index in indexes}
            indexes = [index for index in indexes if waits[index] <= 0]
            missing = len(indexes)
            wait_s = 0.0 if indexes else min(waits.values(), default=0.0)
        else:
            wait_s = sync.backoff.left_s(sync.now)
        if wait_s > 0:
            sync.wait_s = min(sync.wait_s, max(wait_s, BATCH_S))
            return None
        return await slow_start(
            min(missing, BURST), lambda number: self._create(sync, indexes[number] if indexes is not None else None)
        )

    def _indexes_to_start(self, sync: Sync, count: int) -> list[int]:
        taken = sync.succeeded_indexes | sync.failed_indexes | rules.indexes_of(sync.active)
        if rules.replaces_only_failed(sync.job):
            taken |= rules.indexes_of(filter(is_pod_terminating, sync.pods))
        return rules.first_pending(taken, dig(sync.job, "spec", "completions", default=0), count)

    async def _create(self, sync: Sync, index: int | None) -> None:
        replaces = sync.held.get(index) if index is not None else None
        try:
            await self._pod_control.create(pod_for(sync.job, index, replaces), sync.job)
        except StatusError as error:
            if not has_cause(error, NAMESPACE_TERMINATING):
                raise
        sync.active_count += 1

    async def _delete(self, pod: Object, sync: Sync) -> None:
        """Ask the pod to go; its finalizer still holds it until it is counted."""
        try:
            await self._pod_control.delete(pod, sync.job)
        except StatusError as error:
            if error.code != 404:
                raise
        sync.active_count -= 1
        sync.terminating += 1
        sync.ready -= is_pod_ready(pod)

    async def _give_up(self, pod: Object, sync: Sync) -> None:
        """Delete a pod that is not to be counted."""
        await release(self._ctx, pod)
        await self._delete(pod, sync)

    # Counting

    async def _track(self, key: Key, sync: Sync) -> None:
        held = {uid_of(pod) for pod in sync.pods if rules.is_tracked(pod)}
        status = {"uncountedTerminatedPods": {}, **(sync.job.get("status") or {})}
        _put(status, "active", sync.active_count)
        status |= {"ready": sync.ready, "terminating": sync.terminating}
        settle_counts(status, held)
        releasable, more = count_pods(sync, status)
        end = self._announce_end(sync, status)
        job = await self._write(sync.job, status)
        self._backoffs[key] = (uid_of(job), sync.backoff)

        released: set[str] = set()

        async def let_go(pod: Object) -> None:
            await release(self._ctx, pod)
            released.add(uid_of(pod))

        error = await first_error(let_go(pod) for pod in releasable)
        status = {"uncountedTerminatedPods": {}, **job["status"]}
        settle_counts(status, held - released)
        over = end is not None and not more and not status["uncountedTerminatedPods"] and sync.terminating == 0
        if over and end is not None and error is None:
            status["conditions"] = rules.with_condition(status.get("conditions", []), end)
            if end["type"] == "Complete":
                status["completionTime"] = end["lastTransitionTime"]
        else:
            over = False
        job = await self._write(job, status)
        if error is not None:
            raise error
        if over and end is not None:
            self._tell_end(job, end)

    def _announce_end(self, sync: Sync, status: Object) -> Object | None:
        """Write the interim condition; return the one that will follow it when all pods are counted."""
        end = sync.end
        if end is None:
            return None
        conditions = status.get("conditions", [])
        if end["type"] in ("FailureTarget", "SuccessCriteriaMet"):
            if not any(c["type"] == end["type"] for c in conditions):
                status["conditions"] = [*conditions, end]
            kind = "Failed" if end["type"] == "FailureTarget" else "Complete"
            return rules.make_condition(kind, "True", end.get("reason", ""), end.get("message", ""), sync.now)
        return end

    async def _write(self, job: Object, status: Object) -> Object:
        stored = self.primary.get(*key_of(job))
        if stored is not None and stored.get("status") == status:
            return {**job, "status": status}
        return await self._ctx.client.update(JOBS, {**job, "status": status}, subresource="status")

    def _tell_end(self, job: Object, end: Object) -> None:
        recorder = self._ctx.recorder
        if end["type"] != "Complete":
            recorder.event(job, "Warning", end["reason"], end["message"])
            return
        completions = dig(job, "spec", "completions")
        if completions is not None and _status(job, "succeeded") > completions:
            message = "Too many succeeded pods running after completion count reached"
            recorder.event(job, "Warning", "TooManySucceededPods", message)
        recorder.event(job, "Normal", "Completed", "Job completed")


async def release(ctx: Context, pod: Object) -> None:
    """Take the tracking finalizer off; a pod that has gone is no error."""
    if not rules.is_tracked(pod):
        return
    patch = {"metadata": {"uid": uid_of(pod), "$deleteFromPrimitiveList/finalizers": [rules.FINALIZER]}}
    try:
        await ctx.client.patch(PODS, name_of(pod), patch, namespace=namespace_of(pod), kind="strategic")
    except StatusError as error:
        if error.code not in (404, 409):
            raise


class LeftoverPods(Reconciler):
    """Takes the finalizer off pods whose Job is over, or gone, or not theirs any more; keys are pods."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PODS)
        self._jobs: Informer = ctx.client.informer(JOBS)
        index_by_controller(self.primary)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_pod)
        yield Watch(self._jobs, self._keys_of_job)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        return (key_of(pod),) if event != "DELETED" and self._is_leftover(pod) else ()

    def _keys_of_job(self, event: EventType, job: Object, previous: Object | None) -> Iterable[Key]:
        if event != "DELETED" and not rules.is_finished(job):
            return ()
        return [key_of(pod) for pod in controlled_by(self.primary, job) if rules.is_tracked(pod)]

    def _is_leftover(self, pod: Object) -> bool:
        if not rules.is_tracked(pod):
            return False
        reference = controller_of(pod)
        if reference is None:
            return True
        if (reference["kind"], reference["apiVersion"]) != ("Job", "batch/v1"):
            return False
        job = self._jobs.get(namespace_of(pod), reference["name"])
        if job is None or metadata(job).get("uid") != reference["uid"]:
            return True
        return rules.is_finished(job) and not rules.is_managed_elsewhere(job)

    async def reconcile(self, key: Key) -> Result | None:
        pod = self.primary.get(*key)
        if pod is not None and self._is_leftover(pod):
            await release(self._ctx, pod)
        return None


JOB_CONTROLLER = Controller("job-controller", Jobs, backoff_s=1.0, backoff_max_s=60.0)
JOB_LEFTOVERS_CONTROLLER = Controller("job-leftover-pods-controller", LeftoverPods, account="job-controller")
