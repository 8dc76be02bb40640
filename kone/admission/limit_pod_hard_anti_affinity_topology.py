"""LimitPodHardAntiAffinityTopology: a pod may keep others off its node, but not off a whole zone."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Plugin
from kone.apimachinery.errors import forbidden
from kone.apimachinery.objects import dig, name_of

HOSTNAME = "kubernetes.io/hostname"


class LimitPodHardAntiAffinityTopology(Plugin):
    name = "LimitPodHardAntiAffinityTopology"
    resources = frozenset({("", "pods")})

    async def validate(self, a: Attributes) -> None:
        terms = dig(
            a.object,
            "spec",
            "affinity",
            "podAntiAffinity",
            "requiredDuringSchedulingIgnoredDuringExecution",
            default=(),
        )
        for term in terms or ():
            if (key := term.get("topologyKey", "")) != HOSTNAME:
                why = (
                    f"affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} "
                    f"but only key {HOSTNAME} is allowed"
                )
                raise forbidden("pods", name_of(a.object), why)
