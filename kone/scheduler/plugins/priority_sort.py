"""PrioritySort: who goes first. Higher priority, then who has waited longer."""

from __future__ import annotations

from kone.scheduler.pod_info import PodInfo


def sort_key(pod: PodInfo, waiting_since: float) -> tuple[int, float]:
    """Pods with the smaller key go first; `waiting_since` in seconds of the monotonic clock."""
    return -pod.priority, waiting_since
