"""What processes use, as the kernel counts it in their control groups and in /proc; read when asked, never polled.

A container's group is found through a process in it, so it does not matter who made the group and where: Docker with
either cgroup driver, version 1 or 2. Reading a container costs five small files, where Docker's own stats call costs
its daemon milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "blkio")  # those of version 1 that are read
NO_LIMIT_BYTES = 1 << 62


@dataclass(frozen=True, slots=True)
class Usage:
    """Use so far (CPU, page faults) and now (memory, processes). Working set is memory that cannot be given back at
    once: all but inactive file pages, as cAdvisor has it. `limit_bytes` is what memory it may have; 0: no limit.
    """

    cpu_ns: int = 0
    memory_bytes: int = 0
    working_set_bytes: int = 0
    rss_bytes: int = 0
    swap_bytes: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    processes: int = 0
    limit_bytes: int = 0
    swap_limit_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_ns + other.cpu_ns,
            self.memory_bytes + other.memory_bytes,
            self.working_set_bytes + other.working_set_bytes,
            self.rss_bytes + other.rss_bytes,
            self.swap_bytes + other.swap_bytes,
            self.page_faults + other.page_faults,
            self.major_page_faults + other.major_page_faults,
            self.processes + other.processes,
        )


@dataclass(frozen=True, slots=True)
class Stalls:
    """How much tasks waited: microseconds in all, and the per cent of the last 10, 60 and 300 seconds."""

    total_us: int = 0
    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0


@dataclass(frozen=True, slots=True)
class Pressure:
    """Pressure stall information of one resource: when some tasks waited for it, and when all did."""

    some: Stalls = Stalls()
    full: Stalls = Stalls()


@dataclass(frozen=True, slots=True)
class Group:
    """One control group: its directory by controller, and its name, the path below the root of memory's. Version 2 has
    the same directory for all, under ""."""

    directories: Mapping[str, Path]
    name: str = ""

    @property
    def path(self) -> Path:
        return self.directories.get("memory") or next(iter(self.directories.values()))

    @property
    def parent(self) -> Group:
        name = self.name.rpartition("/")[0]
        return Group({controller: path.parent for controller, path in self.directories.items()}, name)

    def read(self) -> Usage:
        """Raises OSError where the group is gone."""
        if "" in self.directories:
            return _read_v2(self.directories[""])
        return _read_v1(self.directories)

    def pressures(self) -> Mapping[str, Pressure]:
        """Of "cpu", "memory" and "io"; none in version 1, nor where the kernel does not count them."""
        found: dict[str, Pressure] = {}
        if (directory := self.directories.get("")) is None:
            return found
        for resource in ("cpu", "memory", "io"):
            try:
                found[resource] = _pressure((directory / f"{resource}.pressure").read_text())
            except OSError:
                continue
        return found


def group_of(pid: int, *, root: Path = ROOT, proc: Path = PROC) -> Group:
    """The control group that a process is in. Raises OSError where the process is gone."""
    directories = {}
    unified = None
    name = ""
    for line in (proc / str(pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if controllers else ():
            if controller in CONTROLLERS:
                directories[controller] = root / controller / path.lstrip("/")
            if controller == "memory":
                name = path
        if not controllers:
            unified = path
    if "memory" not in directories and unified is not None:
        return Group({"": root / unified.lstrip("/")}, unified)
    return Group(directories, name)


def root_group(root: Path = ROOT) -> Group:
    """The one that all others are in."""
    if (root / "cgroup.controllers").exists():
        return Group({"": root}, "/")
    return Group({name: root / name for name in CONTROLLERS if (root / name).exists()}, "/")


def _read_v1(directories: Mapping[str, Path]) -> Usage:
    memory = directories["memory"]
    stat = dict(_pairs(memory / "memory.stat"))
    used = int((memory / "memory.usage_in_bytes").read_text())
    return Usage(
        cpu_ns=_number(directories.get("cpuacct"), "cpuacct.usage"),
        memory_bytes=used,
        working_set_bytes=max(0, used - stat.get("total_inactive_file", 0)),
        rss_bytes=stat.get("total_rss", 0),
        swap_bytes=stat.get("total_swap", 0),
        page_faults=stat.get("total_pgfault", 0),
        major_page_faults=stat.get("total_pgmajfault", 0),
        processes=_number(directories.get("pids"), "pids.current"),
        limit_bytes=(limit := limit_of(_number(memory, "memory.limit_in_bytes"))),
        swap_limit_bytes=max(0, limit_of(_number(memory, "memory.memsw.limit_in_bytes")) - limit),
    )


def _read_v2(directory: Path) -> Usage:
    stat = dict(_pairs(directory / "memory.stat"))
    used = int((directory / "memory.current").read_text())
    return Usage(
        cpu_ns=dict(_pairs(directory / "cpu.stat")).get("usage_usec", 0) * 1000,
        memory_bytes=used,
        working_set_bytes=max(0, used - stat.get("inactive_file", 0)),
        rss_bytes=stat.get("anon", 0),
        swap_bytes=_number(directory, "memory.swap.current"),
        page_faults=stat.get("pgfault", 0),
        major_page_faults=stat.get("pgmajfault", 0),
        processes=_number(directory, "pids.current"),
        limit_bytes=limit_of(_number(directory, "memory.max")),
        swap_limit_bytes=limit_of(_number(directory, "memory.swap.max")),
    )


def _pressure(text: str) -> Pressure:
    """Of lines like "some avg10=0.00 avg60=0.12 avg300=0.00 total=12345"."""
    found = {}
    for line in text.splitlines():
        kind, *fields = line.split()
        values = dict(field.split("=", 1) for field in fields)
        averages = (float(values[name]) for name in ("avg10", "avg60", "avg300"))
        found[kind] = Stalls(int(values["total"]), *averages)
    return Pressure(found.get("some", Stalls()), found.get("full", Stalls()))


def limit_of(said: int) -> int:
    """A limit as version 1 has it: what no machine has is no limit, 0."""
    return said if said < NO_LIMIT_BYTES else 0


def _number(directory: Path | None, file: str) -> int:
    """A file that not every kernel has."""
    if directory is None:
        return 0
    try:
        return int((directory / file).read_text())
    except (OSError, ValueError):
        return 0


def _pairs(path: Path) -> Iterator[tuple[str, int]]:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            yield name, int(value)


# ---- the machine


@dataclass(frozen=True, slots=True)
class Memory:
    """/proc/meminfo in bytes. `available` is what pods could still have: free and inactive file pages (the kubelet's
    memory.available, which is not the kernel's MemAvailable).
    """

    total: int
    available: int
    free: int
    anonymous: int
    swap_total: int
    swap_free: int

    @property
    def working_set(self) -> int:
        return self.total - self.available


def memory(proc: Path = PROC) -> Memory:
    found = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) * 1024
    free = found.get("MemFree", 0)
    return Memory(
        total=found.get("MemTotal", 0),
        available=free + found.get("Inactive(file)", 0),
        free=free,
        anonymous=found.get("AnonPages", 0),
        swap_total=found.get("SwapTotal", 0),
        swap_free=found.get("SwapFree", 0),
    )


def node_usage(proc: Path = PROC) -> Usage:
    """All of the machine's use."""
    known = memory(proc)
    ticks = [int(word) for word in (proc / "stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _wait, interrupts, soft, steal = (*ticks, *([0] * 8))[:8]
    faults = dict(_pairs(proc / "vmstat"))
    busy = user + nice + system + interrupts + soft + steal
    return Usage(
        cpu_ns=busy * 1_000_000_000 // os.sysconf("SC_CLK_TCK"),
        memory_bytes=known.total - known.free,
        working_set_bytes=known.working_set,
        rss_bytes=known.anonymous,
        swap_bytes=known.swap_total - known.swap_free,
        page_faults=faults.get("pgfault", 0),
        major_page_faults=faults.get("pgmajfault", 0),
        processes=processes(proc)[0],
    )


def node_pressures(root: Path = ROOT) -> Mapping[str, Pressure]:
    """All of the machine's; see Group.pressures."""
    return Group({"": root}).pressures()


def processes(proc: Path = PROC) -> tuple[int, int]:
    """(how many tasks there are, how many there may be)."""
    running = int((proc / "loadavg").read_text().split()[3].split("/")[1])
    limits = [int((proc / "sys/kernel" / name).read_text()) for name in ("pid_max", "threads-max")]
    return running, min(limits)


def process_usage(pid: int, proc: Path = PROC) -> Usage:
    """One process, in whatever group it is. Raises OSError where it is gone."""
    fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return Usage(
        cpu_ns=(int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK"),
        memory_bytes=resident,
        working_set_bytes=resident,
        rss_bytes=resident,
        page_faults=int(fields[7]),
        major_page_faults=int(fields[9]),
        processes=1,
    )


def process_started(pid: int, proc: Path = PROC) -> float:
    """Unix seconds. Raises OSError where it is gone."""
    fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return boot_time(proc) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def family(pid: int, proc: Path = PROC) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for each in found:
        for children in (proc / str(each) / "task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def boot_time(proc: Path = PROC) -> float:
    """When the machine was started, Unix seconds."""
    return float(dict(_pairs(proc / "stat")).get("btime", 0))


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface and what has passed it."""

    name: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int
    rx_packets: int = 0
    rx_dropped: int = 0
    tx_packets: int = 0
    tx_dropped: int = 0


def interfaces(pid: int | str = "self", proc: Path = PROC) -> list[Interface]:
    """Those of a process' network, without loopback. Raises OSError where the process is gone."""
    found = []
    for line in (proc / str(pid) / "net/dev").read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if name.strip() != "lo":
            count = [int(field) for field in fields]
            found.append(
                Interface(
                    name.strip(), count[0], count[2], count[8], count[10], count[1], count[3], count[9], count[11]
                )
            )
    return found
