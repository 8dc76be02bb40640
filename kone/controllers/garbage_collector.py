"""The garbage collector: what has owners goes when the last of them has gone.

A graph of owner references is kept from the informers of every resource. Deleting in the foreground, an owner waits
(finalizer foregroundDeletion) until the dependents that block it are gone; orphaning, it waits (finalizer orphan) until
its references are taken off its dependents. What the graph says is only a reason to look: whether an owner is there is
asked of the API before anything is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS, GVR, parse_api_version
from kone.apimachinery.objects import (
    Key,
    Object,
    has_finalizer,
    is_deleting,
    key_of,
    name_of,
    namespace_of,
    other_finalizers,
    owner_references,
    resource_version_of,
    uid_of,
)
from kone.client.client import EventType, Informer, Propagation
from kone.controllers.controller import (
    Context,
    Controller,
    KeysOf,
    NotYet,
    Reconciler,
    Result,
    Watch,
)
from kone.controllers.pod_control import first_error

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"


def waits_for_dependents(obj: Object) -> bool:
    return is_deleting(obj) and has_finalizer(obj, FOREGROUND)


def orphans_dependents(obj: Object) -> bool:
    return is_deleting(obj) and has_finalizer(obj, ORPHAN)


def blocks(obj: Object, owner_uid: str) -> bool:
    """Whether the dependent's reference blocks the owner's deletion in the foreground."""
    return any(ref["uid"] == owner_uid and ref.get("blockOwnerDeletion") for ref in owner_references(obj))


def refers_to(reference: Object, dependent: Object, owner: Object) -> bool:
    """Whether a reference names the owner rightly: kind, name and namespace, not only its UID. A cluster-scoped owner
    may be named from anywhere."""
    same_kind = reference["kind"] == owner["kind"] and reference["name"] == name_of(owner)
    same_group = parse_api_version(reference["apiVersion"])[0] == parse_api_version(owner["apiVersion"])[0]
    return same_kind and same_group and namespace_of(owner) in ("", namespace_of(dependent))


@dataclass(slots=True)
class Node:
    """An object in the graph: where it is found, and its newest state."""

    resource: GVR
    obj: Object


@dataclass(slots=True)
class Graph:
    """Objects by UID, and the UIDs of their dependents, also of owners that nobody has seen."""

    nodes: dict[str, Node] = field(default_factory=dict)
    dependents: dict[str, set[str]] = field(default_factory=dict)

    def put(self, resource: GVR, obj: Object) -> None:
        uid = uid_of(obj)
        known = self.nodes.get(uid)
        before = {ref["uid"] for ref in owner_references(known.obj)} if known is not None else set()
        after = {ref["uid"] for ref in owner_references(obj)}
        self.nodes[uid] = Node(resource, obj)
        for owner in after - before:
            self.dependents.setdefault(owner, set()).add(uid)
        for owner in before - after:
            self._forget(owner, uid)

    def remove(self, uid: str) -> None:
        known = self.nodes.pop(uid, None)
        if known is not None:
            for ref in owner_references(known.obj):
                self._forget(ref["uid"], uid)

    def of(self, owner_uid: str) -> list[Node]:
        """The dependents of an owner."""
        found = (self.nodes.get(uid) for uid in sorted(self.dependents.get(owner_uid, ())))
        return [node for node in found if node is not None]

    def _forget(self, owner: str, dependent: str) -> None:
        dependents = self.dependents.get(owner, set())
        dependents.discard(dependent)
        if not dependents:
            self.dependents.pop(owner, None)


def to_look_at(graph: Graph, event: EventType, obj: Object, previous: Object | None) -> set[str]:
    """The UIDs that an event is a reason to look at. The graph shows the event already."""
    uid = uid_of(obj)
    if event == "DELETED":
        waiting = {ref["uid"] for ref in owner_references(obj) if _waits(graph, ref["uid"])}
        return waiting | graph.dependents.get(uid, set())
    found: set[str] = set()
    before = {ref["uid"]: ref for ref in owner_references(previous)} if previous is not None else {}
    after = {ref["uid"]: ref for ref in owner_references(obj)}
    for owner_uid, reference in after.items():
        owner = graph.nodes.get(owner_uid)
        if before.get(owner_uid) != reference and (owner is None or not refers_to(reference, obj, owner.obj)):
            found.add(uid)
    for owner_uid, reference in before.items():
        if reference.get("blockOwnerDeletion") and not after.get(owner_uid, {}).get("blockOwnerDeletion"):
            found.add(owner_uid)
    if previous is None:
        # Those that came before it and name it wrongly.
        found |= {
            uid_of(node.obj)
            for node in graph.of(uid)
            if not any(ref["uid"] == uid and refers_to(ref, node.obj, obj) for ref in owner_references(node.obj))
        }
    if orphans_dependents(obj) and (previous is None or not orphans_dependents(previous)):
        found.add(uid)
    if waits_for_dependents(obj) and (previous is None or not waits_for_dependents(previous)):
        found |= {uid} | graph.dependents.get(uid, set())
    return found


def _waits(graph: Graph, uid: str) -> bool:
    node = graph.nodes.get(uid)
    return node is not None and waits_for_dependents(node.obj)


@dataclass(frozen=True, slots=True)
class Owners:
    """The references of an object by what has become of the owner."""

    solid: list[Object]
    dangling: list[Object]
    waiting: list[Object]
    """Owners that wait, in the foreground, for this very object to go."""


class GarbageCollector(Reconciler):
    """Keys name objects by UID: Key("", uid)."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._graph = Graph()
        self._followed: dict[GVR, Informer] = {}

    def subject(self, key: Key) -> Object | None:
        node = self._graph.nodes.get(key.name)
        return node.obj if node is not None else None

    def watches(self) -> Iterable[Watch]:
        for resource in self._ctx.settings.collectable_resources():
            if resource.resource != "events":
                informer = self._followed[resource] = self._ctx.client.informer(resource)
                yield Watch(informer, self._keys(resource))

    def _keys(self, resource: GVR) -> KeysOf:
        def keys(event: EventType, obj: Object, previous: Object | None) -> Iterable[Key]:
            known = self._graph.nodes.get(uid_of(obj))
            before = known.obj if known is not None else None
            if event == "DELETED":
                self._graph.remove(uid_of(obj))
            else:
                self._graph.put(resource, obj)
                if resource == CUSTOMRESOURCEDEFINITIONS:
                    self._follow_new_resources()
            return [Key("", uid) for uid in to_look_at(self._graph, event, obj, before)]

        return keys

    def _follow_new_resources(self) -> None:
        """Definitions add resources while we run."""
        for resource in self._ctx.settings.collectable_resources():
            if resource in self._followed or resource.resource == "events":
                continue
            informer = self._followed[resource] = self._ctx.client.informer(resource)
            keys = self._keys(resource)

            def handler(event: EventType, obj: Object, previous: Object | None, keys: KeysOf = keys) -> None:
                for key in keys(event, obj, previous):
                    self._ctx.queue.add(key)

            informer.subscribe(handler)

    async def reconcile(self, key: Key) -> Result | None:
        node = self._graph.nodes.get(key.name)
        if node is None:
            return None
        obj = node.obj
        if orphans_dependents(obj):
            await self._orphan_dependents(node)
        elif waits_for_dependents(obj):
            await self._await_dependents(node)
        elif not is_deleting(obj) and owner_references(obj):
            await self._collect(node)
        return None

    # Owners

    async def _orphan_dependents(self, node: Node) -> None:
        uid = uid_of(node.obj)
        error = await first_error(self._drop_references(dependent, {uid}) for dependent in self._graph.of(uid))
        if error is not None:
            raise error
        await self._drop_finalizer(node, ORPHAN)

    async def _await_dependents(self, node: Node) -> None:
        uid = uid_of(node.obj)
        blocking = [dependent for dependent in self._graph.of(uid) if blocks(dependent.obj, uid)]
        if not blocking:
            await self._drop_finalizer(node, FOREGROUND)
        for dependent in blocking:
            if not waits_for_dependents(dependent.obj):
                self._ctx.queue.add(Key("", uid_of(dependent.obj)))

    # Dependents

    async def _collect(self, node: Node) -> None:
        """Decide what a dependent's owners mean for it, and do it."""
        owners = await self._classify(node)
        if owners is None:
            return
        gone = {ref["uid"] for ref in (*owners.dangling, *owners.waiting)}
        if owners.solid:
            if gone:
                await self._drop_references(node, gone)
            return
        dependents = self._graph.of(uid_of(node.obj))
        if owners.waiting and dependents:
            if any(waits_for_dependents(dependent.obj) for dependent in dependents):
                # An owner and a dependent both wait: a circle that only unblocking ends.
                await self._unblock(node)
                node = self._graph.nodes.get(uid_of(node.obj), node)
            await self._delete(node, "Foreground")
            return
        policy: Propagation = "Background"
        if has_finalizer(node.obj, ORPHAN):
            policy = "Orphan"
        elif has_finalizer(node.obj, FOREGROUND):
            policy = "Foreground"
        await self._delete(node, policy)

    async def _classify(self, node: Node) -> Owners | None:
        """None where one of the owners cannot be judged: a namespaced owner of an object of the cluster's scope."""
        owners = Owners([], [], [])
        for reference in owner_references(node.obj):
            found = self._ctx.settings.resource_of_kind(reference["apiVersion"], reference["kind"])
            if found is None:
                raise NotYet(f"no resource is of kind {reference['apiVersion']} {reference['kind']}")
            resource, namespaced = found
            namespace = namespace_of(node.obj) if namespaced else ""
            if namespaced and not namespace:
                return None
            owner = await self._find(resource, reference["name"], namespace)
            if owner is None or uid_of(owner) != reference["uid"]:
                self._tell_wrong_namespace(node, reference)
                owners.dangling.append(reference)
            elif waits_for_dependents(owner):
                owners.waiting.append(reference)
            else:
                owners.solid.append(reference)
        return owners

    async def _find(self, resource: GVR, name: str, namespace: str) -> Object | None:
        try:
            return await self._ctx.client.get(resource, name, namespace)
        except StatusError as error:
            if error.code == 404:
                return None
            raise

    def _tell_wrong_namespace(self, node: Node, reference: Object) -> None:
        """The owner exists, but elsewhere: users should know why their object goes."""
        owner = self._graph.nodes.get(reference["uid"])
        namespace = namespace_of(node.obj)
        if owner is None or namespace_of(owner.obj) in ("", namespace):
            return
        identity = f"[{reference['apiVersion']}/{reference['kind']}, namespace: {namespace}, "
        identity += f"name: {reference['name']}, uid: {reference['uid']}]"
        message = f'ownerRef {identity} does not exist in namespace "{namespace}"'
        self._ctx.recorder.event(node.obj, "Warning", "OwnerRefInvalidNamespace", message)

    # Writes

    async def _delete(self, node: Node, propagation: Propagation) -> None:
        """Delete as it was judged: one that got other owners meanwhile is judged again (409)."""
        namespace, name = key_of(node.obj)
        client, version = self._ctx.client, resource_version_of(node.obj)
        uid = uid_of(node.obj)
        try:
            await client.delete(
                node.resource, name, namespace=namespace, uid=uid, resource_version=version, propagation=propagation
            )
        except StatusError as error:
            if error.code == 404:
                return
            latest = self._graph.nodes.get(uid)
            if error.code != 409 or latest is None or owner_references(latest.obj) != owner_references(node.obj):
                raise
            # Changed, but not in its owners: an object that changes all the time must not live for ever.
            await client.delete(node.resource, name, namespace=namespace, uid=uid, propagation=propagation)

    async def _drop_references(self, node: Node, owner_uids: set[str]) -> None:
        kept = [ref for ref in owner_references(node.obj) if ref["uid"] not in owner_uids]
        await self._patch(node, {"ownerReferences": kept or None})

    async def _unblock(self, node: Node) -> None:
        freed = [{**ref, "blockOwnerDeletion": False} for ref in owner_references(node.obj)]
        await self._patch(node, {"ownerReferences": freed})

    async def _drop_finalizer(self, node: Node, finalizer: str) -> None:
        kept = other_finalizers(node.obj, finalizer)
        await self._patch(node, {"finalizers": kept or None})

    async def _patch(self, node: Node, changes: dict[str, Any]) -> None:
        """A merge patch of metadata, on the state that it was decided on (409 else); one that has gone is no error."""
        namespace, name = key_of(node.obj)
        meta = {"uid": uid_of(node.obj), "resourceVersion": resource_version_of(node.obj), **changes}
        try:
            await self._ctx.client.patch(node.resource, name, {"metadata": meta}, namespace=namespace)
        except StatusError as error:
            if error.code != 404:
                raise


GARBAGE_COLLECTOR = Controller(
    "garbage-collector-controller", GarbageCollector, account="generic-garbage-collector", workers=20
)
