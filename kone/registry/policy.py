"""policy: PodDisruptionBudgets, what evictions must leave running."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import FieldError, invalid_value, not_supported
from kone.apimachinery.kinds import PODDISRUPTIONBUDGETS
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.users import User
from kone.registry.conditions import conditions, not_more_than_100_percent, positive_int_or_percent
from kone.registry.equality import same
from kone.registry.internal import internal
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, at_least_0, has_invalid_selector_value, label_selector
from kone.registry.strategy import SpecStrategy, StatusStrategy, path_segment

_EVICTION_POLICIES = ("AlwaysAllow", "IfHealthyBudget")
_EMPTY_MATCH_KEY = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match"
_MATCH_NOTHING = {"matchExpressions": [{"key": _EMPTY_MATCH_KEY, "operator": "Exists"}]}
_COUNTS = ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods")


class _PodDisruptionBudget(SpecStrategy):
    kube_finalizers = False
    name_rule = staticmethod(path_segment)  # that it is a DNS name nobody asks
    unconditional_update = False

    def initial_status(self, obj: Object) -> Object:
        return {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        # The key by which v1beta1's empty selector is told from v1's stands alone or not at all.
        selector = dig(obj, "spec", "selector")
        if not selector or same(selector, _MATCH_NOTHING):
            return
        if old is None or not same(selector, dig(old, "spec", "selector")):
            kept = [
                each for each in selector.pop("matchExpressions", None) or () if each.get("key") != _EMPTY_MATCH_KEY
            ]
            if kept:
                selector["matchExpressions"] = kept

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj.get("spec") or {}
        bounds = [name for name in ("minAvailable", "maxUnavailable") if spec.get(name) is not None]
        if len(bounds) == 2:
            shown = internal("#policy.PodDisruptionBudgetSpec", spec)
            errors.append(invalid_value("spec", shown, "minAvailable and maxUnavailable cannot be both set"))
        for name in bounds:
            positive_int_or_percent(errors, f"spec.{name}", spec[name])
            not_more_than_100_percent(errors, f"spec.{name}", spec[name])
        any_value = has_invalid_selector_value(dig(old, "spec", "selector"))
        label_selector(errors, "spec.selector", spec.get("selector"), any_value=any_value)
        policy = spec.get("unhealthyPodEvictionPolicy")
        if policy is not None and policy not in _EVICTION_POLICIES:
            errors.append(not_supported("spec.unhealthyPodEvictionPolicy", policy, _EVICTION_POLICIES))
        return errors


def _status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    status = obj.get("status") or {}
    conditions(errors, "status.conditions", status.get("conditions") or ())
    for name in _COUNTS:
        at_least_0(errors, f"status.{name}", status.get(name))
    return errors


def _bound(name: str, field: str) -> Column:
    return Column(name, lambda obj, now: str(dig(obj, "spec", field, default="N/A")))


_budget = _PodDisruptionBudget()

RESOURCES: Sequence[Resource] = (
    Resource(
        PODDISRUPTIONBUDGETS,
        "PodDisruptionBudget",
        _budget,
        short_names=("pdb",),
        status=StatusStrategy(_budget, rules=_status),
        columns=(
            NAME,
            _bound("Min Available", "minAvailable"),
            _bound("Max Unavailable", "maxUnavailable"),
            Column(
                "Allowed Disruptions",
                lambda obj, now: dig(obj, "status", "disruptionsAllowed", default=0),
                type="integer",
            ),
            AGE,
        ),
    ),
)
