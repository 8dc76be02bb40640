"""The store over a log: current state and recent history in memory, one writer task that commits whole queues at once.

A write's way: `commit` queues it; the writer takes the queue, checks each write against the state as the writes before
it will leave it, gives revisions, encodes once, appends all rows in one transaction (one fsync), and only then moves
state and history, tells the listeners, and answers the callers. A write that is refused fails its own caller and takes
no part. The callers' cancellation does not reach the writer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from kone.aio.broadcast import Reader, Ring
from kone.aio.clock import Clock
from kone.apimachinery.objects import Object
from kone.store.compaction import Garbage, Pace, Window
from kone.store.frozen import ProtectedEntry
from kone.store.log import DELETE, PUT, PUT_VOLATILE, Log, LogConflict, Row
from kone.store.sealing import Plain, SealedLog
from kone.store.store import (
    Compacted,
    DatastoreFailed,
    Entry,
    Event,
    FutureRevision,
    KeyExists,
    KeyMissing,
    Listener,
    Page,
    Retention,
    RevisionConflict,
    Sealer,
    StoreClosed,
    StoreError,
    Write,
)

log = logging.getLogger(__name__)

FIRST_REVISION = 1  # of a store without writes; "0" means something else to clients
BATCH_WRITES = 512  # a transaction's size, so that no commit waits long for others' writes
RESERVE = 1000  # volatile revisions between two marks on disk; a crash skips what is left of them
LOOK_EVERY_S = 15.0  # how often history is cut
STEP_EVERY_BATCHES = 16  # under load compaction takes a step after so many transactions
IDLE_S = 0.02  # else when nobody wrote for so long
DECODED_EVENTS = 1000  # states replaced by older events keep their bytes only
CONFLICT_ROUNDS = 20  # how often a batch is tried again after another process wrote first


@dataclass(slots=True)
class _Pending:
    """One caller's writes and the promise to it."""

    writes: tuple[Write, ...]
    done: asyncio.Future[list[Event]]


class _State(NamedTuple):
    """A key as the writer sees it: its object, the row it is stored in (a tombstone's too; 0: none), and whether that
    row is volatile."""

    entry: Entry | None
    row: int
    volatile: bool


_Batch = list[_Pending]
_Answers = list[tuple[_Pending, int, int]]  # the caller, and where its events begin and end
Events = list[Event]  # the store has a method named list, so the type needs another name there
Entries = list[Entry]


@dataclass(slots=True)
class _Stage:
    """A transaction in the making: nothing in it has happened yet."""

    revision: int
    states: dict[str, _State] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


@dataclass(slots=True)
class _Resealing:
    """Rows up to `after` are as `sealer` stores them; the caller waits for the others."""

    sealer: Sealer
    done: asyncio.Future[int]
    after: int = 0
    count: int = 0


async def _outcome(done: asyncio.Future[Events]) -> Events:
    """What became of a commit. Who is cancelled while it waits hears of that at its next await: otherwise it could not
    know what it has done."""
    cancelled = False
    while not done.done():
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            if done.cancelled():
                raise
            cancelled = True
        except Exception:
            break  # it is the outcome
    if cancelled and (task := asyncio.current_task()) is not None:
        task.uncancel()
        task.cancel()
    return done.result()


