"""The kubelet's own HTTPS server: logs, exec, attach and pods of this node, as the API server (and nobody else) asks.

Only a client certificate of the cluster's CA that belongs to the API server or to an administrator is let in; /healthz
answers on loopback without one, as upstream's does on its health port.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError, forbidden, unauthorized
from kone.apimachinery.objects import Object
from kone.runtime import logs, remote_command, stats
from kone.runtime.parts import PodSource
from kone.runtime.runtime import ContainerState, Runtime, RuntimeFault, Session

log = logging.getLogger(__name__)

ADMITTED_GROUP = "system:masters"
API_SERVER = "kube-apiserver-kubelet-client"


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of the server's certificate and key, and of the CA that clients' certificates must be of."""

    certificate: Path
    key: Path
    client_ca: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.client_ca))
        context.load_cert_chain(self.certificate, self.key)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context


class KubeletServer:
    """Serves one node. `port` is the one that was taken once `start` has returned."""

    def __init__(self, source: PodSource, runtime: Runtime, clock: Clock, node_name: str, tls: Tls) -> None:
        self._source, self._runtime, self._clock, self._node_name = source, runtime, clock, node_name
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, address: str, port: int) -> None:
        """Listen. Raises OSError where the port is taken."""
        app = web.Application(middlewares=[self._guard], client_max_size=64 << 20)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/pods", self._pods)
        app.router.add_get("/runningpods/", self._pods)
        app.router.add_get("/stats/summary", self._summary)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        for method in ("GET", "POST"):
            app.router.add_route(method, "/exec/{namespace}/{pod}/{container}", self._exec)
            app.router.add_route(method, "/attach/{namespace}/{pod}/{container}", self._attach)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        self._context = self._tls.context()
        site = web.TCPSite(self._runner, address, port, ssl_context=self._context)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def reload_certificates(self) -> None:
        """New connections get the certificate that is on disk now."""
        if self._context is not None:
            self._context.load_cert_chain(self._tls.certificate, self._tls.key)

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Who may, and every error as a Status."""
        try:
            if request.path != "/healthz":
                _authorize(request)
            return await handler(request)
        except StatusError as error:
            return web.json_response(error.status, status=error.code)
        except web.HTTPException:
            raise
        except RuntimeFault as fault:
            return web.Response(status=500, text=str(fault))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return web.Response(status=500, text="Internal Server Error")

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _pods(self, request: web.Request) -> web.Response:
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self._source.pods()})

    async def _summary(self, request: web.Request) -> web.Response:
        return web.json_response(await stats.summary(self._source, self._runtime, self._node_name, self._clock.now()))

    def _pod(self, request: web.Request) -> Object:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        pod = self._source.pod(namespace, name, request.query.get("uid", ""))
        if pod is None:
            raise StatusError(404, "NotFound", f'pod "{name}" does not exist')
        return pod

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        options = logs.parse_options(request.query, self._clock.now())
        pod = self._pod(request)
        container = logs.container_of_log(self._source, pod, request.match_info["container"], previous=options.previous)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        async for data in logs.read_log(self._runtime, container.id, options):
            await response.write(data)
        await response.write_eof()
        return response

    def _running(self, request: web.Request) -> str:
        """The id of the running container that the path names."""
        pod, name = self._pod(request), request.match_info["container"]
        found = self._source.container(pod["metadata"]["uid"], name)
        if found is None or found.state is not ContainerState.RUNNING:
            raise StatusError(404, "NotFound", f'container not found ("{name}")')
        return found.id

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        container_id = self._running(request)
        command = request.query.getall("command", [])
        tty, stdin = _flag(request, "tty"), _flag(request, "input")

        async def open_session() -> Session:
            return await self._runtime.exec(container_id, command, tty=tty, stdin=stdin)

        return await self._stream(request, open_session, stdin=stdin, tty=tty)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        container_id = self._running(request)
        stdin = _flag(request, "input")

        async def open_session() -> Session:
            return await self._runtime.attach(container_id, stdin=stdin)

        return await self._stream(request, open_session, stdin=stdin, tty=_flag(request, "tty"))

    async def _stream(
        self, request: web.Request, open_session: Callable[[], Awaitable[Session]], *, stdin: bool, tty: bool
    ) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise StatusError(400, "BadRequest", "Upgrade request required")
        return await remote_command.serve(
            request,
            open_session,
            stdin=stdin,
            stdout=_flag(request, "output"),
            stderr=_flag(request, "error") and not tty,
        )


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "") in ("1", "true")


def _authorize(request: web.Request) -> None:
    """Raises StatusError 401 without a certificate, 403 for one that is not the API server's or an administrator's."""
    transport: Any = request.transport
    certificate = transport.get_extra_info("peercert") if transport is not None else None
    if not certificate:
        raise unauthorized()
    names = [(key, value) for part in certificate.get("subject", ()) for key, value in part]
    if ("organizationName", ADMITTED_GROUP) not in names and ("commonName", API_SERVER) not in names:
        raise forbidden("", "", "this certificate may not use the kubelet's API")
