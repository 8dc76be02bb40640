"""This node as the API sees it: the Node object, its conditions, what it has to give, and the lease that says it lives.

The lease is renewed every 10 s; the status is written only when it changes, and at least every 5 minutes
(kubelet's nodeStatusReportFrequency), so an idle node hardly writes.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import LEASES, NODES
from kone.apimachinery.objects import Object, dig, find_condition, replace_in
from kone.apimachinery.quantity import Quantity
from kone.apimachinery.timestamps import format_micro_time, format_time
from kone.client.client import Client
from kone.client.events import EventRecorder
from kone.runtime import usage
from kone.runtime.pod_admit import DECLARED_FEATURES
from kone.runtime.runtime import Image, RuntimeStatus

log = logging.getLogger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
LEASE_DURATION_S = 40
LEASE_RENEW_S = 10.0
STATUS_LOOK_S = 10.0
STATUS_REPORT_S = 300.0
IMAGES_LOOK_S = 60.0  # listing images costs the runtime more than all else here
IMAGES_MAX = 50  # nodeStatusMaxImages
IMAGE_NAMES_MAX = 5
RESERVED_MEMORY_BYTES = 100 << 20  # evictionHard's memory.available and nodefs.available are set aside
RESERVED_DISK_SHARE = 10
FIRST_USER_NAMESPACE = 0xEFFFFFFD  # include/linux/proc_ns.h
KUBELET_VERSION = "v1.37.2"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What does not change while the kubelet runs, but for the addresses (NodeStatus.move)."""

    name: str
    addresses: Sequence[tuple[str, str]]  # (type, address): ("InternalIP", "10.0.0.5"), ("Hostname", "edge")
    kubelet_port: int
    pod_cidrs: Sequence[str] = ()
    max_pods: int = 110
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the machine says of itself. Bytes, or names as the kernel gives them."""

    cpus: int
    memory_bytes: int
    disk_bytes: int
    machine_id: str
    system_uuid: str
    boot_id: str
    kernel: str
    os_image: str
    architecture: str
    swap_bytes: int = 0
    in_user_namespace: bool = False  # this process
    huge_pages: Mapping[str, int] = field(default_factory=dict)  # bytes by size: {"2Mi": 4194304, "1Gi": 0}


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def host_facts(data: Path) -> HostFacts:
    """Read the machine; `data` is where pods' local storage lies."""
    memory = usage.memory()
    release = dict(line.split("=", 1) for line in _read("/etc/os-release").splitlines() if "=" in line)
    disk = os.statvfs(data)
    machine = platform.machine()
    return HostFacts(
        cpus=os.cpu_count() or 1,
        memory_bytes=memory.total,
        disk_bytes=disk.f_blocks * disk.f_frsize,
        machine_id=_read("/etc/machine-id"),
        system_uuid=_read("/sys/class/dmi/id/product_uuid") or _read("/etc/machine-id"),
        boot_id=_read("/proc/sys/kernel/random/boot_id"),
        kernel=platform.release(),
        os_image=release.get("PRETTY_NAME", "Linux").strip('"'),
        architecture=_ARCHITECTURES.get(machine, machine),
        swap_bytes=memory.swap_total,
        in_user_namespace=os.stat("/proc/self/ns/user").st_ino != FIRST_USER_NAMESPACE,
        huge_pages=_huge_pages(),
    )


def _huge_pages(root: Path = Path("/sys/kernel/mm/hugepages")) -> dict[str, int]:
    """Memory in huge pages, by size as resource names write it; the kernel's folders say "hugepages-2048kB"."""
    found = {}
    for folder in sorted(root.glob("hugepages-*kB")):
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        found[Quantity.of(size, "BinarySI").canonical()] = size * int(_read(str(folder / "nr_hugepages")) or 0)
    return found


def node_labels(info: NodeInfo, facts: HostFacts) -> dict[str, str]:
    hostname = next((address for kind, address in info.addresses if kind == "Hostname"), info.name)
    return {
        "kubernetes.io/hostname": hostname,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": facts.architecture,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": facts.architecture,
        **info.labels,
    }


