"""networking.k8s.io: ingresses and their classes, network policies, service address ranges."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.errors import too_long as _too_long
from kone.apimachinery.kinds import INGRESSCLASSES, INGRESSES, IPADDRESSES, NETWORKPOLICIES, SERVICECIDRS
from kone.apimachinery.names import (
    is_cidr,
    is_cidr_legacy,
    is_dns1123_label,
    is_dns1123_subdomain,
    is_domain_prefixed_path,
    is_path_segment_name,
    is_valid_ip,
    is_valid_ip_legacy,
    is_valid_port_name,
    is_valid_port_num,
    is_wildcard_dns1123_subdomain,
    parse_ip,
)
from kone.apimachinery.objects import Object, annotations_of, dig
from kone.apimachinery.users import User
from kone.registry.core.pod_warnings import ip_warnings
from kone.registry.core.service_rules import cidr_warnings
from kone.registry.generic import IMMUTABLE, immutable
from kone.registry.printing import label_selector_text, more_hosts
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check, has_invalid_selector_value, label_selector
from kone.registry.strategy import ALL_METADATA, SpecStrategy, StatusStrategy, Strategy

GROUP = "networking.k8s.io"
CLASS_ANNOTATION = "kubernetes.io/ingress.class"
DEFAULT_CLASS_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"


# -- ingresses --------------------------------------------------------------------------------------------------------

_PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")
_BAD_SEQUENCES = ("//", "/./", "/../", "%2f", "%2F")
_BAD_ENDINGS = ("/..", "/.")
_NOT_AN_IP = "must be a DNS name, not an IP address"


class _Ingress(SpecStrategy):
    def initial_status(self, obj: Object) -> Object:
        return {"loadBalancer": {}}

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj.get("spec") or {}
        _ingress_spec(errors, "spec", spec, old)
        annotation, name = annotations_of(obj).get(CLASS_ANNOTATION), spec.get("ingressClassName")
        if old is None and annotation is not None and name is not None and annotation != name:
            why = "must match `ingressClassName` when both are specified"
            errors.append(invalid_value(f"annotations.{CLASS_ANNOTATION}", annotation, why))
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if old is None and CLASS_ANNOTATION in annotations_of(obj) and dig(obj, "spec", "ingressClassName") is None:
            yield f"annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead"


def _ingress_spec(errors: Errors, path: str, spec: Mapping[str, Any], old: Object | None) -> None:
    rules, backend = spec.get("rules"), spec.get("defaultBackend")
    if not rules and backend is None:
        errors.append(invalid_value(path, rules, "either `defaultBackend` or `rules` must be specified"))
    if backend is not None:
        _backend(errors, f"{path}.defaultBackend", backend)
    any_wildcard_rule = any(_is_bad_wildcard(rule) for rule in dig(old, "spec", "rules", default=()))
    for i, rule in enumerate(rules or ()):
        _ingress_rule(errors, f"{path}.rules[{i}]", rule, any_wildcard_rule)
    any_secret = any(
        is_dns1123_subdomain(tls["secretName"]) for tls in dig(old, "spec", "tls", default=()) if tls.get("secretName")
    )
    for i, tls in enumerate(spec.get("tls") or ()):
        for j, host in enumerate(tls.get("hosts") or ()):
            check(errors, f"{path}.tls[{i}].hosts[{j}]", host, _host_texts(host))
        if tls.get("secretName") and not any_secret:
            check(errors, f"{path}.tls[{i}].secretName", tls["secretName"], is_dns1123_subdomain(tls["secretName"]))
    if spec.get("ingressClassName") is not None:
        check(
            errors, f"{path}.ingressClassName", spec["ingressClassName"], is_dns1123_subdomain(spec["ingressClassName"])
        )


def _host_texts(host: str) -> Sequence[str]:
    return is_wildcard_dns1123_subdomain(host) if "*" in host else is_dns1123_subdomain(host)


def _is_bad_wildcard(rule: Mapping[str, Any]) -> bool:
    errors: Errors = []
    if "*" in rule.get("host", ""):
        _http_rule(errors, "", rule)
    return bool(errors)


def _ingress_rule(errors: Errors, path: str, rule: Mapping[str, Any], any_wildcard_rule: bool) -> None:
    host = rule.get("host", "")
    if host:
        if parse_ip(host) is not None:
            errors.append(invalid_value(f"{path}.host", host, _NOT_AN_IP))
        check(errors, f"{path}.host", host, _host_texts(host))
    if "*" not in host or not any_wildcard_rule:
        _http_rule(errors, path, rule)


def _http_rule(errors: Errors, path: str, rule: Mapping[str, Any]) -> None:
    http = rule.get("http")
    if http is None:
        return
    if not http.get("paths"):
        errors.append(required(f"{path}.http.paths"))
    for i, each in enumerate(http.get("paths") or ()):
        _http_path(errors, f"{path}.http.paths[{i}]", each)


def _http_path(errors: Errors, path: str, each: Mapping[str, Any]) -> None:
    kind, url = each.get("pathType"), each.get("path", "")
    if kind is None:
        errors.append(required(f"{path}.pathType", "pathType must be specified"))
        return
    if kind not in _PATH_TYPES:
        errors.append(not_supported(f"{path}.pathType", kind, _PATH_TYPES))
    elif (url or kind != "ImplementationSpecific") and not url.startswith("/"):
        errors.append(invalid_value(f"{path}.path", url, "must be an absolute path"))
    if kind in ("Exact", "Prefix"):
        for bad in _BAD_SEQUENCES:
            if bad in url:
                errors.append(invalid_value(f"{path}.path", url, f"must not contain '{bad}'"))
        for bad in _BAD_ENDINGS:
            if url.endswith(bad):
                errors.append(invalid_value(f"{path}.path", url, f"cannot end with '{bad}'"))
    _backend(errors, f"{path}.backend", each.get("backend") or {})


def _backend(errors: Errors, path: str, backend: Mapping[str, Any]) -> None:
    resource, service = backend.get("resource"), backend.get("service")
    if resource is not None and service is not None:
        errors.append(invalid_value(path, "", "cannot set both resource and service backends"))
    elif resource is not None:
        _reference(errors, f"{path}.resource", resource)
    elif service is not None:
        _service_backend(errors, path, service)
    else:
        errors.append(invalid_value(path, "", "resource or service backend is required"))


def _service_backend(errors: Errors, path: str, service: Mapping[str, Any]) -> None:
    if service.get("name"):
        check(errors, f"{path}.service.name", service["name"], is_dns1123_label(service["name"]))
    else:
        errors.append(required(f"{path}.service.name"))
    port = service.get("port") or {}
    name, number = port.get("name", ""), port.get("number", 0)
    if name and number:
        errors.append(invalid_value(path, "", "cannot set both port name & port number"))
    elif name:
        check(errors, f"{path}.service.port.name", name, is_valid_port_name(name))
    elif number:
        check(errors, f"{path}.service.port.number", number, is_valid_port_num(number))
    else:
        errors.append(required(path, "port name or number is required"))


def _reference(errors: Errors, path: str, reference: Mapping[str, Any]) -> None:
    """Group, kind and name of an object elsewhere."""
    if reference.get("apiGroup") is not None:
        check(errors, f"{path}.apiGroup", reference["apiGroup"], is_dns1123_subdomain(reference["apiGroup"]))
    for field in ("kind", "name"):
        if reference.get(field):
            check(errors, f"{path}.{field}", reference[field], is_path_segment_name(reference[field]))
        else:
            errors.append(required(f"{path}.{field}"))


def load_balancer_status(obj: Object, old: Object) -> Iterable[FieldError]:
    """Rules on an Ingress's status.loadBalancer."""
    errors: Errors = []
    before = {point.get("ip") for point in dig(old, "status", "loadBalancer", "ingress", default=())}
    for i, point in enumerate(dig(obj, "status", "loadBalancer", "ingress", default=())):
        path = f"status.loadBalancer.ingress[{i}]"
        ip, host = point.get("ip"), point.get("hostname")
        if ip and ip not in before:
            check(errors, f"{path}.ip", ip, is_valid_ip_legacy(ip))
        if host:
            check(errors, f"{path}.hostname", host, is_dns1123_subdomain(host))
            if parse_ip(host) is not None:
                errors.append(invalid_value(f"{path}.hostname", host, _NOT_AN_IP))
    return errors


