"""EndpointSlices that mirror Endpoints which users keep themselves, for Services without a selector."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kone.apimachinery.kinds import ENDPOINTS, ENDPOINTSLICES, SERVICES
from kone.apimachinery.objects import (
    Key,
    Object,
    annotations_of,
    dig,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kone.client.client import EventType, Informer, Objects
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch, for_object
from kone.controllers.endpoint_slices import (
    MANAGED_BY,
    SERVICE_NAME,
    TRIGGER_TIME,
    SlicePlan,
    new_slice,
    parse_ip,
    port_key,
)
from kone.controllers.endpoints import LEADER, repack
from kone.controllers.endpointslice import SETTLE_S, delete_slice, index_by_service, slices_of, write_slices

MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
MAX_PER_SUBSET = 1000  # --mirroring-max-endpoints-per-subset


@dataclass(slots=True)
class Mirror:
    """The slices that Endpoints stand for, and what could not be mirrored."""

    slices: list[Object] = field(default_factory=list)
    invalid: int = 0
    skipped: int = 0


def mirror(endpoints: Object) -> Mirror:
    """One slice for each subset and address family, of at most 1000 addresses a subset."""
    result = Mirror()
    labels = labels_of(endpoints) | {SERVICE_NAME: name_of(endpoints), MANAGED_BY: MANAGER}
    annotations = {k: v for k, v in annotations_of(endpoints).items() if k not in (TRIGGER_TIME, LAST_APPLIED)}
    for subset in repack(endpoints.get("subsets") or ()):
        ports = [{"name": "", "protocol": "TCP", **port} for port in subset.get("ports", ())]
        by_type: dict[str, list[Object]] = {}
        added = 0
        states = [
            (address, ready)
            for name, ready in (("addresses", True), ("notReadyAddresses", False))
            for address in subset.get(name, ())
        ]
        for address, ready in states:
            if added >= MAX_PER_SUBSET:
                break
            ip = parse_ip(address["ip"])
            if ip is None:
                result.invalid += 1
                continue
            endpoint: Object = {"addresses": [str(ip)], "conditions": {"ready": ready}}
            endpoint |= {key: address[key] for key in ("targetRef", "nodeName", "hostname") if address.get(key)}
            by_type.setdefault("IPv4" if ip.version == 4 else "IPv6", []).append(endpoint)
            added += 1
        result.skipped += len(states) - added
        for address_type, found in by_type.items():
            slice_ = new_slice(endpoints, ports, address_type, labels)
            slice_["endpoints"] = found
            if annotations:
                slice_["metadata"]["annotations"] = annotations
            result.slices.append(slice_)
    return result


def plan_mirroring(wanted: Iterable[Object], existing: Iterable[Object]) -> SlicePlan:
    """Change the slice of the same family and ports where there is one, else any that would be deleted."""
    plan, left = SlicePlan(), list(existing)
    homeless: Objects = []
    for slice_ in wanted:
        match = next((old for old in left if _slot(old) == _slot(slice_)), None)
        if match is None:
            homeless.append(slice_)
            continue
        left.remove(match)
        if _content(match) != _content(slice_):
            plan.update.append(_in_place_of(match, slice_))
    for slice_ in homeless:
        spare = next((old for old in left if old["addressType"] == slice_["addressType"]), None)
        if spare is None:
            plan.create.append(slice_)
        else:
            left.remove(spare)
            plan.update.append(_in_place_of(spare, slice_))
    plan.delete = left
    return plan


def _slot(slice_: Object) -> tuple[str, str]:
    return slice_["addressType"], port_key(slice_.get("ports"))


def _content(slice_: Object) -> tuple[object, ...]:
    # Another owner with the same name is another Endpoints object, made anew.
    owners = [ref["uid"] for ref in slice_["metadata"].get("ownerReferences") or ()]
    return slice_.get("endpoints") or [], labels_of(slice_), annotations_of(slice_), owners


def _in_place_of(old: Object, new: Object) -> Object:
    return {**new, "metadata": {**new["metadata"], "name": name_of(old), "uid": uid_of(old)}}


class Mirroring(Reconciler):
    """Reconciles the mirrored slices of Endpoints."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(ENDPOINTS)
        self._services: Informer = ctx.client.informer(SERVICES)
        self._slices: Informer = ctx.client.informer(ENDPOINTSLICES)
        index_by_service(self._slices)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)
        yield Watch(self._services, self._keys_of_service)
        yield Watch(self._slices, self._keys_of_slice)

    def _keys_of_service(self, event: EventType, service: Object, previous: Object | None) -> Iterable[Key]:
        has, had = _has_selector(service), _has_selector(previous) if previous is not None else None
        return (key_of(service),) if has != had else ()

    def _keys_of_slice(self, event: EventType, slice_: Object, previous: Object | None) -> Iterable[Key]:
        for state in (slice_, previous):
            labels = labels_of(state) if state is not None else {}
            if labels.get(MANAGED_BY) == MANAGER and (name := labels.get(SERVICE_NAME)):
                self._ctx.queue.add_after(Key(namespace_of(slice_), name), SETTLE_S)
        return ()

    async def reconcile(self, key: Key) -> Result | None:
        endpoints, service = self.primary.get(*key), self._services.get(*key)
        existing = slices_of(self._slices, key.namespace, key.name, MANAGER)
        if endpoints is None or service is None or _has_selector(service) or not _is_mirrored(endpoints):
            for slice_ in existing:
                await delete_slice(self._ctx.client, slice_)
            return None
        wanted = mirror(endpoints)
        if wanted.invalid:
            message = f"Skipped {wanted.invalid} invalid IP addresses when mirroring to EndpointSlices"
            self._ctx.recorder.event(endpoints, "Warning", "InvalidIPAddress", message)
        if wanted.skipped > wanted.invalid:
            message = (
                f"A max of {MAX_PER_SUBSET} addresses can be mirrored to EndpointSlices per Endpoints subset. "
                f"{wanted.skipped} addresses were skipped"
            )
            self._ctx.recorder.event(endpoints, "Warning", "TooManyAddressesToMirror", message)
        await write_slices(self._ctx.client, endpoints, plan_mirroring(wanted.slices, existing))
        return None


def _has_selector(service: Object) -> bool:
    return dig(service, "spec", "selector") is not None


def _is_mirrored(endpoints: Object) -> bool:
    return labels_of(endpoints).get(SKIP_MIRROR) != "true" and LEADER not in annotations_of(endpoints)


ENDPOINTSLICE_MIRRORING_CONTROLLER = Controller(
    "endpointslice-mirroring-controller",
    Mirroring,
    account="endpointslicemirroring-controller",
    component="endpoint-slice-mirroring-controller",
    backoff_s=1.0,
)
