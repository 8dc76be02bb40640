"""Addresses as Go's net/netip reads them: what it takes, and what it says of what it does not."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

from kone.apimachinery.errors import go_quote

Address = IPv4Address | IPv6Address


def parse_address(text: str) -> Address:
    """netip.ParseAddr; a zone stays with its address. Raises ValueError in its words."""
    mark = re.search(r"[.:%]", text)
    if mark is None:
        raise _refuse(text, "unable to parse IP")
    if mark[0] == "%":
        raise _refuse(text, "missing IPv6 address")
    if mark[0] == ".":
        _check_fields(text, text)
    else:
        _check_groups(text)
    return ip_address(text)


def _refuse(text: str, why: str, at: str = "") -> ValueError:
    return ValueError(f"ParseAddr({go_quote(text)}): {why}" + (f" (at {go_quote(at)})" if at else ""))


def _check_fields(text: str, fields: str) -> None:
    """The four numbers of an IPv4 address (parseIPv4Fields)."""
    value, digits, dots = 0, 0, 0
    for i, char in enumerate(fields):
        if char in "0123456789":
            if digits == 1 and value == 0:
                raise _refuse(text, "IPv4 field has octet with leading zero")
            value, digits = value * 10 + int(char), digits + 1
            if value > 255:
                raise _refuse(text, "IPv4 field has value >255")
        elif char == ".":
            if i in (0, len(fields) - 1) or fields[i - 1] == ".":
                raise _refuse(text, "IPv4 field must have at least one digit", fields[i:])
            if dots == 3:
                raise _refuse(text, "IPv4 address too long")
            value, digits, dots = 0, 0, dots + 1
        else:
            raise _refuse(text, "unexpected character", fields[i:])
    if dots < 3:
        raise _refuse(text, "IPv4 address too short")


def _check_groups(text: str) -> None:
    """The groups of an IPv6 address (parseIPv6)."""
    rest, percent, zone = text.partition("%")
    if percent and not zone:
        raise _refuse(text, "zone must be a non-empty string")
    is_short = rest.startswith("::")
    if is_short:
        rest = rest[2:]
    count = 0  # bytes so far
    while count < 16 and (rest or not is_short or count):
        group = re.match(r"[0-9a-fA-F]*", rest)
        found = group[0] if group else ""
        if len(found) > 4:
            raise _refuse(text, "each group must have 4 or less digits", rest)
        if not found:
            raise _refuse(text, "each colon-separated field must have at least one digit", rest)
        if rest[len(found) :].startswith("."):
            if not is_short and count != 12:
                raise _refuse(text, "embedded IPv4 address must replace the final 2 fields of the address", rest)
            if count + 4 > 16:
                raise _refuse(text, "too many hex fields to fit an embedded IPv4 at the end of the address", rest)
            _check_fields(text, rest)
            rest, count = "", count + 4
            break
        rest, count = rest[len(found) :], count + 2
        if not rest:
            break
        if not rest.startswith(":"):
            raise _refuse(text, "unexpected character, want colon", rest)
        if rest == ":":
            raise _refuse(text, "colon must be followed by more characters", rest)
        rest = rest[1:]
        if rest.startswith(":"):
            if is_short:
                raise _refuse(text, "multiple :: in address", rest)
            is_short, rest = True, rest[1:]
            if not rest:
                break
    if rest:
        raise _refuse(text, "trailing garbage after address", rest)
    if count < 16 and not is_short:
        raise _refuse(text, "address string too short")
    if count == 16 and is_short:
        raise _refuse(text, "the :: must expand to at least one field of zeros")
