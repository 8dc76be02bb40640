"""What kubelets counted, twice, and what follows from it: CPU and memory in use by nodes and containers.

A kubelet tells CPU time since a container's start; use is the growth between two looks. Pure. Source of the rules:
metrics-server's storage (a container's first look counts from its start, one that was started again begins anew).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kone.apimachinery.objects import Object
from kone.apimachinery.quantity import Quantity
from kone.apimachinery.timestamps import format_time, go_duration

FRESH_MIN_S = 10.0  # a container that is younger says too little about itself
FRESH_MAX_S = 15.0  # one that is older has been looked at before

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)(?: (-?\d+))?")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Point:
    """What was counted at one moment; times are Unix seconds."""

    at: float
    cpu_ns: int
    memory_bytes: int
    started_at: float = 0.0


Containers = Mapping[str, Point]
PodKey = tuple[str, str]
"""(namespace, name)."""


@dataclass(slots=True)
class Look:
    """One look at every node: points of nodes by name, and of containers by pod and name."""

    nodes: dict[str, Point] = field(default_factory=dict)
    pods: dict[PodKey, dict[str, Point]] = field(default_factory=dict)

    def take(self, node: str, text: str, now: float) -> None:
        """Add what one kubelet's /metrics/resource says; what it gives no time was so `now`."""
        found: dict[tuple[str, str, str], dict[str, float]] = {}
        times: dict[tuple[str, str, str], float] = {}
        for family, labels, value, at in _samples(text):
            if family.startswith("container_"):
                key = labels.get("namespace", ""), labels.get("pod", ""), labels.get("container", "")
            elif family.startswith("node_"):
                key = "", "", ""
            else:
                continue
            found.setdefault(key, {})[family.split("_", 1)[1]] = value
            if at is not None:
                times[key] = min(at, times.get(key, at))
        for key, values in found.items():
            if "cpu_usage_seconds_total" not in values or "memory_working_set_bytes" not in values:
                continue
            point = Point(
                times.get(key, now),
                round(values["cpu_usage_seconds_total"] * 1e9),
                int(values["memory_working_set_bytes"]),
                values.get("start_time_seconds", 0.0),
            )
            namespace, pod, container = key
            if container:
                self.pods.setdefault((namespace, pod), {})[container] = point
            else:
                self.nodes[node] = point


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float, float | None]]:
    """(family, labels, value, Unix seconds or None) of Prometheus' text format."""
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is None or line.startswith("#"):
            continue
        family, inside, value, at = match.groups()
        labels = {name: _plain(quoted) for name, quoted in _LABEL.findall(inside or "")}
        yield family, labels, float(value), int(at) / 1000 if at else None


def _plain(quoted: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], quoted)


class Points:
    """The last look and, for what was there before, the one to compare it with."""

    def __init__(self) -> None:
        self._last = Look()
        self._before = Look()

    def store(self, look: Look) -> None:
        before = Look()
        for name, point in look.nodes.items():
            if (known := _earlier(point, self._last.nodes.get(name), self._before.nodes.get(name))) is not None:
                before.nodes[name] = known
        for key, containers in look.pods.items():
            last, older = self._last.pods.get(key, {}), self._before.pods.get(key, {})
            for name, point in containers.items():
                if FRESH_MIN_S <= point.at - point.started_at < FRESH_MAX_S:
                    known = Point(point.started_at, 0, point.memory_bytes, point.started_at)
                else:
                    known = _earlier(point, last.get(name), older.get(name))
                if known is not None:
                    before.pods.setdefault(key, {})[name] = known
        self._last, self._before = look, before

    def node(self, name: str) -> Object | None:
        """Timestamp, window and usage of a node; None where too little is known."""
        last, before = self._last.nodes.get(name), self._before.nodes.get(name)
        if last is None or before is None or last.cpu_ns < before.cpu_ns:
            return None
        return {**_times(last, before), "usage": _usage(last, before)}

    def pod(self, namespace: str, name: str) -> Object | None:
        """Timestamp, window and containers of a pod; None where too little is known of one of them."""
        last, before = self._last.pods.get((namespace, name)), self._before.pods.get((namespace, name))
        if last is None or before is None or not last.keys() <= before.keys():
            return None
        counted = {one: (last[one], before[one]) for one in sorted(last) if last[one].cpu_ns >= before[one].cpu_ns}
        if not counted:
            return None
        earliest = min(counted.values(), key=lambda pair: pair[0].at)
        containers = [{"name": one, "usage": _usage(*pair)} for one, pair in counted.items()]
        return {**_times(*earliest), "containers": containers}


def _earlier(point: Point, last: Point | None, older: Point | None) -> Point | None:
    """What to compare a point with: the last look where it is an earlier one at the same life."""
    if last is None or (point.started_at and point.started_at >= last.at):
        return None
    if point.at > last.at:
        return last
    return older if older is not None and older.at < point.at else None


def _times(last: Point, before: Point) -> Object:
    return {"timestamp": format_time(last.at), "window": go_duration(round(last.at - before.at, 3))}


def _usage(last: Point, before: Point) -> Object:
    nanocores = int((last.cpu_ns - before.cpu_ns) / (last.at - before.at))
    return {
        "cpu": Quantity(nanocores).canonical(),
        "memory": Quantity.of(last.memory_bytes, "BinarySI").canonical(),
    }
