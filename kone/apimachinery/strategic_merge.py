"""Strategic merge patch: a merge patch that knows, from the schema, which lists merge and by which key.

Directives: "$patch" (replace, delete, merge) in a map or a list's element, "$retainKeys",
"$deleteFromPrimitiveList/<list>" and "$setElementOrder/<list>". Elements that the patch names come in the patch's
order; those that only the server has keep their place relative to them. (docs:
sig-api-machinery/strategic-merge-patch.md)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from kone.apimachinery.errors import StatusError, bad_request, go_format, go_quote, json_word
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object
from kone.apimachinery.schema import Field, GoType, definition, definition_of

DIRECTIVE: Final = "$patch"
RETAIN_KEYS: Final = "$retainKeys"
DELETE_FROM: Final = "$deleteFromPrimitiveList"
ELEMENT_ORDER: Final = "$setElementOrder"


def strategic_merge_patch(obj: Object, patch: Any, gvk: GVK) -> Object:
    """The outcome of the patch on a built-in kind. Writes to neither. Raises StatusError 400, 415, 422 or 500."""
    found = definition_of(gvk)
    if found is None:
        raise StatusError(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
    if patch is None:
        return obj
    if not isinstance(patch, dict):
        raise bad_request(f"json: cannot unmarshal {json_word(patch)} into Go value of type map[string]interface {{}}")
    return _merge_map(obj, patch, _Schema(found.name, None))


def _failed(message: str) -> StatusError:
    """What upstream does not map to a status of its own is answered 500 with the bare text."""
    return StatusError(500, "", message)


def _no_merge_key(element: Mapping[str, Any], key: str) -> StatusError:
    return _failed(f"map: {go_format(element)} does not contain declared merge key: {key}")


def _wrong_argument(expected: str, found: Any) -> StatusError:
    return _failed(f"expected a {expected}, but received a {_go_word(found)}")


def _go_word(value: Any) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, dict):
        return "map"
    if isinstance(value, list):
        return "slice"
    return {bool: "bool", str: "string", int: "int64", float: "float64"}[type(value)]


class _Schema(NamedTuple):
    """Where in the schema a map stands: a struct by its identifier, or the type of a map's values."""

    struct: str
    values: GoType | None

    def field(self, name: str) -> Field:
        """What the schema says of a key. Raises StatusError 500 as upstream for keys it does not know."""
        if self.values is not None:
            return Field(name, self.values, True, False, False, 0)
        found = definition(self.struct).fields.get(name) if self.struct and not self.special else None
        if found is None:
            struct = self.struct.rpartition(".")[2]
            raise _failed(f"unable to find api field in struct {struct} for the json field {go_quote(name)}")
        return found

    @property
    def special(self) -> bool:
        """Structs that write themselves (RawExtension …): nothing is known of their inside."""
        return self.struct.startswith("special:")


def _schema_of(go_type: GoType | None) -> _Schema:
    assert go_type is not None
    if go_type.struct:
        return _Schema(go_type.struct, None)
    if go_type.kind == "map":
        return _Schema("", go_type.element)
    return _Schema(f"special:{go_type.kind}", None)


def _strategy(field: Field) -> str:
    """The patch strategy apart from retainKeys."""
    return next((s for s in field.strategies if s != "retainKeys"), "")


def _merge_map(original: Mapping[str, Any] | None, patch: Mapping[str, Any], schema: _Schema) -> Object:
    if DIRECTIVE in patch:
        return _whole_map(patch)
    merged: Object = dict(original or {})
    patch = dict(patch)
    _retain_keys(merged, patch)
    _merge_ordered_lists(merged, patch, schema)
    # What is deleted and added in one patch stays: upstream takes them in no order, so either is right.
    for key, value in sorted(patch.items(), key=lambda item: not item[0].startswith(DELETE_FROM)):
        deletes = key.startswith(DELETE_FROM)
        if deletes:
            key = _list_name(key, DELETE_FROM, "invalid patch format of primitive list")
        if value is None:
            merged.pop(key, None)
            continue
        current = merged.get(key)
        if key not in merged or _go_word(current) != _go_word(value):
            if not deletes:
                _take(merged, key, value)
        elif isinstance(value, dict):
            field = schema.field(key)
            merged[key] = value if _strategy(field) == "replace" else _merge_map(current, value, _schema_of(field.type))
        elif isinstance(value, list):
            field = schema.field(key)
            if deletes or _strategy(field) == "merge":
                merged[key] = _merge_list(merged[key], value, field, deletes)
            else:
                merged[key] = value
        else:
            merged[key] = value
    return merged


