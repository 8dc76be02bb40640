"""TaintNodesByCondition: a new node takes no pods until the node lifecycle controller has seen it ready."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Plugin
from kone.apimachinery.taints import NOT_READY


class TaintNodesByCondition(Plugin):
    name = "TaintNodesByCondition"
    operations = frozenset({"CREATE"})
    resources = frozenset({("", "nodes")})

    async def mutate(self, a: Attributes) -> None:
        spec = a.object.setdefault("spec", {})
        taints = spec.get("taints") or []
        if not any(t.get("key") == NOT_READY and t.get("effect") == "NoSchedule" for t in taints):
            spec["taints"] = [*taints, {"key": NOT_READY, "effect": "NoSchedule"}]
