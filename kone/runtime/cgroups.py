"""The kubepods hierarchy of control groups: one below the root for each QoS class, one below that for each pod.

A pod's own group bounds what its containers use together and is where eviction and tools look for a pod by its UID.
Both layouts are known: version 1 (one tree a controller) and version 2 (one tree), and Docker's two drivers: cgroupfs,
where a group is a path, and systemd, where it is a slice that Docker makes by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from kone.apimachinery.objects import Object, uid_of
from kone.apimachinery.pod_resources import Amounts, pod_limits, pod_requests, qos_class

log = logging.getLogger(__name__)

ROOT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("cpu", "memory", "pids", "cpuset", "hugetlb", "blkio", "devices", "freezer", "cpuacct")
PERIOD_US = 100_000  # cpu.cfs_period_us, the kernel's default
SHARES_MIN, SHARES_MAX = 2, 262_144
REMOVE_TRIES = 20


def shares_of(milli_cpu: int) -> int:
    """cpu.shares for a request in thousandths of a core: 1000 -> 1024, nothing -> 2 (the kernel's least)."""
    return min(max(milli_cpu * 1024 // 1000, SHARES_MIN), SHARES_MAX)


def quota_of(milli_cpu: int) -> int:
    """cpu.cfs_quota_us in a period of 100 ms: 500 -> 50000; at least 1 ms, which is the kernel's least."""
    return max(milli_cpu * PERIOD_US // 1000, 1000)


def weight_of(shares: int) -> int:
    """cpu.weight (1 to 10000) of cpu.shares (2 to 262144), as runc converts them: 1024 -> 39."""
    return 1 + (shares - 2) * 9999 // 262_142


def settings_v1(requests: Amounts, limits: Amounts) -> Mapping[tuple[str, str], str]:
    """(controller, file) -> content, of a pod's group."""
    found = {("cpu", "cpu.shares"): str(shares_of(requests.get("cpu", 0)))}
    if "cpu" in limits:
        found["cpu", "cpu.cfs_period_us"] = str(PERIOD_US)
        found["cpu", "cpu.cfs_quota_us"] = str(quota_of(limits["cpu"]))
    if "memory" in limits:
        found["memory", "memory.limit_in_bytes"] = str(limits["memory"])
    return found


def settings_v2(requests: Amounts, limits: Amounts) -> Mapping[str, str]:
    """file -> content, of a pod's group."""
    found = {"cpu.weight": str(weight_of(shares_of(requests.get("cpu", 0))))}
    if "cpu" in limits:
        found["cpu.max"] = f"{quota_of(limits['cpu'])} {PERIOD_US}"
    if "memory" in limits:
        found["memory.max"] = str(limits["memory"])
    return found


class Cgroups:
    """The CgroupManager of parts.py. `version` and `driver` are what Docker says of itself."""

    def __init__(self, *, version: int, driver: str, instance: str = "", root: Path = ROOT) -> None:
        self._root = root
        self._version, self._driver = version, driver
        self._top = _top(instance)
        self._usable = False

    async def start(self) -> None:
        if self._driver == "systemd":
            return  # Docker asks systemd for each slice as its containers need it
        try:
            for folder in self._folders(self._top):
                folder.mkdir(exist_ok=True)
                self._delegate(folder)
            for name in ("burstable", "besteffort"):
                for folder in self._folders(f"{self._top}/{name}"):
                    folder.mkdir(exist_ok=True)
                    self._delegate(folder)
        except OSError as error:
            log.warning("pods have no control groups of their own on this host: %s: %s", error.filename, error.strerror)
            return
        self._usable = True

    async def ensure(self, pod: Object) -> str:
        if self._driver == "systemd":
            return self._slice(pod)
        if not self._usable:
            return ""
        path = self._path(pod)
        requests, limits = pod_requests(pod), pod_limits(pod)
        for folder in self._folders(path):
            folder.mkdir(exist_ok=True)
            self._delegate(folder)
        if self._version == 1:
            for (controller, file), content in settings_v1(requests, limits).items():
                _write(self._root / controller / path / file, content)
        else:
            for file, content in settings_v2(requests, limits).items():
                _write(self._root / path / file, content)
        return f"/{path}"

    async def remove(self, pod_uid: str) -> None:
        for quality in ("", "burstable/", "besteffort/"):
            for folder in self._folders(f"{self._top}/{quality}pod{pod_uid}"):
                await _remove(folder)

    def _path(self, pod: Object) -> str:
        quality = qos_class(pod).lower()
        middle = "" if quality == "guaranteed" else f"{quality}/"
        return f"{self._top}/{middle}pod{uid_of(pod)}"

    def _slice(self, pod: Object) -> str:
        """A dash in a slice's name means nesting, so those of the UID become underscores (upstream does the same)."""
        quality = qos_class(pod).lower()
        middle = "" if quality == "guaranteed" else f"-{quality}"
        return f"{self._top}{middle}-pod{uid_of(pod).replace('-', '_')}.slice"

    def _folders(self, path: str) -> list[Path]:
        if self._version == 1:
            trees = {
                os.path.realpath(self._root / c): self._root / c for c in V1_CONTROLLERS if (self._root / c).is_dir()
            }
            return [tree / path for tree in trees.values()]
        return [self._root / path]

    def _delegate(self, folder: Path) -> None:
        """Version 2: a group's controllers must be switched on in its parent; version 1: cpuset starts out empty."""
        if self._version == 2:
            available = (folder.parent / "cgroup.controllers").read_text().split()
            wanted = " ".join(f"+{c}" for c in available if c in ("cpu", "memory", "pids", "cpuset", "io", "hugetlb"))
            if wanted:
                _write(folder.parent / "cgroup.subtree_control", wanted)
        elif (cpus := folder / "cpuset.cpus").exists():
            for file in (cpus, folder / "cpuset.mems"):
                if not file.read_text().strip():
                    _write(file, (folder.parent / file.name).read_text().strip())


def _top(instance: str) -> str:
    return f"kubepods-{instance}" if instance else "kubepods"


async def remove_hierarchy(instance: str = "", root: Path = ROOT) -> None:
    """Remove all control groups of an instance, whichever version the host has; its pods must be gone."""
    tops = {os.path.realpath(top) for top in (root / _top(instance), *root.glob(f"*/{_top(instance)}")) if top.is_dir()}
    for top in tops:
        for folder in sorted(Path(top).glob("**/"), key=lambda p: len(p.parts), reverse=True):
            await _remove(folder)


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content)
    except OSError as error:
        log.warning("the kernel did not take %s for %s: %s", content, path, error.strerror)


async def _remove(folder: Path) -> None:
    """rmdir; the kernel refuses for a moment after the last process has gone."""
    for attempt in range(REMOVE_TRIES):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if attempt == REMOVE_TRIES - 1:
                log.warning("control group %s stays: %s", folder, error.strerror)
            await asyncio.sleep(0.05)
        else:
            return
