"""The scale subresource of custom resources, whose answers differ from those of built-in kinds."""

from __future__ import annotations

import json

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object
from kone.apiserver.context import Answer, RequestContext
from kone.apiserver.negotiation import Output
from kone.apiserver.responses import object_body
from kone.apiserver.scale import scale_of
from kone.apiserver.subresources import apply
from kone.registry.custom_resources import resources
from kone.registry.resource import Resource
from tests.apiserver.conftest import ADMIN, Full
from tests.apiserver.test_custom_resources import definition, widget

SCALED = {"scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}


@pytest.fixture
def scaled() -> Resource:
    made = definition(subresources=SCALED)
    names = {"singular": "widget", "listKind": "WidgetList", **made["spec"]["names"]}
    [resource] = resources({**made, "status": {"acceptedNames": names}})
    return resource


def test_its_table_has_upstreams_columns(scaled: Resource) -> None:
    assert scaled.scale is not None
    obj: Object = {**widget(replicas=3), "status": {"replicas": 1}}
    obj["metadata"]["creationTimestamp"] = "1970-01-01T00:00:05Z"
    output = Output("json", "Table", "meta.k8s.io/v1", False)
    body = object_body(scaled, Answer(scale_of(scaled.scale, obj)), output, "None", 10.0)
    made = json.loads(body)
    assert [(c["name"], c["type"], c["format"]) for c in made["columnDefinitions"]] == [
        ("Name", "string", "name"),
        ("Desired", "integer", ""),
        ("Available", "integer", ""),
        ("Age", "date", ""),
    ]
    assert made["rows"][0]["cells"] == ["w", 3, 1, "5s"]


async def test_nothing_can_be_applied_to_it(full: Full, scaled: Resource) -> None:
    ctx, config = RequestContext(ADMIN, field_manager="m"), {"apiVersion": "autoscaling/v1", "kind": "Scale"}
    with pytest.raises(StatusError) as refused:
        await apply(full.verbs, ctx, scaled, "scale", "w", config, namespace="ns")
    assert (refused.value.code, refused.value.message) == (
        500,
        "failed to convert new object (/; autoscaling/v1, Kind=Scale) to proper version: request to convert CR to an "
        "invalid group/version: autoscaling/v1",
    )
