"""What is wrong with the text of a JSON body, and what Go reads of a text that others refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kone.apimachinery.json_text import in_order, lenient, too_deep, with_duplicates


def test_findings_come_in_the_order_of_the_body() -> None:
    body = {"spec": {"zz": 1, "replicas": 3, "list": [{"b": 1}]}, "aa": 1}
    findings = ['duplicate field "spec.replicas"', 'unknown field "spec.zz"', 'unknown field "aa"']
    assert in_order(body, findings) == [findings[1], findings[0], findings[2]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (rb'{"a": "\ud83d\ude00"}', {"a": "\U0001f600"}),
        (rb'{"a": ["\ud83d"]}', {"a": ["\ufffd"]}),
        (rb'{"\ude00": 1, "b": "x\ud83dy"}', {"\ufffd": 1, "b": "x\ufffdy"}),
        (b'["\xff"]', ["\ufffd"]),
        (b"[18446744073709551615, 18446744073709551616, -9223372036854775809]", [2**64 - 1, 2.0**64, -(2.0**63)]),
        (b"[" + b"9" * 300 + b"]", [1e300]),
    ],
)
def test_what_go_reads(text: bytes, value: Any) -> None:
    assert lenient(text) == value


def test_fields_given_twice_are_read_as_leniently() -> None:
    assert with_duplicates(rb'{"a": "\ud83d", "a": "b\ude00"}') == ({"a": "b\ufffd"}, ["a"])


@pytest.mark.parametrize("text", [b"[1e999]", b"[" + b"9" * 5000 + b"]", b"[-1e999]"])
def test_numbers_that_no_float_can_hold(text: bytes) -> None:
    with pytest.raises(ValueError, match="json: cannot unmarshal number"):
        lenient(text)


@pytest.mark.parametrize(("depth", "deep"), [(1, False), (199, False), (200, False), (201, True), (900, True)])
def test_depth(depth: int, deep: bool) -> None:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    text = json.dumps(value).encode()
    assert too_deep(text, value) is deep
