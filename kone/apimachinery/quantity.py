"""Resource quantities ("500m", "1Gi"): exact numbers with a unit that survives arithmetic (resource.Quantity).

Every quantity is a whole number of billionths, because upstream rounds what is finer away from zero when it parses.
So a Quantity is one Python int plus the notation in which it is written back.
"""

from __future__ import annotations

import re
from functools import lru_cache, total_ordering
from typing import Literal

Notation = Literal["DecimalSI", "BinarySI", "DecimalExponent"]

FORMAT_ERROR = r"quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
SUFFIX_ERROR = "unable to parse quantity's suffix"
NUMERIC_ERROR = "unable to parse numeric part of quantity"

_NANOS = 10**9
_MAX_BINARY = (2**63 - 1) * _NANOS  # upstream caps binary quantities at the largest int64
_MAX_EXPONENT = 4096  # beyond any use; keeps a hostile "1e999999999" from making a huge integer

_SHAPE = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?([eEinumkKMGTP]*[+-]?[0-9]*)\Z")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL_SUFFIX = {exponent: suffix for suffix, exponent in _DECIMAL.items()}
_BINARY_SUFFIX = ("", *_BINARY)


@total_ordering
class Quantity:
    """An exact amount. Compares and hashes by value: Quantity("1000m") == Quantity("1")."""

    __slots__ = ("_text", "nanos", "notation")

    def __init__(self, nanos: int, notation: Notation = "DecimalSI", text: str = "") -> None:
        self.nanos = nanos
        self.notation: Notation = notation
        self._text = text

    @classmethod
    def of(cls, value: int, notation: Notation = "DecimalSI") -> Quantity:
        """A whole number of units (cores, bytes, pieces)."""
        return cls(value * _NANOS, notation)

    @classmethod
    def of_milli(cls, value: int, notation: Notation = "DecimalSI") -> Quantity:
        """A whole number of thousandths, e.g. millicores."""
        return cls(value * 1_000_000, notation)

    def value(self) -> int:
        """The amount in whole units, rounded away from zero (Quantity.Value)."""
        return _divide_up(self.nanos, _NANOS)

    def milli(self) -> int:
        """The amount in thousandths, rounded away from zero (Quantity.MilliValue)."""
        return _divide_up(self.nanos, 1_000_000)

    def canonical(self) -> str:
        """As upstream writes it back: "1000m" -> "1", "1024Ki" -> "1Mi", "0.5" -> "500m", "1e7" -> "10e6"."""
        if not self._text:
            self._text = _write(self.nanos, self.notation)
        return self._text

    @property
    def is_zero(self) -> bool:
        return self.nanos == 0

    def __add__(self, other: Quantity) -> Quantity:
        # A sum keeps the left side's notation, unless that side was zero and so had none worth keeping.
        return Quantity(self.nanos + other.nanos, self.notation if self.nanos else other.notation)

    def __sub__(self, other: Quantity) -> Quantity:
        return Quantity(self.nanos - other.nanos, self.notation if self.nanos else other.notation)

    def __mul__(self, times: int) -> Quantity:
        return Quantity(self.nanos * times, self.notation)

    def __neg__(self) -> Quantity:
        return Quantity(-self.nanos, self.notation)

    def __eq__(self, other: object) -> bool:
        return self.nanos == other.nanos if isinstance(other, Quantity) else NotImplemented

    def __lt__(self, other: Quantity) -> bool:
        return self.nanos < other.nanos

    def __hash__(self) -> int:
        return hash(self.nanos)

    def __str__(self) -> str:
        return self.canonical()

    def __repr__(self) -> str:
        return f"Quantity({self.canonical()!r})"


ZERO = Quantity(0)


