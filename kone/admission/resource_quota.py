"""ResourceQuota: a namespace's quotas bound what its objects cost together (apiserver, plugin/resourcequota).

What is used is counted from the objects themselves, which are all here, not from the quota's status: that is for users,
and its controller keeps it. An object that passed counts from then on, though it is committed a moment later; if it
never is, it is forgotten after a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kone.admission.plugin import Attributes, Caches, Plugin
from kone.aio.clock import Clock
from kone.apimachinery.objects import Object, dig, name_of, replace_in, resource_version_of
from kone.apimachinery.quantity import ZERO, Quantity
from kone.apimachinery.quota import (
    IGNORED,
    Costs,
    Evaluator,
    Usage,
    amounts,
    counts,
    evaluator_of,
    is_terminating,
    total,
)

PODS = ("", "pods")
RECOUNTED_ON_UPDATE = frozenset({PODS, ("", "services"), ("", "persistentvolumeclaims")})
PENDING_S = 5.0
_MUST_BE_ASKED_FOR = frozenset(f"{side}{name}" for side in ("", "requests.", "limits.") for name in ("cpu", "memory"))


@dataclass(frozen=True, slots=True)
class _Pending:
    """An object that has passed, without a version of its own, and the version that it follows ("": it is new)."""

    obj: Object
    follows: str
    until: float


class ResourceQuota(Plugin):
    name = "ResourceQuota"
    subresources = frozenset({"", "resize"})

    def __init__(self, caches: Caches, clock: Clock) -> None:
        self._caches = caches
        self._clock = clock
        self._quotas = caches.of("", "resourcequotas")
        self._pending: dict[tuple[tuple[str, str], str], dict[str, _Pending]] = {}  # by namespace, then by name
        self._costs = Costs()

    def handles(self, a: Attributes) -> bool:
        if not super().handles(a) or a.group_resource in IGNORED or a.group_resource == ("", "namespaces"):
            return False
        if a.subresource == "resize":
            return a.group_resource == PODS and a.operation == "UPDATE"
        return a.operation == "CREATE" or a.group_resource in RECOUNTED_ON_UPDATE

    async def validate(self, a: Attributes) -> None:
        quotas = [entry.obj for entry in self._quotas.list(a.namespace)] if a.namespace else []
        if not quotas or not _may_cost_more(a):
            return
        evaluator = evaluator_of(a.resource)
        concerned = [quota for quota in quotas if _names(quota, evaluator) and counts(quota, evaluator, a.object)]
        if a.group_resource == PODS:
            for quota in concerned:
                if missing := _not_asked_for(a.object, _MUST_BE_ASKED_FOR.intersection(_names(quota, evaluator))):
                    raise a.refuse(f"failed quota: {name_of(quota)}: must specify {missing}")
        charged = [self._charge(a, quota, evaluator) for quota in concerned]
        if any(charged) and not a.dry_run:
            follows = resource_version_of(a.old) if a.old is not None else ""
            unversioned = replace_in(a.object, ("metadata", "resourceVersion"), "")
            passed = _Pending(unversioned, follows, self._clock.monotonic() + PENDING_S)
            self._pending.setdefault((a.group_resource, a.namespace), {})[name_of(a.object)] = passed

    def _charge(self, a: Attributes, quota: Object, evaluator: Evaluator) -> Usage:
        """What the write costs more than before; refuses it where that is too much."""
        now = self._clock.now()
        requested = evaluator.usage(a.object, now)
        if a.old is not None and counts(quota, evaluator, a.old):
            before = evaluator.usage(a.old, now)
            requested = {name: cost - before.get(name, ZERO) for name, cost in requested.items()}
        hard = amounts(dig(quota, "spec", "hard"))
        requested = {name: cost for name, cost in requested.items() if name in hard and cost.nanos > 0}
        if not requested:
            return requested
        objects = self._objects(a.group_resource, a.namespace)
        used = total(quota, self._costs.remembered(evaluator), objects, now)
        exceeded = [name for name, cost in requested.items() if used[name] + cost > hard[name]]
        if exceeded:
            sides = {"requested": requested, "used": used, "limited": hard}
            told = ", ".join(f"{side}: {_list(usage, exceeded)}" for side, usage in sides.items())
            raise a.refuse(f"exceeded quota: {name_of(quota)}, {told}")
        return requested

    def _objects(self, group_resource: tuple[str, str], namespace: str) -> list[Object]:
        """Those of the namespace, as they will be when what is pending is committed."""
        objects = [entry.obj for entry in self._caches.of(*group_resource).list(namespace)]
        pending = self._pending.get((group_resource, namespace))
        if not pending:
            return objects
        by_name = {name_of(obj): obj for obj in objects}
        now = self._clock.monotonic()
        for name, passed in list(pending.items()):
            live = by_name.get(name)
            if passed.until < now or passed.follows != (resource_version_of(live) if live is not None else ""):
                del pending[name]
            else:
                by_name[name] = passed.obj
        if not pending:
            del self._pending[group_resource, namespace]
        return list(by_name.values())


def _may_cost_more(a: Attributes) -> bool:
    """A plain update of a pod matters only where it changes whose scope it is in."""
    if a.group_resource != PODS or a.old is None or a.subresource:
        return True
    return is_terminating(a.object) != is_terminating(a.old)


def _names(quota: Object, evaluator: Evaluator) -> list[str]:
    return evaluator.matching(dig(quota, "spec", "hard", default={}))


def _not_asked_for(pod: Object, names: Iterable[str]) -> str:
    """What containers must say because a quota bounds it ("limits.cpu for: a,b; memory for: b"); "" for nothing."""
    spec = pod["spec"]
    if dig(spec, "resources", "requests") or dig(spec, "resources", "limits"):
        return ""
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    lacking: dict[str, list[str]] = {}
    for wanted in sorted(names):
        side, _, name = wanted.rpartition(".")
        silent = {
            c.get("name", "") for c in containers if name not in dig(c, "resources", side or "requests", default={})
        }
        if silent:
            lacking[wanted] = sorted(silent)
    return "; ".join(f"{name} for: {','.join(of)}" for name, of in lacking.items())


def _list(usage: Mapping[str, Quantity], names: Iterable[str]) -> str:
    return ",".join(f"{name}={usage[name]}" for name in sorted(names))
