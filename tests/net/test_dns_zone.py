"""The cluster's names: the DNS specification of Kubernetes as tables."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from kone.apimachinery.objects import Object, dig, name_of, namespace_of
from kone.net.dns.zone import Answer, Zone
from tests.net.objects import endpoint, endpoint_slice, service

ZONE = Zone("cluster.local", ["10.96.0.10"])


class Objects:
    """A World of lists."""

    def __init__(self, services: Iterable[Object] = (), slices: Iterable[Object] = ()) -> None:
        self._services = list(services)
        self._slices = list(slices)

    def service(self, namespace: str, name: str) -> Object | None:
        return next((s for s in self._services if (namespace_of(s), name_of(s)) == (namespace, name)), None)

    def slices(self, namespace: str, service: str) -> Iterable[Object]:
        wanted = (namespace, service)
        return [
            s
            for s in self._slices
            if (namespace_of(s), dig(s, "metadata", "labels", "kubernetes.io/service-name")) == wanted
        ]

    def has_namespace(self, name: str) -> bool:
        return name in ("default", "shop")

    def services_at(self, ip: str) -> Iterable[Object]:
        return [s for s in self._services if ip in (s["spec"].get("clusterIPs") or ()) and ip != "None"]

    def slices_at(self, ip: str) -> Iterable[Object]:
        return [s for s in self._slices if any(ip in e["addresses"] for e in s["endpoints"])]


WORLD = Objects(
    [
        service("web", ports=[("http", 80), ("dns", 53, "UDP")]),
        service("dual", clusterIPs=["10.96.0.21", "fd00::21"], clusterIP="10.96.0.21"),
        service("db", clusterIP="None", ports=[("pg", 5432)]),
        service("empty", clusterIP="None"),
        service("shop", type="ExternalName", externalName="shop.example.com"),
        service("inside", type="ExternalName", externalName="web.default.svc.cluster.local"),
    ],
    [
        endpoint_slice("web", endpoint("10.244.0.5")),
        endpoint_slice(
            "db",
            endpoint("10.244.0.6", hostname="db-0"),
            endpoint("10.244.0.7", hostname="db-1"),
            endpoint("10.244.0.8"),
            endpoint("10.244.0.9", hostname="db-3", ready=False),
            ports=[("pg", 15432)],
        ),
        endpoint_slice("empty", endpoint("10.244.0.10", ready=False)),
    ],
)


def ask(name: str, kind: str = "A") -> Answer:
    return ZONE.resolve(name.lower().split("."), kind, WORLD)


def data(answer: Answer) -> list[str]:
    return [record.data for record in answer.records]


WEB = "web.default.svc.cluster.local"
DB = "db.default.svc.cluster.local"


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("dns-version.cluster.local", "TXT", ['"1.1.0"']),
        (WEB, "A", ["10.96.0.20"]),
        ("dual.default.svc.cluster.local", "AAAA", ["fd00::21"]),
        (f"_http._tcp.{WEB}", "SRV", [f"0 100 80 {WEB}."]),
        (f"_dns._udp.{WEB}", "SRV", [f"0 100 53 {WEB}."]),
        (WEB, "SRV", [f"0 100 80 {WEB}.", f"0 100 53 {WEB}."]),
        (DB, "A", ["10.244.0.6", "10.244.0.7", "10.244.0.8"]),
        (f"db-0.{DB}", "A", ["10.244.0.6"]),
        (f"10-244-0-8.{DB}", "A", ["10.244.0.8"]),
        (f"_pg._tcp.{DB}", "SRV", [f"0 100 15432 {host}.{DB}." for host in ("db-0", "db-1", "10-244-0-8")]),
        (f"10-244-0-5.{WEB}", "A", ["10.244.0.5"]),
        ("10-244-0-77.default.pod.cluster.local", "A", ["10.244.0.77"]),
        ("fd00--5.default.pod.cluster.local", "AAAA", ["fd00::5"]),
        ("shop.default.svc.cluster.local", "CNAME", ["shop.example.com."]),
        ("ns.dns.cluster.local", "A", ["10.96.0.10"]),
        ("cluster.local", "NS", ["ns.dns.cluster.local."]),
        ("WEB.Default.SVC.cluster.local", "A", ["10.96.0.20"]),
    ],
)
def test_names_that_have_the_record(name: str, kind: str, expected: list[str]) -> None:
    assert data(ask(name, kind)) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (WEB, "AAAA"),
        (WEB, "MX"),
        (f"_http._tcp.{WEB}", "A"),
        (f"_tcp.{WEB}", "SRV"),
        ("default.svc.cluster.local", "A"),
        ("svc.cluster.local", "A"),
        ("pod.cluster.local", "A"),
        ("cluster.local", "A"),
        ("10-244-0-77.default.pod.cluster.local", "AAAA"),
    ],
)
def test_names_that_exist_without_the_record(name: str, kind: str) -> None:
    assert ask(name, kind) == Answer(exists=True)


@pytest.mark.parametrize(
    "name",
    [
        "nobody.default.svc.cluster.local",
        "web.nowhere.svc.cluster.local",
        "nowhere.svc.cluster.local",
        "web.default.cluster.local",
        "www.google.com.default.svc.cluster.local",
        "google.com.cluster.local",
        f"_https._tcp.{WEB}",
        f"_http._udp.{WEB}",
        f"http.tcp.{WEB}",
        f"db-3.{DB}",
        f"db-9.{DB}",
        "empty.default.svc.cluster.local",
        "x.shop.default.svc.cluster.local",
        "10-244-0.default.pod.cluster.local",
        "10-244-0-5.nowhere.pod.cluster.local",
        "10-244-0-500.default.pod.cluster.local",
    ],
)
def test_names_that_do_not_exist(name: str) -> None:
    assert not ask(name).exists
    assert not ask(name).records


def test_srv_brings_the_addresses_of_its_targets() -> None:
    answer = ask(f"_pg._tcp.{DB}", "SRV")
    assert [(r.owner, r.data) for r in answer.additional][:1] == [(f"db-0.{DB}.", "10.244.0.6")]


def test_an_external_name_leads_on_unless_the_alias_itself_is_asked_for() -> None:
    assert ask("shop.default.svc.cluster.local", "A").alias == "shop.example.com."
    assert not ask("shop.default.svc.cluster.local", "CNAME").alias


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("20.0.96.10.in-addr.arpa", [f"{WEB}."]),
        ("6.0.244.10.in-addr.arpa", [f"db-0.{DB}."]),
        ("5.0.244.10.in-addr.arpa", [f"10-244-0-5.{WEB}."]),
        (".".join("12" + "0" * 28 + "df"), ["dual.default.svc.cluster.local."]),
    ],
)
def test_reverse_names(address: str, expected: list[str]) -> None:
    name = address if address.endswith("arpa") else f"{address}.ip6.arpa"
    answer = ZONE.reverse(name.split("."), "PTR", WORLD)
    assert answer is not None
    assert data(answer) == expected


@pytest.mark.parametrize("name", ["1.2.0.192.in-addr.arpa", "9.0.244.10.in-addr.arpa", "10.in-addr.arpa", "x.arpa"])
def test_addresses_the_cluster_does_not_know_are_for_others_to_answer(name: str) -> None:
    assert ZONE.reverse(name.split("."), "PTR", WORLD) is None


def test_another_domain() -> None:
    zone = Zone("k8s.Example.org.")
    assert zone.holds(("web", "default", "svc", "k8s", "example", "org"))
    assert not zone.holds(("example", "org"))
    assert data(zone.resolve(["web", "default", "svc", "k8s", "example", "org"], "A", WORLD)) == ["10.96.0.20"]
