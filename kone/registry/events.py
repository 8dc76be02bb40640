"""events.k8s.io: v1's events under names of their own, judged strictly and stored in v1's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, invalid_value, required
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import parse_time
from kone.registry.conversion import Renaming
from kone.registry.core.event import COLUMNS, EventStrategy, rules
from kone.registry.equality import same
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal
from kone.registry.resource import Column, Resource
from kone.registry.rules import Errors
from kone.registry.strategy import dns_subdomain

_NAMES = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
"""What v1 calls the fields of events.k8s.io/v1."""
_NAMES_BACK = {core: name for name, core in _NAMES.items()}
_UNSET = ("firstTimestamp", "lastTimestamp", "count")
_FIXED = {
    "involvedObject": "#core.ObjectReference",
    "reason": "s",
    "message": "s",
    "source": "#core.EventSource",
    "firstTimestamp": "t",
    "lastTimestamp": "t",
    "count": "i",
    "type": "s",
    "eventTime": "t",
    "action": "s",
    "related": "*#core.ObjectReference",
    "reportingComponent": "s",
    "reportingInstance": "s",
}
"""What does not change, in upstream's order, and its internal type."""
_ALWAYS_IN_V1 = ("reportingComponent", "reportingInstance")


def to_storage(event: Object) -> Object:
    """In v1's form, where two of the fields are there even when they are empty."""
    renamed = {_NAMES.get(field, field): value for field, value in event.items()}
    return {**dict.fromkeys(_ALWAYS_IN_V1, ""), **renamed, "apiVersion": "v1"}


def from_storage(event: Object) -> Object:
    renamed = {
        _NAMES_BACK.get(field, field): value
        for field, value in event.items()
        if value != "" or field not in _ALWAYS_IN_V1
    }
    return {**renamed, "apiVersion": "events.k8s.io/v1"}


class _Event(EventStrategy):
    name_rule = staticmethod(dns_subdomain)
    kube_finalizers = True

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        event, before = to_storage(obj), to_storage(old) if old is not None else None
        errors = rules(event, "reportingController")
        if before is None:
            _new(errors, event)
            return errors
        if event.get("series") != before.get("series"):
            _series(errors, event)
        for field, kind in _FIXED.items():
            _fixed(errors, field, kind, event, before)
        return errors

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        found = {}
        for label, value in super().selectable_fields(to_storage(obj)).items():
            if label != "source":
                head, _, rest = label.partition(".")
                found[f"{_NAMES_BACK.get(head, head)}.{rest}" if rest else _NAMES_BACK.get(head, head)] = value
        return found


def _new(errors: Errors, event: Object) -> None:
    _series(errors, event)
    if not event.get("eventTime"):
        errors.append(required("eventTime"))
    kind = event.get("type", "")
    if kind not in ("Normal", "Warning"):
        errors.append(invalid_value("type", "", f"has invalid value: {kind}"))
    source = event.get("source") or {}
    unset = [field for field in _UNSET if event.get(field)]
    if source.get("component") or source.get("host"):
        unset.append("source")
    errors.extend(invalid_value(field, "", "needs to be unset") for field in unset)


def _series(errors: Errors, event: Object) -> None:
    series = event.get("series")
    if series is None:
        return
    if series.get("count", 0) < 2:
        errors.append(invalid_value("series.count", "", "should be at least 2"))
    if not series.get("lastObservedTime"):
        errors.append(required("series.lastObservedTime"))


def _fixed(errors: Errors, field: str, kind: str, event: Object, before: Object) -> None:
    value, was = event.get(field), before.get(field)
    if same(value, was):
        return
    if field == "eventTime" and value and was and _microseconds(value) == _microseconds(was):
        return
    shown = "reportingController" if field == "reportingComponent" else field
    errors.append(invalid_value(shown, None if kind[0] == "*" and value is None else internal(kind, value), IMMUTABLE))


def _microseconds(time: str) -> int:
    return int(parse_time(time) * 1_000_000)


def _of_stored(column: Column) -> Column:
    def cell(obj: Object, now: float, shown: Callable[[Object, float], Any] = column.cell) -> Any:
        return shown(to_storage(obj), now)

    return Column(column.name, cell, column.type, column.format, column.priority)


RESOURCES: Sequence[Resource] = (
    Resource(
        gvr=GVR("events.k8s.io", "v1", "events"),
        kind="Event",
        short_names=("ev",),
        strategy=_Event(),
        columns=tuple(map(_of_stored, COLUMNS)),
        storage=("", "events"),
        conversion=Renaming(to_storage, from_storage),
    ),
)
