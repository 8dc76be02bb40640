"""What is wrong with a JSON text, in the words of Go's encoding/json; and which of its fields are given twice.

orjson reads what is right; this looks again, slowly, only at what it refused or at what has more keys than it kept.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

_SPACE = b" \t\r\n"
_DIGITS = b"0123456789"
_ESCAPES = b'bfnrt\\/"'
_HEX = b"0123456789abcdefABCDEF"
_LITERALS = (b"true", b"false", b"null")
_END = "unexpected end of JSON input"


class _Wrong(Exception):
    pass


def syntax_error(text: bytes) -> str:
    """Why the text is not JSON; "" where it is."""
    try:
        scanner = _Scanner(text)
        scanner.value()
        scanner.space()
        if scanner.at < len(text):
            scanner.unexpected("after top-level value")
    except _Wrong as error:
        return str(error)
    except RecursionError:
        return "exceeded max depth"
    return ""


class _Scanner:
    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1

    def peek(self) -> int:
        """The next byte. Raises where the text ends."""
        if self.at >= len(self.text):
            raise _Wrong(_END)
        return self.text[self.at]

    def unexpected(self, where: str) -> None:
        raise _Wrong(f"invalid character {quoted_character(self.peek())} {where}")

    def value(self) -> None:
        self.space()
        first = self.peek()
        if first == 0x7B:
            self.members()
        elif first == 0x5B:
            self.elements()
        elif first == 0x22:
            self.string()
        elif first in _DIGITS or first == 0x2D:
            self.number()
        else:
            self.literal()

    def members(self) -> None:
        self.at += 1
        self.space()
        if self.peek() == 0x7D:
            self.at += 1
            return
        while True:
            self.space()
            if self.peek() != 0x22:
                self.unexpected("looking for beginning of object key string")
            self.string()
            self.space()
            if self.peek() != 0x3A:
                self.unexpected("after object key")
            self.at += 1
            self.value()
            self.space()
            if self.peek() == 0x7D:
                self.at += 1
                return
            if self.peek() != 0x2C:
                self.unexpected("after object key:value pair")
            self.at += 1

    def elements(self) -> None:
        self.at += 1
        self.space()
        if self.peek() == 0x5D:
            self.at += 1
            return
        while True:
            self.value()
            self.space()
            if self.peek() == 0x5D:
                self.at += 1
                return
            if self.peek() != 0x2C:
                self.unexpected("after array element")
            self.at += 1

    def string(self) -> None:
        self.at += 1
        while (byte := self.peek()) != 0x22:
            if byte < 0x20:
                self.unexpected("in string literal")
            self.at += 1
            if byte == 0x5C:
                self.escape()
        self.at += 1

    def escape(self) -> None:
        byte = self.peek()
        if byte == 0x75:
            for _ in range(4):
                self.at += 1
                if self.peek() not in _HEX:
                    self.unexpected("in \\u hexadecimal character escape")
        elif byte not in _ESCAPES:
            self.unexpected("in string escape code")
        self.at += 1

    def number(self) -> None:
        if self.peek() == 0x2D:
            self.at += 1
            if self.peek() not in _DIGITS:
                self.unexpected("in numeric literal")
        if self.peek() == 0x30:
            self.at += 1
        else:
            self.digits()
        if self.at < len(self.text) and self.text[self.at] == 0x2E:
            self.at += 1
            if self.peek() not in _DIGITS:
                self.unexpected("after decimal point in numeric literal")
            self.digits()
        if self.at < len(self.text) and self.text[self.at] in b"eE":
            self.at += 1
            if self.peek() in b"+-":
                self.at += 1
            if self.peek() not in _DIGITS:
                self.unexpected("in exponent of numeric literal")
            self.digits()

    def digits(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in _DIGITS:
            self.at += 1

    def literal(self) -> None:
        start = self.at
        for word in _LITERALS:
            if self.text[start] == word[0]:
                for expected in word[1:]:
                    self.at += 1
                    if self.peek() != expected:
                        self.unexpected(f"in literal {word.decode()} (expecting {quoted_character(expected)})")
                self.at += 1
                return
        self.unexpected("looking for beginning of value")


def quoted_character(byte: int) -> str:
    """A byte as encoding/json names it."""
    if byte == 0x27:
        return "'\\''"
    if byte == 0x22:
        return "'\"'"
    short = {0x07: "\\a", 0x08: "\\b", 0x0C: "\\f", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x0B: "\\v", 0x5C: "\\\\"}
    if byte in short:
        return f"'{short[byte]}'"
    if 0x20 <= byte < 0x7F or (byte >= 0xA1 and byte != 0xAD):
        return f"'{chr(byte)}'"
    return f"'\\x{byte:02x}'" if byte < 0x80 else f"'\\u{byte:04x}'"


_SURROGATES = re.compile("[\ud800-\udfff]")


def lenient(text: bytes) -> Any:
    """What Go reads and orjson does not: bytes that are no UTF-8 and halves of surrogate pairs become U+FFFD, numbers
    may be of any size up to a float's. Raises ValueError for what is neither."""
    return _whole(json.loads(text.decode("utf-8", "replace"), parse_int=number, parse_float=real))


