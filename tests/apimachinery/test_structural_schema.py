"""What a custom resource's schema prunes, defaults and drops, and which lists it holds to be sets and maps."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from kone.apimachinery.structural_schema import (
    MetadataError,
    decode_metadata,
    drop_nulls,
    embedded_objects,
    list_findings,
    parse,
    prune,
    set_defaults,
)

STRING = {"type": "string"}


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


ROOT = parse(
    obj(
        spec=obj(
            a=STRING,
            o=obj(b=STRING),
            l={"type": "array", "items": obj(c=STRING)},
            m={"type": "object", "additionalProperties": obj(d=STRING)},
            p={**obj(known=obj(e=STRING)), "x-kubernetes-preserve-unknown-fields": True},
            any={"x-kubernetes-preserve-unknown-fields": True},
            em={**obj(spec=obj(f=STRING)), "x-kubernetes-embedded-resource": True},
        )
    )
)


@pytest.mark.parametrize(
    ("spec", "kept", "dropped"),
    [
        ({"a": "x", "z": 1}, {"a": "x"}, ["spec.z"]),
        ({"o": {"b": "x", "z": 1}}, {"o": {"b": "x"}}, ["spec.o.z"]),
        ({"l": [{"c": "x", "z": 1}]}, {"l": [{"c": "x"}]}, ["spec.l[0].z"]),
        ({"m": {"k": {"d": "x", "z": 1}}}, {"m": {"k": {"d": "x"}}}, ["spec.m.k.z"]),
        ({"p": {"z": {"y": 1}, "known": {"z": 1}}}, {"p": {"z": {"y": 1}, "known": {}}}, ["spec.p.known.z"]),
        ({"any": {"deep": [1, {"b": None}]}}, {"any": {"deep": [1, {"b": None}]}}, []),
        ({"any": "text"}, {"any": "text"}, []),
        (
            {"em": {"apiVersion": "v1", "kind": "Foo", "metadata": {"name": "x"}, "spec": {"f": "x", "z": 1}, "zz": 1}},
            {"em": {"apiVersion": "v1", "kind": "Foo", "metadata": {"name": "x"}, "spec": {"f": "x"}}},
            ["spec.em.spec.z", "spec.em.zz"],
        ),
    ],
)
def test_what_is_not_named_is_pruned(spec: Any, kept: Any, dropped: list[str]) -> None:
    found = {"apiVersion": "e/v1", "kind": "W", "metadata": {"name": "w"}, "spec": deepcopy(spec)}
    assert prune(found, ROOT) == dropped
    assert found == {"apiVersion": "e/v1", "kind": "W", "metadata": {"name": "w"}, "spec": kept}


DEFAULTS = parse(
    obj(
        n={"type": "integer", "default": 1},
        nullable={"type": "integer", "default": 1, "nullable": True},
        plain=STRING,
        o={**obj(x={"type": "string", "default": "y"}), "default": {}},
        l={"type": "array", "items": obj(k={"type": "string", "default": "v"})},
        m={"type": "object", "additionalProperties": {"type": "integer", "default": 7}},
    )
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"n": 1, "nullable": 1, "o": {"x": "y"}}),
        ({"n": 0, "nullable": None, "o": {"x": "z"}}, {"n": 0, "nullable": None, "o": {"x": "z"}}),
        ({"n": None, "plain": None}, {"n": 1, "nullable": 1, "o": {"x": "y"}}),
        ({"l": [{}, {"k": "w"}]}, {"n": 1, "nullable": 1, "o": {"x": "y"}, "l": [{"k": "v"}, {"k": "w"}]}),
        ({"m": {"a": 1}}, {"n": 1, "nullable": 1, "o": {"x": "y"}, "m": {"a": 1}}),
    ],
)
def test_defaults_fill_what_is_missing_or_may_not_be_null(given: Any, expected: Any) -> None:
    found = deepcopy(given)
    drop_nulls(found, DEFAULTS)
    set_defaults(found, DEFAULTS)
    assert found == expected


def test_a_default_is_never_shared_between_objects() -> None:
    one: dict[str, Any] = {}
    two: dict[str, Any] = {}
    set_defaults(one, DEFAULTS)
    set_defaults(two, DEFAULTS)
    one["o"]["x"] = "changed"
    assert two["o"] == {"x": "y"}


LISTS = parse(
    obj(
        set={"type": "array", "x-kubernetes-list-type": "set", "items": STRING},
        map={
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["k", "p"],
            "items": obj(k=STRING, p=STRING, v=STRING),
        },
        atomic={"type": "array", "items": STRING},
    )
)


@pytest.mark.parametrize(
    ("value", "findings"),
    [
        ({"set": ["a", "b"], "atomic": ["a", "a"]}, []),
        ({"set": ["a", "b", "a"]}, ['set[2]: Duplicate value: "a"']),
        ({"map": [{"k": "a", "p": "1"}, {"k": "a", "p": "2"}]}, []),
        ({"map": [{"k": "a", "v": "1"}, {"k": "a", "v": "2"}]}, ['map[1]: Duplicate value: {"k":"a"}']),
    ],
)
def test_sets_and_maps_hold_nothing_twice(value: Any, findings: list[str]) -> None:
    assert [str(each) for each in list_findings(value, LISTS)] == findings


def test_metadata_is_read_as_every_objects() -> None:
    found = {"metadata": {"name": "a", "foo": 1, "labels": {"a": "b"}}}
    assert decode_metadata(found) == ["metadata.foo"]
    assert found == {"metadata": {"name": "a", "labels": {"a": "b"}}}
    with pytest.raises(MetadataError, match="cannot unmarshal number into Go struct field"):
        decode_metadata({"metadata": {"labels": {"a": 1}}})
    with pytest.raises(MetadataError, match=r"^spec\.em\.metadata: Invalid value: \"x\": json: cannot unmarshal"):
        decode_metadata({"metadata": "x"}, "spec.em")


def test_embedded_objects_are_found_with_their_paths() -> None:
    found = {"spec": {"em": {"kind": "Foo"}}}
    assert list(embedded_objects(found, ROOT)) == [({"kind": "Foo"}, "spec.em")]
