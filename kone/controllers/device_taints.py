"""Pods leave devices that are tainted NoExecute, unless their claims tolerate that, or when the time is up for which
they do; each DeviceTaintRule says how far its eviction is.

A taint is a device's own, in its ResourceSlice, or comes from a rule. Keys are pods, and rules without a namespace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.device_taints import means
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import DEVICETAINTRULES, PODS, RESOURCECLAIMS, RESOURCESLICES
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    find_condition,
    generation_of,
    is_deleting,
    key_of,
    name_of,
    namespace_of,
    uid_of,
)
from kone.apimachinery.pod_references import resource_claim_names
from kone.apimachinery.taints import tolerates
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch
from kone.controllers.pod_control import add_condition

CONDITION = "EvictionInProgress"
STATUS_PERIOD_S = 10.0  # the shortest time between two changes of a rule's status
_WITH_CLAIMS = "with claims"


# Decide


@dataclass(frozen=True, slots=True)
class Eviction:
    """When a pod has to go, in Unix seconds, and the UIDs of the rules for whose sake."""

    at: float
    rules: frozenset[str]


@dataclass(frozen=True, slots=True)
class Devices:
    """Devices as they are published now, by driver, pool and name: slices of older generations do not count."""

    by_name: Mapping[tuple[str, str, str], Object]


def published(slices: Iterable[Object]) -> Devices:
    every = list(slices)
    newest: dict[tuple[str, str], int] = {}
    for found in every:
        pool = found["spec"]["pool"]
        of = found["spec"]["driver"], pool["name"]
        newest[of] = max(newest.get(of, 0), pool.get("generation") or 0)
    return Devices(
        {
            (found["spec"]["driver"], found["spec"]["pool"]["name"], device["name"]): device
            for found in every
            if (found["spec"]["pool"].get("generation") or 0)
            == newest[found["spec"]["driver"], found["spec"]["pool"]["name"]]
            for device in found["spec"].get("devices") or ()
        }
    )


def results_of(claim: Object) -> Sequence[Object]:
    """The devices that the claim was given."""
    found: Sequence[Object] = dig(claim, "status", "allocation", "devices", "results", default=())
    return found


def eviction_of(claims: Iterable[Object], devices: Devices, rules: Sequence[Object]) -> Eviction | None:
    """When, and why, a pod with these claims has to go; None where it may stay.

    Worked case: a taint was added at 100 and is tolerated for 60 s, another, of a rule, was added at 130 and is not:
    the pod goes at 130, for the sake of both.
    """
    times: list[float] = []
    because: set[str] = set()
    for claim in claims:
        for result in results_of(claim):
            for taint, rule in _taints(result, devices, rules):
                stays_s = _tolerated_s(result.get("tolerations") or (), taint)
                if stays_s is None:
                    continue
                times.append(parse_time(taint["timeAdded"]) + stays_s if taint.get("timeAdded") else 0.0)
                because |= {rule} - {""}
    return Eviction(min(times), frozenset(because)) if times else None


def _taints(result: Object, devices: Devices, rules: Iterable[Object]) -> Iterator[tuple[Object, str]]:
    """Each NoExecute taint of the device that was given, with the UID of its rule, "" where it is the device's own."""
    where = result["driver"], result["pool"], result["device"]
    for taint in devices.by_name.get(where, {}).get("taints") or ():
        if taint.get("effect") == "NoExecute":
            yield taint, ""
    for rule in rules:
        taint = dig(rule, "spec", "taint", default={})
        if taint.get("effect") == "NoExecute" and means(rule, *where):
            yield taint, uid_of(rule)


def _tolerated_s(tolerations: Iterable[Mapping[str, Any]], taint: Object) -> float | None:
    """For how long: 0 where not at all, None for ever."""
    times = [
        each.get("tolerationSeconds")
        for each in tolerations
        if each.get("effect") == "NoExecute" and tolerates(each, taint)
    ]
    if None in times:
        return None
    return float(max(min((time for time in times if time is not None), default=0), 0))


