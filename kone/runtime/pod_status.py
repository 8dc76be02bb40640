"""A pod's status, conditions and phase, in upstream's words, from what the runtime has of it. Pure.

`generate_status` is called whenever something may have changed; whether anything did is the status manager's question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object, dig, generation_of
from kone.apimachinery.pod_resources import qos_class
from kone.apimachinery.timestamps import format_time
from kone.runtime.container_statuses import RESTARTING_ALL, container_statuses, is_restarting_all, lost_container
from kone.runtime.observed import PodObserved, has_active_regular_container, sandbox_problem
from kone.runtime.pod_actions import ProbesOf
from kone.runtime.pod_spec import (
    could_restart_all,
    ephemeral_containers,
    init_containers,
    is_host_network,
    is_sidecar,
    regular_containers,
    should_restart,
    sidecars,
)

TERMINAL = ("Succeeded", "Failed")
OWNED_CONDITIONS = frozenset(
    {
        "PodScheduled",
        "Ready",
        "Initialized",
        "ContainersReady",
        "PodReadyToStartContainers",
        "PodResizePending",
        "PodResizeInProgress",
        "AllContainersRestarting",
    }
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Someone decided how this pod ends: rejected on admission, evicted, past its deadline. Always phase Failed."""

    reason: str
    message: str
    condition: Object | None = None  # a DisruptionTarget condition that goes with it


def generate_status(
    pod: Object,
    observed: PodObserved,
    probes: ProbesOf,
    *,
    old: Object,
    now: float,
    host_ips: Sequence[str] = (),
    ended: bool = False,
    verdict: Verdict | None = None,
    resize: Object | None = None,
) -> Object:
    """The pod's status as it should be read now.

    `old` is the newest status that kone has written or seen. `ended`: the pod's containers have been stopped for good,
    so that what has no container any more is over, too. A terminal phase is only reported once nothing runs.
    """
    status: Object = {"observedGeneration": generation_of(pod)} if generation_of(pod) else {}
    for field in ("nominatedNodeName", "resourceClaimStatuses", "extendedResourceClaimStatus"):
        if old.get(field):
            status[field] = old[field]
    status["containerStatuses"] = container_statuses(pod, "regular", regular_containers(pod), observed, probes, old)
    if inits := init_containers(pod):
        status["initContainerStatuses"] = container_statuses(pod, "init", inits, observed, probes, old)
    if ephemeral := ephemeral_containers(pod):
        status["ephemeralContainerStatuses"] = container_statuses(pod, "ephemeral", ephemeral, observed, probes, old)
    started = has_active_regular_container(pod, observed)
    phase, reason, message = pod_phase(pod, status, ended=ended, initialized=started), "", ""
    old_phase = old.get("phase", "")
    if verdict is not None:
        phase, reason, message = "Failed", verdict.reason, verdict.message
    elif phase not in TERMINAL and old_phase in TERMINAL:
        phase = old_phase
    if old_phase in TERMINAL:
        phase = old_phase  # nothing leaves a terminal phase
    if verdict is None and phase == old_phase:
        reason, message = old.get("reason", ""), old.get("message", "")
    if ended:
        phase = _end_containers(pod, status, phase)
    if phase in TERMINAL and old_phase not in TERMINAL and observed.running:
        phase, reason, message = old_phase or "Pending", old.get("reason", ""), old.get("message", "")
    status["phase"] = phase
    if reason:
        status["reason"] = reason
    if message:
        status["message"] = message
    _add_addresses(pod, observed, host_ips, old, status)
    status["qosClass"] = old.get("qosClass") or qos_class(pod)
    status["startTime"] = old.get("startTime") or format_time(now)
    status["conditions"] = _conditions(pod, observed, status, old, now, verdict, resize)
    return status


def rejected_status(pod: Object, verdict: Verdict, *, old: Object, now: float) -> Object:
    """The status of a pod that this node does not take: Failed, and nothing else is said of it."""
    status = {
        "phase": "Failed",
        "reason": verdict.reason,
        "message": verdict.message,
        "qosClass": old.get("qosClass") or qos_class(pod),
        "startTime": old.get("startTime") or format_time(now),
        "conditions": [c for c in old.get("conditions") or () if c["type"] not in OWNED_CONDITIONS],
    }
    if generation_of(pod):
        status["observedGeneration"] = generation_of(pod)
    return status


def _add_addresses(pod: Object, observed: PodObserved, host_ips: Sequence[str], old: Object, status: Object) -> None:
    hosts = list(host_ips)
    if hosts:
        status["hostIP"] = hosts[0]
        status["hostIPs"] = [{"ip": ip} for ip in hosts]
    ips = hosts if is_host_network(pod) else list(observed.ips)
    if not ips and status["phase"] in TERMINAL:
        ips = [entry["ip"] for entry in old.get("podIPs") or ()]
    if ips:
        status["podIP"] = ips[0]
        status["podIPs"] = [{"ip": ip} for ip in ips]


