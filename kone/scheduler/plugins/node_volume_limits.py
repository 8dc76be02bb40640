"""NodeVolumeLimits: a node takes as many volumes of a CSI driver as its CSINode says.

Worked case: driver d allows two volumes on node n, where pods use volumes d/a and d/b. A pod with d/b fits, as b is
counted once; a pod with d/c does not: 2 + 1 > 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from kone.apimachinery.objects import Key, Object, dig, name_of, namespace_of
from kone.apimachinery.volume_claims import class_of
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
from kone.scheduler.snapshot import Cluster, NodeInfo

TOO_MANY = "node(s) exceed max volume count"

Volume = tuple[str, str]  # (driver, the volume's name there)


class NodeVolumeLimits(Plugin):
    name = "NodeVolumeLimits"
    wakes_on = Happened.CSI_NODE | Happened.POD_GONE | Happened.CLAIM | Happened.DETACHED

    def wakes(self, pod: PodInfo, event: ClusterEvent) -> bool:
        if event.what & Happened.CLAIM:
            return event.old is None and pod.uses_claim(event.new)
        if event.what & Happened.POD_GONE:
            return bool(PodInfo(event.old or {}).claims)
        if event.what & Happened.CSI_NODE and event.old is not None:
            before = limits_of(event.old)
            return any(limit > before.get(driver, 0) for driver, limit in limits_of(event.new).items())
        return True

    def pre_filter(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        return None if pod.claims else SKIP

    def filter(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> Status | None:
        for claim in sorted(pod.claims):
            if Key(pod.namespace, claim) not in self.cluster.claims:
                return unresolvable(not_found(claim))
        wanted = set(_volumes(self.cluster, (Key(pod.namespace, claim) for claim in pod.claims)))
        csi_node = self.cluster.csi_nodes.get(node.name)
        for driver in sorted({driver for driver, _ in wanted}):
            if not self._is_installed(driver, csi_node):
                return unschedulable(f"{driver} CSI driver is not installed on the node")
        limits = limits_of(csi_node)
        if not limits or not wanted:
            return None
        there = set(_volumes(self.cluster, node.claims))
        attached = Counter(driver for driver, _ in there | self._attached(node.name))
        added = Counter(driver for driver, _ in wanted - there)
        if any(driver in limits and attached[driver] + more > limits[driver] for driver, more in added.items()):
            return unschedulable(TOO_MANY)
        return None

    def _is_installed(self, driver: str, csi_node: Object | None) -> bool:
        """Whether the node has the driver, asked only of drivers that want it so (preventPodSchedulingIfMissing)."""
        if not dig(self.cluster.csi_drivers.get(driver), "spec", "preventPodSchedulingIfMissing"):
            return True
        return any(found.get("name") == driver for found in dig(csi_node, "spec", "drivers", default=()))

    def _attached(self, node: str) -> set[Volume]:
        """What VolumeAttachments say is on the node."""
        found = set()
        for attachment in self.cluster.attachments_on(node):
            volume = self.cluster.volumes.get(dig(attachment, "spec", "source", "persistentVolumeName", default=""))
            if (handle := dig(volume, "spec", "csi", "volumeHandle")) is not None:
                found.add((str(dig(attachment, "spec", "attacher", default="")), str(handle)))
        return found


def limits_of(csi_node: Object | None) -> dict[str, int]:
    """How many volumes of each driver the node takes; drivers without a limit are absent."""
    return {
        driver["name"]: int(count)
        for driver in dig(csi_node, "spec", "drivers", default=())
        if (count := dig(driver, "allocatable", "count")) is not None
    }


def _volumes(cluster: Cluster, claims: Iterable[Key]) -> Iterator[Volume]:
    """The CSI volumes behind the claims; one that is not there yet counts for its class's provisioner."""
    for key in claims:
        claim = cluster.claims.get(key)
        if claim is None:
            continue
        volume = cluster.volumes.get(dig(claim, "spec", "volumeName", default=""))
        if volume is not None:
            if (source := dig(volume, "spec", "csi")) is not None:
                yield source.get("driver", ""), source.get("volumeHandle", "")
        elif provisioner := (cluster.storage_classes.get(class_of(claim)) or {}).get("provisioner"):
            yield provisioner, f"claim {namespace_of(claim)}/{name_of(claim)}"
