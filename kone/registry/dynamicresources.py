"""resource.k8s.io: devices, by class, by claim, as drivers offer them, and what keeps pods off them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from kone.apimachinery.errors import FieldError, invalid_value, too_many
from kone.apimachinery.kinds import GVR
from kone.apimachinery.names import is_dns1123_subdomain, is_qualified_name
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.timestamps import format_time, parse_time
from kone.apimachinery.users import User
from kone.registry import device_rules
from kone.registry.conditions import conditions
from kone.registry.core.pod_volumes import template_metadata
from kone.registry.equality import same
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal
from kone.registry.printing import age
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.resource_claims import (
    claim_rules,
    claim_status_rules,
    default_claim,
    default_status,
    drop_alpha,
    drop_deallocated,
)
from kone.registry.resource_slices import ResourceSliceStrategy
from kone.registry.rules import Errors, check
from kone.registry.strategy import ALL_METADATA, SpecStrategy, StatusStrategy, Strategy, keep_field

_MAX_CONFIGS, _MAX_CONDITIONS = 32, 8


# -- classes ----------------------------------------------------------------------------------------------------------


def _class_name(name: str, prefix: bool) -> Sequence[str]:
    return () if prefix else device_rules.declared(is_dns1123_subdomain(name))


class _DeviceClass(SpecStrategy):
    name_rule = staticmethod(_class_name)
    has_status = False

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        spec = obj.get("spec") or {}
        selectors = spec.get("selectors") or ()
        # Other selectors than before are compiled; the same ones were good when they came.
        stored = old is not None and same(selectors, dig(old, "spec", "selectors", default=()))
        device_rules.selectors(errors, later, "spec.selectors", selectors, stored=stored)
        configs = spec.get("config") or ()
        device_rules.each(errors, later, "spec.config", configs, _MAX_CONFIGS, partial(_class_config, later))
        name = spec.get("extendedResourceName")
        if name is not None:
            check(later, "spec.extendedResourceName", name, is_extended_resource_name(name))
        return errors + later


def _class_config(later: Errors, errors: Errors, path: str, config: Mapping[str, Any]) -> None:
    device_rules.configuration(errors, later, path, config)


def is_extended_resource_name(name: str) -> Sequence[str]:
    """The name of a resource that no part of Kubernetes owns."""
    texts = []
    if "/" not in name:
        texts.append("a name must be a domain-prefixed path, such as 'example.com/my-prop'")
    elif "kubernetes.io/" in name:
        texts.append('must not have "kubernetes.io/" domain')
    if name.startswith("requests."):
        texts.append('must not have "requests." prefix')
    return [*texts, *is_qualified_name(f"requests.{name}")]


# -- claims -----------------------------------------------------------------------------------------------------------


class _ResourceClaim(Strategy):
    def default(self, obj: Object) -> None:
        default_claim(obj.get("spec") or {})
        default_status(obj.get("status") or {})

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        keep_field(obj, {"status": {}} if old is None else old, "status")
        drop_alpha(obj.get("spec") or {})

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        if old is not None:
            if not same(obj.get("spec"), old.get("spec")):
                yield invalid_value("spec", None, IMMUTABLE)
            return
        errors: Errors = []
        later: Errors = []
        claim_rules(errors, later, "spec", obj.get("spec") or {})
        yield from errors
        yield from later


class _ClaimStatus(StatusStrategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        drop_deallocated(obj, old or {})


def _state(obj: Object, now: float) -> str:
    deleted, status = bool(obj["metadata"].get("deletionTimestamp")), obj.get("status") or {}
    allocated = status.get("allocation") is not None
    states = {
        "deleted": deleted,
        "pending": not deleted and not allocated,
        "allocated": allocated,
        "reserved": allocated and bool(status.get("reservedFor")),
    }
    return ",".join(state for state, holds in states.items() if holds)


class _ResourceClaimTemplate(Strategy):
    def default(self, obj: Object) -> None:
        default_claim(dig(obj, "spec", "spec", default={}))

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        drop_alpha(dig(obj, "spec", "spec", default={}))

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        spec = obj.get("spec") or {}
        template_metadata(errors, "spec.metadata", spec.get("metadata") or {})
        claim_rules(errors, later, "spec.spec", spec.get("spec") or {})
        if old is not None and not same(spec, old.get("spec")):
            errors.append(invalid_value("spec", internal("#resource.ResourceClaimTemplateSpec", spec), IMMUTABLE))
        return errors + later


# -- taints -----------------------------------------------------------------------------------------------------------


class _DeviceTaintRule(SpecStrategy):
    unconditional_update = False

    def default(self, obj: Object) -> None:
        taint = dig(obj, "spec", "taint")
        if taint is not None and taint.get("timeAdded") is None:
            taint["timeAdded"] = format_time(time.time())

    def keep(self, obj: Object, old: Object) -> None:
        taint, before = dig(obj, "spec", "taint", default={}), dig(old, "spec", "taint", default={})
        if taint.get("effect") != before.get("effect") and taint.get("timeAdded") == before.get("timeAdded"):
            taint["timeAdded"] = format_time(time.time())

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        selector = dig(obj, "spec", "deviceSelector", default={})
        for field, rule in _SELECTED.items():
            if selector.get(field) is not None:
                rule(errors, f"spec.deviceSelector.{field}", selector[field])
        taint, before = dig(obj, "spec", "taint", default={}), dig(old, "spec", "taint", "effect")
        device_rules.taint(errors, later, "spec.taint", taint, before)
        return errors + later


_SELECTED: Mapping[str, device_rules.Rule] = {
    "driver": device_rules.driver_name,
    "pool": device_rules.pool_name,
    "device": device_rules.label,
}


def _taint_status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    found = dig(obj, "status", "conditions", default=())
    conditions(errors, "status.conditions", found)
    if len(found) > _MAX_CONDITIONS:
        errors.append(too_many("status.conditions", len(found), _MAX_CONDITIONS))
    return errors


def _taint(name: str, field: str) -> Column:
    return Column(name, lambda obj, now: dig(obj, "spec", "taint", field, default=""))


def _time_added(obj: Object, now: float) -> str:
    added = dig(obj, "spec", "taint", "timeAdded")
    return age(parse_time(added), now) if added else ""


# -- resources --------------------------------------------------------------------------------------------------------


def _gvr(plural: str) -> GVR:
    return GVR("resource.k8s.io", "v1", plural)


def _spec(name: str, *path: str) -> Column:
    return Column(name, lambda obj, now: dig(obj, "spec", *path, default=""))


_claim = _ResourceClaim()
_rule = _DeviceTaintRule()

RESOURCES: Sequence[Resource] = (
    Resource(_gvr("deviceclasses"), "DeviceClass", _DeviceClass(), namespaced=False, columns=(NAME, AGE)),
    Resource(
        _gvr("devicetaintrules"),
        "DeviceTaintRule",
        _rule,
        namespaced=False,
        status=StatusStrategy(_rule, kept_metadata=ALL_METADATA, rules=_taint_status),
        columns=(
            NAME,
            _taint("Key", "key"),
            _taint("Value", "value"),
            _taint("Effect", "effect"),
            Column("TimeAdded", _time_added),
            AGE,
        ),
    ),
    Resource(
        _gvr("resourceclaims"),
        "ResourceClaim",
        _claim,
        status=_ClaimStatus(_claim, kept_metadata=ALL_METADATA, rules=claim_status_rules),
        columns=(NAME, Column("State", _state), AGE),
    ),
    Resource(
        _gvr("resourceclaimtemplates"),
        "ResourceClaimTemplate",
        _ResourceClaimTemplate(),
        columns=(NAME, AGE),
    ),
    Resource(
        _gvr("resourceslices"),
        "ResourceSlice",
        ResourceSliceStrategy(),
        namespaced=False,
        columns=(NAME, _spec("Node", "nodeName"), _spec("Driver", "driver"), _spec("Pool", "pool", "name"), AGE),
    ),
)
