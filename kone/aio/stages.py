"""Start in named stages, stop in reverse: each stage has a budget in seconds, and an overrun is said and left."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a program. `budget_s` is how long its stop may take."""

    name: str
    start: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]
    budget_s: float


class Stages:
    """The stages that have been started, in order.

    A stage that fails to start stops the ones before it and raises; a stage that overruns its stop budget is cancelled.
    """

    def __init__(self) -> None:
        self._started: list[Stage] = []
        self.took_s: dict[str, float] = {}

    async def start(self, stage: Stage) -> None:
        begin = time.monotonic()
        try:
            await stage.start()
        except BaseException:
            await self._stop_one(stage)
            await self.stop()
            raise
        self._started.append(stage)
        self.took_s[stage.name] = time.monotonic() - begin
        log.debug("stage %s started in %.0f ms", stage.name, self.took_s[stage.name] * 1000)

    async def stop(self) -> None:
        """Stop every started stage, last first. Idempotent; never raises."""
        while self._started:
            await self._stop_one(self._started.pop())

    async def _stop_one(self, stage: Stage) -> None:
        try:
            async with asyncio.timeout(stage.budget_s):
                await stage.stop()
        except TimeoutError:
            log.warning("stage %s did not stop within %.0f s; going on without it", stage.name, stage.budget_s)
        except Exception:
            log.exception("stage %s failed to stop; going on", stage.name)
