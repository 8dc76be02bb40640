"""CEL over devices: whether a device is what a class or a request selects.

device.driver == "gpu.example.com" && device.attributes["gpu.example.com"].model == "a100"
    && device.capacity["gpu.example.com"].memory.isGreaterThan(quantity("10Gi"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from kone.apimachinery.cel_values import CelError, DefaultMap
from kone.apimachinery.objects import Object
from kone.scheduler.devices import Device

if TYPE_CHECKING:  # the language itself comes with the first selector: start-up time is imports
    from kone.apimachinery.cel import Environment, Program

COST_LIMIT = 1_000_000  # of one expression on one device (resource/v1, CELSelectorExpressionMaxCost)
COMPILED_MAX = 1000  # expressions that are remembered
_DEVICE = "kubernetes.DRADevice"


class SelectorError(Exception):
    """A selector that cannot be asked; says which and why."""


@cache
def _environment() -> Environment:
    from kone.apimachinery.cel import BOOL, DYN, STRING, Environment, FieldTable, map_of, struct_type
    from kone.apimachinery.cel_types import parse_type

    fields = {
        "driver": STRING,
        "allowMultipleAllocations": BOOL,
        "attributes": map_of(STRING, map_of(STRING, DYN)),
        "capacity": map_of(STRING, map_of(STRING, parse_type("kubernetes.Quantity"))),
    }
    return Environment({"device": struct_type(_DEVICE)}, structs=FieldTable({_DEVICE: fields}))


@lru_cache(COMPILED_MAX)
def _compiled(expression: str) -> Program | str:
    """The program, or what is wrong with the expression."""
    from kone.apimachinery.cel import BOOL, DYN, CelSyntaxError

    try:
        program = _environment().compile(expression)
    except CelSyntaxError as error:
        return str(error)
    return (
        program
        if program.type in (BOOL, DYN)
        else "must evaluate to bool or the unknown type, not " + str(program.type)
    )


def selects(selectors: Iterable[Object], device: Device, whose: str) -> bool:
    """Whether the device meets all; `whose` they are is said in errors: "class gpu", "claim ns/name".

    Raises SelectorError.
    """
    for number, selector in enumerate(selectors):
        program = _compiled((selector.get("cel") or {}).get("expression", ""))
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
