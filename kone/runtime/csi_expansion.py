"""Volumes that have grown at their driver's controller: what is left to do on the node, and the claim that tells of it.

The external-resizer makes the persistent volume larger and says NodeResizePending in the claim's status; here the
driver is asked to grow what is mounted, and the claim gets its new capacity. Rules: kubernetes/pkg/volume/util
(resize_util.go, operationexecutor/node_expander.go).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.aio.workqueue import WorkQueue
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    key_of,
    name_of,
    namespace_of,
    other_conditions,
    resource_version_of,
)
from kone.apimachinery.quantity import parse_quantity
from kone.apimachinery.timestamps import format_time
from kone.client.client import Client, EventType, Unsubscribe
from kone.client.events import EventRecorder
from kone.runtime.csi_drivers import DriverMissing
from kone.runtime.csi_volumes import CsiVolumes
from kone.runtime.grpc_status import FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, OUT_OF_RANGE, RpcError
from kone.runtime.parts import VolumeError

log = logging.getLogger(__name__)

PENDING: Final = "NodeResizePending"
IN_PROGRESS: Final = "NodeResizeInProgress"
INFEASIBLE: Final = "NodeResizeInfeasible"
ERROR_CONDITION: Final = "NodeResizeError"
RESIZE_CONDITIONS: Final = frozenset(("Resizing", "FileSystemResizePending", "ControllerResizeError", ERROR_CONDITION))
_INFEASIBLE_CODES: Final = frozenset((INVALID_ARGUMENT, OUT_OF_RANGE, NOT_FOUND))
RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 122.0


# ---- pure


def wanted_size(claim: Object, volume: Object) -> str:
    """What the volume has grown to and the node has yet to see, as it is written; "" where nothing is to be done.

    A resizer that says nothing of allocated resources is an old one: then the capacities alone count.
    """
    size = dig(volume, "spec", "capacity", "storage", default="0")
    status = dig(claim, "status", "allocatedResourceStatuses", "storage", default="")
    if status in (PENDING, IN_PROGRESS):
        return str(size)
    has = dig(claim, "status", "capacity", "storage")
    if status or has is None or dig(claim, "status", "allocatedResources", "storage") is not None:
        return ""
    return str(size) if parse_quantity(has) < parse_quantity(size) else ""


def in_progress(claim: Object) -> Object:
    return _patch(claim, {"allocatedResourceStatuses": {"storage": IN_PROGRESS}})


def finished(claim: Object, size: str) -> Object:
    """The patch of a claim whose volume has that size everywhere."""
    kept = [c for c in dig(claim, "status", "conditions", default=()) if c.get("type") not in RESIZE_CONDITIONS]
    statuses = {key: value for key, value in _statuses(claim).items() if key != "storage"}
    return _patch(
        claim,
        {
            "capacity": {"storage": size},
            "conditions": kept or None,
            "allocatedResourceStatuses": {"storage": None} if statuses else None,
        },
    )


def failed(claim: Object, why: str, *, infeasible: bool, now: float) -> Object:
    condition = {
        "type": ERROR_CONDITION,
        "status": "True",
        "lastTransitionTime": format_time(now),
        "message": f"failed to expand pvc with {why}",
    }
    status: dict[str, Any] = {"conditions": [*other_conditions(claim, ERROR_CONDITION), condition]}
    if infeasible:
        status["allocatedResourceStatuses"] = {"storage": INFEASIBLE}
    return _patch(claim, status)


def _statuses(claim: Object) -> Object:
    return dict(dig(claim, "status", "allocatedResourceStatuses", default={}))


def _patch(claim: Object, status: Object) -> Object:
    return {"metadata": {"resourceVersion": resource_version_of(claim)}, "status": status}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a driver could not grow a volume."""

    text: str
    infeasible: bool
    in_use: bool
    """It does not grow volumes that are in use: try no more."""


def explain(error: RpcError) -> Refusal:
    text = f"Expander.NodeExpand failed to expand the volume : {error}"
    return Refusal(text, error.code in _INFEASIBLE_CODES, error.code == FAILED_PRECONDITION)


# ---- act


