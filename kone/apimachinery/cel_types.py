"""CEL's types: how they are written, what fits where, and the structs of schemas.

The rules (assignability, type parameters, the most general of two) are those of cel-go's checker, so that upstream's
type errors come out the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Type:
    """`kind` is one of bool, int, uint, double, string, bytes, null, dyn, error, timestamp, duration, type, list, map,
    opaque, struct, param or "" (of a field that is not there); `name` that of an opaque, struct or parameter."""

    kind: str
    name: str = ""
    params: tuple[Type, ...] = ()

    def __str__(self) -> str:
        """As errors show it."""
        if self.kind == "error":
            return "!error!"
        shown = _SHOWN.get(self.kind, self.name or self.kind)
        return f"{shown}({', '.join(map(str, self.params))})" if self.params else shown


_SHOWN = {"null": "null"}

BOOL, INT, UINT, DOUBLE = Type("bool"), Type("int"), Type("uint"), Type("double")
STRING, BYTES, NULL, DYN, ERROR = Type("string"), Type("bytes"), Type("null"), Type("dyn"), Type("error")
TIMESTAMP, DURATION, UNSPECIFIED = Type("timestamp"), Type("duration"), Type("")

SIMPLE = {
    **{t.kind: t for t in (BOOL, INT, UINT, DOUBLE, STRING, BYTES, DYN)},
    "null_type": NULL,
    "google.protobuf.Timestamp": TIMESTAMP,
    "google.protobuf.Duration": DURATION,
}
OPAQUE = frozenset({"optional_type", "net.IP", "net.CIDR"})


def list_of(element: Type) -> Type:
    return Type("list", "list", (element,))


def map_of(key: Type, value: Type) -> Type:
    return Type("map", "map", (key, value))


def optional_of(value: Type) -> Type:
    return Type("opaque", "optional_type", (value,))


def struct_type(name: str) -> Type:
    return Type("struct", name)


def type_of(t: Type) -> Type:
    return Type("type", "type", (t,))


class Structs(Protocol):
    """The declared structs: those of schemas, of requests, of patches."""

    def has(self, name: str) -> bool: ...
    def field(self, name: str, field: str) -> Type | None:
        """The type of a field; None where the struct has none of that name."""


class FieldTable:
    """Structs written down: {struct: {field: type}}."""

    def __init__(self, structs: Mapping[str, Mapping[str, Type]] | None = None) -> None:
        self.structs = dict(structs or {})

    def has(self, name: str) -> bool:
        return name in self.structs

    def field(self, name: str, field: str) -> Type | None:
        return self.structs.get(name, {}).get(field)


_TOKEN = re.compile(r"[\w.]+|[(),]")


@cache
def parse_type(text: str) -> Type:
    """ "list(string)", "map(string, A)", "kubernetes.URL": as functions are declared."""
    tokens = _TOKEN.findall(text)

    def read() -> Type:
        name, params = tokens.pop(0), []
        if tokens and tokens[0] == "(":
            while tokens.pop(0) in "(,":
                params.append(read())
        return _named(name, tuple(params))

    return read()


def _named(name: str, params: tuple[Type, ...]) -> Type:
    if name in ("list", "map", "type"):
        return Type(name, name, params)
    if name in ("timestamp", "duration"):
        return Type(name)
    if name in SIMPLE:
        return SIMPLE[name]
    if len(name) == 1 and name.isupper():
        return Type("param", name)
    return Type("opaque" if name in OPAQUE else "struct", name, params)


# -- what fits where --------------------------------------------------------------------------------------------------

Bindings = dict[Type, Type]
"""What type parameters stand for."""


def is_dyn(t: Type) -> bool:
    return t.kind == "dyn"


def is_optional(t: Type) -> bool:
    return t.name == "optional_type"


def unwrap_optional(t: Type) -> tuple[Type, bool]:
    return (t.params[0], True) if is_optional(t) else (t, False)


def substitute(bound: Bindings, t: Type, *, free_to_dyn: bool = False) -> Type:
    if t in bound:
        return substitute(bound, bound[t], free_to_dyn=free_to_dyn)
    if t.kind == "param":
        return DYN if free_to_dyn else t
    if not t.params:
        return t
    return Type(t.kind, t.name, tuple(substitute(bound, p, free_to_dyn=free_to_dyn) for p in t.params))


def assignable(bound: Bindings, t1: Type, t2: Type) -> bool:
    """Whether `t2` fits `t1`. Binds parameters, also on failure: work on a copy."""
    if t2.kind == "param":
        valid, has = _binds(bound, t1, t2)
        if valid:
            return True
        if has:
            return False
    if t1.kind == "param":
        return _binds(bound, t2, t1)[0]
    if t1.kind in ("dyn", "error") or t2.kind in ("dyn", "error"):
        return True
    if t1.kind == "null":
        return _nullable(t2)
    if t2.kind == "null":
        return _nullable(t1)
    if t1.kind == "type":
        return t2.kind == "type"
    if t1.kind in ("opaque", "list", "map"):
        return (t1.kind, t1.name) == (t2.kind, t2.name) and all_assignable(bound, t1.params, t2.params)
    return t1 == t2


def all_assignable(bound: Bindings, first: tuple[Type, ...], second: tuple[Type, ...]) -> bool:
    return len(first) == len(second) and all(assignable(bound, a, b) for a, b in zip(first, second, strict=True))


def _nullable(t: Type) -> bool:
    return t.kind in ("null", "opaque", "struct", "duration", "timestamp")


def _binds(bound: Bindings, t1: Type, t2: Type) -> tuple[bool, bool]:
    """Whether `t1` may stand for the parameter `t2`, and whether something stood for it before."""
    if t1 == t2:
        return True, True
    known = bound.get(t2)
    if known is not None:
        if t1 == known:
            return True, True
        if assignable(bound, t1, known):
            general = most_general(t1, known)
            if _unreferenced(bound, t2, general):
                bound[t2] = general
            return True, True
        return False, True
    if _unreferenced(bound, t2, t1):
        bound[t2] = t1
        return True, False
    return False, False


def _unreferenced(bound: Bindings, t: Type, within: Type) -> bool:
    if t == within:
        return False
    if within.kind == "param":
        known = bound.get(within)
        return known is None or _unreferenced(bound, t, known)
    return all(_unreferenced(bound, t, p) for p in within.params)


def most_general(t1: Type, t2: Type) -> Type:
    return t1 if _less_specific(t1, t2) else t2


def _less_specific(t1: Type, t2: Type) -> bool:
    if t1.kind in ("dyn", "param"):
        return True
    if t2.kind in ("dyn", "param") or t1.kind != t2.kind:
        return False
    if t1.kind in ("opaque", "list", "map"):
        same = t1.name == t2.name and len(t1.params) == len(t2.params)
        return same and all(_less_specific(a, b) for a, b in zip(t1.params, t2.params, strict=True))
    return t1.kind == "type" or t1 == t2
