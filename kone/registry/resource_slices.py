"""The rules of ResourceSlices: the devices of a pool, as their driver offers them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from kone.apimachinery.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    go_quote,
    invalid_value,
    required,
    too_long,
    too_many,
)
from kone.apimachinery.names import is_dns1123_subdomain
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.registry import device_rules as rules
from kone.registry.core.pod_scheduling import node_selector
from kone.registry.equality import same
from kone.registry.generic import IMMUTABLE, NOT_NEGATIVE
from kone.registry.internal import internal
from kone.registry.rules import Errors, check
from kone.registry.strategy import SpecStrategy

_MAX_DEVICES, _MAX_ADVANCED_DEVICES = 128, 64
_MAX_COUNTER_SETS, _MAX_COUNTERS, _MAX_CONSUMPTIONS = 8, 32, 2
_MAX_ATTRIBUTES, _MAX_ATTRIBUTE_VALUES, _MAX_VALUE = 32, 48, 64
_MAX_TAINTS, _MAX_OPTIONS = 16, 10
_VALUES = ("int", "bool", "string", "version")
_ALL_VALUES = "`int`, `bool`, `string`, `version`, `ints`, `bools`, `strings`, `versions`"
_ALPHA_VALUES = ("ints", "bools", "strings", "versions")
_NUMBER, _PART = r"(0|[1-9]\d*)", r"(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
_SEMVER = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-{_PART}(\.{_PART})*)?(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?", re.ASCII
)
_MAX_INT64 = 2**63 - 1
_WHERE = ("nodeName", "nodeSelector", "allNodes")


class ResourceSliceStrategy(SpecStrategy):
    has_status = False

    def default(self, obj: Object) -> None:
        for device in dig(obj, "spec", "devices", default=()):
            for taint in device.get("taints") or ():
                if taint.get("timeAdded") is None:
                    taint["timeAdded"] = format_time(time.time())

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        _drop_alpha(obj.get("spec") or {})

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        _slice(errors, later, "spec", obj.get("spec") or {}, None if old is None else old.get("spec") or {})
        return errors + later

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        driver = dig(obj, "spec", "driver", default="")
        if driver != driver.lower():
            yield (f"spec.driver: driver names should be lowercase; {go_quote(driver)} contains uppercase characters")

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        spec = obj.get("spec") or {}
        return {
            "spec.nodeName": spec.get("nodeName") or "",
            "spec.driver": spec.get("driver", ""),
            "spec.pool.name": dig(spec, "pool", "name", default=""),
        }


def _drop_alpha(spec: Object) -> None:
    """Take out, in place, what only features that v1.37 has off would read."""
    for field in ("partitionTypeAttribute", "skipNodeOperations"):
        spec.pop(field, None)
    for device in spec.get("devices") or ():
        device.pop("nodeAllocatableResources", None)
        for consumption in device.get("consumesCounters") or ():
            consumption.pop("compatibilityGroups", None)
        for attribute in (device.get("attributes") or {}).values():
            for field in _ALPHA_VALUES:
                attribute.pop(field, None)


def _slice(errors: Errors, later: Errors, path: str, spec: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    pool = spec.get("pool") or {}
    rules.driver_name(errors, f"{path}.driver", spec.get("driver", ""))
    rules.pool_name(errors, f"{path}.pool.name", pool.get("name", ""))
    count, generation = pool.get("resourceSliceCount", 0), pool.get("generation", 0)
    if count <= 0:
        errors.append(invalid_value(f"{path}.pool.resourceSliceCount", count, "must be greater than zero"))
    if generation < 0:
        why = "must be greater than or equal to zero"
        errors.append(invalid_value(f"{path}.pool.generation", generation, why))
    if before is not None:
        for field in (("pool", "name"), ("driver",), ("nodeName",)):
            if dig(spec, *field) != dig(before, *field):
                errors.append(invalid_value(f"{path}.{'.'.join(field)}", dig(spec, *field), IMMUTABLE))
    _nodes(errors, path, spec)
    if spec.get("sharedCounters") is not None and spec.get("devices") is not None:
        errors.append(invalid_value(path, "", "only one of `sharedCounters` or `devices` is allowed"))
    _devices(errors, later, f"{path}.devices", spec, before)
    counters, at = spec.get("sharedCounters") or (), f"{path}.sharedCounters"
    if rules.each(errors, later, at, counters, _MAX_COUNTER_SETS, partial(_counters, later, "name")):
        rules.distinct(later, at, counters, "name")


def _nodes(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    """From which nodes the devices can be reached."""
    chosen = []
    node, selector = spec.get("nodeName"), spec.get("nodeSelector")
    if node is not None:
        if node:
            chosen.append("`nodeName`")
            check(errors, f"{path}.nodeName", node, is_dns1123_subdomain(node))
        else:
            why = "must be either unset or set to a non-empty string"
            errors.append(invalid_value(f"{path}.nodeName", node, why))
    if selector is not None:
        chosen.append("`nodeSelector`")
        node_selector(errors, f"{path}.nodeSelector", selector)
        terms = selector.get("nodeSelectorTerms") or ()
        if len(terms) != 1:
            shown = internal("[#core.NodeSelectorTerm", terms or None)
            why = "must have exactly one node selector term"
            errors.append(invalid_value(f"{path}.nodeSelector.nodeSelectorTerms", shown, why))
    for field in ("allNodes", "perDeviceNodeSelection"):
        _only_true(errors, chosen, path, field, spec)
    why = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
    if not chosen:
        errors.append(required(path, why))
    elif len(chosen) > 1:
        errors.append(invalid_value(path, f"{{{', '.join(chosen)}}}", f"{why}, but multiple fields are set"))


def _only_true(errors: Errors, chosen: list[str], path: str, field: str, found: Mapping[str, Any]) -> None:
    if found.get(field):
        chosen.append(f"`{field}`")
    elif found.get(field) is not None:
        errors.append(invalid_value(f"{path}.{field}", False, "must be either unset or set to true"))


def _counters(later: Errors, field: str, errors: Errors, path: str, found: Mapping[str, Any]) -> None:
    """A set of counters, or what a device takes from one; `field` names the set."""
    name, counters = found.get(field, ""), found.get("counters") or {}
    if not name:
        later.append(required(f"{path}.{field}"))
    else:
        rules.declared_label(later, f"{path}.{field}", name)
    if not counters:
        later.append(required(f"{path}.counters"))
    elif len(counters) > _MAX_COUNTERS:
        errors.append(too_many(f"{path}.counters", len(counters), _MAX_COUNTERS))
    else:
        for counter in sorted(counters):
            rules.declared_label(later, f"{path}.counters", counter)


# -- devices ----------------------------------------------------------------------------------------------------------


def _devices(
    errors: Errors, later: Errors, path: str, spec: Mapping[str, Any], before: Mapping[str, Any] | None
) -> None:
    devices = spec.get("devices") or ()
    advanced = any(device.get("taints") or device.get("consumesCounters") for device in devices)
    most = _MAX_ADVANCED_DEVICES if advanced else _MAX_DEVICES
    if len(devices) > most:
        errors.append(too_many(path, len(devices), most))
        return
    known = {device.get("name", ""): device for device in (before or {}).get("devices") or ()}
    per_device, seen = bool(spec.get("perDeviceNodeSelection")), set()
    repeated = []
    for i, device in enumerate(devices):
        at, name = f"{path}[{i}]", device.get("name", "")
        _device(errors, later, at, device, known.get(name))
        _device_nodes(errors, at, device, per_device=per_device)
        rules.binding_conditions(errors, later, at, device)
        if name in seen:
            repeated.append(duplicate(at, name))
        seen.add(name)
    errors.extend(repeated)


def _device(
    errors: Errors, later: Errors, path: str, device: Mapping[str, Any], before: Mapping[str, Any] | None
) -> None:
    attributes, capacity = device.get("attributes") or {}, device.get("capacity") or {}
    taints, consumed = device.get("taints") or (), device.get("consumesCounters") or ()
    rules.label(errors, f"{path}.name", device.get("name", ""))
    total = len(attributes) + len(capacity)
    if total > _MAX_ATTRIBUTES:
        why = f"the total number of attributes and capacities must not exceed {_MAX_ATTRIBUTES}"
        errors.append(invalid_value(path, total, why))
    if len(attributes) > _MAX_ATTRIBUTE_VALUES:
        why = f"the total number of attribute values must not exceed {_MAX_ATTRIBUTE_VALUES}"
        errors.append(invalid_value(path, len(attributes), why))
    for key in sorted(attributes):
        rules.qualified_name(errors, f"{path}.attributes", key)
        _attribute(errors, later, f"{path}.attributes[{key}]", attributes[key])
    if before is None or not same(capacity, before.get("capacity")):
        rule = _shared_capacity if device.get("allowMultipleAllocations") else _whole_capacity
        for key in sorted(capacity):
            rules.qualified_name(errors, f"{path}.capacity", key)
            rule(errors, f"{path}.capacity[{key}]", capacity[key])
    if before is None or not same(taints, before.get("taints")):
        if len(taints) > _MAX_TAINTS:
            errors.append(too_many(f"{path}.taints", len(taints), _MAX_TAINTS))
        else:
            for i, taint in enumerate(taints):
                rules.taint(errors, later, f"{path}.taints[{i}]", taint)
    at = f"{path}.consumesCounters"
    if rules.each(errors, later, at, consumed, _MAX_CONSUMPTIONS, partial(_counters, later, "counterSet")):
        rules.distinct(later, at, consumed, "counterSet")


def _attribute(errors: Errors, later: Errors, path: str, attribute: Mapping[str, Any]) -> None:
    given = [field for field in _VALUES if attribute.get(field) is not None]
    text, version = attribute.get("string"), attribute.get("version")
    if text is not None and len(text.encode()) > _MAX_VALUE:
        errors.append(too_long(f"{path}.string", _MAX_VALUE))
    if version is not None:
        if not _SEMVER.fullmatch(version):
            why = "must be a string compatible with semver.org spec 2.0.0"
            errors.append(invalid_value(f"{path}.version", version, why))
        if len(version.encode()) > _MAX_VALUE:
            errors.append(too_long(f"{path}.version", _MAX_VALUE))
    if not given:
        later.append(invalid_value(path, "", f"must specify one of: {_ALL_VALUES}"))
    elif len(given) > 1:
        shown = f"{{{', '.join(given)}}}"
        later.append(invalid_value(path, shown, f"must specify exactly one of: {_ALL_VALUES}"))


def _device_nodes(errors: Errors, path: str, device: Mapping[str, Any], *, per_device: bool) -> None:
    if not per_device:
        if any(device.get(field) is not None for field in _WHERE):
            why = (
                "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true "
                "in the ResourceSlice spec"
            )
            errors.append(invalid_value(path, None, why))
        return
    chosen = []
    node, selector = device.get("nodeName"), device.get("nodeSelector")
    if node:
        chosen.append("`nodeName`")
        check(errors, f"{path}.nodeName", node, is_dns1123_subdomain(node))
    elif node is not None:
        errors.append(invalid_value(f"{path}.nodeName", node, "must not be empty"))
    if selector is not None:
        chosen.append("`nodeSelector`")
        node_selector(errors, f"{path}.nodeSelector", selector)
    _only_true(errors, chosen, path, "allNodes", device)
    why = (
        "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set "
        "to true in the ResourceSlice spec"
    )
    if not chosen:
        errors.append(required(path, why))
    elif len(chosen) > 1:
        errors.append(invalid_value(path, f"{{{', '.join(chosen)}}}", why))


# -- capacity of devices that many may share --------------------------------------------------------------------------


def _whole_capacity(errors: Errors, path: str, capacity: Mapping[str, Any]) -> None:
    if capacity.get("requestPolicy") is not None:
        errors.append(forbidden_field(f"{path}.requestPolicy", "allowMultipleAllocations must be true"))


def _shared_capacity(errors: Errors, path: str, capacity: Mapping[str, Any]) -> None:
    policy = capacity.get("requestPolicy")
    if policy is None:
        return
    at, most = f"{path}.requestPolicy", parse_quantity(capacity.get("value", "0"))
    options, span, default = policy.get("validValues") or (), policy.get("validRange"), policy.get("default")
    field = "validValues" if options else "validRange"
    if options and span is not None:
        why = 'exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time'
        errors.append(forbidden_field(at, why))
    elif not options and span is None:
        return
    elif default is None:
        errors.append(required(f"{at}.default", f"required when {field} is defined"))
    elif options:
        _options(errors, f"{at}.{field}", [parse_quantity(option) for option in options], parse_quantity(default), most)
    else:
        bounds = {name: parse_quantity(span[name]) for name in ("min", "max", "step") if span.get(name) is not None}
        _range(errors, f"{at}.{field}", parse_quantity(default), bounds, most)


def _options(errors: Errors, path: str, options: Sequence[Quantity], default: Quantity, most: Quantity) -> None:
    for i, option in enumerate(options[1:], 1):
        if options[i - 1] > option:
            why = "values must be sorted in ascending order"
            errors.append(invalid_value(f"{path}[{i}]", option.canonical(), why))
    if len(options) > _MAX_OPTIONS:
        errors.append(too_many(path, len(options), _MAX_OPTIONS))
    else:
        for i, option in enumerate(options):
            if option > most:
                why = f"option is larger than capacity value: {most.canonical()}"
                errors.append(invalid_value(f"{path}[{i}]", option.canonical(), why))
        for i, option in enumerate(options):
            if option in options[:i]:
                errors.append(duplicate(f"{path}[{i}]", option.canonical()))
    if default not in options:
        why = "default value is not valid according to the requestPolicy"
        errors.append(invalid_value(path, default.canonical(), why))


def _range(errors: Errors, path: str, default: Quantity, bounds: Mapping[str, Quantity], most: Quantity) -> None:
    least, highest, step = bounds.get("min"), bounds.get("max"), bounds.get("step")

    def wrong(field: str, value: Quantity, why: str, than: Quantity | None = None) -> None:
        errors.append(invalid_value(f"{path}.{field}", value.canonical(), f"{why}{than.canonical() if than else ''}"))

    if least is None:
        errors.append(required(f"{path}.min", "required when validRange is defined"))
        return
    if least > most:
        wrong("min", least, "min is larger than capacity value: ", most)
    if default < least:
        wrong("default", default, "default is less than min: ", least)
    if highest is not None:
        if least > highest:
            wrong("max", least, "min is larger than max: ", highest)
        if highest > most:
            wrong("max", highest, "max is larger than capacity value: ", most)
        if default > highest:
            wrong("default", default, "default is more than max: ", highest)
    numbers = {**bounds, "default": default}
    if not _fit(numbers, wrong) or step is None:
        return
    if step.nanos <= 0:
        wrong("step", step, "must be greater than zero")
        return
    if least + step > most:
        wrong("step", step, f"one step {(least + step).canonical()} is larger than capacity value: ", most)
    if not any(value.nanos % 10**9 for value in numbers.values()) and not _whole(numbers, wrong):
        return
    for value in (default, highest):
        if value is not None and (value.nanos - least.nanos) % step.nanos:
            why = f"value is not a multiple of a given step ({step.canonical()}) from ({least.canonical()})"
            errors.append(invalid_value(f"{path}.step", value.canonical(), why))


_Wrong = Callable[[str, Quantity, str], None]
_ORDER = ("default", "min", "max", "step")


def _fit(values: Mapping[str, Quantity], wrong: _Wrong) -> bool:
    """Whether fractions, where there are any, end at a thousandth."""
    bad = [field for field in _ORDER if field in values and values[field].nanos % 10**6]
    for field in bad:
        wrong(field, values[field], "value cannot be represented as a milli value")
    return not bad


def _whole(values: Mapping[str, Quantity], wrong: _Wrong) -> bool:
    """Whether all are numbers that 64 bits hold."""
    good = True
    for field in (field for field in _ORDER if field in values):
        if values[field].nanos < 0:
            wrong(field, values[field], NOT_NEGATIVE)
        elif values[field].value() > _MAX_INT64:
            wrong(field, values[field], f"must not be larger than {_MAX_INT64}")
        else:
            continue
        good = False
    return good
