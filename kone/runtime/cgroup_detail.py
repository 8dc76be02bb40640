"""All that a control group and the processes in it tell, for those who ask for it: cAdvisor's metrics.

Read when /metrics/cadvisor is; what usage.py reads is enough for all else. A kernel or version that does not count
something leaves it at 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from kone.runtime.usage import PROC, Group, Pressure, limit_of


class DeviceIo(NamedTuple):
    """What passed one block device; `device` is its numbers, (8, 0)."""

    device: tuple[int, int]
    read_bytes: int
    reads: int
    written_bytes: int
    writes: int


@dataclass(frozen=True, slots=True)
class Detail:
    """Nanoseconds and bytes, so far or now; limits 0 where there are none."""

    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cfs_periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    cache_bytes: int = 0
    mapped_bytes: int = 0
    kernel_bytes: int = 0
    active_file_bytes: int = 0
    inactive_file_bytes: int = 0
    dirty_bytes: int = 0
    writeback_bytes: int = 0
    max_bytes: int = 0
    limit_hits: int = 0
    high_events: int = 0
    max_events: int = 0
    oom_kills: int = 0
    faults: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by failure_type and scope
    memory_limit: int = 0
    swap_limit: int = 0
    reservation: int = 0
    cpu_shares: int = 0
    cpu_quota_us: int = 0
    cpu_period_us: int = 0
    tasks: int = 0
    tasks_max: int = 0
    io: Sequence[DeviceIo] = ()
    processes: int = 0
    file_descriptors: int = 0
    sockets: int = 0
    files_soft_limit: int = 0  # of the first process; -1: none
    pressures: Mapping[str, Pressure] = field(default_factory=dict)


def read(group: Group, *, proc: Path = PROC) -> Detail:
    """Raises OSError where the group is gone."""
    detail = _version_2(group.directories[""]) if "" in group.directories else _version_1(group.directories)
    return replace(_with_processes(detail, group.path, proc), pressures=group.pressures())


def _version_1(directories: Mapping[str, Path]) -> Detail:
    memory, pids = directories["memory"], directories.get("pids")
    stat = _numbers(memory / "memory.stat")
    cpu = directories.get("cpu", memory)
    cpu_stat, times = _numbers(cpu / "cpu.stat"), _numbers(directories.get("cpuacct", memory) / "cpuacct.stat")
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    quota = _number(cpu / "cpu.cfs_quota_us")
    return Detail(
        cpu_user_ns=times.get("user", 0) * tick_ns,
        cpu_system_ns=times.get("system", 0) * tick_ns,
        cfs_periods=cpu_stat.get("nr_periods", 0),
        throttled_periods=cpu_stat.get("nr_throttled", 0),
        throttled_ns=cpu_stat.get("throttled_time", 0),
        cache_bytes=stat.get("total_cache", 0),
        mapped_bytes=stat.get("total_mapped_file", 0),
        kernel_bytes=_number(memory / "memory.kmem.usage_in_bytes"),
        active_file_bytes=stat.get("total_active_file", 0),
        inactive_file_bytes=stat.get("total_inactive_file", 0),
        dirty_bytes=stat.get("total_dirty", 0),
        writeback_bytes=stat.get("total_writeback", 0),
        max_bytes=_number(memory / "memory.max_usage_in_bytes"),
        limit_hits=_number(memory / "memory.failcnt"),
        oom_kills=_numbers(memory / "memory.oom_control").get("oom_kill", 0),
        faults={
            ("pgfault", "container"): stat.get("pgfault", 0),
            ("pgmajfault", "container"): stat.get("pgmajfault", 0),
            ("pgfault", "hierarchy"): stat.get("total_pgfault", 0),
            ("pgmajfault", "hierarchy"): stat.get("total_pgmajfault", 0),
        },
        memory_limit=limit_of(_number(memory / "memory.limit_in_bytes")),
        swap_limit=limit_of(_number(memory / "memory.memsw.limit_in_bytes")),
        reservation=limit_of(_number(memory / "memory.soft_limit_in_bytes")),
        cpu_shares=_number(cpu / "cpu.shares"),
        cpu_quota_us=max(0, quota),
        cpu_period_us=_number(cpu / "cpu.cfs_period_us"),
        tasks=_number(pids / "pids.current") if pids is not None else 0,
        tasks_max=_number(pids / "pids.max") if pids is not None else 0,
        io=_io_version_1(directories["blkio"]) if "blkio" in directories else (),
    )


def _version_2(directory: Path) -> Detail:
    stat, cpu, events = (_numbers(directory / name) for name in ("memory.stat", "cpu.stat", "memory.events"))
    quota, _, period = _text(directory / "cpu.max").partition(" ")
    weight = _number(directory / "cpu.weight")
    kernel = stat.get("kernel", stat.get("kernel_stack", 0) + stat.get("slab", 0) + stat.get("sock", 0))
    return Detail(
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        cfs_periods=cpu.get("nr_periods", 0),
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        cache_bytes=stat.get("file", 0),
        mapped_bytes=stat.get("file_mapped", 0),
        kernel_bytes=kernel,
        active_file_bytes=stat.get("active_file", 0),
        inactive_file_bytes=stat.get("inactive_file", 0),
        dirty_bytes=stat.get("file_dirty", 0),
        writeback_bytes=stat.get("file_writeback", 0),
        max_bytes=_number(directory / "memory.peak"),
        limit_hits=events.get("max", 0),
        high_events=events.get("high", 0),
        max_events=events.get("max", 0),
        oom_kills=events.get("oom_kill", 0),
        faults={
            (kind, scope): stat.get(kind, 0)
            for scope in ("container", "hierarchy")
            for kind in ("pgfault", "pgmajfault")
        },
        memory_limit=_number(directory / "memory.max"),
        swap_limit=_number(directory / "memory.swap.max"),
        reservation=_number(directory / "memory.low"),
        # runc's own way from shares to weights, backwards: 2 is 1, 262144 is 10000
        cpu_shares=2 + (weight - 1) * 262142 // 9999 if weight else 0,
        cpu_quota_us=int(quota) if quota.isdigit() else 0,
        cpu_period_us=int(period) if period.isdigit() else 0,
        tasks=_number(directory / "pids.current"),
        tasks_max=_number(directory / "pids.max"),
        io=_io_version_2(directory),
    )


def _io_version_1(directory: Path) -> list[DeviceIo]:
    found: dict[tuple[int, int], dict[str, int]] = {}
    for file, unit in (("io_service_bytes", "bytes"), ("io_serviced", "count")):
        text = _text(directory / f"blkio.throttle.{file}_recursive") or _text(directory / f"blkio.throttle.{file}")
        for line in text.splitlines():
            words = line.split()  # "8:0 Read 4096"; the sum at the end has no device
            if len(words) == 3:
                found.setdefault(_device(words[0]), {})[f"{words[1]} {unit}"] = int(words[2])
    return [
        DeviceIo(
            device,
            said.get("Read bytes", 0),
            said.get("Read count", 0),
            said.get("Write bytes", 0),
            said.get("Write count", 0),
        )
        for device, said in sorted(found.items())
    ]


def _io_version_2(directory: Path) -> list[DeviceIo]:
    found = []
    for line in _text(directory / "io.stat").splitlines():
        device, *words = line.split()  # "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …"
        said = {name: int(value) for name, _, value in (word.partition("=") for word in words) if value.isdigit()}
        if said:
            values = (said.get(name, 0) for name in ("rbytes", "rios", "wbytes", "wios"))
            found.append(DeviceIo(_device(device), *values))
    return sorted(found)


def _device(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(":")
    return int(major), int(minor)


def _with_processes(detail: Detail, directory: Path, proc: Path) -> Detail:
    pids = _text(directory / "cgroup.procs").split()
    descriptors = sockets = 0
    for pid in pids:
        for target in _open_files(proc / pid / "fd"):
            descriptors += 1
            sockets += target.startswith("socket:")
    files_limit = _files_limit(proc / pids[0] / "limits") if pids else 0
    return replace(
        detail, processes=len(pids), file_descriptors=descriptors, sockets=sockets, files_soft_limit=files_limit
    )


def _open_files(folder: Path) -> Iterator[str]:
    try:
        names = os.listdir(folder)
    except OSError:  # it ended while we looked
        return
    for name in names:
        try:
            yield os.readlink(folder / name)
        except OSError:
            continue


def _files_limit(path: Path) -> int:
    for line in _text(path).splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return int(soft) if soft.isdigit() else -1
    return 0


def device_names(proc: Path = PROC) -> dict[tuple[int, int], str]:
    """Block devices by their numbers: {(8, 0): "/dev/sda"}."""
    found = {}
    for line in _text(proc / "partitions").splitlines()[2:]:
        major, minor, _, name = line.split()
        found[int(major), int(minor)] = f"/dev/{name}"
    return found


def _numbers(path: Path) -> dict[str, int]:
    pairs = (line.split(" ", 1) for line in _text(path).splitlines() if " " in line)
    return {name: int(value) for name, value in pairs if value.isdigit()}


def _number(path: Path) -> int:
    try:
        return int(_text(path))
    except ValueError:  # "max", or nothing
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
