"""The kubepods hierarchy of control groups: one below the root for each QoS class, one below that for each pod.

A pod's own group bounds what its containers use together and is where eviction and tools look for a pod by its UID.
Both layouts are known: version 1 (one tree a controller) and version 2 (one tree), and Docker's two drivers: cgroupfs,
where a group is a path, and systemd, where it is a slice that Docker makes by itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from kone.apimachinery.objects import Object, dig, uid_of
from kone.apimachinery.pod_resources import Amounts, amounts, pod_limits, pod_requests, qos_class
from kone.apimachinery.quantity import parse_quantity
from kone.runtime.usage import PROC, group_of

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
    """cpu.weight (1 to 10000) of cpu.shares (2 to 262144): 1024, the default of the one, is 100, that of the other.

    The curve through these three is that of opencontainers/cgroups 0.0.7, which the kubelet of 1.37 uses.
    """
    if shares <= SHARES_MIN:
        return 1
    if shares >= SHARES_MAX:
        return 10_000
    power = math.log2(shares)
    return math.ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))


def shares_of_weight(weight: int) -> int:
    """cpu.shares that have this cpu.weight, as nearly as its rounding tells: the curve of `weight_of` backwards."""
    power = (math.sqrt(125**2 + 4 * 612 * (math.log10(weight) + 7 / 34)) - 125) / 2
    return min(max(int(2**power), SHARES_MIN), SHARES_MAX)


def limits_of(pod: Object) -> Amounts:
    """What the pod's group is limited to: CPU and memory only where each container has a limit, or the pod itself.

    Init containers count, which `pod_limits` leaves out: one without a limit must not be held to that of the others.
    """
    spec = pod["spec"]
    containers = [*spec["containers"], *(spec.get("initContainers") or ())]
    own = amounts(dig(spec, "resources", "limits"))
    found = dict(pod_limits(pod))
    for name in ("cpu", "memory"):
        if not own.get(name) and any(not amounts(dig(c, "resources", "limits")).get(name) for c in containers):
            found.pop(name, None)
    return found


def settings_v1(requests: Amounts, limits: Amounts) -> Mapping[tuple[str, str], str]:
    """(controller, file) -> content, of a pod's group."""
    found = {("cpu", "cpu.shares"): str(shares_of(requests.get("cpu", 0)))}
    if "cpu" in limits:
        found["cpu", "cpu.cfs_period_us"] = str(PERIOD_US)
        found["cpu", "cpu.cfs_quota_us"] = str(quota_of(limits["cpu"]))
    if "memory" in limits:
        found["memory", "memory.limit_in_bytes"] = str(limits["memory"])
    for size, amount in _huge_pages(requests):
        found["hugetlb", f"hugetlb.{size}.limit_in_bytes"] = str(amount)
    return found


def settings_v2(requests: Amounts, limits: Amounts) -> Mapping[str, str]:
    """file -> content, of a pod's group."""
    found = {"cpu.weight": str(weight_of(shares_of(requests.get("cpu", 0))))}
    if "cpu" in limits:
        found["cpu.max"] = f"{quota_of(limits['cpu'])} {PERIOD_US}"
    if "memory" in limits:
        found["memory.max"] = str(limits["memory"])
    for size, amount in _huge_pages(requests):
        found[f"hugetlb.{size}.max"] = str(amount)
    return found


def _huge_pages(requests: Amounts) -> Iterator[tuple[str, int]]:
    """(size as the kernel writes it, bytes) of "hugepages-2Mi" and the like: "2MB"."""
    for name, amount in requests.items():
        if name.startswith("hugepages-"):
            size = parse_quantity(name.removeprefix("hugepages-")).value()
            power = (size.bit_length() - 1) // 10
            yield f"{size >> 10 * power}{('', 'KB', 'MB', 'GB')[power]}", amount


