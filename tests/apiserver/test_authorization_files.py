"""A server whose requests a webhook decides, over real TLS."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.apiserver.outbound import Outbound
from kone.apiserver.webhook_client import WebhookClient
from kone.auth.authentication import Authenticator
from kone.authentication_files import AuthenticationFiles
from kone.authorization_files import AuthorizationFiles
from kone.config import ConfigError, Settings
from tests.apiserver.conftest import Served
from tests.https_server import HttpsServer
from tests.memory_caches import MemoryCaches

CM = "/api/v1/namespaces/ns/configmaps"
AS_ANN: Any = {"Impersonate_User": "ann", "Impersonate_Group": "team"}


class Hook(HttpsServer):
    """Lets ann read, denies her secrets, knows the token "t"; wants a bearer token itself."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, self._reply)
        self.asked: list[Object] = []
        self.file = folder / "hook.kubeconfig"

    async def start(self) -> None:
        await super().start()
        (self.file.parent / "ca.pem").write_text(self.ca_pem)
        cluster = {"server": f"{self.url}/review", "certificate-authority": "ca.pem"}
        said = {
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": "kone"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.file.write_text(json.dumps(said))

    async def _reply(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/review" or request.headers.get("Authorization") != "Bearer kone":
            return web.Response(status=403)
        review = await request.json()
        self.asked.append(review["spec"])
        spec = review["spec"]
        if review["kind"] == "TokenReview":
            known = spec["token"] == "t"
            status: Object = {"authenticated": known, "user": {"username": "ann"} if known else {}}
        else:
            asked = spec.get("resourceAttributes") or {}
            status = {"allowed": spec["user"] == "ann" and asked.get("verb") in ("get", "list")}
            if asked.get("resource") == "secrets":
                status = {"allowed": False, "denied": True, "reason": "no secrets"}
        return web.json_response({**review, "status": status})


@pytest.fixture
async def hook(tmp_path: Path) -> AsyncIterator[Hook]:
    made = Hook(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def webhooks() -> AsyncIterator[WebhookClient]:
    made = WebhookClient(MemoryCaches())  # type: ignore[arg-type]
    yield made
    await made.close()


async def test_requests_and_reviews_are_decided_by_the_webhook(
    served: Served, hook: Hook, webhooks: WebhookClient
) -> None:
    settings = Settings(
        authorization_mode="Webhook,RBAC",
        authorization_webhook_config_file=str(hook.file),
        authorization_webhook_version="v1",
    )
    authorizer = served.server._authorizer
    assert not list(AuthorizationFiles(settings, webhooks, served.small.clock, authorizer).apply())
    assert (await served.call("GET", CM, **AS_ANN))[0] == 200
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    code, said, _ = await served.call("POST", CM, made, **AS_ANN)
    assert code == 403
    assert 'cannot create resource "configmaps"' in said["message"]
    code, said, _ = await served.call("GET", "/api/v1/namespaces/ns/secrets", **AS_ANN)
    assert code == 403
    assert "webhook: no secrets" in said["message"]
    before = len(hook.asked)
    assert (await served.call("GET", CM, **AS_ANN))[0] == 200
    assert len(hook.asked) == before, "the answer is known"
    assert hook.asked[0]["groups"] == ["team", "system:authenticated"]
    assert authorizer.decide(User("ann", groups=("team", "system:authenticated")), _secrets())[0] is None


def _secrets() -> AccessRequest:
    return AccessRequest("list", "", "v1", "secrets", "", "ns", path="/api/v1/namespaces/ns/secrets")


async def test_a_chain_of_a_file_is_followed(
    served: Served, hook: Hook, webhooks: WebhookClient, tmp_path: Path
) -> None:
    def text(*modes: Object) -> str:
        kind = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration"}
        return json.dumps({**kind, "authorizers": modes})

    file = tmp_path / "authorization.json"
    webhook = {
        "timeout": "3s",
        "subjectAccessReviewVersion": "v1",
        "failurePolicy": "Deny",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": str(hook.file)},
    }
    file.write_text(text({"type": "Webhook", "name": "hook", "webhook": webhook}))
    settings = Settings(authorization_config=str(file))
    [reloaded] = AuthorizationFiles(settings, webhooks, served.small.clock, served.server._authorizer).apply()
    assert (await served.call("GET", CM, **AS_ANN))[0] == 200
    await hook.stop()
    code, _, _ = await served.call("GET", f"{CM}/a", **AS_ANN)
    assert code == 403, "who does not answer denies"
    file.write_text(text({"type": "AlwaysAllow", "name": "everybody"}))
    await reloaded.look()
    assert (await served.call("GET", f"{CM}/a", **AS_ANN))[0] == 404
    await hook.start()


async def test_the_webhook_knows_tokens(served: Served, hook: Hook, webhooks: WebhookClient) -> None:
    settings = Settings(
        authentication_token_webhook_config_file=str(hook.file), authentication_token_webhook_version="v1"
    )
    remote, anonymous = AuthenticationFiles(settings, Outbound(), webhooks, served.small.clock).read()
    found = Authenticator((), remote, anonymous)
    for _ in range(3):
        assert (await found.token_user("t")).name == "ann"
        assert (await found.review("u"))["error"] == "invalid bearer token"
    assert len(hook.asked) == 2


async def test_a_kubeconfig_that_is_none_stops_the_start(webhooks: WebhookClient, tmp_path: Path) -> None:
    settings = Settings(authentication_token_webhook_config_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="--authentication-token-webhook-config-file"):
        AuthenticationFiles(settings, Outbound(), webhooks, None).read()  # type: ignore[arg-type]
