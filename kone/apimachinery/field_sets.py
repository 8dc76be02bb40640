"""Sets of field paths, in the very JSON that metadata.managedFields keeps them in (FieldsV1).

A set is a dict: its keys are path elements ("f:<name>" a field, "k:<keys>" an element of a list by its keys,
"v:<value>" of a set, "i:<index>"), its values the sets below them. A value that is empty, or has the key ".", says
that the path itself is a member. So nothing is encoded or decoded, and parts are shared: nothing here writes to what
it is given. The root is never a member; the empty set is {}. Rules: sigs.k8s.io/structured-merge-diff, fieldpath.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

FieldSet = dict[str, Any]

SELF: Final = "."
MEMBER: Final[FieldSet] = {}
"""The set below a path that is a member and has nothing below it."""


def is_member(below: FieldSet) -> bool:
    return not below or SELF in below


def ordered(fields: FieldSet) -> FieldSet:
    """The same, at every level in the order in which upstream writes it: clients compare what they read as text."""
    return {element: ordered(fields[element]) for element in sorted(fields)}


def union(left: FieldSet, right: FieldSet) -> FieldSet:
    """Every path of either."""
    if left is right or not right:
        return left
    if not left:
        return right
    out = dict(left)
    for element, theirs in right.items():
        ours = out.get(element)
        out[element] = theirs if ours is None else _union_below(ours, theirs)
    return out


def _union_below(left: FieldSet, right: FieldSet) -> FieldSet:
    if left == right:
        return left
    if not left or not right:
        return {SELF: MEMBER, **left, **right}
    return union(left, right)


def difference(left: FieldSet, right: FieldSet) -> FieldSet:
    """The paths of `left` that are not in `right`; `left` itself where none is."""
    out: FieldSet | None = None
    for element, theirs in right.items():
        if element == SELF or element not in left:
            continue
        ours = left[element]
        kept = _difference_below(ours, theirs)
        if kept is ours:
            continue
        if out is None:
            out = dict(left)
        if kept is None:
            del out[element]
        else:
            out[element] = kept
    return left if out is None else out


def _difference_below(left: FieldSet, right: FieldSet) -> FieldSet | None:
    """As `difference`, of two sets below a path; None where nothing is left."""
    if not left:
        return None if is_member(right) else left
    kept = difference(left, right) if right else left
    if SELF in left and is_member(right):
        kept = {element: below for element, below in kept.items() if element != SELF}
    if kept is left:
        return left
    if set(kept) == {SELF}:
        return MEMBER
    return kept or None


def intersection(left: FieldSet, right: FieldSet) -> FieldSet:
    """The paths in both."""
    out: FieldSet = {}
    for element, ours in left.items():
        theirs = right.get(element)
        if element == SELF or theirs is None:
            continue
        below = intersection(ours, theirs)
        if is_member(ours) and is_member(theirs):
            out[element] = {SELF: MEMBER, **below} if below else MEMBER
        elif below:
            out[element] = below
    return out


def without(fields: FieldSet, path: Sequence[str]) -> FieldSet:
    """The set without the path and all below it."""
    element, *rest = path
    below = fields.get(element)
    if below is None or (rest and not below):
        return fields
    kept = without(below, rest) if rest else MEMBER
    if rest and kept is below:
        return fields
    out = {name: value for name, value in fields.items() if name != element}
    if rest and kept:
        out[element] = MEMBER if set(kept) == {SELF} else kept
    return out


def only(fields: FieldSet, prefix: Sequence[str]) -> FieldSet:
    """The paths at and below a prefix, of which "*" stands for any element."""
    if not prefix:
        return fields
    head, *rest = prefix
    out: FieldSet = {}
    for element, below in fields.items():
        if element == SELF or head not in ("*", element):
            continue
        if not rest:
            out[element] = below
        elif kept := only(below, rest):
            out[element] = kept
    return out


def paths(fields: FieldSet, prefix: str = "") -> Iterator[str]:
    """Every member as upstream prints it: '.spec.containers[name="c"].image'."""
    for element in sorted(fields):
        if element == SELF:
            continue
        below, path = fields[element], prefix + shown(element)
        if is_member(below):
            yield path
        if below:
            yield from paths(below, path)


def shown(element: str) -> str:
    """A path element as upstream prints it."""
    text = element[2:]
    match element[0]:
        case "f":
            return f".{text}"
        case "k":
            return f"[{','.join(f'{name}={_text(value)}' for name, value in sorted(json.loads(text).items()))}]"
        case "v":
            return f"[={text}]"
    return f"[{text}]"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def is_valid(fields: Any) -> bool:
    """Whether a client's fieldsV1 can be read."""
    return isinstance(fields, dict) and all(
        element == SELF or (element[:2] in ("f:", "k:", "v:", "i:") and is_valid(below))
        for element, below in fields.items()
    )
