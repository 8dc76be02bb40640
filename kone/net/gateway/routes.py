"""HTTPRoutes and GRPCRoutes: pure, which attach to which listeners, and the rules of each host in order of precedence.

The Gateway API's rules (v1, HTTPRoute): the most specific host goes first; then an exact path, the longest prefix, a
method, the most headers, the most query parameters, the oldest route. A host belongs to its most specific listener of
the port and to no other (listener isolation). A backend that cannot be had answers 500 in its share of the requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kone.apimachinery.objects import Key, Object, dig, generation_of, key_of, metadata
from kone.net.gateway.filters import (
    Filters,
    Match,
    UnsupportedError,
    filters_of,
    matches_of,
    timeout_of,
)
from kone.net.gateway.listeners import (
    GROUP,
    RESOLVED,
    Condition,
    GatewayWorld,
    Listener,
    Listeners,
    is_granted,
    lets_in,
)
from kone.net.ingress.rules import Backend, Problem, backend_of

PATH_RANK = {"Exact": 0, "RegularExpression": 1, "PathPrefix": 2}


@dataclass(frozen=True, slots=True)
class Target:
    """One backendRef; `backend` None answers 500."""

    weight: int
    backend: Backend | None
    filters: Filters


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to the requests of one match. `timeout_s` 0 is none."""

    match: Match
    filters: Filters
    targets: tuple[Target, ...]
    timeout_s: float = 0.0
    refusal: int = 500  # the status where no backend can be had


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """A host's rules in the order in which they are tried; `closed` where nobody else may serve what is left."""

    pattern: str  # "" is every host, "*.example.com" each host below
    rules: tuple[Rule, ...] = ()
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """What all listeners of one port serve, of all addresses (()) or of these; the most specific host first."""

    port: int
    addresses: tuple[str, ...]
    protocol: str
    hosts: tuple[VirtualHost, ...]
    listeners: tuple[str, ...] = ()  # the listeners' hosts, the most specific first
    certificates: tuple[tuple[str, tuple[Key, ...]], ...] = ()  # by host, the most specific first


RouteId = tuple[str, Key]
"""Kind and name."""


def route_id(route: Object) -> RouteId:
    return str(route["kind"]), key_of(route)


class Parent(NamedTuple):
    """What a Gateway of ours makes of a route, by one of its parentRefs."""

    ref: Object
    generation: int
    conditions: tuple[Condition, ...]


@dataclass(slots=True)
class Routes:
    """Everything of all routes."""

    sites: tuple[Site, ...] = ()
    parents: dict[RouteId, list[Parent]] = field(default_factory=dict)
    attached: dict[tuple[Key, str], int] = field(default_factory=dict)  # by Gateway and listener
    services: set[Key] = field(default_factory=set)  # that are spoken of, whether they exist or not


_Where = tuple[int, tuple[str, ...]]  # a port, and the addresses of who has it to himself


class _Placed(NamedTuple):
    """A rule and its precedence among those of its host; smaller goes first."""

    order: tuple[object, ...]
    rule: Rule


def routes_of(routes: Iterable[Object], listeners: Listeners, world: GatewayWorld) -> Routes:
    """The routes' states, and what the listeners serve of them."""
    found = Routes(attached={(each.gateway, each.name): 0 for each in listeners.all()})
    serving: dict[_Where, list[Listener]] = {}
    for gateway in listeners.gateways.values():
        for listener in gateway.listeners:
            if listener.serves and gateway.address_problem is None:
                serving.setdefault((listener.port, gateway.addresses), []).append(listener)
    hosts: dict[_Where, dict[str, list[_Placed]]] = {where: {} for where in serving}
    for route in routes:
        _attach(route, listeners, world, serving, hosts, found)
    found.sites = tuple(_site(*where, serving[where], hosts[where]) for where in sorted(serving))
    return found


def _attach(
    route: Object,
    listeners: Listeners,
    world: GatewayWorld,
    serving: Mapping[_Where, list[Listener]],
    hosts: Mapping[_Where, dict[str, list[_Placed]]],
    found: Routes,
) -> None:
    namespace = key_of(route).namespace
    asked = []
    for ref in dig(route, "spec", "parentRefs", default=()):
        if (ref.get("group", GROUP), ref.get("kind", "Gateway")) == (GROUP, "Gateway"):
            gateway = listeners.gateways.get(Key(str(ref.get("namespace") or namespace), str(ref.get("name", ""))))
            if gateway is not None:
                asked.append((ref, gateway))
    if not asked:
        return
    placed, refused, resolved = _rules(route, world, found)
    names = [str(name).lower() for name in dig(route, "spec", "hostnames", default=())] or [""]
    taken: set[tuple[_Where, str]] = set()
    parents = found.parents.setdefault(route_id(route), [])
    for ref, gateway in asked:
        joined = refused or _join(ref, gateway.listeners, route, names, world)
        if isinstance(joined, Condition):
            accepted = joined
        else:
            accepted = Condition("Accepted", True, "Accepted", "the route is accepted")
            for listener, effective in joined:
                found.attached[listener.gateway, listener.name] += 1
                if not listener.serves or gateway.address_problem is not None:
                    continue
                where = (listener.port, gateway.addresses)
                for host in effective:
                    if (where, host) not in taken and not _belongs_elsewhere(host, listener, serving[where]):
                        taken.add((where, host))
                        hosts[where].setdefault(host, []).extend(placed)
        parents.append(Parent(ref, generation_of(route), (accepted, resolved)))


