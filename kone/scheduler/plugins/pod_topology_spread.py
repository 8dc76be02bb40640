"""PodTopologySpread: pods spread over zones or nodes, at most maxSkew apart.

Worked case: maxSkew 1 over zones a and b with 2 and 1 pods of the kind: a third pod in a would make 3 - 1 = 2 > 1, so
only b is left.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from kone.apimachinery.errors import FieldError, invalid_value, not_supported, required
from kone.apimachinery.objects import Object, controller_of, labels_of
from kone.apimachinery.selectors import LabelSelector, from_label_selector
from kone.apimachinery.taints import keeps_away
from kone.scheduler.framework import (
    MAX_SCORE,
    NO_ARGUMENTS,
    SKIP,
    ClusterEvent,
    Code,
    CycleState,
    Happened,
    Plugin,
    Status,
)
from kone.scheduler.plugins.node_affinity import chooses_nodes, matches_required
from kone.scheduler.pod_info import PodInfo, with_label_keys
from kone.scheduler.snapshot import Cluster, NodeInfo

SKEWED = "node(s) didn't match pod topology spread constraints"
NO_LABEL = f"{SKEWED} (missing required label)"
HOSTNAME = "kubernetes.io/hostname"
BY_SYSTEM: Sequence[Object] = (
    {"maxSkew": 3, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway"},
    {"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"},
)
"""What pods of a service, or of a controller, are spread by that say nothing themselves."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint of one pod."""

    max_skew: int
    topology_key: str
    selector: LabelSelector
    min_domains: int
    honors_affinity: bool  # of a pod that goes to some nodes only
    honors_taints: bool
    own: int  # 1 where the pod itself is of the kind
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
        known = node.tallies.get((namespace, self.sign))
        if known is not None:
            return known.total

        def is_counted(pod: PodInfo) -> bool:
            return pod.namespace == namespace and not pod.is_terminating and self.selector.matches(pod.labels)

        return node.tally((namespace, self.sign), is_counted)


@dataclass(slots=True)
class Spread:
    """How many pods of the kind each domain has, constraint by constraint."""

    constraints: tuple[Constraint, ...]
    counts: list[Counter[str]] = field(default_factory=list)
    _least: dict[int, int] = field(default_factory=dict)

    def clone(self) -> Spread:
        return Spread(self.constraints, [Counter(count) for count in self.counts])

    def shift(self, index: int, value: str, by: int) -> None:
        self.counts[index][value] += by
        self._least.pop(index, None)

    def least(self, index: int) -> int:
        """The smallest count of any domain; 0 where there are fewer domains than minDomains."""
        found = self._least.get(index)
        if found is None:
            counts = self.counts[index]
            enough = len(counts) >= self.constraints[index].min_domains
            found = self._least[index] = min(counts.values(), default=0) if enough else 0
        return found


@dataclass(slots=True)
class Preference:
    """What nodes are scored by: beside the counts, how much each constraint weighs. `ignored` nodes lack a label."""

    spread: Spread
    weights: list[float] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)


NAME = "PodTopologySpread"
_OF_NODES = Happened.NODE_ADDED | Happened.NODE_LABELS | Happened.NODE_TAINTS | Happened.NODE_GONE
_SKEWED = Status(Code.UNSCHEDULABLE, (SKEWED,), NAME)
_NO_LABEL = Status(Code.UNRESOLVABLE, (NO_LABEL,), NAME)


