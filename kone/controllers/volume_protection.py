"""Claims and volumes stay while they are used: a finalizer each, taken off when nobody needs them. Bound claims tell
since when no pod uses them (KEP 5541)."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.kinds import GVR, PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, PODS
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    find_condition,
    has_finalizer,
    is_deleting,
    is_pod_terminal,
    key_of,
    name_of,
    namespace_of,
    other_conditions,
    replace_in,
    with_finalizer,
    without_finalizer,
)
from kone.apimachinery.pod_references import claim_names
from kone.apimachinery.quota import attribute_classes
from kone.apimachinery.timestamps import format_time
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch
from kone.controllers.ephemeral_volumes import belongs_to
from kone.controllers.persistent_volumes import index_by_claim, users_of

CLAIM_FINALIZER = "kubernetes.io/pvc-protection"
VOLUME_FINALIZER = "kubernetes.io/pv-protection"
ATTRIBUTES_FINALIZER = "kubernetes.io/vac-protection"
ATTRIBUTES_CLASSES = GVR("storage.k8s.io", "v1", "volumeattributesclasses")
_BY_ATTRIBUTES = "volume attributes class"


# Decide


def holds(pod: Object, claim: Object) -> bool:
    """Whether the pod keeps the claim from going: one with a node does, until the object is gone. An ephemeral volume's
    claim is let go once the pod is shut down, since the pod may in turn wait for its claim."""
    return bool(dig(pod, "spec", "nodeName")) and _names(pod, claim, ephemeral=not _is_shut_down(pod))


def uses(pod: Object, claim: Object) -> bool:
    return not _is_over(pod) and _names(pod, claim, ephemeral=True)


def _names(pod: Object, claim: Object, *, ephemeral: bool) -> bool:
    for volume in dig(pod, "spec", "volumes", default=()):
        if dig(volume, "persistentVolumeClaim", "claimName") == name_of(claim):
            return True
        made = volume.get("ephemeral") is not None and f"{name_of(pod)}-{volume['name']}" == name_of(claim)
        if ephemeral and made and belongs_to(claim, pod):
            return True
    return False


def _is_shut_down(pod: Object) -> bool:
    return is_deleting(pod) and dig(pod, "metadata", "deletionGracePeriodSeconds") == 0


def _is_over(pod: Object) -> bool:
    """Finished, or being deleted with no container running any more."""
    if is_pod_terminal(pod):
        return True
    kinds = ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
    statuses = [status for kind in kinds for status in dig(pod, "status", kind, default=())]
    return is_deleting(pod) and not any("running" in (status.get("state") or {}) for status in statuses)


def unused_condition(claim: Object, used: bool, now: float) -> Object | None:
    """The condition to write; None where the claim tells the truth already."""
    old = find_condition(claim, "Unused")
    status = "False" if used else "True"
    if old is not None and old.get("status") == status:
        return None
    reason, message = "NoPodsUsingPVC", "No pods are currently referencing this PVC"
    if used:
        reason, message = "PodUsingPVC", "A pod is currently referencing this PVC"
    since = format_time(now)
    return {"type": "Unused", "status": status, "lastTransitionTime": since, "reason": reason, "message": message}


def with_unused_condition(claim: Object, condition: Object) -> Object:
    return replace_in(claim, ("status", "conditions"), [*other_conditions(claim, "Unused"), condition])


# Act


class ClaimProtection(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PERSISTENTVOLUMECLAIMS)
        self._pods: Informer = ctx.client.informer(PODS)
        index_by_claim(self._pods)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._pods, self._keys_of_pod)
        yield Watch(self.primary, self._keys_of_claim)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        return [Key(namespace_of(pod), name) for name in claim_names(pod)]

    def _keys_of_claim(self, event: EventType, claim: Object, previous: Object | None) -> Iterable[Key]:
        settled = has_finalizer(claim, CLAIM_FINALIZER) and not is_deleting(claim)
        if event != "DELETED" and (not settled or find_condition(claim, "Unused") is None):
            yield key_of(claim)

    async def reconcile(self, key: Key) -> Result | None:
        claim = self.primary.get(*key)
        if claim is None:
            return None
        users = users_of(self._pods, claim)
        if not is_deleting(claim):
            await self._tell_use(claim, users)
        protected = has_finalizer(claim, CLAIM_FINALIZER)
        if is_deleting(claim) and protected and not any(holds(pod, claim) for pod in users):
            await self._write(without_finalizer(claim, CLAIM_FINALIZER))
        elif not is_deleting(claim) and not protected:
            newest = self.primary.get(*key) or claim
            await self._write(with_finalizer(newest, CLAIM_FINALIZER))
        return None

    async def _tell_use(self, claim: Object, users: Iterable[Object]) -> None:
        """Only of bound claims, so that binding is not disturbed."""
        if dig(claim, "status", "phase") != "Bound":
            return
        used = any(uses(pod, claim) for pod in users)
        condition = unused_condition(claim, used, self._ctx.clock.now())
        if condition is not None:
            changed = with_unused_condition(claim, condition)
            await self._ctx.client.update(PERSISTENTVOLUMECLAIMS, changed, subresource="status")

    async def _write(self, claim: Object) -> None:
        await self._ctx.client.update(PERSISTENTVOLUMECLAIMS, claim)


class VolumeProtection(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PERSISTENTVOLUMES)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, volume: Object, previous: Object | None) -> Iterable[Key]:
        if event != "DELETED" and is_deleting(volume) == has_finalizer(volume, VOLUME_FINALIZER):
            yield key_of(volume)

    async def reconcile(self, key: Key) -> Result | None:
        volume = self.primary.get(*key)
        if volume is None:
            return None
        protected = has_finalizer(volume, VOLUME_FINALIZER)
        if is_deleting(volume) and protected and dig(volume, "status", "phase") != "Bound":
            await self._ctx.client.update(PERSISTENTVOLUMES, without_finalizer(volume, VOLUME_FINALIZER))
        elif not is_deleting(volume) and not protected:
            await self._ctx.client.update(PERSISTENTVOLUMES, with_finalizer(volume, VOLUME_FINALIZER))
        return None


class AttributesClassProtection(Reconciler):
    """Of VolumeAttributesClasses, while a volume or claim names them."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(ATTRIBUTES_CLASSES)
        self._claims: Informer = ctx.client.informer(PERSISTENTVOLUMECLAIMS)
        self._volumes: Informer = ctx.client.informer(PERSISTENTVOLUMES)
        self._claims.add_index(_BY_ATTRIBUTES, attribute_classes)
        self._volumes.add_index(_BY_ATTRIBUTES, attribute_classes)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._claims, self._keys_of_user)
        yield Watch(self._volumes, self._keys_of_user)
        yield Watch(self.primary, self._keys)

    def _keys_of_user(self, event: EventType, user: Object, previous: Object | None) -> Iterable[Key]:
        before = set(attribute_classes(previous)) if previous is not None else set[str]()
        after = set[str]() if event == "DELETED" else set(attribute_classes(user))
        return [Key("", name) for name in before - after]

    def _keys(self, event: EventType, attributes: Object, previous: Object | None) -> Iterable[Key]:
        if event != "DELETED" and is_deleting(attributes) == has_finalizer(attributes, ATTRIBUTES_FINALIZER):
            yield key_of(attributes)

    async def reconcile(self, key: Key) -> Result | None:
        attributes = self.primary.get(*key)
        if attributes is None:
            return None
        protected = has_finalizer(attributes, ATTRIBUTES_FINALIZER)
        used = any(users.by_index(_BY_ATTRIBUTES, key.name) for users in (self._claims, self._volumes))
        if is_deleting(attributes) and protected and not used:
            await self._ctx.client.update(ATTRIBUTES_CLASSES, without_finalizer(attributes, ATTRIBUTES_FINALIZER))
        elif not is_deleting(attributes) and not protected:
            await self._ctx.client.update(ATTRIBUTES_CLASSES, with_finalizer(attributes, ATTRIBUTES_FINALIZER))
        return None


CLAIM_PROTECTION_CONTROLLER = Controller(
    "persistentvolumeclaim-protection-controller", ClaimProtection, account="pvc-protection-controller"
)
VOLUME_PROTECTION_CONTROLLER = Controller(
    "persistentvolume-protection-controller", VolumeProtection, account="pv-protection-controller"
)
ATTRIBUTES_CLASS_PROTECTION_CONTROLLER = Controller(
    "volumeattributesclass-protection-controller", AttributesClassProtection
)
