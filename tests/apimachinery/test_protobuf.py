"""Protobuf bodies: those that Go's marshaller made are read as Go reads them, and what is written reads back the
same.
"""

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kone.apimachinery import protobuf, schema
from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import gvk_of
from kone.apimachinery.protowire import field_bytes
from tests.apimachinery.strategies import objects

RECORDED = json.loads(Path(__file__).with_name("protobuf_bodies.json").read_text())
"""Bodies as k8s.io/apimachinery v0.37.2 writes them, and the same objects as its JSON: {"protobuf": base64, "json":
…}.
"""

KINDS = [
    gvk
    for gvk in schema.kinds()
    if not gvk.kind.endswith(("Options", "List", "Status", "WatchEvent", "APIGroup", "APIVersions"))
]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["json"]["kind"])
def test_a_recorded_body_reads_as_its_json(recorded: dict[str, Any]) -> None:
    obj = protobuf.decode(base64.b64decode(recorded["protobuf"]))
    assert schema.decode(obj, gvk_of(obj)) == (recorded["json"], [])


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["json"]["kind"])
def test_what_is_written_reads_back(recorded: dict[str, Any]) -> None:
    obj = protobuf.decode(protobuf.encode(recorded["json"]))
    assert schema.decode(obj, gvk_of(obj)) == (recorded["json"], [])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=150)
@given(st.data())
def test_any_object_of_any_kind_reads_back(data: st.DataObject) -> None:
    gvk = data.draw(st.sampled_from(KINDS))
    found = schema.definition_of(gvk)
    assert found is not None
    body = {"apiVersion": gvk.api_version, "kind": gvk.kind, **data.draw(objects(found.name))}
    obj, _ = schema.decode(body, gvk)
    back, unknown = schema.decode(protobuf.decode(protobuf.encode(obj)), gvk)
    assert (back, unknown) == (obj, [])


def test_zeros_behind_pointers_are_kept_and_other_zeros_dropped() -> None:
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "spec": {"replicas": 0, "paused": False, "minReadySeconds": 0},
    }
    assert protobuf.decode(protobuf.encode(body))["spec"] == {"replicas": 0}


def test_unknown_field_numbers_are_skipped() -> None:
    body = protobuf.encode({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}})
    # The object's message is field 2 of the envelope; a field 99 of each wire type is put in front of its own.
    unknown = b"\x98\x06\x01" + b"\x99\x06" + bytes(8) + b"\x9a\x06\x01x" + b"\x9d\x06" + bytes(4)
    head, raw = body[:4], body[4:]
    at = raw.index(b"\x12", 2 + raw[1])
    size = raw[at + 1]
    changed = raw[:at] + b"\x12" + bytes([size + len(unknown)]) + unknown + raw[at + 2 :]
    assert protobuf.decode(head + changed)["data"] == {"a": "b"}


@pytest.mark.parametrize("body", [b"", b"{}", b"k8s\x00\xff", b"k8s\x00\x0a\x05v1", b"k8s\x00\x0f"])
def test_bytes_that_are_no_body(body: bytes) -> None:
    with pytest.raises(StatusError) as caught:
        protobuf.decode(body)
    assert caught.value.code == 400


@given(st.binary(max_size=60))
def test_hostile_bytes_are_refused_and_nothing_else(data: bytes) -> None:
    envelope = b"k8s\x00\x0a\x09\x0a\x02v1\x12\x03Pod\x12"
    with contextlib.suppress(StatusError):
        protobuf.decode(envelope + bytes([len(data)]) + data)


def test_deep_nesting_is_refused() -> None:
    nested: Any = {}
    for _ in range(150):
        nested = {"not": nested}
    crd = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    versions = [{"name": "v1", "schema": {"openAPIV3Schema": nested}}]
    shallow = protobuf.encode({**crd, "spec": {"versions": versions}})
    assert protobuf.decode(shallow)["spec"]["versions"] == versions
    inner = b""
    for _ in range(3000):  # what no encoder of ours could write
        inner = field_bytes(schema.definition("apiextensions.v1.JSONSchemaProps").fields["not"].number, inner)
    for identifier, name in (
        ("apiextensions.v1.CustomResourceValidation", "openAPIV3Schema"),
        ("apiextensions.v1.CustomResourceDefinitionVersion", "schema"),
        ("apiextensions.v1.CustomResourceDefinitionSpec", "versions"),
        ("apiextensions.v1.CustomResourceDefinition", "spec"),
    ):
        inner = field_bytes(schema.definition(identifier).fields[name].number, inner)
    envelope = protobuf.encode(crd)
    type_meta = envelope[: 6 + envelope[5]]
    with pytest.raises(StatusError) as caught:
        protobuf.decode(type_meta + field_bytes(2, inner))
    assert caught.value.code == 400
