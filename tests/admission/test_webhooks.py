"""Webhooks: who is asked about what, what is sent, and what becomes of the answers."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import pytest

from kone.admission.chain import Chain
from kone.admission.metrics import AdmissionMetrics
from kone.admission.plugin import Attributes
from kone.admission.webhooks import (
    CallFailed,
    MutatingAdmissionWebhook,
    ValidatingAdmissionWebhook,
    finisher,
)
from kone.admission.webhooks_matching import Matcher, rule_matches
from kone.aio.clock import FakeClock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, NAMESPACES, PODS
from kone.apimachinery.objects import Object
from kone.apiserver.webhook_client import webhook_url
from kone.auth.authorizer import Authorizer
from kone.registry.registry import builtin
from tests.admission.support import pod, write
from tests.memory_caches import MemoryCaches

GROUP = "admissionregistration.k8s.io"
MUTATING = GVR(GROUP, "v1", "mutatingwebhookconfigurations")
VALIDATING = GVR(GROUP, "v1", "validatingwebhookconfigurations")
CONFIGMAPS = GVR("", "v1", "configmaps")
RULE = {"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "scope": "*"}
Answer = Callable[[Object], Mapping[str, Any]]


class Webhooks:
    """Answers by the name in the URL's path; remembers what it was asked."""

    def __init__(self, **answers: Answer | Exception) -> None:
        self.answers, self.asked = answers, list[tuple[str, Object]]()

    async def call(self, config: Mapping[str, Any], body: Object, *, timeout_s: float) -> Any:
        name = config["url"].rpartition("/")[2]
        self.asked.append((name, body))
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        response = {"uid": body["request"]["uid"], **answer(body["request"])}
        return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}


def allow(request: Object) -> Mapping[str, Any]:
    return {"allowed": True}


def patch(*operations: Object) -> Answer:
    text = base64.b64encode(orjson.dumps(list(operations))).decode()
    return lambda request: {"allowed": True, "patchType": "JSONPatch", "patch": text}


def label(key: str) -> Answer:
    def answer(request: Object) -> Mapping[str, Any]:
        labels = {**(request["object"]["metadata"].get("labels") or {})}
        labels[key] = str(len(labels))
        return patch({"op": "add", "path": "/metadata/labels", "value": labels})(request)

    return answer


def hook(name: str, **fields: Any) -> Object:
    config = {"url": f"https://example.com/{name}"}
    versions = ["v1"]
    return {
        "name": f"{name}.example.com",
        "clientConfig": config,
        "rules": [RULE],
        "admissionReviewVersions": versions,
        **fields,
    }


class World:
    def __init__(self, webhooks: Webhooks, *, mutating: list[Object] = [], validating: list[Object] = []) -> None:  # noqa: B006
        self.caches = MemoryCaches()
        labels = {"kubernetes.io/metadata.name": "ns", "team": "a"}
        self.caches.put(NAMESPACES, {"metadata": {"name": "ns", "labels": labels}})
        if mutating:
            self.caches.put(MUTATING, {"metadata": {"name": "m"}, "webhooks": mutating})
        if validating:
            self.caches.put(VALIDATING, {"metadata": {"name": "v"}, "webhooks": validating})
        registry = builtin()
        matcher, authorizer = Matcher(self.caches, registry), Authorizer(self.caches, [])
        self.metrics = AdmissionMetrics(FakeClock())
        self.chain = Chain(
            [
                MutatingAdmissionWebhook(self.caches, matcher, webhooks, authorizer, self.metrics, finisher(registry)),
                ValidatingAdmissionWebhook(self.caches, matcher, webhooks, authorizer, self.metrics),
            ],
            self.metrics,
        )

    def counted(self, family: str) -> list[str]:
        """The lines of one of the metrics' families."""
        head = f"apiserver_admission_{family}{{"
        return [line.removeprefix("apiserver_admission_") for line in self.metrics.text() if line.startswith(head)]

    async def admit(self, a: Attributes) -> Attributes:
        await self.chain.mutate(a)
        await self.chain.validate(a)
        return a

    async def refusal(self, a: Attributes) -> StatusError:
        with pytest.raises(StatusError) as caught:
            await self.admit(a)
        return caught.value


