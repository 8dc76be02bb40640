"""/metrics/cadvisor: cAdvisor's families under cAdvisor's labels, of containers, pods and the machine.

Dashboards and alerts are written for these names; what this host does not count is left out, not shown as 0. Names and
helps: google/cadvisor, lib/metrics/prometheus.go; which of them a kubelet has: kubernetes/pkg/kubelet/cadvisor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kone.apimachinery.objects import name_of, namespace_of, uid_of
from kone.runtime import cgroup_detail, usage
from kone.runtime.cgroup_detail import Detail, DeviceIo
from kone.runtime.disk_usage import FileSystem
from kone.runtime.metrics import Labels, Page
from kone.runtime.node_status import HostFacts
from kone.runtime.stats import PodUse
from kone.runtime.usage import Interface, Usage

Samples = Iterable[tuple[Labels, float]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A control group as cAdvisor shows it. `started_at` 0: not told."""

    labels: Labels
    usage: Usage
    detail: Detail
    started_at: float = 0.0
    layer_bytes: int | None = None


_NS: Final = 1e9
# name -> (kind, help, value)
_OF_GROUP: Final[Mapping[str, tuple[str, str, Callable[[Usage, Detail], float]]]] = {
    "container_cpu_user_seconds_total": (
        "counter",
        "Cumulative user cpu time consumed in seconds.",
        lambda u, d: d.cpu_user_ns / _NS,
    ),
    "container_cpu_system_seconds_total": (
        "counter",
        "Cumulative system cpu time consumed in seconds.",
        lambda u, d: d.cpu_system_ns / _NS,
    ),
    "container_memory_cache": ("gauge", "Number of bytes of page cache memory.", lambda u, d: d.cache_bytes),
    "container_memory_rss": ("gauge", "Size of RSS in bytes.", lambda u, d: u.rss_bytes),
    "container_memory_kernel_usage": (
        "gauge",
        "Size of kernel memory allocated in bytes.",
        lambda u, d: d.kernel_bytes,
    ),
    "container_memory_mapped_file": ("gauge", "Size of memory mapped files in bytes.", lambda u, d: d.mapped_bytes),
    "container_memory_swap": ("gauge", "Container swap usage in bytes.", lambda u, d: u.swap_bytes),
    "container_memory_failcnt": ("counter", "Number of memory usage hits limits", lambda u, d: d.limit_hits),
    "container_memory_usage_bytes": (
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        lambda u, d: u.memory_bytes,
    ),
    "container_memory_max_usage_bytes": (
        "gauge",
        "Maximum memory usage recorded in bytes",
        lambda u, d: d.max_bytes,
    ),
    "container_memory_working_set_bytes": (
        "gauge",
        "Current working set in bytes.",
        lambda u, d: u.working_set_bytes,
    ),
    "container_memory_total_active_file_bytes": (
        "gauge",
        "Current total active file in bytes.",
        lambda u, d: d.active_file_bytes,
    ),
    "container_memory_total_inactive_file_bytes": (
        "gauge",
        "Current total inactive file in bytes.",
        lambda u, d: d.inactive_file_bytes,
    ),
    "container_memory_file_dirty_bytes": (
        "gauge",
        "Number of bytes of file cache that has been modified but not yet written back to disk.",
        lambda u, d: d.dirty_bytes,
    ),
    "container_memory_file_writeback_bytes": (
        "gauge",
        "Number of bytes of file cache that is currently being written back to disk.",
        lambda u, d: d.writeback_bytes,
    ),
    "container_memory_events_high_total": (
        "counter",
        "Cumulative count of memory.high throttle events for the container",
        lambda u, d: d.high_events,
    ),
    "container_memory_events_max_total": (
        "counter",
        "Cumulative count of memory.max limit hit events for the container",
        lambda u, d: d.max_events,
    ),
    "container_oom_events_total": (
        "counter",
        "Count of out of memory events observed for the container",
        lambda u, d: d.oom_kills,
    ),
    "container_processes": (
        "gauge",
        "Number of processes running inside the container.",
        lambda u, d: d.processes,
    ),
    "container_file_descriptors": (
        "gauge",
        "Number of open file descriptors for the container.",
        lambda u, d: d.file_descriptors,
    ),
    "container_sockets": ("gauge", "Number of open sockets for the container.", lambda u, d: d.sockets),
    "container_threads": ("gauge", "Number of threads running inside the container", lambda u, d: d.tasks),
    "container_threads_max": (
        "gauge",
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        lambda u, d: d.tasks_max,
    ),
    "container_spec_cpu_period": ("gauge", "CPU period of the container.", lambda u, d: d.cpu_period_us),
    "container_spec_cpu_shares": ("gauge", "CPU share of the container.", lambda u, d: d.cpu_shares),
    "container_spec_memory_limit_bytes": (
        "gauge",
        "Memory limit for the container.",
        lambda u, d: d.memory_limit,
    ),
    "container_spec_memory_reservation_limit_bytes": (
        "gauge",
        "Memory reservation limit for the container.",
        lambda u, d: d.reservation,
    ),
    "container_spec_memory_swap_limit_bytes": (
        "gauge",
        "Memory swap limit for the container.",
        lambda u, d: d.swap_limit,
    ),
}
_OF_QUOTA: Final[Mapping[str, tuple[str, str, Callable[[Detail], float]]]] = {
    "container_spec_cpu_quota": ("gauge", "CPU quota of the container.", lambda d: d.cpu_quota_us),
    "container_cpu_cfs_periods_total": (
        "counter",
        "Number of elapsed enforcement period intervals.",
        lambda d: d.cfs_periods,
    ),
    "container_cpu_cfs_throttled_periods_total": (
        "counter",
        "Number of throttled period intervals.",
        lambda d: d.throttled_periods,
    ),
    "container_cpu_cfs_throttled_seconds_total": (
        "counter",
        "Total time duration the container has been throttled.",
        lambda d: d.throttled_ns / _NS,
    ),
}
_OF_DEVICE: Final[Mapping[str, tuple[str, Callable[[DeviceIo], int]]]] = {
    "container_fs_reads_bytes_total": ("Cumulative count of bytes read", lambda io: io.read_bytes),
    "container_fs_reads_total": ("Cumulative count of reads completed", lambda io: io.reads),
    "container_fs_writes_bytes_total": ("Cumulative count of bytes written", lambda io: io.written_bytes),
    "container_fs_writes_total": ("Cumulative count of writes completed", lambda io: io.writes),
}
_OF_INTERFACE: Final[Mapping[str, tuple[str, Callable[[Interface], int]]]] = {
    "container_network_receive_bytes_total": ("Cumulative count of bytes received", lambda i: i.rx_bytes),
    "container_network_receive_packets_total": ("Cumulative count of packets received", lambda i: i.rx_packets),
    "container_network_receive_packets_dropped_total": (
        "Cumulative count of packets dropped while receiving",
        lambda i: i.rx_dropped,
    ),
    "container_network_receive_errors_total": (
        "Cumulative count of errors encountered while receiving",
        lambda i: i.rx_errors,
    ),
    "container_network_transmit_bytes_total": ("Cumulative count of bytes transmitted", lambda i: i.tx_bytes),
    "container_network_transmit_packets_total": ("Cumulative count of packets transmitted", lambda i: i.tx_packets),
    "container_network_transmit_packets_dropped_total": (
        "Cumulative count of packets dropped while transmitting",
        lambda i: i.tx_dropped,
    ),
    "container_network_transmit_errors_total": (
        "Cumulative count of errors encountered while transmitting",
        lambda i: i.tx_errors,
    ),
}
_DELAYS: Final = {"cpu": "CPU", "memory": "memory", "io": "IO"}


