"""ResourceQuotas: what a namespace uses, counted anew when something comes, goes, or costs otherwise.

The status is for users. Admission counts by itself, so that a quota is never overrun however late this count is.
"""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery import quota as quotas
from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS, GVR, RESOURCEQUOTAS
from kone.apimachinery.objects import Key, Object, dig, key_of, namespace_of, replace_in
from kone.apimachinery.quota import Costs, Evaluator, Usage
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, KeysOf, Reconciler, Result, Watch

RESYNC_S = 300.0
"""How often a quota is counted although nothing happened (kube-controller-manager's --resource-quota-sync-period): what
somebody else wrote into its status is put right then."""

# Decide


def costs_otherwise(quota: Object, evaluator: Evaluator, obj: Object, previous: Object, now: float) -> bool:
    """Whether the change makes the object cost more or less of this quota."""
    counted = quotas.counts(quota, evaluator, obj)
    if counted != quotas.counts(quota, evaluator, previous):
        return True
    return counted and evaluator.usage(obj, now) != evaluator.usage(previous, now)


def make_status(quota: Object, counted: Usage) -> Object:
    """What was counted; for names that nothing counts, what was used before stays."""
    hard = quotas.amounts(dig(quota, "spec", "hard"))
    used = {**quotas.amounts(dig(quota, "status", "used")), **counted}
    return {"hard": quotas.texts(hard), "used": quotas.texts({name: used[name] for name in hard if name in used})}


def is_same(status: Object, other: Object | None) -> bool:
    """Equal by amounts, however they are written."""
    return other is not None and all(
        quotas.amounts(status.get(part)) == quotas.amounts(other.get(part)) for part in ("hard", "used")
    )


# Act


class ResourceQuotas(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(RESOURCEQUOTAS)
        self._costs = Costs()
        self._followed: dict[str, tuple[Evaluator, Informer]] = {}

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_quota)
        for resource in self._new_resources():
            yield Watch(self._follow(resource), self._keys_of(resource))
        if CUSTOMRESOURCEDEFINITIONS in self._ctx.settings.collectable_resources():
            yield Watch(self._ctx.client.informer(CUSTOMRESOURCEDEFINITIONS), self._keys_of_definition)

    def _new_resources(self) -> Iterable[GVR]:
        for resource in self._ctx.settings.namespaced_resources():
            ignored = (resource.group, resource.resource) in quotas.IGNORED
            if not ignored and resource.group_resource not in self._followed:
                yield resource

    def _follow(self, resource: GVR) -> Informer:
        informer = self._ctx.client.informer(resource)
        self._followed[resource.group_resource] = quotas.evaluator_of(resource), informer
        return informer

    def _keys_of_quota(self, event: EventType, quota: Object, previous: Object | None) -> Iterable[Key]:
        """Only what is asked for matters: the status is written by this controller."""
        if event == "MODIFIED" and previous is not None and quota.get("spec") == previous.get("spec"):
            return ()
        return (key_of(quota),)

    def _keys_of_definition(self, event: EventType, obj: Object, previous: Object | None) -> Iterable[Key]:
        self._follow_new_resources()
        return [key_of(quota) for quota in self.primary.list()]

    def _keys_of(self, resource: GVR) -> KeysOf:
        evaluator, _ = self._followed[resource.group_resource]

        def keys(event: EventType, obj: Object, previous: Object | None) -> Iterable[Key]:
            here = self.primary.list(namespace_of(obj))
            concerned = [quota for quota in here if evaluator.matching(dig(quota, "spec", "hard", default={}))]
            if event == "MODIFIED" and previous is not None:
                now = self._ctx.clock.now()
                concerned = [q for q in concerned if costs_otherwise(q, evaluator, obj, previous, now)]
            return [key_of(quota) for quota in concerned]

        return keys

    async def reconcile(self, key: Key) -> Result | None:
        quota = self.primary.get(*key)
        if quota is None:
            return None
        status = make_status(quota, self._count(quota))
        if not is_same(status, quota.get("status")) or dig(quota, "status", "hard") is None:
            await self._ctx.client.update(RESOURCEQUOTAS, replace_in(quota, ("status",), status), subresource="status")
        return Result(after_s=RESYNC_S)

    def _count(self, quota: Object) -> Usage:
        counted: Usage = {}
        hard = dig(quota, "spec", "hard", default={})
        for evaluator, informer in self._followed.values():
            if evaluator.matching(hard) and informer.synced:
                objects = informer.list(namespace_of(quota))
                counted |= quotas.total(quota, self._costs.remembered(evaluator), objects, self._ctx.clock.now())
        return counted

    def _follow_new_resources(self) -> None:
        """Definitions add resources while we run."""
        for resource in list(self._new_resources()):
            informer = self._follow(resource)
            keys = self._keys_of(resource)

            def handler(event: EventType, obj: Object, previous: Object | None, keys: KeysOf = keys) -> None:
                for key in keys(event, obj, previous):
                    self._ctx.queue.add(key)

            informer.subscribe(handler)


RESOURCE_QUOTA_CONTROLLER = Controller("resourcequota-controller", ResourceQuotas)
