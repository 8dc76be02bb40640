"""A pod's manifest that does not come through the API, read as the API would read it: for the static pods of a node.

Rules and texts: kubernetes/pkg/kubelet/config/common.go (tryDecodeSinglePod).
"""

from __future__ import annotations

from collections.abc import Callable

from kone.apimachinery import schema
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object
from kone.apimachinery.pod_references import api_object_reference
from kone.apiserver import yaml_text
from kone.registry import generic
from kone.registry.core.pod import PodStrategy

POD = GVK("", "v1", "Pod")
_strategy = PodStrategy()


def read_pod_manifest(text: bytes, identify: Callable[[Object], None]) -> Object:
    """The pod of a manifest in YAML or JSON, with every default, valid.

    `identify` gives the decoded pod, which has no defaults yet, its identity in place. Unknown fields are dropped.
    Raises ValueError, whose text says what is wrong.
    """
    try:
        found, _ = yaml_text.load(text)
    except yaml_text.YamlError as error:
        raise ValueError(f"couldn't parse as pod({error}), please check config file") from None
    if not isinstance(found, dict):
        raise ValueError("couldn't parse as pod(invalid pod: no object), please check config file")
    if (found.get("apiVersion"), found.get("kind")) != ("v1", "Pod"):
        shown = f"{found.get('apiVersion', '')}, Kind={found.get('kind', '')}"
        raise ValueError(f"couldn't parse as pod(invalid pod: {shown}), please check config file")
    try:
        pod, _ = schema.decode(found, POD)
    except schema.DecodeError as error:
        raise ValueError(f"couldn't parse as pod({error}), please check config file") from None
    if not pod["metadata"].get("name"):
        raise ValueError("invalid pod: name is needed for the pod")
    identify(pod)
    _strategy.default(pod)
    if errors := generic.validate_create(pod, _strategy, namespaced=True):
        texts = [str(error) for error in errors]
        raise ValueError("invalid pod: " + (texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"))
    if kind := api_object_reference(pod):
        raise ValueError(f"static pods may not reference {kind}")
    return pod
