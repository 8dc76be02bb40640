"""DefaultStorageClass and DefaultIngressClass: who names no class gets the one that is marked as default."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Cache, Caches, Plugin
from kone.apimachinery.objects import annotations_of, metadata, name_of

STORAGE_MARKS = (
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
)
STORAGE_ANNOTATION = "volume.beta.kubernetes.io/storage-class"
INGRESS_MARKS = ("ingressclass.kubernetes.io/is-default-class",)
INGRESS_ANNOTATION = "kubernetes.io/ingress.class"


class DefaultStorageClass(Plugin):
    name = "DefaultStorageClass"
    operations = frozenset({"CREATE"})
    resources = frozenset({("", "persistentvolumeclaims")})

    def __init__(self, caches: Caches) -> None:
        self._classes = caches.of("storage.k8s.io", "storageclasses")

    async def mutate(self, a: Attributes) -> None:
        spec = a.object.setdefault("spec", {})
        # The empty class is a choice, too: a volume without a class.
        if spec.get("storageClassName") is not None or STORAGE_ANNOTATION in annotations_of(a.object):
            return
        if name := _default(self._classes, STORAGE_MARKS):
            spec["storageClassName"] = name


class DefaultIngressClass(Plugin):
    name = "DefaultIngressClass"
    operations = frozenset({"CREATE"})
    resources = frozenset({("networking.k8s.io", "ingresses")})

    def __init__(self, caches: Caches) -> None:
        self._classes = caches.of("networking.k8s.io", "ingressclasses")

    async def mutate(self, a: Attributes) -> None:
        spec = a.object.setdefault("spec", {})
        if spec.get("ingressClassName") is not None or INGRESS_ANNOTATION in annotations_of(a.object):
            return
        if name := _default(self._classes, INGRESS_MARKS):
            spec["ingressClassName"] = name


def _default(classes: Cache, marks: tuple[str, ...]) -> str:
    """The newest class with a mark; of several made in the same second the first by name. "" where there is none."""
    marked = [
        entry.obj for entry in classes.list() if any(annotations_of(entry.obj).get(mark) == "true" for mark in marks)
    ]
    newest = max((metadata(obj).get("creationTimestamp", "") for obj in marked), default="")
    names = [name_of(obj) for obj in marked if metadata(obj).get("creationTimestamp", "") == newest]
    return min(names, default="")
