"""The endpoints of a Service as pure functions: which pods, how each is described, how they are laid out in slices."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kone.apimachinery.objects import (
    Object,
    annotations_of,
    controller_reference,
    dig,
    is_deleting,
    is_pod_ready,
    is_pod_terminal,
    labels_of,
    name_of,
    namespace_of,
    owner_references,
    replace_in,
    uid_of,
)
from kone.client.client import Objects

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
SERVICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
RESERVED_LABELS = {MANAGED_BY, SERVICE_NAME, HEADLESS}
ZONE = "topology.kubernetes.io/zone"
MAX_ENDPOINTS = 100  # of one slice: --max-endpoints-per-slice
NAME_MAX = 253


# Pods and Services


def has_cluster_ip(service: Object) -> bool:
    return dig(service, "spec", "clusterIP", default="") not in ("", "None")


def belongs_in_endpoints(pod: Object, *, terminating: bool) -> bool:
    """Has an address and is not finished; being deleted only where `terminating`."""
    if is_pod_terminal(pod) or (is_deleting(pod) and not terminating):
        return False
    return bool(dig(pod, "status", "podIP") or dig(pod, "status", "podIPs"))


def addresses_of(pod: Object, address_type: str) -> list[str]:
    """The pod's addresses of the family "IPv4" or "IPv6", in their canonical form."""
    parsed = (parse_ip(entry["ip"]) for entry in dig(pod, "status", "podIPs", default=()) if entry.get("ip"))
    version = 6 if address_type == "IPv6" else 4
    return [str(address) for address in parsed if address is not None and address.version == version]


def parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def hostname_for(pod: Object, service: Object) -> str:
    """The pod's hostname where its subdomain is the Service; it then has a name of its own in DNS."""
    if dig(pod, "spec", "subdomain") != name_of(service) or namespace_of(pod) != namespace_of(service):
        return ""
    return str(dig(pod, "spec", "hostname", default=""))


def find_port(pod: Object, service_port: Mapping[str, Any]) -> int | None:
    """The pod's port that the Service's port means; None where it names a port that the pod has not."""
    target = service_port.get("targetPort")
    if not isinstance(target, str):
        return int(target or 0)
    sidecars = [c for c in dig(pod, "spec", "initContainers", default=()) if c.get("restartPolicy") == "Always"]
    for container in [*dig(pod, "spec", "containers", default=()), *sidecars]:
        for port in container.get("ports") or ():
            if port.get("name") == target and _protocol(port) == _protocol(service_port):
                return int(port["containerPort"])
    return None


def _protocol(port: Mapping[str, Any]) -> str:
    return str(port.get("protocol") or "TCP")


def ports_for(service: Object, pod: Object) -> list[Object]:
    """The EndpointPorts of a pod; those that it does not have are left out."""
    ports = []
    for service_port in dig(service, "spec", "ports", default=()):
        if (number := find_port(pod, service_port)) is not None:
            port: Object = {
                "name": service_port.get("name", ""),
                "protocol": _protocol(service_port),
                "port": number,
            }
            if service_port.get("appProtocol"):
                port["appProtocol"] = service_port["appProtocol"]
            ports.append(port)
    return ports


def target_ref(pod: Object) -> Object:
    return {"kind": "Pod", "namespace": namespace_of(pod), "name": name_of(pod), "uid": uid_of(pod)}


