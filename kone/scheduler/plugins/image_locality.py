"""ImageLocality: better where the pod's images are already, the more so the bigger they are."""

from __future__ import annotations

from kone.scheduler.framework import MAX_SCORE, CycleState, Plugin
from kone.scheduler.snapshot import NodeInfo, PodInfo

MIB = 1024 * 1024
LEAST_BYTES = 23 * MIB  # images together smaller than this do not count
MOST_BYTES = 1000 * MIB  # of each container


class ImageLocality(Plugin):
    name = "ImageLocality"

    def score(self, state: CycleState, pod: PodInfo, node: NodeInfo) -> int:
        nodes = self.cluster.nodes()
        images = _images_of(pod)
        total = 0
        for image in images:
            if image in node.images:
                # An image that few nodes have counts less: not every pod shall go to the one node that has it.
                having = sum(image in other.images for other in nodes)
                total += int(node.images[image] * having / len(nodes))
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
