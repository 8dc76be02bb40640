"""The CEL expressions that select devices, compiled: what the API takes and the scheduler asks (resource.k8s.io/v1).

device.driver == "gpu.example.com" && device.attributes["gpu.example.com"].model == "a100"
    && device.capacity["gpu.example.com"].memory.isGreaterThan(quantity("10Gi"))
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the language itself comes with the first selector: start-up time is imports
    from kone.apimachinery.cel import Environment, Program
    from kone.apimachinery.cel_cost import Extent

COST_LIMIT = 1_000_000  # of one expression on one device (resource/v1, CELSelectorExpressionMaxCost)
COMPILED_MAX = 1000  # expressions that are remembered
DOMAIN_MAX, NAME_MAX, VALUE_MAX, ATTRIBUTES_MAX = 63, 32, 64, 32  # characters, and attributes of a device
_DEVICE = "kubernetes.DRADevice"


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


@cache
def _size() -> Extent:
    """Of a device, by the limits of resource/v1: names, attributes and their values."""
    from kone.apimachinery.cel_cost import Extent

    name, value = Extent(NAME_MAX), Extent(VALUE_MAX)
    domain = Extent(DOMAIN_MAX)

    def by_domain(element: Extent, *, selectable: bool) -> Extent:
        named = Extent(ATTRIBUTES_MAX, element=element, key=name, selectable=selectable)
        return Extent(ATTRIBUTES_MAX, element=named, key=domain)

    return Extent(
        fields={
            "driver": Extent(DOMAIN_MAX),
            "allowMultipleAllocations": Extent(1),
            "attributes": by_domain(value, selectable=True),
            "capacity": by_domain(Extent(), selectable=False),
        }
    )


def is_too_complex(program: Program) -> bool:
    """Whether it could cost more on some device than an expression may."""
    cost = program.estimated_cost(lambda path: _size().reach(path[1:]) if path[0] == "device" else None)
    return cost > COST_LIMIT


@lru_cache(COMPILED_MAX)
def compiled_selector(expression: str) -> Program | str:
    """The program, or what is wrong with the expression, as the API says it."""
    from kone.apimachinery.cel import BOOL, DYN, CelSyntaxError

    try:
        program = _environment().compile(expression)
    except CelSyntaxError as error:
        return f"compilation failed: {error}"
    if program.type in (BOOL, DYN):
        return program
    return f"must evaluate to bool or the unknown type, not {program.type}"
