"""PodTopologyLabels: a bound pod carries its node's zone and region as labels."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.apimachinery.objects import dig, labels_of

LABELS = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")
BINDINGS = ("", "bindings")


class PodTopologyLabels(Plugin):
    name = "PodTopologyLabels"
    operations = frozenset({"CREATE"})
    resources = frozenset({("", "pods"), BINDINGS})
    subresources = frozenset({"", "binding"})

    def __init__(self, caches: Caches) -> None:
        self._nodes = caches.of("", "nodes")

    async def mutate(self, a: Attributes) -> None:
        if a.group_resource == BINDINGS or a.subresource == "binding":
            node = dig(a.object, "target", "name") if dig(a.object, "target", "kind") == "Node" else None
        else:
            node = dig(a.object, "spec", "nodeName")
        entry = self._nodes.get("", node) if node else None
        if entry is None:
            return
        copied = {key: value for key, value in labels_of(entry.obj).items() if key in LABELS}
        if copied:
            meta = a.object.setdefault("metadata", {})
            meta["labels"] = {**(meta.get("labels") or {}), **copied}
