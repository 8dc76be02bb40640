"""What the attach/detach controller and the kubelets must agree on without a word: names of attachments and volumes
(kubernetes/pkg/volume/csi).
"""

from __future__ import annotations

import hashlib

from kone.apimachinery.objects import Object, dig


def attachment_name(handle: str, driver: str, node_name: str) -> str:
    """The name of the VolumeAttachment of a CSI volume and a node."""
    return f"csi-{hashlib.sha256(f'{handle}{driver}{node_name}'.encode()).hexdigest()}"


def unique_name(driver: str, handle: str) -> str:
    """The volume in a node's volumesAttached and volumesInUse."""
    return f"kubernetes.io/csi/{driver}^{handle}"


def is_attachable(driver: Object | None) -> bool:
    """Whether volumes of a driver must be attached, by its CSIDriver; one that says nothing wants it."""
    return dig(driver, "spec", "attachRequired", default=True) is not False


def attached_names(node: Object | None) -> frozenset[str]:
    """What the node's status says is attached to it."""
    return frozenset(volume.get("name", "") for volume in dig(node, "status", "volumesAttached", default=()))