class _IngressStatus(StatusStrategy):
    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        for i, point in enumerate(dig(obj, "status", "loadBalancer", "ingress", default=())):
            if point.get("ip"):
                yield from ip_warnings(f"status.loadBalancer.ingress[{i}]", point["ip"])


def _hosts(obj: Object, now: float) -> str:
    return more_hosts([rule["host"] for rule in dig(obj, "spec", "rules", default=()) if rule.get("host")])


def _addresses(obj: Object, now: float) -> str:
    points = dig(obj, "status", "loadBalancer", "ingress", default=())
    return ",".join(sorted({point.get("ip") or point.get("hostname") or "" for point in points} - {""}))


# -- ingress classes --------------------------------------------------------------------------------------------------

_MAX_CONTROLLER = 250
_SCOPES = ("Cluster", "Namespace")


class _IngressClass(SpecStrategy):
    has_status = False

    def default(self, obj: Object) -> None:
        parameters = dig(obj, "spec", "parameters")
        if parameters is not None and parameters.get("scope") is None:
            parameters["scope"] = "Cluster"

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj.get("spec") or {}
        controller = spec.get("controller", "")
        if old is not None:
            errors.extend(immutable(controller, dig(old, "spec", "controller", default=""), "spec.controller"))
        if len(controller) > _MAX_CONTROLLER:
            errors.append(_too_long("spec.controller", _MAX_CONTROLLER))
        if not controller:
            errors.append(required("spec.controller"))
        else:
            errors.extend(domain_prefixed_path("spec.controller", controller))
        if spec.get("parameters") is not None:
            _class_parameters(errors, "spec.parameters", spec["parameters"])
        return errors


