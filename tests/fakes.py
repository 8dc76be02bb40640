"""Fakes that keep the contracts of the real things: FakeClient is an API server's storage and write path in one dict.

It knows what loops depend on (revisions, conflicts, finalizers, graceful pod deletion, status apart from spec), and
nothing of defaults, validation or authorization. tests/contracts/test_client.py holds it to what the real clients do.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kone.aio.clock import Clock, FakeClock
from kone.apimachinery import errors
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, NAMESPACES, PODS, REPLICATIONCONTROLLERS
from kone.apimachinery.objects import (
    Key,
    Object,
    deep_copy,
    dig,
    gvk_of,
    is_deleting,
    is_pod_terminal,
    key_of,
    labels_of,
    name_of,
    replace_in,
    resource_version_of,
    uid_of,
)
from kone.apimachinery.patch import json_patch, merge_patch, strategic_merge_patch
from kone.apimachinery.selectors import parse_field_selector, parse_label_selector
from kone.apimachinery.timestamps import format_time
from kone.client.client import EventType, Objects, PatchKind, Propagation
from kone.client.view import View

Refusal = Callable[[str, GVR, Object], StatusError | None]


class FakeClient:
    """A Client whose world is a dict. `refuse` may give a StatusError for (verb, resource, object)."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or FakeClock()
        self.refuse: Refusal = lambda verb, resource, obj: None
        self._revisions = itertools.count(1000)
        self._objects: dict[GVR, dict[Key, Object]] = {}
        self._views: dict[tuple[GVR, str], View] = {}
        self._suffixes = itertools.count(1)

    # Reading

    async def get(self, resource: GVR, name: str, namespace: str = "", *, subresource: str = "") -> Object:
        found = self._get(resource, name, namespace)
        if subresource == "scale":
            return self._scale_of(resource, found)
        return found

    async def list(self, resource: GVR, namespace: str = "", *, labels: str = "", fields: str = "") -> Objects:
        return list(self._matching(resource, namespace, labels, fields))

    def informer(self, resource: GVR, *, fields: str = "") -> View:
        view = self._views.get((resource, fields))
        if view is None:
            view = self._views[resource, fields] = View(f"{resource.group_resource} {fields}".strip())
            view.replace(self._matching(resource, "", "", fields))
        return view

    def of(self, resource: GVR, namespace: str = "") -> Objects:
        """Every object of the resource, for tests that look at the state of the world."""
        return list(self._matching(resource, namespace, "", ""))

    def look(self, resource: GVR, obj: Object) -> Object:
        """The newest state of the object."""
        return self._get(resource, name_of(obj), key_of(obj).namespace)

    # Writing

    async def create(
        self, resource: GVR, obj: Object, *, namespace: str = "", subresource: str = "", name: str = ""
    ) -> Object:
        self._ask("create", resource, obj)
        if subresource:
            return await self._create_subresource(resource, obj, namespace, name, subresource)
        return self.put(resource, obj, namespace=namespace)

    def put(self, resource: GVR, obj: Object, *, namespace: str = "") -> Object:
        """Create without waiting: how a test sets up its world. Status and metadata are kept as they are given."""
        meta = dict(obj.get("metadata") or {})
        if namespace:
            meta["namespace"] = namespace
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + f"{next(self._suffixes):05x}"
        key = Key(meta.get("namespace", ""), meta["name"])
        if key in self._stored(resource):
            raise errors.already_exists(resource.group_resource, key.name)
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", format_time(self.clock.now()))
        meta.setdefault("generation", 1)
        return self._commit(resource, {**obj, "metadata": meta}, None)

    def overwrite(self, resource: GVR, obj: Object) -> Object:
        """Store as it is, whatever the rules: status and spec alike."""
        return self._commit(resource, obj, self.look(resource, obj))

    async def update(self, resource: GVR, obj: Object, *, subresource: str = "") -> Object:
        self._ask("update", resource, obj)
        return self._update(resource, obj, subresource)

    async def patch(
        self,
        resource: GVR,
        name: str,
        patch: Any,
        *,
        namespace: str = "",
        subresource: str = "",
        kind: PatchKind = "merge",
    ) -> Object:
        old = self._get(resource, name, namespace)
        self._ask("patch", resource, old)
        if kind == "merge":
            new = merge_patch(deep_copy(old), patch)
        elif kind == "strategic":
            new = strategic_merge_patch(deep_copy(old), patch, gvk_of(old))
        else:
            new = json_patch(deep_copy(old), patch)
        return self._update(resource, new, subresource)

    async def delete(
        self,
        resource: GVR,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        resource_version: str = "",
        grace_s: int | None = None,
        propagation: Propagation = "",
    ) -> None:
        old = self._get(resource, name, namespace)
        self._ask("delete", resource, old)
        if uid and uid != uid_of(old):
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {uid_of(old)}"
            raise errors.conflict(resource.group_resource, name, why)
        if resource_version and resource_version != resource_version_of(old):
            why = (
                f"Precondition failed: ResourceVersion in precondition: {resource_version}, "
                f"ResourceVersion in object meta: {resource_version_of(old)}"
            )
            raise errors.conflict(resource.group_resource, name, why)
        finalizers = list(old["metadata"].get("finalizers") or [])
        if propagation:
            finalizers = [f for f in finalizers if f not in _PROPAGATION.values()]
        if propagation in _PROPAGATION:
            finalizers.append(_PROPAGATION[propagation])
        grace = self._grace_of(resource, old, grace_s)
        new = replace_in(old, ("metadata", "finalizers"), finalizers)
        if resource == NAMESPACES:
            new = replace_in(new, ("status", "phase"), "Terminating")
        if not is_deleting(old):
            new = replace_in(new, ("metadata", "deletionTimestamp"), format_time(self.clock.now() + grace))
            new = replace_in(new, ("metadata", "deletionGracePeriodSeconds"), grace)
        elif grace < old["metadata"]["deletionGracePeriodSeconds"]:
            new = replace_in(new, ("metadata", "deletionGracePeriodSeconds"), grace)
        if _is_held(resource, new):
            if new != old:
                self._commit(resource, new, old)
        else:
            self._remove(resource, old)

    async def delete_collection(
        self,
        resource: GVR,
        *,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        propagation: Propagation = "",
    ) -> None:
        for obj in list(self._matching(resource, namespace, labels, fields)):
            await self.delete(resource, name_of(obj), namespace=key_of(obj).namespace, propagation=propagation)

    # The world

    def _stored(self, resource: GVR) -> dict[Key, Object]:
        return self._objects.setdefault(resource, {})

    def _get(self, resource: GVR, name: str, namespace: str) -> Object:
        found = self._stored(resource).get(Key(namespace, name))
        if found is None:
            raise errors.not_found(resource.group_resource, name)
        return found

    def _ask(self, verb: str, resource: GVR, obj: Object) -> None:
        error = self.refuse(verb, resource, obj)
        if error is not None:
            raise error

    def _scale_of(self, resource: GVR, obj: Object) -> Object:
        if "replicas" not in (obj.get("spec") or {}):
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
        meta = {key: obj["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
        status: Object = {"replicas": dig(obj, "status", "replicas", default=0)}
        selector = dig(obj, "spec", "selector", default={})
        labels = selector if resource == REPLICATIONCONTROLLERS else selector.get("matchLabels", {})
        status["selector"] = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        spec = {"replicas": replicas} if (replicas := obj["spec"]["replicas"]) else {}
        return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status}

    def _matching(self, resource: GVR, namespace: str, labels: str, fields: str) -> Iterator[Object]:
        label_selector, field_selector = parse_label_selector(labels), parse_field_selector(fields)
        for key, obj in sorted(self._stored(resource).items()):
            if namespace and key.namespace != namespace:
                continue
            if label_selector.matches(labels_of(obj)) and field_selector.matches(_Fields(obj)):
                yield obj

    def _commit(self, resource: GVR, obj: Object, old: Object | None) -> Object:
        obj = replace_in(deep_copy(obj), ("metadata", "resourceVersion"), str(next(self._revisions)))
        self._stored(resource)[key_of(obj)] = obj
        self._tell(resource, "MODIFIED" if old else "ADDED", obj)
        return obj

    def _remove(self, resource: GVR, old: Object) -> None:
        del self._stored(resource)[key_of(old)]
        gone = replace_in(old, ("metadata", "resourceVersion"), str(next(self._revisions)))
        self._tell(resource, "DELETED", gone)

    def _tell(self, resource: GVR, kind: EventType, obj: Object) -> None:
        for (watched, fields), view in list(self._views.items()):
            if watched == resource:
                matches = parse_field_selector(fields).matches(_Fields(obj))
                view.apply(kind if matches else "DELETED", obj)

    def _update(self, resource: GVR, obj: Object, subresource: str) -> Object:
        key = key_of(obj)
        old = self._get(resource, key.name, key.namespace)
        if (uid_of(obj) or uid_of(old)) != uid_of(old):
            why = f"Precondition failed: UID in precondition: {uid_of(obj)}, UID in object meta: {uid_of(old)}"
            raise errors.conflict(resource.group_resource, key.name, why)
        if resource_version_of(obj) not in ("", resource_version_of(old)):
            raise errors.conflict(resource.group_resource, key.name, errors.MODIFIED)
        if subresource in ("status", "approval"):
            # As upstream's status strategies: the spec stays, metadata (annotations, finalizers) goes along.
            new = {**old, "metadata": obj["metadata"], "status": obj.get("status") or {}}
        elif subresource == "finalize":
            new = replace_in(old, ("spec", "finalizers"), dig(obj, "spec", "finalizers", default=[]))
        elif subresource == "scale":
            new = replace_in(old, ("spec", "replicas"), dig(obj, "spec", "replicas", default=0))
        else:
            new = dict(obj)
            if "status" in old:
                new["status"] = old["status"]
        meta = dict(new["metadata"])
        for name in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"):
            if name in old["metadata"]:
                meta[name] = old["metadata"][name]
        if not meta.get("finalizers"):
            meta.pop("finalizers", None)
        meta["generation"] = old["metadata"]["generation"] + (new.get("spec") != old.get("spec"))
        new["metadata"] = meta
        if is_deleting(new) and not _is_held(resource, new):
            self._remove(resource, new)
            return new
        if new == old:
            return old
        return self._commit(resource, new, old)

    def _grace_of(self, resource: GVR, old: Object, asked: int | None) -> int:
        if resource != PODS or not dig(old, "spec", "nodeName") or is_pod_terminal(old):
            return 0
        return int(dig(old, "spec", "terminationGracePeriodSeconds", default=30)) if asked is None else asked

    async def _create_subresource(self, resource: GVR, obj: Object, namespace: str, name: str, sub: str) -> Object:
        parent = self._get(resource, name or name_of(obj), namespace)
        if sub == "binding":
            condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": format_time(self.clock.now())}
            others = [c for c in dig(parent, "status", "conditions", default=[]) if c["type"] != "PodScheduled"]
            bound = replace_in(parent, ("spec", "nodeName"), obj["target"]["name"])
            self._commit(resource, replace_in(bound, ("status", "conditions"), [*others, condition]), parent)
        elif sub == "eviction":
            await self.delete(resource, name_of(parent), namespace=namespace)
        elif sub == "token":
            expires = format_time(self.clock.now() + dig(obj, "spec", "expirationSeconds", default=3600))
            said = {"token": f"token {next(self._suffixes)} of {name}", "expirationTimestamp": expires}
            return {**obj, "status": said}
        else:
            raise errors.not_found(resource.group_resource, f"{name}/{sub}")
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


_PROPAGATION: Mapping[str, str] = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}


