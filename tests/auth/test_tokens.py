"""Service account tokens: what a TokenRequest answers, and when a token stops being good."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import NODES, PODS, SECRETS, SERVICEACCOUNTS
from kone.apimachinery.objects import Object, replace_in
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.auth.pki import _new_key, _private_pem
from kone.auth.tokens import ServiceAccountTokens
from tests.memory_caches import MemoryCaches

KEY = _private_pem(_new_key())
ISSUER = "https://kubernetes.default"


def named(kind: str, name: str, namespace: str = "ns", **more: Any) -> Object:
    metadata: Object = {"name": name, "uid": f"{name}-uid"}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.caches = MemoryCaches()
        self.caches.put(SERVICEACCOUNTS, named("ServiceAccount", "sa"))
        self.caches.put(SECRETS, named("Secret", "sec"))
        self.caches.put(NODES, named("Node", "n1", ""))
        self.caches.put(PODS, named("Pod", "p", spec={"serviceAccountName": "sa", "nodeName": "n1"}))
        self.caches.put(PODS, named("Pod", "po", spec={"serviceAccountName": "default"}))
        self.tokens = ServiceAccountTokens(KEY, self.get, self.clock)

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        entry = self.caches.of("", resource).get(namespace, name)
        return entry.obj if entry else None

    def request(self, name: str = "sa", **spec: Any) -> Object:
        return self.tokens.request("ns", name, {"metadata": {}, "spec": spec})

    def token(self, **spec: Any) -> str:
        return str(self.request(**spec)["status"]["token"])

    def bound(self, kind: str, name: str, **spec: Any) -> str:
        return self.token(boundObjectRef={"apiVersion": "v1", "kind": kind, "name": name}, **spec)

    def user(self, token: str) -> User | None:
        found = self.tokens.verify(token)
        return found.user if found else None


@pytest.fixture
def world() -> World:
    return World()


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return found


def test_an_empty_request_is_an_hour_for_the_api_server(world: World) -> None:
    answer = world.request()
    assert answer["spec"] == {"audiences": [ISSUER], "expirationSeconds": 3600, "boundObjectRef": None}
    assert answer["metadata"] == {
        "name": "sa",
        "namespace": "ns",
        "uid": "sa-uid",
        "creationTimestamp": format_time(world.clock.now()),
    }
    assert answer["status"]["expirationTimestamp"] == format_time(world.clock.now() + 3600)


def test_the_claims_are_upstreams(world: World) -> None:
    claims = claims_of(world.bound("Pod", "p"))
    now = int(world.clock.now())
    assert claims.pop("jti")
    assert claims == {
        "aud": [ISSUER],
        "iss": ISSUER,
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "sub": "system:serviceaccount:ns:sa",
        "kubernetes.io": {
            "namespace": "ns",
            "serviceaccount": {"name": "sa", "uid": "sa-uid"},
            "pod": {"name": "p", "uid": "p-uid"},
            "node": {"name": "n1", "uid": "n1-uid"},
        },
    }


def test_a_projected_token_lives_a_year_and_warns_after_an_hour(world: World) -> None:
    claims = claims_of(world.bound("Pod", "p", expirationSeconds=3607))
    now = int(world.clock.now())
    assert claims["exp"] == now + 365 * 24 * 3600
    assert claims["kubernetes.io"]["warnafter"] == now + 3607
    elsewhere = claims_of(world.bound("Pod", "p", expirationSeconds=3607, audiences=["vault"]))
    assert elsewhere["exp"] == now + 3607


def test_the_user_of_a_pods_token(world: World) -> None:
    token = world.bound("Pod", "p")
    assert world.user(token) == User(
        "system:serviceaccount:ns:sa",
        "sa-uid",
        ("system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"),
        {
            "authentication.kubernetes.io/pod-name": ("p",),
            "authentication.kubernetes.io/pod-uid": ("p-uid",),
            "authentication.kubernetes.io/credential-id": (f"JTI={claims_of(token)['jti']}",),
            "authentication.kubernetes.io/node-name": ("n1",),
            "authentication.kubernetes.io/node-uid": ("n1-uid",),
        },
    )


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        (
            {"expirationSeconds": 599},
            422,
            'TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 599: '
            "may not specify a duration less than 10 minutes",
        ),
        (
            {"expirationSeconds": (1 << 32) + 1},
            422,
            'TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 4294967297: '
            "may not specify a duration larger than 2^32 seconds",
        ),
        (
            {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "po"}},
            400,
            'cannot bind token for serviceaccount "sa" to pod running with different serviceaccount name.',
        ),
        (
            {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "wrong"}},
            409,
            'Operation cannot be fulfilled on Pod "p": the UID in the bound object reference (wrong) does not match '
            "the UID in record. The object might have been deleted and then recreated",
        ),
        ({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "none"}}, 404, 'pods "none" not found'),
        ({"boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": "none"}}, 404, 'nodes "none" not found'),
        (
            {"boundObjectRef": {"apiVersion": "v1", "kind": "ConfigMap", "name": "x"}},
            400,
            "cannot bind token to object of type /v1, Kind=ConfigMap",
        ),
    ],
)
def test_refused_requests(world: World, spec: Object, code: int, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        world.request(**spec)
    assert (caught.value.code, caught.value.message) == (code, message)


def test_an_account_that_is_not_there(world: World) -> None:
    with pytest.raises(StatusError, match='serviceaccounts "none" not found'):
        world.request("none")


def test_another_name_in_the_body(world: World) -> None:
    with pytest.raises(StatusError, match="must match the service account name if specified"):
        world.tokens.request("ns", "sa", {"metadata": {"name": "other"}})


async def test_a_token_ends_with_its_time(world: World) -> None:
    token = world.token(expirationSeconds=600)
    await world.clock.advance(659)
    assert world.user(token)
    await world.clock.advance(2)
    with pytest.raises(ValueError, match="service account token has expired"):
        world.user(token)


@pytest.mark.parametrize(("kind", "name", "resource"), [("Pod", "p", "pods"), ("Secret", "sec", "secrets")])
def test_a_token_ends_with_what_it_is_bound_to(world: World, kind: str, name: str, resource: str) -> None:
    token = world.bound(kind, name)
    assert world.user(token)
    world.caches.of("", resource).remove("ns", name)
    with pytest.raises(ValueError, match="service account token has been invalidated"):
        world.user(token)


def test_a_recreated_pod_of_the_same_name_is_another(world: World) -> None:
    token = world.bound("Pod", "p")
    again = replace_in(named("Pod", "p"), ("metadata", "uid"), "second")
    world.caches.put(PODS, again)
    with pytest.raises(ValueError, match=r"pod UID \(second\) does not match service account pod ref claim \(p-uid\)"):
        world.user(token)


async def test_an_ending_pod_keeps_its_token_for_a_minute(world: World) -> None:
    token = world.bound("Pod", "p")
    ending = named("Pod", "p")
    ending["metadata"]["deletionTimestamp"] = format_time(world.clock.now())
    world.caches.put(PODS, ending)
    await world.clock.advance(59)
    assert world.user(token)
    await world.clock.advance(3)
    with pytest.raises(ValueError, match="invalidated"):
        world.user(token)


def test_a_deleted_account_ends_all_its_tokens(world: World) -> None:
    token = world.token()
    world.caches.of("", "serviceaccounts").remove("ns", "sa")
    with pytest.raises(ValueError, match='serviceaccount "sa" not found'):
        world.user(token)


def test_audiences(world: World) -> None:
    token = world.token(audiences=["vault", "db"])
    with pytest.raises(ValueError) as caught:
        world.tokens.verify(token)
    assert str(caught.value) == (f'token audiences ["vault" "db"] is invalid for the target audiences ["{ISSUER}"]')
    found = world.tokens.verify(token, ["db", "else"])
    assert found is not None
    assert found.audiences == ("db",)


@pytest.mark.parametrize("token", ["bad", "a.b.c", "", "e30.e30.e30"])
def test_what_is_no_token_of_ours_is_left_to_others(world: World, token: str) -> None:
    assert world.tokens.verify(token) is None


def test_a_forged_signature(world: World) -> None:
    forger = ServiceAccountTokens(_private_pem(_new_key()), world.get, world.clock)
    token = forger.request("ns", "sa", {})["status"]["token"]
    with pytest.raises(ValueError, match="invalid signature, no keys found"):
        world.tokens.verify(token)
    head, _, signature = world.token().split(".")
    payload = base64.urlsafe_b64encode(json.dumps({"iss": ISSUER, "sub": "x"}).encode()).decode().rstrip("=")
    with pytest.raises(ValueError, match="cryptographic primitive"):
        world.tokens.verify(f"{head}.{payload}.{signature}")


def test_tokens_of_a_rotated_key_still_verify(world: World) -> None:
    token = world.token()
    rotated = ServiceAccountTokens(_private_pem(_new_key()), world.get, world.clock, older_keys_pem=[KEY])
    assert rotated.verify(token)


def test_outsiders_can_verify_by_oidc_discovery(world: World) -> None:
    document = world.tokens.openid_configuration("https://192.0.2.7:6443/openid/v1/jwks")
    assert document == {
        "issuer": ISSUER,
        "jwks_uri": "https://192.0.2.7:6443/openid/v1/jwks",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }
    token = world.token(audiences=["outside"])
    kid = jwt.get_unverified_header(token)["kid"]
    key = next(key for key in world.tokens.jwks()["keys"] if key["kid"] == kid)
    options: Any = {"verify_exp": False}
    read = jwt.decode(token, jwt.PyJWK(key).key, algorithms=[key["alg"]], audience="outside", options=options)
    assert read["sub"] == "system:serviceaccount:ns:sa"


# Lasting tokens in secrets


def put_token(world: World, token: str, **meta: Any) -> None:
    secret = named("Secret", "sec", data={"token": base64.b64encode(token.encode()).decode()})
    secret["metadata"] |= meta
    world.caches.put(SECRETS, secret)


def lasting(world: World) -> str:
    return world.tokens.of_secret(named("ServiceAccount", "sa"), named("Secret", "sec"))


def test_a_secrets_token_stands_for_its_account(world: World) -> None:
    token = lasting(world)
    put_token(world, token)
    user = world.user(token)
    assert user is not None
    assert (user.name, user.uid) == ("system:serviceaccount:ns:sa", "sa-uid")
    assert "exp" not in claims_of(token)


INVALID = {"kubernetes.io/legacy-token-invalid-since": "2023-11-14"}
REBORN = replace_in(named("ServiceAccount", "sa"), ("metadata", "uid"), "x")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w, token: w.caches.of("", "secrets").remove("ns", "sec"), "Token has been invalidated"),
        (lambda w, token: put_token(w, "another"), "Token does not match server's copy"),
        (lambda w, token: w.caches.put(SERVICEACCOUNTS, REBORN), r"ServiceAccount UID \(x\) does not match claim"),
        (lambda w, token: put_token(w, token, labels=INVALID), "has been marked invalid"),
    ],
)
def test_a_secrets_token_ends_with_what_it_stands_on(world: World, change: Any, why: str) -> None:
    token = lasting(world)
    put_token(world, token)
    change(world, token)
    with pytest.raises(ValueError, match=why):
        world.user(token)
