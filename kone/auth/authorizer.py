"""The authorizers in upstream's order: always-allowed paths, system:masters, then a chain, by default Node and RBAC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
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


Verdict = bool | None
"""True: allowed. False: no opinion, the next of the chain is asked. None: denied, nobody else is asked."""


class Link(Protocol):
    """One of the chain."""

    def allowed(self, user: User, request: AccessRequest) -> tuple[Verdict, str]:
        """(verdict, reason). Raises Unasked."""


class Unasked(Exception):
    """Nobody can say yet: somebody outside of this process has to be asked first, by `ask`; then the question is put
    again. Raised through what serves a request up to where the request is served again."""

    def __init__(self, ask: Callable[[], Awaitable[None]]) -> None:
        super().__init__("somebody else has to be asked first")
        self.ask = ask


class Always:
    """AlwaysAllow and AlwaysDeny."""

    def __init__(self, *, allows: bool) -> None:
        self.allows = allows

    def allowed(self, user: User, request: AccessRequest) -> tuple[Verdict, str]:
        return (True, "") if self.allows else (False, "Everything is forbidden.")


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
    """Whether a user may; `escalation` says whether they may grant. Reads the caches, never waits. `chain` are the
    links that are asked, by the names that refusals call them; it may be changed at any time."""

    def __init__(self, caches: Caches, node_rules: Iterable[Mapping[str, Any]]) -> None:
        self.rbac = RbacAuthorizer(caches)
        self.node = NodeAuthorizer(caches, node_rules)
        self.escalation = Escalation(self, self.rbac)
        self.chain: Sequence[tuple[str, Link]] = (("node", self.node), ("rbac", self.rbac))

    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]:
        """(True, reason) or (False, reasons); a reason may be "". Raises Unasked."""
        verdict, reason = self.decide(user, request)
        return verdict is True, reason

    def decide(self, user: User, request: AccessRequest) -> tuple[Verdict, str]:
        """As `allowed`, with None where the user is denied outright."""
        if SYSTEM_MASTERS in user.groups:
            return True, ""
        if request.path in ALWAYS_ALLOWED_PATHS and not request.resource:
            return True, ""
        reasons: list[str] = []
        for name, link in self.chain:
            verdict, reason = link.allowed(user, request)
            if verdict:
                return True, reason
            if reason:
                reasons.append(f"{name}: {reason}")
            if verdict is None:
                return None, "\n".join(reasons)
        return False, "\n".join(reasons)

    def rules_for(self, user: User, namespace: str) -> RulesReview:
        """Every rule that applies to the user in the namespace."""
        resource_rules: list[Object] = []
        non_resource_rules: list[Object] = []
        if SYSTEM_MASTERS in user.groups:
            resource_rules.append({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
            non_resource_rules.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
        problems: list[str] = []
        incomplete = False
        links = [link for _, link in self.chain]
        if self.node in links and node_identity(user) is not None:
            incomplete = True
            problems.append("node authorizer does not support user rule resolution")
        for link in links:
            if isinstance(link, Always) and link.allows:
                resource_rules.append({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
                non_resource_rules.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
            elif not isinstance(link, (Always, NodeAuthorizer, RbacAuthorizer)):
                incomplete = True
                problems.append("webhook authorizer does not support user rule resolution")
        if self.rbac not in links:
            return RulesReview(resource_rules, non_resource_rules, incomplete, aggregate(problems) if problems else "")
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
