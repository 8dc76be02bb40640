"""Priority levels and the flows of requests at them."""

from __future__ import annotations

from kone.apimachinery.objects import Object, uid_of
from kone.apiserver.flowcontrol import shares
from kone.apiserver.flowcontrol.counts import Counts
from kone.apiserver.flowcontrol.matching import Schema
from kone.apiserver.flowcontrol.queues import EXEMPT, QueueSet
from kone.apiserver.flowcontrol.retry_after import RetryAfter


class PriorityLevel:
    """A PriorityLevelConfiguration and the requests that are at it. `leaving`: the object is gone, requests are not."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.uid = ""
        self.spec: Object = {}
        self.queues = QueueSet(now)
        self.share = shares.Level(False, shares.Limits(0, 0, 0), shares.DemandSeen(), 0)
        self.new = True
        self.leaving = False
        self.hand_size = 0
        self.max_seats = 0
        self.retry_after = RetryAfter()
        self.counts: dict[str, Counts] = {}

    def take(self, obj: Object) -> None:
        self.uid, self.spec, self.leaving = uid_of(obj), obj["spec"], False
        limited = self.spec.get("limited") or {}
        queuing = (limited.get("limitResponse") or {}).get("queuing")
        self.share.exempt = self.spec["type"] == "Exempt"
        self.hand_size = queuing["handSize"] if queuing else 0
        if queuing:
            self.queues.configure(queuing["queues"], queuing["queueLengthLimit"])
        else:
            self.queues.configure(EXEMPT if self.share.exempt else 0, self.queues.queue_length)


class Flow:
    """What a request was found to be: its schema and level, by whose UIDs answers say so, and its hand of queues."""

    __slots__ = ("counts", "hand", "level", "level_uid", "schema_uid")

    def __init__(self, schema: Schema, level: PriorityLevel, hand: tuple[int, ...]) -> None:
        self.level = level
        self.level_uid, self.schema_uid = level.uid, schema.uid
        self.hand = hand
        counts = level.counts.get(schema.name)
        if counts is None:
            counts = level.counts[schema.name] = Counts(level.name, schema.name)
        self.counts = counts
