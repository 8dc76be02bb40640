"""Endpoints, which EndpointSlices have replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kone.apimachinery.errors import FieldError, required
from kone.apimachinery.kinds import ENDPOINTS as GVR_ENDPOINTS
from kone.apimachinery.names import (
    is_dns1123_label,
    is_dns1123_subdomain,
    is_qualified_name,
    is_valid_ip_legacy,
    is_valid_port_num,
)
from kone.apimachinery.objects import Object, labels_of
from kone.registry.addresses import endpoint_ip
from kone.registry.core.pod_containers import PROTOCOLS
from kone.registry.core.pod_warnings import ip_warnings
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check, one_of
from kone.registry.strategy import Strategy

_MANAGED_BY, _CONTROLLER = "endpoints.kubernetes.io/managed-by", "endpoint-controller"
_KINDS_OF_ADDRESSES = ("addresses", "notReadyAddresses")
_SHOWN = 3


class _Endpoints(Strategy):
    create_on_update = True

    def default(self, obj: Object) -> None:
        for subset in obj.get("subsets") or ():
            for port in subset.get("ports") or ():
                if not port.get("protocol"):
                    port["protocol"] = "TCP"

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        if old is not None and (obj.get("subsets") or []) == (old.get("subsets") or []):
            return ()
        errors: Errors = []
        for i, subset in enumerate(obj.get("subsets") or ()):
            _subset(errors, f"subsets[{i}]", subset)
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if labels_of(obj).get(_MANAGED_BY) == _CONTROLLER:
            return
        for i, subset in enumerate(obj.get("subsets") or ()):
            for field in _KINDS_OF_ADDRESSES:
                for j, address in enumerate(subset.get(field) or ()):
                    yield from ip_warnings(f"subsets[{i}].{field}[{j}].ip", address.get("ip", ""))


def _subset(errors: Errors, path: str, subset: Mapping[str, Any]) -> None:
    ports = subset.get("ports") or ()
    if not subset.get("addresses") and not subset.get("notReadyAddresses"):
        errors.append(required(path, "must specify `addresses` or `notReadyAddresses`"))
    for field in _KINDS_OF_ADDRESSES:
        for i, address in enumerate(subset.get(field) or ()):
            _address(errors, f"{path}.{field}[{i}]", address)
    for i, port in enumerate(ports):
        _port(errors, f"{path}.ports[{i}]", port, len(ports) > 1)


def _address(errors: Errors, path: str, address: Mapping[str, Any]) -> None:
    ip, hostname, node = address.get("ip", ""), address.get("hostname"), address.get("nodeName")
    check(errors, f"{path}.ip", ip, is_valid_ip_legacy(ip))
    if hostname:
        check(errors, f"{path}.hostname", hostname, is_dns1123_label(hostname))
    if node is not None:
        check(errors, f"{path}.nodeName", node, is_dns1123_subdomain(node))
    endpoint_ip(errors, f"{path}.ip", ip)


def _port(errors: Errors, path: str, port: Mapping[str, Any], is_one_of_many: bool) -> None:
    name, number, app = port.get("name"), port.get("port", 0), port.get("appProtocol")
    if name:
        check(errors, f"{path}.name", name, is_dns1123_label(name))
    elif is_one_of_many:
        errors.append(required(f"{path}.name"))
    check(errors, f"{path}.port", number, is_valid_port_num(number))
    one_of(errors, f"{path}.protocol", port.get("protocol"), PROTOCOLS)
    if app is not None:
        check(errors, f"{path}.appProtocol", app, is_qualified_name(app))


def _endpoints_cell(obj: Object, now: float) -> str:
    subsets = obj.get("subsets") or ()
    if not subsets:
        return "<none>"
    found = []
    for subset in subsets:
        ips = [address.get("ip", "") for address in subset.get("addresses") or ()]
        ports = subset.get("ports") or ()
        if ports:
            found += [_host_port(ip, port.get("port", 0)) for port in ports for ip in ips]
        else:
            found += ips
    text = ",".join(found[:_SHOWN])
    return f"{text} + {len(found) - _SHOWN} more..." if len(found) > _SHOWN else text


def _host_port(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


ENDPOINTS = Resource(
    gvr=GVR_ENDPOINTS,
    kind="Endpoints",
    short_names=("ep",),
    strategy=_Endpoints(),
    columns=(NAME, Column("Endpoints", _endpoints_cell), AGE),
)
