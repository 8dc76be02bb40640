"""What Ingresses ask for, as tables: upstream's precedence, and what is said about what cannot be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from kone.apimachinery.objects import Key, Object, dig, name_of, namespace_of
from kone.net.ingress.rules import (
    CONTROLLER,
    Backend,
    Certificate,
    Finding,
    Path,
    Problem,
    Rules,
    host_matches,
    is_served,
    rules_of,
)
from tests.net.objects import endpoint, endpoint_slice, ingress, service

CERTIFICATE = Certificate("chain", "key")


class Objects:
    """A World of lists; Secrets are those named here."""

    def __init__(
        self, services: Iterable[Object] = (), slices: Iterable[Object] = (), secrets: Iterable[str] = ()
    ) -> None:
        self._services = {Key(namespace_of(s), name_of(s)): s for s in services}
        self._slices = list(slices)
        self._secrets = set(secrets)

    def service(self, namespace: str, name: str) -> Object | None:
        return self._services.get(Key(namespace, name))

    def slices(self, namespace: str, service: str) -> Iterable[Object]:
        label = ("metadata", "labels", "kubernetes.io/service-name")
        return [s for s in self._slices if namespace_of(s) == namespace and dig(s, *label) == service]

    def certificate(self, secret: Key) -> Certificate | Problem:
        found = str(secret) in self._secrets
        return CERTIFICATE if found else Problem("SecretNotFound", f"Secret {secret} does not exist")


def web(name: str = "web", address: str = "10.244.0.5", **port: Any) -> tuple[Object, Object]:
    made = service(name)
    made["spec"]["ports"] = [{"name": "http", "port": 80, "protocol": "TCP"} | port]
    return made, endpoint_slice(name, endpoint(address))


def world(*pairs: tuple[Object, Object], secrets: Iterable[str] = ()) -> Objects:
    pairs = pairs or (web(), web("api", "10.244.0.6"))
    return Objects([s for s, _ in pairs], [s for _, s in pairs], secrets)


WEB, API = Backend(("10.244.0.5:8080",)), Backend(("10.244.0.6:8080",))


def backends(rules: Rules, host: str = "") -> dict[str, Backend]:
    """ "Prefix /a" -> backend of one host, in order."""
    (found,) = [h for h in rules.hosts if h.name == host]
    return {f"{path.kind} {path.path}": path.backend for path in found.paths}


def reasons(rules: Rules) -> list[tuple[str, str]]:
    return [(str(finding.about), finding.reason) for finding in rules.findings]


def test_paths_go_exact_first_then_the_longest_prefix() -> None:
    paths = [
        ("/", "Prefix"),
        ("/a", "Prefix"),
        ("/a/b/c", "Prefix"),
        ("/a", "Exact"),
        ("/a/b", "ImplementationSpecific"),
    ]
    rules = rules_of([ingress("one", [("", path, kind, "web") for path, kind in paths])], world())
    assert list(backends(rules)) == ["Exact /a", "Prefix /a/b/c", "Prefix /a/b", "Prefix /a", "Prefix "]


def test_hosts_go_exact_first_then_the_longest_wildcard_then_every_host() -> None:
    hosts = ["", "*.com", "b.com", "*.a.b.com", "a.b.com"]
    rules = rules_of([ingress("one", [(host, "/", "Prefix", "web") for host in hosts])], world())
    assert [host.name for host in rules.hosts] == ["a.b.com", "b.com", "*.a.b.com", "*.com", ""]


def test_a_prefix_is_the_same_with_and_without_its_slash_and_an_exact_path_is_not() -> None:
    asked = [("", "/a/", "Prefix", "web"), ("", "/b/", "Exact", "web"), ("", "", "ImplementationSpecific", "api")]
    assert list(backends(rules_of([ingress("one", asked)], world()))) == ["Exact /b/", "Prefix /a", "Prefix "]


def test_of_two_ingresses_that_want_the_same_path_the_older_has_it_and_the_other_is_told() -> None:
    younger = ingress("a", [("x.com", "/p/", "Prefix", "api")], created="2026-01-02T00:00:00Z")
    older = ingress("b", [("x.com", "/p", "Prefix", "web")], created="2026-01-01T00:00:00Z")
    rules = rules_of([younger, older], world())
    assert backends(rules, "x.com") == {"Prefix /p": WEB}
    text = "host x.com path /p/ (Prefix) is served by Ingress default/b already"
    assert rules.findings == (Finding(Key("default", "a"), "Conflict", text),)


def test_ingresses_of_several_namespaces_share_a_host() -> None:
    service_there, slice_there = service("web", "shop"), endpoint_slice("web", endpoint("10.244.9.9"), namespace="shop")
    here = world(web(), (service_there, slice_there))
    both = [
        ingress("one", [("x.com", "/", "Prefix", "web")]),
        ingress("one", [("x.com", "/shop", "Prefix", "web")], namespace="shop"),
    ]
    assert backends(rules_of(both, here), "x.com") == {"Prefix /shop": Backend(("10.244.9.9:8080",)), "Prefix ": WEB}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"number": 80}, ("10.244.0.5:8080",)),
        ({"name": "http"}, ("10.244.0.5:8080",)),
        ({"number": 81}, "default/web has no port 81"),
        ({"name": "other"}, "default/web has no port other"),
    ],
)
def test_a_backends_port_is_the_services_by_number_or_name(spec: Object, expected: Any) -> None:
    asked = ingress("one", [("", "/", "Prefix", {"service": {"name": "web", "port": spec}})])
    rules = rules_of([asked], world())
    if isinstance(expected, tuple):
        assert backends(rules)["Prefix "].dials == expected
        assert not rules.findings
    else:
        assert backends(rules)["Prefix "].dials == ()
        assert rules.findings == (Finding(Key("default", "one"), "ServicePortNotFound", f"Service {expected}"),)


def test_a_missing_service_is_said_and_answers_for_its_path_until_it_comes() -> None:
    asked = ingress("one", [("", "/gone", "Prefix", "gone"), ("", "/", "Prefix", "web")])
    rules = rules_of([asked], world())
    assert backends(rules) == {"Prefix /gone": Backend(), "Prefix ": WEB}
    assert rules.findings == (Finding(Key("default", "one"), "ServiceNotFound", "Service default/gone does not exist"),)
    assert Key("default", "gone") in rules.services


def test_a_resource_backend_is_said_to_be_unsupported() -> None:
    resource = {"resource": {"apiGroup": "storage.example.com", "kind": "Bucket", "name": "static"}}
    rules = rules_of([ingress("one", [("", "/", "Prefix", resource)])], world())
    assert reasons(rules) == [("default/one", "UnsupportedBackend")]
    assert "Bucket.storage.example.com static" in rules.findings[0].message


def test_only_ready_endpoints_and_draining_ones_where_none_is_ready() -> None:
    made = service("web")
    some = endpoint_slice("web", endpoint("10.0.0.1", ready=False), endpoint("10.0.0.2"))
    none = endpoint_slice(
        "web", endpoint("10.0.0.1", ready=False, serving=True, terminating=True), endpoint("10.0.0.2", ready=False)
    )
    asked = [ingress("one", [("", "/", "Prefix", "web")])]
    assert backends(rules_of(asked, Objects([made], [some])))["Prefix "].dials == ("10.0.0.2:8080",)
    assert backends(rules_of(asked, Objects([made], [none])))["Prefix "].dials == ("10.0.0.1:8080",)


def test_of_a_dual_stack_service_one_familys_endpoints_are_used() -> None:
    slices = [
        endpoint_slice("web", endpoint("fd00::5"), family="IPv6", name="six"),
        endpoint_slice("web", endpoint("10.0.0.5")),
    ]
    asked = [ingress("one", [("", "/", "Prefix", "web")])]
    assert backends(rules_of(asked, Objects([service("web")], slices)))["Prefix "].dials == ("10.0.0.5:8080",)
    assert backends(rules_of(asked, Objects([service("web")], slices[:1])))["Prefix "].dials == ("[fd00::5]:8080",)


@pytest.mark.parametrize(
    ("app_protocol", "expected"),
    [
        ("", "http"),
        ("http", "http"),
        ("kubernetes.io/ws", "http"),
        ("kubernetes.io/h2c", "h2c"),
        ("grpc", "h2c"),
        ("https", "https"),
        ("kubernetes.io/wss", "https"),
    ],
)
def test_the_application_protocol_says_how_to_speak_to_endpoints(app_protocol: str, expected: str) -> None:
    here = world(web(appProtocol=app_protocol))
    assert backends(rules_of([ingress("one", [("", "/", "Prefix", "web")])], here))["Prefix "].protocol == expected


def test_an_external_name_is_gone_to_by_its_name() -> None:
    here = Objects([service("far", type="ExternalName", externalName="far.example.com.", ports=[])])
    asked = ingress("one", [("", "/", "Prefix", {"service": {"name": "far", "port": {"number": 8443}}})])
    assert backends(rules_of([asked], here))["Prefix "].dials == ("far.example.com:8443",)


def test_a_services_session_affinity_holds() -> None:
    made, its_slice = web()
    made["spec"]["sessionAffinity"] = "ClientIP"
    rules = rules_of([ingress("one", [("", "/", "Prefix", "web")])], Objects([made], [its_slice]))
    assert backends(rules)["Prefix "].sticky


# Default backends


def test_a_default_backend_has_its_own_hosts_other_paths_and_what_no_host_matches() -> None:
    rules = rules_of([ingress("one", [("x.com", "/a", "Prefix", "web")], default="api")], world())
    (host,) = rules.hosts
    assert host.default == Path("Prefix", "", API)
    assert rules.default == Path("Prefix", "", API)


def test_an_ingress_with_nothing_but_a_default_backend_goes_before_one_with_rules() -> None:
    older = ingress("one", [("x.com", "/a", "Prefix", "web")], default="web", created="2026-01-01T00:00:00Z")
    alone = ingress("two", default="api", created="2026-01-02T00:00:00Z")
    late = ingress("three", default="web", created="2026-01-03T00:00:00Z")
    rules = rules_of([older, alone, late], world())
    assert rules.default == Path("Prefix", "", API)
    assert [host.default for host in rules.hosts] == [Path("Prefix", "", WEB)]
    text = "the default backend is that of Ingress default/two already"
    assert rules.findings == (Finding(Key("default", "three"), "Conflict", text),)


# TLS


def test_a_secret_serves_its_hosts_and_they_answer_plain_http_by_a_redirect() -> None:
    asked = ingress(
        "one", [("x.com", "/", "Prefix", "web"), ("y.com", "/", "Prefix", "web")], tls=[(["x.com"], "cert")]
    )
    rules = rules_of([asked], world(secrets=["default/cert"]))
    assert rules.tls == {"x.com": Key("default", "cert")}
    assert rules.certificates == {Key("default", "cert"): CERTIFICATE}
    assert {host.name: host.paths[0].redirect for host in rules.hosts} == {"x.com": True, "y.com": False}


def test_the_redirect_can_be_turned_off() -> None:
    asked = ingress("one", [("x.com", "/", "Prefix", "web")], tls=[(["x.com"], "cert")])
    asked["metadata"]["annotations"] = {"ingress.kone/ssl-redirect": "false"}
    rules = rules_of([asked], world(secrets=["default/cert"]))
    assert not rules.hosts[0].paths[0].redirect


def test_another_ingress_without_tls_on_the_same_host_is_not_redirected() -> None:
    both = [
        ingress("one", [("x.com", "/", "Prefix", "web")], tls=[(["x.com"], "cert")]),
        ingress("solver", [("x.com", "/.well-known/acme-challenge/t", "Exact", "api")]),
    ]
    rules = rules_of(both, world(secrets=["default/cert"]))
    assert [(path.kind, path.redirect) for path in rules.hosts[0].paths] == [("Exact", False), ("Prefix", True)]


def test_a_wildcard_certificate_covers_the_hosts_of_one_label() -> None:
    hosts = ["a.x.com", "b.a.x.com", "*.x.com"]
    asked = ingress("one", [(host, "/", "Prefix", "web") for host in hosts], tls=[(["*.x.com"], "cert")])
    rules = rules_of([asked], world(secrets=["default/cert"]))
    assert {h.name: h.paths[0].redirect for h in rules.hosts} == {"a.x.com": True, "b.a.x.com": False, "*.x.com": True}


def test_a_missing_secret_is_said_and_plain_http_goes_on() -> None:
    asked = ingress("one", [("x.com", "/", "Prefix", "web")], tls=[(["x.com"], "cert")])
    rules = rules_of([asked], world())
    assert rules.findings == (Finding(Key("default", "one"), "SecretNotFound", "Secret default/cert does not exist"),)
    assert not rules.tls
    assert not rules.hosts[0].paths[0].redirect
    assert rules.secrets == {Key("default", "cert")}


def test_a_secret_without_hosts_is_for_the_rules_hosts_or_else_the_default_certificate() -> None:
    named = ingress("one", [("x.com", "/", "Prefix", "web")], tls=[([], "cert")])
    assert rules_of([named], world(secrets=["default/cert"])).tls == {"x.com": Key("default", "cert")}
    nameless = ingress("one", [("", "/", "Prefix", "web")], tls=[([], "cert")])
    rules = rules_of([nameless], world(secrets=["default/cert"]))
    assert rules.default_secret == Key("default", "cert")
    assert not rules.tls


def test_of_two_certificates_for_a_host_the_older_ingress_has_its_own() -> None:
    older = ingress("one", [("x.com", "/", "Prefix", "web")], tls=[(["x.com"], "a")], created="2026-01-01T00:00:00Z")
    younger = ingress("two", [("x.com", "/b", "Prefix", "web")], tls=[(["x.com"], "b")], created="2026-01-02T00:00:00Z")
    rules = rules_of([younger, older], world(secrets=["default/a", "default/b"]))
    assert rules.tls == {"x.com": Key("default", "a")}
    assert reasons(rules) == [("default/two", "Conflict")]


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("a.x.com", "a.x.com", True),
        ("*.x.com", "a.x.com", True),
        ("*.x.com", "b.a.x.com", False),
        ("*.x.com", "x.com", False),
        ("a.x.com", "b.x.com", False),
        ("a.x.com", "*.x.com", False),
    ],
)
def test_wildcards_stand_for_one_label(pattern: str, host: str, matches: bool) -> None:
    assert host_matches(pattern, host) is matches


# Classes


@pytest.mark.parametrize(
    ("name", "annotation", "served"),
    [
        ("kone", "", True),
        ("fast", "", True),
        ("nginx", "", False),
        ("", "kone", True),
        ("", "nginx", False),
        ("", "", False),
    ],
)
def test_an_ingress_is_served_where_its_class_names_this_controller(name: str, annotation: str, served: bool) -> None:
    controllers = {"kone": CONTROLLER, "fast": CONTROLLER, "nginx": "k8s.io/ingress-nginx"}
    classes = [{"metadata": {"name": n}, "spec": {"controller": c}} for n, c in controllers.items()]
    asked = ingress("one", [("", "/", "Prefix", "web")], ingress_class=name)
    if annotation:
        asked["metadata"]["annotations"] = {"kubernetes.io/ingress.class": annotation}
    assert is_served(asked, classes) is served
