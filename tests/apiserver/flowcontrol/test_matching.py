"""Which schema has a request, and how flows are dealt queues."""

from __future__ import annotations

import pytest

from kone.apimachinery.objects import Object
from kone.apimachinery.users import User, service_account_user
from kone.apiserver.flowcontrol.matching import Schema, deal, in_order
from kone.apiserver.requests import RequestInfo, parse_request

ANN = User("ann", groups=("team", "system:authenticated"))
BOT = service_account_user("build", "bot")


def schema(
    name: str = "s", *, precedence: int = 100, by: str = "", subjects: Object | None = None, **rule: object
) -> Schema:
    spec: Object = {
        "matchingPrecedence": precedence,
        "priorityLevelConfiguration": {"name": "level"},
        "rules": [{"subjects": [subjects or {"kind": "Group", "group": {"name": "*"}}], **rule}],
    }
    if by:
        spec["distinguisherMethod"] = {"type": by}
    return Schema({"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": spec})


def of_resources(**changed: object) -> list[Object]:
    return [
        {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": True, **changed}
    ]


def get(path: str, method: str = "GET") -> RequestInfo:
    return parse_request(method, path, {})


@pytest.mark.parametrize(
    ("subject", "user", "matches"),
    [
        ({"kind": "User", "user": {"name": "ann"}}, ANN, True),
        ({"kind": "User", "user": {"name": "*"}}, ANN, True),
        ({"kind": "User", "user": {"name": "bob"}}, ANN, False),
        ({"kind": "Group", "group": {"name": "team"}}, ANN, True),
        ({"kind": "Group", "group": {"name": "tea"}}, ANN, False),
        ({"kind": "ServiceAccount", "serviceAccount": {"namespace": "build", "name": "bot"}}, BOT, True),
        ({"kind": "ServiceAccount", "serviceAccount": {"namespace": "build", "name": "*"}}, BOT, True),
        ({"kind": "ServiceAccount", "serviceAccount": {"namespace": "bui", "name": "*"}}, BOT, False),
        ({"kind": "ServiceAccount", "serviceAccount": {"namespace": "build", "name": "other"}}, BOT, False),
        ({"kind": "ServiceAccount", "serviceAccount": {"namespace": "build", "name": "*"}}, ANN, False),
    ],
)
def test_a_rule_has_its_subjects(subject: Object, user: User, matches: bool) -> None:
    found = schema(subjects=subject, resourceRules=of_resources())
    assert found.matches(user, get("/api/v1/namespaces/ns/pods")) is matches


@pytest.mark.parametrize(
    ("rule", "path", "matches"),
    [
        ({}, "/api/v1/namespaces/ns/pods", True),
        ({"resources": ["pods"]}, "/api/v1/namespaces/ns/pods/a/status", False),
        ({"resources": ["pods/status"]}, "/api/v1/namespaces/ns/pods/a/status", True),
        ({"apiGroups": [""]}, "/apis/apps/v1/namespaces/ns/deployments", False),
        ({"verbs": ["list"]}, "/api/v1/namespaces/ns/pods/a", False),
        ({"verbs": ["get"]}, "/api/v1/namespaces/ns/pods/a", True),
        ({"namespaces": ["kube-system"]}, "/api/v1/namespaces/ns/pods", False),
        ({"clusterScope": False}, "/api/v1/nodes", False),
        ({"clusterScope": False}, "/api/v1/namespaces/ns/pods", True),
        ({}, "/version", False),
    ],
)
def test_a_resource_rule_has_its_requests(rule: Object, path: str, matches: bool) -> None:
    assert schema(resourceRules=of_resources(**rule)).matches(ANN, get(path)) is matches


@pytest.mark.parametrize(
    ("urls", "path", "matches"),
    [
        (["*"], "/version", True),
        (["/healthz"], "/healthz", True),
        (["/healthz"], "/healthz/ping", True),
        (["/healthz"], "/healthzz", False),
        (["/openapi/*"], "/openapi/v2", True),
        (["/openapi/*"], "/openapi", False),
        (["*"], "/api/v1/pods", False),
    ],
)
def test_a_path_rule_has_what_lies_under_its_urls(urls: list[str], path: str, matches: bool) -> None:
    assert schema(nonResourceRules=[{"verbs": ["get"], "nonResourceURLs": urls}]).matches(ANN, get(path)) is matches


def test_the_lowest_precedence_is_tried_first_and_of_equals_the_first_by_name() -> None:
    tried = in_order([schema("b", precedence=5), schema("z", precedence=1), schema("a", precedence=5)])
    assert [each.name for each in tried] == ["z", "a", "b"]


def test_a_flow_is_a_schema_and_what_it_tells_apart() -> None:
    here, there = get("/api/v1/namespaces/a/pods"), get("/api/v1/namespaces/b/pods")
    by_user, by_namespace, none = schema(by="ByUser"), schema(by="ByNamespace"), schema()
    assert by_user.flow_hash(ANN, here) == by_user.flow_hash(ANN, there) != by_user.flow_hash(BOT, here)
    assert by_namespace.flow_hash(ANN, here) == by_namespace.flow_hash(BOT, here) != by_namespace.flow_hash(ANN, there)
    assert none.flow_hash(ANN, here) == none.flow_hash(BOT, there) != schema("other").flow_hash(ANN, here)


def test_a_hand_is_different_queues_of_the_deck() -> None:
    assert deal(7, 5, 2) == (2, 1)
    assert deal(0, 4, 4) == (0, 1, 2, 3)
    hands = {deal(number, 4, 2) for number in range(12)}
    assert len(hands) == 12
    assert all(len(set(hand)) == 2 and max(hand) < 4 for hand in hands)
    hand = deal(2**64 - 1, 128, 6)
    assert len(set(hand)) == 6
    assert all(0 <= card < 128 for card in hand)