class LogStore:
    """Implements `Store`. Make one with `load`."""

    def __init__(
        self, backend: Log, retention: Retention, clock: Clock, *, protect: bool, sealer: Sealer | None = None
    ) -> None:
        self._log = SealedLog(backend, sealer or Plain())
        self._resealing: deque[_Resealing] = deque()
        self._clock = clock
        self._entry: type[Entry] = ProtectedEntry if protect else Entry
        self._head: dict[str, Entry] = {}
        self._stored_rows: dict[str, int] = {}  # where it is not the head entry's revision: volatile states, tombstones
        self._volatile: set[str] = set()  # keys whose newest row is PUT_VOLATILE
        self._tombstones: dict[int, str] = {}
        self._history: Ring[Event] = Ring()
        self._released = 0  # the position in history up to which replaced states were released
        self._window = Window(retention)
        self._garbage = Garbage()
        self._row_pace = Pace()
        self._page_pace = Pace()
        self._revision = FIRST_REVISION
        self._given = FIRST_REVISION  # the newest revision given out; ahead of _revision after a failed commit
        self._reserved = 0
        self._oldest = FIRST_REVISION
        self._in_doubt = False  # an append failed: the log may hold more than we know
        self._listeners: list[Listener] = []
        self._compacted: list[Callable[[int], None]] = []
        self._queue: deque[_Pending] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._batches_since_step = 0
        self._may_shrink = False
        self._steps_paused = False
        self._closing = False
        self._closed: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._janitor: asyncio.Task[None] | None = None

    @classmethod
    async def load(
        cls, backend: Log, retention: Retention, clock: Clock, *, protect: bool, sealer: Sealer | None = None
    ) -> LogStore:
        """Read the log and start the writer. Owns `backend` when it returns."""
        store = cls(backend, retention, clock, protect=protect, sealer=sealer)
        marks = await backend.marks()
        store._oldest = max(marks.floor, FIRST_REVISION)
        async for rows in store._log.rows(after=0):
            events = store._replay(rows)
            store._remember([event for event in events if event.revision > marks.floor])
        store._reserved = marks.reserved
        store._given = store._revision = max(store._revision, marks.reserved, marks.floor)
        store._cut()
        if store._log.is_stale:
            after = 0
            while (piece := await store._log.reseal(after)) is not None:
                after = piece[0]
            await store._log.scrub()
            store._log.is_stale = False
        store._writer = asyncio.create_task(store._write_forever(), name="store writer")
        if not marks.clean and store._volatile:
            await store._restamp()
        store._janitor = asyncio.create_task(store._cut_forever(), name="store janitor")
        return store

    # What callers see

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def problem(self) -> str:
        return "the last write failed" if self._in_doubt else ""

    @property
    def oldest(self) -> int:
        return self._oldest

    async def commit(self, *writes: Write) -> Events:
        if self._closing:
            raise StoreClosed
        if not writes:
            return []
        pending = _Pending(writes, asyncio.get_running_loop().create_future())
        self._queue.append(pending)
        self._rouse()
        return await _outcome(pending.done)

    async def get(self, key: str) -> Entry | None:
        return self._head.get(key)

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Page:
        revision = revision or self._revision
        undone = undo(self._events_after(revision))
        keys = {key for key in self._head if key.startswith(prefix)}
        keys.update(key for key in undone if key.startswith(prefix))
        found: Entries = []
        for key in sorted(key for key in keys if key > after):
            entry = undone[key] if key in undone else self._head.get(key)
            if entry is not None:
                found.append(entry)
        page = found[:limit] if limit else found
        return Page(page, revision, len(found) - len(page))

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Event]:
        self._check_known(after)
        reader = Reader(self._history, self._position_after(after), max_lag=self._window.retention.max_events * 2)
        while not reader.ended:
            for event in await reader.get():
                if event.key.startswith(prefix):
                    yield event
        if reader.dropped:
            raise Compacted(self._oldest)

    def history(self) -> Sequence[Event]:
        return self._history.since(self._history.first)

    def listen(self, listener: Listener, *, compacted: Callable[[int], None] | None = None) -> None:
        self._listeners.append(listener)
        if compacted is not None:
            self._compacted.append(compacted)

    async def reseal(self, sealer: Sealer) -> int:
        if self._closing:
            raise StoreClosed
        asked = _Resealing(sealer, asyncio.get_running_loop().create_future())
        self._log.change(sealer)
        self._resealing.append(asked)
        self._rouse()
        return await asked.done

    async def close(self) -> None:
        if self._closed is None:
            self._closing = True
            self._closed = asyncio.ensure_future(self._shut_down())
        await asyncio.shield(self._closed)

    async def _shut_down(self) -> None:
        if self._janitor is not None:
            self._janitor.cancel()
            await asyncio.gather(self._janitor, return_exceptions=True)
        self._rouse()
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        self._refuse(self._queue, StoreClosed())  # the writer was cancelled before it took them
        for asked in self._resealing:
            if not asked.done.done():
                asked.done.set_exception(StoreClosed())
        self._queue.clear()
        try:
            await self._store_volatile()
        except StoreError as error:
            log.warning("volatile states are not kept: %s", error)
        finally:
            self._history.close()
            await self._log.close()

    # The writer

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _write_forever(self) -> None:
        while not (self._closing and not self._queue):
            try:
                await self._write_once()
            except Exception:
                log.exception("a step of the store's writer failed; it goes on with the next")
                self._steps_paused = True

    async def _write_once(self) -> None:
        """Commit what waits; else, or when it has waited for long enough, a step of compaction; else sleep."""
        if self._queue:
            batch = self._take()
            try:
                await self._commit_batch(batch)
            except Exception as error:
                if not isinstance(error, StoreError):
                    log.exception("a transaction of %d commits failed", len(batch))
                self._refuse(batch, error)
            self._batches_since_step += 1
        if self._resealing and not self._closing:
            await self._reseal_some()
            return
        rows_wait = not self._steps_paused and self._garbage.ready(self._oldest)
        if rows_wait and self._batches_since_step >= STEP_EVERY_BATCHES:
            await self._forget_some()
        elif not self._queue and not self._closing:
            space_waits = not self._steps_paused and self._may_shrink
            await self._sleep(IDLE_S if rows_wait or space_waits else None)
            if not self._queue and rows_wait:
                await self._forget_some()
            elif not self._queue and space_waits:
                await self._shrink_some()

    async def _sleep(self, seconds: float | None) -> None:
        """Until there is something to write, or for so long."""
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self._rouse)
        await self._wake
        self._wake = None
        if timer is not None:
            timer.cancel()

    def _take(self) -> _Batch:
        batch: _Batch = []
        writes = 0
        while self._queue and writes < BATCH_WRITES:
            pending = self._queue.popleft()
            writes += len(pending.writes)
            batch.append(pending)
        return batch

    @staticmethod
    def _refuse(batch: Iterable[_Pending], error: Exception) -> None:
        for pending in batch:
            if not pending.done.done():
                pending.done.set_exception(error)

    async def _commit_batch(self, batch: _Batch) -> None:
        for _ in range(CONFLICT_ROUNDS):
            if self._in_doubt:
                await self._catch_up()
            stage = _Stage(self._given)
            answers: _Answers = []
            for pending in batch:
                first = len(stage.events)
                try:
                    self._stage(stage, pending.writes)
                except (StoreError, TypeError, ValueError) as error:  # the latter two: what is no JSON
                    self._refuse([pending], error)
                else:
                    answers.append((pending, first, len(stage.events)))
            batch = [pending for pending, _, _ in answers]
            if not stage.events:
                return
            self._given = stage.revision
            try:
                if len(stage.rows) < len(stage.events) and stage.revision > self._reserved:
                    await self._log.mark(reserved=stage.revision + RESERVE, clean=False)
                    self._reserved = stage.revision + RESERVE
                if stage.rows:
                    await self._log.append(stage.rows)
            except LogConflict:
                self._in_doubt = True
                continue
            except BaseException:
                self._in_doubt = True
                raise
            self._apply(stage)
            for pending, first, last in answers:
                if not pending.done.done():
                    pending.done.set_result(stage.events[first:last])
            return
        raise DatastoreFailed("other servers keep writing first; try again")

    def _stage(self, stage: _Stage, writes: tuple[Write, ...]) -> None:
        """Add one caller's writes; on a refusal the stage is as it was."""
        if len(writes) == 1:
            self._stage_one(stage, writes[0])
            return
        revision, events, rows = stage.revision, len(stage.events), len(stage.rows)
        states = {write.key: stage.states.get(write.key) for write in writes}
        try:
            for write in writes:
                self._stage_one(stage, write)
        except BaseException:
            stage.revision = revision
            del stage.events[events:], stage.rows[rows:]
            for key, state in states.items():
                if state is None:
                    stage.states.pop(key, None)
                else:
                    stage.states[key] = state
            raise

    def _stage_one(self, stage: _Stage, write: Write) -> None:
        key = write.key
        state = stage.states.get(key)
        if state is None:
            state = self._state(key)
        before, row = state.entry, state.row
        expected = write.expected
        if before is None:
            if expected or write.obj is None:
                raise KeyMissing(key)
        elif expected is not None and expected != before.revision:
            if expected == 0:
                raise KeyExists(key, before.revision)
            raise RevisionConflict(key, expected, before.revision)
        revision = stage.revision + 1
        if write.obj is None:
            assert before is not None
            stage.events.append(Event("DELETED", self._stamped(key, before.obj, revision), before))
            stage.rows.append(Row(revision, key, row, DELETE, None))
            stage.states[key] = _State(None, revision, False)
        else:
            entry = self._stamped(key, write.obj, revision)
            stage.events.append(Event("ADDED" if before is None else "MODIFIED", entry, before))
            if write.volatile and state.volatile and before is not None:
                stage.states[key] = _State(entry, row, True)
            else:
                kind = PUT_VOLATILE if write.volatile else PUT
                stage.rows.append(Row(revision, key, row, kind, entry.encoded))
                stage.states[key] = _State(entry, revision, write.volatile)
        stage.revision = revision

    def _state(self, key: str) -> _State:
        entry = self._head.get(key)
        row = self._stored_rows.get(key)
        if row is None:
            row = 0 if entry is None else entry.revision
        return _State(entry, row, key in self._volatile)

    def _stamped(self, key: str, obj: Object, revision: int) -> Entry:
        stamped = dict(obj)
        stamped["metadata"] = {**(obj.get("metadata") or {}), "resourceVersion": str(revision)}
        return self._entry(key, revision, encode(stamped), stamped)

    def _apply(self, stage: _Stage) -> None:
        """What was staged has become durable: now it is so."""
        for key, state in stage.states.items():
            self._set_state(key, state)
        for row in stage.rows:
            self._note_garbage(row)
        self._revision = stage.revision
        self._publish(stage.events)

    def _set_state(self, key: str, state: _State) -> None:
        if state.entry is None:
            self._head.pop(key, None)
            self._stored_rows[key] = state.row
            self._tombstones[state.row] = key
        else:
            self._head[key] = state.entry
            if state.entry.revision == state.row:
                self._stored_rows.pop(key, None)
            else:
                self._stored_rows[key] = state.row
        if state.volatile:
            self._volatile.add(key)
        else:
            self._volatile.discard(key)

    def _note_garbage(self, row: Row) -> None:
        if row.previous:
            self._garbage.add(row.revision, row.previous)
        if row.kind == DELETE:
            self._garbage.add(row.revision, row.revision)

    def _publish(self, events: Events) -> None:
        self._remember(events)
        for listener in self._listeners:
            try:
                listener(events)
            except Exception:
                log.exception("a listener failed on revisions %d to %d", events[0].revision, events[-1].revision)
        if self._window.overfull:
            self._cut()  # the writer, who called, goes on to the steps

    def _remember(self, events: Events) -> None:
        if not events:
            return
        self._history.publish(events)
        size = sum([len(event.encoded) for event in events])
        self._window.add(events[-1].revision, len(events), size, self._clock.monotonic())
        while self._history.end - self._released > DECODED_EVENTS:
            before = self._history[self._released].before
            if before is not None:
                before.release()
            self._released += 1

    # Rows that this process did not write

    def _replay(self, rows: Iterable[Row]) -> Events:
        """Take over rows of the log into the state; the events that they stand for."""
        events: Events = []
        for row in rows:
            before = self._head.get(row.key)
            if row.kind == DELETE or row.value is None:
                if before is not None:
                    events.append(Event("DELETED", self._stamped(row.key, before.obj, row.revision), before))
                state = _State(None, row.revision, False)
            else:
                entry = self._entry(row.key, row.revision, row.value)
                events.append(Event("ADDED" if before is None else "MODIFIED", entry, before))
                state = _State(entry, row.revision, row.kind == PUT_VOLATILE)
            self._set_state(row.key, state)
            self._note_garbage(row)
            self._revision = row.revision
        return events

    async def _catch_up(self) -> None:
        """Read what the log holds beyond what we know: our own transaction whose outcome was unknown, or another
        server's."""
        async for rows in self._log.rows(after=self._revision):
            if events := self._replay(rows):
                self._publish(events)
        self._given = max(self._given, self._revision)
        self._in_doubt = False

    # Volatile states

    async def _restamp(self) -> None:
        """After a crash: what may have been newer than the disk gets a new revision, so that watchers see it go
        back."""
        writes = [Write(key, self._head[key].obj, volatile=True) for key in sorted(self._volatile)]
        self._volatile.clear()
        await self.commit(*writes)

    async def _store_volatile(self) -> None:
        rows = [
            Row(entry.revision, key, self._stored_rows[key], PUT_VOLATILE, entry.encoded)
            for key, entry in ((key, self._head[key]) for key in self._volatile)
            if key in self._stored_rows
        ]
        if rows:
            await self._log.append(sorted(rows))
        if self._reserved > self._revision:
            await self._log.mark(reserved=self._revision, clean=True)

    # History

    def _check_known(self, revision: int) -> None:
        if revision < self._oldest:
            raise Compacted(self._oldest)
        if revision > self._revision:
            raise FutureRevision(self._revision)

    def _position_after(self, revision: int) -> int:
        return self._history.bisect(lambda event: event.revision > revision)

    def _events_after(self, revision: int) -> Sequence[Event]:
        self._check_known(revision)
        return () if revision == self._revision else self._history.since(self._position_after(revision))

    async def _cut_forever(self) -> None:
        while True:
            await self._clock.sleep(LOOK_EVERY_S)
            self._steps_paused = False
            self._cut()
            self._rouse()

    def _cut(self) -> None:
        """Let history go that is beyond its bounds; the rows follow in steps of the writer."""
        floor = self._window.cut(self._clock.monotonic())
        if not floor:
            return
        gone = self._history.trim(self._position_after(floor))
        self._released = max(self._released, self._history.first)
        self._oldest = floor
        log.debug("history of %d events forgotten, it begins at revision %d", len(gone), floor)
        for listener in self._compacted:
            listener(floor)

    async def _forget_some(self) -> None:
        """One step of compaction: rows that no revision in the window needs."""
        self._batches_since_step = 0
        rows, floor = self._garbage.take(self._oldest, self._row_pace.size)
        began = time.perf_counter()
        try:
            await self._log.forget(rows, floor=floor)
        except StoreError as error:
            log.warning("compaction waits %.0f s: %s", LOOK_EVERY_S, error)
            self._garbage.put_back(rows, floor)
            self._steps_paused = True
            return
        self._row_pace.took(time.perf_counter() - began)
        self._may_shrink = True
        for row in rows:
            key = self._tombstones.pop(row, None)
            if key is not None and self._stored_rows.get(key) == row:
                del self._stored_rows[key]

    async def _reseal_some(self) -> None:
        """One piece of the rows that another sealer made."""
        asked = self._resealing[0]
        try:
            piece = await self._log.reseal(asked.after)
            if piece is not None:
                asked.after = piece[0]
                asked.count += piece[1]
                return
            if asked.count:
                await self._log.scrub()
        except StoreError as error:
            self._resealing.popleft()
            if not asked.done.done():
                asked.done.set_exception(error)
            return
        self._resealing.popleft()
        if not self._resealing:
            self._log.settle(asked.sealer)
        if not asked.done.done():
            asked.done.set_result(asked.count)

    async def _shrink_some(self) -> None:
        """One step of giving space back to the file system."""
        began = time.perf_counter()
        try:
            self._may_shrink = await self._log.shrink(self._page_pace.size)
        except StoreError as error:
            log.warning("shrinking waits %.0f s: %s", LOOK_EVERY_S, error)
            self._steps_paused = True
            return
        self._page_pace.took(time.perf_counter() - began)


def encode(obj: Object) -> bytes:
    """JSON in no more memory than it takes: orjson leaves its whole buffer, 8 KB at least, with the bytes that it
    returns."""
    return bytes(memoryview(orjson.dumps(obj)))


def undo(events: Sequence[Event]) -> dict[str, Entry | None]:
    """For every key that `events` changed, its state before them: {"a": None} means that "a" did not exist."""
    states: dict[str, Entry | None] = {}
    for event in events:
        states.setdefault(event.key, event.before)
    return states
