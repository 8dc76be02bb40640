"""Webhooks over real TLS on loopback: by URL and by service, and what failures are called."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kone.admission.webhooks import CallFailed
from kone.apimachinery.kinds import GVR
from kone.apiserver.webhook_client import WebhookClient
from kone.apiserver.webhook_users import WebhookUsers
from kone.client.kubeconfig import Identity
from tests.https_server import HttpsServer
from tests.memory_caches import MemoryCaches

SERVICES = GVR("", "v1", "services")
SLICES = GVR("discovery.k8s.io", "v1", "endpointslices")


class Server(HttpsServer):
    """Answers what it was sent, or as told by the path."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, self._reply)
        self.bundle = base64.b64encode(self.ca_pem.encode()).decode()
        self.pair = {"client-certificate-data": self.bundle, "client-key": "tls.pem"}
        self.seen: list[tuple[str, bool]] = []
        """Of each request its Authorization header, and whether it came with a client certificate."""
        self.queries: list[str] = []

    async def _reply(self, request: web.BaseRequest) -> web.StreamResponse:
        self.queries.append(request.raw_path)
        transport = request.transport
        shown = transport is not None and bool(transport.get_extra_info("peercert"))
        self.seen.append((request.headers.get("Authorization", ""), shown))
        if request.path == "/slow":
            await asyncio.sleep(30)
        if request.path == "/nonsense":
            return web.Response(text="nonsense")
        if request.path == "/broken":
            return web.Response(status=500, text="it broke")
        if request.path == "/missing":
            return web.Response(status=404)
        return web.json_response(await request.json())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    found = Server(tmp_path)
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
def caches() -> MemoryCaches:
    return MemoryCaches()


@pytest.fixture
async def client(caches: MemoryCaches) -> AsyncIterator[WebhookClient]:
    found = WebhookClient(caches)
    yield found
    await found.close()


def by_url(server: Server, path: str = "/") -> dict[str, Any]:
    return {"url": f"https://127.0.0.1:{server.port}{path}", "caBundle": server.bundle}


async def test_the_answer_comes_back_and_the_timeout_is_told(server: Server, client: WebhookClient) -> None:
    assert await client.call(by_url(server, "/ask"), {"a": 1}, timeout_s=10) == {"a": 1}
    assert server.queries == ["/ask?timeout=10s"]


async def test_a_service_is_dialled_at_a_ready_endpoint(
    server: Server, client: WebhookClient, caches: MemoryCaches
) -> None:
    config = {"service": {"namespace": "ns", "name": "hook", "path": "/x", "port": 8443}, "caBundle": server.bundle}
    lead = 'Post "https://hook.ns.svc:8443/x?timeout=30s": '
    with pytest.raises(CallFailed) as caught:
        await client.call(config, {}, timeout_s=30)
    assert str(caught.value) == lead + 'service "hook" not found'
    ports = [{"name": "https", "port": 8443, "targetPort": 9443}]
    service = {"metadata": {"name": "hook", "namespace": "ns"}, "spec": {"clusterIP": "None", "ports": ports}}
    caches.put(SERVICES, service)
    with pytest.raises(CallFailed, match='no endpoints available for service "hook"'):
        await client.call(config, {}, timeout_s=30)
    endpoint = {"addresses": ["127.0.0.1"], "conditions": {"ready": True}}
    meta = {"name": "hook-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "hook"}}
    caches.put(SLICES, {"metadata": meta, "endpoints": [endpoint], "ports": [{"name": "https", "port": server.port}]})
    assert await client.call(config, {"b": 2}, timeout_s=30) == {"b": 2}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/missing", "the server could not find the requested resource"),
        ("/broken", 'an error on the server ("it broke") has prevented the request from succeeding'),
        ("/nonsense", "couldn't get version/kind; json parse error"),
    ],
)
async def test_bad_answers_are_failures(server: Server, client: WebhookClient, path: str, text: str) -> None:
    with pytest.raises(CallFailed) as caught:
        await client.call(by_url(server, path), {}, timeout_s=30)
    assert text in str(caught.value)


