"""The arithmetic of autoscaling: from measured use to a number of replicas, then held within limits and rates.

Amounts are thousandths. A worked case: 4 ready pods ask 100m CPU each, use 90m, 80m, 70m and 80m, and should be at
50 %. They are at 320 / 400 = 80 %, that is 1.6 times the target, beyond the tolerance of 0.1; 1.6 x 4 = 6.4, so 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kone.apimachinery.objects import (
    Object,
    dig,
    find_condition,
    is_deleting,
    is_pod_ready,
    name_of,
)
from kone.apimachinery.pod_resources import pod_requests
from kone.apimachinery.quantity import parse_quantity
from kone.apimachinery.timestamps import parse_time

SYNC_S = 15.0
TOLERANCE = 0.1
DOWNSCALE_WINDOW_S = 300
CPU_INITIALIZATION_S = 300.0
READINESS_DELAY_S = 30.0
_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1


class MetricError(Exception):
    """No number of replicas can be told from a metric; the text is for users."""


@dataclass(frozen=True, slots=True)
class PodMetric:
    value: int
    timestamp: float
    window_s: float


PodMetrics = dict[str, PodMetric]


@dataclass(frozen=True, slots=True)
class Tolerances:
    down: float = TOLERANCE
    up: float = TOLERANCE

    def hold(self, ratio: float) -> bool:
        return 1.0 - self.down <= ratio <= 1.0 + self.up


def tolerances_of(hpa: Object) -> Tolerances:
    def given(side: str) -> float:
        value = dig(hpa, "spec", "behavior", side, "tolerance")
        return TOLERANCE if value is None else parse_quantity(value).nanos / 1e9

    return Tolerances(given("scaleDown"), given("scaleUp"))


@dataclass(frozen=True, slots=True)
class Proposal:
    replicas: int
    usage: int
    """Average, or the whole value of what is not measured per pod."""
    utilization: int | None = None
    """Percent of the requests."""


# Which pods count


@dataclass(slots=True)
class Groups:
    ready: int = 0
    unready: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)


def group_pods(pods: Iterable[Object], metrics: PodMetrics, resource: str, now: float) -> Groups:
    """Ready pods count as they are measured. Pods that start, or whose CPU was measured while they started, count as
    idle when that would add replicas; pods without a measure count so that nothing changes rashly."""
    groups = Groups()
    for pod in pods:
        name = name_of(pod)
        if is_deleting(pod) or dig(pod, "status", "phase") == "Failed":
            groups.ignored.add(name)
        elif dig(pod, "status", "phase", default="Pending") == "Pending":
            groups.unready.add(name)
        elif name not in metrics:
            groups.missing.add(name)
        elif resource == "cpu" and _is_starting(pod, metrics[name], now):
            groups.unready.add(name)
        else:
            groups.ready += 1
    return groups


def _is_starting(pod: Object, metric: PodMetric, now: float) -> bool:
    condition, start = find_condition(pod, "Ready"), dig(pod, "status", "startTime")
    if condition is None or start is None:
        return True
    is_unready = condition.get("status") == "False"
    changed = parse_time(condition["lastTransitionTime"])
    started = parse_time(start)
    if started + CPU_INITIALIZATION_S > now:
        return is_unready or metric.timestamp < changed + metric.window_s
    return is_unready and started + READINESS_DELAY_S > changed


def count_ready(pods: Sequence[Object]) -> int:
    if not pods:
        raise MetricError("no pods returned by selector while calculating replica count")
    return sum(dig(pod, "status", "phase") == "Running" and is_pod_ready(pod) for pod in pods)


# From a measure to replicas


def requests_of(pods: Iterable[Object], container: str, resource: str) -> dict[str, int]:
    return {name_of(pod): _request(pod, container, resource) for pod in pods}


def _request(pod: Object, container: str, resource: str) -> int:
    if not container and dig(pod, "spec", "resources", "requests"):
        found = pod_requests(pod)
        if resource not in found:
            raise MetricError(f"missing pod-level request for {resource} in Pod {name_of(pod)}")
        return found[resource] if resource == "cpu" else found[resource] * 1000
    running = [
        *(dig(pod, "spec", "containers", default=())),
        *(c for c in dig(pod, "spec", "initContainers", default=()) if c.get("restartPolicy") == "Always"),
    ]
    total = 0
    for one in running:
        if container not in ("", one["name"]):
            continue
        amount = dig(one, "resources", "requests", resource)
        if amount is None:
            raise MetricError(f"missing request for {resource} in container {one['name']} of Pod {name_of(pod)}")
        total += parse_quantity(amount).milli()
        if container:
            return total
    if container:
        raise MetricError(f"container {container} not found in Pod {name_of(pod)}")
    return total


def by_utilization(
    metrics: PodMetrics,
    pods: Sequence[Object],
    current: int,
    target: int,
    resource: str,
    container: str,
    tolerances: Tolerances,
    now: float,
) -> Proposal:
    """`target` percent of the requests. Raises MetricError."""
    groups = _grouped(pods, metrics, resource, now)
    counted = _counted(metrics, groups)
    requests = requests_of(pods, container, resource)
    ratio, utilization, usage = _utilization(counted, requests, target)

    def filled(name: str) -> int:
        return requests[name] * max(100, target) // 100

    def again(with_gaps: Mapping[str, int]) -> float:
        return _utilization(with_gaps, requests, target)[0]

    replicas = _replicas(counted, groups, current, ratio, tolerances, filled, again)
    return Proposal(replicas, usage, utilization)


def by_average(
    metrics: PodMetrics,
    pods: Sequence[Object],
    current: int,
    target: int,
    resource: str,
    tolerances: Tolerances,
    now: float,
) -> Proposal:
    """An average of `target` a pod. Raises MetricError."""
    groups = _grouped(pods, metrics, resource, now)
    counted = _counted(metrics, groups)
    ratio, usage = _average(counted, target)
    replicas = _replicas(
        counted, groups, current, ratio, tolerances, lambda name: target, lambda gaps: _average(gaps, target)[0]
    )
    return Proposal(replicas, usage)


def _grouped(pods: Sequence[Object], metrics: PodMetrics, resource: str, now: float) -> Groups:
    if not pods:
        raise MetricError("no pods returned by selector while calculating replica count")
    return group_pods(pods, metrics, resource, now)


def _counted(metrics: PodMetrics, groups: Groups) -> dict[str, int]:
    left_out = groups.ignored | groups.unready
    counted = {name: metric.value for name, metric in metrics.items() if name not in left_out}
    if not counted:
        raise MetricError("did not receive metrics for targeted pods (pods might be unready)")
    return counted


def _utilization(values: Mapping[str, int], requests: Mapping[str, int], target: int) -> tuple[float, int, int]:
    """(ratio to the target, percent of the requests, average use)."""
    known = [name for name in values if name in requests]
    asked = sum(requests[name] for name in known)
    if asked == 0:
        raise MetricError("no metrics returned matched known pods")
    used = sum(values[name] for name in known)
    percent = used * 100 // asked
    return percent / target, percent, used // len(known)


def _average(values: Mapping[str, int], target: int) -> tuple[float, int]:
    average = sum(values.values()) // len(values)
    return average / target, average


def _replicas(
    counted: dict[str, int],
    groups: Groups,
    current: int,
    ratio: float,
    tolerances: Tolerances,
    filled: Callable[[str], int],
    again: Callable[[Mapping[str, int]], float],
) -> int:
    """Pods without a measure are taken at their target when replicas would go, and as idle when they would come, where
    starting pods are idle, too; when that turns the direction round, nothing changes."""
    starting_matter = bool(groups.unready) and ratio > 1.0
    if not starting_matter and not groups.missing:
        return current if tolerances.hold(ratio) else math.ceil(ratio * groups.ready)
    gaps = dict(counted)
    if ratio < 1.0:
        gaps |= {name: filled(name) for name in groups.missing}
    elif ratio > 1.0:
        gaps |= dict.fromkeys(groups.missing, 0)
    if starting_matter:
        gaps |= dict.fromkeys(groups.unready, 0)
    new_ratio = again(gaps)
    if tolerances.hold(new_ratio) or (ratio < 1.0 < new_ratio) or (new_ratio < 1.0 < ratio):
        return current
    replicas = math.ceil(new_ratio * len(gaps))
    if (new_ratio < 1.0 and replicas > current) or (new_ratio > 1.0 and replicas < current):
        return current
    return replicas


def by_total(usage: int, target: int, current: int, pods: Sequence[Object], tolerances: Tolerances) -> Proposal:
    """A value of `target` for all pods together."""
    ratio = usage / target
    if current == 0:
        return Proposal(math.ceil(ratio), usage)
    if tolerances.hold(ratio):
        return Proposal(current, usage)
    return Proposal(min(_INT32_MAX, math.ceil(ratio * count_ready(pods))), usage)


def by_share(usage: int, target: int, current: int, tolerances: Tolerances) -> Proposal:
    """A share of `target` for each pod of one value."""
    share = math.ceil(usage / current) if current else _INT64_MAX
    if current and tolerances.hold(usage / (target * current)):
        return Proposal(current, share)
    return Proposal(min(_INT32_MAX, math.ceil(usage / target)), share)


# Limits and rates


@dataclass(frozen=True, slots=True)
class Sample:
    value: int
    time: float


@dataclass(slots=True)
class Memory:
    """What was recommended and done lately for one autoscaler."""

    recommendations: list[Sample] = field(default_factory=list)
    scaled_up: list[Sample] = field(default_factory=list)
    scaled_down: list[Sample] = field(default_factory=list)

    def remember_change(self, behavior: Object | None, before: int, after: int, now: float) -> None:
        if behavior is None:
            return
        changes = self.scaled_up if after > before else self.scaled_down
        rules = behavior.get("scaleUp" if after > before else "scaleDown") or {}
        longest = max((policy["periodSeconds"] for policy in rules.get("policies") or ()), default=0)
        changes[:] = [sample for sample in changes if sample.time >= now - longest]
        changes.append(Sample(abs(after - before), now))

    def recommend(self, value: int, keep_s: float, now: float) -> None:
        self.recommendations[:] = [sample for sample in self.recommendations if sample.time >= now - keep_s]
        self.recommendations.append(Sample(value, now))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A number of replicas, and what the conditions AbleToScale and ScalingLimited say of it."""

    replicas: int
    able: tuple[str, str] = ("ReadyForNewScale", "recommended size matches current size")
    limited: bool = False
    reason: str = "DesiredWithinRange"
    message: str = "the desired count is within the acceptable range"


