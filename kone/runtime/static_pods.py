"""Static pods, which a node runs by itself from manifests on its disk, and the mirror pods that show them. Pure.

A static pod is another one whenever its manifest says something else: its UID is the hash of it. Rules:
kubernetes/pkg/kubelet/config/common.go, config/config.go and pod/mirror_client.go.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from kone.apimachinery.objects import Object, annotations_of, resource_version_of, uid_of

SOURCE: Final = "kubernetes.io/config.source"
HASH: Final = "kubernetes.io/config.hash"
SEEN: Final = "kubernetes.io/config.seen"
MIRROR: Final = "kubernetes.io/config.mirror"
_NO_EXECUTE: Final = {"operator": "Exists", "effect": "NoExecute"}

_OF_THE_API: Final = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
)


def is_static(pod: Object) -> bool:
    """Whether the pod is of the node's own. No pod of the API is, whatever it says of itself."""
    return SOURCE in annotations_of(pod) and not resource_version_of(pod)


def is_mirror(pod: Object) -> bool:
    return MIRROR in annotations_of(pod)


def is_mirror_of(mirror: Object, pod: Object) -> bool:
    """Whether the API's pod of that name shows this static pod."""
    return annotations_of(mirror).get(MIRROR) == annotations_of(pod)[HASH]


def identify(pod: Object, *, path: str, node_name: str, seen: str) -> None:
    """Make the pod of a manifest this node's, in place.

    `pod` is decoded and has no defaults yet, so that a newer kone with other defaults lets it run; `path` is the
    manifest's, `seen` when it was read.
    """
    meta, spec = pod["metadata"], pod.setdefault("spec", {})
    for field in _OF_THE_API:
        meta.pop(field, None)
    if not meta.get("uid"):
        content = json.dumps(pod, sort_keys=True) + f"host:{node_name}file:{path}"
        meta["uid"] = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    meta["name"] = f"{meta['name']}-{node_name.lower()}"
    meta["namespace"] = meta.get("namespace") or "default"
    meta["annotations"] = {**(meta.get("annotations") or {}), HASH: meta["uid"], SOURCE: "file", SEEN: seen}
    spec["nodeName"] = node_name
    tolerations = spec.get("tolerations") or []
    if _NO_EXECUTE not in tolerations:
        spec["tolerations"] = [*tolerations, dict(_NO_EXECUTE)]
    pod["status"] = {"phase": "Pending"}


def mirror_of(pod: Object, node: Object) -> Object:
    """The pod that shows a static pod in the API: the same, and the node owns it."""
    meta = {key: value for key, value in pod["metadata"].items() if key != "uid"}
    owner = {
        "apiVersion": "v1",
        "kind": "Node",
        "name": pod["spec"]["nodeName"],
        "uid": uid_of(node),
        "controller": True,
    }
    meta["annotations"] = {**meta["annotations"], MIRROR: meta["annotations"][HASH]}
    meta["ownerReferences"] = [owner]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod["spec"], "status": {"phase": "Pending"}}