def endpoint_for(pod: Object, node: Object | None, service: Object, address_type: str) -> Object:
    """The pod as an Endpoint. Ready means serving and not terminating, unless not-ready addresses are published."""
    serving, terminating = is_pod_ready(pod), is_deleting(pod)
    published = bool(dig(service, "spec", "publishNotReadyAddresses"))
    endpoint: Object = {
        "addresses": addresses_of(pod, address_type),
        "conditions": {
            "ready": published or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
        "targetRef": target_ref(pod),
    }
    if hostname := hostname_for(pod, service):
        endpoint["hostname"] = hostname
    if node_name := dig(pod, "spec", "nodeName"):
        endpoint["nodeName"] = node_name
    if node is not None and (zone := labels_of(node).get(ZONE)):
        endpoint["zone"] = zone
    return endpoint


def address_types(service: Object) -> list[str]:
    """The families that the Service has slices of."""
    if families := dig(service, "spec", "ipFamilies"):
        return [family for family in families if family in ("IPv4", "IPv6")]
    if has_cluster_ip(service):
        return ["IPv6" if ":" in service["spec"]["clusterIP"] else "IPv4"]
    return ["IPv4", "IPv6"]


# Slices


@dataclass(slots=True)
class SlicePlan:
    """Slices to create (they have a generateName), to update, and to delete."""

    create: Objects = field(default_factory=list)
    update: Objects = field(default_factory=list)
    delete: Objects = field(default_factory=list)

    def extend(self, other: SlicePlan) -> None:
        self.create += other.create
        self.update += other.update
        self.delete += other.delete


def port_key(ports: Iterable[Mapping[str, Any]] | None) -> str:
    """Equal for equal sets of ports, whatever their order."""
    return json.dumps(sorted(json.dumps(port, sort_keys=True) for port in ports or ()))


def endpoint_key(endpoint: Mapping[str, Any]) -> Hashable:
    """What makes two endpoints the same one: addresses, hostname, and the pod's name."""
    target = endpoint.get("targetRef") or {}
    addresses = tuple(sorted(endpoint.get("addresses") or ()))
    return addresses, endpoint.get("hostname", ""), target.get("namespace"), target.get("name")


def _description(endpoint: Mapping[str, Any]) -> Object:
    """The endpoint without what does not make it another state: hints, and the revision of its pod."""
    described = {key: value for key, value in endpoint.items() if key != "hints"}
    if target := described.get("targetRef"):
        described["targetRef"] = {key: value for key, value in target.items() if key != "resourceVersion"}
    return described


def is_owned_by(slice_: Object, service: Object) -> bool:
    return any(
        ref["uid"] == uid_of(service) and ref["kind"] == "Service" and ref["apiVersion"] == "v1"
        for ref in owner_references(slice_)
    )


def slice_labels(service: Object, manager: str) -> dict[str, str]:
    labels = {key: value for key, value in labels_of(service).items() if key not in RESERVED_LABELS}
    if not has_cluster_ip(service):
        labels[HEADLESS] = ""
    return labels | {SERVICE_NAME: name_of(service), MANAGED_BY: manager}


def new_slice(owner: Object, ports: list[Object], address_type: str, labels: Mapping[str, str]) -> Object:
    prefix = f"{name_of(owner)}-"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": prefix if len(prefix) <= NAME_MAX else name_of(owner),
            "namespace": namespace_of(owner),
            "labels": dict(labels),
            "ownerReferences": [controller_reference(owner)],
        },
        "addressType": address_type,
        "ports": ports,
        "endpoints": [],
    }


def plan_slices(
    service: Object,
    pods: Iterable[Object],
    nodes: Mapping[str, Object],
    existing: Iterable[Object],
    manager: str,
    *,
    max_endpoints: int = MAX_ENDPOINTS,
) -> tuple[SlicePlan, list[Object]]:
    """(what makes the slices right, the pods left out because their node is not known)."""
    plan, homeless = SlicePlan(), []
    by_type: dict[str, Objects] = {address_type: [] for address_type in address_types(service)}
    for slice_ in existing:
        if slice_["addressType"] in by_type:
            by_type[slice_["addressType"]].append(slice_)
        else:
            plan.delete.append(slice_)
    wanted = [pod for pod in pods if belongs_in_endpoints(pod, terminating=True)]
    if not dig(service, "spec", "publishNotReadyAddresses"):
        homeless = [pod for pod in wanted if dig(pod, "spec", "nodeName", default="") not in nodes]
    for address_type, slices in by_type.items():
        desired: dict[str, tuple[list[Object], dict[Hashable, Object]]] = {}
        for pod in wanted:
            ports = ports_for(service, pod)
            _, endpoints = desired.setdefault(port_key(ports), (ports, {}))
            if pod in homeless:
                continue
            node = nodes.get(dig(pod, "spec", "nodeName", default=""))
            endpoint = endpoint_for(pod, node, service, address_type)
            if endpoint["addresses"]:
                endpoints[endpoint_key(endpoint)] = endpoint
        plan.extend(_plan_type(service, address_type, slices, desired, slice_labels(service, manager), max_endpoints))
    _recycle(plan, service)
    return plan, homeless


