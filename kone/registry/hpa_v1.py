"""autoscaling/v1 and v2 of the same HorizontalPodAutoscaler: what v1 has no fields for, it carries in annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from kone.apimachinery.objects import Object, deep_copy
from kone.registry.internal import internal

_METRICS = "autoscaling.alpha.kubernetes.io/metrics"
_CURRENT_METRICS = "autoscaling.alpha.kubernetes.io/current-metrics"
_CONDITIONS = "autoscaling.alpha.kubernetes.io/conditions"
_BEHAVIOR = "autoscaling.alpha.kubernetes.io/behavior"
_ANNOTATIONS = (_METRICS, _CURRENT_METRICS, _CONDITIONS, _BEHAVIOR)

DEFAULT_METRIC: Final[Object] = {
    "type": "Resource",
    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
}


def _cpu_metric(percent: int) -> Object:
    target = {"type": "Utilization", "averageUtilization": percent}
    return {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def _cpu_percent(metric: Mapping[str, Any]) -> int | None:
    resource = metric.get("resource") or {}
    if metric.get("type") != "Resource" or resource.get("name") != "cpu":
        return None
    percent: int | None = (resource.get("target") or {}).get("averageUtilization")
    return percent


def _loaded(annotations: Mapping[str, str], name: str) -> Any:
    try:
        return json.loads(annotations[name]) if name in annotations else None
    except ValueError:
        return None


def _dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# (v2 name in target, v1 name) of the amounts that a metric aims at; the same for what is measured.
_AMOUNTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "object": (("value", "targetValue"), ("averageValue", "averageValue")),
    "pods": (("averageValue", "targetAverageValue"),),
    "resource": (
        ("averageUtilization", "targetAverageUtilization"),
        ("averageValue", "targetAverageValue"),
    ),
    "containerResource": (
        ("averageUtilization", "targetAverageUtilization"),
        ("averageValue", "targetAverageValue"),
    ),
    "external": (("value", "targetValue"), ("averageValue", "targetAverageValue")),
}
_FIELDS = {"Object": "object", "Pods": "pods", "Resource": "resource", "External": "external"}
_FIELDS |= {"ContainerResource": "containerResource"}


def _metric_to_v1(metric: Mapping[str, Any], side: str) -> Object:
    """`side` is "target" for a metric of the spec, "current" for one of the status."""
    field = _FIELDS.get(metric.get("type", ""), "resource")
    source = metric.get(field) or {}
    out: Object = {}
    if field == "object":
        out["target"] = source.get("describedObject") or {}
    for name in ("name", "container"):
        if name in source:
            out[name] = source[name]
    identifier = source.get("metric") or {}
    if identifier:
        out["metricName"] = identifier.get("name", "")
        if identifier.get("selector") is not None:
            out["metricSelector" if field == "external" else "selector"] = identifier["selector"]
    for v2, v1 in _AMOUNTS[field]:
        amount = (source.get(side) or {}).get(v2)
        if amount is not None:
            out[v1 if side == "target" else v1.replace("target", "current")] = amount
    return {"type": metric.get("type", ""), field: out}


def _metric_to_v2(metric: Mapping[str, Any], side: str) -> Object:
    field = _FIELDS.get(metric.get("type", ""), "resource")
    source = metric.get(field) or {}
    out: Object = {name: source[name] for name in ("name", "container") if name in source}
    if field == "object":
        out["describedObject"] = source.get("target") or {}
    if "metricName" in source:
        out["metric"] = {"name": source["metricName"]}
        selector = source.get("metricSelector" if field == "external" else "selector")
        if selector is not None:
            out["metric"]["selector"] = selector
    amounts: Object = {}
    for v2, v1 in _AMOUNTS[field]:
        amount = source.get(v1 if side == "target" else v1.replace("target", "current"))
        if amount is not None:
            amounts[v2] = amount
    if side == "target":
        kinds = {"averageUtilization": "Utilization", "value": "Value", "averageValue": "AverageValue"}
        amounts["type"] = next((kind for name, kind in kinds.items() if name in amounts), "Value")
    return {"type": metric.get("type", ""), field: {**out, side: amounts}}


def to_v2(obj: Object) -> Object:
    """An autoscaling/v1 object in v2's form."""
    metadata, spec, status = (dict(obj.get(name) or {}) for name in ("metadata", "spec", "status"))
    annotations = metadata.get("annotations") or {}
    percent = spec.pop("targetCPUUtilizationPercentage", None)
    metrics = [_metric_to_v2(metric, "target") for metric in _loaded(annotations, _METRICS) or ()]
    if percent is not None:
        metrics.append(_cpu_metric(percent))
    spec["metrics"] = metrics or [deep_copy(DEFAULT_METRIC)]
    behavior = _loaded(annotations, _BEHAVIOR)
    if behavior:
        spec["behavior"] = _uncapitalized(behavior)
    used = status.pop("currentCPUUtilizationPercentage", None)
    current = [_metric_to_v2(metric, "current") for metric in _loaded(annotations, _CURRENT_METRICS) or ()]
    if not current and used is not None:
        resource = {"name": "cpu", "current": {"averageUtilization": used}}
        current = [{"type": "Resource", "resource": resource}]
    status["currentMetrics"] = current or None
    if not status.get("currentReplicas"):
        status.pop("currentReplicas", None)  # v2 leaves out what v1 always writes
    conditions = _loaded(annotations, _CONDITIONS)
    if conditions:
        status["conditions"] = conditions
    _set_annotations(metadata, annotations, {})
    return {"kind": obj["kind"], "apiVersion": "autoscaling/v2", "metadata": metadata, "spec": spec, "status": status}


