"""CEL's values in Python: which type a value has, equality, order, conversion, and the values Python has none of.

null, bool, int, double, string, bytes, list and map are None, bool, int, float, str, bytes, list and dict. Equality is
heterogeneous (1 == 1.0, never an error), as upstream's environments have it. Error texts: cel-go, common/types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

INT_MIN, INT_MAX, UINT_MAX = -(1 << 63), (1 << 63) - 1, (1 << 64) - 1
NO_OVERLOAD = "no such overload"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_MIN, _TIME_MAX = -62135596800 * 10**9, 253402300800 * 10**9 - 1


class CelError(Exception):
    """An expression cannot be evaluated; the text is upstream's."""


def no_overload() -> CelError:
    return CelError(NO_OVERLOAD)


class UInt(int):
    """An unsigned integer, which is another type than int."""


class Opaque:
    """A value of a library's own type; equality and hash are the subclass'."""

    cel_type: str
    order: Callable[[Any], int] | None = None


class Timestamp(Opaque):
    """A moment, in nanoseconds since 1970."""

    cel_type = "google.protobuf.Timestamp"
    __slots__ = ("ns",)

    def __init__(self, ns: int) -> None:
        if not _TIME_MIN <= ns <= _TIME_MAX:
            raise CelError("timestamp overflow")
        self.ns = ns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timestamp) and self.ns == other.ns

    def __hash__(self) -> int:
        return hash(self.ns)

    def __str__(self) -> str:
        when = _EPOCH + timedelta(seconds=self.ns // 10**9)
        fraction = f"{self.ns % 10**9:09d}".rstrip("0")
        return f"{when:%Y-%m-%dT%H:%M:%S}" + (f".{fraction}" if fraction else "") + "Z"

    def at(self, zone: str) -> datetime:
        """Its calendar in a zone by name or "+02:00"."""
        offset = re.fullmatch(r"([+-]?)(\d\d):(\d\d)", zone)
        where: Any
        if offset:
            minutes = int(offset[2]) * 60 + int(offset[3])
            where = timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes))
        else:
            try:
                where = ZoneInfo(zone) if zone else UTC
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise CelError(f"unknown time zone {zone}") from None
        return (_EPOCH + timedelta(seconds=self.ns // 10**9)).astimezone(where)


class Duration(Opaque):
    """A length of time in nanoseconds."""

    cel_type = "google.protobuf.Duration"
    __slots__ = ("ns",)

    def __init__(self, ns: int) -> None:
        if not INT_MIN <= ns <= INT_MAX:
            raise CelError("duration overflow")
        self.ns = ns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and self.ns == other.ns

    def __hash__(self) -> int:
        return hash(("duration", self.ns))

    def __str__(self) -> str:
        whole, rest = divmod(abs(self.ns), 10**9)
        fraction = f"{rest:09d}".rstrip("0")
        return ("-" if self.ns < 0 else "") + str(whole) + (f".{fraction}" if fraction else "") + "s"


class Optional(Opaque):
    """optional.of(value) or optional.none()."""

    cel_type = "optional_type"
    __slots__ = ("present", "value")

    def __init__(self, value: Any = None, *, present: bool = True) -> None:
        self.value, self.present = value, present

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Optional) or self.present != other.present:
            return False
        return not self.present or equal(self.value, other.value)

    __hash__ = None  # type: ignore[assignment]


NONE = Optional(present=False)


class TypeValue(Opaque):
    """A type as a value: what type(x) answers."""

    cel_type = "type"
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TypeValue) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class Message(dict[str, Any]):
    """A struct that an expression made; `name` is its type's."""

    name = ""


_NAMES: dict[type, str] = {
    type(None): "null_type",
    bool: "bool",
    int: "int",
    UInt: "uint",
    float: "double",
    str: "string",
    bytes: "bytes",
    list: "list",
    dict: "map",
}


def type_name(value: Any) -> str:
    found = _NAMES.get(type(value))
    if found is not None:
        return found
    if isinstance(value, Opaque):
        return value.cel_type
    if isinstance(value, Message):
        return value.name
    return "list" if isinstance(value, list) else "map"


class SetList(list[Any]):
    """A list whose schema says that it is a set: order does not matter, and adding is the union."""

    def equals(self, other: list[Any]) -> bool:
        """Of another of the same length, which may be any list."""
        return {_identity(item) for item in self} == {_identity(item) for item in other}

    def merge(self, other: list[Any]) -> list[Any]:
        known = {_identity(item) for item in self}
        return SetList([*self, *(item for item in other if _identity(item) not in known)])


class MapList(list[Any]):
    """A list whose schema says that it is a map by some of its items' fields, `keys`: order does not matter, and what
    is added takes the place of what has the same keys."""

    def __init__(self, items: Iterable[Any], keys: tuple[str, ...]) -> None:
        super().__init__(items)
        self._keys = keys

    def _by_key(self, items: list[Any]) -> dict[Any, Any]:
        return {tuple(_identity(item.get(key)) for key in self._keys): item for item in items}

    def equals(self, other: list[Any]) -> bool:
        """Of another of the same length, which may be any list."""
        mine, theirs = self._by_key(self), self._by_key(other)
        return mine.keys() == theirs.keys() and all(equal(item, theirs[key]) for key, item in mine.items())

    def merge(self, other: list[Any]) -> list[Any]:
        return MapList({**self._by_key(self), **self._by_key(other)}.values(), self._keys)


