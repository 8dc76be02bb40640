"""Every GA resource of v1.37 as the API lists it: the kinds that have no module of their own yet stand on this alone.

Such a kind is named, found, stored, watched and checked against the schema like any other; it has no defaults and no
rules beyond those of all metadata. `registry.builtin()` puts the kinds with modules over these.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from kone.apimachinery.kinds import GVR
from kone.registry.resource import Resource, ScaleSpec, Subresource
from kone.registry.strategy import StatusStrategy, Strategy, path_segment

_PATH_SEGMENT_GROUPS = ("rbac.authorization.k8s.io",)  # their names may hold what a URL's segment may, e.g. colons


class _Structural(Strategy):
    """No defaults, no rules."""


class _PathSegment(Strategy):
    """The same, for kinds whose names may be anything that fits into a URL."""

    name_rule = staticmethod(path_segment)


def resources() -> list[Resource]:
    """The table as Resources, in upstream's order."""
    table: dict[str, Any] = json.loads((files(__package__) / "data" / "resources.json").read_bytes())
    return [_resource(key, facts) for key, facts in table.items()]


def _resource(key: str, facts: dict[str, Any]) -> Resource:
    group, version, plural = key.split("/")
    group = "" if group == "core" else group
    strategy = _PathSegment() if group in _PATH_SEGMENT_GROUPS else _Structural()
    parts = facts["subresources"]
    return Resource(
        gvr=GVR(group, version, plural),
        kind=facts["kind"],
        strategy=strategy,
        namespaced=facts["namespaced"],
        singular=facts["singular"],
        short_names=tuple(facts["shortNames"]),
        categories=tuple(facts["categories"]),
        verbs=tuple(facts["verbs"]),
        status=StatusStrategy(strategy) if "status" in parts else None,
        scale=ScaleSpec() if "scale" in parts else None,
        subresources={name: _subresource(part) for name, part in parts.items() if name not in ("status", "scale")},
        virtual="get" not in facts["verbs"],
    )


def _subresource(part: dict[str, Any]) -> Subresource:
    return Subresource(part["kind"], tuple(part["verbs"]), part.get("group", ""), part.get("version", ""))
