"""Which routes attach to which listeners and in what order their rules are tried: the Gateway API's rules as tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from kone.apimachinery.names import is_dns1035_label
from kone.apimachinery.objects import Key, Object, namespace_of
from kone.net.gateway.caddy_config import below, part_of
from kone.net.gateway.controller import service_for, service_name
from kone.net.gateway.listeners import Condition, Listeners, class_condition, listeners_of
from kone.net.gateway.routes import Routes, intersection, routes_of
from kone.net.gateway.status import conditions_of, gateway_status, route_parents
from kone.net.service_map import is_proxied
from tests.net.objects import (
    backend_ref,
    gateway,
    gateway_class,
    http_route,
    listener,
    path_match,
    reference_grant,
)
from tests.net.test_ingress_rules import Objects, web

NODE = ["192.0.2.2"]


class GatewayObjects(Objects):
    """A GatewayWorld of lists; the namespace "team" is labelled tier=front."""

    grant_list: tuple[Object, ...] = ()

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        return {"tier": "front"} if namespace == "team" else {}

    def grants(self, namespace: str) -> Iterable[Object]:
        return [grant for grant in self.grant_list if namespace_of(grant) == namespace]


def world(*grants: Object, secrets: Iterable[str] = ("default/cert",)) -> GatewayObjects:
    pairs = [web(), web("api", "10.244.0.6")]
    made = GatewayObjects([s for s, _ in pairs], [s for _, s in pairs], secrets)
    made.grant_list = grants
    return made


def look(
    gateways: Iterable[Object], routes: Iterable[Object] = (), *grants: Object, **more: Any
) -> tuple[Listeners, Routes]:
    of = world(*grants)
    options: dict[str, Any] = {"node_ips": NODE, "taken": {80: "HTTP", 443: "HTTPS"}, "unusable": {}} | more
    listeners = listeners_of(gateways, [gateway_class()], of, **options)
    return listeners, routes_of(routes, listeners, of)


def accepted(routes: Routes, name: str, namespace: str = "default", kind: str = "HTTPRoute") -> list[str]:
    """Reasons of Accepted, one a parent."""
    return [parent.conditions[0].reason for parent in routes.parents.get((kind, Key(namespace, name)), ())]


def resolved(routes: Routes, name: str, namespace: str = "default") -> str:
    return routes.parents["HTTPRoute", Key(namespace, name)][0].conditions[1].reason


def hosts(routes: Routes, port: int = 80) -> dict[str, list[str]]:
    """Host -> paths in the order in which they are tried."""
    (site,) = [site for site in routes.sites if site.port == port]
    return {host.pattern: [rule.match.path for rule in host.rules] for host in site.hosts}


# Gateways and listeners


def reasons(found: Listeners, name: str = "gw", namespace: str = "default") -> dict[str, dict[str, tuple[bool, str]]]:
    return {
        each.name: {c.type: (c.status, c.reason) for c in each.conditions}
        for each in found.gateways[Key(namespace, name)].listeners
    }


def test_only_gateways_of_a_class_of_ours_are_served() -> None:
    found, _ = look([gateway("gw"), gateway("other", gateway_class="nginx")])
    assert list(found.gateways) == [Key("default", "gw")]
    assert not class_condition(gateway_class(parametersRef={"kind": "ConfigMap"})).status


LISTENERS: list[tuple[str, Object, tuple[str, bool, str]]] = [
    ("http", listener(), ("Accepted", True, "Accepted")),
    ("unknown protocol", listener(protocol="TCP"), ("Accepted", False, "UnsupportedProtocol")),
    ("certificate", listener(port=443, secret="cert"), ("ResolvedRefs", True, "ResolvedRefs")),
    ("no such Secret", listener(port=443, secret="gone"), ("ResolvedRefs", False, "InvalidCertificateRef")),
    ("no certificate", listener(port=443, protocol="HTTPS"), ("ResolvedRefs", False, "InvalidCertificateRef")),
    (
        "not a Secret",
        listener(port=443, protocol="HTTPS", tls={"certificateRefs": [{"kind": "ConfigMap", "name": "cert"}]}),
        ("ResolvedRefs", False, "InvalidCertificateRef"),
    ),
    (
        "Secret elsewhere",
        listener(port=443, protocol="HTTPS", tls={"certificateRefs": [{"name": "cert", "namespace": "team"}]}),
        ("ResolvedRefs", False, "RefNotPermitted"),
    ),
    (
        "passthrough",
        listener(port=443, secret="cert", tls={"mode": "Passthrough"}),
        ("Accepted", False, "UnsupportedValue"),
    ),
    (
        "other kinds of routes",
        listener(allowedRoutes={"kinds": [{"kind": "TCPRoute"}, {"kind": "HTTPRoute"}]}),
        ("ResolvedRefs", False, "InvalidRouteKinds"),
    ),
    ("another protocol's port", listener(port=443), ("Conflicted", True, "ProtocolConflict")),
    ("port in use", listener(port=8080), ("Accepted", False, "PortUnavailable")),
]


@pytest.mark.parametrize(("spec", "expected"), [case[1:] for case in LISTENERS], ids=[case[0] for case in LISTENERS])
def test_a_listener_says_whether_it_can_have_what_it_asks_for(spec: Object, expected: tuple[str, bool, str]) -> None:
    found, _ = look([gateway("gw", spec)], unusable={8080: "port 8080 is in use"})
    assert reasons(found)[spec["name"]][expected[0]] == expected[1:]


def test_the_oldest_gateway_has_a_ports_protocol_and_the_first_listener_a_host() -> None:
    old = gateway("old", listener("a", 8080), listener("b", 8080), created="2025-01-01T00:00:00Z")
    new = gateway("new", listener("a", 8080, secret="cert"))
    found, _ = look([new, old])
    assert reasons(found, "old")["b"]["Conflicted"] == (True, "HostnameConflict")
    assert reasons(found, "new")["a"]["Conflicted"] == (True, "ProtocolConflict")
    assert found.ports() == {8080: "HTTP"}


def test_a_secret_of_another_namespace_needs_a_grant() -> None:
    tls = {"certificateRefs": [{"name": "cert", "namespace": "default"}]}
    spec = listener(port=443, protocol="HTTPS", tls=tls)
    for to, permitted in (("", True), ("cert", True), ("other", False)):
        grant = reference_grant("g", "default", ("Gateway", "team"), "Secret", to)
        found, _ = look([gateway("gw", spec, namespace="team")], (), grant)
        reason = "ResolvedRefs" if permitted else "RefNotPermitted"
        assert reasons(found, namespace="team")["http"]["ResolvedRefs"] == (permitted, reason)


def test_addresses_that_the_node_has_not_are_refused() -> None:
    for value, reason in (("192.0.2.2", "Programmed"), ("", "Programmed"), ("203.0.113.9", "AddressNotUsable")):
        found, routes = look([gateway("gw", addresses=[{"type": "IPAddress", "value": value}])])
        status = gateway_status(found.gateways[Key("default", "gw")], routes, NODE, "", "now")
        assert {c["type"]: c["reason"] for c in status["conditions"]}["Programmed"] == reason


def test_a_gateway_with_an_address_of_its_own_is_apart_from_the_others() -> None:
    given = {"one": ["203.0.113.1"], "two": ["203.0.113.2"]}
    gateways = [gateway(name, listener()) for name in ("one", "two", "none")]
    routes = [http_route(name, (f"/{name}", "web"), parents=[name]) for name in ("one", "two", "none")]
    shared = http_route("both", ("/both", "web"), parents=["one", "two"])
    found, made = look(gateways, [*routes, shared], given=lambda key: given.get(key.name, ()))
    paths = {site.addresses: [rule.match.path for rule in site.hosts[0].rules] for site in made.sites}
    assert paths == {("203.0.113.1",): ["/both", "/one"], ("203.0.113.2",): ["/both", "/two"]}
    statuses = {key.name: gateway_status(each, made, NODE, "", "now") for key, each in found.gateways.items()}
    assert statuses["two"]["addresses"] == [{"type": "IPAddress", "value": "203.0.113.2"}]
    assert {c["type"]: c["reason"] for c in statuses["none"]["conditions"]}["Programmed"] == "AddressNotAssigned"


def test_a_gateways_service_has_its_name_as_far_as_names_of_services_allow() -> None:
    assert service_name("gw") == "gateway-gw"
    assert service_name("a" * 55) == "gateway-" + "a" * 55
    names = {service_name(name) for name in ("a" * 56, "a" * 57, "a.b", "a-b")}
    assert len(names) == 4
    assert all(is_dns1035_label(name) == [] for name in names)


def test_a_gateways_service_asks_for_what_its_listeners_need_and_goes_with_it() -> None:
    address = [{"type": "IPAddress", "value": "203.0.113.1"}]
    obj = gateway("gw", listener(), listener("b", 8080), listener("c", 9000, protocol="TCP"), addresses=address)
    obj["metadata"]["uid"] = "u"
    found, _ = look([obj])
    service = service_for(found.gateways[Key("default", "gw")])
    assert service is not None
    assert [port["port"] for port in service["spec"]["ports"]] == [80, 8080]
    assert service["spec"]["loadBalancerIP"] == "203.0.113.1"
    assert [(ref["kind"], ref["uid"]) for ref in service["metadata"]["ownerReferences"]] == [("Gateway", "u")]
    assert not is_proxied(service | {"spec": service["spec"] | {"clusterIP": "10.96.0.9"}})


# Attachment

ROUTES: list[tuple[str, Object, str]] = [
    ("any listener", http_route("r", ("/", "web")), "Accepted"),
    ("by section", http_route("r", parents=[{"name": "gw", "sectionName": "http"}]), "Accepted"),
    ("by port", http_route("r", parents=[{"name": "gw", "port": 80}]), "Accepted"),
    ("no such section", http_route("r", parents=[{"name": "gw", "sectionName": "gone"}]), "NoMatchingParent"),
    ("no such port", http_route("r", parents=[{"name": "gw", "port": 81}]), "NoMatchingParent"),
    (
        "section of another port",
        http_route("r", parents=[{"name": "gw", "sectionName": "http", "port": 8080}]),
        "NoMatchingParent",
    ),
    (
        "other namespace",
        http_route("r", parents=[{"name": "gw", "namespace": "default", "sectionName": "http"}], namespace="else"),
        "NotAllowedByListeners",
    ),
    (
        "selected namespace",
        http_route("r", parents=[{"name": "gw", "namespace": "default"}], namespace="team"),
        "Accepted",
    ),
    (
        "no host in common",
        http_route("r", parents=[{"name": "gw", "sectionName": "host"}], hosts=["b.org"]),
        "NoMatchingListenerHostname",
    ),
    (
        "a filter that is not served",
        http_route("r", {"filters": [{"type": "RequestMirror", "requestMirror": {}}]}),
        "UnsupportedValue",
    ),
    (
        "an expression that RE2 does not know",
        http_route("r", {"matches": [path_match("/(?=a)", "RegularExpression")]}),
        "UnsupportedValue",
    ),
]


@pytest.mark.parametrize(("route", "expected"), [case[1:] for case in ROUTES], ids=[case[0] for case in ROUTES])
def test_a_route_attaches_where_both_sides_allow_it(route: Object, expected: str) -> None:
    selected = {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"tier": "front"}}}}
    of = gateway(
        "gw",
        listener(),
        listener("host", 80, hostname="a.com"),
        listener("team", 8080, allowedRoutes=selected),
    )
    _, routes = look([of], [route])
    assert accepted(routes, "r", namespace_of(route)) == [expected]


def test_a_route_of_somebody_elses_gateway_is_not_ours_to_judge() -> None:
    _, routes = look([gateway("other", gateway_class="nginx")], [http_route("r", parents=["other"])])
    assert routes.parents == {}


def test_attached_routes_are_counted_by_listener_though_it_cannot_serve() -> None:
    of = gateway("gw", listener(), listener("tls", 443, secret="gone"))
    _, routes = look([of], [http_route("a", ("/", "web")), http_route("b", parents=[{"name": "gw", "port": 443}])])
    key = Key("default", "gw")
    assert routes.attached == {(key, "http"): 1, (key, "tls"): 2}
    assert [site.port for site in routes.sites] == [80]


HOSTS = [
    ("", "a.com", "a.com"),
    ("a.com", "", "a.com"),
    ("a.com", "a.com", "a.com"),
    ("*.com", "a.com", "a.com"),
    ("*.com", "b.a.com", "b.a.com"),
    ("*.a.com", "*.com", "*.a.com"),
    ("*.a.com", "a.com", None),
    ("a.com", "b.com", None),
]


@pytest.mark.parametrize(("one", "other", "expected"), HOSTS)
def test_the_hosts_of_a_route_are_those_that_its_listener_has_too(one: str, other: str, expected: str | None) -> None:
    assert intersection(one, other) == expected
    assert intersection(other, one) == expected


def test_a_host_belongs_to_its_most_specific_listener_only() -> None:
    of = gateway("gw", listener("all"), listener("wild", hostname="*.a.com"), listener("one", hostname="x.a.com"))
    everywhere = http_route("all", ("/all", "web"), parents=[{"name": "gw", "sectionName": "all"}])
    elsewhere = http_route(
        "hosts", ("/hosts", "web"), parents=[{"name": "gw", "sectionName": "all"}], hosts=["x.a.com", "*.b.com"]
    )
    wild = http_route("wild", ("/wild", "web"), parents=[{"name": "gw", "sectionName": "wild"}])
    _, routes = look([of], [everywhere, elsewhere, wild])
    assert hosts(routes) == {"x.a.com": [], "*.a.com": ["/wild"], "*.b.com": ["/hosts"], "": ["/all"]}
    assert [host.pattern for host in routes.sites[0].hosts if host.closed] == ["x.a.com", "*.a.com"]


# Precedence


def test_rules_are_tried_by_the_specifications_precedence() -> None:
    header, query = [{"name": "v", "value": "1"}], [{"name": "q", "value": "1"}]
    first = http_route(
        "b-old",
        {"matches": [path_match("/a")], "backendRefs": [backend_ref("web")]},
        created="2025-01-01T00:00:00Z",
    )
    second = http_route(
        "a-new",
        {"matches": [path_match("/a"), path_match("/a", headers=header)]},
        {"matches": [path_match("/a", queryParams=query), path_match("/a", method="GET")]},
        {"matches": [path_match("/a/b"), path_match("/a", "Exact"), path_match("/a/b/c", headers=header)]},
    )
    _, routes = look([gateway()], [second, first])
    (site,) = routes.sites
    found = [
        (r.match.path_kind, r.match.path, r.match.method, len(r.match.headers), len(r.match.queries), bool(r.targets))
        for r in site.hosts[0].rules
    ]
    assert found == [
        ("Exact", "/a", "", 0, 0, False),
        ("PathPrefix", "/a/b/c", "", 1, 0, False),
        ("PathPrefix", "/a/b", "", 0, 0, False),
        ("PathPrefix", "/a", "GET", 0, 0, False),
        ("PathPrefix", "/a", "", 1, 0, False),
        ("PathPrefix", "/a", "", 0, 1, False),
        ("PathPrefix", "/a", "", 0, 0, True),
        ("PathPrefix", "/a", "", 0, 0, False),
    ]


CALLS: list[tuple[Object, tuple[str, str]]] = [
    ({"service": "s.S", "method": "M"}, ("Exact", "/s.S/M")),
    ({"service": "s.S"}, ("PathPrefix", "/s.S")),
    ({"method": "M"}, ("RegularExpression", "/[^/]+/M")),
    ({"type": "RegularExpression", "service": "s.*", "method": "M"}, ("RegularExpression", "/(?:s.*)/(?:M)")),
    ({}, ("PathPrefix", "")),
]


@pytest.mark.parametrize(("method", "expected"), CALLS)
def test_a_call_of_grpc_is_a_request_for_its_service_and_method(method: Object, expected: tuple[str, str]) -> None:
    route = http_route("r", {"matches": [{"method": method}], "backendRefs": [backend_ref("web"), backend_ref("gone")]})
    _, routes = look([gateway()], [route | {"kind": "GRPCRoute"}])
    assert accepted(routes, "r", kind="GRPCRoute") == ["Accepted"]
    (rule,) = routes.sites[0].hosts[0].rules
    assert (rule.match.path_kind, rule.match.path) == expected
    assert [target.backend.protocol if target.backend else rule.refusal for target in rule.targets] == ["h2c", 503]


def test_a_listener_may_let_in_one_kind_of_routes_only() -> None:
    only = listener(allowedRoutes={"kinds": [{"kind": "GRPCRoute"}]})
    route = http_route("r", {"backendRefs": [backend_ref("web")]})
    _, routes = look([gateway("gw", only)], [route, route | {"kind": "GRPCRoute"}])
    assert accepted(routes, "r") == ["NotAllowedByListeners"]
    assert accepted(routes, "r", kind="GRPCRoute") == ["Accepted"]


# Backends

BACKENDS = [
    (backend_ref("web"), "ResolvedRefs"),
    (backend_ref("gone"), "BackendNotFound"),
    (backend_ref("web", port=81), "BackendNotFound"),
    (backend_ref("web", kind="Bucket", group="x.io"), "InvalidKind"),
    (backend_ref("web", namespace="team"), "RefNotPermitted"),
]


@pytest.mark.parametrize(("ref", "expected"), BACKENDS)
def test_a_backend_that_cannot_be_had_is_said_and_answers_500(ref: Object, expected: str) -> None:
    _, routes = look([gateway()], [http_route("r", {"backendRefs": [ref]})])
    assert resolved(routes, "r") == expected
    assert accepted(routes, "r") == ["Accepted"]
    (target,) = routes.sites[0].hosts[0].rules[0].targets
    assert (target.backend is None) == (expected != "ResolvedRefs")


def test_a_grant_lets_routes_use_the_services_of_another_namespace() -> None:
    grant = reference_grant("g", "default", ("HTTPRoute", "team"), "Service")
    route = http_route(
        "r",
        {"backendRefs": [backend_ref("web", namespace="default")]},
        parents=[{"name": "gw", "namespace": "default"}],
        namespace="team",
    )
    _, routes = look([gateway("gw", listener(routes="All"))], [route], grant)
    assert resolved(routes, "r", "team") == "ResolvedRefs"
    assert routes.services == {Key("default", "web")}


@pytest.mark.parametrize("limit", [0, 1, 0x7FFF, 0x8000, 0xB333, 0xFFFF, 0x10000])
def test_a_share_of_the_random_numbers_is_what_a_weight_asks_for(limit: int) -> None:
    pattern = re.compile(below(limit))
    edge = list(range(max(limit - 20, 0), min(limit + 20, 0x10000)))
    for number in [*range(0, 0x10000, 97), *edge]:
        assert bool(pattern.match(f"{number:04x}")) == (number < limit)


def test_a_rule_without_weights_that_count_answers_500() -> None:
    _, routes = look([gateway()], [http_route("r", {"backendRefs": [backend_ref("web", weight=0)]})])
    (host,) = part_of(routes.sites[0]).hosts
    assert [handler["status_code"] for handler in host[1][0]["handle"]] == [500]


# Redirects

REDIRECTS: list[tuple[Object, int, str]] = [
    ({}, 80, "http://{http.request.host}{http.request.uri}"),
    ({}, 8080, "http://{http.request.host}:8080{http.request.uri}"),
    ({"scheme": "https"}, 8080, "https://{http.request.host}{http.request.uri}"),
    ({"scheme": "https", "port": 8443}, 80, "https://{http.request.host}:8443{http.request.uri}"),
    ({"scheme": "https", "port": 443}, 80, "https://{http.request.host}{http.request.uri}"),
    ({"hostname": "b.org"}, 80, "http://b.org{http.request.uri}"),
    ({"port": 80}, 8080, "http://{http.request.host}{http.request.uri}"),
]


@pytest.mark.parametrize(("spec", "port", "expected"), REDIRECTS)
def test_a_redirect_leaves_out_a_port_that_goes_without_saying(spec: Object, port: int, expected: str) -> None:
    rule = {"filters": [{"type": "RequestRedirect", "requestRedirect": spec}]}
    _, routes = look([gateway("gw", listener(port=port))], [http_route("r", rule)])
    (host,) = part_of(routes.sites[0]).hosts
    (handler,) = host[1][0]["handle"]
    assert handler["headers"]["Location"] == [expected]


# Status


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    old = [
        {"type": "Accepted", "status": "True", "reason": "Old", "lastTransitionTime": "then"},
        {"type": "Programmed", "status": "False", "reason": "Pending", "lastTransitionTime": "then"},
        {"type": "Theirs", "status": "True"},
    ]
    made = conditions_of(
        old, [Condition("Accepted", True, "New", ""), Condition("Programmed", True, "Yes", "")], 3, "now"
    )
    assert [(c["type"], c.get("lastTransitionTime"), c.get("observedGeneration")) for c in made] == [
        ("Theirs", None, None),
        ("Accepted", "then", 3),
        ("Programmed", "now", 3),
    ]


def test_a_gateway_is_accepted_while_one_of_its_listeners_is() -> None:
    for specs, status in (
        ([listener()], ("True", "Accepted", "True", "Programmed")),
        ([listener(), listener("t", 9000, protocol="TCP")], ("True", "ListenersNotValid", "True", "Programmed")),
        ([listener("t", 9000, protocol="TCP")], ("False", "ListenersNotValid", "False", "Invalid")),
    ):
        found, routes = look([gateway("gw", *specs)])
        made = gateway_status(found.gateways[Key("default", "gw")], routes, NODE, "", "now")
        conditions = {c["type"]: c for c in made["conditions"]}
        accepted, programmed = conditions["Accepted"], conditions["Programmed"]
        assert (accepted["status"], accepted["reason"], programmed["status"], programmed["reason"]) == status
        assert made["addresses"] == [{"type": "IPAddress", "value": "192.0.2.2"}]


def test_what_others_say_of_a_route_stays() -> None:
    theirs = {"parentRef": {"name": "other"}, "controllerName": "x.io/c", "conditions": []}
    ours = {"parentRef": {"name": "gone"}, "controllerName": "kone.dev/gateway-controller", "conditions": []}
    route = http_route("r", ("/", "web")) | {"status": {"parents": [ours, theirs]}}
    _, routes = look([gateway()], [route])
    made = route_parents(route, routes.parents["HTTPRoute", Key("default", "r")], "now")
    assert [parent["parentRef"]["name"] for parent in made] == ["other", "gw"]