# Phase


def pod_phase(pod: Object, status: Object, *, ended: bool, initialized: bool) -> str:
    """The phase that follows from the containers' statuses (kubelet's getPhase).

    Worked case: containers a (exited 5, restartPolicy Never) and b (running): Running. Both exited, one by 5: Failed.
    """
    pending, failed_for_good = _init_progress(pod, status)
    if failed_for_good:
        return "Failed"
    sidecars_pending = running = waiting = unknown = 0
    for container in sidecars(pod):
        found = _of(status, "initContainerStatuses", container["name"])
        state = (found or {}).get("state") or {}
        if "running" in state:
            running += 1
            sidecars_pending += not (found or {}).get("started")
        elif "waiting" in state and not dig(found, "lastState", "terminated"):
            sidecars_pending += 1
            waiting += 1
        elif "terminated" not in state and "waiting" not in state:
            sidecars_pending += 1
            unknown += 1
    stopped = final = succeeded = 0
    for container in regular_containers(pod):
        found = _of(status, "containerStatuses", container["name"]) or {}
        state = found.get("state") or {}
        last = state.get("terminated") or (dig(found, "lastState", "terminated") if "waiting" in state else None)
        if "running" in state:
            running += 1
        elif last:
            stopped += 1
            final += not _restarts(pod, container, last)
            succeeded += "terminated" in state and last["exitCode"] == 0
        elif "waiting" in state:
            waiting += 1
        else:
            unknown += 1
    if pending or (sidecars_pending and not initialized) or waiting:
        return "Pending"
    if running and not unknown:
        return "Running"
    if stopped and not unknown:
        if not ended and stopped != final:
            return "Running"  # someone is on the way to a restart
        return "Succeeded" if stopped == succeeded else "Failed"
    return "Pending"


def _init_progress(pod: Object, status: Object) -> tuple[int, bool]:
    """(init containers still to come or running, whether one has failed for good)."""
    pending, for_good = 0, False
    for container in init_containers(pod):
        if is_sidecar(container):
            continue
        found = _of(status, "initContainerStatuses", container["name"]) or {}
        state = found.get("state") or {}
        last = state.get("terminated") or (dig(found, "lastState", "terminated") if "waiting" in state else None)
        if not last:
            pending += 1
        elif last["exitCode"] != 0:
            for_good = for_good or not _restarts(pod, container, last)
    return pending, for_good


def _restarts(pod: Object, container: Object, last: Object) -> bool:
    return last.get("reason") == RESTARTING_ALL or should_restart(pod, container, last["exitCode"])


def _end_containers(pod: Object, status: Object, phase: str) -> str:
    """The pod has ended: what has no end of its own is counted as lost, and the phase becomes terminal.

    Containers that were never reached, because initialization did not get so far, keep waiting.
    """
    statuses = status["containerStatuses"]
    inits = status.get("initContainerStatuses", [])
    if _was_initialized(pod, statuses, inits):
        for found in statuses:
            if "terminated" not in found["state"]:
                found["state"] = lost_container()
    reached = 0
    for index, found in enumerate(inits):
        if _has_run(found):
            reached = index + 1
    for found in inits[:reached]:
        if "terminated" not in found["state"]:
            found["state"] = lost_container()
    return phase if phase in TERMINAL else "Failed"


def _was_initialized(pod: Object, statuses: Sequence[Object], inits: Sequence[Object]) -> bool:
    if not inits or any(_has_run(found) for found in statuses):
        return True
    last = inits[-1]
    if is_sidecar(init_containers(pod)[-1]):
        return bool(last.get("started"))
    return bool(dig(last, "state", "terminated", "exitCode") == 0)


def _has_run(found: Object) -> bool:
    return "waiting" not in found["state"] or bool(dig(found, "lastState", "terminated"))


def _of(status: Object, field: str, name: str) -> Object | None:
    return next((found for found in status.get(field) or () if found["name"] == name), None)


# Conditions


