"""What NetworkPolicies ask of the kernel: the rules of each pod, with the sets that they name written out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from kone.apimachinery.objects import Object
from kone.net.network_policy import PodFacts, directions_of, pod_facts, ruleset_of
from kone.net.nft_ruleset import Ruleset
from tests.net.objects import pod, policy

NAMESPACES = {"default": {"team": "a", "env": "test"}, "other": {"team": "b"}, "third": {"team": "c", "env": "test"}}
PODS = [
    pod("web", "10.244.0.2", "fd00::2", ports=[("http", 8080)], labels={"app": "web"}),
    pod("db", "10.244.0.3", labels={"app": "db"}),
    pod("web", "10.244.0.4", namespace="other", ports=[("http", 9090), ("dns", 53, "UDP")], labels={"app": "web"}),
    pod("db", "10.244.0.5", namespace="third", labels={"app": "db"}),
]


def facts(pods: Sequence[Object]) -> list[PodFacts]:
    return [found for each in pods if (found := pod_facts(each, "n1")) is not None]


def compiled(*policies: Object, pods: Sequence[Object] = PODS) -> Ruleset:
    ruleset = ruleset_of(policies, facts(pods), NAMESPACES)
    assert ruleset is not None
    return ruleset


def judged(ruleset: Ruleset, direction: str, ip: str) -> list[str] | None:
    """All rules that a pod's traffic meets, sets written out; None where it is judged by none."""
    version = 6 if ":" in ip else 4
    verdict = ruleset.sets[f"pods{version}-{direction}"].elements.get(ip)
    if verdict is None:
        return None
    found: list[str] = []
    for rule in ruleset.chains[verdict.removeprefix("goto ")]:
        if match := re.match(r"jump (\S+)", rule):
            found += [_written_out(ruleset, line) for line in ruleset.chains[match[1]]]
        else:
            found.append(rule)
    return found


def _written_out(ruleset: Ruleset, rule: str) -> str:
    return re.sub(r"@(\S+)", lambda m: "{ " + ", ".join(sorted(ruleset.sets[m[1]].elements)) + " }", rule)


def ingress(*rules: Object, ip: str = "10.244.0.2", version: int = 4) -> list[str]:
    """The rules of that family for a policy with these ingress rules, without the final drop."""
    found = judged(compiled(policy("p", ingress=list(rules))), "ingress", ip)
    assert found is not None
    assert found[-1] == "drop"
    other = "ip " if version == 6 else "ip6 "
    return [rule for rule in found[:-1] if other not in rule]


def test_no_policy_no_table() -> None:
    assert ruleset_of([], facts(PODS), NAMESPACES) is None


def test_a_pod_that_no_policy_selects_is_not_judged() -> None:
    ruleset = compiled(policy("p", pods={"app": "db"}, ingress=[]))
    assert judged(ruleset, "ingress", "10.244.0.2") is None
    assert judged(ruleset, "ingress", "10.244.0.3") == ["drop"]
    assert judged(ruleset, "egress", "10.244.0.3") is None, "one direction isolates nothing in the other"
    assert judged(ruleset, "ingress", "10.244.0.5") is None, "another namespace's pod"


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"podSelector": {}}, {"ingress"}),
        ({"podSelector": {}, "egress": [{}]}, {"ingress", "egress"}),
        ({"podSelector": {}, "policyTypes": ["Egress"]}, {"egress"}),
        ({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]}, {"ingress"}),
        ({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, {"ingress", "egress"}),
    ],
)
def test_the_directions_of_a_policy(spec: Object, wanted: set[str]) -> None:
    assert directions_of({"spec": spec}) == wanted


