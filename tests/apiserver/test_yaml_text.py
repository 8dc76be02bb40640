"""YAML bodies: JSON's data model only, and nothing in a few lines that fills the memory."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apiserver.yaml_text import YamlError, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"a: 2001-01-01", {"a": "2001-01-01"}),
        (b"!!set {a, b}", {"a": None, "b": None}),
        (b"!!omap [a: b]", [{"a": "b"}]),
        (b"a: !!timestamp x", {"a": "x"}),
        (b"a: !!binary YQ==", {"a": "a"}),
        (b"a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        (b"a: .inf", {"a": ".inf"}),
        (b"[-9223372036854775809, 0xffffffffffffffffff, -12]", [-(2.0**63), 2.0**72, -12]),
    ],
)
def test_values_are_what_json_can_say(text: bytes, value: Any) -> None:
    assert load(text) == (value, [])


BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9)) for letter in b"bcdefghi"
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "document contains excessive aliasing"),
        (b"a: &x [*x]", "a value contains itself"),
        (b"[" * 5000, "exceeded max"),
        (rb'a: "\ud83d"', "found invalid Unicode character escape code"),
        (b"a: !!python/object:os.system x", "could not determine a constructor"),
        (b"a: 9" + b"9" * 5000, "cannot unmarshal number"),
        (b"a: 0x" + b"f" * 5000, "too large"),
        (rb'{"a": "\ud83d"}', "found invalid Unicode character escape code"),
    ],
    ids=["bomb", "loop", "depth", "surrogate", "foreign tag", "digits", "hexadecimal digits", "surrogate in JSON"],
)
def test_what_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(YamlError, match=why):
        load(text)
