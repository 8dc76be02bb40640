"""Messages declared by hand, on the wire and back."""

from __future__ import annotations

import pytest

from kone.apimachinery.messages import TEXT_MAP, Message
from kone.apimachinery.protowire import Malformed

INNER = Message({1: ("mode", int)})
EMPTY = Message({})
OUTER = Message(
    {
        1: ("id", str),
        2: ("context", TEXT_MAP),
        3: ("inner", INNER),
        4: ("nothing", EMPTY),
        5: ("names", [str]),
        6: ("numbers", [int]),
        7: ("ready", bool),
        8: ("size", int),
        9: ("raw", bytes),
        10: ("inners", [INNER]),
    }
)


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        pytest.param({"id": "a"}, b"\x0a\x01a", id="a string"),
        pytest.param({"id": "", "size": 0, "ready": False, "raw": b"", "names": []}, b"", id="empty is absent"),
        pytest.param(
            {"context": {"b": "2", "a": ""}}, b"\x12\x05\x0a\x01a\x12\x00\x12\x06\x0a\x01b\x12\x012", id="map"
        ),
        pytest.param({"nothing": {}}, b"\x22\x00", id="a message without content is there"),
        pytest.param({"inner": {"mode": 5}}, b"\x1a\x02\x08\x05", id="a message"),
        pytest.param({"names": ["x", ""]}, b"\x2a\x01x\x2a\x00", id="repeated strings, empty ones too"),
        pytest.param({"size": -1}, b"\x40" + b"\xff" * 9 + b"\x01", id="a negative number"),
        pytest.param({"inners": [{"mode": 1}, {}]}, b"\x52\x02\x08\x01\x52\x00", id="repeated messages"),
    ],
)
def test_wire(content: dict[str, object], wire: bytes) -> None:
    assert OUTER.encode(content) == wire
    assert OUTER.encode(OUTER.decode(wire)) == wire


def test_reads_packed_and_unpacked_numbers() -> None:
    assert OUTER.decode(b"\x32\x03\x01\x96\x01\x30\x07") == {"numbers": [1, 150, 7]}


def test_fields_that_are_not_known_are_left_out() -> None:
    assert OUTER.decode(b"\xf8\x07\x01\x0a\x01a") == {"id": "a"}


@pytest.mark.parametrize("wire", [b"\x0a\x05a", b"\x08\x01", b"\x0a\x01\xff", b"\x40", b"\x0b"])
def test_what_is_no_message_is_refused(wire: bytes) -> None:
    with pytest.raises(Malformed):
        OUTER.decode(wire)


def test_a_name_that_the_message_does_not_have_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="nope"):
        OUTER.encode({"nope": 1})
