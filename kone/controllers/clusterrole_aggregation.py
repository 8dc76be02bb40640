"""ClusterRoles that gather the rules of others: "view" gets what is labelled for it, and so do "edit" and "admin"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery.kinds import CLUSTERROLES
from kone.apimachinery.objects import Key, Object, dig, key_of, labels_of, name_of
from kone.apimachinery.selectors import from_label_selector
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch


def aggregate(role: Object, roles: Sequence[Object]) -> list[Object]:
    """The rules of all roles that a selector of the rule matches, in the order of selectors and names, each once."""
    rules: list[Object] = []
    for selector in dig(role, "aggregationRule", "clusterRoleSelectors", default=()):
        matching = from_label_selector(selector)
        for other in sorted(roles, key=name_of):
            if name_of(other) != name_of(role) and matching.matches(labels_of(other)):
                rules += [rule for rule in other.get("rules") or () if rule not in rules]
    return rules


class ClusterRoleAggregation(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(CLUSTERROLES)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, role: Object, previous: Object | None) -> Iterable[Key]:
        """Any role may matter to any that aggregates; of those there are few."""
        return [key_of(role) for role in self.primary.list() if role.get("aggregationRule") is not None]

    async def reconcile(self, key: Key) -> Result | None:
        role = self.primary.get(*key)
        if role is None or role.get("aggregationRule") is None:
            return None
        rules = aggregate(role, self.primary.list())
        if rules != (role.get("rules") or []):
            await self._ctx.client.patch(CLUSTERROLES, key.name, {"rules": rules})
        return None


CLUSTERROLE_AGGREGATION_CONTROLLER = Controller("clusterrole-aggregation-controller", ClusterRoleAggregation)
