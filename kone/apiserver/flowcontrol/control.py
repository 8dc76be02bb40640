"""Priority and fairness put together: reads the configuration, classifies requests, gives them seats.

    flow = control.classify(user, info)
    ticket = control.enter(flow, info, query, now)      # None: refused
    if ticket is None or (ticket.waits and not await control.turn(flow, ticket)):
        ... 429, Retry-After: control.retry_after(flow)
    ... serve ...
    control.leave(flow, ticket, now)

`classify` remembers its answers until the configuration changes, and who finds a seat only moves counters: that path
costs about a microsecond and a half. Source: k8s.io/apiserver, util/flowcontrol/apf_controller.go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.aio.workqueue import WorkQueue
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import FLOWSCHEMAS, GVR, PRIORITYLEVELCONFIGURATIONS
from kone.apimachinery.objects import Object, find_condition, name_of
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.apiserver.flowcontrol import shares, work
from kone.apiserver.flowcontrol.exposition import exposition
from kone.apiserver.flowcontrol.levels import Flow, PriorityLevel
from kone.apiserver.flowcontrol.matching import Schema, deal, in_order
from kone.apiserver.flowcontrol.queues import Ticket
from kone.apiserver.flowcontrol.work import ONE_SEAT, Work
from kone.apiserver.requests import Parameters, RequestInfo
from kone.cache.watch_cache import Caches
from kone.registry.flowcontrol import MANDATORY_LEVELS, MANDATORY_SCHEMAS
from kone.store.store import Event

log = logging.getLogger(__name__)

SERVER_SEATS: Final = 600  # upstream's --max-requests-inflight and --max-mutating-requests-inflight together
ADJUST_EVERY_S: Final = 10.0
WAIT_MAX_S: Final = 60.0
FLOWS_REMEMBERED: Final = 4096
STATUS_WRITES_A_MINUTE: Final = 6
FIELD_MANAGER: Final = "api-priority-and-fairness-config-consumer-v1"
DANGLING: Final = "Dangling"


class Applier(Protocol):
    """The part of LocalClient that conditions are written with."""

    async def apply(
        self, resource: GVR, name: str, fields: Object, *, subresource: str = "", manager: str
    ) -> Object: ...


class FlowControl:
    """`server_seats` are shared out among the levels; `wait_s` is how long a request may wait in its queue."""

    def __init__(
        self,
        caches: Caches,
        clock: Clock,
        *,
        server_seats: int = SERVER_SEATS,
        wait_s: float = 15.0,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._caches, self._clock, self._timer = caches, clock, timer
        self._server_seats = server_seats
        self._wait_s = min(wait_s, WAIT_MAX_S)
        self._levels: dict[str, PriorityLevel] = {}
        self._schemas: list[Schema] = []
        self._catch_all: Schema
        self._flows: dict[tuple[Any, ...], Flow] = {}
        self._watchers: Counter[tuple[str, str, str, str]] = Counter()
        self._all_watchers = 0
        self._fair_fraction = 0.0
        self._due = False
        self._applier: Applier | None = None
        self._statuses: WorkQueue[str] = WorkQueue(clock)
        self._written: dict[str, list[float]] = {}
        self._tasks = TaskGroup("flow-control")
        self._unsubscribe: list[Callable[[], None]] = []
        self.digest()

    def start(self, applier: Applier) -> None:
        """Follow the configuration; `applier` writes the condition Dangling of schemas."""
        self._applier = applier
        for resource in (FLOWSCHEMAS, PRIORITYLEVELCONFIGURATIONS):
            cache = self._caches.of(resource.group, resource.resource)
            self._unsubscribe.append(cache.subscribe(self._on_event))
        self.digest()
        self._tasks.guard(self._adjust_for_ever, name="flow-control-borrowing")
        self._tasks.guard(self._write_statuses, name="flow-control-status")

    async def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        self._statuses.close()
        await self._tasks.cancel()

    # -- a request -----------------------------------------------------------------------------------------------------

    def classify(self, user: User, info: RequestInfo) -> Flow:
        """The flow of a request."""
        key: tuple[Any, ...]
        if info.resource:
            key = (user.name, user.groups, info.verb, info.resource, info.namespace, info.group, info.subresource)
        else:
            key = (user.name, user.groups, info.verb, info.path)
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= FLOWS_REMEMBERED:
                self._flows.clear()
            flow = self._flows[key] = self._classified(user, info)
        return flow

    def _classified(self, user: User, info: RequestInfo) -> Flow:
        schema = next((each for each in self._schemas if each.matches(user, info)), self._catch_all)
        level = self._levels[schema.level]
        hand: tuple[int, ...] = ()
        if level.hand_size:
            hand = deal(schema.flow_hash(user, info), level.queues.queues, level.hand_size)
        return Flow(schema, level, hand)

    def enter(self, flow: Flow, info: RequestInfo, query: Parameters, now: float) -> Ticket | None:
        """A seat, or a place to wait (`Ticket.waits`: see `turn`); None where there is neither."""
        verb = info.verb
        asked = ONE_SEAT
        if verb == "list" or verb == "watch":
            asked = self._reads(flow, info, query)
        elif self._all_watchers >= work.WATCHES_PER_SEAT and verb in work.WRITES:
            asked = self._writes(flow, info)
        if asked is not ONE_SEAT:
            flow.counts.seats.observe(asked.seats)
        ticket = flow.level.queues.arrive(flow, asked, now)
        if ticket is None:
            self._refuse(flow, "queue-full" if flow.hand else "concurrency-limit")
        elif ticket.waits:
            flow.counts.inqueue += 1
            flow.counts.inqueue_seats += asked.seats
            if ticket.queue is not None:
                flow.counts.lengths.observe(len(ticket.queue.waiting))
        return ticket

    async def turn(self, flow: Flow, ticket: Ticket) -> bool:
        """Wait for a seat; False: it took too long, and the request has left."""
        served: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def serve() -> None:
            if not served.done():
                served.set_result(None)

        ticket.on_turn = serve
        patience = asyncio.create_task(self._clock.sleep(self._wait_s), name="patience of a request")
        began = self._timer()
        try:
            await asyncio.wait((served, patience), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the client is gone
            if self._decide(flow, ticket, began):
                self.leave(flow, ticket, self._timer())
            raise
        finally:
            patience.cancel()
        return self._decide(flow, ticket, began)

    def _decide(self, flow: Flow, ticket: Ticket, began: float) -> bool:
        """Whether it was served meanwhile; if not, it leaves its queue."""
        counts, seats, now = flow.counts, ticket.work.seats, self._timer()
        good = not ticket.waits
        counts.inqueue -= 1
        counts.inqueue_seats -= seats
        counts.waited["true" if good else "false"].observe(now - began)
        if not good:
            flow.level.queues.give_up(ticket, now)
            self._refuse(flow, "time-out")
        return good

    def leave(self, flow: Flow, ticket: Ticket, now: float, *, watch: bool = False) -> None:
        """The request has been served, or the watch has begun. Call it once."""
        (flow.counts.watch if watch else flow.counts.regular).observe(now - ticket.started)
        queues = flow.level.queues
        lingers_s = queues.served(ticket, now)
        if lingers_s:
            asyncio.get_running_loop().call_later(lingers_s, lambda: queues.release(ticket, self._timer()))
        elif flow.level.leaving and queues.idle:
            self._digest_soon()

    def _refuse(self, flow: Flow, reason: str) -> None:
        flow.counts.reject(reason)
        flow.level.retry_after.refused(int(self._clock.now()))

    def _reads(self, flow: Flow, info: RequestInfo, query: Parameters) -> Work:
        cache = self._caches.of(info.group, info.resource)
        return work.of_read(info, query, len(cache), cache.average_bytes, flow.level.max_seats)

    def _writes(self, flow: Flow, info: RequestInfo) -> Work:
        if info.subresource == "token":  # nobody hears of it
            return ONE_SEAT
        watchers = self._watchers
        count = watchers[info.group, info.resource, "", ""]
        if info.namespace:
            count += watchers[info.group, info.resource, info.namespace, ""]
        if info.name:
            count += watchers[info.group, info.resource, info.namespace, info.name]
        flow.counts.watchers.observe(count)
        return work.of_write(count, flow.level.max_seats)

    def watches(self, info: RequestInfo, *, by_node: bool = False) -> Callable[[], None]:
        """A watch has begun: writes are the wider for it. Returns what ends it. One that follows a single node's pods
        (`by_node`) hears of few writes, and does not count."""
        key = (info.group, info.resource, info.namespace, info.name)
        if by_node:
            return lambda: None
        self._watchers[key] += 1
        self._all_watchers += 1

        def ended() -> None:
            self._all_watchers -= 1
            self._watchers[key] -= 1
            if not self._watchers[key]:
                del self._watchers[key]

        return ended

    def metrics(self) -> Iterable[str]:
        """In Prometheus' text format."""
        return exposition(self._levels.values(), self._fair_fraction)

    # -- the configuration ---------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        self._digest_soon()

    def _digest_soon(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self.digest)

    def digest(self) -> None:
        """Take over the schemas and levels as they are stored. What is mandatory and missing is made up."""
        self._due = False
        now = self._timer()
        stored = self._stored(PRIORITYLEVELCONFIGURATIONS.group, PRIORITYLEVELCONFIGURATIONS.resource)
        given = {name_of(obj): obj for obj in (*_made_up(MANDATORY_LEVELS), *stored)}
        levels: dict[str, PriorityLevel] = {}
        for name, obj in given.items():
            level = levels[name] = self._levels.get(name) or PriorityLevel(name, now)
            level.take(obj)
        schemas: list[Schema] = []
        for obj in self._stored(FLOWSCHEMAS.group, FLOWSCHEMAS.resource):
            schema = Schema(obj)
            if schema.level in levels:
                schemas.append(schema)
            if _wanted_condition(obj, schema.level, schema.level in levels) is not None:
                self._statuses.add(schema.name)
        named = {schema.name for schema in schemas}
        schemas += [Schema(obj) for obj in _made_up(MANDATORY_SCHEMAS) if name_of(obj) not in named]
        for name, level in self._levels.items():
            if name not in levels and not level.queues.idle:
                level.leaving = True
                levels[name] = level
        self._levels, self._schemas = levels, in_order(schemas)
        self._catch_all = next(schema for schema in self._schemas if schema.name == CATCH_ALL)
        self._flows.clear()
        self._share_out()
        self._adjust(now)

    def _stored(self, group: str, resource: str) -> list[Object]:
        return [entry.obj for entry in self._caches.of(group, resource).list()]

    def _share_out(self) -> None:
        total = sum(shares.shares_of(level.spec) for level in self._levels.values())
        for level in self._levels.values():
            found = level.share.limits = shares.limits(level.spec, total, self._server_seats)
            if level.hand_size:
                level.max_seats = shares.max_seats(found.nominal, level.hand_size)
            if level.new:
                level.new, level.share.current = False, found.first

    def _adjust(self, now: float) -> None:
        """Lend and borrow after what was asked for since the last time."""
        for level in self._levels.values():
            level.share.seen.update(level.queues.demand.take(now))
        self._fair_fraction = shares.adjust([level.share for level in self._levels.values()])
        for level in self._levels.values():
            level.queues.set_limit(level.share.current, now)

    async def _adjust_for_ever(self) -> None:
        while True:
            await self._clock.sleep(ADJUST_EVERY_S)
            self._adjust(self._timer())
            for level in self._levels.values():
                level.queues.settle()

    # -- the condition Dangling ----------------------------------------------------------------------------------------

    async def _write_statuses(self) -> None:
        while True:
            name = await self._statuses.get()
            try:
                await self._write_one(name)
            except StatusError as error:
                if error.code != 404:
                    delay_s = self._statuses.add_backing_off(name)
                    log.warning("status of FlowSchema %s: %s; again in %.1f s", name, error, delay_s)
            else:
                self._statuses.forget(name)
            finally:
                self._statuses.done(name)

    async def _write_one(self, name: str) -> None:
        entry = self._caches.of(FLOWSCHEMAS.group, FLOWSCHEMAS.resource).get("", name)
        if entry is None or self._applier is None:
            return
        level = entry.obj["spec"]["priorityLevelConfiguration"]["name"]
        found = self._levels.get(level)
        wanted = _wanted_condition(entry.obj, level, found is not None and not found.leaving)
        if wanted is None:
            return
        # Servers of one database that do not agree would write for ever: they may for six times a minute.
        now = self._clock.monotonic()
        recent = self._written[name] = [at for at in self._written.get(name, ()) if now - at < 60.0]
        if len(recent) >= STATUS_WRITES_A_MINUTE:
            self._statuses.add_after(name, 60.0 - (now - recent[0]))
            return
        recent.append(now)
        condition = {"type": DANGLING, **wanted, "lastTransitionTime": format_time(self._clock.now())}
        status = {"status": {"conditions": [condition]}}
        await self._applier.apply(FLOWSCHEMAS, name, status, subresource="status", manager=FIELD_MANAGER)


def _wanted_condition(schema: Object, level: str, there: bool) -> dict[str, str] | None:
    """What the condition Dangling should say, None where it does."""
    of = f'This FlowSchema references the PriorityLevelConfiguration object named "{level}"'
    if there:
        wanted = {"status": "False", "reason": "Found", "message": f"{of} and it exists"}
    else:
        wanted = {"status": "True", "reason": "NotFound", "message": f"{of} but there is no such object"}
    found = find_condition(schema, DANGLING)
    return wanted if found is None or any(found.get(key) != value for key, value in wanted.items()) else None


CATCH_ALL: Final = "catch-all"


def _made_up(specs: Mapping[str, Object]) -> list[Object]:
    return [{"metadata": {"name": name}, "spec": spec} for name, spec in specs.items()]
