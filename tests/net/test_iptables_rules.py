"""The text of the iptables proxier's rules."""

from __future__ import annotations

from typing import Any

import pytest

from kone.net.firewall import ChainId, Jump, jump_lines, parse_save, restore_text
from kone.net.iptables_rules import Chains, Rules, loopback_network, rules_of
from kone.net.names import CHAIN_MAX, LINK_MAX, Names, chain_prefix_of
from kone.net.rule_config import RuleConfig
from kone.net.service_map import Endpoint, ServicePort, ServicePortName

CONFIG = RuleConfig(Names(), ["10.244.0.0/16"], ["10.96.0.0/16"], ["192.0.2.2"], ["10.244.0.0/24"])
CHAINS = Chains(CONFIG)
NAME = ServicePortName("default", "web", "http", "TCP")
A, B, C = (Endpoint(f"10.244.0.{n}", 8080) for n in (5, 6, 7))


def rules(*endpoints: Endpoint, **fields: Any) -> Rules:
    fields = {"cluster_endpoints": endpoints, "has_endpoints": bool(endpoints)} | fields
    return rules_of(NAME, ServicePort("TCP", "10.96.0.20", 80, **fields), CONFIG, CHAINS, remarks=False)


def of(rules: Rules, role: str) -> list[str]:
    """The lines that go into the chains of that role."""
    lines: list[str] = []
    for chain, chain_lines in {**rules.shared, **rules.own}.items():
        if chain.chain.startswith(f"KONE-{role}"):
            lines += chain_lines
    return lines


def test_a_cluster_ip_holds_its_endpoints_itself_each_with_the_same_chance() -> None:
    made = rules(A, B, C)
    where = "-d 10.96.0.20/32 -p tcp -m tcp --dport 80"
    assert made.shared == {
        ChainId("nat", "KONE-S-20"): (
            f"{where} -m statistic --mode random --probability 0.3333333333 -j DNAT --to-destination 10.244.0.5:8080",
            f"{where} -m statistic --mode random --probability 0.5000000000 -j DNAT --to-destination 10.244.0.6:8080",
            f"{where} -j DNAT --to-destination 10.244.0.7:8080",
        )
    }
    assert not made.own


def test_a_service_reached_from_outside_has_chains_of_its_own() -> None:
    made = rules(A, node_port=30080)
    (external,) = [c.chain for c in made.own if c.chain.startswith("KONE-EXT-")]
    (cluster,) = [c.chain for c in made.own if c.chain.startswith("KONE-SVC-")]
    assert of(made, "S-") == [f"-d 10.96.0.20/32 -p tcp -m tcp --dport 80 -j {cluster}"]
    assert of(made, "N-") == [f"-p tcp -m tcp --dport 30080 -j {external}"]
    assert of(made, "EXT-") == ["-j MARK --set-xmark 0x4000/0x4000", f"-j {cluster}"]
    assert of(made, "SVC-") == ["-p tcp -j DNAT --to-destination 10.244.0.5:8080"]


def test_external_policy_local_lets_pods_and_the_node_go_anywhere() -> None:
    made = rules(A, B, node_port=30080, external_local=True, local_endpoints=(A,))
    targets = [line.rpartition(" ")[2][:8] for line in of(made, "EXT-")]
    assert targets == ["KONE-SVC", "0x4000/0", "KONE-SVC", "KONE-SVL"]
    assert of(made, "EXT-")[0].startswith("-s 10.244.0.0/16 ")


@pytest.mark.parametrize(
    ("fields", "target"),
    [({}, "REJECT --reject-with tcp-reset"), ({"has_endpoints": True, "internal_local": True}, "DROP")],
    ids=["nobody serves", "somebody does elsewhere"],
)
def test_what_nobody_serves_here(fields: dict[str, Any], target: str) -> None:
    assert of(rules(**fields), "REJECT")[0] == f"-d 10.96.0.20/32 -p tcp -m tcp --dport 80 -j {target}"


