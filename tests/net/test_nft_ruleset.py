"""The scripts that bring a table from one content to another."""

from __future__ import annotations

from kone.net.nft_ruleset import NftSet, Ruleset, listed_shape, script_anew, script_changed, shape_of

BASE = "type filter hook forward priority 0;"
BEFORE = Ruleset(
    sets={
        "peers": NftSet("ipv4_addr", {"10.0.0.1": "", "10.0.0.2": ""}),
        "of": NftSet("ipv4_addr : verdict", {"1.1.1.1": "goto a"}),
    },
    chains={"judge": ("ip daddr vmap @of",), "a": ("ip saddr @peers accept", "drop")},
    bases={"judge": BASE},
)


def lines(before: Ruleset, after: Ruleset) -> list[str]:
    return script_changed("inet t", before, after).splitlines()


def test_nothing_changed_is_nothing_to_do() -> None:
    assert script_changed("inet t", BEFORE, BEFORE) == ""


def test_a_table_is_replaced_as_a_whole_in_one_transaction() -> None:
    assert script_anew("inet t", BEFORE).splitlines() == [
        "add table inet t",
        "delete table inet t",
        "add table inet t",
        f"add chain inet t judge {{ {BASE} }}",
        "add chain inet t a",
        "add set inet t peers { type ipv4_addr; }",
        "add map inet t of { type ipv4_addr : verdict; }",
        "add element inet t peers { 10.0.0.1, 10.0.0.2 }",
        "add element inet t of { 1.1.1.1 : goto a }",
        "add rule inet t judge ip daddr vmap @of",
        "add rule inet t a ip saddr @peers accept",
        "add rule inet t a drop",
    ]


def test_an_element_more_and_one_less() -> None:
    after = Ruleset(
        BEFORE.sets | {"peers": NftSet("ipv4_addr", {"10.0.0.2": "", "10.0.0.3": ""})}, BEFORE.chains, BEFORE.bases
    )
    assert lines(BEFORE, after) == ["delete element inet t peers { 10.0.0.1 }", "add element inet t peers { 10.0.0.3 }"]


def test_a_map_leads_elsewhere_before_the_old_chain_goes() -> None:
    after = Ruleset(
        BEFORE.sets | {"of": NftSet("ipv4_addr : verdict", {"1.1.1.1": "goto b"})},
        {"judge": BEFORE.chains["judge"], "b": ("drop",)},
        BEFORE.bases,
    )
    assert lines(BEFORE, after) == [
        "add chain inet t b",
        "flush chain inet t a",
        "delete element inet t of { 1.1.1.1 : goto a }",
        "add element inet t of { 1.1.1.1 : goto b }",
        "add rule inet t b drop",
        "delete chain inet t a",
    ]


def test_a_set_goes_after_the_rules_that_name_it() -> None:
    after = Ruleset({"of": BEFORE.sets["of"]}, BEFORE.chains | {"a": ("drop",)}, BEFORE.bases)
    assert lines(BEFORE, after) == ["flush chain inet t a", "add rule inet t a drop", "delete set inet t peers"]


def test_the_shape_of_what_is_listed_is_compared() -> None:
    listing = {
        "nftables": [
            {"metainfo": {}},
            {"table": {"name": "t"}},
            {"set": {"name": "peers", "elem": ["10.0.0.1", "10.0.0.2"]}},
            {"map": {"name": "of", "elem": [["1.1.1.1", {"goto": "a"}]]}},
            {"chain": {"name": "judge"}},
            {"chain": {"name": "a"}},
            {"rule": {"chain": "judge"}},
            {"rule": {"chain": "a"}},
            {"rule": {"chain": "a"}},
        ]
    }
    assert listed_shape(listing) == shape_of(BEFORE)
    assert listed_shape({"nftables": listing["nftables"][:-1]}) != shape_of(BEFORE)