class CsiExpansion:
    """Looks after the claims whose volumes are mounted here."""

    def __init__(self, client: Client, recorder: EventRecorder, csi: CsiVolumes, node_name: str, clock: Clock) -> None:
        self._client, self._recorder, self._csi = client, recorder, csi
        self._node_name, self._clock = node_name, clock
        self._claims = client.informer(PERSISTENTVOLUMECLAIMS)
        self._volumes = client.informer(PERSISTENTVOLUMES)
        self._queue: WorkQueue[Key] = WorkQueue(clock, name="csi-expansion", first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S)
        self._tasks = TaskGroup("csi-expansion")
        self._subscriptions: list[Unsubscribe] = []
        self._given_up: set[tuple[str, str]] = set()  # (volume, size): not while it is in use

    async def start(self) -> None:
        await self._claims.wait_synced()
        await self._volumes.wait_synced()
        self._csi.on_mounted = self._on_mounted
        self._subscriptions = [self._claims.subscribe(self._on_claim), self._volumes.subscribe(self._on_volume)]
        self._tasks.guard(self._work, name="csi-expansion.work")

    async def stop(self) -> None:
        for unsubscribe in self._subscriptions:
            unsubscribe()
        await self._tasks.cancel()
        self._queue.close()

    def _on_claim(self, event: EventType, claim: Object, previous: Object | None) -> None:
        """What is written here is no reason to look again."""
        name = dig(claim, "spec", "volumeName", default="")
        volume = self._volumes.get("", name) if self._csi.holder_of(name) is not None else None
        if volume is None or event == "DELETED":
            return
        if previous is None or wanted_size(previous, volume) != wanted_size(claim, volume):
            self._queue.add(key_of(claim))

    def _on_volume(self, event: EventType, volume: Object, previous: Object | None) -> None:
        if event == "MODIFIED" and self._csi.holder_of(name_of(volume)) is not None:
            self._on_mounted(name_of(volume))

    def _on_mounted(self, volume_name: str) -> None:
        reference = dig(self._volumes.get("", volume_name), "spec", "claimRef")
        if reference is not None:
            self._queue.add(Key(reference.get("namespace", ""), reference.get("name", "")))

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            try:
                await self._expand(key)
            except (StatusError, VolumeError, DriverMissing) as error:
                delay_s = self._queue.add_backing_off(key)
                log.info("the volume of claim %s is not expanded: %s; tried again in %.3g s", key, error, delay_s)
            else:
                self._queue.forget(key)
            finally:
                self._queue.done(key)

    async def _expand(self, key: Key) -> None:
        claim = self._claims.get(*key)
        volume = self._volumes.get("", dig(claim, "spec", "volumeName", default=""))
        holder = self._csi.holder_of(name_of(volume)) if volume is not None else None
        if claim is None or volume is None or holder is None:
            return
        size = wanted_size(claim, volume)
        if not size or (name_of(volume), size) in self._given_up:
            return
        pod, mounted = holder.pod, holder.volume
        if mounted.read_only:
            message = f'MountVolume.NodeExpandVolume failed for volume "{mounted.name}" requested read-only file system'
            for obj in (pod, claim):
                self._recorder.event(obj, "Warning", "FileSystemResizeFailed", message)
            return
        claim = await self._write(claim, in_progress(claim))
        try:
            asked = await self._csi.expand(holder, parse_quantity(size).value())
        except RpcError as error:
            refusal = explain(error)
            patch = failed(claim, refusal.text, infeasible=refusal.infeasible, now=self._clock.now())
            await self._write(claim, patch)
            message = f'NodeExpandVolume.NodeExpandVolume failed for volume "{mounted.name}" : {refusal.text}'
            self._recorder.event(pod, "Warning", "VolumeResizeFailed", message)
            if refusal.in_use:
                self._given_up.add((mounted.name, size))
            if not refusal.infeasible and not refusal.in_use:
                raise VolumeError(refusal.text) from None
            return
        if asked:
            message = f'MountVolume.NodeExpandVolume succeeded for volume "{mounted.name}" {self._node_name}'
            for obj in (pod, claim):
                self._recorder.event(obj, "Normal", "FileSystemResizeSuccessful", message)
        await self._write(claim, finished(claim, size))

    async def _write(self, claim: Object, patch: Object) -> Object:
        return await self._client.patch(
            PERSISTENTVOLUMECLAIMS, name_of(claim), patch, namespace=namespace_of(claim), subresource="status"
        )
