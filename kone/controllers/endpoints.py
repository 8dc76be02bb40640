"""Endpoints of Services with a selector: the older picture of what EndpointSlices show, of at most 1000 addresses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import ENDPOINTS, PODS, SERVICES
from kone.apimachinery.objects import Key, Object, annotations_of, dig, is_pod_ready, key_of, labels_of, replace_in
from kone.client.client import EventType, Informer
from kone.controllers.controller import (
    NAMESPACE_TERMINATING,
    Context,
    Controller,
    Reconciler,
    Result,
    Watch,
    for_object,
    has_cause,
)
from kone.controllers.endpoint_slices import (
    HEADLESS,
    TriggerTimes,
    addresses_of,
    belongs_in_endpoints,
    has_cluster_ip,
    hostname_for,
    ports_for,
    target_ref,
    with_trigger_time,
)
from kone.controllers.endpointslice import services_of_pod
from kone.controllers.label_index import index_by_labels, index_by_selector, selected

MANAGED_BY = "endpoints.kubernetes.io/managed-by"
MANAGER = "endpoint-controller"
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
LEADER = "control-plane.alpha.kubernetes.io/leader"
CAPACITY = 1000


# Decide


def subsets_for(service: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods' addresses by port, in the canonical layout."""
    published = bool(dig(service, "spec", "publishNotReadyAddresses"))
    loose: list[Object] = []
    for pod in pods:
        if not belongs_in_endpoints(pod, terminating=published):
            continue
        address = _address(service, pod)
        if address is None:
            continue
        field = "addresses" if published or is_pod_ready(pod) else "notReadyAddresses"
        if dig(service, "spec", "ports"):
            loose += [{field: [address], "ports": [_endpoint_port(port)]} for port in ports_for(service, pod)]
        elif not has_cluster_ip(service):
            loose.append({field: [address]})
    return repack(loose)


def _endpoint_port(port: Mapping[str, Any]) -> Object:
    return {key: value for key, value in port.items() if value != ""}


def _address(service: Object, pod: Object) -> Object | None:
    """The pod's address in the Service's first family."""
    families = dig(service, "spec", "ipFamilies", default=[])
    if families:
        family = families[0]
    else:
        told = service["spec"]["clusterIP"] if has_cluster_ip(service) else dig(pod, "status", "podIP", default="")
        family = "IPv6" if ":" in told else "IPv4"
    found = addresses_of(pod, family)
    if not found:
        return None
    address: Object = {"ip": found[0], "targetRef": target_ref(pod)}
    if hostname := hostname_for(pod, service):
        address["hostname"] = hostname
    if node := dig(pod, "spec", "nodeName"):
        address["nodeName"] = node
    return address


def repack(subsets: Iterable[Object]) -> list[Object]:
    """The same addresses and ports in the one canonical layout: ports that have the same addresses share a subset,
    addresses are in the order of their IPs. Not ready anywhere is not ready."""
    addresses: dict[tuple[str, str], Object] = {}
    ready_by_port: dict[str, dict[tuple[str, str], bool]] = {}
    for subset in subsets:
        ports = [_dumped(port) for port in subset.get("ports") or ()] or [""]
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in subset.get(field) or ():
                key = (address["ip"], dig(address, "targetRef", "uid", default=""))
                addresses.setdefault(key, address)
                for port in ports:
                    known = ready_by_port.setdefault(port, {})
                    known[key] = known.get(key, True) and ready
    ports_by_addresses: dict[tuple[tuple[tuple[str, str], bool], ...], list[str]] = {}
    for port, states in ready_by_port.items():
        ports_by_addresses.setdefault(tuple(sorted(states.items())), []).append(port)
    packed = []
    for members, shared_ports in ports_by_addresses.items():
        subset = {
            "addresses": [addresses[key] for key, ready in members if ready],
            "notReadyAddresses": [addresses[key] for key, ready in members if not ready],
            "ports": [json.loads(port) for port in sorted(shared_ports) if port],
        }
        packed.append({field: value for field, value in subset.items() if value})
    return sorted(packed, key=_dumped)


