"""rbac.authorization.k8s.io: roles and their bindings. That nobody grants more than they hold is auth's to check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, invalid_value, not_supported, required
from kone.apimachinery.kinds import CLUSTERROLEBINDINGS, CLUSTERROLES, ROLEBINDINGS, ROLES
from kone.apimachinery.names import is_dns1123_subdomain, is_path_segment_name
from kone.apimachinery.objects import Object
from kone.apimachinery.selectors import from_label_selector
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal
from kone.registry.resource import AGE, CREATED_AT, NAME, Column, Resource
from kone.registry.rules import Errors, check, has_invalid_selector_value, label_selector
from kone.registry.strategy import Strategy, path_segment

GROUP = "rbac.authorization.k8s.io"
_SUBJECT_KINDS = ("ServiceAccount", "User", "Group")


class _RBAC(Strategy):
    name_rule = staticmethod(path_segment)
    create_on_update = True


class _Role(_RBAC):
    namespaced = True

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        rules = obj.get("rules") or ()
        for i, rule in enumerate(rules):
            _policy_rule(errors, f"rules[{i}]", rule, self.namespaced)
        return errors + [required(f"rules[{i}].verbs") for i, rule in enumerate(rules) if not rule.get("verbs")]


def _policy_rule(errors: Errors, path: str, rule: Mapping[str, Any], namespaced: bool) -> None:
    urls = rule.get("nonResourceURLs")
    if urls:
        if namespaced:
            why = "namespaced rules cannot apply to non-resource URLs"
            errors.append(invalid_value(f"{path}.nonResourceURLs", urls, why))
        if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
            why = "rules cannot apply to both regular resources and non-resource URLs"
            errors.append(invalid_value(f"{path}.nonResourceURLs", urls, why))
        return
    if not rule.get("apiGroups"):
        errors.append(required(f"{path}.apiGroups", "resource rules must supply at least one api group"))
    if not rule.get("resources"):
        errors.append(required(f"{path}.resources", "resource rules must supply at least one resource"))


class _ClusterRole(_Role):
    namespaced = False

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = [*super().validate(obj, old)]
        aggregation = obj.get("aggregationRule")
        if aggregation is None:
            return errors
        selectors = aggregation.get("clusterRoleSelectors") or ()
        path = "aggregationRule.clusterRoleSelectors"
        if not selectors:
            why = "at least one clusterRoleSelector required if aggregationRule is non-nil"
            errors.append(required(path, why))
        before = ((old or {}).get("aggregationRule") or {}).get("clusterRoleSelectors") or ()
        any_value = any(has_invalid_selector_value(selector) for selector in before)
        for i, selector in enumerate(selectors):
            label_selector(errors, f"{path}[{i}]", selector, any_value=any_value)
            if not _is_selector(selector):
                errors.append(invalid_value(f"{path}[{i}]", None, "invalid label selector."))
        return errors


def _is_selector(selector: Mapping[str, Any]) -> bool:
    errors: Errors = []
    label_selector(errors, "", {"matchLabels": selector.get("matchLabels")})
    try:
        from_label_selector(selector)
    except ValueError:
        return False
    return not errors


class _Binding(_RBAC):
    def __init__(self, role_kinds: Sequence[str], *, namespaced: bool) -> None:
        self.role_kinds = role_kinds
        self.namespaced = namespaced

    def default(self, obj: Object) -> None:
        role = obj.setdefault("roleRef", {})
        if not role.get("apiGroup"):
            role["apiGroup"] = GROUP
        for subject in obj.get("subjects") or ():
            if not subject.get("apiGroup") and subject.get("kind") in ("User", "Group"):
                subject["apiGroup"] = GROUP

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        role = obj.get("roleRef") or {}
        if role.get("apiGroup") != GROUP:
            errors.append(not_supported("roleRef.apiGroup", role.get("apiGroup", ""), (GROUP,)))
        if role.get("kind") not in self.role_kinds:
            errors.append(not_supported("roleRef.kind", role.get("kind", ""), self.role_kinds))
        if role.get("name"):
            check(errors, "roleRef.name", role["name"], is_path_segment_name(role["name"]))
        else:
            errors.append(required("roleRef.name"))
        for i, subject in enumerate(obj.get("subjects") or ()):
            _subject(errors, f"subjects[{i}]", subject, self.namespaced)
        if old is not None and role != old.get("roleRef"):
            errors.append(invalid_value("roleRef", internal("#rbac.RoleRef", role), IMMUTABLE))
        return errors


def _subject(errors: Errors, path: str, subject: Mapping[str, Any], namespaced: bool) -> None:
    name, group = subject.get("name", ""), subject.get("apiGroup", "")
    if not name:
        errors.append(required(f"{path}.name"))
    match subject.get("kind"):
        case "ServiceAccount":
            if name:
                check(errors, f"{path}.name", name, is_dns1123_subdomain(name))
            if group:
                errors.append(not_supported(f"{path}.apiGroup", group, ("",)))
            if not namespaced and not subject.get("namespace"):
                errors.append(required(f"{path}.namespace"))
        case "User" | "Group":
            if group != GROUP:
                errors.append(not_supported(f"{path}.apiGroup", group, (GROUP,)))
        case kind:
            errors.append(not_supported(f"{path}.kind", kind or "", _SUBJECT_KINDS))


def _role_ref(obj: Object, now: float) -> str:
    role = obj.get("roleRef") or {}
    return f"{role.get('kind', '')}/{role.get('name', '')}"


def _subjects(kind: str) -> Column:
    def cell(obj: Object, now: float) -> str:
        found = [subject for subject in obj.get("subjects") or () if subject.get("kind") == kind]
        if kind == "ServiceAccount":
            return ", ".join(f"{subject.get('namespace', '')}/{subject.get('name', '')}" for subject in found)
        return ", ".join(str(subject.get("name", "")) for subject in found)

    return Column(f"{kind}s", cell, priority=1)


_BINDING_COLUMNS = (
    NAME,
    Column("Role", _role_ref),
    AGE,
    _subjects("User"),
    _subjects("Group"),
    _subjects("ServiceAccount"),
)

RESOURCES: Sequence[Resource] = (
    Resource(
        CLUSTERROLEBINDINGS,
        "ClusterRoleBinding",
        _Binding(("ClusterRole",), namespaced=False),
        namespaced=False,
        columns=_BINDING_COLUMNS,
    ),
    Resource(CLUSTERROLES, "ClusterRole", _ClusterRole(), namespaced=False, columns=(NAME, CREATED_AT)),
    Resource(ROLEBINDINGS, "RoleBinding", _Binding(("Role", "ClusterRole"), namespaced=True), columns=_BINDING_COLUMNS),
    Resource(ROLES, "Role", _Role(), columns=(NAME, CREATED_AT)),
)
