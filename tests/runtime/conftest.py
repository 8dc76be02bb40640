"""Fixtures of the kubelet's tests."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.runtime.kubelet_world import World


@pytest.fixture
def short_path() -> Iterator[Path]:
    """As tmp_path, but short: a Unix socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="kone-") as folder:
        yield Path(folder)


@pytest.fixture
async def world(short_path: Path) -> AsyncIterator[World]:
    """A node with nothing on it, started."""
    made = World(short_path)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