def _whole_map(patch: Mapping[str, Any]) -> Object:
    """A map whose "$patch" says what becomes of the whole."""
    directive = patch[DIRECTIVE]
    if directive == "replace":
        return {k: v for k, v in patch.items() if k != DIRECTIVE}
    if directive == "delete":
        return {}
    raise _unknown_directive(directive, patch)


def _unknown_directive(directive: Any, patch: Mapping[str, Any]) -> StatusError:
    text = directive if isinstance(directive, str) else f"%!s({_go_word(directive)}={go_format(directive)})"
    return _failed(f"unknown patch type: {text} in map: {go_format(patch)}")


def _take(merged: Object, key: str, value: Any) -> None:
    """A value that meets nothing of its type: taken without its nulls and directives."""
    taken, keep = _without_directives(_without_nulls(value))
    if keep:
        merged[key] = taken
    else:
        merged.pop(key, None)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def _without_directives(value: Any) -> tuple[Any, bool]:
    """(the value without the maps that carry "$patch", whether anything is left)."""
    if isinstance(value, dict):
        if DIRECTIVE in value:
            return None, False
        kept = {k: _without_directives(v) for k, v in value.items()}
        return {k: v for k, (v, keep) in kept.items() if keep}, True
    if isinstance(value, list):
        return [v for v, keep in map(_without_directives, value) if keep], True
    return value, True


def _retain_keys(merged: Object, patch: Object) -> None:
    """ "$retainKeys": drop every key that is not in the list, which must name all that the patch sets."""
    if RETAIN_KEYS not in patch:
        return
    keys = patch.pop(RETAIN_KEYS)
    if not isinstance(keys, list):
        raise bad_request("invalid patch format of retainKeys")
    kept = {key for key in keys if isinstance(key, str)}
    for key, value in patch.items():
        if value is not None and not key.startswith((DELETE_FROM, ELEMENT_ORDER)) and key not in kept:
            raise bad_request("invalid patch format of retainKeys")
    for key in [key for key in merged if key not in kept]:
        del merged[key]


def _list_name(key: str, prefix: str, why: str) -> str:
    """The list that "$directive/<list>" speaks of."""
    head, slash, name = key.partition("/")
    if not slash or head != prefix:
        raise bad_request(why)
    return name


def _merge_ordered_lists(merged: Object, patch: Object, schema: _Schema) -> None:
    """ "$setElementOrder/<list>": merge that list and order it; both leave the patch."""
    for directive in [key for key in patch if key.startswith(ELEMENT_ORDER)]:
        order = patch.pop(directive)
        if not isinstance(order, list):
            raise _wrong_argument("slice", order)
        name = _list_name(directive, ELEMENT_ORDER, "invalid patch format of setElementOrder list")
        original, changes = merged.get(name), patch.get(name)
        if (name in merged and not isinstance(original, list)) or (name in patch and not isinstance(changes, list)):
            raise _wrong_argument("slice", original if not isinstance(original, list) else changes)
        field = schema.field(name)
        if field.type.kind != "slice":
            raise _failed(f"expected slice or array type, but got: {_reflect_kind(field.type)}")
        key = field.merge_key
        _check_order(changes or [], order, key)
        if name in merged and name not in patch:
            together: list[Any] = list(original or [])
        elif name not in merged and name in patch:
            together = _without_directives(changes)[0]
        elif name in merged:
            merges = _strategy(field) == "merge"
            together = _merge_list(original or [], changes or [], field, False) if merges else list(changes or [])
        else:
            continue
        maps = _element_is_map(original or [], changes or [])
        named, others = _partition(together, order, key)
        merged[name] = _in_order(named, others, order, original or [], key if maps else "", maps)
        patch.pop(name, None)


def _reflect_kind(go_type: GoType) -> str:
    return "struct" if go_type.struct or "." in go_type.kind else go_type.kind


def _check_order(changes: Sequence[Any], order: Sequence[Any], key: str) -> None:
    """The patch's elements must come in the order that the directive gives."""
    if not order:
        return
    wanted = [c for c in changes if not (key and isinstance(c, dict) and c.get(DIRECTIVE) == "delete")]
    at = 0
    for element in order:
        while at < len(wanted) and isinstance(wanted[at], dict) and DIRECTIVE in wanted[at]:
            at += 1
        if at == len(wanted):
            return
        if key:
            at += _merge_value(wanted[at], key) == _merge_value(element, key)
        else:
            at += wanted[at] == element
    if at < len(wanted):
        raise _failed(
            f"The order in patch list:\n{go_format(list(changes))}\n doesn't match {ELEMENT_ORDER} list:\n"
            f"{go_format(list(order))}\n"
        )


