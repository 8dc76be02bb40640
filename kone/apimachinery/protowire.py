"""Protobuf's wire: varints and tagged fields, for whoever knows what the numbers mean."""

from __future__ import annotations

import struct

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""


class Malformed(ValueError):
    """Bytes that are no message."""


def read_varint(data: bytes, pos: int) -> tuple[int, int]:
    """(the integer at `pos`, the position after it). Raises Malformed, and IndexError where the bytes end."""
    value = shift = 0
    while True:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
        if shift > 63:
            raise Malformed("integer overflow")


def read_parts(data: bytes, pos: int, end: int) -> list[tuple[int, int | bytes]]:
    """A message's fields as they stand: (number, integer or bytes)."""
    parts: list[tuple[int, int | bytes]] = []
    while pos < end:
        tag, pos = read_varint(data, pos)
        wire = tag & 7
        if wire == VARINT:
            value, pos = read_varint(data, pos)
            parts.append((tag >> 3, value))
            continue
        size, pos = read_varint(data, pos) if wire == BYTES else (fixed_size(wire), pos)
        if pos + size > end:
            raise Malformed("unexpected EOF")
        parts.append((tag >> 3, data[pos : pos + size]))
        pos += size
    return parts


def fixed_size(wire: int) -> int:
    """Bytes of a field of fixed size."""
    if wire == FIXED64:
        return 8
    if wire == FIXED32:
        return 4
    raise Malformed(f"illegal wireType {wire}")


def write_varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_bytes(number: int, data: bytes) -> bytes:
    """One length-delimited field: tag, size, bytes."""
    return write_varint(number << 3 | BYTES) + write_varint(len(data)) + data


def field_varint(number: int, value: int) -> bytes:
    """One field that holds an integer or a boolean."""
    return write_varint(number << 3 | VARINT) + write_varint(value)


def field_double(number: int, value: float) -> bytes:
    """One field that holds a float of 64 bits."""
    return write_varint(number << 3 | FIXED64) + struct.pack("<d", value)
