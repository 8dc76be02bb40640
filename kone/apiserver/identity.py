"""An object's identity against the request's: name, namespace, uid, version, size, and what of its metadata only the
system sets. Texts: k8s.io/apiserver, registry/rest and endpoints/handlers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import orjson

from kone.apimachinery.errors import MODIFIED, StatusError, bad_request, conflict, invalid, invalid_value
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object, metadata
from kone.apiserver.context import RequestContext
from kone.apiserver.options import parse_uint
from kone.registry.resource import Resource
from kone.registry.strategy import Strategy

OTHER_NAMESPACE: Final = "the namespace of the provided object does not match the namespace sent on the request"
OBJECT_MAX_BYTES: Final = 1536 * 1024  # etcd's default --max-request-bytes
_OWNERS_ADVICE: Final = (
    "API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your "
    "requests; duplicate UID(s) observed"
)
SYSTEM_FIELDS: Final = (
    "creationTimestamp",
    "uid",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
)


def _uids() -> Iterator[str]:
    """Random UUIDs (version 4), many for each time that the system is asked for randomness: one by one is slow."""
    while True:
        pool = os.urandom(16 * 256).hex()
        for at in range(0, len(pool), 32):
            text = pool[at : at + 32]
            variant = "89ab"[int(text[16], 16) & 3]
            yield f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


new_uid: Final = _uids().__next__


def drop_same_owners(ctx: RequestContext, obj: Object, *, after_admission: bool = False) -> None:
    """Keep each owner reference once, and warn of those that were given twice."""
    references = obj["metadata"].get("ownerReferences") or ()
    if len(references) < 2:
        return
    kept: list[Object] = []
    twice: list[str] = []
    for reference in references:
        if reference in kept:
            twice.append(str(reference.get("uid", "")))
        else:
            kept.append(reference)
    if twice:
        obj["metadata"]["ownerReferences"] = kept
        when = " after mutating admission happens" if after_admission else ""
        ctx.warn(f".metadata.ownerReferences contains duplicate entries{when}; {_OWNERS_ADVICE}: {', '.join(twice)}")


def ordered(gvk: GVK, obj: Object) -> Object:
    """kind, apiVersion and metadata in front: lists leave the first two out by cutting the text (responses.py)."""
    rest = {key: value for key, value in obj.items() if key not in ("kind", "apiVersion", "metadata")}
    return {
        "kind": gvk.kind,
        "apiVersion": gvk.api_version,
        "metadata": obj.get("metadata") or {},
        **rest,
    }


def wipe(meta: Object) -> None:
    """What only the system sets."""
    for field in SYSTEM_FIELDS:
        meta.pop(field, None)


def check_size(at_most: int, obj: Object) -> None:
    """Raises 500, in the words of upstream's storage, for an object that is too large; looks only where it may be."""
    if at_most > OBJECT_MAX_BYTES and len(orjson.dumps(obj)) > OBJECT_MAX_BYTES:
        raise StatusError(500, "", "etcdserver: request is too large")


def match_name(obj: Object, name: str) -> None:
    given = obj["metadata"].get("name", "")
    if not given:
        raise bad_request(f"the name of the object ({name} based on URL) was undeterminable: name must be provided")
    if given != name:
        raise bad_request(f"the name of the object ({given}) does not match the name on the URL ({name})")


def match_namespace(resource: Resource, meta: Object, namespace: str) -> None:
    if not resource.namespaced:
        meta.pop("namespace", None)
        return
    if meta.setdefault("namespace", namespace) != namespace:
        raise bad_request(OTHER_NAMESPACE)


def check_uid(resource: Resource, live: Object, uid: str, namespace: str, name: str) -> None:
    """Raises 409 where the object given is not the one that is stored, in the words of upstream's storage."""
    found = metadata(live).get("uid", "")
    if uid and uid != found:
        where = f"{namespace}/{name}" if namespace else name
        raise conflict(
            resource.gvr.group_resource,
            name,
            f"StorageError: invalid object, Code: 4, Key: /registry/{resource.gvr.resource}/{where}, "
            f"ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, "
            f"UID in object meta: {found}",
        )


def check_version(resource: Resource, strategy: Strategy, meta: Object, revision: int, name: str) -> None:
    """The optimistic lock: raises 409 where the object was made from another revision than the live one."""
    try:
        version = parse_uint(meta.get("resourceVersion") or "0")
    except ValueError as error:
        raise StatusError(500, "", str(error)) from error
    if version == revision or (version == 0 and strategy.unconditional_update):
        return
    if version == 0:
        errors = [invalid_value("metadata.resourceVersion", 0, "must be specified for an update")]
        raise invalid(resource.gvr.group_resource, name, errors)
    raise conflict(resource.gvr.group_resource, name, MODIFIED)