def cadvisor_metrics(
    pods: Sequence[PodUse], disk: FileSystem, facts: HostFacts, docker_version: str, now: float
) -> str:
    """The page. `disk` is where writable layers lie; reads several files of each container."""
    page = Page(now)
    seen, network = _look(pods)
    names = cgroup_detail.device_names()
    page.family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
        [({**one.labels, "cpu": "total"}, one.usage.cpu_ns / _NS) for one in seen],
        stamped=True,
    )
    for name, (kind, help_, value) in _OF_GROUP.items():
        page.family(name, kind, help_, [(one.labels, value(one.usage, one.detail)) for one in seen], stamped=True)
    for name, (kind, help_, of) in _OF_QUOTA.items():
        limited = [(one.labels, of(one.detail)) for one in seen if one.detail.cpu_quota_us]
        page.family(name, kind, help_, limited, stamped=True)
    failures = [
        ({**one.labels, "failure_type": kind, "scope": scope}, count)
        for one in seen
        for (kind, scope), count in one.detail.faults.items()
    ]
    help_ = "Cumulative count of memory allocation failures."
    page.family("container_memory_failures_total", "counter", help_, failures, stamped=True)
    _pressures(page, seen)
    _disks(page, seen, disk, names)
    for name, (help_, count_of) in _OF_INTERFACE.items():
        page.family(name, "counter", help_, [(labels, count_of(one)) for labels, one in network], stamped=True)
    limits = [({**one.labels, "ulimit": "max_open_files"}, one.detail.files_soft_limit) for one in seen]
    help_ = "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice"
    page.family("container_ulimits_soft", "gauge", help_, limits, stamped=True)
    help_ = "Last time a container was seen by the exporter"
    page.family("container_last_seen", "gauge", help_, [(one.labels, int(now)) for one in seen], stamped=True)
    started = [(one.labels, one.started_at) for one in seen if one.started_at]
    help_ = "Start time of the container since unix epoch in seconds."
    page.family("container_start_time_seconds", "gauge", help_, started, stamped=True)
    help_ = "1 if there was an error while getting container metrics, 0 otherwise"
    page.family("container_scrape_error", "gauge", help_, [({}, 0)])
    _machine(page, facts, docker_version)
    return page.text()


