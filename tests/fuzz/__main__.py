"""`make fuzz`: a server of its own, so many requests, then what its log says and whether its memory came back.

    python -m tests.fuzz --requests 200000 --seed 1

Exits 1 where anything was answered by 5xx, a loop stumbled (a traceback in the log), or the second half of the requests
leaves more than 10 % above what the first half had left: the first fills what a server fills once (modules, tables,
caches with bounds). The server forgets its history after five minutes, so a run waits that long at the most in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

import aiohttp

from kone.client.kubeconfig import load_kubeconfig
from tests.e2e.node_process import API_ONLY, NodeProcess, node
from tests.fuzz.run import Report, clean, fuzz

HISTORY_S: Final = 300.0
GROWTH_MAX: Final = 1.10


@contextlib.asynccontextmanager
async def administrator(process: NodeProcess) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """(a session that may do everything, the server's URL)."""
    connection = load_kubeconfig(process.kubeconfig)
    connector = aiohttp.TCPConnector(ssl=connection.ssl_context(), limit=0)
    headers = {"Authorization": f"Bearer {connection.token}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield session, connection.server


def memory_mb(process: NodeProcess) -> float:
    """Resident memory."""
    assert process.process is not None
    with open(f"/proc/{process.process.pid}/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))


def stumbles(process: NodeProcess) -> list[str]:
    """The tracebacks in the server's log: the line before each, its last calls, its error."""
    lines = process.log.read_text().splitlines()
    found = []
    for start in (number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")):
        end = next(number for number in range(start + 1, len(lines)) if not lines[number].startswith(" "))
        found.append("\n".join((lines[max(0, start - 1)], *lines[max(start, end - 12) : end + 1])))
    return found


def told(name: str, report: Report) -> None:
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(report.codes.items()))
    print(f"{name}: {report.sent} answered ({codes}); {report.faulty} faults; slowest {report.slowest_s:.2f} s")
    for fault in report.faults:
        print(f"  {fault}")


async def play(process: NodeProcess, requests: int, seed: int) -> bool:
    """Whether the server stood it."""
    async with administrator(process) as (session, url):
        reports = []
        left_mb = []
        for half in range(2):
            began = time.monotonic()
            reports.append(await fuzz(session, url, requests=requests // 2, seed=seed + half))
            await clean(session, url)
            left_mb.append(memory_mb(process))
            told(f"half {half + 1}, {time.monotonic() - began:.0f} s, leaves {left_mb[-1]:.0f} MB", reports[-1])
        before_mb, after_mb = left_mb
        end = time.monotonic() + HISTORY_S + 30
        while after_mb > before_mb * GROWTH_MAX and time.monotonic() < end:
            await asyncio.sleep(5)
            after_mb = memory_mb(process)
        print(f"memory in the end: {after_mb:.0f} MB, {after_mb / before_mb - 1:+.1%}")
        found = stumbles(process)
        for each in found[:10]:
            print(each)
        print(f"{len(found)} tracebacks in the log")
        return not (any(report.faulty for report in reports) or found or after_mb > before_mb * GROWTH_MAX)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with node("--disable", API_ONLY, "--log-level", "warning") as process:
        return 0 if asyncio.run(play(process, options.requests, options.seed)) else 1


if __name__ == "__main__":
    sys.exit(main())
