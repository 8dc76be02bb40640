"""How long requests may take, and what becomes of those that take longer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.errors import StatusError
from kone.apiserver.deadlines import Deadlines, calmed
from kone.apiserver.requests import parse_query
from tests.apiserver.conftest import Served

CM = "/api/v1/namespaces/ns/configmaps"


class Requests:
    """Requests that wait for ever, under deadlines of 60 s."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.deadlines = Deadlines(60.0, self.clock, self.clock.monotonic)
        self.watch = asyncio.create_task(self.deadlines.watch())

    async def begin(self, query: str = "") -> tuple[asyncio.Task[None], Any]:
        request: Any = SimpleNamespace(timed_out=False, deadline=0.0)

        async def serve() -> None:
            task = self.deadlines.begin(request, parse_query(query), self.clock.monotonic())
            try:
                await asyncio.Event().wait()
            finally:
                self.deadlines.over(task)

        task = asyncio.create_task(serve())
        await settle()
        return task, request


@pytest.fixture
async def requests() -> Any:
    made = Requests()
    yield made
    made.watch.cancel()
    await asyncio.gather(made.watch, return_exceptions=True)


async def test_a_request_is_cancelled_when_its_time_is_over_and_no_sooner(requests: Requests) -> None:
    first, said = await requests.begin()
    await requests.clock.advance(30.0)
    second, _ = await requests.begin()
    await requests.clock.advance(29.0)
    assert not first.done()
    await requests.clock.advance(2.0)
    assert first.cancelled()
    assert said.timed_out
    assert not second.done()
    assert len(requests.deadlines) == 1
    await requests.clock.advance(30.0)
    assert second.cancelled()


@pytest.mark.parametrize("query", ["timeout=0s", "timeout=3m", "timeout=-5s", "timeout="])
async def test_it_may_not_ask_for_more(requests: Requests, query: str) -> None:
    task, request = await requests.begin(query)
    assert request.deadline == 60.0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("invalid", 'time: invalid duration "invalid"'),
        ("5", 'time: missing unit in duration "5"'),
        ("5d", 'time: unknown unit "d" in duration "5d"'),
    ],
)
async def test_a_time_that_is_none_is_refused(requests: Requests, text: str, why: str) -> None:
    task, _ = await requests.begin(f"timeout={text}")
    error = task.exception()
    assert isinstance(error, StatusError)
    assert (error.code, str(error)) == (400, f"invalid timeout specified in the request URL - {why}")


async def test_a_cancellation_that_is_yet_to_come_can_be_taken_back() -> None:
    async def serve() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await calmed(task)
        await asyncio.sleep(0)
        return "answered"

    assert await asyncio.create_task(serve()) == "answered"


async def test_who_is_too_slow_is_answered_504_and_the_server_serves_on(served: Served) -> None:
    async def body() -> Any:
        yield b'{"kind"'
        await asyncio.Event().wait()

    headers = {"Content-Type": "application/json"}
    async with served.session.post(f"http://kone{CM}?timeout=100ms", data=body(), headers=headers) as answer:
        status = await answer.json()
        assert answer.status == 504
    assert (status["reason"], status["code"]) == ("Timeout", 504)
    assert status["message"] == "Timeout: request did not complete within the allotted timeout"
    assert (await served.call("GET", CM))[1]["items"] == []
    assert len(served.server._deadlines) == 0


async def test_a_malformed_time_is_refused_for_every_path(served: Served) -> None:
    for path in ("/version", CM, "/nothing"):
        assert (await served.call("GET", f"{path}?timeout=invalid"))[0] == 400
    async with served.session.get(f"http://kone{CM}?watch=1&timeout=invalid") as watch:
        assert watch.status == 200  # a watch has its own: timeoutSeconds
