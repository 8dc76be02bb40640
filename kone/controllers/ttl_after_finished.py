"""Finished Jobs go when their ttlSecondsAfterFinished is over, with their pods."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import JOBS
from kone.apimachinery.objects import Key, Object, dig, is_deleting, key_of, uid_of
from kone.apimachinery.timestamps import parse_time
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch
from kone.controllers.job_rules import true_condition


def expires_at(job: Object) -> float | None:
    """Unix seconds at which the Job is to go; None where it has no TTL, is not finished, or is going already."""
    ttl_s, end = dig(job, "spec", "ttlSecondsAfterFinished"), true_condition(job, "Complete", "Failed")
    if ttl_s is None or end is None or is_deleting(job) or not end.get("lastTransitionTime"):
        return None
    return parse_time(end["lastTransitionTime"]) + float(ttl_s)


class FinishedJobs(Reconciler):
    """Keys are Jobs."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(JOBS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, job: Object, previous: Object | None) -> Iterable[Key]:
        return (key_of(job),) if event != "DELETED" and expires_at(job) is not None else ()

    async def reconcile(self, key: Key) -> Result | None:
        job = self.primary.get(*key)
        at = expires_at(job) if job is not None else None
        if job is None or at is None:
            return None
        left_s = at - self._ctx.clock.now()
        if left_s > 0:
            return Result(after_s=left_s)
        try:
            await self._ctx.client.delete(
                JOBS, key.name, namespace=key.namespace, uid=uid_of(job), propagation="Foreground"
            )
        except StatusError as error:
            if error.code != 404:
                raise
        return None


TTL_AFTER_FINISHED_CONTROLLER = Controller(
    "ttl-after-finished-controller", FinishedJobs, account="ttl-after-finished-controller"
)
