"""DefaultPreemption: which pods of lower priority to ask away so that a pod that fits nowhere would fit. Decides only.

On each node that could be helped, all pods of lower priority are taken away in thought; if the pod fits then, they are
let back one by one, the most important first, as long as it still fits: what stays out are the victims. Of the nodes,
the one is chosen that breaks the fewest disruption budgets, then whose highest victim is lowest, then with the smallest
sum of priorities, then with the fewest victims, then whose most important victim started last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kone.apimachinery.objects import Object, dig, find_condition, namespace_of
from kone.apimachinery.selectors import from_label_selector
from kone.scheduler.framework import Code, CycleState, Diagnosis, Framework, NoFit, Status, unresolvable
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import NodeInfo

NO_VICTIMS = "No preemption victims found for incoming pod"
NOT_HELPFUL = "Preemption is not helpful for scheduling"
LOWEST_PRIORITY = 1 << 31  # added to each priority, so that more victims never sum up to less


@dataclass(frozen=True, slots=True)
class Victims:
    """Who goes, most important first, and how many disruption budgets that breaks."""

    node: NodeInfo
    pods: tuple[PodInfo, ...]
    broken_budgets: int


@dataclass(frozen=True, slots=True)
class Preemption:
    """What PostFilter found: victims or none, what is said, and whether an earlier promise of a node is taken back."""

    victims: Victims | None
    message: str
    clears_nomination: bool


def preempt(framework: Framework, pod: PodInfo, failure: NoFit, *, enough: int) -> Preemption:
    """Find the victims for a pod that fits no node; of so many nodes that could be helped the best is taken."""
    diagnosis = failure.diagnosis
    if (why := _why_not_eligible(framework, pod, diagnosis)) is not None:
        return Preemption(None, f"preemption: {why}", clears_nomination=False)
    budgets = list(framework.cluster.budgets.values())
    candidates: list[Victims] = []
    refused = Diagnosis(others=unresolvable(NOT_HELPFUL))
    for node in framework.cluster.nodes():
        if diagnosis.status_of(node.name).code is not Code.UNSCHEDULABLE:
            continue
        found = victims_on(framework, failure.state, pod, node, budgets)
        if isinstance(found, Victims):
            candidates.append(found)
            if len(candidates) >= enough and any(not candidate.broken_budgets for candidate in candidates):
                break
        else:
            refused.by_node[node.name] = found
    if not candidates:
        text = refused.message(failure.node_count)
        return Preemption(None, f"preemption: {text}", clears_nomination=True)
    best = choose(candidates)
    text = f"found a potential placement for pod on node {best.node.name}, preempting {len(best.pods)} victims"
    return Preemption(best, f"preemption: {text}", clears_nomination=False)


def _why_not_eligible(framework: Framework, pod: PodInfo, diagnosis: Diagnosis) -> str | None:
    if pod.spec.get("preemptionPolicy") == "Never":
        return "not eligible due to preemptionPolicy=Never."
    promised = pod.nominated_node
    node = framework.cluster.node(promised) if promised else None
    if node is None or diagnosis.status_of(promised).code is Code.UNRESOLVABLE:
        return None
    if any(other.priority < pod.priority and _is_leaving_by_preemption(other) for other in node.pods.values()):
        return "not eligible due to a terminating pod on the nominated node."
    return None


def _is_leaving_by_preemption(pod: PodInfo) -> bool:
    condition = find_condition(pod.pod, "DisruptionTarget") or {}
    return (
        pod.is_terminating and condition.get("status") == "True" and condition.get("reason") == "PreemptionByScheduler"
    )


def victims_on(
    framework: Framework, state: CycleState, pod: PodInfo, node: NodeInfo, budgets: Sequence[Object]
) -> Victims | Status:
    """The fewest and least important pods whose leaving makes room on the node, or why there are none."""
    state, node = state.clone(), node.clone()
    lower = [other for other in node.pods.values() if other.priority < pod.priority]
    if not lower:
        return unresolvable(NO_VICTIMS)
    for other in lower:
        _take_away(framework, state, pod, other, node)
    if (status := framework.fits(state, pod, node)) is not None:
        return status
    lower.sort(key=importance)
    breaking, others = split_by_budget(lower, budgets)
    victims: list[PodInfo] = []
    broken = 0
    for other in (*breaking, *others):
        node.add(other)
        framework.add_pod(state, pod, other, node)
        if framework.fits(state, pod, node) is not None:
            _take_away(framework, state, pod, other, node)
            victims.append(other)
            broken += other in breaking
    if not victims:
        return unresolvable(NO_VICTIMS)
    return Victims(node, tuple(sorted(victims, key=importance)), broken)


def _take_away(framework: Framework, state: CycleState, pod: PodInfo, other: PodInfo, node: NodeInfo) -> None:
    node.remove(other.uid)
    framework.remove_pod(state, pod, other, node)


def importance(pod: PodInfo) -> tuple[int, str]:
    """The more important pod has the smaller key: higher priority, then longer running."""
    return -pod.priority, start_time(pod)


def start_time(pod: PodInfo) -> str:
    """When it started; one that has not counts as later than any."""
    return str(dig(pod.pod, "status", "startTime", default="9999"))


def split_by_budget(pods: Iterable[PodInfo], budgets: Sequence[Object]) -> tuple[list[PodInfo], list[PodInfo]]:
    """(pods whose leaving breaks a PodDisruptionBudget, the others), in the order given."""
    allowed = [int(dig(budget, "status", "disruptionsAllowed", default=0)) for budget in budgets]
    selectors = [from_label_selector(dig(budget, "spec", "selector")) for budget in budgets]
    breaking: list[PodInfo] = []
    others: list[PodInfo] = []
    for pod in pods:
        breaks = False
        for i, budget in enumerate(budgets):
            if (
                namespace_of(budget) != pod.namespace
                or not pod.labels
                or selectors[i].empty
                or not selectors[i].matches(pod.labels)
                or pod.name in dig(budget, "status", "disruptedPods", default={})
            ):
                continue
            allowed[i] -= 1
            breaks = breaks or allowed[i] < 0
        (breaking if breaks else others).append(pod)
    return breaking, others


def choose(candidates: Sequence[Victims]) -> Victims:
    """The node whose victims are missed least."""
    latest = max(start_time(candidate.pods[0]) for candidate in candidates)

    def cost(candidate: Victims) -> tuple[int, int, int, int, bool]:
        priorities = [pod.priority for pod in candidate.pods]
        highest = max(priorities)
        earliest = min(start_time(pod) for pod in candidate.pods if pod.priority == highest)
        return (
            candidate.broken_budgets,
            highest,
            sum(priority + LOWEST_PRIORITY for priority in priorities),
            len(priorities),
            earliest != latest,
        )

    return min(candidates, key=cost)
