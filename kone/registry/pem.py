"""PEM blocks and the outline of X.509, as far as rules on objects look at them.

Whether a signature is right needs a cryptographic library, which is auth's: `registry.builtin` is handed that check.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK = re.compile(r"-----BEGIN ([^\n-]*)-----[ \t]*\r?\n(.*?)-----END \1-----[ \t]*(?:\r?\n|\Z)", re.S)
_BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")  # the object identifier 2.5.29.19
_SEQUENCE = 0x30


class Block(NamedTuple):
    kind: str
    """What stands after BEGIN, e.g. "CERTIFICATE"."""
    headers: bool
    der: bytes


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a text in their order; what stands between them, and what is no base64, is passed over."""
    for found in _BLOCK.finditer(text):
        lines = found[2].splitlines()
        headers = any(":" in line for line in lines)
        body = "".join(line.strip() for line in lines if ":" not in line)
        try:
            yield Block(found[1], headers, base64.b64decode(body, validate=True))
        except (binascii.Error, ValueError):
            continue


def is_der(data: bytes) -> bool:
    """Whether the bytes are one whole DER sequence."""
    if len(data) < 2 or data[0] != _SEQUENCE:
        return False
    size, start = data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start])
    return start + size == len(data)


_CLASS_BITS, _CONSTRUCTED, _NUMBER = 6, 0x20, 0x1F


def no_sequence(der: bytes, wanted: str) -> str:
    """What Go's encoding/asn1 says where the bytes begin with something else than a sequence, which is read into the
    struct `wanted`; "" where they begin with one, or with too little to tell."""
    if len(der) < 2 or der[0] == _SEQUENCE or der[0] & _NUMBER == _NUMBER or der[1] & 0x80:
        return ""
    shape = (
        f"class:{der[0] >> _CLASS_BITS} tag:{der[0] & _NUMBER} length:{der[1]} "
        f"isCompound:{str(bool(der[0] & _CONSTRUCTED)).lower()}"
    )
    field = "optional:false explicit:false application:false private:false defaultValue:<nil> tag:<nil> stringType:0"
    rest = f"{field} timeType:0 set:false omitEmpty:false"
    return f"asn1: structure error: tags don't match (16 vs {{{shape}}}) {{{rest}}} {wanted} @2"


def is_ca(der: bytes) -> bool:
    """Whether a certificate's basic constraints say that it may sign others."""
    at = der.find(_BASIC_CONSTRAINTS)
    if at < 0:
        return False
    rest = der[at + len(_BASIC_CONSTRAINTS) :]
    if rest[:1] == b"\x01":  # the extension's own "critical"
        rest = rest[3:]
    # OCTET STRING { SEQUENCE { BOOLEAN TRUE …
    return len(rest) > 6 and rest[0] == 0x04 and rest[2] == _SEQUENCE and rest[4:7] == b"\x01\x01\xff"
