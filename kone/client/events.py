"""Events for users: what a loop wants told about an object, said once, counted when it repeats, and never in the way.

Recording only notes; one task writes what was noted, in batches, and ends when nothing is left. The rules that keep a
noisy loop from flooding the store are client-go's (tools/record/events_cache.go): equal events share one object with a
count; ten that differ only in their message within 600 s become one "(combined from similar events)"; of one component
about one object 25 are written at once, then one in 300 s.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import EVENTS
from kone.apimachinery.names import is_dns1123_subdomain
from kone.apimachinery.objects import Object, name_of, namespace_of, resource_version_of, uid_of
from kone.apimachinery.timestamps import format_micro_time, format_time
from kone.client.client import Writer

log = logging.getLogger(__name__)

EventKind = Literal["Normal", "Warning"]

REMEMBERED = 4096  # entries of each memory below
SIMILAR_MAX, SIMILAR_WINDOW_S = 10, 600.0
BURST, REFILL_S = 25, 300.0
QUEUE_MAX = 1000
BATCH = 64
LINGER_S = 0.002  # an event may wait this long, so that the work it speaks of goes first
RETRIES, RETRY_S = 12, 10.0

V = TypeVar("V")


class _Memory(OrderedDict[Hashable, V], Generic[V]):
    """The most recently used entries."""

    def recall(self, key: Hashable, default: V) -> V:
        found = self.setdefault(key, default)
        self.move_to_end(key)
        if len(self) > REMEMBERED:
            self.popitem(last=False)
        return found


@dataclass(slots=True)
class _Similar:
    """The messages of events that are equal but for their message."""

    messages: set[str] = field(default_factory=set)
    last: float = float("-inf")


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


@dataclass(slots=True)
class _Series:
    """One Event object: what it should say, and whether the API has it already."""

    event: Object
    written: bool = False


class EventRecorder:
    """Records events of one component; `stop` writes what is left."""

    def __init__(
        self, client: Writer, component: str, *, host: str = "", clock: Clock, linger_s: float = LINGER_S
    ) -> None:
        self.component, self.host = component, host
        self._client, self._clock, self._linger_s = client, clock, linger_s
        self._similar: _Memory[_Similar] = _Memory()
        self._series: _Memory[_Series] = _Memory()
        self._buckets: _Memory[_Bucket] = _Memory()
        self._pending: dict[int, _Series] = {}
        self._tasks = TaskGroup(f"events of {component}")
        self._writing = False
        self._dropped = 0  # since all that waited were written last
        self._last_nanos = 0

    def event(
        self,
        about: Object,
        kind: EventKind,
        reason: str,
        message: str,
        *,
        field_path: str = "",
        annotations: Mapping[str, str] | None = None,
        action: str = "",
    ) -> None:
        """Note an event about an object; `field_path` as "spec.containers{web}". Never blocks and never raises.

        With an `action` ("Binding") it is written as components on events.k8s.io write theirs: it says when by
        eventTime, and counts by a series.
        """
        involved = _reference(about, field_path)
        more: Object = {"annotations": dict(annotations)} if annotations else {}
        if action:
            more["action"] = action
        series = self._correlate(involved, kind, reason, message, more)
        if series is None:
            return
        if len(self._pending) >= QUEUE_MAX:
            if not self._dropped:
                log.error("events are dropped, too many wait: component=%s reason=%s", self.component, reason)
            self._dropped += 1
            return
        self._pending[id(series)] = series
        if not self._writing:
            self._writing = True
            self._tasks.spawn(self._write_pending(), name=f"events {self.component}")

    async def stop(self) -> None:
        """Write what was noted, without lingering and without retries."""
        await self._tasks.cancel()
        await self._write_batch(list(self._pending.values()))
        self._pending.clear()

    def _correlate(
        self,
        involved: Object,
        kind: EventKind,
        reason: str,
        message: str,
        more: Object,
    ) -> _Series | None:
        now = self._clock.now()
        about = (*(involved.get(field) for field in ("kind", "namespace", "name", "uid", "apiVersion")), kind)
        path = involved.get("fieldPath", "")

        similar = self._similar.recall((about, reason), _Similar())
        if now - similar.last > SIMILAR_WINDOW_S:
            similar.messages.clear()
        similar.messages.add(message)
        similar.last = now
        identity: Hashable = (about, path, reason, message)
        if len(similar.messages) >= SIMILAR_MAX:
            similar.messages.pop()
            identity = (about, reason)
            message = f"(combined from similar events): {message}"

        known = self._series.get(identity)
        series = self._series.recall(identity, known or _Series({}))
        if known is not None:
            series.event = {**known.event, **_again(known.event, now), "message": message}
        else:
            series.event = self._first(involved, kind, reason, message, now, more)
        return series if self._may_write(about) else None

    def _first(self, involved: Object, kind: EventKind, reason: str, message: str, now: float, more: Object) -> Object:
        """The Event object of something that happened for the first time."""
        meta: Object = {
            "name": self._name(involved["name"], now),
            "namespace": involved.get("namespace") or "default",
        }
        if "annotations" in more:
            meta["annotations"] = more["annotations"]
        event: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": meta,
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "type": kind,
            "reportingComponent": self.component,
        }
        if "action" in more:
            instance = f"{self.component}-{self.host}" if self.host else self.component
            event |= {"source": {}, "eventTime": format_micro_time(now)}
            return event | {"action": more["action"], "reportingInstance": instance}
        stamp = format_time(now)
        source = {"component": self.component, **({"host": self.host} if self.host else {})}
        times = {"firstTimestamp": stamp, "lastTimestamp": stamp, "count": 1}
        return event | {"source": source, "reportingInstance": self.host} | times

    def _may_write(self, about: Hashable) -> bool:
        now = self._clock.monotonic()
        bucket = self._buckets.recall(about, _Bucket(BURST, now))
        bucket.tokens = min(BURST, bucket.tokens + (now - bucket.filled_at) / REFILL_S)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _name(self, about: str, now: float) -> str:
        """ "<name>.<nanoseconds in hex>", or a UUID where that would not be a name (GenerateEventName)."""
        self._last_nanos = max(int(now * 1e9), self._last_nanos + 1)
        name = f"{about}.{self._last_nanos:x}"
        return str(uuid.uuid4()) if is_dns1123_subdomain(name) else name

    async def _write_pending(self) -> None:
        try:
            await self._clock.sleep(self._linger_s)
            attempts = 0
            while self._pending:
                batch = list(self._pending.values())[:BATCH]
                for series in batch:
                    del self._pending[id(series)]
                unreachable = await self._write_batch(batch)
                attempts = attempts + 1 if unreachable else 0
                if attempts >= RETRIES:
                    log.error("%d events dropped, no API answers: component=%s", len(unreachable), self.component)
                    attempts = 0
                elif unreachable:
                    self._pending = {id(series): series for series in unreachable} | self._pending
                    await self._clock.sleep(RETRY_S)
            if self._dropped:
                log.error("%d events were dropped: component=%s", self._dropped, self.component)
                self._dropped = 0
        finally:
            self._writing = False

    async def _write_batch(self, batch: list[_Series]) -> list[_Series]:
        """Write at once, so that they share a commit. Returns those for which there was no API to answer."""
        results = await asyncio.gather(*(self._write(series) for series in batch))
        return [series for series, reached in zip(batch, results, strict=True) if not reached]

    async def _write(self, series: _Series) -> bool:
        event = series.event
        namespace, name = event["metadata"]["namespace"], event["metadata"]["name"]
        try:
            if not (series.written and await self._update(namespace, name, event)):
                await self._client.create(EVENTS, event, namespace=namespace)
                series.written = True
        except StatusError as error:
            # A namespace that is being deleted refuses events: that is no news.
            level = logging.DEBUG if error.code in (403, 404) else logging.WARNING
            log.log(level, "event refused: event=%s/%s reason=%s error=%s", namespace, name, event["reason"], error)
        except OSError as error:
            log.debug("event not written yet: event=%s/%s error=%s", namespace, name, error)
            return False
        return True

    async def _update(self, namespace: str, name: str, event: Object) -> bool:
        """Whether the Event was still there to be counted up."""
        news = {field: event[field] for field in ("count", "lastTimestamp", "series", "message") if field in event}
        try:
            await self._client.patch(EVENTS, name, news, namespace=namespace)
        except StatusError as error:
            if error.code == 404:
                return False
            raise
        return True


def _again(event: Object, now: float) -> Object:
    """What changes of an event that has happened once more."""
    if "eventTime" in event:
        count = event.get("series", {}).get("count", 1) + 1
        return {"series": {"count": count, "lastObservedTime": format_micro_time(now)}}
    return {"count": event["count"] + 1, "lastTimestamp": format_time(now)}


def _reference(about: Object, field_path: str) -> Object:
    reference = {
        "kind": about["kind"],
        "namespace": namespace_of(about),
        "name": name_of(about),
        "uid": uid_of(about),
        "apiVersion": about["apiVersion"],
        "resourceVersion": resource_version_of(about),
        "fieldPath": field_path,
    }
    return {key: value for key, value in reference.items() if value}
