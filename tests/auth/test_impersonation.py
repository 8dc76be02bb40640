"""Acting as somebody else, by the constrained verbs or by the old one."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import StatusError
from kone.apimachinery.users import User
from kone.auth.impersonation import impersonate

ADMIN = User("admin", groups=("system:masters",))
ANN = User("ann", groups=("system:authenticated",))
LIST = AccessRequest("list", "", "v1", "configmaps", namespace="ns")


class Rules:
    """Allows what it was told, and everything to system:masters."""

    def __init__(self, *allowed: tuple[str, str, str]) -> None:
        self._allowed = set(allowed)

    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]:
        key = (request.verb, request.combined_resource, request.name)
        return "system:masters" in user.groups or key in self._allowed, ""


def act(user: User, rules: Rules, *headers: tuple[str, str]) -> User:
    return impersonate(user, CIMultiDict(headers), LIST, rules)


def test_without_headers_nothing_changes() -> None:
    assert act(ANN, Rules()) is ANN


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("Impersonate-User", "u")], User("u", groups=("system:authenticated",))),
        (
            [("Impersonate-User", "u"), ("Impersonate-Group", "g1"), ("impersonate-group", "g2")],
            User("u", groups=("g1", "g2", "system:authenticated")),
        ),
        (
            [("Impersonate-User", "u"), ("Impersonate-Group", "system:unauthenticated")],
            User("u", groups=("system:unauthenticated",)),
        ),
        ([("Impersonate-User", "system:anonymous")], User("system:anonymous", groups=("system:unauthenticated",))),
        (
            [("Impersonate-User", "system:serviceaccount:ns:sa")],
            User(
                "system:serviceaccount:ns:sa",
                groups=("system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"),
            ),
        ),
        (
            [("Impersonate-User", "system:serviceaccount:ns:sa"), ("Impersonate-Group", "g")],
            User("system:serviceaccount:ns:sa", groups=("g", "system:authenticated")),
        ),
        (
            [("Impersonate-User", "u"), ("Impersonate-Uid", "1"), ("Impersonate-Extra-Acme.com%2fproject", "p")],
            User("u", "1", ("system:authenticated",), {"acme.com/project": ("p",)}),
        ),
    ],
)
def test_an_administrator_may_be_anybody(headers: list[tuple[str, str]], expected: User) -> None:
    assert act(ADMIN, Rules(), *headers) == expected


def test_the_first_refusal_is_answered() -> None:
    with pytest.raises(StatusError) as caught:
        act(ANN, Rules(), ("Impersonate-User", "u"))
    assert caught.value.message == (
        'configmaps is forbidden: User "ann" cannot impersonate-on:user-info:list resource "configmaps" '
        'in API group "" in the namespace "ns"'
    )


def test_the_old_verb_is_enough() -> None:
    assert act(ANN, Rules(("impersonate", "users", "u")), ("Impersonate-User", "u")).name == "u"


def test_the_constrained_verbs_are_enough_for_the_one_request() -> None:
    rules = Rules(("impersonate-on:user-info:list", "configmaps", ""), ("impersonate:user-info", "users", "u"))
    assert act(ANN, rules, ("Impersonate-User", "u")).name == "u"


def test_a_group_needs_its_own_permission() -> None:
    rules = Rules(("impersonate", "users", "u"))
    with pytest.raises(StatusError, match="impersonate-on:user-info:list"):
        act(ANN, rules, ("Impersonate-User", "u"), ("Impersonate-Group", "g"))


def test_a_group_without_a_user_is_a_bad_request() -> None:
    with pytest.raises(StatusError) as caught:
        act(ADMIN, Rules(), ("Impersonate-Group", "g"))
    assert caught.value.code == 400
    assert "without impersonating a user name" in caught.value.message
