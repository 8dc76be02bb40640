"""What Ingresses ask for: pure, from Ingresses, Services, EndpointSlices and Secrets to rules in order of precedence.

Upstream's rules (docs, Ingress): an exact host goes before a wildcard, a wildcard (for one label) before no host at
all; among a host's paths an exact one goes first, then the longest prefix by path elements; what no rule of any Ingress
matches goes to a default backend. Where two Ingresses want the same host and path the older one has it. Beyond that
kone says: ImplementationSpecific is Prefix, and a host whose Ingress has TLS for it answers plain HTTP by a redirect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from kone.apimachinery.objects import Key, Object, annotations_of, dig, key_of, metadata, name_of
from kone.net.service_map import ServicePortName, ready_endpoints

CLASS_ANNOTATION = "kubernetes.io/ingress.class"
REDIRECT_ANNOTATION = "ingress.kone/ssl-redirect"
CONTROLLER = "kone/ingress"

PathKind = Literal["Exact", "Prefix"]
BackendProtocol = Literal["http", "h2c", "https"]

# appProtocol -> how to speak to the endpoints (KEP-3726, and the names that are in use for the same things)
PROTOCOLS: Mapping[str, BackendProtocol] = {
    "kubernetes.io/h2c": "h2c",
    "h2c": "h2c",
    "grpc": "h2c",
    "https": "https",
    "grpcs": "https",
    "kubernetes.io/wss": "https",
}


class Finding(NamedTuple):
    """Something that an Ingress, or a Gateway, asks for and does not get; becomes a Warning event about it."""

    about: Key
    reason: str
    message: str
    is_gateway: bool = False


class Certificate(NamedTuple):
    """A chain and its key, as PEM."""

    chain: str
    key: str


class Problem(NamedTuple):
    """Why there is no certificate: an event's reason and message."""

    reason: str
    message: str


class World(Protocol):
    """The objects that Ingresses speak of."""

    def service(self, namespace: str, name: str) -> Object | None: ...

    def slices(self, namespace: str, service: str) -> Iterable[Object]: ...

    def certificate(self, secret: Key) -> Certificate | Problem:
        """What a TLS Secret holds."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a request goes: any of `dials` ("10.244.0.5:8080"); none of them means 503."""

    dials: tuple[str, ...] = ()
    protocol: BackendProtocol = "http"
    sticky: bool = False  # a client stays with its endpoint


@dataclass(frozen=True, slots=True)
class Path:
    """One path of a host. A Prefix has no slash at its end; "" is every path."""

    kind: PathKind
    path: str
    backend: Backend
    redirect: bool = False  # plain HTTP is sent to HTTPS


@dataclass(frozen=True, slots=True)
class Host:
    """The paths of one host in the order in which they are tried, and what takes the host's other requests."""

    name: str  # "" is every host, "*.example.com" each name one label longer
    paths: tuple[Path, ...] = ()
    default: Path | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything to be served, in the order in which it is tried: paths by host, hosts' defaults, the default."""

    hosts: tuple[Host, ...] = ()
    default: Path | None = None
    tls: Mapping[str, Key] = field(default_factory=dict)  # host -> Secret, exact names first
    certificates: Mapping[Key, Certificate] = field(default_factory=dict)
    default_secret: Key | None = None
    findings: tuple[Finding, ...] = ()
    services: frozenset[Key] = frozenset()  # that are spoken of, whether they exist or not
    secrets: frozenset[Key] = frozenset()


def class_of(ingress: Object) -> str:
    """The name of the IngressClass; "" where the Ingress has none. The annotation is the deprecated way to say it."""
    return str(dig(ingress, "spec", "ingressClassName") or annotations_of(ingress).get(CLASS_ANNOTATION, ""))


def is_served(ingress: Object, classes: Iterable[Object]) -> bool:
    """Whether the Ingress's class is one that names this controller."""
    mine = class_of(ingress)
    return bool(mine) and any(name_of(c) == mine and dig(c, "spec", "controller") == CONTROLLER for c in classes)


