"""How `kubectl get` writes things: durations, and the cells that several kinds share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.selectors import from_label_selector

_MAX_SPAN_S = 2**63 / 1e9
_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86400, 365 * 86400


def _two(big: int, small: int, big_unit: str, small_unit: str) -> str:
    return f"{big}{big_unit}{small}{small_unit}" if small else f"{big}{big_unit}"


def human_duration(seconds: float) -> str:
    """A span to two or three figures, as duration.HumanDuration: 119 s "119s", 125 s "2m5s", 50 h "2d2h"."""
    s = int(seconds)
    if s < -1:
        return "<invalid>"
    if s < 0:
        return "0s"
    if s < 2 * _MINUTE:
        return f"{s}s"
    minutes, hours, days = s // _MINUTE, s // _HOUR, s // _DAY
    if minutes < 10:
        return _two(minutes, s % 60, "m", "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, minutes % 60, "h", "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _two(days, hours % 24, "d", "h")
    if hours < 24 * 365 * 2:
        return f"{days}d"
    years = hours // (24 * 365)
    return _two(years, days % 365, "y", "d") if years < 8 else f"{years}y"


def age(then: float, now: float) -> str:
    """How long ago a Unix time was, 292 years at most as Go counts; "<unknown>" for 0."""
    return human_duration(min(now - then, _MAX_SPAN_S)) if then else "<unknown>"


def selector_text(selector: Mapping[str, str] | None) -> str:
    """A map selector as labels.FormatLabels: "a=b,c=d", or "<none>"."""
    return ",".join(f"{key}={selector[key]}" for key in sorted(selector)) if selector else "<none>"


def container_names(pod_spec: Mapping[str, Any]) -> str:
    return ",".join(str(container.get("name", "")) for container in pod_spec.get("containers") or ())


def container_images(pod_spec: Mapping[str, Any]) -> str:
    return ",".join(str(container.get("image", "")) for container in pod_spec.get("containers") or ())


def joined(items: Iterable[str], none: str = "<none>") -> str:
    return ",".join(items) or none


def joined_some(items: Sequence[str], most: int = 3) -> str:
    """The first `most` of them, and how many more there are: "a,b,c + 2 more..."; "<unset>" for none."""
    text = ",".join(items[:most]) or "<unset>"
    return f"{text} + {len(items) - most} more..." if len(items) > most else text


def more_hosts(hosts: Sequence[str], most: int = 3) -> str:
    """Hosts of an Ingress: "*" for none."""
    return joined_some(hosts, most) if hosts else "*"


def label_selector_text(selector: Mapping[str, Any] | None) -> str:
    """A metav1.LabelSelector as metav1.FormatLabelSelector: "a=b,c in (d,e)"; "<none>" where it is empty."""
    try:
        return str(from_label_selector(selector)) or "<none>"
    except ValueError:
        return "<error>"
