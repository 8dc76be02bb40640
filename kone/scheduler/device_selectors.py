"""CEL over devices: whether a device is what a class or a request selects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kone.apimachinery.cel_values import CelError, DefaultMap
from kone.apimachinery.device_expressions import COST_LIMIT, compiled_selector
from kone.apimachinery.objects import Object
from kone.scheduler.devices import Device


class SelectorError(Exception):
    """A selector that cannot be asked; says which and why."""


def selects(selectors: Iterable[Object], device: Device, whose: str) -> bool:
    """Whether the device meets all; `whose` they are is said in errors: "class gpu", "claim ns/name".

    Raises SelectorError.
    """
    for number, selector in enumerate(selectors):
        program = compiled_selector((selector.get("cel") or {}).get("expression", ""))
        if isinstance(program, str):
            raise SelectorError(f"{whose}: selector #{number}: CEL compile error: {program}")
        try:
            answer = program.evaluate({"device": _value(device)}, limit=COST_LIMIT).value
        except CelError as error:
            where = f"{whose}: selector #{number} on device {device.id}"
            raise SelectorError(f"{where}: CEL runtime error: {error}") from None
        if answer is not True:
            return False
    return True


def _value(device: Device) -> dict[str, Any]:
    """The device as CEL sees it: names without a domain are in the driver's."""
    from kone.apimachinery.cel_kubernetes import QuantityValue

    return {
        "driver": device.id.driver,
        "allowMultipleAllocations": device.is_shared,
        "attributes": _by_domain(device, {name: attribute(found) for name, found in device.attributes.items()}),
        "capacity": _by_domain(device, {name: QuantityValue(amount) for name, amount in device.capacity.items()}),
    }


def _by_domain(device: Device, values: Mapping[str, Any]) -> DefaultMap:
    found = DefaultMap()
    for name, value in values.items():
        domain, slash, identifier = name.rpartition("/")
        found.setdefault(domain if slash else device.id.driver, {})[identifier] = value
    return found


def attribute(found: Mapping[str, Any]) -> Any:
    """The value of a DeviceAttribute, in CEL's terms."""
    if "version" in found:
        from kone.apimachinery.cel_kubernetes import parse_semver

        return parse_semver(found["version"])
    return next((found[kind] for kind in ("int", "bool", "string") if kind in found), None)
