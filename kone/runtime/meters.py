"""What the kubelet counts of its own work, under the names that upstream's dashboards read; written out by metrics.py.

Families: kubernetes/pkg/kubelet/metrics/metrics.go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

from kone.aio.clock import Clock
from kone.runtime.runtime import Runtime

DEFAULT_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_S: Final = (300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0)
START_S: Final = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, *_LONG_S)
PULL_S: Final = (1.0, 5, 10, 20, 30, 60, 120, 180, 240, *_LONG_S)
OPERATION_S: Final = tuple(0.005 * 2.5**power for power in range(14))
LabelValues = tuple[str, ...]


class Count:
    """A counter, for each set of label values."""

    def __init__(self, name: str, help_: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help_, tuple(labels)
        self.values: Counter[LabelValues] = Counter() if labels else Counter({(): 0})

    def add(self, *values: str) -> None:
        self.values[values] += 1


class Histogram:
    """How often what took how long, for each set of label values; `bounds` in the unit of what is observed."""

    def __init__(self, name: str, help_: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.bounds, self.labels = name, help_, tuple(bounds), tuple(labels)
        self.counts: dict[LabelValues, list[int]] = {}
        self.sums: dict[LabelValues, float] = {}

    def observe(self, value: float, *values: str) -> None:
        counts = self.counts.setdefault(values, [0] * (len(self.bounds) + 1))
        counts[next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))] += 1
        self.sums[values] = self.sums.get(values, 0.0) + value


class Meters:
    """One kubelet's."""

    def __init__(self) -> None:
        operation, kind = ("operation_type",), ("container_type",)
        self.started_pods = Count("kubelet_started_pods_total", "Cumulative number of pods started")
        self.started_pods_errors = Count(
            "kubelet_started_pods_errors_total", "Cumulative number of errors when starting pods", ("message",)
        )
        self.started_containers = Count(
            "kubelet_started_containers_total", "Cumulative number of containers started", kind
        )
        self.started_containers_errors = Count(
            "kubelet_started_containers_errors_total",
            "Cumulative number of errors when starting containers",
            (*kind, "code"),
        )
        self.terminated_containers = Count(
            "kubelet_terminated_containers_total",
            "Cumulative number of container terminations.",
            (*kind, "exit_code", "reason"),
        )
        self.evictions = Count(
            "kubelet_evictions", "Cumulative number of pod evictions by eviction signal", ("eviction_signal",)
        )
        self.operations = Count(
            "kubelet_runtime_operations_total",
            "Cumulative number of runtime operations by operation type.",
            operation,
        )
        self.operations_errors = Count(
            "kubelet_runtime_operations_errors_total",
            "Cumulative number of runtime operation errors by operation type.",
            operation,
        )
        self.operations_s = Histogram(
            "kubelet_runtime_operations_duration_seconds",
            "Duration in seconds of runtime operations. Broken down by operation type.",
            OPERATION_S,
            operation,
        )
        self.pod_worker_s = Histogram(
            "kubelet_pod_worker_duration_seconds",
            "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
            DEFAULT_S,
            operation,
        )
        self.pod_start_s = Histogram(
            "kubelet_pod_start_duration_seconds",
            "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
            START_S,
        )
        self.image_pull_s = Histogram(
            "kubelet_image_pull_duration_seconds",
            "Duration in seconds to pull an image.",
            PULL_S,
            ("image_size_in_bytes",),
        )

    def __iter__(self) -> Iterator[Count | Histogram]:
        return iter(vars(self).values())


_SIZES: Final = (10, 100, 500, 1024, 5 * 1024, 10 * 1024, 20 * 1024, 30 * 1024, 40 * 1024, 60 * 1024, 100 * 1024)  # MiB
_SIZE_NAMES: Final = (
    "0-10MB",
    "10MB-100MB",
    "100MB-500MB",
    "500MB-1GB",
    "1GB-5GB",
    "5GB-10GB",
    "10GB-20GB",
    "20GB-30GB",
    "30GB-40GB",
    "40GB-60GB",
    "60GB-100GB",
    "GT100GB",
)


def size_bucket(size_bytes: int) -> str:
    """The label of an image's size."""
    if size_bytes <= 0:
        return "N/A"
    return _SIZE_NAMES[sum(size_bytes > bound << 20 for bound in _SIZES)]


# Upstream's names of a runtime's operations, by the methods of Runtime.
_OPERATIONS: Final = {
    "status": "status",
    "create_sandbox": "run_podsandbox",
    "stop_sandbox": "stop_podsandbox",
    "remove_sandbox": "remove_podsandbox",
    "sandboxes": "list_podsandbox",
    "create_container": "create_container",
    "start_container": "start_container",
    "stop_container": "stop_container",
    "remove_container": "remove_container",
    "containers": "list_containers",
    "container": "container_status",
    "update_resources": "update_container",
    "exec_sync": "exec_sync",
    "exec": "exec",
    "attach": "attach",
    "pull_image": "pull_image",
    "image": "image_status",
    "images": "list_images",
    "remove_image": "remove_image",
}


class _Metered:
    """A runtime whose operations are counted and timed."""

    def __init__(self, runtime: Runtime, meters: Meters, clock: Clock) -> None:
        self._runtime, self._meters, self._clock = runtime, meters, clock

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._runtime, name)
        operation = _OPERATIONS.get(name)
        if operation is None:
            return method
        meters, clock = self._meters, self._clock

        async def metered(*args: Any, **kwargs: Any) -> Any:
            began = clock.monotonic()
            meters.operations.add(operation)
            try:
                return await method(*args, **kwargs)
            except Exception:
                meters.operations_errors.add(operation)
                raise
            finally:
                meters.operations_s.observe(clock.monotonic() - began, operation)

        setattr(self, name, metered)
        return metered


def metered(runtime: Runtime, meters: Meters, clock: Clock) -> Runtime:
    """The same runtime, which is counted."""
    return cast(Runtime, _Metered(runtime, meters, clock))