_LOWER_BEFORE = "recent recommendations were lower than current one, applying the lowest recent recommendation"
_HIGHER_BEFORE = "recent recommendations were higher than current one, applying the highest recent recommendation"


def normalize(hpa: Object, memory: Memory, current: int, desired: int, now: float) -> Verdict:
    """Hold the number within the limits, and still against short dips and peaks."""
    spec = hpa["spec"]
    least, most = int(dig(spec, "minReplicas", default=1)), int(spec["maxReplicas"])
    behavior = spec.get("behavior")
    if behavior is None:
        steady = max([desired, *_since(memory.recommendations, now - DOWNSCALE_WINDOW_S)])
        memory.recommend(desired, DOWNSCALE_WINDOW_S, now)
        able = ("ScaleDownStabilized", _HIGHER_BEFORE)
        verdict = _within(steady, least, most, max(2 * current, 4))
    else:
        steady, able = _stabilize(behavior, memory, current, desired, now)
        verdict = _within_rates(behavior, memory, current, steady, least, most, now)
    return replace(verdict, able=able) if steady != desired else verdict


def _since(samples: Iterable[Sample], cutoff: float) -> list[int]:
    return [sample.value for sample in samples if sample.time >= cutoff]


def _within(desired: int, least: int, most: int, fastest: int) -> Verdict:
    if desired < least:
        why = "the desired replica count is less than the minimum replica count"
        return Verdict(least, limited=True, reason="TooFewReplicas", message=why)
    if desired > min(most, fastest):
        return _too_many(most, fastest)
    return Verdict(desired)


