"""coordination.k8s.io: leases, by which loops elect a leader and nodes say that they live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import FieldError, invalid_value
from kone.apimachinery.kinds import LEASES
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.users import User
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import NOT_POSITIVE, Errors, at_least_0
from kone.registry.strategy import Strategy

NODE_LEASES = "kube-node-lease"


class _Lease(Strategy):
    create_on_update = True
    unconditional_update = False
    kube_finalizers = False

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        # CoordinatedLeaderElection is off by default: its fields are kept only where they are already.
        before = (old or {}).get("spec") or {}
        for name in ("strategy", "preferredHolder"):
            if before.get(name) is None:
                obj["spec"].pop(name, None)

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj.get("spec") or {}
        duration = spec.get("leaseDurationSeconds")
        if duration is not None and duration <= 0:
            errors.append(invalid_value("spec.leaseDurationSeconds", duration, NOT_POSITIVE))
        at_least_0(errors, "spec.leaseTransitions", spec.get("leaseTransitions"))
        return errors

    def is_volatile(self, obj: Object) -> bool:
        """Heartbeats of nodes: the next one is ten seconds away."""
        return bool(obj["metadata"].get("namespace") == NODE_LEASES)


RESOURCES: Sequence[Resource] = (
    Resource(
        LEASES,
        "Lease",
        _Lease(),
        columns=(NAME, Column("Holder", lambda obj, now: dig(obj, "spec", "holderIdentity", default="")), AGE),
    ),
)
