"""A thread for work that blocks, one piece after the other, each to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class OneThread:
    """Starts with the first call. Example: `rules = await thread.call(read_rules)`."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def call(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises. Who is cancelled goes when what was begun is done."""
        done = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])
            raise

    def end(self) -> None:
        """Take no more work; what was begun goes on to its end."""
        self._executor.shutdown(wait=False)