async def test_a_slow_webhook_is_given_up(server: Server, client: WebhookClient) -> None:
    with pytest.raises(CallFailed, match="context deadline exceeded"):
        await client.call(by_url(server, "/slow"), {}, timeout_s=0.05)


async def test_a_stranger_is_not_believed(server: Server, client: WebhookClient) -> None:
    config = {"url": f"https://127.0.0.1:{server.port}/"}
    with pytest.raises(CallFailed) as caught:
        await client.call(config, {}, timeout_s=30)
    text = "tls: failed to verify certificate: x509: certificate signed by unknown authority"
    assert str(caught.value).endswith(text)
    with pytest.raises(CallFailed, match="unable to parse bytes as PEM block"):
        await client.call({**config, "caBundle": base64.b64encode(b"no PEM").decode()}, {}, timeout_s=30)


async def test_nobody_listens(client: WebhookClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(CallFailed) as caught:
            await client.call({"url": f"https://127.0.0.1:{port}/"}, {}, timeout_s=30)
    head = f'Post "https://127.0.0.1:{port}/?timeout=30s": dial tcp 127.0.0.1:{port}: connect: '
    assert str(caught.value) == f"{head}connection refused"


def kubeconfig(path: Path, *users: tuple[str, dict[str, str]], server: Server) -> str:
    """A file of these users; the first is the current context's, whose cluster is `server`."""
    cluster = {"server": f"https://127.0.0.1:{server.port}/ask", "certificate-authority-data": server.bundle}
    content = {
        "users": [{"name": name, "user": user} for name, user in users],
        "clusters": [{"name": "c", "cluster": cluster}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": users[0][0]}}],
        "current-context": "c",
    }
    path.write_text(json.dumps(content))
    return str(path)


async def test_a_webhook_is_shown_the_identity_that_is_for_its_host(
    server: Server, client: WebhookClient, tmp_path: Path
) -> None:
    here = (f"127.0.0.1:{server.port}", {"token": "t"} | server.pair)
    path = kubeconfig(tmp_path / "users", ("*", {"token": "other"}), here, server=server)
    await client.identified(path).call(by_url(server), {}, timeout_s=10)
    await client.call(by_url(server), {}, timeout_s=10)
    assert server.seen == [("Bearer t", True), ("", False)]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["*", "*.example.com", "hook.example.com", "hook.example.com:443"], "hook.example.com:443"),
        (["*", "*.com", "*.example.com"], "*.example.com"),
        (["*", "example.com"], "*"),
        (["current", "elsewhere"], "current"),
        (["elsewhere"], ""),
    ],
)
def test_a_user_is_found_by_the_most_exact_name(names: list[str], found: str) -> None:
    users = WebhookUsers({name: Identity(token=name) for name in names}, "current")
    assert users.of("hook.example.com", 443).token == found


def test_a_port_other_than_https_own_is_part_of_the_name() -> None:
    users = WebhookUsers({"a.b.svc": Identity(token="443"), "*.b.svc:8443": Identity(token="8443")})
    assert (users.of("a.b.svc", 8443).token, users.of("a.b.svc", 443).token) == ("8443", "443")


def test_a_kubeconfig_that_is_missing_is_told(client: WebhookClient, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file or directory"):
        client.identified(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="No such file or directory"):
        client.backend(str(tmp_path / "none"))


async def test_a_backend_is_where_its_kubeconfig_says(server: Server, client: WebhookClient, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    path = kubeconfig(tmp_path / "backend", ("me", {"tokenFile": "token"} | server.pair), server=server)
    assert await client.backend(path).post({"a": 1}) == {"a": 1}
    assert (server.queries, server.seen) == (["/ask?timeout=30s"], [("Bearer from-file", True)])


async def test_a_backend_that_refuses_connections_is_not_asked_again(
    client: WebhookClient, server: Server, tmp_path: Path
) -> None:
    backend = client.backend(kubeconfig(tmp_path / "backend", ("me", {}), server=server))
    await server.stop()
    with pytest.raises(CallFailed, match="connect: connection refused") as caught:
        await backend.post({})
    assert not caught.value.is_transient
    await server.start()
