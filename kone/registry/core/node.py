"""Nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from kone.apimachinery.errors import FieldError, duplicate, forbidden_field, go_quote, invalid_value, required
from kone.apimachinery.json_text import syntax_error
from kone.apimachinery.kinds import NODES as GVR_NODES
from kone.apimachinery.names import is_cidr_legacy, is_qualified_name, is_valid_label_value
from kone.apimachinery.objects import Object, annotations_of, find_condition, labels_of
from kone.apimachinery.users import User
from kone.registry.core.pod_scheduling import taint_effect
from kone.registry.core.resource_rules import resource_quantity
from kone.registry.core.service_rules import cidr_warnings
from kone.registry.internal import internal
from kone.registry.resource import AGE, NAME, Column, Resource, Subresource
from kone.registry.rules import NOT_ABOVE_ZERO, Errors, check
from kone.registry.strategy import StatusStrategy, Strategy, keep_field

_TAINTS_ANNOTATION = "scheduler.alpha.kubernetes.io/taints"
_AVOID_ANNOTATION = "scheduler.alpha.kubernetes.io/preferAvoidPods"
_ROLE_PREFIX, _ROLE_LABEL = "node-role.kubernetes.io/", "kubernetes.io/role"
_FEATURE = re.compile(r"[A-Z][a-zA-Z0-9]*(/[a-zA-Z][a-zA-Z0-9]*)*")
_MAX_FEATURE = 253
_NO_OTHER_CIDR = 'node updates may not change podCIDR except from "" to valid'
_PROXY_VERBS = ("create", "delete", "get", "patch", "update")


class _Node(Strategy):
    def default(self, obj: Object) -> None:
        spec, status = obj.setdefault("spec", {}), obj.setdefault("status", {})
        single, cidrs = spec.get("podCIDR"), spec.get("podCIDRs")
        if single and (not cidrs or cidrs[0] != single):
            spec["podCIDRs"] = [single]  # the old field wins, for clients that know only it
        elif cidrs:
            spec["podCIDR"] = cidrs[0]
        if status.get("allocatable") is None and status.get("capacity") is not None:
            status["allocatable"] = dict(status["capacity"])

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        spec = obj["spec"]
        spec.pop("podPreemptionPolicy", None)  # alpha
        spec.pop("configSource", None)  # has been removed
        if old is None:
            obj["status"].pop("config", None)
        else:
            obj["status"] = old["status"]

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        _node(errors, obj)
        if old is not None:
            node_update(errors, obj, old)
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        spec = obj["spec"]
        if spec.get("externalID"):
            yield "spec.externalID: this field is deprecated, and is unused by Kubernetes"
        for i, cidr in enumerate(spec.get("podCIDRs") or ()):
            yield from cidr_warnings(f"spec.podCIDRs[{i}]", cidr)

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return {"spec.unschedulable": "true" if (obj.get("spec") or {}).get("unschedulable") else "false"}


class _NodeStatus(StatusStrategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        if old is not None and not (old.get("status") or {}).get("config"):
            keep_field(obj["status"], {}, "config")

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        assert old is not None
        errors: Errors = []
        node_update(errors, obj, old)
        return errors


def _node(errors: Errors, obj: Object) -> None:
    """ValidateNode."""
    spec, status = obj["spec"], obj["status"]
    _annotations(errors, annotations_of(obj))
    _taints(errors, "metadata.taints", spec.get("taints") or ())
    _resources(errors, status)
    swap = ((status.get("nodeInfo") or {}).get("swap") or {}).get("capacity")
    if swap is not None and swap <= 0:
        errors.append(invalid_value("metadata.nodeSwapStatus.capacity", swap, NOT_ABOVE_ZERO))
    _declared_features(errors, "status.declaredFeatures", status.get("declaredFeatures") or ())
    _pod_cidrs(errors, "spec.podCIDRs", spec.get("podCIDRs") or ())


def node_update(errors: Errors, obj: Object, old: Object) -> None:
    """ValidateNodeUpdate, which a change of status is held to as well."""
    spec, status, before = obj["spec"], obj["status"], old.get("spec") or {}
    _annotations(errors, annotations_of(obj))
    _resources(errors, status)
    _declared_features(errors, "status.declaredFeatures", status.get("declaredFeatures") or ())
    seen = set()
    for i, address in enumerate(status.get("addresses") or ()):
        key = (address.get("type"), address.get("address"))
        if key in seen:
            errors.append(duplicate(f"status.addresses[{i}]", internal("#core.NodeAddress", address)))
        seen.add(key)
    had, has = before.get("podCIDRs") or (), spec.get("podCIDRs") or ()
    if had and len(had) != len(has):
        errors.append(forbidden_field("spec.podCIDRs", _NO_OTHER_CIDR))
    elif had:
        changed = sum(was != cidr for was, cidr in zip(had, has, strict=True))
        errors.extend(forbidden_field("spec.podCIDRs", _NO_OTHER_CIDR) for _ in range(changed))
    was, provider = before.get("providerID"), spec.get("providerID")
    if was and was != provider:
        text = "field cannot be modified once set" if provider else "field cannot be cleared once set"
        errors.append(invalid_value("spec.providerID", None, text))
    _taints(errors, "metadata.taints", spec.get("taints") or ())
    if (spec.get("externalID") or "") != (before.get("externalID") or ""):
        errors.append(forbidden_field("spec.externalID", "may not be updated"))


def _annotations(errors: Errors, annotations: Mapping[str, str]) -> None:
    """What old schedulers kept there."""
    path, taints, avoid = (
        "metadata.annotations",
        annotations.get(_TAINTS_ANNOTATION),
        annotations.get(_AVOID_ANNOTATION),
    )
    if taints:
        wrong = syntax_error(taints.encode())
        if wrong:
            errors.append(invalid_value(path, _TAINTS_ANNOTATION, wrong))
        else:
            _taints(errors, f"{path}.{_TAINTS_ANNOTATION}", _objects(orjson.loads(taints)))
    if avoid:
        wrong = syntax_error(avoid.encode())
        if wrong:
            errors.append(invalid_value(f"{path}.AvoidPods", _AVOID_ANNOTATION, wrong))
            return
        value = orjson.loads(avoid)
        entries = _objects(value.get("preferAvoidPods") if isinstance(value, dict) else None)
        for i, entry in enumerate(entries):
            at = f"{path}.{_AVOID_ANNOTATION}[{i}].PodSignature"
            controller = (entry.get("podSignature") or {}).get("podController")
            if controller is None:
                errors.append(required(at))
            elif not controller.get("controller"):
                text = "must point to a controller"
                errors.append(invalid_value(f"{at}.PodController.Controller", False, text))


def _objects(value: Any) -> Sequence[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else ()


def _taints(errors: Errors, path: str, taints: Sequence[Mapping[str, Any]]) -> None:
    seen: set[tuple[str, str]] = set()
    for i, taint in enumerate(taints):
        at, key, value, effect = f"{path}[{i}]", taint.get("key", ""), taint.get("value", ""), taint.get("effect", "")
        check(errors, f"{at}.key", key, is_qualified_name(key))
        wrong = is_valid_label_value(value)
        if wrong:
            errors.append(invalid_value(f"{at}.value", value, ";".join(wrong)))
        if effect:
            taint_effect(errors, f"{at}.effect", effect)
        else:
            errors.append(required(f"{at}.effect"))
        if (key, effect) in seen:
            text = "taints must be unique by key and effect pair"
            errors.append(FieldError("FieldValueDuplicate", at, text, internal("#core.Taint", taint)))
        seen.add((key, effect))


def _resources(errors: Errors, status: Mapping[str, Any]) -> None:
    for field in ("capacity", "allocatable"):
        for name, amount in (status.get(field) or {}).items():
            resource_quantity(errors, f"status.{field}.{name}", name, amount)


def _declared_features(errors: Errors, path: str, features: Sequence[str]) -> None:
    before = ""
    for i, feature in enumerate(features):
        at, wrong = f"{path}[{i}]", ""
        if i and feature == before:
            errors.append(duplicate(at, feature))
        elif feature < before:
            errors.append(invalid_value(at, feature, "list must be sorted alphabetically"))
        if len(feature.encode()) > _MAX_FEATURE:
            wrong = f"must be no more than {_MAX_FEATURE} characters"
        elif not _FEATURE.fullmatch(feature):
            wrong = "must start with an UpperCamelCase segment, with subsequent segments separated by '/'"
            wrong += (
                " (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"
            )
        if wrong:
            errors.append(invalid_value(at, feature, f"invalid feature name {go_quote(feature)}: {wrong}"))
        before = feature


def _pod_cidrs(errors: Errors, path: str, cidrs: Sequence[str]) -> None:
    bad = None
    for i, cidr in enumerate(cidrs):
        wrong = is_cidr_legacy(cidr)
        check(errors, f"{path}[{i}]", cidr, wrong)
        if wrong and bad is None:
            bad = i
    if len(cidrs) < 2:
        return
    if bad is not None:
        why = f"invalid CIDR[{bad}]: <nil> (invalid CIDR address: {cidrs[bad]})"
        text = f"invalid PodCIDRs. failed to check with dual stack with error:{why}"
        errors.append(FieldError("InternalError", path, text))
    if bad is not None or len(cidrs) > 2 or (":" in cidrs[0]) == (":" in cidrs[1]):
        errors.append(invalid_value(path, cidrs, "may specify no more than one CIDR for each IP family"))


def _status_cell(obj: Object, now: float) -> str:
    ready = find_condition(obj, "Ready")
    text = "Unknown" if ready is None else "Ready" if ready.get("status") == "True" else "NotReady"
    return f"{text},SchedulingDisabled" if (obj.get("spec") or {}).get("unschedulable") else text


def _roles(obj: Object, now: float) -> str:
    roles = set()
    for key, value in labels_of(obj).items():
        if key.startswith(_ROLE_PREFIX):
            roles.add(key.removeprefix(_ROLE_PREFIX))
        elif key == _ROLE_LABEL:
            roles.add(value)
    return ",".join(sorted(roles - {""})) or "<none>"


def _info(obj: Object, field: str) -> str:
    return str(((obj.get("status") or {}).get("nodeInfo") or {}).get(field) or "")


def _address(obj: Object, kind: str) -> str:
    for address in (obj.get("status") or {}).get("addresses") or ():
        if address.get("type") == kind:
            return str(address.get("address", ""))
    return "<none>"


def _kernel(obj: Object, now: float) -> str:
    kernel, architecture = _info(obj, "kernelVersion") or "<unknown>", _info(obj, "architecture")
    return f"{kernel} ({architecture})" if architecture else kernel


_strategy = _Node()

NODES = Resource(
    gvr=GVR_NODES,
    kind="Node",
    namespaced=False,
    short_names=("no",),
    strategy=_strategy,
    status=_NodeStatus(_strategy),
    columns=(
        NAME,
        Column("Status", _status_cell),
        Column("Roles", _roles),
        AGE,
        Column("Version", lambda obj, now: _info(obj, "kubeletVersion")),
        Column("Internal-IP", lambda obj, now: _address(obj, "InternalIP"), priority=1),
        Column("External-IP", lambda obj, now: _address(obj, "ExternalIP"), priority=1),
        Column("OS-Image", lambda obj, now: _info(obj, "osImage") or "<unknown>", priority=1),
        Column("Kernel-Version", _kernel, priority=1),
        Column("Container-Runtime", lambda obj, now: _info(obj, "containerRuntimeVersion") or "<unknown>", priority=1),
    ),
    subresources={"proxy": Subresource("NodeProxyOptions", verbs=_PROXY_VERBS)},
)