def _plan_type(
    service: Object,
    address_type: str,
    existing: Objects,
    desired: Mapping[str, tuple[list[Object], dict[Hashable, Object]]],
    labels: Mapping[str, str],
    max_endpoints: int,
) -> SlicePlan:
    plan = SlicePlan()
    by_ports: dict[str, Objects] = {}
    for slice_ in existing:
        if is_owned_by(slice_, service):
            by_ports.setdefault(port_key(slice_.get("ports")), []).append(slice_)
        else:
            plan.delete.append(slice_)
    for key, (ports, endpoints) in desired.items():
        template = new_slice(service, ports, address_type, labels)
        plan.extend(_plan_ports(by_ports.pop(key, []), endpoints, template, max_endpoints))
    for slices in by_ports.values():
        plan.delete += slices
    if len(plan.delete) == len(existing) and not plan.create:
        # A Service without endpoints has one empty slice, to say so.
        placeholder = new_slice(service, [], address_type, labels)
        if len(existing) == 1 and _is_placeholder(existing[0], placeholder):
            plan.delete = []
        else:
            plan.create.append(placeholder)
    _hint(plan, service, existing)
    return plan


def _is_placeholder(slice_: Object, placeholder: Object) -> bool:
    return (
        not slice_.get("endpoints")
        and not slice_.get("ports")
        and labels_of(slice_) == labels_of(placeholder)
        and owner_references(slice_) == owner_references(placeholder)
    )


def _plan_ports(
    existing: Sequence[Object], desired: Mapping[Hashable, Object], template: Object, max_endpoints: int
) -> SlicePlan:
    """Slices of one set of ports: keep each endpoint where it is, fill changed slices first, then one unchanged slice
    that has the room, then new ones: as few slices are written as can be."""
    plan, left = SlicePlan(), dict(desired)
    unchanged: Objects = []
    changed: Objects = []
    for slice_ in existing:
        kept, differs = [], False
        for endpoint in slice_.get("endpoints") or ():
            wanted = left.pop(endpoint_key(endpoint), None)
            if wanted is None:
                differs = True
            else:
                kept.append(wanted)
                differs = differs or _description(wanted) != _description(endpoint)
        relabelled = replace_in(slice_, ("metadata", "labels"), labels_of(template))
        if differs and not kept:
            plan.delete.append(slice_)
        elif differs:
            changed.append({**relabelled, "endpoints": kept})
        elif labels_of(slice_) != labels_of(template):
            changed.append(relabelled)
        else:
            unchanged.append(slice_)
    changed.sort(key=lambda slice_: -len(slice_.get("endpoints") or ()))
    plan.update = [_filled(slice_, left, max_endpoints) for slice_ in changed]
    while left:
        room = _fitting(unchanged, len(left), max_endpoints)
        if room is not None:
            unchanged.remove(room)
            plan.update.append(_filled(room, left, max_endpoints))
        else:
            plan.create.append(_filled(template, left, max_endpoints))
    return plan


def _filled(slice_: Object, left: dict[Hashable, Object], max_endpoints: int) -> Object:
    """The slice with as many of `left` as fit, which are taken out of it."""
    endpoints = list(slice_.get("endpoints") or ())
    while left and len(endpoints) < max_endpoints:
        endpoints.append(left.pop(next(iter(left))))
    return {**slice_, "endpoints": endpoints}


