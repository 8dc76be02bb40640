"""Server-side apply and field ownership as clients meet them over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from kone.apimachinery.field_sets import paths
from kone.apimachinery.objects import Object
from tests.apiserver.conftest import Served

CM = "/api/v1/namespaces/ns/configmaps"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
REQUIRED = 'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'


def config_map(**data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}


async def apply(served: Served, query: str, config: Any, path: str = f"{CM}/a") -> tuple[int, Any]:
    code, answer, _ = await served.call("PATCH", f"{path}?{query}", config, Content_Type=APPLY)
    return code, answer


def owners(obj: Object) -> list[tuple[str, str, str, list[str]]]:
    entries = obj["metadata"].get("managedFields", [])
    return [(e["manager"], e["operation"], e.get("subresource", ""), list(paths(e["fieldsV1"]))) for e in entries]


async def test_apply_creates_changes_and_unsets(served: Served) -> None:
    code, made = await apply(served, "fieldManager=one", config_map(k="1", j="1"))
    assert (code, made["data"]) == (201, {"k": "1", "j": "1"})
    code, changed = await apply(served, "fieldManager=one", config_map(k="2"))
    assert (code, changed["data"]) == (200, {"k": "2"})
    assert owners(changed) == [("one", "Apply", "", [".data.k"])]


async def test_apply_that_changes_nothing_writes_nothing(served: Served) -> None:
    _, made = await apply(served, "fieldManager=one", config_map(k="1"))
    assert (await apply(served, "fieldManager=one", config_map(k="1"))) == (200, made)


async def test_a_conflict_and_force(served: Served) -> None:
    await served.call("POST", f"{CM}?fieldManager=maker", config_map(k="1"))
    code, refused = await apply(served, "fieldManager=one", config_map(k="2"))
    assert (code, refused["reason"]) == (409, "Conflict")
    assert refused["message"] == 'Apply failed with 1 conflict: conflict with "maker" using v1: .data.k'
    code, taken = await apply(served, "fieldManager=one&force=true", config_map(k="2"))
    assert (code, taken["data"]) == (200, {"k": "2"})
    assert owners(taken) == [("one", "Apply", "", [".data.k"]), ("maker", "Update", "", [".data"])]


async def test_a_dry_run_stores_nothing(served: Served) -> None:
    code, made = await apply(served, "fieldManager=one&dryRun=All", config_map(k="1"))
    assert (code, owners(made)) == (201, [("one", "Apply", "", [".data.k"])])
    assert (await served.call("GET", f"{CM}/a"))[0] == 404


@pytest.mark.parametrize(
    ("query", "config", "code", "message"),
    [
        ("", {}, 422, REQUIRED),
        ("fieldManager=m", {"kind": "ConfigMap"}, 400, "invalid object type: /, Kind=ConfigMap"),
        ("fieldManager=m", [], 400, "error decoding patch: error unmarshaling JSON: while decoding JSON: json: cannot "
         "unmarshal array into Go value of type map[string]interface {}"),
        ("fieldManager=m", {**config_map(), "metadata": {"name": "a", "managedFields": []}}, 400,
         "metadata.managedFields must be nil"),
        ("fieldManager=m", {**config_map(), "odd": 1}, 500,
         "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .odd: field not declared in schema"),
    ],
)  # fmt: skip
async def test_configs_that_are_refused(served: Served, query: str, config: Any, code: int, message: str) -> None:
    found, refused = await apply(served, query, config)
    assert (found, refused["message"]) == (code, message)


async def test_a_client_without_a_manager_is_known_by_its_program(served: Served) -> None:
    _, made, _ = await served.call("POST", CM, config_map(k="1"), User_Agent="kubectl/v1.37.2 (linux/amd64)")
    assert owners(made) == [("kubectl", "Update", "", [".data", ".data.k"])]
    _, changed, _ = await served.call("PATCH", f"{CM}/a?fieldManager=p", {"data": {"j": "1"}}, Content_Type=MERGE)
    assert ("p", "Update", "", [".data.j"]) in owners(changed)


async def test_status_and_spec_are_owned_apart(served: Served) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running"},
    }
    _, made, _ = await served.call("POST", "/api/v1/namespaces/ns/pods?fieldManager=m", pod)
    assert not any(path.startswith(".status") for path in owners(made)[0][3])
    status = {"status": {"phase": "Running"}, "spec": {"activeDeadlineSeconds": 3}}
    _, changed, _ = await served.call(
        "PATCH", "/api/v1/namespaces/ns/pods/p/status?fieldManager=k", status, Content_Type=MERGE
    )
    assert ("k", "Update", "status", [".status.phase"]) in owners(changed)


async def test_scaling_is_owned_by_who_scaled(served: Served) -> None:
    path = "/apis/apps/v1/namespaces/ns/deployments"
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "r"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template},
    }
    await apply(served, "fieldManager=one", deployment, f"{path}/r")
    scale = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "r"}, "spec": {"replicas": 3}}
    code, refused = await apply(served, "fieldManager=hpa", scale, f"{path}/r/scale")
    assert (code, refused["message"]) == (409, 'Apply failed with 1 conflict: conflict with "one": .spec.replicas')
    code, scaled = await apply(served, "fieldManager=hpa&force=true", scale, f"{path}/r/scale")
    assert (code, scaled["spec"]) == (200, {"replicas": 3})
    _, found, _ = await served.call("GET", f"{path}/r")
    assert owners(found)[0] == ("hpa", "Apply", "scale", [".spec.replicas"])
    assert ".spec.replicas" not in owners(found)[1][3]


async def test_sending_one_empty_entry_resets(served: Served) -> None:
    await served.call("POST", f"{CM}?fieldManager=m", config_map(k="1"))
    reset = {"metadata": {"managedFields": [{}]}}
    _, found, _ = await served.call("PATCH", f"{CM}/a", reset, Content_Type=MERGE)
    assert "managedFields" not in found["metadata"]
