"""discovery.k8s.io: EndpointSlices, the addresses behind a Service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, duplicate, invalid_value, not_supported, required, too_many
from kone.apimachinery.kinds import ENDPOINTSLICES
from kone.apimachinery.names import (
    is_dns1123_label,
    is_dns1123_subdomain,
    is_fully_qualified_domain_name,
    is_qualified_name,
    is_valid_ip,
    is_valid_ip_legacy,
    is_valid_label_value,
    parse_ip,
)
from kone.apimachinery.objects import Object, labels_of
from kone.apimachinery.users import User
from kone.registry.addresses import endpoint_ip
from kone.registry.core.pod_warnings import ip_warnings
from kone.registry.generic import IMMUTABLE
from kone.registry.printing import joined_some
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check
from kone.registry.strategy import Strategy

_ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_MAX_ENDPOINTS, _MAX_ADDRESSES, _MAX_PORTS, _MAX_HINTS = 1000, 100, 20000, 8
_MANAGERS = ("endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io")
_CONTENT = ("addressType", "endpoints", "ports")


class _EndpointSlice(Strategy):
    def default(self, obj: Object) -> None:
        for port in obj.get("ports") or ():
            if port.get("name") is None:
                port["name"] = ""
            if port.get("protocol") is None:
                port["protocol"] = "TCP"

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is None:
            obj["metadata"]["generation"] = 1
        elif any((obj.get(name) or None) != (old.get(name) or None) for name in _CONTENT) or (
            labels_of(obj) != labels_of(old)
        ):
            obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if old is None or obj.get("endpoints") != old.get("endpoints"):
            for endpoint in obj.get("endpoints") or ():
                endpoint.pop("deprecatedTopology", None)  # v1 has never let it be written

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        kind, endpoints = obj.get("addressType", ""), obj.get("endpoints") or ()
        _ports(errors, "ports", obj.get("ports") or ())
        later: Errors = []
        if old is None or obj.get("endpoints") != old.get("endpoints"):
            _endpoints(errors, later, "endpoints", endpoints, kind)
        if not kind:
            later.insert(0, required("addressType"))
        elif kind not in _ADDRESS_TYPES:
            later.insert(0, not_supported("addressType", kind, _ADDRESS_TYPES))
        if old is not None and kind != old.get("addressType"):
            later.insert(0, invalid_value("addressType", None, IMMUTABLE))
        return errors + later

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if old is None and obj.get("addressType") == "FQDN":
            yield "spec.addressType: FQDN endpoints are deprecated"
        if labels_of(obj).get("endpointslice.kubernetes.io/managed-by") in _MANAGERS:
            return
        for i, endpoint in enumerate(obj.get("endpoints") or ()):
            for j, address in enumerate(endpoint.get("addresses") or ()):
                yield from ip_warnings(f"endpoints[{i}].addresses[{j}]", address)


def _ports(errors: Errors, path: str, ports: Sequence[Mapping[str, Any]]) -> None:
    if len(ports) > _MAX_PORTS:
        errors.append(too_many(path, len(ports), _MAX_PORTS))
        return
    seen: set[str] = set()
    for i, port in enumerate(ports):
        at, name = f"{path}[{i}]", port.get("name") or ""
        if name:
            check(errors, f"{at}.name", name, is_dns1123_label(name))
        if name in seen:
            errors.append(duplicate(f"{at}.name", name))
        seen.add(name)
        if port.get("protocol") not in _PROTOCOLS:
            errors.append(not_supported(f"{at}.protocol", port.get("protocol", ""), _PROTOCOLS))
        if port.get("appProtocol") is not None:
            check(errors, f"{at}.appProtocol", port["appProtocol"], is_qualified_name(port["appProtocol"]))


def _endpoints(
    errors: Errors, later: Errors, path: str, endpoints: Sequence[Mapping[str, Any]], address_type: str
) -> None:
    """`later` takes what upstream's declarative validation finds, which it reports after all else."""
    if len(endpoints) > _MAX_ENDPOINTS:
        errors.append(too_many(path, len(endpoints), _MAX_ENDPOINTS))
        return
    for i, endpoint in enumerate(endpoints):
        at, addresses = f"{path}[{i}]", endpoint.get("addresses") or ()
        if not addresses:
            later.append(required(f"{at}.addresses"))
        elif len(addresses) > _MAX_ADDRESSES:
            later.append(too_many(f"{at}.addresses", len(addresses), _MAX_ADDRESSES))
        for j, address in enumerate(addresses):
            _address(errors, f"{at}.addresses", j, address, address_type)
        if endpoint.get("nodeName") is not None:
            check(errors, f"{at}.nodeName", endpoint["nodeName"], is_dns1123_subdomain(endpoint["nodeName"]))
        if endpoint.get("hostname") is not None:
            check(errors, f"{at}.hostname", endpoint["hostname"], is_dns1123_label(endpoint["hostname"]))
        hints = endpoint.get("hints") or {}
        if _hints(errors, f"{at}.hints.forZones", hints.get("forZones") or (), is_valid_label_value):
            _hints(errors, f"{at}.hints.forNodes", hints.get("forNodes") or (), is_dns1123_subdomain)


def _address(errors: Errors, path: str, i: int, address: str, address_type: str) -> None:
    at = f"{path}[{i}]"
    if address_type == "FQDN" and not address:
        errors.append(required(at))
        return
    if address_type == "FQDN":
        check(errors, at, address, is_fully_qualified_domain_name(address))
        return
    version = {"IPv4": 4, "IPv6": 6}.get(address_type)
    if version is None:
        return
    texts = is_valid_ip_legacy(address) if version == 4 else is_valid_ip(address)
    if texts:
        check(errors, at, address, texts)
        return
    ip = parse_ip(address)
    if ip is not None and ip.version != version:
        errors.append(invalid_value(path, address, f"must be an {address_type} address"))
    endpoint_ip(errors, at, address)


def _hints(errors: Errors, path: str, hints: Sequence[Mapping[str, Any]], rule: Callable[[str], Sequence[str]]) -> bool:
    """False where there are too many to look at."""
    if len(hints) > _MAX_HINTS:
        errors.append(too_many(path, len(hints), _MAX_HINTS))
        return False
    seen: set[str] = set()
    for i, hint in enumerate(hints):
        name = hint.get("name", "")
        if name in seen:
            errors.append(duplicate(f"{path}[{i}].name", name))
        seen.add(name)
        check(errors, f"{path}[{i}].name", name, rule(name))
    return True


def _port_cell(obj: Object, now: float) -> str:
    ports = obj.get("ports") or ()
    return joined_some(
        [str(port["port"]) if port.get("port") is not None else port.get("name") or "*" for port in ports]
    )


def _endpoint_cell(obj: Object, now: float) -> str:
    endpoints = obj.get("endpoints") or ()
    return joined_some([address for endpoint in endpoints for address in endpoint.get("addresses") or ()])


RESOURCES: Sequence[Resource] = (
    Resource(
        ENDPOINTSLICES,
        "EndpointSlice",
        _EndpointSlice(),
        columns=(
            NAME,
            Column("AddressType", lambda obj, now: obj.get("addressType", "")),
            Column("Ports", _port_cell),
            Column("Endpoints", _endpoint_cell),
            AGE,
        ),
    ),
)
