"""SchedulingGates: a pod with gates waits until whoever set them takes them away."""

from __future__ import annotations

from kone.scheduler.framework import Happened, Plugin, Status, unresolvable
from kone.scheduler.pod_info import PodInfo


class SchedulingGates(Plugin):
    name = "SchedulingGates"
    wakes_on = Happened.SELF_GATES

    def pre_enqueue(self, pod: PodInfo) -> Status | None:
        gates = [gate.get("name", "") for gate in pod.spec.get("schedulingGates") or ()]
        return unresolvable(f"waiting for scheduling gates: [{' '.join(gates)}]") if gates else None
