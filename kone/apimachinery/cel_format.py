"""'%d of %s'.format([…]): CEL's text formatting, with the results and error texts of cel-go's strings
library, version 2 (ext/formatting.go)."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from kone.apimachinery.cel_values import CelError, Duration, Timestamp, TypeValue, UInt, double_text, type_name

_CLAUSE = re.compile(r"(?:\.(\d*))?(.)?", re.DOTALL)
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")  # as the locale's scientific notation has it


def format_text(text: str, args: list[Any]) -> str:
    out, at, used = [], 0, 0
    while True:
        percent = text.find("%", at)
        if percent < 0:
            if used < len(args):
                why = f"too many arguments supplied to string.format (expected {used}, got {len(args)})"
                raise CelError(why)
            out.append(text[at:])
            return "".join(out)
        out.append(text[at:percent])
        if text[percent + 1 : percent + 2] == "%":
            out.append("%")
            at = percent + 2
            continue
        if percent + 1 >= len(text):
            raise CelError("unexpected end of string")
        if used >= len(args):
            raise CelError(f"index {used} out of range")
        clause = _CLAUSE.match(text, percent + 1)
        assert clause is not None
        out.append(_formatted(clause, args[used]))
        used += 1
        at = clause.end()


def _formatted(clause: re.Match[str], value: Any) -> str:
    digits, letter = clause[1], clause[2]
    if letter is None:
        raise _unparsed("error while parsing precision: could not find end of precision specifier")
    if digits == "":
        why = 'error while converting precision to integer: strconv.Atoi: parsing "": invalid syntax'
        raise _unparsed(f"error while parsing precision: {why}")
    precision = 6 if digits is None else int(digits)
    made = _CLAUSES.get(letter)
    if made is None:
        raise _unparsed(f'unrecognized formatting clause "{letter}"')
    try:
        return made(value, precision)
    except CelError as error:
        raise CelError(f"error during formatting: {error}") from None


def _unparsed(why: str) -> CelError:
    return CelError(f"could not parse formatting clause: {why}")


def _refuse(clause: str, taken: str, value: Any) -> CelError:
    return CelError(f"{clause} clause can only be used on {taken}, was given {type_name(value)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any, precision: int = 0) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float):
        return {"+Inf": "Infinity", "-Inf": "-Infinity"}.get(double_text(value), double_text(value, 6))
    if isinstance(value, TypeValue):
        return value.name
    if isinstance(value, list):
        return f"[{', '.join(map(_nested, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_nested(k)}:{_nested(v)}" for k, v in value.items())) + "}"
    if isinstance(value, int) or type_name(value).startswith("google.protobuf."):
        return str(value)
    taken = "strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps"
    raise _refuse("string", taken, value)


def _nested(value: Any) -> str:
    """Inside a list or map, as a literal of CEL."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bytes):
        return "b" + json.dumps(value.decode(errors="replace"), ensure_ascii=False)
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6f}"
    if isinstance(value, Timestamp | Duration):
        return f'{type(value).__name__.lower()}("{value}")'
    return f"type({value.name})" if isinstance(value, TypeValue) else _text(value)


def _decimal(value: Any, precision: int) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return _text(value)
    if not _is_int(value):
        raise _refuse("decimal", "integers", value)
    return str(int(value))


def _fixed(value: Any, precision: int) -> str:
    if not isinstance(value, float):
        raise _refuse("fixed-point", "doubles", value)
    return f"{value:,.{precision}f}" if math.isfinite(value) else _text(value)


def _scientific(value: Any, precision: int) -> str:
    """The precision is not heard: upstream's locale has six digits."""
    if not isinstance(value, float):
        raise _refuse("scientific", "doubles", value)
    if not math.isfinite(value):
        return _text(value)
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    return f"{mantissa}×10{exponent.removeprefix('+').translate(_SUPERSCRIPT)}"


def _binary(value: Any, precision: int) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if not _is_int(value):
        raise _refuse("binary", "integers and bools", value)
    return f"{int(value):b}"


def _hex(value: Any, precision: int) -> str:
    if isinstance(value, str):
        return value.encode().hex()
    if isinstance(value, bytes):
        return value.hex()
    if not _is_int(value):
        raise _refuse("hex", "integers, byte buffers, and strings", value)
    return f"{int(value):x}"


def _octal(value: Any, precision: int) -> str:
    if not _is_int(value) and not isinstance(value, UInt):
        raise _refuse("octal", "integers", value)
    return f"{int(value):o}"


_CLAUSES = {
    "s": _text,
    "d": _decimal,
    "f": _fixed,
    "e": _scientific,
    "b": _binary,
    "x": _hex,
    "X": lambda value, precision: _hex(value, precision).upper(),
    "o": _octal,
}
