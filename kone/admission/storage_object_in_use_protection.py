"""StorageObjectInUseProtection: a volume or claim that is deleted waits until nobody uses it."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Plugin

FINALIZERS = {
    ("", "persistentvolumes"): "kubernetes.io/pv-protection",
    ("", "persistentvolumeclaims"): "kubernetes.io/pvc-protection",
    ("storage.k8s.io", "volumeattributesclasses"): "kubernetes.io/vac-protection",
}


class StorageObjectInUseProtection(Plugin):
    name = "StorageObjectInUseProtection"
    operations = frozenset({"CREATE"})
    resources = frozenset(FINALIZERS)

    async def mutate(self, a: Attributes) -> None:
        meta = a.object["metadata"]
        finalizer = FINALIZERS[a.group_resource]
        if finalizer not in (meta.get("finalizers") or ()):
            meta["finalizers"] = [*(meta.get("finalizers") or ()), finalizer]