def _too_many(most: int, fastest: int) -> Verdict:
    if most > fastest:
        why = "the desired replica count is increasing faster than the maximum scale rate"
        return Verdict(fastest, limited=True, reason="ScaleUpLimit", message=why)
    why = "the desired replica count is more than the maximum replica count"
    return Verdict(most, limited=True, reason="TooManyReplicas", message=why)


def _stabilize(behavior: Object, memory: Memory, current: int, desired: int, now: float) -> tuple[int, tuple[str, str]]:
    """Up no higher than the lowest, down no lower than the highest recommendation of the window."""
    up_s = dig(behavior, "scaleUp", "stabilizationWindowSeconds", default=0)
    down_s = dig(behavior, "scaleDown", "stabilizationWindowSeconds", default=DOWNSCALE_WINDOW_S)
    lowest, highest = desired, desired
    for sample in memory.recommendations:
        if sample.time > now - up_s:
            lowest = min(lowest, sample.value)
        if sample.time > now - down_s:
            highest = max(highest, sample.value)
    memory.recommend(desired, max(up_s, down_s), now)
    steady = min(max(current, lowest), highest)
    if desired >= current:
        return steady, ("ScaleUpStabilized", _LOWER_BEFORE)
    return steady, ("ScaleDownStabilized", _HIGHER_BEFORE)


