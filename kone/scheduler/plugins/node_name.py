"""NodeName: a pod that names its node goes there."""

from __future__ import annotations

from kone.scheduler.framework import CycleState, Happened, Plugin, Status, unresolvable
from kone.scheduler.snapshot import NodeInfo, PodInfo


class NodeName(Plugin):
    name = "NodeName"
    wakes_on = Happened.NODE_ADDED

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        if pod.node_name in ("", node.name):
            return None
        return unresolvable("node(s) didn't match the requested node name")