def domain_prefixed_path(path: str, value: str) -> Iterator[FieldError]:
    """ "acme.io/foo"; each finding is about the part that is wrong."""
    host, _, rest = value.partition("/")
    for text in is_domain_prefixed_path(value):
        wrong = value if text.startswith("must be a domain-prefixed") else rest if "Invalid path" in text else host
        yield invalid_value(path, wrong, text)


def _class_parameters(errors: Errors, path: str, parameters: Mapping[str, Any]) -> None:
    later: Errors = []
    if parameters.get("apiGroup") is not None:
        check(errors, f"{path}.apiGroup", parameters["apiGroup"], is_dns1123_subdomain(parameters["apiGroup"]))
    for field in ("kind", "name"):
        if parameters.get(field):
            check(errors, f"{path}.{field}", parameters[field], is_path_segment_name(parameters[field]))
        else:
            later.append(required(f"{path}.{field}"))
    scope, namespace = parameters.get("scope"), parameters.get("namespace")
    if scope not in _SCOPES:
        errors.append(not_supported(f"{path}.scope", scope, _SCOPES))
    elif scope == "Namespace":
        if namespace is None:
            errors.append(required(f"{path}.namespace", "`parameters.scope` is set to 'Namespace'"))
        else:
            check(errors, f"{path}.namespace", namespace, is_dns1123_label(namespace))
    elif namespace is not None:
        errors.append(forbidden_field(f"{path}.namespace", "`parameters.scope` is set to 'Cluster'"))
    errors.extend(later)


def _class_name(obj: Object, now: float) -> str:
    default = annotations_of(obj).get(DEFAULT_CLASS_ANNOTATION) == "true"
    return f"{obj['metadata'].get('name', '')}{' (default)' if default else ''}"


def _parameters(obj: Object, now: float) -> str:
    parameters = dig(obj, "spec", "parameters")
    if parameters is None:
        return "<none>"
    group = f".{parameters['apiGroup']}" if parameters.get("apiGroup") is not None else ""
    return f"{parameters.get('kind', '')}{group}/{parameters.get('name', '')}"


# -- network policies -------------------------------------------------------------------------------------------------

_PROTOCOLS = ("TCP", "UDP", "SCTP")
_POLICY_TYPES = ("Ingress", "Egress")
_DIRECTIONS = (("ingress", "from"), ("egress", "to"))


