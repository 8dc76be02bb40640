"""CronJobs: a Job at each time of a schedule, in its time zone, as its concurrency policy and deadlines allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from kone.apimachinery.cron import Schedule, parse_schedule
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CRONJOBS, JOBS
from kone.apimachinery.objects import (
    Key,
    Object,
    controller_reference,
    dig,
    is_controlled_by,
    is_deleting,
    key_of,
    metadata,
    name_of,
    namespace_of,
    replace_in,
    resource_version_of,
    uid_of,
)
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import EventType, Informer, Objects
from kone.controllers.controller import (
    NAMESPACE_TERMINATING,
    Context,
    Controller,
    Reconciler,
    Result,
    Watch,
    for_owner,
    has_cause,
)
from kone.controllers.job_rules import is_finished, true_condition
from kone.controllers.pod_control import controlled_by, index_by_controller

SCHEDULED_AT = "batch.kubernetes.io/cronjob-scheduled-timestamp"
MANY_MISSED = 100
PADDING_S = 0.1  # a start is looked for this much after its time


# Decide


@dataclass(frozen=True, slots=True)
class Missed:
    """What of a schedule has come since it was last looked at."""

    earliest: datetime
    latest: datetime | None
    """The latest time that has come; None where none has."""
    count: int
    """How many have come, roughly: by the distance of the first two."""


def missed_since(cron_job: Object, schedule: Schedule, now: datetime, *, by_deadline: bool) -> Missed:
    """The times of the schedule from the last start (or the CronJob's creation) to now; with `by_deadline`, only those
    that startingDeadlineSeconds still lets start. Raises ValueError for a schedule that never fires."""
    earliest = _time(dig(cron_job, "status", "lastScheduleTime") or metadata(cron_job)["creationTimestamp"])
    deadline_s = dig(cron_job, "spec", "startingDeadlineSeconds")
    if by_deadline and deadline_s is not None:
        earliest = max(earliest, now - timedelta(seconds=deadline_s))
    first = schedule.next_after(earliest)
    second = schedule.next_after(first) if first is not None else None
    if first is None or second is None:
        raise ValueError("time difference between two schedules is less than 1 second")
    if now < first:
        return Missed(earliest, None, 0)
    if now < second:
        return Missed(earliest, first, 0)
    step = second - first
    count = int((now - first) / step) + 1
    # From where the last one should be, less one step for schedules that are not even, to the last one that is.
    latest, at = None, schedule.next_after(first + step * max(0, count - 2))
    if count < 2:
        at = first
    while at is not None and at <= now:
        latest, at = at, schedule.next_after(at)
    return Missed(earliest, latest, count)


def next_look_s(cron_job: Object, schedule: Schedule, now: datetime) -> float | None:
    """Seconds until the next time of the schedule, and a little more; None for never."""
    try:
        missed = missed_since(cron_job, schedule, now, by_deadline=False)
    except ValueError:
        after = now
    else:
        after = missed.latest or (missed.earliest if missed.count == 0 else now)
    at = schedule.next_after(after)
    return (at - now).total_seconds() + PADDING_S if at is not None else None


def schedule_of(cron_job: Object) -> Schedule:
    """The schedule in the CronJob's time zone, by default UTC. Raises ValueError."""
    text, zone = dig(cron_job, "spec", "schedule", default=""), dig(cron_job, "spec", "timeZone")
    return parse_schedule(f"TZ={zone} {text}" if zone and "TZ" not in text else text)


def job_name(cron_job: Object, at: datetime) -> str:
    """One name for one time: the minutes since 1970, so that no start is made twice."""
    return f"{name_of(cron_job)}-{int(at.timestamp()) // 60}"


def job_for(cron_job: Object, at: datetime) -> Object:
    template = dig(cron_job, "spec", "jobTemplate", default={})
    zone = dig(cron_job, "spec", "timeZone")
    stamp = at.astimezone(ZoneInfo(zone) if zone else UTC).replace(microsecond=0).isoformat()
    annotations = {**dig(template, "metadata", "annotations", default={}), SCHEDULED_AT: stamp.replace("+00:00", "Z")}
    meta = {
        "name": job_name(cron_job, at),
        "namespace": namespace_of(cron_job),
        "annotations": annotations,
        "ownerReferences": [controller_reference(cron_job)],
    }
    if labels := dig(template, "metadata", "labels"):
        meta["labels"] = labels
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": template.get("spec") or {}}


def finished_to_delete(cron_job: Object, jobs: Iterable[Object]) -> Objects:
    """Jobs beyond the two history limits, oldest first."""
    doomed: Objects = []
    limits = {"Complete": "successfulJobsHistoryLimit", "Failed": "failedJobsHistoryLimit"}
    by_end: dict[str, Objects] = {"Complete": [], "Failed": []}
    for job in jobs:
        if (condition := true_condition(job, *limits)) is not None:
            by_end[condition["type"]].append(job)
    for end, limit in limits.items():
        most = dig(cron_job, "spec", limit)
        if most is not None:
            ordered = sorted(by_end[end], key=lambda job: (dig(job, "status", "startTime", default="~"), name_of(job)))
            doomed += ordered[: max(0, len(ordered) - most)]
    return doomed


def reference_to(job: Object) -> Object:
    """As status.active lists it."""
    return {
        "kind": "Job",
        "namespace": namespace_of(job),
        "name": name_of(job),
        "uid": uid_of(job),
        "apiVersion": "batch/v1",
        "resourceVersion": resource_version_of(job),
    }


def _time(text: str) -> datetime:
    return datetime.fromtimestamp(parse_time(text), UTC)


# Act


class CronJobs(Reconciler):
    """Reconciles CronJobs."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(CRONJOBS)
        self._jobs: Informer = ctx.client.informer(JOBS)
        index_by_controller(self._jobs)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_cron_job)
        yield Watch(self._jobs, for_owner(self.primary, "CronJob"))

    def _keys_of_cron_job(self, event: EventType, cron_job: Object, previous: Object | None) -> Iterable[Key]:
        """A changed schedule starts nothing for times that have passed: it is first looked at at its next time."""
        if event == "MODIFIED" and previous is not None and _plan(cron_job) != _plan(previous):
            try:
                wait_s = next_look_s(cron_job, schedule_of(cron_job), self._now())
            except ValueError:
                schedule = dig(cron_job, "spec", "schedule", default="")
                self._tell(cron_job, "UnParseableCronJobSchedule", f"unparseable schedule for cronjob: {schedule}")
                return ()
            if wait_s is not None:
                self._ctx.queue.add_after(key_of(cron_job), wait_s)
            return ()
        return (key_of(cron_job),)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._ctx.clock.now(), UTC)

    async def reconcile(self, key: Key) -> Result | None:
        stored = self.primary.get(*key)
        if stored is None:
            return None
        cron_job, jobs = stored, controlled_by(self._jobs, stored)
        for job in finished_to_delete(cron_job, jobs):
            cron_job, _ = await self._delete(cron_job, job)
        cron_job = self._follow_jobs(cron_job, jobs)
        try:
            cron_job, wait_s = await self._start_due(cron_job)
        finally:
            # What has been noted is kept, also where starting a Job failed.
            if cron_job.get("status") != stored.get("status"):
                await self._ctx.client.update(CRONJOBS, cron_job, subresource="status")
        return Result(after_s=max(0.0, wait_s)) if wait_s is not None else None

    def _follow_jobs(self, cron_job: Object, jobs: Objects) -> Object:
        """Take finished and missing Jobs off the active list, and remember the last success."""
        active = {ref["uid"]: ref for ref in dig(cron_job, "status", "active", default=())}
        last = dig(cron_job, "status", "lastSuccessfulTime", default="")
        for job in jobs:
            uid = uid_of(job)
            if not is_finished(job):
                if uid not in active:
                    message = f"Saw a job that the controller did not create or forgot: {name_of(job)}"
                    self._tell(cron_job, "UnexpectedJob", message)
                continue
            condition = true_condition(job, "Complete", "Failed") or {}
            if active.pop(uid, None) is not None:
                message = f"Saw completed job: {name_of(job)}, condition: {condition['type']}"
                self._ctx.recorder.event(cron_job, "Normal", "SawCompletedJob", message)
            if condition["type"] == "Complete":
                last = max(last, dig(job, "status", "completionTime", default=""))
        present = {uid_of(job) for job in jobs}
        for uid, ref in list(active.items()):
            if uid not in present and self._jobs.get(ref["namespace"], ref["name"]) is None:
                message = f"Active job went missing: {ref['name']}"
                self._ctx.recorder.event(cron_job, "Normal", "MissingJob", message)
                del active[uid]
        return _with_status(cron_job, active=list(active.values()), lastSuccessfulTime=last)

    async def _start_due(self, cron_job: Object) -> tuple[Object, float | None]:
        """Start what is due. Returns the CronJob with its status, and seconds until the next look."""
        now = self._now()
        if is_deleting(cron_job) or dig(cron_job, "spec", "suspend"):
            return cron_job, None
        text = dig(cron_job, "spec", "schedule", default="")
        if "TZ" in text:
            url = "https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/"
            message = f'CRON_TZ or TZ used in schedule "{text}" is not officially supported, see {url} for more details'
            self._tell(cron_job, "UnsupportedSchedule", message)
        try:
            schedule = schedule_of(cron_job)
        except ValueError as error:
            self._tell(cron_job, "UnparseableSchedule", f'unparseable schedule: "{text}" : {error}')
            return cron_job, None
        try:
            missed = missed_since(cron_job, schedule, now, by_deadline=True)
        except ValueError as error:
            self._tell(cron_job, "InvalidSchedule", f"invalid schedule: {text} : {error}")
            return cron_job, None
        wait_s = next_look_s(cron_job, schedule, now)
        if missed.latest is None:
            return cron_job, wait_s
        if missed.count > MANY_MISSED:
            message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
            self._tell(cron_job, "TooManyMissedTimes", message)
        if not await self._may_start(cron_job, missed.latest, now):
            return cron_job, wait_s
        if dig(cron_job, "spec", "concurrencyPolicy") == "Replace":
            for ref in dig(cron_job, "status", "active", default=()):
                if (job := self._jobs.get(ref["namespace"], ref["name"])) is not None:
                    cron_job, error_or_none = await self._delete(cron_job, job)
                    if error_or_none is not None:
                        raise error_or_none
        cron_job = await self._start(cron_job, missed.latest)
        return cron_job, next_look_s(cron_job, schedule, now)

    async def _may_start(self, cron_job: Object, at: datetime, now: datetime) -> bool:
        deadline_s = dig(cron_job, "spec", "startingDeadlineSeconds")
        if deadline_s is not None and at + timedelta(seconds=deadline_s) < now:
            stamp = at.astimezone(UTC).strftime("%a, %d %b %Y %H:%M:%S %z")
            self._tell(cron_job, "MissSchedule", f"Missed scheduled time to start a job: {stamp}")
            return False
        active = dig(cron_job, "status", "active", default=())
        last = dig(cron_job, "status", "lastScheduleTime")
        if any(ref["name"] == job_name(cron_job, at) for ref in active) or (last and _time(last) == at):
            return False
        if dig(cron_job, "spec", "concurrencyPolicy") == "Forbid" and active:
            message = "Not starting job because prior execution is running and concurrency policy is Forbid"
            self._ctx.recorder.event(cron_job, "Normal", "JobAlreadyActive", message)
            return False
        return True

    async def _start(self, cron_job: Object, at: datetime) -> Object:
        wanted = job_for(cron_job, at)
        namespace, name = key_of(wanted)
        try:
            job = await self._ctx.client.create(JOBS, wanted, namespace=namespace)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                if not has_cause(error, NAMESPACE_TERMINATING):
                    self._tell(cron_job, "FailedCreate", f"Error creating job: {error}")
                raise
            job = await self._ctx.client.get(JOBS, name, namespace)
            if not is_controlled_by(job, cron_job):
                return cron_job
        else:
            self._ctx.recorder.event(cron_job, "Normal", "SuccessfulCreate", f"Created job {name}")
        active = [*dig(cron_job, "status", "active", default=()), reference_to(job)]
        return _with_status(cron_job, active=active, lastScheduleTime=format_time(at.timestamp()))

    async def _delete(self, cron_job: Object, job: Object) -> tuple[Object, StatusError | None]:
        """Delete a Job with its pods. Returns the CronJob without it, or as it is with the error."""
        namespace, name = key_of(job)
        try:
            await self._ctx.client.delete(JOBS, name, namespace=namespace, propagation="Background")
        except StatusError as error:
            if error.code != 404:
                self._tell(cron_job, "FailedDelete", f"Deleted job: {error}")
                return cron_job, error
        self._ctx.recorder.event(cron_job, "Normal", "SuccessfulDelete", f"Deleted job {name}")
        active = [ref for ref in dig(cron_job, "status", "active", default=()) if ref["uid"] != uid_of(job)]
        return _with_status(cron_job, active=active), None

    def _tell(self, cron_job: Object, reason: str, message: str) -> None:
        self._ctx.recorder.event(cron_job, "Warning", reason, message)


def _plan(cron_job: Object) -> tuple[object, object]:
    return dig(cron_job, "spec", "schedule"), dig(cron_job, "spec", "timeZone")


def _with_status(cron_job: Object, **changes: object) -> Object:
    """The CronJob with those fields of its status; empty ones are left out, as the API leaves them."""
    before: Mapping[str, object] = cron_job.get("status") or {}
    status = {key: value for key, value in {**before, **changes}.items() if value}
    return replace_in(cron_job, ("status",), status) if status != before else cron_job


CRONJOB_CONTROLLER = Controller("cronjob-controller", CronJobs)
