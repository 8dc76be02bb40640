"""Answers on the wire: objects, lists, Tables, metadata only, Status, watch frames. Bytes that exist are joined,
never made again.

A list's items are the stored JSON of its objects without their kind and apiVersion, which stand in front of each (as
upstream writes typed lists); so a list of thousands costs one join.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson
from aiohttp import web
from multidict import CIMultiDict

from kone.apimachinery import protobuf
from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object, metadata
from kone.apimachinery.protowire import field_bytes
from kone.apiserver import tables, yaml_text
from kone.apiserver.codec import internal_type
from kone.apiserver.context import Answer
from kone.apiserver.negotiation import JSON, PLAIN, Output, not_acceptable
from kone.apiserver.reads import ListPage, Watch
from kone.apiserver.scale import SCALE, scale_columns
from kone.registry.resource import Resource
from kone.store.store import Entry, Event

FRAMES_REMEMBERED: Final = 4096  # watch frames, shared by all watchers of an event
_NO_CACHE: Final = "no-cache, private"


def reply(body: bytes, *, code: int = 200, content_type: str = JSON, warnings: Sequence[str] = ()) -> web.Response:
    """A whole answer."""
    headers = CIMultiDict({"Content-Type": content_type, "Cache-Control": _NO_CACHE})
    for text in warnings:
        headers.add("Warning", warning_header(text))
    return web.Response(body=body, status=code, headers=headers)


def warning_header(text: str) -> str:
    """RFC 7234's warn-code 299 from an unknown agent; what cannot be in a header is left out."""
    shown = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{"".join(c for c in shown if c.isprintable())}"'


def render(value: Any, output: Output = PLAIN) -> bytes:
    if output.media == "yaml":
        return yaml_text.dump(value)
    if output.media == "protobuf":
        return protobuf.encode(value)
    if output.pretty:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return orjson.dumps(value)


def status_reply(error: StatusError, output: Output = PLAIN, warnings: Sequence[str] = ()) -> web.Response:
    """A refusal."""
    made = reply(render(error.status, output), code=error.code, content_type=output.content_type, warnings=warnings)
    made.headers.update(error.headers)
    return made


class NoSuchPage(StatusError):
    """A path that nothing answers, said in plain text: what upstream's groups that are not built in say."""

    def __init__(self) -> None:
        super().__init__(404, "NotFound", "404 page not found\n")


def no_such_route() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource", details={})


def no_such_method() -> StatusError:
    message = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", message, details={})


def object_body(resource: Resource, answer: Answer, output: Output, include: tables.Include, now: float) -> bytes:
    """One object, or a Status. Raises 406 where a list was asked for."""
    if output is PLAIN or not output.transform:
        if output.media == "json" and not output.pretty:
            return answer.encoded
        return render(answer.obj, output)
    obj = answer.obj
    if obj.get("kind") == "Status" and obj.get("apiVersion") == "v1":
        return render(obj, output)
    if output.transform == "Table":
        list_metadata = {k: v for k in ("resourceVersion",) if (v := metadata(obj).get(k))}
        if obj.get("kind") == SCALE.kind:
            resource = replace(resource, columns=scale_columns(resource))
        made = tables.table(resource, [obj], list_metadata, meta_version=output.meta_version, include=include, now=now)
        return render(made, output)
    if output.transform == "PartialObjectMetadata":
        return render(tables.partial_metadata(obj, output.meta_version), output)
    raise not_acceptable(
        f"you requested {output.transform}, but the requested object is not a list (*{internal_type(resource.gvk)})"
    )


def list_body(resource: Resource, page: ListPage, output: Output, include: tables.Include, now: float) -> bytes:
    """A page of a list. Raises 406 where a single object was asked for."""
    list_metadata: Object = {"resourceVersion": str(page.revision)} if page.revision else {}
    if page.continue_ or (resource.custom is not None and not output.transform):
        list_metadata["continue"] = page.continue_
    if page.remaining is not None:
        list_metadata["remainingItemCount"] = page.remaining
    if not output.transform:
        if output.media == "json" and not output.pretty:
            return _joined(resource, page.entries, list_metadata)
        items = [entry.obj for entry in page.entries]
        if resource.custom is None:
            items = [_without_type(item) for item in items]
        return render(list_object(resource, list_metadata, items), output)
    if output.transform == "PartialObjectMetadata":
        kind = internal_type(resource.gvk)
        why = f"you requested PartialObjectMetadata, but the requested object is a list (*{kind}List)"
        raise not_acceptable(why)
    objects = [entry.obj for entry in page.entries]
    if output.transform == "Table":
        made = tables.table(
            resource, objects, list_metadata, meta_version=output.meta_version, include=include, now=now
        )
        return render(made, output)
    partial = {
        "kind": "PartialObjectMetadataList",
        "apiVersion": output.meta_version,
        "metadata": list_metadata,
        "items": [tables.partial_metadata(obj, output.meta_version) for obj in objects] or None,
    }
    return render(partial, output)


