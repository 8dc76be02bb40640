"""Gateways and HTTPRoutes as clients see them: a real Caddy on this host's loopback, real requests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS, ENDPOINTSLICES, GVR, SERVICES
from kone.apimachinery.objects import Object, dig, name_of, replace_in
from kone.net.gateway.controller import is_of_gateway
from kone.net.gateway.listeners import GATEWAYCLASSES, GATEWAYS, GROUP, GRPCROUTES, HTTPROUTES
from kone.net.ingress.caddy import end_caddy
from kone.net.ingress.controller import withdraw_ingress
from tests.net.ingress_setting import HERE, NODE_IP, Setting, der, free_port, issue, tls_secret
from tests.net.objects import (
    backend_ref,
    gateway,
    gateway_definitions,
    http_route,
    ingress,
    listener,
    path_match,
    service,
)
from tests.net.test_ingress import asking, call, pid_of
from tests.runtime.grpc_server import GrpcServer

pytestmark = pytest.mark.ring3


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    """With the Gateway API's definitions, and all that is asked for answered by "web"."""
    setting = Setting(tmp_path)
    for definition in gateway_definitions():
        setting.client.put(CUSTOMRESOURCEDEFINITIONS, definition)
    yield setting
    await setting.stop()
    if pid := pid_of(setting):
        os.kill(pid, signal.SIGKILL)
    await end_caddy(tmp_path)


@pytest.fixture
async def started(setting: Setting) -> Setting:
    await setting.start()
    return setting


def condition(obj: Object, kind: str) -> tuple[str, str]:
    """(status, reason)."""
    found: Object = next((c for c in dig(obj, "status", "conditions", default=()) if c["type"] == kind), {})
    return found.get("status", ""), found.get("reason", "")


async def programmed(setting: Setting, name: str = "gw") -> tuple[str, str]:
    return condition(setting.client.look(GATEWAYS, gateway(name)), "Programmed")


async def ask(setting: Setting, path: str, host: str = "x.com", method: str = "GET", **headers: str) -> Object:
    """What "web" says that it saw; the status alone where it was not asked."""
    url = f"http://{HERE}:{setting.http_port}{path}"
    options = {"headers": {"Host": host} | headers, "allow_redirects": False}
    async with setting.session.request(method, url, **options) as answer:  # type: ignore[arg-type]
        if answer.content_type != "application/json":
            return {"status": answer.status, "location": answer.headers.get("Location", "")}
        return {"status": answer.status, "headers": dict(answer.headers), **await answer.json()}


async def tell(request: web.BaseRequest) -> web.StreamResponse:
    seen = {"path": request.raw_path, "host": request.headers["Host"], "seen": dict(request.headers)}
    return web.json_response(seen, headers={"X-Backend": "web", "X-Secret": "s"})


async def serve(setting: Setting, *rules: object, **more: object) -> None:
    """A Gateway on the port of Ingress, the Service "web" behind it and one route with these rules."""
    await setting.backend("web", tell)
    if not setting.client.of(GATEWAYS):
        setting.client.put(GATEWAYS, gateway("gw", listener(port=setting.http_port)))
    setting.client.put(HTTPROUTES, http_route("r", *rules, ("/ready", "web"), **more))  # type: ignore[arg-type]
    await setting.eventually(lambda: ready(setting, "/ready"), 200)


async def ready(setting: Setting, path: str) -> int:
    return int((await ask(setting, path))["status"])


# Routing


