"""Named, owned tasks: each long-running loop has a name, an owner that restarts it, and one way to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

RESTART_FIRST_S = 1.0
RESTART_MAX_S = 30.0


class TaskGroup:
    """Owner of background tasks: `spawn` for work that ends, `guard` for loops that must not; `cancel` stops all."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def names(self) -> list[str]:
        return sorted(task.get_name() for task in self._tasks)

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `work` once; a failure is logged with the task's name, never lost."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def guard(self, loop: Callable[[], Awaitable[None]], *, name: str) -> asyncio.Task[Any]:
        """Run `loop()` for ever, in a task of that name. When it returns or raises, say so and start it again after
        1 s, doubling to 30 s; when somebody cancels its task, at once."""
        return self.spawn(_restarting(loop, name), name=f"guard of {name}")

    async def cancel(self) -> None:
        """Cancel every task and wait until each has ended."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=error)


async def _restarting(loop: Callable[[], Awaitable[None]], name: str) -> None:
    delay_s = RESTART_FIRST_S
    while True:
        started = asyncio.get_running_loop().time()
        task = asyncio.create_task(_as_coroutine(loop), name=name)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        if task.cancelled():
            log.error("task %s was killed; it starts again", name)
            continue
        if (error := task.exception()) is None:
            log.warning("task %s has finished unexpectedly; it starts again in %.0f s", name, delay_s)
        else:
            log.error("task %s failed; it starts again in %.0f s", name, delay_s, exc_info=error)
        if asyncio.get_running_loop().time() - started > RESTART_MAX_S:
            delay_s = RESTART_FIRST_S
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, RESTART_MAX_S)


async def _as_coroutine(loop: Callable[[], Awaitable[None]]) -> None:
    await loop()
