"""Fixtures of the kubelet's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.runtime.kubelet_world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A node with nothing on it, started."""
    made = World(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
