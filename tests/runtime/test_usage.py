"""What the kernel says of processes and the machine, in both versions of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kone.runtime.usage import (
    Group,
    Interface,
    Pressure,
    Stalls,
    Usage,
    boot_time,
    group_of,
    interfaces,
    memory,
    node_usage,
    processes,
)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def version_1(root: Path, path: str) -> None:
    put(root / "cpuacct" / path / "cpuacct.usage", "5000\n")
    put(root / "memory" / path / "memory.usage_in_bytes", "1000\n")
    stat = (
        "inactive_file 1\ntotal_inactive_file 300\ntotal_rss 400\ntotal_swap 7\ntotal_pgfault 9\ntotal_pgmajfault 2\n"
    )
    put(root / "memory" / path / "memory.stat", stat)
    put(root / "pids" / path / "pids.current", "3\n")
    put(root / "memory" / path / "memory.limit_in_bytes", "4096\n")


def version_2(root: Path, path: str) -> None:
    put(root / path / "cpu.stat", "usage_usec 5\nuser_usec 4\n")
    put(root / path / "memory.current", "1000\n")
    put(root / path / "memory.stat", "anon 400\ninactive_file 300\npgfault 9\npgmajfault 2\n")
    put(root / path / "memory.swap.current", "7\n")
    put(root / path / "pids.current", "3\n")
    put(root / path / "memory.max", "4096\n")


EXPECTED = Usage(5000, 1000, 700, 400, 7, 9, 2, 3, 4096)


def test_version_1_has_a_tree_a_controller(tmp_path: Path) -> None:
    version_1(tmp_path / "cg", "kubepods/podu/c1")
    lines = (f"{controllers}:/kubepods/podu/c1\n" for controllers in ("4:memory", "2:cpu,cpuacct", "3:pids"))
    put(tmp_path / "proc/7/cgroup", "".join(lines) + "0::/\n")
    group = group_of(7, root=tmp_path / "cg", proc=tmp_path / "proc")
    assert group.read() == EXPECTED
    assert group.path.name == "c1"
    assert group.parent.path.name == "podu"


def test_version_2_has_one_tree(tmp_path: Path) -> None:
    version_2(tmp_path / "cg", "kubepods.slice/podu.slice/docker-c1.scope")
    put(tmp_path / "proc/7/cgroup", "0::/kubepods.slice/podu.slice/docker-c1.scope\n")
    group = group_of(7, root=tmp_path / "cg", proc=tmp_path / "proc")
    assert group.read() == EXPECTED
    assert group.parent == Group({"": tmp_path / "cg/kubepods.slice/podu.slice"}, "/kubepods.slice/podu.slice")


def test_what_a_kernel_does_not_count_is_nothing(tmp_path: Path) -> None:
    version_2(tmp_path, "c")
    for name in ("memory.swap.current", "pids.current"):
        (tmp_path / "c" / name).unlink()
    found = Group({"": tmp_path / "c"}).read()
    assert (found.swap_bytes, found.processes) == (0, 0)


def test_pressure_is_what_a_group_of_version_2_waited_for(tmp_path: Path) -> None:
    waits = "some avg10=1.50 avg60=0.25 avg300=0.05 total=1234\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=12\n"
    put(tmp_path / "c/cpu.pressure", waits)
    found = Group({"": tmp_path / "c"}).pressures()
    assert found == {"cpu": Pressure(some=Stalls(1234, 1.5, 0.25, 0.05), full=Stalls(12, 0.5, 0.0, 0.0))}
    assert Group({"memory": tmp_path / "c"}).pressures() == {}


def test_a_process_that_is_gone() -> None:
    with pytest.raises(OSError):
        group_of(2**22 + 1)


def test_uses_add_up() -> None:
    assert Usage(1, 2, 3, 4, 5, 6, 7, 8) + Usage(1, 1, 1, 1, 1, 1, 1, 1) == Usage(2, 3, 4, 5, 6, 7, 8, 9)


MEMINFO = """MemTotal:        1000 kB
MemFree:          200 kB
MemAvailable:     900 kB
Inactive(file):   100 kB
AnonPages:        300 kB
SwapTotal:         50 kB
SwapFree:          20 kB
"""


def test_available_memory_is_what_the_kubelet_calls_so(tmp_path: Path) -> None:
    put(tmp_path / "meminfo", MEMINFO)
    found = memory(tmp_path)
    assert (found.available, found.working_set) == (300 * 1024, 700 * 1024)


def test_the_machine(tmp_path: Path) -> None:
    put(tmp_path / "meminfo", MEMINFO)
    put(tmp_path / "stat", "cpu  100 10 50 9999 5 1 2 3 0 0\ncpu0 1\nbtime 1700000000\n")
    put(tmp_path / "vmstat", "pgfault 12\npgmajfault 3\n")
    put(tmp_path / "loadavg", "0.1 0.2 0.3 2/345 6789\n")
    put(tmp_path / "sys/kernel/pid_max", "32768\n")
    put(tmp_path / "sys/kernel/threads-max", "1000\n")
    ticks = 100 + 10 + 50 + 1 + 2 + 3
    second = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert node_usage(tmp_path) == Usage(ticks * second, 800 * 1024, 700 * 1024, 300 * 1024, 30 * 1024, 12, 3, 345)
    assert processes(tmp_path) == (345, 1000)
    assert boot_time(tmp_path) == 1_700_000_000


def test_interfaces_without_loopback(tmp_path: Path) -> None:
    table = """Inter-|   Receive  |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0
  eth0: 100 5 2 0 0 0 0 0 200 6 3 0 0 0 0 0
"""
    put(tmp_path / "7/net/dev", table)
    assert interfaces(7, tmp_path) == [Interface("eth0", 100, 2, 200, 3, rx_packets=5, tx_packets=6)]


def test_this_very_machine_can_be_read() -> None:
    assert node_usage().cpu_ns > 0
    assert group_of(os.getpid()).directories
