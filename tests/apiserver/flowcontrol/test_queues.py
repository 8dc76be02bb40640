"""Fair queuing: who is served when more come than there are seats."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from kone.apiserver.flowcontrol.queues import EXEMPT, QueueSet, Ticket
from kone.apiserver.flowcontrol.work import ONE_SEAT, Work


@dataclass(frozen=True)
class Flow:
    name: str
    hand: tuple[int, ...]


A, B, C = Flow("a", (0, 1)), Flow("b", (2, 3)), Flow("c", (4,))


def made(limit: int, queues: int = 6, length: int = 3) -> QueueSet:
    found = QueueSet(0.0)
    found.configure(queues, length)
    found.set_limit(limit, 0.0)
    return found


def come(queues: QueueSet, flow: Flow, now: float = 0.0, work: Work = ONE_SEAT) -> Ticket:
    ticket = queues.arrive(flow, work, now)
    assert ticket is not None
    return ticket


def test_who_finds_a_seat_is_served_at_once() -> None:
    queues = made(2)
    first, second = come(queues, A), come(queues, B)
    assert not first.waits
    assert not second.waits
    assert queues.seats == 2
    assert come(queues, C).waits


def test_a_seat_that_gets_free_goes_to_who_waits() -> None:
    queues = made(1)
    first, second = come(queues, A), come(queues, B)
    told: list[str] = []
    second.on_turn = lambda: told.append("b")
    assert queues.served(first, 1.0) == 0.0
    assert told == ["b"]
    assert not second.waits
    assert (queues.seats, queues.waiting) == (1, 0)
    queues.served(second, 2.0)
    assert queues.idle
    assert queues.seats == 0


def test_a_flow_that_asks_for_much_does_not_crowd_out_one_that_asks_for_little() -> None:
    queues = made(1, length=50)
    serving = [come(queues, A)]
    waiting = [come(queues, A) for _ in range(40)]
    light = [come(queues, B) for _ in range(4)]
    order: list[str] = []
    for ticket in (*waiting, *light):
        name = ticket.flow.name  # type: ignore[attr-defined]

        def on_turn(name: str = name, ticket: Ticket = ticket) -> None:
            order.append(name)
            serving.append(ticket)

        ticket.on_turn = on_turn
    for second in range(1, 46):
        queues.served(serving.pop(), float(second))
    assert Counter(order) == {"a": 40, "b": 4}
    assert order[:12].count("b") == 4, order[:12]  # in turns with the two queues of the other


def test_equal_flows_are_served_in_turns() -> None:
    queues = made(1, length=50)
    serving = come(queues, C)
    order: list[str] = []
    tickets = [come(queues, flow) for flow in (Flow("x", (0,)), Flow("y", (1,))) for _ in range(3)]
    now = 0.0
    while queues.waiting:
        now += 1.0
        queues.served(serving, now)
        serving = next(ticket for ticket in tickets if not ticket.waits)
        tickets.remove(serving)
        order.append(serving.flow.name)  # type: ignore[attr-defined]
    assert order in (["x", "y"] * 3, ["y", "x"] * 3)


def test_a_queue_that_is_full_refuses() -> None:
    queues = made(1, length=2)
    come(queues, C)
    come(queues, C)
    come(queues, C)
    assert queues.arrive(C, ONE_SEAT, 0.0) is None
    assert come(queues, A).waits


def test_a_level_without_queues_refuses_what_has_no_seat() -> None:
    queues = made(1, queues=0)
    first = come(queues, Flow("f", ()))
    assert queues.arrive(Flow("f", ()), ONE_SEAT, 0.0) is None
    queues.served(first, 1.0)
    assert not come(queues, Flow("f", ()), 1.0).waits


def test_an_exempt_level_has_no_limit() -> None:
    queues = made(0, queues=EXEMPT)
    assert not any(come(queues, Flow("f", ())).waits for _ in range(1000))


def test_who_gives_up_leaves_its_queue() -> None:
    queues = made(1)
    first, second, third = come(queues, A), come(queues, B), come(queues, B)
    queues.give_up(second, 1.0)
    assert queues.waiting == 1
    queues.served(first, 2.0)
    assert not third.waits
    queues.give_up(third, 2.0)  # too late: it is served
    queues.served(third, 3.0)
    assert queues.idle


def test_a_request_wider_than_the_level_waits_until_it_has_it_for_itself() -> None:
    queues = made(2)
    first = come(queues, A)
    wide = come(queues, B, work=Work(5))
    assert wide.waits
    queues.served(first, 1.0)
    assert not wide.waits
    assert queues.seats == 5
    assert come(queues, C, 1.0).waits
    queues.served(wide, 2.0)


def test_a_narrow_request_does_not_pass_a_wide_one_whose_turn_it_is() -> None:
    queues = made(3)
    first, second = come(queues, A), come(queues, A)
    wide, narrow = come(queues, C, work=Work(2)), come(queues, C)
    assert wide.waits
    assert narrow.waits
    queues.served(first, 1.0)
    assert not wide.waits
    assert narrow.waits
    assert queues.not_accommodated
    queues.served(second, 2.0)
    assert not narrow.waits


def test_a_write_holds_its_seats_while_it_lingers() -> None:
    queues = made(2)
    write = come(queues, A, work=Work(1, 2, 0.005))
    other = come(queues, B)
    assert other.waits
    assert queues.served(write, 1.0) == 0.005
    assert other.waits
    assert queues.seats == 2
    queues.release(write, 1.005)
    assert not other.waits
    assert queues.seats == 1


@pytest.mark.parametrize("limit", [1, 3])
def test_more_seats_let_more_be_served(limit: int) -> None:
    queues = made(0, length=50)
    tickets = [come(queues, A) for _ in range(4)]
    assert all(ticket.waits for ticket in tickets)
    queues.set_limit(limit, 1.0)
    assert sum(not ticket.waits for ticket in tickets) == limit


def test_the_queues_go_when_nobody_waits_and_all_that_is_served_ends_well() -> None:
    queues = made(1)
    first, second = come(queues, A), come(queues, B)
    queues.served(first, 1.0)
    queues.settle()
    assert not second.waits
    queues.served(second, 2.0)
    assert queues.idle
    assert queues.seats == 0
    assert queues.demand.take(2.0) == (2, 1.5, 0.5)


def test_any_order_of_events_leaves_an_idle_level_empty() -> None:
    """A thousand steps by a fixed rule: seats are never over the limit but for one wide request, and add up."""
    queues, tickets, number = made(4, length=5), [], 12345
    for step in range(1000):
        number = (number * 1103515245 + 12345) % 2**31
        now, choice = step / 100, number >> 8
        if choice % 3 and (ticket := queues.arrive((A, B, C)[choice % 7 % 3], Work(1 + choice % 5 // 3), now)):
            tickets.append(ticket)
        elif tickets:
            ticket = tickets.pop(choice % len(tickets))
            if ticket.waits:
                queues.give_up(ticket, now)
            else:
                queues.served(ticket, now)
        if choice % 50 == 0:
            queues.settle()
        assert queues.seats == sum(ticket.work.seats for ticket in tickets if not ticket.waits) <= 4
        assert queues.waiting == sum(ticket.waits for ticket in tickets)
    while tickets:
        ticket = next(ticket for ticket in tickets if not ticket.waits)
        tickets.remove(ticket)
        queues.served(ticket, 20.0)
    assert queues.idle
    assert queues.seats == queues.seats_waiting == 0
