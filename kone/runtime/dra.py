"""Dynamic resources on the node: claims are prepared by their drivers before a pod starts, and let go after its end.

A driver makes itself known in plugins_registry. What it prepares are CDI devices, which cdi.py turns into what Docker
takes. A claim that several pods of this node share is prepared once, and unprepared by the last. What was prepared is
on record, so that it is let go also by a kubelet that was started anew. The ResourceSlices of a driver that is gone
for 30 s, and at the start those of all drivers that are not there, are removed. Rules and texts:
kubernetes/pkg/kubelet/cm/dra.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import RESOURCECLAIMS, RESOURCESLICES
from kone.apimachinery.objects import Object, dig, name_of, namespace_of, uid_of
from kone.client.client import Client
from kone.runtime import cdi
from kone.runtime.cdi import Allotment, CdiError
from kone.runtime.grpc_status import RpcError
from kone.runtime.plugin_watcher import PluginRefused

log = logging.getLogger(__name__)

PLUGIN_TYPE: Final = "DRAPlugin"
CHECKPOINT: Final = "kone_dra.json"
CALL_S: Final = 45.0
WIPE_S: Final = 30.0  # after a driver has gone, its slices stay so long


class NotPrepared(Exception):
    """A claim cannot be used yet; the pod waits and is tried again."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A device of a claim: the requests that it is for, and its CDI names."""

    requests: Sequence[str]
    cdi: Sequence[str]


@dataclass(slots=True)
class _Claim:
    """A claim that this node knows: its drivers, what they prepared, and the pods that use it here."""

    namespace: str
    name: str
    uid: str
    drivers: list[str]
    pods: list[str]
    devices: list[Prepared] = field(default_factory=list)
    is_prepared: bool = False


@dataclass(frozen=True, slots=True)
class _Driver:
    client: Any
    version: str


