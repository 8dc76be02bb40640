"""The registry lists what v1.37 serves, as v1.37 lists it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kone.apimachinery.kinds import GVK, GVR
from kone.registry import structural
from kone.registry.core.pod import PODS
from kone.registry.registry import builtin
from kone.registry.resource import Resource
from kone.registry.strategy import Strategy

ROOT = Path(__file__).resolve().parents[2]
FACTS = Path(os.environ.get("KONE_UPSTREAM") or ROOT.parent / "shared" / "upstream") / "facts"
REGISTRY = builtin()


def _discovered(resource: Resource) -> tuple[object, ...]:
    parts = {
        name: (part.kind or resource.kind, part.verbs, part.group, part.version)
        for name, part in resource.all_subresources().items()
    }
    names = (resource.kind, resource.singular_name, resource.short_names, resource.categories)
    return (*names, resource.namespaced, resource.verbs, parts)


@pytest.mark.parametrize("listed", structural.resources(), ids=lambda each: str(each.gvr))
def test_discovery_lists_each_resource_as_upstream(listed: Resource) -> None:
    found = REGISTRY.get(listed.gvr)
    assert found is not None
    assert _discovered(found) == _discovered(listed)


@pytest.mark.skipif(not FACTS.exists(), reason="upstream's facts lie beside the checkout")
def test_v1_and_apps_have_upstreams_columns() -> None:
    columns = json.loads((FACTS / "columns.json").read_text())
    for key, wanted in columns.items():
        *group, version, plural = key.split("/")
        if group not in ([], ["apps"]):
            continue
        resource = REGISTRY.find("".join(group), version, plural)
        assert resource is not None, key
        assert [(c.name, c.type, c.format, c.priority) for c in resource.columns] == [
            (c["name"], c["type"], c["format"], c["priority"]) for c in wanted
        ], key


def test_resources_come_and_go() -> None:
    registry = builtin()
    before = registry.version
    widgets = Resource(gvr=GVR("example.com", "v1", "widgets"), kind="Widget", strategy=Strategy())
    registry.add(widgets)
    assert registry.find("example.com", "v1", "widgets") is widgets
    assert registry.by_kind(GVK("example.com", "v1", "Widget")) is widgets
    registry.remove(widgets.gvr)
    assert registry.get(widgets.gvr) is None
    assert registry.version > before
    assert REGISTRY.get(PODS.gvr) is PODS
