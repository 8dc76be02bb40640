"""Carries out what DynamicResources has planned: writes into the API which devices a claim is given and which pod uses
it, takes that back where the pod does not come to a binding, and gives devices free that nobody uses."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import PODS, RESOURCECLAIMS
from kone.apimachinery.objects import (
    Object,
    dig,
    has_finalizer,
    is_deleting,
    name_of,
    namespace_of,
    replace_in,
    uid_of,
    without_finalizer,
)
from kone.apimachinery.timestamps import format_time
from kone.client.client import Client
from kone.scheduler.awaiting import Awaiting
from kone.scheduler.device_binding import BindingFailed, has_conditions, is_ready
from kone.scheduler.framework import Status, unschedulable
from kone.scheduler.plugins.dynamic_resources import Reservation
from kone.scheduler.pod_info import PodInfo

log = logging.getLogger(__name__)

FINALIZER = "resource.kubernetes.io/delete-protection"
ATTEMPTS = 5  # at a claim that others change, too


class ReservationFailed(Exception):
    """The claim is not any more what was planned for."""


Tell = Callable[[PodInfo, str, str], None]
"""A Normal event about the pod: its reason and its message."""


class ClaimReservation:
    """The deeds of the plugin DynamicResources; `changed` is to be called when a claim changes."""

    def __init__(self, client: Client, clock: Clock, tell: Tell) -> None:
        self._client = client
        self._clock = clock
        self._tell = tell
        self._awaiting = Awaiting(clock)

    def changed(self) -> None:
        self._awaiting.changed()

    async def reserve(
        self, pod: PodInfo, reservations: Sequence[Reservation], node: str, timeout_s: float
    ) -> Status | None:
        """Give each claim what it is to have, and the pod to each claim, and wait for devices that their drivers make
        ready. What was done before a failure is undone."""
        claims: list[Object] = []
        undo: list[Callable[[], Awaitable[None]]] = []
        try:
            for reservation in reservations:
                claim, allocation = reservation.claim, reservation.allocation
                if allocation is not None and reservation.mappings:
                    claim = await self._client.create(RESOURCECLAIMS, _to_create(claim), namespace=pod.namespace)
                    undo.append(partial(self.delete, pod, claim))
                if allocation is not None or not _is_user(pod, claim):
                    claim = await self._retried(claim, partial(self._write, pod, allocation))
                    if not reservation.mappings:
                        undo.append(partial(self.release, pod, claim))
                if reservation.mappings:
                    await self._show(pod, claim, reservation.mappings)
                claims.append(claim)
            await self._until_ready(pod, claims, node, timeout_s)
        except (StatusError, OSError, ReservationFailed, BindingFailed) as error:
            for deed in undo:
                await deed()
            return unschedulable(str(error))
        return None

    async def _show(self, pod: PodInfo, claim: Object, mappings: Sequence[Object]) -> None:
        shown = {"resourceClaimName": name_of(claim), "requestMappings": list(mappings)}
        patch: Object = {"metadata": {"uid": pod.uid}, "status": {"extendedResourceClaimStatus": shown}}
        await self._client.patch(PODS, pod.name, patch, namespace=pod.namespace, subresource="status")

    async def _until_ready(self, pod: PodInfo, claims: Sequence[Object], node: str, timeout_s: float) -> None:
        if not any(map(has_conditions, claims)):
            return
        informer = self._client.informer(RESOURCECLAIMS)

        def is_done() -> bool:
            live = [informer.get(namespace_of(claim), name_of(claim)) for claim in claims]
            return all(claim is not None and is_ready(claim) for claim in live)

        self._tell(pod, "BindingConditionsPending", f"waiting for binding conditions for device on node {node}")
        if not await self._awaiting.until(is_done, timeout_s):
            raise BindingFailed("device binding timeout: context deadline exceeded")

    async def _retried(self, claim: Object, change: Callable[[Object], Awaitable[Object]]) -> Object:
        """Others may change the claim meanwhile: then it is read again, and changed as it is now."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await change(claim)
            except StatusError as error:
                if error.reason != "Conflict":
                    raise
                claim = await self._client.get(RESOURCECLAIMS, name_of(claim), namespace_of(claim))
        return await change(claim)

    async def _write(self, pod: PodInfo, allocation: Object | None, claim: Object) -> Object:
        shown = f"{namespace_of(claim)}/{name_of(claim)}"
        if is_deleting(claim):
            raise ReservationFailed(f"claim {shown} got deleted in the meantime")
        status = claim.get("status") or {}
        if allocation is None:
            if status.get("allocation") is None:
                raise ReservationFailed(f"claim {shown} got deallocated elsewhere in the meantime")
        elif status.get("allocation") is not None:
            raise ReservationFailed(f"claim {shown} got allocated elsewhere in the meantime")
        else:
            if not has_finalizer(claim, FINALIZER):
                finalizers = [*(claim["metadata"].get("finalizers") or ()), FINALIZER]
                claim = await self._client.update(
                    RESOURCECLAIMS, replace_in(claim, ("metadata", "finalizers"), finalizers)
                )
            stamp = {"allocationTimestamp": format_time(self._clock.now())}
            status = {**(claim.get("status") or {}), "allocation": {**allocation, **stamp}}
        user = {"resource": "pods", "name": pod.name, "uid": pod.uid}
        status = {**status, "reservedFor": [*(status.get("reservedFor") or ()), user]}
        return await self._client.update(RESOURCECLAIMS, {**claim, "status": status}, subresource="status")

    async def release(self, pod: PodInfo, claim: Object) -> None:
        """The pod does not use the claim after all."""

        async def leave(claim: Object) -> Object:
            users = [user for user in dig(claim, "status", "reservedFor", default=()) if user.get("uid") != pod.uid]
            left = replace_in(claim, ("status", "reservedFor"), users)
            return await self._client.update(RESOURCECLAIMS, left, subresource="status")

        await self._log(claim, self._retried(claim, leave))

    async def deallocate(self, pod: PodInfo, claim: Object) -> None:
        """Give free what a claim got that, when this was decided, nobody but the pod used."""

        async def clear(claim: Object) -> Object:
            gone = ("allocation", "reservedFor", "devices")
            status = {key: value for key, value in (claim.get("status") or {}).items() if key not in gone}
            return await self._client.update(RESOURCECLAIMS, {**claim, "status": status}, subresource="status")

        await self._log(claim, clear(claim))

    async def delete(self, pod: PodInfo, claim: Object) -> None:
        """Take back the claim that was made for the pod's extended resources."""

        async def remove(claim: Object) -> Object:
            if has_finalizer(claim, FINALIZER):
                claim = await self._client.update(RESOURCECLAIMS, without_finalizer(claim, FINALIZER))
            await self._client.delete(RESOURCECLAIMS, name_of(claim), namespace=namespace_of(claim), uid=uid_of(claim))
            return claim

        live = self._client.informer(RESOURCECLAIMS).get(namespace_of(claim), name_of(claim))
        await self._log(claim, self._retried(live or claim, remove))

    @staticmethod
    async def _log(claim: Object, change: Awaitable[Object]) -> None:
        try:
            await change
        except (StatusError, OSError) as error:
            log.info("claim not given free: claim=%s/%s error=%s", namespace_of(claim), name_of(claim), error)


def _is_user(pod: PodInfo, claim: Object) -> bool:
    return any(user.get("uid") == pod.uid for user in dig(claim, "status", "reservedFor", default=()))


def _to_create(claim: Object) -> Object:
    """The claim without what only the scheduler's memory knows it by."""
    meta = {key: value for key, value in claim["metadata"].items() if key not in ("name", "uid")}
    return {**claim, "metadata": meta}