class PodTopologySpread(Plugin):
    name = NAME
    weight = 2
    wakes_on = (
        Happened.POD_ADDED
        | Happened.POD_LABELS
        | Happened.POD_GONE
        | Happened.NODE_ADDED
        | Happened.NODE_LABELS
        | Happened.NODE_TAINTS
        | Happened.NODE_GONE
        | Happened.SELF_LABELS
        | Happened.SELF_TOLERATIONS
    )

    arguments: ClassVar = {
        "defaultConstraints": [{"maxSkew": int, "topologyKey": str, "whenUnsatisfiable": str}],
        "defaultingType": str,
    }

    def __init__(self, cluster: Cluster, args: Mapping[str, Any] = NO_ARGUMENTS) -> None:
        super().__init__(cluster, args)
        self._by_system = args.get("defaultingType", "System") == "System"
        self._defaults: Sequence[Object] = BY_SYSTEM if self._by_system else args.get("defaultConstraints") or ()

    @classmethod
    def check(cls, path: str, args: Mapping[str, Any]) -> Iterable[FieldError]:
        kind, constraints = args.get("defaultingType", "System"), args.get("defaultConstraints") or ()
        if kind not in ("System", "List"):
            yield not_supported(f"{path}.defaultingType", kind, ["System", "List"])
        elif kind == "System" and constraints:
            yield invalid_value(f"{path}.defaultingType", kind, "when .defaultConstraints are not empty")
        for i, constraint in enumerate(constraints):
            at, action = f"{path}.defaultConstraints[{i}]", constraint.get("whenUnsatisfiable") or ""
            if (skew := constraint.get("maxSkew") or 0) <= 0:
                yield invalid_value(f"{at}.maxSkew", skew, "not in valid range (0, inf)")
            if not constraint.get("topologyKey"):
                yield required(f"{at}.topologyKey", "can not be empty")
            if not action:
                yield required(f"{at}.whenUnsatisfiable", "can not be empty")
            elif action not in ("DoNotSchedule", "ScheduleAnyway"):
                yield not_supported(f"{at}.whenUnsatisfiable", action, ["DoNotSchedule", "ScheduleAnyway"])

    def _constraints(self, pod: PodInfo, action: str) -> tuple[Constraint, ...]:
        """The pod's own, or the default ones over the pods of its services and its owner."""
        if pod.spec.get("topologySpreadConstraints"):
            return constraints_of(pod, action)
        wanted = [default for default in self._defaults if default.get("whenUnsatisfiable") == action]
        if not wanted:
            return ()
        selector, sign = self._default_selector(pod)
        if selector.empty:
            return ()
        own = int(selector.matches(pod.labels))
        return tuple(
            Constraint(default["maxSkew"], default["topologyKey"], selector, 1, chooses_nodes(pod), False, own, sign)
            for default in wanted
        )

    def _default_selector(self, pod: PodInfo) -> tuple[LabelSelector, bytes]:
        """Whom the pod is spread among: what its services select, and what its owner does."""
        labels: dict[str, str] = {}
        for selector in self.cluster.services.get(pod.namespace, {}).values():
            if selector and all(pod.labels.get(key) == value for key, value in selector.items()):
                labels |= selector
        owner = controller_of(pod.pod)
        owned: Object = (self.cluster.selectors.get(owner.get("uid", "")) if owner else None) or {}
        if owned and "matchLabels" not in owned and "matchExpressions" not in owned:
            labels |= owned  # a ReplicationController's is a plain map
            owned = {}
        parts = [from_label_selector({"matchLabels": labels}), from_label_selector(owned)]
        requirements = [requirement for part in parts for requirement in part.requirements]
        return LabelSelector(requirements), orjson.dumps([labels, owned])

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & _OF_NODES:
            return self._node_wakes(pod, event)
        if not event.what & (Happened.POD_ADDED | Happened.POD_GONE):
            return True
        other = PodInfo(event.new or event.old or {})
        constraints = self._constraints(pod, "DoNotSchedule")
        return other.namespace == pod.namespace and any(c.selector.matches(other.labels) for c in constraints)

    def _node_wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        """A node came into the count of domains or went out of it, or it belongs to other domains now."""
        keys = [constraint.topology_key for constraint in self._constraints(pod, "DoNotSchedule")]
        before, after = (labels_of(node) if node is not None else {} for node in (event.old, event.new))
        counted, counts = (all(key in labels for key in keys) for labels in (before, after))
        if event.old is None or event.new is None:
            return counted or counts
        moved = any(before.get(key) != after.get(key) for key in keys)
        return counted != counts or (counts and (moved or bool(event.what & Happened.NODE_TAINTS)))

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        constraints = self._constraints(pod, "DoNotSchedule")
        if not constraints:
            return SKIP
        spread = Spread(constraints, [Counter() for _ in constraints])
        keys = [constraint.topology_key for constraint in constraints]
        for node in nodes:
            values = [node.labels.get(key) for key in keys]
            if None in values:
                continue
            for constraint, counts, value in zip(constraints, spread.counts, values, strict=True):
                if value is not None and constraint.includes(pod, node):
                    counts[value] += constraint.count(node, pod.namespace)
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
        for index, constraint in enumerate(spread.constraints):
            if constraint.selector.matches(other.labels) and constraint.includes(pod, node):
                spread.shift(index, node.labels[constraint.topology_key], sign)

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        spread: Spread = state.data[self.name]
        for index, constraint in enumerate(spread.constraints):
            value = node.labels.get(constraint.topology_key)
            if value is None:
                return _NO_LABEL
            if spread.counts[index][value] + constraint.own - spread.least(index) > constraint.max_skew:
                return _SKEWED
        return None

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        constraints = self._constraints(pod, "ScheduleAnyway")
        if not constraints:
            return SKIP
        # What the system itself prefers shall spread over hosts where there are no zones.
        needs_all = bool(pod.spec.get("topologySpreadConstraints")) or not self._by_system
        found = Preference(Spread(constraints, [Counter() for _ in constraints]))
        if needs_all:
            found.ignored = {node.name for node in nodes if not _has_labels(node, constraints)}
        candidates = [node for node in nodes if node.name not in found.ignored]
        for constraint, counts in zip(constraints, found.spread.counts, strict=True):
            if constraint.topology_key == HOSTNAME:  # a host is counted when it is scored
                found.weights.append(math.log(len(candidates) + 2))
                continue
            counts.update({node.labels.get(constraint.topology_key, ""): 0 for node in candidates})
            # The more domains there are, the more one pod more in this one weighs.
            found.weights.append(math.log(len(counts) + 2))
            if counts.keys() != {""}:
                self._count_domains(pod, constraint, counts, constraints if needs_all else ())
        state.data[f"{self.name} score"] = found
        return None

    def _count_domains(
        self, pod: PodInfo, constraint: Constraint, counts: Counter[str], needed: Sequence[Constraint]
    ) -> None:
        """Add up the pods of the kind on all nodes of the domains that `counts` has."""
        for node in self.cluster.nodes():
            value = node.labels.get(constraint.topology_key, "")
            if value in counts and _has_labels(node, needed) and constraint.includes(pod, node):
                counts[value] += constraint.count(node, pod.namespace)

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        found: Preference = state.data[f"{self.name} score"]
        if node.name in found.ignored:
            return 0
        total = 0.0
        for constraint, counts, weight in zip(
            found.spread.constraints, found.spread.counts, found.weights, strict=True
        ):
            value = node.labels.get(constraint.topology_key)
            if value is not None:
                is_host = constraint.topology_key == HOSTNAME
                count = constraint.count(node, pod.namespace) if is_host else counts[value]
                total += count * weight + constraint.max_skew - 1
        return math.floor(total + 0.5)

    def normalize(self, state: CycleState, pod: PodInfo, scores: dict[str, int]) -> None:
        found: Preference = state.data[f"{self.name} score"]
        counted = [score for name, score in scores.items() if name not in found.ignored]
        lowest, highest = min(counted, default=0), max(counted, default=0)
        for name, score in scores.items():
            if name in found.ignored:
                scores[name] = 0
            else:
                scores[name] = MAX_SCORE * (highest + lowest - score) // highest if highest else MAX_SCORE


def constraints_of(pod: PodInfo, action: str) -> tuple[Constraint, ...]:
    return tuple(
        _constraint(pod, c)
        for c in pod.spec.get("topologySpreadConstraints") or ()
        if c.get("whenUnsatisfiable") == action
    )


def _constraint(pod: PodInfo, c: Object) -> Constraint:
    selector = with_label_keys(c, pod.labels)
    more = [[key, pod.labels.get(key)] for key in c.get("matchLabelKeys") or ()]
    return Constraint(
        int(c.get("maxSkew") or 1),
        c.get("topologyKey") or "",
        selector,
        int(c.get("minDomains") or 1),
        (c.get("nodeAffinityPolicy") or "Honor") == "Honor" and chooses_nodes(pod),
        c.get("nodeTaintsPolicy") == "Honor",
        int(selector.matches(pod.labels)),
        orjson.dumps([c.get("labelSelector"), more]),
    )


def _has_labels(node: NodeInfo, constraints: Iterable[Constraint]) -> bool:
    labels: Mapping[str, str] = node.labels
    return all(constraint.topology_key in labels for constraint in constraints)
