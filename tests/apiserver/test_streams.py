"""Logs, exec, port-forward and proxies through the server to a kubelet that stands in for kone's."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import MappingProxyType

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from kone.aio.clock import SystemClock
from kone.apimachinery.kinds import NODES, PODS
from kone.apiserver.app import ApiServer, TlsFiles
from kone.apiserver.kubelet_client import ClientTls
from kone.apiserver.proxies import split_path
from kone.auth.authentication import Authenticator
from kone.auth.authorizer import Authorizer
from kone.auth.pki import CA, Names, Pki
from kone.registry.resource import Resource, Subresource
from kone.registry.strategy import Strategy
from tests.apiserver.conftest import PodRules, Small

POD = "/api/v1/namespaces/ns/pods/a"


@dataclass
class Kubelet:
    """Answers logs with text, exec with an echo, and refuses what it does not know."""

    asked: list[str] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def logs(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        if "follow" not in request.query:
            return web.Response(text="one\ntwo\n")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one\n")
        try:
            await asyncio.Event().wait()
        finally:
            self.gone.set()
        return response

    async def exec(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        if request.match_info["container"] == "broken":
            return web.Response(status=404, text='container not found ("broken")')
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io", "SPDY/3.1+v4.channel.k8s.io"))
        await socket.prepare(request)
        try:
            if not (socket.ws_protocol or "").startswith("SPDY"):
                await socket.send_str(socket.ws_protocol or "")
            async for message in socket:
                await socket.send_bytes(message.data)
        finally:
            self.gone.set()
        return socket

    async def health(self, request: web.Request) -> web.Response:
        body = await request.text()
        self.asked.append(f"{request.method} {request.path_qs} {body} {request.headers.get('Authorization')}")
        return web.Response(text="ok", headers={"Location": "/elsewhere"})


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"), Names("n1", node_ips=("127.0.0.1",)))
    made.ensure(SystemClock().now())
    return made


@pytest.fixture
async def kubelet(pki: Pki) -> AsyncIterator[Kubelet]:
    found = Kubelet()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki.certificate(CA)))
    context.load_cert_chain(pki.certificate("kubelet-serving"), pki.key("kubelet-serving"))
    context.verify_mode = ssl.CERT_REQUIRED
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", found.logs)
    app.router.add_get("/exec/{namespace}/{pod}/{container}", found.exec)
    app.router.add_route("*", "/health", found.health)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    found.port = runner.addresses[0][1]
    yield found
    await runner.cleanup()


@dataclass
class Client:
    session: aiohttp.ClientSession
    server: ApiServer
    small: Small
    base: str
    tls: ssl.SSLContext

    async def text(self, method: str, path: str, **more: object) -> tuple[int, str]:
        async with self.session.request(method, self.base + path, **more) as answer:  # type: ignore[arg-type]
            return answer.status, await answer.text()


@pytest.fixture
async def client(small: Small, pki: Pki, kubelet: Kubelet) -> AsyncIterator[Client]:
    proxy = Subresource(verbs=("create", "get"))
    rules = PodRules()
    parts = {"log": Subresource(verbs=("get",)), "exec": proxy, "portforward": proxy, "proxy": proxy}
    small.registry.remove(PODS)
    small.registry.add(Resource(gvr=PODS, kind="Pod", strategy=rules, subresources=MappingProxyType(parts)))
    nodes = Resource(gvr=NODES, kind="Node", strategy=Strategy(), namespaced=False, subresources={"proxy": proxy})
    small.registry.add(nodes)
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port}},
    }
    await small.make(NODES, "n1", namespace="", status=status)
    containers = [{"name": "c"}, {"name": "broken"}]
    await small.make(PODS, "a", spec={"nodeName": "n1", "containers": containers})
    await small.make(PODS, "unplaced", spec={"containers": [{"name": "c"}]})
    server = ApiServer(
        verbs=small.verbs,
        authenticator=Authenticator(()),
        authorizer=Authorizer(small.verbs.caches, ()),
        kubelet_tls=ClientTls(
            pki.certificate("apiserver-kubelet-client"), pki.key("apiserver-kubelet-client"), pki.certificate(CA)
        ),
    )
    files = TlsFiles(pki.certificate("apiserver"), pki.key("apiserver"), pki.certificate(CA))
    await server.start(host="127.0.0.1", tls=files)
    context = ssl.create_default_context(cafile=str(pki.certificate(CA)))
    context.load_cert_chain(pki.certificate("admin"), pki.key("admin"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield Client(session, server, small, f"https://127.0.0.1:{server.port}", context)
    await server.stop(1.0)


async def test_a_certificate_of_no_ca_is_nobody(client: Client, pki: Pki) -> None:
    context = ssl.create_default_context(cafile=str(pki.certificate(CA)))
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(f"{client.base}{POD}") as answer,
    ):
        assert (answer.status, (await answer.json())["reason"]) == (403, "Forbidden")


async def test_logs_pass_their_options(client: Client, kubelet: Kubelet) -> None:
    assert await client.text("GET", f"{POD}/log?container=c&tailLines=2&timestamps=true") == (200, "one\ntwo\n")
    assert kubelet.asked == ["/containerLogs/ns/a/c?timestamps=true&tailLines=2"]


@pytest.mark.parametrize(
    ("query", "code", "text"),
    [
        ("", 400, "a container name must be specified for pod a, choose one of: [c broken]"),
        ("container=x", 400, "container x is not valid for pod a"),
        ("container=c&tailLines=-1", 422, "tailLines: Invalid value: -1: must be greater than or equal to 0"),
        ("container=c&sinceTime=2026-01-01T00:00:00Z&sinceSeconds=1", 422, "at most one of `sinceTime`"),
        ("container=c&stream=Stdout", 422, "stream: Forbidden: may not be specified"),
    ],
)
async def test_logs_that_are_refused(client: Client, query: str, code: int, text: str) -> None:
    found, body = await client.text("GET", f"{POD}/log?{query}")
    assert found == code
    assert text.replace('"', '\\"') in body


async def test_logs_of_a_pod_without_a_node_are_empty(client: Client) -> None:
    assert await client.text("GET", "/api/v1/namespaces/ns/pods/unplaced/log") == (204, "")


async def test_who_follows_logs_and_goes_is_noticed(client: Client, kubelet: Kubelet) -> None:
    answer = await client.session.get(f"{client.base}{POD}/log?container=c&follow=true")
    assert await answer.content.readline() == b"one\n"
    answer.close()
    await asyncio.wait_for(kubelet.gone.wait(), 30)


async def test_logs_as_messages(client: Client) -> None:
    url = f"{client.base}{POD}/log?container=c"
    async with client.session.ws_connect(url, protocols=("binary.k8s.io",)) as socket:
        assert (await socket.receive_bytes()).decode() == "one\ntwo\n"
        assert (await socket.receive()).type is WSMsgType.CLOSE


async def test_exec_is_a_tunnel(client: Client, kubelet: Kubelet) -> None:
    url = f"{client.base}{POD}/exec?container=c&command=ls&command=-l&stdout=1&stdin=1"
    async with client.session.ws_connect(url, protocols=("v5.channel.k8s.io",)) as socket:
        assert await socket.receive_str() == "v5.channel.k8s.io"
        large = bytes(range(256)) * 4096
        await socket.send_bytes(large)
        assert await socket.receive_bytes() == large
    assert kubelet.asked == ["/exec/ns/a/c?input=1&output=1&command=ls&command=-l"]
    await asyncio.wait_for(kubelet.gone.wait(), 30)


async def test_what_the_kubelet_refuses_is_told(client: Client) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
        await client.session.ws_connect(f"{client.base}{POD}/exec?container=broken&command=x&stdout=1")
    assert raised.value.status == 404
    found, body = await client.text(
        "GET",
        f"{POD}/exec?container=broken&command=x&stdout=1",
        headers={"Connection": "Upgrade", "Upgrade": "websocket"},
    )
    assert found == 404
    assert 'container not found (\\"broken\\")' in body


async def test_exec_without_an_upgrade(client: Client) -> None:
    found, body = await client.text("POST", f"{POD}/exec?container=c&command=x&stdout=1")
    assert (found, "Upgrade request required" in body) == (400, True)


async def spdy(client: Client, path: str, versions: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port, ssl=client.tls)
    head = f"POST {path} HTTP/1.1\r\nHost: kone\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n"
    writer.write(f"{head}X-Stream-Protocol-Version: {versions}\r\n\r\n".encode())
    return await reader.readuntil(b"\r\n\r\n"), reader, writer


async def test_bytes_of_spdy_go_into_messages(client: Client, kubelet: Kubelet) -> None:
    head, reader, writer = await spdy(client, f"{POD}/exec?container=c&command=x&stdin=1", "v4.channel.k8s.io")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"X-Stream-Protocol-Version: v4.channel.k8s.io" in head
    for size in (5, 200, 70_000):
        sent = bytes(size)
        writer.write(sent)
        assert await reader.readexactly(size) == sent
    writer.close()
    await asyncio.wait_for(kubelet.gone.wait(), 30)


async def test_versions_of_spdy_streams_that_are_unknown(client: Client) -> None:
    head, _, writer = await spdy(client, f"{POD}/exec?container=c&command=x&stdin=1", "v2.channel.k8s.io")
    assert head.startswith(b"HTTP/1.1 403 ")
    writer.close()


async def test_a_node_is_proxied_without_our_credentials(client: Client, kubelet: Kubelet) -> None:
    path = "/api/v1/nodes/n1/proxy/health?a=b"
    async with client.session.post(client.base + path, data=b"body", headers={"Authorization": "Basic x"}) as answer:
        assert (answer.status, await answer.text()) == (200, "ok")
        assert answer.headers["Location"] == "/api/v1/nodes/n1/proxy/elsewhere"
    assert kubelet.asked == ["POST /health?a=b body None"]


@pytest.mark.parametrize(
    ("path", "prefix", "below"),
    [
        ("/api/v1/nodes/n/proxy", "/api/v1/nodes/n/proxy", ""),
        ("/api/v1/nodes/proxy/proxy/proxy/a%2Fb", "/api/v1/nodes/proxy/proxy", "/proxy/a%2Fb"),
        ("/api/v1/namespaces/proxy-1/pods/a:80/proxy/", "/api/v1/namespaces/proxy-1/pods/a:80/proxy", "/"),
    ],
)
def test_the_proxy_is_found_by_its_place(path: str, prefix: str, below: str) -> None:
    assert split_path(path) == (prefix, below)


async def test_the_root_of_a_proxy_ends_with_a_slash(client: Client) -> None:
    path = f"{client.base}/api/v1/nodes/n1/proxy"
    async with client.session.get(f"{path}?a=b", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (301, "/api/v1/nodes/n1/proxy/?a=b")


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/api/v1/namespaces/ns/pods/nothing/proxy/", 404, "not found"),
        ("/api/v1/namespaces/ns/pods/a:1:2:3/proxy/", 400, "invalid pod request"),
        ("/api/v1/namespaces/ns/pods/unplaced:80/proxy/", 400, "address not allowed"),
        ("/api/v1/nodes/nothing/proxy/", 404, "not found"),
    ],
)
async def test_what_cannot_be_proxied(client: Client, path: str, code: int, text: str) -> None:
    found, body = await client.text("GET", path)
    assert (found, text in body) == (code, True)


async def test_a_watch_as_messages(client: Client) -> None:
    url = f"{client.base}/api/v1/namespaces/ns/configmaps?watch=1"
    async with client.session.ws_connect(url) as socket:
        await client.small.make(("", "v1", "configmaps"), "m")
        event = await socket.receive_json()
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "m")


async def test_who_watches_and_goes_is_forgotten(client: Client) -> None:
    answer = await client.session.get(f"{client.base}/api/v1/namespaces/ns/configmaps?watch=1")
    watching = client.server._resources.watching
    assert len(watching) == 1
    task = next(iter(watching._tasks))
    answer.close()
    await asyncio.wait_for(asyncio.wait([task]), 30)
    assert len(watching) == 0
