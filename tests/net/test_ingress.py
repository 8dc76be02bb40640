"""Ingresses as clients see them: a real Caddy on this host's loopback, real requests."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ed448
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded, TrailersReceived

from kone.apimachinery.kinds import ENDPOINTSLICES, INGRESSCLASSES, INGRESSES, SECRETS
from kone.apimachinery.objects import dig, labels_of, replace_in
from kone.net.ingress.caddy import FOLDER, end_caddy
from kone.net.ingress.controller import withdraw_ingress
from tests.net.ingress_setting import HERE, NODE_IP, Setting, der, issue, tls_secret
from tests.net.objects import ingress
from tests.runtime.grpc_server import GrpcServer

pytestmark = pytest.mark.ring3


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    setting = Setting(tmp_path)
    yield setting
    await setting.stop()
    if pid := pid_of(setting):
        os.kill(pid, signal.SIGKILL)
    await end_caddy(tmp_path)


@pytest.fixture
async def started(setting: Setting) -> Setting:
    await setting.start()
    return setting


# Routing

ROUTES = [
    ("exact.com", "/a", "Exact", "exact"),
    ("exact.com", "/a", "Prefix", "prefix"),
    ("exact.com", "/a/b", "Prefix", "longer"),
    ("*.wild.com", "/", "Prefix", "wild"),
    ("www.wild.com", "/", "Prefix", "www"),
    ("", "/every", "Prefix", "every"),
    ("Mixed.com".lower(), "/A%20b", "Exact", "space"),
]


async def test_requests_go_by_upstreams_precedence(started: Setting) -> None:
    for name in {to for *_, to in ROUTES} | {"rest"}:
        await started.backend(name)
    started.put(ingress("one", ROUTES, default="rest"))
    await started.served("exact.com", "/a", "exact")
    expected = {
        ("exact.com", "/a"): "exact",
        ("EXACT.com", "/a"): "exact",
        ("exact.com", "/a/"): "prefix",
        ("exact.com", "/a/x"): "prefix",
        ("exact.com", "/a?q=/a/b"): "exact",
        ("exact.com", "/a/b"): "longer",
        ("exact.com", "/a/b/c"): "longer",
        ("exact.com", "/a/bc"): "prefix",
        ("exact.com", "/A"): "rest",
        ("exact.com", "/ab"): "rest",
        ("exact.com:8080", "/a"): "exact",
        ("a.wild.com", "/"): "wild",
        ("a.b.wild.com", "/"): "rest",
        ("wild.com", "/"): "rest",
        ("www.wild.com", "/x"): "www",
        ("anything.org", "/every/where"): "every",
        ("exact.com", "/every"): "every",
        ("mixed.com", "/A%20b"): "space",
        ("nobody.org", "/"): "rest",
    }
    found = {(host, path): (await started.get(host, path))[1] for host, path in expected}
    assert found == expected


async def test_what_nobody_serves_is_not_found_and_what_has_no_endpoint_unavailable(started: Setting) -> None:
    await started.backend("web")
    await started.expose("empty")
    started.put(ingress("one", [("x.com", "/", "Prefix", "web"), ("x.com", "/empty", "Prefix", "empty")]))
    await started.served("x.com")
    assert (await started.get("y.com"))[0] == 404
    assert (await started.get("x.com", "/empty"))[0] == 503


async def test_changes_of_ingresses_services_and_endpoints_are_followed(started: Setting) -> None:
    await started.expose("web")
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await started.eventually(lambda: started.get("x.com"), (503, "no endpoint is ready\n"))

    async def second(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="second")

    await started.expose("web", await started.listen(second))
    await started.served("x.com", text="second")
    one = started.client.of(INGRESSES)[0]
    paths = [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "late", "port": {"name": "http"}}}}]
    await started.client.update(INGRESSES, replace_in(one, ("spec", "rules"), [{"http": {"paths": paths}}]))
    await started.eventually(lambda: started.get("x.com"), (503, "no endpoint is ready\n"))
    await started.backend("late")
    await started.served("any.com", text="late")
    await started.client.delete(INGRESSES, "one", namespace="default")
    await started.eventually(lambda: started.get("any.com"), (404, "no Ingress serves this\n"))


async def test_an_endpoint_that_refuses_is_passed_over(started: Setting) -> None:
    good = await started.backend("web")
    with socket.socket() as closed:
        closed.bind((HERE, 0))  # and does not listen
        await started.expose("web", good, closed.getsockname()[1])
        started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
        await started.served("x.com")
        assert {(await started.get("x.com"))[0] for _ in range(20)} == {200}


async def test_a_client_stays_with_its_endpoint_where_the_service_says_so(started: Setting) -> None:
    async def say_port(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        return web.Response(text=str(request.transport.get_extra_info("sockname")[1]))

    ports = [await started.listen(say_port) for _ in range(4)]
    await started.expose("web", *ports)
    made = started.client.informer(ENDPOINTSLICES)
    assert len(made.list("default")) == 4
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))

    async def answering() -> int:
        return len({(await started.get("x.com"))[1] for _ in range(30)})

    await started.eventually(answering, 4)
    await started.stick("web")
    await started.eventually(answering, 1)


async def test_each_namespace_has_its_own_services_and_secrets(started: Setting) -> None:
    certificates = {"a": issue("a.com"), "b": issue("b.com")}
    for namespace, certificate in certificates.items():

        async def say(request: web.BaseRequest, namespace: str = namespace) -> web.StreamResponse:
            return web.Response(text=namespace)

        await started.backend("web", say, namespace=namespace)
        started.put_secret(tls_secret("cert", certificate, namespace))
        host, shared = f"{namespace}.com", ("shared.com", f"/{namespace}", "Prefix", "web")
        rules = [(host, "/", "Prefix", "web"), shared]
        annotated = ingress("web", rules, namespace=namespace, tls=[([host], "cert")])
        annotated["metadata"]["annotations"] = {"ingress.kone/ssl-redirect": "false"}
        started.put(annotated)
    for namespace, certificate in certificates.items():
        await started.served(f"{namespace}.com", text=namespace)
        await started.served("shared.com", f"/{namespace}", text=namespace)
        assert await started.certificate(f"{namespace}.com") == der(certificate)


# What backends see


async def test_backends_see_who_asked_for_what(started: Setting) -> None:
    seen: dict[str, str] = {}

    async def look(request: web.BaseRequest) -> web.StreamResponse:
        seen.update(request.headers, path=request.raw_path)
        return web.Response(text="web")

    await started.backend("web", look)
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await started.served("x.com")
    await started.get("x.com", "/a%2Fb//c?d=e", **{"X-Forwarded-For": "198.51.100.1", "X-Forwarded-Proto": "https"})
    assert seen["path"] == "/a%2Fb//c?d=e"
    assert seen["Host"] == "x.com"
    assert seen["X-Forwarded-For"] == HERE, "a client cannot say that it is another"
    assert seen["X-Forwarded-Proto"] == "http"
    assert seen["X-Forwarded-Host"] == "x.com"


async def test_a_large_body_goes_through_both_ways(started: Setting) -> None:
    size = 40_000_000

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(chunk)
        return response

    await started.backend("web", echo)
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await started.served("x.com", text="")
    url = f"http://{HERE}:{started.http_port}/"
    async with started.session.post(url, data=io.BytesIO(b"x" * size), headers={"Host": "x.com"}) as response:
        assert len(await response.read()) == size


async def test_an_answer_arrives_piece_by_piece(started: Setting) -> None:
    go_on = asyncio.Event()

    async def pieces(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "6"})
        await response.prepare(request)
        await response.write(b"one")
        await go_on.wait()
        await response.write(b"two")
        return response

    await started.backend("web", pieces)
    await started.backend("other")
    rules = [("x.com", "/", "Prefix", "web"), ("y.com", "/", "Prefix", "other")]
    started.put(ingress("one", rules))
    await started.served("y.com", text="other")
    url = f"http://{HERE}:{started.http_port}/"
    async with asyncio.timeout(5), started.session.get(url, headers={"Host": "x.com"}) as response:
        assert await response.content.readany() == b"one"
        started.put(ingress("two", [("z.com", "/", "Prefix", "other")]))
        await started.served("z.com", text="other")
        go_on.set()
        assert await response.content.read() == b"two", "a change in between does not cut it"


async def test_a_web_socket_outlives_changes(started: Setting) -> None:
    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        if "Upgrade" not in request.headers:
            return web.Response(text="web")
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            await answer.send_str(f"you said {message.data}")
        return answer

    await started.backend("web", echo)
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await started.served("x.com")
    url = f"http://{HERE}:{started.http_port}/"
    async with started.session.ws_connect(url, headers={"Host": "x.com"}) as client:
        await client.send_str("one")
        assert await client.receive_str(timeout=2) == "you said one"
        started.put(ingress("two", [("y.com", "/", "Prefix", "web")]))
        await started.served("y.com")
        await client.send_str("two")
        assert await client.receive_str(timeout=2) == "you said two"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_grpc(started: Setting, tls: bool) -> None:
    server = GrpcServer()
    await started.expose("grpc", await server.start(), appProtocol="kubernetes.io/h2c")
    await started.backend("web")
    started.put(ingress("one", [("g.com", "/", "Prefix", "grpc"), ("x.com", "/", "Prefix", "web")]))
    await started.served("x.com")
    body, trailers = await call(started, "g.com", b"\x00\x00\x00\x00\x00", tls=tls)
    assert body == server.body
    assert trailers["grpc-status"] == "0"
    assert server.requests == [b"\x00\x00\x00\x00\x00"]
    await server.stop()


async def call(setting: Setting, host: str, message: bytes, *, tls: bool) -> tuple[bytes, dict[str, str]]:
    """One gRPC call: (answer, trailers)."""
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(
        HERE, setting.https_port if tls else setting.http_port, ssl=context, server_hostname=host if tls else None
    )
    h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
    h2.initiate_connection()
    names = {":method": "POST", ":path": "/s/m", ":scheme": "https" if tls else "http", ":authority": host}
    h2.send_headers(1, [*names.items(), ("content-type", "application/grpc"), ("te", "trailers")])
    h2.send_data(1, message, end_stream=True)
    writer.write(h2.data_to_send())
    body, trailers, done = b"", {}, False
    async with asyncio.timeout(5):
        while not done:
            for event in h2.receive_data(await reader.read(65536)):
                if isinstance(event, DataReceived):
                    body += event.data or b""
                elif isinstance(event, TrailersReceived):
                    trailers = {str(k): str(v) for k, v in event.headers or ()}
                elif isinstance(event, StreamEnded):
                    done = True
            writer.write(h2.data_to_send())
    writer.close()
    return body, trailers


# TLS


async def test_certificates_are_chosen_by_name_and_changed_while_they_serve(started: Setting) -> None:
    one, wild, two = issue("one.com"), issue("unrelated.org"), issue("one.com")
    await started.backend("web")
    for name, certificate in (("one", one), ("wild", wild)):
        started.put_secret(tls_secret(name, certificate))
    rules = [(host, "/", "Prefix", "web") for host in ("one.com", "*.wild.com", "plain.com")]
    started.put(ingress("one", rules, tls=[(["one.com"], "one"), (["*.wild.com"], "wild")]))
    await started.served("plain.com")
    assert await started.certificate("one.com") == der(one)
    assert await started.certificate("a.wild.com") == der(wild), "whatever names the certificate has itself"
    for name in ("plain.com", "a.b.wild.com", "nobody.org", None):
        assert await started.certificate(name) == der(started.default)
    secret = started.client.look(SECRETS, tls_secret("one", one))
    await started.client.update(SECRETS, replace_in(secret, ("data",), tls_secret("one", two)["data"]))
    await started.eventually(lambda: started.certificate("one.com"), der(two))


async def test_hosts_with_tls_are_served_by_https_and_lead_there(started: Setting) -> None:
    await started.backend("web")
    started.put_secret(tls_secret("cert", issue("one.com")))
    started.put(ingress("one", [("one.com", "/", "Prefix", "web")], tls=[(["one.com"], "cert")]))
    await started.eventually(lambda: started.get("one.com", "/a?b=c"), (308, ""))
    url = f"http://{HERE}:{started.http_port}/a?b=c"
    async with started.session.get(url, headers={"Host": "one.com"}, allow_redirects=False) as answer:
        assert answer.headers["Location"] == f"https://one.com:{started.https_port}/a?b=c"
    url = f"https://{HERE}:{started.https_port}/"
    async with started.session.get(url, headers={"Host": "one.com"}, ssl=False, server_hostname="one.com") as response:
        assert await response.text() == "web"


async def test_a_missing_or_broken_secret_is_said_and_spares_all_else(started: Setting) -> None:
    await started.backend("web")
    mixed = issue("b.com")._replace(key=issue("b.com").key)
    started.put_secret(tls_secret("mixed", mixed))
    rules = [(host, "/", "Prefix", "web") for host in ("a.com", "b.com", "c.com")]
    started.put(ingress("one", rules, tls=[(["a.com"], "gone"), (["b.com"], "mixed")]))
    for host in ("a.com", "b.com", "c.com"):
        await started.served(host)
    assert await started.told("SecretNotFound") == "Secret default/gone does not exist"
    assert "default/mixed" in await started.told("InvalidSecret")
    good = issue("a.com")
    started.put_secret(tls_secret("gone", good))
    await started.eventually(lambda: started.certificate("a.com"), der(good))


async def test_a_certificate_that_only_caddy_dislikes_spares_all_else(started: Setting) -> None:
    good, bad = issue("a.com"), issue("b.com", key=ed448.Ed448PrivateKey.generate())
    await started.backend("web")
    rules = [(host, "/", "Prefix", "web") for host in ("a.com", "b.com", "c.com")]
    started.put_secret(tls_secret("good", good))
    started.put_secret(tls_secret("bad", bad))
    started.put(ingress("one", rules, tls=[(["a.com"], "good"), (["b.com"], "bad")]))
    await started.served("c.com")
    await started.eventually(lambda: started.certificate("a.com"), der(good))
    assert "default/bad is refused by Caddy" in await started.told("InvalidSecret")
    await started.client.delete(SECRETS, "bad", namespace="default")
    better = issue("b.com")
    started.put_secret(tls_secret("bad", better))
    await started.eventually(lambda: started.certificate("b.com"), der(better))


# Status, events, life


async def test_an_ingress_that_is_served_has_the_nodes_address(started: Setting) -> None:
    await started.backend("web")
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    started.put(ingress("other", [("x.com", "/", "Prefix", "web")], ingress_class="nginx"))

    async def addresses() -> list[object]:
        found = sorted(started.client.of(INGRESSES), key=lambda i: i["metadata"]["name"])
        return [dig(i, "status", "loadBalancer", "ingress") for i in found]

    await started.eventually(addresses, [[{"ip": NODE_IP}], None])
    one = started.client.look(INGRESSES, ingress("one"))
    await started.client.update(INGRESSES, replace_in(one, ("spec", "ingressClassName"), "nginx"))
    await started.eventually(addresses, [None, None])


async def test_conflicts_and_missing_things_are_told_as_events(started: Setting) -> None:
    await started.backend("web")
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    started.put(ingress("two", [("x.com", "/", "Prefix", "web"), ("y.com", "/", "Prefix", "gone")]))
    assert await started.told("ServiceNotFound") == "Service default/gone does not exist"
    expected = "host x.com path / (Prefix) is served by Ingress default/one already"
    assert await started.told("Conflict") == expected


async def test_a_service_that_comes_a_moment_later_is_no_event(started: Setting) -> None:
    started.put(ingress("one", [("x.com", "/", "Prefix", "web"), ("y.com", "/", "Prefix", "gone")]))
    await started.backend("web")
    await started.served("x.com")
    await started.told("ServiceNotFound")
    assert [message for _, message in started.events()] == ["Service default/gone does not exist"]


async def test_without_caddy_the_ingress_says_so_and_is_served_when_it_comes(setting: Setting) -> None:
    found, setting.program = setting.program, lambda: None
    controller = await setting.start()
    await setting.backend("web")
    setting.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    assert "no caddy" in await setting.told("CaddyNotFound")
    assert dig(setting.client.of(INGRESSES)[0], "status", "loadBalancer") is None
    await controller.stop()
    setting.program = found
    await setting.start()
    await setting.served("x.com")


async def test_a_port_in_use_is_said_and_the_other_one_serves(setting: Setting) -> None:
    await setting.backend("web")
    with socket.create_server((HERE, setting.https_port)):
        await setting.start()
        setting.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
        await setting.served("x.com")
        assert f"port {setting.https_port}" in await setting.told("PortInUse")


async def test_caddy_runs_from_the_first_ingress_on_and_is_started_again_when_it_dies(started: Setting) -> None:
    assert pid_of(started) == 0
    await started.backend("web")
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await started.served("x.com")
    first = pid_of(started)
    os.kill(first, signal.SIGKILL)
    await started.served("x.com")
    assert pid_of(started) not in (0, first)


async def test_a_restart_of_kone_finds_caddy_serving_and_loses_nothing(setting: Setting) -> None:
    first = await setting.start()
    await setting.backend("web")
    setting.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await setting.served("x.com")
    pid = pid_of(setting)
    async with asking(setting) as counts:
        await first.stop()
        assert await setting.get("x.com") == (200, "web")
        await setting.start()
        for name in ("two", "three"):
            setting.put(ingress(name, [(f"{name}.com", "/", "Prefix", "web")]))
            await setting.served(f"{name}.com")
    assert pid_of(setting) == pid
    assert counts["good"] > 50
    assert counts["bad"] == 0


async def test_other_ports_after_a_restart_are_taken(setting: Setting) -> None:
    first = await setting.start()
    await setting.backend("web")
    setting.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await setting.served("x.com")
    await first.stop()
    old, setting.http_port = setting.http_port, Setting(setting.data_dir).http_port
    await setting.start()
    await setting.served("x.com")
    with pytest.raises(OSError):
        await asyncio.open_connection(HERE, old)


async def test_a_node_without_ingress_ends_it_and_takes_back_its_class(setting: Setting) -> None:
    controller = await setting.start()
    (made,) = setting.client.of(INGRESSCLASSES)
    assert labels_of(made)
    await setting.backend("web")
    setting.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await setting.served("x.com")
    await controller.stop()
    await withdraw_ingress(setting.client, setting.data_dir)
    assert not setting.client.of(INGRESSCLASSES)
    assert pid_of(setting) == 0
    with pytest.raises(aiohttp.ClientError):
        await setting.get("x.com")


# Nothing is lost


async def test_no_request_is_lost_in_a_hundred_changes(started: Setting) -> None:
    """Clients that keep their connections, say nothing twice, and read every answer to its end."""

    async def say(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="web")

    ports = [await started.listen(say) for _ in range(3)]
    await started.expose("web", *ports)
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await started.served("x.com")
    async with asking(started) as counts:
        for n in range(50):
            started.put(ingress(f"more-{n}", [(f"more-{n}.com", "/", "Prefix", "web")]))
            await started.expose("web", *ports[: 1 + n % 3])
            await started.clock.sleep(0.06)
        await started.served("more-49.com")
    assert counts["bad"] == 0
    assert counts["good"] > 500


@contextlib.asynccontextmanager
async def asking(setting: Setting) -> AsyncIterator[dict[str, int]]:
    """Sixteen clients that ask x.com all the time; how many answers were good and how many were not."""
    counts, done = {"good": 0, "bad": 0}, asyncio.Event()
    clients = [asyncio.create_task(ask_on(setting.http_port, done, counts)) for _ in range(16)]
    yield counts
    done.set()
    await asyncio.gather(*clients)


async def ask_on(port: int, done: asyncio.Event, counts: dict[str, int]) -> None:
    """One HTTP/1.1 client: a new connection only where the last answer said that it closes."""
    reader = writer = None
    while not done.is_set():
        try:
            if writer is None or reader is None:
                reader, writer = await asyncio.open_connection(HERE, port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x.com\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(3)
            good = head.startswith(b"HTTP/1.1 200") and body == b"web"
            counts["good" if good else "bad"] += 1
            if b"connection: close" in head.lower():
                writer.close()
                reader = writer = None
        except (OSError, EOFError):
            counts["bad"] += 1
            reader = writer = None
    if writer is not None:
        writer.close()


def pid_of(setting: Setting) -> int:
    try:
        return int((setting.data_dir / FOLDER / "caddy.pid").read_text().split()[0])
    except OSError:
        return 0
