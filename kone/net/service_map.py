"""What Services want of the node's packet rules: pure, from Services and EndpointSlices to ServicePorts.

A ServicePort is one port of one Service in one address family with the endpoints that traffic may go to from this
node already chosen: ready ones, else those that still serve while they terminate, narrowed by traffic policy and
topology hints. A Proxier needs nothing but this map. Sources: the fields' documentation in k8s.io/api core/v1 and
discovery/v1, KEP-1669 (terminating endpoints), KEP-2086 (internal traffic policy), KEP-3015 (traffic distribution).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from kone.apimachinery.objects import Object, dig, labels_of, name_of, namespace_of

Family = Literal["IPv4", "IPv6"]

SERVICE_NAME = "kubernetes.io/service-name"
PROXY_NAME = "service.kubernetes.io/service-proxy-name"  # on a Service: somebody else serves it
HEADLESS = "service.kubernetes.io/headless"
ZONE = "topology.kubernetes.io/zone"


class ServicePortName(NamedTuple):
    """Which port of which Service; `port` is its name, "" where it has none."""

    namespace: str
    name: str
    port: str
    protocol: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}:{self.port or self.protocol}"


class Endpoint(NamedTuple):
    """Where traffic may go. `local`: on this node, or on none that is known."""

    ip: str
    port: int
    local: bool = True

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service as its family's proxier shall serve it.

    `cluster_endpoints` serve traffic under policy Cluster, `local_endpoints` under policy Local; either is empty where
    the Service never uses it. Neither, with `has_endpoints` true, means that the endpoints are on other nodes.
    """

    protocol: str  # "TCP", "UDP", "SCTP"
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()  # who may use the load balancer's addresses; () is everybody
    affinity_s: int = 0  # how long a client sticks to its endpoint; 0 not at all
    external_local: bool = False
    internal_local: bool = False
    health_check_node_port: int = 0
    local_ready: tuple[str, ...] = ()  # ready endpoints on this node, where there is a health check that counts them
    cluster_endpoints: tuple[Endpoint, ...] = ()
    local_endpoints: tuple[Endpoint, ...] = ()
    has_endpoints: bool = False

    @property
    def internal_endpoints(self) -> tuple[Endpoint, ...]:
        """Where traffic to the cluster IP goes."""
        return self.local_endpoints if self.internal_local else self.cluster_endpoints

    @property
    def external_endpoints(self) -> tuple[Endpoint, ...]:
        """Where traffic from outside goes, by node port, external IP or load balancer."""
        return self.local_endpoints if self.external_local else self.cluster_endpoints

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address at which `port` is served."""
        return (self.cluster_ip, *self.external_ips, *self.load_balancer_ips)

    @property
    def externally_accessible(self) -> bool:
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)


@dataclass(frozen=True, slots=True)
class Place:
    """Which node's rules these are, and in which zone it stands."""

    node_name: str
    zone: str = ""
    family: Family = "IPv4"


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An endpoint with the conditions that decide."""

    endpoint: Endpoint
    on_node: bool
    ready: bool
    draining: bool  # serving and terminating
    zones: frozenset[str]
    nodes: frozenset[str]


def is_proxied(service: Object) -> bool:
    """Whether a proxier has anything to do with this Service."""
    spec = service.get("spec") or {}
    cluster_ip = spec.get("clusterIP") or ""
    return (
        spec.get("type") != "ExternalName" and cluster_ip not in ("", "None") and PROXY_NAME not in labels_of(service)
    )


def service_of(endpoint_slice: Object) -> str:
    """The name of the Service that the slice belongs to, in its own namespace; "" where none is to be served by it."""
    labels = labels_of(endpoint_slice)
    return "" if HEADLESS in labels else labels.get(SERVICE_NAME, "")


def service_map(
    services: Iterable[Object], slices: Iterable[Object], place: Place
) -> dict[ServicePortName, ServicePort]:
    """Every port of every Service that is to be served on this node."""
    by_service: dict[tuple[str, str], list[Object]] = {}
    for endpoint_slice in slices:
        if name := service_of(endpoint_slice):
            by_service.setdefault((namespace_of(endpoint_slice), name), []).append(endpoint_slice)
    ports: dict[ServicePortName, ServicePort] = {}
    for service in services:
        key = namespace_of(service), name_of(service)
        ports |= service_ports(service, by_service.get(key, ()), place)
    return ports


def service_ports(service: Object, slices: Iterable[Object], place: Place) -> dict[ServicePortName, ServicePort]:
    """The ports of one Service in one family; {} where it is not served or has no address of the family."""
    if not is_proxied(service):
        return {}
    spec = service["spec"]
    cluster_ips = spec.get("clusterIPs") or [spec["clusterIP"]]
    cluster_ip = next(iter(_of_family(cluster_ips, place.family)), "")
    if not cluster_ip:
        return {}
    external_local = (spec.get("type") in ("NodePort", "LoadBalancer") or bool(spec.get("externalIPs"))) and spec.get(
        "externalTrafficPolicy"
    ) == "Local"
    ingress = dig(service, "status", "loadBalancer", "ingress", default=())
    common = {
        "cluster_ip": cluster_ip,
        "external_ips": _of_family(spec.get("externalIPs") or (), place.family),
        "load_balancer_ips": _of_family(
            (i["ip"] for i in ingress if i.get("ip") and i.get("ipMode", "VIP") == "VIP"), place.family
        ),
        "source_ranges": _source_ranges(spec.get("loadBalancerSourceRanges") or (), place.family),
        "affinity_s": _affinity_s(spec),
        "external_local": external_local,
        "internal_local": spec.get("internalTrafficPolicy") == "Local",
        "health_check_node_port": spec.get("healthCheckNodePort") or 0 if external_local else 0,
    }
    chosen = [s for s in slices if s.get("addressType") == place.family]
    ports: dict[ServicePortName, ServicePort] = {}
    for port in spec.get("ports") or ():
        protocol = port.get("protocol") or "TCP"
        name = ServicePortName(namespace_of(service), name_of(service), port.get("name") or "", protocol)
        served = ServicePort(protocol=protocol, port=port["port"], node_port=port.get("nodePort") or 0, **common)
        ports[name] = _with_endpoints(served, _candidates(chosen, name, place), place)
    return ports


def _with_endpoints(port: ServicePort, candidates: Sequence[_Candidate], place: Place) -> ServicePort:
    """The port with the endpoints that may be used from this node."""
    uses_cluster = not port.internal_local or port.externally_accessible
    uses_local = port.internal_local or (port.external_local and port.externally_accessible)
    usable = _ready_else_draining(candidates)
    cluster: Sequence[_Candidate] = ()
    if uses_cluster:
        hinted = _hinted(candidates, place)
        cluster = [c for c in usable if not c.ready or hinted(c)]
    local = _ready_else_draining([c for c in candidates if c.on_node]) if uses_local else ()
    return replace(
        port,
        cluster_endpoints=tuple(c.endpoint for c in cluster),
        local_endpoints=tuple(c.endpoint for c in local),
        has_endpoints=bool(usable),
        local_ready=_local_ready(candidates) if port.health_check_node_port else (),
    )


def _local_ready(candidates: Sequence[_Candidate]) -> tuple[str, ...]:
    return tuple(sorted({c.endpoint.ip for c in candidates if c.on_node and c.ready}))


def _ready_else_draining(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """The ready endpoints; where there are none, those that still serve while they terminate (KEP-1669)."""
    return [c for c in candidates if c.ready] or [c for c in candidates if c.draining]


def ready_endpoints(slices: Iterable[Object], name: ServicePortName) -> list[Endpoint]:
    """Where a port of a Service is served, in one family, for who goes there himself: IPv4 where there is any."""
    by_family: dict[str, list[Object]] = {}
    for endpoint_slice in slices:
        by_family.setdefault(endpoint_slice.get("addressType", ""), []).append(endpoint_slice)
    for family in ("IPv4", "IPv6"):
        if usable := _ready_else_draining(_candidates(by_family.get(family, ()), name, Place(""))):
            return [candidate.endpoint for candidate in usable]
    return []


def _hinted(candidates: Sequence[_Candidate], place: Place) -> Callable[[_Candidate], bool]:
    """Which ready endpoints the hints leave to this node.

    Hints count only where every ready endpoint has one and one of them is for here: first those for nodes, then those
    for zones (KEP-3015, KEP-2433).
    """
    ready = [c for c in candidates if c.ready]
    if ready and all(c.nodes for c in ready) and any(place.node_name in c.nodes for c in ready):
        return lambda c: place.node_name in c.nodes
    if ready and place.zone and all(c.zones for c in ready) and any(place.zone in c.zones for c in ready):
        return lambda c: place.zone in c.zones
    return lambda c: True


def _candidates(slices: Iterable[Object], name: ServicePortName, place: Place) -> list[_Candidate]:
    """The endpoints of one port, by address; of two with the same address the one that does not terminate counts."""
    found: dict[tuple[str, int], _Candidate] = {}
    for endpoint_slice in slices:
        for number in _numbers(endpoint_slice, name):
            for entry in endpoint_slice.get("endpoints") or ():
                if not (addresses := entry.get("addresses")):
                    continue
                conditions = entry.get("conditions") or {}
                ready = conditions.get("ready") is not False
                serving = conditions.get("serving") is not False
                terminating = conditions.get("terminating") is True
                if (addresses[0], number) in found and terminating:
                    continue
                node = entry.get("nodeName") or ""
                found[addresses[0], number] = _Candidate(
                    Endpoint(addresses[0], number, node in ("", place.node_name)),
                    on_node=node == place.node_name,
                    ready=ready,
                    draining=serving and terminating,
                    zones=frozenset(h["name"] for h in dig(entry, "hints", "forZones", default=())),
                    nodes=frozenset(h["name"] for h in dig(entry, "hints", "forNodes", default=())),
                )
    return [found[key] for key in sorted(found)]


def _numbers(endpoint_slice: Object, name: ServicePortName) -> list[int]:
    """The slice's port of that name: a named target port may differ from slice to slice."""
    return [
        port["port"]
        for port in endpoint_slice.get("ports") or ()
        if (port.get("name") or "") == name.port
        and (port.get("protocol") or "TCP") == name.protocol
        and port.get("port")
    ]


def _of_family(addresses: Iterable[str], family: Family) -> tuple[str, ...]:
    return tuple(a for a in addresses if (":" in a) == (family == "IPv6"))


def _source_ranges(ranges: Iterable[str], family: Family) -> tuple[str, ...]:
    """Ranges of the family; one of length zero lets everybody in, as no range does."""
    mine = []
    for text in _of_family((r.strip() for r in ranges), family):
        network = ipaddress.ip_network(text, strict=False)
        if network.prefixlen == 0:
            return ()
        mine.append(str(network))
    return tuple(mine)


def _affinity_s(spec: Mapping[str, object]) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    return int(dig(spec, "sessionAffinityConfig", "clientIP", "timeoutSeconds", default=10800))