def _fitting(slices: Iterable[Object], count: int, max_endpoints: int) -> Object | None:
    """The slice that would be fullest with `count` more."""
    fitting = [s for s in slices if len(s.get("endpoints") or ()) + count <= max_endpoints]
    return max(fitting, key=lambda s: len(s.get("endpoints") or ()), default=None)


def _recycle(plan: SlicePlan, service: Object) -> None:
    """Rather than delete one slice and create another, change the one into the other."""
    for doomed in list(plan.delete):
        successor = next((s for s in plan.create if s["addressType"] == doomed["addressType"]), None)
        if successor is not None and is_owned_by(doomed, service):
            plan.delete.remove(doomed)
            plan.create.remove(successor)
            meta = {**successor["metadata"], "name": name_of(doomed), "uid": uid_of(doomed)}
            plan.update.append({**successor, "metadata": meta})


# Hints: where traffic should stay close


def _hint(plan: SlicePlan, service: Object, existing: Iterable[Object]) -> None:
    """Put (or take away) the hints that spec.trafficDistribution asks for, in unchanged slices too."""
    distribution = dig(service, "spec", "trafficDistribution", default="")
    plan.create = [_hinted(slice_, distribution) for slice_ in plan.create]
    plan.update = [_hinted(slice_, distribution) for slice_ in plan.update]
    touched = {name_of(slice_) for slice_ in (*plan.update, *plan.delete)}
    for slice_ in existing:
        if name_of(slice_) not in touched and (hinted := _hinted(slice_, distribution)) != slice_:
            plan.update.append(hinted)


def _hinted(slice_: Object, distribution: str) -> Object:
    endpoints = [_with_hints(endpoint, distribution) for endpoint in slice_.get("endpoints") or ()]
    return {**slice_, "endpoints": endpoints} if endpoints else slice_


def _with_hints(endpoint: Object, distribution: str) -> Object:
    """Only ready endpoints get hints; those of others stay as they are while a distribution is asked for."""
    if distribution not in ("PreferClose", "PreferSameZone", "PreferSameNode"):
        return {key: value for key, value in endpoint.items() if key != "hints"}
    if not dig(endpoint, "conditions", "ready"):
        return endpoint
    hints: Object = {}
    if zone := endpoint.get("zone"):
        hints["forZones"] = [{"name": zone}]
    if distribution == "PreferSameNode" and (node := endpoint.get("nodeName")):
        hints["forNodes"] = [{"name": node}]
    bare = {key: value for key, value in endpoint.items() if key != "hints"}
    return {**bare, "hints": hints} if hints else bare


# When the change began that the slices now show


class TriggerTimes:
    """Since when a change waits to be seen in endpoints: the newest change of Service or pods since the last look."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], dict[str, str]] = {}

    def next(self, service: Object, pods: Iterable[Object]) -> str:
        """The earliest time among those that changed since the last call for the Service; "" where none did."""
        key = (namespace_of(service), name_of(service))
        created = str(dig(service, "metadata", "creationTimestamp", default=""))
        times = {"": created}
        for pod in pods:
            for condition in dig(pod, "status", "conditions", default=()):
                if condition["type"] == "Ready" and condition.get("lastTransitionTime"):
                    times[name_of(pod)] = condition["lastTransitionTime"]
        before = self._seen.get(key)
        self._seen[key] = times
        if before is None:
            return created
        return min((time for name, time in times.items() if time > before.get(name, "")), default="")

    def forget(self, namespace: str, name: str) -> None:
        self._seen.pop((namespace, name), None)


def with_trigger_time(obj: Object, time: str) -> Object:
    annotations = {key: value for key, value in annotations_of(obj).items() if key != TRIGGER_TIME}
    if time:
        annotations[TRIGGER_TIME] = time
    if annotations == annotations_of(obj):
        return obj
    return replace_in(obj, ("metadata", "annotations"), annotations)
