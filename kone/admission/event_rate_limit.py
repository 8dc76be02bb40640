"""EventRateLimit: token buckets bound how many Events are written, by the server, a namespace, a user, or a source with
its object.

The configuration is of upstream's kind (eventratelimit.admission.k8s.io/v1alpha1).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from kone.admission.plugin import Attributes, Plugin
from kone.aio.clock import Clock
from kone.apimachinery.config_files import load, refuse
from kone.apimachinery.errors import FieldError, StatusError, aggregate, invalid_value, not_supported
from kone.apimachinery.objects import dig

API_VERSIONS = ("eventratelimit.admission.k8s.io/v1alpha1",)
TYPES = ("Server", "Namespace", "User", "SourceAndObject")
CACHE_SIZE = 4096  # buckets of a limit, where it does not say
SHAPE = {"limits": [{"type": str, "qps": int, "burst": int, "cacheSize": int}]}


@dataclass(frozen=True, slots=True)
class Limit:
    type: str
    qps: int
    burst: int
    cache_size: int = CACHE_SIZE


def parse(text: str) -> tuple[Limit, ...]:
    """Raises ConfigFileError."""
    found = load(text, "Configuration", API_VERSIONS, SHAPE).get("limits") or ()
    errors: list[FieldError] = [] if found else [invalid_value("limits", None, "must not be empty")]
    for i, limit in enumerate(found):
        at, kind = f"limits[{i}]", limit.get("type") or ""
        if kind not in TYPES:
            errors.append(not_supported(f"{at}.type", kind, TYPES))
        for field in ("burst", "qps"):
            if (limit.get(field) or 0) <= 0:
                errors.append(invalid_value(f"{at}.{field}", limit.get(field) or 0, "must be positive"))
        if kind != "Server" and (limit.get("cacheSize") or 0) < 0:
            errors.append(invalid_value(f"{at}.cacheSize", limit["cacheSize"], "must not be negative"))
    refuse(errors)
    return tuple(Limit(each["type"], each["qps"], each["burst"], each.get("cacheSize") or CACHE_SIZE) for each in found)


class _Buckets:
    """One limit's token buckets; the one that was asked longest ago makes room."""

    def __init__(self, limit: Limit, clock: Clock) -> None:
        self.limit, self._clock = limit, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when they were counted

    def take(self, key: str) -> bool:
        now, limit = self._clock.monotonic(), self.limit
        tokens, at = self._buckets.pop(key, (float(limit.burst), now))
        tokens = min(float(limit.burst), tokens + (now - at) * limit.qps)
        is_allowed = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if is_allowed else tokens, now)
        if len(self._buckets) > limit.cache_size:
            self._buckets.popitem(last=False)
        return is_allowed


class EventRateLimit(Plugin):
    name = "EventRateLimit"
    resources = frozenset({("", "events")})
    subresources = None

    def __init__(self, limits: Sequence[Limit], clock: Clock) -> None:
        self._limits = [_Buckets(limit, clock) for limit in limits]

    async def validate(self, a: Attributes) -> None:
        if a.dry_run:
            return
        keys = ((buckets, _key(buckets.limit.type, a)) for buckets in self._limits)
        reached = [
            f"limit reached on type {buckets.limit.type} for key {key}"
            for buckets, key in keys
            if not buckets.take(key)
        ]
        if reached:
            raise StatusError(429, "TooManyRequests", f"Too many requests: {aggregate(reached)}")


def _key(kind: str, a: Attributes) -> str:
    """Whose bucket a write draws from."""
    if kind == "Server":
        return ""
    if kind == "Namespace":
        return a.namespace
    if kind == "User":
        return a.user.name
    source = (dig(a.object, "source", field) for field in ("component", "host"))
    named = ("kind", "namespace", "name", "uid", "apiVersion")
    return "".join(part or "" for part in (*source, *(dig(a.object, "involvedObject", field) for field in named)))
