"""Audit events on their way to a webhook."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import orjson
import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.objects import Object
from kone.apiserver import audit_webhook
from kone.apiserver.audit_webhook import AuditWebhook, Sinks


class Hook:
    """What it was sent, by the numbers of the events; `broken` for so many times."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.batches: list[list[int]] = []
        self.broken = 0
        self.sink = AuditWebhook(self.send, self.clock, batch=3, max_wait_s=30.0)

    async def send(self, events: Object) -> None:
        found = json.loads(orjson.dumps(events))
        assert (found["kind"], found["apiVersion"]) == ("EventList", "audit.k8s.io/v1")
        if self.broken:
            self.broken -= 1
            raise ValueError("connection refused")
        self.batches.append([item["n"] for item in found["items"]])

    def write(self, *numbers: int) -> None:
        for number in numbers:
            self.sink.write(orjson.dumps({"n": number}, option=orjson.OPT_APPEND_NEWLINE))


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    made = Hook()
    made.sink.start()
    await settle()
    yield made
    await made.sink.stop()


async def test_a_batch_is_sent_when_it_is_full_or_has_waited(hook: Hook) -> None:
    hook.write(1, 2)
    await hook.clock.advance(29.0)
    assert not hook.batches
    await hook.clock.advance(2.0)
    assert hook.batches == [[1, 2]]
    hook.write(3, 4, 5, 6)
    await settle()
    assert hook.batches == [[1, 2], [3, 4, 5]]
    await hook.clock.advance(31.0)
    assert hook.batches[2:] == [[6]]


async def test_a_webhook_that_does_not_answer_is_asked_five_times_and_then_loses_them(
    hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.broken = 4
    hook.write(1, 2, 3)
    await hook.clock.advance(100.0)
    assert hook.batches == [[1, 2, 3]]
    hook.broken = 5
    hook.write(4, 5, 6)
    await hook.clock.advance(100.0)
    assert hook.batches == [[1, 2, 3]]
    assert "events are lost: 3: connection refused" in caplog.text
    hook.write(7, 8, 9)
    await settle()
    assert hook.batches[1:] == [[7, 8, 9]]


async def test_what_cannot_wait_is_lost_and_counted(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_webhook, "BUFFERED", 3)
    hook.write(*range(10))
    await settle()
    assert hook.batches == [[0, 1, 2]]
    assert "are lost: 7" in caplog.text


async def test_what_is_left_is_sent_at_the_end() -> None:
    hook = Hook()
    hook.sink.start()
    hook.write(1)
    hook.sink.close()
    await hook.sink.stop()
    assert hook.batches == [[1]]


async def test_events_may_go_to_two_places() -> None:
    first, second = Hook(), Hook()
    both = Sinks(first.sink, second.sink)
    both.write(b'{"n":1}\n')
    both.close()
    for hook in (first, second):
        await hook.sink.stop()
        assert hook.batches == [[1]]
