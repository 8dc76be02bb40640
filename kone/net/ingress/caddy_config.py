"""Caddy's configuration as JSON: pure, from the rules of all Ingresses to what its admin API is given.

Two servers, HTTP and HTTPS, on sockets that kone made and Caddy inherits (doors.py says why each has two of
them). A server that is replaced by that of another configuration goes on for OVERLAP on its own socket and tells its
clients to come back by a new connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple
from urllib.parse import unquote

from kone.apimachinery.objects import Key, Object
from kone.net.ingress.doors import Side
from kone.net.ingress.rules import Backend, Certificate, Path, Rules

Fds = tuple[int, int]
HTTP_FDS, HTTPS_FDS = (3, 5), (4, 6)  # what Caddy knows the sockets by, for each side
SPARE_FDS: tuple[Fds, ...] = tuple((first, first + 1) for first in range(7, 39, 2))  # for Gateways' other ports
ADMIN_SOCKET = "caddy.sock"
DEFAULT_TAG = "default"
HOST, LOCAL = "{http.request.host}", "{http.request.local.host}"
NOT_FOUND = "no Ingress serves this\n"
NO_ENDPOINTS = "no endpoint is ready\n"

# How long a request waits for an endpoint that takes it: a pod that just went away is refused at once, and the next
# one is tried; one that does not even refuse costs DIAL_TIMEOUT.
TRY_DURATION_S, TRY_INTERVAL, DIAL_TIMEOUT = 5.0, "25ms", "1s"
# How long a part of an answer with a known length may wait for the next; all others are passed on at once. Passing on
# each part at once costs a third of the throughput.
FLUSH_INTERVAL = "50ms"
KEEP_STREAMS = "24h"  # how long a WebSocket outlives a change of the configuration
HEADER_TIMEOUT = "1m"  # until a client has said what it wants
BRANCHES = 6
OVERLAP = "500ms"  # longer than most clients wait between two requests

# What a server that is being replaced does first. A switch to another protocol is no answer that ends its connection.
_LEADING_OVER = {
    "match": [{"vars": {"{http.shutting_down}": ["true"]}, "header": {"Upgrade": None}}],
    "handle": [{"handler": "headers", "response": {"set": {"Connection": ["close"]}}}],
}


@dataclass(frozen=True, slots=True)
class Listening:
    """Which servers there are and on which sockets: those of Ingress by their port (0 is none), others by theirs."""

    http_port: int = 80
    https_port: int = 443
    side: Side = 0
    others: Mapping[int, Fds] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """What a port serves beside Ingresses: routes by host, which is exact, a wildcard for all hosts below, or "".

    Both are in order, the most specific host first. `addresses` are served by it alone; () are those of the others.
    """

    port: int
    tls: bool
    hosts: tuple[tuple[str, tuple[Object, ...]], ...] = ()
    certificates: tuple[tuple[str, tuple[Key, ...]], ...] = ()
    addresses: tuple[str, ...] = ()
    first: tuple[Object, ...] = ()  # routes that are tried before all hosts


class _Entry(NamedTuple):
    """A host's routes; `deep` is a wildcard that means more than one label."""

    host: str
    deep: bool
    routes: list[Object]

    @property
    def order(self) -> tuple[int, int, bool]:
        """Exact hosts, then wildcards, the longer and the narrower first, then every host."""
        rank = 0 if self.is_exact else 1 if self.host else 2
        return rank, -len(self.host) if rank else 0, self.deep

    @property
    def is_exact(self) -> bool:
        return bool(self.host) and not self.host.startswith("*.")


def caddy_config(
    rules: Rules,
    listening: Listening,
    folder: PurePath,
    default_certificate: Certificate | None = None,
    parts: Iterable[Part] = (),
    certificates: Mapping[Key, Certificate] | None = None,
) -> Object:
    """The whole configuration. `folder` holds the admin socket and Caddy's own files.

    `parts` are served on ports that `listening` has, with `certificates` beside those of the rules.
    """
    by_port: dict[int, list[Part]] = {}
    for part in parts:
        by_port.setdefault(part.port, []).append(part)
    http, https = by_port.pop(listening.http_port, []), by_port.pop(listening.https_port, [])
    side = listening.side
    servers: Object = {}
    if listening.http_port:
        routes = _routes(rules, listening.https_port, http)
        servers["http"] = _server(HTTP_FDS[side], ["h1", "h2c"], routes)
    if listening.https_port:
        servers["https"] = _server(HTTPS_FDS[side], ["h1", "h2"], _routes(rules, 0, https))
        servers["https"]["tls_connection_policies"] = list(_connection_policies(rules.tls, https))
    for port, at_port in by_port.items():
        protocols = ["h1", "h2"] if at_port[0].tls else ["h1", "h2c"]
        server = _server(listening.others[port][side], protocols, _routes(Rules(), 0, at_port))
        if at_port[0].tls:
            server["tls_connection_policies"] = list(_connection_policies({}, at_port))
        servers[f"port-{port}"] = server
    apps: Object = {"http": {"servers": servers, "shutdown_delay": OVERLAP}}
    if any("tls_connection_policies" in server for server in servers.values()):
        apps["tls"] = _tls(rules, default_certificate, certificates or {})
    return {
        "admin": {"listen": f"unix/{folder / ADMIN_SOCKET}|0600", "config": {"persist": False}},
        "logging": {"logs": {"default": {"level": "WARN"}}},
        "storage": {"module": "file_system", "root": str(folder / "storage")},
        "apps": apps,
    }