def from_v2(obj: Object) -> Object:
    """A stored object in autoscaling/v1's form."""
    metadata, spec, status = (dict(obj.get(name) or {}) for name in ("metadata", "spec", "status"))
    extra: dict[str, str] = {}
    percents = [_cpu_percent(metric) for metric in spec.get("metrics") or ()]
    others = [
        metric for metric, percent in zip(spec.pop("metrics", None) or (), percents, strict=True) if percent is None
    ]
    percent = next((percent for percent in percents if percent is not None), None)
    if percent is not None:
        spec["targetCPUUtilizationPercentage"] = percent
    if others:
        extra[_METRICS] = _dumped([_metric_to_v1(metric, "target") for metric in others])
    current = status.pop("currentMetrics", None) or ()
    for metric in current:
        resource = metric.get("resource") or {}
        used = (resource.get("current") or {}).get("averageUtilization")
        if metric.get("type") == "Resource" and resource.get("name") == "cpu" and used is not None:
            status["currentCPUUtilizationPercentage"] = used
    if current:
        extra[_CURRENT_METRICS] = _dumped([_metric_to_v1(metric, "current") for metric in current])
    behavior = spec.pop("behavior", None)
    if behavior is not None:
        extra[_BEHAVIOR] = _dumped(internal("#autoscaling.HorizontalPodAutoscalerBehavior", behavior))
    conditions = status.pop("conditions", None)
    if conditions:
        extra[_CONDITIONS] = _dumped(conditions)
    status.setdefault("currentReplicas", 0)
    _set_annotations(metadata, metadata.get("annotations") or {}, extra)
    return {"kind": obj["kind"], "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status}


def _set_annotations(metadata: Object, annotations: Mapping[str, str], extra: Mapping[str, str]) -> None:
    """The annotations without those of the conversion, and with `extra`."""
    kept = {name: text for name, text in annotations.items() if name not in _ANNOTATIONS} | dict(extra)
    if kept:
        metadata["annotations"] = kept
    else:
        metadata.pop("annotations", None)


def _uncapitalized(value: Any) -> Any:
    """Upstream writes the behaviour with its internal field names; ours begin with a small letter."""
    if isinstance(value, dict):
        return {name[0].lower() + name[1:]: _uncapitalized(v) for name, v in value.items() if v is not None}
    return [_uncapitalized(v) for v in value] if isinstance(value, list) else value