def _look(pods: Sequence[PodUse]) -> tuple[list[_Seen], list[tuple[Labels, Interface]]]:
    root: Labels = {"container": "", "id": "/", "image": "", "name": "", "namespace": "", "pod": ""}
    machine = usage.node_usage()
    seen = [_Seen(root, machine, cgroup_detail.read(usage.root_group()), usage.boot_time())]
    network: list[tuple[Labels, Interface]] = [({**root, "interface": one.name}, one) for one in usage.interfaces()]
    for use in pods:
        pod = {"namespace": namespace_of(use.pod), "pod": name_of(use.pod)}
        own: Labels = {**root, "id": f"/kubepods/pod{uid_of(use.pod)}", **pod}
        for one in use.containers:
            try:
                group = usage.group_of(one.status.pid)
                detail = cgroup_detail.read(group)
                parent = group.parent
                if own not in [other.labels for other in seen] and use.has_group:
                    own = {**own, "id": parent.name}
                    seen.append(_Seen(own, use.usage, cgroup_detail.read(parent)))
            except (OSError, KeyError, ValueError):
                continue  # it ended while we looked
            labels = {
                "container": one.status.name,
                "id": group.name,
                "image": one.status.image,
                "name": one.status.id,
                **pod,
            }
            seen.append(_Seen(labels, one.usage, detail, one.status.started_at, one.layer.bytes))
        network += [({**own, "interface": one.name}, one) for one in use.interfaces]
    return seen, network


def _pressures(page: Page, seen: Sequence[_Seen]) -> None:
    for resource, word in _DELAYS.items():
        counted = [(one.labels, one.detail.pressures[resource]) for one in seen if resource in one.detail.pressures]
        page.family(
            f"container_pressure_{resource}_stalled_seconds_total",
            "counter",
            f"Total time duration no tasks in the container could make progress due to {word} congestion.",
            [(labels, found.full.total_us / 1e6) for labels, found in counted],
            stamped=True,
        )
        page.family(
            f"container_pressure_{resource}_waiting_seconds_total",
            "counter",
            f"Total time duration tasks in the container have waited due to {word} congestion.",
            [(labels, found.some.total_us / 1e6) for labels, found in counted],
            stamped=True,
        )


def _disks(page: Page, seen: Sequence[_Seen], disk: FileSystem, names: Mapping[tuple[int, int], str]) -> None:
    def device(io: DeviceIo) -> str:
        return names.get(io.device, "")

    for name, (help_, value) in _OF_DEVICE.items():
        samples = [({**one.labels, "device": device(io)}, value(io)) for one in seen for io in one.detail.io]
        page.family(name, "counter", help_, samples, stamped=True)
    operations: list[tuple[Labels, float]] = []
    for one in seen:
        for io in one.detail.io:
            major, minor = (str(number) for number in io.device)
            labels = {**one.labels, "device": device(io), "major": major, "minor": minor}
            operations.append(({**labels, "operation": "Read"}, io.read_bytes))
            operations.append(({**labels, "operation": "Write"}, io.written_bytes))
    page.family("container_blkio_device_usage_total", "counter", "Blkio Device bytes usage", operations, stamped=True)
    where = names.get((os.major(disk.device), os.minor(disk.device)), "")
    layers = [({**one.labels, "device": where}, one.layer_bytes) for one in seen if one.layer_bytes is not None]
    whole: Labels = {**seen[0].labels, "device": where}
    families: tuple[tuple[str, str, Samples], ...] = (
        (
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
            [(whole, disk.used_bytes), *layers],
        ),
        (
            "container_fs_limit_bytes",
            "Number of bytes that can be consumed by the container on this filesystem.",
            [(whole, disk.capacity_bytes), *((labels, disk.capacity_bytes) for labels, _ in layers)],
        ),
        ("container_fs_inodes_free", "Number of available Inodes", [(whole, disk.inodes_free)]),
        ("container_fs_inodes_total", "Number of Inodes", [(whole, disk.inodes)]),
    )
    for name, help_, shown in families:
        page.family(name, "gauge", help_, shown, stamped=True)


def _machine(page: Page, facts: HostFacts, docker_version: str) -> None:
    labels = {"boot_id": facts.boot_id, "machine_id": facts.machine_id, "system_uuid": facts.system_uuid}
    families = (
        ("machine_cpu_cores", "Number of logical CPU cores.", facts.cpus),
        ("machine_memory_bytes", "Amount of memory installed on the machine.", facts.memory_bytes),
        ("machine_swap_bytes", "Amount of swap memory available on the machine.", facts.swap_bytes),
    )
    for name, help_, value in families:
        page.family(name, "gauge", help_, [(labels, value)])
    help_ = "1 if there was an error while getting machine metrics, 0 otherwise."
    page.family("machine_scrape_error", "gauge", help_, [({}, 0)])
    versions = {
        "cadvisorRevision": "",
        "cadvisorVersion": "",
        "dockerVersion": docker_version,
        "kernelVersion": facts.kernel,
        "osVersion": facts.os_image,
    }
    help_ = (
        "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & "
        "cadvisor revision."
    )
    page.family("cadvisor_version_info", "gauge", help_, [(versions, 1)])
