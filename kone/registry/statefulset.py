"""StatefulSets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kone.apimachinery.errors import FieldError, invalid_value, not_supported
from kone.apimachinery.kinds import STATEFULSETS as GVR_STATEFULSETS
from kone.apimachinery.names import is_dns1123_label
from kone.apimachinery.objects import Object, dig
from kone.registry import workloads
from kone.registry.conditions import not_more_than_100_percent, positive_int_or_percent
from kone.registry.core.claim_rules import claim_spec, claim_warnings
from kone.registry.core.pod_defaults import default_claim_spec
from kone.registry.core.pod_spec import template_metadata
from kone.registry.equality import same
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal
from kone.registry.resource import AGE, NAME, Column, Resource, ScaleSpec
from kone.registry.rules import Errors, at_least_0, check
from kone.registry.strategy import StatusStrategy, dns_label

_RETENTION = ("Retain", "Delete")
_FIXED = {
    "selector": "*#metav1.LabelSelector",
    "volumeClaimTemplates": "[#core.PersistentVolumeClaim",
    "serviceName": "s",
    "podManagementPolicy": "s",
}
"""What an update cannot change, in upstream's order, and the type by which errors print it."""
_COUNTS = (
    *("replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"),
    *("observedGeneration", "collisionCount"),
)


class _StatefulSet(workloads.WorkloadStrategy):
    name_rule = staticmethod(dns_label)
    names_pods = False
    zeros = ("replicas", "availableReplicas")

    def default(self, obj: Object) -> None:
        super().default(obj)
        spec = obj["spec"]
        if not spec.get("podManagementPolicy"):
            spec["podManagementPolicy"] = "OrderedReady"
        strategy = spec.setdefault("updateStrategy", {})
        if not strategy.get("type"):
            strategy["type"] = "RollingUpdate"
            strategy["rollingUpdate"] = strategy.get("rollingUpdate") or {}
        rolling = strategy.get("rollingUpdate")
        if strategy["type"] == "RollingUpdate" and rolling is not None:
            if rolling.get("partition") is None:
                rolling["partition"] = 0
            if rolling.get("maxUnavailable") is None:
                rolling["maxUnavailable"] = 1
        retention = spec["persistentVolumeClaimRetentionPolicy"] = (
            spec.get("persistentVolumeClaimRetentionPolicy") or {}
        )
        for when in ("whenDeleted", "whenScaled"):
            if not retention.get(when):
                retention[when] = "Retain"
        if spec.get("replicas") is None:
            spec["replicas"] = 1
        if spec.get("revisionHistoryLimit") is None:
            spec["revisionHistoryLimit"] = 10
        for claim in spec.get("volumeClaimTemplates") or ():
            _default_claim(claim)

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        _spec(errors, spec, is_new=old is None, is_template_asked=old is None or _is_valid(old["spec"]))
        if old is not None:
            for field, kind in _FIXED.items():
                value, before = spec.get(field), old["spec"].get(field)
                if not same(value, before):
                    shown = None if value is None and kind[0] in "*[" else internal(kind, value)
                    errors.append(invalid_value(f"spec.{field}", shown, IMMUTABLE))
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        yield from super().warnings(obj, old)
        spec, at = obj["spec"], "" if old is None else ".Spec"
        for i, claim in enumerate(spec.get("volumeClaimTemplates") or ()):
            yield from claim_warnings(f"spec.volumeClaimTemplates[{i}]{at}", claim.get("spec") or {})
        if spec["revisionHistoryLimit"] < 0:
            text = "a negative value retains all historical revisions; a value >= 0 is recommended"
            yield f"spec.revisionHistoryLimit: {text}"


def _default_claim(claim: Object) -> None:
    """A claim inside a stateful set is stored whole, with kind and status."""
    claim["apiVersion"], claim["kind"] = "v1", "PersistentVolumeClaim"
    claim.setdefault("metadata", {})
    default_claim_spec(claim.setdefault("spec", {}))
    status = claim.setdefault("status", {})
    if not status.get("phase"):
        status["phase"] = "Pending"


def _is_valid(spec: Mapping[str, Any]) -> bool:
    """Whether a stored set passes today's rules; the pod spec of one that does not is left alone by updates."""
    errors: Errors = []
    _spec(errors, spec, is_new=False, is_template_asked=True)
    return not errors


