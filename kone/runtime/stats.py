"""What the node and its pods use now: the one look at it that /stats/summary, the metrics and eviction share.

CPU, memory and network come from the kernel at the moment of the question; disk use is counted at most once a minute,
and only for those who ask for it. The JSON is the kubelet's stats API (v1alpha1).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kone.aio.clock import Clock
from kone.apimachinery.objects import Object, dig, name_of, namespace_of, uid_of
from kone.apimachinery.timestamps import format_time
from kone.runtime import usage
from kone.runtime.disk_usage import MAX_AGE_S, DiskUsage, DiskUsages, FileSystem, file_system, writable_layer
from kone.runtime.parts import PodSource
from kone.runtime.runtime import ContainerState, ContainerStatus, Runtime
from kone.runtime.usage import Interface, Pressure, Stalls, Usage
from kone.runtime.volume_stats import ClaimedUse, VolumeStats

EMPTY_DIRS = "kubernetes.io~empty-dir"
RATE_MIN_S = 1.0  # a rate of CPU use is taken over at least this long


@dataclass(frozen=True, slots=True)
class ContainerUse:
    """A running container. `layer` is what it wrote into its own file system, `log` what it printed."""

    status: ContainerStatus
    usage: Usage
    layer: DiskUsage = field(default_factory=DiskUsage)
    log: DiskUsage = field(default_factory=DiskUsage)
    pressures: Mapping[str, Pressure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PodUse:
    """A pod and what it uses. `usage` is that of its own control group, where it has one, else of its containers.

    `volumes` are the emptyDirs that lie on disk, by name; `claimed` the volumes of claims; `has_group` whether it has a
    control group of its own, and `pressures` how long that one's tasks have waited.
    """

    pod: Object
    containers: Sequence[ContainerUse]
    usage: Usage
    interfaces: Sequence[Interface] = ()
    volumes: Mapping[str, DiskUsage] = field(default_factory=dict)
    claimed: Sequence[ClaimedUse] = ()
    has_group: bool = False
    pressures: Mapping[str, Pressure] = field(default_factory=dict)

    @property
    def ephemeral_storage(self) -> DiskUsage:
        """All of its local disk use."""
        parts = [part for c in self.containers for part in (c.layer, c.log)]
        return sum([*parts, *self.volumes.values()], DiskUsage())


class Stats:
    """Answers what is used. `root` is the kubelet's directory, below which the pods' volumes lie; `volume_stats` counts
    what claims lead to."""

    def __init__(
        self,
        source: PodSource,
        runtime: Runtime,
        clock: Clock,
        node_name: str,
        root: Path,
        volume_stats: VolumeStats | None = None,
    ) -> None:
        self._volume_stats = volume_stats
        self._source, self._runtime, self._clock, self._node_name = source, runtime, clock, node_name
        self._root = root
        self._disk = DiskUsages(clock)
        self._rates: dict[str, _Rate] = {}

    async def pods(self, *, disk: bool = False) -> list[PodUse]:
        """All pods with running containers; with `disk` what they take of it, too."""
        found = []
        for pod in self._source.pods():
            running = [c for c in self._source.containers(uid_of(pod)) if c.state is ContainerState.RUNNING and c.pid]
            if running:
                found.append(await self.pod(pod, running, disk=disk))
                await asyncio.sleep(0)  # a hundred pods are half a hundred milliseconds of small files
        if disk:
            self._disk.forget_all_but(path for use in found for path in self._paths(use))
            if self._volume_stats is not None:
                self._volume_stats.forget_all_but({uid_of(use.pod) for use in found})
        return found

    async def claimed(self) -> list[ClaimedUse]:
        """The volumes behind claims that running pods have, each claim once."""
        found: dict[tuple[str, str], ClaimedUse] = {}
        for pod in self._source.pods():
            if any(c.state is ContainerState.RUNNING for c in self._source.containers(uid_of(pod))):
                for use in await self._claimed_by(pod):
                    found[use.namespace, use.claim] = use
        return list(found.values())

    async def _claimed_by(self, pod: Object) -> list[ClaimedUse]:
        return [] if self._volume_stats is None else await self._volume_stats.of(pod)

    async def pod(
        self, pod: Object, running: Iterable[ContainerStatus], *, disk: bool, max_age_s: float = MAX_AGE_S
    ) -> PodUse:
        """One pod; `running` are its running containers, `max_age_s` is how old counts of its disk use may be."""
        containers: list[ContainerUse] = []
        own: Usage | None = None
        pressures: Mapping[str, Pressure] = {}
        interfaces: Sequence[Interface] = ()
        for status in running:
            try:
                group = usage.group_of(status.pid)
                used, waits = group.read(), group.pressures()
                if own is None and uid_of(pod).replace("-", "_") in group.parent.path.name.replace("-", "_"):
                    own, pressures = group.parent.read(), group.parent.pressures()
                if not interfaces and not dig(pod, "spec", "hostNetwork", default=False):
                    interfaces = usage.interfaces(status.pid)
            except (OSError, KeyError, ValueError):
                continue  # it ended while we looked
            use = await self._container(status, used, disk=disk, max_age_s=max_age_s)
            containers.append(replace(use, pressures=waits))
        volumes = {}
        for name, path in self._empty_dirs(pod).items() if disk else ():
            volumes[name] = await self._disk.of(path, max_age_s=max_age_s)
        claimed = await self._claimed_by(pod) if disk else []
        total = own if own is not None else sum((c.usage for c in containers), Usage())
        return PodUse(pod, containers, total, interfaces, volumes, claimed, own is not None, pressures)

    async def _container(self, status: ContainerStatus, used: Usage, *, disk: bool, max_age_s: float) -> ContainerUse:
        if not disk:
            return ContainerUse(status, used)
        layer = log = DiskUsage()
        if path := writable_layer(status.pid):
            layer = await self._disk.of(path, max_age_s=max_age_s)
        for path in _log_files(status):
            log += await self._disk.of(path, max_age_s=max_age_s)
        return ContainerUse(status, used, layer, log)

    def _empty_dirs(self, pod: Object) -> dict[str, str]:
        folder = self._root / "pods" / uid_of(pod) / "volumes" / EMPTY_DIRS
        return {
            volume["name"]: str(folder / volume["name"])
            for volume in pod["spec"].get("volumes") or ()
            if volume.get("emptyDir") is not None and not volume["emptyDir"].get("medium")
        }

    def _paths(self, use: PodUse) -> Iterable[str]:
        yield from self._empty_dirs(use.pod).values()
        for container in use.containers:
            yield from filter(None, (writable_layer(container.status.pid), *_log_files(container.status)))

    # ---- the summary API

    async def summary(self, *, only_cpu_and_memory: bool = False) -> Object:
        pods = await self.pods(disk=not only_cpu_and_memory)
        now = self._clock.now()
        node = self._node(now, pods, (await self._runtime.status()).pid)
        if not only_cpu_and_memory:
            node |= await self._node_disks(now)
        disk = None if only_cpu_and_memory else file_system(self._root)
        answer = {"node": node, "pods": [self._pod(use, now, disk) for use in pods]}
        alive = {container.status.id for use in pods for container in use.containers} | {uid_of(p.pod) for p in pods}
        alive |= {"", "kubelet", "runtime", "pods"}
        self._rates = {key: rate for key, rate in self._rates.items() if key in alive}
        return answer

    def _node(self, now: float, pods: Sequence[PodUse], runtime_pid: int) -> Object:
        used, memory = usage.node_usage(), usage.memory()
        return {
            "nodeName": self._node_name,
            "systemContainers": self._system_containers(now, pods, runtime_pid, memory),
            "startTime": format_time(usage.boot_time()),
            **self._use("", used, now, usage.node_pressures(), available=memory.available),
            "swap": {
                "time": format_time(now),
                "swapAvailableBytes": memory.swap_free,
                "swapUsageBytes": used.swap_bytes,
            },
        }

    def _system_containers(
        self, now: float, pods: Sequence[PodUse], runtime_pid: int, memory: usage.Memory
    ) -> list[Object]:
        """What the node itself runs: kone in the kubelet's place, dockerd and what it started as the runtime; and all
        pods together."""
        found: list[Object] = []
        for name, pids in (("kubelet", [os.getpid()]), ("runtime", usage.family(runtime_pid) if runtime_pid else [])):
            used, started = Usage(), 0.0
            for pid in pids:
                try:
                    used += usage.process_usage(pid)
                    started = started or usage.process_started(pid)
                except OSError:
                    continue  # it ended while we looked
            if pids:
                found.append({"name": name, "startTime": format_time(started), **self._use(name, used, now)})
        together = sum((use.usage for use in pods), Usage())
        available = max(0, memory.total - together.working_set_bytes)
        whole = self._use("pods", together, now, available=available)
        return [*found, {"name": "pods", "startTime": format_time(usage.boot_time()), **whole}]

    async def _node_disks(self, now: float) -> Object:
        time = format_time(now)
        running, most = usage.processes()
        own = file_system(self._root)
        image_fs = _file_system(await self.image_fs(), now)
        return {
            "network": _network(usage.interfaces(), now, default="eth0"),
            "fs": _file_system(own, now),
            "runtime": {"imageFs": image_fs, "containerFs": image_fs},
            "rlimit": {"time": time, "maxpid": most, "curproc": running},
        }

    async def image_fs(self) -> FileSystem:
        """Where the runtime keeps images and writable layers. Raises OSError."""
        try:
            return file_system((await self._runtime.status()).root_dir)
        except OSError:
            return file_system(self._root)

    def _pod(self, use: PodUse, now: float, disk: FileSystem | None) -> Object:
        """With `disk`, the file system of the pods' local storage, everything; without it CPU and memory."""
        pod = use.pod
        answer: Object = {
            "podRef": {"name": name_of(pod), "namespace": namespace_of(pod), "uid": uid_of(pod)},
            "startTime": dig(pod, "status", "startTime") or format_time(now),
            "containers": [self._container_stats(container, now, disk) for container in use.containers],
            **self._use(uid_of(pod), use.usage, now, use.pressures),
        }
        if disk is not None:
            if use.interfaces:
                answer["network"] = _network(use.interfaces, now)
            own = [{**_taken(taken, disk, now), "name": name} for name, taken in use.volumes.items()]
            answer["volume"] = [*own, *(_claimed_stats(claimed, now) for claimed in use.claimed)]
            answer["ephemeral-storage"] = _taken(use.ephemeral_storage, disk, now)
            answer["process_stats"] = {"process_count": use.usage.processes}
        return answer

    def _container_stats(self, use: ContainerUse, now: float, disk: FileSystem | None) -> Object:
        answer: Object = {
            "name": use.status.name,
            "startTime": format_time(use.status.started_at),
            **self._use(use.status.id, use.usage, now, use.pressures),
        }
        if disk is not None:
            answer["rootfs"] = _taken(use.layer, disk, now)
            answer["logs"] = _taken(use.log, disk, now)
        return answer

    def _use(
        self,
        key: str,
        used: Usage,
        now: float,
        pressures: Mapping[str, Pressure] | None = None,
        *,
        available: int | None = None,
    ) -> Object:
        """CPU, memory, swap and, where the kernel counts it, pressure. `available` memory is what is left of a limit
        where it is not given."""
        time = format_time(now)
        if available is None and used.limit_bytes:
            available = max(0, used.limit_bytes - used.working_set_bytes)
        cpu: Object = {"time": time, "usageCoreNanoSeconds": used.cpu_ns}
        if (rate := self._rate(key, used.cpu_ns)) is not None:
            cpu["usageNanoCores"] = rate
        memory: Object = {"time": time}
        if available is not None:
            memory["availableBytes"] = available
        memory |= {
            "usageBytes": used.memory_bytes,
            "workingSetBytes": used.working_set_bytes,
            "rssBytes": used.rss_bytes,
            "pageFaults": used.page_faults,
            "majorPageFaults": used.major_page_faults,
        }
        swap: Object = {"time": time, "swapUsageBytes": used.swap_bytes}
        if used.swap_limit_bytes:
            swap["swapAvailableBytes"] = max(0, used.swap_limit_bytes - used.swap_bytes)
        answer: Object = {"cpu": cpu, "memory": memory, "swap": swap}
        if pressures and "io" in pressures:
            answer["io"] = {"time": time}
        for resource, pressure in (pressures or {}).items():
            answer[resource]["psi"] = {"full": _stalls(pressure.full), "some": _stalls(pressure.some)}
        return answer

    def _rate(self, key: str, cpu_ns: int) -> int | None:
        """Nanoseconds of CPU a second, since the last question; None for the first."""
        now = self._clock.monotonic()
        known = self._rates.get(key)
        if known is None or cpu_ns < known.cpu_ns:
            self._rates[key] = _Rate(now, cpu_ns, None)
            return None
        if now - known.at < RATE_MIN_S:
            return known.rate
        rate = int((cpu_ns - known.cpu_ns) / (now - known.at))
        self._rates[key] = _Rate(now, cpu_ns, rate)
        return rate


