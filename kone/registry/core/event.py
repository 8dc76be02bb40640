"""Events, which v1 takes nearly as they come and events.k8s.io/v1 judges strictly; both are one kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kone.apimachinery.errors import FieldError, invalid_value, required
from kone.apimachinery.kinds import EVENTS as GVR_EVENTS
from kone.apimachinery.names import is_qualified_name
from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import parse_time
from kone.registry.printing import age
from kone.registry.resource import NAME, Column, Resource
from kone.registry.rules import Errors, check
from kone.registry.strategy import Strategy, path_segment

_INVOLVED = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
_MAX_WORD, _MAX_MESSAGE = 128, 1024
_OTHER_NAMESPACE = "does not match event.namespace"
_TTL_S = 3600.0


class EventStrategy(Strategy):
    name_rule = staticmethod(path_segment)
    create_on_update = True
    kube_finalizers = False
    default_propagation = "Unsupported"
    ttl_s = _TTL_S

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        return rules(obj, "reportingComponent")

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        involved = obj.get("involvedObject") or {}
        reporter = obj.get("reportingComponent", "")
        found = {f"involvedObject.{field}": involved.get(field, "") for field in _INVOLVED}
        found["reason"] = obj.get("reason", "")
        found["reportingComponent"] = reporter
        found["source"] = (obj.get("source") or {}).get("component") or reporter
        found["type"] = obj.get("type", "")
        return found


def rules(event: Mapping[str, Any], reporter: str) -> Errors:
    """What both versions ask of an event in v1's form; `reporter` is what the version calls the reporting component."""
    errors: Errors = []
    namespace = event["metadata"].get("namespace", "")
    involved = (event.get("involvedObject") or {}).get("namespace", "")
    if not event.get("eventTime"):
        if involved != namespace and (involved or namespace != "default"):
            errors.append(invalid_value("involvedObject.namespace", involved, _OTHER_NAMESPACE))
        return errors
    if not involved and namespace not in ("default", "kube-system"):
        errors.append(invalid_value("involvedObject.namespace", involved, _OTHER_NAMESPACE))
    component = event.get("reportingComponent", "")
    if not component:
        errors.append(required(reporter))
    check(errors, reporter, component, is_qualified_name(component))
    for field in ("reportingInstance", "action", "reason"):
        value = event.get(field, "")
        if not value:
            errors.append(required(field))
        _short(errors, field, value, _MAX_WORD)
    _short(errors, "message", event.get("message", ""), _MAX_MESSAGE)
    return errors


def _short(errors: Errors, field: str, value: str, most: int) -> None:
    if len(value.encode()) > most:
        errors.append(invalid_value(field, "", f"can have at most {most} characters"))


def _ago(time: str | None, now: float) -> str:
    return age(parse_time(time), now) if time else "<unknown>"


def _first_seen(obj: Object, now: float) -> str:
    return _ago(obj.get("firstTimestamp") or obj.get("eventTime"), now)


def _last_seen(obj: Object, now: float) -> str:
    if obj.get("series") is not None:
        return _ago(obj["series"].get("lastObservedTime"), now)
    return _ago(obj["lastTimestamp"], now) if obj.get("lastTimestamp") else _first_seen(obj, now)


def _object(obj: Object, now: float) -> str:
    involved = obj.get("involvedObject") or {}
    kind = involved.get("kind", "").lower()
    return f"{kind}/{involved['name']}" if involved.get("name") else kind


def _source(obj: Object, now: float) -> str:
    source = obj.get("source") or {}
    component = source.get("component") or obj.get("reportingComponent", "")
    instance = source.get("host") or obj.get("reportingInstance", "")
    return f"{component}, {instance}" if instance else component


def _count(obj: Object, now: float) -> int:
    if obj.get("series") is not None:
        return int(obj["series"].get("count", 0))
    return obj.get("count") or 1


COLUMNS = (
    Column("Last Seen", _last_seen),
    Column("Type", lambda obj, now: obj.get("type", "")),
    Column("Reason", lambda obj, now: obj.get("reason", "")),
    Column("Object", _object),
    Column("Subobject", lambda obj, now: (obj.get("involvedObject") or {}).get("fieldPath", ""), priority=1),
    Column("Source", _source, priority=1),
    Column("Message", lambda obj, now: obj.get("message", "").strip()),
    Column("First Seen", _first_seen, priority=1),
    Column("Count", _count, priority=1),
    Column(NAME.name, NAME.cell, format=NAME.format, priority=1),
)

EVENTS = Resource(
    gvr=GVR_EVENTS,
    kind="Event",
    short_names=("ev",),
    strategy=EventStrategy(),
    columns=COLUMNS,
)
