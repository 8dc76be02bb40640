"""What a call costs at most, and how large its result is at most, by the function and the sizes of its arguments.

Source: cel-go (checker/cost.go, functionCost) for its own functions, k8s.io/apiserver (pkg/cel/library/cost.go) for
those that Kubernetes adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kone.apimachinery.cel_functions import Overload
from kone.apimachinery.cel_ranges import MOST, ONE, UNKNOWN, ZERO, Range, fixed
from kone.apimachinery.cel_types import Type

TRAVERSAL: Final = 0.1  # of a character that is read
REGEX: Final = 0.25  # of a character of a regular expression
AUTHORIZATION: Final = fixed(350_000)
NAMED_FORMAT_MOST, NAMED_FORMAT_REGEX = 64, 128
_ADDRESS: Final = Range(4, 16)  # bytes
_REQUIREMENT: Final = 10 + 40.0  # one of a selector: a list and a struct
_TEXTS: Final = frozenset(("string", "bytes"))


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument as far as it is known: `element_size` is that of its items, where it is a list."""

    type: Type
    size: Range | None
    literal: Any
    element_size: Callable[[], Range]

    @property
    def size_or_unknown(self) -> Range:
        return UNKNOWN if self.size is None else self.size


@dataclass(frozen=True, slots=True)
class Called:
    """The cost of a call without that of its arguments; the size of the result where it is known."""

    cost: Range
    size: Range | None = None


def call_cost(function: str, overload: Overload, target: Argument | None, args: Sequence[Argument]) -> Called:
    found = _kubernetes(function, overload, target, args)
    return found if found is not None else _own(function, overload, target, args)


# -- CEL's own --------------------------------------------------------------------------------------------------------

_COMPARED: Final = frozenset(("_<_", "_<=_", "_>_", "_>=_"))


