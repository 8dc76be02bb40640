"""autoscaling: HorizontalPodAutoscalers, stored as autoscaling/v2; hpa_v1 shows them as v1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.kinds import GVR, parse_api_version
from kone.apimachinery.names import is_dns1123_label, is_path_segment_name
from kone.apimachinery.objects import Object, deep_copy, dig
from kone.apimachinery.quantity import parse_quantity
from kone.apimachinery.users import User
from kone.registry.conversion import Renaming
from kone.registry.core.resource_rules import container_resource_name
from kone.registry.equality import same
from kone.registry.generic import NOT_NEGATIVE
from kone.registry.hpa_v1 import DEFAULT_METRIC, from_v2, to_v2
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, at_least_0, check
from kone.registry.strategy import SpecStrategy, StatusStrategy

HPAS_V1 = GVR("autoscaling", "v1", "horizontalpodautoscalers")
HPAS = GVR("autoscaling", "v2", "horizontalpodautoscalers")

_SCALE_UP: Mapping[str, Any] = {
    "stabilizationWindowSeconds": 0,
    "selectPolicy": "Max",
    "policies": [
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ],
}
_SCALE_DOWN: Mapping[str, Any] = {
    "selectPolicy": "Max",
    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
}


class _HPA(SpecStrategy):
    def initial_status(self, obj: Object) -> Object:
        return {"desiredReplicas": 0, "currentMetrics": None}

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        if spec.get("minReplicas") is None:
            spec["minReplicas"] = 1
        if not spec.get("metrics"):
            spec["metrics"] = [deep_copy(DEFAULT_METRIC)]
        behavior = spec.get("behavior")
        if behavior is not None:
            for name, rules in (("scaleUp", _SCALE_UP), ("scaleDown", _SCALE_DOWN)):
                behavior[name] = {**deep_copy(dict(rules)), **(behavior.get(name) or {})}

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        spec = obj["spec"]
        least, most = spec.get("minReplicas"), spec.get("maxReplicas", 0)
        if least is not None and least < 0:
            later.append(invalid_value("spec.minReplicas", least, NOT_NEGATIVE))
        if not most:
            later.append(required("spec.maxReplicas"))
        elif most < 0:
            later.append(invalid_value("spec.maxReplicas", most, "must be greater than or equal to 1"))
        if least is not None and most < least:
            errors.append(invalid_value("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`"))
        target: Mapping[str, Any] = spec.get("scaleTargetRef") or {}
        _reference(errors, later, "spec.scaleTargetRef", target)
        if not _is_same_kind(target, dig(old, "spec", "scaleTargetRef")):
            need_group = target.get("kind") != "ReplicationController"  # the one kind of core's that scales
            _version(errors, "spec.scaleTargetRef", target, need_group=need_group)
        metrics = spec.get("metrics") or ()
        any_version = _describes_bad_version(dig(old, "spec", "metrics", default=()))
        for i, metric in enumerate(metrics):
            _metric(errors, f"spec.metrics[{i}]", metric, any_version=any_version)
        if least == 0 and not any(metric.get("type") in ("Object", "External") for metric in metrics):
            text = "must specify at least one Object or External metric to support scaling to zero replicas"
            errors.append(forbidden_field("spec.metrics", text))
        for name in ("scaleUp", "scaleDown"):
            rules = dig(spec, "behavior", name)
            if rules is not None:
                _scaling_rules(errors, f"spec.behavior.{name}", rules)
        return errors + later


def _is_same_kind(ref: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
    """Whether an update leaves the kind that is scaled: then nobody asks for its group again."""
    return before is not None and all(ref.get(name, "") == before.get(name, "") for name in ("apiVersion", "kind"))


def _describes_bad_version(metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what is stored has such an apiVersion already, which lets updates have it too."""
    errors: Errors = []
    for metric in metrics:
        if metric.get("type") == "Object":
            _version(errors, "", dig(metric, "object", "describedObject", default={}), need_group=False)
    return bool(errors)


def _reference(errors: Errors, later: Errors, path: str, ref: Mapping[str, Any]) -> None:
    for field in ("kind", "name"):
        value = ref.get(field)
        if value:
            check(errors, f"{path}.{field}", value, is_path_segment_name(value))
        else:
            later.append(required(f"{path}.{field}"))


def _version(errors: Errors, path: str, ref: Mapping[str, Any], *, need_group: bool) -> None:
    """ValidateAPIVersion."""
    version = ref.get("apiVersion", "")
    if version.count("/") > 1:
        errors.append(invalid_value(f"{path}.apiVersion", version, f"unexpected GroupVersion string: {version}"))
    elif need_group and not parse_api_version(version)[0]:
        errors.append(invalid_value(f"{path}.apiVersion", version, "apiVersion must specify API group"))


_SOURCES: Mapping[str, str] = {
    "Object": "object",
    "External": "external",
    "Pods": "pods",
    "Resource": "resource",
    "ContainerResource": "containerResource",
}
_SOURCE_TYPES = ("ContainerResource", "External", "Object", "Pods", "Resource")
_TARGET_TYPES = ("Utilization", "Value", "AverageValue")


