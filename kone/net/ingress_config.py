"""Caddy's configuration as JSON: pure, from the rules of all Ingresses to what its admin API is given.

Two servers, HTTP and HTTPS, on sockets that kone made and Caddy inherits (ingress_doors.py says why each has two of
them). A server that is replaced by that of another configuration goes on for OVERLAP on its own socket and tells its
clients to come back by a new connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import unquote

from kone.apimachinery.objects import Key, Object
from kone.net.ingress_doors import Side
from kone.net.ingress_rules import Backend, Certificate, Host, Path, Rules

HTTP_FDS, HTTPS_FDS = (3, 5), (4, 6)  # what Caddy knows the sockets by, for each side
ADMIN_SOCKET = "caddy.sock"
DEFAULT_TAG = "default"
NOT_FOUND = "no Ingress serves this\n"
NO_ENDPOINTS = "no endpoint is ready\n"

# How long a request waits for an endpoint that takes it: a pod that just went away is refused at once, and the next
# one is tried; one that does not even refuse costs DIAL_TIMEOUT.
TRY_DURATION, TRY_INTERVAL, DIAL_TIMEOUT = "5s", "25ms", "1s"
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
    """Which servers there are, the port of the second as clients know it (0 is none), and on which sockets."""

    http: bool = True
    https_port: int = 443
    side: Side = 0


def caddy_config(
    rules: Rules, listening: Listening, folder: PurePath, default_certificate: Certificate | None = None
) -> Object:
    """The whole configuration. `folder` holds the admin socket and Caddy's own files."""
    servers: Object = {}
    if listening.http:
        servers["http"] = _server(HTTP_FDS[listening.side], ["h1", "h2c"], _routes(rules, listening.https_port))
    if listening.https_port:
        servers["https"] = _server(HTTPS_FDS[listening.side], ["h1", "h2"], _routes(rules, 0))
        servers["https"]["tls_connection_policies"] = list(_connection_policies(rules))
    apps: Object = {"http": {"servers": servers, "shutdown_delay": OVERLAP}}
    if listening.https_port:
        apps["tls"] = _tls(rules, default_certificate)
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


def _routes(rules: Rules, redirect_port: int) -> list[Object]:
    """What is tried one after the other; `redirect_port` is where those that ask for HTTPS are sent, 0 is nowhere."""
    routes = [_LEADING_OVER]
    paths = [(host, [_path_route(path, redirect_port) for path in host.paths]) for host in rules.hosts if host.paths]
    routes += _by_host(paths)
    defaults = [(h, [_path_route(h.default, redirect_port)]) for h in rules.hosts if h.default is not None]
    routes += _by_host(defaults)
    if rules.default is not None:
        routes.append(_path_route(rules.default, redirect_port))
    routes.append({"handle": [_say(404, NOT_FOUND)]})
    return routes


def _by_host(routes: list[tuple[Host, list[Object]]]) -> list[Object]:
    """A route for each host, in order; the exact hosts, which come first, as a tree."""
    exact = [pair for pair in routes if pair[0].name and not pair[0].name.startswith("*.")]
    return _tree(exact) + [_host_route(*pair) for pair in routes[len(exact) :]]


def _tree(routes: list[tuple[Host, list[Object]]]) -> list[Object]:
    """Routes of exact hosts, at most BRANCHES side by side.

    Caddy makes closures for all routes of a list for each request that comes there, and tries them one by one: 0.5 us
    each. To look through the names of one route costs 0.02 us each.
    """
    if len(routes) <= BRANCHES:
        return [_host_route(*pair) for pair in routes]
    size = -(-len(routes) // BRANCHES)
    grouped: list[Object] = []
    for first in range(0, len(routes), size):
        group = routes[first : first + size]
        handler = {"handler": "subroute", "routes": _tree(group)}
        grouped.append({"match": [{"host": [host.name for host, _ in group]}], "handle": [handler]})
    return grouped


def _host_route(host: Host, routes: list[Object]) -> Object:
    route: Object = {"handle": [{"handler": "subroute", "routes": routes}]}
    return {"match": [{"host": [host.name]}], **route} if host.name else route


def _path_route(path: Path, redirect_port: int) -> Object:
    if path.redirect and redirect_port:
        port = "" if redirect_port == 443 else f":{redirect_port}"
        location = f"https://{{http.request.host}}{port}{{http.request.uri}}"
        handler: Object = {"handler": "static_response", "status_code": 308, "headers": {"Location": [location]}}
    else:
        handler = _proxy(path.backend)
    # By regular expression: Caddy's own matcher of paths does not tell capital letters from small ones.
    quoted = re.escape(unquote(path.path))
    pattern = f"^{quoted}$" if path.kind == "Exact" else f"^{quoted}(/|$)" if path.path else ""
    match = {"match": [{"path_regexp": {"pattern": pattern}}]} if pattern else {}
    return {**match, "handle": [handler]}


def _proxy(backend: Backend) -> Object:
    if not backend.dials:
        return _say(503, NO_ENDPOINTS)
    transport: Object = {"protocol": "http", "dial_timeout": DIAL_TIMEOUT}
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
            "try_duration": TRY_DURATION,
            "try_interval": TRY_INTERVAL,
        },
        **headers,
    }


def _say(status: int, text: str) -> Object:
    return {"handler": "static_response", "status_code": status, "body": text}


# TLS


def _connection_policies(rules: Rules) -> Iterator[Object]:
    """Which certificate a client gets, by the name it asks for, whatever names the certificate itself has."""
    by_secret: dict[tuple[bool, Key], list[str]] = {}
    for host, secret in rules.tls.items():
        by_secret.setdefault((host.startswith("*."), secret), []).append(host)
    for (_, secret), hosts in sorted(by_secret.items(), key=lambda item: item[0]):
        yield {"match": {"sni": hosts}, "certificate_selection": {"any_tag": [_tag(secret)]}}
    yield {"certificate_selection": {"any_tag": [DEFAULT_TAG]}}


def _tls(rules: Rules, default_certificate: Certificate | None) -> Object:
    pems: list[Object] = []
    for secret, certificate in rules.certificates.items():
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
