"""NodeAffinity: nodeSelector and node affinity, by a node's labels and its name."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import orjson

from kone.apimachinery.config_files import ANY
from kone.apimachinery.node_selectors import matches, matches_term
from kone.apimachinery.objects import Object, dig, labels_of, name_of
from kone.scheduler.framework import (
    NO_ARGUMENTS,
    SKIP,
    ClusterEvent,
    CycleState,
    Happened,
    OnlyNodes,
    Plugin,
    Status,
    spread_scores,
    unresolvable,
)
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import Cluster, NodeInfo

NO_MATCH = "node(s) didn't match Pod's node affinity/selector"
NOT_ALLOWED = "node(s) didn't match scheduler-enforced node affinity"
CONFLICT = "pod affinity terms conflict"


class NodeAffinity(Plugin):
    name = "NodeAffinity"
    weight = 2
    wakes_on = Happened.NODE_ADDED | Happened.NODE_LABELS

    arguments: ClassVar = {"addedAffinity": ANY}

    def __init__(self, cluster: Cluster, args: Mapping[str, Any] = NO_ARGUMENTS) -> None:
        super().__init__(cluster, args)
        added = args.get("addedAffinity") or {}
        self._added: Object | None = added.get("requiredDuringSchedulingIgnoredDuringExecution")
        self._added_preferred: Sequence[Object] = added.get("preferredDuringSchedulingIgnoredDuringExecution") or ()

    def _is_allowed(self, node: Object) -> bool:
        return self._added is None or matches(self._added, labels_of(node), name_of(node))

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.new is not None and not self._is_allowed(event.new):
            return False
        if event.old is not None and not self._is_allowed(event.old):
            return True
        if event.new is None or not matches_required(pod, event.new):
            return False
        return event.old is None or not matches_required(pod, event.old)

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | OnlyNodes | None:
        required = _required(pod)
        if not chooses_nodes(pod) and self._added is None:
            return SKIP
        names = _named_nodes((required or {}).get("nodeSelectorTerms") or ())
        if names is None:
            return None
        return OnlyNodes(frozenset(names)) if names else unresolvable(CONFLICT)

    def sign(self, pod: PodInfo) -> Hashable:
        return orjson.dumps([pod.spec.get("nodeSelector"), _required(pod)])

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        if node.node is None or not self._is_allowed(node.node):
            return unresolvable(NOT_ALLOWED)
        return None if matches_required(pod, node.node) else unresolvable(NO_MATCH)

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        return None if _preferred(pod) or self._added_preferred else SKIP

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        return sum(
            int(term.get("weight") or 0)
            for term in (*_preferred(pod), *self._added_preferred)
            if matches_term(term.get("preference") or {}, node.labels, node.name)
        )

    def normalize(self, state: CycleState, pod: PodInfo, scores: dict[str, int]) -> None:
        spread_scores(scores)


def chooses_nodes(pod: PodInfo) -> bool:
    """Whether the pod goes to some nodes only."""
    return bool(pod.spec.get("nodeSelector")) or _required(pod) is not None


def matches_required(pod: PodInfo, node: Object) -> bool:
    """Whether the node has the labels of nodeSelector and meets one of the required terms."""
    labels = labels_of(node)
    if any(labels.get(key) != value for key, value in (pod.spec.get("nodeSelector") or {}).items()):
        return False
    required = _required(pod)
    return required is None or matches(required, labels, name_of(node))


def _required(pod: PodInfo) -> Object | None:
    found: Object | None = dig(pod.spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    return found


def _preferred(pod: PodInfo) -> Sequence[Object]:
    found: Sequence[Object] = dig(
        pod.spec, "affinity", "nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution", default=()
    )
    return found


def _named_nodes(terms: Iterable[Mapping[str, Any]]) -> set[str] | None:
    """The nodes that the terms name one by one; None where some term allows any node."""
    names: set[str] = set()
    found_any = False
    for term in terms:
        found_any = True
        of_term: set[str] | None = None
        for requirement in term.get("matchFields") or ():
            if requirement.get("key") == "metadata.name" and requirement.get("operator") == "In":
                values = set(requirement.get("values") or ())
                of_term = values if of_term is None else of_term & values
        if of_term is None:
            return None
        names |= of_term
    return names if found_any else None
