"""A short run of `make fuzz`: everything that is served is asked, and the loops behind it see what got in."""

from __future__ import annotations

import pytest

from tests.e2e.node_process import API_ONLY, node
from tests.fuzz.__main__ import administrator, stumbles
from tests.fuzz.run import fuzz

pytestmark = pytest.mark.ring3


async def test_nothing_that_is_sent_is_answered_by_5xx() -> None:
    with node("--disable", API_ONLY, "--log-level", "warning") as process:
        async with administrator(process) as (session, url):
            report = await fuzz(session, url, requests=5_000, seed=7)
        assert report.faults == []
        assert report.sent == 5_000
        assert report.codes[200] + report.codes[201] > 500, "much is right"
        assert stumbles(process) == []