def _claimed_stats(use: ClaimedUse, now: float) -> Object:
    """VolumeStats of the summary API."""
    counted = {
        "availableBytes": use.available_bytes,
        "capacityBytes": use.capacity_bytes,
        "usedBytes": use.used_bytes,
        "inodesFree": use.inodes_free,
        "inodes": use.inodes,
        "inodesUsed": use.inodes_used,
    }
    return {
        "time": format_time(now),
        **{key: value for key, value in counted.items() if value is not None},
        "name": use.volume,
        "pvcRef": {"name": use.claim, "namespace": use.namespace},
    }


@dataclass(frozen=True, slots=True)
class _Rate:
    at: float
    cpu_ns: int
    rate: int | None


def _stalls(stalls: Stalls) -> Object:
    """PSIData; its type promises nanoseconds, but what upstream's kubelet answers are the kernel's microseconds."""
    return {"total": stalls.total_us, "avg10": stalls.avg10, "avg60": stalls.avg60, "avg300": stalls.avg300}


def _log_files(status: ContainerStatus) -> list[str]:
    """The runtime's file and what was rotated away from it: "x.log", "x.log.1", ..."""
    if not status.log_path:
        return []
    path = Path(status.log_path)
    return sorted(str(found) for found in path.parent.glob(f"{path.name}*"))


def _file_system(found: FileSystem, now: float) -> Object:
    return {
        "time": format_time(now),
        "availableBytes": found.available_bytes,
        "capacityBytes": found.capacity_bytes,
        "usedBytes": found.used_bytes,
        "inodesFree": found.inodes_free,
        "inodes": found.inodes,
        "inodesUsed": found.inodes_used,
    }


def _taken(taken: DiskUsage, of: FileSystem, now: float) -> Object:
    return _file_system(of, now) | {"usedBytes": taken.bytes, "inodesUsed": taken.inodes}


def _network(interfaces: Sequence[Interface], now: float, *, default: str = "") -> Object:
    """eth0 is the one that is reported by itself, or the first; with a `default` none but that."""
    interfaces = sorted(interfaces, key=lambda one: one.name != "eth0")
    found = [
        {
            "name": one.name,
            "rxBytes": one.rx_bytes,
            "rxErrors": one.rx_errors,
            "txBytes": one.tx_bytes,
            "txErrors": one.tx_errors,
        }
        for one in interfaces
    ]
    alone = found[0] if found and default in ("", found[0]["name"]) else {"name": ""}
    return {"time": format_time(now), **alone, "interfaces": found}
