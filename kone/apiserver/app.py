"""The HTTP server: listeners, who asks, whether they may, and the boundary where errors become Status answers.

One handler under aiohttp's low-level server; no router. The path to an answer is short on purpose: authenticate (a
certificate is parsed once), authorize (a dict lookup), then `resources.py` for objects or one of the few other paths
here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import ssl
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web
from yarl import URL

from kone.aio.clock import Clock, SystemClock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.access import AccessRequest, access_denied
from kone.apimachinery.errors import StatusError, internal_error
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.apiserver import negotiation, openapi_proto
from kone.apiserver.aggregation import Aggregator
from kone.apiserver.audit import Audit, is_long_running
from kone.apiserver.component_statuses import COMPONENTSTATUSES, ComponentStatuses
from kone.apiserver.connections import Connection, Request, Server, ends_with_client
from kone.apiserver.deadlines import REQUEST_TIMEOUT_S, Deadlines, calmed, timed_out
from kone.apiserver.discovery import Discovery
from kone.apiserver.flowcontrol.control import SERVER_SEATS, FlowControl
from kone.apiserver.flowcontrol.levels import Flow
from kone.apiserver.health import Health
from kone.apiserver.kubelet_client import ClientTls, KubeletClient
from kone.apiserver.metrics import Metrics
from kone.apiserver.negotiation import PLAIN, Output, negotiate
from kone.apiserver.openapi import OpenApi
from kone.apiserver.openapi_v2 import OpenApiV2
from kone.apiserver.path_reader import PathReader
from kone.apiserver.proxies import Proxies
from kone.apiserver.requests import Parameters, RequestInfo, parse_query, parse_request, selected_fields
from kone.apiserver.resource_metrics import ResourceMetrics
from kone.apiserver.resources import Resources
from kone.apiserver.responses import NoSuchPage, no_such_method, no_such_route, render, reply, status_reply
from kone.apiserver.streams import Streams
from kone.apiserver.verbs import Verbs
from kone.auth.authentication import Authenticator, Headers, bearer_token
from kone.auth.authorizer import Authorizer, Unasked
from kone.auth.impersonation import impersonate
from kone.auth.tokens import ServiceAccountTokens
from kone.registry.metrics import NODE_METRICS, POD_METRICS

log = logging.getLogger(__name__)

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
GIT_VERSION: Final = "v1.37.2+kone"
VERSION: Final[Object] = {
    "major": "1",
    "minor": "37",
    "gitVersion": GIT_VERSION,
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": f"python{platform.python_version()}",
    "compiler": sys.implementation.name,
    "platform": f"{sys.platform}/{_ARCHITECTURES.get(platform.machine(), platform.machine())}",
}
_OPENID_CONFIGURATION: Final = "/.well-known/openid-configuration"
_OPENID_KEYS: Final = "/openid/v1/jwks"
_PLAIN_TEXT: Final = "text/plain; charset=utf-8"
_EXPOSITION: Final = "text/plain; version=0.0.4; charset=utf-8"
_IMPERSONATE: Final = ("Impersonate-User", "Impersonate-Group", "Impersonate-Uid")
BACKLOG: Final = 1024
WAIT_PART: Final = 4  # a request may wait for a seat for so much of its time


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of the TLS listener: its certificate and key, and the CAs (one bundle) that client certificates come
    from."""

    certificate: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True)
class Limits:
    """How many seats flow control shares out, and how long an answer may take."""

    server_seats: int = SERVER_SEATS
    request_timeout_s: float = REQUEST_TIMEOUT_S


