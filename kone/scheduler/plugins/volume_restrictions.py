"""VolumeRestrictions: a claim of access mode ReadWriteOncePod is for one pod of the whole cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kone.apimachinery.objects import Key, dig
from kone.scheduler.framework import (
    SKIP,
    ClusterEvent,
    CycleState,
    Happened,
    Plugin,
    Status,
    unresolvable,
    unschedulable,
)
from kone.scheduler.plugins.volume_binding import not_found
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo

IN_USE = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"


@dataclass(slots=True)
class Exclusive:
    """The pod's claims that no other pod may use, and how many pods use each."""

    users: Counter[str]

    def clone(self) -> Exclusive:
        return Exclusive(Counter(self.users))


class VolumeRestrictions(Plugin):
    name = "VolumeRestrictions"
    wakes_on = Happened.POD_GONE | Happened.NODE_ADDED | Happened.CLAIM

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & Happened.POD_GONE:
            gone = PodInfo(event.old or {})
            return gone.namespace == pod.namespace and not gone.claims.isdisjoint(pod.claims)
        return not event.what & Happened.CLAIM or (event.old is None and pod.uses_claim(event.new))

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        exclusive: set[str] = set()
        for volume in pod.spec.get("volumes") or ():
            if (source := volume.get("persistentVolumeClaim")) is None:
                continue
            name = source.get("claimName", "")
            claim = self.cluster.claims.get(Key(pod.namespace, name))
            if claim is None:
                return unresolvable(not_found(name))
            if "ReadWriteOncePod" in dig(claim, "spec", "accessModes", default=()):
                exclusive.add(name)
        users = Counter(
            {name: used for name in exclusive if (used := self.cluster.claim_users.get(Key(pod.namespace, name)))}
        )
        if not users:
            return SKIP
        state.data[self.name] = Exclusive(users)
        return None

    def add_pod(self, state: CycleState, pod: PodInfo, added: PodInfo, node: NodeInfo) -> None:
        self._shift(state, pod, added, 1)

    def remove_pod(self, state: CycleState, pod: PodInfo, removed: PodInfo, node: NodeInfo) -> None:
        self._shift(state, pod, removed, -1)

    def _shift(self, state: CycleState, pod: PodInfo, other: PodInfo, sign: int) -> None:
        exclusive: Exclusive = state.data[self.name]
        if other.namespace == pod.namespace:
            for name in other.claims & exclusive.users.keys():
                exclusive.users[name] += sign

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        exclusive: Exclusive = state.data[self.name]
        return unschedulable(IN_USE) if any(exclusive.users.values()) else None