def _join(
    ref: Object, listeners: Iterable[Listener], route: Object, names: list[str], world: GatewayWorld
) -> Condition | list[tuple[Listener, list[str]]]:
    """The listeners that a parentRef attaches to, each with the hosts that both sides name."""

    def no(reason: str, message: str) -> Condition:
        return Condition("Accepted", False, reason, message)

    section, port = ref.get("sectionName"), ref.get("port")
    meant = [each for each in listeners if section in (None, "", each.name) and port in (None, each.port)]
    if not meant:
        return no("NoMatchingParent", "the Gateway has no such listener")
    kind, key = route_id(route)
    allowing = [each for each in meant if lets_in(each, kind, key.namespace, world)]
    if not allowing:
        return no("NotAllowedByListeners", f"no listener allows a {kind} of namespace {key.namespace}")
    joined = []
    for listener in allowing:
        both = [host for name in names if (host := intersection(listener.hostname, name)) is not None]
        if both:
            joined.append((listener, list(dict.fromkeys(both))))
    return joined or no("NoMatchingListenerHostname", "no listener has one of the route's hostnames")


def _rules(route: Object, world: GatewayWorld, found: Routes) -> tuple[list[_Placed], Condition | None, Condition]:
    """The rules with their precedence; why the route is refused, or None; whether its references are resolved."""
    placed: list[_Placed] = []
    problems: list[Condition] = []
    kind, key = route_id(route)
    age = (metadata(route).get("creationTimestamp", ""), key, kind)
    refusal = 503 if kind == "GRPCRoute" else 500  # clients of gRPC make UNAVAILABLE of it
    try:
        for number, spec in enumerate(dig(route, "spec", "rules", default=())):
            filters = filters_of(spec.get("filters") or ())
            targets = tuple(_target(route, ref, world, found, problems) for ref in spec.get("backendRefs") or ())
            timeout_s = timeout_of(spec)
            for which, match in enumerate(matches_of(spec, kind)):
                order = (*_precedence(match), *age, number, which)
                placed.append(_Placed(order, Rule(match, filters, targets, timeout_s, refusal)))
    except UnsupportedError as error:
        refused = Condition("Accepted", False, "UnsupportedValue", str(error))
        return [], refused, RESOLVED
    return placed, None, problems[0] if problems else RESOLVED


def _precedence(match: Match) -> tuple[int, int, bool, int, int]:
    return PATH_RANK[match.path_kind], -len(match.path), not match.method, -len(match.headers), -len(match.queries)


def _target(route: Object, ref: Object, world: GatewayWorld, found: Routes, problems: list[Condition]) -> Target:
    weight = ref.get("weight", 1)
    filters = filters_of(ref.get("filters") or ())
    route_kind, (namespace, _) = route_id(route)
    service = Key(str(ref.get("namespace") or namespace), str(ref.get("name", "")))
    group, kind = ref.get("group") or "", ref.get("kind") or "Service"

    def none(reason: str, message: str) -> Target:
        problems.append(Condition("ResolvedRefs", False, reason, message))
        return Target(weight, None, filters)

    if (group, kind) != ("", "Service"):
        return none(
            "InvalidKind", f"backendRef {'.'.join(filter(None, (kind, group)))} {service.name} is not a Service"
        )
    if not is_granted(world, (GROUP, route_kind, namespace), ("", "Service"), service):
        return none("RefNotPermitted", f"no ReferenceGrant lets this {route_kind} use Service {service}")
    found.services.add(service)
    if dig(world.service(*service), "spec", "type") == "ExternalName":
        return none("BackendNotFound", f"Service {service} is an ExternalName: routes do not lead out of the cluster")
    backend = backend_of(world, service, ref.get("port") or 0)
    if isinstance(backend, Problem):
        return none("BackendNotFound", backend.message)
    if route_kind == "GRPCRoute" and backend.protocol == "http":
        backend = replace(backend, protocol="h2c")
    return Target(weight, backend, filters)


# Hosts


def covers(pattern: str, host: str) -> bool:
    """Whether a host, or a wildcard, is of those that a wildcard or "" means, and not the same."""
    if not pattern:
        return bool(host)
    return pattern.startswith("*.") and host != pattern and host.endswith(pattern[1:])


def intersection(one: str, other: str) -> str | None:
    """What both mean; None where there is no such host."""
    if one == other or covers(one, other):
        return other
    return one if covers(other, one) else None


def _belongs_elsewhere(host: str, listener: Listener, at_port: Iterable[Listener]) -> bool:
    """Whether a more specific listener of the port has that host."""
    return any(
        covers(listener.hostname, other.hostname) and (host == other.hostname or covers(other.hostname, host))
        for other in at_port
    )


def host_order(pattern: str) -> tuple[bool, int, str]:
    """Exact hosts first, then the longer wildcards, then every host."""
    inexact = not pattern or pattern.startswith("*.")
    return inexact, -len(pattern) if inexact else 0, pattern


def _site(port: int, addresses: tuple[str, ...], at_port: list[Listener], hosts: Mapping[str, list[_Placed]]) -> Site:
    owned = {listener.hostname for listener in at_port if listener.hostname}
    patterns = sorted(owned | set(hosts), key=host_order)
    certificates: dict[str, tuple[Key, ...]] = {}
    for listener in at_port:
        if listener.certificates:
            have = certificates.get(listener.hostname, ())
            certificates[listener.hostname] = tuple(dict.fromkeys((*have, *listener.certificates)))
    return Site(
        port,
        addresses,
        at_port[0].protocol,
        tuple(
            VirtualHost(
                pattern,
                tuple(each.rule for each in sorted(hosts.get(pattern, ()), key=lambda each: each.order)),
                pattern in owned,
            )
            for pattern in patterns
        ),
        tuple(sorted({listener.hostname for listener in at_port}, key=host_order)),
        tuple(sorted(certificates.items(), key=lambda item: host_order(item[0]))),
    )
