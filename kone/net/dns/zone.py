"""What the cluster's own names mean: pure, from Services, EndpointSlices and Namespaces to DNS records.

Kubernetes DNS-Based Service Discovery, specification 1.1.0, and beyond it what CoreDNS answers and programs rely on:
records of pods (10-244-0-5.default.pod.cluster.local), names of endpoints without a host name (their dashed address),
SRV of a Service's bare name, NS and SOA of the zone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from kone.apimachinery.objects import Object, dig, name_of, namespace_of
from kone.net.service_map import SERVICE_NAME

SCHEMA_VERSION = "1.1.0"
RecordType = Literal["A", "AAAA", "CNAME", "NS", "PTR", "SOA", "SRV", "TXT"]


class Record(NamedTuple):
    """A record in the notation of zone files; `owner` and names in `data` are absolute and end with a dot."""

    owner: str
    type: RecordType
    data: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a name has of a type. No records and `exists`: it has others, or names below it. Else there is no such name.

    `alias` is where a CNAME among the records leads, when the question was for something else.
    """

    records: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    exists: bool = True
    alias: str = ""


NOTHING = Answer()
NO_SUCH_NAME = Answer(exists=False)


class World(Protocol):
    """The objects that the names speak of."""

    def service(self, namespace: str, name: str) -> Object | None: ...

    def slices(self, namespace: str, service: str) -> Iterable[Object]: ...

    def has_namespace(self, name: str) -> bool: ...

    def services_at(self, ip: str) -> Iterable[Object]:
        """Services with this cluster IP."""

    def slices_at(self, ip: str) -> Iterable[Object]:
        """Slices with an endpoint of this address."""


class _Endpoint(NamedTuple):
    host: str
    address: str
    ports: tuple[tuple[str, str, int], ...]  # (name, protocol in lower case, number)


@dataclass(frozen=True, slots=True)
class Zone:
    """The cluster's zone, e.g. cluster.local, and the addresses of its name server."""

    domain: str
    servers: Sequence[str] = ()
    _labels: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_labels", tuple(self.domain.lower().strip(".").split(".")))

    @property
    def apex(self) -> str:
        return ".".join(self._labels) + "."

    @property
    def soa(self) -> Record:
        # Times in seconds: refresh, retry, expire, and how long a "no" may be remembered.
        return Record(self.apex, "SOA", f"ns.dns.{self.apex} hostmaster.{self.apex} 1 7200 1800 86400 5")

    def holds(self, name: Sequence[str]) -> bool:
        """Whether the name (labels in lower case) is the zone's or below it."""
        return tuple(name[-len(self._labels) :]) == self._labels

    def resolve(self, name: Sequence[str], kind: str, world: World) -> Answer:
        """What a name of the zone has, given as labels in lower case. `kind` as "A"; "ANY" for all."""
        path = list(name[: len(name) - len(self._labels)])
        match path:
            case []:
                return _of_type([self.soa, Record(self.apex, "NS", f"ns.dns.{self.apex}")], kind)
            case ["dns-version"]:
                return _of_type([Record(f"dns-version.{self.apex}", "TXT", f'"{SCHEMA_VERSION}"')], kind)
            case ["ns", "dns"]:
                return _of_type(_addresses(f"ns.dns.{self.apex}", self.servers), kind)
            case ["svc"] | ["pod"] | ["dns"]:
                return NOTHING
            case [namespace, "svc" | "pod"]:
                return NOTHING if world.has_namespace(namespace) else NO_SUCH_NAME
            case [pod, namespace, "pod"]:
                return self._pod(pod, namespace, kind, world)
            case [*inner, service, namespace, "svc"] if len(inner) <= 2:
                found = world.service(namespace, service)
                return NO_SUCH_NAME if found is None else self._service(inner, found, kind, world)
        return NO_SUCH_NAME

    def reverse(self, name: Sequence[str], kind: str, world: World) -> Answer | None:
        """Who has an address of in-addr.arpa or ip6.arpa; None where the cluster knows nobody, but others might."""
        ip = address_in_reverse(name)
        if ip is None:
            return None
        names = [self._name(service) for service in world.services_at(ip)]
        if not names:
            for endpoint_slice in world.slices_at(ip):
                service = world.service(namespace_of(endpoint_slice), _service_name(endpoint_slice))
                if service is not None:
                    names += [
                        f"{e.host}.{self._name(service)}" for e in _endpoints([endpoint_slice]) if e.address == ip
                    ]
        if not names:
            return None
        owner = ".".join(name) + "."
        return _of_type([Record(owner, "PTR", target) for target in dict.fromkeys(names)], kind)

    def _pod(self, pod: str, namespace: str, kind: str, world: World) -> Answer:
        address = address_in_label(pod)
        if address is None or not world.has_namespace(namespace):
            return NO_SUCH_NAME
        return _of_type(_addresses(f"{pod}.{namespace}.pod.{self.apex}", [address]), kind)

    def _service(self, inner: Sequence[str], service: Object, kind: str, world: World) -> Answer:
        spec = service.get("spec") or {}
        name = self._name(service)
        if spec.get("type") == "ExternalName":
            if inner:
                return NO_SUCH_NAME
            target = str(spec.get("externalName", "")).rstrip(".").lower() + "."
            alias = target if kind not in ("CNAME", "ANY") else ""
            return Answer((Record(name, "CNAME", target),), alias=alias)
        headless = spec.get("clusterIP") == "None"
        endpoints: list[_Endpoint] = []
        if headless or (len(inner) == 1 and not inner[0].startswith("_")):
            endpoints = list(_endpoints(world.slices(namespace_of(service), name_of(service))))
        if len(inner) == 1 and not inner[0].startswith("_"):
            return self._endpoint(inner[0], name, endpoints, kind)
        if headless and not endpoints:
            return NO_SUCH_NAME  # specification 1.1, 2.4.1
        if inner:
            return self._ports(inner, service, name, endpoints, kind)
        records = list(_addresses(name, [e.address for e in endpoints] if headless else _cluster_ips(spec)))
        services, additional = _service_records(name, "", "", service, name, endpoints)
        found = _of_type([*records, *services], kind)
        return Answer(found.records, tuple(additional) if kind == "SRV" else (), found.exists)

    def _endpoint(self, host: str, name: str, endpoints: Iterable[_Endpoint], kind: str) -> Answer:
        addresses = [e.address for e in endpoints if e.host == host]
        return _of_type(_addresses(f"{host}.{name}", addresses), kind) if addresses else NO_SUCH_NAME

    def _ports(
        self, inner: Sequence[str], service: Object, name: str, endpoints: Sequence[_Endpoint], kind: str
    ) -> Answer:
        """_http._tcp.NAME, or _tcp.NAME, which only has names below it."""
        if not all(label.startswith("_") for label in inner):
            return NO_SUCH_NAME
        owner = ".".join([*inner, name])
        port = inner[0][1:] if len(inner) == 2 else ""
        records, additional = _service_records(owner, port, inner[-1][1:], service, name, endpoints)
        if not records:
            return NO_SUCH_NAME
        if len(inner) == 1:
            return NOTHING
        found = _of_type(records, kind)
        return Answer(found.records, tuple(additional) if found.records else ())

    def _name(self, service: Object) -> str:
        return f"{name_of(service)}.{namespace_of(service)}.svc.{self.apex}"