class ApiServer:
    """The Kubernetes API over HTTPS and over a unix socket.

        server = ApiServer(verbs=verbs, authenticator=authenticator, authorizer=authorizer)
        await server.start(host="0.0.0.0", port=6443, tls=TlsFiles(...), unix_path=data_dir / "kone.sock")
        ...
        await server.stop(drain_s=5.0)

    `health` may be given checks of other parts at any time (`server.health.ready["scheduler"] = ...`). `port` is the
    one that was bound, which matters where 0 was asked for. `kubelet_tls` is what kubelets know the server by (logs,
    exec, attach, port-forward), `front_proxy_tls` what aggregated APIs know it by; `tokens` is whose keys outsiders
    may ask for (OpenID discovery); `audit` records requests.
    """

    def __init__(
        self,
        *,
        verbs: Verbs,
        authenticator: Authenticator,
        authorizer: Authorizer,
        health: Health | None = None,
        kubelet_tls: ClientTls | None = None,
        front_proxy_tls: ClientTls | None = None,
        tokens: ServiceAccountTokens | None = None,
        audit: Audit | None = None,
        clock: Clock | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.verbs = verbs
        self.health = health or Health()
        self.health.live |= {"etcd": lambda: verbs.store.problem}
        self.port = 0
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._tokens = tokens
        self._audit = audit
        self._clock = clock or SystemClock()
        limits = limits or Limits()
        self._deadlines = Deadlines(limits.request_timeout_s, self._clock)
        self._stopping = False
        self._tasks = TaskGroup("api-server")
        self.flow = FlowControl(
            verbs.caches,
            self._clock,
            server_seats=limits.server_seats,
            wait_s=limits.request_timeout_s / WAIT_PART,
        )
        self._kubelets = KubeletClient(verbs, kubelet_tls)
        self._proxies = Proxies(verbs, self._kubelets)
        self._resource_metrics = ResourceMetrics(verbs.caches, self._kubelets, self._clock)
        self.components = ComponentStatuses()
        verbs.computed = {
            COMPONENTSTATUSES: self.components,
            NODE_METRICS: self._resource_metrics,
            POD_METRICS: self._resource_metrics,
        }
        self._resources = Resources(verbs, self._clock, Streams(self._kubelets), self._proxies)
        self._discovery = Discovery(verbs.registry)
        self.aggregator = Aggregator(verbs.caches, self._discovery, front_proxy_tls, self._clock)
        self.paths = PathReader(verbs, self._discovery, self.aggregator)
        self._openapi = OpenApi(verbs.registry)
        self._openapi_v2 = OpenApiV2(self._openapi)
        self.metrics = Metrics(
            watching=lambda: len(self._resources.watching),
            inflight=lambda: len(self._deadlines),
            objects=self._count_objects,
            more=lambda: (*self.flow.metrics(), *verbs.admission.metrics.text()),
        )
        self._tls: ssl.SSLContext | None = None
        self._tls_files: TlsFiles | None = None
        self._server: Server | None = None
        self._listeners: list[asyncio.Server] = []
        self._unix_path: Path | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(
        self, *, host: str = "", port: int = 0, tls: TlsFiles | None = None, unix_path: Path | None = None
    ) -> None:
        """Listen. Without `tls` there is no TCP listener. Raises OSError where an address is taken."""
        loop = asyncio.get_running_loop()
        server = self._server = Server(self._handle)
        self._tasks.guard(self._deadlines.watch, name="request-timeouts")
        if tls is not None:
            self._tls_files = tls
            self._tls = serving_context(tls)
            listener = await loop.create_server(
                server, host or None, port, ssl=self._tls, backlog=BACKLOG, reuse_address=True
            )
            self.port = listener.sockets[0].getsockname()[1]
            self._listeners.append(listener)
        if unix_path is not None:
            await self._listen_unix(server, unix_path)
        self.health.started = True

    async def _listen_unix(self, server: Server, path: Path) -> None:
        """The local door: a socket that only this user may open, made under that name in one step."""
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listener = await asyncio.get_running_loop().create_unix_server(server, str(path), backlog=BACKLOG)
        finally:
            os.umask(mask)
        self._unix_path = path
        self._listeners.append(listener)

    def reload_certificates(self) -> None:
        """Serve new connections with what the TLS files hold now."""
        if self._tls is not None and self._tls_files is not None:
            self._tls.load_cert_chain(self._tls_files.certificate, self._tls_files.key)
            self._tls.load_verify_locations(self._tls_files.client_ca)
        self._kubelets.reload_certificates()
        self.aggregator.reload_certificates()

    async def stop(self, drain_s: float = 5.0) -> None:
        """Take no more connections, end watches, let requests finish for at most `drain_s` seconds. May be called
        twice."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        self._stopping = True
        if self._server is not None:
            self._resources.watching.end()
            self._server.pre_shutdown()
            await self._server.shutdown(drain_s)
            self._server = None
        await self._tasks.cancel()
        await self.flow.stop()
        await self._resource_metrics.stop()
        await self._kubelets.close()
        await self._proxies.close()
        await self.aggregator.stop()
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)
            self._unix_path = None

    # -- a request -------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every request comes through here, and every error ends here."""
        assert isinstance(request, Request)
        began = time.perf_counter()
        raw_path, _, raw_query = _target(request).partition("?")
        query = parse_query(raw_query)
        info = parse_request(request.method, raw_path, query)
        task: asyncio.Task[Any] | None = None
        try:
            if not is_long_running(info):
                if self._stopping:
                    return _shutting_down()
                task = self._deadlines.begin(request, query, began)
            while True:
                try:
                    response = await self._serve(request, info, query, began)
                    break
                except Unasked as question:
                    await question.ask()
        except NoSuchPage:
            response = _page_not_found()
        except StatusError as error:
            response = status_reply(error, _error_output(request), error.warnings)
        except (asyncio.CancelledError, ConnectionError) as error:
            if not request.timed_out or task is None or not isinstance(error, asyncio.CancelledError):
                if request.record is not None:
                    request.record.ends(None)
                raise
            response = self._late(request)
        except Exception as error:
            log.exception("%s %s failed", request.method, info.path)
            if request.record is not None:
                request.record.panics(error)
            why = internal_error(f"{type(error).__name__}: {error}")
            response = status_reply(why, _error_output(request))
        finally:
            if task is not None:
                self._deadlines.over(task)
            if request.ticket is not None:
                self._leave(request)
            if request.ended is not None:
                request.ended()
        if request.timed_out and task is not None:
            await calmed(task)
        if request.record is not None:
            request.record.ends(response)
        key = (info.verb, info.group, info.version, info.resource, info.subresource)
        self.metrics.observe(key, response.status, time.perf_counter() - began)
        return response

    async def _serve(self, request: Request, info: RequestInfo, query: Parameters, began: float) -> web.StreamResponse:
        access = info.access(selected_fields(query) if "fieldSelector" in query else ())
        headers = cast(Headers, request.headers)  # a multi-dict's get() has overloads that no protocol can say
        user = await self._authenticated(request, headers, info, access)
        if self._audit is not None and request.record is None:
            request.record = self._audit.begin(request, request.named(), info, access, user)
        if any(name in request.headers for name in _IMPERSONATE):
            user = impersonate(user, headers, access, self._authorizer)
            if request.record is not None:
                request.record.impersonates(user)
        if request.flow is None and ((verb := info.verb) == "watch" or not is_long_running(info)):
            flow = request.flow = self.flow.classify(user, info)
            ticket = request.ticket = self.flow.enter(flow, info, query, began)
            if (ticket is None or ticket.waits) and not await self._turn(request, flow):
                return _too_many_requests(flow)
            if verb == "watch":
                by_node = any(field == "spec.nodeName" and value for field, _, value in access.fields)
                request.ended = self.flow.watches(info, by_node=by_node)
                request.begun = lambda: self._leave(request, watch=True)
        allowed, reason = self._authorizer.allowed(user, access)
        if request.record is not None:
            request.record.authorized(allowed, reason)
        if not allowed:
            raise access_denied(user, access, reason)
        if (api_service := self.aggregator.backend(info.path)) is not None:
            return await self.aggregator.serve(request, user, api_service)
        if info.resource:
            return await self._resources.serve(request, info, query, user)
        return await self._other(request, info, query, user)

    def _late(self, request: Request) -> web.Response:
        """The answer to a request that was over its time. What was answered in part cannot be taken back: then the
        connection ends."""
        if request.answered and request.transport is not None:
            request.transport.abort()
        return status_reply(timed_out())

    async def _turn(self, request: Request, flow: Flow) -> bool:
        """Wait for a seat where there may be one; False: there is none."""
        ticket = request.ticket
        if ticket is None:
            return False
        request.ticket = None
        with ends_with_client(request):
            good = await self.flow.turn(flow, ticket)
        request.ticket = ticket if good else None
        return good

    def _leave(self, request: Request, *, watch: bool = False) -> None:
        """Give the request's seat back, if it holds one still."""
        flow, ticket, request.ticket = request.flow, request.ticket, None
        if flow is not None and ticket is not None:
            self.flow.leave(flow, ticket, time.perf_counter(), watch=watch)

    async def _authenticated(
        self, request: Request, headers: Headers, info: RequestInfo, access: AccessRequest
    ) -> User:
        connection = request.protocol
        assert isinstance(connection, Connection)
        try:
            return await self._authenticator.authenticate(connection.certificate, headers, connection.peer, info.path)
        except StatusError:
            if self._audit is not None:
                tried = (("bearer", bearer_token(headers)), ("x509", connection.certificate))
                self._audit.refused(
                    request, request.named(), info, access, ", ".join(name for name, given in tried if given)
                )
            raise

    async def _other(
        self, request: web.BaseRequest, info: RequestInfo, query: Parameters, user: User
    ) -> web.StreamResponse:
        """What is no resource: health, version, metrics, discovery."""
        path, method = info.path.rstrip("/") or "/", request.method
        first = path.split("/")[1]
        if first in ("livez", "readyz", "healthz"):
            found = await self.health.answer(path, verbose="verbose" in query, exclude=query.get("exclude", ()))
            if found is None:
                return _page_not_found()
            code, text = found
            return reply(text.encode(), code=code, content_type=_PLAIN_TEXT)
        if path == "/version":
            if method != "GET":
                raise no_such_method()
            negotiation.check_json_route(request.headers.get("Accept", ""))
            return reply(render(VERSION, Output(pretty=True)))
        if path == "/metrics/slis":
            return reply((await self.health.text()).encode(), content_type=_EXPOSITION)
        if path == "/metrics":
            return reply(self.metrics.text().encode(), content_type=_EXPOSITION)
        if first in ("api", "apis"):
            return self._discover(request, path)
        if self._tokens is not None and path in (_OPENID_CONFIGURATION, _OPENID_KEYS):
            return _openid(request, path, self._tokens)
        if path == "/openapi/v2":
            return await self._swagger(request)
        if path == "/openapi/v3":
            return reply(self._openapi.index())
        if path.startswith("/openapi/v3/"):
            document = self._openapi.document(path.removeprefix("/openapi/v3/"))
            return reply(document) if document is not None else reply(b"", code=404, content_type=_PLAIN_TEXT)
        if path == "/":
            return reply(render({"paths": self._paths()}, Output(pretty=True)))
        return _page_not_found()

    async def _swagger(self, request: web.BaseRequest) -> web.Response:
        """OpenAPI v2 as JSON, or as protobuf for whom that comes first; nothing for whoever has it by its ETag."""
        as_proto = openapi_proto.wanted(request.headers.get("Accept", ""))
        body, tag = await self._openapi_v2.document(proto=as_proto)
        unchanged = request.headers.get("If-None-Match", "").strip('"') == tag
        content_type = openapi_proto.CONTENT_TYPE if as_proto else negotiation.JSON
        response = reply(b"" if unchanged else body, code=304 if unchanged else 200, content_type=content_type)
        response.headers["ETag"] = f'"{tag}"'
        response.headers["Vary"] = "Accept"
        return response

    def _paths(self) -> list[str]:
        groups = [g["name"] for g in self._discovery.groups()["groups"]]
        fixed = ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", _OPENID_KEYS, "/readyz", "/version"]
        own = sorted(f"/apis/{name}" for name in groups)
        return [_OPENID_CONFIGURATION, "/api", "/api/v1", "/apis", *own, *fixed]

    def _discover(self, request: web.BaseRequest, path: str) -> web.Response:
        parts = path.split("/")[1:]
        accept = request.headers.get("Accept", "")
        root = len(parts) == 1
        if request.method != "GET" and not (parts[0] == "apis" and len(parts) <= 2):
            raise no_such_method()
        if root and wants_aggregated(accept):
            return self._aggregated(request, core=parts[0] == "api")
        document: Object | None
        if parts[0] == "api":
            document = self._discovery.api_versions() if root else self._discovery.resources("", parts[1])
        elif root:
            document = self._discovery.groups()
        elif len(parts) == 2:
            document = self._discovery.group(parts[1])
            if document is None:
                return _page_not_found()
        else:
            document = self._discovery.resources(parts[1], parts[2]) if len(parts) == 3 else None
            if document is None and not self.verbs.registry.is_built_in(parts[1]):
                return _page_not_found()
        if document is None:
            raise no_such_route()
        output = negotiate(accept, transforms=False, routed=not (parts[0] == "apis" and len(parts) <= 2))
        return reply(render(document, output), content_type=output.content_type)

    def _aggregated(self, request: web.BaseRequest, *, core: bool) -> web.Response:
        body, etag = self._discovery.aggregated(core=core)
        content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        unchanged = request.headers.get("If-None-Match") == etag
        response = reply(b"" if unchanged else body, code=304 if unchanged else 200, content_type=content_type)
        response.headers["ETag"] = etag
        response.headers["Vary"] = "Accept"
        response.headers["Cache-Control"] = "public"
        return response

    def _count_objects(self) -> Iterable[tuple[str, int]]:
        for resource in self.verbs.registry:
            if not resource.virtual and resource.storage is None:
                yield resource.gvr.group_resource, len(self.verbs.cache(resource))


def wants_aggregated(accept: str) -> bool:
    """Whether the client takes the whole of discovery in one document, and takes it first."""
    for clause in negotiation.parse_accept(accept):
        if clause.media_type in (negotiation.JSON, "*/*"):
            values = dict(clause.parameters)
            if values.get("as") == "APIGroupDiscoveryList":
                return values.get("g") == "apidiscovery.k8s.io" and values.get("v") in ("v2", "v2beta1")
            return False
    return False


def _openid(request: web.BaseRequest, path: str, tokens: ServiceAccountTokens) -> web.Response:
    """How outsiders check service accounts' tokens. The keys are where the client has reached this."""
    if path == _OPENID_KEYS:
        response = reply(render(tokens.jwks(), PLAIN), content_type="application/jwk-set+json")
    else:
        where = f"https://{request.headers.get('Host', '')}{_OPENID_KEYS}"
        response = reply(render(tokens.openid_configuration(where), PLAIN))
    response.headers["Cache-Control"] = "public, max-age=3600"
    return response


def _target(request: web.BaseRequest) -> str:
    """The path and query as they were sent; a proxy's client may have put the whole URL there (RFC 9112, 3.2.2)."""
    target = request.raw_path
    return URL(target, encoded=True).raw_path_qs if target.startswith(("http://", "https://")) else target


def _page_not_found() -> web.Response:
    return reply(b"404 page not found\n", code=404, content_type=_PLAIN_TEXT)


def _shutting_down() -> web.Response:
    """What a connection that is still there is answered while the server stops."""
    error = StatusError(503, "ServiceUnavailable", "apiserver is shutting down", details={})
    response = status_reply(error)
    response.headers["Retry-After"] = "1"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.force_close()
    return response


def _too_many_requests(flow: Flow) -> web.Response:
    """The answer to who found no seat, in the words of upstream's filter."""
    response = reply(b"Too many requests, please try again later.\n", code=429, content_type=_PLAIN_TEXT)
    response.headers["Retry-After"] = str(flow.level.retry_after.seconds)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _error_output(request: web.BaseRequest) -> Output:
    """How an error is written: as the client wants its answers, else as JSON."""
    accept = request.headers.get("Accept")
    if accept is None or accept in ("*/*", negotiation.JSON):
        return PLAIN
    try:
        found = negotiate(accept, streams=True, protobuf=True)
    except StatusError:
        return PLAIN
    return PLAIN if found.media == "json" else Output(found.media)


def serving_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 and later; client certificates are asked for and, where they come, must be of the CAs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.client_ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context
