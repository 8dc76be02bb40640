"""The kubelet's own HTTPS server: logs, exec, attach, port-forward, pods, stats and metrics of this node.

The API server asks here for what kubectl wants of a running pod; metrics-server and dashboards ask with a token.
Paths, checks and texts: kubernetes/pkg/kubelet/server. Refusals are plain text, as upstream's are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import platform
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError, bad_request, go_quote
from kone.apimachinery.objects import Object, name_of, namespace_of, uid_of
from kone.client.client import Client
from kone.runtime import host_logs, logs, metrics, pod_dial, port_forward, remote_command, zpages
from kone.runtime.cadvisor_metrics import cadvisor_metrics
from kone.runtime.kubelet_config import KubeletConfig
from kone.runtime.meters import Meters
from kone.runtime.node_status import KUBELET_VERSION, host_facts
from kone.runtime.parts import PodSource
from kone.runtime.pod_dial import Dial, DialError, Streams
from kone.runtime.pod_spec import find_container
from kone.runtime.probes import Probes
from kone.runtime.runtime import ContainerState, NotFound, Runtime, RuntimeFault, Session
from kone.runtime.server_auth import ServerAuth
from kone.runtime.stats import Stats

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 30.0
LINE_MAX_BYTES: Final = 64 * 1024  # a command to execute stands in the URL: more than the API server passes on
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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
    """Serves one node. `port` is the one that was taken once `start` has returned.

    `client` answers who a token is and what a user may; without it only system:masters are let in. `probes` are
    counted in /metrics/probes; `configz` is the answer of that path.
    """

    def __init__(
        self,
        source: PodSource,
        runtime: Runtime,
        clock: Clock,
        config: KubeletConfig,
        tls: Tls,
        *,
        client: Client | None = None,
        stats: Stats | None = None,
        probes: Probes | None = None,
        meters: Meters | None = None,
        configz: Callable[[], Object] = dict,
        dial: Dial = pod_dial.dial,
    ) -> None:
        self._source, self._runtime, self._clock, self._config = source, runtime, clock, config
        self._tls = tls
        self._auth = ServerAuth(clock, config.node_name, client)
        self._stats = stats or Stats(source, runtime, clock, config.node_name, config.root_dir)
        self._meters = meters or Meters()
        self._probes, self._configz_answer, self._dial = probes, configz, dial
        self._started_at = clock.now()
        self._context: ssl.SSLContext | None = None
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, address: str, port: int) -> None:
        """Listen. Raises OSError where the port is taken."""
        app = web.Application(middlewares=[self._guard], client_max_size=64 << 20)
        for path in ("/healthz", "/healthz/{check}"):
            app.router.add_get(path, self._healthz)
        app.router.add_get("/pods", self._pods)
        app.router.add_get("/runningpods/", self._running_pods)
        app.router.add_get("/stats/summary", self._summary)
        for path in ("/metrics", "/metrics/cadvisor", "/metrics/resource", "/metrics/probes"):
            app.router.add_get(path, self._metrics)
        app.router.add_get("/configz", self._configz)
        app.router.add_get("/statusz", self._statusz)
        app.router.add_get("/flagz", self._flagz)
        app.router.add_post("/checkpoint/{namespace}/{pod}/{container}", self._checkpoint)
        app.router.add_get("/debug/pprof/{what:.*}", self._profile)
        app.router.add_get("/logs/{path:.*}", self._host_logs)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        in_container = ("/{namespace}/{pod}/{container}", "/{namespace}/{pod}/{uid}/{container}")
        in_pod = ("/{namespace}/{pod}", "/{namespace}/{pod}/{uid}")
        streams: list[tuple[str, tuple[str, ...], Handler]] = [
            ("/exec", in_container, self._exec),
            ("/attach", in_container, self._attach),
            ("/portForward", in_pod, self._port_forward),
        ]
        for prefix, rests, handler in streams:
            for rest in rests:
                app.router.add_get(prefix + rest, handler)
                app.router.add_post(prefix + rest, handler)
        for rest in in_container:
            app.router.add_post("/run" + rest, self._run)
        # A client that goes takes its request with it: a followed log must not be read on for nobody.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=1.0,
            handler_cancellation=True,
            max_line_size=LINE_MAX_BYTES,
            max_field_size=LINE_MAX_BYTES,
        )
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
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who may, and every refusal as a text."""
        transport: Any = request.transport
        try:
            certificate = transport.get_extra_info("peercert") if transport is not None else None
            await self._auth.admit(certificate, request.headers.get("Authorization", ""), request.method, request.path)
            return await handler(request)
        except StatusError as error:
            return web.Response(status=error.code, text=error.message)
        except web.HTTPMethodNotAllowed as error:
            return web.Response(status=405, text="Method Not Allowed", headers={"Allow": error.headers["Allow"]})
        except web.HTTPException:
            raise
        except RuntimeFault as fault:
            return web.Response(status=500, text=str(fault))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return web.Response(status=500, text="Internal Server Error")

    # ---- about the node

    async def _healthz(self, request: web.Request) -> web.Response:
        checks = ("ping", "log", "syncloop")
        if (check := request.match_info.get("check")) is not None and check not in checks:
            raise StatusError(404, "NotFound", "404 page not found\n")
        if "verbose" in request.query:
            return web.Response(text="".join(f"[+]{name} ok\n" for name in checks) + "healthz check passed\n")
        return web.Response(text="ok")

    async def _pods(self, request: web.Request) -> web.Response:
        return _pod_list(self._source.pods())

    async def _running_pods(self, request: web.Request) -> web.Response:
        """What the runtime runs, which may be more than the API knows of."""
        found: dict[str, Object] = {}
        for one in await self._runtime.containers():
            if one.state is ContainerState.RUNNING:
                meta = {"name": one.pod.name, "namespace": one.pod.namespace, "uid": one.pod.uid}
                pod = found.setdefault(one.pod.uid, {"metadata": meta, "spec": {"containers": []}, "status": {}})
                pod["spec"]["containers"].append({"name": one.name, "image": one.image, "resources": {}})
        return _pod_list(list(found.values()))

    async def _summary(self, request: web.Request) -> web.Response:
        only = request.query.get("only_cpu_and_memory", "") in ("1", "true")
        return web.json_response(await self._stats.summary(only_cpu_and_memory=only))

    async def _metrics(self, request: web.Request) -> web.Response:
        now = self._clock.now()
        match request.path.removeprefix("/metrics"):
            case "/resource":
                text = metrics.resource_metrics(await self._stats.pods(), now)
            case "/cadvisor":
                text = await self._cadvisor_page(now)
            case "/probes":
                text = metrics.probe_metrics(self._probes.counts if self._probes is not None else {})
            case _:
                claimed = await self._stats.claimed()
                text = metrics.kubelet_metrics(self._source, self._config.node_name, self._meters, claimed)
        return web.Response(text=text, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _cadvisor_page(self, now: float) -> str:
        """Some ten small files a container, read off the event loop."""
        pods, disk = await self._stats.pods(disk=True), await self._stats.image_fs()
        version = (await self._runtime.status()).version

        def page() -> str:
            return cadvisor_metrics(pods, disk, host_facts(self._config.root_dir), version, now)

        return await asyncio.to_thread(page)

    async def _configz(self, request: web.Request) -> web.Response:
        return web.json_response(self._configz_answer())

    async def _statusz(self, request: web.Request) -> web.Response:
        paths = sorted({str(r.canonical).partition("{")[0] for r in request.app.router.resources()})
        python = f"python{platform.python_version()}"
        found = zpages.statusz(self._started_at, self._clock.now(), python, KUBELET_VERSION.removeprefix("v"), paths)
        if zpages.wants_object(request.headers.get("Accept", ""), "Statusz"):
            return web.json_response(found)
        return web.Response(text=zpages.statusz_text(found, self._started_at))

    async def _flagz(self, request: web.Request) -> web.Response:
        told = zpages.flags(self._config)
        if zpages.wants_object(request.headers.get("Accept", ""), "Flagz"):
            return web.json_response(zpages.flagz(told))
        return web.Response(text=zpages.flagz_text(told))

    async def _checkpoint(self, request: web.Request) -> web.Response:
        """Refused as by a runtime without it: Docker's checkpoints are an experiment, and no images."""
        pod, name = self._pod(request, "pod does not exist"), request.match_info["container"]
        if find_container(pod, name) is None:
            raise StatusError(404, "NotFound", f"container {name} does not exist")
        where = f"{namespace_of(pod)}/{name_of(pod)}/{name}"
        why = "rpc error: code = Unimplemented desc = method CheckpointContainer not implemented: Docker has no CRI"
        raise StatusError(500, "InternalError", f"checkpointing of {where} failed ({why})")

    async def _profile(self, request: web.Request) -> web.Response:
        return web.Response(status=405, text="profiling endpoint is disabled.\n")

    async def _host_logs(self, request: web.Request) -> web.StreamResponse:
        return host_logs.serve(request.match_info["path"])

    # ---- about a pod

    def _pod(self, request: web.Request, text: str) -> Object:
        """Raises StatusError 404 with that text."""
        where = request.match_info
        pod = self._source.pod(where["namespace"], where["pod"], where.get("uid", ""))
        if pod is None:
            raise StatusError(404, "NotFound", text)
        return pod

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        options = logs.parse_options(request.query, self._clock.now())
        pod = self._pod(request, f"pod {go_quote(request.match_info['pod'])} does not exist")
        container_id = logs.container_of_log(pod, request.match_info["container"], previous=options.previous)
        try:
            await self._runtime.container(container_id)
        except NotFound:
            raise bad_request(f"unable to retrieve container logs for docker://{container_id}") from None
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async with contextlib.aclosing(logs.read_log(self._runtime, container_id, options)) as pieces:
            try:
                async for data in pieces:
                    await response.write(data)
            except RuntimeFault as fault:  # what was read is sent; the answer has begun, there is no other to give
                log.info("the log of container %s ends early: %s", container_id, fault)
        await response.write_eof()
        return response

    def _running(self, request: web.Request, refusal: str) -> tuple[Object, str]:
        """The pod, and the id of its running container that the path names. Raises StatusError."""
        pod, name = self._pod(request, "pod does not exist"), request.match_info["container"]
        found = self._source.container(uid_of(pod), name)
        if found is None or found.state is not ContainerState.RUNNING:
            text = refusal.format(quoted=go_quote(name), name=name, pod=f"{name_of(pod)}_{namespace_of(pod)}")
            raise StatusError(500, "InternalError", text)
        return pod, found.id

    async def _run(self, request: web.Request) -> web.Response:
        _, container_id = self._running(request, "container not found ({quoted})")
        result = await self._runtime.exec_sync(container_id, request.query.get("cmd", "").split(" "), 0)
        if result.exit_code != 0:
            return web.Response(status=500, text=f"command terminated with exit code {result.exit_code}")
        return web.Response(body=result.stdout + result.stderr, content_type="application/json")

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        wanted = _Wanted.of(request)
        _, container_id = self._running(request, "container not found ({quoted})")
        command = request.query.getall("command", [])

        async def open_session() -> Session:
            return await self._runtime.exec(container_id, command, tty=wanted.tty, stdin=wanted.stdin)

        return await self._stream(request, open_session, wanted, "error executing command in container")

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        wanted = _Wanted.of(request)
        pod, container_id = self._running(request, "container {name} not found in pod {pod}")
        container = find_container(pod, request.match_info["container"]) or {}
        if container.get("tty"):  # a process has a terminal or not, whatever the client thinks
            wanted = _Wanted(wanted.stdin, wanted.stdout, False, True)

        async def open_session() -> Session:
            return await self._runtime.attach(container_id, stdin=wanted.stdin)

        return await self._stream(request, open_session, wanted, "error attaching to container")

    async def _stream(
        self, request: web.Request, open_session: remote_command.OpenSession, wanted: _Wanted, what: str
    ) -> web.StreamResponse:
        socket = await _upgrade(request, remote_command.PROTOCOLS)
        serving = remote_command.serve(
            socket,
            open_session,
            what=what,
            stdin=wanted.stdin,
            stdout=wanted.stdout,
            stderr=wanted.stderr,
            tty=wanted.tty,
        )
        return await _served(request, socket, serving)

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        ports = []
        if port_forward.TUNNEL not in _offered(request):
            try:
                ports = port_forward.ports_of(request.query.getall("port", []))
            except ValueError as error:
                raise bad_request(str(error)) from None
        pod = self._pod(request, "pod does not exist")
        name, uid = name_of(pod), uid_of(pod)
        if not any(sandbox.ready for sandbox in await self._runtime.sandboxes(uid)):
            text = f"pod not found ({go_quote(f'{name}_{namespace_of(pod)}')})"
            raise StatusError(500, "InternalError", text)

        async def connect(port: int) -> Streams:
            ready = next((s for s in await self._runtime.sandboxes(uid) if s.ready and s.pid), None)
            if ready is None:
                raise DialError("the pod has ended")
            return await self._dial(ready.pid, port)

        socket = await _upgrade(request, port_forward.PROTOCOLS)
        return await _served(request, socket, port_forward.serve(socket, connect, ports, f"pod {name}, uid {uid}"))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which streams a client of exec or attach asks for."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    @classmethod
    def of(cls, request: web.Request) -> _Wanted:
        """Raises StatusError 400 for none at all. A terminal has no stderr of its own."""
        tty = _flag(request, "tty")
        wanted = cls(_flag(request, "input"), _flag(request, "output"), _flag(request, "error") and not tty, tty)
        if not (wanted.stdin or wanted.stdout or wanted.stderr):
            raise bad_request("you must specify at least 1 of stdin, stdout, stderr")
        return wanted


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "") in ("1", "true")