def _server(fd: int, protocols: list[str], routes: list[Object]) -> Object:
    return {
        "listen": [f"fd/{fd}"],
        "protocols": protocols,
        "automatic_https": {"disable": True},
        "read_header_timeout": HEADER_TIMEOUT,
        "enable_full_duplex": True,  # an endpoint may begin to answer before the request has ended
        "routes": routes,
    }


def _routes(rules: Rules, redirect_port: int, parts: Iterable[Part]) -> list[Object]:
    """What is tried one after the other; `redirect_port` is where those that ask for HTTPS are sent, 0 is nowhere."""
    routes = [_LEADING_OVER]
    paths: list[_Entry] = []
    for part in parts:
        entries = [_Entry(host, host.startswith("*."), list(made)) for host, made in part.hosts]
        if part.addresses:
            inner = [*part.first, *_by_host(entries), {"handle": [say(404, NOT_FOUND)]}]
            match = {"match": [{"vars": {LOCAL: list(part.addresses)}}]}
            routes.append({**match, "handle": [{"handler": "subroute", "routes": inner}]})
        else:
            routes += part.first
            paths += entries
    paths += [
        _Entry(host.name, False, [_path_route(path, redirect_port) for path in host.paths])
        for host in rules.hosts
        if host.paths
    ]
    routes += _by_host(paths)
    defaults = [
        _Entry(h.name, False, [_path_route(h.default, redirect_port)]) for h in rules.hosts if h.default is not None
    ]
    routes += _by_host(defaults)
    if rules.default is not None:
        routes.append(_path_route(rules.default, redirect_port))
    routes.append({"handle": [say(404, NOT_FOUND)]})
    return routes


def _by_host(entries: list[_Entry]) -> list[Object]:
    """A route for each host, in order; the exact hosts, which come first, as a tree."""
    exact: dict[str, list[Object]] = {}
    for entry in entries:
        if entry.is_exact:
            exact.setdefault(entry.host, []).extend(entry.routes)
    others = sorted((entry for entry in entries if not entry.is_exact), key=lambda entry: entry.order)
    return _tree(list(exact.items())) + [_host_route(entry) for entry in others]


