"""Values by their structure: which fields one has, what changed between two, merging and removing.

These are the four operations that server-side apply is made of. None of them writes to what it is given.
Rules: sigs.k8s.io/structured-merge-diff, typed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import orjson

from kone.apimachinery.errors import go_format, go_quote
from kone.apimachinery.field_sets import MEMBER, SELF, FieldSet, is_member, shown
from kone.apimachinery.structure import ANY, Structure

_MISSING: Final = object()


class ElementError(ValueError):
    """An element of a list that has no name."""


def element_of(structure: Structure, item: Any) -> str:
    """The path element of a granular list's item. Raises ElementError."""
    keys = structure.keys
    if not keys:
        if isinstance(item, dict | list) or item is None:
            raise ElementError(f"associative list without keys has an element that's {_list_word(item)}")
        return "v:" + orjson.dumps(item).decode()
    if not isinstance(item, dict):
        word = "null" if item is None else "non-map"
        raise ElementError(f"associative list with keys may not have {word} elements")
    named: dict[str, Any] = {}
    for key in keys:
        value = item.get(key, _MISSING)
        if value is _MISSING:
            value = structure.defaults.get(key, _MISSING)
        if value is not _MISSING:
            named[key] = value
    if not named:
        listed = " ".join(go_quote(key) for key in keys)
        raise ElementError(
            f"associative list with keys has an element that omits all key fields [{listed}] "
            "(and doesn't have default values for any key fields)"
        )
    return "k:" + orjson.dumps(named, option=orjson.OPT_SORT_KEYS).decode()


def _list_word(item: Any) -> str:
    return "a map type" if isinstance(item, dict) else "a list type" if isinstance(item, list) else "an explicit null"


def _is_granular_map(structure: Structure, value: Any) -> bool:
    return not structure.atomic and (structure.kind == "map" or (structure.kind == "any" and isinstance(value, dict)))


def _is_granular_list(structure: Structure) -> bool:
    return structure.kind == "list" and not structure.atomic


def _by_element(structure: Structure, items: Any) -> dict[str, list[Any]]:
    """The items of a list by their names; what has none is left out."""
    found: dict[str, list[Any]] = {}
    for item in items if isinstance(items, list) else ():
        try:
            found.setdefault(element_of(structure, item), []).append(item)
        except ElementError:
            continue
    return found


# -- which fields --------------------------------------------------------------------------------------------------


def fields_of(structure: Structure, value: Any) -> FieldSet:
    """What applying `value` owns: its leaves, the elements of its lists and maps, maps that are empty."""
    out: FieldSet = {}
    if _is_granular_map(structure, value):
        for name, item in value.items() if isinstance(value, dict) else ():
            declared = structure.fields.find(name)
            child = declared or structure.element or ANY
            below = fields_of(child, item)
            member = declared is None or item is None or item == {} or _is_leaf(child, item)
            _put(out, f"f:{name}", below, member)
    elif _is_granular_list(structure):
        for element, items in _by_element(structure, value).items():
            _put(out, element, fields_of(structure.element or ANY, items[0]), True)
    return out


def _is_leaf(structure: Structure, value: Any) -> bool:
    return not _is_granular_map(structure, value) and not _is_granular_list(structure)


def _put(out: FieldSet, element: str, below: FieldSet, member: bool) -> None:
    if member:
        out[element] = {SELF: MEMBER, **below} if below else MEMBER
    elif below:
        out[element] = below


# -- what changed --------------------------------------------------------------------------------------------------


def whole(structure: Structure, value: Any) -> FieldSet:
    """The set below a path whose value came or went: the path and everything in it."""
    if value and not structure.atomic:
        kind = structure.kind
        if isinstance(value, dict):
            if kind == "map" or kind == "any":
                out: FieldSet = {SELF: MEMBER}
                find, other = structure.fields.find, structure.element or ANY
                for name, item in value.items():
                    out[f"f:{name}"] = whole(find(name) or other, item)
                return out
        elif kind == "list" and isinstance(value, list):
            found: FieldSet = {SELF: MEMBER}
            for element, items in _by_element(structure, value).items():
                found[element] = whole(structure.element or ANY, items[0]) if len(items) == 1 else MEMBER
            return found
    return MEMBER


