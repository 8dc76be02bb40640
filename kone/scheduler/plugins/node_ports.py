"""NodePorts: a host port serves one pod."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from kone.scheduler.framework import SKIP, ClusterEvent, CycleState, Happened, Plugin, Status, unschedulable
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo


class NodePorts(Plugin):
    name = "NodePorts"
    wakes_on = Happened.NODE_ADDED | Happened.POD_GONE

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & Happened.NODE_ADDED or event.old is None:
            return True
        freed = NodeInfo("")
        freed.add(PodInfo(event.old))
        return any(freed.has_conflict(port) for port in pod.host_ports)

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        return None if pod.host_ports else SKIP

    def sign(self, pod: PodInfo) -> Hashable:
        return pod.host_ports

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        if any(node.has_conflict(port) for port in pod.host_ports):
            return unschedulable("node(s) didn't have free ports for the requested pod ports")
        return None
