"""Which devices a DeviceTaintRule means (resource.k8s.io)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kone.apimachinery.objects import dig


def means(rule: Mapping[str, Any], driver: str, pool: str, device: str) -> bool:
    """Whether the rule's selector, which means all devices that fit what it names, means this one."""
    selector = dig(rule, "spec", "deviceSelector")
    if selector is None:
        return False
    return all(
        selector.get(key) in (None, value) for key, value in (("driver", driver), ("pool", pool), ("device", device))
    )
