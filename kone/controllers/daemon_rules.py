"""What a DaemonSet decides: the nodes that want its pod, and the pods to make and delete there. Nothing here acts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kone.apimachinery import node_selectors
from kone.apimachinery import taints as tainting
from kone.apimachinery.objects import (
    Object,
    annotations_of,
    dig,
    generation_of,
    is_deleting,
    is_pod_ready,
    is_pod_terminal,
    labels_of,
    name_of,
    namespace_of,
    replace_in,
)
from kone.client.client import Objects
from kone.controllers.history import REVISION_LABEL
from kone.controllers.int_or_percent import scaled_value
from kone.controllers.pod_control import is_pod_available

GENERATION_ANNOTATION = "deprecated.daemonset.template.generation"
GENERATION_LABEL = "pod-template-generation"


# Where


_TOLERATED = [
    (tainting.NOT_READY, "NoExecute"),
    (tainting.UNREACHABLE, "NoExecute"),
    (tainting.DISK_PRESSURE, "NoSchedule"),
    (tainting.MEMORY_PRESSURE, "NoSchedule"),
    (tainting.PID_PRESSURE, "NoSchedule"),
    (tainting.UNSCHEDULABLE, "NoSchedule"),
]


def tolerations_of(owner: Object) -> list[Object]:
    """Those of the template, and of what must not keep a daemon from any node nor drive it away."""
    spec = owner["spec"]["template"].get("spec") or {}
    found: list[Object] = list(spec.get("tolerations") or ())
    wanted = [*_TOLERATED, (tainting.NETWORK_UNAVAILABLE, "NoSchedule")] if spec.get("hostNetwork") else _TOLERATED
    for key, effect in wanted:
        toleration: Object = {"key": key, "operator": "Exists", "effect": effect}
        same = [i for i, own in enumerate(found) if {**own, "tolerationSeconds": None} == _unlimited(toleration)]
        for i in same:
            found[i] = toleration
        if not same:
            found.append(toleration)
    return found


def _unlimited(toleration: Object) -> Object:
    return {**toleration, "tolerationSeconds": None}


@dataclass(frozen=True, slots=True)
class Placement:
    """Whether a node is to get a pod, and whether it may keep the one it has."""

    run: bool
    keep: bool


def place(owner: Object, node: Object, tolerations: Sequence[Object]) -> Placement:
    """The template's nodeName, nodeSelector and required affinity must fit, and no taint keep the pod away; a pod that
    runs is driven away by NoExecute taints only."""
    spec = owner["spec"]["template"].get("spec") or {}
    name, labels = name_of(node), labels_of(node)
    required = dig(spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    fits = spec.get("nodeName") in (None, "", name) and all(
        labels.get(key) == value for key, value in (spec.get("nodeSelector") or {}).items()
    )
    if not fits or (required is not None and not node_selectors.matches(required, labels, name)):
        return Placement(run=False, keep=False)

    def tolerates_all(*effects: str) -> bool:
        taints = tainting.with_effect(tainting.taints_of(node), *effects)
        return all(tainting.tolerates_any(tolerations, taint) for taint in taints)

    return Placement(run=tolerates_all("NoSchedule", "NoExecute"), keep=tolerates_all("NoExecute"))


def target_node(pod: Object) -> str:
    """The node that the pod is bound to, or meant for; "" where it does not say."""
    if bound := dig(pod, "spec", "nodeName"):
        return str(bound)
    path = ("spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
    for term in dig(pod, *path, default=()):
        for field_ in term.get("matchFields") or ():
            if field_.get("key") == "metadata.name" and field_.get("operator") == "In":
                values = field_.get("values") or []
                return values[0] if len(values) == 1 else ""
    return ""


def template_for(owner: Object, node_name: str, digest: str) -> Object:
    """The template of a pod for that node: bound by affinity, which the scheduler follows."""
    template: Object = dict(owner["spec"]["template"])
    labels = {**labels_of(template), REVISION_LABEL: digest}
    if (generation := template_generation(owner)) is not None:
        labels[GENERATION_LABEL] = generation
    template = replace_in(template, ("metadata", "labels"), labels)
    template = replace_in(template, ("spec", "tolerations"), tolerations_of(owner))
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node_name]}]}]
    path = ("spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    return replace_in(template, (*path, "nodeSelectorTerms"), terms)


def template_generation(owner: Object) -> str | None:
    """The generation in the deprecated annotation, which old clients look at."""
    text = annotations_of(owner).get(GENERATION_ANNOTATION, "")
    return str(int(text)) if text.lstrip("-").isdigit() else None


# Which


def is_updated(owner: Object, pod: Object, digest: str) -> bool:
    labels, generation = labels_of(pod), template_generation(owner)
    by_generation = generation is not None and labels.get(GENERATION_LABEL) == generation
    return by_generation or (digest != "" and labels.get(REVISION_LABEL) == digest)


def min_ready_of(owner: Object) -> int:
    return int(dig(owner, "spec", "minReadySeconds", default=0))


def oldest_first(pods: Iterable[Object]) -> Objects:
    """Bound ones before others."""
    return sorted(
        pods,
        key=lambda pod: (
            not dig(pod, "spec", "nodeName"),
            dig(pod, "metadata", "creationTimestamp", default=""),
            name_of(pod),
        ),
    )


ByNode = Mapping[str, Sequence[Object]]


def by_node(pods: Iterable[Object]) -> dict[str, Objects]:
    """Pods by node, without those that are finished and only wait to disappear."""
    found: dict[str, Objects] = {}
    for pod in pods:
        if is_pod_terminal(pod) and is_deleting(pod):
            continue
        if name := target_node(pod):
            found.setdefault(name, []).append(pod)
    return found


@dataclass(frozen=True, slots=True)
class View:
    """The set, the nodes and its pods on them at one moment; `digest` names the template of today."""

    owner: Object
    nodes: Sequence[Object]
    pods: ByNode
    digest: str
    now: float

    def placements(self) -> Iterable[tuple[Object, Placement]]:
        tolerations = tolerations_of(self.owner)
        return [(node, place(self.owner, node, tolerations)) for node in self.nodes]

    def is_available(self, pod: Object) -> bool:
        return is_pod_available(pod, min_ready_of(self.owner), self.now)

    def is_new(self, pod: Object) -> bool:
        return is_updated(self.owner, pod, self.digest)


@dataclass(slots=True)
class Plan:
    create: list[str] = field(default_factory=list)
    """Nodes that get a pod."""
    delete: Objects = field(default_factory=list)
    failed: list[tuple[Object, str]] = field(default_factory=list)
    """Of those to delete, the finished ones and their nodes, for the users to hear of."""


MayReplace = Callable[[Object, str], bool]


def plan_coverage(view: View, may_replace: MayReplace) -> Plan:
    """One pod on each node that wants one, none elsewhere. `may_replace` says whether a failed pod's time has come, so
    that a node which refuses the pod is not asked without end."""
    plan = Plan()
    surging = allows_surge(view.owner)
    for node, placement in view.placements():
        name = name_of(node)
        pods = view.pods.get(name)
        if placement.run and pods is None:
            plan.create.append(name)
        elif placement.keep:
            staying = [pod for pod in pods or () if not is_deleting(pod)]
            _replace_finished(plan, name, staying, may_replace)
            running = oldest_first(pod for pod in staying if not is_pod_terminal(pod))
            if not surging:
                plan.delete += running[1:]
            elif len(running) <= 1:
                if not running and placement.run:
                    plan.create.append(name)
            else:
                plan.delete += _beyond_surge(view, running)
        else:
            plan.delete += [pod for pod in pods or () if not is_deleting(pod)]
    known = {name_of(node) for node in view.nodes}
    for name, stranded in view.pods.items():
        if name not in known:
            # Bound ones are the pod garbage collector's.
            plan.delete += [pod for pod in stranded if not dig(pod, "spec", "nodeName")]
    return plan


def _replace_finished(
    plan: Plan, node: str, pods: Iterable[Object], may_replace: Callable[[Object, str], bool]
) -> None:
    for pod in pods:
        phase = dig(pod, "status", "phase")
        if phase == "Succeeded" or (phase == "Failed" and may_replace(pod, node)):
            plan.delete.append(pod)
            plan.failed.append((pod, node))


def _beyond_surge(view: View, running: Sequence[Object]) -> Objects:
    """While surging, an old and a new pod may run side by side until the new one is available; where the old one is
    not even ready, it may go at once."""
    new = [pod for pod in running if labels_of(pod).get(REVISION_LABEL) == view.digest]
    old = [pod for pod in running if labels_of(pod).get(REVISION_LABEL) != view.digest]
    surplus = new[1:] + old[1:]
    if new and old and (not is_pod_ready(old[0]) or view.is_available(new[0])):
        surplus.append(old[0])
    return surplus


def failure_text(pod: Object, node: str) -> tuple[str, str, str]:
    """(event type, reason, message) for a finished pod that is about to be replaced."""
    where = f"daemon pod {namespace_of(pod)}/{name_of(pod)} on node {node}"
    if dig(pod, "status", "phase") == "Failed":
        return "Warning", "FailedDaemonPod", f"Found failed {where}, will try to kill it"
    return "Normal", "SucceededDaemonPod", f"Found succeeded {where}, will try to delete it"


# Rolling updates


def is_rolling(owner: Object) -> bool:
    return bool(dig(owner, "spec", "updateStrategy", "type", default="RollingUpdate") == "RollingUpdate")


def _limit(owner: Object, name: str, total: int) -> int:
    value = dig(owner, "spec", "updateStrategy", "rollingUpdate", name, default=0)
    return scaled_value(value, total, round_up=True) if is_rolling(owner) else 0


def allows_surge(owner: Object) -> bool:
    return _limit(owner, "maxSurge", 1) > 0


def plan_rolling_update(view: View) -> Plan:
    """The old pods to delete, or the nodes where new ones may start beside them, within maxUnavailable or maxSurge."""
    wants = {name_of(node) for node, placement in view.placements() if placement.run}
    pods: dict[str, Sequence[Object]] = {**dict.fromkeys(sorted(wants), ()), **view.pods}
    max_surge = _limit(view.owner, "maxSurge", len(wants))
    max_unavailable = _limit(view.owner, "maxUnavailable", len(wants))
    if max_surge == 0:
        return _plan_without_surge(view, pods, max(max_unavailable, 1) if wants else max_unavailable)
    return _plan_with_surge(view, pods, wants, max_surge)


def _pair(view: View, pods: Sequence[Object]) -> tuple[Object | None, Object | None] | None:
    """(the new pod, the old pod) of a node; None where there is more than one of either."""
    staying = [pod for pod in pods if not is_deleting(pod)]
    new = [pod for pod in staying if view.is_new(pod)]
    old = [pod for pod in staying if not view.is_new(pod)]
    if len(new) > 1 or len(old) > 1:
        return None
    return (new[0] if new else None), (old[0] if old else None)


def _plan_without_surge(view: View, pods: ByNode, max_unavailable: int) -> Plan:
    """Old pods that are not available go at once; of the others as many as may be away."""
    unavailable = 0
    broken: Objects = []
    candidates: Objects = []
    for on_node in pods.values():
        pair = _pair(view, on_node)
        new, old = pair or (None, None)
        if new is not None and old is None:
            unavailable += not view.is_available(new)
        elif old is not None and new is None:
            if view.is_available(old):
                candidates.append(old)
            else:
                broken.append(old)
                unavailable += 1
        else:
            # Nothing there, or too much: coverage sees to it first.
            unavailable += 1
    return Plan(delete=broken + candidates[: max(0, max_unavailable - unavailable)])


def _plan_with_surge(view: View, pods: ByNode, wants: set[str], max_surge: int) -> Plan:
    """New pods start beside old ones, at once where the old one is not available, else up to maxSurge; an old pod goes
    when the new one beside it is available. Where none is wanted any more, an available pod stays until enough others
    are available."""
    plan = Plan()
    surging = available = 0
    at_once: list[str] = []
    candidates: list[str] = []
    unwanted: Objects = []
    for name, on_node in pods.items():
        pair = _pair(view, on_node)
        if pair is None:
            surging += 1
            continue
        new, old = pair
        counted = old if old is not None else new
        available += counted is not None and view.is_available(counted)
        if old is None:
            continue
        if new is not None:
            if view.is_available(new):
                plan.delete.append(old)
            else:
                surging += 1
        elif name not in wants:
            (unwanted if view.is_available(old) else plan.delete).append(old)
        else:
            (candidates if view.is_available(old) else at_once).append(name)
    plan.delete += unwanted[: max(0, available - len(wants))]
    plan.create = at_once + candidates[: max(0, max_surge - surging)]
    return plan


# Status and history


def make_status(view: View, collisions: int) -> Object:
    desired = current = misscheduled = ready = available = updated = 0
    for node, placement in view.placements():
        pods = oldest_first(view.pods.get(name_of(node), ()))
        if not placement.run:
            misscheduled += bool(pods)
            continue
        desired += 1
        if pods:
            current += 1
            ready += is_pod_ready(pods[0])
            available += view.is_available(pods[0])
            updated += view.is_new(pods[0])
    more: Object = {
        "observedGeneration": generation_of(view.owner),
        "updatedNumberScheduled": updated,
        "numberAvailable": available,
        "numberUnavailable": desired - available,
        "collisionCount": collisions,
        "conditions": dig(view.owner, "status", "conditions", default=[]),
    }
    status: Object = {
        "currentNumberScheduled": current,
        "numberMisscheduled": misscheduled,
        "desiredNumberScheduled": desired,
        "numberReady": ready,
    }
    return status | {key: value for key, value in more.items() if value}


def revisions_to_forget(owner: Object, revisions: Sequence[Object], newest: Object, pods: Iterable[Object]) -> Objects:
    """Of the old ones beyond revisionHistoryLimit the oldest that no pod has."""
    old = [revision for revision in revisions if name_of(revision) != name_of(newest)]
    live = {labels_of(pod).get(REVISION_LABEL) for pod in pods}
    surplus = max(0, len(old) - int(dig(owner, "spec", "revisionHistoryLimit", default=10)))
    return [revision for revision in old if labels_of(revision).get(REVISION_LABEL) not in live][:surplus]
