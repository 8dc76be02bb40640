"""Fair queuing for one priority level: who waits, in which queue, and whose turn it is.

Every queue is due the same share of the level's seats. A meter R runs as fast as the queues with work are served, in
seat-seconds a queue; a queue's next request is due at `next_r`, which a request moves on by the work that it is
reckoned to be, and by what it really was when it ends. The queue whose first request would finish first is served.

While nobody waits there is nothing to be fair about: then requests only count the seats that they take, and no queue
exists. The first request that has to wait makes the queues, from the requests that are being served; they are there
until the level is idle, or `settle` finds that nobody waits any more.

Nothing here waits or knows the time: callers say `now` (seconds), and are told by `Ticket.on_turn`. Source:
k8s.io/apiserver, util/flowcontrol/fairqueuing/queueset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from kone.apiserver.flowcontrol.shares import Demand
from kone.apiserver.flowcontrol.work import Work

RECKONED_S: Final = 0.003  # how long a request is thought to take before it is known
EXEMPT: Final = -1


class Queue:
    """Requests of the flows that were dealt this queue."""

    __slots__ = ("executing", "index", "next_r", "seats", "waiting", "work")

    def __init__(self, index: int) -> None:
        self.index = index
        self.next_r = 0.0
        self.waiting: deque[Ticket] = deque()
        self.work = 0.0  # of those that wait, in seat-seconds
        self.executing = 0
        self.seats = 0  # of those that are served

    @property
    def active(self) -> bool:
        return bool(self.waiting) or self.executing > 0

    def bound(self) -> None:
        """What was not used before the first request came is not saved up."""
        if self.waiting and self.next_r < self.waiting[0].arrival_r:
            self.next_r = self.waiting[0].arrival_r


class Dealt(Protocol):
    """What a request is of: `hand` are the queues that it may go to."""

    @property
    def hand(self) -> tuple[int, ...]: ...


class Ticket:
    """A request's place at a level: it waits, is served, or has left. `on_turn`, if there is one, is called when a
    request that waited is served from now on. `started` is when it arrived, while it waits."""

    waits = False
    queue: Queue | None = None
    arrival_r = 0.0
    on_turn: Callable[[], None] | None = None

    def __init__(self, flow: Dealt, work: Work, now: float) -> None:
        self.flow = flow
        self.work = work
        self.started = now

    @property
    def reckoned(self) -> float:
        """Seat-seconds."""
        return self.work.initial * RECKONED_S + self.work.final * self.work.lingers_s


class QueueSet:
    """The requests of a level. `queues` is how many there are to be: 0 to refuse what has no seat, EXEMPT for no limit
    at all."""

    def __init__(self, now: float) -> None:
        self.limit = 0
        self.queues = 0
        self.queue_length = 50
        self.seats = 0
        self.waiting = 0
        self.seats_waiting = 0
        self.enqueued = 0
        self.not_accommodated = 0
        self.demand = Demand(now)
        self.r = 0.0
        self.served_now: dict[Ticket, None] = {}  # in order
        self.lingering: dict[Ticket, None] = {}
        self._queues: list[Queue] = []  # empty while nobody has to wait
        self._with_waiting: set[Queue] = set()
        self._active = 0
        self._robin = 0
        self._at = now

    @property
    def idle(self) -> bool:
        return not self.served_now and not self.waiting

    def configure(self, queues: int, queue_length: int) -> None:
        """Takes effect on requests that come; hands are dealt by the caller."""
        self.queues, self.queue_length = queues, queue_length
        if self._queues and queues > 0:
            self._make_queues()

    def set_limit(self, seats: int, now: float) -> None:
        self.limit = seats
        if self._queues:
            self._run_meter(now)
            self._dispatch(now)

    # -- a request's way ---------------------------------------------------------------------------------------------

    def arrive(self, flow: Dealt, work: Work, now: float) -> Ticket | None:
        """Serve a request of this flow, or let it wait; None: there is neither a seat nor a place to
        wait."""
        if not self._queues or self.queues < 1:
            if self.queues < 0 or self._fits(work.seats):
                ticket = Ticket(flow, work, now)
                self.served_now[ticket] = None
                self.seats += work.seats
                self.demand.set(self.seats + self.seats_waiting, now)
                return ticket
            if self.queues < 1:
                return None
            self._open_queues(now)
        self._run_meter(now)
        queue = self._choose(flow.hand)
        if self.seats >= self.limit and len(queue.waiting) >= self.queue_length:
            return None
        ticket = Ticket(flow, work, now)
        ticket.waits = True
        ticket.arrival_r = self.r
        ticket.queue = queue
        if not queue.active:
            queue.next_r = self.r
            self._active += 1
        queue.waiting.append(ticket)
        queue.work += ticket.reckoned
        queue.bound()
        self._with_waiting.add(queue)
        self.waiting += 1
        self.seats_waiting += work.seats
        self.demand.set(self.seats + self.seats_waiting, now)
        self._dispatch(now)
        return ticket

    def give_up(self, ticket: Ticket, now: float) -> None:
        """A request that waits is tired of it."""
        queue = ticket.queue
        if not ticket.waits or queue is None:
            return
        self._run_meter(now)
        ticket.waits = False
        self._leave_queue(ticket, queue)
        self._maybe_idle(queue)
        queue.bound()
        self.demand.set(self.seats + self.seats_waiting, now)

    def served(self, ticket: Ticket, now: float) -> float:
        """A request has been answered. Returns for how many seconds it goes on holding its seats; after them,
        `release` it. 0: it has left."""
        del self.served_now[ticket]
        if self._queues:
            self._run_meter(now)
            if (queue := ticket.queue) is not None:
                queue.executing -= 1
                queue.next_r -= ticket.work.initial * (RECKONED_S - (now - ticket.started))
                self._maybe_idle(queue)
                queue.bound()
        if ticket.work.lingers_s:
            self.lingering[ticket] = None
            return ticket.work.lingers_s
        self._free(ticket, now)
        return 0.0

    def release(self, ticket: Ticket, now: float) -> None:
        """A request that lingered gives its seats back."""
        del self.lingering[ticket]
        if self._queues:
            self._run_meter(now)
        self._free(ticket, now)

    def settle(self) -> None:
        """Let the queues go where nobody waits."""
        if self._queues and not self.waiting:
            for ticket in self.served_now:
                ticket.queue = None
            self._queues, self._active, self._robin = [], 0, 0

    # -- queues -------------------------------------------------------------------------------------------

    def _free(self, ticket: Ticket, now: float) -> None:
        self.seats -= ticket.work.seats
        self.demand.set(self.seats + self.seats_waiting, now)
        if self._queues:
            if ticket.queue is not None:
                ticket.queue.seats -= ticket.work.seats
            self._dispatch(now)
            if self.idle:
                self.settle()

    def _fits(self, seats: int) -> bool:
        """A request wider than the level is served when it has the level for itself."""
        if seats > self.limit:
            return not self.served_now and (self.queues < 1 or self.seats < self.limit)
        return self.seats + seats <= self.limit

    def _open_queues(self, now: float) -> None:
        self.r, self._at = 0.0, now
        self._make_queues()
        for ticket in self.served_now:
            if ticket.flow.hand:
                queue = self._choose(ticket.flow.hand)
                ticket.queue = queue
                self._active += not queue.active
                queue.executing += 1
                queue.seats += ticket.work.seats
                queue.next_r += ticket.reckoned

    def _make_queues(self) -> None:
        self._queues += [Queue(index) for index in range(len(self._queues), self.queues)]

    def _run_meter(self, now: float) -> None:
        lasted = now - self._at
        if lasted > 0.0:
            self._at = now
            if self._active:
                self.r += min(self.seats + self.seats_waiting, self.limit) / self._active * lasted

    def _choose(self, hand: tuple[int, ...]) -> Queue:
        """That of the hand with the least work waiting; each request begins at another card, so that flows with hands
        in common do not crowd."""
        first = self.enqueued % len(hand)
        self.enqueued += 1
        return min((self._queues[card] for card in hand[first:] + hand[:first]), key=lambda queue: queue.work)

    def _dispatch(self, now: float) -> None:
        while self.waiting and self.seats < self.limit:
            queue = self._next_queue()
            ticket = queue.waiting[0]
            if not self._fits(ticket.work.seats):
                self.not_accommodated += 1
                return
            self._robin = queue.index
            self._leave_queue(ticket, queue)
            ticket.started = now
            self.served_now[ticket] = None
            self.seats += ticket.work.seats
            queue.executing += 1
            queue.seats += ticket.work.seats
            queue.next_r += ticket.reckoned
            queue.bound()
            self.demand.set(self.seats + self.seats_waiting, now)
            ticket.waits = False
            if ticket.on_turn is not None:
                ticket.on_turn()

    def _next_queue(self) -> Queue:
        """Where the first request would finish first; of several the next after the one served last."""
        count = len(self._queues)
        return min(
            self._with_waiting,
            key=lambda queue: (
                queue.next_r + queue.waiting[0].reckoned,
                (queue.index - self._robin - 1) % count,
            ),
        )

    def _leave_queue(self, ticket: Ticket, queue: Queue) -> None:
        if queue.waiting[0] is ticket:
            queue.waiting.popleft()
        else:
            queue.waiting.remove(ticket)
        queue.work -= ticket.reckoned
        if not queue.waiting:
            queue.work = 0.0
            self._with_waiting.discard(queue)
        self.waiting -= 1
        self.seats_waiting -= ticket.work.seats

    def _maybe_idle(self, queue: Queue) -> None:
        """Something has left the queue; it may have been the last."""
        if not queue.active:
            self._active -= 1