def _dumped(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def truncate(subsets: list[Object]) -> tuple[list[Object], bool]:
    """(at most 1000 addresses, ready ones first, in proportion to the subsets; whether any had to go)."""
    ready = sum(len(subset.get("addresses", ())) for subset in subsets)
    not_ready = sum(len(subset.get("notReadyAddresses", ())) for subset in subsets)
    if ready + not_ready <= CAPACITY:
        return subsets, False
    field, room, total = (
        ("addresses", CAPACITY, ready)
        if ready > CAPACITY
        else (
            "notReadyAddresses",
            CAPACITY - ready,
            not_ready,
        )
    )
    left, cut = room, []
    for subset in subsets:
        mine = subset.get(field, [])
        part = min(left, math.ceil(len(mine) / total * room))
        left -= min(part, len(mine))
        shorter = {**subset, field: mine[:part]}
        if field == "addresses":
            shorter["notReadyAddresses"] = []
        cut.append({key: value for key, value in shorter.items() if value})
    return cut, True


def _comparable(subsets: Iterable[Object] | None) -> list[Object]:
    """Subsets without the revisions of their pods."""

    def bare(address: Object) -> Object:
        target = address.get("targetRef") or {}
        return {**address, "targetRef": {key: value for key, value in target.items() if key != "resourceVersion"}}

    return [
        {
            "addresses": [bare(address) for address in subset.get("addresses") or ()],
            "notReadyAddresses": [bare(address) for address in subset.get("notReadyAddresses") or ()],
            "ports": subset.get("ports") or [],
        }
        for subset in subsets or ()
    ]


def plan_endpoints(service: Object, pods: Iterable[Object], current: Object | None) -> Object | None:
    """What the Endpoints should be; None when they are so already."""
    wanted = subsets_for(service, pods)
    labels = dict(labels_of(service))
    plain_labels = {k: v for k, v in labels_of(current or {}).items() if k not in (HEADLESS, MANAGED_BY)}
    if current is not None:
        same = _comparable(repack(current.get("subsets") or ())) == _comparable(wanted)
        ours = labels_of(current).get(MANAGED_BY) == MANAGER and plain_labels == labels
        if same and ours and OVER_CAPACITY not in annotations_of(current):
            return None
    subsets, was_cut = truncate(wanted)
    labels.pop(HEADLESS, None)
    if not has_cluster_ip(service):
        labels[HEADLESS] = ""
    labels[MANAGED_BY] = MANAGER
    namespace, name = key_of(service)
    base = current or {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name, "namespace": namespace}}
    annotations = {key: value for key, value in annotations_of(base).items() if key != OVER_CAPACITY}
    if was_cut:
        annotations[OVER_CAPACITY] = "truncated"
    made = replace_in({**base, "subsets": subsets}, ("metadata", "labels"), labels)
    made = replace_in(made, ("metadata", "annotations"), annotations)
    # One that was cut would seem wrong for ever: it is right when nothing but its timing would change.
    return None if current is not None and was_cut and made == current else made


# Act


class Endpoints(Reconciler):
    """Reconciles the Endpoints of a Service."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(SERVICES)
        self._pods: Informer = ctx.client.informer(PODS)
        self._endpoints: Informer = ctx.client.informer(ENDPOINTS)
        self._trigger_times = TriggerTimes()
        index_by_selector(self.primary)
        index_by_labels(self._pods)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)
        yield Watch(self._pods, lambda *event: services_of_pod(self.primary, *event))
        yield Watch(self._endpoints, self._keys_of_deleted)

    def started(self) -> Iterable[Key]:
        """Endpoints whose Service went while nobody looked."""
        return [key_of(obj) for obj in self._endpoints.list() if LEADER not in annotations_of(obj)]

    def _keys_of_deleted(self, event: EventType, obj: Object, previous: Object | None) -> Iterable[Key]:
        return (key_of(obj),) if event == "DELETED" else ()

    async def reconcile(self, key: Key) -> Result | None:
        service = self.primary.get(*key)
        current = self._endpoints.get(*key)
        if service is None:
            self._trigger_times.forget(*key)
            if current is not None:
                await self._delete(key)
            return None
        selector = dig(service, "spec", "selector")
        if selector is None or dig(service, "spec", "type") == "ExternalName":
            return None
        pods = selected(self._pods, key.namespace, selector)
        time = self._trigger_times.next(service, pods)
        wanted = plan_endpoints(service, pods, current)
        if wanted is not None:
            await self._write(with_trigger_time(wanted, time), current)
        return None

    async def _write(self, wanted: Object, current: Object | None) -> None:
        namespace, name = key_of(wanted)
        try:
            if current is None:
                await self._ctx.client.create(ENDPOINTS, wanted, namespace=namespace)
            else:
                await self._ctx.client.update(ENDPOINTS, wanted)
        except StatusError as error:
            if error.code != 409 and not has_cause(error, NAMESPACE_TERMINATING):
                reason, message = (
                    ("FailedToCreateEndpoint", f"Failed to create endpoint for service {namespace}/{name}: {error}")
                    if current is None
                    else ("FailedToUpdateEndpoint", f"Failed to update endpoint {namespace}/{name}: {error}")
                )
                self._ctx.recorder.event(wanted, "Warning", reason, message)
            raise

    async def _delete(self, key: Key) -> None:
        try:
            await self._ctx.client.delete(ENDPOINTS, key.name, namespace=key.namespace)
        except StatusError as error:
            if error.code != 404:
                raise


ENDPOINTS_CONTROLLER = Controller("endpoints-controller", Endpoints, account="endpoint-controller", component=MANAGER)