def _metric(errors: Errors, path: str, metric: Mapping[str, Any], *, any_version: bool) -> None:
    kind = metric.get("type", "")
    if not kind:
        errors.append(required(f"{path}.type", "must specify a metric source type"))
    if kind not in _SOURCES:
        errors.append(not_supported(f"{path}.type", kind, _SOURCE_TYPES))
    present = [field for field in _SOURCES.values() if metric.get(field) is not None]
    if present:
        _source(errors, f"{path}.{present[0]}", present[0], metric[present[0]], any_version=any_version)
    expected = _SOURCES.get(kind)
    if expected is not None and expected not in present:
        text = "must populate information for the given metric source"
        errors.append(required(f"{path}.{expected}", text))
    if len(present) != 1:
        for field in present:
            if field != expected:
                text = "must populate the given metric source only"
                errors.append(forbidden_field(f"{path}.{field}", text))


def _source(errors: Errors, path: str, field: str, source: Mapping[str, Any], *, any_version: bool) -> None:
    target = source.get("target") or {}
    if field in ("object", "external", "pods"):
        name = dig(source, "metric", "name")
        if name:
            check(errors, f"{path}.metric.name", name, is_path_segment_name(name))
        else:
            errors.append(required(f"{path}.metric.name", "must specify a metric name"))
    elif not source.get("name"):
        errors.append(required(f"{path}.name", "must specify a resource name"))
    elif field == "containerResource":
        container_resource_name(errors, f"{path}.name", source["name"])
    if field == "object":
        described = source.get("describedObject") or {}
        _reference(errors, errors, f"{path}.describedObject", described)
        if not any_version:
            _version(errors, f"{path}.describedObject", described, need_group=False)
    if field == "containerResource":
        container = source.get("container")
        if container:
            check(errors, f"{path}.container", container, is_dns1123_label(container))
        else:
            errors.append(required(f"{path}.container", "must specify a container"))
    _target(errors, f"{path}.target", target)
    value, average, percent = (target.get(name) for name in ("value", "averageValue", "averageUtilization"))
    at = f"{path}.target"
    if field == "object" and value is None and average is None:
        errors.append(required(f"{at}.averageValue", "must set either a target value or averageValue"))
    elif field == "external":
        if value is None and average is None:
            text = "must set either a target value for metric or a per-pod target"
            errors.append(required(f"{at}.averageValue", text))
        elif value is not None and average is not None:
            text = "may not set both a target value for metric and a per-pod target"
            errors.append(forbidden_field(f"{at}.value", text))
    elif field == "pods" and average is None:
        errors.append(required(f"{at}.averageValue", "must specify a positive target averageValue"))
    elif field in ("resource", "containerResource"):
        if percent is None and average is None:
            text = "must set either a target raw value or a target utilization"
            errors.append(required(f"{at}.averageUtilization", text))
        elif percent is not None and average is not None:
            text = "may not set both a target raw value and a target utilization"
            errors.append(forbidden_field(f"{at}.averageValue", text))


def _target(errors: Errors, path: str, target: Mapping[str, Any]) -> None:
    kind = target.get("type", "")
    if not kind:
        errors.append(required(f"{path}.type", "must specify a metric target type"))
    if kind not in _TARGET_TYPES:
        text = "must be either Utilization, Value, or AverageValue"
        errors.append(invalid_value(f"{path}.type", kind, text))
    for name in ("value", "averageValue"):
        amount = target.get(name)
        if amount is not None and parse_quantity(amount).nanos <= 0:
            errors.append(invalid_value(f"{path}.{name}", amount, "must be positive"))
    percent = target.get("averageUtilization")
    if percent is not None and percent < 1:
        errors.append(invalid_value(f"{path}.averageUtilization", percent, "must be greater than 0"))


_SELECT_POLICIES = ("Disabled", "Max", "Min")
_POLICY_TYPES = ("Percent", "Pods")
_MAX_PERIOD_S, _MAX_WINDOW_S = 1800, 3600


def _scaling_rules(errors: Errors, path: str, rules: Mapping[str, Any]) -> None:
    window, select, policies = (rules.get(n) for n in ("stabilizationWindowSeconds", "selectPolicy", "policies"))
    at = f"{path}.stabilizationWindowSeconds"
    if window is not None and window < 0:
        errors.append(invalid_value(at, window, "must be greater than or equal to zero"))
    if window is not None and window > _MAX_WINDOW_S:
        errors.append(invalid_value(at, window, f"must be less than or equal to {_MAX_WINDOW_S}"))
    if select is not None and select not in _SELECT_POLICIES:
        errors.append(not_supported(f"{path}.selectPolicy", select, _SELECT_POLICIES))
    if not policies:
        errors.append(required(f"{path}.policies", "must specify at least one Policy"))
    for i, policy in enumerate(policies or ()):
        _scaling_policy(errors, f"{path}.policies[{i}]", policy)
    tolerance = rules.get("tolerance")
    if tolerance is not None and parse_quantity(tolerance).nanos < 0:
        errors.append(invalid_value(f"{path}.tolerance", tolerance, NOT_NEGATIVE))


