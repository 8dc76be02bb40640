"""The server over its local door: methods, bodies, negotiation, errors and watches as a client meets them."""

from __future__ import annotations

import io
import json

import pytest

from kone.apimachinery.objects import Object
from tests.apiserver.conftest import Served

CM = "/api/v1/namespaces/ns/configmaps"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
PARTIAL = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
PARTIAL_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


def config_map(name: str, **fields: object) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **fields}


async def test_create_read_update_delete(served: Served) -> None:
    assert (await served.call("GET", f"{CM}/a"))[0] == 404
    code, made, _ = await served.call("POST", CM, config_map("a", data={"k": "v"}))
    assert (code, made["data"]) == (201, {"k": "v"})
    assert (await served.call("GET", f"{CM}/a"))[1] == made
    code, changed, _ = await served.call("PUT", f"{CM}/a", config_map("a", data={"k": "w"}))
    assert (code, changed["data"]) == (200, {"k": "w"})
    code, gone, _ = await served.call("DELETE", f"{CM}/a")
    assert (code, gone["details"]["uid"]) == (200, made["metadata"]["uid"])


async def test_a_list_carries_its_kind_once(served: Served) -> None:
    for name in ("a", "b"):
        await served.call("POST", CM, config_map(name))
    _, found, _ = await served.call("GET", CM)
    assert (found["kind"], found["apiVersion"]) == ("ConfigMapList", "v1")
    assert [item["metadata"]["name"] for item in found["items"]] == ["a", "b"]
    assert all("kind" not in item and "apiVersion" not in item for item in found["items"])
    assert (await served.call("GET", "/api/v1/namespaces/empty/configmaps"))[1]["items"] == []


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("POST", "/api/v1/configmaps", 405),
        ("GET", "/api/v1/configmaps/a", 404),
        ("GET", "/api/v1/namespaces/ns/namespaces", 404),
        ("PUT", CM, 405),
        ("POST", f"{CM}/a", 405),
        ("GET", f"{CM}/a/status", 404),
        ("GET", f"{CM}/a/b/c", 404),
        ("GET", "/api/v1/namespaces/ns/nothing", 404),
        ("GET", "/apis/nothing.example.com/v1/things", 404),
        ("OPTIONS", f"{CM}/a", 405),
        ("HEAD", CM, 405),
        ("GET", "/nothing", 404),
    ],
)
async def test_paths_and_methods_that_are_not_there(served: Served, method: str, path: str, code: int) -> None:
    assert (await served.call(method, path))[0] == code


@pytest.mark.parametrize(
    ("accept", "code", "kind"),
    [
        ("*/*", 200, "ConfigMap"),
        ("text/html, application/json;q=0.1", 200, "ConfigMap"),
        (PARTIAL, 200, "PartialObjectMetadata"),
        (TABLE, 200, "Table"),
        (PARTIAL_LIST, 406, "Status"),
        ("application/vnd.kubernetes.protobuf,application/json", 200, "ConfigMap"),
        ("application/json;as=Foo;v=v1;g=meta.k8s.io,application/json", 200, "ConfigMap"),
        ("text/html", 406, "Status"),
        ("APPLICATION/JSON", 406, "Status"),
    ],
)
async def test_what_is_accepted(served: Served, accept: str, code: int, kind: str) -> None:
    await served.call("POST", CM, config_map("a"))
    got, found, _ = await served.call("GET", f"{CM}/a", Accept=accept)
    assert (got, found["kind"]) == (code, kind)


async def test_yaml_in_and_out(served: Served) -> None:
    body = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yes-no\ndata:\n  a: '1'\n  b: |\n    x\n    y\n"
    code, made, _ = await served.call("POST", CM, body, Content_Type="application/yaml")
    assert (code, made["data"]) == (201, {"a": "1", "b": "x\ny\n"})
    _, text, headers = await served.call("GET", f"{CM}/yes-no", Accept="application/yaml")
    assert headers["Content-Type"] == "application/yaml"
    assert 'data:\n  a: "1"\n  b: |\n    x\n    y\n' in text


