"""ImageLocality: better where the pod's images are already, the more so the bigger they are."""

from __future__ import annotations

from collections.abc import Sequence

from kone.scheduler.framework import MAX_SCORE, SKIP, CycleState, Plugin, Status
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo

MIB = 1024 * 1024
LEAST_BYTES = 23 * MIB  # images together smaller than this do not count
MOST_BYTES = 1000 * MIB  # of each container


class ImageLocality(Plugin):
    name = "ImageLocality"

    def pre_score(self, state: CycleState, pod: PodInfo, nodes: Sequence[NodeInfo]) -> Status | None:
        # Where no node has an image of the pod, all are alike.
        return None if any(image in self.cluster.image_nodes for image in _images_of(pod)) else SKIP

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        node_count = len(self.cluster.nodes())
        images = _images_of(pod)
        total = 0
        for image in images:
            if image in node.images:
                # An image that few nodes have counts less: not every pod shall go to the one node that has it.
                total += int(node.images[image] * self.cluster.image_nodes[image] / node_count)
        most = MOST_BYTES * len(images)
        if most <= LEAST_BYTES:
            return 0
        return MAX_SCORE * (min(max(total, LEAST_BYTES), most) - LEAST_BYTES) // (most - LEAST_BYTES)


def _images_of(pod: PodInfo) -> list[str]:
    containers = (*(pod.spec.get("initContainers") or ()), *(pod.spec.get("containers") or ()))
    named = [container.get("image") or "" for container in containers]
    named += [v["image"].get("reference") or "" for v in pod.spec.get("volumes") or () if v.get("image")]
    return [_with_tag(name) for name in named]


def _with_tag(name: str) -> str:
    """As nodes report images: with ":latest" where no tag or digest is given."""
    return name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"
