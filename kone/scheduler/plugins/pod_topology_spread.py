"""PodTopologySpread: pods spread over zones or nodes, at most maxSkew apart.

Worked case: maxSkew 1 over zones a and b with 2 and 1 pods of the kind: a third pod in a would make 3 - 1 = 2 > 1, so
only b is left.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from kone.apimachinery.selectors import LabelSelector
from kone.scheduler.framework import (
    MAX_SCORE,
    SKIP,
    ClusterEvent,
    CycleState,
    Happened,
    Plugin,
    Status,
    unresolvable,
    unschedulable,
)
from kone.scheduler.plugins.node_affinity import matches_required
from kone.scheduler.plugins.tolerations import keeps_away
from kone.scheduler.pod_info import PodInfo, with_label_keys
from kone.scheduler.snapshot import NodeInfo

SKEWED = "node(s) didn't match pod topology spread constraints"
NO_LABEL = f"{SKEWED} (missing required label)"
HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True)
class Constraint:
    max_skew: int
    topology_key: str
    selector: LabelSelector
    min_domains: int
    honors_affinity: bool
    honors_taints: bool
    sign: bytes  # equal where the selectors are

    def includes(self, pod: PodInfo, node: NodeInfo) -> bool:
        """Whether the node's domain counts, by nodeAffinityPolicy and nodeTaintsPolicy."""
        if self.honors_affinity and (node.node is None or not matches_required(pod, node.node)):
            return False
        return not (self.honors_taints and keeps_away(node.taints, pod.tolerations))

    def count(self, node: NodeInfo, namespace: str) -> int:
        """How many pods of the kind the node has."""
        if self.selector.empty:
            return 0

        def is_counted(pod: PodInfo) -> bool:
            return pod.namespace == namespace and not pod.is_terminating and self.selector.matches(pod.labels)

        return node.tally((namespace, self.sign), is_counted)


@dataclass(slots=True)
class Spread:
    """How many pods of the kind each domain has, constraint by constraint."""

    constraints: tuple[Constraint, ...]
    counts: list[Counter[str]] = field(default_factory=list)

    def clone(self) -> Spread:
        return Spread(self.constraints, [Counter(count) for count in self.counts])

    def least(self, index: int) -> int:
        """The smallest count of any domain; 0 where there are fewer domains than minDomains."""
        counts = self.counts[index]
        if len(counts) < self.constraints[index].min_domains:
            return 0
        return min(counts.values(), default=0)


class PodTopologySpread(Plugin):
    name = "PodTopologySpread"
    weight = 2
    wakes_on = (
        Happened.POD_ADDED
        | Happened.POD_LABELS
        | Happened.POD_GONE
        | Happened.NODE_ADDED
        | Happened.NODE_LABELS
        | Happened.NODE_TAINTS
        | Happened.SELF_LABELS
        | Happened.SELF_TOLERATIONS
    )

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if not event.what & (Happened.POD_ADDED | Happened.POD_GONE):
            return True
        other = PodInfo(event.new or event.old or {})
        constraints = constraints_of(pod, "DoNotSchedule")
        return other.namespace == pod.namespace and any(c.selector.matches(other.labels) for c in constraints)

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        constraints = constraints_of(pod, "DoNotSchedule")
        if not constraints:
            return SKIP
        spread = Spread(constraints, [Counter() for _ in constraints])
        for node in nodes:
            if not _has_labels(node, constraints):
                continue
            for constraint, counts in zip(constraints, spread.counts, strict=True):
                if constraint.includes(pod, node):
                    counts[node.labels[constraint.topology_key]] += constraint.count(node, pod.namespace)
        state.data[self.name] = spread
        return None

    def add_pod(self, state: CycleState, pod: PodInfo, added: PodInfo, node: NodeInfo) -> None:
        self._shift(state, pod, added, node, 1)

    def remove_pod(self, state: CycleState, pod: PodInfo, removed: PodInfo, node: NodeInfo) -> None:
        self._shift(state, pod, removed, node, -1)

    def _shift(self, state: CycleState, pod: PodInfo, other: PodInfo, node: NodeInfo, sign: int) -> None:
        spread: Spread = state.data[self.name]
        if other.namespace != pod.namespace or not _has_labels(node, spread.constraints):
            return
        for constraint, counts in zip(spread.constraints, spread.counts, strict=True):
            if constraint.selector.matches(other.labels) and constraint.includes(pod, node):
                counts[node.labels[constraint.topology_key]] += sign

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        spread: Spread = state.data[self.name]
        for index, constraint in enumerate(spread.constraints):
            value = node.labels.get(constraint.topology_key)
            if value is None:
                return unresolvable(NO_LABEL)
            own = int(constraint.selector.matches(pod.labels))
            if spread.counts[index][value] + own - spread.least(index) > constraint.max_skew:
                return unschedulable(SKEWED)
        return None

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        constraints = constraints_of(pod, "ScheduleAnyway")
        if not constraints:
            return SKIP
        spread = Spread(constraints, [Counter() for _ in constraints])
        candidates = [node for node in nodes if _has_labels(node, constraints)]
        for constraint, counts in zip(constraints, spread.counts, strict=True):
            for node in candidates:
                counts[node.labels[constraint.topology_key]] += 0
            for node in self.cluster.nodes():
                value = node.labels.get(constraint.topology_key)
                if (
                    value is not None
                    and value in counts
                    and _has_labels(node, constraints)
                    and constraint.includes(pod, node)
                ):
                    counts[value] += constraint.count(node, pod.namespace)
        state.data[f"{self.name} score"] = spread
        return None

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        spread: Spread = state.data[f"{self.name} score"]
        if not _has_labels(node, spread.constraints):
            return 0
        total = 0.0
        for constraint, counts in zip(spread.constraints, spread.counts, strict=True):
            value = node.labels[constraint.topology_key]
            # The more domains there are, the more one pod more in this one weighs.
            total += counts[value] * math.log(len(counts) + 2) + constraint.max_skew - 1
        return math.floor(total + 0.5)

    def normalize(self, state: CycleState, pod: PodInfo, scores: dict[str, int]) -> None:
        spread: Spread = state.data[f"{self.name} score"]
        nodes = {node.name: node for node in self.cluster.nodes()}
        counted = [name for name in scores if _has_labels(nodes[name], spread.constraints)]
        lowest = min((scores[name] for name in counted), default=0)
        highest = max((scores[name] for name in counted), default=0)
        for name, score in scores.items():
            if name not in counted:
                scores[name] = 0
            else:
                scores[name] = MAX_SCORE * (highest + lowest - score) // highest if highest else MAX_SCORE


def constraints_of(pod: PodInfo, action: str) -> tuple[Constraint, ...]:
    return tuple(
        Constraint(
            int(c.get("maxSkew") or 1),
            c.get("topologyKey") or "",
            with_label_keys(c, pod.labels),
            int(c.get("minDomains") or 1),
            (c.get("nodeAffinityPolicy") or "Honor") == "Honor",
            c.get("nodeTaintsPolicy") == "Honor",
            orjson.dumps(
                [c.get("labelSelector"), [[key, pod.labels.get(key)] for key in c.get("matchLabelKeys") or ()]]
            ),
        )
        for c in pod.spec.get("topologySpreadConstraints") or ()
        if c.get("whenUnsatisfiable") == action
    )


def _has_labels(node: NodeInfo, constraints: Iterable[Constraint]) -> bool:
    labels: Mapping[str, str] = node.labels
    return all(constraint.topology_key in labels for constraint in constraints)