def number(text: str) -> int | float:
    """An integer, or what Go makes of one that has no room in 64 bits. Raises ValueError."""
    return fitting(int(text)) if len(text) <= 20 else real(text)


def fitting(value: int) -> int | float:
    """The integer, where it has room in 64 bits, signed or not."""
    return value if -(2**63) <= value < 2**64 else float(value)


def real(text: str) -> float:
    """A number as a float. Raises ValueError for one that is beyond all floats."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"json: cannot unmarshal number {text[:400]} into Go value of type float64")
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        for key, each in list(value.items()):
            value[key] = _whole(each)
            if _SURROGATES.search(key):
                value[_whole(key)] = value.pop(key)
    return value


DEPTH_MAX = 200
"""Levels of objects and lists. Go stops at 10,000; what writes JSON here stops at 254, and managedFields need some."""


def too_deep(text: bytes, value: Any) -> bool:
    """Whether a value, which came from this text, is nested beyond DEPTH_MAX."""
    if text.count(b"{") + text.count(b"[") + text.count(b"\n") <= DEPTH_MAX:
        return False
    return deeper(value)


def deeper(value: Any) -> bool:
    """Whether a value is nested beyond DEPTH_MAX."""
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list)) and inner
        ]
        if not level:
            return False
    return True


class _Object(dict[str, Any]):
    twice: list[str]


def with_duplicates(text: bytes) -> tuple[Any, list[str]]:
    """(the value, the paths of fields that it gives more than once, e.g. "spec.containers[0].name").

    As Go decodes into structs and maps, an object that is given again adds to what was there; all else replaces it.
    """
    value = _whole(json.loads(text.decode("utf-8", "replace"), object_pairs_hook=_pairs, parse_int=number))
    found: list[str] = []
    _walk(value, "", found)
    return value, found


def _pairs(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object()
    made.twice = []
    for key, value in pairs:
        if key in made and key not in made.twice:
            made.twice.append(key)
        before = made.get(key)
        made[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return made


def _merged(before: dict[str, Any], value: dict[str, Any]) -> _Object:
    made = _Object(before)
    made.twice = [*getattr(before, "twice", ()), *getattr(value, "twice", ())]
    for key, member in value.items():
        there = made.get(key)
        made[key] = _merged(there, member) if isinstance(there, dict) and isinstance(member, dict) else member
    return made


def _walk(value: Any, path: str, found: list[str]) -> None:
    if isinstance(value, _Object):
        found.extend(f"{path}.{key}" if path else key for key in value.twice)
        for key, member in value.items():
            _walk(member, f"{path}.{key}" if path else key, found)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _walk(item, f"{path}[{i}]", found)


def in_order(value: Any, findings: list[str]) -> list[str]:
    """Findings such as 'unknown field "spec.foo"' in the order in which the body gives their fields; what YAML's reader
    says of the text comes first."""
    places = {path: i for i, path in enumerate(_paths(value, ""))}
    return sorted(findings, key=lambda finding: places.get(finding.partition('"')[2].rstrip('"'), -1))


def _paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, member in value.items():
            below = f"{path}.{key}" if path else key
            yield below
            yield from _paths(member, below)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _paths(item, f"{path}[{i}]")


def count_keys(value: Any) -> int:
    """How many fields the value holds in all."""
    if isinstance(value, dict):
        return len(value) + sum(count_keys(v) for v in value.values() if isinstance(v, (dict, list)))
    if isinstance(value, list):
        return sum(count_keys(v) for v in value if isinstance(v, (dict, list)))
    return 0
