"""Webhooks that know tokens and webhooks that decide, apart from the network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.auth.authorization_config import parse_config
from kone.auth.authorizer import Unasked
from kone.auth.review_webhook import ReviewWebhook, Trouble
from kone.auth.webhook_authorizer import WebhookAuthorizer, WebhookRules
from kone.auth.webhook_tokens import WebhookTokens

ANN = User("ann", "7", ("team", "system:authenticated"), {"k": ("v",)})
PODS = AccessRequest("list", "", "v1", "pods", "", "ns", fields=(("spec.nodeName", "=", "n"), ("a", "!=", "b")))


class Remote:
    """Answers by `status`, a review's; remembers what it was asked."""

    def __init__(self, **status: Any) -> None:
        self.clock = FakeClock()
        self.status: Object = status
        self.failures: list[Exception | None] = []
        self.asked: list[Object] = []

    async def post(self, body: Object) -> Object:
        self.asked.append(body)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return {**body, "status": self.status}

    def tokens(self, version: str = "v1") -> WebhookTokens:
        return WebhookTokens(ReviewWebhook(self.post, "authentication.k8s.io", version, "TokenReview", self.clock))

    def authorizer(self, **rules: Any) -> WebhookAuthorizer:
        webhook = ReviewWebhook(self.post, "authorization.k8s.io", "v1", "SubjectAccessReview", self.clock)
        return WebhookAuthorizer(webhook, WebhookRules(**rules), self.clock)


async def decided(authorizer: WebhookAuthorizer, user: User = ANN, request: AccessRequest = PODS) -> Any:
    """As a request is served: asked where it has to be, then decided."""
    try:
        return authorizer.allowed(user, request)
    except Unasked as question:
        await question.ask()
    return authorizer.allowed(user, request)


# -- tokens ------------------------------------------------------------------------------------------------------------


async def test_a_token_is_whom_the_webhook_says() -> None:
    user = {"username": "ann", "uid": "7", "groups": ["team"], "extra": {"k": ["v"]}}
    remote = Remote(authenticated=True, user=user)
    found = await remote.tokens("v1beta1").verify("secret")
    assert found is not None
    assert found.user == ANN
    assert found.audiences == ("https://kubernetes.default",)
    [asked] = remote.asked
    assert (asked["apiVersion"], asked["kind"]) == ("authentication.k8s.io/v1beta1", "TokenReview")
    assert asked["spec"] == {"token": "secret", "audiences": ["https://kubernetes.default"]}


@pytest.mark.parametrize(
    ("theirs", "wanted", "good"),
    [([], [], ("https://kubernetes.default",)), ([], ["vault"], None), (["vault", "x"], ["y", "vault"], ("vault",))],
)
async def test_a_webhook_may_speak_of_audiences(theirs: list[str], wanted: list[str], good: Any) -> None:
    found = await Remote(authenticated=True, user={"username": "a"}, audiences=theirs).tokens().verify("t", wanted)
    assert (found.audiences if found else None) == good


async def test_a_token_that_is_not_known_and_one_that_is_refused() -> None:
    assert await Remote(authenticated=False).tokens().verify("t") is None
    with pytest.raises(ValueError, match="it has expired"):
        await Remote(authenticated=False, error="it has expired").tokens().verify("t")


async def test_a_webhook_that_is_in_trouble_is_asked_five_times() -> None:
    remote = Remote(authenticated=True, user={"username": "a"})
    remote.failures = [Trouble("later")] * 4
    task = asyncio.create_task(remote.tokens().verify("t"))
    await remote.clock.advance(10.0)
    assert (await task) is not None
    assert len(remote.asked) == 5
    remote.failures = [Trouble("still")] * 5
    task = asyncio.create_task(remote.tokens().verify("t"))
    await remote.clock.advance(10.0)
    assert isinstance(task.exception(), Trouble)
    remote.failures = [ValueError("connection refused")]
    with pytest.raises(ValueError, match="connection refused"):
        await remote.tokens().verify("t")


# -- access ------------------------------------------------------------------------------------------------------------


