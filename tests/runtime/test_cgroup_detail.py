"""What a control group tells beyond its use, in both versions."""

from __future__ import annotations

import os
from pathlib import Path

from kone.runtime.cgroup_detail import DeviceIo, device_names, read
from kone.runtime.usage import Group, Pressure, Stalls


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def processes(proc: Path) -> None:
    (proc / "7/fd").mkdir(parents=True)
    for number, target in enumerate(("/dev/null", "socket:[1]", "socket:[2]")):
        os.symlink(target, proc / f"7/fd/{number}")
    put(proc / "7/limits", "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024    4096    files\n")


def test_version_1(tmp_path: Path) -> None:
    cg, proc = tmp_path / "cg", tmp_path / "proc"
    processes(proc)
    put(cg / "memory/cgroup.procs", "7\n")
    stat = "pgfault 3\npgmajfault 1\ntotal_pgfault 5\ntotal_pgmajfault 2\ntotal_cache 100\ntotal_mapped_file 40\n"
    put(cg / "memory/memory.stat", stat + "total_active_file 6\ntotal_inactive_file 7\ntotal_dirty 8\n")
    put(cg / "memory/memory.max_usage_in_bytes", "900\n")
    put(cg / "memory/memory.limit_in_bytes", "4096\n")
    put(cg / "memory/memory.memsw.limit_in_bytes", "9223372036854771712\n")
    put(cg / "memory/memory.failcnt", "4\n")
    put(cg / "memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    put(cg / "cpu/cpu.stat", "nr_periods 10\nnr_throttled 3\nthrottled_time 500\n")
    put(cg / "cpu/cpu.shares", "102\n")
    put(cg / "cpu/cpu.cfs_quota_us", "50000\n")
    put(cg / "cpu/cpu.cfs_period_us", "100000\n")
    put(cg / "cpu/cpuacct.stat", "user 3\nsystem 2\n")
    put(cg / "pids/pids.current", "5\n")
    put(cg / "pids/pids.max", "max\n")
    io = "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n"
    put(cg / "blkio/blkio.throttle.io_service_bytes_recursive", io)
    put(cg / "blkio/blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\n")
    where = {"memory": "memory", "cpu": "cpu", "cpuacct": "cpu", "pids": "pids", "blkio": "blkio"}
    found = read(Group({name: cg / place for name, place in where.items()}), proc=proc)
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert (found.cpu_user_ns, found.cpu_system_ns) == (3 * tick_ns, 2 * tick_ns)
    assert (found.cfs_periods, found.throttled_periods, found.throttled_ns) == (10, 3, 500)
    assert (found.cache_bytes, found.mapped_bytes, found.max_bytes, found.dirty_bytes) == (100, 40, 900, 8)
    assert (found.memory_limit, found.swap_limit, found.limit_hits, found.oom_kills) == (4096, 0, 4, 2)
    assert found.faults["pgfault", "container"] == 3
    assert found.faults["pgmajfault", "hierarchy"] == 2
    assert (found.cpu_shares, found.cpu_quota_us, found.cpu_period_us) == (102, 50000, 100000)
    assert (found.tasks, found.tasks_max) == (5, 0)
    assert found.io == [DeviceIo((8, 0), 4096, 1, 8192, 2)]
    assert (found.processes, found.file_descriptors, found.sockets, found.files_soft_limit) == (1, 3, 2, 1024)
    assert found.pressures == {}


def test_version_2(tmp_path: Path) -> None:
    cg, proc = tmp_path / "cg", tmp_path / "proc"
    processes(proc)
    put(cg / "cgroup.procs", "7\n")
    put(cg / "memory.stat", "file 100\nfile_mapped 40\nkernel 9\npgfault 3\npgmajfault 1\n")
    put(cg / "memory.events", "low 0\nhigh 4\nmax 5\noom 1\noom_kill 1\n")
    put(cg / "memory.max", "4096\n")
    put(cg / "memory.swap.max", "max\n")
    put(cg / "memory.peak", "900\n")
    put(cg / "cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\nthrottled_usec 7\n")
    put(cg / "cpu.max", "max 100000\n")
    put(cg / "cpu.weight", "1\n")
    put(cg / "pids.current", "5\n")
    put(cg / "io.stat", "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n")
    waits = "some avg10=1.50 avg60=0.20 avg300=0.10 total=30\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=20\n"
    put(cg / "cpu.pressure", waits)
    found = read(Group({"": cg}), proc=proc)
    assert (found.cpu_user_ns, found.cpu_system_ns, found.throttled_ns) == (3000, 2000, 7000)
    assert (found.cache_bytes, found.mapped_bytes, found.kernel_bytes, found.max_bytes) == (100, 40, 9, 900)
    assert (found.memory_limit, found.swap_limit) == (4096, 0)
    assert (found.high_events, found.max_events, found.oom_kills) == (4, 5, 1)
    assert (found.cpu_shares, found.cpu_quota_us, found.cpu_period_us) == (2, 0, 100000)
    assert found.io == [DeviceIo((8, 0), 4096, 1, 8192, 2)]
    assert found.pressures == {"cpu": Pressure(some=Stalls(30, 1.5, 0.2, 0.1), full=Stalls(20, 0.0, 0.0, 0.0))}


def test_block_devices_have_names(tmp_path: Path) -> None:
    put(tmp_path / "partitions", "major minor  #blocks  name\n\n   8        0  100 sda\n 259        1  50 nvme0n1\n")
    assert device_names(tmp_path) == {(8, 0): "/dev/sda", (259, 1): "/dev/nvme0n1"}