def _tree(exact: list[tuple[str, list[Object]]]) -> list[Object]:
    """Routes of exact hosts, at most BRANCHES side by side.

    Caddy makes closures for all routes of a list for each request that comes there, and tries them one by one: 0.5 us
    each. To look through the names of one route costs 0.02 us each.
    """
    if len(exact) <= BRANCHES:
        return [_host_route(_Entry(host, False, routes)) for host, routes in exact]
    size = -(-len(exact) // BRANCHES)
    grouped: list[Object] = []
    for first in range(0, len(exact), size):
        group = exact[first : first + size]
        handler = {"handler": "subroute", "routes": _tree(group)}
        grouped.append({"match": [{"host": [host for host, _ in group]}], "handle": [handler]})
    return grouped


def _host_route(entry: _Entry) -> Object:
    route: Object = {"handle": [{"handler": "subroute", "routes": entry.routes}]}
    if not entry.host:
        return route
    if entry.deep:
        return {"match": [{"vars_regexp": {HOST: {"pattern": _below(entry.host)}}}], **route}
    return {"match": [{"host": [entry.host]}], **route}


def _below(wildcard: str) -> str:
    """An expression for all names below "*.example.com"."""
    return f"(?i)^.+{re.escape(wildcard[1:])}$"


def _path_route(path: Path, redirect_port: int) -> Object:
    if path.redirect and redirect_port:
        port = "" if redirect_port == 443 else f":{redirect_port}"
        location = f"https://{{http.request.host}}{port}{{http.request.uri}}"
        handler: Object = {"handler": "static_response", "status_code": 308, "headers": {"Location": [location]}}
    else:
        handler = proxy(path.backend)
    # By regular expression: Caddy's own matcher of paths does not tell capital letters from small ones.
    quoted = re.escape(unquote(path.path))
    pattern = f"^{quoted}$" if path.kind == "Exact" else f"^{quoted}(/|$)" if path.path else ""
    match = {"match": [{"path_regexp": {"pattern": pattern}}]} if pattern else {}
    return {**match, "handle": [handler]}


def proxy(backend: Backend, timeout_s: float = 0.0) -> Object:
    """Pass on to any of the endpoints; after `timeout_s` without an answer say 504 (0 waits)."""
    if not backend.dials:
        return say(503, NO_ENDPOINTS)
    transport: Object = {"protocol": "http", "dial_timeout": DIAL_TIMEOUT}
    try_s = TRY_DURATION_S
    if timeout_s:
        transport["response_header_timeout"] = f"{timeout_s:g}s"
        try_s = min(timeout_s, TRY_DURATION_S)
    headers: Mapping[str, Object] = {}
    if backend.protocol == "h2c":
        transport["versions"] = ["h2c"]
    elif backend.protocol == "https":
        # Who the endpoint is follows from the EndpointSlice: its certificate names neither its address nor the host.
        transport["tls"] = {"insecure_skip_verify": True}
        headers = {"headers": {"request": {"set": {"Host": ["{http.request.hostport}"]}}}}
    return {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": dial} for dial in backend.dials],
        "transport": transport,
        "flush_interval": FLUSH_INTERVAL,
        "stream_close_delay": KEEP_STREAMS,
        "load_balancing": {
            "selection_policy": {"policy": "client_ip_hash" if backend.sticky else "random"},
            "try_duration": f"{try_s:g}s",
            "try_interval": TRY_INTERVAL,
        },
        **headers,
    }


def say(status: int, text: str) -> Object:
    return {"handler": "static_response", "status_code": status, "body": text}


# TLS


def _connection_policies(tls: Mapping[str, Key], parts: Iterable[Part]) -> Iterator[Object]:
    """Which certificate a client gets, by the name it asks for, whatever names the certificate itself has."""
    by_secret: dict[tuple[bool, Key], list[str]] = {}
    for host, secret in tls.items():
        by_secret.setdefault((host.startswith("*."), secret), []).append(host)
    more: list[tuple[str, tuple[Key, ...]]] = []
    every = [DEFAULT_TAG]
    for part in parts:
        for host, secrets in part.certificates if part.addresses else ():
            yield _policy({"local_ip": {"ranges": list(part.addresses)}, **_asks_for(host)}, map(_tag, secrets))
        more += () if part.addresses else part.certificates
    for host, secrets in more:
        if host and not host.startswith("*."):
            yield _policy(_asks_for(host), map(_tag, secrets))
    for (_, secret), hosts in sorted(by_secret.items(), key=lambda item: item[0]):
        yield _policy({"sni": hosts}, [_tag(secret)])
    for host, secrets in more:
        if host.startswith("*."):
            yield _policy(_asks_for(host), map(_tag, secrets))
        elif not host:
            every = [_tag(secret) for secret in secrets]
    yield {"certificate_selection": {"any_tag": every}}


def _asks_for(host: str) -> Object:
    if host.startswith("*."):
        return {"sni_regexp": {"pattern": _below(host)}}
    return {"sni": [host]} if host else {}


def _policy(match: Object, tags: Iterable[str]) -> Object:
    return {"match": match, "certificate_selection": {"any_tag": list(tags)}}


def _tls(rules: Rules, default_certificate: Certificate | None, more: Mapping[Key, Certificate]) -> Object:
    pems: list[Object] = []
    for secret, certificate in {**rules.certificates, **more}.items():
        tags = [_tag(secret), DEFAULT_TAG] if secret == rules.default_secret else [_tag(secret)]
        pems.append(_pem(certificate, tags))
    if rules.default_secret is None and default_certificate is not None:
        pems.append(_pem(default_certificate, [DEFAULT_TAG]))
    return {
        "certificates": {"load_pem": pems},
        "disable_ocsp_stapling": True,
        "disable_storage_clean": True,
    }


def _pem(certificate: Certificate, tags: Iterable[str]) -> Object:
    return {"certificate": certificate.chain, "key": certificate.key, "tags": list(tags)}


def _tag(secret: Key) -> str:
    return str(secret)