def _identity(value: Any) -> Any:
    """Something hashable, alike for values that are equal."""
    if isinstance(value, list):
        return tuple(map(_identity, value))
    if isinstance(value, dict):
        return frozenset((key, _identity(item)) for key, item in value.items())
    return ("bool", value) if isinstance(value, bool) else value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list):
        if not isinstance(b, list) or len(a) != len(b):
            return False
        return a.equals(b) if isinstance(a, SetList | MapList) else all(map(equal, a, b))
    if isinstance(a, dict):
        if not isinstance(b, dict) or len(a) != len(b):
            return False
        return all(key in b and equal(value, b[key]) for key, value in a.items())
    return bool(a == b)


def compare(a: Any, b: Any) -> int:
    """-1, 0 or 1. Raises CelError where the two have no order."""
    if is_number(a) and is_number(b):
        if a != a or b != b:
            raise CelError("NaN values cannot be ordered")
    elif isinstance(a, Timestamp | Duration) and type(a) is type(b):
        a, b = a.ns, b.ns
    elif type(a) is not type(b) or not isinstance(a, str | bytes | bool):
        raise no_overload()
    return int(a > b) - int(a < b)


def integer(value: int) -> int:
    if not INT_MIN <= value <= INT_MAX:
        raise CelError("integer overflow")
    return value


def unsigned(value: int) -> UInt:
    if not 0 <= value <= UINT_MAX:
        raise CelError("unsigned integer overflow")
    return UInt(value)


def mapping_key(value: Any) -> Any:
    """A key as maps keep it: 1, 1u and 1.0 find the same entry."""
    if isinstance(value, bool | str):
        return value
    if is_number(value):
        return int(value) if value == value and math.isfinite(value) and value == int(value) else value
    raise CelError("unsupported key type")


class DefaultMap(dict[str, Any]):
    """A map that answers an index that it lacks with an empty map, as the attributes of a device do for a domain."""


def has_key(found: dict[Any, Any], key: Any) -> bool:
    """Python finds 1 under True; CEL does not."""
    if isinstance(key, str):
        return key in found
    if not isinstance(key, bool) and not is_number(key):
        return False
    key = mapping_key(key)
    return any(isinstance(each, bool) == isinstance(key, bool) and each == key for each in found)


# -- texts ------------------------------------------------------------------------------------------------------------

_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"([+-]?)((?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+|0)")
_DURATION_PART = re.compile(r"(\d*)(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h)")
_RFC3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)")


def parse_duration(text: str) -> Duration | None:
    """Go's "1h30m", "-1.5s"; None where it is none."""
    found = _DURATION.fullmatch(text)
    if not found:
        return None
    total = 0
    for whole, fraction, unit in _DURATION_PART.findall(found[2]):
        scale = _UNITS[unit]
        total += int(whole or 0) * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
    return Duration(-total if found[1] == "-" else total)


def parse_timestamp(text: str) -> Timestamp | None:
    """RFC 3339; None where it is none."""
    found = _RFC3339.fullmatch(text)
    if not found:
        return None
    try:
        year, month, day, hour, minute, second = (int(found[i]) for i in range(1, 7))
        when = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    ns = int((when - _EPOCH).total_seconds()) * 10**9 + int((found[7] or "0").ljust(9, "0")[:9])
    if found[8] != "Z":
        hours, minutes = int(found[8][1:3]), int(found[8][4:])
        if hours > 23 or minutes > 59:
            return None
        offset = (hours * 60 + minutes) * 60 * 10**9
        ns += offset if found[8][0] == "-" else -offset
    return Timestamp(ns)


def double_text(value: float, exponent_from: int = 21) -> str:
    """As Go shows it with the shortest precision: as %v does, or as strconv's 'g' with an exponent from 6 on."""
    if value != value:
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    sign, digits, scale = Decimal(repr(value)).as_tuple()
    assert isinstance(scale, int)
    figures = "".join(map(str, digits)).rstrip("0")
    power = len(digits) + scale - 1
    minus = "-" if sign else ""
    if not -5 < power < exponent_from:
        rest = f".{figures[1:]}" if len(figures) > 1 else ""
        return f"{minus}{figures[0]}{rest}e{'-' if power < 0 else '+'}{abs(power):02d}"
    if power < 0:
        return f"{minus}0.{'0' * (-power - 1)}{figures}"
    whole, rest = figures[: power + 1].ljust(power + 1, "0"), figures[power + 1 :]
    return f"{minus}{whole}.{rest}" if rest else minus + whole


def walk(found: Any) -> Iterator[Any]:
    """What a comprehension goes over: elements of a list, keys of a map."""
    if isinstance(found, list | dict):
        return iter(found)
    raise no_overload()
