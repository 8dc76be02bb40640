"""NodeName: a pod that names its node goes there."""

from __future__ import annotations

from collections.abc import Hashable

from kone.scheduler.framework import CycleState, Happened, Plugin, Status, unresolvable
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo


class NodeName(Plugin):
    name = "NodeName"
    wakes_on = Happened.NODE_ADDED

    def sign(self, pod: PodInfo) -> Hashable:
        return pod.node_name

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        if pod.node_name in ("", node.name):
            return None
        return unresolvable("node(s) didn't match the requested node name")
