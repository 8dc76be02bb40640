"""Questions that are put by a POST, and the tokens of service accounts."""

from __future__ import annotations

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import (
    GVR,
    SERVICEACCOUNTS,
    SUBJECTACCESSREVIEWS,
    TOKENREVIEWS,
)
from kone.apimachinery.objects import Object
from tests.apiserver.conftest import Full

SELFSUBJECTACCESSREVIEWS = GVR("authorization.k8s.io", "v1", "selfsubjectaccessreviews")
SELFSUBJECTRULESREVIEWS = GVR("authorization.k8s.io", "v1", "selfsubjectrulesreviews")
SELFSUBJECTREVIEWS = GVR("authentication.k8s.io", "v1", "selfsubjectreviews")
GET_PODS = {"verb": "get", "resource": "pods", "namespace": "ns"}


def review(gvr: GVR, kind: str, **spec: object) -> Object:
    return {"apiVersion": gvr.api_version, "kind": kind, "metadata": {}, "spec": spec}


async def access(full: Full, **spec: object) -> Object:
    asked = review(SUBJECTACCESSREVIEWS, "SubjectAccessReview", **spec)
    status: Object = (await full.client.create(SUBJECTACCESSREVIEWS, asked))["status"]
    return status


@pytest.mark.parametrize(("groups", "allowed"), [(["system:masters"], True), (["nobodies"], False)])
async def test_whether_somebody_may(full: Full, groups: list[str], allowed: bool) -> None:
    assert (await access(full, user="u", groups=groups, resourceAttributes=GET_PODS))["allowed"] is allowed


async def test_whether_i_may(full: Full) -> None:
    asked = review(
        SELFSUBJECTACCESSREVIEWS, "SelfSubjectAccessReview", nonResourceAttributes={"path": "/", "verb": "get"}
    )
    assert (await full.client.create(SELFSUBJECTACCESSREVIEWS, asked))["status"]["allowed"] is True


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"user": "u"}, "exactly one of nonResourceAttributes or resourceAttributes must be specified"),
        ({"resourceAttributes": GET_PODS}, "at least one of user or group must be specified"),
        ({"user": "u", "resourceAttributes": {"fieldSelector": {}}}, "requirements or rawSelector is required"),
        (
            {"user": "u", "resourceAttributes": {"labelSelector": {"requirements": [{"key": "a", "operator": "In"}]}}},
            "must be specified when `operator` is 'In' or 'NotIn'",
        ),
    ],
)
async def test_questions_that_make_no_sense(full: Full, spec: Object, text: str) -> None:
    with pytest.raises(StatusError) as raised:
        await access(full, **spec)
    assert raised.value.code == 422
    assert text in raised.value.message


async def test_who_i_am(full: Full) -> None:
    answer = await full.client.create(SELFSUBJECTREVIEWS, review(SELFSUBJECTREVIEWS, "SelfSubjectReview"))
    assert answer["status"]["userInfo"]["username"] == "admin"


async def test_what_i_may(full: Full) -> None:
    asked = review(SELFSUBJECTRULESREVIEWS, "SelfSubjectRulesReview", namespace="ns")
    status = (await full.client.create(SELFSUBJECTRULESREVIEWS, asked))["status"]
    assert {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]} in status["resourceRules"]


async def test_a_token_is_its_account(full: Full) -> None:
    await full.client.create(SERVICEACCOUNTS, {"metadata": {"name": "robot"}}, namespace="ns")
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
    answer = await full.client.create(SERVICEACCOUNTS, request, namespace="ns", subresource="token", name="robot")
    asked = review(TOKENREVIEWS, "TokenReview", token=answer["status"]["token"])
    status = (await full.client.create(TOKENREVIEWS, asked))["status"]
    assert status["user"]["username"] == "system:serviceaccount:ns:robot"
    await full.client.delete(SERVICEACCOUNTS, "robot", namespace="ns")
    assert "authenticated" not in (await full.client.create(TOKENREVIEWS, asked))["status"]


async def test_a_token_that_is_none(full: Full) -> None:
    status = (await full.client.create(TOKENREVIEWS, review(TOKENREVIEWS, "TokenReview", token="x")))["status"]
    assert "authenticated" not in status
    with pytest.raises(StatusError, match="token is required") as raised:
        await full.client.create(TOKENREVIEWS, review(TOKENREVIEWS, "TokenReview"))
    assert raised.value.code == 400
