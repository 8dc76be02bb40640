"""RoleEscalation: nobody grants by a role or binding what they do not hold. Upstream asks this in its storage."""

from __future__ import annotations

from kone.admission.plugin import Attributes, Escalation, Plugin

GROUP = "rbac.authorization.k8s.io"


class RoleEscalation(Plugin):
    name = "RoleEscalation"
    resources = frozenset(
        (GROUP, resource) for resource in ("roles", "rolebindings", "clusterroles", "clusterrolebindings")
    )

    def __init__(self, escalation: Escalation) -> None:
        self._escalation = escalation

    async def mutate(self, a: Attributes) -> None:
        # On create the request has no name yet: a rule that names roles does not let one be made.
        name = a.name if a.operation == "UPDATE" else ""
        self._escalation.check(a.user, a.resource, a.object, a.old, namespace=a.namespace, name=name)
