"""NodeUnschedulable: no pods for a cordoned node, save those that tolerate it."""

from __future__ import annotations

from collections.abc import Hashable

from kone.apimachinery.objects import dig
from kone.apimachinery.taints import UNSCHEDULABLE_TAINT, tolerates_any
from kone.scheduler.framework import ClusterEvent, CycleState, Happened, Plugin, Status, unresolvable
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo


class NodeUnschedulable(Plugin):
    name = "NodeUnschedulable"
    wakes_on = Happened.NODE_ADDED | Happened.NODE_TAINTS | Happened.SELF_TOLERATIONS

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & Happened.SELF_TOLERATIONS:
            return tolerates_any(pod.tolerations, UNSCHEDULABLE_TAINT)
        was_closed = event.old is None or dig(event.old, "spec", "unschedulable")
        return bool(was_closed and not dig(event.new, "spec", "unschedulable"))

    def sign(self, pod: PodInfo) -> Hashable:
        return pod.tolerations_sign

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        if not node.is_unschedulable or tolerates_any(pod.tolerations, UNSCHEDULABLE_TAINT):
            return None
        return unresolvable("node(s) were unschedulable")
