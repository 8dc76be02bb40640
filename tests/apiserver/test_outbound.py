"""Tokens of a provider over real TLS, from its discovery document to a request that is served."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from multidict import CIMultiDict

from kone.aio.clock import SystemClock
from kone.apimachinery.errors import StatusError
from kone.apiserver.outbound import Outbound
from kone.auth.authentication import Authenticator
from kone.authentication_files import AuthenticationFiles
from kone.config import Settings
from tests.https_server import HttpsServer

NO_WEBHOOKS: Any = None
KEY = ec.generate_private_key(ec.SECP256R1())


class Issuer(HttpsServer):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, self._reply)

    async def _reply(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/.well-known/openid-configuration":
            return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})
        made = jwt.algorithms.get_default_algorithms()["ES256"].to_jwk(KEY.public_key())
        return web.json_response({"keys": [{**json.loads(made), "kid": "k", "alg": "ES256"}]})

    def token(self, **claims: Any) -> CIMultiDict[str]:
        said = {"iss": self.url, "aud": "kone", "sub": "ann", "exp": SystemClock().now() + 600, **claims}
        return CIMultiDict(Authorization="Bearer " + jwt.encode(said, KEY, algorithm="ES256", headers={"kid": "k"}))


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[Issuer]:
    made = Issuer(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    made = Outbound()
    yield made
    await made.close()


def config(issuer: Issuer, prefix: str, **more: Any) -> str:
    said = {
        "issuer": {"url": issuer.url, "audiences": ["kone"], "certificateAuthority": issuer.ca_pem},
        "claimMappings": {"username": {"claim": "sub", "prefix": prefix}},
    }
    kind = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration"}
    return json.dumps({**kind, "jwt": [said], **more})


async def test_by_flags(issuer: Issuer, outbound: Outbound, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(issuer.ca_pem)
    settings = Settings(
        oidc_issuer_url=issuer.url,
        oidc_client_id="kone",
        oidc_ca_file=str(tmp_path / "ca.pem"),
        oidc_signing_algs="ES256",
        oidc_groups_claim="groups",
        oidc_groups_prefix="g:",
        oidc_required_claim="hd=acme",
        anonymous_auth="off",
    )
    remote, anonymous = AuthenticationFiles(settings, outbound, NO_WEBHOOKS, SystemClock()).read()
    found = Authenticator((), remote, anonymous)
    user = await found.authenticate(None, issuer.token(groups=["a"], hd="acme"))
    assert (user.name, user.groups) == (f"{issuer.url}#ann", ("g:a", "system:authenticated"))
    for headers in (issuer.token(), CIMultiDict[str]()):
        with pytest.raises(StatusError) as caught:
            await found.authenticate(None, headers)
        assert caught.value.code == 401


async def test_by_a_file_that_changes(issuer: Issuer, outbound: Outbound, tmp_path: Path) -> None:
    file = tmp_path / "authentication.json"
    file.write_text(config(issuer, "one:"))
    files = AuthenticationFiles(Settings(authentication_config=str(file)), outbound, NO_WEBHOOKS, SystemClock())
    found = Authenticator((), *files.read())
    [reloaded] = files.follow(found)
    assert (await found.authenticate(None, issuer.token())).name == "one:ann"
    assert (await found.authenticate(None, CIMultiDict(), path="/version")).name == "system:anonymous"
    file.write_text(config(issuer, "another:", anonymous={"enabled": True, "conditions": [{"path": "/livez"}]}))
    await reloaded.look()
    assert (await found.authenticate(None, issuer.token())).name == "another:ann"
    assert (await found.authenticate(None, CIMultiDict(), path="/livez")).name == "system:anonymous"
    with pytest.raises(StatusError):
        await found.authenticate(None, CIMultiDict(), path="/version")
    file.write_text("nonsense that is longer")
    await reloaded.look()
    assert (await found.authenticate(None, issuer.token())).name == "another:ann"


async def test_a_server_that_others_vouch_for_is_not_believed(issuer: Issuer, outbound: Outbound) -> None:
    with pytest.raises(ValueError, match="certificate verify failed"):
        await outbound.get(f"{issuer.url}/keys", "")
    assert b"keys" in await outbound.get(f"{issuer.url}/keys", issuer.ca_pem)
