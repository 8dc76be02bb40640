"""DefaultPreemption's part in the queue: while its victims are being asked away, a pod is not tried again.

Whom it asks away is decided in scheduler/preemption.py.
"""

from __future__ import annotations

from kone.scheduler.framework import Plugin, Status, unresolvable
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.snapshot import Cluster


class DefaultPreemption(Plugin):
    name = "DefaultPreemption"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.running: set[str] = set()  # uids of pods whose victims are being asked away

    def pre_enqueue(self, pod: PodInfo) -> Status | None:
        if pod.uid in self.running:
            return unresolvable("waiting for the preemption for this pod to be finished")
        return None
