"""The kubelet's metrics in Prometheus' text format: /metrics, /metrics/resource, /metrics/probes. What cAdvisor would
say is in cadvisor_metrics.py.

Only what programs are known to read (metrics-server, the usual dashboards), under upstream's names, computed when it is
asked for.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kone.apimachinery.objects import is_pod_terminal, name_of, namespace_of, uid_of
from kone.runtime import usage
from kone.runtime.meters import Count, Histogram, Meters
from kone.runtime.node_status import KUBELET_VERSION
from kone.runtime.parts import PodSource
from kone.runtime.probes import Probed
from kone.runtime.runtime import ContainerState
from kone.runtime.stats import PodUse
from kone.runtime.volume_stats import ClaimedUse

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]


class Page:
    """A page of metrics, written family by family."""

    def __init__(self, now: float | None = None) -> None:
        self._lines: list[str] = []
        self._stamp = "" if now is None else f" {int(now * 1000)}"

    def family(
        self, name: str, kind: str, help_: str, samples: Iterable[tuple[Labels, float]], *, stamped: bool = False
    ) -> None:
        """`stamped` samples carry the time of the page. A family without samples is left out."""
        found = list(samples)
        if not found:
            return
        self._lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
        for labels, value in found:
            self._lines.append(f"{name}{_braced(labels)} {_number(value)}{self._stamp * stamped}")

    def meter(self, meter: Count | Histogram) -> None:
        """A counter, or a histogram with its buckets, sum and count."""
        if isinstance(meter, Count):
            samples = [(dict(zip(meter.labels, values, strict=True)), n) for values, n in meter.values.items()]
            self.family(meter.name, "counter", meter.help, samples)
            return
        if meter.counts:
            self._lines += [f"# HELP {meter.name} {meter.help}", f"# TYPE {meter.name} histogram"]
        for values, counts in meter.counts.items():
            labels = dict(zip(meter.labels, values, strict=True))
            total = 0
            for bound, count in zip((*map(_number, meter.bounds), "+Inf"), counts, strict=True):
                total += count
                self._lines.append(f"{meter.name}_bucket{_braced({**labels, 'le': bound})} {total}")
            self._lines.append(f"{meter.name}_sum{_braced(labels)} {_number(meter.sums[values])}")
            self._lines.append(f"{meter.name}_count{_braced(labels)} {total}")

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)


def _braced(labels: Labels) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return "{" + inside + "}" if inside else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


# name -> (help, field of ClaimedUse)
_VOLUME_STATS = {
    "capacity_bytes": ("Capacity in bytes of the volume", "capacity_bytes"),
    "available_bytes": ("Number of available bytes in the volume", "available_bytes"),
    "used_bytes": ("Number of used bytes in the volume", "used_bytes"),
    "inodes": ("Maximum number of inodes in the volume", "inodes"),
    "inodes_free": ("Number of free inodes in the volume", "inodes_free"),
    "inodes_used": ("Number of used inodes in the volume", "inodes_used"),
}


def _volume_stats(page: Page, claimed: Sequence[ClaimedUse]) -> None:
    for name, (help_, field) in _VOLUME_STATS.items():
        samples = [
            ({"namespace": use.namespace, "persistentvolumeclaim": use.claim}, float(value))
            for use in claimed
            if (value := getattr(use, field)) is not None
        ]
        if samples:
            page.family(f"kubelet_volume_stats_{name}", "gauge", help_, samples)


def kubelet_metrics(source: PodSource, node_name: str, meters: Meters, claimed: Sequence[ClaimedUse] = ()) -> str:
    page = Page()
    pods = source.pods()
    states: Counter[str] = Counter({"running": 0, "exited": 0, "created": 0})
    running = 0
    for pod in pods:
        containers = source.containers(uid_of(pod))
        states.update(container.state.value for container in containers)
        running += any(container.state is ContainerState.RUNNING for container in containers)
    page.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.", [({"node": node_name}, 1)])
    page.family("kubelet_desired_pods", "gauge", "The number of pods of this node.", [({"static": ""}, len(pods))])
    page.family("kubelet_running_pods", "gauge", "Number of pods that have a running container", [({}, running)])
    page.family(
        "kubelet_running_containers",
        "gauge",
        "Number of containers by state",
        [({"container_state": state}, count) for state, count in sorted(states.items())],
    )
    active = sum(not is_pod_terminal(pod) for pod in pods)
    page.family("kubelet_active_pods", "gauge", "The number of pods that the kubelet runs.", [({"static": ""}, active)])
    for meter in meters:
        page.meter(meter)
    _volume_stats(page, claimed)
    version = KUBELET_VERSION.removeprefix("v").split(".")
    build = {"git_version": KUBELET_VERSION, "major": version[0], "minor": version[1], "platform": "linux"}
    page.family("kubernetes_build_info", "gauge", "What this kubelet answers for.", [(build, 1)])
    own = resource.getrusage(resource.RUSAGE_SELF)
    page.family(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        [({}, own.ru_utime + own.ru_stime)],
    )
    page.family(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        [({}, _resident_bytes())],
    )
    return page.text()


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def resource_metrics(pods: Sequence[PodUse], now: float) -> str:
    """What metrics-server reads."""
    page = Page(now)
    node = usage.node_usage()
    containers = [
        (
            {"container": one.status.name, "namespace": namespace_of(use.pod), "pod": name_of(use.pod)},
            one,
        )
        for use in pods
        for one in use.containers
    ]
    by_pod = [({"namespace": namespace_of(use.pod), "pod": name_of(use.pod)}, use.usage) for use in pods]
    page.family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        [(labels, one.usage.cpu_ns / 1e9) for labels, one in containers],
        stamped=True,
    )
    page.family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        [(labels, one.usage.working_set_bytes) for labels, one in containers],
        stamped=True,
    )
    page.family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        [(labels, one.status.started_at) for labels, one in containers],
    )
    page.family(
        "container_swap_usage_bytes",
        "gauge",
        "Current amount of the container swap usage in bytes",
        [(labels, one.usage.swap_bytes) for labels, one in containers],
        stamped=True,
    )
    page.family(
        "container_swap_limit_bytes",
        "gauge",
        "Current amount of the container swap limit in bytes. Reported only on non-windows systems",
        [(labels, one.usage.swap_limit_bytes) for labels, one in containers],
        stamped=True,
    )
    page.family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        [({}, node.cpu_ns / 1e9)],
        stamped=True,
    )
    page.family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        [({}, node.working_set_bytes)],
        stamped=True,
    )
    page.family(
        "node_swap_usage_bytes",
        "gauge",
        "Current swap usage of the node in bytes",
        [({}, node.swap_bytes)],
        stamped=True,
    )
    page.family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        [(labels, used.cpu_ns / 1e9) for labels, used in by_pod],
        stamped=True,
    )
    page.family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        [(labels, used.working_set_bytes) for labels, used in by_pod],
        stamped=True,
    )
    page.family(
        "pod_swap_usage_bytes",
        "gauge",
        "Current amount of the pod swap usage in bytes",
        [(labels, used.swap_bytes) for labels, used in by_pod],
        stamped=True,
    )
    page.family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        [({}, 0)],
    )
    return page.text()


def probe_metrics(counts: Mapping[Probed, int]) -> str:
    page = Page()
    page.family(
        "prober_probe_total",
        "counter",
        "Cumulative number of a liveness, readiness or startup probe for a container by result.",
        [(counted._asdict(), count) for counted, count in counts.items()],
    )
    return page.text()
