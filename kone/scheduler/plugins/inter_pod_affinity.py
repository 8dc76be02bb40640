"""InterPodAffinity: pods that want to be near others, or away from them, by a label of the nodes.

pre_filter counts, for each value of each topology label, the pods that matter: those that the pod wants, those that it
does not want, and those that do not want it. A node is then judged by its labels alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
from kone.scheduler.snapshot import AffinityTerm, Cluster, NodeInfo, PodInfo

EXISTING_ANTI_AFFINITY = "node(s) didn't satisfy existing pods anti-affinity rules"
AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
REQUIRED_WEIGHT = 1  # what an existing pod's required affinity adds to a node's score (hardPodAffinityWeight)

Pair = tuple[str, str]  # (topology label, its value)


@dataclass(slots=True)
class Counts:
    wanted: Counter[Pair] = field(default_factory=Counter)
    unwanted: Counter[Pair] = field(default_factory=Counter)
    refusing: Counter[Pair] = field(default_factory=Counter)

    def clone(self) -> Counts:
        return Counts(Counter(self.wanted), Counter(self.unwanted), Counter(self.refusing))


class InterPodAffinity(Plugin):
    name = "InterPodAffinity"
    weight = 2
    wakes_on = (
        Happened.POD_ADDED
        | Happened.POD_LABELS
        | Happened.POD_GONE
        | Happened.NODE_ADDED
        | Happened.NODE_LABELS
        | Happened.SELF_LABELS
        | Happened.NAMESPACE_LABELS
    )

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if not event.what & (Happened.POD_ADDED | Happened.POD_GONE):
            return True
        other = PodInfo(event.new or event.old or {})
        labels = self.cluster.namespace_labels(other.namespace)
        terms = pod.affinity_terms if event.what & Happened.POD_ADDED else pod.anti_affinity_terms
        if any(term.matches(other, labels) for term in terms):
            return True
        own = self.cluster.namespace_labels(pod.namespace)
        return bool(event.what & Happened.POD_GONE) and any(t.matches(pod, own) for t in other.anti_affinity_terms)

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        counts = Counts()
        has_terms = bool(pod.affinity_terms or pod.anti_affinity_terms)
        if has_terms:
            for node in nodes:
                for other in node.pods.values():
                    _count(self.cluster, counts, pod, other, node, 1)
        else:
            own = self.cluster.namespace_labels(pod.namespace)
            for node, other in self.cluster.pods_with_affinity():
                _count_terms(counts.refusing, other.anti_affinity_terms, pod, own, node, 1)
            if not counts.refusing:
                return SKIP
        state.data[self.name] = counts
        return None

    def add_pod(self, state: CycleState, pod: PodInfo, added: PodInfo, node: NodeInfo) -> None:
        _count(self.cluster, state.data[self.name], pod, added, node, 1)

    def remove_pod(self, state: CycleState, pod: PodInfo, removed: PodInfo, node: NodeInfo) -> None:
        _count(self.cluster, state.data[self.name], pod, removed, node, -1)

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        counts: Counts = state.data[self.name]
        labels = node.labels
        if not self._is_wanted(counts, pod, labels):
            return unresolvable(AFFINITY)
        for term in pod.anti_affinity_terms:
            value = labels.get(term.topology_key)
            if value is not None and counts.unwanted[term.topology_key, value] > 0:
                return unschedulable(ANTI_AFFINITY)
        if any(count > 0 and labels.get(key) == value for (key, value), count in counts.refusing.items()):
            return unschedulable(EXISTING_ANTI_AFFINITY)
        return None

    def _is_wanted(self, counts: Counts, pod: PodInfo, labels: Mapping[str, str]) -> bool:
        missing = False
        for term in pod.affinity_terms:
            value = labels.get(term.topology_key)
            if value is None:
                return False
            missing = missing or counts.wanted[term.topology_key, value] <= 0
        if not missing:
            return True
        # The first pod of a group that wants its own kind near must be allowed to begin.
        own = self.cluster.namespace_labels(pod.namespace)
        nobody = not any(count > 0 for count in counts.wanted.values())
        return nobody and all(term.matches(pod, own) for term in pod.affinity_terms)

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        sums: Counter[Pair] = Counter()
        own = self.cluster.namespace_labels(pod.namespace)
        if pod.preferred_affinity_terms or pod.preferred_anti_affinity_terms:
            for node in self.cluster.nodes():
                for other in node.pods.values():
                    labels = self.cluster.namespace_labels(other.namespace)
                    _count_terms(sums, pod.preferred_affinity_terms, other, labels, node, 1, weighted=True)
                    _count_terms(sums, pod.preferred_anti_affinity_terms, other, labels, node, -1, weighted=True)
        for node, other in self.cluster.pods_with_affinity():
            _count_terms(sums, other.affinity_terms, pod, own, node, REQUIRED_WEIGHT)
            _count_terms(sums, other.preferred_affinity_terms, pod, own, node, 1, weighted=True)
            _count_terms(sums, other.preferred_anti_affinity_terms, pod, own, node, -1, weighted=True)
        if not sums:
            return SKIP
        state.data[f"{self.name} score"] = sums
        return None

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        sums: Counter[Pair] = state.data[f"{self.name} score"]
        labels = node.labels
        return sum(weight for (key, value), weight in sums.items() if labels.get(key) == value)

    def normalize(self, state: CycleState, pod: PodInfo, scores: dict[str, int]) -> None:
        lowest, highest = min(scores.values()), max(scores.values())
        span = highest - lowest
        for name, score in scores.items():
            scores[name] = int(MAX_SCORE * (score - lowest) / span) if span else 0


def _count(cluster: Cluster, counts: Counts, pod: PodInfo, other: PodInfo, node: NodeInfo, sign: int) -> None:
    """Add what `other` on the node means for the pod; the affinity terms count only where it meets all of them."""
    labels = cluster.namespace_labels(other.namespace)
    if pod.affinity_terms and all(term.matches(other, labels) for term in pod.affinity_terms):
        for term in pod.affinity_terms:
            if (value := node.labels.get(term.topology_key)) is not None:
                counts.wanted[term.topology_key, value] += sign
    _count_terms(counts.unwanted, pod.anti_affinity_terms, other, labels, node, sign)
    if other.has_pod_affinity:
        own = cluster.namespace_labels(pod.namespace)
        _count_terms(counts.refusing, other.anti_affinity_terms, pod, own, node, sign)


def _count_terms(
    into: Counter[Pair],
    terms: Sequence[AffinityTerm],
    pod: PodInfo,
    namespace_labels: Mapping[str, str],
    node: NodeInfo,
    sign: int,
    *,
    weighted: bool = False,
) -> None:
    """Count, at the node's topology values, each term that means the pod."""
    for term in terms:
        value = node.labels.get(term.topology_key)
        if value is not None and term.matches(pod, namespace_labels):
            into[term.topology_key, value] += sign * (term.weight if weighted else 1)
