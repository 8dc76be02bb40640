"""PersistentVolumes and the claims that get them: bound to each other, released, reclaimed; provisioners are asked."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable

from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, PODS, STORAGECLASSES
from kone.apimachinery.objects import (
    Key,
    Object,
    annotations_of,
    dig,
    is_pod_terminal,
    key_of,
    name_of,
    namespace_of,
    replace_in,
)
from kone.apimachinery.pod_references import claim_names
from kone.apimachinery.volume_claims import BIND_COMPLETED
from kone.client.client import EventType, Informer
from kone.controllers import volume_rules as rules
from kone.controllers.controller import Context, Controller, NotYet, Reconciler, Result, Watch, for_object
from kone.controllers.volume_rules import Shelf, Telling

_UNBOUND = "unbound"
_BY_VOLUME = "volume"
_BY_CLAIM = "claim"


def index_by_claim(pods: Informer) -> None:
    """Let pods be looked up by "namespace/name" of each claim that they use."""
    pods.add_index(_BY_CLAIM, lambda pod: [f"{namespace_of(pod)}/{name}" for name in claim_names(pod)])


def users_of(pods: Informer, claim: Object) -> list[Object]:
    return pods.by_index(_BY_CLAIM, f"{namespace_of(claim)}/{name_of(claim)}")


def _claim_index(claim: Object) -> Iterable[str]:
    if BIND_COMPLETED not in annotations_of(claim):
        yield _UNBOUND
    if volume := dig(claim, "spec", "volumeName"):
        yield f"{_BY_VOLUME}/{volume}"


def _claim_key(volume: Object) -> Key | None:
    reference = dig(volume, "spec", "claimRef")
    return None if reference is None else Key(reference.get("namespace", ""), reference.get("name", ""))


class PersistentVolumes(Reconciler):
    """Keys name claims, or volumes where the namespace is "". One worker: what it binds, it does not bind twice."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PERSISTENTVOLUMECLAIMS)
        self._volumes: Informer = ctx.client.informer(PERSISTENTVOLUMES)
        self._classes: Informer = ctx.client.informer(STORAGECLASSES)
        self._pods: Informer = ctx.client.informer(PODS)
        self.primary.add_index("binding", _claim_index)
        self._volumes.add_index(_BY_CLAIM, lambda v: [f"{key[0]}/{key[1]}"] if (key := _claim_key(v)) else [])
        index_by_claim(self._pods)

    def subject(self, key: Key) -> Object | None:
        return self.primary.get(*key) if key.namespace else self._volumes.get("", key.name)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._volumes, self._keys_of_volume)
        yield Watch(self.primary, self._keys_of_claim)
        yield Watch(self._classes, lambda event, obj, previous: self._unbound())
        yield Watch(self._pods, self._keys_of_pod)

    def _unbound(self) -> list[Key]:
        return [key_of(claim) for claim in self.primary.by_index("binding", _UNBOUND)]

    def _keys_of_volume(self, event: EventType, volume: Object, previous: Object | None) -> Iterable[Key]:
        """The volume, the claims that name it or are named by it, and those that it could suit."""
        yield key_of(volume)
        yield from (key_of(c) for c in self.primary.by_index("binding", f"{_BY_VOLUME}/{name_of(volume)}"))
        for state in (volume, previous):
            if state is not None and (key := _claim_key(state)) is not None:
                yield key
        if event != "DELETED" and dig(volume, "status", "phase") == "Available":
            yield from self._unbound()

    def _keys_of_claim(self, event: EventType, claim: Object, previous: Object | None) -> Iterable[Key]:
        yield from for_object(event, claim, previous)
        for state in (claim, previous):
            if state is not None and (volume := dig(state, "spec", "volumeName")):
                yield Key("", volume)
        index = f"{namespace_of(claim)}/{name_of(claim)}"
        yield from (key_of(volume) for volume in self._volumes.by_index(_BY_CLAIM, index))

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        """A new user of a claim that waits for one is worth telling."""
        if event != "ADDED":
            return
        for name in claim_names(pod):
            claim = self.primary.get(namespace_of(pod), name)
            if claim is not None and BIND_COMPLETED not in annotations_of(claim):
                yield key_of(claim)

    async def reconcile(self, key: Key) -> Result | None:
        if key.namespace:
            claim = self.primary.get(*key)
            if claim is not None:
                await self._sync_claim(claim)
        else:
            volume = self._volumes.get("", key.name)
            if volume is not None:
                await self._sync_volume(volume)
        return None

    # Claims

    async def _sync_claim(self, claim: Object) -> None:
        shelf = Shelf(
            {name_of(volume): volume for volume in self._volumes.list()},
            {name_of(storage_class): storage_class for storage_class in self._classes.list()},
        )
        plan = rules.plan_claim(claim, shelf, self._waiting_pods(claim))
        client = self._ctx.client
        if plan.tell is not None and not (plan.tell_once and dig(claim, "status", "phase") == plan.phase):
            self._tell(claim, plan.tell)
        if plan.bind is not None:
            await self._bind(plan.bind, claim)
        elif plan.assign_class:
            changed = replace_in(claim, ("spec", "storageClassName"), plan.assign_class)
            await client.update(PERSISTENTVOLUMECLAIMS, changed)
        elif plan.provisioner:
            changed = rules.with_provisioner(claim, plan.provisioner)
            if changed is not claim:
                await client.update(PERSISTENTVOLUMECLAIMS, changed)
        elif plan.phase:
            await self._write_claim_status(claim, plan.phase, None)
        if plan.refuse:
            raise NotYet(plan.refuse)

    def _waiting_pods(self, claim: Object) -> list[str]:
        users = users_of(self._pods, claim)
        return [name_of(pod) for pod in users if not is_pod_terminal(pod) and not dig(pod, "spec", "nodeName")]

    async def _bind(self, volume: Object, claim: Object) -> None:
        client = self._ctx.client
        changed = rules.bound_volume(volume, claim)
        if changed is not volume:
            volume = await client.update(PERSISTENTVOLUMES, changed)
        await self._write_phase(volume, "Bound")
        changed = rules.bound_claim(claim, volume)
        if changed is not claim:
            claim = await client.update(PERSISTENTVOLUMECLAIMS, changed)
        await self._write_claim_status(claim, "Bound", volume)

    async def _write_claim_status(self, claim: Object, phase: str, volume: Object | None) -> None:
        status = rules.claim_status(claim, phase, volume)
        if status != (claim.get("status") or {}):
            changed = replace_in(claim, ("status",), status)
            await self._ctx.client.update(PERSISTENTVOLUMECLAIMS, changed, subresource="status")

    # Volumes

    async def _sync_volume(self, volume: Object) -> None:
        key = _claim_key(volume)
        claim = self.primary.get(*key) if key is not None else None
        plan = rules.plan_volume(volume, claim)
        if plan.tell is not None:
            self._tell(volume, plan.tell)
        if plan.tell_claim is not None and claim is not None:
            self._tell(claim, plan.tell_claim)
        if plan.phase:
            volume = await self._write_phase(volume, plan.phase)
        if plan.look_at_claim and key is not None:
            self._ctx.queue.add(key)
        if plan.unbind:
            volume = await self._ctx.client.update(PERSISTENTVOLUMES, rules.unbound_volume(volume))
            await self._write_phase(volume, "Available")
        if plan.reclaim:
            await self._reclaim(volume)

    async def _write_phase(self, volume: Object, phase: str, message: str = "") -> Object:
        if dig(volume, "status", "phase") == phase:
            return volume
        changed = replace_in(volume, ("status",), rules.volume_status(volume, phase, message))
        return await self._ctx.client.update(PERSISTENTVOLUMES, changed, subresource="status")

    async def _reclaim(self, volume: Object) -> None:
        plan = rules.plan_reclaim(volume)
        failure = plan.failure
        if plan.remove_path:
            try:
                await asyncio.to_thread(_remove, plan.remove_path)
            except OSError as error:
                failure = Telling("Warning", "VolumeFailedDelete", str(error))
            else:
                await self._ctx.client.delete(PERSISTENTVOLUMES, name_of(volume))
        if failure is not None and dig(volume, "status", "phase") != "Failed":
            volume = await self._write_phase(volume, "Failed", failure.message)
            self._tell(volume, failure)

    def _tell(self, obj: Object, telling: Telling) -> None:
        self._ctx.recorder.event(obj, telling.kind, telling.reason, telling.message)


def _remove(path: str) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass


PERSISTENT_VOLUME_BINDER = Controller(
    "persistentvolume-binder-controller",
    PersistentVolumes,
    account="persistent-volume-binder",
    component="persistentvolume-controller",
    workers=1,
)
