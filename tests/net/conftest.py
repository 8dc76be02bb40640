"""Fixtures of the network's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.world import World


@pytest.fixture
def world() -> Iterator[World]:
    """A host in namespaces of its own."""
    with World.entered() as world:
        yield world
