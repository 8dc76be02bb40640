"""VolumeZone: a pod goes to the zone and region that the labels of its bound volumes name.

Volumes made with node affinity are VolumeBinding's; this is for those that only carry labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kone.apimachinery.objects import Key, Object, dig, labels_of
from kone.apimachinery.volume_claims import class_of, waits_for_consumer
from kone.scheduler.framework import (
    SKIP,
    ClusterEvent,
    CycleState,
    Happened,
    Plugin,
    Status,
    unresolvable,
)
from kone.scheduler.plugins.volume_binding import not_found
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo

OTHER_ZONE = "node(s) had no available volume zone"
_BETA = {
    "topology.kubernetes.io/zone": "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region": "failure-domain.beta.kubernetes.io/region",
}
TOPOLOGY_LABELS = {**_BETA, **{old: new for new, old in _BETA.items()}}
"""Each label with its other spelling."""

Topology = tuple[str, frozenset[str]]  # (label, the values that will do)


class VolumeZone(Plugin):
    name = "VolumeZone"
    wakes_on = Happened.CLAIM | Happened.VOLUME | Happened.STORAGE_CLASS | Happened.NODE_ADDED | Happened.NODE_LABELS

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & Happened.CLAIM:
            return pod.uses_claim(event.new)
        if event.what & Happened.VOLUME and event.old is not None:
            return topologies_of(event.old) != topologies_of(event.new or {})
        if event.what & Happened.STORAGE_CLASS:
            return event.old is None and waits_for_consumer(event.new)
        return True

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        found: list[Topology] = []
        for volume in pod.spec.get("volumes") or ():
            if (source := volume.get("persistentVolumeClaim")) is None:
                continue
            answer = self._topologies(pod, source.get("claimName", ""))
            if isinstance(answer, Status):
                return answer
            found += answer
        if not found:
            return SKIP
        state.data[self.name] = found
        return None

    def _topologies(self, pod: PodInfo, name: str) -> list[Topology] | Status:
        claim = self.cluster.claims.get(Key(pod.namespace, name))
        if claim is None:
            return unresolvable(not_found(name))
        bound_to = dig(claim, "spec", "volumeName", default="")
        if bound_to:
            volume = self.cluster.volumes.get(bound_to)
            if volume is None:
                return unresolvable(f'persistentvolume "{bound_to}" not found')
            return topologies_of(volume)
        named = class_of(claim)
        if not named:
            return unresolvable("PersistentVolumeClaim had no pv name and storageClass name")
        storage_class = self.cluster.storage_classes.get(named)
        if storage_class is None:
            return unresolvable(f'storageclass.storage.k8s.io "{named}" not found')
        return [] if waits_for_consumer(storage_class) else unresolvable("PersistentVolume had no name")

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        if not any(label in node.labels for label in TOPOLOGY_LABELS):
            return None  # a node of no zone takes all
        topologies: list[Topology] = state.data[self.name]
        if all(_value(node.labels, label) in values for label, values in topologies):
            return None
        return unresolvable(OTHER_ZONE)


def topologies_of(volume: Object) -> list[Topology]:
    """What the volume's labels say; several values are joined by two underscores."""
    return [
        (label, frozenset(value.split("__")))
        for label in sorted(TOPOLOGY_LABELS)
        if (value := labels_of(volume).get(label)) is not None
    ]


def _value(labels: Mapping[str, str], label: str) -> str | None:
    return labels.get(label, labels.get(TOPOLOGY_LABELS[label]))