async def test_requests_go_by_path_method_headers_and_query(started: Setting) -> None:
    for name in ("exact", "header", "query", "post", "expression", "prefix"):
        await started.backend(name)

    def rule(name: str, *matches: Object) -> Object:
        return {"matches": list(matches), "backendRefs": [backend_ref(name)]}

    header, query = [{"name": "X-Version", "value": "2"}], [{"name": "v", "value": "a b"}]
    pattern = [{"type": "RegularExpression", "name": "n", "value": "[0-9]+"}, {"name": "s", "value": "*"}]
    await serve(
        started,
        rule("exact", path_match("/a", "Exact")),
        rule("header", path_match("/a", headers=header)),
        rule("query", path_match("/a", queryParams=query), path_match("/a", queryParams=pattern)),
        rule("post", path_match("/a", method="POST")),
        rule("expression", path_match("/[0-9]{3}", "RegularExpression")),
        rule("prefix", path_match("/a")),
    )
    cases: list[tuple[str, str, dict[str, str], str]] = [
        ("GET", "/a", {}, "exact"),
        ("GET", "/a/", {}, "prefix"),
        ("GET", "/a/b", {"X-Version": "2"}, "header"),
        ("GET", "/a/b", {"X-Version": "20"}, "prefix"),
        ("GET", "/a/b?v=a%20b", {}, "query"),
        ("GET", "/a/b?v=a", {}, "prefix"),
        ("GET", "/a/b?n=12&s=*", {}, "query"),
        ("GET", "/a/b?n=x&s=*", {}, "prefix"),
        ("GET", "/a/b?n=12&s=a", {}, "prefix"),
        ("POST", "/a/b", {"X-Version": "2"}, "post"),
        ("GET", "/123", {}, "expression"),
        ("GET", "/1234", {}, ""),
        ("GET", "/ab", {}, ""),
    ]
    url = f"http://{HERE}:{started.http_port}"
    for method, path, headers, expected in cases:
        async with started.session.request(method, url + path, headers=headers) as answer:
            text = await answer.text() if answer.status == 200 else ""
        assert (method, path, headers, text) == (method, path, headers, expected)


async def test_hosts_are_those_that_route_and_listener_have_in_common(started: Setting) -> None:
    await started.backend("web")
    port = started.http_port
    of = gateway("gw", listener(port=port, hostname="*.x.com"), listener("one", port, hostname="a.x.com"))
    started.client.put(GATEWAYS, of)
    wild = http_route("wild", ("/", "web"), parents=[{"name": "gw", "sectionName": "http"}])
    started.client.put(HTTPROUTES, wild)
    await started.served("b.x.com")
    await started.served("c.b.x.com")
    for host in ("x.com", "a.x.com", "y.com"):
        assert (await started.get(host))[0] == 404, "another listener's host, or nobody's"


async def test_weights_share_out_the_requests_and_what_cannot_be_had_takes_its_share(started: Setting) -> None:
    await started.backend("api")
    refs = [backend_ref("web", weight=3), backend_ref("api", weight=0), backend_ref("gone", weight=1)]
    await serve(started, {"matches": [path_match("/w")], "backendRefs": refs})
    answers = [(await ask(started, "/w"))["status"] for _ in range(200)]
    assert set(answers) == {200, 500}
    assert 20 < answers.count(500) < 85, "a quarter of 200, by six deviations"


# Filters


def edits(kind: str, **edit: object) -> Object:
    return {"type": kind[0].upper() + kind[1:], kind: edit}


async def test_headers_are_set_added_and_removed_both_ways(started: Setting) -> None:
    request = edits(
        "requestHeaderModifier",
        set=[{"name": "X-Set", "value": "{http.request.uri}"}],
        add=[{"name": "X-Add", "value": "more"}],
        remove=["X-Gone"],
    )
    response = edits("responseHeaderModifier", set=[{"name": "X-Backend", "value": "b"}], remove=["X-Secret"])
    inner = edits("requestHeaderModifier", set=[{"name": "X-Inner", "value": "1"}])
    refs = [backend_ref("web", filters=[inner])]
    await serve(started, {"matches": [path_match("/f")], "filters": [request, response], "backendRefs": refs})
    answer = await ask(started, "/f", **{"X-Set": "old", "X-Add": "old", "X-Gone": "1"})
    seen = answer["seen"]
    assert (seen["X-Set"], seen.get("X-Gone"), seen["X-Inner"]) == ("{http.request.uri}", None, "1")
    assert (answer["headers"]["X-Backend"], answer["headers"].get("X-Secret")) == ("b", None)