def compare(structure: Structure, old: Any, new: Any) -> tuple[FieldSet, FieldSet]:
    """(paths that came or changed, paths that went) from one object to another."""
    touched: FieldSet = {}
    removed: FieldSet = {}
    if old is new or old == new:
        return touched, removed
    _compare_maps(structure, old, new, touched, removed)
    return touched, removed


def _compare_maps(structure: Structure, old: Any, new: Any, touched: FieldSet, removed: FieldSet) -> None:
    before = old if isinstance(old, dict) else {}
    after = new if isinstance(new, dict) else {}
    find, other = structure.fields.find, structure.element or ANY
    for name, value in after.items():
        was = before.get(name, _MISSING)
        if was is value or (was is not _MISSING and was == value):
            continue
        child = find(name) or other
        if was is _MISSING:
            touched[f"f:{name}"] = whole(child, value)
        else:
            _compare_values(child, was, value, f"f:{name}", touched, removed)
    for name, was in before.items():
        if name not in after:
            removed[f"f:{name}"] = whole(find(name) or other, was)


def _compare_values(
    structure: Structure, old: Any, new: Any, element: str, touched: FieldSet, removed: FieldSet
) -> None:
    """Two values of one path that differ."""
    came: FieldSet = {}
    went: FieldSet = {}
    empty = not old and not new
    if not empty and _is_granular_map(structure, old if new is None else new):
        _compare_maps(structure, old, new, came, went)
    elif not empty and _is_granular_list(structure):
        _compare_lists(structure, old, new, came, went)
    else:
        touched[element] = MEMBER
        return
    if came:
        touched[element] = came
    if went:
        removed[element] = went


def _compare_lists(structure: Structure, old: Any, new: Any, touched: FieldSet, removed: FieldSet) -> None:
    before, after = _by_element(structure, old), _by_element(structure, new)
    child = structure.element or ANY
    for element, items in after.items():
        was = before.get(element)
        if was is None:
            touched[element] = whole(child, items[0]) if len(items) == 1 else MEMBER
        elif was != items:
            if len(was) > 1 or len(items) > 1:
                touched[element] = MEMBER
            else:
                _compare_values(child, was[0], items[0], element, touched, removed)
    for element, was in before.items():
        if element not in after:
            removed[element] = whole(child, was[0]) if len(was) == 1 else MEMBER


# -- merging -------------------------------------------------------------------------------------------------------


def merge(structure: Structure, live: Any, config: Any) -> Any:
    """`live` with what `config` says; granular lists keep the order of `config` for what both have."""
    if _is_granular_map(structure, config if config is not None else live):
        before = live if isinstance(live, dict) else {}
        after = config if isinstance(config, dict) else {}
        if not before and not after:
            return config
        out = dict(before)
        for name, value in after.items():
            child = structure.child(name) or ANY
            out[name] = merge(child, before[name], value) if name in before else value
        return out
    if _is_granular_list(structure):
        if not live and not config:
            return config
        return _merge_lists(structure, live or [], config or [])
    return config


def _merge_lists(structure: Structure, live: list[Any], config: list[Any]) -> list[Any]:
    left = [(element_of(structure, item), item) for item in live]
    right = [(element_of(structure, item), item) for item in config]
    ours, theirs = dict(reversed(left)), dict(right)
    shared = [element for element, _ in right if element in ours]
    child = structure.element or ANY
    out: list[Any] = []
    merged: set[str] = set()
    at_left = at_right = at_shared = 0

    def take_right() -> None:
        nonlocal at_right, at_shared
        element, item = right[at_right]
        merged.add(element)
        out.append(merge(child, ours[element], item) if element in ours else item)
        at_right += 1
        if at_shared < len(shared) and shared[at_shared] == element:
            at_shared += 1

    while at_left < len(left) or at_right < len(right):
        if at_left < len(left) and at_right < len(right):
            element = left[at_left][0]
            if element == right[at_right][0]:
                take_right()
                at_left += 1
                continue
            if element in theirs and at_shared < len(shared) and shared[at_shared] != element:
                at_left += 1  # both have it, but it is not its turn yet
                continue
        if at_left < len(left):
            element, item = left[at_left]
            if element not in theirs:
                out.append(item)
                at_left += 1
                continue
            if element in merged:
                at_left += 1
        if at_right < len(right):
            take_right()
    return out


