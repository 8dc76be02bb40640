"""Bootstrap tokens: what they are good for, when they go, and what they sign."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery import bootstrap_tokens
from kone.apimachinery.bootstrap_tokens import AUTHENTICATION, SIGNING
from kone.apimachinery.kinds import CONFIGMAPS, SECRETS
from kone.apimachinery.objects import Object, name_of
from kone.apimachinery.timestamps import format_time
from kone.auth.static_tokens import BootstrapTokens
from kone.controllers.bootstrap_tokens import BOOTSTRAP_SIGNER, TOKEN_CLEANER
from tests.controllers.world import World

ID, SECRET = "07401b", "f395accd246ae52d"
NOW = FakeClock().now()


def token(name: str = ID, secret_type: str = "bootstrap.kubernetes.io/token", **data: str) -> Object:
    texts = {"token-id": name, "token-secret": SECRET, AUTHENTICATION: "true", SIGNING: "true"}
    texts |= {key.replace("_", "-"): text for key, text in data.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": secret_type,
        "metadata": {"name": f"bootstrap-token-{name}", "namespace": "kube-system"},
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()},
    }


@pytest.mark.parametrize(
    ("secret", "good"),
    [
        pytest.param(token(), True, id="good"),
        pytest.param(token(expiration=format_time(NOW + 1)), True, id="not expired yet"),
        pytest.param(token(expiration=format_time(NOW)), False, id="expired"),
        pytest.param(token(expiration="soon"), False, id="until who knows when"),
        pytest.param(token(secret_type="Opaque"), False, id="another type"),
        pytest.param(token(usage_bootstrap_authentication="yes"), False, id="not for authentication"),
        pytest.param(token(token_id="ffffff"), False, id="another name"),
        pytest.param(token(token_secret="short"), False, id="no secret"),
    ],
)
def test_what_a_token_is_good_for(secret: Object, good: bool) -> None:
    assert bootstrap_tokens.usable(secret, AUTHENTICATION, NOW) == ((ID, SECRET) if good else None)


def verifier(secret: Object) -> BootstrapTokens:
    def get(resource: str, namespace: str, name: str) -> Object | None:
        return secret if (resource, namespace, name) == ("secrets", "kube-system", name_of(secret)) else None

    return BootstrapTokens(get, FakeClock())


def test_a_token_stands_for_a_user_of_its_groups() -> None:
    found = verifier(token(auth_extra_groups="system:bootstrappers:b,system:bootstrappers:a")).verify(f"{ID}.{SECRET}")
    assert found is not None
    assert found.user.name == f"system:bootstrap:{ID}"
    groups = ("system:bootstrappers", "system:bootstrappers:a", "system:bootstrappers:b", "system:authenticated")
    assert found.user.groups == groups
    assert verifier(token()).verify(f"{ID}.{SECRET[::-1]}") is None
    assert verifier(token()).verify(f"ffffff.{SECRET}") is None
    assert verifier(token()).verify("no bootstrap token") is None
    with pytest.raises(ValueError, match='bootstrap group "system:masters" is invalid'):
        verifier(token(auth_extra_groups="system:masters")).verify(f"{ID}.{SECRET}")


async def test_a_token_goes_when_its_time_is_over_and_others_stay(world: World) -> None:
    end = world.clock.now() + 100
    world.client.put(SECRETS, token(expiration=format_time(end)))
    world.client.put(SECRETS, token("aaaaaa"))
    world.client.put(SECRETS, token("bbbbbb", secret_type="Opaque", expiration=format_time(end)))
    async with world.running(TOKEN_CLEANER):
        await world.advance(99)
        assert len(world.client.of(SECRETS)) == 3
        await world.advance(1)
        assert {name_of(s) for s in world.client.of(SECRETS)} == {"bootstrap-token-aaaaaa", "bootstrap-token-bbbbbb"}


def cluster_info(**data: str) -> Object:
    meta = {"name": "cluster-info", "namespace": "kube-public"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def decoded(part: str) -> Any:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


async def test_tokens_sign_the_kubeconfig_while_they_may(world: World) -> None:
    world.client.put(CONFIGMAPS, cluster_info(kubeconfig="who we are", **{"jws-kubeconfig-gone": "x", "more": "y"}))
    world.client.put(SECRETS, token(expiration=format_time(world.clock.now() + 100)))
    world.client.put(SECRETS, token("aaaaaa", usage_bootstrap_signing="false"))
    async with world.running(BOOTSTRAP_SIGNER):
        await world.advance(1)
        [info] = world.client.of(CONFIGMAPS)
        assert info["data"].keys() == {"kubeconfig", "more", f"jws-kubeconfig-{ID}"}
        header, content, signature = info["data"][f"jws-kubeconfig-{ID}"].split(".")
        assert json.loads(decoded(header)) == {"alg": "HS256", "kid": ID}
        assert content == ""
        payload = base64.urlsafe_b64encode(b"who we are").decode().rstrip("=")
        expected = hmac.new(SECRET.encode(), f"{header}.{payload}".encode(), hashlib.sha256).digest()
        assert decoded(signature) == expected
        await world.advance(100)
        [info] = world.client.of(CONFIGMAPS)
        assert info["data"] == {"kubeconfig": "who we are", "more": "y"}


async def test_nothing_is_signed_where_there_is_no_kubeconfig(world: World) -> None:
    world.client.put(CONFIGMAPS, cluster_info(other="x"))
    world.client.put(SECRETS, token())
    async with world.running(BOOTSTRAP_SIGNER):
        await world.advance(1)
    assert [info["data"] for info in world.client.of(CONFIGMAPS)] == [{"other": "x"}]
