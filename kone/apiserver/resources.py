"""Requests for resources: which verb a method is on a path, its options, its body, and how it is answered.

The app has settled who asks and that they may; here the request meets `Verbs`.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from aiohttp import web

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError, not_found
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object
from kone.apimachinery.patch import Patch, PatchKind
from kone.apimachinery.users import User
from kone.apiserver import codec, options, subresources, tables, yaml_reader
from kone.apiserver.connections import Request
from kone.apiserver.context import Answer, DeleteOptions, RequestContext
from kone.apiserver.negotiation import PLAIN, Output, accepts_gzip, negotiate
from kone.apiserver.options import ListOptions, first, parse_list_options, parse_write_options
from kone.apiserver.ownership import judge_twice, manager_of_agent, parse_apply
from kone.apiserver.proxies import Proxies
from kone.apiserver.reads import ListPage
from kone.apiserver.requests import Parameters, RequestInfo
from kone.apiserver.responses import (
    Frames,
    NoSuchPage,
    WatchWriter,
    list_body,
    no_such_method,
    no_such_route,
    object_body,
    reply,
)
from kone.apiserver.scale import not_decoded
from kone.apiserver.streams import Streams, connect_options
from kone.apiserver.tunnels import is_web_socket
from kone.apiserver.verbs import Verbs
from kone.apiserver.watching import Watching
from kone.registry.resource import Resource

log = logging.getLogger(__name__)

PATCH_KINDS: Final[Mapping[str, PatchKind]] = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
}
APPLY: Final = "application/apply-patch+yaml"
DEPRECATED: Final[Mapping[tuple[str, str], str]] = {
    ("", "endpoints"): "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
    ("", "componentstatuses"): "v1 ComponentStatus is deprecated in v1.19+",
}
EVICTIONS: Final = (GVK("policy", "v1beta1", "Eviction"),)  # still taken for policy/v1's
PARSED_AT_ONCE_BYTES: Final = 64 * 1024
PACKED_OVER_BYTES: Final = 128 * 1024  # answers over it are compressed (responsewriters)
PACKED_LEVEL: Final = 1  # of gzip: fast rather than small
CONNECTS: Final = frozenset(("log", "exec", "attach", "portforward", "proxy"))
CONNECT_VERBS: Final = {"GET": "get", "POST": "create"}


_Parsed = TypeVar("_Parsed")


class Resources:
    """Serves /api and /apis paths that name a resource. `watching` are the watches that run."""

    def __init__(self, verbs: Verbs, clock: Clock, streams: Streams, proxies: Proxies) -> None:
        self._verbs = verbs
        self._clock = clock
        self._streams = streams
        self._proxies = proxies
        self._frames = Frames()
        self.watching = Watching()

    async def serve(self, request: Request, info: RequestInfo, query: Parameters, user: User) -> web.StreamResponse:
        """Answer a request for a resource. Raises StatusError."""
        resource = self._verbs.registry.find(info.group, info.version, info.resource)
        if resource is None:
            raise no_such_route() if self._verbs.registry.is_built_in(info.group) else NoSuchPage()
        call = _Call(self, request, info, query, user, resource)
        return await call.serve()


class _Call:
    """One request for one resource."""

    def __init__(
        self,
        server: Resources,
        request: Request,
        info: RequestInfo,
        query: Parameters,
        user: User,
        resource: Resource,
    ) -> None:
        self.server = server
        self.verbs = server._verbs
        self.request = request
        self.info = info
        self.query = query
        self.resource = resource
        self.name = info.parts[1] if len(info.parts) > 1 else ""
        self.namespace = info.namespace if resource.namespaced else ""
        self.ctx = RequestContext(user, user_agent_manager=manager_of_agent(request.headers.get("User-Agent", "")))
        self.record = request.record
        if self.record is not None:
            self.ctx.annotations = self.record.annotations
        if (deprecated := DEPRECATED.get((info.group, info.resource))) is not None:
            self.ctx.warn(deprecated)
        if resource.deprecation:
            self.ctx.warn(resource.deprecation)

    async def serve(self) -> web.StreamResponse:
        try:
            return await self._serve()
        except StatusError as error:
            error.warnings = self.ctx.warnings
            raise

    async def _serve(self) -> web.StreamResponse:
        info, resource, method = self.info, self.resource, self.request.method
        own_namespace = info.resource == "namespaces" and not info.group and info.namespace == self.name
        if resource.namespaced != bool(info.namespace) and not own_namespace:
            self._check_scope(method)
        if info.watch_path:
            return await self._watch_path(method)
        if info.subresource:
            return await self._subresource(method)
        return await (self._item(method) if self.name else self._collection(method))

    def _check_scope(self, method: str) -> None:
        """Of a namespaced resource without a namespace one can only list; others have no namespace at all."""
        if self.resource.custom is not None and (not self.resource.namespaced or self.name or method != "GET"):
            raise NoSuchPage
        if not self.resource.namespaced or self.name:
            raise no_such_route()
        if method != "GET":
            raise no_such_method()

    async def _collection(self, method: str) -> web.StreamResponse:
        verbs = self.resource.verbs
        if method == "GET" and "list" in verbs:
            if self.info.verb == "watch":
                return await self._watch(parse_list_options(self.query))
            return await self._list()
        if method == "POST" and "create" in verbs:
            return await self._create()
        if method == "DELETE" and "deletecollection" in verbs:
            return await self._delete_collection()
        raise no_such_method()

    async def _item(self, method: str) -> web.StreamResponse:
        verbs = self.resource.verbs
        if self.resource.virtual and "get" not in verbs:
            raise no_such_route()
        if method == "GET" and "get" in verbs:
            return await self._get()
        if method == "PUT" and "update" in verbs:
            return await self._update()
        if method == "PATCH" and "patch" in verbs:
            return await self._patch()
        if method == "DELETE" and "delete" in verbs:
            return await self._delete()
        raise no_such_method()

    async def _subresource(self, method: str) -> web.StreamResponse:
        part = self.resource.all_subresources().get(self.info.subresource)
        if part is None and self.resource.custom is not None:
            raise not_found(self.resource.gvr.group_resource, self.name)
        if part is None or (len(self.info.parts) > 3 and self.info.subresource != "proxy"):
            raise no_such_route()
        verbs = part.verbs
        if self.info.subresource in CONNECTS:
            if CONNECT_VERBS.get(method, "") not in verbs and self.info.subresource != "proxy":
                raise no_such_method()
            return await self._connect()
        if method == "GET" and "get" in verbs:
            return await self._get()
        if method == "PUT" and "update" in verbs:
            return await self._update()
        if method == "PATCH" and "patch" in verbs:
            return await self._patch()
        if method == "POST" and "create" in verbs:
            return await self._create()
        raise no_such_method()

    async def _connect(self) -> web.StreamResponse:
        """What goes on to a kubelet, a pod or a service."""
        subresource, streams = self.info.subresource, self.server._streams
        if subresource != "log":  # which is read, not connected to
            attributes = self.verbs.attributes(
                self.ctx, self.resource, "CONNECT", subresource, self.namespace, self.name, None, None
            )
            attributes.obj = connect_options(self.resource, subresource, self.query, self.info.parts[3:])
            attributes.kind = GVK("", "v1", attributes.object["kind"])
            await self.verbs.admission.mutate(attributes)
            await self.verbs.admission.validate(attributes)
        if subresource == "proxy":
            return await self.server._proxies.serve(self.request, self.resource, self.namespace, self.name)
        pod = (await self.verbs.get(self.resource, self.name, self.namespace)).obj
        if subresource == "log":
            return await streams.logs(self.request, pod, self.query)
        if subresource == "portforward":
            return await streams.port_forward(self.request, pod, self.query)
        return await streams.container(self.request, pod, subresource, self.query)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _output(self, *, streams: bool = False, tables: bool = True) -> Output:
        accept = self.request.headers.get("Accept")
        if accept is None or accept == "application/json" or accept == "*/*":
            found = PLAIN
        else:
            found = negotiate(accept, streams=streams, tables=tables, protobuf=self._has_protobuf)
        pretty = self.query.get("pretty") if self.query else None
        if pretty and options.parse_bool(pretty[0]) and not found.pretty:
            return Output(found.media, found.transform, found.meta_version, True)
        return found

    @property
    def _has_protobuf(self) -> bool:
        """Custom resources have no such form, and a WebSocket's messages are JSON."""
        return self.resource.custom is None and not is_web_socket(self.request)

    def _include(self, output: Output) -> tables.Include:
        return tables.parse_include(first(self.query, "includeObject")) if output.transform == "Table" else "Metadata"

    async def _answer(self, answer: Answer, output: Output) -> web.Response:
        body = object_body(self.resource, answer, output, self._include(output), self.server._clock.now())
        return await self._reply(body, output, answer.code)

    async def _reply(self, body: bytes, output: Output, code: int = 200) -> web.Response:
        """A large answer goes out compressed where the client takes that; a thread does it meanwhile."""
        packs = len(body) > PACKED_OVER_BYTES and accepts_gzip(self.request.headers.get("Accept-Encoding", ""))
        if packs:
            body = await asyncio.to_thread(gzip.compress, body, PACKED_LEVEL)
        made = reply(body, code=code, content_type=output.content_type, warnings=self.ctx.warnings)
        if packs:
            made.headers["Content-Encoding"] = "gzip"
            made.headers.add("Vary", "Accept-Encoding")
        return made

    async def _get(self) -> web.Response:
        output = self._output()
        answer = await subresources.read(
            self.verbs,
            self.resource,
            self.info.subresource,
            self.name,
            self.namespace,
            first(self.query, "resourceVersion"),
        )
        return await self._answer(answer, output)

    async def _list(self) -> web.Response:
        output = self._output(streams=True)
        chosen = parse_list_options(self.query)
        include = self._include(output)
        page = await self.verbs.list(self.resource, chosen, namespace=self.namespace)
        return await self._page(page, output, include)

    async def _page(self, page: ListPage, output: Output, include: tables.Include) -> web.Response:
        body = list_body(self.resource, page, output, include, self.server._clock.now())
        return await self._reply(body, output)

    async def _watch_path(self, method: str) -> web.StreamResponse:
        """The old /watch/ prefix: as ?watch=1; a name is as a field selector."""
        if self.info.verb != "watch" or self.info.subresource:
            raise no_such_route()
        if method != "GET" or "watch" not in self.resource.verbs:
            raise no_such_method()
        chosen = parse_list_options(self.query, watch=True)
        if self.name:
            fields = f"metadata.name={self.name}"
            chosen = ListOptions(
                chosen.labels,
                fields,
                resource_version=chosen.resource_version,
                watch=True,
                timeout_s=chosen.timeout_s,
                allow_bookmarks=chosen.allow_bookmarks,
            )
        return await self._watch(chosen)

    async def _watch(self, chosen: ListOptions) -> web.StreamResponse:
        output = self._output(streams=True)
        include = self._include(output)
        watch = self.verbs.watch(self.resource, chosen, namespace=self.namespace)
        writer = WatchWriter(watch, output, include, self.server._frames, self.server._clock.now)
        return await self.server.watching.serve(
            self.request, watch, writer, timeout_s=chosen.timeout_s or 0, bookmarks=chosen.allow_bookmarks
        )

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _body(self) -> bytes:
        """The whole body. Raises 413."""
        length = self.request.content_length
        if length is not None and length > codec.BODY_MAX_BYTES:
            raise codec.too_large()
        if not self.request.body_exists:
            return b""
        if self.request.headers.get("Expect", "").lower() == "100-continue" and self.request.transport is not None:
            self.request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            body = await self.request.read()
            self.ctx.body_bytes = len(body)
            return body
        except web.HTTPRequestEntityTooLarge:
            raise codec.too_large() from None

    def _take_options(self, kind: str, *, apply: bool = False) -> None:
        if not self.query and not apply:
            return
        chosen = parse_write_options(self.query, kind, apply=apply)
        self.ctx.dry_run = chosen.dry_run
        self.ctx.field_manager = chosen.field_manager
        self.ctx.force = bool(chosen.force)
        self.ctx.field_validation = chosen.field_validation

    async def _parsed(self, body: bytes, parse: Callable[[bytes], _Parsed]) -> _Parsed:
        """What `parse` makes of a body. A large one is read by a thread, so that others need not wait, and YAML by a
        process: it takes seconds a megabyte, JSON of many small objects half a second."""
        if len(body) <= PARSED_AT_ONCE_BYTES:
            return parse(body)
        if self._content_type.partition(";")[0].strip().endswith("yaml"):
            body = await yaml_reader.read(body)
        return await asyncio.to_thread(parse, body)

    @property
    def _content_type(self) -> str:
        return self.request.headers.get("Content-Type", "")

    async def _decode(self, body: bytes, want: GVK) -> Object:
        also = EVICTIONS if want.kind == "Eviction" else ()
        found = await self._parsed(body, lambda text: codec.decode(text, self._content_type, want, also=also))
        self.ctx.strict_errors = found.strict_errors
        if self.record is not None:
            self.record.brings(found.obj)
        return found.obj

    async def _create(self) -> web.Response:
        output = self._output(tables=not self.resource.virtual)
        body = await self._body()
        self._take_options("CreateOptions")
        resource, subresource = self.resource, self.info.subresource
        if not subresource and not resource.virtual:
            obj = await self._decode(body, resource.gvk)
            return await self._answer(
                await self.verbs.create(self.ctx, resource, obj, namespace=self.namespace), output
            )
        obj = await self._decode(body, subresources.body_kind(resource, subresource))
        answer = await subresources.act(
            self.verbs, self.ctx, resource, subresource, obj, namespace=self.namespace, name=self.name
        )
        return await self._answer(answer, output)

    async def _update(self) -> web.Response:
        output = self._output()
        body = await self._body()
        self._take_options("UpdateOptions")
        subresource = self.info.subresource
        try:
            obj = await self._decode(body, subresources.body_kind(self.resource, subresource))
        except StatusError as error:
            custom_scale = subresource == "scale" and self.resource.custom is not None
            raise not_decoded() if custom_scale and error.code == 400 else error from None
        answer = await subresources.replace(
            self.verbs, self.ctx, self.resource, subresource, self.name, obj, namespace=self.namespace
        )
        return await self._answer(answer, output)

    async def _apply(self, output: Output) -> web.Response:
        body = await self._body()
        self._take_options("PatchOptions", apply=True)
        config, twice = await self._parsed(body, parse_apply)
        if self.record is not None:
            self.record.brings(config)
        judge_twice(self.ctx, twice)
        answer = await subresources.apply(
            self.verbs, self.ctx, self.resource, self.info.subresource, self.name, config, namespace=self.namespace
        )
        return await self._answer(answer, output)

    async def _patch(self) -> web.Response:
        output = self._output()
        media = self.request.headers.get("Content-Type", "").partition(";")[0].strip()
        if media == APPLY:
            return await self._apply(output)
        kind = PATCH_KINDS.get(media)
        if kind is None or (kind == "strategic" and self.resource.custom is not None):
            raise StatusError(415, "UnsupportedMediaType", "415: Unsupported Media Type", details={})
        content, twice = await self._parsed(await self._body(), codec.parse_patch)
        self._take_options("PatchOptions")
        if self.record is not None:
            self.record.brings(content)
        answer = await subresources.amend(
            self.verbs,
            self.ctx,
            self.resource,
            self.info.subresource,
            self.name,
            Patch(kind, content, twice),
            namespace=self.namespace,
        )
        return await self._answer(answer, output)

    async def _delete_options(self) -> DeleteOptions:
        """From the body where there is one, else from the query."""
        body = await self._body()
        if body:
            found = await self._parsed(body, lambda text: codec.parse_delete_options(text, self._content_type))
            if self.record is not None:
                self.record.brings(found)
            chosen, self.ctx.dry_run = options.parse_delete_body(found)
        else:
            chosen, self.ctx.dry_run = options.parse_delete_query(self.query)
        return chosen

    async def _delete(self) -> web.Response:
        output = self._output()
        chosen = await self._delete_options()
        answer = await self.verbs.delete(self.ctx, self.resource, self.name, chosen, namespace=self.namespace)
        return await self._answer(answer, output)

    async def _delete_collection(self) -> web.Response:
        output = self._output()
        include = self._include(output)
        selected = parse_list_options({k: v for k, v in self.query.items() if k != "watch"})
        chosen = await self._delete_options()
        page = await self.verbs.delete_collection(self.ctx, self.resource, selected, chosen, namespace=self.namespace)
        return await self._page(page, output, include)
