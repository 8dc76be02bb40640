"""Probes: one task a probe of a running container. A change of result asks for a sync of the pod.

Rules (API field docs of Probe, KEP 950, kubernetes/pkg/kubelet/prober): readiness and liveness wait for the startup
probe; a liveness or startup failure stays until the container is replaced; a pod that is being deleted keeps only its
readiness probes, and its startup probe counts as passed. Probes keep to their period however long one takes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.objects import Object, dig, is_deleting, name_of, namespace_of, uid_of
from kone.client.events import EventRecorder
from kone.runtime.environment import expand
from kone.runtime.handlers import Answer, Handlers
from kone.runtime.parts import ProbeResults, SyncPod
from kone.runtime.pod_spec import format_pod
from kone.runtime.runtime import ContainerStatus

ProbeKind = Literal["startup", "readiness", "liveness"]
KINDS: tuple[ProbeKind, ...] = ("startup", "readiness", "liveness")
USER_AGENT = "kube-probe/1.37"
ATTEMPTS = 3  # an error (not a failure) is tried again at once, three times in all (kubelet's maxProbeRetries)
RESULT_NAMES = {"success": "successful", "warning": "successful", "failure": "failed"}


class Probed(NamedTuple):
    """What a probe's counter is about, in the order of prober_probe_total's labels."""

    probe_type: str
    result: str
    container: str
    pod: str
    namespace: str
    pod_uid: str


@dataclass(slots=True)
class _Probed:
    """One running container and what its probes say."""

    pod: Object
    container: Object
    status: ContainerStatus
    pod_ip: str
    age_s: float  # of the container when it was first seen here
    results: dict[ProbeKind, bool | None] = field(default_factory=dict)
    tasks: dict[ProbeKind, asyncio.Task[None]] = field(default_factory=dict)
    startup_passed: asyncio.Event = field(default_factory=asyncio.Event)


class Probes:
    """The ProbeManager of parts.py."""

    def __init__(self, handlers: Handlers, recorder: EventRecorder, clock: Clock, sync_pod: SyncPod) -> None:
        self._handlers, self._recorder, self._clock, self._sync_pod = handlers, recorder, clock, sync_pod
        self._containers: dict[str, _Probed] = {}  # by container id
        self._tasks = TaskGroup("probes")
        self.counts: Counter[Probed] = Counter()  # of pods that are here

    def sync(self, pod: Object, running: Mapping[str, ContainerStatus], pod_ip: str) -> None:
        uid = uid_of(pod)
        ids = {status.id for status in running.values()}
        for gone in [i for i, probed in self._containers.items() if uid_of(probed.pod) == uid and i not in ids]:
            self._drop(gone)
        for container in _containers(pod):
            status = running.get(container["name"])
            if status is None or not any(container.get(f"{kind}Probe") for kind in KINDS):
                continue
            probed = self._containers.get(status.id)
            if probed is None:
                probed = self._containers[status.id] = self._first(pod, container, status, pod_ip)
            probed.pod, probed.container, probed.status, probed.pod_ip = pod, container, status, pod_ip
            self._arrange(probed)

    def results(self, pod: Object, container: Object, container_id: str) -> ProbeResults:
        probed = self._containers.get(container_id)
        known = probed.results if probed else {}
        has_startup = bool(container.get("startupProbe")) and not is_deleting(pod)
        started = known.get("startup") is True or not has_startup
        ready = started and (known.get("readiness") is True or not container.get("readinessProbe"))
        if has_startup and known.get("startup") is False:
            return ProbeResults(False, False, "startup")
        if known.get("liveness") is False:
            return ProbeResults(started, ready, "liveness")
        return ProbeResults(started, ready)

    def remove(self, pod_uid: str) -> None:
        for container_id in [i for i, probed in self._containers.items() if uid_of(probed.pod) == pod_uid]:
            self._drop(container_id)
        for counted in [counted for counted in self.counts if counted.pod_uid == pod_uid]:
            del self.counts[counted]

    async def stop(self) -> None:
        self._containers.clear()
        await self._tasks.cancel()

    # ---- one container

    def _first(self, pod: Object, container: Object, status: ContainerStatus, pod_ip: str) -> _Probed:
        """A container seen for the first time; one that the pod's status already names goes on from what it says
        there.
        """
        probed = _Probed(pod, container, status, pod_ip, self._clock.now() - status.started_at)
        for field_name in ("containerStatuses", "initContainerStatuses"):
            for known in dig(pod, "status", field_name, default=()):
                if str(known.get("containerID", "")).endswith(status.id):
                    if known.get("started"):
                        probed.results["startup"] = True
                        probed.startup_passed.set()
                    if known.get("ready"):
                        probed.results["readiness"] = True
        return probed

    def _drop(self, container_id: str) -> None:
        for task in self._containers.pop(container_id).tasks.values():
            task.cancel()

    def _arrange(self, probed: _Probed) -> None:
        """Start the probes that should run and end those that should not."""
        deleting = is_deleting(probed.pod)
        if deleting:
            probed.startup_passed.set()
        for kind in KINDS:
            wanted = bool(probed.container.get(f"{kind}Probe")) and not (deleting and kind != "readiness")
            task = probed.tasks.get(kind)
            if wanted and task is None:
                name = f"probe/{namespace_of(probed.pod)}/{name_of(probed.pod)}/{probed.container['name']}/{kind}"
                probed.tasks[kind] = self._tasks.spawn(self._run(probed, kind), name=name)
            elif not wanted and task is not None:
                task.cancel()

    async def _run(self, probed: _Probed, kind: ProbeKind) -> None:
        probe = probed.container[f"{kind}Probe"]
        period_s = float(probe.get("periodSeconds") or 10)
        if kind != "startup" and probed.container.get("startupProbe"):
            await probed.startup_passed.wait()
        delay_s = float(probe.get("initialDelaySeconds") or 0)
        left_s = delay_s - (self._clock.now() - probed.status.started_at)
        if left_s > 0:
            await self._clock.sleep(min(left_s, delay_s))  # never more, should the wall clock have been set back
        elif probed.age_s > period_s:
            # kone was restarted under a running container: spread the first probes over a period, as the kubelet does.
            await self._clock.sleep(random.random() * period_s)
        in_a_row, last = 0, None
        while True:
            began = self._clock.monotonic()
            answer = await self._ask(probed, probe)
            self._note(probed, kind, answer)
            if answer.verdict != "error":
                good = answer.verdict != "failure"
                in_a_row = in_a_row + 1 if good == last else 1
                last = good
                needed = int(probe.get("successThreshold" if good else "failureThreshold") or (1 if good else 3))
                if in_a_row >= needed and self._set(probed, kind, good):
                    return
            took_s = self._clock.monotonic() - began
            await self._clock.sleep(period_s - took_s % period_s)

    def _set(self, probed: _Probed, kind: ProbeKind, good: bool) -> bool:
        """Note a result. Whether the probe is done: startup passed, or liveness failed and the container ends."""
        if probed.results.get(kind) is not good:
            probed.results[kind] = good
            if kind == "startup" and good:
                probed.startup_passed.set()
            self._sync_pod(uid_of(probed.pod))
        return kind == "startup" or (kind == "liveness" and not good)

    async def _ask(self, probed: _Probed, probe: Object) -> Answer:
        answer = Answer("error")
        for _ in range(ATTEMPTS):
            answer = await self._ask_once(probed, probe)
            if answer.verdict != "error":
                break
        return answer

    async def _ask_once(self, probed: _Probed, probe: Object) -> Answer:
        timeout_s = float(probe.get("timeoutSeconds") or 1)
        if (action := probe.get("exec")) is not None:
            return await self._handlers.exec(probed.status.id, _command(probed.container, action), timeout_s)
        if (action := probe.get("httpGet")) is not None:
            return await self._handlers.http_get(probed.container, action, probed.pod_ip, timeout_s, USER_AGENT)
        if (action := probe.get("tcpSocket")) is not None:
            return await self._handlers.tcp_connect(probed.container, action, probed.pod_ip, timeout_s)
        if (action := probe.get("grpc")) is not None:
            return await self._handlers.grpc_health(action, probed.pod_ip, timeout_s, USER_AGENT)
        return Answer("error", f"missing probe handler for {format_pod(probed.pod)}:{probed.container['name']}")

    def _note(self, probed: _Probed, kind: ProbeKind, answer: Answer) -> None:
        """Count an answer, and tell of one that is not plain success."""
        if result := RESULT_NAMES.get(answer.verdict):
            about = (probed.container["name"], name_of(probed.pod), namespace_of(probed.pod), uid_of(probed.pod))
            self.counts[Probed(kind.capitalize(), result, *about)] += 1
        if answer.verdict != "success":
            self._tell(probed, kind, answer)

    def _tell(self, probed: _Probed, kind: ProbeKind, answer: Answer) -> None:
        reason = "ProbeWarning" if answer.verdict == "warning" else "Unhealthy"
        verb = {"warning": "warning", "failure": "failed", "error": "errored and resulted in unknown state"}
        self._recorder.event(
            probed.pod,
            "Warning",
            reason,
            f"{kind.capitalize()} probe {verb[answer.verdict]}: {answer.output}",
            field_path=_field_path(probed),
        )


def _command(container: Object, action: Object) -> list[str]:
    """A command with $(NAME) replaced, for variables whose values the manifest itself gives."""
    static = {variable["name"]: str(variable.get("value", "")) for variable in container.get("env") or ()}
    return [expand(word, static.get) for word in action.get("command") or ()]


def _containers(pod: Object) -> list[Object]:
    return [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]


def _field_path(probed: _Probed) -> str:
    inits = {container["name"] for container in probed.pod["spec"].get("initContainers") or ()}
    name = probed.container["name"]
    return f"spec.{'initContainers' if name in inits else 'containers'}{{{name}}}"