async def test_a_webhook_sees_the_whole_request() -> None:
    webhooks = Webhooks(x=allow)
    await World(webhooks, validating=[hook("x")]).admit(write("CREATE", pod()))
    request = webhooks.asked[0][1]["request"]
    assert request["kind"] == {"group": "", "version": "v1", "kind": "Pod"}
    assert request["resource"] == request["requestResource"] == {"group": "", "version": "v1", "resource": "pods"}
    assert (request["operation"], request["namespace"], request["dryRun"]) == ("CREATE", "ns", False)
    assert request["object"]["kind"] == "Pod"
    assert request["oldObject"] is None
    assert request["userInfo"]["username"]


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        ({"message": "no", "code": 403, "reason": "Forbidden"}, 403, "denied the request: no"),
        ({"reason": "Because"}, 400, "denied the request: Because"),
        (None, 400, "denied the request without explanation"),
        ({"message": "no", "code": 200}, 400, "denied the request: no"),
    ],
)
async def test_a_denial_carries_the_webhooks_status(status: Object | None, code: int, text: str) -> None:
    webhooks = Webhooks(x=lambda request: {"allowed": False, "status": status})
    error = await World(webhooks, validating=[hook("x")]).refusal(write("CREATE", pod()))
    assert error.code == code
    assert str(error) == f'admission webhook "x.example.com" {text}'


async def test_a_webhook_that_is_down_is_as_good_as_its_failure_policy() -> None:
    down = CallFailed('Post "https://example.com/x": dial tcp: connection refused')
    error = await World(Webhooks(x=down), validating=[hook("x")]).refusal(write("CREATE", pod()))
    assert (error.code, str(error)) == (
        500,
        'Internal error occurred: failed calling webhook "x.example.com": failed to call webhook: '
        'Post "https://example.com/x": dial tcp: connection refused',
    )
    await World(Webhooks(x=down), validating=[hook("x", failurePolicy="Ignore")]).admit(write("CREATE", pod()))


async def test_an_answer_to_another_question_is_a_failure() -> None:
    webhooks = Webhooks(x=lambda request: {"allowed": True, "uid": "other"})
    error = await World(webhooks, validating=[hook("x")]).refusal(write("CREATE", pod()))
    assert "expected response.uid=" in str(error)
    assert str(error).endswith('got "other"')


async def test_patches_build_on_each_other_and_get_defaults() -> None:
    container = {"name": "late", "image": "i"}
    webhooks = Webhooks(a=patch({"op": "add", "path": "/spec/initContainers", "value": [container]}), b=label("b"))
    a = await World(webhooks, mutating=[hook("a"), hook("b")]).admit(write("CREATE", pod()))
    assert a.object["metadata"]["labels"]["b"]
    assert a.object["spec"]["initContainers"][0]["terminationMessagePath"] == "/dev/termination-log"
    assert webhooks.asked[1][1]["request"]["object"]["spec"]["initContainers"]


async def test_who_went_before_looks_again_once_where_it_wants_to() -> None:
    webhooks = Webhooks(a=label("a"), b=label("b"), c=label("c"))
    hooks = [hook("a", reinvocationPolicy="IfNeeded"), hook("b", reinvocationPolicy="Never"), hook("c")]
    await World(webhooks, mutating=hooks).admit(write("CREATE", pod()))
    assert [name for name, _ in webhooks.asked] == ["a", "b", "c", "a"]


async def test_warnings_and_audit_annotations_are_handed_on() -> None:
    webhooks = Webhooks(x=lambda request: {"allowed": True, "warnings": ["w"], "auditAnnotations": {"k": "v"}})
    a = await World(webhooks, validating=[hook("x")]).admit(write("CREATE", pod()))
    assert a.warnings == ["w"]
    assert a.annotations == {"x.example.com/k": "v"}


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"namespaceSelector": {"matchLabels": {"team": "a"}}}, True),
        ({"namespaceSelector": {"matchLabels": {"team": "b"}}}, False),
        ({"objectSelector": {"matchLabels": {"x": "y"}}}, False),
        ({"matchConditions": [{"name": "c", "expression": "request.userInfo.username != ''"}]}, True),
        ({"matchConditions": [{"name": "c", "expression": "object.metadata.name == 'other'"}]}, False),
        ({"matchConditions": [{"name": "c", "expression": "authorizer.path('/x').check('get').allowed()"}]}, False),
    ],
)
async def test_selectors_and_conditions_say_what_is_asked_about(fields: Object, asked: bool) -> None:
    webhooks = Webhooks(x=allow)
    await World(webhooks, validating=[hook("x", **fields)]).admit(write("CREATE", pod()))
    assert bool(webhooks.asked) is asked