# -- removing ------------------------------------------------------------------------------------------------------


def with_named_fields(structure: Structure, fields: FieldSet) -> FieldSet:
    """The set with every declared field on the way to a member made a member (EnsureNamedFieldsAreMembers)."""
    out: FieldSet = {}
    for element, below in fields.items():
        if element == SELF:
            out[SELF] = MEMBER
            continue
        declared = structure.fields.find(element[2:]) if element.startswith("f:") else None
        child = declared or structure.element or ANY
        inner = with_named_fields(child, below) if below else below
        out[element] = {SELF: MEMBER, **inner} if inner and declared is not None else inner
    return out


def remove(structure: Structure, value: Any, fields: FieldSet) -> Any:
    """`value` without what the set names; null where nothing is left."""
    if not fields or not value:
        return value
    if _is_granular_map(structure, value) and isinstance(value, dict):
        out: dict[str, Any] = {}
        for name, item in value.items():
            below = fields.get(f"f:{name}")
            if below is None:
                out[name] = item
            elif not is_member(below):
                out[name] = remove(structure.child(name) or ANY, item, below)
        return out or None
    if _is_granular_list(structure) and isinstance(value, list):
        kept: list[Any] = []
        for item in value:
            try:
                below = fields.get(element_of(structure, item))
            except ElementError:
                below = None
            if below is None:
                kept.append(item)
            elif not is_member(below):
                kept.append(remove(structure.element or ANY, item, below))
        return kept or None
    return value


# -- validity ------------------------------------------------------------------------------------------------------


def problems(structure: Structure, value: Any, path: str = "") -> Iterator[str]:
    """What keeps a value from being applied, in upstream's words, each with its path."""
    where = f"{path}: " if path else ""
    if value is None or structure.kind == "any":
        return
    if structure.kind == "scalar":
        if (text := _scalar_problem(structure.scalar, value)) is not None:
            yield where + text
    elif structure.kind == "map":
        if not isinstance(value, dict):
            yield f"{where}expected map, got &{{{go_format(value)}}}"
            return
        for name, item in value.items():
            child = structure.child(name)
            if child is None:
                yield f"{path}.{name}: field not declared in schema"
            else:
                yield from problems(child, item, f"{path}.{name}")
    elif not isinstance(value, list):
        yield f"{where}expected list, got &{{{go_format(value)}}}"
    else:
        yield from _list_problems(structure, value, path)


def _list_problems(structure: Structure, items: list[Any], path: str) -> Iterator[str]:
    seen: set[str] = set()
    for i, item in enumerate(items):
        where = f"{path}[{i}]"
        if not structure.atomic:
            try:
                element = element_of(structure, item)
            except ElementError as error:
                yield f"{path}: element {i}: {error}"
                return
            if element in seen:
                yield f"{path}: duplicate entries for key {shown(element)}"
                continue
            seen.add(element)
            where = path + shown(element)
        yield from problems(structure.element or ANY, item, where)


def _scalar_problem(scalar: str, value: Any) -> str | None:
    got = f"got &value.valueUnstructured{{Value:{json.dumps(value)}}}"
    if scalar == "string" and not isinstance(value, str):
        return f"expected string, {got}"
    if scalar == "boolean" and not isinstance(value, bool):
        return f"expected boolean, {got}"
    if scalar == "numeric" and (isinstance(value, bool) or not isinstance(value, int | float)):
        return f"expected numeric (int or float), {got}"
    if isinstance(value, dict | list):
        return f"expected scalar, {got}"
    return None
