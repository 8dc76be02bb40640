"""kubectl on a cluster of the test's own process: what it prints, what it says on stderr, how it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import NamedTuple

from kone.testing import Cluster

KUBECTL = str(Path(sys.executable).parent / "kubectl")


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """kubectl on a cluster of this process."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def run(self, *words: str, stdin: str = "", **environment: str) -> Result:
        process = await asyncio.create_subprocess_exec(
            *(KUBECTL, "--kubeconfig", str(self._cluster.kubeconfig), *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )
        async with asyncio.timeout(30):
            out, err = await process.communicate(stdin.encode())
        return Result(process.returncode or 0, out.decode(), err.decode())
