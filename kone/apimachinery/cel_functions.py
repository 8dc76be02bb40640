"""How CEL functions are declared and found: overloads with signatures, written as cel-go shows them.

    declare("find", "string.(string) -> string", find)

declares a member function; without the "string." it is a global one. `A`, `B` are type parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kone.apimachinery.cel_types import Type, parse_type
from kone.apimachinery.cel_values import Opaque, UInt

Implementation = Callable[..., Any]
Cost = Callable[[list[Any], Any], int]
"""What a call costs, from its arguments (the target first) and its result."""


@dataclass(frozen=True, slots=True)
class Overload:
    args: tuple[Type, ...]  # with the target of a member function
    result: Type
    member: bool
    implementation: Implementation
    cost: Cost | None = None

    def takes(self, values: list[Any]) -> bool:
        """Whether the values, whose types may only be known now, are of its types."""
        return len(values) == len(self.args) and all(map(_is, self.args, values))


@dataclass(slots=True)
class Function:
    name: str
    overloads: list[Overload] = field(default_factory=list)


class Functions:
    """Functions by name; a library adds to them, an environment puts several together."""

    def __init__(self, *others: Functions) -> None:
        self.by_name: dict[str, Function] = {}
        self.types: set[str] = set()  # names of types that expressions may speak of
        for other in others:
            self.types |= other.types
            for function in other.by_name.values():
                self.of(function.name).overloads.extend(function.overloads)

    def of(self, name: str) -> Function:
        return self.by_name.setdefault(name, Function(name))

    def declare(self, name: str, signature: str, implementation: Implementation, cost: Cost | None = None) -> None:
        head, _, result = signature.partition(" -> ")
        target, _, inner = head.partition("(") if head.startswith("(") else head.partition(".(")
        args = tuple(map(parse_type, _split(inner.removesuffix(")"))))
        if target:
            args = (parse_type(target), *args)
        overload = Overload(args, parse_type(result), bool(target), implementation, cost)
        self.of(name).overloads.append(overload)


def _split(text: str) -> list[str]:
    """At the commas that no parenthesis encloses."""
    parts, depth, last = [], 0, 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == "," and not depth:
            parts.append(text[last:i].strip())
            last = i + 1
    rest = text[last:].strip()
    return [*parts, rest] if rest else parts


_CLASSES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "uint": (UInt,),
    "double": (float,),
    "string": (str,),
    "bytes": (bytes,),
    "null": (type(None),),
    "list": (list,),
    "map": (dict,),
}


def _is(t: Type, value: Any) -> bool:
    kind = t.kind
    if kind in ("dyn", "param", "error"):
        return True
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool | UInt)
    known = _CLASSES.get(kind)
    if known is not None:
        return isinstance(value, known) and (kind != "map" or not isinstance(value, Opaque))
    if kind in ("timestamp", "duration"):
        return getattr(value, "cel_type", "") == f"google.protobuf.{kind.title()}"
    if kind == "type":
        return getattr(value, "cel_type", "") == "type"
    return isinstance(value, dict) or getattr(value, "cel_type", "") == t.name