@pytest.mark.parametrize(
    ("content_type", "body", "code", "message"),
    [
        (
            "application/json",
            b"{",
            400,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; "
            "json parse error: unexpected end of JSON input ({)",
        ),
        (
            "application/json",
            b'{"kind":"Secret","apiVersion":"v1"}',
            400,
            'Secret in version "v1" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): '
            "unknown conversion",
        ),
        (
            "text/plain",
            b"{}",
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json, "
            "application/yaml, application/vnd.kubernetes.protobuf",
        ),
    ],
)
async def test_bodies_that_cannot_be_read(
    served: Served, content_type: str, body: bytes, code: int, message: str
) -> None:
    got, found, _ = await served.call("POST", CM, body, Content_Type=content_type)
    assert (got, found["message"]) == (code, message)


async def test_a_body_may_have_3_mib(served: Served) -> None:
    body = json.dumps(config_map("a", data={"k": "x" * (3 * 2**20)})).encode()
    async with served.session.post(f"http://kone{CM}", data=io.BytesIO(body)) as answer:
        code, found = answer.status, await answer.json()
    assert (code, found["message"]) == (413, "Request entity too large: limit is 3145728")


async def test_fields_given_twice_warn(served: Served) -> None:
    body = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"1","k":"2"}}'
    code, found, headers = await served.call("POST", CM, body)
    assert (code, found["data"]) == (201, {"k": "2"})
    assert headers.getall("Warning") == ['299 - "duplicate field \\"data.k\\""']


@pytest.mark.parametrize(
    ("content_type", "patch"),
    [
        ("application/merge-patch+json", {"data": {"k": "x"}}),
        ("application/strategic-merge-patch+json", {"data": {"k": "x"}}),
        ("application/json-patch+json", [{"op": "add", "path": "/data", "value": {"k": "x"}}]),
    ],
)
async def test_patches(served: Served, content_type: str, patch: object) -> None:
    await served.call("POST", CM, config_map("a"))
    code, found, _ = await served.call("PATCH", f"{CM}/a", patch, Content_Type=content_type)
    assert (code, found["data"]) == (200, {"k": "x"})


@pytest.mark.parametrize("content_type", ["application/json", "application/apply-patch+cbor", "text/plain"])
async def test_patches_of_another_type(served: Served, content_type: str) -> None:
    code, found, _ = await served.call("PATCH", f"{CM}/a", {}, Content_Type=content_type)
    assert (code, found["message"], found["details"]) == (415, "415: Unsupported Media Type", {})


