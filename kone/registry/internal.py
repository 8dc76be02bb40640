"""Values as upstream's field errors print them: its internal Go types as JSON, and diffs of two of them.

The names and the order of fields come from data/internal_types.json (see generate.py), read at the first error that
needs them. Types are noted there as: s string, i number, b bool, q Quantity, o IntOrString, t time, y bytes,
? anything, *T pointer, [T list, {T map, #group.Name struct.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from kone.apimachinery.errors import go_json
from kone.apimachinery.quantity import parse_quantity

_ZERO = {"s": "", "i": 0, "b": False, "q": "0", "o": 0, "t": None, "y": None}

_Fields = list[tuple[str, str, str]]


@cache
def _types() -> dict[str, _Fields]:
    text = files(__package__).joinpath("data/internal_types.json").read_text()
    types: dict[str, _Fields] = json.loads(text)
    return types


def internal(kind: str, value: Any) -> Any:
    """`value`, JSON of the versioned type, as JSON of the internal type.

    `kind` is in the table's notation, e.g. "#core.Taint" or "[#core.NodeSelectorTerm"; maps come sorted by key.
    """
    head = kind[0]
    if value is None:
        return _struct(kind[1:], {}) if head == "#" else _ZERO.get(head)
    if head == "*":
        return internal(kind[1:], value)
    if head == "[":
        return [internal(kind[1:], item) for item in value]
    if head == "{":
        return {key: internal(kind[1:], value[key]) for key in sorted(value)}
    if head == "#":
        return _struct(kind[1:], value)
    if head == "q":
        return parse_quantity(value).canonical()
    return value


def _struct(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for printed, json_name, kind in _types()[name]:
        if not printed:
            # An embedded struct prints as if its fields were here; ObjectMeta's JSON lies under "metadata".
            found.update(internal(kind, value.get("metadata") or {} if kind == "#metav1.ObjectMeta" else value))
        elif printed.endswith("?"):
            inner = value.get(json_name)
            if inner if kind[0] != "*" else inner is not None:
                found[printed[:-1]] = internal(kind, value[json_name])
        else:
            found[printed] = internal(kind, value.get(json_name))
    return found


def sorted_map(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A map as Go prints it: by key; a missing one as null."""
    return None if value is None else {key: value[key] for key in sorted(value)}


def internal_diff(kind: str, old: Any, new: Any) -> str:
    """The unified diff of two values, as upstream puts it below a message (apimachinery/pkg/util/diff)."""
    before, after = (go_json(internal(kind, value), indent=1) for value in (old, new))
    lines = difflib.unified_diff(_lines(before), _lines(after), n=3)
    # difflib heads its output with two file lines, which upstream leaves out as it names no files.
    return "".join(list(lines)[2:])


def _lines(text: str) -> list[str]:
    return [f"{line}\n" for line in text.split("\n")]
