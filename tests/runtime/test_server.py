"""The kubelet's server as its clients see it: who is let in, what is answered, in which words it refuses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object
from kone.auth.pki import Names, Pki
from kone.runtime import host_logs
from kone.runtime.server_auth import subresources_of
from tests.fakes import FakeClient
from tests.runtime.server_world import World, until


class Reviewer(FakeClient):
    """Knows the token "good"; lets jane get metrics, and nobody else anything. Counts what it is asked."""

    asked = 0

    async def create(
        self, resource: GVR, obj: Object, *, namespace: str = "", subresource: str = "", name: str = ""
    ) -> Object:
        self.asked += 1
        spec = obj["spec"]
        if resource.resource == "tokenreviews":
            user = {"username": "jane", "groups": ["dev", "system:authenticated"]}
            good = spec["token"] == "good"
            return {**obj, "status": {"authenticated": good, **({"user": user} if good else {})}}
        wanted = spec["resourceAttributes"]
        allowed = (spec["user"], wanted["verb"], wanted["subresource"]) == ("jane", "get", "metrics")
        return {**obj, "status": {"allowed": allowed}}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"), Names("n1", node_ips=("127.0.0.1",)))
    made.ensure(time.time())
    return made


@pytest.fixture
async def world(pki: Pki, tmp_path: Path) -> AsyncIterator[World]:
    made = World(pki, tmp_path, Reviewer())
    await made.start()
    yield made
    await made.stop()


# Who


@pytest.mark.parametrize(
    ("path", "subresources"),
    [
        ("/pods", ("pods", "proxy")),
        ("/runningpods/", ("pods", "proxy")),
        ("/healthz/ping", ("healthz", "proxy")),
        ("/configz", ("configz", "proxy")),
        ("/stats/summary", ("stats",)),
        ("/metrics/cadvisor", ("metrics",)),
        ("/logs/syslog", ("log",)),
        ("/exec/n/p/c", ("proxy",)),
        ("/metricsbeside", ("proxy",)),
    ],
)
def test_what_a_path_asks_of_the_node(path: str, subresources: tuple[str, ...]) -> None:
    assert subresources_of(path) == subresources


async def test_nobody_is_let_in_without_saying_who(world: World) -> None:
    anybody = world.connect()
    async with anybody.get("/healthz") as response:
        assert (response.status, await response.text()) == (401, "Unauthorized")
    async with anybody.get("/pods", headers={"Authorization": "Bearer bad"}) as response:
        assert response.status == 401


async def test_a_token_is_reviewed_and_its_user_may_what_rbac_says(world: World) -> None:
    jane = world.connect()
    headers = {"Authorization": "Bearer good"}
    async with jane.get("/metrics", headers=headers) as response:
        assert response.status == 200
    async with jane.get("/pods", headers=headers) as response:
        told = "Forbidden (user=jane, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
        assert (response.status, await response.text()) == (403, told)


async def test_answers_about_callers_are_remembered_for_a_while(world: World) -> None:
    reviewer = world.server._auth._client
    assert isinstance(reviewer, Reviewer)
    jane = world.connect()

    async def get(path: str) -> int:
        async with jane.get(path, headers={"Authorization": "Bearer good"}) as response:
            return response.status

    for _ in range(3):
        assert await get("/metrics") == 200
    assert reviewer.asked == 2  # whose token, may they
    await world.clock.advance(121)
    assert await get("/metrics") == 200
    assert reviewer.asked == 3  # whose token
    await world.clock.advance(200)
    assert await get("/metrics") == 200
    assert reviewer.asked == 5  # both


async def test_a_nodes_certificate_is_a_user_like_others(world: World) -> None:
    async with world.connect("kubelet").get("/pods") as response:
        told = "Forbidden (user=system:node:n1, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
        assert (response.status, await response.text()) == (403, told)


# About the node


async def test_pods_and_health(world: World) -> None:
    status, text = await world.get("/pods")
    assert (status, json.loads(text)["items"][0]["metadata"]["name"]) == (200, "p")
    status, text = await world.get("/runningpods/")
    assert [c["name"] for c in json.loads(text)["items"][0]["spec"]["containers"]] == ["c"]
    assert await world.get("/healthz") == (200, "ok")
    assert await world.get("/healthz/syncloop") == (200, "ok")
    assert (await world.get("/healthz/else"))[0] == 404
    assert await world.get("/configz") == (200, '{"kubeletconfig": {}}')


async def test_the_summary_has_the_node_and_its_disks(world: World) -> None:
    status, text = await world.get("/stats/summary")
    assert status == 200
    node = json.loads(text)["node"]
    assert node["nodeName"] == "n1"
    assert node["memory"]["workingSetBytes"] > 0
    assert node["cpu"]["usageCoreNanoSeconds"] > 0
    assert node["fs"]["capacityBytes"] > node["fs"]["availableBytes"] > 0
    small = json.loads((await world.get("/stats/summary?only_cpu_and_memory=true"))[1])["node"]
    assert "fs" not in small


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/metrics", 'kubelet_node_name{node="n1"} 1'),
        ("/metrics", 'kubelet_running_containers{container_state="running"} 2'),
        ("/metrics/resource", "resource_scrape_error 0"),
        ("/metrics/cadvisor", "# TYPE container_cpu_usage_seconds_total counter"),
    ],
)
async def test_metrics(world: World, path: str, line: str) -> None:
    status, text = await world.get(path)
    assert status == 200
    assert line in text.splitlines()


async def test_the_hosts_logs(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "log"
    (root / "sub").mkdir(parents=True)
    (root / "a <b>.log").write_text("hello")
    (root / "sub" / "inside").symlink_to("../a <b>.log")
    (root / "outside").symlink_to("/etc/passwd")
    monkeypatch.setattr(host_logs.serve, "__defaults__", (root,))
    status, text = await world.get("/logs/")
    assert status == 200
    assert '<a href="a%20%3Cb%3E.log">a &lt;b&gt;.log</a>\n' in text
    assert '<a href="sub/">sub/</a>\n' in text
    assert await world.get("/logs/a%20%3Cb%3E.log") == (200, "hello")
    assert await world.get("/logs/sub/inside") == (200, "hello")
    assert (await world.get("/logs/outside"))[0] == 404
    assert (await world.get("/logs/../../etc/passwd"))[0] == 404
    status, _ = await world.get("/logs/sub", allow_redirects=False)
    assert status == 301


async def test_only_get_where_nothing_is_changed(world: World) -> None:
    async with world.session.post("/pods") as response:
        assert (response.status, await response.text()) == (405, "Method Not Allowed")


# Logs and commands


async def test_a_log(world: World) -> None:
    assert await world.get("/containerLogs/n/p/c") == (200, "one\ntwo\n")
    assert await world.get("/containerLogs/n/x/c") == (404, 'pod "x" does not exist')
    assert await world.get("/containerLogs/n/p/x") == (404, 'container "x" not found in pod "p"')
    gone = "unable to retrieve container logs for docker://gone"
    assert await world.get("/containerLogs/n/p/done") == (400, gone)
    assert (await world.get("/containerLogs/n/p/c?tailLines=-1"))[0] == 422


async def test_a_followed_log_comes_as_it_is_written_and_ends_with_the_client(world: World) -> None:
    async with world.session.get("/containerLogs/n/p/c?follow=true") as response:
        assert await response.content.readexactly(8) == b"one\ntwo\n"
        await asyncio.wait_for(world.runtime.following.wait(), 30)
    await world.session.close()
    await asyncio.wait_for(world.runtime.let_go.wait(), 30)


async def test_a_command_without_streams(world: World) -> None:
    async with world.session.post("/run/n/p/c?cmd=echo+a+b") as response:
        assert (response.status, await response.text()) == (200, "echo a b")
    async with world.session.post("/run/n/p/u/c?cmd=false") as response:
        assert response.status == 500


async def test_a_command_may_be_long(world: World) -> None:
    async with world.session.post(f"/run/n/p/c?cmd=echo+{'a' * 20_000}") as response:
        assert (response.status, await response.text()) == (200, f"echo {'a' * 20_000}")


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/exec/n/x/c?output=1", 404, "pod does not exist"),
        ("/exec/n/p/other/c?output=1", 404, "pod does not exist"),
        ("/exec/n/p/done?output=1", 500, 'container not found ("done")'),
        ("/attach/n/p/done?output=1", 500, "container done not found in pod p_n"),
        ("/exec/n/p/c", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("/exec/n/p/c?output=1", 400, "Upgrade request required"),
        ("/portForward/n/p", 400, 'query parameter "port" is required'),
        ("/portForward/n/p?port=x", 400, None),
        ("/portForward/n/p?port=0", 400, 'port "0" must be > 0'),
        ("/portForward/n/x?port=1", 404, "pod does not exist"),
    ],
)
async def test_streams_that_are_refused(world: World, path: str, code: int, text: str | None) -> None:
    status, told = await world.get(path)
    assert status == code
    assert text is None or told == text


async def test_protocols_that_nobody_speaks(world: World) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await world.session.ws_connect("/exec/n/p/c?output=1", protocols=("v9.channel.k8s.io",))
    assert caught.value.status == 400


async def test_certificates_are_read_anew(world: World, pki: Pki) -> None:
    world.server.reload_certificates()
    assert await world.get("/healthz") == (200, "ok")


async def test_a_client_that_goes_ends_its_session(world: World) -> None:
    socket = await world.session.ws_connect("/exec/n/p/c?output=1&command=cat", protocols=("v5.channel.k8s.io",))
    await until(lambda: bool(world.runtime.sessions))
    await socket.close()
    await until(lambda: world.runtime.sessions[0].closed)


async def test_since_when_it_runs_as_what(world: World) -> None:
    status, text = await world.get("/statusz")
    assert status == 200
    assert text.startswith("\nkubelet statusz\nWarning: This endpoint is not meant to be machine parseable")
    assert "\nBinary version: 1.37.2\n" in text
    assert " /stats/summary " in text
    status, text = await world.get("/flagz")
    assert (status, "\nnode-name=n1\n" in text) == (200, True)


async def test_checkpoints_and_profiles_are_refused_clearly(world: World) -> None:
    status, text = await world.get("/debug/pprof/heap")
    assert (status, text) == (405, "profiling endpoint is disabled.\n")
