"""Server-side apply's rules, each as a table: who owns what after which writes, and what conflicts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kone.apimachinery import field_sets, managedfields, typed
from kone.apimachinery.errors import StatusError
from kone.apimachinery.managedfields import Manager, Rules, Steps, T
from kone.apimachinery.structure import CUSTOM, Structure, custom

SCHEMA = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "size": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "args": {"type": "array", "items": {"type": "string"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "selector": {
                    "type": "object",
                    "x-kubernetes-map-type": "atomic",
                    "additionalProperties": {"type": "string"},
                },
                "ports": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["port", "protocol"],
                    "items": {
                        "type": "object",
                        "properties": {
                            "port": {"type": "integer"},
                            "protocol": {"type": "string", "default": "TCP"},
                            "name": {"type": "string"},
                        },
                    },
                },
            },
        }
    },
}
WIDGET = custom(SCHEMA)
SPEC = WIDGET.fields.find("spec")
ZERO: dict[str, Any] = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {}}


def settled(steps: Steps[T]) -> T:
    """Of one version only: nothing is wanted in another."""
    with pytest.raises(StopIteration) as done:
        next(steps)
    found: T = done.value.value
    return found


def rules(structure: Structure = WIDGET) -> Rules:
    return Rules(structure, ZERO, lambda fields: fields)


def widget(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec}


def applier(name: str) -> Manager:
    return Manager(name, "Apply", "example.com/v1")


def updater(name: str, subresource: str = "") -> Manager:
    return Manager(name, "Update", "example.com/v1", subresource)


def apply(live: Any, name: str, force: bool = False, **spec: Any) -> dict[str, Any]:
    steps = managedfields.applied(rules(), live, widget(**spec), applier(name), f"time of {name}", force=force)
    return settled(steps)


def update(live: Any, new: dict[str, Any], name: str, given: Any = None, time: str = "t") -> dict[str, Any]:
    entries = settled(managedfields.updated(rules(), live, new, given, updater(name), time))
    return {**new, "metadata": {**new["metadata"], "managedFields": entries}}


def owners(obj: dict[str, Any]) -> dict[str, list[str]]:
    return {e["manager"]: list(field_sets.paths(e["fieldsV1"])) for e in managedfields.entries_of(obj)}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"size": 1}, [".spec.size"]),
        ({"args": ["a", "b"]}, [".spec.args"]),
        ({"args": []}, [".spec.args"]),
        ({"tags": ["a"]}, ['.spec.tags[="a"]']),
        ({"tags": []}, []),
        ({"labels": {"a": "b"}}, [".spec.labels.a"]),
        ({"labels": {}}, [".spec.labels"]),
        ({"selector": {"a": "b"}}, [".spec.selector"]),
        (
            {"ports": [{"port": 1, "name": "n"}]},
            [
                '.spec.ports[port=1,protocol="TCP"]',
                '.spec.ports[port=1,protocol="TCP"].name',
                '.spec.ports[port=1,protocol="TCP"].port',
            ],
        ),
    ],
)
def test_what_an_apply_owns(spec: dict[str, Any], expected: list[str]) -> None:
    assert list(field_sets.paths(typed.fields_of(SPEC, spec), ".spec")) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "touched", "removed"),
    [
        ({"size": 1}, {"size": 1}, [], []),
        ({"size": 1}, {"size": 2}, [".size"], []),
        ({}, {"labels": {"a": "b"}}, [".labels", ".labels.a"], []),
        ({"labels": {}}, {"labels": {"a": "b"}}, [".labels.a"], []),
        ({"labels": {"a": "b"}}, {}, [], [".labels", ".labels.a"]),
        ({"labels": None}, {"labels": {}}, [".labels"], []),
        ({"args": ["a"]}, {"args": ["a", "b"]}, [".args"], []),
        ({"tags": ["a", "b"]}, {"tags": ["b", "c"]}, ['.tags[="c"]'], ['.tags[="a"]']),
        ({"tags": ["a", "b"]}, {"tags": ["b", "a"]}, [], []),
        ({"tags": ["a", "a"]}, {"tags": ["a"]}, ['.tags[="a"]'], []),
        ({"selector": {"a": "1", "b": "1"}}, {"selector": {"a": "2", "b": "1"}}, [".selector"], []),
        (
            {"ports": [{"port": 1, "name": "a"}]},
            {"ports": [{"port": 1, "name": "b"}]},
            ['.ports[port=1,protocol="TCP"].name'],
            [],
        ),
    ],
)
def test_what_changed(old: Any, new: Any, touched: list[str], removed: list[str]) -> None:
    found = typed.compare(SPEC, old, new)  # type: ignore[arg-type]
    assert [list(field_sets.paths(each)) for each in found] == [touched, removed]


@pytest.mark.parametrize(
    ("live", "config", "merged"),
    [
        ({"size": 1}, {"size": 2}, {"size": 2}),
        ({"args": ["a"]}, {"args": ["b"]}, {"args": ["b"]}),
        ({"tags": ["a", "b"]}, {"tags": ["c", "b"]}, {"tags": ["a", "c", "b"]}),
        ({"tags": ["a", "b", "c"]}, {"tags": ["c", "a"]}, {"tags": ["b", "c", "a"]}),
        ({"labels": {"a": "1"}}, {"labels": {"b": "2"}}, {"labels": {"a": "1", "b": "2"}}),
        ({"selector": {"a": "1"}}, {"selector": {"b": "2"}}, {"selector": {"b": "2"}}),
        (
            {"ports": [{"port": 1, "protocol": "TCP", "name": "a"}]},
            {"ports": [{"port": 1}, {"port": 2}]},
            {"ports": [{"port": 1, "protocol": "TCP", "name": "a"}, {"port": 2}]},
        ),
    ],
)
def test_merging(live: Any, config: Any, merged: Any) -> None:
    assert typed.merge(SPEC, live, config) == merged  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("left", "right", "union", "difference", "intersection"),
    [
        ({"f:a": {}}, {"f:b": {}}, {"f:a": {}, "f:b": {}}, {"f:a": {}}, {}),
        ({"f:a": {}}, {"f:a": {"f:b": {}}}, {"f:a": {".": {}, "f:b": {}}}, {"f:a": {}}, {}),
        ({"f:a": {".": {}, "f:b": {}}}, {"f:a": {}}, {"f:a": {".": {}, "f:b": {}}}, {"f:a": {"f:b": {}}}, {"f:a": {}}),
        ({"f:a": {".": {}, "f:b": {}}}, {"f:a": {"f:b": {}}}, {"f:a": {".": {}, "f:b": {}}}, {"f:a": {}},
         {"f:a": {"f:b": {}}}),
        ({"f:a": {"f:b": {}}}, {"f:a": {"f:b": {}}}, {"f:a": {"f:b": {}}}, {}, {"f:a": {"f:b": {}}}),
    ],
)  # fmt: skip
def test_set_algebra(left: Any, right: Any, union: Any, difference: Any, intersection: Any) -> None:
    assert field_sets.union(left, right) == union
    assert field_sets.difference(left, right) == difference
    assert field_sets.intersection(left, right) == intersection


def test_what_is_no_longer_applied_goes_unless_another_owns_it() -> None:
    first = apply(None, "one", size=1, labels={"a": "1", "b": "1"})
    both = apply(first, "two", labels={"b": "1"})
    left = apply(both, "one", size=1)
    assert left["spec"] == {"size": 1, "labels": {"b": "1"}}
    assert owners(left) == {"one": [".spec.size"], "two": [".spec.labels.b"]}


def test_another_value_conflicts_and_force_takes_the_field() -> None:
    live = apply(None, "one", size=1)
    with pytest.raises(StatusError) as refused:
        apply(live, "two", size=2)
    assert refused.value.message == 'Apply failed with 1 conflict: conflict with "one": .spec.size'
    assert refused.value.details == {
        "causes": [{"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".spec.size"}]
    }
    assert owners(apply(live, "two", force=True, size=2)) == {"two": [".spec.size"]}


def test_several_conflicts_are_told_by_manager() -> None:
    live = apply(None, "one", size=1)
    live = update(live, {**live, "spec": {"size": 1, "args": ["a"], "labels": {"a": "1"}}}, "edit")
    with pytest.raises(StatusError) as refused:
        apply(live, "two", size=2, args=["b"], labels={"a": "2"})
    assert refused.value.message == (
        'Apply failed with 3 conflicts: conflicts with "edit" using example.com/v1:\n- .spec.args\n- .spec.labels.a\n'
        'conflicts with "one":\n- .spec.size'
    )


def test_the_same_value_is_shared_and_the_time_of_a_no_op_stays() -> None:
    live = apply(None, "one", size=1)
    shared = apply(live, "two", size=1)
    assert owners(shared) == {"one": [".spec.size"], "two": [".spec.size"]}
    assert [entry.get("time") for entry in managedfields.entries_of(shared)] == [None, "time of one"]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"odd": 1}, ".spec.odd: field not declared in schema"),
        ({"tags": ["a", "a"]}, '.spec.tags: duplicate entries for key [="a"]'),
        ({"ports": [{"port": 1}, {"port": 1}]}, '.spec.ports: duplicate entries for key [port=1,protocol="TCP"]'),
        ({"labels": ["x"]}, ".spec.labels: expected map, got &{[x]}"),
        ({"labels": {"a": 1}}, ".spec.labels.a: expected string, got &value.valueUnstructured{Value:1}"),
    ],
)
def test_a_config_that_does_not_fit(spec: dict[str, Any], problem: str) -> None:
    with pytest.raises(StatusError) as refused:
        apply(None, "one", **spec)
    assert refused.value.code == 500
    assert refused.value.message == (
        f"failed to create typed patch object (/w; example.com/v1, Kind=Widget): {problem}"
    )


def test_what_an_update_left_that_no_apply_can_name_keeps_everyone_from_applying() -> None:
    live = update(None, widget(tags=[None]), "creator")
    with pytest.raises(StatusError) as refused:
        apply(live, "one", tags=["a"])
    assert refused.value.code == 500
    assert refused.value.message.startswith(
        "failed to create typed live object (/w; example.com/v1, Kind=Widget): .spec.tags: element 0: "
    )


def test_an_update_owns_what_it_changed_and_takes_it_from_others() -> None:
    live = apply(None, "one", size=1, labels={"a": "1"})
    changed = update(live, {**live, "spec": {"size": 2, "labels": {"a": "1"}}}, "edit")
    assert owners(changed) == {"one": [".spec.labels.a"], "edit": [".spec.size"]}


def test_who_owns_nothing_any_more_has_no_entry() -> None:
    live = update(None, widget(size=1), "creator")
    assert list(owners(update(live, {**live, "spec": {}}, "edit"))) == ["creator"]  # .spec is still the creator's
    gone = {**live}
    del gone["spec"]
    assert owners(update(live, gone, "edit")) == {}


def test_objects_without_entries_stay_without_until_the_first_apply() -> None:
    live = widget(size=1)
    changed = update(live, widget(size=2), "edit")
    assert managedfields.entries_of(changed) == []
    assert owners(apply(changed, "one", labels={"a": "1"})) == {
        "one": [".spec.labels.a"],
        "before-first-apply": [".spec", ".spec.size"],
    }


@pytest.mark.parametrize(
    ("given", "managers"),
    [
        ([{}], []),
        ([], ["creator", "edit"]),
        ([{"manager": "m", "operation": "Odd"}], ["creator", "edit"]),
        (
            [
                {
                    "manager": "m",
                    "operation": "Update",
                    "apiVersion": "example.com/v1",
                    "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": {"f:tags": {}}},
                }
            ],
            ["edit", "m"],
        ),
    ],
)
def test_entries_that_a_client_sends(given: Any, managers: list[str]) -> None:
    live = update(None, widget(size=1), "creator")
    assert sorted(owners(update(live, widget(size=2), "edit", given))) == managers


def test_ten_updaters_are_kept_and_older_ones_put_together() -> None:
    live = update(None, widget(size=0), "m00", time="00")
    for i in range(1, 13):
        live = update(
            live, widget(labels={**(live["spec"].get("labels") or {}), f"k{i}": ""}), f"m{i:02}", time=f"{i:02}"
        )
    names = [entry["manager"] for entry in managedfields.entries_of(live)]
    assert len(names) == 10
    assert names[0] == "ancient-changes"
    assert names[1:] == [f"m{i:02}" for i in range(4, 13)]


def test_kubectl_takes_what_its_own_client_side_apply_wrote() -> None:
    text = '{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w"},"spec":{"size":1}}'
    made = widget(size=1)
    made["metadata"]["annotations"] = {managedfields.LAST_APPLIED: text}
    live = update(None, made, "kubectl-client-side-apply")
    migrated = apply(live, "kubectl", size=2)
    assert migrated["spec"] == {"size": 2}
    assert '"size":2' in migrated["metadata"]["annotations"][managedfields.LAST_APPLIED]
    with pytest.raises(StatusError):
        apply(live, "other", size=2)


def test_a_custom_resource_without_a_schema_has_granular_maps_and_atomic_lists() -> None:
    anything = Rules(CUSTOM, ZERO, lambda fields: fields)
    made = settled(managedfields.updated(anything, None, widget(size={"a": [1]}), None, updater("m"), "t"))
    assert made[0]["fieldsV1"] == {"f:spec": {".": {}, "f:size": {".": {}, "f:a": {}}}}


def test_fields_are_written_in_order_at_every_level() -> None:
    fields = {"f:spec": {"f:b": {}, "f:a": {'k:{"name":"c"}': {"f:x": {}, ".": {}}}}, "f:metadata": {}}
    written = Manager("m", "Update", "v1").entry(fields, "")["fieldsV1"]
    assert json.dumps(written) == json.dumps(fields, sort_keys=True)
