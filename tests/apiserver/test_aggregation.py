"""A group-version that another server has: judged, in discovery, and reached with the caller's identity."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from kone.aio.clock import FakeClock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import SERVICES
from kone.apimachinery.objects import Object, find_condition
from kone.apimachinery.users import User, service_account_user
from kone.apiserver.aggregation import APISERVICES, Aggregator, identity
from kone.apiserver.app import ApiServer
from kone.apiserver.path_reader import PathReader
from kone.auth.authentication import Authenticator
from kone.auth.authorizer import Authorizer
from kone.auth.pki import Names, Pki
from tests.apiserver.conftest import Full

LISTED = {
    "kind": "APIResourceList",
    "groupVersion": "wardle.example.com/v1",
    "resources": [
        {"name": "flunders", "singularName": "flunder", "namespaced": True, "kind": "Flunder", "verbs": ["get"]},
        {"name": "flunders/status", "singularName": "", "namespaced": True, "kind": "Flunder", "verbs": ["get"]},
    ],
}
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"


LISTED_FLUNDER: Object = {"kind": "Flunder"}


@dataclass
class Aggregating:
    full: Full
    aggregator: Aggregator
    paths: PathReader
    session: aiohttp.ClientSession
    port: int
    seen: list[web.Request]

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(f"http://kone{path}", headers=sent) as answer:
            return answer.status, await answer.text()

    async def service(self, **spec: object) -> None:
        obj = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 443}], **spec}}
        await self.full.client.create(SERVICES, obj, namespace="ns")

    async def register(self, port: int) -> None:
        spec = {
            "group": "wardle.example.com",
            "version": "v1",
            "groupPriorityMinimum": 2000,
            "versionPriority": 200,
            "insecureSkipTLSVerify": True,
            "service": {"namespace": "ns", "name": "s", "port": port},
        }
        await self.full.client.create(APISERVICES, {"metadata": {"name": "v1.wardle.example.com"}, "spec": spec})

    async def condition(self) -> Object:
        """The first condition Available that is written."""
        cache = self.full.verbs.caches.of(APISERVICES.group, APISERVICES.resource)
        watcher = cache.watch(after=1)
        try:
            async with asyncio.timeout(5.0):
                while True:
                    for event in await watcher.get():
                        if (found := find_condition(event.obj, "Available")) is not None:
                            return found
        finally:
            watcher.close()


@pytest.fixture
async def aggregating(full: Full, tmp_path: Path) -> AsyncIterator[Aggregating]:
    pki = Pki(tmp_path / "pki", Names("n"))
    pki.ensure(1e9 * 2)
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.json_response(LISTED if request.path.endswith("/v1") else LISTED_FLUNDER)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.certificate("apiserver"), pki.key("apiserver"))
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    server = ApiServer(
        verbs=full.verbs,
        authenticator=Authenticator(()),
        authorizer=Authorizer(full.verbs.caches, ()),
        clock=FakeClock(),
    )
    server.aggregator.start(full.client)
    await server.start(unix_path=tmp_path / "s")
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "s"))) as session:
        yield Aggregating(full, server.aggregator, server.paths, session, port, seen)
    await server.stop(1.0)
    await runner.cleanup()


async def test_what_answers_is_available_discovered_and_reached(aggregating: Aggregating) -> None:
    await aggregating.service(type="ExternalName", externalName="127.0.0.1")
    await aggregating.register(aggregating.port)
    found = await aggregating.condition()
    assert (found["status"], found["reason"], found["message"]) == ("True", "Passed", "all checks passed")
    checked = aggregating.seen[0]
    assert checked.headers["X-Remote-User"] == "system:kube-aggregator"
    _, groups = await aggregating.get("/apis")
    assert '"wardle.example.com/v1"' in groups
    _, everything = await aggregating.get("/apis", Accept=AGGREGATED)
    assert '"subresource":"status"' in everything
    code, text = await aggregating.get("/apis/wardle.example.com/v1/namespaces/ns/flunders/a?x=1", X_Remote_User="eve")
    assert (code, text) == (200, '{"kind": "Flunder"}')
    passed_on = aggregating.seen[-1]
    assert passed_on.raw_path == "/apis/wardle.example.com/v1/namespaces/ns/flunders/a?x=1"
    assert "eve" not in passed_on.headers.getall("X-Remote-User")
    assert "system:masters" in passed_on.headers.getall("X-Remote-Group")


async def test_a_loop_reads_by_path_what_another_server_has(aggregating: Aggregating) -> None:
    """As the autoscaler reads metrics: as its own service account."""
    who = service_account_user("kube-system", "horizontal-pod-autoscaler")
    path = "/apis/wardle.example.com/v1/namespaces/ns/pods/*/depth"
    with pytest.raises(StatusError, match="the server could not find the requested resource"):
        await aggregating.paths.get(who, path, {})
    await aggregating.service(type="ExternalName", externalName="127.0.0.1")
    await aggregating.register(aggregating.port)
    await aggregating.condition()
    assert await aggregating.paths.get(who, path, {"labelSelector": "a=b", "metricLabelSelector": ""}) == LISTED_FLUNDER
    asked = aggregating.seen[-1]
    assert (asked.path, dict(asked.query)) == (path, {"labelSelector": "a=b"})
    assert asked.headers["X-Remote-User"] == who.name
    assert "system:serviceaccounts" in asked.headers.getall("X-Remote-Group")
    group = await aggregating.paths.get(who, "/apis/wardle.example.com", {})
    assert group["preferredVersion"]["version"] == "v1"


async def test_a_loop_reads_how_far_the_store_is(aggregating: Aggregating) -> None:
    await aggregating.service()
    found = await aggregating.paths.get(service_account_user("kube-system", "x"), "/api/v1/services", {"limit": "1"})
    assert [each["metadata"]["name"] for each in found["items"]] == ["s"]
    assert int(found["metadata"]["resourceVersion"]) >= int(found["items"][0]["metadata"]["resourceVersion"])


async def test_what_is_gone_is_no_longer_there(aggregating: Aggregating) -> None:
    await aggregating.service(type="ExternalName", externalName="127.0.0.1")
    await aggregating.register(aggregating.port)
    await aggregating.condition()
    await aggregating.full.client.delete(APISERVICES, "v1.wardle.example.com")
    assert "wardle" not in (await aggregating.get("/apis"))[1]
    assert (await aggregating.get("/apis/wardle.example.com/v1"))[0] == 404


@pytest.mark.parametrize(
    ("service", "port", "reason", "message"),
    [
        (None, 443, "ServiceNotFound", 'service/s in "ns" is not present'),
        ({}, 444, "ServicePortError", 'service/s in "ns" is not listening on port 444'),
        ({}, 443, "EndpointsNotFound", 'cannot find endpointslices for service/s in "ns"'),
    ],
)
async def test_what_lacks_is_said_and_requests_are_refused(
    aggregating: Aggregating, service: dict[str, object] | None, port: int, reason: str, message: str
) -> None:
    if service is not None:
        await aggregating.service(**service)
    await aggregating.register(port)
    found = await aggregating.condition()
    assert (found["status"], found["reason"], found["message"]) == ("False", reason, message)
    assert await aggregating.get("/apis/wardle.example.com/v1") == (503, "service unavailable\n")
    assert "wardle" not in (await aggregating.get("/apis"))[1]


async def test_a_backend_that_does_not_answer_fails_its_check(aggregating: Aggregating) -> None:
    await aggregating.service(type="ExternalName", externalName="127.0.0.1")
    await aggregating.register(1)
    found = await aggregating.condition()
    assert found["reason"] == "FailedDiscoveryCheck"
    assert found["message"].startswith("failing or missing response from https://s.ns.svc:1/apis/wardle.example.com/v1")


def test_identity_has_every_group_and_extra() -> None:
    headers = identity(User("jane", "7", ("a", "b"), {"example.com/x": ("1", "2")}))
    assert headers.getall("X-Remote-Group") == ["a", "b"]
    assert headers.getall("X-Remote-Extra-example.com%2Fx") == ["1", "2"]
    assert headers["X-Remote-Uid"] == "7"
