"""NodeResourcesBalancedAllocation: better where cpu and memory will be used evenly.

Worked case: a node of 4 cores and 8 GiB with 2 cores and 2 GiB asked for uses 50 % and 25 %; a pod that asks for 2 GiB
makes it 50 % and 50 %: better balanced than before, so the node scores above 75.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from kone.apimachinery.pod_resources import Amounts
from kone.scheduler.framework import MAX_SCORE, SKIP, CycleState, Plugin, Status
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo

BALANCED = ("cpu", "memory")


class NodeResourcesBalancedAllocation(Plugin):
    name = "NodeResourcesBalancedAllocation"

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        # A pod that asks for nothing changes no balance: it would always go to the same node.
        return None if any(pod.requests.get(name) for name in BALANCED) else SKIP

    def sign(self, pod: PodInfo) -> Hashable:
        return tuple(pod.requests.items())

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        after = {name: node.requested.get(name, 0) + pod.requests.get(name, 0) for name in BALANCED}
        half = MAX_SCORE // 2
        return half + (half + balance(after, node.allocatable) - balance(node.requested, node.allocatable)) // 2


def balance(requested: Amounts, allocatable: Amounts) -> int:
    """MAX_SCORE where cpu and memory are used to the same share, less by half the distance of the shares."""
    shares = [min(requested.get(name, 0) / allocatable[name], 1.0) for name in BALANCED if allocatable.get(name)]
    distance = abs(shares[0] - shares[1]) / 2 if len(shares) == 2 else 0.0
    return int((1 - distance) * MAX_SCORE)
