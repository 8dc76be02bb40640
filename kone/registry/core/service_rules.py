"""Rules on services (validateService and what an update may change)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import duplicate, forbidden_field, go_quote, invalid_value, not_supported, required
from kone.apimachinery.names import (
    is_cidr_legacy,
    is_dns1123_label,
    is_dns1123_subdomain,
    is_qualified_name,
    is_valid_ip_legacy,
    is_valid_port_num,
    parse_ip,
)
from kone.registry.addresses import endpoint_ip
from kone.registry.core.pod_containers import PROTOCOLS
from kone.registry.core.pod_probes import port_number_or_name
from kone.registry.core.pod_warnings import ip_warnings
from kone.registry.internal import internal
from kone.registry.rules import Errors, check, labels, one_of

TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_WITH_INTERNAL_POLICY = ("NodePort", "LoadBalancer", "ClusterIP")
_FAMILIES = ("IPv4", "IPv6")
_FAMILY_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
_POLICIES = ("Cluster", "Local")
_DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")
_TOPOLOGY_HINTS = "service.kubernetes.io/topology-aware-hints"
_TOPOLOGY_MODE = "service.kubernetes.io/topology-mode"
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
_MAX_AFFINITY_S = 86400
_ONLY_LOAD_BALANCER = "may only be used when `type` is 'LoadBalancer'"
_FIXED = "may not change once set"
_NOT_EXTERNAL_NAME = "may not be set for ExternalName services"


def is_headless(spec: Mapping[str, Any]) -> bool:
    return list(spec.get("clusterIPs") or ()) == ["None"]


def is_externally_accessible(spec: Mapping[str, Any]) -> bool:
    kind = spec.get("type")
    return kind in ("LoadBalancer", "NodePort") or (kind == "ClusterIP" and bool(spec.get("externalIPs")))


def needs_health_check(spec: Mapping[str, Any]) -> bool:
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def service(errors: Errors, obj: Mapping[str, Any], old: Mapping[str, Any] | None) -> None:
    spec, annotations = obj["spec"], obj["metadata"].get("annotations") or {}
    before = old["spec"] if old is not None else {}
    kind, ports, headless = spec.get("type", ""), spec.get("ports") or (), is_headless(spec)
    if annotations:
        mode, hints = annotations.get(_TOPOLOGY_MODE), annotations.get(_TOPOLOGY_HINTS)
        if mode is not None and hints is not None and mode != hints:
            text = f"must match annotations[{_TOPOLOGY_HINTS}] when both are specified"
            errors.append(invalid_value(f"metadata.annotations[{_TOPOLOGY_MODE}]", mode, text))
    if not ports and not headless and kind != "ExternalName":
        errors.append(required("spec.ports"))
    if kind in ("LoadBalancer", "NodePort") and headless:
        errors.append(invalid_value("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services"))
    elif kind == "ExternalName":
        _external_name(errors, spec)
    _ports(errors, ports)
    labels(errors, "spec.selector", spec.get("selector"))
    _affinity(errors, spec)
    addresses(errors, spec, before)
    known = before.get("externalIPs") or ()
    for i, address in enumerate(spec.get("externalIPs") or ()):
        wrong = () if address in known else is_valid_ip_legacy(address)
        if wrong:
            check(errors, f"spec.externalIPs[{i}]", address, wrong)
        else:
            endpoint_ip(errors, f"spec.externalIPs[{i}]", address)
    one_of(errors, "spec.type", kind, TYPES)
    _port_numbers(errors, ports, kind)
    _source_ranges(errors, spec, before, annotations, old)
    if spec.get("allocateLoadBalancerNodePorts") is not None and kind != "LoadBalancer":
        errors.append(forbidden_field("spec.allocateLoadBalancerNodePorts", _ONLY_LOAD_BALANCER))
    if kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is None:
        errors.append(required("allocateLoadBalancerNodePorts"))
    _load_balancer_class(errors, spec)
    _traffic(errors, spec)


def _external_name(errors: Errors, spec: Mapping[str, Any]) -> None:
    for field in ("clusterIPs", "ipFamilies"):
        if spec.get(field):
            errors.append(forbidden_field(f"spec.{field}", _NOT_EXTERNAL_NAME))
    if spec.get("ipFamilyPolicy") is not None:
        errors.append(forbidden_field("spec.ipFamilyPolicy", _NOT_EXTERNAL_NAME))
    name = spec.get("externalName", "").removesuffix(".")
    if name:
        check(errors, "spec.externalName", name, is_dns1123_subdomain(name))
    else:
        errors.append(required("spec.externalName"))


def _ports(errors: Errors, ports: Sequence[Mapping[str, Any]]) -> None:
    names: set[str] = set()
    for i, port in enumerate(ports):
        at, name, number = f"spec.ports[{i}]", port.get("name", ""), port.get("port", 0)
        if name:
            check(errors, f"{at}.name", name, is_dns1123_label(name))
            if name in names:
                errors.append(duplicate(f"{at}.name", name))
            names.add(name)
        elif len(ports) > 1:
            errors.append(required(f"{at}.name"))
        check(errors, f"{at}.port", number, is_valid_port_num(number))
        one_of(errors, f"{at}.protocol", port.get("protocol"), PROTOCOLS)
        port_number_or_name(errors, f"{at}.targetPort", port.get("targetPort", 0))
        if port.get("appProtocol") is not None:
            check(errors, f"{at}.appProtocol", port["appProtocol"], is_qualified_name(port["appProtocol"]))


def _port_numbers(errors: Errors, ports: Sequence[Mapping[str, Any]], kind: str) -> None:
    if kind == "ClusterIP":
        for i, port in enumerate(ports):
            if port.get("nodePort"):
                text = "may not be used when `type` is 'ClusterIP'"
                errors.append(forbidden_field(f"spec.ports[{i}].nodePort", text))
    seen: set[tuple[str, int]] = set()
    for i, port in enumerate(ports):
        key = (port.get("protocol", ""), port.get("nodePort", 0))
        if key[1] and key in seen:
            errors.append(duplicate(f"spec.ports[{i}].nodePort", key[1]))
        seen.add(key)
    seen.clear()
    for i, port in enumerate(ports):
        key = (port.get("protocol", ""), port.get("port", 0))
        if key in seen:
            shown = internal("#core.ServicePort", {"protocol": key[0], "port": key[1]})
            errors.append(duplicate(f"spec.ports[{i}]", shown))
        seen.add(key)


def _affinity(errors: Errors, spec: Mapping[str, Any]) -> None:
    affinity, config, at = (
        spec.get("sessionAffinity", ""),
        spec.get("sessionAffinityConfig"),
        "spec.sessionAffinityConfig",
    )
    one_of(errors, "spec.sessionAffinity", affinity, ("ClientIP", "None"))
    if affinity == "None" and config is not None:
        errors.append(forbidden_field(at, "must not be set when session affinity is None"))
    if affinity != "ClientIP":
        return
    text = "when session affinity type is ClientIP"
    client = (config or {}).get("clientIP")
    if config is None:
        errors.append(required(at, text))
    elif client is None:
        errors.append(required(f"{at}.clientIP", text))
    elif client.get("timeoutSeconds") is None:
        errors.append(required(f"{at}.clientIP.timeoutSeconds", text))
    elif not 0 < client["timeoutSeconds"] <= _MAX_AFFINITY_S:
        why = f"must be greater than 0 and less than {_MAX_AFFINITY_S}"
        errors.append(invalid_value(f"{at}.clientIP.timeoutSeconds", client["timeoutSeconds"], why))


def addresses(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """ValidateServiceClusterIPsRelatedFields: the cluster IPs, their families and the policy agree."""
    if spec.get("type") == "ExternalName":
        return
    single, ips, families = spec.get("clusterIP", ""), spec.get("clusterIPs") or [], spec.get("ipFamilies") or ()
    at = "spec.clusterIPs"
    if single and not ips:
        errors.append(required(at))
    elif single and ips[0] != single:
        errors.append(invalid_value(at, ips, "first value must match `clusterIP`"))
    elif not single and ips:
        errors.append(invalid_value(at, ips, "must be empty when `clusterIP` is not specified"))
    for i, family in enumerate(families):
        if family not in _FAMILIES:
            errors.append(not_supported(f"spec.ipFamilies[{i}]", family, _FAMILIES))
        if family in families[:i]:
            errors.append(duplicate(f"spec.ipFamilies[{i}]", family))
    policy = spec.get("ipFamilyPolicy")
    if policy is not None and policy not in _FAMILY_POLICIES:
        errors.append(not_supported("spec.ipFamilyPolicy", policy, _FAMILY_POLICIES))
    if _address_values(errors, at, ips, before.get("clusterIPs") or ()):
        return
    if len(ips) > 1 and len({_family(ip) for ip in ips}) == 1:
        errors.append(invalid_value(at, ips, "may specify no more than one IP for each IP family"))
    if not is_headless(spec):
        for i, (ip, family) in enumerate(zip(ips, families, strict=False)):
            if family in _FAMILIES and _family(ip) != family:
                text = f"expected an {family} value as indicated by `ipFamilies[{i}]`"
                errors.append(invalid_value(f"{at}[{i}]", ip, text))


def _address_values(errors: Errors, at: str, ips: list[str], known: Sequence[str]) -> bool:
    """Whether there are values that are no addresses, which would make nonsense of what is judged next."""
    bad = False
    for i, ip in enumerate(ips):
        if i == 0 and ip == "None":
            if len(ips) > 1:
                bad = True
                errors.append(invalid_value(at, ips, "'None' must be the first and only value"))
            continue
        wrong = () if ip in known else is_valid_ip_legacy(ip)
        bad = bad or bool(wrong)
        check(errors, f"{at}[{i}]", ip, wrong)
    if len(ips) > 2:
        errors.append(invalid_value(at, ips, "may only hold up to 2 values"))
    return bad


def _family(address: str) -> str:
    parsed = parse_ip(address)
    return "IPv6" if parsed is not None and parsed.version == 6 else "IPv4"


def _source_ranges(
    errors: Errors,
    spec: Mapping[str, Any],
    before: Mapping[str, Any],
    annotations: Mapping[str, str],
    old: Mapping[str, Any] | None,
) -> None:
    is_balancer, ranges = spec.get("type") == "LoadBalancer", spec.get("loadBalancerSourceRanges")
    if ranges:
        at = "spec.LoadBalancerSourceRanges"
        if not is_balancer:
            errors.append(forbidden_field(at, _ONLY_LOAD_BALANCER))
        known = {value.strip() for value in before.get("loadBalancerSourceRanges") or ()}
        for i, value in enumerate(ranges):
            value = value.strip()
            if value not in known:
                check(errors, f"{at}[{i}]", value, is_cidr_legacy(value))
    elif SOURCE_RANGES in annotations:
        at, text = f"metadata.annotations[{SOURCE_RANGES}]", annotations[SOURCE_RANGES]
        if not is_balancer:
            errors.append(forbidden_field(at, _ONLY_LOAD_BALANCER))
        was = (old["metadata"].get("annotations") or {}).get(SOURCE_RANGES) if old is not None else None
        if text != was and text.strip():
            for value in text.strip().split(","):
                check(errors, at, value.strip(), is_cidr_legacy(value.strip()))


def _load_balancer_class(errors: Errors, spec: Mapping[str, Any]) -> None:
    name = spec.get("loadBalancerClass")
    if name is None:
        return
    if spec.get("type") == "LoadBalancer":
        check(errors, "spec.loadBalancerClass", name, is_qualified_name(name))
    else:
        errors.append(forbidden_field("spec.loadBalancerClass", _ONLY_LOAD_BALANCER))


def _traffic(errors: Errors, spec: Mapping[str, Any]) -> None:
    external, at = spec.get("externalTrafficPolicy", ""), "spec.externalTrafficPolicy"
    if is_externally_accessible(spec):
        one_of(errors, at, external, _POLICIES)
    elif external:
        errors.append(invalid_value(at, external, "may only be set for externally-accessible services"))
    port, at = spec.get("healthCheckNodePort", 0), "spec.healthCheckNodePort"
    if not needs_health_check(spec):
        if port:
            text = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
            errors.append(invalid_value(at, port, text))
    elif not port:
        errors.append(required(at))
    else:
        check(errors, at, port, is_valid_port_num(port))
    internal_policy, at = spec.get("internalTrafficPolicy"), "spec.internalTrafficPolicy"
    if internal_policy is None:
        if spec.get("type") in _WITH_INTERNAL_POLICY:
            errors.append(required(at))
    elif internal_policy not in _POLICIES:
        errors.append(not_supported(at, internal_policy, _POLICIES))
    distribution = spec.get("trafficDistribution")
    if distribution is not None and distribution not in _DISTRIBUTIONS:
        errors.append(not_supported("spec.trafficDistribution", distribution, _DISTRIBUTIONS))


def service_update(errors: Errors, obj: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """ValidateServiceUpdate."""
    spec, before = obj["spec"], old["spec"]
    if "ExternalName" not in (spec.get("type"), before.get("type")):
        _cluster_ip_changes(errors, spec, before)
        if is_headless(spec) == is_headless(before) and not is_headless(spec):
            _family_changes(errors, spec, before)
    balancers = spec.get("type") == before.get("type") == "LoadBalancer"
    if balancers and spec.get("loadBalancerClass") != before.get("loadBalancerClass"):
        errors.append(invalid_value("spec.loadBalancerClass", spec.get("loadBalancerClass"), _FIXED))
    _load_balancer_class(errors, spec)
    checked = needs_health_check(spec) and needs_health_check(before)
    if checked and spec.get("healthCheckNodePort") != before.get("healthCheckNodePort"):
        errors.append(forbidden_field("spec.healthCheckNodePort", "field is immutable"))
    service(errors, obj, old)


def _cluster_ip_changes(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """The first stays; a second may come, and go with the policy SingleStack."""
    ips, was, at = spec.get("clusterIPs") or [], before.get("clusterIPs") or [], "spec.clusterIPs[0]"
    if is_headless(spec) and is_headless(before):
        return
    if len(ips) == len(was):
        for i, (ip, old_ip) in enumerate(zip(ips, was, strict=True)):
            if ip != old_ip:
                errors.append(invalid_value(f"spec.clusterIPs[{i}]", ips, _FIXED))
        return
    if not ips:
        errors.append(invalid_value(at, None, "primary clusterIP can not be unset"))
    elif was and ips[0] != was[0]:
        errors.append(invalid_value(at, ips or None, _FIXED))
    if len(ips) < len(was) and len(ips) == 1 and spec.get("ipFamilyPolicy") != "SingleStack":
        text = "must be set to 'SingleStack' when releasing the secondary clusterIP"
        errors.append(invalid_value("spec.ipFamilyPolicy", spec.get("ipFamilyPolicy"), text))


def _family_changes(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    families, was, at = spec.get("ipFamilies") or [], before.get("ipFamilies") or [], "spec.ipFamilies[0]"
    if len(families) == len(was):
        for family, old_family in zip(families, was, strict=True):
            if family != old_family:
                errors.append(invalid_value(at, families, _FIXED))
        return
    ips = spec.get("clusterIPs") or []
    if len(families) < len(was) and not ips:
        errors.append(invalid_value(at, families or None, "primary ipFamily can not be unset"))
    if families and was and families[0] != was[0]:
        errors.append(invalid_value(at, ips or None, _FIXED))
    if len(families) < len(was) and len(families) == 1 and spec.get("ipFamilyPolicy") != "SingleStack":
        text = "must be set to 'SingleStack' when releasing the secondary ipFamily"
        errors.append(invalid_value("spec.ipFamilyPolicy", spec.get("ipFamilyPolicy"), text))


def load_balancer_status(errors: Errors, obj: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """ValidateLoadBalancerStatus."""
    at = "status.loadBalancer.ingress"
    ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    if obj["spec"].get("type") != "LoadBalancer" and ingress:
        errors.append(forbidden_field(at, "may only be used when `spec.type` is 'LoadBalancer'"))
        return
    was = ((old.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    balancer_ingress(errors, at, ingress, {entry.get("ip") for entry in was})


def balancer_ingress(errors: Errors, at: str, ingress: Sequence[Mapping[str, Any]], known: set[Any]) -> None:
    for i, entry in enumerate(ingress):
        ip, mode, hostname = entry.get("ip", ""), entry.get("ipMode"), entry.get("hostname", "")
        if ip and ip not in known:
            check(errors, f"{at}[{i}].ip", ip, is_valid_ip_legacy(ip))
        if mode is None:
            if ip:
                errors.append(required(f"{at}[{i}].ipMode", "must be specified when `ip` is set"))
        elif not ip:
            errors.append(forbidden_field(f"{at}[{i}].ipMode", "may not be specified when `ip` is not set"))
        elif mode not in ("Proxy", "VIP"):
            errors.append(not_supported(f"{at}[{i}].ipMode", mode, ("Proxy", "VIP")))
        if hostname:
            check(errors, f"{at}[{i}].hostname", hostname, is_dns1123_subdomain(hostname))
            if parse_ip(hostname) is not None:
                text = "must be a DNS name, not an IP address"
                errors.append(invalid_value(f"{at}[{i}].hostname", hostname, text))


def service_warnings(obj: Mapping[str, Any]) -> Iterator[str]:
    """GetWarningsForService."""
    spec, annotations = obj["spec"], obj["metadata"].get("annotations") or {}
    kind, external_ips = spec.get("type"), spec.get("externalIPs") or ()
    headless = kind == "ClusterIP" and spec.get("clusterIP") == "None"
    if _TOPOLOGY_HINTS in annotations:
        yield f"annotation {_TOPOLOGY_HINTS} is deprecated, please use {_TOPOLOGY_MODE} instead"
    if spec.get("clusterIP") and spec["clusterIP"] != "None":
        for i, ip in enumerate(spec.get("clusterIPs") or ()):
            yield from ip_warnings(f"spec.clusterIPs[{i}]", ip)
    if headless:
        if spec.get("loadBalancerIP"):
            yield "spec.loadBalancerIP is ignored for headless services"
        if external_ips:
            yield "spec.externalIPs is ignored for headless services"
        if spec.get("sessionAffinity") != "None":
            yield "spec.SessionAffinity is ignored for headless services"
    for i, ip in enumerate(external_ips):
        yield from ip_warnings(f"spec.externalIPs[{i}]", ip)
    if external_ips and not headless and kind != "ExternalName":
        yield "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
    if spec.get("loadBalancerIP"):
        yield from ip_warnings("spec.loadBalancerIP", spec["loadBalancerIP"])
    for i, cidr in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        yield from cidr_warnings(f"spec.loadBalancerSourceRanges[{i}]", cidr)
    if kind == "ExternalName" and external_ips:
        yield 'spec.externalIPs is ignored when spec.type is "ExternalName"'
    if kind != "ExternalName" and spec.get("externalName"):
        yield 'spec.externalName is ignored when spec.type is not "ExternalName"'
    if spec.get("trafficDistribution") == "PreferClose":
        yield 'spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"'


def cidr_warnings(path: str, value: str) -> Iterator[str]:
    """GetWarningsForCIDR, as far as validation lets odd notations pass: IPv6 that is not canonical.

    Of a value with blanks around it, which source ranges may have, upstream says nothing.
    """
    try:
        network = ipaddress.ip_network(value)
    except ValueError:
        return
    if network.version == 6 and str(network) != value:
        yield f'{path}: IPv6 CIDR value {go_quote(value)} should be in RFC 5952 canonical format ("{network}")'
