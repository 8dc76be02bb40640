"""VolumeRestrictions: a claim of access mode ReadWriteOncePod is for one pod of the whole cluster, and a disk that
a pod names itself is for one pod of the node, unless all only read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
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
DISK_IN_USE = "node(s) had no available disk"


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
            shares_claim = gone.namespace == pod.namespace and not gone.claims.isdisjoint(pod.claims)
            return shares_claim or any(_conflict(disk, other) for disk in _disks(pod) for other in _disks(gone))
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
        if not users and not any(_disks(pod)):
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
        for disk in _disks(pod):
            if any(_conflict(disk, other) for there in node.pods.values() for other in _disks(there)):
                return unschedulable(DISK_IN_USE)
        exclusive: Exclusive = state.data[self.name]
        return unschedulable(IN_USE) if any(exclusive.users.values()) else None


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as pods name it themselves, without a claim. Of RBD images, one common monitor means the same cluster."""

    identity: tuple[str, ...]
    read_only: bool
    monitors: frozenset[str] = frozenset()


def _disks(pod: PodInfo) -> Iterator[Disk]:
    for volume in pod.spec.get("volumes") or ():
        if (gce := volume.get("gcePersistentDisk")) is not None:
            yield Disk(("gce", gce.get("pdName", "")), bool(gce.get("readOnly")))
        if (aws := volume.get("awsElasticBlockStore")) is not None:
            yield Disk(("aws", aws.get("volumeID", "")), False)  # it is attached once, even to be read
        if (iscsi := volume.get("iscsi")) is not None:
            yield Disk(("iscsi", iscsi.get("iqn", "")), bool(iscsi.get("readOnly")))
        if (rbd := volume.get("rbd")) is not None:
            image = ("rbd", rbd.get("pool") or "rbd", rbd.get("image", ""))
            yield Disk(image, bool(rbd.get("readOnly")), frozenset(rbd.get("monitors") or ()))


def _conflict(one: Disk, other: Disk) -> bool:
    if one.identity != other.identity or (one.read_only and other.read_only):
        return False
    return one.monitors == other.monitors or not one.monitors.isdisjoint(other.monitors)
