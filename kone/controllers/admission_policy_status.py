"""The status of ValidatingAdmissionPolicies: which generation was looked at, and what its expressions get wrong."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Key, Object, key_of
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch

POLICIES = GVR("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies")


class PolicyStatus(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(POLICIES)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, policy: Object, previous: Object | None) -> Iterable[Key]:
        return () if event == "DELETED" or _is_looked_at(policy) else (key_of(policy),)

    async def reconcile(self, key: Key) -> Result | None:
        policy = self.primary.get(*key)
        if policy is None or _is_looked_at(policy):
            return None
        warnings = self._ctx.settings.policy_warnings(policy)
        status: Object = {
            "observedGeneration": policy["metadata"].get("generation", 0),
            "typeChecking": {"expressionWarnings": warnings} if warnings else {},
        }
        await self._ctx.client.patch(POLICIES, key.name, {"status": status}, subresource="status")
        return None


def _is_looked_at(policy: Object) -> bool:
    seen: int = (policy.get("status") or {}).get("observedGeneration", 0)
    generation: int = policy["metadata"].get("generation", 0)
    return seen >= generation


ADMISSION_POLICY_STATUS_CONTROLLER = Controller("validatingadmissionpolicy-status-controller", PolicyStatus)