def _conditions(
    pod: Object,
    observed: PodObserved,
    status: Object,
    old: Object,
    now: float,
    verdict: Verdict | None,
    resize: Object | None,
) -> list[Object]:
    others = [c for c in dig(pod, "status", "conditions", default=()) if c["type"] not in OWNED_CONDITIONS]
    if verdict is not None and verdict.condition is not None and status["phase"] in TERMINAL:
        others = [c for c in others if c["type"] != verdict.condition["type"]] + [verdict.condition]
    problem = sandbox_problem(pod, observed)
    containers_ready = _containers_ready(pod, status)
    made = [
        _condition("PodReadyToStartContainers", not problem, "PodSandboxNotReady" if problem else "", problem),
        _initialized(pod, status),
        _ready(pod, containers_ready, others),
        containers_ready,
        _condition("PodScheduled", True),
    ]
    if resize is not None and status["phase"] not in TERMINAL:
        made.insert(0, resize)
    if could_restart_all(pod):
        made.append(_restarting_all(pod, observed, status, old))
    return [*others, *(_dated(condition, pod, old, now) for condition in made)]


def _restarting_all(pod: Object, observed: PodObserved, status: Object, old: Object) -> Object:
    kind = "AllContainersRestarting"
    if status["phase"] in TERMINAL:
        return _condition(kind, False, "PodCompleted" if status["phase"] == "Succeeded" else "PodFailed")
    names = [c["name"] for c in (*init_containers(pod), *regular_containers(pod))]
    if not is_restarting_all(pod, observed, old) or not any(observed.newest(name) for name in names):
        return _condition(kind, False)
    return _condition(kind, True, "RestartAllContainersStarted", "container exited with restart policy rule")


def _condition(kind: str, true: bool, reason: str = "", message: str = "") -> Object:
    found: Object = {"type": kind, "status": "True" if true else "False"}
    if reason:
        found["reason"] = reason
    if message:
        found["message"] = message
    return found


def _dated(condition: Object, pod: Object, old: Object, now: float) -> Object:
    """With observedGeneration, and with the time of the last change of status, which is kept where it did not
    change.
    """
    before = next((c for c in old.get("conditions") or () if c["type"] == condition["type"]), None)
    same = before is not None and before["status"] == condition["status"]
    dated = {**condition, "lastTransitionTime": (before or {}).get("lastTransitionTime") if same else format_time(now)}
    if dated["lastTransitionTime"] is None:
        dated["lastTransitionTime"] = format_time(now)
    if generation_of(pod):
        dated.setdefault("observedGeneration", generation_of(pod))
    return dated


def _initialized(pod: Object, status: Object) -> Object:
    unknown, incomplete = [], []
    for container in init_containers(pod):
        found = _of(status, "initContainerStatuses", container["name"])
        if found is None:
            unknown.append(container["name"])
        elif not found.get("started" if is_sidecar(container) else "ready"):
            incomplete.append(container["name"])
    if status["phase"] == "Succeeded" and not unknown:
        return _condition("Initialized", True, "PodCompleted")
    if any(found["state"].keys() & {"running", "terminated"} for found in status["containerStatuses"]):
        return _condition("Initialized", True)
    return _listing("Initialized", "ContainersNotInitialized", ("unknown", unknown), ("incomplete", incomplete))


def _containers_ready(pod: Object, status: Object) -> Object:
    unknown, unready = [], []
    wanted = [("initContainerStatuses", c) for c in sidecars(pod)]
    wanted += [("containerStatuses", c) for c in regular_containers(pod)]
    for field, container in wanted:
        found = _of(status, field, container["name"])
        if found is None:
            unknown.append(container["name"])
        elif not found["ready"]:
            unready.append(container["name"])
    if status["phase"] == "Succeeded" and not unknown:
        return _condition("ContainersReady", False, "PodCompleted")
    if status["phase"] == "Failed":
        return _condition("ContainersReady", False, "PodFailed")
    return _listing("ContainersReady", "ContainersNotReady", ("unknown", unknown), ("unready", unready))


def _listing(kind: str, reason: str, *found: tuple[str, list[str]]) -> Object:
    """True where no container is to be complained of; else with upstream's text, e.g. "containers with unready status:
    [a b]".
    """
    parts = [f"containers with {what} status: [{' '.join(names)}]" for what, names in found if names]
    return _condition(kind, not parts, reason if parts else "", ", ".join(parts))


def _ready(pod: Object, containers_ready: Object, others: Sequence[Object]) -> Object:
    """ContainersReady and every readiness gate."""
    if containers_ready["status"] != "True":
        return {**containers_ready, "type": "Ready"}
    problems = []
    for gate in dig(pod, "spec", "readinessGates", default=()):
        kind = gate["conditionType"]
        found = next((c for c in others if c["type"] == kind), None)
        if found is None:
            problems.append(f"corresponding condition of pod readiness gate {go_quote(kind)} does not exist.")
        elif found["status"] != "True":
            problems.append(f'the status of pod readiness gate {go_quote(kind)} is not "True", but {found["status"]}')
    return _condition("Ready", not problems, "ReadinessGatesNotReady" if problems else "", ", ".join(problems))