REWRITES = [
    ("/a", "/b", "/a/x?q=1", "/b/x?q=1"),
    ("/a", "/b", "/a", "/b"),
    ("/a", "/b/", "/a/", "/b/"),
    ("/a", "/", "/a/x", "/x"),
    ("/a", "/", "/a", "/"),
    ("/a/", "/", "/a/a/x", "/a/x"),
    ("/", "/b", "/x", "/b/x"),
    ("/a", "/$1", "/a/x%2Fy", "/$1/x%2Fy"),
]


async def test_a_path_is_rewritten_and_a_host_replaced(started: Setting) -> None:
    def rule(number: int, prefix: str, new: str) -> Object:
        path = {"type": "ReplacePrefixMatch", "replacePrefixMatch": new}
        match = path_match(prefix, headers=[{"name": "case", "value": str(number)}])
        rewrite = edits("urlRewrite", hostname="new.org", path=path)
        rewrite["type"] = "URLRewrite"
        return {"matches": [match], "filters": [rewrite], "backendRefs": [backend_ref("web")]}

    await serve(started, *(rule(n, prefix, new) for n, (prefix, new, _, _) in enumerate(REWRITES)))
    for number, (_, _, asked, expected) in enumerate(REWRITES):
        answer = await ask(started, asked, case=str(number))
        assert (asked, answer["path"], answer["host"]) == (asked, expected, "new.org")


async def test_a_redirect_says_where_else(started: Setting) -> None:
    whole = {"type": "ReplaceFullPath", "replaceFullPath": "/new"}
    redirect = edits("requestRedirect", scheme="https", hostname="b.org", statusCode=301, path=whole)
    prefix = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/p"}
    await serve(
        started,
        {"matches": [path_match("/whole")], "filters": [redirect]},
        {"matches": [path_match("/part")], "filters": [edits("requestRedirect", path=prefix)]},
    )
    assert await ask(started, "/whole/x?q=1") == {"status": 301, "location": "https://b.org/new?q=1"}
    here = f"http://x.com:{started.http_port}"
    assert await ask(started, "/part/x?q=1") == {"status": 302, "location": f"{here}/p/x?q=1"}


async def test_an_answer_that_takes_too_long_is_504(started: Setting) -> None:
    hang = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        await hang.wait()
        return web.Response(text="late")

    await started.backend("slow", wait)
    rule = {"matches": [path_match("/slow")], "backendRefs": [backend_ref("slow")], "timeouts": {"request": "300ms"}}
    await serve(started, rule)
    assert (await ask(started, "/slow"))["status"] == 504
    hang.set()


async def test_a_grpc_route_leads_calls_to_their_service(started: Setting) -> None:
    server = GrpcServer()
    await started.expose("grpc", await server.start())
    started.client.put(GATEWAYS, gateway("gw", listener(port=started.http_port)))
    rule = {"matches": [{"method": {"service": "s", "method": "m"}}], "backendRefs": [backend_ref("grpc")]}
    started.client.put(GRPCROUTES, http_route("g", rule, hosts=["g.com"]) | {"kind": "GRPCRoute"})
    await serve(started, hosts=["x.com"])
    body, trailers = await call(started, "g.com", b"\x00\x00\x00\x00\x00", tls=False)
    assert body == server.body
    assert trailers["grpc-status"] == "0"
    await server.stop()


# TLS, other ports


async def test_an_https_listener_has_its_certificate_for_its_host(started: Setting) -> None:
    every, wild = issue("every.org"), issue("wild.org")
    await started.backend("web")
    for name, certificate in (("every", every), ("wild", wild)):
        started.put_secret(tls_secret(name, certificate))
    port = started.https_port
    of = gateway("gw", listener("a", port, secret="every"), listener("b", port, secret="wild", hostname="*.wild.org"))
    started.client.put(GATEWAYS, of)
    started.client.put(HTTPROUTES, http_route("r", ("/", "web")))
    await started.eventually(lambda: programmed(started), ("True", "Programmed"))
    assert await started.certificate("a.b.wild.org") == der(wild)
    assert await started.certificate("anything.org") == der(every)
    url = f"https://{HERE}:{port}/"
    async with started.session.get(url, ssl=False, server_hostname="b.wild.org", headers={"Host": "b.wild.org"}) as it:
        assert await it.text() == "web"
    renewed = issue("every.org")
    secret = started.client.look(GVR("", "v1", "secrets"), tls_secret("every", every))
    fresh = replace_in(secret, ("data",), tls_secret("every", renewed)["data"])
    await started.client.update(GVR("", "v1", "secrets"), fresh)
    await started.eventually(lambda: started.certificate("anything.org"), der(renewed))


