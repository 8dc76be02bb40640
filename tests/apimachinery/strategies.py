"""Hypothesis strategies: JSON objects of any built-in kind, made from the schema."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import strategies as st

from kone.apimachinery import schema
from kone.apimachinery.schema import GoType

_TEXTS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Z")), max_size=6)
_TIMES = st.datetimes().map(lambda t: t.replace(microsecond=0).isoformat() + "Z")
_MICRO_TIMES = st.datetimes().map(lambda t: t.isoformat(timespec="microseconds") + "Z")
_QUANTITIES = st.from_regex(r"\A[1-9][0-9]{0,5}(m|k|M|Ki|Mi|Gi|)\Z")
_JSON = st.recursive(
    st.booleans() | st.integers(-9, 9) | _TEXTS, lambda inner: st.dictionaries(_TEXTS, inner, max_size=2)
)


@st.composite
def objects(draw: st.DrawFn, identifier: str, depth: int = 4) -> dict[str, Any]:
    """A value of a struct: some of its fields, nested `depth` deep."""
    fields = schema.definition(identifier).fields
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), max_size=5, unique=True)) if fields else []
    return {
        name: draw(values(fields[name].type, depth - 1))
        for name in chosen
        if name not in ("kind", "apiVersion") and (depth or fields[name].type.code not in _DEEP)
    }


_DEEP = (schema.STRUCT, schema.STRUCTS, schema.MAP, schema.LIST, schema.OTHER)


def values(go_type: GoType, depth: int) -> st.SearchStrategy[Any]:
    """A value of any type."""
    if go_type.code == schema.STRING:
        return _TEXTS
    if go_type.code == schema.BOOLEAN:
        return st.booleans()
    if go_type.code == schema.INTEGER:
        return st.integers(-(1 << (go_type.bits - 1)), (1 << (go_type.bits - 1)) - 1)
    if go_type.code == schema.STRUCT:
        return objects(go_type.struct, max(depth, 0))
    if go_type.element is not None:
        inner = values(go_type.element, depth)
        if go_type.kind == "slice":
            return st.lists(inner, min_size=0 if go_type.pointer else 1, max_size=2)
        return st.dictionaries(_TEXTS, inner, min_size=1, max_size=2)
    known: dict[str, st.SearchStrategy[Any]] = {
        "bytes": st.binary(min_size=1, max_size=5).map(lambda data: base64.b64encode(data).decode()),
        "float64": st.integers(-9, 9) | st.sampled_from([0.5, -1.25]),
        schema.TIME: _TIMES,
        schema.MICRO_TIME: _MICRO_TIMES,
        schema.QUANTITY: _QUANTITIES,
        schema.INT_OR_STRING: st.integers(-9, 9) | _TEXTS,
        schema.SCHEMA_OR_BOOL: st.booleans(),
        schema.SCHEMA_OR_ARRAY: st.just([{"type": "string"}]),
        schema.SCHEMA_OR_STRINGS: st.just(["a"]),
    }
    return known.get(go_type.kind, _JSON)
