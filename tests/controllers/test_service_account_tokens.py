"""Token secrets: filled for their account, gone with it."""

import base64

from kone.apimachinery.kinds import SECRETS, SERVICEACCOUNTS
from kone.apimachinery.objects import Object, name_of
from kone.controllers.controller import Settings
from kone.controllers.service_account_tokens import TOKENS_CONTROLLER
from tests.controllers.world import World

SETTINGS = Settings(
    ca_pem="PEM", sign_account_token=lambda account, secret: f"token of {name_of(account)} in {name_of(secret)}"
)


def account(name: str = "robot", **more: object) -> Object:
    meta = {"name": name, "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, **more}


def token_secret(name: str = "t", of: str = "robot", kind: str = "kubernetes.io/service-account-token") -> Object:
    annotations = {"kubernetes.io/service-account.name": of}
    meta = {"name": name, "namespace": "shop", "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": meta}


def decoded(secret: Object) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


async def test_a_secret_is_filled_for_its_account(world: World) -> None:
    async with world.running(TOKENS_CONTROLLER, settings=SETTINGS):
        owner = await world.put(SERVICEACCOUNTS, account())
        made = await world.put(SECRETS, token_secret())
        found = world.client.look(SECRETS, made)
        assert decoded(found) == {"ca.crt": "PEM", "namespace": "shop", "token": "token of robot in t"}
        assert found["metadata"]["annotations"]["kubernetes.io/service-account.uid"] == owner["metadata"]["uid"]


async def test_what_is_there_stays_but_an_old_ca(world: World) -> None:
    data = {"token": base64.b64encode(b"mine").decode(), "ca.crt": base64.b64encode(b"old").decode()}
    async with world.running(TOKENS_CONTROLLER, settings=SETTINGS):
        await world.put(SERVICEACCOUNTS, account())
        made = await world.put(SECRETS, {**token_secret(), "data": data})
        found = decoded(world.client.look(SECRETS, made))
        assert (found["token"], found["ca.crt"]) == ("mine", "PEM")


async def test_secrets_go_with_their_account_and_without_one(world: World) -> None:
    async with world.running(TOKENS_CONTROLLER, settings=SETTINGS):
        await world.put(SECRETS, token_secret("early"))
        await world.put(SERVICEACCOUNTS, account())
        await world.put(SECRETS, token_secret())
        await world.put(SECRETS, token_secret("other", kind="Opaque"))
        assert [name_of(secret) for secret in world.client.of(SECRETS)] == ["other", "t"]
        await world.client.delete(SERVICEACCOUNTS, "robot", namespace="shop")
        await world.settle()
        assert [name_of(secret) for secret in world.client.of(SECRETS)] == ["other"]


async def test_an_account_of_the_same_name_does_not_inherit(world: World) -> None:
    async with world.running(TOKENS_CONTROLLER, settings=SETTINGS):
        await world.put(SERVICEACCOUNTS, account())
        await world.put(SECRETS, token_secret())
        await world.client.delete(SERVICEACCOUNTS, "robot", namespace="shop")
        await world.put(SERVICEACCOUNTS, account())
        assert world.client.of(SECRETS) == []


async def test_an_account_lists_no_secret_that_has_gone(world: World) -> None:
    async with world.running(TOKENS_CONTROLLER, settings=SETTINGS):
        owner = await world.put(SERVICEACCOUNTS, account(secrets=[{"name": "t"}, {"name": "kept"}]))
        await world.put(SECRETS, token_secret())
        await world.client.delete(SECRETS, "t", namespace="shop")
        await world.settle()
        assert world.client.look(SERVICEACCOUNTS, owner)["secrets"] == [{"name": "kept"}]
