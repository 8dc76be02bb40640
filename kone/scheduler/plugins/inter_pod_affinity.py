"""InterPodAffinity: pods that want to be near others, or away from them, by a label of the nodes.

pre_filter counts, for each value of each topology label, the pods that matter: those that the pod wants, those that it
does not want, and those that do not want it. A node is then judged by its labels alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from kone.apimachinery.errors import FieldError, invalid_value
from kone.scheduler.framework import (
    MAX_SCORE,
    NO_ARGUMENTS,
    SKIP,
    ClusterEvent,
    CycleState,
    Happened,
    Plugin,
    Status,
    unresolvable,
    unschedulable,
)
from kone.scheduler.pod_info import AffinityTerm, PodInfo
from kone.scheduler.snapshot import Cluster, NodeInfo

EXISTING_ANTI_AFFINITY = "node(s) didn't satisfy existing pods anti-affinity rules"
AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
HARD_WEIGHT = 1  # what an existing pod's required affinity adds to a node's score (hardPodAffinityWeight)

Sums = dict[str, Counter[str]]  # by topology label, by its value


@dataclass(slots=True)
class Counts:
    wanted: Sums = field(default_factory=dict)
    unwanted: Sums = field(default_factory=dict)
    refusing: Sums = field(default_factory=dict)

    def clone(self) -> Counts:
        return Counts(
            *({k: Counter(v) for k, v in sums.items()} for sums in (self.wanted, self.unwanted, self.refusing))
        )


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

    arguments: ClassVar = {"hardPodAffinityWeight": int, "ignorePreferredTermsOfExistingPods": bool}

    def __init__(self, cluster: Cluster, args: Mapping[str, Any] = NO_ARGUMENTS) -> None:
        super().__init__(cluster, args)
        self._hard_weight = args.get("hardPodAffinityWeight", HARD_WEIGHT)
        self._ignores_preferred = bool(args.get("ignorePreferredTermsOfExistingPods"))

    @classmethod
    def check(cls, path: str, args: Mapping[str, Any]) -> Iterable[FieldError]:
        if not 0 <= (weight := args.get("hardPodAffinityWeight", HARD_WEIGHT)) <= 100:
            yield invalid_value(f"{path}.hardPodAffinityWeight", weight, "not in valid range [0, 100]")

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
        if pod.affinity_terms or pod.anti_affinity_terms:
            self._count_all(counts, pod, nodes)
        own = self.cluster.namespace_labels(pod.namespace)
        refuses = _per_group(lambda other: [t for t in other.anti_affinity_terms if t.matches(pod, own)])
        for node, groups in self.cluster.affine_groups():
            for group in groups:
                for term in refuses(group.pod):
                    _add(counts.refusing, term, node, group.size)
        if not (pod.affinity_terms or pod.anti_affinity_terms or counts.refusing):
            return SKIP
        state.data[self.name] = counts
        return None

    def _count_all(self, counts: Counts, pod: PodInfo, nodes: Sequence[NodeInfo]) -> None:
        """The pods that the pod wants near or far. A pod is wanted where it meets all terms of affinity."""
        wanted = tuple(term.sign for term in pod.affinity_terms)
        for node in nodes:
            if wanted and (size := node.tally(wanted, lambda other: self._is_meant(pod.affinity_terms, other))):
                for term in pod.affinity_terms:
                    _add(counts.wanted, term, node, size)
            for term in pod.anti_affinity_terms:
                _add(counts.unwanted, term, node, self._size(term, node))

    def _size(self, term: AffinityTerm, node: NodeInfo) -> int:
        """How many pods on the node the term means."""
        return node.tally((term.sign,), lambda other: self._is_meant((term,), other))

    def _is_meant(self, terms: Sequence[AffinityTerm], other: PodInfo) -> bool:
        labels = self.cluster.namespace_labels(other.namespace)
        return all(term.matches(other, labels) for term in terms)

    def add_pod(self, state: CycleState, pod: PodInfo, added: PodInfo, node: NodeInfo) -> None:
        self._shift(state.data[self.name], pod, added, node, 1)

    def remove_pod(self, state: CycleState, pod: PodInfo, removed: PodInfo, node: NodeInfo) -> None:
        self._shift(state.data[self.name], pod, removed, node, -1)

    def _shift(self, counts: Counts, pod: PodInfo, other: PodInfo, node: NodeInfo, sign: int) -> None:
        if pod.affinity_terms and self._is_meant(pod.affinity_terms, other):
            for term in pod.affinity_terms:
                _add(counts.wanted, term, node, sign)
        for term in pod.anti_affinity_terms:
            if self._is_meant((term,), other):
                _add(counts.unwanted, term, node, sign)
        own = self.cluster.namespace_labels(pod.namespace)
        for term in other.anti_affinity_terms:
            if term.matches(pod, own):
                _add(counts.refusing, term, node, sign)

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        counts: Counts = state.data[self.name]
        labels = node.labels
        if not self._is_wanted(counts, pod, labels):
            return unresolvable(AFFINITY)
        for term in pod.anti_affinity_terms:
            if _at(counts.unwanted, term.topology_key, labels) > 0:
                return unschedulable(ANTI_AFFINITY)
        if any(_at(counts.refusing, key, labels) > 0 for key in counts.refusing):
            return unschedulable(EXISTING_ANTI_AFFINITY)
        return None

    def _is_wanted(self, counts: Counts, pod: PodInfo, labels: Mapping[str, str]) -> bool:
        missing = False
        for term in pod.affinity_terms:
            if term.topology_key not in labels:
                return False
            missing = missing or _at(counts.wanted, term.topology_key, labels) <= 0
        if not missing:
            return True
        # The first pod of a group that wants its own kind near must be allowed to begin.
        own = self.cluster.namespace_labels(pod.namespace)
        nobody = not any(count > 0 for values in counts.wanted.values() for count in values.values())
        return nobody and all(term.matches(pod, own) for term in pod.affinity_terms)

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        sums: Sums = {}
        own = self.cluster.namespace_labels(pod.namespace)
        prefers = bool(pod.preferred_affinity_terms or pod.preferred_anti_affinity_terms)
        if prefers:
            for node in self.cluster.nodes():
                for term in pod.preferred_affinity_terms:
                    _add(sums, term, node, term.weight * self._size(term, node))
                for term in pod.preferred_anti_affinity_terms:
                    _add(sums, term, node, -term.weight * self._size(term, node))

        def weights(other: PodInfo) -> list[tuple[AffinityTerm, int]]:
            terms = [(term, self._hard_weight) for term in other.affinity_terms if self._hard_weight]
            if prefers or not self._ignores_preferred:
                terms += [(term, term.weight) for term in other.preferred_affinity_terms]
                terms += [(term, -term.weight) for term in other.preferred_anti_affinity_terms]
            return [(term, weight) for term, weight in terms if term.matches(pod, own)]

        matching = _per_group(weights)
        for node, groups in self.cluster.affine_groups():
            for group in groups:
                for term, weight in matching(group.pod):
                    _add(sums, term, node, weight * group.size)
        if not sums:
            return SKIP
        state.data[f"{self.name} score"] = sums
        return None

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        sums: Sums = state.data[f"{self.name} score"]
        return sum(_at(sums, key, node.labels) for key in sums)

    def normalize(self, state: CycleState, pod: PodInfo, scores: dict[str, int]) -> None:
        lowest, highest = min(scores.values()), max(scores.values())
        span = highest - lowest
        for name, score in scores.items():
            scores[name] = int(MAX_SCORE * (score - lowest) / span) if span else 0


T = TypeVar("T")


def _per_group(work_out: Callable[[PodInfo], list[T]]) -> Callable[[PodInfo], list[T]]:
    """`work_out` asked once for all pods whose terms are the same."""
    known: dict[bytes, list[T]] = {}

    def recall(other: PodInfo) -> list[T]:
        found = known.get(other.affinity_sign)
        if found is None:
            found = known[other.affinity_sign] = work_out(other)
        return found

    return recall


def _at(sums: Sums, key: str, labels: Mapping[str, str]) -> int:
    """The sum at a node with these labels."""
    value = labels.get(key)
    return sums[key][value] if value is not None and key in sums else 0


def _add(into: Sums, term: AffinityTerm, node: NodeInfo, amount: int) -> None:
    """Count at the node's value of the term's topology label."""
    if amount and (value := node.labels.get(term.topology_key)) is not None:
        into.setdefault(term.topology_key, Counter())[value] += amount