@lru_cache(maxsize=8192)
def _parse(text: str) -> Quantity:
    if not text:
        raise ValueError(FORMAT_ERROR)
    shape = _SHAPE.match(text)
    if shape is None:
        raise ValueError(FORMAT_ERROR)
    sign, whole, fraction, suffix = shape[1], shape[2].lstrip("0") or "0", shape[3] or "", shape[4]
    notation, base, exponent = _interpret(suffix)
    digits = int(whole + fraction)
    scaled = digits * _NANOS
    if base == 2:
        scaled <<= exponent
        scale = -len(fraction)
    else:
        scale = exponent - len(fraction)
    nanos = scaled * 10**scale if scale >= 0 else _divide_up(scaled, 10**-scale)
    if notation == "BinarySI":
        nanos = min(nanos, _MAX_BINARY)
        if 0 < nanos < _NANOS:
            notation = "DecimalSI"
    if sign == "-":
        nanos = -nanos
    if not _is_quick(whole, fraction, base, exponent, scale):
        if not (shape[2] or shape[3]):
            raise ValueError(NUMERIC_ERROR)
        return Quantity(nanos, notation)
    # Upstream's quick path writes the text back as it came wherever it looks canonical at a glance ("+1", "1E3").
    shifted = whole + fraction
    tidy = scale % 3 == 0 and not shifted.endswith("000") and shifted[0] != "0"
    kept = digits & 7 != 0 if base == 2 else tidy
    return Quantity(nanos, notation, text if kept else "")


def _is_quick(whole: str, fraction: str, base: int, exponent: int, scale: int) -> bool:
    """Whether upstream parses it as an int64 with a scale, and not as a big decimal."""
    if base == 2:
        return not fraction and 14 - len(whole) - exponent * 3 // 10 >= 0
    return len(whole) + len(fraction) <= 18 and scale >= -9


def _interpret(suffix: str) -> tuple[Notation, int, int]:
    """(notation, base, exponent) of a suffix. Raises ValueError."""
    if suffix in _DECIMAL:
        return "DecimalSI", 10, _DECIMAL[suffix]
    if suffix in _BINARY:
        return "BinarySI", 2, _BINARY[suffix]
    if suffix[0] in "eE":
        try:
            exponent = int(suffix[1:])
        except ValueError:
            raise ValueError(SUFFIX_ERROR) from None
        if abs(exponent) <= _MAX_EXPONENT:
            return "DecimalExponent", 10, exponent
    raise ValueError(SUFFIX_ERROR)


def parse_quantity(value: str | int | float) -> Quantity:
    """The quantity that a JSON string or number stands for. Raises ValueError with upstream's text."""
    if isinstance(value, str):
        return _parse(value)
    if isinstance(value, bool):
        raise ValueError(FORMAT_ERROR)
    return _parse(str(value))


@lru_cache(maxsize=8192)
def canonical_text(text: str) -> str:
    """What a quantity's JSON text becomes on its way through the API. Raises ValueError with upstream's text."""
    return _parse(text.strip()).canonical()


def _divide_up(value: int, by: int) -> int:
    """value / by, rounded away from zero."""
    return -(-value // by) if value >= 0 else value // by


def _write(nanos: int, notation: Notation) -> str:
    if nanos == 0:
        return "0"
    sign = "-" if nanos < 0 else ""
    amount = abs(nanos)
    if notation == "BinarySI" and amount >= 1024 * _NANOS and amount % _NANOS == 0:
        number, thousands = amount // _NANOS, 0
        while number % 1024 == 0 and thousands < 6:
            number //= 1024
            thousands += 1
        return f"{sign}{number}{_BINARY_SUFFIX[thousands]}"
    exponent = -9
    # SI has no suffix above E; exponents may grow as they like.
    while amount % 1000 == 0 and (notation == "DecimalExponent" or exponent < 18):
        amount //= 1000
        exponent += 3
    if notation == "DecimalExponent":
        return f"{sign}{amount}e{exponent}" if exponent else f"{sign}{amount}"
    return f"{sign}{amount}{_DECIMAL_SUFFIX[exponent]}"
