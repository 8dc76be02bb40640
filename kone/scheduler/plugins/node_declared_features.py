"""NodeDeclaredFeatures: the node declares the features that the pod needs."""

from __future__ import annotations

from collections.abc import Hashable

from kone.apimachinery.declared_features import declared_by
from kone.scheduler.framework import CycleState, Happened, Plugin, Status, unresolvable
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo

LACKING = "node(s) didn't match Pod's required features"


class NodeDeclaredFeatures(Plugin):
    name = "NodeDeclaredFeatures"
    wakes_on = Happened.NODE_ADDED | Happened.NODE_FEATURES

    def sign(self, pod: PodInfo) -> Hashable:
        return tuple(pod.needed_features)

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        needed = pod.needed_features
        return unresolvable(LACKING) if needed and not {*needed}.issubset(declared_by(node.node)) else None
