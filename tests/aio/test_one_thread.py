"""Work that blocks, in a thread of its own: to its end, and one piece after the other."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kone.aio.one_thread import OneThread


async def test_it_is_done_elsewhere_and_its_errors_come_back() -> None:
    thread = OneThread("work")
    assert await thread.call(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda: 1 // 0)
    thread.end()


async def test_who_is_cancelled_goes_when_what_was_begun_is_done() -> None:
    thread, begun, go_on, done = OneThread("work"), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go_on.wait()
        done.append(1)

    task = asyncio.ensure_future(thread.call(work))
    await asyncio.get_running_loop().run_in_executor(None, begun.wait)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]
    thread.end()
