"""OpenAPI v3: what is said of kinds and fields where their documentation is installed, and that it is no must."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kone.apiserver import prose
from kone.apiserver.openapi import OpenApi
from kone.registry.registry import builtin

POD = "io.k8s.api.core.v1.Pod"


def schemas(path: str, documents: OpenApi | None = None) -> dict[str, Any]:
    found = (documents or OpenApi(builtin())).document(path)
    assert found is not None
    return json.loads(found)["components"]["schemas"]  # type: ignore[no-any-return]


def test_kinds_fields_and_special_types_are_described() -> None:
    found = schemas("api/v1")
    assert found[POD]["description"].startswith("Pod is a collection of containers that can run on a host.")
    spec = found[POD]["properties"]["spec"]
    assert spec["description"].startswith("Specification of the desired behavior of the pod.")
    assert spec["allOf"] == [{"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}]
    assert found["io.k8s.apimachinery.pkg.apis.meta.v1.Time"]["description"].startswith("Time is a wrapper")


def test_a_machine_without_the_texts_serves_the_same_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    described = OpenApi(builtin())
    with_texts, index = schemas("apis/batch/v1", described), described.index()
    monkeypatch.setattr(prose, "source", lambda: None)
    monkeypatch.setattr(prose, "of_type", lambda name: {})
    bare = OpenApi(builtin())
    assert schemas("apis/batch/v1", bare) == without_texts(with_texts)
    assert bare.index() != index, "what clients keep by its hash is another document"


def without_texts(value: Any) -> Any:
    """The same without descriptions; fields may be called so."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key != "description" or not isinstance(each, str)}
        return {key: without_texts(each) for key, each in kept.items()}
    return [without_texts(each) for each in value] if isinstance(value, list) else value


def test_no_texts_are_looked_for_in_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prose, "KUBERNETES_VERSION", "v1.2.3")
    assert prose.source.__wrapped__() is None


@pytest.mark.parametrize("path", ["api/v1", "apis/apps/v1", "apis/admissionregistration.k8s.io/v1"])
def test_no_list_is_empty_since_go_reads_it_as_none_and_writes_another_document(path: str) -> None:
    found = OpenApi(builtin()).document(path)
    assert found is not None
    assert list(empty_lists(json.loads(found), path)) == []


def empty_lists(value: Any, place: str) -> Any:
    if value == []:
        yield place
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in below:
        yield from empty_lists(each, f"{place}.{key}")
