"""A namespace of 10,000 objects is deleted while another client asks for something else."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator

from benchmarks import load
from benchmarks.api import bare_api
from benchmarks.load import Target
from benchmarks.report import Figure

OBJECTS = int(os.environ.get("KONE_BENCH_OBJECTS", "10000"))
PAUSE_S = 0.02  # between two questions of the other client
PATIENCE_S = 300.0


def config_map(number: int) -> str:
    metadata = {"name": f"c{number}"}
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}})


async def delete_namespace(target: Target) -> tuple[float, float]:
    """(seconds until it is gone, the longest answer to somebody else meanwhile in ms)."""
    await load.post_many(target, "/api/v1/namespaces", [json.dumps({"metadata": {"name": "crowd"}})])
    await load.post_many(target, "/api/v1/namespaces/crowd/configmaps", [config_map(n) for n in range(OBJECTS)])
    asker = load.Asker(target)
    began = time.perf_counter()
    await load.delete_many(target, ["/api/v1/namespaces/crowd"])
    longest = 0.0
    while await asker.status("/api/v1/namespaces/crowd") != 404:
        asked = time.perf_counter()
        assert await asker.status("/api/v1/namespaces/default") == 200
        longest = max(longest, (time.perf_counter() - asked) * 1000)
        assert time.perf_counter() - began < PATIENCE_S, "the namespace is still there"
        await asyncio.sleep(PAUSE_S)
    return time.perf_counter() - began, longest


def measure() -> Iterator[Figure]:
    with bare_api("scheduler,kubelet,proxy,dns") as (target, _, _, _):
        took, longest = asyncio.run(delete_namespace(target))
    yield Figure(f"delete a namespace of {OBJECTS} objects", took, "s", 60, "less")
    yield Figure("others' longest answer meanwhile", longest, "ms", 100, "less")