def _own(function: str, overload: Overload, target: Argument | None, args: Sequence[Argument]) -> Called:
    kind = overload.args[0].kind if overload.args else ""
    sizes = [arg.size_or_unknown for arg in args]
    if function in ("_==_", "_!=_") or (function in _COMPARED and kind in _TEXTS):
        most = min(sizes[0].most, sizes[1].most)
        return Called(Range(1 if most else 0, most).scaled(TRAVERSAL))
    if function == "_+_" and kind in ("string", "bytes", "list"):
        size = sizes[0] + sizes[1]
        return Called(ONE if kind == "list" else size.scaled(TRAVERSAL), size)
    if function == "@in" and overload.args[1].kind == "list":
        return Called(sizes[1])
    if function == "matches":
        text = target.size_or_unknown if target is not None else sizes[0]
        return Called((text + ONE).scaled(TRAVERSAL).times(sizes[-1].scaled(REGEX)))
    if target is not None and function in ("startsWith", "endsWith"):
        return Called(sizes[0].scaled(TRAVERSAL))
    if target is not None and function == "contains":
        return Called(target.size_or_unknown.scaled(TRAVERSAL).times(sizes[0].scaled(TRAVERSAL)))
    if target is not None and function == "format":
        return Called(target.size_or_unknown.scaled(TRAVERSAL))
    if function == "bytes" and kind == "string":
        return Called(sizes[0].scaled(TRAVERSAL), Range(sizes[0].least, min(sizes[0].most * 4, MOST)))
    if function == "string" and kind == "bytes":
        return Called(sizes[0].scaled(TRAVERSAL), Range(sizes[0].least // 4, sizes[0].most))
    if function == "strings.quote":
        size = Range(sizes[0].least + 2, min(sizes[0].most * 2 + 2, MOST))
        return Called(sizes[0].scaled(TRAVERSAL), size)
    return Called(ONE)


# -- Kubernetes' ------------------------------------------------------------------------------------------------------

_OF_LISTS: Final = frozenset(("isSorted", "sum", "max", "min", "indexOf", "lastIndexOf", "includes"))
_OF_TEXTS: Final = frozenset(("lowerAscii", "upperAscii", "substring", "trim"))
_PARSED: Final = frozenset(("cidr", "isIP", "isCIDR", "quantity", "isQuantity", "semver", "isSemver"))
_EQUAL_AT_ONCE: Final = frozenset(("net.IP", "net.CIDR", "kubernetes.Quantity", "kubernetes.Semver"))


def _kubernetes(function: str, overload: Overload, target: Argument | None, args: Sequence[Argument]) -> Called | None:
    if function == "check":
        return Called(AUTHORIZATION)
    if function in ("fieldSelector", "labelSelector") and len(args) == 1:
        return Called(_selector(args[0].size_or_unknown))
    if target is not None:
        if function in _OF_LISTS:
            return Called(_walked(function, target))
        if function in _OF_TEXTS:
            return Called(target.size_or_unknown.scaled(TRAVERSAL), target.size_or_unknown)
        if function == "replace":
            size = target.size_or_unknown
            return Called(size.scaled(2 * TRAVERSAL), _replaced(size, args[0].size_or_unknown, args[1].size_or_unknown))
        if function == "split":
            size, limit = target.size_or_unknown, args[1].literal if len(args) > 1 else None
            most = limit % 2**64 if isinstance(limit, int) and not isinstance(limit, bool) else size.most
            return Called(size.scaled(2 * TRAVERSAL), Range(0, most))
        if function == "join":
            size = _joined(target, args)
            return Called(size.scaled(TRAVERSAL), size)
        if function in ("find", "findAll"):
            size = target.size_or_unknown
            cost = (size + ONE).scaled(TRAVERSAL).times(args[0].size_or_unknown.scaled(REGEX))
            return Called(cost, Range(0, size.most))
        if function in ("containsIP", "containsCIDR"):
            return Called(_contains(function, overload, args[0]))
    return _parsed(function, target, args) or _equal(function, args)


def _parsed(function: str, target: Argument | None, args: Sequence[Argument]) -> Called | None:
    """Of texts that become something else."""
    if not args:
        return None
    size = args[0].size_or_unknown
    if function in ("url", "jsonpatch.escapeKey") and len(args) == 1:
        return Called(size.scaled(TRAVERSAL), size)
    if function in _PARSED or (function == "ip" and target is None):
        return Called(size.scaled(TRAVERSAL))
    if function == "ip.isCanonical":
        return Called(size.scaled(2 * TRAVERSAL))
    if function == "validate":
        return Called(size.scaled(TRAVERSAL).scaled(NAMED_FORMAT_REGEX * REGEX))
    return None


def _equal(function: str, args: Sequence[Argument]) -> Called | None:
    if function != "_==_" or args[0].type != args[1].type:
        return None
    name = args[0].type.name
    if name in _EQUAL_AT_ONCE or name.startswith("kubernetes.authorization."):
        return Called(ONE)
    if name == "kubernetes.NamedFormat":
        return Called(Range(1, NAMED_FORMAT_MOST).scaled(TRAVERSAL))
    if name == "kubernetes.URL":
        return Called(Range(1, args[1].size.most if args[1].size is not None else 1).scaled(TRAVERSAL))
    return None


def _selector(length: Range) -> Range:
    requirements = length.scaled(0.5).scaled(_REQUIREMENT)
    return fixed(10) + length.scaled(TRAVERSAL) + requirements


def _walked(function: str, target: Argument) -> Range:
    """A list from end to end, its texts too; or a text."""
    if target.type.params:
        each = ONE
        if target.type.params[0].kind in _TEXTS:
            each = each + target.element_size().scaled(TRAVERSAL)
        return target.size_or_unknown.times(each)
    return target.size_or_unknown if function == "includes" else target.size_or_unknown.scaled(TRAVERSAL)


def _replaced(size: Range, old: Range, new: Range) -> Range:
    """The size of a text when every `old` in it is `new`."""
    least = _replacement(size.least, old.most, new.least, shorter=True)
    most = _replacement(size.most, old.least, new.most, shorter=False)
    return Range(least, most)


def _replacement(size: int, old: int, new: int, *, shorter: bool) -> int:
    if not old:  # between all characters, and at both ends
        return min(min(size + 1, MOST) * new + size, MOST)
    if (old <= new) if shorter else (new <= old):
        return size
    return min(math.ceil(float(size) / old) * new, MOST)


def _joined(target: Argument, args: Sequence[Argument]) -> Range:
    count, size = target.size_or_unknown, ZERO
    if target.type.params:
        size = count.times(target.element_size())
    if args:
        separators = Range(max(count.least - 1, 0), max(count.most - 1, 0))
        size = size + args[0].size_or_unknown.times(separators)
    return size


def _contains(function: str, overload: Overload, other: Argument) -> Range:
    cost = (_ADDRESS + _ADDRESS).scaled(TRAVERSAL)
    if function == "containsCIDR":
        cost = cost + _ADDRESS.scaled(TRAVERSAL) + ONE
    if overload.args[1].kind == "string":
        cost = cost + other.size_or_unknown.scaled(TRAVERSAL)
    return cost
