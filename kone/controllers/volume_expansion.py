"""Claims that ask for more than they have: kone has no volumes of its own to expand, so it tells who is waited for."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES
from kone.apimachinery.objects import Key, Object, annotations_of, dig, key_of
from kone.apimachinery.quantity import ZERO, Quantity, parse_quantity
from kone.apimachinery.volume_claims import is_bound_to
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch
from kone.controllers.volume_rules import PRE_RESIZE_CAPACITY


def asked(claim: Object) -> Quantity:
    amount = dig(claim, "spec", "resources", "requests", "storage")
    return ZERO if amount is None else parse_quantity(amount)


def has(claim: Object) -> Quantity:
    amount = dig(claim, "status", "capacity", "storage")
    return ZERO if amount is None else parse_quantity(amount)


class VolumeExpansion(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PERSISTENTVOLUMECLAIMS)
        self._volumes: Informer = ctx.client.informer(PERSISTENTVOLUMES)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._volumes, lambda event, obj, previous: ())
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, claim: Object, previous: Object | None) -> Iterable[Key]:
        if event == "DELETED" or dig(claim, "status", "phase") != "Bound":
            return
        if previous is None or asked(claim) > asked(previous) or has(claim) > has(previous):
            yield key_of(claim)

    async def reconcile(self, key: Key) -> Result | None:
        claim = self.primary.get(*key)
        volume = self._volumes.get("", dig(claim, "spec", "volumeName", default="")) if claim is not None else None
        if claim is None or volume is None or not is_bound_to(volume, claim):
            return None
        if asked(claim) > has(claim) or PRE_RESIZE_CAPACITY in annotations_of(volume):
            message = "waiting for an external controller to expand this PVC"
            self._ctx.recorder.event(claim, "Normal", "ExternalExpanding", message)
        return None


VOLUME_EXPANSION_CONTROLLER = Controller(
    "persistentvolume-expander-controller",
    VolumeExpansion,
    account="expand-controller",
    component="volume_expand",
)
