"""CEL's standard functions, and the extensions that upstream's environments carry: strings (2), lists (3), sets,
optionals. Signatures, results and error texts: cel-go v0.29, common/stdlib and ext."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cmp_to_key
from typing import Any

from kone.apimachinery.cel_format import format_text
from kone.apimachinery.cel_functions import Functions
from kone.apimachinery.cel_values import (
    INT_MAX,
    INT_MIN,
    NONE,
    UINT_MAX,
    CelError,
    DefaultMap,
    Duration,
    MapList,
    Opaque,
    Optional,
    SetList,
    Timestamp,
    TypeValue,
    UInt,
    compare,
    double_text,
    equal,
    has_key,
    integer,
    mapping_key,
    no_overload,
    parse_duration,
    parse_timestamp,
    type_name,
    unsigned,
)
from kone.apimachinery.go_regexp import compile_go

STANDARD = Functions()
_declare = STANDARD.declare


def traversal(size: int) -> int:
    """Going through a text costs a tenth a character."""
    return math.ceil(size / 10)


def size_of(value: Any) -> int:
    if isinstance(value, str | bytes | list | dict):
        return len(value)
    if isinstance(value, Optional):
        return size_of(value.value) if value.present else 1
    return getattr(value, "size", 1)


def walk_cost(args: list[Any], result: Any) -> int:
    """Going through all of a value: a tenth for each byte of its texts, 1 for anything else."""
    return _walked(args[0])


def _walked(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode()) // 10
    if isinstance(value, bytes):
        return len(value) // 10
    if isinstance(value, list):
        return sum(map(_walked, value))
    return sum(_walked(part) for pair in value.items() for part in pair) if isinstance(value, dict) else 1


# -- operators --------------------------------------------------------------------------------------------------------


def _less_cost(args: list[Any], result: Any) -> int:
    return traversal(min(size_of(args[0]), size_of(args[1])))


def add(a: Any, b: Any) -> Any:
    if isinstance(a, UInt):
        return unsigned(int(a) + int(b))
    if isinstance(a, int):
        return integer(a + b)
    if isinstance(a, Duration):
        return Timestamp(a.ns + b.ns) if isinstance(b, Timestamp) else Duration(a.ns + b.ns)
    if isinstance(a, Timestamp):
        return Timestamp(a.ns + b.ns)
    return a.merge(b) if isinstance(a, SetList | MapList) else a + b


def _add_cost(args: list[Any], result: Any) -> int:
    return traversal(size_of(args[0]) + size_of(args[1])) if isinstance(args[0], str | bytes) else 1


def _subtract(a: Any, b: Any) -> Any:
    if isinstance(a, UInt):
        return unsigned(int(a) - int(b))
    if isinstance(a, int):
        return integer(a - b)
    if isinstance(a, Timestamp):
        return Duration(a.ns - b.ns) if isinstance(b, Timestamp) else Timestamp(a.ns - b.ns)
    return Duration(a.ns - b.ns) if isinstance(a, Duration) else a - b


def _multiply(a: Any, b: Any) -> Any:
    if isinstance(a, UInt):
        return unsigned(int(a) * int(b))
    return integer(a * b) if isinstance(a, int) else a * b


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, float):
        if b:
            return a / b
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1, b)
    if b == 0:
        raise CelError("division by zero")
    whole = abs(int(a)) // abs(int(b))
    return UInt(whole) if isinstance(a, UInt) else integer(whole if (a < 0) == (b < 0) else -whole)


def _modulo(a: Any, b: Any) -> Any:
    if b == 0:
        raise CelError("modulus by zero")
    rest = abs(int(a)) % abs(int(b))
    return UInt(rest) if isinstance(a, UInt) else (-rest if a < 0 else rest)


for _t in ("bytes", "double", "duration", "int", "string", "uint", "list(A)"):
    _declare("_+_", f"({_t}, {_t}) -> {_t}", add, _add_cost)
_declare("_+_", "(duration, timestamp) -> timestamp", add)
_declare("_+_", "(timestamp, duration) -> timestamp", add)
for _t in ("double", "duration", "int", "uint"):
    _declare("_-_", f"({_t}, {_t}) -> {_t}", _subtract)
_declare("_-_", "(timestamp, duration) -> timestamp", _subtract)
_declare("_-_", "(timestamp, timestamp) -> duration", _subtract)
for _t in ("double", "int", "uint"):
    _declare("_*_", f"({_t}, {_t}) -> {_t}", _multiply)
    _declare("_/_", f"({_t}, {_t}) -> {_t}", _divide)
for _t in ("int", "uint"):
    _declare("_%_", f"({_t}, {_t}) -> {_t}", _modulo)
_declare("-_", "(double) -> double", lambda a: -a)
_declare("-_", "(int) -> int", lambda a: integer(-a))
_declare("!_", "(bool) -> bool", lambda a: not a)
_declare("_==_", "(A, A) -> bool", equal, lambda args, _: 1 if isinstance(args[0], Opaque) else _less_cost(args, _))
_declare("_!=_", "(A, A) -> bool", lambda a, b: not equal(a, b), _less_cost)
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "_<_": lambda a, b: compare(a, b) < 0,
    "_<=_": lambda a, b: compare(a, b) <= 0,
    "_>_": lambda a, b: compare(a, b) > 0,
    "_>=_": lambda a, b: compare(a, b) >= 0,
}
for _name, _made in _ORDERED.items():
    for _t in ("bool", "int", "uint", "double", "string", "bytes", "timestamp", "duration"):
        _declare(_name, f"({_t}, {_t}) -> bool", _made, _less_cost if _t in ("string", "bytes") else None)
    for _a in ("int", "uint", "double"):
        for _b in ("int", "uint", "double"):
            if _a != _b:
                _declare(_name, f"({_a}, {_b}) -> bool", _made)
# What cel_eval does itself is declared for the checker only.
_declare("_&&_", "(bool, bool) -> bool", no_overload)
_declare("_||_", "(bool, bool) -> bool", no_overload)
_declare("_?_:_", "(bool, A, A) -> A", no_overload)
_declare("@not_strictly_false", "(bool) -> bool", no_overload)


def contains(item: Any, found: Any) -> bool:
    return has_key(found, item) if isinstance(found, dict) else any(equal(item, each) for each in found)


_declare("@in", "(A, list(A)) -> bool", contains, lambda args, result: len(args[1]))
_declare("@in", "(A, map(A, B)) -> bool", contains)


def index(found: Any, at: Any) -> Any:
    if isinstance(found, dict):
        if not has_key(found, at):
            if isinstance(found, DefaultMap):
                return {}
            raise CelError(f"no such key: {shown(at)}")
        return found[mapping_key(at)]
    if not isinstance(found, list):
        raise no_overload()
    if isinstance(at, float) and at == int(at):
        at = int(at)
    if isinstance(at, bool) or not isinstance(at, int):
        raise CelError(f"unsupported index type '{type_name(at)}' in list")
    if not 0 <= at < len(found):
        raise CelError(f"index out of bounds: {at}")
    return found[at]


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return double_text(value) if isinstance(value, float) else str(value)


_declare("_[_]", "(list(A), int) -> A", index)
_declare("_[_]", "(map(A, B), A) -> B", index)
_declare("_[_]", "(optional_type(list(A)), int) -> optional_type(A)", index)
_declare("_[_]", "(optional_type(map(A, B)), A) -> optional_type(B)", index)


def optional_index(found: Any, at: Any) -> Optional:
    if isinstance(found, Optional):
        return optional_index(found.value, at) if found.present else NONE
    if isinstance(found, dict):
        return Optional(found[mapping_key(at)]) if has_key(found, at) else NONE
    return Optional(found[at]) if isinstance(at, int) and 0 <= at < len(found) else NONE


for _from in ("list(A), int", "optional_type(list(A)), int"):
    _declare("_[?_]", f"({_from}) -> optional_type(A)", optional_index)
for _from in ("map(A, B), A", "optional_type(map(A, B)), A"):
    _declare("_[?_]", f"({_from}) -> optional_type(B)", optional_index)


# -- sizes, types, conversions ----------------------------------------------------------------------------------------

for _t in ("string", "bytes", "list(A)", "map(A, B)"):
    _declare("size", f"({_t}) -> int", len)
    _declare("size", f"{_t}.() -> int", len)
_declare("type", "(A) -> type(A)", lambda a: TypeValue(type_name(a)))
_declare("dyn", "(A) -> dyn", lambda a: a)


def _unconvertible(value: Any, to: str) -> CelError:
    return CelError(f"type conversion error from '{type_name(value)}' to '{to}'")


def _to_int(value: Any) -> int:
    if isinstance(value, str):
        try:
            if value.strip() != value or "_" in value:
                raise ValueError
            return integer(int(value))
        except (ValueError, CelError):
            raise _unconvertible(value, "int") from None
    if isinstance(value, Timestamp):
        return value.ns // 10**9
    if isinstance(value, Duration):
        return value.ns
    if isinstance(value, float) and not INT_MIN < value < INT_MAX:
        raise CelError("integer overflow")
    return integer(int(value))


def _to_uint(value: Any) -> UInt:
    if isinstance(value, str):
        if not value.isascii() or not value.isdigit() or int(value) > UINT_MAX:
            raise _unconvertible(value, "uint")
        return UInt(value)
    if isinstance(value, float) and not 0 <= value < UINT_MAX:
        raise CelError("unsigned integer overflow")
    return unsigned(int(value))


def _to_double(value: Any) -> float:
    try:
        if isinstance(value, str) and (value.strip() != value or "_" in value):
            raise ValueError
        return float(value)
    except ValueError:
        raise _unconvertible(value, "double") from None


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if value in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise _unconvertible(value, "bool")


def to_string(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise CelError("invalid UTF-8 in bytes, cannot convert to string") from None
    return double_text(value, 6) if isinstance(value, float) else shown(value)


def _to_duration(value: Any) -> Duration:
    if isinstance(value, Duration):
        return value
    found = Duration(value) if isinstance(value, int) else parse_duration(value)
    if found is None:
        raise _unconvertible(value, "google.protobuf.Duration")
    return found


def _to_timestamp(value: Any) -> Timestamp:
    if isinstance(value, Timestamp):
        return value
    found = Timestamp(value * 10**9) if isinstance(value, int) else parse_timestamp(value)
    if found is None:
        raise _unconvertible(value, "google.protobuf.Timestamp")
    return found


def _text_cost(args: list[Any], result: Any) -> int:
    return traversal(size_of(args[0]))


for _t in ("double", "duration", "string", "timestamp", "uint", "int"):
    _declare("int", f"({_t}) -> int", _to_int)
for _t in ("uint", "double", "int", "string"):
    _declare("uint", f"({_t}) -> uint", _to_uint)
    _declare("double", f"({_t}) -> double", _to_double)
for _t in ("bool", "string"):
    _declare("bool", f"({_t}) -> bool", _to_bool)
for _t in ("string", "bool", "double", "duration", "int", "timestamp", "uint"):
    _declare("string", f"({_t}) -> string", to_string)
_declare("string", "(bytes) -> string", to_string, _text_cost)
_declare("bytes", "(bytes) -> bytes", lambda a: a)
_declare("bytes", "(string) -> bytes", lambda a: a.encode(), _text_cost)
for _t in ("duration", "int", "string"):
    _declare("duration", f"({_t}) -> duration", _to_duration)
for _t in ("timestamp", "int", "string"):
    _declare("timestamp", f"({_t}) -> timestamp", _to_timestamp)

_CALENDAR: dict[str, Callable[[Any], int]] = {
    "getFullYear": lambda t: t.year,
    "getMonth": lambda t: t.month - 1,
    "getDayOfYear": lambda t: t.timetuple().tm_yday - 1,
    "getDayOfMonth": lambda t: t.day - 1,
    "getDate": lambda t: t.day,
    "getDayOfWeek": lambda t: t.isoweekday() % 7,
    "getHours": lambda t: t.hour,
    "getMinutes": lambda t: t.minute,
    "getSeconds": lambda t: t.second,
}
_LENGTHS = {"getHours": 3600 * 10**9, "getMinutes": 60 * 10**9, "getSeconds": 10**9, "getMilliseconds": 10**6}


def _calendar(part: Callable[[Any], int]) -> Callable[..., int]:
    return lambda moment, zone="": part(moment.at(zone))


def _length(unit: int) -> Callable[[Duration], int]:
    return lambda found: int(math.copysign(abs(found.ns) // unit, found.ns)) if found.ns else 0


for _name, _part in _CALENDAR.items():
    _declare(_name, "timestamp.() -> int", _calendar(_part))
    _declare(_name, "timestamp.(string) -> int", _calendar(_part))
for _t in ("timestamp.()", "timestamp.(string)"):
    _declare("getMilliseconds", f"{_t} -> int", lambda t, zone="": t.ns % 10**9 // 10**6)
for _name, _unit in _LENGTHS.items():
    _declare(_name, "duration.() -> int", _length(_unit))


# -- strings ----------------------------------------------------------------------------------------------------------


def _matches(text: str, pattern: str) -> bool:
    try:
        return compile_go(pattern).search(text) is not None
    except ValueError as error:
        raise CelError(str(error)) from None


def _matches_cost(args: list[Any], result: Any) -> int:
    return math.ceil((1 + size_of(args[0])) / 10) * math.ceil(size_of(args[1]) * 0.25)


def _argument_cost(args: list[Any], result: Any) -> int:
    return traversal(size_of(args[1]))


def _contains_cost(args: list[Any], result: Any) -> int:
    return traversal(size_of(args[0])) * traversal(size_of(args[1]))


_declare("contains", "string.(string) -> bool", lambda a, b: b in a, _contains_cost)
_declare("endsWith", "string.(string) -> bool", lambda a, b: a.endswith(b), _argument_cost)
_declare("startsWith", "string.(string) -> bool", lambda a, b: a.startswith(b), _argument_cost)
_declare("matches", "string.(string) -> bool", _matches, _matches_cost)
_declare("matches", "(string, string) -> bool", _matches, _matches_cost)


def _char_at(text: str, at: int) -> str:
    if not 0 <= at <= len(text):
        raise CelError(f"index out of range: {at}")
    return text[at : at + 1]


def _index_of(text: str, part: str, start: int = 0) -> int:
    if start < 0:
        raise CelError(f"index out of range: {start}")
    return min(start, len(text)) if not part else text.find(part, start)


def _last_index_of(text: str, part: str, end: int | None = None) -> int:
    if end is not None and end < 0:
        raise CelError(f"index out of range: {end}")
    if not part:
        return len(text) if end is None else min(end, len(text))
    if end is None:
        return text.rfind(part)
    return text.rfind(part, 0, end + len(part)) if end < len(text) else -1


def _substring(text: str, start: int, end: int | None = None) -> str:
    if end is None:
        if not 0 <= start <= len(text):
            raise CelError(f"index out of range: {start}")
        return text[start:]
    if start > end:
        raise CelError(f"invalid substring range. start: {start}, end: {end}")
    for at in (start, end):
        if not 0 <= at <= len(text):
            raise CelError(f"index out of range: {at}")
    return text[start:end]


def _split(text: str, by: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if by:
        return text.split(by, limit - 1 if limit > 0 else -1)
    if limit < 0 or limit >= len(text):
        return list(text)
    return [*text[: limit - 1], text[limit - 1 :]]


def _replace(text: str, old: str, new: str, limit: int = -1) -> str:
    return text.replace(old, new, limit)


def _join(parts: list[Any], by: str = "") -> str:
    for part in parts:
        if not isinstance(part, str):
            raise CelError(f"join: invalid input: {shown(part)}")
    return by.join(parts)


_QUOTED = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def _quote(text: str) -> str:
    return '"' + "".join(_QUOTED.get(c, "\\" + c if c in '\\"' else c) for c in text) + '"'


def _lower(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)


def _upper(text: str) -> str:
    return "".join(c.upper() if c.isascii() else c for c in text)


def _double_text_cost(args: list[Any], result: Any) -> int:
    return math.ceil(size_of(args[0]) * 0.2)


def _joined_cost(args: list[Any], result: Any) -> int:
    return math.ceil(size_of(result) * 0.2)


_declare("charAt", "string.(int) -> string", _char_at)
_declare("indexOf", "string.(string) -> int", _index_of, walk_cost)
_declare("indexOf", "string.(string, int) -> int", _index_of, walk_cost)
_declare("lastIndexOf", "string.(string) -> int", _last_index_of, walk_cost)
_declare("lastIndexOf", "string.(string, int) -> int", _last_index_of, walk_cost)
_declare("lowerAscii", "string.() -> string", _lower, _text_cost)
_declare("upperAscii", "string.() -> string", _upper, _text_cost)
_declare("replace", "string.(string, string) -> string", _replace, _double_text_cost)
_declare("replace", "string.(string, string, int) -> string", _replace, _double_text_cost)
_declare("split", "string.(string) -> list(string)", _split, _double_text_cost)
_declare("split", "string.(string, int) -> list(string)", _split, _double_text_cost)
_declare("substring", "string.(int) -> string", _substring, _text_cost)
_declare("substring", "string.(int, int) -> string", _substring, _text_cost)
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_declare("trim", "string.() -> string", lambda text: text.strip(_SPACE), _text_cost)
_declare("join", "list(string).() -> string", _join, _joined_cost)
_declare("join", "list(string).(string) -> string", _join, _joined_cost)
_declare("format", "string.(list(dyn)) -> string", format_text, _text_cost)
_declare("strings.quote", "(string) -> string", _quote, _text_cost)


# -- lists and sets ---------------------------------------------------------------------------------------------------


def _slice(found: list[Any], start: int, end: int) -> list[Any]:
    if start < 0 or end < 0:
        raise CelError(f"cannot slice({start}, {end}), negative indexes not supported")
    if start > end:
        raise CelError(f"cannot slice({start}, {end}), start index must be less than or equal to end index")
    if end > len(found):
        raise CelError(f"cannot slice({start}, {end}), list is length {len(found)}")
    return found[start:end]


def _flatten(found: list[Any], depth: int = 1) -> list[Any]:
    if depth < 0:
        raise CelError("level must be non-negative")
    out: list[Any] = []
    for each in found:
        out.extend(_flatten(each, depth - 1) if isinstance(each, list) and depth > 0 else [each])
    return out


def _distinct(found: list[Any]) -> list[Any]:
    out: list[Any] = []
    for each in found:
        if not any(equal(each, known) for known in out):
            out.append(each)
    return out


def _sorted_by(found: list[Any], keys: list[Any]) -> list[Any]:
    if len(found) != len(keys):
        raise CelError(
            f"@sortByAssociatedKeys() expected a list of the same size as the associated keys list, "
            f"but got {len(found)} and {len(keys)} elements respectively"
        )
    for key in keys:
        if type(key) is not type(keys[0]):
            raise CelError("list elements must have the same type")
        if isinstance(key, list | dict):
            raise CelError("list elements must be comparable")
    by_key: Callable[[int], Any] = cmp_to_key(lambda a, b: compare(keys[a], keys[b]))
    return [found[i] for i in sorted(range(len(found)), key=by_key)]


def _range(size: int) -> list[int]:
    if size < 0:
        raise CelError(f"lists.range: size must be non-negative, got {size}")
    if size > 1_000_000:
        raise CelError(f"lists.range: size {size} exceeds maximum allowed (1000000)")
    return list(range(size))


_ALLOCATION = 11  # of a call that makes a list


def _length_cost(args: list[Any], result: Any) -> int:
    return _ALLOCATION + size_of(result)


def _flatten_cost(args: list[Any], result: Any) -> int:
    depth = args[1] if len(args) > 1 else 1
    return _ALLOCATION + len(args[0]) * (depth if depth >= 0 else 1)


def _pairs_cost(args: list[Any], result: Any) -> int:
    """Every element is compared with every other, of the list that says the order."""
    compared = args[-1]
    factor = 2.1 if compared and isinstance(compared[0], str | bytes) else 2.0
    return _ALLOCATION + int(len(compared) ** 2 * factor)


_declare("slice", "list(A).(int, int) -> list(A)", _slice, _length_cost)
_declare("flatten", "list(list(A)).() -> list(A)", _flatten, _flatten_cost)
_declare("flatten", "list(dyn).(int) -> list(dyn)", _flatten, _flatten_cost)
_declare("distinct", "list(A).() -> list(A)", _distinct, _pairs_cost)
_declare("reverse", "list(A).() -> list(A)", lambda found: found[::-1], _length_cost)
_declare("lists.range", "(int) -> list(int)", _range, _length_cost)
for _t in ("int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes"):
    _declare("sort", f"list({_t}).() -> list({_t})", lambda found: _sorted_by(found, found), _pairs_cost)
    _declare("@sortByAssociatedKeys", f"list(A).(list({_t})) -> list(A)", _sorted_by, _pairs_cost)
_declare("first", "list(A).() -> optional_type(A)", lambda found: Optional(found[0]) if found else NONE)
_declare("last", "list(A).() -> optional_type(A)", lambda found: Optional(found[-1]) if found else NONE)


def _set_cost(args: list[Any], result: Any) -> int:
    return 1 + size_of(args[0]) * size_of(args[1])


def _set_contains(a: list[Any], b: list[Any]) -> bool:
    return all(contains(each, a) for each in b)


_declare("sets.contains", "(list(A), list(A)) -> bool", _set_contains, _set_cost)
_declare(
    "sets.equivalent",
    "(list(A), list(A)) -> bool",
    lambda a, b: _set_contains(a, b) and _set_contains(b, a),
    lambda args, result: 1 + 2 * len(args[0]) * len(args[1]),
)
_declare("sets.intersects", "(list(A), list(A)) -> bool", lambda a, b: any(contains(x, b) for x in a), _set_cost)


# -- optionals --------------------------------------------------------------------------------------------------------


def _value(found: Optional) -> Any:
    if not found.present:
        raise CelError("optional.none() dereference")
    return found.value


def _non_zero(value: Any) -> Optional:
    zero = value is None or (isinstance(value, str | bytes | list | dict) and not value) or value == 0
    return NONE if zero else Optional(value)


_declare("optional.of", "(A) -> optional_type(A)", Optional)
_declare("optional.ofNonZeroValue", "(A) -> optional_type(A)", _non_zero)
_declare("optional.none", "() -> optional_type(A)", lambda: NONE)
_declare("value", "optional_type(A).() -> A", _value)


def _unwrapped(found: list[Optional]) -> list[Any]:
    return [each.value for each in found if each.present]


_declare("optional.unwrap", "(list(optional_type(A))) -> list(A)", _unwrapped)
_declare("unwrapOpt", "list(optional_type(A)).() -> list(A)", _unwrapped)
_declare("hasValue", "optional_type(A).() -> bool", lambda found: found.present)
# cel_eval takes the other side only where it is needed.
_declare("or", "optional_type(A).(optional_type(A)) -> optional_type(A)", lambda a, b: a if a.present else b)
_declare("orValue", "optional_type(A).(A) -> A", lambda a, b: a.value if a.present else b)

STANDARD.types |= {"optional_type"}


# -- what the two-variable macros are made of -------------------------------------------------------------------------


def _map_insert(found: dict[Any, Any], *entry: Any) -> dict[Any, Any]:
    added = {entry[0]: entry[1]} if len(entry) == 2 else entry[0]
    out = dict(found)
    for key, value in added.items():
        if has_key(out, key):
            raise CelError(f"insert failed: key {shown(key)} already exists")
        out[mapping_key(key)] = value
    return out


_declare("cel.@mapInsert", "(map(A, B), A, B) -> map(A, B)", _map_insert)
_declare("cel.@mapInsert", "(map(A, B), map(A, B)) -> map(A, B)", _map_insert)
