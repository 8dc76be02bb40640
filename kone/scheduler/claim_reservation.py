"""Carries out what DynamicResources has planned: writes into the API which devices a claim is given and which pod uses
it, takes that back where the pod does not come to a binding, and gives devices free that nobody uses."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import RESOURCECLAIMS
from kone.apimachinery.objects import Object, dig, has_finalizer, is_deleting, name_of, namespace_of, replace_in
from kone.apimachinery.timestamps import format_time
from kone.client.client import Client
from kone.scheduler.framework import Status, unschedulable
from kone.scheduler.plugins.dynamic_resources import Reservation
from kone.scheduler.pod_info import PodInfo

log = logging.getLogger(__name__)

FINALIZER = "resource.kubernetes.io/delete-protection"
ATTEMPTS = 5  # at a claim that others change, too


class ReservationFailed(Exception):
    """The claim is not any more what was planned for."""


class ClaimReservation:
    """The deeds of the plugin DynamicResources."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def reserve(self, pod: PodInfo, reservations: Sequence[Reservation]) -> Status | None:
        """Give each claim what it is to have, and the pod to each claim. What was done before a failure is undone."""
        done: list[Object] = []
        try:
            for reservation in reservations:
                done.append(await self._insist(pod, reservation))
        except (StatusError, OSError, ReservationFailed) as error:
            for claim in done:
                await self.release(pod, claim)
            return unschedulable(str(error))
        return None

    async def _insist(self, pod: PodInfo, reservation: Reservation) -> Object:
        return await self._retried(reservation.claim, lambda claim: self._write(pod, claim, reservation.allocation))

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

    async def _write(self, pod: PodInfo, claim: Object, allocation: Object | None) -> Object:
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

    @staticmethod
    async def _log(claim: Object, change: Awaitable[Object]) -> None:
        try:
            await change
        except (StatusError, OSError) as error:
            log.info("claim not given free: claim=%s/%s error=%s", namespace_of(claim), name_of(claim), error)