@pytest.mark.parametrize(
    ("peer", "sources"),
    [
        ({"podSelector": {}}, "10.244.0.2, 10.244.0.3"),
        ({"podSelector": {"matchLabels": {"app": "db"}}}, "10.244.0.3"),
        ({"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]}}, "10.244.0.2"),
        ({"namespaceSelector": {}}, "10.244.0.2, 10.244.0.3, 10.244.0.4, 10.244.0.5"),
        ({"namespaceSelector": {"matchLabels": {"team": "b"}}}, "10.244.0.4"),
        (
            {"namespaceSelector": {"matchExpressions": [{"key": "env", "operator": "Exists"}]}},
            "10.244.0.2, 10.244.0.3, 10.244.0.5",
        ),
        ({"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": {"matchLabels": {"app": "db"}}}, ""),
        ({"namespaceSelector": {"matchLabels": {"team": "c"}}, "podSelector": {}}, "10.244.0.5"),
        ({"namespaceSelector": {"matchLabels": {"team": "nobody"}}}, ""),
    ],
    ids=str,
)
def test_peers_by_selectors(peer: Object, sources: str) -> None:
    assert ingress({"from": [peer]}) == [f"ip saddr {{ {sources} }} accept"]


def test_peers_of_one_rule_are_alternatives() -> None:
    peers = [
        {"podSelector": {"matchLabels": {"app": "db"}}},
        {"namespaceSelector": {"matchLabels": {"team": "b"}}},
        {"ipBlock": {"cidr": "192.0.2.0/24"}},
    ]
    assert ingress({"from": peers}) == [
        "ip saddr { 10.244.0.3 } accept",
        "ip saddr { 10.244.0.4 } accept",
        "ip saddr { 192.0.2.0-192.0.2.255 } accept",
    ]


@pytest.mark.parametrize(
    ("blocks", "v4", "v6"),
    [
        ([{"cidr": "192.0.2.0/24"}], "ip saddr { 192.0.2.0-192.0.2.255 }", ""),
        ([{"cidr": "192.0.2.7/32"}], "ip saddr { 192.0.2.7 }", ""),
        (
            [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.255.0.0/16"]}],
            "ip saddr { 10.0.0.0-10.0.255.255, 10.2.0.0-10.254.255.255 }",
            "",
        ),
        (
            [{"cidr": "10.0.0.0/24", "except": ["10.0.0.4/30"]}, {"cidr": "10.0.0.5/32"}],
            "ip saddr { 10.0.0.0-10.0.0.3, 10.0.0.5, 10.0.0.8-10.0.0.255 }",
            "",
        ),
        ([{"cidr": "0.0.0.0/0"}], "meta nfproto ipv4", ""),
        ([{"cidr": "::/0"}], "", "meta nfproto ipv6"),
        ([{"cidr": "fd00::/64", "except": ["fd00::8/125"]}], "", "ip6 saddr { fd00::-fd00::7, fd00::10-fd00::"),
        ([{"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}], "", ""),
    ],
    ids=str,
)
def test_ip_blocks_are_ranges_without_their_exceptions(blocks: list[Object], v4: str, v6: str) -> None:
    rules = judged(compiled(policy("p", ingress=[{"from": [{"ipBlock": b} for b in blocks]}])), "ingress", "10.244.0.2")
    assert rules is not None
    found = "\n".join(rules)
    assert [f"{v4} accept"] == rules[:1] if v4 else "ipv4" not in found and "ip saddr" not in found
    assert v6 in found
    assert rules[-1] == "drop"


@pytest.mark.parametrize(
    ("ports", "wanted"),
    [
        ([{"port": 80, "protocol": "TCP"}], ["meta l4proto tcp th dport { 80 } accept"]),
        ([{"port": 80}, {"port": 81}, {"port": 443}], ["meta l4proto tcp th dport { 80-81, 443 } accept"]),
        ([{"port": 32000, "endPort": 32768}], ["meta l4proto tcp th dport { 32000-32768 } accept"]),
        ([{"port": 53, "protocol": "UDP"}], ["meta l4proto udp th dport { 53 } accept"]),
        ([{"protocol": "SCTP"}], ["meta l4proto sctp accept"]),
        ([{"protocol": "TCP"}, {"port": 80}], ["meta l4proto tcp accept"]),
        ([{}], ["meta l4proto tcp accept"]),
        (
            [{"port": 80}, {"port": 53, "protocol": "UDP"}],
            ["meta l4proto tcp th dport { 80 } accept", "meta l4proto udp th dport { 53 } accept"],
        ),
        (
            [{"port": "http"}],
            ["meta l4proto tcp ip daddr . th dport { 10.244.0.2 . 8080, 10.244.0.4 . 9090 } accept"],
        ),
        ([{"port": "http", "protocol": "UDP"}], ["meta l4proto udp ip daddr . th dport {  } accept"]),
        ([{"port": "dns", "protocol": "UDP"}], ["meta l4proto udp ip daddr . th dport { 10.244.0.4 . 53 } accept"]),
        ([{"port": "nobody"}], ["meta l4proto tcp ip daddr . th dport {  } accept"]),
    ],
    ids=str,
)
def test_ports(ports: list[Object], wanted: list[str]) -> None:
    assert ingress({"ports": ports}) == wanted


def test_ports_and_peers_must_both_hold() -> None:
    peers = [{"podSelector": {"matchLabels": {"app": "db"}}}, {"ipBlock": {"cidr": "192.0.2.1/32"}}]
    assert ingress({"from": peers, "ports": [{"port": 80}]}) == [
        "meta l4proto tcp th dport { 80 } ip saddr { 10.244.0.3 } accept",
        "meta l4proto tcp th dport { 80 } ip saddr { 192.0.2.1 } accept",
    ]


def test_an_empty_rule_allows_everything_and_no_rule_nothing() -> None:
    assert ingress({}) == ["accept"]
    assert ingress({"from": [], "ports": []}) == ["accept"]
    assert ingress() == []


def test_egress_speaks_of_destinations() -> None:
    ruleset = compiled(
        policy("p", pods={"app": "db"}, egress=[{"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}])
    )
    rules = judged(ruleset, "egress", "10.244.0.3") or []
    named = "meta l4proto tcp ip daddr . th dport { 10.244.0.2 . 8080, 10.244.0.4 . 9090 }"
    assert rules[0] == f"{named} ip daddr {{ 10.244.0.2, 10.244.0.3 }} accept"
    assert rules[-1] == "drop"


def test_each_family_is_judged_by_its_own_addresses() -> None:
    assert ingress({"from": [{"podSelector": {}}]}, ip="fd00::2", version=6) == ["ip6 saddr { fd00::2 } accept"]


def test_policies_add_up() -> None:
    one = policy("a", ingress=[{"ports": [{"port": 80}]}])
    two = policy("b", pods={"app": "web"}, ingress=[{"ports": [{"port": 81}]}])
    ruleset = compiled(one, two)
    first, second = "meta l4proto tcp th dport { 80 } accept", "meta l4proto tcp th dport { 81 } accept"
    assert judged(ruleset, "ingress", "10.244.0.2") == [first, second, "drop"]
    assert judged(ruleset, "ingress", "10.244.0.3") == [first, "drop"]


def test_what_comes_before_any_policy() -> None:
    ruleset = compiled(policy("p", ingress=[]))
    assert list(ruleset.chains["judge-ingress"])[:3] == [
        "ct state established,related accept",
        "fib saddr type local accept",  # the node: probes, the kubelet, its own processes
        "ip saddr . ip daddr @self4 accept",  # through a Service to itself
    ]
    assert set(ruleset.sets["self4"].elements) == {"10.244.0.2 . 10.244.0.2", "10.244.0.3 . 10.244.0.3"}
    assert "priority 50" in ruleset.bases["judge-egress"], "before masquerading, after every way of rewriting"


@pytest.mark.parametrize(
    "left_out",
    [
        {"hostNetwork": True},
        {"phase": "Succeeded"},
        {"phase": "Failed"},
    ],
    ids=str,
)
def test_pods_that_no_policy_concerns(left_out: dict[str, Any]) -> None:
    assert pod_facts(pod("x", "10.244.0.9", **left_out), "n1") is None
    assert pod_facts(pod("x"), "n1") is None, "it has no address yet"


def test_a_pod_of_another_node_is_a_peer_and_is_judged_there() -> None:
    ruleset = compiled(
        policy("p", ingress=[{"from": [{"podSelector": {}}]}]), pods=[*PODS, pod("far", "10.244.1.2", node="n2")]
    )
    assert judged(ruleset, "ingress", "10.244.1.2") is None
    rules = judged(ruleset, "ingress", "10.244.0.2") or []
    assert rules[0] == "ip saddr { 10.244.0.2, 10.244.0.3, 10.244.1.2 } accept"


def test_a_sidecar_names_ports_and_an_init_container_does_not() -> None:
    def init(name: str, number: int, **more: Any) -> Object:
        return {"name": name, "ports": [{"name": name, "containerPort": number}], **more}

    found = pod_facts(
        pod("x", "10.244.0.9", initContainers=[init("side", 1, restartPolicy="Always"), init("init", 2)]), "n1"
    )
    assert found is not None
    assert {port.name for port in found.ports} == {"side"}


def test_a_pod_more_changes_elements_and_no_chain() -> None:
    rules = [{"from": [{"podSelector": {}}], "ports": [{"port": "http"}]}]
    policies = [policy(f"p{n}", ingress=rules, egress=[{}]) for n in range(3)]
    before = compiled(*policies)
    after = compiled(*policies, pods=[*PODS, pod("new", "10.244.0.9", ports=[("http", 80)])])
    assert after.chains == before.chains
    assert after.sets.keys() == before.sets.keys()
