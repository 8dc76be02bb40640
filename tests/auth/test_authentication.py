"""Who a request is from: socket peers, certificates, bearer tokens, front proxies, nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from multidict import CIMultiDict

from kone.apimachinery.errors import StatusError
from kone.apimachinery.users import User
from kone.auth.authentication import Authenticator, UnixPeer
from kone.auth.pki import Names, Pki
from kone.auth.static_tokens import admin_tokens
from tests.auth.test_tokens import ISSUER, World

MASTERS = ("system:masters", "system:authenticated")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"), Names("n1"))
    made.ensure(1_790_000_000.0)
    return made


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def authenticator(world: World) -> Authenticator:
    return Authenticator([admin_tokens("s3cret"), world.tokens])


def der(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


def headers(**named: str) -> CIMultiDict[str]:
    return CIMultiDict({name.replace("_", "-"): value for name, value in named.items()})


async def test_a_certificates_common_name_is_the_user_and_its_organizations_the_groups(
    authenticator: Authenticator, pki: Pki
) -> None:
    user = await authenticator.authenticate(der(pki.certificate("kubelet")), headers())
    assert (user.name, user.groups) == ("system:node:n1", ("system:nodes", "system:authenticated"))
    assert user.extra["authentication.kubernetes.io/credential-id"][0].startswith("X509SHA256=")


async def test_the_admin_token_is_the_admin(authenticator: Authenticator) -> None:
    user = await authenticator.authenticate(None, headers(Authorization="Bearer s3cret"))
    assert user == User("kubernetes-admin", groups=MASTERS)


async def test_a_service_account(authenticator: Authenticator, world: World) -> None:
    user = await authenticator.authenticate(None, headers(Authorization=f"bearer {world.token()}"))
    assert user.name == "system:serviceaccount:ns:sa"


@pytest.mark.parametrize("token", ["bad", "a.b.c"])
async def test_a_wrong_token_is_unauthorized_not_anonymous(authenticator: Authenticator, token: str) -> None:
    with pytest.raises(StatusError) as caught:
        await authenticator.authenticate(None, headers(Authorization=f"Bearer {token}"))
    assert (caught.value.code, caught.value.message) == (401, "Unauthorized")


@pytest.mark.parametrize("value", ["", "Bearer ", "Basic dTpw"])
async def test_no_credentials_is_anonymous(authenticator: Authenticator, value: str) -> None:
    user = await authenticator.authenticate(None, headers(Authorization=value))
    assert user == User("system:anonymous", groups=("system:unauthenticated",))


async def test_a_websocket_may_carry_its_token_as_a_subprotocol(authenticator: Authenticator) -> None:
    protocols = "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.czNjcmV0"
    user = await authenticator.authenticate(None, headers(Sec_WebSocket_Protocol=protocols))
    assert user.name == "kubernetes-admin"


@pytest.mark.parametrize("uid", [0, os.geteuid()])
async def test_root_and_the_servers_own_user_come_in_by_the_local_door(authenticator: Authenticator, uid: int) -> None:
    user = await authenticator.authenticate(None, headers(), UnixPeer(1, uid, 0))
    assert user.groups == MASTERS


async def test_anybody_else_at_the_local_door_needs_credentials(authenticator: Authenticator) -> None:
    peer = UnixPeer(1, 54321, 54321)
    assert (await authenticator.authenticate(None, headers(), peer)).name == "system:anonymous"
    user = await authenticator.authenticate(None, headers(Authorization="Bearer s3cret"), peer)
    assert user.name == "kubernetes-admin"


async def test_a_front_proxy_speaks_for_others(authenticator: Authenticator, pki: Pki) -> None:
    proxied = headers(X_Remote_User="ann", X_Remote_Extra_Scope="view")
    proxied.add("X-Remote-Group", "dev")
    proxied.add("X-Remote-Group", "ops")
    user = await authenticator.authenticate(der(pki.certificate("front-proxy-client")), proxied)
    assert user == User("ann", "", ("dev", "ops", "system:authenticated"), {"scope": ("view",)})


async def test_nobody_else_does(authenticator: Authenticator, pki: Pki) -> None:
    user = await authenticator.authenticate(der(pki.certificate("scheduler")), headers(X_Remote_User="ann"))
    assert user.name == "system:kube-scheduler"
    alone = await authenticator.authenticate(der(pki.certificate("front-proxy-client")), headers())
    assert alone.name == "system:anonymous"


async def test_a_token_review_says_whose_token_it_is(authenticator: Authenticator, world: World) -> None:
    status = await authenticator.review(world.token())
    assert status["authenticated"] is True
    assert status["user"]["username"] == "system:serviceaccount:ns:sa"
    assert status["audiences"] == [ISSUER]


async def test_a_token_review_says_what_is_wrong(authenticator: Authenticator, world: World) -> None:
    assert await authenticator.review("bad") == {"user": {}, "error": "invalid bearer token"}
    assert await authenticator.review(world.token(), ["nope"]) == {
        "user": {},
        "error": f'[invalid bearer token, token audiences ["{ISSUER}"] is invalid for the target audiences ["nope"]]',
    }
