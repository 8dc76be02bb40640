"""Taints of devices: which a toleration covers, and which devices a DeviceTaintRule means (resource.k8s.io)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kone.apimachinery.objects import dig


def tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """resourceclaim.ToleratesTaint: an empty key with Exists tolerates all, an empty effect every effect."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    if (toleration.get("operator") or "Equal") == "Exists":
        return True
    return (toleration.get("value") or "") == (taint.get("value") or "")


def means(rule: Mapping[str, Any], driver: str, pool: str, device: str) -> bool:
    """Whether the rule's selector, which means all devices that fit what it names, means this one."""
    selector = dig(rule, "spec", "deviceSelector")
    if selector is None:
        return False
    return all(
        selector.get(key) in (None, value) for key, value in (("driver", driver), ("pool", pool), ("device", device))
    )