def _offered(request: web.Request) -> set[str]:
    lines = request.headers.getall("Sec-WebSocket-Protocol", [])
    return {text.strip() for line in lines for text in line.split(",")}


async def _upgrade(request: web.Request, protocols: tuple[str, ...]) -> web.WebSocketResponse:
    """Raises StatusError 400 for a request that is no WebSocket's, and for protocols that nobody here speaks."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise bad_request("Upgrade request required")
    offered = _offered(request)
    if offered and not offered & set(protocols):
        raise bad_request(f"requested protocol(s) are not supported: {sorted(offered)}; supports {list(protocols)}")
    socket = web.WebSocketResponse(protocols=protocols, heartbeat=HEARTBEAT_S, max_msg_size=0, compress=False)
    await socket.prepare(request)
    return socket


async def _served(
    request: web.Request, socket: web.WebSocketResponse, serving: Awaitable[None]
) -> web.WebSocketResponse:
    """The socket, served and closed; from here on there is nobody to tell of an error but the log."""
    try:
        await serving
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("%s failed", request.path)
    finally:
        with contextlib.suppress(ConnectionError):
            await socket.close()
    return socket


def _pod_list(pods: list[Object]) -> web.Response:
    answer = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}
    return web.Response(text=json.dumps(answer), content_type="application/json")
