"""The parts of the kubelet, as the pod workers see them: volumes, probes, hooks, cgroups, and what the server and
eviction see.

Each is a protocol on one screen, implemented in the module of its name, so that a worker can be tried with fakes and
no part knows another. All are level-based: calling twice is as good as once, and what was done before a crash is
found, not remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from kone.apimachinery.objects import Object
from kone.runtime.runtime import ContainerStatus

SyncPod = Callable[[str], None]
"""Asks for a sync of the pod with that UID, now. Cheap, synchronous, may be called from anywhere, coalesces."""


class VolumeError(Exception):
    """A volume cannot be mounted (yet). `str(error)` is the text of the FailedMount event, in upstream's words, e.g.
    `MountVolume.SetUp failed for volume "v" : configmap "nope" not found`. The worker records it and tries again."""

    def __init__(self, text: str, reason: str = "FailedMount") -> None:
        super().__init__(text)
        self.reason = reason
        """The event's: "FailedMapVolume" for block devices."""


class VolumesWaiting(VolumeError):
    """A volume waits for others: for the controller to attach it. No event is worth it yet; `str(error)` is the
    volume's name."""


class VolumeLimitReached(VolumeError):
    """The node takes no more volumes of a driver: the pod is to be rejected, with this text."""


class SubPathFailed(VolumeError):
    """A subPath cannot be had. `step` is what failed, for users; the text may tell of the host, and is for the log."""

    def __init__(self, step: Literal["create subPath directory", "prepare subPath"], text: str) -> None:
        super().__init__(text)
        self.step = step


@dataclass(frozen=True, slots=True)
class MountedVolume:
    """Where a volume of the pod lies on the host: a directory, or for some hostPath types a file, device or socket."""

    host_path: str
    read_only: bool = False
    is_device: bool = False  # of volumeMode Block: for volumeDevices, not to be mounted


class VolumeManager(Protocol):
    """volumes.py. Mounts what pods name and keeps configMap, secret, projected and downwardAPI volumes up to date by
    itself.
    """

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Stop updating. Leaves everything mounted."""

    async def mount(self, pod: Object) -> Mapping[str, MountedVolume]:
        """Make every volume of spec.volumes, by name. Idempotent: a restarted kubelet calls it for running pods. Also
        the way a changed pod (labels, annotations: downwardAPI) gets in. Applies fsGroup. Raises VolumeError."""

    async def subpath(self, pod: Object, volume: MountedVolume, sub_path: str) -> str:
        """The host path of `sub_path` (already expanded) inside a volume, made as a directory where nothing is there;
        never outside the volume, whatever symbolic links say. Raises VolumeError for a path that may not be, in the
        words for users, and SubPathFailed."""

    async def unmount(self, pod_uid: str) -> None:
        """Unmount and remove all of a pod's volumes, leaving hostPath alone. Idempotent; knows only the UID after a
        restart. Raises VolumeError where a volume's driver is away or says no: try again.
        """

    def mounted(self) -> set[str]:
        """UIDs of pods that have volumes on disk."""


@dataclass(frozen=True, slots=True)
class ProbeResults:
    """What the probes say of one container. `failed` names the probe because of which it must be restarted."""

    started: bool  # startup probe passed, or none
    ready: bool  # readiness probe passes, or none (only meaningful once started)
    failed: Literal["", "liveness", "startup"] = ""


class ProbeManager(Protocol):
    """probes.py. Runs the probes of running containers; a change of result calls the SyncPod given to its constructor.

    Emits the Unhealthy and ProbeWarning events itself. Probes belong to a container id: a new id starts from nothing,
    except that after a restart of kone a container whose id the pod's status already names starts from the ready and
    started it says there.
    """

    def sync(self, pod: Object, running: Mapping[str, ContainerStatus], pod_ip: str) -> None:
        """These containers (by name, sidecars and init containers too) run now: probe them and no others of this pod.
        A pod that is being deleted keeps its readiness probes and loses liveness and startup probes."""

    def results(self, pod: Object, container: Object, container_id: str) -> ProbeResults:
        """The results for a running container; before the first result of a probe: not started, not ready, not
        failed.
        """

    def remove(self, pod_uid: str) -> None: ...

    async def stop(self) -> None: ...


class HookError(Exception):
    """A lifecycle hook failed; `str(error)` is the message for FailedPostStartHook and FailedPreStopHook."""


class HookRunner(Protocol):
    """lifecycle.py. Runs postStart and preStop handlers: exec, httpGet, sleep."""

    async def run(self, pod: Object, container: Object, container_id: str, handler: Object, pod_ip: str) -> None:
        """Raises HookError. Has no time limit of its own: the caller cancels it when the grace period is over."""


class CgroupManager(Protocol):
    """cgroups.py. The kubepods hierarchy: one cgroup a QoS class, one a pod, with its requests and limits."""

    async def start(self) -> None:
        """Make the top of the hierarchy. Never fails the kubelet: says in the log what the host does not allow."""

    async def ensure(self, pod: Object) -> str:
        """Make the pod's cgroup, set its limits, answer the path to give as cgroup_parent ("" where the host has
        none).
        """

    def known(self) -> set[str]:
        """The uids of pods that have a group."""

    def kill_as_one(self, pid: int) -> None:
        """A container runs as this process: when it is out of memory, all in it is killed (version 2)."""

    async def remove(self, pod_uid: str) -> None:
        """Remove the pod's cgroup once its containers are gone. Idempotent."""


class PodSource(Protocol):
    """What server.py, eviction and node status may ask the kubelet (kubelet.py implements it)."""

    def pods(self) -> list[Object]:
        """The pods of this node with the newest status, also where the API server has not taken it yet."""

    def pod(self, namespace: str, name: str, uid: str = "") -> Object | None: ...

    def containers(self, pod_uid: str) -> list[ContainerStatus]:
        """Every container of the pod known to the runtime, newest attempt first."""

    def container(self, pod_uid: str, name: str, *, previous: bool = False) -> ContainerStatus | None:
        """The container of that name: the newest that was started, or the one before it."""

    def pod_ip(self, pod_uid: str) -> str:
        """Its first IP, "" while it has none."""

    async def evict(
        self,
        pod_uid: str,
        reason: str,
        message: str,
        grace_s: int | None = None,
        *,
        condition: Object | None = None,
    ) -> None:
        """End the pod with phase Failed and this reason and message, and a DisruptionTarget condition where there is
        one; returns when its containers have ended.
        """