def _merge_value(element: Any, key: str) -> Any:
    if not isinstance(element, dict):
        raise _wrong_argument("map", element)
    if key not in element:
        raise _no_merge_key(element, key)
    return element[key]


def _element_is_map(*lists: Sequence[Any]) -> bool:
    """Whether the lists hold maps; they must hold one type, and not lists."""
    kinds = {_go_word(element) for elements in lists for element in elements}
    if not kinds:
        raise _failed("no elements in any of the given slices")
    first = next(element for elements in lists for element in elements)
    if isinstance(first, list):
        raise StatusError(422, "Invalid", "the server rejected our request due to an error in our request")
    if len(kinds) > 1:
        raise _failed(f"list element types are not identical: {go_format([list(each) for each in lists])}")
    return kinds == {"map"}


def _merge_list(original: Sequence[Any], changes: Sequence[Any], field: Field, deletes: bool) -> list[Any]:
    if not original and not changes:
        return list(original)
    maps = _element_is_map(original, changes)
    key = field.merge_key
    if not maps:
        if deletes:
            return [element for element in original if element not in changes]
        merged = list(dict.fromkeys([*original, *changes]))
        named, others = _partition(merged, changes, "")
        return _in_order(named, others, changes, original, "", False)
    if not key:
        raise _failed(f"cannot merge lists without merge key for {_element_name(field)}")
    present, changes = _special_elements(list(original), changes, key)
    merged = list(present)
    for change in changes:
        value = _merge_value(change, key)
        at = next((i for i, element in enumerate(merged) if _has(element, key, value)), None)
        if at is None:
            merged.append(change)
        else:
            assert field.type.element is not None
            merged[at] = _merge_map(merged[at], change, _schema_of(field.type.element))
    named, others = _partition(merged, changes, key)
    return _in_order(named, others, changes, present, key, True)


def _element_name(field: Field) -> str:
    element = field.type.element
    return element.text.rpartition(".")[2] if element is not None else ""


def _has(element: Any, key: str, value: Any) -> bool:
    if not isinstance(element, dict):
        raise _failed(f"value for key {go_format(value)} is not a map")
    return key in element and element[key] == value


def _special_elements(original: list[Any], changes: Sequence[Any], key: str) -> tuple[list[Any], list[Any]]:
    """Elements of the patch that carry "$patch": (what is left of the original, the other elements)."""
    plain, replaces = [], False
    for change in changes:
        directive = change.get(DIRECTIVE, DIRECTIVE)
        if directive == DIRECTIVE and DIRECTIVE not in change:
            plain.append(change)
        elif directive == "delete":
            value = _merge_value(change, key)
            original = [element for element in original if not _has(element, key, value)]
        elif directive == "replace":
            replaces = True
        elif directive == "merge":
            raise _failed("merging lists cannot yet be specified in the patch")
        else:
            raise _unknown_directive(directive, change)
    return (plain, []) if replaces else (original, plain)


def _partition(elements: Sequence[Any], order: Sequence[Any], key: str) -> tuple[list[Any], list[Any]]:
    """(those that `order` names, those it does not)."""
    if key:
        names = [_merge_value(element, key) for element in order]
        flags = [_merge_value(element, key) in names for element in elements]
    else:
        flags = [element in order for element in elements]
    named = [element for element, flag in zip(elements, flags, strict=True) if flag]
    return named, [element for element, flag in zip(elements, flags, strict=True) if not flag]


def _in_order(
    named: list[Any], others: list[Any], order: Sequence[Any], server: Sequence[Any], key: str, maps: bool
) -> list[Any]:
    """The patch's elements in its order; the server's own stay before the next one that both know."""

    def place(elements: Sequence[Any], element: Any) -> int:
        wanted = element.get(key) if maps else element
        return next((i for i, each in enumerate(elements) if (each.get(key) if maps else each) == wanted), -1)

    named = sorted(named, key=lambda element: place(order, element))
    others = sorted(others, key=lambda element: place(server, element))
    out: list[Any] = []
    while named and others:
        other, mine = place(server, others[0]), place(server, named[0])
        out.append(others.pop(0) if other >= 0 and mine >= 0 and other < mine else named.pop(0))
    return [*out, *named, *others]
