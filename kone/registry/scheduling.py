"""scheduling.k8s.io: PriorityClasses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.kinds import PRIORITYCLASSES
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.registry.generic import IMMUTABLE
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors
from kone.registry.strategy import Strategy

HIGHEST_USER_PRIORITY = 1_000_000_000
_SYSTEM_PREFIX = "system-"
_SYSTEM_CLASSES = {
    "system-node-critical": 2 * HIGHEST_USER_PRIORITY + 1000,
    "system-cluster-critical": 2 * HIGHEST_USER_PRIORITY,
}
_PREEMPTION_POLICIES = ("PreemptLowerPriority", "Never")


class _PriorityClass(Strategy):
    def default(self, obj: Object) -> None:
        if obj.get("preemptionPolicy") is None:
            obj["preemptionPolicy"] = "PreemptLowerPriority"

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is None:
            obj["metadata"]["generation"] = 1

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        value, policy = obj.get("value", 0), obj.get("preemptionPolicy")
        if old is not None:
            if value != old.get("value", 0):
                errors.append(forbidden_field("value", "may not be changed in an update."))
            if policy != old.get("preemptionPolicy"):
                errors.append(invalid_value("preemptionPolicy", policy, IMMUTABLE))
            return errors
        name = obj["metadata"].get("name", "")
        if name.startswith(_SYSTEM_PREFIX):
            why = _system_class(name, value, bool(obj.get("globalDefault")))
            if why:
                reserved = f"priority class names with '{_SYSTEM_PREFIX}' prefix are reserved for system use only"
                errors.append(forbidden_field("metadata.name", f"{reserved}. error: {why}"))
        elif value > HIGHEST_USER_PRIORITY:
            why = f"maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
            errors.append(forbidden_field("value", why))
        if not policy:
            errors.append(required("preemptionPolicy"))
        elif policy not in _PREEMPTION_POLICIES:
            errors.append(not_supported("preemptionPolicy", policy, _PREEMPTION_POLICIES))
        return errors


def _system_class(name: str, value: int, is_default: bool) -> str:
    """What is wrong with a class of the system's own prefix; "" where nothing is."""
    expected = _SYSTEM_CLASSES.get(name)
    if expected is None:
        return f"{name} is not a known system priority class"
    if value != expected:
        return f"value of {name} PriorityClass must be {expected}"
    return f"globalDefault of {name} PriorityClass must be false" if is_default else ""


RESOURCES: Sequence[Resource] = (
    Resource(
        PRIORITYCLASSES,
        "PriorityClass",
        _PriorityClass(),
        namespaced=False,
        short_names=("pc",),
        columns=(
            NAME,
            Column("Value", lambda obj, now: obj.get("value", 0), type="integer"),
            Column("Global-Default", lambda obj, now: bool(obj.get("globalDefault")), type="boolean"),
            AGE,
            Column("PreemptionPolicy", lambda obj, now: obj.get("preemptionPolicy") or ""),
        ),
    ),
)
