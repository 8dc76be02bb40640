"""LimitRanges: bounds and defaults of what containers, pods and claims ask for."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from kone.apimachinery.errors import FieldError, duplicate, forbidden_field, invalid_value, required
from kone.apimachinery.kinds import LIMITRANGES as GVR_LIMITRANGES
from kone.apimachinery.names import is_qualified_name
from kone.apimachinery.objects import Object
from kone.apimachinery.quantity import Quantity
from kone.apimachinery.users import User
from kone.registry.core.resource_rules import container_resource_name, is_overcommit_allowed, quantity, resource_name
from kone.registry.resource import CREATED_AT, NAME, Resource
from kone.registry.rules import Errors, check
from kone.registry.strategy import Strategy

_TYPES = ("Container", "PersistentVolumeClaim", "Pod")
_NOT_OF_PODS = "may not be specified when `type` is 'Pod'"
_MAX_MILLI_VALUE = ((1 << 63) - 1) // 1000


class _LimitRange(Strategy):
    create_on_update = True

    def default(self, obj: Object) -> None:
        for limit in obj.setdefault("spec", {}).get("limits") or ():
            if limit.get("type") != "Container":
                continue
            default = limit["default"] = {**(limit.get("max") or {}), **(limit.get("default") or {})}
            given = limit.get("defaultRequest") or {}
            limit["defaultRequest"] = {**(limit.get("min") or {}), **default, **given}
            for field in ("default", "defaultRequest"):
                if not limit[field]:
                    del limit[field]

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is None and not obj["metadata"].get("name"):
            obj["metadata"]["name"] = str(uuid.uuid4())

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        seen: set[str] = set()
        for i, limit in enumerate(obj["spec"].get("limits") or ()):
            path, kind = f"spec.limits[{i}]", limit.get("type", "")
            _type(errors, f"{path}.type", kind)
            if kind in seen:
                errors.append(duplicate(f"{path}.type", kind))
            seen.add(kind)
            _limit(errors, path, limit, kind)
        return errors


def _type(errors: Errors, path: str, kind: str) -> None:
    wrong = is_qualified_name(kind)
    check(errors, path, kind, wrong)
    if not wrong and "/" not in kind and kind not in _TYPES:
        errors.append(invalid_value(path, kind, "must be a standard limit type or fully qualified"))


def _limit(errors: Errors, path: str, limit: Mapping[str, Any], kind: str) -> None:
    """What is given must be named rightly, then agree."""
    found: dict[str, Mapping[str, Any]] = {}
    name_rule = container_resource_name if kind in ("Pod", "Container") else resource_name
    for field in ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio"):
        amounts = limit.get(field) or {}
        if kind == "Pod" and field in ("default", "defaultRequest"):
            if amounts:
                errors.append(forbidden_field(f"{path}.{field}", _NOT_OF_PODS))
            continue
        if field == "maxLimitRequestRatio" and kind == "PersistentVolumeClaim":
            _claim(errors, path, found)
        for name in amounts:
            name_rule(errors, f"{path}.{field}[{name}]", name)
        found[field] = amounts
    for name in sorted({name for amounts in found.values() for name in amounts}):
        of_name = {field: quantity(amounts[name]) for field, amounts in found.items() if name in amounts}
        _amounts(errors, path, name, of_name)


def _claim(errors: Errors, path: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    if "storage" not in found["min"] and "storage" not in found["max"]:
        text = "either minimum or maximum storage value is required, but neither was provided"
        errors.append(required(f"{path}.limits", text))


_ORDER = (
    # (smaller, its name in the text, larger, its name in the text, the field that is blamed, whose value is shown)
    ("min", "min value", "max", "max value", "min", "min"),
    ("min", "min value", "defaultRequest", "default request value", "defaultRequest", "defaultRequest"),
    ("defaultRequest", "default request value", "max", "max value", "defaultRequest", "defaultRequest"),
    ("defaultRequest", "default request value", "default", "default limit value", "defaultRequest", "defaultRequest"),
    ("min", "min value", "default", "default value", "default", "min"),
    ("default", "default value", "max", "max value", "default", "max"),
)


def _amounts(errors: Errors, path: str, name: str, found: Mapping[str, Quantity]) -> None:
    for small, small_text, large, large_text, blamed, shown in _ORDER:
        if small in found and large in found and found[small] > found[large]:
            low, high = found[small].canonical(), found[large].canonical()
            text = f"{small_text} {low} is greater than {large_text} {high}"
            errors.append(invalid_value(f"{path}.{blamed}[{name}]", found[shown].canonical(), text))
    ratio = found.get("maxLimitRequestRatio")
    if ratio is not None:
        _ratio(errors, f"{path}.maxLimitRequestRatio[{name}]", ratio, found.get("min"), found.get("max"))
    default, request = found.get("default"), found.get("defaultRequest")
    if default is not None and request is not None and default != request and not is_overcommit_allowed(name):
        text = f"default value {default.canonical()} must equal to defaultRequest value {request.canonical()} in {name}"
        errors.append(invalid_value(f"{path}.defaultRequest[{name}]", request.canonical(), text))


def _ratio(errors: Errors, path: str, ratio: Quantity, low: Quantity | None, high: Quantity | None) -> None:
    shown = ratio.canonical()
    if ratio < Quantity(1_000_000_000):
        errors.append(invalid_value(path, shown, f"ratio {shown} is less than 1"))
    if low is None or high is None:
        return
    value, least, most = float(ratio.value()), low.value(), high.value()
    if max(value, least, most) < _MAX_MILLI_VALUE:
        value, least, most = ratio.milli() / 1000, low.milli(), high.milli()
    bound = most / least if least else float("inf")
    if value > bound:
        errors.append(invalid_value(path, shown, f"ratio {shown} is greater than max/min = {bound:f}"))


LIMITRANGES = Resource(
    gvr=GVR_LIMITRANGES,
    kind="LimitRange",
    short_names=("limits",),
    strategy=_LimitRange(),
    columns=(NAME, CREATED_AT),
)