class Cgroups:
    """The CgroupManager of parts.py. `version` and `driver` are what Docker says of itself."""

    def __init__(self, *, version: int, driver: str, instance: str = "", root: Path = ROOT, proc: Path = PROC) -> None:
        self._root, self._proc = root, proc
        self._version, self._driver = version, driver
        self._top = _top(instance)
        self._usable = False

    async def start(self) -> None:
        if self._driver == "systemd":
            return  # Docker asks systemd for each slice as its containers need it
        try:
            for path in (self._top, f"{self._top}/burstable", f"{self._top}/besteffort"):
                for folder in self._folders(path):
                    folder.mkdir(exist_ok=True)
                    self._delegate(folder)
            self._set_shares(f"{self._top}/besteffort", SHARES_MIN)
            self._weigh_burstable()
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
        requests, limits = pod_requests(pod), limits_of(pod)
        for folder in self._folders(path):
            folder.mkdir(exist_ok=True)
            self._delegate(folder)
        if self._version == 1:
            for (controller, file), content in settings_v1(requests, limits).items():
                _write(self._root / controller / path / file, content)
        else:
            for file, content in settings_v2(requests, limits).items():
                _write(self._root / path / file, content)
        if qos_class(pod) == "Burstable":
            self._weigh_burstable()
        return f"/{path}"

    def known(self) -> set[str]:
        """The uids of pods that have a group; under systemd none, which Docker makes and systemd keeps."""
        found: set[str] = set()
        for tree in self._trees() if self._usable else ():
            for quality in ("", "burstable", "besteffort"):
                found |= {path.name.removeprefix("pod") for path in (tree / self._top / quality).glob("pod*")}
        return found

    def kill_as_one(self, pid: int) -> None:
        if self._version != 2:
            return
        try:
            group = group_of(pid, root=self._root, proc=self._proc)
            (group.path / "memory.oom.group").write_text("1")
        except OSError as error:
            log.debug("process %d has no group to be killed with: %s", pid, error)

    async def remove(self, pod_uid: str) -> None:
        if self._driver == "systemd":
            await _stop_slices(self._root, f"*-pod{pod_uid.replace('-', '_')}.slice", self._top)
            return
        for quality in ("", "burstable/", "besteffort/"):
            path = f"{self._top}/{quality}pod{pod_uid}"
            for folder in {os.path.realpath(tree / path) for tree in self._trees() if (tree / path).is_dir()}:
                await _remove(Path(folder))
        if self._usable:
            self._weigh_burstable()

    def _weigh_burstable(self) -> None:
        """Burstable pods have together what each of them asks for, beside the guaranteed ones."""
        path = f"{self._top}/burstable"
        if self._version == 1:
            found = [int(_read(file) or 0) for file in (self._root / "cpu" / path).glob("pod*/cpu.shares")]
        else:
            found = [shares_of_weight(int(_read(file) or 1)) for file in (self._root / path).glob("pod*/cpu.weight")]
        self._set_shares(path, min(max(sum(found), SHARES_MIN), SHARES_MAX))

    def _set_shares(self, path: str, shares: int) -> None:
        if self._version == 1:
            _write(self._root / "cpu" / path / "cpu.shares", str(shares))
        else:
            _write(self._root / path / "cpu.weight", str(weight_of(shares)))

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

    def _trees(self) -> list[Path]:
        """Where a pod's group may be; version 1: in each hierarchy that is mounted, systemd's own too."""
        return [self._root] if self._version == 2 else [tree for tree in self._root.iterdir() if tree.is_dir()]

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
    for quality in ("-burstable", "-besteffort", ""):
        await _stop_slices(root, f"{_top(instance)}{quality}.slice", _top(instance))


async def _stop_slices(root: Path, pattern: str, top: str) -> None:
    """Let systemd remove slices of ours that are empty: it keeps those it made for Docker until it is told."""
    trees = (root, root / "systemd", root / "memory")
    folders = {folder for tree in trees for folder in tree.glob(f"{top.split('-')[0]}.slice/**/{pattern}")}
    folders |= {folder for tree in trees for folder in tree.glob(pattern)}
    names = {
        folder.name
        for folder in folders
        if folder.name.startswith((f"{top}-", f"{top}.")) and not any(child.is_dir() for child in folder.iterdir())
    }
    if not names or shutil.which("systemctl") is None:
        return
    stopping = await asyncio.create_subprocess_exec(
        "systemctl", "stop", *sorted(names), stderr=asyncio.subprocess.DEVNULL
    )
    await stopping.wait()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


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
