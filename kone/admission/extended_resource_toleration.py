"""ExtendedResourceToleration: who asks for a device may go where nodes are kept for those who do.

A node with devices is tainted with the resource's name; a pod that requests the resource tolerates the taint.
"""

from __future__ import annotations

from kone.admission.plugin import Attributes, Plugin
from kone.registry.core.resource_rules import is_extended


class ExtendedResourceToleration(Plugin):
    name = "ExtendedResourceToleration"
    resources = frozenset({("", "pods")})

    async def mutate(self, a: Attributes) -> None:
        spec = a.object["spec"]
        requested = {
            name
            for kind in ("containers", "initContainers")
            for container in spec.get(kind) or ()
            for name in (container.get("resources") or {}).get("requests") or {}
            if is_extended(name)
        }
        for name in sorted(requested):
            wanted = {"key": name, "operator": "Exists", "effect": "NoSchedule"}
            given = spec.get("tolerations") or ()
            if not any(all((each.get(key) or "") == wanted.get(key, "") for key in _IDENTITY) for each in given):
                spec["tolerations"] = [*given, wanted]


_IDENTITY = ("key", "operator", "effect", "value")
"""Two tolerations that have these in common are the same one."""