def _is_held(resource: GVR, obj: Object) -> bool:
    """Whether an object being deleted must stay a while."""
    if obj["metadata"].get("finalizers") or (resource == NAMESPACES and dig(obj, "spec", "finalizers")):
        return True
    return bool(obj["metadata"].get("deletionGracePeriodSeconds"))


class _Fields(Mapping[str, str]):
    """Any field of an object by its path, as field selectors ask for it."""

    def __init__(self, obj: Object) -> None:
        self._obj = obj

    def __getitem__(self, path: str) -> str:
        return str(dig(self._obj, *path.split("."), default=""))

    def __contains__(self, path: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def set_pod_status(client: FakeClient, pod: Object, **status: Any) -> Object:
    """Play the kubelet: merge `status` into the newest state of the pod."""
    current = client.look(PODS, pod)
    return client.overwrite(PODS, replace_in(current, ("status",), {**(current.get("status") or {}), **status}))


def ready_pod(client: FakeClient, pod: Object, ip: str = "10.244.0.9", node: str = "n1") -> Object:
    """Play scheduler and kubelet: bound, Running, Ready since now."""
    now = format_time(client.clock.now())
    if not dig(client.look(PODS, pod), "spec", "nodeName"):
        client.overwrite(PODS, replace_in(client.look(PODS, pod), ("spec", "nodeName"), node))
    kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds]
    status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.0.2.1", "startTime": now}
    return set_pod_status(client, pod, conditions=conditions, **status)


def make_node(name: str = "n1", **more: Any) -> Object:
    meta = {"name": name, "labels": {"kubernetes.io/hostname": name}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {}, **more}


def names(objects: Iterable[Object]) -> list[str]:
    return [name_of(obj) for obj in objects]
