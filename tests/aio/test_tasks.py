"""Tasks with a name and an owner: a guarded loop is started again, whatever ended it, until its owner says so."""

from __future__ import annotations

import asyncio
import logging

import pytest

from kone.aio.clock import settle
from kone.aio.tasks import TaskGroup


def running(name: str) -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


async def test_a_loop_that_is_killed_starts_again_at_once(caplog: pytest.LogCaptureFixture) -> None:
    group, started = TaskGroup("group"), 0

    async def loop() -> None:
        nonlocal started
        started += 1
        await asyncio.Event().wait()

    group.guard(loop, name="loop")
    await settle()
    [first] = running("loop")
    first.cancel()
    await settle()
    [second] = running("loop")
    assert (started, second is first) == (2, False)
    assert "task loop was killed; it starts again" in caplog.text
    await group.cancel()
    assert running("loop") == []


async def test_a_loop_whose_owner_stops_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    group, cleaned = TaskGroup("group"), False

    async def loop() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned = True

    group.guard(loop, name="loop")
    await settle()
    await group.cancel()
    assert cleaned
    assert (len(group), running("loop"), caplog.records) == (0, [], [])


async def test_a_loop_that_fails_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    group = TaskGroup("group")

    async def loop() -> None:
        raise RuntimeError("boom")

    group.guard(loop, name="loop")
    await settle()
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "task loop failed; it starts again in 1 s"
    assert record.exc_info is not None
    await group.cancel()
