"""What scheduler tests share: nodes and pods in few words, and a framework over them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from kone.aio.clock import FakeClock, settle
from kone.apimachinery.kinds import PODS
from kone.apimachinery.objects import Object, dig, find_condition
from kone.client.events import EventRecorder
from kone.scheduler.framework import Framework, NoFit, Nominator, Placement
from kone.scheduler.plugins import DEFAULT
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.scheduler import Scheduler
from kone.scheduler.snapshot import Cluster
from tests.fakes import FakeClient

_uids = itertools.count(1)


def node(
    name: str = "n1",
    *,
    labels: Mapping[str, str] | None = None,
    taints: list[Object] | None = None,
    unschedulable: bool = False,
    **allocatable: Any,
) -> Object:
    """Amounts as cpu, memory, pods …; example_foo stands for example.com/foo."""
    amounts = {"cpu": "4", "memory": "8Gi", "pods": "20"}
    amounts |= {key.replace("_", ".com/"): str(value) for key, value in allocatable.items()}
    spec: Object = {"taints": taints} if taints else {}
    if unschedulable:
        spec["unschedulable"] = True
    meta = {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": spec, "status": {"allocatable": amounts}}


def pod(
    name: str = "p",
    *,
    namespace: str = "ns",
    labels: Mapping[str, str] | None = None,
    requests: Mapping[str, str] | None = None,
    on: str = "",
    started: str = "",
    **spec: Any,
) -> Object:
    container: Object = {"name": "c", "image": "i"}
    if requests:
        container["resources"] = {"requests": dict(requests)}
    spec.setdefault("containers", [container])
    if on:
        spec["nodeName"] = on
    meta: Object = {"name": name, "namespace": namespace, "uid": f"uid-{next(_uids)}"}
    if labels:
        meta["labels"] = dict(labels)
    status = {"startTime": started} if started else {}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}


class World:
    """A cluster and the default plugins."""

    def __init__(self, *nodes: Object) -> None:
        self.cluster = Cluster()
        self.nominator = Nominator()
        plugins = [plugin(self.cluster) for plugin in DEFAULT]
        self.framework = Framework(self.cluster, plugins, self.nominator)
        for made in nodes:
            self.cluster.set_node(made)

    def run(self, *pods: Object) -> World:
        """These pods are bound."""
        for made in pods:
            self.cluster.set_pod(PodInfo(made))
        return self

    def place(self, made: Object) -> str:
        """The node's name, or why there is none."""
        found = self.framework.place(PodInfo(made))
        if isinstance(found, Placement):
            return found.node.name
        return found.diagnosis.message(found.node_count)

    def fail(self, made: Object) -> NoFit:
        found = self.framework.place(PodInfo(made))
        assert isinstance(found, NoFit)
        return found


class Scheduling:
    """A scheduler over an API of its own, on the fake clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.recorder = EventRecorder(self.client, "default-scheduler", clock=self.clock)
        self.scheduler = Scheduler(self.client, {self.recorder.component: self.recorder}, self.clock)

    async def stop(self) -> None:
        await self.scheduler.stop()
        await self.recorder.stop()

    async def settle(self) -> None:
        await settle()
        await self.clock.advance(0.1)

    def where(self, made: Object) -> str:
        return str(dig(self.client.look(PODS, made), "spec", "nodeName", default=""))

    def why(self, made: Object) -> str:
        """The message of the condition PodScheduled."""
        return str((find_condition(self.client.look(PODS, made), "PodScheduled") or {}).get("message", ""))