async def test_a_request_for_another_listeners_host_needs_another_connection(started: Setting) -> None:
    await started.backend("web")
    port = started.https_port
    started.put_secret(tls_secret("cert", issue("*.x.com")))
    names = {"all": "", "wild": "*.x.com", "one": "a.x.com"}
    listeners = [
        listener(name, port, secret="cert", **({"hostname": host} if host else {})) for name, host in names.items()
    ]
    started.client.put(GATEWAYS, gateway("gw", *listeners))
    started.client.put(HTTPROUTES, http_route("r", ("/", "web")))
    await started.eventually(lambda: programmed(started), ("True", "Programmed"))
    cases = [
        ("a.x.com", "a.x.com", 200),
        ("a.x.com", "b.x.com", 421),
        ("b.x.com", "c.x.com", 200),
        ("b.x.com", "a.x.com", 421),
        ("b.x.com", "y.com", 421),
        ("y.com", "z.com", 200),
        ("y.com", "a.x.com", 421),
    ]
    for asked, host, expected in cases:
        url = f"https://{HERE}:{port}/"
        headers = {"Host": host, "Connection": "close"}
        async with started.session.get(url, ssl=False, server_hostname=asked, headers=headers) as answer:
            assert (asked, host, answer.status) == (asked, host, expected)


async def text_at(setting: Setting, port: int) -> str:
    async with setting.session.get(f"http://{HERE}:{port}/", headers={"Connection": "close"}) as answer:
        return await answer.text()


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HERE, port)
    except OSError:
        return False
    writer.close()
    return True


async def test_ports_come_and_go_while_requests_go_on(started: Setting) -> None:
    await started.backend("web")
    port, more = free_port(), free_port()
    started.put(ingress("one", [("x.com", "/", "Prefix", "web")]))
    await started.served("x.com")
    pid = pid_of(started)
    async with asking(started) as counts:
        for listeners in ([listener(port=port)], [listener(port=more)], [listener(port=port), listener("b", more)]):
            for of in started.client.of(GATEWAYS):
                await started.client.delete(GATEWAYS, name_of(of), namespace="default")
            started.client.put(GATEWAYS, gateway("gw", *listeners))
            if not started.client.of(HTTPROUTES):
                started.client.put(HTTPROUTES, http_route("r", ("/", "web")))
            open_ports = {spec["port"] for spec in listeners}
            for each in open_ports:
                await started.eventually(lambda each=each: text_at(started, each), "web")  # type: ignore[misc]
            for each in {port, more} - open_ports:
                await started.eventually(lambda each=each: is_open(each), False)  # type: ignore[misc]
    assert counts["bad"] == 0
    assert counts["good"] > 50
    assert pid_of(started) == pid


async def test_a_port_of_somebody_else_is_said_of_the_listener(started: Setting) -> None:
    await started.backend("web")
    with socket.create_server((HERE, 0)) as other:
        port = int(other.getsockname()[1])
        of = gateway("gw", listener(port=started.http_port), listener("taken", port))
        started.client.put(GATEWAYS, of)
        started.client.put(HTTPROUTES, http_route("r", ("/", "web")))
        await started.served("x.com")

        async def reason() -> str:
            listeners = dig(started.client.look(GATEWAYS, of), "status", "listeners", default=())
            found = {each["name"]: condition({"status": each}, "Accepted")[1] for each in listeners}
            return found.get("taken", "")

        await started.eventually(reason, "PortUnavailable")


