"""What Services put into the nftables table, and that a change is written as what changed."""

from __future__ import annotations

from typing import Any

import pytest

from kone.net.names import Names
from kone.net.nft_ruleset import Ruleset, script_taking_over
from kone.net.nftables import Books
from kone.net.nftables_rules import ElementId, Elements, Table, elements_of, shared_chain_of
from kone.net.rule_config import RuleConfig
from kone.net.service_map import Endpoint, ServicePort, ServicePortName

CONFIG = RuleConfig(Names(), ["10.244.0.0/16"], ["10.96.0.0/16"], ["192.0.2.2"], ["10.244.0.0/24"])
TABLE = Table(CONFIG)
WEB = ServicePortName("default", "web", "http", "TCP")
API = ServicePortName("default", "api", "http", "TCP")
A, B, AWAY = Endpoint("10.244.0.5", 8080), Endpoint("10.244.0.6", 8080), Endpoint("10.244.7.5", 8080, local=False)


def web(*endpoints: Endpoint, **more: Any) -> ServicePort:
    fields = {"cluster_endpoints": endpoints, "has_endpoints": bool(endpoints)} | more
    return ServicePort("TCP", fields.pop("ip", "10.96.0.20"), 80, **fields)


def elements(port: ServicePort, name: ServicePortName = WEB) -> Elements:
    return elements_of(name, port, CONFIG, TABLE)


def lines(found: Elements) -> set[str]:
    """Elements as "SET KEY : VALUE"; those of hairpins left out."""
    return {f"{e.set} {e.key} : {value}" for e, value in found.shared.items() if e.set != "hairpins"}


def books() -> Books:
    return Books(TABLE, CONFIG.names.service_table(4))


AT = "10.96.0.20 . tcp . 80"


def test_a_cluster_ip_leads_by_number_to_its_endpoints() -> None:
    assert lines(elements(web(A, B))) == {
        f"services {AT} : goto all-2",
        f"all-at-0 {AT} : 10.244.0.5 . 8080",
        f"all-at-1 {AT} : 10.244.0.6 . 8080",
    }


def test_only_pods_of_this_node_can_meet_themselves() -> None:
    found = elements(web(A, AWAY))
    assert [e.key for e in found.shared if e.set == "hairpins"] == ["10.244.0.5 . 10.244.0.5"]


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        pytest.param(web(), {f"refused {AT} : goto refuse"}, id="nobody serves: refused"),
        pytest.param(
            web(internal_local=True, has_endpoints=True), {f"refused {AT} : drop"}, id="served elsewhere: dropped"
        ),
        pytest.param(
            web(internal_local=True, local_endpoints=(A,), has_endpoints=True),
            {f"services {AT} : goto local-1", f"local-at-0 {AT} : 10.244.0.5 . 8080"},
            id="internal policy Local",
        ),
        pytest.param(
            web(node_port=30080),
            {f"refused {AT} : goto refuse", "refused-node-ports tcp . 30080 : goto refuse"},
            id="a node port that nobody serves",
        ),
    ],
)
def test_what_is_refused_and_what_is_local(port: ServicePort, expected: set[str]) -> None:
    assert lines(elements(port)) == expected


def test_node_ports_and_external_addresses_hide_the_client() -> None:
    found = lines(elements(web(A, node_port=30080, external_ips=("203.0.113.5",))))
    assert {
        "services 203.0.113.5 . tcp . 80 : goto out-1",
        "all-at-0 203.0.113.5 . tcp . 80 : 10.244.0.5 . 8080",
        "node-ports tcp . 30080 : goto node-out-1",
        "node-all-at-0 tcp . 30080 : 10.244.0.5 . 8080",
    } < found


def test_external_policy_local_serves_pods_and_the_node_everywhere_and_others_here() -> None:
    found = lines(elements(web(A, AWAY, node_port=30080, external_local=True, local_endpoints=(A,))))
    assert "node-ports tcp . 30080 : goto node-mixed-2-1" in found
    *_, inside, marked, of_node, outside = TABLE.shared_chain("node-mixed-2-1")
    assert inside.startswith("ip saddr 10.244.0.0/16 ")
    assert inside.endswith("mod 2 vmap { 0 : goto node-all-to-0, 1 : goto node-all-to-1 }")
    assert TABLE.shared_chain("node-all-to-1")[0].endswith("map @node-all-at-1")
    assert "0x4000" in marked
    assert of_node.startswith("fib saddr type local")
    assert outside.endswith("map @node-local-at-0")


def test_source_ranges_come_before_the_way_in_and_overlaps_are_one() -> None:
    found = elements(web(A, load_balancer_ips=("203.0.113.6",), source_ranges=("10.0.0.0/8", "10.1.0.0/16")))
    ((chain, rules),) = found.chains.items()
    assert found.shared[ElementId("services", "203.0.113.6 . tcp . 80")] == f"goto {chain}"
    assert rules == ("ip saddr { 10.0.0.0/8 } goto out-1", "drop")


def test_affinity_has_a_set_for_each_endpoint_that_all_ways_in_share() -> None:
    found = elements(web(A, B, affinity_s=60, node_port=30080))
    assert len(found.sets) == 2
    assert all(kept.is_dynamic and "timeout 60s" in kept.flags for kept in found.sets.values())
    balancer = next(chain for chain in found.chains if chain.startswith("stick-all-"))
    assert len(found.chains[balancer]) == 4, "two that know the client, two that take a new one"
    assert found.shared[ElementId("node-ports", "tcp . 30080")].startswith("goto stick-out-")
    assert not set(found.sets) & set(elements(web(A, B, affinity_s=61)).sets), "another time is another set"


