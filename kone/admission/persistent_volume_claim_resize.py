"""PersistentVolumeClaimResize: a claim grows only where its class allows it."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.objects import Object, annotations_of, dig
from kone.apimachinery.quantity import Quantity, parse_quantity


class PersistentVolumeClaimResize(Plugin):
    name = "PersistentVolumeClaimResize"
    operations = frozenset({"UPDATE"})
    resources = frozenset({("", "persistentvolumeclaims")})

    def __init__(self, caches: Caches) -> None:
        self._classes = caches.of("storage.k8s.io", "storageclasses")

    async def validate(self, a: Attributes) -> None:
        old = a.old or {}
        if _size(a.object) <= _size(old):
            return
        if dig(old, "status", "phase") != "Bound":
            raise a.refuse("Only bound persistent volume claims can be expanded")
        name = _class_of(a.object)
        entry = self._classes.get("", name) if name and name == _class_of(old) else None
        if entry is None or not entry.obj.get("allowVolumeExpansion"):
            raise a.refuse(
                "only dynamically provisioned pvc can be resized and "
                "the storageclass that provisions the pvc must support resize"
            )


def _size(claim: Object) -> Quantity:
    return parse_quantity(dig(claim, "spec", "resources", "requests", "storage", default="0"))


def _class_of(claim: Object) -> str:
    annotated = annotations_of(claim).get("volume.beta.kubernetes.io/storage-class")
    return annotated if annotated is not None else str(dig(claim, "spec", "storageClassName", default=""))
