"""DefaultTolerationSeconds: a pod outlives five minutes of its node's silence, unless it says otherwise."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Plugin
from kone.apimachinery.taints import NOT_READY, UNREACHABLE

SECONDS = 300


class DefaultTolerationSeconds(Plugin):
    name = "DefaultTolerationSeconds"
    resources = frozenset({("", "pods")})

    async def mutate(self, a: Attributes) -> None:
        spec = a.object["spec"]
        tolerations = spec.get("tolerations") or []
        missing = [
            {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}
            for key in (NOT_READY, UNREACHABLE)
            if not any(t.get("key", "") in (key, "") and t.get("effect", "") in ("NoExecute", "") for t in tolerations)
        ]
        if missing:
            spec["tolerations"] = [*tolerations, *missing]