def test_a_change_is_written_as_what_changed() -> None:
    kept = books()
    kept.take({WEB: elements(web(A)), API: elements(web(A, B, ip="10.96.0.30"), API)})
    script = kept.take({WEB: elements(web(B))})
    assert script.splitlines() == [
        f"delete element ip kone-services all-at-0 {{ {AT} : 10.244.0.5 . 8080 }}",
        f"add element ip kone-services all-at-0 {{ {AT} : 10.244.0.6 . 8080 }}",
    ]


def test_a_chain_by_number_comes_with_the_first_that_needs_it_and_goes_with_the_last() -> None:
    kept = books()
    first = kept.take({WEB: elements(web(A))})
    assert "add chain ip kone-services all-1" in first
    assert "all-1" not in kept.take({API: elements(web(B, ip="10.96.0.30"), API)}).replace("goto all-1", "")
    kept.take({WEB: None})
    assert "delete chain ip kone-services all-1" in kept.take({API: None})
    assert kept.ruleset == books().ruleset


def test_a_map_of_endpoints_comes_and_goes_with_the_way_to_it() -> None:
    kept = books()
    kept.take({WEB: elements(web(A))})
    added = kept.take({WEB: elements(web(A, B))}).splitlines()
    kind = "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service"
    assert f"add map ip kone-services all-at-1 {{ {kind}; }}" in added
    assert any(line.startswith("add rule ip kone-services all-to-1 ") for line in added)
    gone = kept.take({WEB: elements(web(A))}).splitlines()
    deleted = [line for line in gone if line.startswith("delete ") and "element" not in line]
    assert deleted[-1] == "delete map ip kone-services all-at-1", "when nothing leads to it any more"
    assert {"delete chain ip kone-services all-2", "delete chain ip kone-services all-to-1"} == set(deleted[:-1])


def test_a_chain_of_its_own_holds_the_shared_one_it_leads_to() -> None:
    kept = books()
    kept.take({WEB: elements(web(A, load_balancer_ips=("203.0.113.6",), source_ranges=("10.0.0.0/8",)))})
    assert "out-1" in kept.ruleset.chains
    kept.take({WEB: elements(web(A))})
    assert "out-1" not in kept.ruleset.chains


def test_what_was_refused_is_taken_back() -> None:
    kept, before = books(), books()
    old = elements(web(A, affinity_s=60))
    for some in (kept, before):
        some.take({WEB: old})
    kept.take({WEB: elements(web(A, B, node_port=30080)), API: elements(web(B, ip="10.96.0.30"), API)})
    kept.take({WEB: old, API: None})
    assert kept.ruleset == before.ruleset


def test_an_address_that_two_want_belongs_to_whose_cluster_ip_it_is() -> None:
    kept = books()
    thief = ServicePortName("a", "a", "", "TCP")
    kept.take({thief: elements(web(B, B, ip="10.96.0.30", external_ips=("10.96.0.20",)), thief)})
    kept.take({WEB: elements(web(A))})
    services, endpoints = kept.ruleset.sets["services"], kept.ruleset.sets["all-at-0"]
    assert services.elements[AT] == "goto all-1"
    assert endpoints.elements[AT] == "10.244.0.5 . 8080"
    kept.take({WEB: None})
    assert services.elements[AT] == "goto out-2", "then it is the next one's"
    assert endpoints.elements[AT] == "10.244.0.6 . 8080"


def test_a_new_process_keeps_the_clients_that_stick() -> None:
    kept = books()
    kept.take({WEB: elements(web(A, affinity_s=60))})
    (clients,) = (name for name, some in kept.ruleset.sets.items() if some.is_dynamic)
    listing = {
        "nftables": [
            {"metainfo": {}},
            {"set": {"name": clients}},
            {"set": {"name": "clients-60-0123456789ab"}},
            {"map": {"name": "services"}},
            {"chain": {"name": "all-9"}},
        ]
    }
    script = script_taking_over("ip kone-services", listing, kept.ruleset).splitlines()
    assert "delete set ip kone-services clients-60-0123456789ab" in script
    assert "delete chain ip kone-services all-9" in script
    assert not [line for line in script if clients in line and line.startswith(("delete", "flush"))]


@pytest.mark.parametrize(
    ("rule", "chain"),
    [
        ("goto all-2", "all-2"),
        ("ip saddr { 10.0.0.0/8 } goto node-out-1", "node-out-1"),
        ("goto refuse", ""),
        ("goto stick-all-0123", ""),
        ("drop", ""),
    ],
)
def test_where_a_rule_leads(rule: str, chain: str) -> None:
    assert shared_chain_of(rule) == chain


def test_ipv6_has_a_table_of_its_own() -> None:
    config = RuleConfig(Names("two"), ["fd00:10:244::/56"], ["fd00:10:96::/112"])
    assert config.names.service_table(config.family) == "ip6 kone-two-services"
    six = ServicePort("TCP", "fd00:10:96::20", 80, cluster_endpoints=(Endpoint("fd00:10:244::5", 8080),))
    assert "services fd00:10:96::20 . tcp . 80 : goto all-1" in lines(elements_of(WEB, six, config, Table(config)))
    assert Ruleset(Table(config).sets()).sets["services"].type.startswith("ipv6_addr")
