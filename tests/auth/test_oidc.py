"""Tokens of OpenID Connect providers: keys that are fetched, rotate and fail; users that they stand for."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kone.aio.clock import FakeClock
from kone.auth.authentication_config import Issuer, issuer_of
from kone.auth.oidc import OidcTokens
from kone.auth.remembering import Remembering

URL = "https://id.example.com"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


class Provider:
    """Of `URL`. `keys` are what it publishes, by their ids."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.keys: dict[str, Any] = {"one": RSA}
        self.asked: list[str] = []
        self.down = False
        self.claims_token = ""

    async def fetch(self, url: str, ca_pem: str, *, bearer: str = "") -> bytes:
        self.asked.append(f"{url} {bearer}".strip())
        if self.down:
            raise ValueError("connection refused")
        if url == f"{URL}/.well-known/openid-configuration":
            return json.dumps({"issuer": URL, "jwks_uri": f"{URL}/keys"}).encode()
        if url == f"{URL}/groups":
            return self.claims_token.encode()
        assert url == f"{URL}/keys"
        listed = []
        for key_id, key in self.keys.items():
            algorithm = "RS256" if key is RSA else "ES256"
            maker = jwt.algorithms.get_default_algorithms()[algorithm]
            listed.append({**json.loads(maker.to_jwk(key.public_key())), "kid": key_id, "alg": algorithm, "use": "sig"})
        return json.dumps({"keys": listed}).encode()

    def token(self, key: Any = RSA, key_id: str = "one", **claims: Any) -> str:
        said = {"iss": URL, "aud": "kone", "sub": "ann", "exp": self.clock.now() + 60, **claims}
        return jwt.encode(said, key, algorithm="RS256" if key is RSA else "ES256", headers={"kid": key_id})

    def tokens(self, **issuer: Any) -> OidcTokens:
        config = {
            "issuer": {"url": URL, "audiences": ["kone"], **issuer},
            "claimMappings": {
                "username": {"claim": "sub", "prefix": "id:"},
                "groups": {"claim": "groups", "prefix": ""},
            },
        }
        found, errors = issuer_of(config, "jwt[0]")
        assert not errors
        return OidcTokens(found, self.fetch, self.clock)


@pytest.fixture
def provider() -> Provider:
    return Provider()


async def test_a_token_stands_for_the_user_of_its_claims(provider: Provider) -> None:
    found = await provider.tokens().verify(provider.token(groups=["dev"]))
    assert found is not None
    assert (found.user.name, found.user.groups) == ("id:ann", ("dev", "system:authenticated"))
    assert found.audiences == ("https://kubernetes.default",)


async def test_other_tokens_are_none_of_its_business(provider: Provider) -> None:
    tokens = provider.tokens()
    for token in ("nonsense", "a.b.c", provider.token(iss="https://other.example.com")):
        assert await tokens.verify(token) is None
    assert await tokens.verify(provider.token(), ["vault"]) is None
    assert not provider.asked


async def test_keys_are_fetched_once_and_again_for_one_that_is_new(provider: Provider) -> None:
    tokens = provider.tokens()
    await tokens.verify(provider.token())
    await tokens.verify(provider.token(sub="bob"))
    assert provider.asked == [f"{URL}/.well-known/openid-configuration", f"{URL}/keys"]
    provider.keys = {"two": EC}
    assert await tokens.verify(provider.token(EC, "two")) is not None
    assert provider.asked[2:] == [f"{URL}/keys"]
    with pytest.raises(ValueError, match="failed to verify id token signature"):
        await tokens.verify(provider.token(RSA, "one"))


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"aud": "other"}, 'oidc: verify token: oidc: expected audience "kone" got ["other"]'),
        ({"exp": 1_600_000_000}, "token is expired (Token Expiry: 2020-09-13 12:26:40 +0000 UTC)"),
        ({"nbf": 4_000_000_000, "exp": 4_000_000_001}, "current time before the nbf (not before) time"),
    ],
)
async def test_tokens_that_are_refused(provider: Provider, claims: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        await provider.tokens().verify(provider.token(**claims))
    assert why in str(caught.value)


async def test_a_token_is_refused_that_another_key_or_none_has_signed(provider: Provider) -> None:
    forged = jwt.encode(
        {"iss": URL, "aud": "kone", "sub": "root", "exp": provider.clock.now() + 60},
        rsa.generate_private_key(65537, 2048),
        algorithm="RS256",
        headers={"kid": "one"},
    )
    unsigned = jwt.encode({"iss": URL, "aud": "kone", "sub": "root"}, None, algorithm="none")
    shared = jwt.encode({"iss": URL, "aud": "kone", "sub": "root"}, "x" * 32, algorithm="HS256")
    for token in (forged, unsigned, shared):
        with pytest.raises(ValueError, match="oidc: verify token"):
            await provider.tokens().verify(token)


async def test_several_audiences(provider: Provider) -> None:
    tokens = provider.tokens(audiences=["kone", "ci"], audienceMatchPolicy="MatchAny")
    assert await tokens.verify(provider.token(aud=["x", "ci"])) is not None
    with pytest.raises(ValueError, match="expected audience in"):
        await tokens.verify(provider.token(aud="x"))


async def test_a_provider_that_is_down_is_asked_again_after_ten_seconds(provider: Provider) -> None:
    tokens = provider.tokens()
    provider.down = True
    with pytest.raises(ValueError, match="connection refused"):
        await tokens.verify(provider.token())
    provider.down = False
    with pytest.raises(ValueError, match="not initialized"):
        await tokens.verify(provider.token())
    assert len(provider.asked) == 1
    await provider.clock.advance(11.0)
    assert await tokens.verify(provider.token()) is not None


async def test_groups_may_be_somewhere_else(provider: Provider) -> None:
    source = {"src": {"endpoint": f"{URL}/groups", "access_token": "key"}}
    provider.claims_token = provider.token(groups=["far"])
    found = await provider.tokens().verify(provider.token(_claim_names={"groups": "src"}, _claim_sources=source))
    assert found is not None
    assert found.user.groups == ("far", "system:authenticated")
    assert f"{URL}/groups key" in provider.asked
    provider.claims_token = provider.token(other=1)
    with pytest.raises(ValueError, match="did not contain claim: groups"):
        await provider.tokens().verify(provider.token(_claim_names={"groups": "src"}, _claim_sources=source))


async def test_answers_are_kept_for_a_while_and_errors_are_not(provider: Provider) -> None:
    class Counting:
        asked = 0

        async def verify(self, token: str, audiences: Any = ()) -> Any:
            self.asked += 1
            if token == "bad":
                raise ValueError("bad")
            return None if token == "none" else token

    counting = Counting()
    kept = Remembering(counting, provider.clock, good_s=10.0)
    for _ in range(3):
        assert await kept.verify("good") == "good"
    assert counting.asked == 1
    assert await kept.verify("good", ["other"]) == "good"
    await provider.clock.advance(11.0)
    await kept.verify("good")
    assert counting.asked == 3
    for _ in range(2):
        assert await kept.verify("none") is None
        with pytest.raises(ValueError, match="bad"):
            await kept.verify("bad")
    assert counting.asked == 7


def test_an_issuer_trusts_every_algorithm_unless_told() -> None:
    found, _ = issuer_of({"issuer": {"url": URL, "audiences": ["a"]}, "claimMappings": {}}, "jwt[0]")
    assert isinstance(found, Issuer)
    assert "ES512" in found.algorithms
