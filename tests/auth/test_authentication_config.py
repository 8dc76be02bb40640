"""Files of kind AuthenticationConfiguration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.auth.authentication import Anonymous
from kone.auth.authentication_config import parse_config

OWN = ("https://kubernetes.default",)


def text(*jwt: Object, **more: Any) -> str:
    said = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": list(jwt)}
    return json.dumps({**said, **more})


def entry(**issuer: Any) -> Object:
    said = {"url": "https://id.example.com", "audiences": ["kone"], **issuer}
    return {"issuer": said, "claimMappings": {"username": {"claim": "sub", "prefix": ""}}}


def test_several_issuers() -> None:
    other = entry(url="https://other.example.com/", discoveryURL="https://in.example.com/oidc")
    found = parse_config(text(entry(), other), OWN)
    assert [issuer.url for issuer in found.issuers] == ["https://id.example.com", "https://other.example.com/"]
    assert [issuer.discovery_url for issuer in found.issuers] == [
        "https://id.example.com/.well-known/openid-configuration",
        "https://in.example.com/oidc",
    ]
    assert found.anonymous is None


def test_who_may_be_anonymous() -> None:
    assert parse_config(text(anonymous={"enabled": False})).anonymous == Anonymous(False)
    found = parse_config(text(anonymous={"enabled": True, "conditions": [{"path": "/livez"}]})).anonymous
    assert found is not None
    assert found.allows("/livez")
    assert not found.allows("/readyz")


@pytest.mark.parametrize(
    ("issuer", "why"),
    [
        ({"url": ""}, "jwt[0].issuer.url: Required value"),
        ({"url": "http://x"}, 'jwt[0].issuer.url: Invalid value: "http://x": URL scheme must be https'),
        (
            {"url": "https://a:b@x"},
            'jwt[0].issuer.url: Invalid value: "https://a:b@x": URL must not contain a username or password',
        ),
        ({"url": "https://x?a"}, 'jwt[0].issuer.url: Invalid value: "https://x?a": URL must not contain a query'),
        (
            {"url": OWN[0]},
            f'jwt[0].issuer.url: Invalid value: "{OWN[0]}": URL must not overlap with disallowed issuers: [{OWN[0]}]',
        ),
        (
            {"discoveryURL": "https://id.example.com/"},
            'jwt[0].issuer.discoveryURL: Invalid value: "https://id.example.com/": discoveryURL must be different from '
            "URL",
        ),
        (
            {"audiences": []},
            "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required",
        ),
        (
            {"audiences": ["a", "b"]},
            'jwt[0].issuer.audienceMatchPolicy: Invalid value: "": audienceMatchPolicy must be MatchAny for multiple '
            "audiences",
        ),
        (
            {"certificateAuthority": "nonsense"},
            'jwt[0].issuer.certificateAuthority: Invalid value: "<omitted>": data does not contain any valid RSA or '
            "ECDSA certificates",
        ),
    ],
)
def test_what_an_issuer_may_not_be(issuer: Object, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_config(text(entry(**issuer)), OWN)
    assert str(caught.value) == why


def test_an_issuer_twice_an_unknown_field_and_conditions_of_nobody_are_refused() -> None:
    for given, why in (
        (text(entry(), entry()), 'jwt[1].issuer.url: Duplicate value: "https://id.example.com"'),
        (text(entry(colour="red")), 'unknown field "jwt[0].issuer.colour"'),
        (text(anonymous={"enabled": False, "conditions": [{"path": "/a"}]}), "enabled should be set to true"),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            parse_config(given)
        assert why in str(caught.value)
