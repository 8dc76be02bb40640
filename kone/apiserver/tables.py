"""Tables and metadata-only answers: what `kubectl get` prints, made from the columns of a resource."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kone.apimachinery.errors import bad_request, go_quote
from kone.apimachinery.objects import Object, metadata
from kone.registry.resource import DEFAULT_COLUMNS, Resource

Include = Literal["None", "Metadata", "Object"]


def parse_include(value: str) -> Include:
    """?includeObject= of a table request. Raises 400."""
    if value in ("", "Metadata"):
        return "Metadata"
    if value == "None":
        return "None"
    if value == "Object":
        return "Object"
    raise bad_request(
        f"Unable to convert to Table as requested: includeObject: Invalid value: {go_quote(value)}: "
        "must be 'Metadata', 'Object', 'None', or empty"
    )


def partial_metadata(obj: Object, meta_version: str) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": meta_version, "metadata": metadata(obj)}


def column_definitions(resource: Resource) -> list[Object]:
    return [
        {"name": c.name, "type": c.type, "format": c.format, "description": "", "priority": c.priority}
        for c in resource.columns
    ]


def table(
    resource: Resource,
    objects: Sequence[Object],
    list_metadata: Object,
    *,
    meta_version: str,
    include: Include,
    now: float,
    definitions: bool = True,
) -> Object:
    """A Table of these objects; `now` (Unix seconds) is what ages are counted to."""
    rows = [_row(resource, obj, meta_version, include, now) for obj in objects]
    empty: list[Object] | None = None if resource.null_rows or resource.columns == DEFAULT_COLUMNS else []
    return {
        "kind": "Table",
        "apiVersion": meta_version,
        "metadata": list_metadata,
        "columnDefinitions": column_definitions(resource) if definitions else None,
        "rows": rows or empty,
    }


def _row(resource: Resource, obj: Object, meta_version: str, include: Include, now: float) -> Object:
    row: Object = {"cells": [column.cell(obj, now) for column in resource.columns]}
    conditions = _row_conditions(resource, obj)
    if conditions:
        row["conditions"] = conditions
    if include == "Metadata":
        row["object"] = partial_metadata(obj, meta_version)
    else:
        row["object"] = obj if include == "Object" else None
    return row


def _row_conditions(resource: Resource, obj: Object) -> list[Object]:
    """Rows of finished pods and jobs say so, so that printers may leave them out."""
    if resource.kind == "Pod":
        status = obj.get("status") or {}
        why = {"Succeeded": "Succeeded", "Failed": "Failed"}.get(status.get("phase", ""))
        if why is None:
            return []
        message = "The pod has completed successfully." if why == "Succeeded" else "The pod failed."
        return [{"type": "Completed", "status": "True", "reason": why, "message": message}]
    return []
