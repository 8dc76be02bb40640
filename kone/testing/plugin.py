"""The pytest fixture `kone_cluster`, found by entry point wherever kone and pytest-asyncio are installed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

try:
    import pytest_asyncio
except ImportError:  # pytest without pytest-asyncio: there is no loop to run a cluster in
    pass
else:
    if TYPE_CHECKING:
        from kone.testing.cluster import Cluster

    @pytest_asyncio.fixture
    async def kone_cluster() -> AsyncIterator[Cluster]:
        """A cluster of the test's own: API, controllers and scheduler in this process."""
        from kone.testing.cluster import Cluster as RunningCluster

        async with RunningCluster() as cluster:
            yield cluster
