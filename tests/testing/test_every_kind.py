"""Every GA kind of v1.37 goes through every verb over HTTP, and its schema is enforced."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from kone.apimachinery.objects import Object
from kone.registry.registry import builtin
from kone.registry.resource import Resource
from kone.testing import Cluster

KINDS: list[Object] = list(yaml.safe_load_all((Path(__file__).parent / "every_kind.yaml").read_text()))
MERGE = {"Content-Type": "application/merge-patch+json"}
# What only others make, and what is not stored.
NOT_MADE_BY_USERS = {
    ("certificates.k8s.io/v1", "ClusterTrustBundle"),
    ("certificates.k8s.io/v1", "PodCertificateRequest"),
}
COMPUTED = {("v1", "ComponentStatus")}


def resource_of(obj: Object) -> Resource:
    group, _, version = obj["apiVersion"].rpartition("/")
    return next(
        r for r in builtin().resources() if (r.gvr.group, r.gvr.version, r.kind) == (group, version, obj["kind"])
    )


def id_of(obj: Object) -> str:
    return f"{obj['apiVersion']}.{obj['kind']}"


class Api:
    """The API of a cluster without loops, as its administrator."""

    def __init__(self, cluster: Cluster, session: aiohttp.ClientSession) -> None:
        self._url = cluster.url
        self._session = session

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        sent = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        async with self._session.request(method, self._url + path, data=data, headers=sent) as answer:
            return answer.status, await answer.json()

    async def events(self, path: str, revision: str, count: int) -> list[tuple[str, str]]:
        """(type, name) of the first events after the revision."""
        seen: list[tuple[str, str]] = []
        url = f"{self._url}{path}?watch=true&resourceVersion={revision}"
        async with asyncio.timeout(10), self._session.get(url) as answer:
            while len(seen) < count:
                event = json.loads(await answer.content.readline())
                seen.append((event["type"], event["object"]["metadata"]["name"]))
        return seen


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api() -> AsyncIterator[Api]:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        user = yaml.safe_load(cluster.kubeconfig.read_text())["users"][0]["user"]
        tls = ssl.create_default_context(cafile=str(cluster.kubeconfig.parent / "pki" / "ca.crt"))
        headers = {"Authorization": f"Bearer {user['token']}"}
        connector = aiohttp.TCPConnector(ssl=tls)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            api = Api(cluster, session)
            account = {"metadata": {"name": "default"}}  # pods ask for it, and the controller that makes it is not here
            await api.ask("POST", "/api/v1/namespaces/default/serviceaccounts", account)
            yield api


def test_the_table_holds_every_kind_that_users_make() -> None:
    wanted = {
        (r.gvk.api_version, r.kind)
        for r in builtin().resources()
        if {"create", "list"} <= set(r.verbs) and not r.virtual
    }
    listed = {(obj["apiVersion"], obj["kind"]) for obj in KINDS}
    assert wanted - listed - NOT_MADE_BY_USERS - COMPUTED == set()
    assert listed <= wanted


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("manifest", KINDS, ids=id_of)
async def test_a_kind_is_made_read_listed_watched_changed_and_deleted(api: Api, manifest: Object) -> None:
    resource = resource_of(manifest)
    obj = deepcopy(manifest)
    name = obj.setdefault("metadata", {}).setdefault("name", "a")
    gvr = resource.gvr
    root = f"/apis/{gvr.group}/{gvr.version}" if gvr.group else f"/api/{gvr.version}"
    path = f"{root}/namespaces/default/{gvr.resource}" if resource.namespaced else f"{root}/{gvr.resource}"
    one = f"{path}/{name}"

    code, listed = await api.ask("GET", path)
    assert code == 200
    revision = listed["metadata"]["resourceVersion"]

    code, dry = await api.ask("POST", f"{path}?dryRun=All", obj)
    assert (code, dry["metadata"].get("name")) == (201, name), dry
    assert (await api.ask("GET", one))[0] == 404
    code, made = await api.ask("POST", path, obj)
    assert (code, made["kind"], made["metadata"]["name"]) == (201, resource.kind, name), made
    code, again = await api.ask("POST", path, obj)
    assert (code, again["reason"]) == (409, "AlreadyExists")

    code, found = await api.ask("GET", one)
    assert (code, found["metadata"]["uid"]) == (200, made["metadata"]["uid"])
    if resource.kind not in ("CustomResourceDefinition", "FlowSchema"):  # of which the API itself writes the status
        assert found == made
    code, listed = await api.ask("GET", f"{path}?fieldSelector=metadata.name={name}")
    assert [item["metadata"]["uid"] for item in listed["items"]] == [made["metadata"]["uid"]]
    table = "application/json;as=Table;v=v1;g=meta.k8s.io"
    code, rows = await api.ask("GET", one, Accept=table)
    assert rows["kind"] == "Table"
    assert [row["object"]["metadata"]["name"] for row in rows["rows"]] == [name]

    code, patched = await api.ask(
        "PATCH", one, {"metadata": {"labels": {"seen": "yes"}}}, Content_Type=MERGE["Content-Type"]
    )
    assert (code, patched["metadata"]["labels"]["seen"]) == (200, "yes"), patched
    code, refused = await api.ask("PUT", one, made)
    if "resourceVersion" in made["metadata"]:
        assert (code, refused["reason"]) == (409, "Conflict"), refused
    patched["metadata"]["annotations"] = {"put": "yes"}
    code, put = await api.ask("PUT", one, patched)
    assert (code, put["metadata"]["annotations"]["put"]) == (200, "yes"), put

    code, strict = await api.ask("POST", f"{path}?fieldValidation=Strict", obj | {"noSuchField": 1})
    assert (code, strict["reason"]) == (400, "BadRequest")
    assert 'unknown field "noSuchField"' in strict["message"]
    code, wrong = await api.ask("POST", path, obj | {"metadata": {"name": 1}})
    assert (code, wrong["reason"]) == (400, "BadRequest")

    code, said = await api.ask("DELETE", f"{one}?gracePeriodSeconds=0&propagationPolicy=Background")
    assert code == 200, said
    if (await api.ask("GET", one))[0] == 200:  # a finalizer waits for a controller, which does not run here
        held = await api.ask(
            "PATCH",
            one,
            {"metadata": {"finalizers": None}, "spec": {"finalizers": None}},
            Content_Type=MERGE["Content-Type"],
        )
        # A definition may have gone meanwhile: the API itself removes it once it has no objects.
        assert held[0] in (200, 404) or resource.kind == "Namespace"
    seen = await api.events(path, revision, 3)
    assert [kind for kind, seen_name in seen if seen_name == name][:3] == ["ADDED", "MODIFIED", "MODIFIED"]
