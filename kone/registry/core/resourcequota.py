"""ResourceQuotas: how much of everything a namespace may hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, invalid_value, required
from kone.apimachinery.kinds import RESOURCEQUOTAS as GVR_RESOURCEQUOTAS
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.registry.core.pod_defaults import round_resources
from kone.registry.core.resource_rules import (
    QUOTA_RESOURCES,
    is_quota_huge_page,
    quantity,
    quota_resource_name,
    resource_quantity,
)
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors
from kone.registry.strategy import StatusStrategy, Strategy, keep_field

_OF_PODS = ("pods", "cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory")
_OF_CLAIMS = ("persistentvolumeclaims", "requests.storage")
_SCOPES: Mapping[str, Sequence[str]] = {
    "Terminating": _OF_PODS,
    "NotTerminating": _OF_PODS,
    "BestEffort": ("pods",),
    "NotBestEffort": _OF_PODS,
    "PriorityClass": _OF_PODS,
    "VolumeAttributesClass": _OF_CLAIMS,
    "CrossNamespacePodAffinity": _OF_PODS,
}
"""Which resources each scope may narrow."""
_ONLY_EXIST = ("Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "CrossNamespacePodAffinity")
_CLASHES = (("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating"))
_COMPARED = ("cpu", "memory", "storage", "ephemeral-storage")


class _ResourceQuota(Strategy):
    def default(self, obj: Object) -> None:
        round_resources(obj.setdefault("spec", {}).get("hard"))
        status = obj.setdefault("status", {})
        round_resources(status.get("hard"))
        round_resources(status.get("used"))

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is None:
            obj["status"] = {}
        else:
            keep_field(obj, old, "status")

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        _amounts(errors, "spec.hard", spec.get("hard") or {})
        _scopes(errors, spec)
        _scope_selector(errors, spec)
        if old is not None and set(spec.get("scopes") or ()) != set(old["spec"].get("scopes") or ()):
            errors.append(invalid_value("spec.scopes", spec.get("scopes"), IMMUTABLE))
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if old is not None:
            return
        hard = obj["spec"].get("hard") or {}
        for name in _COMPARED:
            asked, most = f"requests.{name}", f"limits.{name}"
            if asked not in hard and name in ("cpu", "memory"):
                asked = name
            if asked in hard and most in hard and quantity(hard[asked]) > quantity(hard[most]):
                yield f"ResourceQuota {asked} ({hard[asked]}) should be less than {most} ({hard[most]})"


class _ResourceQuotaStatus(StatusStrategy):
    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        status = obj.get("status") or {}
        _amounts(errors, "status.hard", status.get("hard") or {})
        _amounts(errors, "status.used", status.get("used") or {})
        return errors


def _amounts(errors: Errors, path: str, amounts: Mapping[str, Any]) -> None:
    for name, amount in amounts.items():
        at = f"{path}[{name}]"
        quota_resource_name(errors, at, name)
        resource_quantity(errors, at, name, amount)


def _misapplied(scope: str, spec: Mapping[str, Any]) -> int:
    """To how many of the quota's resources the scope does not apply."""
    allowed = _SCOPES.get(scope)
    if allowed is None:
        return 0
    known = (name for name in spec.get("hard") or () if name in QUOTA_RESOURCES or is_quota_huge_page(name))
    return sum(name not in allowed for name in known)


def _scopes(errors: Errors, spec: Mapping[str, Any]) -> None:
    scopes = spec.get("scopes") or []
    for scope in scopes:
        if scope not in _SCOPES:
            errors.append(invalid_value("spec.scopes", scopes, "unsupported scope"))
        for _ in range(_misapplied(scope, spec)):
            errors.append(invalid_value("spec.scopes", scopes, "unsupported scope applied to resource"))
    _clashes(errors, "spec.scopes", scopes, scopes)


def _clashes(errors: Errors, path: str, scopes: Iterable[str], shown: Any) -> None:
    present = set(scopes)
    for clash in _CLASHES:
        if present.issuperset(clash):
            errors.append(invalid_value(path, shown, "conflicting scopes"))


def _scope_selector(errors: Errors, spec: Mapping[str, Any]) -> None:
    selector = spec.get("scopeSelector")
    if selector is None:
        return
    path, expressions = "spec.scopeSelector.matchExpressions", selector.get("matchExpressions") or ()
    for expression in expressions:
        scope, operator, values = (
            expression.get("scopeName", ""),
            expression.get("operator", ""),
            expression.get("values") or [],
        )
        if scope not in _SCOPES:
            errors.append(invalid_value(f"{path}.scopeName", scope, "unsupported scope"))
        for _ in range(_misapplied(scope, spec)):
            shown = internal("#core.ScopeSelector", selector)
            errors.append(invalid_value(path, shown, "unsupported scope applied to resource"))
        if scope in _ONLY_EXIST and operator != "Exists":
            text = "must be 'Exists' when scope is any of "
            text += ", ".join(f"ResourceQuotaScope{name}" for name in ("Terminating", "NotTerminating", "BestEffort"))
            text += ", ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"
            errors.append(invalid_value(f"{path}.operator", operator, text))
        if operator in ("In", "NotIn"):
            if not values:
                text = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"
                errors.append(required(f"{path}.values", text))
        elif operator not in ("Exists", "DoesNotExist"):
            errors.append(invalid_value(f"{path}.operator", operator, "not a valid selector operator"))
        elif values:
            text = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"
            errors.append(invalid_value(f"{path}.values", values, text))
    _clashes(errors, path, (each.get("scopeName", "") for each in expressions), spec.get("scopes"))


def _used(obj: Object, of_limits: bool) -> str:
    status = obj.get("status") or {}
    hard, used = status.get("hard") or {}, status.get("used") or {}
    return ", ".join(
        f"{name}: {used.get(name, '0')}/{hard[name]}"
        for name in sorted(hard)
        if name.startswith("limits.") == of_limits
    )


_strategy = _ResourceQuota()

RESOURCEQUOTAS = Resource(
    gvr=GVR_RESOURCEQUOTAS,
    kind="ResourceQuota",
    short_names=("quota",),
    strategy=_strategy,
    status=_ResourceQuotaStatus(_strategy),
    columns=(
        NAME,
        Column("Request", lambda obj, now: _used(obj, False)),
        Column("Limit", lambda obj, now: _used(obj, True)),
        AGE,
    ),
)