def _ip_blocks(policy: Object | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, block) of every peer that is an address range."""
    for direction, peers in _DIRECTIONS:
        for i, rule in enumerate(dig(policy, "spec", direction, default=())):
            for j, peer in enumerate(rule.get(peers) or ()):
                if peer.get("ipBlock") is not None:
                    yield f"spec.{direction}[{i}].{peers}[{j}].ipBlock", peer["ipBlock"]


class _NetworkPolicy(SpecStrategy):
    has_status = False

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        for direction, _ in _DIRECTIONS:
            for rule in spec.get(direction) or ():
                for port in rule.get("ports") or ():
                    if port.get("protocol") is None:
                        port["protocol"] = "TCP"
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj.get("spec") or {}
        any_value = has_invalid_selector_value(dig(old, "spec", "podSelector"))
        known = {cidr for _, block in _ip_blocks(old) for cidr in (block.get("cidr"), *(block.get("except") or ()))}
        later: Errors = []
        label_selector(errors, "spec.podSelector", spec.get("podSelector"), any_value=any_value)
        for direction, peers in _DIRECTIONS:
            for i, rule in enumerate(spec.get(direction) or ()):
                path = f"spec.{direction}[{i}]"
                for j, port in enumerate(rule.get("ports") or ()):
                    _policy_port(errors, f"{path}.ports[{j}]", port)
                for j, peer in enumerate(rule.get(peers) or ()):
                    _peer(errors, later, f"{path}.{peers}[{j}]", peer, any_value, known)
        types = spec.get("policyTypes") or ()
        if len(types) > len(_POLICY_TYPES):
            errors.append(invalid_value("spec.policyTypes", types, "may not specify more than two policyTypes"))
            return errors + later
        for i, each in enumerate(types):
            if each not in _POLICY_TYPES:
                errors.append(not_supported(f"spec.policyTypes[{i}]", each, _POLICY_TYPES))
        return errors + later

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        for path, block in _ip_blocks(obj):
            yield from cidr_warnings(f"{path}.cidr", block.get("cidr", ""))
            for i, cidr in enumerate(block.get("except") or ()):
                yield from cidr_warnings(f"{path}.except[{i}]", cidr)


def _policy_port(errors: Errors, path: str, port: Mapping[str, Any]) -> None:
    protocol, number, end = port.get("protocol"), port.get("port"), port.get("endPort")
    if protocol is not None and protocol not in _PROTOCOLS:
        errors.append(not_supported(f"{path}.protocol", protocol, _PROTOCOLS))
    if number is None:
        if end is not None:
            errors.append(invalid_value(f"{path}.endPort", end, "may not be specified when `port` is not specified"))
    elif isinstance(number, str):
        if end is not None:
            errors.append(invalid_value(f"{path}.endPort", end, "may not be specified when `port` is non-numeric"))
        check(errors, f"{path}.port", number, is_valid_port_name(number))
    else:
        check(errors, f"{path}.port", number, is_valid_port_num(number))
        if end is not None:
            if end < number:
                errors.append(invalid_value(f"{path}.endPort", end, "must be greater than or equal to `port`"))
            check(errors, f"{path}.endPort", end, is_valid_port_num(end))


def _peer(
    errors: Errors, later: Errors, path: str, peer: Mapping[str, Any], any_value: bool, known: set[str | None]
) -> None:
    block = peer.get("ipBlock")
    selectors = [name for name in ("podSelector", "namespaceSelector") if peer.get(name) is not None]
    for name in selectors:
        label_selector(errors, f"{path}.{name}", peer[name], any_value=any_value)
    if block is not None:
        _ip_block(errors, later, f"{path}.ipBlock", block, known)
    if block is None and not selectors:
        errors.append(required(path, "must specify a peer"))
    elif block is not None and selectors:
        errors.append(forbidden_field(path, "may not specify both ipBlock and another peer"))


def _ip_block(errors: Errors, later: Errors, path: str, block: Mapping[str, Any], known: set[str | None]) -> None:
    cidr = block.get("cidr", "")
    if not cidr:
        later.append(required(f"{path}.cidr"))
        return
    if cidr not in known:
        check(errors, f"{path}.cidr", cidr, is_cidr_legacy(cidr))
    network = _network(cidr)
    if network is None:
        return
    for i, except_ in enumerate(block.get("except") or ()):
        if except_ not in known:
            check(errors, f"{path}.except[{i}]", except_, is_cidr_legacy(except_))
        inner = _network(except_)
        if inner is None:
            continue
        inside = inner.version == network.version and inner.network_address in network
        if not inside or network.prefixlen >= inner.prefixlen:
            errors.append(invalid_value(f"{path}.except[{i}]", except_, "must be a strict subset of `cidr`"))


def _network(cidr: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(cidr, strict=False) if "/" in cidr else None
    except ValueError:
        return None


# -- service addresses ------------------------------------------------------------------------------------------------


def _ip_address_name(name: str, prefix: bool) -> Sequence[str]:
    return is_valid_ip(name)


class _IPAddress(Strategy):
    name_rule = staticmethod(_ip_address_name)

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        parent = dig(obj, "spec", "parentRef")
        later: Errors = []
        if old is not None and parent != dig(old, "spec", "parentRef"):
            later.append(invalid_value("spec.parentRef", None, IMMUTABLE))
        if parent is None:
            return [required("spec.parentRef"), *later]
        path = "spec.parentRef"
        if parent.get("group"):
            check(errors, f"{path}.group", parent["group"], is_dns1123_subdomain(parent["group"]))
        for field in ("resource", "name"):
            if parent.get(field):
                check(errors, f"{path}.{field}", parent[field], is_path_segment_name(parent[field]))
            else:
                later.append(required(f"{path}.{field}"))
        if parent.get("namespace"):
            check(errors, f"{path}.namespace", parent["namespace"], is_path_segment_name(parent["namespace"]))
        return errors + later


def _parent(obj: Object, now: float) -> str:
    parent = dig(obj, "spec", "parentRef")
    if parent is None:
        return "<none>"
    group = f".{parent['group']}" if parent.get("group") else ""
    steps = (f"{parent.get('resource', '')}{group}".lower(), parent.get("namespace"), parent.get("name", ""))
    return "/".join(step for step in steps if step)


class _ServiceCIDR(Strategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        obj["status"] = {} if old is None else old.get("status", {})

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        cidrs: Sequence[str] = dig(obj, "spec", "cidrs", default=())
        if old is None:
            return self._cidrs(cidrs)
        before: Sequence[str] = dig(old, "spec", "cidrs", default=())
        if len(before) == len(cidrs) or (len(before), len(cidrs)) == (1, 2):
            changed = [i for i, cidr in enumerate(before) if cidr != cidrs[i]]
            errors = [invalid_value(f"spec.cidrs[{i}]", cidrs[i], IMMUTABLE) for i in changed]
            return errors if len(before) == len(cidrs) else errors + self._cidrs(cidrs)
        return (invalid_value("spec.cidrs", cidrs or None, IMMUTABLE),)

    @staticmethod
    def _cidrs(cidrs: Sequence[str]) -> Errors:
        errors: Errors = []
        if not cidrs:
            return [required("spec.cidrs", "at least one CIDR required")]
        if len(cidrs) > 2:
            return [invalid_value("spec.cidrs", {"CIDRs": cidrs}, "may only hold up to 2 values")]
        for i, cidr in enumerate(cidrs):
            check(errors, f"spec.cidrs[{i}]", cidr, is_cidr(cidr))
        networks = [network for network in map(_network, cidrs) if network is not None]
        if len(networks) == 2 and networks[0].version == networks[1].version:
            why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"
            errors.append(invalid_value("spec.cidrs", cidrs, why))
        return errors


_ingress, _service_cidr = _Ingress(), _ServiceCIDR()

RESOURCES: Sequence[Resource] = (
    Resource(
        INGRESSCLASSES,
        "IngressClass",
        _IngressClass(),
        namespaced=False,
        columns=(
            Column("Name", _class_name, format="name"),
            Column("Controller", lambda obj, now: dig(obj, "spec", "controller", default="")),
            Column("Parameters", _parameters),
            AGE,
        ),
    ),
    Resource(
        INGRESSES,
        "Ingress",
        _ingress,
        short_names=("ing",),
        status=_IngressStatus(_ingress, rules=load_balancer_status),
        columns=(
            NAME,
            Column("Class", lambda obj, now: dig(obj, "spec", "ingressClassName", default="<none>")),
            Column("Hosts", _hosts),
            Column("Address", _addresses),
            Column("Ports", lambda obj, now: "80, 443" if dig(obj, "spec", "tls") else "80"),
            AGE,
        ),
    ),
    Resource(
        IPADDRESSES,
        "IPAddress",
        _IPAddress(),
        namespaced=False,
        short_names=("ip",),
        columns=(NAME, Column("ParentRef", _parent)),
    ),
    Resource(
        NETWORKPOLICIES,
        "NetworkPolicy",
        _NetworkPolicy(),
        short_names=("netpol",),
        columns=(
            NAME,
            Column("Pod-Selector", lambda obj, now: label_selector_text(dig(obj, "spec", "podSelector"))),
            AGE,
        ),
    ),
    Resource(
        SERVICECIDRS,
        "ServiceCIDR",
        _service_cidr,
        namespaced=False,
        status=StatusStrategy(_service_cidr, kept_metadata=ALL_METADATA),
        columns=(NAME, Column("CIDRs", lambda obj, now: ",".join(dig(obj, "spec", "cidrs", default=()))), AGE),
    ),
)
