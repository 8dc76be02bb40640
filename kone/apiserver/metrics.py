"""What the server counts, in Prometheus' text format, under upstream's names."""

from __future__ import annotations

import asyncio
import bisect
import gc
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

BUCKETS_S: Final = (0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0, 30.0, 60.0)
LONG_RUNNING: Final = frozenset(("watch", "connect"))

RequestKey = tuple[str, str, str, str, str]
"""(verb, group, version, resource, subresource)."""


class Metrics:
    """Requests by what they were for, their durations, and the process."""

    def __init__(
        self,
        *,
        watching: Callable[[], int],
        inflight: Callable[[], int],
        objects: Callable[[], Iterable[tuple[str, int]]],
        more: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._watching = watching
        self._inflight = inflight
        self._objects = objects
        self._more = more
        self._requests: Counter[tuple[RequestKey, int]] = Counter()
        self._durations: dict[RequestKey, list[int]] = {}
        self._sums: dict[RequestKey, float] = {}
        self._started = time.time()

    def observe(self, key: RequestKey, code: int, seconds: float) -> None:
        self._requests[key, code] += 1
        if key[0] in LONG_RUNNING:
            return
        counts = self._durations.get(key)
        if counts is None:
            counts = self._durations[key] = [0] * (len(BUCKETS_S) + 1)
            self._sums[key] = 0.0
        counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self._sums[key] += seconds

    def text(self) -> str:
        """The exposition."""
        lines: list[str] = []
        add = lines.append
        add("# HELP apiserver_request_total Requests by verb, resource and HTTP code.")
        add("# TYPE apiserver_request_total counter")
        for (key, code), count in sorted(self._requests.items()):
            add(f'apiserver_request_total{{code="{code}",{_labels(key)}}} {count}')
        add("# HELP apiserver_request_duration_seconds Duration of requests in seconds.")
        add("# TYPE apiserver_request_duration_seconds histogram")
        for key, counts in sorted(self._durations.items()):
            self._histogram(key, counts, add)
        add("# HELP apiserver_current_inflight_requests Requests being served now.")
        add("# TYPE apiserver_current_inflight_requests gauge")
        add(f"apiserver_current_inflight_requests {self._inflight()}")
        add("# HELP apiserver_longrunning_requests Watches being served now.")
        add("# TYPE apiserver_longrunning_requests gauge")
        add(f'apiserver_longrunning_requests{{verb="WATCH"}} {self._watching()}')
        add("# HELP apiserver_resource_objects Objects stored, by resource.")
        add("# TYPE apiserver_resource_objects gauge")
        for name, count in sorted(self._objects()):
            add(f'apiserver_resource_objects{{resource="{name}"}} {count}')
        lines.extend(self._more())
        lines.extend(self._process())
        return "\n".join(lines) + "\n"

    def _histogram(self, key: RequestKey, counts: list[int], add: Callable[[str], None]) -> None:
        labels, total = _labels(key), 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
            total += count
            add(f'apiserver_request_duration_seconds_bucket{{{labels},le="{bound}"}} {total}')
        add(f"apiserver_request_duration_seconds_sum{{{labels}}} {self._sums[key]:.6f}")
        add(f"apiserver_request_duration_seconds_count{{{labels}}} {total}")

    def _process(self) -> Iterable[str]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
        yield "# HELP process_resident_memory_bytes Resident memory size in bytes."
        yield "# TYPE process_resident_memory_bytes gauge"
        yield f"process_resident_memory_bytes {pages * os.sysconf('SC_PAGE_SIZE')}"
        yield "# HELP process_cpu_seconds_total User and system CPU time spent in seconds."
        yield "# TYPE process_cpu_seconds_total counter"
        yield f"process_cpu_seconds_total {used.ru_utime + used.ru_stime:.2f}"
        yield "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds."
        yield "# TYPE process_start_time_seconds gauge"
        yield f"process_start_time_seconds {self._started:.2f}"
        yield "# HELP process_open_fds Number of open file descriptors."
        yield "# TYPE process_open_fds gauge"
        yield f"process_open_fds {len(os.listdir('/proc/self/fd'))}"
        yield "# HELP python_asyncio_tasks Number of asyncio tasks that have not ended."
        yield "# TYPE python_asyncio_tasks gauge"
        yield f"python_asyncio_tasks {len(asyncio.all_tasks())}"
        yield "# HELP python_gc_collections_total Garbage collections by generation."
        yield "# TYPE python_gc_collections_total counter"
        for generation, stats in enumerate(gc.get_stats()):
            yield f'python_gc_collections_total{{generation="{generation}"}} {stats["collections"]}'


def _labels(key: RequestKey) -> str:
    verb, group, version, resource_name, subresource = key
    return (
        f'group="{group}",resource="{resource_name}",subresource="{subresource}",verb="{verb.upper()}",'
        f'version="{version}"'
    )
