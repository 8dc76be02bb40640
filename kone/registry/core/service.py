"""Services."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kone.apimachinery.errors import FieldError
from kone.apimachinery.kinds import GVR
from kone.apimachinery.kinds import SERVICES as GVR_SERVICES
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.registry.allocators import Allocators
from kone.registry.core.pod_warnings import ip_warnings
from kone.registry.core.service_allocation import begin, ip_address_changes, needs_cluster_ip, node_ports_of
from kone.registry.core.service_rules import (
    is_externally_accessible,
    load_balancer_status,
    needs_health_check,
    service,
    service_update,
    service_warnings,
)
from kone.registry.printing import selector_text
from kone.registry.resource import AGE, NAME, Column, Resource, Subresource
from kone.registry.rules import Errors
from kone.registry.strategy import StatusStrategy, Strategy, Undo, dns_label

_AFFINITY_S = 10800
_NODE_PORT_TYPES = ("NodePort", "LoadBalancer")


class _Service(Strategy):
    name_rule = staticmethod(dns_label)
    create_on_update = True
    allocates = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        if not spec.get("sessionAffinity"):
            spec["sessionAffinity"] = "None"
        if spec["sessionAffinity"] == "None":
            spec.pop("sessionAffinityConfig", None)
        elif spec["sessionAffinity"] == "ClientIP":
            config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
            if config.get("timeoutSeconds") is None:
                spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": _AFFINITY_S}}
        if not spec.get("type"):
            spec["type"] = "ClusterIP"
        for port in spec.get("ports") or ():
            if not port.get("protocol"):
                port["protocol"] = "TCP"
            if port.get("targetPort") in (None, 0, ""):
                port["targetPort"] = port.get("port", 0)
        if is_externally_accessible(spec) and not spec.get("externalTrafficPolicy"):
            spec["externalTrafficPolicy"] = "Cluster"
        if spec.get("internalTrafficPolicy") is None and spec["type"] in ("NodePort", "LoadBalancer", "ClusterIP"):
            spec["internalTrafficPolicy"] = "Cluster"
        balancer = obj.setdefault("status", {}).setdefault("loadBalancer", {})
        if spec["type"] == "LoadBalancer":
            if spec.get("allocateLoadBalancerNodePorts") is None:
                spec["allocateLoadBalancerNodePorts"] = True
            for entry in balancer.get("ingress") or ():
                if entry.get("ip") and entry.get("ipMode") is None:
                    entry["ipMode"] = "VIP"

    def begin(self, obj: Object, old: Object | None, allocators: Allocators) -> Undo | None:
        return begin(obj, old, allocators)

    def companions(self, obj: Object | None, old: Object | None) -> Mapping[tuple[GVR, str], Object | None]:
        return ip_address_changes(obj, old)

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        spec = obj["spec"]
        if old is None:
            obj["status"] = {"loadBalancer": {}}
        else:
            obj["status"] = old["status"]
            _drop_what_the_type_has_not(spec, old["spec"])
            if spec.get("type") != "LoadBalancer":
                obj["status"] = {**old["status"], "loadBalancer": {}}
        if spec.get("type") == "ExternalName" and spec.get("internalTrafficPolicy") in ("Cluster", "Local"):
            del spec["internalTrafficPolicy"]  # upstream keeps it and never shows it

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        if old is None:
            service(errors, obj, None)
        else:
            service_update(errors, obj, old)
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        return service_warnings(obj)

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        spec = obj.get("spec") or {}
        return {"spec.clusterIP": spec.get("clusterIP", ""), "spec.type": spec.get("type", "")}


def _drop_what_the_type_has_not(spec: Object, before: Mapping[str, Any]) -> None:
    """dropTypeDependentFields: as the type changes, what no longer applies goes, unless the client changed it too."""
    gone: list[str] = []
    if needs_cluster_ip(before) and not needs_cluster_ip(spec):
        same_ip = spec.get("clusterIP", "") == before.get("clusterIP", "")
        if same_ip and (spec.get("clusterIPs") or []) == (before.get("clusterIPs") or []):
            spec.pop("clusterIP", None)
            spec.pop("clusterIPs", None)
        gone += ["ipFamilies", "ipFamilyPolicy"]
    had_ports, has_ports = before.get("type") in _NODE_PORT_TYPES, spec.get("type") in _NODE_PORT_TYPES
    if had_ports and not has_ports and node_ports_of(before) >= node_ports_of(spec):
        for port in spec.get("ports") or ():
            port.pop("nodePort", None)
    if needs_health_check(before) and not needs_health_check(spec):
        gone.append("healthCheckNodePort")
    if before.get("type") == "LoadBalancer" != spec.get("type"):
        gone += ["allocateLoadBalancerNodePorts", "loadBalancerClass"]
    if is_externally_accessible(before) and not is_externally_accessible(spec):
        gone.append("externalTrafficPolicy")
    for field in gone:
        if spec.get(field) == before.get(field):
            spec.pop(field, None)


class _ServiceStatus(StatusStrategy):
    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        assert old is not None
        load_balancer_status(errors, obj, old)
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        for i, entry in enumerate(ingress):
            if entry.get("ip"):
                yield from ip_warnings(f"status.loadBalancer.ingress[{i}]", entry["ip"])


def _cluster_ip(obj: Object, now: float) -> str:
    ips = (obj.get("spec") or {}).get("clusterIPs") or ()
    return ips[0] if ips else "<none>"


def _external_ip(obj: Object, now: float) -> str:
    spec = obj.get("spec") or {}
    kind, ips = spec.get("type"), list(spec.get("externalIPs") or ())
    if kind in ("ClusterIP", "NodePort"):
        return ",".join(ips) or "<none>"
    if kind == "LoadBalancer":
        ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        given = sorted({entry.get("ip") or entry.get("hostname") or "" for entry in ingress} - {""})
        return ",".join([*given, *ips]) or "<pending>"
    return str(spec.get("externalName", "")) if kind == "ExternalName" else "<unknown>"


def _port_text(port: Mapping[str, Any]) -> str:
    number = f"{port.get('port', 0)}:{port['nodePort']}" if port.get("nodePort") else str(port.get("port", 0))
    return f"{number}/{port.get('protocol', '')}"


def _ports(obj: Object, now: float) -> str:
    return ",".join(map(_port_text, (obj.get("spec") or {}).get("ports") or ())) or "<none>"


_strategy = _Service()

SERVICES = Resource(
    gvr=GVR_SERVICES,
    kind="Service",
    short_names=("svc",),
    categories=("all",),
    strategy=_strategy,
    status=_ServiceStatus(_strategy),
    columns=(
        NAME,
        Column("Type", lambda obj, now: (obj.get("spec") or {}).get("type", "")),
        Column("Cluster-IP", _cluster_ip),
        Column("External-IP", _external_ip),
        Column("Port(s)", _ports),
        AGE,
        Column("Selector", lambda obj, now: selector_text((obj.get("spec") or {}).get("selector")), priority=1),
    ),
    subresources={"proxy": Subresource("ServiceProxyOptions", verbs=("create", "delete", "get", "patch", "update"))},
)
