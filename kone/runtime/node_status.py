"""This node as the API sees it: the Node object, its conditions, what it has to give, and the lease that says it lives.

The lease is renewed every 10 s; the status is written only when it changes, and at least every 5 minutes
(kubelet's nodeStatusReportFrequency), so an idle node hardly writes.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import LEASES, NODES
from kone.apimachinery.objects import Object, find_condition, replace_in
from kone.apimachinery.timestamps import format_micro_time, format_time
from kone.client.client import Client
from kone.client.events import EventRecorder
from kone.runtime.runtime import Image, RuntimeStatus

log = logging.getLogger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
LEASE_DURATION_S = 40
LEASE_RENEW_S = 10.0
STATUS_LOOK_S = 10.0
STATUS_REPORT_S = 300.0
IMAGES_MAX = 50  # nodeStatusMaxImages
KUBELET_VERSION = "v1.37.2"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What does not change while the kubelet runs."""

    name: str
    addresses: Sequence[tuple[str, str]]  # (type, address): ("InternalIP", "10.0.0.5"), ("Hostname", "edge")
    kubelet_port: int
    pod_cidr: str = ""
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


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def host_facts(data: Path) -> HostFacts:
    """Read the machine; `data` is where pods' local storage lies."""
    memory = next(
        (line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal:")), "0"
    )
    release = dict(line.split("=", 1) for line in _read("/etc/os-release").splitlines() if "=" in line)
    disk = os.statvfs(data)
    machine = platform.machine()
    return HostFacts(
        cpus=os.cpu_count() or 1,
        memory_bytes=int(memory) * 1024,
        disk_bytes=disk.f_blocks * disk.f_frsize,
        machine_id=_read("/etc/machine-id"),
        system_uuid=_read("/sys/class/dmi/id/product_uuid") or _read("/etc/machine-id"),
        boot_id=_read("/proc/sys/kernel/random/boot_id"),
        kernel=platform.release(),
        os_image=release.get("PRETTY_NAME", "Linux").strip('"'),
        architecture=_ARCHITECTURES.get(machine, machine),
    )


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
    info: NodeInfo, facts: HostFacts, runtime: RuntimeStatus, images: Sequence[Image], old: Object, now: float
) -> Object:
    """The status that the node should have; `old` is its status so far, from which transition times are kept."""
    capacity = {
        "cpu": str(facts.cpus),
        "memory": f"{facts.memory_bytes // 1024}Ki",
        "pods": str(info.max_pods),
        "ephemeral-storage": f"{facts.disk_bytes // 1024}Ki",
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
    }
    # evictionHard: memory.available<100Mi, nodefs.available<10% (kubelet's defaults) are set aside.
    allocatable = capacity | {
        "memory": f"{(facts.memory_bytes - (100 << 20)) // 1024}Ki",
        "ephemeral-storage": str(facts.disk_bytes // 10 * 9),
    }
    return {
        "capacity": capacity,
        "allocatable": allocatable,
        "conditions": [_condition(old, *wanted, now) for wanted in _conditions(runtime)],
        "addresses": [{"type": kind, "address": address} for kind, address in info.addresses],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": info.kubelet_port}},
        "nodeInfo": {
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
        },
        "images": [
            {"names": [*image.digests, *image.tags], "sizeBytes": image.size_bytes}
            for image in sorted(images, key=lambda image: image.size_bytes, reverse=True)[:IMAGES_MAX]
            if image.digests or image.tags
        ],
        "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": False, "userNamespaces": False}}],
    }


def _conditions(runtime: RuntimeStatus) -> list[tuple[str, str, str, str]]:
    """(type, status, reason, message) in the order that upstream's kubelet reports them."""
    ready = (
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status")
        if runtime.ready
        else (
            "Ready",
            "False",
            "KubeletNotReady",
            f"container runtime is down: {runtime.reason}: {runtime.message}".rstrip(": "),
        )
    )
    return [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ready,
    ]


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


def differs(old: Object, new: Object) -> bool:
    """Whether a status says something new: heartbeat times alone do not count."""
    return _without_heartbeats(old) != _without_heartbeats(new)


def _without_heartbeats(status: Object) -> Object:
    conditions = [{k: v for k, v in c.items() if k != "lastHeartbeatTime"} for c in status.get("conditions") or ()]
    return {**status, "conditions": conditions}


class NodeStatus:
    """Registers the node, keeps its status true and renews its lease. `runtime_status` and `images` ask the runtime."""

    def __init__(
        self,
        client: Client,
        recorder: EventRecorder,
        clock: Clock,
        info: NodeInfo,
        facts: HostFacts,
        runtime_status: Callable[[], Awaitable[RuntimeStatus]],
        images: Callable[[], Awaitable[Sequence[Image]]],
    ) -> None:
        self._client, self._recorder, self._clock = client, recorder, clock
        self._info, self._facts = info, facts
        self._runtime_status, self._images = runtime_status, images
        self._tasks = TaskGroup("node-status")
        self._reported_at = -STATUS_REPORT_S
        self._lease: Object | None = None

    async def start(self) -> None:
        """Register the node with its first status, then keep going in the background."""
        await self._register()
        await self.report()
        await self._renew_lease()
        self._recorder.event(self._reference(), "Normal", "Starting", "Starting kubelet.")
        self._tasks.guard(self._keep_reporting, name="node-status.report")
        self._tasks.guard(self._keep_lease, name="node-status.lease")

    async def stop(self) -> None:
        await self._tasks.cancel()

    async def report(self) -> None:
        """Look at the runtime and write the status if it says something new, or has not been written for 5 minutes."""
        runtime = await self._runtime_status()
        images = await self._images() if runtime.ready else []
        now = self._clock.now()
        node = await self._client.get(NODES, self._info.name)
        old = node.get("status") or {}
        new = {**old, **node_status(self._info, self._facts, runtime, images, old, now)}
        if not runtime.ready and old.get("images"):
            new["images"] = old["images"]
        kept = [c for c in old.get("conditions") or () if not find_condition({"status": new}, c["type"])]
        new["conditions"] = [*kept, *new["conditions"]]
        if not differs(old, new) and now - self._reported_at < STATUS_REPORT_S:
            return
        self._tell_of_change(old, new)
        # A patch, as upstream's kubelet sends: the spec may change meanwhile (taints), and is not ours to say.
        await self._client.patch(NODES, self._info.name, {"status": new}, subresource="status")
        self._reported_at = now

    def _tell_of_change(self, old: Object, new: Object) -> None:
        before, after = (find_condition({"status": status}, "Ready") for status in (old, new))
        if after and (before is None or before.get("status") != after["status"]):
            reason = "NodeReady" if after["status"] == "True" else "NodeNotReady"
            self._recorder.event(self._reference(), "Normal", reason, f"Node {self._info.name} status is now: {reason}")

    def _reference(self) -> Object:
        """Events about a node carry its name as the UID, as the kubelet's do."""
        metadata = {"name": self._info.name, "uid": self._info.name}
        return {"apiVersion": "v1", "kind": "Node", "metadata": metadata}

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
            spec = {"podCIDR": self._info.pod_cidr, "podCIDRs": [self._info.pod_cidr]} if self._info.pod_cidr else {}
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
