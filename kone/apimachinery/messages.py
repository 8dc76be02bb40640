"""Protobuf messages declared by hand: the small protocols of plugins (CSI, plugin registration), as JSON-like dicts.

A message is a table of its fields; nothing is generated, no protobuf library is imported. As proto3 has it, a scalar
that is empty is not written and reads as absent; a message that is there, even without content, is.

Worked case:

    INFO = Message({1: ("name", str), 4: ("versions", [str])})
    INFO.encode({"name": "a"}) == b"\\x0a\\x01a"
    INFO.decode(b"\\x0a\\x01a") == {"name": "a"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kone.apimachinery.protowire import Malformed, field_bytes, field_varint, read_parts, read_varint

TEXT_MAP: Final = "map<string, string>"

Kind = Any
"""str, bytes, bool, int (of at most 64 bits, signed; an enumeration), TEXT_MAP, a Message, or [one of these] for
repeated."""


class Message:
    """The fields of one message, by number: (name, kind)."""

    def __init__(self, fields: Mapping[int, tuple[str, Kind]]) -> None:
        self.fields = dict(fields)

    def encode(self, content: Mapping[str, Any]) -> bytes:
        """Raises KeyError for a name that the message does not have."""
        if unknown := content.keys() - {name for name, _ in self.fields.values()}:
            raise KeyError(", ".join(sorted(unknown)))
        out = bytearray()
        for number, (name, kind) in sorted(self.fields.items()):
            value = content.get(name)
            if value is None:
                continue
            if isinstance(kind, list):
                for each in value:
                    out += _write(number, kind[0], each)
            elif kind == TEXT_MAP:
                for key in sorted(value):
                    out += field_bytes(number, field_bytes(1, key.encode()) + field_bytes(2, value[key].encode()))
            elif value or isinstance(kind, Message):
                out += _write(number, kind, value)
        return bytes(out)

    def decode(self, data: bytes) -> dict[str, Any]:
        """What is there, by name; fields of other numbers are left out. Raises Malformed."""
        content: dict[str, Any] = {}
        try:
            for number, part in read_parts(data, 0, len(data)):
                if number not in self.fields:
                    continue
                name, kind = self.fields[number]
                if isinstance(kind, list):
                    content.setdefault(name, []).extend(_read_all(kind[0], part))
                elif kind == TEXT_MAP:
                    key, value = _entry(part)
                    content.setdefault(name, {})[key] = value
                else:
                    content[name] = _read(kind, part)
        except (IndexError, UnicodeDecodeError) as error:
            raise Malformed(f"no message: {error}") from None
        return content


def _write(number: int, kind: Kind, value: Any) -> bytes:
    if kind is bool or kind is int:
        return field_varint(number, int(value))
    if isinstance(kind, Message):
        return field_bytes(number, kind.encode(value))
    return field_bytes(number, value.encode() if kind is str else value)


def _read(kind: Kind, part: int | bytes) -> Any:
    if kind is bool or kind is int:
        if not isinstance(part, int):
            raise Malformed("a number is expected")
        return bool(part) if kind is bool else part - (1 << 64) if part >> 63 else part
    if not isinstance(part, bytes):
        raise Malformed("bytes are expected")
    if isinstance(kind, Message):
        return kind.decode(part)
    return part.decode() if kind is str else part


def _read_all(kind: Kind, part: int | bytes) -> list[Any]:
    """One element, or several numbers packed together."""
    if (kind is int or kind is bool) and isinstance(part, bytes):
        found, pos = [], 0
        while pos < len(part):
            value, pos = read_varint(part, pos)
            found.append(_read(kind, value))
        return found
    return [_read(kind, part)]


def _entry(part: int | bytes) -> tuple[str, str]:
    if not isinstance(part, bytes):
        raise Malformed("an entry of a map is expected")
    pair = dict(read_parts(part, 0, len(part)))
    return _read(str, pair.get(1, b"")), _read(str, pair.get(2, b""))