def condition_of(rule: Object, pending: Sequence[Object], evicted: int, counts: tuple[int, int]) -> Object:
    """The rule's condition. `pending` pods have to go (or would, were the effect not None); `counts`: published devices
    that it means, and allocated ones."""
    effect = dig(rule, "spec", "taint", "effect", default="")
    spaces = len({namespace_of(pod) for pod in pending})
    status, message = "False", ""
    if effect == "NoExecute":
        reason = "Completed" if evicted else "NotStarted"
        if pending:
            status, reason = "True", "PodsPendingEviction"
            verb = "needs" if len(pending) == 1 else "need"
            message = f"{_count(len(pending), 'pod')} {verb} to be evicted in {_spaces(spaces)}."
    elif effect == "None":
        reason = "NoEffect"
        message = (
            f"{_count(counts[0], 'published device')} selected. {_count(counts[1], 'allocated device')} selected. "
            f"{_count(len(pending), 'pod')} would be evicted in {_spaces(spaces)} if the effect was NoExecute. "
            "This information will not be updated again. Recreate the DeviceTaintRule to trigger an update."
        )
    else:
        reason, message = "OtherEffect", "Eviction only happens for the NoExecute effect."
    if evicted:
        message = f"{message} {_count(evicted, 'pod')} evicted since starting the controller.".lstrip()
    return {
        "type": CONDITION,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation_of(rule),
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _spaces(number: int) -> str:
    return "1 namespace" if number == 1 else f"{number} different namespaces"


# Act


class DeviceTaints(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PODS)
        self._claims: Informer = ctx.client.informer(RESOURCECLAIMS)
        self._slices: Informer = ctx.client.informer(RESOURCESLICES)
        self._rules: Informer = ctx.client.informer(DEVICETAINTRULES)
        self._waiting: set[Key] = set()
        self._evicted: Counter[str] = Counter()  # by the rule's UID
        self.primary.add_index(_WITH_CLAIMS, lambda pod: [""] if dig(pod, "spec", "resourceClaims") else [])

    def subject(self, key: Key) -> Object | None:
        return self.primary.get(*key) if key.namespace else self._rules.get(*key)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_pod)
        yield Watch(self._claims, self._keys_of_claim)
        yield Watch(self._slices, lambda event, found, previous: self._all_pods())
        yield Watch(self._rules, self._keys_of_rule)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        return (key_of(pod),) if dig(pod, "spec", "resourceClaims") else ()

    def _keys_of_claim(self, event: EventType, claim: Object, previous: Object | None) -> Iterable[Key]:
        users = dig(claim, "status", "reservedFor", default=())
        return [Key(namespace_of(claim), user["name"]) for user in users if user.get("resource") == "pods"]

    def _keys_of_rule(self, event: EventType, rule: Object, previous: Object | None) -> Iterable[Key]:
        if previous is not None and previous.get("spec") == rule.get("spec") and event != "DELETED":
            return ()
        return [key_of(rule), *self._all_pods()]

    def _all_pods(self) -> list[Key]:
        return [key_of(pod) for pod in self.primary.by_index(_WITH_CLAIMS, "")]

    async def reconcile(self, key: Key) -> Result | None:
        return await (self._reconcile_pod(key) if key.namespace else self._reconcile_rule(key))

    async def _reconcile_pod(self, key: Key) -> Result | None:
        pod = self.primary.get(*key)
        eviction = self._eviction(pod, self._rules.list()) if pod is not None else None
        if pod is None or eviction is None:
            if key in self._waiting:
                self._waiting.discard(key)
                if pod is not None and not is_deleting(pod):
                    self._tell(pod, "Cancelling deletion")
            return None
        for rule in self._rules.list():
            if uid_of(rule) in eviction.rules:
                self._ctx.queue.add(key_of(rule))
        left_s = eviction.at - self._ctx.clock.now()
        if left_s > 0:
            self._waiting.add(key)
            return Result(after_s=left_s)
        self._waiting.discard(key)
        await self._evict(pod)
        self._evicted.update(eviction.rules)
        return None

    def _eviction(self, pod: Object, rules: Sequence[Object]) -> Eviction | None:
        if is_deleting(pod) or not dig(pod, "spec", "nodeName"):
            return None
        claims = [self._claims.get(namespace_of(pod), name) for name in resource_claim_names(pod)]
        used = [claim for claim in claims if claim is not None and _is_reserved_for(claim, pod)]
        return eviction_of(used, published(self._slices.list()), rules) if used else None

    async def _evict(self, pod: Object) -> None:
        self._tell(pod, "Marking for deletion")
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByDeviceTaintManager",
            "message": "Device Taint manager: deleting due to NoExecute taint",
        }
        try:
            await add_condition(self._ctx.client, pod, condition, self._ctx.clock.now())
            await self._ctx.client.delete(PODS, name_of(pod), namespace=namespace_of(pod), uid=uid_of(pod))
        except StatusError as error:
            if error.code not in (404, 409):
                raise

    def _tell(self, pod: Object, message: str) -> None:
        self._ctx.recorder.event(pod, "Normal", "DeviceTaintManagerEviction", message)

    async def _reconcile_rule(self, key: Key) -> Result | None:
        rule = self._rules.get(*key)
        if rule is None:
            return None
        now, old = self._ctx.clock.now(), find_condition(rule, CONDITION)
        if old is not None and old.get("observedGeneration") == generation_of(rule):
            left_s = parse_time(old["lastTransitionTime"]) + STATUS_PERIOD_S - now
            if left_s > 0:
                return Result(after_s=left_s)
        effect = dig(rule, "spec", "taint", "effect")
        if effect == "None" and old is not None and old.get("observedGeneration") == generation_of(rule):
            return None
        pending = self._pending(rule) if effect in ("None", "NoExecute") else []
        new = condition_of(rule, pending, self._evicted[uid_of(rule)], self._counts(rule))
        if old is None or any(old.get(field) != value for field, value in new.items()):
            status = {"conditions": [{**new, "lastTransitionTime": format_time(now)}]}
            patch = {"metadata": {"uid": uid_of(rule)}, "status": status}
            await self._ctx.client.patch(DEVICETAINTRULES, key.name, patch, subresource="status")
        return Result(after_s=STATUS_PERIOD_S) if pending and effect == "NoExecute" else None

    def _pending(self, rule: Object) -> list[Object]:
        """The pods that the rule alone would make go."""
        acting = {**rule, "spec": {**rule["spec"], "taint": {**rule["spec"]["taint"], "effect": "NoExecute"}}}
        return [
            pod
            for pod in self.primary.by_index(_WITH_CLAIMS, "")
            if (eviction := self._eviction(pod, [acting])) is not None and uid_of(rule) in eviction.rules
        ]

    def _counts(self, rule: Object) -> tuple[int, int]:
        devices = sum(means(rule, *where) for where in published(self._slices.list()).by_name)
        given = [result for claim in self._claims.list() for result in results_of(claim)]
        return devices, sum(means(rule, each["driver"], each["pool"], each["device"]) for each in given)


def _is_reserved_for(claim: Object, pod: Object) -> bool:
    return any(user.get("uid") == uid_of(pod) for user in dig(claim, "status", "reservedFor", default=()))


DEVICE_TAINT_EVICTION_CONTROLLER = Controller("device-taint-eviction-controller", DeviceTaints)
