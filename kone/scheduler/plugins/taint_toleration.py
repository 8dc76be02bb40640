"""TaintToleration: a pod goes only where it tolerates the taints, and rather not where pods are not wanted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from kone.apimachinery.objects import dig
from kone.apimachinery.taints import keeps_away, tolerates_any
from kone.scheduler.framework import (
    SKIP,
    ClusterEvent,
    CycleState,
    Happened,
    Plugin,
    Status,
    spread_scores,
    unresolvable,
)
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo


class TaintToleration(Plugin):
    name = "TaintToleration"
    weight = 3
    wakes_on = Happened.NODE_ADDED | Happened.NODE_TAINTS | Happened.SELF_TOLERATIONS

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & Happened.SELF_TOLERATIONS:
            return True
        was_kept_away = event.old is None or keeps_away(dig(event.old, "spec", "taints", default=()), pod.tolerations)
        return was_kept_away and not keeps_away(dig(event.new, "spec", "taints", default=()), pod.tolerations)

    def sign(self, pod: PodInfo) -> Hashable:
        return pod.tolerations_sign

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        if node.taints and keeps_away(node.taints, pod.tolerations):
            return unresolvable("node(s) had untolerated taint(s)")
        return None

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        # Where no node has taints, all are alike.
        return None if any(node.taints for node in nodes) else SKIP

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        soft = [taint for taint in node.taints if taint.get("effect") == "PreferNoSchedule"]
        return sum(not tolerates_any(pod.tolerations, taint) for taint in soft)

    def normalize(self, state: CycleState, pod: PodInfo, scores: dict[str, int]) -> None:
        spread_scores(scores, reverse=True)