class DynamicResources:
    """The drivers of this node and the claims of its pods; a PluginHandler."""

    def __init__(self, client: Client, root: Path, node_name: str, clock: Clock) -> None:
        self._client, self._root, self._node_name, self._clock = client, root, node_name, clock
        self._drivers: dict[str, _Driver] = {}
        self._claims: dict[str, _Claim] = {}  # by UID
        self._locks: dict[str, asyncio.Lock] = {}
        self._wipes: dict[str, asyncio.Task[None]] = {}
        self._tasks = TaskGroup("dra")

    async def start(self) -> None:
        """Read what was prepared, and give drivers their time before their slices are removed."""
        self._claims = _read(self._root / CHECKPOINT)
        self._wipe_later("")

    async def stop(self) -> None:
        await self._tasks.cancel()
        for driver in self._drivers.values():
            driver.client.close()

    # ---- pods

    async def prepare(self, pod: Object) -> None:
        """All claims of a pod, by their drivers. Raises NotPrepared."""
        names = _claim_names(pod)
        for entry in dig(pod, "spec", "resourceClaims", default=()):
            name = names.get(entry["name"], "")
            if name is None:
                continue  # the template made none: nothing is needed
            if not name:
                raise NotPrepared(
                    f"prepare dynamic resources: ResourceClaim {entry['name']}: pod status does not name it yet"
                )
            await self._prepare(pod, name)

    async def _prepare(self, pod: Object, name: str) -> None:
        what = "prepare dynamic resources"
        try:
            claim = await self._client.get(RESOURCECLAIMS, name, namespace_of(pod))
        except StatusError as error:
            raise NotPrepared(f"{what}: fetch ResourceClaim {name}: {error}") from None
        reserved = dig(claim, "status", "reservedFor", default=())
        if not any(consumer.get("uid") == uid_of(pod) for consumer in reserved):
            raise NotPrepared(
                f"{what}: pod {name_of(pod)} ({uid_of(pod)}) is not allowed to use ResourceClaim {name} "
                f"({uid_of(claim)})"
            )
        results = dig(claim, "status", "allocation", "devices", "results", default=())
        drivers = list(dict.fromkeys(result["driver"] for result in results))
        async with self._locks.setdefault(uid_of(claim), asyncio.Lock()):
            known = self._claims.get(uid_of(claim))
            if known is None:
                for other in self._claims.values():
                    if (other.namespace, other.name) == (namespace_of(claim), name):
                        raise NotPrepared(
                            f"{what}: old ResourceClaim with same name {name} and different UID {other.uid} still "
                            "exists (previous pod force-deleted?!)"
                        )
                known = _Claim(namespace_of(claim), name, uid_of(claim), drivers, [])
                self._claims[known.uid] = known
            if uid_of(pod) not in known.pods:
                known.pods.append(uid_of(pod))
                self._write()  # before the drivers: what they prepare is let go whatever comes
            if not known.is_prepared:
                known.devices = [device for driver in drivers for device in await self._ask(driver, known)]
                known.is_prepared = True
                self._write()

    async def _ask(self, name: str, claim: _Claim) -> list[Prepared]:
        from kone.runtime import dra_messages

        what = "prepare dynamic resources"
        driver = self._drivers.get(name)
        if driver is None:
            raise NotPrepared(f"{what}: ResourceClaim {claim.name}: DRA driver {name} is not registered")
        request = {"claims": [{"namespace": claim.namespace, "uid": claim.uid, "name": claim.name}]}
        try:
            answer = await driver.client.call(dra_messages.prepare(driver.version), request, timeout_s=CALL_S)
        except RpcError as error:
            raise NotPrepared(f"{what}: NodePrepareResources: {error}") from None
        found = {entry.get("key", ""): entry.get("value", {}) for entry in answer.get("claims", ())}
        if claim.uid not in found:
            raise NotPrepared(f"{what}: NodePrepareResources skipped 1 ResourceClaims")
        if why := found[claim.uid].get("error"):
            raise NotPrepared(f"{what}: NodePrepareResources failed for ResourceClaim {claim.name}: {why}")
        return [
            Prepared(device.get("request_names", []), device.get("cdi_device_ids", []))
            for device in found[claim.uid].get("devices", ())
        ]

    def allotment(self, pod: Object, container: Object) -> Allotment:
        """What the claims that a container names need in it. Raises NotPrepared."""
        names, wanted = _claim_names(pod), []
        for use in dig(container, "resources", "claims", default=()):
            name = names.get(use["name"])
            for claim in self._claims.values():
                if (claim.namespace, claim.name) == (namespace_of(pod), name) and uid_of(pod) in claim.pods:
                    wanted += [each for device in claim.devices if _is_for(device, use) for each in device.cdi]
        try:
            return cdi.allotment(wanted)
        except CdiError as error:
            raise NotPrepared(str(error)) from error

    async def release(self, pod_uid: str) -> None:
        """The pod has ended: what nobody else uses is unprepared. Raises NotPrepared where a driver cannot do that
        yet."""
        for claim in [claim for claim in self._claims.values() if pod_uid in claim.pods]:
            async with self._locks.setdefault(claim.uid, asyncio.Lock()):
                if claim.pods == [pod_uid]:
                    for driver in claim.drivers:
                        await self._unprepare(driver, claim)
                    del self._claims[claim.uid]
                    self._locks.pop(claim.uid, None)
                elif pod_uid in claim.pods:
                    claim.pods.remove(pod_uid)
                self._write()

    async def _unprepare(self, name: str, claim: _Claim) -> None:
        from kone.runtime import dra_messages

        what = f"unprepare dynamic resources of ResourceClaim {claim.name}"
        driver = self._drivers.get(name)
        if driver is None:
            raise NotPrepared(f"{what}: DRA driver {name} is not registered")
        request = {"claims": [{"namespace": claim.namespace, "uid": claim.uid, "name": claim.name}]}
        try:
            answer = await driver.client.call(dra_messages.unprepare(driver.version), request, timeout_s=CALL_S)
        except RpcError as error:
            raise NotPrepared(f"{what}: NodeUnprepareResources: {error}") from None
        for entry in answer.get("claims", ()):
            if why := entry.get("value", {}).get("error"):
                raise NotPrepared(f"{what}: NodeUnprepareResources failed: {why}")

    def pods(self) -> set[str]:
        """The UIDs of pods that hold claims here."""
        return {uid for claim in self._claims.values() for uid in claim.pods}

    def _write(self) -> None:
        path = self._root / CHECKPOINT
        fresh = path.with_name(path.name + ".new")
        try:
            fresh.write_text(json.dumps([asdict(claim) for claim in self._claims.values()]))
            fresh.rename(path)
        except OSError as error:
            log.error("which claims are prepared is not written: %s", error)

    # ---- PluginHandler

    def validate(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        _version(name, versions)

    async def register(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        from kone.runtime.grpc import Client as GrpcClient

        version = _version(name, versions)
        if (before := self._drivers.pop(name, None)) is not None:
            before.client.close()
        self._drivers[name] = _Driver(GrpcClient(Path(endpoint)), version)
        if (wipe := self._wipes.pop(name, None)) is not None:
            wipe.cancel()

    async def deregister(self, name: str) -> None:
        if (driver := self._drivers.pop(name, None)) is not None:
            driver.client.close()
            self._wipe_later(name)

    def _wipe_later(self, name: str) -> None:
        self._wipes[name] = self._tasks.spawn(self._wipe(name), name=f"dra.wipe {name}")

    async def _wipe(self, name: str) -> None:
        """Remove the slices of a driver that has not come back; "" is all that are not here."""
        await self._clock.sleep(WIPE_S)
        self._wipes.pop(name, None)
        fields = f"spec.nodeName={self._node_name}" + (f",spec.driver={name}" if name else "")
        try:
            for found in await self._client.list(RESOURCESLICES, fields=fields):
                driver = dig(found, "spec", "driver", default="")
                if driver not in self._drivers and name in ("", driver):
                    await self._client.delete(RESOURCESLICES, name_of(found), uid=uid_of(found))
                    log.info("removed ResourceSlice %s of driver %s, which is gone", name_of(found), driver)
        except StatusError as error:
            log.warning("ResourceSlices of drivers that are gone stay: %s", error)


def _version(name: str, versions: Sequence[str]) -> str:
    """The service that is spoken. Raises PluginRefused."""
    from kone.runtime import dra_messages

    for version in dra_messages.VERSIONS:
        if f"{version}.DRAPlugin" in versions:
            return version
    raise PluginRefused(
        f"invalid supported gRPC versions of DRA driver plugin {name}: need one of "
        + ", ".join(f"{version}.DRAPlugin" for version in dra_messages.VERSIONS)
    )


def _claim_names(pod: Object) -> dict[str, str | None]:
    """The claims' names by the pod's own: "" where none is known yet, None where none is needed."""
    made = {s["name"]: s.get("resourceClaimName") for s in dig(pod, "status", "resourceClaimStatuses", default=())}
    found: dict[str, str | None] = {}
    for entry in dig(pod, "spec", "resourceClaims", default=()):
        found[entry["name"]] = entry.get("resourceClaimName") or made.get(entry["name"], "")
    return found


def _is_for(device: Prepared, use: Object) -> bool:
    """Whether a container's use of a claim has that device: all of them, or those of one request (with its
    subrequests)."""
    wanted = use.get("request")
    if not wanted or not device.requests:
        return True
    return any(request == wanted or request.startswith(f"{wanted}/") for request in device.requests)


def _read(path: Path) -> dict[str, _Claim]:
    try:
        found = [_Claim(**entry) for entry in json.loads(path.read_text())]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        log.error("which claims are prepared cannot be read: %s", error)
        return {}
    for claim in found:
        claim.devices = [Prepared(**device) for device in claim.devices]  # type: ignore[arg-type]
    return {claim.uid: claim for claim in found}
