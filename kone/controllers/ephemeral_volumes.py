"""Generic ephemeral volumes: a claim for each, made for the pod and going with it."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS, PODS
from kone.apimachinery.objects import (
    Key,
    Object,
    controller_reference,
    dig,
    is_controlled_by,
    is_deleting,
    key_of,
    metadata,
    name_of,
    namespace_of,
)
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, NotYet, Reconciler, Result, Watch
from kone.controllers.persistent_volumes import index_by_claim, users_of


def ephemeral_volumes(pod: Object) -> list[Object]:
    return [volume for volume in dig(pod, "spec", "volumes", default=()) if volume.get("ephemeral") is not None]


def belongs_to(claim: Object, pod: Object) -> bool:
    """Whether the claim was made for this pod, and not before it under the same name by someone."""
    return namespace_of(claim) == namespace_of(pod) and is_controlled_by(claim, pod)


def claim_for(pod: Object, volume: Object) -> Object:
    template = volume["ephemeral"].get("volumeClaimTemplate") or {}
    meta: Object = {
        "name": f"{name_of(pod)}-{volume['name']}",
        "namespace": namespace_of(pod),
        "ownerReferences": [controller_reference(pod)],
    }
    meta |= {key: value for key, value in metadata(template).items() if key in ("annotations", "labels")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": meta,
        "spec": dict(template.get("spec") or {}),
    }


class EphemeralVolumes(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PODS)
        self._claims: Informer = ctx.client.informer(PERSISTENTVOLUMECLAIMS)
        index_by_claim(self.primary)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_pod)
        yield Watch(self._claims, self._keys_of_claim)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        if event == "ADDED" and not is_deleting(pod) and ephemeral_volumes(pod):
            yield key_of(pod)

    def _keys_of_claim(self, event: EventType, claim: Object, previous: Object | None) -> Iterable[Key]:
        """A claim that was deleted is made again while its pod is there."""
        if event == "DELETED":
            for pod in users_of(self.primary, claim):
                yield from self._keys_of_pod("ADDED", pod, None)

    async def reconcile(self, key: Key) -> Result | None:
        pod = self.primary.get(*key)
        if pod is None or is_deleting(pod):
            return None
        for volume in ephemeral_volumes(pod):
            try:
                await self._ensure(pod, volume)
            except NotYet as why:
                message = f"ephemeral volume {volume['name']}: {why}"
                self._ctx.recorder.event(pod, "Warning", "FailedBinding", message)
                raise
        return None

    async def _ensure(self, pod: Object, volume: Object) -> None:
        """Raises NotYet, with what keeps the volume from its claim."""
        wanted = claim_for(pod, volume)
        found = self._claims.get(namespace_of(pod), name_of(wanted))
        if found is None:
            try:
                await self._ctx.client.create(PERSISTENTVOLUMECLAIMS, wanted, namespace=namespace_of(pod))
            except StatusError as error:
                raise NotYet(f"create PVC {name_of(wanted)}: {error}") from error
        elif not belongs_to(found, pod):
            where = f"{namespace_of(pod)}/{name_of(wanted)}"
            raise NotYet(f"PVC {where} was not created for pod {namespace_of(pod)}/{name_of(pod)} (pod is not owner)")


EPHEMERAL_VOLUME_CONTROLLER = Controller("ephemeral-volume-controller", EphemeralVolumes, component="ephemeral_volume")
