"""Writes pod statuses to the API: only what changed, one write at a time for a pod, the newest state wins.

A pod's start takes two to four writes. A static pod's status is written to its mirror, once that is there. What others
write into a status (readiness gates, disruption) stays: the patch names only what is the kubelet's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import PODS
from kone.apimachinery.objects import Object, dig, name_of, namespace_of, resource_version_of, uid_of
from kone.client.client import Client
from kone.runtime.node_pods import NodePods
from kone.runtime.pod_status import OWNED_CONDITIONS
from kone.runtime.static_pods import is_static

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 10.0
REPLACED_LISTS = frozenset({"hostIPs", "podIPs"})  # merged by address in a patch, unless told otherwise


class StatusManager:
    """`set` says what a pod's status is; the write follows by itself.

    `terminated` is told of each container that has ended: (container type, exit code, reason).
    """

    def __init__(
        self,
        client: Client,
        pods: NodePods,
        clock: Clock,
        *,
        terminated: Callable[[str, str, str], None] = lambda kind, code, reason: None,
    ) -> None:
        self._terminated = terminated
        self._client = client
        self._pods = pods
        self._clock = clock
        self._wanted: dict[str, Object] = {}  # UID -> status
        self._identity: dict[str, Object] = {}  # UID -> the pod as last seen by a worker
        self._written: dict[str, tuple[int, Object]] = {}  # UID -> (resourceVersion, status) of our last write
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._tasks = TaskGroup("pod-status")

    def get(self, uid: str) -> Object | None:
        """The newest status that was set, whether written yet or not."""
        return self._wanted.get(uid)

    def set(self, pod: Object, status: Object) -> None:
        uid = uid_of(pod)
        for ended in newly_terminated(self._wanted.get(uid) or pod.get("status") or {}, status):
            self._terminated(*ended)
        self._wanted[uid] = status
        self._identity[uid] = pod
        self.look(uid)

    def look(self, uid: str) -> None:
        """Write what was set, where the API says something else."""
        if uid not in self._writing and self._patch(uid):
            name = name_of(self._identity[uid])
            self._writing[uid] = self._tasks.spawn(self._write(uid), name=f"pod-status {name}")

    def agrees(self, pod: Object) -> bool:
        """Whether the pod, as the API has it, says what was set."""
        wanted = self._wanted.get(uid_of(pod))
        return wanted is None or not status_patch(pod.get("status") or {}, wanted)

    async def flush(self, uid: str) -> None:
        """Wait until the API has what was set."""
        while (task := self._writing.get(uid)) is not None:
            await asyncio.wait({task})

    def forget(self, uid: str) -> None:
        """The pod is gone from the API."""
        for memory in (self._wanted, self._identity, self._written):
            memory.pop(uid, None)

    async def stop(self) -> None:
        await self._tasks.cancel()

    async def _write(self, uid: str) -> None:
        delay_s = RETRY_FIRST_S
        try:
            while patch := self._patch(uid):
                pod = self._identity[uid]
                try:
                    stored = await self._client.patch(
                        PODS,
                        name_of(pod),
                        patch,
                        namespace=namespace_of(pod),
                        subresource="status",
                        kind="strategic",
                    )
                except StatusError as error:
                    if error.code in (404, 409, 422):  # gone, or another pod of that name
                        log.debug("status not written: pod=%s/%s: %s", namespace_of(pod), name_of(pod), error)
                        if not is_static(pod):
                            self.forget(uid)
                        return  # another mirror will be told
                    log.warning("status not written: pod=%s/%s: %s", namespace_of(pod), name_of(pod), error)
                    await self._clock.sleep(delay_s)
                    delay_s = min(delay_s * 2, RETRY_MAX_S)
                    continue
                self._written[uid] = (int(resource_version_of(stored) or 0), stored.get("status") or {})
                delay_s = RETRY_FIRST_S
        finally:
            self._writing.pop(uid, None)

    def _patch(self, uid: str) -> Object:
        """What to send so that the API has the wanted status; {} where it has."""
        wanted, pod = self._wanted.get(uid), self._identity.get(uid)
        if wanted is None or pod is None:
            return {}
        seen = self._pods.stored(pod)
        holder = uid
        if is_static(pod):
            if seen is None:
                return {}
            holder = uid_of(seen)
        version, current = self._written.get(uid, (0, {}))
        if seen is not None and uid_of(seen) == holder and int(resource_version_of(seen) or 0) >= version:
            current = seen.get("status") or {}
        changes = status_patch(current, wanted)
        return {"metadata": {"uid": holder}, "status": changes} if changes else {}


def status_patch(current: Object, wanted: Object) -> Object:
    """A strategic merge patch from one status to another, {} where they say the same.

    Conditions of others that only `current` has stay; the kubelet's own go when it no longer says them.
    """
    patch: Object = {}
    plain_current, plain_wanted = _plain(current), _plain(wanted)
    for field in current.keys() | wanted.keys():
        if plain_current.get(field) == plain_wanted.get(field):
            continue
        old, new = current.get(field), wanted.get(field)
        if field == "conditions":
            before = {c["type"]: c for c in old or ()}
            changed = [c for c in new or () if _plain(before.get(c["type"])) != _plain(c)]
            gone = (before.keys() & OWNED_CONDITIONS) - {c["type"] for c in new or ()}
            if changed or gone:
                patch[field] = [_whole(before.get(c["type"]), c) for c in changed]
                patch[field] += [{"$patch": "delete", "type": kind} for kind in sorted(gone)]
        elif field in REPLACED_LISTS and new:
            patch[field] = [*new, {"$patch": "replace"}] if old else new
        elif new is None and old is not None:
            patch[field] = None
        else:
            patch[field] = new
    return patch


def _whole(old: Object | None, new: Object) -> Object:
    """The condition, with nulls for what it says no more."""
    return {**dict.fromkeys((old or {}).keys() - new.keys()), **new}


def _plain(value: Any) -> Any:
    """Without what says nothing: the API writes and omits nulls and empties as it likes."""
    if isinstance(value, dict):
        found = {key: _plain(part) for key, part in value.items()}
        return {key: part for key, part in found.items() if part not in (None, "", {}, [])}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


_CONTAINER_TYPES = {
    "initContainerStatuses": "init_container",
    "containerStatuses": "container",
    "ephemeralContainerStatuses": "ephemeral_container",
}


def newly_terminated(old: Object, new: Object) -> Iterator[tuple[str, str, str]]:
    """The containers that have ended between two statuses: (container type, exit code, reason)."""
    for field, kind in _CONTAINER_TYPES.items():
        before = {status["name"] for status in old.get(field) or () if dig(status, "state", "terminated")}
        for status in new.get(field) or ():
            ended = dig(status, "state", "terminated")
            if ended and status["name"] not in before:
                yield kind, str(ended.get("exitCode", 0)), ended.get("reason", "")