async def test_a_restart_of_kone_finds_the_other_ports_too(setting: Setting) -> None:
    first = await setting.start()
    await setting.backend("web")
    port = free_port()
    setting.client.put(GATEWAYS, gateway("gw", listener(port=port)))
    setting.client.put(HTTPROUTES, http_route("r", ("/", "web")))
    await setting.eventually(lambda: text_at(setting, port), "web")
    pid = pid_of(setting)
    await first.stop()
    assert await text_at(setting, port) == "web"
    await setting.start()
    setting.client.put(HTTPROUTES, http_route("s", ("/s", "web"), hosts=["s.com"]))
    await setting.backend("later")
    setting.put(ingress("one", [("x.com", "/", "Prefix", "later")]))
    await setting.served("x.com", text="later")
    assert await text_at(setting, port) == "web"
    assert pid_of(setting) == pid


# Beside Ingress, and its life


async def test_ingresses_and_gateways_share_a_port_the_more_specific_host_first(started: Setting) -> None:
    await started.backend("ingress")
    await serve(started, ("/", "web"), hosts=["gw.com", "x.com"])
    started.put(ingress("one", [("in.com", "/", "Prefix", "ingress"), ("gw.com", "/", "Prefix", "ingress")]))
    await started.served("in.com", text="ingress")
    assert (await ask(started, "/", "gw.com"))["host"] == "gw.com", "of one host the Gateway's routes go first"


async def test_the_kinds_are_watched_from_the_moment_they_are_installed_until_they_go(setting: Setting) -> None:
    definitions = setting.client.of(CUSTOMRESOURCEDEFINITIONS)
    for definition in definitions:
        await setting.client.delete(CUSTOMRESOURCEDEFINITIONS, name_of(definition))
    await setting.start()
    await setting.backend("web")
    setting.put(ingress("one", [("in.com", "/", "Prefix", "web")]))
    await setting.served("in.com")
    assert not setting.client.of(GATEWAYCLASSES)
    for definition in gateway_definitions():
        setting.client.put(CUSTOMRESOURCEDEFINITIONS, definition)
    setting.client.put(GATEWAYS, gateway("gw", listener(port=setting.http_port)))
    setting.client.put(HTTPROUTES, http_route("r", ("/", "web")))
    await setting.served("gw.com")
    await setting.eventually(lambda: programmed(setting), ("True", "Programmed"))
    (made,) = setting.client.of(GATEWAYCLASSES)
    assert condition(made, "Accepted") == ("True", "Accepted")
    assert {"name": "HTTPRoute"} in made["status"]["supportedFeatures"]

    async def parents() -> int:
        (route,) = setting.client.of(HTTPROUTES)
        return len(dig(route, "status", "parents", default=()))

    await setting.eventually(parents, 1)
    (route,) = setting.client.of(HTTPROUTES)
    (parent,) = route["status"]["parents"]
    assert (parent["parentRef"], parent["controllerName"]) == ({"name": "gw"}, "kone.dev/gateway-controller")
    (of,) = setting.client.of(GATEWAYS)
    assert of["status"]["addresses"] == [{"type": "IPAddress", "value": NODE_IP}]
    assert [each["attachedRoutes"] for each in of["status"]["listeners"]] == [1]
    await setting.client.delete(CUSTOMRESOURCEDEFINITIONS, f"gateways.{GROUP}")
    await setting.eventually(lambda: setting.get("gw.com"), (404, "no Ingress serves this\n"))
    assert (await setting.get("in.com"))[0] == 200


async def test_without_caddy_a_gateway_is_not_programmed_and_says_why(setting: Setting) -> None:
    setting.program = lambda: None
    await setting.start()
    setting.client.put(GATEWAYS, gateway("gw", listener(port=setting.http_port)))
    await setting.eventually(lambda: programmed(setting), ("False", "Pending"))
    assert "no caddy" in await setting.told("CaddyNotFound")


