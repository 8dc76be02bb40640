"""Plays a body through a kind's rules as the API's write path does, without server, admission and store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kone.apimachinery.errors import StatusError, invalid
from kone.apimachinery.kinds import GVK, parse_api_version
from kone.apimachinery.objects import Object, deep_copy
from kone.apimachinery.schema import DecodeError, decode
from kone.apimachinery.users import User
from kone.registry import generic
from kone.registry.registry import builtin
from kone.registry.resource import Resource
from kone.registry.strategy import Strategy

REGISTRY = builtin()
NAMESPACE = "default"
_USER = User("tester")
_CREATED = "2026-01-01T00:00:00Z"
_TITLES = "Required|Invalid|Duplicate|Unsupported|Forbidden|Too long|Too many|Not found|Internal error"
_ITEMS = re.compile(rf", (?=\S+: (?:{_TITLES}))")


@dataclass(frozen=True)
class Answer:
    """What the API would say: the message of an Invalid, else the warnings and what it would store."""

    error: str
    warnings: Sequence[str] = ()
    object: Object | None = None


def resource_of(body: Object) -> Resource:
    found = REGISTRY.by_kind(GVK(*parse_api_version(body["apiVersion"]), body["kind"]))
    assert found is not None, body["kind"]
    return found


def strategy_of(resource: Resource, subresource: str) -> Strategy:
    strategy = resource.all_subresources()[subresource].strategy if subresource else resource.strategy
    assert strategy is not None
    return strategy


def answer(body: Object, old: Object | None = None, subresource: str = "") -> Answer:
    """A create of `body`, or an update that would replace `old` with it."""
    resource = resource_of(body)
    strategy = strategy_of(resource, subresource)
    try:
        new = _decoded(resource, strategy, body)
        if old is None:
            return _created(resource, strategy, new)
        return _updated(resource, strategy, new, _decoded(resource, strategy, old))
    except (DecodeError, StatusError) as error:
        return Answer(str(error))


def _decoded(resource: Resource, strategy: Strategy, body: Object) -> Object:
    obj, _ = decode(deep_copy(body), resource.gvk)
    metadata = obj.setdefault("metadata", {})
    strategy.default(obj)
    if resource.namespaced:
        metadata.setdefault("namespace", NAMESPACE)
    return obj


def _created(resource: Resource, strategy: Strategy, obj: Object) -> Answer:
    generic.fill_system_fields(obj, uid="u", creation_timestamp=_CREATED)
    told = list(strategy.prepare(obj, None, user=_USER) or ())
    errors = generic.validate_create(obj, strategy, namespaced=resource.namespaced)
    return _answer(resource, strategy, obj, None, errors, told)


def _updated(resource: Resource, strategy: Strategy, obj: Object, old: Object) -> Answer:
    for each in (obj, old):
        each["metadata"].update(uid="u", resourceVersion="1")
    generic.keep_generation(obj, old)
    told = list(strategy.prepare(obj, old, user=_USER) or ())
    generic.keep_system_fields(obj, old)
    errors = generic.validate_update(obj, old, strategy, namespaced=resource.namespaced)
    return _answer(resource, strategy, obj, old, errors, told)


def _answer(
    resource: Resource, strategy: Strategy, obj: Object, old: Object | None, errors: Sequence[Any], told: list[str]
) -> Answer:
    if errors:
        kind = GVK(resource.storage_key[0], "", resource.kind).group_kind
        return Answer(invalid(kind, obj["metadata"].get("name", ""), errors).message)
    return Answer("", [*told, *strategy.warnings(obj, old)], decode(obj, resource.gvk)[0])


def put(obj: Object, path: str, value: Any) -> None:
    """Set a field by its path, "spec.containers.0.name", making what is not there yet; in place."""
    steps: list[str | int] = [int(step) if step.isdigit() else step for step in path.split(".")]
    at: Any = obj
    for step, following in pairwise(steps):
        wanted = list if isinstance(following, int) else dict
        if isinstance(step, int):
            while len(at) <= step:
                at.append({})
        elif not isinstance(at.get(step), wanted):
            at[step] = wanted()
        at = at[step]
    if isinstance(steps[-1], int):
        while len(at) <= steps[-1]:
            at.append(None)
    at[steps[-1]] = deep_copy(value)


def without(obj: Object, path: str) -> None:
    """Take a field or an item away; in place."""
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    at: Any = obj
    for step in steps:
        at = at[step]
    del at[last]


def findings_of(error: str) -> set[str]:
    """The findings of an Invalid as a set: what Go does in the order of a map comes in any order."""
    head, _, rest = error.partition(" is invalid: ")
    return {head, *_ITEMS.split(re.sub(r"\[\](?![.:])|\{\}", "null", rest.removeprefix("[").removesuffix("]")))}


def timeless(value: Any) -> Any:
    """Without what is empty, and without what the clock says."""
    if isinstance(value, dict):
        kept = (key for key in value if not key.endswith(("Timestamp", "TransitionTime")))
        return {key: inner for key in kept if (inner := timeless(value[key])) not in (None, [], {})}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value