def list_object(resource: Resource, list_metadata: Object, items: list[Object]) -> Object:
    return {
        "kind": resource.list_kind,
        "apiVersion": resource.gvr.api_version,
        "metadata": list_metadata,
        "items": items,
    }


def _without_type(obj: Object) -> Object:
    return {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}


def _joined(resource: Resource, entries: Sequence[Entry], list_metadata: Object) -> bytes:
    head = orjson.dumps(list_object(resource, list_metadata, []))[:-2]
    own = orjson.dumps({"kind": resource.kind, "apiVersion": resource.gvr.api_version})[:-1] + b","
    skip = len(own)
    # One join of everything: a second copy of some megabytes costs more than all the rest.
    parts: list[bytes | memoryview] = [head]
    separator = b"{"
    for entry in entries:
        encoded = entry.encoded
        parts.append(separator)
        if resource.custom is not None:  # upstream's lists of custom resources say what each item is
            parts.append(memoryview(encoded)[1:])
        elif encoded.startswith(own):
            parts.append(memoryview(encoded)[skip:])
        else:
            parts.append(memoryview(orjson.dumps(_without_type(entry.obj)))[1:])
        separator = b",{"
    parts.append(b"]}")
    return b"".join(parts)


class Frames:
    """Watch events as JSON lines. What is sent to every plain watcher of an event is made once."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[int, str, str], bytes] = OrderedDict()

    def plain(self, event: Event, version: str) -> bytes:
        """{"type":…,"object":…} of an event in a version."""
        key = (event.revision, event.type, version)
        found = self._made.get(key)
        if found is None:
            found = b'{"type":"%b","object":%b}\n' % (event.type.encode(), event.encoded)
            self._made[key] = found
            if len(self._made) > FRAMES_REMEMBERED:
                self._made.popitem(last=False)
        return found


def protobuf_frame(kind: str, obj: Object) -> bytes:
    """A WatchEvent as protobuf, after its length in four bytes: type, and the object in an envelope of its own."""
    event = field_bytes(1, kind.encode())
    event += field_bytes(2, field_bytes(1, protobuf.encode(obj)))
    return len(event).to_bytes(4, "big") + event


def frame(kind: str, obj: Any) -> bytes:
    return orjson.dumps({"type": kind, "object": obj}, option=orjson.OPT_APPEND_NEWLINE)


class WatchWriter:
    """Turns the events of one watch into the bytes that its client asked for."""

    def __init__(
        self, watch: Watch, output: Output, include: tables.Include, frames: Frames, now: Callable[[], float]
    ) -> None:
        self._resource = watch.resource
        self._version = watch.resource.gvr.api_version
        self._output = output
        self._include = include
        self._frames = frames
        self._now = now
        self._frame = protobuf_frame if output.media == "protobuf" else frame
        self._plain = not output.transform and output.media != "protobuf"
        self._definitions_sent = False
        self.content_type = output.content_type + (";stream=watch" if output.media == "protobuf" else "")
        if output.media == "yaml":
            self.content_type = JSON  # a stream of YAML is none

    def events(self, events: Iterable[Event]) -> bytes:
        if self._plain:
            return b"".join([self._frames.plain(event, self._version) for event in events])
        return b"".join(self._frame(event.type, self._object(event.obj)) for event in events)

    def _object(self, obj: Object) -> Object:
        output = self._output
        if output.transform == "Table":
            made = tables.table(
                self._resource,
                [obj],
                {"resourceVersion": metadata(obj).get("resourceVersion", "")},
                meta_version=output.meta_version,
                include=self._include,
                now=self._now(),
                definitions=not self._definitions_sent,
            )
            self._definitions_sent = True
            return made
        if output.transform:
            return tables.partial_metadata(obj, output.meta_version)
        return obj

    def bookmark(self, revision: int, *, ends_initial: bool = False) -> bytes:
        """Says that nothing up to `revision` is missing; `ends_initial`: and that the state was all there was."""
        meta: Object = {"resourceVersion": str(revision), "creationTimestamp": None}
        if ends_initial:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        gvk = self._resource.gvk
        obj: Object = {"kind": gvk.kind, "apiVersion": gvk.api_version, "metadata": meta}
        if ends_initial and self._include == "None":
            self._include = "Metadata"  # or the client could not see the annotation
            made = self._object(obj)
            self._include = "None"
            return self._frame("BOOKMARK", made)
        return self._frame("BOOKMARK", self._object(obj) if self._output.transform else obj)

    def error(self, error: StatusError) -> bytes:
        return self._frame("ERROR", {**error.status})
