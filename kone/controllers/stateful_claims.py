"""The PersistentVolumeClaims of StatefulSets: their names, and who owns them by the set's retention policy."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.objects import (
    Object,
    controller_reference,
    dig,
    labels_of,
    metadata,
    name_of,
    namespace_of,
    owner_references,
    uid_of,
)


def claim_name(template: Object, owner: Object, ordinal: int) -> str:
    return f"{name_of(template)}-{name_of(owner)}-{ordinal}"


def templates_of(owner: Object) -> list[Object]:
    return list(dig(owner, "spec", "volumeClaimTemplates", default=[]))


def claims_for(owner: Object, ordinal: int) -> Iterable[Object]:
    """The claims that the pod of that ordinal needs."""
    for template in templates_of(owner):
        meta = {key: value for key, value in metadata(template).items() if key != "creationTimestamp"}
        meta["name"] = claim_name(template, owner, ordinal)
        meta["namespace"] = namespace_of(owner)
        meta["labels"] = {**labels_of(template), **dig(owner, "spec", "selector", "matchLabels", default={})}
        claim = {key: value for key, value in template.items() if key != "status"}
        yield {**claim, "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta}


def deletes_when_scaled(owner: Object) -> bool:
    return bool(dig(owner, "spec", "persistentVolumeClaimRetentionPolicy", "whenScaled") == "Delete")


def deletes_when_deleted(owner: Object) -> bool:
    return bool(dig(owner, "spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted") == "Delete")


def _names(reference: Object, kind: tuple[str, str], name: str) -> bool:
    return (reference.get("apiVersion"), reference.get("kind"), reference.get("name")) == (*kind, name)


_SET, _POD = ("apps/v1", "StatefulSet"), ("v1", "Pod")


def is_stale(claim: Object, pod_name: str) -> bool:
    """Whether the claim belongs to a pod of that name that has gone: it is about to be deleted, so not to be used."""
    return any(_names(reference, _POD, pod_name) for reference in owner_references(claim))


def has_other_controller(claim: Object, owner: Object, pod: Object) -> bool:
    """Whether the set has a retention policy, and something else controls the claim."""
    if not deletes_when_scaled(owner) and not deletes_when_deleted(owner):
        return False
    return any(reference.get("controller") for reference in _others(claim, owner, pod))


def _others(claim: Object, owner: Object, pod: Object) -> list[Object]:
    return [
        reference
        for reference in owner_references(claim)
        if not _names(reference, _SET, name_of(owner)) and not _names(reference, _POD, name_of(pod))
    ]


def corrected_owners(claim: Object, owner: Object, pod: Object, *, in_range: bool) -> list[Object] | None:
    """The owner references that the retention policy asks for; None where they are right, or not to be touched.

    Kept on both occasions: no owner. Deleted with the set: the set owns the claim. Deleted when scaled down: the pod
    owns it from the moment that its ordinal is out of range. References to a former set or pod of that name, and other
    controllers, are left to those who put them there.
    """
    others = _others(claim, owner, pod)
    ours = [reference for reference in owner_references(claim) if reference not in others]
    if any(reference.get("uid") not in (uid_of(owner), uid_of(pod)) for reference in ours):
        return None
    if has_other_controller(claim, owner, pod):
        return others if ours else None
    wanted: list[Object] = []
    if deletes_when_scaled(owner) and not in_range:
        wanted.append(controller_reference(pod))
    elif deletes_when_deleted(owner):
        wanted.append(controller_reference(owner))
    right = {reference["uid"] for reference in ours} == {reference["uid"] for reference in wanted}
    if right and all(reference.get("controller") for reference in ours):
        return None
    return others + wanted
