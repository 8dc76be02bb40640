"""The row of a pod in `kubectl get pods`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kone.apimachinery.objects import Object, is_condition_true, is_deleting, is_pod_ready, is_pod_terminal
from kone.apimachinery.timestamps import parse_time
from kone.registry.printing import age
from kone.registry.resource import AGE, NAME, Column

_NONE = "<none>"


class Summary:
    """READY, STATUS and RESTARTS, which are found in one walk over the containers' statuses."""

    def __init__(self, pod: Mapping[str, Any]) -> None:
        self._spec: Mapping[str, Any] = pod.get("spec") or {}
        self._status: Mapping[str, Any] = pod.get("status") or {}
        self._sidecars = {
            container.get("name")
            for container in self._spec.get("initContainers") or ()
            if container.get("restartPolicy") == "Always"
        }
        self.total = len(self._spec.get("containers") or ()) + len(self._sidecars)
        self.ready = 0
        self.restarts = 0
        self.last_restart = ""
        self.reason = self._status.get("reason") or self._status.get("phase") or ""
        if any(
            condition.get("type") == "PodScheduled" and condition.get("reason") == "SchedulingGated"
            for condition in self._status.get("conditions") or ()
        ):
            self.reason = "SchedulingGated"
        initializing = self._init_containers()
        if not initializing or is_condition_true(pod, "Initialized"):
            self._count_only_sidecars()
            self._containers(is_pod_ready(pod))
        if is_deleting(pod):
            if self._status.get("reason") == "NodeLost":
                self.reason = "Unknown"
            elif not is_pod_terminal(pod):
                self.reason = "Terminating"

    def restarts_text(self, now: float) -> str:
        if self.restarts and self.last_restart:
            return f"{self.restarts} ({age(parse_time(self.last_restart), now)} ago)"
        return str(self.restarts)

    def _count(self, status: Mapping[str, Any]) -> None:
        self.restarts += status.get("restartCount", 0)
        ended = (status.get("lastState") or {}).get("terminated") or {}
        self.last_restart = max(self.last_restart, ended.get("finishedAt") or "")

    def _count_only_sidecars(self) -> None:
        self.restarts, self.last_restart = 0, ""
        for status in self._status.get("initContainerStatuses") or ():
            if status.get("name") in self._sidecars:
                self._count(status)

    def _init_containers(self) -> bool:
        """Whether the pod is still initializing; then the reason says how far it is."""
        for i, status in enumerate(self._status.get("initContainerStatuses") or ()):
            self._count(status)
            state = status.get("state") or {}
            ended, waiting = state.get("terminated"), state.get("waiting") or {}
            if ended is not None and not ended.get("exitCode"):
                continue
            if status.get("name") in self._sidecars and status.get("started"):
                self.ready += bool(status.get("ready"))
                continue
            if ended is not None:
                self.reason = f"Init:{_ended(ended)}"
            elif waiting.get("reason") and waiting["reason"] != "PodInitializing":
                self.reason = f"Init:{waiting['reason']}"
            else:
                self.reason = f"Init:{i}/{len(self._spec.get('initContainers') or ())}"
            return True
        return False

    def _containers(self, is_ready: bool) -> None:
        running, error = False, ""
        for status in reversed(self._status.get("containerStatuses") or ()):
            self._count(status)
            state = status.get("state") or {}
            ended, waiting = state.get("terminated"), state.get("waiting") or {}
            if waiting.get("reason"):
                self.reason = waiting["reason"]
            elif ended is not None:
                self.reason = _ended(ended)
                if ended.get("exitCode"):
                    error = self.reason
            elif status.get("ready") and state.get("running") is not None:
                running = True
                self.ready += 1
        if self.reason == "Completed":
            if running and is_ready:
                self.reason = "Running"
            elif error:
                self.reason = error
            elif running:
                self.reason = "NotReady"


def _ended(state: Mapping[str, Any]) -> str:
    if state.get("reason"):
        return str(state["reason"])
    return f"Signal:{state['signal']}" if state.get("signal") else f"ExitCode:{state.get('exitCode', 0)}"


def _ready(pod: Object, now: float) -> str:
    summary = Summary(pod)
    return f"{summary.ready}/{summary.total}"


def _ip(pod: Object, now: float) -> str:
    ips = (pod.get("status") or {}).get("podIPs") or ()
    return (ips[0].get("ip") if ips else "") or _NONE


def _gates(pod: Object, now: float) -> str:
    gates = (pod.get("spec") or {}).get("readinessGates") or ()
    if not gates:
        return _NONE
    return f"{sum(is_condition_true(pod, gate.get('conditionType', '')) for gate in gates)}/{len(gates)}"


COLUMNS = (
    NAME,
    Column("Ready", _ready),
    Column("Status", lambda pod, now: Summary(pod).reason),
    Column("Restarts", lambda pod, now: Summary(pod).restarts_text(now)),
    AGE,
    Column("IP", _ip, priority=1),
    Column("Node", lambda pod, now: (pod.get("spec") or {}).get("nodeName") or _NONE, priority=1),
    Column("Nominated Node", lambda pod, now: (pod.get("status") or {}).get("nominatedNodeName") or _NONE, priority=1),
    Column("Readiness Gates", _gates, priority=1),
)
