"""Go's regular expressions (RE2 syntax) by Python's `re`: the differences that matter, and Go's words for bad ones."""

from __future__ import annotations

import re
from functools import lru_cache

_PERL_ONLY = re.compile(r"\(\?(?:=|!|<=|<!|>|\()")
_POSIX = {"alpha": "A-Za-z", "digit": "0-9", "alnum": "A-Za-z0-9", "upper": "A-Z", "lower": "a-z", "space": r"\s"}
_CLASSES = {**_POSIX, "xdigit": "0-9A-Fa-f", "word": r"\w", "punct": r"!-/:-@\[-`{-~", "blank": r"\t "}


@lru_cache(maxsize=512)
def compile_go(pattern: str) -> re.Pattern[str]:
    """Raises ValueError with Go's text."""
    perl = _PERL_ONLY.search(pattern)
    if perl:
        raise ValueError(f"error parsing regexp: invalid or unsupported Perl syntax: `{perl[0]}`")
    try:
        return re.compile(_translate(pattern), re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"error parsing regexp: {_go_words(pattern, str(error))}") from None


def _translate(pattern: str) -> str:
    out, at, in_class = [], 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            pair = pattern[at : at + 2]
            out.append("\\Z" if pair == "\\z" else pair)
            at += 2
            continue
        if in_class:
            posix = re.match(r"\[:(\w+):\]", pattern[at:])
            if posix and posix[1] in _CLASSES:
                out.append(_CLASSES[posix[1]])
                at += len(posix[0])
                continue
            in_class = char != "]"
            out.append("\\[" if char == "[" else char)
        elif char == "[":
            in_class = True
            start = re.match(r"\[\^?\]?", pattern[at:])
            assert start is not None
            out.append(start[0])
            at += len(start[0])
            continue
        else:
            out.append("\\Z" if char == "$" else char)
        at += 1
    return "".join(out)


def _go_words(pattern: str, text: str) -> str:
    if "unterminated character set" in text:
        at = int(text.rpartition("position ")[2].split()[0])
        return f"missing closing ]: `{pattern[at:]}`"
    if "missing )" in text or "unterminated subpattern" in text:
        return f"missing closing ): `{pattern}`"
    if "unbalanced parenthesis" in text:
        return f"unexpected ): `{pattern}`"
    if "nothing to repeat" in text:
        found = re.search(r"[*+?]", pattern)
        return f"missing argument to repetition operator: `{found[0] if found else pattern}`"
    if "multiple repeat" in text:
        found = re.search(r"[*+?]{2,}", pattern)
        return f"invalid nested repetition operator: `{found[0] if found else pattern}`"
    if "bad escape" in text:
        if "end of pattern" in text:
            return "trailing backslash at end of expression: ``"
        found = re.search(r"\\.", text)
        return f"invalid escape sequence: `{found[0] if found else pattern}`"
    if "bad character range" in text:
        return f"invalid character class range: `{text.split()[3]}`"
    return f"invalid or unsupported Perl syntax: `{pattern}`"
