"""What the audit log says of requests, as a server writes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kone.admission.chain import Chain
from kone.admission.metrics import AdmissionMetrics
from kone.admission.plugin import Attributes, Plugin
from kone.apimachinery.objects import Object
from kone.apiserver.app import ApiServer
from kone.apiserver.audit import Audit, source_ips
from kone.apiserver.audit_policy import parse_policy
from kone.auth.authentication import Authenticator
from kone.auth.authorizer import Authorizer
from kone.testing import Cluster
from tests.apiserver.conftest import Served, Small

CM = "/api/v1/namespaces/ns/configmaps"
AS_BOB = {"Impersonate_User": "bob"}


class Notes(Plugin):
    name = "Notes"

    async def validate(self, a: Attributes) -> None:
        a.annotate("notes.example.com/seen", a.operation)
        if a.name == "bug":
            raise RuntimeError("a bug")


class Lines:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.written = asyncio.Event()

    def write(self, line: bytes) -> None:
        assert line.endswith(b"}\n")
        assert line.count(b"\n") == 1
        self.events.append(json.loads(line))
        self.written.set()

    def close(self) -> None:
        pass

    def take(self, *stages: str) -> list[Any]:
        """The events so far, of which the stages must be these."""
        events, self.events = self.events, []
        assert [event["stage"] for event in events] == list(stages)
        return events


POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitManagedFields": True,
    "rules": [
        {"level": "None", "nonResourceURLs": ["/version"]},
        {"level": "RequestResponse", "verbs": ["create", "list", "patch", "delete"], "omitStages": ["RequestReceived"]},
        {"level": "Metadata"},
    ],
}


@pytest.fixture
async def audited(small: Small, tmp_path: Path) -> AsyncIterator[tuple[Served, Lines]]:
    lines = Lines()
    small.verbs.admission = Chain([Notes()], AdmissionMetrics(small.clock))
    server = ApiServer(
        verbs=small.verbs,
        authenticator=Authenticator(()),
        authorizer=Authorizer(small.verbs.caches, ()),
        audit=Audit(parse_policy(json.dumps(POLICY)), lines, small.clock),
        clock=small.clock,
    )
    path = tmp_path / "kone.sock"
    await server.start(unix_path=path)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        yield Served(small, server, session), lines
    await server.stop(1.0)


def config_map(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}}


async def test_metadata_says_who_asked_for_what_and_the_outcome(audited: tuple[Served, Lines]) -> None:
    served, lines = audited
    _, _, headers = await served.call("GET", f"{CM}/none?pretty=1", Audit_Id="mine", User_Agent="test/1")
    received, complete = lines.take("RequestReceived", "ResponseComplete")
    stamp = "2023-11-14T22:13:20.000000Z"
    assert headers["Audit-Id"] == "mine"
    assert received == {
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": "mine",
        "stage": "RequestReceived",
        "requestURI": f"{CM}/none?pretty=1",
        "verb": "get",
        "user": {"username": "root", "groups": ["system:masters", "system:authenticated"]},
        "sourceIPs": [],
        "userAgent": "test/1",
        "objectRef": {"resource": "configmaps", "namespace": "ns", "name": "none", "apiVersion": "v1"},
        "requestReceivedTimestamp": stamp,
        "stageTimestamp": stamp,
    }
    assert complete["responseStatus"] == {
        "metadata": {},
        "status": "Failure",
        "message": 'configmaps "none" not found',
        "reason": "NotFound",
        "details": {"name": "none", "kind": "configmaps"},
        "code": 404,
    }
    assert complete["annotations"] == {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""}
    assert "responseObject" not in complete


async def test_request_and_response_are_there_without_managed_fields(audited: tuple[Served, Lines]) -> None:
    served, lines = audited
    await served.call("POST", CM, config_map("a"))
    (made,) = lines.take("ResponseComplete")
    assert made["requestObject"] == config_map("a")
    assert made["responseObject"]["metadata"]["uid"]
    assert "managedFields" not in made["responseObject"]["metadata"]
    assert made["objectRef"]["name"] == "a"
    assert made["responseStatus"] == {"metadata": {}, "code": 201}
    assert made["annotations"]["notes.example.com/seen"] == "CREATE"

    await served.call("GET", CM)
    (listed,) = lines.take("ResponseComplete")
    assert [item["data"] for item in listed["responseObject"]["items"]] == [{"k": "v"}]
    assert "managedFields" not in listed["responseObject"]["items"][0]["metadata"]

    await served.call("PATCH", f"{CM}/a", {"data": {"k": "w"}}, Content_Type="application/merge-patch+json")
    assert lines.take("ResponseComplete")[0]["requestObject"] == {"data": {"k": "w"}}

    await served.call("DELETE", f"{CM}/a", {"gracePeriodSeconds": 3})
    (gone,) = lines.take("ResponseComplete")
    assert gone["requestObject"]["gracePeriodSeconds"] == 3
    assert gone["responseStatus"]["status"] == "Success"


async def test_an_answer_that_goes_out_compressed_is_there_too(audited: tuple[Served, Lines]) -> None:
    served, lines = audited
    await served.call("POST", CM, {**config_map("a"), "data": {"k": "v" * 200_000}})
    lines.take("ResponseComplete")
    async with served.session.get(f"http://kone{CM}", headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        await answer.read()
    (listed,) = lines.take("ResponseComplete")
    assert len(listed["responseObject"]["items"][0]["data"]["k"]) == 200_000


async def test_what_the_policy_leaves_out_leaves_no_trace(audited: tuple[Served, Lines]) -> None:
    served, lines = audited
    await served.call("GET", "/version")
    lines.take()


async def test_a_refusal_and_who_was_impersonated(audited: tuple[Served, Lines]) -> None:
    served, lines = audited
    assert (await served.call("GET", f"{CM}/a", **AS_BOB))[0] == 403
    _, refused = lines.take("RequestReceived", "ResponseComplete")
    assert refused["impersonatedUser"] == {"username": "bob", "groups": ["system:authenticated"]}
    assert refused["user"]["username"] == "root"
    assert refused["annotations"]["authorization.k8s.io/decision"] == "forbid"
    assert refused["responseStatus"]["code"] == 403


async def test_a_watch_begins_and_ends(audited: tuple[Served, Lines]) -> None:
    served, lines = audited
    async with served.session.get(f"http://kone{CM}?watch=1") as answer:
        assert answer.headers["Audit-Id"]
        begun = lines.take("RequestReceived", "ResponseStarted")[1]
        assert (begun["verb"], begun["responseStatus"]) == ("watch", {"metadata": {}, "code": 200})
        lines.written.clear()
    async with asyncio.timeout(10):
        await lines.written.wait()
    lines.take("ResponseComplete")


async def test_an_error_of_the_servers_own_is_a_panic(
    audited: tuple[Served, Lines], caplog: pytest.LogCaptureFixture
) -> None:
    served, lines = audited
    assert (await served.call("POST", CM, config_map("bug")))[0] == 500
    (panic,) = lines.take("Panic")
    assert panic["responseStatus"]["message"] == "APIServer panic'd: RuntimeError: a bug"


@pytest.mark.parametrize(
    ("headers", "remote", "found"),
    [
        ({}, "10.0.0.1", ["10.0.0.1"]),
        ({}, None, []),
        ({"X-Forwarded-For": "192.0.2.1, 192.0.2.2"}, "10.0.0.1", ["192.0.2.1", "192.0.2.2", "10.0.0.1"]),
        ({"X-Forwarded-For": "192.0.2.1", "X-Real-Ip": "192.0.2.1"}, "10.0.0.1", ["192.0.2.1", "10.0.0.1"]),
        ({"X-Real-Ip": "192.0.2.9"}, "10.0.0.1", ["192.0.2.9", "10.0.0.1"]),
    ],
)
def test_where_a_request_comes_from(headers: dict[str, str], remote: str | None, found: list[str]) -> None:
    assert source_ips(headers, remote) == found  # type: ignore[arg-type]


async def test_the_flags_write_a_file_and_a_bad_token_is_in_it(tmp_path: Path) -> None:
    policy, log = tmp_path / "policy.yaml", tmp_path / "audit.log"
    policy.write_text(json.dumps(POLICY))
    async with Cluster(
        controllers=False, scheduler=False, audit_policy_file=str(policy), audit_log_path=str(log)
    ) as cluster:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
            session.get(f"{cluster.url}/api/v1/pods", headers={"Authorization": "Bearer bad"}) as answer,
        ):
            assert answer.status == 401
        pod = {"metadata": {"name": "p"}, "spec": {"hostPID": True, "containers": [{"name": "c", "image": "i"}]}}
        connector = aiohttp.UnixConnector(str(cluster.node.settings.socket_path))
        async with aiohttp.ClientSession(connector=connector) as session:
            namespace = {"metadata": {"name": "strict", "labels": {"pod-security.kubernetes.io/audit": "baseline"}}}
            await session.post("http://kone/api/v1/namespaces", json=namespace)
            account = {"metadata": {"name": "default"}}
            await session.post("http://kone/api/v1/namespaces/strict/serviceaccounts", json=account)
            await session.post("http://kone/api/v1/namespaces/strict/pods", json=pod)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    refused = next(event for event in events if event["responseStatus"]["code"] == 401)
    assert refused["responseStatus"]["message"] == "Authentication failed, attempted: bearer"
    assert (refused["user"], refused["sourceIPs"]) == ({}, ["127.0.0.1"])
    made = next(event for event in events if event.get("objectRef", {}).get("resource") == "pods" and event != refused)
    assert made["annotations"]["pod-security.kubernetes.io/enforce-policy"] == "privileged:latest"
    assert made["annotations"]["pod-security.kubernetes.io/audit-violations"] == (
        'would violate PodSecurity "baseline:latest": host namespaces (hostPID=true)'
    )