def _scaling_policy(errors: Errors, path: str, policy: Mapping[str, Any]) -> None:
    kind, period = policy.get("type", ""), policy.get("periodSeconds", 0)
    if kind not in _POLICY_TYPES:
        errors.append(not_supported(f"{path}.type", kind, _POLICY_TYPES))
    for name in ("value", "periodSeconds"):
        if policy.get(name, 0) <= 0:
            errors.append(invalid_value(f"{path}.{name}", policy.get(name, 0), "must be greater than zero"))
    if period > _MAX_PERIOD_S:
        errors.append(invalid_value(f"{path}.periodSeconds", period, f"must be less than or equal to {_MAX_PERIOD_S}"))


def _status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    for i, condition in enumerate(dig(obj, "status", "conditions", default=())):
        path = f"status.conditions[{i}].observedGeneration"
        at_least_0(errors, path, condition.get("observedGeneration"))
    for name in ("currentReplicas", "desiredReplicas"):
        at_least_0(errors, f"status.{name}", dig(obj, "status", name))
    return errors


class _HPAv1(SpecStrategy):
    """The same, seen as autoscaling/v1: its rules are those of what it is stored as."""

    def __init__(self, v2: _HPA) -> None:
        self.v2 = v2

    def initial_status(self, obj: Object) -> Object:
        return {"currentReplicas": 0, "desiredReplicas": 0}

    def default(self, obj: Object) -> None:
        if obj["spec"].get("minReplicas") is None:
            obj["spec"]["minReplicas"] = 1

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        # What v1 leaves out, v2's defaults put in: the client sees it.
        seen = from_v2(to_v2(obj))
        obj["spec"], obj["metadata"] = seen["spec"], seen["metadata"]

    def is_changed(self, obj: Object, old: Object) -> bool:
        # Metrics and behavior are of the spec, though v1 carries them in annotations.
        return super().is_changed(obj, old) or not same(to_v2(obj)["spec"], to_v2(old)["spec"])

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        return self.v2.validate(to_v2(obj), None if old is None else to_v2(old))


# -- columns ----------------------------------------------------------------------------------------------------------

_MOST_TARGETS = 2


def _one_target(metric: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    field = _SOURCES.get(metric.get("type", ""))
    if field is None:
        return "<unknown type>"
    source, current = metric.get(field) or {}, dig(status, field, "current", default={})
    target = source.get("target") or {}
    name = f"{source.get('name', '')}: " if field in ("resource", "containerResource") else ""
    if target.get("averageValue") is not None:
        average = " (avg)" if field in ("external", "object") else ""
        return f"{name}{current.get('averageValue', '<unknown>')}/{target['averageValue']}{average}"
    if name:
        used, wanted = current.get("averageUtilization"), target.get("averageUtilization")
        shown = "<unknown>" if used is None else f"{used}%"
        return f"{name}{shown}/{'<auto>' if wanted is None else f'{wanted}%'}"
    return f"{current.get('value', '<unknown>')}/{target.get('value', '')}"


def _targets(obj: Object, now: float) -> str:
    metrics, statuses = dig(obj, "spec", "metrics", default=()), dig(obj, "status", "currentMetrics", default=())
    if not metrics:
        return "<none>"
    shown = [_one_target(m, statuses[i] if i < len(statuses) else {}) for i, m in enumerate(metrics)]
    text = ", ".join(shown[:_MOST_TARGETS])
    return f"{text} + {len(shown) - _MOST_TARGETS} more..." if len(shown) > _MOST_TARGETS else text


def _scaled(obj: Object, now: float) -> str:
    ref = dig(obj, "spec", "scaleTargetRef", default={})
    return f"{ref.get('kind', '')}/{ref.get('name', '')}"


_COLUMNS = (
    NAME,
    Column("Reference", _scaled),
    Column("Targets", _targets),
    Column("MinPods", lambda obj, now: str(dig(obj, "spec", "minReplicas", default="<unset>"))),
    Column("MaxPods", lambda obj, now: dig(obj, "spec", "maxReplicas", default=0)),
    Column("Replicas", lambda obj, now: dig(obj, "status", "currentReplicas", default=0)),
    AGE,
)


def _seen_as_v1(column: Column) -> Column:
    """The column of an object that comes in v1's form."""
    if column in (NAME, AGE):
        return column
    return Column(column.name, lambda obj, now: column.cell(to_v2(obj), now), column.type, column.format)


_v2 = _HPA()
_v1 = _HPAv1(_v2)

RESOURCES: Sequence[Resource] = (
    Resource(
        HPAS,
        "HorizontalPodAutoscaler",
        _v2,
        short_names=("hpa",),
        categories=("all",),
        status=StatusStrategy(_v2, rules=_status),
        columns=_COLUMNS,
    ),
    Resource(
        HPAS_V1,
        "HorizontalPodAutoscaler",
        _v1,
        short_names=("hpa",),
        categories=("all",),
        status=StatusStrategy(_v1, rules=_status),
        columns=tuple(map(_seen_as_v1, _COLUMNS)),
        storage=("autoscaling", "horizontalpodautoscalers"),
        conversion=Renaming(to_v2, from_v2),
    ),
)
