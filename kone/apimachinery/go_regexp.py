"""Go's regular expressions by RE2, whose syntax is theirs, and Go's words for bad ones.

No pattern and no text holds RE2 up, where Python's own engine tries for hours: patterns come from whoever may define a
custom resource or a policy, texts from everybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, Final, Protocol

_WORDS: Final = {
    "missing )": "missing closing )",
    "missing ]": "missing closing ]",
    "no argument for repetition operator": "missing argument to repetition operator",
    "bad repetition operator": "invalid nested repetition operator",
    "invalid repetition size": "invalid repeat count",
    "invalid perl operator": "invalid or unsupported Perl syntax",
    "trailing \\": "trailing backslash at end of expression",
}
"""RE2's words: Go's."""


class Match(Protocol):
    def __getitem__(self, group: int) -> str: ...


class Regexp(Protocol):
    """What is used of a compiled expression."""

    def search(self, text: str) -> Match | None: ...

    def finditer(self, text: str) -> Iterator[Match]: ...


@cache
def _engine() -> tuple[Any, Any]:
    """(RE2, its options); loaded with the first expression."""
    import re2

    options = re2.Options()
    options.log_errors = False
    return re2, options


@lru_cache(maxsize=512)
def compile_go(pattern: str) -> Regexp:
    """Raises ValueError with Go's text."""
    re2, options = _engine()
    try:
        found: Regexp = re2.compile(pattern, options)
    except re2.error as error:
        raise ValueError(f"error parsing regexp: {_go_words(error.args[0])}") from None
    if r"\C" in pattern.replace(r"\\", ""):  # one byte: what RE2 has and Go has not
        raise ValueError(r"error parsing regexp: invalid escape sequence: `\C`")
    return found


def _go_words(error: bytes) -> str:
    what, _, where = error.decode("utf-8", "replace").partition(": ")
    return f"{_WORDS.get(what, what)}: `{where}`"
