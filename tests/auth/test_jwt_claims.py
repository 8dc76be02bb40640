"""From claims to users."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.auth.jwt_claims import ClaimRules, compile_rules

BY_SUB: Object = {"username": {"claim": "sub", "prefix": ""}}


def rules(mappings: Object | None = None, **more: Any) -> ClaimRules:
    found, errors = compile_rules({"claimMappings": mappings or BY_SUB, **more}, "jwt[0]")
    assert not errors
    return found


def wrong(mappings: Object | None = None, **more: Any) -> list[str]:
    return [str(error) for error in compile_rules({"claimMappings": mappings or BY_SUB, **more}, "jwt[0]")[1]]


def test_claims_with_prefixes() -> None:
    found = rules(
        {
            "username": {"claim": "sub", "prefix": "acme:"},
            "groups": {"claim": "roles", "prefix": "acme-"},
            "uid": {"claim": "oid"},
        }
    ).user({"sub": "ann", "roles": ["a", "b"], "oid": "7", "jti": "token-1"})
    assert (found.name, found.uid) == ("acme:ann", "7")
    assert found.groups == ("acme-a", "acme-b", "system:authenticated")
    assert found.extra == {"authentication.kubernetes.io/credential-id": ("JTI=token-1",)}


def test_one_group_may_be_a_string_and_none_may_be_missing() -> None:
    found = rules({**BY_SUB, "groups": {"claim": "role", "prefix": ""}})
    assert found.user({"sub": "a", "role": "admin"}).groups == ("admin", "system:authenticated")
    assert found.user({"sub": "a"}).groups == ("system:authenticated",)


def test_expressions() -> None:
    found = rules(
        {
            "username": {"expression": "claims.sub + '@' + claims.tenant"},
            "groups": {"expression": "claims.roles.split(',')"},
            "uid": {"expression": "string(claims.number)"},
            "extra": [
                {"key": "acme.io/tenant", "valueExpression": "claims.tenant"},
                {"key": "acme.io/none", "valueExpression": "''"},
            ],
        },
        claimValidationRules=[{"claim": "hd", "requiredValue": "acme"}, {"expression": "claims.exp - claims.iat < 9"}],
        userValidationRules=[{"expression": "!user.username.startsWith('system:')", "message": "reserved"}],
    )
    claims: Object = {"sub": "ann", "tenant": "t", "roles": "a,b,,c", "number": 7, "hd": "acme", "exp": 10, "iat": 5}
    user = found.user(claims)
    assert (user.name, user.uid, user.groups) == ("ann@t", "7", ("a", "b", "c", "system:authenticated"))
    assert user.extra == {"acme.io/tenant": ("t",)}


@pytest.mark.parametrize(
    ("mappings", "more", "claims", "why"),
    [
        (None, {}, {}, 'oidc: parse username claims "sub": claim not present'),
        (
            {"username": {"claim": "email", "prefix": ""}},
            {},
            {"email": "a@b", "email_verified": False},
            "oidc: email not verified",
        ),
        (
            {"username": {"expression": "claims.number"}},
            {},
            {"number": 3},
            "oidc: error evaluating username claim expression: username claim expression must return a string",
        ),
        (
            {"username": {"expression": "''"}},
            {},
            {},
            "oidc: empty username via CEL expression is not allowed",
        ),
        (
            {**BY_SUB, "groups": {"expression": "[1, 2]"}},
            {},
            {"sub": "a"},
            "oidc: error evaluating group claim expression: expression must return a string or a list of strings",
        ),
        (
            None,
            {"claimValidationRules": [{"claim": "hd", "requiredValue": "acme"}]},
            {"sub": "a"},
            "oidc: required claim hd not present in ID token",
        ),
        (
            None,
            {"claimValidationRules": [{"claim": "hd", "requiredValue": "acme"}]},
            {"sub": "a", "hd": "other"},
            "oidc: required claim hd value does not match. Got = other, want = acme",
        ),
        (
            None,
            {"claimValidationRules": [{"expression": "claims.n == 1", "message": "n must be 1"}]},
            {"sub": "a", "n": 2},
            "oidc: error evaluating claim validation expression: validation expression 'claims.n == 1' failed: "
            "n must be 1",
        ),
        (
            None,
            {"userValidationRules": [{"expression": "user.username != 'root'", "message": "no root"}]},
            {"sub": "root"},
            "oidc: error evaluating user info validation rule: validation expression 'user.username != 'root'' "
            "failed: no root",
        ),
    ],
)
def test_claims_that_make_no_user(mappings: Object | None, more: Object, claims: Object, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        rules(mappings, **more).user(claims)
    assert str(caught.value) == why


@pytest.mark.parametrize(
    ("mappings", "more", "why"),
    [
        ({}, {}, []),  # as BY_SUB
        (
            {"username": {}},
            {},
            ["jwt[0].claimMappings.username: Required value: claim or expression is required"],
        ),
        (
            {"username": {"claim": "sub"}},
            {},
            [
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be "
                "set to an empty string to disable prefixing"
            ],
        ),
        (
            {"username": {"claim": "sub", "expression": "claims.sub"}},
            {},
            ['jwt[0].claimMappings.username: Invalid value: "": claim and expression can\'t both be set'],
        ),
        (
            {**BY_SUB, "extra": [{"key": "x.kubernetes.io/a", "valueExpression": "'a'"}]},
            {},
            [
                'jwt[0].claimMappings.extra[0].key: Invalid value: "x.kubernetes.io/a": k8s.io, kubernetes.io and '
                "their subdomains are reserved for Kubernetes use"
            ],
        ),
        (
            None,
            {"claimValidationRules": [{"claim": "a", "message": "m"}, {"claim": "a"}]},
            [
                'jwt[0].claimValidationRules[0].message: Invalid value: "m": may not be specified when claim is set',
                'jwt[0].claimValidationRules[1].claim: Duplicate value: "a"',
            ],
        ),
        (
            None,
            {"claimValidationRules": [{"expression": "claims.a + 'b'"}], "userValidationRules": [{}]},
            ["jwt[0].userValidationRules[0].expression: Required value"],
        ),
    ],
)
def test_what_a_file_may_not_say(mappings: Object | None, more: Object, why: list[str]) -> None:
    found = wrong(mappings, **more)
    assert [each for each in found if "must evaluate" not in each] == why


def test_an_address_must_be_one_that_is_verified() -> None:
    assert "claims.email_verified must be used" in wrong({"username": {"expression": "claims.email"}})[0]
    assert not wrong({"username": {"expression": "claims.email_verified ? claims.email : ''"}})