def test_source_ranges_stand_before_the_load_balancer_and_the_rest_is_dropped() -> None:
    made = rules(A, load_balancer_ips=("203.0.113.6",), source_ranges=("192.0.2.0/24",))
    assert [line.split(" -j ")[0] for line in of(made, "FW-")] == ["-s 192.0.2.0/24", "-s 203.0.113.6/32"]
    assert of(made, "REJECT") == ["-d 203.0.113.6/32 -p tcp -m tcp --dport 80 -j DROP"]


def test_affinity_looks_for_a_known_client_first_and_notes_a_new_one() -> None:
    lines = of(rules(A, B, affinity_s=60), "S-")
    assert ["--update" in line for line in lines] == [True, True, False, False]
    assert ["--set" in line for line in lines] == [False, False, True, True]
    assert "--seconds 60 --reap" in lines[0]
    name = lines[0].split("--name ")[1].split()[0]
    assert f"--name {name} --set" in lines[2], "the same list for the same endpoint"


def test_only_pods_of_this_node_can_meet_themselves() -> None:
    assert rules(A, Endpoint("10.244.9.9", 80), Endpoint("10.244.0.8", 80, local=False)).loopbacks == {"10.244.0.5"}


def test_a_remark_is_the_last_rules() -> None:
    made = rules_of(NAME, ServicePort("TCP", "10.96.0.20", 80, cluster_endpoints=(A, B)), CONFIG, CHAINS)
    assert ["default/web:http" in line for line in of(made, "S-")] == [False, True]


def test_ipv6_in_the_same_shape() -> None:
    config = RuleConfig(Names(), ["fd00:1::/56"], ["fd00:2::/112"])
    chains = Chains(config)
    port = ServicePort("UDP", "fd00:2::1f", 53, cluster_endpoints=(Endpoint("fd00:1::5", 53),))
    assert rules_of(NAME, port, config, chains, remarks=False).shared == {
        ChainId("nat", "KONE-S-31"): (
            "-d fd00:2::1f/128 -p udp -m udp --dport 53 -j DNAT --to-destination [fd00:1::5]:53",
        )
    }
    assert chains.services_rules([ChainId("nat", "KONE-S-31")])[1] == "-d ::1f/::ff -j KONE-S-31"


def test_the_way_through_the_chains() -> None:
    buckets = [ChainId("nat", "KONE-S-20"), ChainId("nat", "KONE-S-3"), ChainId("nat", "KONE-N-470")]
    assert CHAINS.services_rules(buckets) == [
        "-d 10.96.0.0/16 ! -s 10.244.0.0/16 -j MARK --set-xmark 0x4000/0x4000",
        "-d 0.0.0.3/0.0.0.255 -j KONE-S-3",
        "-d 0.0.0.20/0.0.0.255 -j KONE-S-20",
        "-m addrtype --dst-type LOCAL -j KONE-NODEPORTS",
    ]
    assert CHAINS.node_ports_rules(buckets)[0] == "-p tcp -m tcp --dport 30080:30143 -j KONE-N-470"
    assert CHAINS.reject_rules(["x"]) == [
        "-o lo -j RETURN",
        "-m conntrack ! --ctstate NEW -j RETURN",
        "x",
        "-d 10.96.0.0/16 -p tcp -m addrtype ! --dst-type LOCAL -j REJECT --reject-with tcp-reset",
        "-d 10.96.0.0/16 -m addrtype ! --dst-type LOCAL -j REJECT",
    ]
    assert CHAINS.hairpin_rules([loopback_network("10.244.0.5")])[0].startswith("-s 10.244.0.0/24 -d 10.244.0.0/24 -j")


