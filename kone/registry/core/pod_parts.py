"""Walking through a pod spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kone.apimachinery.objects import Object

CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")


def containers_with_path(spec: Mapping[str, Any], path: str) -> Iterator[tuple[Object, str]]:
    """Every container with its path: init, main, ephemeral, in this order (VisitContainersWithPath)."""
    for kind in CONTAINER_LISTS:
        found = spec.get(kind)
        if found:
            for i, container in enumerate(found):
                yield container, f"{path}.{kind}[{i}]"


def pod_affinity_terms(affinity: Mapping[str, Any]) -> Iterator[Object]:
    """Every PodAffinityTerm, preferred and required, of affinity and anti-affinity."""
    for kind in ("podAffinity", "podAntiAffinity"):
        found = affinity.get(kind) or {}
        for weighted in found.get("preferredDuringSchedulingIgnoredDuringExecution") or ():
            if weighted.get("podAffinityTerm") is not None:
                yield weighted["podAffinityTerm"]
        yield from found.get("requiredDuringSchedulingIgnoredDuringExecution") or ()
