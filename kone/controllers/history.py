"""Revisions: what the template of a StatefulSet or DaemonSet was, kept as ControllerRevisions that its owner names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONTROLLERREVISIONS, GVR
from kone.apimachinery.objects import (
    Object,
    annotations_of,
    controller_reference,
    dig,
    labels_of,
    name_of,
    namespace_of,
    remove_in,
    uid_of,
)
from kone.apimachinery.selectors import LabelSelector
from kone.client.client import Client, Informer, Objects
from kone.controllers.pod_control import claim, controlled_by, index_by_controller, orphans_in
from kone.controllers.pod_template import compute_hash

REVISION_LABEL = "controller-revision-hash"  # on pods: which revision they were made from
_PREFIX_MAX = 223  # so that name, dash and hash are a valid name


def snapshot(owner: Object) -> Object:
    """What a revision keeps: a patch that gives its owner the template of today.

    Its keys are in the order of their letters, at every depth: kubectl's rollback and upstream's tests compare the
    bytes with what Go's encoder makes of a map.
    """
    return {"spec": {"template": _in_order_of_keys({**owner["spec"]["template"], "$patch": "replace"})}}


def _in_order_of_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_order_of_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_in_order_of_keys(item) for item in value]
    return value


def template_of(revision: Object) -> Object:
    return remove_in(dig(revision, "data", "spec", "template", default={}), ("$patch",))


def number_of(revision: Object) -> int:
    return int(revision.get("revision", 0))


def in_order(revisions: Iterable[Object]) -> Objects:
    """Oldest first."""
    return sorted(revisions, key=lambda r: (number_of(r), dig(r, "metadata", "creationTimestamp"), name_of(r)))


class History:
    """The revisions of the objects of one resource."""

    def __init__(self, client: Client, owner_resource: GVR, label: str) -> None:
        """`label` is where a revision tells its own hash."""
        self._client, self._resource, self._label = client, owner_resource, label
        self._revisions: Informer = client.informer(CONTROLLERREVISIONS)
        index_by_controller(self._revisions)

    async def of(self, owner: Object, selector: LabelSelector) -> Objects:
        """The owner's revisions, oldest first; orphans that match are adopted."""
        candidates = [*controlled_by(self._revisions, owner), *orphans_in(self._revisions, namespace_of(owner))]
        return in_order(await claim(self._client, CONTROLLERREVISIONS, self._resource, owner, candidates, selector))

    async def latest(self, owner: Object, revisions: Objects) -> tuple[Object, int]:
        """(the revision of the owner's template of today, the collisions so far).

        Where it was the template before, that revision becomes the newest again; where it never was, one is made.
        """
        data = snapshot(owner)
        collisions = int(dig(owner, "status", "collisionCount", default=0))
        equal = [revision for revision in revisions if revision.get("data") == data]
        number = number_of(revisions[-1]) + 1 if revisions else 1
        if not equal:
            return await self._create(owner, data, number, collisions)
        if equal[-1] is revisions[-1]:
            return equal[-1], collisions
        return await self._client.update(CONTROLLERREVISIONS, {**equal[-1], "revision": number}), collisions

    async def _create(self, owner: Object, data: Object, number: int, collisions: int) -> tuple[Object, int]:
        """Names are hashes; where another revision has the name already, the next collision count gives another."""
        while True:
            digest = compute_hash(data, collisions)
            name = f"{name_of(owner)[:_PREFIX_MAX]}-{digest}"
            revision: Object = {
                "apiVersion": "apps/v1",
                "kind": "ControllerRevision",
                "metadata": {
                    "name": name,
                    "namespace": namespace_of(owner),
                    "labels": {**labels_of(owner["spec"]["template"]), self._label: digest},
                    "annotations": dict(annotations_of(owner)),
                    "ownerReferences": [controller_reference(owner)],
                },
                "data": data,
                "revision": number,
            }
            try:
                created = await self._client.create(CONTROLLERREVISIONS, revision, namespace=namespace_of(owner))
            except StatusError as error:
                if error.reason != "AlreadyExists":
                    raise
                found = await self._client.get(CONTROLLERREVISIONS, name, namespace_of(owner))
                if found.get("data") == data:
                    return found, collisions
                collisions += 1
            else:
                return created, collisions

    async def forget(self, revisions: Iterable[Object]) -> None:
        for revision in revisions:
            try:
                await self._client.delete(
                    CONTROLLERREVISIONS, name_of(revision), namespace=namespace_of(revision), uid=uid_of(revision)
                )
            except StatusError as error:
                if error.code not in (404, 409):
                    raise
