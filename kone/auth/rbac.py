"""Role-based access control: what the roles bound to a user allow, in upstream's semantics and words.

The rules that apply to a user in a namespace are gathered once and remembered until any role or binding changes; a
request then costs one dict lookup and a walk over those rules. Everything is read from the caches, synchronously.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import StatusError, aggregate, forbidden, go_quote, not_found
from kone.apimachinery.kinds import CLUSTERROLEBINDINGS, CLUSTERROLES, GVR, ROLEBINDINGS, ROLES
from kone.apimachinery.objects import Object, metadata, name_of
from kone.apimachinery.users import SERVICE_ACCOUNT_PREFIX, SYSTEM_MASTERS, User

RBAC_GROUP = "rbac.authorization.k8s.io"
RULES_REMEMBERED = 4096


class Entry(Protocol):
    @property
    def obj(self) -> Object: ...


class Cache(Protocol):
    """The part of cache.WatchCache that authorization reads."""

    def get(self, namespace: str, name: str) -> Entry | None: ...
    def list(self, namespace: str = "") -> Sequence[Entry]: ...
    def subscribe(self, handler: Callable[[Any], None]) -> Callable[[], None]: ...


class Caches(Protocol):
    def of(self, group: str, resource: str) -> Cache: ...


@dataclass(frozen=True, slots=True)
class Rule:
    """One PolicyRule, ready to be asked."""

    verbs: frozenset[str]
    groups: frozenset[str]
    resources: frozenset[str]
    names: frozenset[str]
    urls: tuple[str, ...]
    source: Object  # the PolicyRule itself

    def allows(self, request: AccessRequest) -> bool:
        if "*" not in self.verbs and request.verb not in self.verbs:
            return False
        if not request.resource:
            return any(_url_matches(url, request.path) for url in self.urls)
        return (
            ("*" in self.groups or request.group in self.groups)
            and (
                "*" in self.resources
                or request.combined_resource in self.resources
                or (bool(request.subresource) and f"*/{request.subresource}" in self.resources)
            )
            and (not self.names or request.name in self.names)
        )


def compile_rule(rule: Mapping[str, Any]) -> Rule:
    return Rule(
        frozenset(rule.get("verbs") or ()),
        frozenset(rule.get("apiGroups") or ()),
        frozenset(rule.get("resources") or ()),
        frozenset(rule.get("resourceNames") or ()),
        tuple(rule.get("nonResourceURLs") or ()),
        dict(rule),
    )


def _url_matches(pattern: str, path: str) -> bool:
    return pattern == "*" or pattern == path or (pattern.endswith("*") and path.startswith(pattern.rstrip("*")))


@dataclass(frozen=True, slots=True)
class Applied:
    """The rules of one role, and by which binding the user has them."""

    rules: tuple[Rule, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class UserRules:
    applied: tuple[Applied, ...]
    problems: tuple[str, ...]  # roles that bindings name and that do not exist

    def policy_rules(self) -> list[Object]:
        return [rule.source for applied in self.applied for rule in applied.rules]


class RbacAuthorizer:
    """Decides by (Cluster)Roles and (Cluster)RoleBindings."""

    def __init__(self, caches: Caches) -> None:
        self._roles = caches.of(RBAC_GROUP, ROLES.resource)
        self._cluster_roles = caches.of(RBAC_GROUP, CLUSTERROLES.resource)
        self._role_bindings = caches.of(RBAC_GROUP, ROLEBINDINGS.resource)
        self._cluster_role_bindings = caches.of(RBAC_GROUP, CLUSTERROLEBINDINGS.resource)
        self._remembered: dict[tuple[str, tuple[str, ...], str], UserRules] = {}
        for cache in (self._roles, self._cluster_roles, self._role_bindings, self._cluster_role_bindings):
            cache.subscribe(self._forget)

    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]:
        """(True, by which binding), or (False, the roles that were missing or "")."""
        rules = self.rules_of(user, request.namespace)
        for applied in rules.applied:
            for rule in applied.rules:
                if rule.allows(request):
                    return True, applied.reason
        return False, f"RBAC: {aggregate(rules.problems)}" if rules.problems else ""

    def rules_of(self, user: User, namespace: str) -> UserRules:
        """What applies to the user in the namespace; namespace "" leaves out RoleBindings."""
        key = (user.name, user.groups, namespace)
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= RULES_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = self._gather(user, namespace)
        return found

    def role_rules(self, role_ref: Mapping[str, Any], namespace: str) -> list[Object]:
        """The rules of the role that a binding names; namespace is the binding's, "" of a ClusterRoleBinding.

        Raises StatusError 404 where there is no such role.
        """
        kind, name = role_ref.get("kind"), str(role_ref.get("name", ""))
        if kind == "Role":
            entry = self._roles.get(namespace, name)
        elif kind == "ClusterRole":
            entry = self._cluster_roles.get("", name)
        else:
            raise StatusError(500, "InternalError", f"unsupported role reference kind: {go_quote(str(kind or ''))}")
        if entry is None:
            raise not_found(f"{kind.lower()}.{RBAC_GROUP}", name)  # the singular, as upstream's listers say it
        return entry.obj.get("rules") or []

    def _forget(self, _event: object) -> None:
        self._remembered.clear()

    def _gather(self, user: User, namespace: str) -> UserRules:
        applied: list[Applied] = []
        problems: list[str] = []
        for binding, subject in self._bindings_of(user, namespace):
            bound_in = metadata(binding).get("namespace", "")
            try:
                rules = self.role_rules(binding["roleRef"], bound_in)
            except StatusError as error:
                problems.append(error.message)
                continue
            reason = f"RBAC: allowed by {_describe(binding, subject, bound_in)}"
            applied.append(Applied(tuple(compile_rule(rule) for rule in rules), reason))
        return UserRules(tuple(applied), tuple(problems))

    def _bindings_of(self, user: User, namespace: str) -> Iterator[tuple[Object, Object]]:
        entries = list(self._cluster_role_bindings.list())
        if namespace:
            entries += self._role_bindings.list(namespace)
        for entry in entries:
            bound_in = metadata(entry.obj).get("namespace", "")
            for subject in entry.obj.get("subjects") or ():
                if applies_to(user, subject, bound_in):
                    yield entry.obj, subject
                    break


def applies_to(user: User, subject: Mapping[str, Any], namespace: str) -> bool:
    """Whether a binding's subject is the user; a service account without a namespace is of the binding's."""
    kind, name = subject.get("kind"), subject.get("name")
    if kind == "User":
        return user.name == name
    if kind == "Group":
        return name in user.groups
    if kind == "ServiceAccount":
        home = subject.get("namespace") or namespace
        return bool(home) and user.name == f"{SERVICE_ACCOUNT_PREFIX}{home}:{name}"
    return False


def _describe(binding: Object, subject: Mapping[str, Any], namespace: str) -> str:
    name = name_of(binding)
    kind, title = ("RoleBinding", f"{name}/{namespace}") if namespace else ("ClusterRoleBinding", name)
    ref = binding["roleRef"]
    who = str(subject.get("name", ""))
    if subject.get("kind") == "ServiceAccount":
        who = f"{who}/{subject.get('namespace') or namespace}"
    return (
        f"{kind} {go_quote(title)} of {ref.get('kind')} {go_quote(str(ref.get('name', '')))} "
        f"to {subject.get('kind')} {go_quote(who)}"
    )


# -- granting no more than one has ----------------------------------------------------------------------------------


def break_down(rule: Mapping[str, Any]) -> Iterator[Object]:
    """A rule as rules of one group, one resource, one verb and at most one name, or of one path and one verb."""
    names = rule.get("resourceNames") or ()
    for group in rule.get("apiGroups") or ():
        for resource in rule.get("resources") or ():
            for verb in rule.get("verbs") or ():
                single: Object = {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
                if not names:
                    yield single
                for name in names:
                    yield {**single, "resourceNames": [name]}
    for url in rule.get("nonResourceURLs") or ():
        for verb in rule.get("verbs") or ():
            yield {"nonResourceURLs": [url], "verbs": [verb]}


def covers(owned: Sequence[Rule], wanted: Iterable[Mapping[str, Any]]) -> list[Object]:
    """The single rules of `wanted` that none of the `owned` rules covers."""
    return [one for rule in wanted for one in break_down(rule) if not any(_covers_one(own, one) for own in owned)]


def _covers_one(owned: Rule, one: Mapping[str, Any]) -> bool:
    if "*" not in owned.verbs and one["verbs"][0] not in owned.verbs:
        return False
    if "nonResourceURLs" in one:
        url = one["nonResourceURLs"][0]
        return any(own == url or (own.endswith("*") and url.startswith(own.rstrip("*"))) for own in owned.urls)
    if "*" not in owned.groups and one["apiGroups"][0] not in owned.groups:
        return False
    resource = one["resources"][0]
    _, slash, subresource = resource.partition("/")
    if not (
        "*" in owned.resources or resource in owned.resources or (bool(slash) and f"*/{subresource}" in owned.resources)
    ):
        return False
    name = next(iter(one.get("resourceNames") or ()), None)
    return not owned.names or name in owned.names


def compact(rules: Iterable[Mapping[str, Any]]) -> list[Object]:
    """Single rules that differ by verb only become one rule."""
    merged: dict[tuple[str, str, str | None], Object] = {}
    others: list[Object] = []
    for rule in rules:
        if "nonResourceURLs" in rule:
            others.append(dict(rule))
            continue
        key = (rule["apiGroups"][0], rule["resources"][0], next(iter(rule.get("resourceNames") or ()), None))
        if key in merged:
            merged[key]["verbs"] = [*merged[key]["verbs"], *rule["verbs"]]
        else:
            merged[key] = dict(rule)
    return [*others, *merged.values()]


def describe_rule(rule: Mapping[str, Any]) -> str:
    parts = (
        ("APIGroups", "apiGroups"),
        ("Resources", "resources"),
        ("NonResourceURLs", "nonResourceURLs"),
        ("ResourceNames", "resourceNames"),
        ("Verbs", "verbs"),
    )
    shown = [f"{title}:{_go_list(rule[key])}" for title, key in parts if rule.get(key)]
    return "{" + ", ".join(shown) + "}"


def _go_list(texts: Iterable[str]) -> str:
    return "[" + " ".join(go_quote(text) for text in texts) + "]"


_FULL_AUTHORITY: tuple[Object, ...] = (
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    {"nonResourceURLs": ["*"], "verbs": ["*"]},
)


class AnyAuthorizer(Protocol):
    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]: ...


class Escalation:
    """Nobody grants by a role or binding what they do not hold, save with the verbs escalate and bind."""

    def __init__(self, authorizer: AnyAuthorizer, rbac: RbacAuthorizer) -> None:
        self._authorizer = authorizer
        self._rbac = rbac

    def check(self, user: User, resource: GVR, obj: Object, old: Object | None, *, namespace: str, name: str) -> None:
        """Refuse (403) a created or updated Role, ClusterRole, RoleBinding or ClusterRoleBinding that grants more.

        `name` is the request's: "" on create. Raises StatusError 404 where a binding's role does not exist. Upstream
        asks this after mutating admission and before validation.
        """
        if resource.group != RBAC_GROUP or SYSTEM_MASTERS in user.groups:
            return
        if old is not None and _only_gc_fields_differ(obj, old):
            return
        kind = resource.resource
        if kind in (ROLES.resource, CLUSTERROLES.resource):
            escalate = AccessRequest("escalate", RBAC_GROUP, "*", kind, namespace=namespace, name=name)
            if not self._authorizer.allowed(user, escalate)[0]:
                self._check_role(user, resource, obj, old, namespace)
        elif kind in (ROLEBINDINGS.resource, CLUSTERROLEBINDINGS.resource):
            ref = obj.get("roleRef") or {}
            self._check_binding(user, resource, obj, ref, namespace)

    def _check_role(self, user: User, resource: GVR, obj: Object, old: Object | None, namespace: str) -> None:
        if why := self._missing(user, obj.get("rules") or (), namespace):
            raise forbidden(resource.group_resource, name_of(obj), why)
        if (_aggregates(obj) or (old is not None and _aggregates(old))) and self._missing(
            user, _FULL_AUTHORITY, namespace
        ):
            why = "must have cluster-admin privileges to use the aggregationRule"
            raise forbidden(resource.group_resource, name_of(obj), why)

    def _check_binding(self, user: User, resource: GVR, obj: Object, ref: Mapping[str, Any], namespace: str) -> None:
        kinds = {"ClusterRole": CLUSTERROLES.resource, "Role": ROLES.resource}
        if (role_resource := kinds.get(str(ref.get("kind")))) is not None:
            bind = AccessRequest(
                "bind", str(ref.get("apiGroup", "")), "*", role_resource, namespace=namespace, name=ref.get("name", "")
            )
            if self._authorizer.allowed(user, bind)[0]:
                return
        try:
            rules = self._rbac.role_rules(ref, namespace)
        except StatusError as error:
            if error.reason != "NotFound":
                raise
            # Upstream's handler names the resource of the request, not the role's.
            raise not_found(resource.group_resource, str(ref.get("name", ""))) from error
        if why := self._missing(user, rules, namespace):
            raise forbidden(resource.group_resource, name_of(obj), why)

    def _missing(self, user: User, rules: Iterable[Mapping[str, Any]], namespace: str) -> str:
        """Why the user may not grant the rules; "" where they may."""
        held = self._rbac.rules_of(user, namespace)
        owned = [rule for applied in held.applied for rule in applied.rules]
        missing = covers(owned, rules)
        if not missing:
            return ""
        lines = sorted({describe_rule(rule) for rule in compact(missing)})
        text = (
            f"user {go_quote(user.name)} (groups={_go_list(user.groups)}) "
            "is attempting to grant RBAC permissions not currently held:\n" + "\n".join(lines)
        )
        if held.problems:
            text += f"; resolution errors: [{aggregate(held.problems)}]"
        return text


def _aggregates(role: Object) -> bool:
    return bool((role.get("aggregationRule") or {}).get("clusterRoleSelectors"))


def _only_gc_fields_differ(obj: Object, old: Object) -> bool:
    """Whether the garbage collector could have made this change: finalizers and owner references only."""

    def rest(of: Object) -> Object:
        kept = {
            k: v
            for k, v in metadata(of).items()
            if k not in ("ownerReferences", "finalizers", "managedFields", "selfLink", "resourceVersion")
        }
        return {**{k: v for k, v in of.items() if v}, "metadata": kept}

    return rest(obj) == rest(old)
