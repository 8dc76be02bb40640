"""What a service is given as it is written: IP families, cluster IPs, node ports (registry/core/service/storage).

`begin` runs before validation, as validation judges what was given. What it holds is released by the undo it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from kone.apimachinery.errors import StatusError, internal_error, invalid, invalid_value
from kone.apimachinery.ip_addresses import Family, cluster_ips, ip_address_of
from kone.apimachinery.kinds import GVR, IPADDRESSES
from kone.apimachinery.names import parse_ip
from kone.apimachinery.objects import Object
from kone.registry.allocators import AllocationError, Allocators
from kone.registry.core.service_rules import addresses, needs_health_check
from kone.registry.rules import Errors
from kone.registry.strategy import Undo

_OTHER: dict[str, str] = {"IPv4": "IPv6", "IPv6": "IPv4"}


def begin(obj: Object, old: Mapping[str, Any] | None, allocators: Allocators) -> Undo:
    """Fill in families, addresses and ports, in place. Raises StatusError (422) for what cannot be given."""
    allocation = _Allocation(obj, allocators)
    try:
        if old is not None:
            _take_over(obj["spec"], old["spec"])
        _sync_cluster_ips(obj["spec"], old["spec"] if old is not None else None)
        allocation.families(old)
        allocation.cluster_ips(old)
        allocation.node_ports(old)
    except BaseException:
        allocation.undo()
        raise
    return allocation.undo


def ip_address_changes(obj: Object | None, old: Object | None) -> dict[tuple[GVR, str], Object | None]:
    """The IPAddress of each cluster IP, as a service gets it, keeps it and gives it back."""
    mine = cluster_ips(obj) if obj is not None else []
    before = cluster_ips(old) if old is not None else []
    made = {(IPADDRESSES, ip): ip_address_of(obj, ip) for ip in mine if obj is not None and ip not in before}
    return {**{(IPADDRESSES, ip): None for ip in before if ip not in mine}, **made}


def needs_cluster_ip(spec: Mapping[str, Any]) -> bool:
    return spec.get("type") != "ExternalName"


def needs_node_port(spec: Mapping[str, Any]) -> bool:
    if spec.get("type") == "NodePort":
        return True
    return spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False


def node_ports_of(spec: Mapping[str, Any]) -> set[int]:
    return {port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")}


def _take_over(spec: Object, before: Mapping[str, Any]) -> None:
    """patchAllocatedValues: what was allocated and is left out in an update stays as it was."""
    if needs_cluster_ip(spec) and needs_cluster_ip(before):
        if not spec.get("clusterIP") and before.get("clusterIP"):
            spec["clusterIP"] = before["clusterIP"]
        if not spec.get("clusterIPs") and before.get("clusterIPs"):
            spec["clusterIPs"] = list(before["clusterIPs"])
    if needs_node_port(spec) and needs_node_port(before):
        in_both = node_ports_of(spec) & node_ports_of(before)
        by_name = {port.get("name", ""): port.get("nodePort", 0) for port in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            was = by_name.get(port.get("name", ""), 0)
            if not port.get("nodePort") and was and was not in in_both:
                port["nodePort"] = was
    checked = needs_health_check(spec) and needs_health_check(before)
    if checked and before.get("healthCheckNodePort") and not spec.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = before["healthCheckNodePort"]


def _sync_cluster_ips(spec: Object, before: Mapping[str, Any] | None) -> None:
    """normalizeClusterIPs: clients that know only the singular field."""
    single, ips = spec.get("clusterIP", ""), spec.get("clusterIPs") or []
    if before is None:
        if single and not ips:
            spec["clusterIPs"] = [single]
        return
    was, old_ips = before.get("clusterIP", ""), before.get("clusterIPs") or []
    if old_ips and not ips and single == was:
        spec["clusterIPs"] = list(old_ips)
    if single == was or ips != old_ips:
        return
    if single:
        spec["clusterIPs"] = [single]
    else:
        spec.pop("clusterIPs", None)


class _Allocation:
    """One write's allocation: what it holds so far."""

    def __init__(self, obj: Object, allocators: Allocators) -> None:
        self._name: str = obj["metadata"].get("name", "")
        self._spec: Object = obj["spec"]
        self._allocators = allocators
        self._ips: list[str] = []
        self._ports: list[int] = []

    def undo(self) -> None:
        while self._ips:
            self._allocators.release_ip(self._ips.pop())
        while self._ports:
            self._allocators.release_port(self._ports.pop())

    def _refused(self, errors: Errors) -> StatusError:
        return invalid("Service", self._name, errors)

    def families(self, old: Mapping[str, Any] | None) -> None:
        """initIPFamilyFields: infer policy and families."""
        spec = self._spec
        before: Mapping[str, Any] = old["spec"] if old is not None else {}
        if not needs_cluster_ip(spec) or _is_same_dual_stack(spec, before):
            return
        without_selector = spec.get("clusterIP") == "None" and not spec.get("selector")
        if spec.get("ipFamilyPolicy") is None:
            default = "RequireDualStack" if without_selector else "SingleStack"
            spec["ipFamilyPolicy"] = before.get("ipFamilyPolicy") or default
        errors: Errors = []
        addresses(errors, spec, before)
        if errors:
            raise self._refused(errors)
        self._narrowed(errors, before)
        families: list[str] = list(spec.get("ipFamilies") or ())
        for i, ip in enumerate(spec.get("clusterIPs") or ()):
            if ip == "None":
                break
            family = "IPv6" if (parsed := parse_ip(ip)) is not None and parsed.version == 6 else "IPv4"
            if i >= len(families):
                if family in self._allocators.families:
                    families.append(family)
                else:
                    text = f"{family} is not configured on this cluster"
                    errors.append(invalid_value(f"spec.clusterIPs[{i}]", spec["clusterIPs"], text))
        if errors:
            raise self._refused(errors)
        policy, configured = spec["ipFamilyPolicy"], self._allocators.families
        if not without_selector:
            self._configured(errors, policy, families)
            if errors:
                raise self._refused(errors)
        families = families or [configured[0]]
        # Without a selector kone cannot know the endpoints' families, so both are named whatever the cluster has.
        if policy != "SingleStack" and len(families) == 1 and (without_selector or len(configured) == 2):
            families.append(_OTHER[families[0]])
        spec["ipFamilies"] = families

    def _narrowed(self, errors: Errors, before: Mapping[str, Any]) -> None:
        """Going back to one family, which only the policy SingleStack allows."""
        spec, at = self._spec, "spec.ipFamilyPolicy"
        policy = spec["ipFamilyPolicy"]
        ips, families = spec.get("clusterIPs") or [], spec.get("ipFamilies") or []
        old_ips, old_families = before.get("clusterIPs") or [], before.get("ipFamilies") or []
        if before and policy == "SingleStack":
            if ips == old_ips and len(ips) > 1:
                spec["clusterIPs"] = ips = ips[:1]
            if families == old_families and len(families) > 1:
                spec["ipFamilies"] = families = families[:1]
        elif before:
            if ips and len(ips) < len(old_ips):
                errors.append(invalid_value(at, policy, "must be 'SingleStack' to release the secondary cluster IP"))
            if families and len(families) < len(old_families):
                errors.append(invalid_value(at, policy, "must be 'SingleStack' to release the secondary IP family"))
        if policy == "SingleStack":
            need = "must be 'RequireDualStack' or 'PreferDualStack' when multiple"
            if len(ips) == 2:
                errors.append(invalid_value(at, policy, f"{need} cluster IPs are specified"))
            if len(families) == 2:
                errors.append(invalid_value(at, policy, f"{need} IP families are specified"))

    def _configured(self, errors: Errors, policy: str, families: list[str]) -> None:
        if policy == "RequireDualStack" and len(self._allocators.families) < 2:
            text = "this cluster is not configured for dual-stack services"
            errors.append(invalid_value("spec.ipFamilyPolicy", policy, text))
        for i, family in enumerate(families):
            if family not in self._allocators.families:
                errors.append(invalid_value(f"spec.ipFamilies[{i}]", family, "not configured on this cluster"))

    def cluster_ips(self, old: Mapping[str, Any] | None) -> None:
        spec = self._spec
        before: Mapping[str, Any] = old["spec"] if old is not None else {}
        if not needs_cluster_ip(spec) or (spec.get("clusterIPs") or [""])[0] == "None":
            return
        if before and _is_same_dual_stack(spec, before):
            return
        families = spec.get("ipFamilies") or []
        ips: list[str] = list(spec.get("clusterIPs") or ())
        first = 0
        if before and needs_cluster_ip(before):
            old_families = before.get("ipFamilies") or []
            if (before.get("clusterIPs") or [""])[0] == "None" or len(old_families) != 1 or len(families) != 2:
                return  # neither a new address nor a second one is due
            first = 1
        for i in range(first, len(families)):
            asked = ips[i] if i < len(ips) else ""
            given = self._ip(cast(Family, families[i]), asked)
            ips[i:] = [given, *ips[i + 1 :]]
        spec["clusterIPs"] = ips
        if ips:
            spec["clusterIP"] = ips[0]

    def _ip(self, family: Family, asked: str) -> str:
        try:
            if asked:
                self._allocators.hold_ip(family, asked)
                self._ips.append(asked)
                return asked
            given = self._allocators.allocate_ip(family)
        except AllocationError as error:
            if not asked:
                raise internal_error(f'failed to allocate a serviceIP for Service "{self._name}": {error}') from error
            text = f"failed to allocate IP {asked}: {error}"
            found = [invalid_value("spec.clusterIPs", self._spec.get("clusterIPs") or [], text)]
            raise self._refused(found) from error
        self._ips.append(given)
        return given

    def node_ports(self, old: Mapping[str, Any] | None) -> None:
        spec = self._spec
        before: Mapping[str, Any] = old["spec"] if old is not None else {}
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            if old is None:
                self._new_node_ports()
            else:
                self._changed_node_ports(node_ports_of(before))
        if needs_health_check(spec) and not needs_health_check(before):
            self._health_check_port()

    def _allocates(self) -> bool:
        spec = self._spec
        return spec.get("type") == "NodePort" or bool(spec.get("allocateLoadBalancerNodePorts"))

    def _new_node_ports(self) -> None:
        """Ports of one number in different protocols share a node port."""
        ports = self._spec.get("ports") or ()
        by_number: dict[int, int] = {}
        for i, port in enumerate(ports):
            number, asked = port.get("port", 0), port.get("nodePort", 0)
            if not asked and not self._allocates():
                continue
            given = by_number.get(number, 0)
            if not given:
                asked = next((p["nodePort"] for p in ports if p.get("port") == number and p.get("nodePort")), 0)
                port["nodePort"] = by_number[number] = self._port(i, asked)
            elif not asked:
                port["nodePort"] = given
            elif asked != given:
                self._port(i, asked)

    def _changed_node_ports(self, before: set[int]) -> None:
        seen: set[tuple[str, int]] = set()
        mine: set[int] = set()
        for i, port in enumerate(self._spec.get("ports") or ()):
            asked = port.get("nodePort", 0)
            if asked and asked not in before and asked not in mine:
                mine.add(self._port(i, asked))
            elif not asked and self._allocates():
                port["nodePort"] = self._port(i, 0)
            key = (port.get("protocol", ""), port.get("nodePort", 0))
            if key[1] and key in seen:
                raise internal_error(f"duplicate nodePort: {{{key[0]} {key[1]}}}")
            seen.add(key)

    def _port(self, index: int, asked: int) -> int:
        try:
            if asked:
                self._allocators.hold_port(asked)
                self._ports.append(asked)
                return asked
            given = self._allocators.allocate_port()
        except AllocationError as error:
            if not asked:
                raise internal_error(f"failed to allocate a nodePort: {error}") from error
            raise self._refused([invalid_value(f"spec.ports[{index}].nodePort", asked, str(error))]) from error
        self._ports.append(given)
        return given

    def _health_check_port(self) -> None:
        asked = self._spec.get("healthCheckNodePort", 0)
        try:
            if asked:
                self._allocators.hold_port(asked)
            given = asked or self._allocators.allocate_port()
        except AllocationError as error:
            what = f"requested HealthCheck NodePort {asked}" if asked else "a HealthCheck NodePort 0"
            raise internal_error(f"failed to allocate {what}: {error}") from error
        self._ports.append(given)
        self._spec["healthCheckNodePort"] = given


def _is_same_dual_stack(spec: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """A PreferDualStack service is not given a second address behind its owner's back."""
    return (
        bool(before)
        and spec.get("type") == before.get("type") != "ExternalName"
        and spec.get("ipFamilyPolicy") == "PreferDualStack"
        and before.get("ipFamilyPolicy") in (None, "PreferDualStack")
        and (spec.get("clusterIPs") or []) == (before.get("clusterIPs") or [])
        and (spec.get("ipFamilies") or []) == (before.get("ipFamilies") or [])
    )