def rules_of(ingresses: Iterable[Object], world: World) -> Rules:
    """The rules of these Ingresses, all of which are to be served."""
    gathering = _Gathering(world)
    oldest_first = sorted(ingresses, key=lambda i: (metadata(i).get("creationTimestamp", ""), key_of(i)))
    for ingress in oldest_first:
        gathering.tls_of(ingress)
    for ingress in oldest_first:
        gathering.rules_of(ingress)
    for ingress in oldest_first:
        gathering.default_of(ingress)
    return gathering.rules()


class _Gathering:
    """Takes Ingresses one after the other, the oldest first: who is first has it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._paths: dict[str, dict[tuple[PathKind, str], tuple[Key, Path]]] = {}
        self._defaults: dict[str, tuple[Key, Path]] = {}
        self._default: tuple[Key, Path] | None = None
        self._shared_default: Path | None = None
        self._tls: dict[str, tuple[Key, Key]] = {}  # host -> (Ingress, Secret)
        self._own_tls: dict[Key, set[str]] = {}
        self._certificates: dict[Key, Certificate] = {}
        self._default_secret: Key | None = None
        self._findings: dict[Finding, None] = {}
        self._backends: dict[tuple[str, str, str | int], Backend | Problem] = {}
        self._services: set[Key] = set()
        self._secrets: set[Key] = set()

    def rules(self) -> Rules:
        hosts = [
            Host(name, _in_order(path for _, path in paths.values()), self._default_at(name))
            for name, paths in self._paths.items()
        ]
        return Rules(
            tuple(sorted(hosts, key=lambda host: _host_order(host.name))),
            self._default[1] if self._default else self._shared_default,
            {host: self._tls[host][1] for host in sorted(self._tls, key=_host_order)},
            self._certificates,
            self._default_secret,
            tuple(self._findings),
            frozenset(self._services),
            frozenset(self._secrets),
        )

    def _default_at(self, host: str) -> Path | None:
        found = self._defaults.get(host)
        return found[1] if found else None

    def _find(self, ingress: Key, reason: str, message: str) -> None:
        self._findings[Finding(ingress, reason, message)] = None

    # TLS

    def tls_of(self, ingress: Object) -> None:
        key = key_of(ingress)
        for entry in dig(ingress, "spec", "tls", default=()):
            if not (name := entry.get("secretName")):
                continue  # the hosts are served with the default certificate
            secret = Key(key.namespace, name)
            self._secrets.add(secret)
            found = self._certificates.get(secret) or self._world.certificate(secret)
            if isinstance(found, Problem):
                self._find(key, found.reason, found.message)
                continue
            self._certificates[secret] = found
            hosts = entry.get("hosts") or [rule.get("host", "") for rule in dig(ingress, "spec", "rules", default=())]
            for host in dict.fromkeys(hosts):
                if host:
                    self._tls_at(host, key, secret)
            if not any(hosts) and self._default_secret is None:
                self._default_secret = secret

    def _tls_at(self, host: str, ingress: Key, secret: Key) -> None:
        owner, other = self._tls.setdefault(host, (ingress, secret))
        if other != secret:
            self._find(ingress, "Conflict", f"host {host} has the certificate of Ingress {owner} already")
        self._own_tls.setdefault(ingress, set()).add(host)

    def _redirects(self, ingress: Object, host: str) -> bool:
        if annotations_of(ingress).get(REDIRECT_ANNOTATION) == "false":
            return False
        return any(host_matches(pattern, host) for pattern in self._own_tls.get(key_of(ingress), ()))

    # Rules

    def rules_of(self, ingress: Object) -> None:
        key = key_of(ingress)
        for rule in dig(ingress, "spec", "rules", default=()):
            host = str(rule.get("host") or "").lower()
            redirect = self._redirects(ingress, host)
            taken = self._paths.setdefault(host, {})
            for entry in dig(rule, "http", "paths", default=()):
                kind, path = path_of(entry)
                backend = self._backend(ingress, entry.get("backend") or {})
                owner, _ = taken.setdefault((kind, path), (key, Path(kind, path, backend, redirect)))
                if owner != key:
                    where = f"host {host or '*'} path {entry.get('path') or '/'}"
                    self._find(key, "Conflict", f"{where} ({kind}) is served by Ingress {owner} already")

    def default_of(self, ingress: Object) -> None:
        """Its own hosts' other requests go to an Ingress's default backend, and all others if nobody else wants them.

        Of the Ingresses that have nothing but a default backend the oldest has what no host matches.
        """
        asked = dig(ingress, "spec", "defaultBackend")
        if not asked:
            return
        key, backend = key_of(ingress), self._backend(ingress, asked)
        hosts = {str(rule.get("host") or "").lower() for rule in dig(ingress, "spec", "rules", default=())}
        for host in hosts - {""}:
            self._paths.setdefault(host, {})
            self._defaults.setdefault(host, (key, Path("Prefix", "", backend, self._redirects(ingress, host))))
        path = Path("Prefix", "", backend)
        if hosts:
            self._shared_default = self._shared_default or path
        elif self._default is None:
            self._default = key, path
        else:
            self._find(key, "Conflict", f"the default backend is that of Ingress {self._default[0]} already")

    # Backends

    def _backend(self, ingress: Object, asked: Object) -> Backend:
        """Where to send; nowhere, and a finding, where the Ingress asks for what cannot be."""
        key = key_of(ingress)
        if (resource := asked.get("resource")) is not None:
            kind = ".".join(part for part in (resource.get("kind"), resource.get("apiGroup")) if part)
            message = f"backend {kind} {resource.get('name', '')} is not a Service: it is not served"
            self._find(key, "UnsupportedBackend", message)
            return Backend()
        service = asked.get("service") or {}
        port: str | int = dig(service, "port", "name") or dig(service, "port", "number") or 0
        identity = (key.namespace, str(service.get("name", "")), port)
        if identity not in self._backends:
            self._backends[identity] = self._resolve(*identity)
        found = self._backends[identity]
        if isinstance(found, Problem):
            self._find(key, found.reason, found.message)
            return Backend()
        return found

    def _resolve(self, namespace: str, name: str, port: str | int) -> Backend | Problem:
        self._services.add(Key(namespace, name))
        return backend_of(self._world, Key(namespace, name), port)


def backend_of(world: World, key: Key, port: str | int) -> Backend | Problem:
    """How a Service's port, by its name or number, is reached."""
    service = world.service(key.namespace, key.name)
    if service is None:
        return Problem("ServiceNotFound", f"Service {key} does not exist")
    spec = service.get("spec") or {}
    entry = next((p for p in spec.get("ports") or () if port in (p.get("name") or "", p.get("port"))), None)
    if spec.get("type") == "ExternalName":
        number = entry["port"] if entry else port
        if not isinstance(number, int):
            return Problem("ServicePortNotFound", f"Service {key} has no port {port}")
        dial = f"{str(spec.get('externalName', '')).rstrip('.')}:{number}"
        return Backend((dial,), PROTOCOLS.get((entry or {}).get("appProtocol") or "", "http"))
    if entry is None:
        return Problem("ServicePortNotFound", f"Service {key} has no port {port}")
    if (entry.get("protocol") or "TCP") != "TCP":
        return Problem("ServicePortNotFound", f"port {port} of Service {key} is not a TCP port")
    named = ServicePortName(key.namespace, key.name, entry.get("name") or "", "TCP")
    return Backend(
        tuple(map(str, ready_endpoints(world.slices(key.namespace, key.name), named))),
        PROTOCOLS.get(entry.get("appProtocol") or "", "http"),
        spec.get("sessionAffinity") == "ClientIP",
    )


def path_of(entry: Object) -> tuple[PathKind, str]:
    """A path as it is matched; a Prefix without its slash at the end."""
    path = str(entry.get("path") or "/")
    if entry.get("pathType") == "Exact":
        return "Exact", path
    return "Prefix", path.rstrip("/")


def host_matches(pattern: str, host: str) -> bool:
    """Whether a host, or a wildcard of just that kind, is meant by an exact host or a wildcard."""
    if pattern == host:
        return True
    label, _, rest = host.partition(".")
    return pattern == f"*.{rest}" and bool(label) and label != "*"


def _host_order(host: str) -> tuple[int, int, str]:
    """Exact hosts first, then wildcards, the longer before the shorter, then every host."""
    rank = 2 if not host else 1 if host.startswith("*.") else 0
    return rank, -len(host) if rank else 0, host


def _in_order(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(sorted(paths, key=lambda p: (p.kind != "Exact", -len(p.path), p.path)))