async def test_the_webhook_is_asked_by_a_review_of_what_is_wanted() -> None:
    remote = Remote(allowed=True, reason="because")
    assert await decided(remote.authorizer()) == (True, "because")
    requirements = [
        {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
        {"key": "a", "operator": "NotIn", "values": ["b"]},
    ]
    assert remote.asked[0]["spec"] == {
        "user": "ann",
        "uid": "7",
        "groups": ["team", "system:authenticated"],
        "extra": {"k": ["v"]},
        "resourceAttributes": {
            "namespace": "ns",
            "verb": "list",
            "version": "v1",
            "resource": "pods",
            "fieldSelector": {"requirements": requirements},
        },
    }
    await decided(remote.authorizer(), ANN, AccessRequest("get", path="/version"))
    assert remote.asked[1]["spec"]["nonResourceAttributes"] == {"path": "/version", "verb": "get"}


@pytest.mark.parametrize(
    ("status", "verdict"),
    [({"allowed": True}, True), ({"allowed": False}, False), ({"denied": True}, None), ({}, False)],
)
async def test_yes_no_opinion_and_no(status: Object, verdict: bool | None) -> None:
    assert (await decided(Remote(**status).authorizer()))[0] is verdict


@pytest.mark.parametrize(("denies", "verdict"), [(False, False), (True, None)])
async def test_a_webhook_that_does_not_answer_decides_by_its_policy(denies: bool, verdict: bool | None) -> None:
    remote = Remote(allowed=True)
    remote.failures = [ValueError("connection refused")]
    authorizer = remote.authorizer(denies=denies)
    assert (await decided(authorizer))[0] is verdict
    await remote.clock.advance(2.0)  # which is not kept
    assert (await decided(authorizer))[0] is True


async def test_answers_hold_for_their_time_and_a_second_at_least() -> None:
    remote = Remote(allowed=True)
    authorizer = remote.authorizer(authorized_s=60.0, unauthorized_s=0.0)
    await decided(authorizer)
    await remote.clock.advance(59.0)
    await decided(authorizer)
    assert len(remote.asked) == 1
    await remote.clock.advance(2.0)
    remote.status = {"allowed": False}
    assert (await decided(authorizer))[0] is False
    assert len(remote.asked) == 2
    await remote.clock.advance(1.5)
    await decided(authorizer)
    assert len(remote.asked) == 3


# -- the configuration -------------------------------------------------------------------------------------------------


def config(path: str, **webhook: Any) -> str:
    said = {
        "timeout": "3s",
        "subjectAccessReviewVersion": "v1",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "failurePolicy": "Deny",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": path},
        **webhook,
    }
    chain = [{"type": "Node", "name": "node"}, {"type": "Webhook", "name": "hook", "webhook": said}]
    kind = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration"}
    return json.dumps({**kind, "authorizers": [*chain, {"type": "RBAC", "name": "rbac"}]})


@pytest.fixture
def kubeconfig(tmp_path: Any) -> str:
    path = tmp_path / "hook.kubeconfig"
    path.write_text("{}")
    return str(path)


async def test_the_chain_of_a_file_and_its_conditions(kubeconfig: str) -> None:
    conditions = ["has(request.resourceAttributes)", "request.resourceAttributes.namespace != 'kube-system'"]
    modes = parse_config(config(kubeconfig, matchConditions=[{"expression": each} for each in conditions]))
    assert [(mode.type, mode.name) for mode in modes] == [("Node", "node"), ("Webhook", "hook"), ("RBAC", "rbac")]
    found = modes[1].webhook
    assert found is not None
    assert (found.timeout_s, found.rules.authorized_s, found.rules.unauthorized_s) == (3.0, 300.0, 30.0)
    remote = Remote(allowed=True)
    webhook = ReviewWebhook(remote.post, "authorization.k8s.io", "v1", "SubjectAccessReview", remote.clock)
    authorizer = WebhookAuthorizer(webhook, found.rules, remote.clock)
    assert authorizer.allowed(ANN, AccessRequest("get", path="/version")) == (False, "")
    system = AccessRequest("get", "", "v1", "pods", "", "kube-system", "a")
    assert authorizer.allowed(ANN, system) == (False, "")
    assert (await decided(authorizer))[0] is True
    assert len(remote.asked) == 1


def test_a_condition_that_cannot_be_told_is_as_a_webhook_that_does_not_answer(kubeconfig: str) -> None:
    condition: Callable[[str], list[Object]] = lambda text: [{"expression": text}]  # noqa: E731
    for text, verdict in (("request.extra['none'][0] == 'a'", None), ("request.user == 'bob'", False)):
        found = parse_config(config(kubeconfig, matchConditions=condition(text)))[1].webhook
        assert found is not None
        authorizer = WebhookAuthorizer(None, found.rules, FakeClock())  # type: ignore[arg-type]
        assert authorizer.allowed(ANN, PODS)[0] is verdict


@pytest.mark.parametrize(
    ("webhook", "why"),
    [
        ({"timeout": ""}, "authorizers[1].timeout: Required value"),
        ({"timeout": "31s"}, 'authorizers[1].timeout: Invalid value: "31s": must be > 0s and <= 30s'),
        (
            {"failurePolicy": "Allow"},
            'authorizers[1].failurePolicy: Unsupported value: "Allow": supported values: "NoOpinion", "Deny"',
        ),
        (
            {"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "here"}},
            'authorizers[1].connectionInfo.kubeConfigFile: Invalid value: "here": must be an absolute path',
        ),
        (
            {"matchConditions": [{"expression": "request.user"}]},
            'authorizers[1].matchConditions[0].expression: Invalid value: "request.user": must evaluate to bool',
        ),
        (
            {"matchConditions": [{"expression": "true"}], "matchConditionSubjectAccessReviewVersion": ""},
            "authorizers[1].matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are "
            "specified",
        ),
    ],
)
def test_what_a_webhook_of_a_file_may_not_be(kubeconfig: str, webhook: Object, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_config(config(kubeconfig, **webhook))
    assert str(caught.value) == why


def test_a_chain_has_names_and_each_mode_once() -> None:
    rbac = {"type": "RBAC", "name": "a"}
    kind = {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration"}
    for chain, why in (
        ([], "authorizers: Required value: at least one authorization mode must be defined"),
        ([{"type": "ABAC", "name": "a"}], 'authorizers[0].type: Unsupported value: "ABAC": supported values'),
        (
            [rbac, {**rbac, "name": "b"}],
            'authorizers[1].type: Duplicate value: "RBAC"',
        ),
        ([rbac, {"type": "Node", "name": "a"}], 'authorizers[1].name: Duplicate value: "a"'),
        ([{"type": "Webhook", "name": "a"}], "authorizers[0].webhook: Required value: required when type=Webhook"),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            parse_config(json.dumps({**kind, "authorizers": chain}))
        assert str(caught.value).startswith(why)
