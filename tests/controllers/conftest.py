"""Fixtures of the controllers' tests."""

import pytest

from tests.controllers.world import World


@pytest.fixture
async def world() -> World:
    return World()
