"""/stats/summary: what the node and its pods use now, in the shape of the kubelet's stats API (v1alpha1)."""

from __future__ import annotations

import asyncio

from kone.apimachinery.objects import Object, name_of, namespace_of, uid_of
from kone.apimachinery.timestamps import format_time
from kone.runtime.parts import PodSource
from kone.runtime.runtime import ContainerState, ContainerStats, Runtime, RuntimeFault


async def summary(source: PodSource, runtime: Runtime, node_name: str, now: float) -> Object:
    """Ask the runtime for each running container, all at once; one that cannot be asked is left out."""
    pods = await asyncio.gather(*(_pod(source, runtime, pod, now) for pod in source.pods()))
    return {"node": {"nodeName": node_name, "startTime": format_time(now)}, "pods": pods}


async def _pod(source: PodSource, runtime: Runtime, pod: Object, now: float) -> Object:
    running = [c for c in source.containers(uid_of(pod)) if c.state is ContainerState.RUNNING]
    answers = await asyncio.gather(*(runtime.stats(c.id) for c in running), return_exceptions=True)
    containers = []
    for container, answer in zip(running, answers, strict=True):
        if isinstance(answer, ContainerStats):
            containers.append(_container(container.name, container.started_at, answer))
        elif not isinstance(answer, RuntimeFault):
            raise answer
    return {
        "podRef": {"name": name_of(pod), "namespace": namespace_of(pod), "uid": uid_of(pod)},
        "startTime": format_time(now),
        "containers": containers,
    }


def _container(name: str, started_at: float, found: ContainerStats) -> Object:
    time = format_time(found.time)
    return {
        "name": name,
        "startTime": format_time(started_at),
        "cpu": {"time": time, "usageCoreNanoSeconds": found.cpu_ns},
        "memory": {
            "time": time,
            "usageBytes": found.memory_usage_bytes,
            "workingSetBytes": found.memory_working_set_bytes,
            "rssBytes": found.memory_rss_bytes,
        },
    }