def _spec(errors: Errors, spec: Mapping[str, Any], *, is_new: bool, is_template_asked: bool) -> None:
    """ValidateStatefulSetSpec."""
    policy = spec["podManagementPolicy"]
    if policy not in ("OrderedReady", "Parallel"):
        errors.append(invalid_value("spec.podManagementPolicy", policy, "must be 'OrderedReady' or 'Parallel'"))
    _update_strategy(errors, "spec.updateStrategy", spec["updateStrategy"])
    retention = spec["persistentVolumeClaimRetentionPolicy"]
    for when in ("whenDeleted", "whenScaled"):
        if retention[when] not in _RETENTION:
            path = f"spec.persistentVolumeClaimRetentionPolicy.{when}"
            errors.append(not_supported(path, retention[when], _RETENTION))
    claims = spec.get("volumeClaimTemplates") or ()
    if is_new:
        for i, claim in enumerate(claims):
            claim_spec(errors, f"spec.volumeClaimTemplates[{i}].spec", claim["spec"])
    at_least_0(errors, "spec.replicas", spec["replicas"])
    at_least_0(errors, "spec.minReadySeconds", spec.get("minReadySeconds"))
    at_least_0(errors, "spec.ordinals.start", (spec.get("ordinals") or {}).get("start"))
    service = spec.get("serviceName")
    if is_new and service:
        check(errors, "spec.serviceName", service, is_dns1123_label(service))
    selector, template = spec.get("selector"), spec["template"]
    if workloads.selector(errors, selector, "statefulset"):
        workloads.selected(errors, template, selector)
        if is_template_asked:
            workloads.template_rules(errors, _as_pods_will_be(template, claims))
        template_metadata(errors, workloads.TEMPLATE, template)  # upstream asks this again, or for the first time
    else:
        errors.append(invalid_value("spec.selector", workloads.selector_value(selector), ""))
    workloads.always_running(errors, template, "StatefulSet")


def _as_pods_will_be(template: Mapping[str, Any], claims: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The template as the controller will use it: named by itself, with a volume for each claim."""
    spec = {field: value for field, value in template["spec"].items() if field not in ("hostname", "subdomain")}
    volumes = {claim["metadata"].get("name", ""): claim for claim in claims}
    if volumes:
        made = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in volumes]
        spec["volumes"] = made + [each for each in spec.get("volumes") or () if each.get("name") not in volumes]
    return {**template, "spec": spec}


def _update_strategy(errors: Errors, path: str, strategy: Mapping[str, Any]) -> None:
    kind, rolling = strategy["type"], strategy.get("rollingUpdate")
    if kind == "OnDelete":
        if rolling is not None:
            shown = internal("#apps.RollingUpdateStatefulSetStrategy", rolling)
            text = "only allowed for updateStrategy 'RollingUpdate'"
            errors.append(invalid_value(f"{path}.rollingUpdate", shown, text))
    elif kind != "RollingUpdate":
        shown = internal("#apps.StatefulSetUpdateStrategy", strategy)
        errors.append(invalid_value(path, shown, "must be 'RollingUpdate' or 'OnDelete'"))
    elif rolling is not None:
        at_least_0(errors, f"{path}.rollingUpdate.partition", rolling["partition"])
        unavailable, at = rolling["maxUnavailable"], f"{path}.rollingUpdate.maxUnavailable"
        positive_int_or_percent(errors, at, unavailable)
        if workloads.amount(unavailable) == 0:
            errors.append(invalid_value(at, unavailable, "cannot be 0"))
        not_more_than_100_percent(errors, at, unavailable)


def _status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    status = obj.get("status") or {}
    workloads.counts(errors, status, *_COUNTS)
    workloads.at_most_replicas(
        errors,
        status,
        *("readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"),
        ready="status.readyReplicas",
    )
    workloads.collisions(errors, status, old.get("status") or {})
    return errors


def _ready_cell(obj: Object, now: float) -> str:
    return f"{dig(obj, 'status', 'readyReplicas', default=0) or 0}/{dig(obj, 'spec', 'replicas', default=0)}"


_strategy = _StatefulSet()

STATEFULSETS = Resource(
    gvr=GVR_STATEFULSETS,
    kind="StatefulSet",
    short_names=("sts",),
    categories=("all",),
    strategy=_strategy,
    status=StatusStrategy(_strategy, rules=_status),
    scale=ScaleSpec(),
    columns=(NAME, Column("Ready", _ready_cell), AGE, workloads.CONTAINERS, workloads.IMAGES),
)