def _service_records(
    owner: str, port: str, protocol: str, service: Object, name: str, endpoints: Sequence[_Endpoint]
) -> tuple[list[Record], list[Record]]:
    """SRV records of the ports of that name and protocol ("" for any), and the addresses of their targets."""
    records: list[Record] = []
    additional: list[Record] = []
    spec = service["spec"]
    if spec.get("clusterIP") != "None":
        for entry in spec.get("ports") or ():
            if port in ("", entry.get("name")) and protocol in ("", str(entry.get("protocol") or "TCP").lower()):
                records.append(Record(owner, "SRV", f"0 100 {entry['port']} {name}"))
        additional = list(_addresses(name, _cluster_ips(spec))) if records else []
    for endpoint in endpoints if spec.get("clusterIP") == "None" else ():
        target = f"{endpoint.host}.{name}"
        served = [number for (n, p, number) in endpoint.ports if port in ("", n) and protocol in ("", p)]
        records += [Record(owner, "SRV", f"0 100 {number} {target}") for number in served]
        additional += _addresses(target, [endpoint.address]) if served else ()
    return list(dict.fromkeys(records)), list(dict.fromkeys(additional))


def _endpoints(slices: Iterable[Object]) -> Iterator[_Endpoint]:
    """The endpoints that are ready; where a Service publishes those that are not, their slices say that they are."""
    for endpoint_slice in slices:
        ports = tuple(
            (p.get("name") or "", str(p.get("protocol") or "TCP").lower(), int(p.get("port") or 0))
            for p in endpoint_slice.get("ports") or ()
        )
        if endpoint_slice.get("addressType") == "FQDN":
            continue
        for entry in endpoint_slice.get("endpoints") or ():
            if dig(entry, "conditions", "ready", default=True) and (addresses := entry.get("addresses")):
                yield _Endpoint(str(entry.get("hostname") or label_of(addresses[0])).lower(), addresses[0], ports)


def _service_name(endpoint_slice: Object) -> str:
    return str(dig(endpoint_slice, "metadata", "labels", SERVICE_NAME, default=""))


def _cluster_ips(spec: Object) -> list[str]:
    ips = spec.get("clusterIPs") or [spec.get("clusterIP")]
    return [ip for ip in ips if ip and ip != "None"]


def _addresses(owner: str, ips: Iterable[str]) -> Iterator[Record]:
    for ip in dict.fromkeys(ips):
        yield Record(owner, "AAAA" if ":" in ip else "A", ip)


def _of_type(records: Iterable[Record], kind: str) -> Answer:
    return Answer(tuple(r for r in records if kind in (r.type, "ANY")))


def label_of(ip: str) -> str:
    """An address as one label: 10-244-0-5, fd00--5."""
    return ip.replace(".", "-").replace(":", "-")


def address_in_label(label: str) -> str | None:
    """The address that `label_of` made the label of, or None."""
    text = label.replace("-", ".") if label.count("-") == 3 and "--" not in label else label.replace("-", ":")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def address_in_reverse(name: Sequence[str]) -> str | None:
    """The address of a whole name of in-addr.arpa or ip6.arpa, or None."""
    try:
        match list(name):
            case [*octets, "in-addr", "arpa"] if len(octets) == 4:
                return str(ipaddress.IPv4Address(".".join(reversed(octets))))
            case [*nibbles, "ip6", "arpa"] if len(nibbles) == 32:
                digits = "".join(reversed(nibbles))
                return str(ipaddress.IPv6Address(":".join(digits[i : i + 4] for i in range(0, 32, 4))))
    except ValueError:
        pass
    return None
