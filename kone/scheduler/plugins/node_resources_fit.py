"""NodeResourcesFit: there must be room for what the pod asks for; the emptier node is better (LeastAllocated)."""

from __future__ import annotations

from collections.abc import Hashable

from kone.scheduler.framework import (
    MAX_SCORE,
    ClusterEvent,
    Code,
    CycleState,
    Happened,
    Plugin,
    Status,
)
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo

SCORED = ("cpu", "memory")
_FIRST = ("cpu", "memory", "ephemeral-storage")


class NodeResourcesFit(Plugin):
    name = "NodeResourcesFit"
    wakes_on = (
        Happened.NODE_ADDED
        | Happened.NODE_ALLOCATABLE
        | Happened.POD_GONE
        | Happened.POD_SCALED_DOWN
        | Happened.SELF_SCALED_DOWN
    )

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & (Happened.NODE_ADDED | Happened.NODE_ALLOCATABLE) and event.new is not None:
            empty = NodeInfo("")
            empty.set_node(event.new)
            return not insufficient(pod, empty)[0]
        return True

    def sign(self, pod: PodInfo) -> Hashable:
        return (*pod.requests.items(), *pod.scored_requests.items())

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        reasons, never = insufficient(pod, node)
        if not reasons:
            return None
        return Status(Code.UNRESOLVABLE if never else Code.UNSCHEDULABLE, tuple(reasons))

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        """Of cpu and memory, the free share after the pod, in percent, on average."""
        total = count = 0
        for name in SCORED:
            capacity = node.allocatable.get(name, 0)
            if not capacity:
                continue
            used = node.scored.get(name, 0) + pod.scored_requests.get(name, 0)
            total += (capacity - used) * MAX_SCORE // capacity if used <= capacity else 0
            count += 1
        return total // count if count else 0


def insufficient(pod: PodInfo, node: NodeInfo) -> tuple[list[str], bool]:
    """(what there is too little of, whether the pod is too big even for the empty node)."""
    reasons: list[str] = []
    never = False
    if len(node.pods) + 1 > node.max_pods:
        reasons.append("Too many pods")
    requests = pod.requests
    for name in (*_FIRST, *(name for name in requests if name not in _FIRST)):
        asked = requests.get(name, 0)
        if asked <= 0:
            continue
        capacity = node.allocatable.get(name, 0)
        if asked > capacity - node.requested.get(name, 0):
            reasons.append(f"Insufficient {name}")
            never = never or asked > capacity
    return reasons, never
