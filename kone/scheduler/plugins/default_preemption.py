"""DefaultPreemption: a pod that fits nowhere may take the place of less important ones.

Whom it asks away is decided in scheduler/preemption.py. While they are being asked away the pod is not tried again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar

from kone.apimachinery.errors import FieldError, invalid_value
from kone.scheduler.framework import NO_ARGUMENTS, Framework, NoFit, Plugin, Remedy, Status, unresolvable
from kone.scheduler.pod_info import PodInfo
from kone.scheduler.preemption import Victims, preempt
from kone.scheduler.snapshot import Cluster

MIN_PERCENTAGE, MIN_ABSOLUTE = 10, 100  # of the nodes, how many that could be helped are enough to choose among

AskAway = Callable[[PodInfo, Victims], Awaitable[None]]


class DefaultPreemption(Plugin):
    """`ask_away` carries out what was decided; without it nobody is asked."""

    name = "DefaultPreemption"
    arguments: ClassVar = {"minCandidateNodesPercentage": int, "minCandidateNodesAbsolute": int}

    def __init__(
        self, cluster: Cluster, args: Mapping[str, Any] = NO_ARGUMENTS, ask_away: AskAway | None = None
    ) -> None:
        super().__init__(cluster, args)
        self._percentage = args.get("minCandidateNodesPercentage", MIN_PERCENTAGE)
        self._absolute = args.get("minCandidateNodesAbsolute", MIN_ABSOLUTE)
        self._ask_away = ask_away
        self._running: set[str] = set()  # uids of pods whose victims are being asked away

    @classmethod
    def check(cls, path: str, args: Mapping[str, Any]) -> Iterable[FieldError]:
        percentage = args.get("minCandidateNodesPercentage", MIN_PERCENTAGE)
        absolute = args.get("minCandidateNodesAbsolute", MIN_ABSOLUTE)
        at_percentage, at_absolute = f"{path}.minCandidateNodesPercentage", f"{path}.minCandidateNodesAbsolute"
        if not 0 <= percentage <= 100:
            yield invalid_value(at_percentage, percentage, "not in valid range [0, 100]")
        if absolute < 0:
            yield invalid_value(at_absolute, absolute, "not in valid range [0, inf)")
        if percentage == absolute == 0:
            why = "cannot be zero at the same time as"
            yield invalid_value(at_percentage, 0, f"{why} minCandidateNodesAbsolute")
            yield invalid_value(at_absolute, 0, f"{why} minCandidateNodesPercentage")

    def pre_enqueue(self, pod: PodInfo) -> Status | None:
        if pod.uid in self._running:
            return unresolvable("waiting for the preemption for this pod to be finished")
        return None

    def post_filter(self, framework: Framework, pod: PodInfo, failure: NoFit) -> Remedy | None:
        enough = max(failure.node_count * self._percentage // 100, self._absolute)
        found = preempt(framework, pod, failure, enough=enough)
        victims = found.victims
        if victims is None:
            return Remedy(found.message, "" if found.clears_nomination else None)
        self._running.add(pod.uid)
        return Remedy(found.message, victims.node.name, lambda: self._carry_out(pod, victims))

    async def _carry_out(self, pod: PodInfo, victims: Victims) -> None:
        try:
            if self._ask_away is not None:
                await self._ask_away(pod, victims)
        finally:
            self._running.discard(pod.uid)