def _within_rates(
    behavior: Object, memory: Memory, current: int, desired: int, least: int, most: int, now: float
) -> Verdict:
    if desired > current:
        fastest = max(current, up_limit(behavior.get("scaleUp") or {}, memory, current, now))
        return _too_many(most, fastest) if desired > min(most, fastest) else Verdict(desired)
    if desired < current:
        slowest = min(current, down_limit(behavior.get("scaleDown") or {}, memory, current, now))
        if desired >= max(least, slowest):
            return Verdict(desired)
        if slowest > least:
            why = "the desired replica count is decreasing faster than the maximum scale rate"
            return Verdict(slowest, limited=True, reason="ScaleDownLimit", message=why)
        why = "the desired replica count is less than the minimum replica count"
        return Verdict(least, limited=True, reason="TooFewReplicas", message=why)
    return Verdict(desired)


def up_limit(rules: Object, memory: Memory, current: int, now: float) -> int:
    """The most replicas that the policies allow now."""
    if rules.get("selectPolicy") == "Disabled":
        return current
    limits = []
    for policy in rules.get("policies") or ():
        start = _at_start(policy, memory, current, now)
        if policy["type"] == "Pods":
            limits.append(start + policy["value"])
        else:
            limits.append(math.ceil(start * (1 + policy["value"] / 100)))
    choose = min if rules.get("selectPolicy") == "Min" else max
    return choose(limits, default=current)


def down_limit(rules: Object, memory: Memory, current: int, now: float) -> int:
    """The fewest replicas that the policies allow now."""
    if rules.get("selectPolicy") == "Disabled":
        return current
    limits = []
    for policy in rules.get("policies") or ():
        start = _at_start(policy, memory, current, now)
        if policy["type"] == "Pods":
            limits.append(start - policy["value"])
        else:
            limits.append(int(start * (1 - policy["value"] / 100)))
    choose = max if rules.get("selectPolicy") == "Min" else min
    return choose(limits, default=current)


def _at_start(policy: Object, memory: Memory, current: int, now: float) -> int:
    """The replicas when the policy's period began."""
    cutoff = now - policy["periodSeconds"]
    added = sum(sample.value for sample in memory.scaled_up if sample.time > cutoff)
    removed = sum(sample.value for sample in memory.scaled_down if sample.time > cutoff)
    return current - added + removed