def test_names_fit_the_kernel_and_no_instance_owns_anothers() -> None:
    longest = Names("abcdefghij")
    chains = Chains(RuleConfig(longest, [], []))
    assert len(chains.of_service("SVC", NAME).chain) <= CHAIN_MAX
    assert len(longest.chain("HOSTPORT-RET")) <= CHAIN_MAX
    assert len(longest.bridge) <= LINK_MAX
    assert len(longest.veth("uid")) <= LINK_MAX
    a, ab = Names("a"), Names("a-b")
    assert not Names().owns_chain(a.chain("SERVICES"))
    assert not a.owns_chain(ab.chain("SERVICES"))
    assert a.owns_chain(a.chain("S-4"))
    assert [chain_prefix_of(n.chain("S-4")) for n in (Names(), a, ab)] == ["KONE-", "KONE-a-", "KONE-a-b-"]
    assert not chain_prefix_of("KUBE-SERVICES")
    assert a.veth_prefix != ab.veth_prefix


def test_iptables_save_is_read() -> None:
    text = (
        "# x\n*filter\n:FORWARD DROP [0:0]\n:KONE-FORWARD - [0:0]\n:DOCKER - [0:0]\n"
        "-A FORWARD -j KONE-FORWARD\n-A KONE-FORWARD -i kone0 -j ACCEPT\nCOMMIT\n*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    )
    tables = parse_save(text)
    assert tables["filter"].counts == {"KONE-FORWARD": 1, "DOCKER": 0}
    assert tables["filter"].builtin == {"FORWARD": ["-j KONE-FORWARD"]}
    assert tables["filter"].policies == {"FORWARD": "DROP"}
    assert list(tables) == ["filter", "nat"]


def test_iptables_restore_replaces_whole_chains() -> None:
    text = restore_text(
        {ChainId("nat", "KONE-A"): ["-j KONE-B"], ChainId("filter", "KONE-F"): []},
        {"nat": ["-I OUTPUT 1 -j KONE-A"]},
        [ChainId("nat", "KONE-C")],
    )
    assert text.splitlines() == [
        "*filter",
        ":KONE-F - [0:0]",
        "COMMIT",
        "*nat",
        ":KONE-A - [0:0]",
        ":KONE-C - [0:0]",
        "-A KONE-A -j KONE-B",
        "-I OUTPUT 1 -j KONE-A",
        "-X KONE-C",
        "COMMIT",
    ]


TWO = [Jump("filter", "FORWARD", "KONE-REJECT", 0), Jump("filter", "FORWARD", "KONE-FORWARD", 10)]


@pytest.mark.parametrize(
    ("present", "lines"),
    [
        (["-j KONE-REJECT", "-j KONE-FORWARD", "-j DOCKER-USER"], []),
        (["-j DOCKER-USER", "-j KONE-two-FORWARD", "-j KONE-REJECT", "-j KONE-FORWARD"], []),
        (["-j KONE-REJECT", "-j KONE-EARLIER", "-j KONE-FORWARD"], []),
        ([], ["-I FORWARD 1 -j KONE-REJECT", "-I FORWARD 2 -j KONE-FORWARD"]),
        (
            ["-j REJECT", "-j KONE-REJECT", "-j KONE-FORWARD"],
            [
                "-D FORWARD -j KONE-REJECT",
                "-D FORWARD -j KONE-FORWARD",
                "-I FORWARD 1 -j KONE-REJECT",
                "-I FORWARD 2 -j KONE-FORWARD",
            ],
        ),
        (
            ["-j KONE-FORWARD", "-j KONE-FORWARD"],
            [
                "-D FORWARD -j KONE-FORWARD",
                "-D FORWARD -j KONE-FORWARD",
                "-I FORWARD 1 -j KONE-REJECT",
                "-I FORWARD 2 -j KONE-FORWARD",
            ],
        ),
    ],
    ids=[
        "right",
        "Docker's and another instance's may stand before",
        "an earlier run's serve on",
        "none",
        "behind a refusal",
        "doubled",
    ],
)
def test_jumps_are_put_right(present: list[str], lines: list[str]) -> None:
    assert jump_lines(TWO, "FORWARD", present) == lines
