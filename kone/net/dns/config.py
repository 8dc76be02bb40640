"""What an administrator says of names beyond the cluster: the ConfigMap kube-system/kube-dns, as kube-dns specified it.

    stubDomains: |          # names below these are asked of these servers
      {"acme.local": ["10.1.2.3", "10.1.2.4:5353"], "corp": ["ns.dns-team.svc.cluster.local"]}
    upstreamNameservers: |  # all others of these, in place of the host's resolvers; three at the most
      ["8.8.8.8", "8.8.4.4"]

`federations`, which went from Kubernetes with v1.18, is read by nobody. Rules: k8s.io/dns, pkg/dns/config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kone.apimachinery.errors import go_quote
from kone.apimachinery.names import is_dns1123_subdomain, is_valid_ip_legacy

PORT = 53
UPSTREAMS_MAX = 3


class Resolver(NamedTuple):
    """A name server: an address, or for a stub domain a name, and its port."""

    host: str
    port: int = PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORT else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """`stubs`: the servers of each suffix, which is given as labels in lower case; `upstreams` () is the host's."""

    stubs: Mapping[tuple[str, ...], Sequence[Resolver]] = field(default_factory=dict)
    upstreams: Sequence[Resolver] = ()

    def stub_of(self, name: Sequence[str]) -> Sequence[Resolver]:
        """The servers of the longest suffix of the name (labels in lower case); () where it has none."""
        for first in range(len(name)) if self.stubs else ():
            if (found := self.stubs.get(tuple(name[first:]))) is not None:
                return found
        return ()


def parse_config(data: Mapping[str, str]) -> DnsConfig:
    """The ConfigMap's data, understood. Raises ValueError with what is wrong."""
    domains, upstreams = _json(data, "stubDomains", dict), _json(data, "upstreamNameservers", list)
    stubs: dict[tuple[str, ...], Sequence[Resolver]] = {}
    for domain, servers in domains.items():
        if is_dns1123_subdomain(domain):
            raise ValueError(f"invalid domain name: {go_quote(domain)}")
        if not isinstance(servers, list):
            raise ValueError(f"stubDomains: {go_quote(domain)} needs a list of name servers")
        stubs[tuple(domain.split("."))] = tuple(_stub_server(server) for server in servers)
    if len(upstreams) > UPSTREAMS_MAX:
        raise ValueError("upstreamNameserver cannot have more than three entries")
    return DnsConfig(stubs, tuple(_upstream(server) for server in upstreams))


def _json(data: Mapping[str, str], key: str, kind: type) -> Any:
    text = data.get(key, "")
    if not text.strip():
        return kind()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{key} is not JSON: {error}") from None
    if not isinstance(found, kind):
        raise ValueError(f"{key} is no JSON {'object' if kind is dict else 'array'}")
    return found


def _stub_server(server: object) -> Resolver:
    host, port = _split(server)
    if port is None or (is_valid_ip_legacy(host) and is_dns1123_subdomain(host)):
        raise ValueError(f"invalid nameserver: {go_quote(str(server))}")
    return Resolver(host, port)


def _upstream(server: object) -> Resolver:
    host, port = _split(server)
    if is_valid_ip_legacy(host):
        raise ValueError(f"bad IP address: {go_quote(host)}")
    if port is None:
        raise ValueError(f"bad port number: {go_quote(str(server).rpartition(':')[2])}")
    return Resolver(host, port)


def _split(server: object) -> tuple[str, int | None]:
    """Host and port of "10.0.0.1", "10.0.0.1:5353", "fd00::1" or "[fd00::1]:5353"; None for what is no port."""
    text = str(server)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    else:
        return text, PORT
    if not colon:
        return host, PORT
    return host, int(port) if port.isascii() and port.isdigit() and 0 < int(port) < 65536 else None
