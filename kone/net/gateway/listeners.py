"""Gateways and their listeners: pure, what each asks for, whether it can have it, and who may attach to it.

The words, reasons and rules are the Gateway API's (v1). Beyond that kone says: a Gateway has addresses of its
own where the load balancer has a pool; else all share the node's, and listeners of several Gateways with the same port
and host are one for clients. A port has one protocol, that of the oldest Gateway (the ports of Ingress have theirs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Key, Object, dig, key_of, metadata, name_of
from kone.apimachinery.selectors import from_label_selector
from kone.net.ingress.rules import Certificate, Problem, World

GROUP = "gateway.networking.k8s.io"
CONTROLLER = "kone.dev/gateway-controller"
GATEWAYCLASSES = GVR(GROUP, "v1", "gatewayclasses")
GATEWAYS = GVR(GROUP, "v1", "gateways")
HTTPROUTES = GVR(GROUP, "v1", "httproutes")
GRPCROUTES = GVR(GROUP, "v1", "grpcroutes")
ROUTE_KINDS = ((GROUP, "HTTPRoute"), (GROUP, "GRPCRoute"))
PROTOCOLS = ("HTTP", "HTTPS")


class Condition(NamedTuple):
    """A condition without what depends on when it is written."""

    type: str
    status: bool
    reason: str
    message: str


RESOLVED = Condition("ResolvedRefs", True, "ResolvedRefs", "all references are resolved")


class GatewayWorld(World, Protocol):
    """The objects that Gateways and their routes speak of."""

    def namespace_labels(self, namespace: str) -> Mapping[str, str]: ...

    def grants(self, namespace: str) -> Iterable[Object]:
        """The ReferenceGrants of a namespace."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One listener. `conditions` are all but Programmed, which is known when it is served."""

    gateway: Key
    name: str
    port: int
    protocol: str
    hostname: str = ""  # "" is every host, "*.example.com" each host below
    from_namespaces: str = "Same"
    selector: Object | None = None
    kinds: tuple[tuple[str, str], ...] = ROUTE_KINDS
    certificates: tuple[Key, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @property
    def serves(self) -> bool:
        """Whether requests can come to it: nothing about it is wrong, but that it may also name kinds unknown here."""
        return not self.wrong

    @property
    def accepted(self) -> bool:
        return all(condition.status for condition in self.conditions if condition.type == "Accepted")

    @property
    def wrong(self) -> str:
        """What keeps it from serving; "" where nothing does."""
        for condition in self.conditions:
            if condition.type == "Conflicted":
                bad = condition.status
            elif condition.reason == "InvalidRouteKinds":
                bad = not self.kinds
            else:
                bad = not condition.status
            if bad:
                return condition.message
        return ""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A Gateway of ours. `addresses` are its own, () where it shares the node's; `address_problem`: why it has none."""

    obj: Object
    listeners: tuple[Listener, ...] = ()
    addresses: tuple[str, ...] = ()
    address_problem: Condition | None = None

    @property
    def key(self) -> Key:
        return key_of(self.obj)


@dataclass(slots=True)
class Listeners:
    """All Gateways of ours, oldest first, and what they speak of."""

    gateways: dict[Key, Gateway] = field(default_factory=dict)
    certificates: dict[Key, Certificate] = field(default_factory=dict)
    secrets: set[Key] = field(default_factory=set)  # that are spoken of, whether they exist or not

    def all(self) -> Iterator[Listener]:
        for gateway in self.gateways.values():
            yield from gateway.listeners

    def ports(self) -> dict[int, str]:
        """The ports that serve, with their protocols."""
        return {each.port: each.protocol for each in self.all() if each.serves}


def is_ours(gateway_class: Object) -> bool:
    return bool(dig(gateway_class, "spec", "controllerName") == CONTROLLER)


def class_condition(gateway_class: Object) -> Condition:
    if dig(gateway_class, "spec", "parametersRef") is not None:
        return Condition("Accepted", False, "InvalidParameters", "kone's GatewayClasses have no parameters")
    return Condition("Accepted", True, "Accepted", "served by this node")


def listeners_of(
    gateways: Iterable[Object],
    classes: Iterable[Object],
    world: GatewayWorld,
    *,
    node_ips: Sequence[str],
    taken: Mapping[int, str],
    unusable: Mapping[int, str],
    given: Callable[[Key], Sequence[str]] | None = None,
) -> Listeners:
    """The Gateways whose class is ours and accepted.

    `taken` are protocols of ports by others of this node, `unusable` says why a port cannot be had. `given` tells a
    Gateway's own addresses; None where all share the node's.
    """
    mine = {name_of(c) for c in classes if is_ours(c) and class_condition(c).status}
    protocols = dict(taken)
    found = Listeners()
    asked = [g for g in gateways if dig(g, "spec", "gatewayClassName") in mine]
    for obj in sorted(asked, key=lambda g: (metadata(g).get("creationTimestamp", ""), key_of(g))):
        seen: set[tuple[int, str]] = set()
        listeners = []
        for spec in dig(obj, "spec", "listeners", default=()):
            listener = _listener(key_of(obj), spec, world, found)
            conditions = dict.fromkeys(listener.conditions)
            conditions |= dict.fromkeys(_port_conditions(listener, protocols, seen, unusable))
            listeners.append(_with(listener, tuple(conditions)))
        own = given(key_of(obj)) if given is not None else ()
        problem = _address_problem(obj, own if given is not None else node_ips)
        found.gateways[key_of(obj)] = Gateway(obj, tuple(listeners), tuple(own), problem)
    return found


def _with(listener: Listener, conditions: tuple[Condition, ...]) -> Listener:
    """Accepted only where nothing said why not."""
    if not any(condition.type == "Accepted" for condition in conditions):
        conditions = (Condition("Accepted", True, "Accepted", "the listener is accepted"), *conditions)
    return replace(listener, conditions=conditions)


def _listener(gateway: Key, spec: Object, world: GatewayWorld, found: Listeners) -> Listener:
    protocol = str(spec.get("protocol", ""))
    supported = protocol in PROTOCOLS
    kinds, refs = _kinds(spec) if supported else ((), None)
    certificates: tuple[Key, ...] = ()
    if protocol == "HTTPS":
        certificates, problem = _certificates(gateway, spec, world, found)
        refs = problem or refs
    conditions = [refs or RESOLVED]
    if not supported:
        message = f"protocol {protocol} is not one of {', '.join(PROTOCOLS)}"
        conditions.append(Condition("Accepted", False, "UnsupportedProtocol", message))
    elif protocol == "HTTPS" and dig(spec, "tls", "mode", default="Terminate") != "Terminate":
        message = "an HTTPS listener terminates TLS: mode Passthrough is not served"
        conditions.append(Condition("Accepted", False, "UnsupportedValue", message))
    namespaces = dig(spec, "allowedRoutes", "namespaces", default={})
    return Listener(
        gateway,
        str(spec.get("name", "")),
        int(spec.get("port", 0)),
        protocol,
        str(spec.get("hostname") or "").lower(),
        str(namespaces.get("from") or "Same"),
        namespaces.get("selector"),
        kinds,
        certificates,
        tuple(conditions),
    )


def _kinds(spec: Object) -> tuple[tuple[tuple[str, str], ...], Condition | None]:
    """The kinds of routes that may attach, and what is wrong where others are named."""
    asked = dig(spec, "allowedRoutes", "kinds", default=())
    if not asked:
        return ROUTE_KINDS, None
    named = [(kind.get("group", GROUP), str(kind.get("kind", ""))) for kind in asked]
    unknown = [f"{kind}.{group}" for group, kind in named if (group, kind) not in ROUTE_KINDS]
    known = tuple(kind for kind in ROUTE_KINDS if kind in named)
    if not unknown:
        return known, None
    return known, Condition("ResolvedRefs", False, "InvalidRouteKinds", f"not served: {', '.join(unknown)}")


def _certificates(
    gateway: Key, spec: Object, world: GatewayWorld, found: Listeners
) -> tuple[tuple[Key, ...], Condition | None]:
    def invalid(message: str, reason: str = "InvalidCertificateRef") -> tuple[tuple[Key, ...], Condition]:
        return (), Condition("ResolvedRefs", False, reason, message)

    refs = dig(spec, "tls", "certificateRefs", default=())
    if not refs:
        return invalid("an HTTPS listener needs certificateRefs")
    secrets: list[Key] = []
    for ref in refs:
        group, kind = ref.get("group") or "", ref.get("kind") or "Secret"
        secret = Key(str(ref.get("namespace") or gateway.namespace), str(ref.get("name", "")))
        if (group, kind) != ("", "Secret"):
            return invalid(f"certificateRef {kind}.{group} {secret.name} is not a Secret".replace(". ", " "))
        if not is_granted(world, (GROUP, "Gateway", gateway.namespace), ("", "Secret"), secret):
            return invalid(f"no ReferenceGrant lets this Gateway use Secret {secret}", "RefNotPermitted")
        found.secrets.add(secret)
        held = world.certificate(secret)
        if isinstance(held, Problem):
            return invalid(held.message)
        found.certificates[secret] = held
        secrets.append(secret)
    return tuple(secrets), None


def _port_conditions(
    listener: Listener, protocols: dict[int, str], seen: set[tuple[int, str]], unusable: Mapping[int, str]
) -> Iterable[Condition]:
    """Whether the port can be had with that protocol; the first who asks has it."""
    if listener.protocol not in PROTOCOLS:
        yield Condition("Conflicted", False, "NoConflicts", "no conflicts")
        return
    where = (listener.port, listener.hostname)
    protocol = protocols.setdefault(listener.port, listener.protocol)
    if protocol != listener.protocol:
        message = f"port {listener.port} is served with {protocol} already"
        yield Condition("Conflicted", True, "ProtocolConflict", message)
        yield Condition("Accepted", False, "ProtocolConflict", message)
    elif where in seen:
        message = f"another listener of this Gateway has port {listener.port} and host {listener.hostname or '*'}"
        yield Condition("Conflicted", True, "HostnameConflict", message)
        yield Condition("Accepted", False, "HostnameConflict", message)
    else:
        seen.add(where)
        yield Condition("Conflicted", False, "NoConflicts", "no conflicts")
        if listener.port in unusable:
            yield Condition("Accepted", False, "PortUnavailable", unusable[listener.port])


def _address_problem(gateway: Object, have: Sequence[str]) -> Condition | None:
    for address in dig(gateway, "spec", "addresses", default=()):
        kind, value = address.get("type", "IPAddress"), address.get("value") or ""
        if kind != "IPAddress":
            return Condition("Accepted", False, "UnsupportedAddress", f"addresses of type {kind} are not served")
        if value and value not in have:
            return Condition("Programmed", False, "AddressNotUsable", f"{value} is not an address that can be had here")
    if not have:
        return Condition("Programmed", False, "AddressNotAssigned", "no address has been given yet")
    return None


def is_granted(world: GatewayWorld, by: tuple[str, str, str], to: tuple[str, str], target: Key) -> bool:
    """Whether (group, kind, namespace) may refer to an object of (group, kind) at `target`."""
    group, kind, namespace = by
    if namespace == target.namespace:
        return True
    for grant in world.grants(target.namespace):
        spec = grant.get("spec") or {}
        allowed = any(
            (f.get("group", ""), f.get("kind"), f.get("namespace")) == (group, kind, namespace)
            for f in spec.get("from") or ()
        )
        if allowed and any(
            (t.get("group", ""), t.get("kind")) == to and t.get("name") in (None, "", target.name)
            for t in spec.get("to") or ()
        ):
            return True
    return False


def lets_in(listener: Listener, kind: str, namespace: str, world: GatewayWorld) -> bool:
    """Whether routes of that kind and namespace may attach."""
    if (GROUP, kind) not in listener.kinds:
        return False
    match listener.from_namespaces:
        case "All":
            return True
        case "Selector":
            try:
                return from_label_selector(listener.selector).matches(world.namespace_labels(namespace))
            except ValueError:  # no CRD knows all of a selector's rules
                return False
        case "Same":
            return namespace == listener.gateway.namespace
        case _:
            return False