async def test_scale_is_a_view_on_replicas(served: Served) -> None:
    path = "/apis/apps/v1/namespaces/ns/deployments"
    await served.call("POST", path, {"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "a"}}}})
    _, scale, _ = await served.call("GET", f"{path}/d/scale")
    assert (scale["spec"], scale["status"]) == ({"replicas": 1}, {"replicas": 0, "selector": "app=a"})
    code, scale, _ = await served.call("PUT", f"{path}/d/scale", {"metadata": {"name": "d"}, "spec": {"replicas": 5}})
    assert (code, scale["spec"]) == (200, {"replicas": 5})
    _, deployment, _ = await served.call("GET", f"{path}/d")
    assert (deployment["spec"]["replicas"], deployment["metadata"]["generation"]) == (5, 2)
    code, found, _ = await served.call(
        "PATCH", f"{path}/d/scale", {"spec": {"replicas": -1}}, Content_Type="application/merge-patch+json"
    )
    assert (code, found["details"]["kind"]) == (422, "Scale")


async def watch(served: Served, query: str, count: int, **headers: str) -> list[Object]:
    """The first `count` events of a watch that ends by itself after a second."""
    url = f"http://kone{CM}?watch=1&timeoutSeconds=1&{query}"
    found: list[Object] = []
    async with served.session.get(url, headers=headers) as answer:
        assert answer.status == 200
        while len(found) < count and (line := await answer.content.readline()):
            found.append(json.loads(line))
    return found


def names(events: list[Object]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]


async def test_a_watch_without_a_version_begins_with_what_is_there(served: Served) -> None:
    await served.call("POST", CM, config_map("a"))
    assert names(await watch(served, "", 1)) == [("ADDED", "a")]


async def test_a_watch_goes_on_from_a_version_in_order(served: Served) -> None:
    _, before, _ = await served.call("GET", CM)
    await served.call("POST", CM, config_map("a"))
    await served.call("PUT", f"{CM}/a", config_map("a", data={"k": "1"}))
    await served.call("DELETE", f"{CM}/a")
    version = before["metadata"]["resourceVersion"]
    events = await watch(served, f"resourceVersion={version}", 3)
    assert names(events) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    partial = await watch(served, f"resourceVersion={version}", 1, Accept=PARTIAL)
    assert partial[0]["object"]["kind"] == "PartialObjectMetadata"
    table = await watch(served, f"resourceVersion={version}", 2, Accept=TABLE)
    assert [bool(event["object"]["columnDefinitions"]) for event in table] == [True, False]


async def test_an_object_enters_and_leaves_a_selector(served: Served) -> None:
    _, before, _ = await served.call("GET", CM)
    labels = ("1", "1", "2", "1")
    for i, group in enumerate(labels):
        obj = {"metadata": {"name": "a", "labels": {"g": group}}, "data": {"k": str(i)}}
        await served.call("PUT" if i else "POST", f"{CM}/a" if i else CM, obj)
    version = before["metadata"]["resourceVersion"]
    events = await watch(served, f"resourceVersion={version}&labelSelector=g%3D1", 4)
    assert [(event["type"], event["object"]["data"]["k"]) for event in events] == [
        ("ADDED", "0"),
        ("MODIFIED", "1"),
        ("DELETED", "1"),
        ("ADDED", "3"),
    ]


async def test_a_watch_list_ends_its_state_with_a_bookmark(served: Served) -> None:
    await served.call("POST", CM, config_map("a"))
    query = "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    events = await watch(served, query, 2)
    assert [event["type"] for event in events] == ["ADDED", "BOOKMARK"]
    assert events[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert events[1]["object"]["metadata"]["resourceVersion"] == str(served.small.verbs.caches.revision)


@pytest.mark.parametrize(
    ("path", "text"),
    [("/livez", "ok"), ("/readyz", "ok"), ("/healthz", "ok"), ("/livez/ping", "ok")],
)
async def test_health(served: Served, path: str, text: str) -> None:
    assert (await served.call("GET", path))[:2] == (200, text)


async def test_a_failing_check_is_named(served: Served) -> None:
    served.server.health.ready["scheduler"] = lambda: "it has not started"
    code, text, _ = await served.call("GET", "/readyz?verbose")
    assert code == 500
    assert text.startswith("[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]etcd-readiness ok\n[+]informer-sync ok\n")
    assert text.endswith("[+]shutdown ok\n[-]scheduler failed: it has not started\nreadyz check failed\n")
    assert (await served.call("GET", "/readyz?exclude=scheduler"))[0] == 200
    assert (await served.call("GET", "/livez"))[0] == 200


async def test_a_server_that_stops_says_so_before_it_refuses(served: Served) -> None:
    served.server.health.stopping = True
    code, text, _ = await served.call("GET", "/readyz?verbose")
    assert code == 500
    assert "[-]shutdown failed: process is shutting down\n" in text
    assert (await served.call("GET", "/livez"))[0] == 200
    assert (await served.call("GET", CM))[0] == 200


async def test_a_connection_that_outlives_the_listener_is_told_to_come_again(served: Served) -> None:
    served.server._stopping = True
    code, status, headers = await served.call("GET", CM)
    assert (code, status["reason"], status["message"]) == (503, "ServiceUnavailable", "apiserver is shutting down")
    assert (headers["Retry-After"], headers["Connection"]) == ("1", "close")


async def test_a_database_that_fails_is_seen_by_the_probes(served: Served) -> None:
    served.small.verbs.store._in_doubt = True  # type: ignore[attr-defined]
    assert (await served.call("GET", "/livez"))[0] == 500
    assert (await served.call("GET", "/readyz/etcd"))[0] == 500


async def test_checks_that_were_made_are_counted(served: Served) -> None:
    served.server.health.live["broken"] = lambda: "it is"
    _, text, _ = await served.call("GET", "/metrics/slis")
    assert 'kubernetes_healthchecks_total{name="ping",status="success",type="livez"} 1' in text.splitlines()
    await served.call("GET", "/livez/ping")
    _, text, _ = await served.call("GET", "/metrics/slis")
    for line in (
        'kubernetes_healthcheck{name="broken",type="livez"} 0',
        'kubernetes_healthcheck{name="ping",type="livez"} 1',
        'kubernetes_healthchecks_total{name="broken",status="error",type="livez"} 1',
        'kubernetes_healthchecks_total{name="ping",status="success",type="livez"} 2',
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(("accepted", "packed"), [("gzip", True), ("deflate, gzip", True), ("gzip;q=1", False)])
async def test_a_large_answer_is_packed_for_whom_takes_it(served: Served, accepted: str, packed: bool) -> None:
    await served.call("POST", CM, {**config_map("large"), "data": {"k": "v" * 200_000}})
    await served.call("POST", CM, config_map("small"))
    for path, large in ((f"{CM}/large", True), (CM, True), (f"{CM}/small", False)):
        async with served.session.get(f"http://kone{path}", headers={"Accept-Encoding": accepted}) as answer:
            assert (answer.headers.get("Content-Encoding") == "gzip") is (packed and large)
            assert (answer.headers.get("Vary") == "Accept-Encoding") is (packed and large)
            assert "metadata" in await answer.json()


async def test_discovery(served: Served) -> None:
    _, groups, _ = await served.call("GET", "/apis")
    assert [group["name"] for group in groups["groups"]] == ["apps", "coordination.k8s.io"]
    _, resources, _ = await served.call("GET", "/apis/apps/v1")
    assert [row["name"] for row in resources["resources"]] == ["deployments", "deployments/scale", "deployments/status"]
    aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
    _, everything, headers = await served.call("GET", "/apis", Accept=aggregated)
    assert [group["metadata"]["name"] for group in everything["items"]] == ["apps", "coordination.k8s.io"]
    again = await served.call("GET", "/apis", Accept=aggregated, If_None_Match=headers["ETag"])
    assert again[0] == 304


async def test_acting_as_somebody_who_may_not(served: Served) -> None:
    code, found, _ = await served.call("GET", f"{CM}/a", Impersonate_User="jane")
    assert code == 403
    why = 'User "jane" cannot get resource "configmaps" in API group "" in the namespace "ns"'
    assert found["message"] == f'configmaps "a" is forbidden: {why}'


async def test_metrics_count_requests(served: Served) -> None:
    await served.call("GET", CM)
    _, text, _ = await served.call("GET", "/metrics")
    assert (
        'apiserver_request_total{code="200",group="",resource="configmaps",subresource="",verb="LIST",version="v1"} 1'
        in text
    )


async def test_every_answer_has_an_audit_id_the_clients_own_if_it_gives_one(served: Served) -> None:
    seen = set()
    for path in (CM, f"{CM}/none", "/version", "/nothing"):
        seen.add((await served.call("GET", path))[2]["Audit-Id"])
    _, _, headers = await served.call("GET", CM, Authorization="Bearer nonsense", Audit_ID="mine")
    assert headers["Audit-Id"] == "mine"
    assert len(seen) == 4
