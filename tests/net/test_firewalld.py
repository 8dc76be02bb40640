"""kone's rules in firewalld's table: first in each chain, each once, and only kone's are touched."""

from __future__ import annotations

from typing import Any

import pytest

from kone.net.firewalld import FORWARD, TABLE, accepting, to_stand_first

TAG = "kone0:"
MATCHES = accepting("kone0", ["10.244.0.0/24"])[FORWARD]
OURS = ["kone0: iifname kone0", "kone0: oifname kone0"]


def listing(*comments: str) -> Any:
    """As nft lists a chain of rules with these comments; "" is one of firewalld's own, handles count from 1."""
    rules = [
        {"rule": {"handle": number, "expr": [], **({"comment": comment} if comment else {})}}
        for number, comment in enumerate(comments, 1)
    ]
    return {"nftables": [{"metainfo": {}}, {"chain": {"name": FORWARD}}, *rules]}


@pytest.mark.parametrize(
    ("comments", "deleted", "inserted"),
    [
        (["", ""], [], 2),
        ([*OURS, "", ""], [], 0),
        ([OURS[0], "", ""], [1], 2),
        (["", *OURS], [2, 3], 2),
        ([*OURS, OURS[1], ""], [1, 2, 3], 2),
        (["kone-two: iifname kone-two", ""], [], 2),
    ],
    ids=[
        "a new table",
        "as it shall be",
        "one is gone",
        "another is before them",
        "one is there twice",
        "another instance's stay",
    ],
)
def test_rules_are_made_to_stand_first(comments: list[str], deleted: list[int], inserted: int) -> None:
    script = to_stand_first(FORWARD, listing(*comments), MATCHES, TAG)
    assert [line for line in script if line.startswith("delete")] == [
        f"delete rule {TABLE} {FORWARD} handle {number}" for number in deleted
    ]
    assert len([line for line in script if line.startswith("insert")]) == inserted


def test_the_last_that_is_inserted_stands_first() -> None:
    assert to_stand_first(FORWARD, listing(""), MATCHES, TAG) == [
        'insert rule inet firewalld filter_FORWARD oifname "kone0" accept comment "kone0: oifname kone0"',
        'insert rule inet firewalld filter_FORWARD iifname "kone0" accept comment "kone0: iifname kone0"',
    ]


def test_removal_leaves_what_is_not_kones() -> None:
    assert to_stand_first(FORWARD, listing("kone0: iifname kone0", "", "an administrator's"), (), TAG) == [
        "delete rule inet firewalld filter_FORWARD handle 1"
    ]
