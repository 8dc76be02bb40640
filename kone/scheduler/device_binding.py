"""Devices that can be used only once their driver says so: the binding conditions of what a claim was given. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kone.apimachinery.objects import Object, dig, find_condition, name_of
from kone.apimachinery.timestamps import parse_time


class BindingFailed(Exception):
    """A device will not come; the text is upstream's."""


def has_conditions(claim: Object) -> bool:
    return any(_conditional(claim))


def is_ready(claim: Object) -> bool:
    """Whether every device that the claim was given may be used. Raises BindingFailed."""
    if dig(claim, "status", "allocation") is None:
        return False
    for result in _conditional(claim):
        where = result["driver"], result["pool"], result["device"]
        devices = dig(claim, "status", "devices", default=())
        found = next((d for d in devices if (d.get("driver"), d.get("pool"), d.get("device")) == where), None)
        if found is None:
            return False
        told: Object = {"status": found}
        for name in result.get("bindingFailureConditions") or ():
            failed = find_condition(told, name)
            if failed is not None and failed.get("status") == "True":
                why = f'reason={failed.get("reason", "")}, message="{failed.get("message", "")}"'
                raise BindingFailed(f"device binding failed: claim={name_of(claim)}, {why}")
        for name in result["bindingConditions"]:
            condition = find_condition(told, name)
            if condition is None or condition.get("status") != "True":
                return False
    return True


def is_overdue(claim: Object, timeout_s: float, now: float) -> bool:
    """Whether the drivers have had their time since the devices were given."""
    since = dig(claim, "status", "allocation", "allocationTimestamp")
    return since is not None and has_conditions(claim) and parse_time(since) + timeout_s < now


def is_lost(claim: Object, timeout_s: float, now: float) -> bool:
    """Whether other devices should be tried: a condition says that it failed, or it takes too long."""
    try:
        return not is_ready(claim) and is_overdue(claim, timeout_s, now)
    except BindingFailed:
        return True


def _conditional(claim: Object) -> Iterator[Object]:
    for result in dig(claim, "status", "allocation", "devices", "results", default=()):
        if result.get("bindingConditions"):
            yield result
