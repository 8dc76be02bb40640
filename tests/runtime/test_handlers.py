"""Asking containers: over real sockets on loopback, and what is said when no good answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import web

from kone.apimachinery.timestamps import go_duration
from kone.runtime.handlers import Answer, Handlers, NoAnswer, resolve_port
from kone.runtime.runtime import ExecResult, NotFound
from tests.runtime.grpc_server import GrpcServer

CONTAINER: dict[str, Any] = {"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}
LOOPBACK = "127.0.0.1"
AGENT = "kube-probe/1.37"


class FakeRuntime:
    """Runs no command: `false` fails, `slow` takes too long, `gone` has no container."""

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout_s: float) -> ExecResult:
        match command[0]:
            case "false":
                return ExecResult(1, b"out ", b"err")
            case "slow":
                raise TimeoutError
            case "gone":
                raise NotFound("no such container")
        return ExecResult(0, b"x" * 20_000)


@pytest.fixture
async def handlers() -> AsyncIterator[Handlers]:
    made = Handlers(FakeRuntime())  # type: ignore[arg-type]
    yield made
    await made.close()


@pytest.fixture
async def page() -> AsyncIterator[int]:
    """The port of a server that says what it was asked."""
    over = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        match request.path:
            case "/moved":
                return web.Response(status=302, headers={"Location": "/here"})
            case "/away":
                return web.Response(status=302, headers={"Location": "http://192.0.2.1/"}, text="elsewhere")
            case "/loop":
                return web.Response(status=302, headers={"Location": "/loop"})
            case "/unchanged":
                return web.Response(status=304)
            case "/slow":
                await over.wait()
            case "/broken":
                return web.Response(status=500, text="secret")
            case "/headers":
                return web.Response(text=";".join(f"{k}={v}" for k, v in sorted(request.headers.items())))
        return web.Response(text=request.path_qs)

    server = web.Server(answer)
    listening = await asyncio.get_running_loop().create_server(server, LOOPBACK, 0)
    yield listening.sockets[0].getsockname()[1]
    over.set()
    listening.close()
    await server.shutdown(1)


@pytest.mark.parametrize(
    ("port", "expected"),
    [(80, 80), ("http", 8080)],
)
def test_ports_by_number_and_by_name(port: int | str, expected: int) -> None:
    assert resolve_port(CONTAINER, port) == expected


@pytest.mark.parametrize(
    ("port", "text"),
    [("8080", 'port "8080" not found'), (0, "invalid port number: 0"), (65536, "invalid port number: 65536")],
)
def test_ports_that_cannot_be(port: int | str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve_port(CONTAINER, port)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1s"), (90, "1m30s"), (3600, "1h0m0s"), (0.5, "500ms"), (2.5, "2.5s"), (0, "0s")],
)
def test_durations_as_go_prints_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


async def test_commands(handlers: Handlers) -> None:
    assert await handlers.exec("i", ["true"], 1) == Answer("success", "x" * 10_240)
    assert await handlers.exec("i", ["false"], 1) == Answer("failure", "out err")
    slow = 'command timed out: "slow \\"one\\"" timed out after 1s'
    assert await handlers.exec("i", ["slow", '"one"'], 1) == Answer("failure", slow)
    assert await handlers.exec("i", ["gone"], 1) == Answer("error", "no such container")


AMPLE_S = 20.0  # for what answers at once, on a machine that is busy


async def get(handlers: Handlers, port: int | str, path: str = "", timeout_s: float = AMPLE_S, **action: Any) -> Answer:
    action = {"port": port, "path": path, **action}
    return await handlers.http_get(CONTAINER, action, LOOPBACK, timeout_s, AGENT)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("", Answer("success", "/")),
        ("echo?code=1&msg=a%20b", Answer("success", "/echo?code=1&msg=a%20b")),
        ("/a b", Answer("success", "/a%20b")),
        ("/moved", Answer("success", "/here")),
        ("/away", Answer("warning", "Probe terminated redirects, Response body: elsewhere")),
        ("/unchanged", Answer("warning", "Probe terminated redirects, Response body: ")),
        ("/broken", Answer("failure", "HTTP probe failed with statuscode: 500")),
    ],
)
async def test_pages(handlers: Handlers, page: int, path: str, answer: Answer) -> None:
    assert await get(handlers, page, path) == answer


async def test_pages_that_lead_nowhere(handlers: Handlers, page: int) -> None:
    url = f"http://127.0.0.1:{page}"
    loop = f'Get "{url}/loop": stopped after 10 redirects'
    assert await get(handlers, page, "/loop") == Answer("failure", loop)
    slow = f'Get "{url}/slow": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'
    assert await get(handlers, page, "/slow", timeout_s=0.2) == Answer("failure", slow)
    tls = f'Get "https://127.0.0.1:{page}/": http: server gave HTTP response to HTTPS client'
    assert await get(handlers, page, scheme="HTTPS") == Answer("failure", tls)


async def test_headers_of_the_manifest_win(handlers: Handlers, page: int) -> None:
    plain = (await get(handlers, page, "/headers")).output
    assert plain == f"Accept=*/*;Connection=close;Host=127.0.0.1:{page};User-Agent=kube-probe/1.37"
    wanted = [
        {"name": "accept", "value": ""},
        {"name": "user-agent", "value": "me"},
        {"name": "Host", "value": "example.com"},
        {"name": "X-A", "value": "1"},
        {"name": "X-A", "value": "2"},
    ]
    told = (await get(handlers, page, "/headers", httpHeaders=wanted)).output
    assert told == "Connection=close;Host=example.com;User-Agent=me;X-A=1;X-A=2"


async def unused_port() -> int:
    server = await asyncio.start_server(lambda r, w: None, LOOPBACK, 0)
    port = int(server.sockets[0].getsockname()[1])
    server.close()
    return port


async def test_nobody_listens(handlers: Handlers) -> None:
    port = await unused_port()
    refused = f"dial tcp 127.0.0.1:{port}: connect: connection refused"
    assert await get(handlers, port) == Answer("failure", f'Get "http://127.0.0.1:{port}/": {refused}')
    assert await handlers.tcp_connect(CONTAINER, {"port": port}, LOOPBACK, AMPLE_S) == Answer("failure", refused)
    assert await get(handlers, "nope") == Answer("error", 'port "nope" not found')
    with pytest.raises(NoAnswer):
        await handlers.fetch(CONTAINER, {"port": port}, LOOPBACK, 0, AGENT)


async def test_a_connection_is_enough(handlers: Handlers, page: int) -> None:
    assert await handlers.tcp_connect(CONTAINER, {"port": page}, LOOPBACK, AMPLE_S) == Answer("success")
    elsewhere = {"port": page, "host": "127.0.0.1"}
    assert await handlers.tcp_connect(CONTAINER, elsewhere, "192.0.2.1", AMPLE_S) == Answer("success")


# gRPC


async def ask(handlers: Handlers, server: GrpcServer, service: str = "", timeout_s: float = AMPLE_S) -> Answer:
    port = await server.start()
    try:
        return await handlers.grpc_health({"port": port, "service": service}, LOOPBACK, timeout_s, AGENT)
    finally:
        await server.stop()


async def test_a_service_that_serves(handlers: Handlers) -> None:
    server = GrpcServer()
    assert await ask(handlers, server, "web") == Answer("success", "service healthy")
    assert server.requests == [b"\x00\x00\x00\x00\x05\x0a\x03web"]
    assert server.headers[":path"] == "/grpc.health.v1.Health/Check"
    assert server.headers["user-agent"] == AGENT


async def test_the_server_as_a_whole_has_no_name(handlers: Handlers) -> None:
    server = GrpcServer()
    await ask(handlers, server)
    assert server.requests == [b"\x00\x00\x00\x00\x00"]


UNKNOWN_SERVICE = [("grpc-status", "12"), ("grpc-message", "unknown service grpc.health.v1.Health")]
NO_SUCH = [("grpc-status", "5"), ("grpc-message", "unknown%20service")]


@pytest.mark.parametrize(
    ("server", "text"),
    [
        (GrpcServer(body=b"\x00\x00\x00\x00\x02\x08\x02"), 'service unhealthy (responded with "NOT_SERVING")'),
        (GrpcServer(body=b"\x00\x00\x00\x00\x00"), 'service unhealthy (responded with "UNKNOWN")'),
        (
            GrpcServer(body=b"", trailers=UNKNOWN_SERVICE),
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): "
            "unknown service grpc.health.v1.Health",
        ),
        (
            GrpcServer(body=b"", trailers=NO_SUCH),
            "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service",
        ),
        (GrpcServer(silent=True), "timeout: health rpc did not complete within 200ms"),
    ],
)
async def test_services_that_do_not(handlers: Handlers, server: GrpcServer, text: str) -> None:
    timeout_s = 0.2 if server.silent else AMPLE_S
    assert await ask(handlers, server, timeout_s=timeout_s) == Answer("failure", text)


async def test_no_grpc_server_at_all(handlers: Handlers, page: int) -> None:
    for port in (page, await unused_port()):
        found = await handlers.grpc_health({"port": port}, LOOPBACK, 0.2, AGENT)
        why = f'timeout: failed to connect service "127.0.0.1:{port}" within 200ms: context deadline exceeded'
        assert found == Answer("failure", why)
