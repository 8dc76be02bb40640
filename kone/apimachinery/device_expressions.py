"""The CEL expressions that select devices, compiled: what the API takes and the scheduler asks (resource.k8s.io/v1).

device.driver == "gpu.example.com" && device.attributes["gpu.example.com"].model == "a100"
    && device.capacity["gpu.example.com"].memory.isGreaterThan(quantity("10Gi"))
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the language itself comes with the first selector: start-up time is imports
    from kone.apimachinery.cel import Environment, Program

COST_LIMIT = 1_000_000  # of one expression on one device (resource/v1, CELSelectorExpressionMaxCost)
COMPILED_MAX = 1000  # expressions that are remembered
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
