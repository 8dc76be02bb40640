"""The configuration in force, requests that wait and are refused, and what clients are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.errors import not_found
from kone.apimachinery.kinds import FLOWSCHEMAS, GVR, PRIORITYLEVELCONFIGURATIONS
from kone.apimachinery.objects import Object, replace_in
from kone.apimachinery.users import SYSTEM_MASTERS, User
from kone.apiserver.flowcontrol.control import FlowControl
from kone.apiserver.flowcontrol.levels import Flow
from kone.apiserver.flowcontrol.queues import Ticket
from kone.apiserver.requests import parse_query, parse_request
from tests.apiserver.conftest import Served
from tests.memory_caches import MemoryCache, MemoryCaches

ADMIN = User("admin", groups=(SYSTEM_MASTERS, "system:authenticated"))
ANN = User("ann", groups=("system:authenticated",))
BOB = User("bob", groups=("system:authenticated",))
POD = parse_request("GET", "/api/v1/namespaces/ns/pods/a", {})


def level(name: str, *, queues: int = 4, shares: int = 20) -> Object:
    response: Object = {"type": "Queue", "queuing": {"queues": queues, "handSize": 1, "queueLengthLimit": 1}}
    limited = {"nominalConcurrencyShares": shares, "lendablePercent": 0, "borrowingLimitPercent": 0}
    spec = {"type": "Limited", "limited": {**limited, "limitResponse": response if queues else {"type": "Reject"}}}
    return {"metadata": {"name": name, "uid": f"uid-of-{name}"}, "spec": spec}


def schema(name: str, to: str, *users: str, precedence: int = 500) -> Object:
    every = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": True}
    subjects = [{"kind": "User", "user": {"name": user}} for user in users]
    spec = {
        "matchingPrecedence": precedence,
        "priorityLevelConfiguration": {"name": to},
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": subjects, "resourceRules": [every]}],
    }
    return {"metadata": {"name": name, "uid": f"uid-of-{name}"}, "spec": spec}


class Cache(MemoryCache):
    average_bytes = 100.0

    def __len__(self) -> int:
        return len(self.list())


class Caches(MemoryCaches):
    def of(self, group: str, resource: str) -> Cache:
        return self._caches.setdefault((group, resource), Cache())  # type: ignore[return-value]


@dataclass
class World:
    """Flow control of a server of eight seats over objects in memory."""

    clock: FakeClock = field(default_factory=FakeClock)
    caches: Caches = field(default_factory=Caches)
    applied: list[tuple[str, Object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.control = FlowControl(
            self.caches,  # type: ignore[arg-type]
            self.clock,
            server_seats=8,
            wait_s=15.0,
            timer=self.clock.monotonic,
        )

    async def apply(self, resource: GVR, name: str, fields: Object, *, subresource: str = "", manager: str) -> Object:
        assert (resource, subresource, manager) == (
            FLOWSCHEMAS,
            "status",
            "api-priority-and-fairness-config-consumer-v1",
        )
        entry = self.of(FLOWSCHEMAS).get("", name)
        if entry is None:
            raise not_found("flowschemas", name)
        self.applied.append((name, fields["status"]["conditions"][0]))
        self.put(FLOWSCHEMAS, replace_in(entry.obj, ("status",), fields["status"]))
        return fields

    def of(self, resource: GVR) -> Cache:
        return self.caches.of(resource.group, resource.resource)

    def put(self, resource: GVR, obj: Object) -> None:
        self.of(resource).put(obj)

    async def configure(self, *objects: Object) -> None:
        for obj in objects:
            self.put(FLOWSCHEMAS if "matchingPrecedence" in obj["spec"] else PRIORITYLEVELCONFIGURATIONS, obj)
        await settle()

    def come(self, user: User) -> tuple[Flow, Ticket | None]:
        flow = self.control.classify(user, POD)
        return flow, self.control.enter(flow, POD, {}, self.clock.monotonic())

    def leave(self, flow: Flow, ticket: Ticket | None) -> None:
        assert ticket is not None
        self.control.leave(flow, ticket, self.clock.monotonic())

    def metric(self, start: str) -> float:
        found = [line for line in self.control.metrics() if line.startswith(f"apiserver_flowcontrol_{start}")]
        assert len(found) == 1, found
        return float(found[0].rpartition(" ")[2])


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.control.start(made)
    yield made
    await made.control.stop()


async def test_without_any_object_the_mandatory_ones_are_in_force(world: World) -> None:
    flow, _ = world.come(ADMIN)
    assert flow.level.name == "exempt"
    flow, ticket = world.come(ANN)
    assert flow.level.name == "catch-all"
    assert ticket is not None
    assert world.metric('nominal_limit_seats{priority_level="catch-all"}') == 8


async def test_the_schema_of_least_precedence_decides_and_its_level_has_its_share(world: World) -> None:
    await world.configure(level("team"), schema("late", "team", "ann", "bob", precedence=900))
    await world.configure(level("other"), schema("early", "other", "ann", precedence=100))
    assert (world.come(ANN)[0].schema_uid, world.come(ANN)[0].level_uid) == ("uid-of-early", "uid-of-other")
    assert world.come(BOB)[0].level_uid == "uid-of-team"
    assert world.metric('nominal_limit_seats{priority_level="team"}') == 4  # 8 x 20 / (20 + 20 + 5), rounded up


async def test_a_schema_whose_level_is_not_there_is_passed_over_and_says_so(world: World) -> None:
    await world.configure(schema("s", "nowhere", "ann"))
    assert world.come(ANN)[0].level.name == "catch-all"
    text = 'This FlowSchema references the PriorityLevelConfiguration object named "nowhere" '
    name, condition = world.applied[-1]
    assert (name, condition["type"], condition["status"], condition["reason"]) == ("s", "Dangling", "True", "NotFound")
    assert condition["message"] == text + "but there is no such object"
    await world.configure(level("nowhere"))
    assert world.come(ANN)[0].level.name == "nowhere"
    assert world.applied[-1][1]["status"] == "False"
    assert world.applied[-1][1]["message"] == text + "and it exists"
    assert len(world.applied) == 2


async def test_a_status_that_somebody_else_writes_too_is_written_six_times_a_minute(world: World) -> None:
    await world.configure(schema("s", "nowhere", "ann"))
    for _ in range(20):
        world.put(FLOWSCHEMAS, schema("s", "nowhere", "ann"))
        await settle()
    assert len(world.applied) == 6
    await world.clock.advance(61.0)
    assert len(world.applied) == 7


async def test_who_finds_no_seat_waits_and_is_served_in_turn(world: World) -> None:
    await world.configure(level("one", shares=1), schema("s", "one", "ann", "bob"))
    world.control._server_seats = 6  # of six shares: one seat
    world.control.digest()
    flow, first = world.come(ANN)
    _, second = world.come(BOB)
    assert first is not None
    assert second is not None
    assert second.waits
    turn = asyncio.create_task(world.control.turn(flow, second))
    await settle()
    assert world.metric("current_inqueue_requests{") == 1
    await world.clock.advance(3.0)
    world.leave(flow, first)
    assert await turn
    assert (world.metric("current_inqueue_requests{"), world.metric("current_executing_requests{")) == (0, 1)
    assert world.metric("dispatched_requests_total{") == 2
    world.leave(flow, second)
    assert world.metric("current_executing_seats{") == 0


async def test_who_waits_too_long_is_refused_and_so_is_who_finds_the_queue_full(world: World) -> None:
    await world.configure(level("one", shares=1, queues=1), schema("s", "one", "ann"))
    world.control._server_seats = 6
    world.control.digest()
    flow, first = world.come(ANN)
    _, second = world.come(ANN)
    assert second is not None
    assert world.come(ANN)[1] is None
    assert world.metric('rejected_requests_total{flow_schema="s",priority_level="one",reason="queue-full"}') == 1
    turn = asyncio.create_task(world.control.turn(flow, second))
    await world.clock.advance(14.0)
    assert not turn.done()
    await world.clock.advance(2.0)
    assert not await turn
    assert world.metric('rejected_requests_total{flow_schema="s",priority_level="one",reason="time-out"}') == 1
    world.leave(flow, first)
    assert flow.level.queues.idle


async def test_a_client_that_goes_while_it_waits_leaves_nothing_behind(world: World) -> None:
    await world.configure(level("one", shares=1), schema("s", "one", "ann"))
    world.control._server_seats = 6
    world.control.digest()
    flow, first = world.come(ANN)
    tickets = [world.come(ANN)[1] for _ in range(1)]
    turns = [asyncio.create_task(world.control.turn(flow, ticket)) for ticket in tickets if ticket is not None]
    await settle()
    turns[0].cancel()
    await asyncio.gather(*turns, return_exceptions=True)
    world.leave(flow, first)
    assert flow.level.queues.idle
    assert flow.level.queues.seats == 0


async def test_a_level_whose_object_is_gone_stays_until_its_requests_are_served(world: World) -> None:
    await world.configure(level("team"), schema("s", "team", "ann"))
    flow, ticket = world.come(ANN)
    world.of(PRIORITYLEVELCONFIGURATIONS).remove("", "team")
    await settle()
    assert world.come(ANN)[0].level.name == "catch-all"
    assert world.metric('nominal_limit_seats{priority_level="team"}') > 0
    world.leave(flow, ticket)
    await settle()
    assert not any('priority_level="team"' in line for line in world.control.metrics())


async def test_seats_are_lent_every_ten_seconds(world: World) -> None:
    lender, borrower = level("lender"), level("borrower")
    lender = replace_in(lender, ("spec", "limited", "lendablePercent"), 100)
    borrower = replace_in(borrower, ("spec", "limited", "borrowingLimitPercent"), 100)
    await world.configure(lender, borrower, schema("s", "borrower", "ann"))
    before = world.metric('current_limit_seats{priority_level="borrower"}')
    for _ in range(10):
        world.come(ANN)
    await world.clock.advance(21.0)
    assert world.metric('current_limit_seats{priority_level="borrower"}') > before
    assert world.metric('demand_seats_high_watermark{priority_level="borrower"}') >= before


async def test_writes_are_wide_where_many_watch_and_linger_for_them(world: World) -> None:
    watching = parse_request("GET", "/api/v1/namespaces/ns/pods", parse_query("watch=1"))
    ends: list[Callable[[], None]] = [world.control.watches(watching) for _ in range(20)]
    world.control.watches(watching, by_node=True)
    writing = parse_request("POST", "/api/v1/namespaces/ns/pods", {})
    elsewhere = parse_request("POST", "/api/v1/namespaces/other/pods", {})
    flow = world.control.classify(ANN, writing)
    ticket = world.control.enter(flow, writing, {}, 0.0)
    assert ticket is not None
    assert (ticket.work.seats, ticket.work.lingers_s) == (2, 0.005)
    other = world.control.enter(flow, elsewhere, {}, 0.0)
    assert other is not None
    assert other.work.seats == 1
    for end in ends:
        end()
    narrow = world.control.enter(flow, writing, {}, 0.0)
    assert narrow is not None
    assert narrow.work.seats == 1


# -- over HTTP ---------------------------------------------------------------------------------------------------------

CM = "/api/v1/namespaces/ns/configmaps"
AS_ANN: Any = {"Impersonate_User": "ann", "Impersonate_Group": "system:authenticated"}


async def test_every_answer_says_what_it_was_found_to_be(served: Served) -> None:
    for path, code in ((CM, 200), (f"{CM}/none", 404), ("/version", 200), ("/nothing", 404)):
        found, _, headers = await served.call("GET", path)
        assert found == code
        assert {"X-Kubernetes-PF-FlowSchema-UID", "X-Kubernetes-PF-PriorityLevel-UID"} <= set(headers), path
    code, _, headers = await served.call("GET", CM, **AS_ANN)
    assert code == 403
    assert "X-Kubernetes-PF-FlowSchema-UID" in headers


async def test_who_finds_no_seat_is_told_when_to_come_again(served: Served) -> None:
    flow = served.server.flow
    flow._server_seats = 1
    flow.digest()
    found = flow.classify(ANN, POD)
    assert flow.enter(found, POD, {}, 0.0) is not None
    code, text, headers = await served.call("GET", CM, **AS_ANN)
    assert (code, text) == (429, "Too many requests, please try again later.\n")
    assert headers["Retry-After"] == "1"
    assert (await served.call("GET", CM))[0] == 200  # an administrator is never refused


async def test_a_watch_holds_its_seat_until_it_has_begun(served: Served) -> None:
    async with served.session.get(f"http://kone{CM}?watch=1") as watch:
        await served.call("POST", CM, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
        assert b'"ADDED"' in await watch.content.readline()
        flow = served.server.flow
        assert flow._levels["exempt"].queues.seats == 0
        assert sum(flow._watchers.values()) == 1
