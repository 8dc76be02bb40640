"""NodeResourcesFit: there must be room for what the pod asks for. Which node is better, a strategy says: the emptier
one (LeastAllocated), the fuller one (MostAllocated), or what a line says (RequestedToCapacityRatio).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from kone.apimachinery.errors import FieldError, invalid_value, not_supported, required
from kone.apimachinery.objects import Object, name_of
from kone.scheduler.extended_devices import PREFIX
from kone.scheduler.framework import (
    MAX_SCORE,
    NO_ARGUMENTS,
    ClusterEvent,
    Code,
    CycleState,
    Happened,
    Plugin,
    Status,
)
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.score_shape import line, on_line, shape_problems
from kone.scheduler.snapshot import Cluster, NodeInfo

COMPUTE = ("cpu", "memory")  # what every pod is taken to use some of
SCORED: Sequence[Mapping[str, Any]] = tuple({"name": name, "weight": 1} for name in COMPUTE)
STRATEGIES = ("LeastAllocated", "MostAllocated", "RequestedToCapacityRatio")
_FIRST = ("cpu", "memory", "ephemeral-storage")

Score = Callable[[int, int], int]  # of what is asked for and what there is


class NodeResourcesFit(Plugin):
    name = "NodeResourcesFit"
    wakes_on = (
        Happened.NODE_ADDED
        | Happened.NODE_ALLOCATABLE
        | Happened.POD_GONE
        | Happened.POD_SCALED_DOWN
        | Happened.SELF_SCALED_DOWN
        | Happened.DEVICE_CLASS
    )
    arguments: ClassVar = {
        "ignoredResources": [str],
        "ignoredResourceGroups": [str],
        "scoringStrategy": {
            "type": str,
            "resources": [{"name": str, "weight": int}],
            "requestedToCapacityRatio": {"shape": [{"utilization": int, "score": int}]},
        },
    }

    def __init__(self, cluster: Cluster, args: Mapping[str, Any] = NO_ARGUMENTS) -> None:
        super().__init__(cluster, args)
        self._ignored = frozenset(args.get("ignoredResources") or ())
        self._ignored_groups = frozenset(args.get("ignoredResourceGroups") or ())
        strategy = args.get("scoringStrategy") or {}
        self._type = strategy.get("type") or "LeastAllocated"
        self._resources = [(entry["name"], entry.get("weight") or 1) for entry in strategy.get("resources") or SCORED]
        self._score = _score_of(strategy)

    @classmethod
    def check(cls, path: str, args: Mapping[str, Any]) -> Iterable[FieldError]:
        for i, group in enumerate(args.get("ignoredResourceGroups") or ()):
            if "/" in group:
                why = "resource group name can't contain '/'"
                yield invalid_value(f"{path}.ignoredResourceGroups[{i}]", group, why)
        strategy = args.get("scoringStrategy")
        if strategy is None:
            return
        at, kind = f"{path}.scoringStrategy", strategy.get("type") or ""
        if kind not in STRATEGIES:
            yield not_supported(f"{at}.type", kind, STRATEGIES)
        for i, entry in enumerate(strategy.get("resources") or ()):
            if not 1 <= (entry.get("weight") or 1) <= 100:
                why = "resource weight of {} not in valid range [1, 100]".format(entry.get("name"))
                yield invalid_value(f"{at}.resources[{i}].weight", entry["weight"], why)
        if kind == "RequestedToCapacityRatio":
            ratio = strategy.get("requestedToCapacityRatio")
            if ratio is None:
                why = "must be specified when type is RequestedToCapacityRatio"
                yield required(f"{at}.requestedToCapacityRatio", why)
            else:
                yield from shape_problems(f"{at}.shape", ratio.get("shape") or ())

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & (Happened.NODE_ADDED | Happened.NODE_ALLOCATABLE) and event.new is not None:
            empty = NodeInfo("")
            empty.set_node(event.new)
            return not self._insufficient(pod, empty)[0]
        if event.what & Happened.DEVICE_CLASS and event.new is not None:
            return _serves_more(event.old, event.new, pod.requests)
        return True

    def sign(self, pod: PodInfo) -> Hashable:
        return (*pod.requests.items(), *pod.scored_requests.items())

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        reasons, never = self._insufficient(pod, node)
        if not reasons:
            return None
        return Status(Code.UNRESOLVABLE if never else Code.UNSCHEDULABLE, tuple(reasons))

    def _insufficient(self, pod: PodInfo, node: NodeInfo) -> tuple[list[str], bool]:
        """(what there is too little of, whether the pod is too big even for the empty node)."""
        reasons: list[str] = []
        never = False
        if len(node.pods) + 1 > node.max_pods:
            reasons.append("Too many pods")
        requests = pod.requests
        for name in (*_FIRST, *(name for name in requests if name not in _FIRST)):
            asked = requests.get(name, 0)
            if asked <= 0 or name in self._ignored or ("/" in name and name.split("/")[0] in self._ignored_groups):
                continue
            capacity = node.allocatable.get(name, 0)
            if not capacity and name in self.cluster.extended_classes:
                continue  # devices may serve it: DynamicResources sees to it
            if asked > capacity - node.requested.get(name, 0):
                reasons.append(f"Insufficient {name}")
                never = never or asked > capacity
        return reasons, never

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        """The scores of the strategy's resources, on average by their weights."""
        total = weights = 0
        for name, weight in self._resources:
            capacity = node.allocatable.get(name, 0)
            if not capacity or (name not in COMPUTE and not pod.requests.get(name)):
                continue
            there, asked = (node.scored, pod.scored_requests) if name in COMPUTE else (node.requested, pod.requests)
            score = self._score(there.get(name, 0) + asked.get(name, 0), capacity)
            if self._type == "RequestedToCapacityRatio" and score <= 0:
                continue
            total += weight * score
            weights += weight
        if not weights:
            return 0
        if self._type == "RequestedToCapacityRatio":
            return (2 * total + weights) // (2 * weights)  # rounded
        return total // weights


def _serves_more(old: Object | None, new: Object, requests: Mapping[str, int]) -> bool:
    """Whether a device class has begun to serve an extended resource that is asked for."""
    name = new["spec"].get("extendedResourceName")
    if old is None and requests.get(PREFIX + name_of(new)):
        return True
    return bool(name and requests.get(name)) and (old is None or old["spec"].get("extendedResourceName") != name)


def _score_of(strategy: Mapping[str, Any]) -> Score:
    kind = strategy.get("type") or "LeastAllocated"
    if kind == "MostAllocated":
        return lambda used, capacity: min(used, capacity) * MAX_SCORE // capacity
    if kind == "RequestedToCapacityRatio":
        shape = line((strategy.get("requestedToCapacityRatio") or {}).get("shape") or ())
        return lambda used, capacity: on_line(shape, used * 100 // capacity if used <= capacity else 100)
    return lambda used, capacity: (capacity - used) * MAX_SCORE // capacity if used <= capacity else 0
