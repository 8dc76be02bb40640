"""What holds for every room's tests: in CI, those against real things have a second try.

Kernel, Docker and a busy machine that is not ours can lose a packet or a second. A test that needed its second try is
named in the summary (RERUN), so that it can be looked at; one that fails twice fails. Rings 1 and 2 have one try.
"""

from __future__ import annotations

import os

import pytest

REAL = ("ring3", "ring4")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("CI") == "true":
        for item in items:
            if any(item.get_closest_marker(ring) for ring in REAL):
                item.add_marker(pytest.mark.flaky(reruns=1))
