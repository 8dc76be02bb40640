"""Who may do what by roles and bindings, in upstream's words."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.access import AccessRequest, access_denied
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CLUSTERROLEBINDINGS, CLUSTERROLES, ROLEBINDINGS, ROLES
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User, service_account_user
from kone.auth.authorizer import Authorizer
from tests.memory_caches import MemoryCaches

ANN = User("ann", groups=("dev", "system:authenticated"))
API = "rbac.authorization.k8s.io"


def rule(verbs: list[str], resources: list[str], group: str = "", names: list[str] | None = None) -> Object:
    made: Object = {"verbs": verbs, "apiGroups": [group], "resources": resources}
    if names:
        made["resourceNames"] = names
    return made


def role(name: str, *rules: Object, namespace: str = "ns") -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, "rules": list(rules)}


def cluster_role(name: str, *rules: Object) -> Object:
    return {"metadata": {"name": name}, "rules": list(rules)}


def subject(kind: str, name: str, namespace: str = "") -> Object:
    return {"kind": kind, "name": name, **({"namespace": namespace} if namespace else {})}


def bind(name: str, ref: str, *subjects: Object, kind: str = "Role", namespace: str = "ns") -> Object:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"metadata": metadata, "roleRef": {"apiGroup": API, "kind": kind, "name": ref}, "subjects": list(subjects)}


class World:
    def __init__(self) -> None:
        self.caches = MemoryCaches()
        self.authorizer = Authorizer(self.caches, [])

    def grant(self, *rules: Object, user: str = "ann") -> None:
        """Give a user a role in namespace ns."""
        self.caches.put(ROLES, role("r", *rules))
        self.caches.put(ROLEBINDINGS, bind("b", "r", subject("User", user)))

    def grant_everywhere(self, *rules: Object, user: str = "ann") -> None:
        self.caches.put(CLUSTERROLES, cluster_role("cr", *rules))
        binding = bind("cb", "cr", subject("User", user), kind="ClusterRole", namespace="")
        self.caches.put(CLUSTERROLEBINDINGS, binding)

    def may(self, verb: str, resource: str = "", *, user: User = ANN, namespace: str = "ns", **more: str) -> bool:
        resource, _, subresource = resource.partition("/")
        request = AccessRequest(verb, resource=resource, subresource=subresource, namespace=namespace, **more)
        return self.authorizer.allowed(user, request)[0]


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_allowed_by_itself(world: World) -> None:
    assert not world.may("get", "pods")


def test_a_role_grants_in_its_namespace_only(world: World) -> None:
    world.grant(rule(["get", "list"], ["configmaps"]))
    assert world.may("get", "configmaps", name="c")
    assert not world.may("watch", "configmaps")
    assert not world.may("get", "secrets")
    assert not world.may("get", "configmaps", namespace="other")
    assert not world.may("list", "configmaps", namespace="")
    assert not world.may("get", "configmaps", user=User("ben"))


def test_a_change_counts_at_once(world: World) -> None:
    world.grant(rule(["get"], ["pods"]))
    assert world.may("get", "pods")
    world.caches.of(API, "rolebindings").remove("ns", "b")
    assert not world.may("get", "pods")


@pytest.mark.parametrize(
    ("granted", "asked", "good"),
    [
        (["pods"], "pods/log", False),
        (["pods/log"], "pods/log", True),
        (["pods/log"], "pods", False),
        (["*/scale"], "deployments/scale", True),
        (["*/scale"], "deployments", False),
        (["*"], "pods/exec", True),
    ],
)
def test_subresources(world: World, granted: list[str], asked: str, good: bool) -> None:
    world.grant(rule(["*"], granted))
    assert world.may("get", asked) is good


def test_names_bind_what_has_a_name(world: World) -> None:
    world.grant(rule(["*"], ["configmaps"], names=["one"]))
    assert world.may("get", "configmaps", name="one")
    assert not world.may("get", "configmaps", name="two")
    assert not world.may("list", "configmaps")
    assert not world.may("create", "configmaps")


@pytest.mark.parametrize(
    ("urls", "path", "good"),
    [
        (["/x/*"], "/x/a/b", True),
        (["/x/*"], "/x", False),
        (["/exact"], "/exact", True),
        (["/exact"], "/exact/a", False),
        (["*"], "/anything", True),
    ],
)
def test_paths(world: World, urls: list[str], path: str, good: bool) -> None:
    world.grant_everywhere({"verbs": ["get"], "nonResourceURLs": urls})
    assert world.may("get", path=path, namespace="") is good
    assert not world.may("post", path=path, namespace="")


def test_a_cluster_role_bound_in_a_namespace_grants_there_only(world: World) -> None:
    path = {"verbs": ["get"], "nonResourceURLs": ["/metrics"]}
    world.caches.put(CLUSTERROLES, cluster_role("cr", rule(["get"], ["configmaps", "nodes"]), path))
    world.caches.put(ROLEBINDINGS, bind("b", "cr", subject("User", "ann"), kind="ClusterRole"))
    assert world.may("get", "configmaps")
    assert not world.may("get", "configmaps", namespace="other")
    assert not world.may("get", "nodes", namespace="")
    assert not world.may("get", path="/metrics", namespace="")


@pytest.mark.parametrize(
    ("who", "user", "good"),
    [
        (subject("Group", "dev"), ANN, True),
        (subject("Group", "ops"), ANN, False),
        (subject("ServiceAccount", "sa", "ns"), service_account_user("ns", "sa"), True),
        (subject("ServiceAccount", "sa"), service_account_user("ns", "sa"), True),
        (subject("ServiceAccount", "sa", "ns"), service_account_user("default", "sa"), False),
        (subject("ServiceAccount", "sa", "ns"), User("sa"), False),
        (subject("Group", "system:serviceaccounts:ns"), service_account_user("ns", "other"), True),
    ],
)
def test_subjects(world: World, who: Object, user: User, good: bool) -> None:
    world.caches.put(ROLES, role("r", rule(["get"], ["pods"])))
    world.caches.put(ROLEBINDINGS, bind("b", "r", who))
    assert world.may("get", "pods", user=user) is good


def test_system_masters_may_everything(world: World) -> None:
    assert world.may("anything", "whatever", user=User("x", groups=("system:masters",)))


@pytest.mark.parametrize(
    ("path", "good"), [("/livez", True), ("/readyz", True), ("/healthz", True), ("/livez/ping", False)]
)
def test_health_is_for_everybody(world: World, path: str, good: bool) -> None:
    assert world.may("get", path=path, namespace="", user=User("system:anonymous")) is good


def test_reasons_name_binding_role_and_subject(world: World) -> None:
    world.grant(rule(["get"], ["pods"]))
    world.grant_everywhere(rule(["list"], ["nodes"]))
    get = AccessRequest("get", resource="pods", namespace="ns")
    assert world.authorizer.allowed(ANN, get) == (
        True,
        'RBAC: allowed by RoleBinding "b/ns" of Role "r" to User "ann"',
    )
    nodes = AccessRequest("list", resource="nodes")
    assert world.authorizer.allowed(ANN, nodes) == (
        True,
        'RBAC: allowed by ClusterRoleBinding "cb" of ClusterRole "cr" to User "ann"',
    )


def test_a_missing_role_is_said_in_the_refusal(world: World) -> None:
    world.caches.put(ROLEBINDINGS, bind("b", "r", subject("User", "ann")))
    request = AccessRequest("get", resource="configmaps", namespace="ns", name="c")
    good, reason = world.authorizer.allowed(ANN, request)
    assert not good
    assert str(access_denied(ANN, request, reason)) == (
        'configmaps "c" is forbidden: User "ann" cannot get resource "configmaps" in API group "" in the namespace '
        '"ns": rbac: RBAC: role.rbac.authorization.k8s.io "r" not found'
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            AccessRequest("list", "apps", "v1", "deployments", namespace="ns"),
            'deployments.apps is forbidden: User "ann" cannot list resource "deployments" in API group "apps" '
            'in the namespace "ns"',
        ),
        (
            AccessRequest("get", "", "v1", "nodes", "proxy", name="n"),
            'nodes "n" is forbidden: User "ann" cannot get resource "nodes/proxy" in API group "" at the cluster scope',
        ),
        (AccessRequest("get", path="/metrics"), 'forbidden: User "ann" cannot get path "/metrics"'),
    ],
)
def test_refusals(request_: AccessRequest, message: str) -> None:
    assert access_denied(ANN, request_).message == message


def test_rules_for_a_user(world: World) -> None:
    world.grant(rule(["get"], ["configmaps"]), rule(["list"], ["secrets"], names=["x"]))
    world.grant_everywhere({"verbs": ["get"], "nonResourceURLs": ["/healthz"]})
    review = world.authorizer.rules_for(ANN, "ns")
    assert review.resource_rules == [
        {"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]},
        {"verbs": ["list"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["x"]},
    ]
    assert review.non_resource_rules == [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]
    assert (review.incomplete, review.problem) == (False, "")


HELD = (
    rule(["create", "update", "patch", "get"], ["roles", "rolebindings"], API),
    rule(["get", "list"], ["configmaps"]),
    rule(["get"], ["secrets"], names=["s1"]),
)
ATTEMPT = (
    'user "ann" (groups=["dev" "system:authenticated"]) is attempting to grant RBAC permissions not currently held:\n'
)


@pytest.mark.parametrize(
    ("rules", "missing"),
    [
        ([rule(["get"], ["configmaps"])], ""),
        ([rule(["get"], ["secrets"], names=["s1"])], ""),
        ([rule(["get", "delete"], ["configmaps"])], '{APIGroups:[""], Resources:["configmaps"], Verbs:["delete"]}'),
        ([rule(["get"], ["configmaps", "pods"])], '{APIGroups:[""], Resources:["pods"], Verbs:["get"]}'),
        ([rule(["get"], ["secrets"])], '{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}'),
        (
            [rule(["get"], ["secrets"], names=["s1", "s2"])],
            '{APIGroups:[""], Resources:["secrets"], ResourceNames:["s2"], Verbs:["get"]}',
        ),
        ([rule(["*"], ["*"], "*")], '{APIGroups:["*"], Resources:["*"], Verbs:["*"]}'),
        (
            [rule(["get"], ["configmaps/status"])],
            '{APIGroups:[""], Resources:["configmaps/status"], Verbs:["get"]}',
        ),
        (
            [rule(["list", "get"], ["pods"]), rule(["list"], ["services"])],
            '{APIGroups:[""], Resources:["pods"], Verbs:["list" "get"]}\n'
            '{APIGroups:[""], Resources:["services"], Verbs:["list"]}',
        ),
    ],
)
def test_nobody_grants_by_a_role_what_they_do_not_hold(world: World, rules: list[Object], missing: str) -> None:
    world.grant(*HELD)
    check = world.authorizer.escalation.check
    if not missing:
        check(ANN, ROLES, role("x", *rules), None, namespace="ns", name="")
        return
    with pytest.raises(StatusError) as caught:
        check(ANN, ROLES, role("x", *rules), None, namespace="ns", name="")
    assert caught.value.message == f'roles.rbac.authorization.k8s.io "x" is forbidden: {ATTEMPT}{missing}'


def test_a_role_may_be_relabelled_by_who_holds_its_rules_and_have_its_owners_changed_by_anybody(world: World) -> None:
    world.grant(*HELD)
    old = role("r", rule(["delete"], ["nodes"]))
    new: dict[str, Any] = {**old, "metadata": {**old["metadata"], "ownerReferences": [{"uid": "u"}]}}
    world.authorizer.escalation.check(ANN, ROLES, new, old, namespace="ns", name="r")
    labelled: dict[str, Any] = {**old, "metadata": {**old["metadata"], "labels": {"a": "b"}}}
    with pytest.raises(StatusError, match="attempting to grant"):
        world.authorizer.escalation.check(ANN, ROLES, labelled, old, namespace="ns", name="r")


def test_the_escalate_verb_lifts_the_rule(world: World) -> None:
    world.grant(rule(["create", "escalate"], ["roles"], API))
    everything = role("x", rule(["*"], ["*"], "*"))
    world.authorizer.escalation.check(ANN, ROLES, everything, None, namespace="ns", name="")


def test_bindings(world: World) -> None:
    world.grant_everywhere(
        rule(["create"], ["clusterrolebindings"], API), {"verbs": ["get"], "nonResourceURLs": ["/ok"]}
    )
    full: list[Object] = [rule(["*"], ["*"], "*"), {"verbs": ["*"], "nonResourceURLs": ["*"]}]
    world.caches.put(CLUSTERROLES, cluster_role("cluster-admin", *full))
    world.caches.put(CLUSTERROLES, cluster_role("held", {"verbs": ["get"], "nonResourceURLs": ["/ok"]}))

    def check(ref: str) -> None:
        binding = bind("e", ref, subject("User", "ann"), kind="ClusterRole", namespace="")
        world.authorizer.escalation.check(ANN, CLUSTERROLEBINDINGS, binding, None, namespace="", name="")

    check("held")
    with pytest.raises(StatusError) as admin:
        check("cluster-admin")
    assert admin.value.message == (
        f'clusterrolebindings.rbac.authorization.k8s.io "e" is forbidden: {ATTEMPT}'
        '{APIGroups:["*"], Resources:["*"], Verbs:["*"]}\n{NonResourceURLs:["*"], Verbs:["*"]}'
    )
    with pytest.raises(StatusError) as missing:
        check("nowhere")
    assert missing.value.message == 'clusterrolebindings.rbac.authorization.k8s.io "nowhere" not found'


def test_the_bind_verb_lifts_the_rule_for_a_named_role(world: World) -> None:
    world.grant(rule(["bind"], ["clusterroles"], API, names=["view"]))
    world.caches.put(CLUSTERROLES, cluster_role("view", rule(["get"], ["pods"])))
    binding = bind("e", "view", subject("User", "ben"), kind="ClusterRole")
    world.authorizer.escalation.check(ANN, ROLEBINDINGS, binding, None, namespace="ns", name="")


def test_an_aggregation_rule_takes_everything(world: World) -> None:
    aggregating: Object = {
        **cluster_role("x"),
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]},
    }
    with pytest.raises(StatusError) as caught:
        world.authorizer.escalation.check(ANN, CLUSTERROLES, aggregating, None, namespace="", name="")
    assert caught.value.message == (
        'clusterroles.rbac.authorization.k8s.io "x" is forbidden: '
        "must have cluster-admin privileges to use the aggregationRule"
    )