async def test_a_condition_that_cannot_be_judged_is_a_refusal_or_a_leave() -> None:
    conditions = [{"name": "c", "expression": "object.zz == 1"}]
    webhooks = Webhooks(x=allow)
    error = await World(webhooks, validating=[hook("x", matchConditions=conditions)]).refusal(write("CREATE", pod()))
    assert error.code == 403
    assert "expression 'object.zz == 1' resulted in error: no such key: zz" in str(error)
    ignoring = hook("x", matchConditions=conditions, failurePolicy="Ignore")
    await World(webhooks, validating=[ignoring]).admit(write("CREATE", pod()))
    assert not webhooks.asked


async def test_no_webhook_stands_in_the_way_of_mending_webhooks() -> None:
    webhooks = Webhooks(x=CallFailed("down"))
    configuration = {"kind": "ValidatingWebhookConfiguration", "metadata": {"name": "v"}}
    await World(webhooks, validating=[hook("x")]).admit(write("UPDATE", configuration, VALIDATING, old=configuration))


@pytest.mark.parametrize(
    ("changes", "matches"),
    [
        ({}, True),
        ({"operations": ["DELETE"]}, False),
        ({"resources": ["pods"]}, True),
        ({"resources": ["pods/status"]}, False),
        ({"resources": ["pods/*"]}, True),
        ({"resources": ["*/*"]}, True),
        ({"apiGroups": ["apps"]}, False),
        ({"apiVersions": ["v1"]}, True),
        ({"scope": "Cluster"}, False),
        ({"scope": "Namespaced"}, True),
    ],
)
def test_rules(changes: Object, matches: bool) -> None:
    assert rule_matches({**RULE, **changes}, write("CREATE", pod()), PODS) is matches


def test_where_a_webhook_is_asked() -> None:
    service = {"name": "s", "namespace": "n", "path": "/p", "port": 443}
    assert str(webhook_url({"service": service}, 10)) == "https://s.n.svc:443/p?timeout=10s"
    assert str(webhook_url({"url": "https://h/p"}, 5)) == "https://h/p?timeout=5s"


# -- what is counted -------------------------------------------------------------------------------------------------


async def test_questions_to_webhooks_are_counted_by_their_answers() -> None:
    no = {"status": {"code": 418, "message": "no"}}
    webhooks = Webhooks(yes=allow, no=lambda request: {"allowed": False, **no}, gone=CallFailed("refused"))
    await World(webhooks, mutating=[hook("yes")]).admit(write("CREATE", pod()))
    world = World(webhooks, mutating=[hook("yes"), hook("gone", failurePolicy="Ignore")], validating=[hook("no")])
    await world.refusal(write("CREATE", pod()))
    request = 'webhook_request_total{name="%s.example.com",type="%s",operation="CREATE",code="%d",rejected="%s"} 1'
    assert world.counted("webhook_request_total") == [
        request % ("gone", "admit", 503, "false"),
        request % ("no", "validating", 418, "true"),
        request % ("yes", "admit", 200, "false"),
    ]
    assert world.counted("webhook_rejection_count") == [
        'webhook_rejection_count{name="no.example.com",type="validating",operation="CREATE",error_type="no_error",'
        'rejection_code="418"} 1'
    ]
    assert world.counted("webhook_fail_open_count") == [
        'webhook_fail_open_count{name="gone.example.com",type="admit"} 1'
    ]


async def test_passes_are_counted_by_whether_they_refuse() -> None:
    world = World(Webhooks(gone=CallFailed("refused")), validating=[hook("gone")])
    await world.refusal(write("CREATE", pod()))
    counted = (world.counted(f"{of}_admission_duration_seconds_count") for of in ("step", "controller"))
    counts = [line for lines in counted for line in lines]
    assert counts == [
        'step_admission_duration_seconds_count{type="admit",operation="CREATE",rejected="false"} 1',
        'step_admission_duration_seconds_count{type="validate",operation="CREATE",rejected="true"} 1',
        'controller_admission_duration_seconds_count{name="MutatingAdmissionWebhook",type="admit",operation="CREATE",'
        'rejected="false"} 1',
        'controller_admission_duration_seconds_count{name="ValidatingAdmissionWebhook",type="validate",'
        'operation="CREATE",rejected="true"} 1',
    ]
