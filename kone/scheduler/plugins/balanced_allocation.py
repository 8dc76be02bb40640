"""NodeResourcesBalancedAllocation: better where cpu and memory (or what is configured) will be used evenly.

Worked case: a node of 4 cores and 8 GiB with 2 cores and 2 GiB asked for uses 50 % and 25 %; a pod that asks for 2 GiB
makes it 50 % and 50 %: better balanced than before, so the node scores above 75.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from kone.apimachinery.errors import FieldError, invalid_value
from kone.apimachinery.pod_resources import Amounts
from kone.scheduler.framework import MAX_SCORE, NO_ARGUMENTS, SKIP, CycleState, Plugin, Status
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import Cluster, NodeInfo

BALANCED = ("cpu", "memory")


class NodeResourcesBalancedAllocation(Plugin):
    name = "NodeResourcesBalancedAllocation"
    arguments: ClassVar = {"resources": [{"name": str, "weight": int}]}

    def __init__(self, cluster: Cluster, args: Mapping[str, Any] = NO_ARGUMENTS) -> None:
        super().__init__(cluster, args)
        self._resources = tuple(entry["name"] for entry in args.get("resources") or ()) or BALANCED

    @classmethod
    def check(cls, path: str, args: Mapping[str, Any]) -> Iterable[FieldError]:
        for i, entry in enumerate(args.get("resources") or ()):
            if entry.get("weight", 1) != 1:
                yield invalid_value(f"{path}.resources[{i}].weight", entry["weight"], "must be 1")

    def sign(self, pod: PodInfo) -> Hashable:
        return tuple(pod.requests.items())

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        # A pod that asks for nothing changes no balance: it would always go to the same node.
        return None if any(pod.requests.get(name) for name in self._resources) else SKIP

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        after = {name: node.requested.get(name, 0) + pod.requests.get(name, 0) for name in self._resources}
        before = {name: node.requested.get(name, 0) for name in self._resources}
        half = MAX_SCORE // 2
        return half + (half + balance(after, node.allocatable) - balance(before, node.allocatable)) // 2


def balance(requested: Amounts, allocatable: Amounts) -> int:
    """MAX_SCORE where all are used to the same share, less by the standard deviation of the shares."""
    shares = [min(amount / allocatable[name], 1.0) for name, amount in requested.items() if allocatable.get(name)]
    if len(shares) == 2:
        deviation = abs(shares[0] - shares[1]) / 2
    elif len(shares) > 2:
        mean = sum(shares) / len(shares)
        deviation = math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares))
    else:
        deviation = 0.0
    return int((1 - deviation) * MAX_SCORE)
