"""Which requests an audit policy wants recorded, and what it says of a policy that cannot be."""

from __future__ import annotations

import json

import pytest

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.config_files import ConfigFileError
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.apiserver.audit_policy import Recording, parse_policy

ALICE = User("alice", groups=("dev", "system:authenticated"))
GET_POD = AccessRequest("get", "", "v1", "pods", "", "ns", "a")
LOG = AccessRequest("get", "", "v1", "pods", "log", "ns", "a")
NODE = AccessRequest("update", "", "v1", "nodes", "status", "", "n")
SCALE = AccessRequest("patch", "apps", "v1", "deployments", "scale", "ns", "d")
HEALTH = AccessRequest("get", path="/healthz/ping")


def policy(*rules: Object, **fields: object) -> str:
    return json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": list(rules), **fields})


@pytest.mark.parametrize(
    ("rule", "request_", "met"),
    [
        ({}, GET_POD, True),
        ({}, HEALTH, True),
        ({"users": ["alice"]}, GET_POD, True),
        ({"users": ["bob"]}, GET_POD, False),
        ({"userGroups": ["ops", "dev"]}, GET_POD, True),
        ({"userGroups": ["ops"]}, GET_POD, False),
        ({"verbs": ["list", "watch"]}, GET_POD, False),
        ({"verbs": ["get"]}, HEALTH, True),
        ({"namespaces": ["ns"]}, GET_POD, True),
        ({"namespaces": ["other"]}, GET_POD, False),
        ({"namespaces": [""]}, NODE, True),
        ({"namespaces": ["ns"]}, HEALTH, False),
        ({"resources": [{"group": ""}]}, GET_POD, True),
        ({"resources": [{"group": "apps"}]}, GET_POD, False),
        ({"resources": [{"group": ""}]}, HEALTH, False),
        ({"resources": [{"group": "", "resources": ["pods"]}]}, LOG, False),
        ({"resources": [{"group": "", "resources": ["pods/log"]}]}, LOG, True),
        ({"resources": [{"group": "", "resources": ["pods/*"]}]}, LOG, True),
        ({"resources": [{"group": "", "resources": ["pods/*"]}]}, GET_POD, True),
        ({"resources": [{"group": "apps", "resources": ["*/scale"]}]}, SCALE, True),
        ({"resources": [{"group": "apps", "resources": ["*/status"]}]}, SCALE, False),
        ({"resources": [{"group": "", "resources": ["*"]}]}, LOG, True),
        ({"resources": [{"group": "", "resources": ["pods"], "resourceNames": ["a"]}]}, GET_POD, True),
        ({"resources": [{"group": "", "resources": ["pods"], "resourceNames": ["b"]}]}, GET_POD, False),
        ({"nonResourceURLs": ["/healthz*"]}, HEALTH, True),
        ({"nonResourceURLs": ["/healthz"]}, HEALTH, False),
        ({"nonResourceURLs": ["*"]}, HEALTH, True),
        ({"nonResourceURLs": ["*"]}, GET_POD, False),
    ],
)
def test_a_rule_matches(rule: Object, request_: AccessRequest, met: bool) -> None:
    found = parse_policy(policy({"level": "Metadata", **rule})).recording(ALICE, request_)
    assert (found is not None) is met


def test_the_first_rule_that_matches_decides_and_none_means_not_at_all() -> None:
    rules = {"level": "None", "users": ["alice"]}, {"level": "Request", "omitStages": ["Panic"]}
    found = parse_policy(policy(*rules, omitStages=["RequestReceived"], omitManagedFields=True))
    assert found.recording(ALICE, GET_POD) is None
    bob = found.recording(User("bob"), GET_POD)
    assert bob == Recording("Request", frozenset({"RequestReceived", "Panic"}), omit_managed_fields=True)


def test_a_rule_may_keep_the_managed_fields_that_the_policy_leaves_out() -> None:
    found = parse_policy(policy({"level": "Request", "omitManagedFields": False}, omitManagedFields=True))
    recording = found.recording(ALICE, GET_POD)
    assert recording is not None
    assert not recording.omit_managed_fields


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (policy(), "loaded illegal policy with 0 rules"),
        (policy({"level": ""}), "rules[0].level: Required value"),
        (
            policy({"level": "All"}),
            'rules[0].level: Unsupported value: "All": supported values: "None", "Metadata", "Request", '
            '"RequestResponse"',
        ),
        (
            policy({"level": "None", "omitStages": ["Started"]}),
            'rules[0].omitStages[0]: Invalid value: "Started": allowed stages are '
            "RequestReceived,ResponseStarted,ResponseComplete,Panic",
        ),
        (
            policy({"level": "None", "nonResourceURLs": ["/a*b"]}),
            "rules[0].nonResourceURLs[0]: Invalid value: \"/a*b\": non-resource URL wildcards '*' must be the final "
            "character of the rule",
        ),
        (
            policy({"level": "None", "nonResourceURLs": ["/a"], "namespaces": ["b"]}),
            'rules[0].nonResourceURLs: Invalid value: ["/a"]: rules cannot apply to both regular resources and '
            "non-resource URLs",
        ),
        (
            policy({"level": "None", "resources": [{"group": "", "resourceNames": ["a"]}]}),
            'rules[0].resources.resourceNames: Invalid value: ["a"]: using resourceNames requires at least one '
            "resource",
        ),
        (policy({"level": "None", "user": ["a"]}), 'strict decoding error: unknown field "rules[0].user"'),
        (policy({"level": 3}), "strict decoding error: rules[0].level: expected a string"),
        ("kind: Policy", "unsupported kind , Kind=Policy: give kind Policy of audit.k8s.io/v1"),
    ],
)
def test_a_wrong_policy_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse_policy(text)
    assert str(caught.value) == why
