"""Upstream's token file."""

from __future__ import annotations

import pytest

from kone.apimachinery.users import User
from kone.auth.static_tokens import StaticTokens, parse_token_file

FILE = """t1,ann,1,"devs,ops"
t2,bob,2

t3, cid, 3,
,nobody,4
t1,eve,5
"""


def test_the_columns_are_token_name_uid_and_groups() -> None:
    users = parse_token_file(FILE)
    assert users == {
        "t1": User("eve", "5", ("system:authenticated",)),
        "t2": User("bob", "2", ("system:authenticated",)),
        "t3": User("cid", "3", ("system:authenticated",)),
    }
    assert parse_token_file('t,ann,1,"devs,ops"\n')["t"].groups == ("devs", "ops", "system:authenticated")


def test_a_line_of_two_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have at least 3 columns \(token, user name, user uid\), found 2"):
        parse_token_file("t,ann\n")


def test_a_token_is_for_the_audiences_of_the_api_only() -> None:
    tokens = StaticTokens({"t": User("ann")}, ("api", "other"))
    found = tokens.verify("t")
    assert found is not None
    assert found.audiences == ("api", "other")
    found = tokens.verify("t", ("api", "vault"))
    assert found is not None
    assert found.audiences == ("api",)
    assert tokens.verify("t", ("vault",)) is None
    assert tokens.verify("u") is None
