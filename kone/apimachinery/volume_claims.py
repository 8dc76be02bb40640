"""Which persistent volume suits a claim: asked by the scheduler with a node, by the volume controller without one
(component-helpers/storage/volume)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kone.apimachinery.node_selectors import matches
from kone.apimachinery.objects import Object, annotations_of, dig, is_deleting, labels_of, name_of, namespace_of, uid_of
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.apimachinery.selectors import from_label_selector

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
_CLASS_ANNOTATION = "volume.beta.kubernetes.io/storage-class"


def class_of(claim_or_volume: Object) -> str:
    """The name of its storage class, "" for none."""
    if (named := annotations_of(claim_or_volume).get(_CLASS_ANNOTATION)) is not None:
        return str(named)
    return str(dig(claim_or_volume, "spec", "storageClassName", default=""))


def waits_for_consumer(storage_class: Object | None) -> bool:
    """Whether claims of this class are bound only once a pod that uses them has been given a node."""
    return storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"


def is_fully_bound(claim: Object) -> bool:
    return bool(dig(claim, "spec", "volumeName")) and BIND_COMPLETED in annotations_of(claim)


def is_bound_to(volume: Object, claim: Object) -> bool:
    """Whether the volume belongs to the claim; a reference without uid is a user's promise to whoever has the name."""
    ref = dig(volume, "spec", "claimRef")
    if ref is None or (ref.get("namespace"), ref.get("name")) != (namespace_of(claim), name_of(claim)):
        return False
    return not ref.get("uid") or ref["uid"] == uid_of(claim)


def is_reachable(volume: Object, node: Object) -> bool:
    """Whether the node can use the volume, by the volume's nodeAffinity."""
    required = dig(volume, "spec", "nodeAffinity", "required")
    return required is None or matches(required, labels_of(node), name_of(node))


def find_volume(
    claim: Object,
    volumes: Iterable[Object],
    node: Object | None = None,
    *,
    taken: Collection[str] = (),
    only_promised: bool = False,
) -> Object | None:
    """The volume promised to the claim, else the smallest that suits it (and that the node can reach).

    Volumes named in `taken` are passed over; `only_promised`: no volume is chosen that nobody has promised.
    """
    spec: Mapping[str, Any] = claim.get("spec") or {}
    asked = _storage(dig(spec, "resources", "requests"))
    selector = from_label_selector(spec["selector"]) if spec.get("selector") is not None else None
    smallest: Object | None = None
    for volume in volumes:
        if name_of(volume) in taken or not _could_be(volume, claim, asked):
            continue
        reachable = node is None or is_reachable(volume, node)
        if is_bound_to(volume, claim):
            return volume if reachable else None
        if (
            reachable
            and not only_promised
            and dig(volume, "status", "phase") == "Available"
            and (selector is None or selector.matches(labels_of(volume)))
            and class_of(volume) == class_of(claim)
            and (node is None or _modes(claim) <= _modes(volume))
            and (smallest is None or _capacity(volume) < _capacity(smallest))
        ):
            smallest = volume
    return smallest


def _could_be(volume: Object, claim: Object, asked: Quantity) -> bool:
    theirs, ours = volume.get("spec") or {}, claim.get("spec") or {}
    if theirs.get("claimRef") is not None and not is_bound_to(volume, claim):
        return False
    if is_deleting(volume) or _capacity(volume) < asked:
        return False
    if (theirs.get("volumeMode") or "Filesystem") != (ours.get("volumeMode") or "Filesystem"):
        return False
    return (theirs.get("volumeAttributesClassName") or "") == (ours.get("volumeAttributesClassName") or "")


def _capacity(volume: Object) -> Quantity:
    return _storage(dig(volume, "spec", "capacity"))


def _storage(amounts: Mapping[str, Any] | None) -> Quantity:
    return parse_quantity((amounts or {}).get("storage", "0"))


def _modes(claim_or_volume: Object) -> set[str]:
    return set(dig(claim_or_volume, "spec", "accessModes", default=()))