async def test_no_request_is_lost_in_changes_of_routes_and_endpoints(started: Setting) -> None:
    async def say(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="web")

    ports = [await started.listen(say) for _ in range(3)]
    await started.expose("web", *ports)
    started.client.put(GATEWAYS, gateway("gw", listener(port=started.http_port)))
    started.client.put(HTTPROUTES, http_route("r", ("/", "web"), hosts=["x.com"]))
    await started.served("x.com")
    async with asking(started) as counts:
        for n in range(20):
            started.client.put(HTTPROUTES, http_route(f"more-{n}", ("/", "web"), hosts=[f"more-{n}.com"]))
            await started.expose("web", *ports[: 1 + n % 3])
            await started.clock.sleep(0.06)
        await started.served("more-19.com")
    assert counts["bad"] == 0
    assert counts["good"] > 200
    assert started.client.of(ENDPOINTSLICES)


async def test_no_route_is_not_found_and_a_route_without_endpoints_unavailable(started: Setting) -> None:
    await started.expose("empty")
    await serve(started, ("/empty", "empty"))
    assert (await ask(started, "/nowhere"))["status"] == 404
    assert (await ask(started, "/empty"))["status"] == 503


async def test_with_a_pool_each_gateway_is_served_on_an_address_of_its_own(setting: Setting) -> None:
    setting.own_addresses = True
    await setting.start()
    one, two = issue("one.org"), issue("two.org")
    for name, certificate in (("one", one), ("two", two)):
        await setting.backend(name)
        setting.put_secret(tls_secret(name, certificate))
        tls = listener("tls", setting.https_port, secret=name)
        setting.client.put(GATEWAYS, gateway(name, listener(port=setting.http_port), tls))
        setting.client.put(HTTPROUTES, http_route(name, ("/", name), parents=[name]))
    await setting.backend("web")
    setting.put(ingress("in", [("x.com", "/", "Prefix", "web")]))
    await setting.served("x.com")
    await setting.eventually(lambda: programmed(setting, "one"), ("False", "AddressNotAssigned"))
    addresses = {"one": "127.0.0.11", "two": "127.0.0.12"}
    for name, address in addresses.items():  # as the load balancer does
        made = setting.client.look(SERVICES, service(f"gateway-{name}"))
        ports = [port["port"] for port in made["spec"]["ports"]]
        assert ports == sorted([setting.http_port, setting.https_port])
        status = {"loadBalancer": {"ingress": [{"ip": address}]}}
        await setting.client.patch(
            SERVICES, name_of(made), {"status": status}, namespace="default", subresource="status"
        )
    for name, certificate in (("one", one), ("two", two)):
        await setting.eventually(lambda name=name: programmed(setting, name), ("True", "Programmed"))  # type: ignore[misc]
        url = f"http://{addresses[name]}:{setting.http_port}/"
        async with setting.session.get(url, headers={"Host": "x.com"}) as answer:
            assert await answer.text() == name
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(addresses[name], setting.https_port, ssl=context)
        assert writer.get_extra_info("ssl_object").getpeercert(binary_form=True) == der(certificate)
        writer.close()
    assert (await setting.get("x.com"))[1] == "web", "all other addresses are those of Ingress"
    await setting.client.delete(GATEWAYS, "two", namespace="default")

    async def services() -> list[str]:
        return sorted(name_of(each) for each in setting.client.of(SERVICES) if is_of_gateway(each))

    await setting.eventually(services, ["gateway-one"])


async def test_a_node_without_ingress_takes_back_its_class_and_the_gateways_addresses(setting: Setting) -> None:
    setting.own_addresses = True
    controller = await setting.start()
    setting.client.put(GATEWAYS, gateway("gw", listener(port=setting.http_port)))
    await setting.eventually(lambda: programmed(setting), ("False", "AddressNotAssigned"))
    await controller.stop()
    assert setting.client.of(SERVICES)
    await withdraw_ingress(setting.client, setting.data_dir)
    assert not setting.client.of(SERVICES)
    assert not setting.client.of(GATEWAYCLASSES)