def node_status(
    info: NodeInfo,
    facts: HostFacts,
    runtime: RuntimeStatus,
    images: Sequence[Image],
    old: Object,
    now: float,
    pressures: Collection[str] = (),
    devices: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {}),
) -> Object:
    """The status that the node should have; `old` is its status so far, from which transition times are kept.

    `pressures` are the conditions of shortage that hold, e.g. {"MemoryPressure"}; `devices` device plugins' capacity
    and allocatable.
    """
    pages = {
        f"hugepages-{size}": Quantity.of(amount, "BinarySI").canonical() for size, amount in facts.huge_pages.items()
    }
    capacity = {
        "cpu": str(facts.cpus),
        "memory": f"{facts.memory_bytes // 1024}Ki",
        "pods": str(info.max_pods),
        "ephemeral-storage": f"{facts.disk_bytes // 1024}Ki",
        **pages,
        # What others say that the node has can be given out as a whole.
        **{name: amount for name, amount in (old.get("capacity") or {}).items() if _is_extended(name)},
        **{name: str(count) for name, count in devices[0].items()},
    }
    memory = max(0, facts.memory_bytes - RESERVED_MEMORY_BYTES - sum(facts.huge_pages.values()))
    allocatable = capacity | {
        "memory": f"{memory // 1024}Ki",
        "ephemeral-storage": str(facts.disk_bytes - facts.disk_bytes // RESERVED_DISK_SHARE),
        **{name: str(count) for name, count in devices[1].items()},
    }
    node_info: Object = {
        "machineID": facts.machine_id,
        "systemUUID": facts.system_uuid,
        "bootID": facts.boot_id,
        "kernelVersion": facts.kernel,
        "osImage": facts.os_image,
        "containerRuntimeVersion": f"{runtime.name or 'docker'}://{runtime.version or 'Unknown'}",
        "kubeletVersion": KUBELET_VERSION,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": facts.architecture,
        "runningInUserNamespace": facts.in_user_namespace,
    }
    if facts.swap_bytes:
        node_info["swap"] = {"capacity": facts.swap_bytes}
    return {
        "capacity": capacity,
        "allocatable": allocatable,
        "conditions": [_condition(old, *wanted, now) for wanted in _conditions(runtime, pressures)],
        "addresses": [{"type": kind, "address": address} for kind, address in info.addresses],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": info.kubelet_port}},
        "nodeInfo": node_info,
        "images": [
            {"names": [*image.digests, *image.tags][:IMAGE_NAMES_MAX], "sizeBytes": image.size_bytes}
            for image in sorted(images, key=lambda image: image.size_bytes, reverse=True)[:IMAGES_MAX]
            if image.digests or image.tags
        ],
        "runtimeHandlers": [
            {
                "name": "",
                "features": {"recursiveReadOnlyMounts": runtime.recursive_read_only, "userNamespaces": False},
            }
        ],
        "features": {"supplementalGroupsPolicy": False},
        "declaredFeatures": list(DECLARED_FEATURES),
    }


def _is_extended(resource: str) -> bool:
    """Whether the resource is none of Kubernetes' own."""
    return "/" in resource and "kubernetes.io/" not in resource


# A pressure: (reason, message, event) where it holds, and where it does not.
_Words = tuple[str, str, str]
_PRESSURES: Mapping[str, tuple[_Words, _Words]] = {
    "MemoryPressure": (
        ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available", "NodeHasInsufficientMemory"),
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available", "NodeHasSufficientMemory"),
    ),
    "DiskPressure": (
        ("KubeletHasDiskPressure", "kubelet has disk pressure", "NodeHasDiskPressure"),
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure", "NodeHasNoDiskPressure"),
    ),
    "PIDPressure": (
        ("KubeletHasInsufficientPID", "kubelet has insufficient PID available", "NodeHasInsufficientPID"),
        ("KubeletHasSufficientPID", "kubelet has sufficient PID available", "NodeHasSufficientPID"),
    ),
}


def _conditions(runtime: RuntimeStatus, pressures: Collection[str]) -> list[tuple[str, str, str, str]]:
    """(type, status, reason, message) in the order that upstream's kubelet reports them."""
    found = []
    for kind, (holding, absent) in _PRESSURES.items():
        reason, message, _ = holding if kind in pressures else absent
        found.append((kind, "True" if kind in pressures else "False", reason, message))
    if runtime.ready:
        return [*found, ("Ready", "True", "KubeletReady", "kubelet is posting ready status")]
    why = f"container runtime is down: {runtime.reason}: {runtime.message}".rstrip(": ")
    return [*found, ("Ready", "False", "KubeletNotReady", why)]


def _condition(old: Object, kind: str, status: str, reason: str, message: str, now: float) -> Object:
    before = find_condition({"status": old}, kind)
    same = before is not None and before.get("status") == status
    return {
        "type": kind,
        "status": status,
        "lastHeartbeatTime": format_time(now),
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and same else format_time(now),
        "reason": reason,
        "message": message,
    }


def node_reference(name: str) -> Object:
    """What events about a node are about; they carry its name as the UID, as the kubelet's do."""
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": name}}


def _changed(old: Object, new: Object, kind: str) -> str | None:
    """The status that a condition has now, where it was another before; None where it was the same."""
    before, after = (find_condition({"status": status}, kind) for status in (old, new))
    if after is None or (before is not None and before.get("status") == after["status"]):
        return None
    return str(after["status"])


def differs(old: Object, new: Object) -> bool:
    """Whether a status says something new: heartbeat times alone do not count."""
    return _without_heartbeats(old) != _without_heartbeats(new)


def _without_heartbeats(status: Object) -> Object:
    conditions = [{k: v for k, v in c.items() if k != "lastHeartbeatTime"} for c in status.get("conditions") or ()]
    return {**status, "conditions": conditions}


class NodeStatus:
    """Registers the node, keeps its status true and renews its lease.

    `runtime_status` and `images` ask the runtime, `pressures` eviction, which conditions of shortage hold;
    `volumes_in_use` names the volumes that must stay attached; `devices` says what device plugins have: (capacity,
    allocatable).
    """

    def __init__(
        self,
        client: Client,
        recorder: EventRecorder,
        clock: Clock,
        info: NodeInfo,
        facts: HostFacts,
        runtime_status: Callable[[], Awaitable[RuntimeStatus]],
        images: Callable[[], Awaitable[Sequence[Image]]],
        *,
        pressures: Callable[[], Collection[str]] = tuple,
        volumes_in_use: Callable[[], Sequence[str]] = tuple,
        devices: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]] = lambda: ({}, {}),
    ) -> None:
        self._client, self._recorder, self._clock = client, recorder, clock
        self._info, self._facts = info, facts
        self._runtime_status, self._images, self._pressures = runtime_status, images, pressures
        self._volumes_in_use, self._devices = volumes_in_use, devices
        self._tasks = TaskGroup("node-status")
        self._seen_images: Sequence[Image] = ()
        self._images_at = -IMAGES_LOOK_S
        self._reported_at = -STATUS_REPORT_S
        self._lease: Object | None = None

    async def start(self) -> None:
        """Register the node with its first status, then keep going in the background."""
        await self._register()
        await self.report()
        await self._renew_lease()
        self._recorder.event(node_reference(self._info.name), "Normal", "Starting", "Starting kubelet.")
        self._tasks.guard(self._keep_reporting, name="node-status.report")
        self._tasks.guard(self._keep_lease, name="node-status.lease")

    async def stop(self) -> None:
        await self._tasks.cancel()

    async def report(self) -> None:
        """Look at the runtime and write the status if it says something new, or has not been written for 5 minutes."""
        runtime = await self._runtime_status()
        images = await self._list_images() if runtime.ready else []
        now = self._clock.now()
        node = await self._client.get(NODES, self._info.name)
        old = node.get("status") or {}
        found = node_status(self._info, self._facts, runtime, images, old, now, self._pressures(), self._devices())
        new = {**old, **found}
        if not runtime.ready and old.get("images"):
            new["images"] = old["images"]
        in_use = list(self._volumes_in_use())
        if in_use or old.get("volumesInUse"):
            new["volumesInUse"] = in_use
        kept = [c for c in old.get("conditions") or () if not find_condition({"status": new}, c["type"])]
        new["conditions"] = [*kept, *new["conditions"]]
        if not differs(old, new) and self._clock.monotonic() - self._reported_at < STATUS_REPORT_S:
            return
        self._tell_of_change(old, new)
        # A patch of what has changed, as upstream's kubelet sends: the rest may change meanwhile (taints, what others
        # attach), and is not ours to say.
        patch = {key: value for key, value in new.items() if value != old.get(key)}
        if "allocatable" in patch:
            gone = dict.fromkeys(old.get("allocatable") or ())
            patch["allocatable"] = {**gone, **new["allocatable"]}
        await self._client.patch(NODES, self._info.name, {"status": patch}, subresource="status")
        self._reported_at = self._clock.monotonic()

    def move(self, addresses: Sequence[tuple[str, str]]) -> None:
        """The node has other addresses."""
        self._info = replace(self._info, addresses=addresses)
        self.look_now()

    def look_now(self) -> None:
        """Something has changed that the status tells of: do not wait for the next look."""
        self._tasks.spawn(self._report_or_register(), name="node-status.report-now")

    async def _list_images(self) -> Sequence[Image]:
        if self._clock.monotonic() - self._images_at >= IMAGES_LOOK_S:
            self._seen_images, self._images_at = await self._images(), self._clock.monotonic()
        return self._seen_images

    def _tell_of_change(self, old: Object, new: Object) -> None:
        """An event for each condition that has changed, and for a machine that was started anew."""
        for kind, (holding, absent) in _PRESSURES.items():
            if (status := _changed(old, new, kind)) is not None:
                self._tell((holding if status == "True" else absent)[2])
        if (status := _changed(old, new, "Ready")) is not None:
            self._tell("NodeReady" if status == "True" else "NodeNotReady")
        before = dig(old, "nodeInfo", "bootID", default="")
        if before and before != self._facts.boot_id:
            message = f"Node {self._info.name} has been rebooted, boot id: {self._facts.boot_id}"
            self._recorder.event(node_reference(self._info.name), "Warning", "Rebooted", message)

    def _tell(self, reason: str) -> None:
        self._recorder.event(
            node_reference(self._info.name), "Normal", reason, f"Node {self._info.name} status is now: {reason}"
        )

    async def _register(self) -> None:
        labels = node_labels(self._info, self._facts)
        try:
            node = await self._client.get(NODES, self._info.name)
        except StatusError as error:
            if error.code != 404:
                raise
            metadata: dict[str, Any] = {
                "name": self._info.name,
                "labels": labels,
                "annotations": {
                    "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                    **self._info.annotations,
                },
            }
            cidrs = list(self._info.pod_cidrs)
            spec = {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {}
            await self._client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec})
            return
        metadata = node["metadata"]
        wanted = {
            "labels": {**metadata.get("labels", {}), **labels},
            "annotations": {**metadata.get("annotations", {}), **self._info.annotations},
        }
        if any(metadata.get(key, {}) != value for key, value in wanted.items()):
            await self._client.patch(NODES, self._info.name, {"metadata": wanted})

    async def _keep_reporting(self) -> None:
        while True:
            await self._clock.sleep(STATUS_LOOK_S)
            await self._report_or_register()

    async def _report_or_register(self) -> None:
        try:
            await self.report()
        except StatusError as error:
            if error.code == 404:  # deleted under us: come back, as upstream's kubelet does
                await self._register()
            else:
                log.warning("the node's status was not taken: %s", error)

    async def _keep_lease(self) -> None:
        while True:
            await self._clock.sleep(LEASE_RENEW_S)
            await self._renew_lease()

    async def _renew_lease(self) -> None:
        now = format_micro_time(self._clock.now())
        if self._lease is None:
            self._lease = await self._find_lease()
        try:
            if self._lease is None:
                node = await self._client.get(NODES, self._info.name)
                self._lease = await self._client.create(LEASES, _lease(self._info.name, node, now))
            else:
                renewed = replace_in(self._lease, ("spec", "renewTime"), now)
                self._lease = await self._client.update(LEASES, renewed)
        except StatusError as error:
            self._lease = None  # read it anew the next time
            log.info("the node's lease was not renewed: %s", error)

    async def _find_lease(self) -> Object | None:
        try:
            return await self._client.get(LEASES, self._info.name, LEASE_NAMESPACE)
        except StatusError as error:
            if error.code != 404:
                raise
            return None


def _lease(name: str, node: Object, now: str) -> Object:
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_DURATION_S, "renewTime": now},
    }
