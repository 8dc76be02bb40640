"""A whole kubelet on a fake API, a fake runtime and a clock that stands still: the world of the pod workers' tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import EVENTS, PODS
from kone.apimachinery.objects import Object, deep_copy, dig, replace_in, uid_of
from kone.apimachinery.timestamps import format_time
from kone.apiserver.pod_manifest import read_pod_manifest
from kone.client.events import EventRecorder
from kone.runtime.eviction import Host
from kone.runtime.eviction_signals import Observation, Observations
from kone.runtime.kubelet import Kubelet
from kone.runtime.kubelet_config import KubeletConfig
from kone.runtime.parts import MountedVolume, VolumeError
from tests.fakes import FakeClient
from tests.fakes_runtime import FakeNetwork, FakeRuntime

ROUNDS = 400  # turns of the event loop in which whatever can happen now has happened


class FakeVolumes:
    """Every volume lies at /volumes/<name>. `missing` maps a volume's name to what its mount says, or raises."""

    def __init__(self) -> None:
        self.missing: dict[str, str | VolumeError] = {}
        self.mounts: set[str] = set()
        self.asked = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def mount(self, pod: Object) -> Mapping[str, MountedVolume]:
        self.asked += 1
        names = [volume["name"] for volume in dig(pod, "spec", "volumes", default=())]
        for name in names:
            if (missing := self.missing.get(name)) is not None:
                raise missing if isinstance(missing, VolumeError) else VolumeError(missing)
        self.mounts.add(uid_of(pod))
        return {name: MountedVolume(f"/volumes/{name}") for name in names}

    async def subpath(self, pod: Object, volume: MountedVolume, sub_path: str) -> str:
        return f"{volume.host_path}/{sub_path}"

    async def unmount(self, pod_uid: str) -> None:
        self.mounts.discard(pod_uid)

    def mounted(self) -> set[str]:
        return set(self.mounts)


class RoomyHost(Host):
    """A host that is short of nothing, until a test says so: signal -> (available, capacity)."""

    def __init__(self, root: Path, image_root: Path) -> None:
        super().__init__(root, image_root)
        self.shown: dict[str, Observation] = {}

    @property
    def own_image_fs(self) -> bool:
        return False

    def observe(self) -> Observations:
        return dict(self.shown)


class World:
    """`start` it, `create` pods, `advance` time, and look at what became of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.runtime = FakeRuntime(self.clock)
        self.network = FakeNetwork()
        self.volumes = FakeVolumes()
        self.status_writes: list[Object] = []
        self.make_kubelet()

    def make_kubelet(self) -> None:
        """A new process: it knows nothing of what the one before did."""
        self.recorder = EventRecorder(self.client, "kubelet", host="n1", clock=self.clock, linger_s=0.0)
        self.kubelet = Kubelet(
            self.client,
            self.runtime,
            self.network,
            self.recorder,
            self.clock,
            KubeletConfig("n1", ("192.0.2.1",), self.path, manifests=self.path / "manifests"),
            volumes=self.volumes,
            host=self.make_host,
            read_pod=read_pod_manifest,
        )

    def make_host(self, root: Path, image_root: Path) -> RoomyHost:
        self.host = RoomyHost(root, image_root)
        return self.host

    async def start(self) -> None:
        await self.kubelet.start()
        await settle(ROUNDS)

    async def restart(self) -> None:
        """The kubelet is killed and started again."""
        await self.kubelet.stop()
        self.make_kubelet()
        await self.start()

    async def stop(self) -> None:
        await self.kubelet.stop()
        await self.recorder.stop()
        await self.runtime.close()

    async def settle(self) -> None:
        await settle(ROUNDS)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        await settle(ROUNDS)

    async def create(self, name: str, *containers: Object, **spec: Any) -> Object:
        """A pod that is bound to this node; let it start."""
        pod = make_pod(name, *containers, **spec)
        created = self.client.put(PODS, pod)
        await settle(ROUNDS)
        return created

    async def change(self, name: str, *path: str, to: Any) -> None:
        """Somebody writes to the pod."""
        self.client.overwrite(PODS, replace_in(deep_copy(self.pod(name)), path, to))
        await settle(ROUNDS)

    async def delete(self, name: str, grace_s: int | None = None) -> None:
        await self.client.delete(PODS, name, namespace="default", grace_s=grace_s)
        await settle(ROUNDS)

    def exists(self, name: str) -> bool:
        return self.client.informer(PODS).get("default", name) is not None

    def pod(self, name: str) -> Object:
        found = self.client.informer(PODS).get("default", name)
        assert found is not None, f"pod {name} is gone"
        return found

    def phase(self, name: str) -> str:
        return str(dig(self.pod(name), "status", "phase"))

    def container(self, pod: str, name: str) -> Object:
        """The status of a container, whatever kind it is of."""
        status = self.pod(pod)["status"]
        for field in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
            for found in status.get(field) or ():
                if found["name"] == name:
                    return dict(found)
        raise AssertionError(f"no container {name} in the status of pod {pod}")

    def conditions(self, pod: str) -> dict[str, tuple[str, ...]]:
        """By type: (status, reason, message), without what is not there."""
        return {
            c["type"]: tuple(c[field] for field in ("status", "reason", "message") if field in c)
            for c in self.pod(pod)["status"]["conditions"]
        }

    def events(self, pod: str = "", reason: str = "") -> list[str]:
        """The messages recorded about a pod, oldest first."""
        found = [
            e
            for e in self.client.of(EVENTS)
            if (not pod or e["involvedObject"]["name"] == pod) and (not reason or e["reason"] == reason)
        ]
        return [e["message"] for e in sorted(found, key=lambda e: int(e["metadata"]["resourceVersion"]))]


def make_container(name: str = "c", script: str = "sleep 1000", **more: Any) -> Object:
    made = {"name": name, "image": "busybox:test", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]}
    return {**made, **more}


def make_pod(name: str, *containers: Object, **spec: Any) -> Object:
    """A pod as the registry would store it, bound to node n1."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "creationTimestamp": format_time(1_700_000_000)},
        "spec": {
            "nodeName": "n1",
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "containers": list(containers) or [make_container()],
            **spec,
        },
        "status": {"phase": "Pending"},
    }
