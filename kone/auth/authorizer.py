"""The authorizers in upstream's order: always-allowed paths, system:masters, Node, RBAC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import aggregate
from kone.apimachinery.objects import Object
from kone.apimachinery.users import SYSTEM_MASTERS, User, node_identity
from kone.auth import node_authorizer, rbac
from kone.auth.node_authorizer import NodeAuthorizer
from kone.auth.rbac import Escalation, RbacAuthorizer

ALWAYS_ALLOWED_PATHS = frozenset({"/livez", "/readyz", "/healthz"})  # upstream's --authorization-always-allow-paths


class Cache(rbac.Cache, node_authorizer.Cache, Protocol): ...


class Caches(Protocol):
    def of(self, group: str, resource: str) -> Cache: ...


@dataclass(frozen=True, slots=True)
class RulesReview:
    """What a SelfSubjectRulesReview answers."""

    resource_rules: list[Object]
    non_resource_rules: list[Object]
    incomplete: bool
    problem: str  # evaluationError; "" for none


class Authorizer:
    """Whether a user may; `escalation` says whether they may grant. Reads the caches, never waits."""

    def __init__(self, caches: Caches, node_rules: Iterable[Mapping[str, Any]]) -> None:
        self.rbac = RbacAuthorizer(caches)
        self.node = NodeAuthorizer(caches, node_rules)
        self.escalation = Escalation(self, self.rbac)

    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]:
        """(True, reason) or (False, reasons); a reason may be ""."""
        if SYSTEM_MASTERS in user.groups:
            return True, ""
        if request.path in ALWAYS_ALLOWED_PATHS and not request.resource:
            return True, ""
        good, node_reason = self.node.allowed(user, request)
        if good:
            return True, node_reason
        good, reason = self.rbac.allowed(user, request)
        if good:
            return True, reason
        reasons = [f"{name}: {why}" for name, why in (("node", node_reason), ("rbac", reason)) if why]
        return False, "\n".join(reasons)

    def rules_for(self, user: User, namespace: str) -> RulesReview:
        """Every rule that applies to the user in the namespace."""
        resource_rules: list[Object] = []
        non_resource_rules: list[Object] = []
        if SYSTEM_MASTERS in user.groups:
            resource_rules.append({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
            non_resource_rules.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
        problems: list[str] = []
        if incomplete := node_identity(user) is not None:
            problems.append("node authorizer does not support user rule resolution")
        held = self.rbac.rules_of(user, namespace)
        problems += held.problems
        for rule in held.policy_rules():
            if rule.get("resources"):
                keys = ("verbs", "apiGroups", "resources", "resourceNames")
                resource_rules.append({key: rule[key] for key in keys if rule.get(key)})
            if rule.get("nonResourceURLs"):
                non_resource_rules.append({key: rule[key] for key in ("verbs", "nonResourceURLs") if rule.get(key)})
        problem = aggregate(problems) if problems else ""
        return RulesReview(resource_rules, non_resource_rules, incomplete, problem)
