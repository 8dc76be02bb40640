"""What one nftables table shall hold, as values, and the `nft` scripts that bring a kernel there. Pure.

A script is one transaction: packets meet the table as it was or as it is to be. What changed is written and nothing
else, so that a pod that comes or goes costs a few elements, whatever the table holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ELEMENTS_A_LINE = 500  # nft's parser slows down on very long lines


@dataclass(frozen=True, slots=True)
class NftSet:
    """A named set, or a map where its elements have values.

    `type` as nft writes it, e.g. "ipv4_addr : verdict" or "typeof ip daddr . th dport"; `flags` what follows it. A set
    with the flag dynamic is filled by packets: its elements are never looked at.
    """

    type: str
    elements: Mapping[str, str] = field(default_factory=dict)  # key -> value, "" in a set
    flags: str = ""

    @property
    def keyword(self) -> str:
        return "map" if ":" in self.type else "set"

    @property
    def declaration(self) -> str:
        kind = self.type if self.type.startswith("typeof ") else f"type {self.type}"
        return f"{kind}; {self.flags};" if self.flags else f"{kind};"

    @property
    def is_dynamic(self) -> bool:
        return "dynamic" in self.flags


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The sets and chains of a table. A chain's rules in order; `bases` holds the hook line of those that have one."""

    sets: Mapping[str, NftSet] = field(default_factory=dict)
    chains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)


EMPTY = Ruleset()


def script_anew(table: str, wanted: Ruleset) -> str:
    """Replaces the whole table, whether there is one or not. `table` with its family: "inet kone-policy"."""
    return "\n".join([f"add table {table}", f"delete table {table}", f"add table {table}", *_changes(table, wanted)])


def script_taking_over(table: str, listing: Mapping[str, Any], wanted: Ruleset) -> str:
    """The same for a table of which `listing` (`nft -j -t list table`) tells; wanted dynamic sets keep their content.

    A set of the same name is taken to be of the same type and flags.
    """
    chains, sets = [], []
    for item in listing.get("nftables", ()):
        ((kind, content),) = item.items()
        if kind == "chain":
            chains.append(content["name"])
        elif kind in ("set", "map"):
            kept = wanted.sets.get(content["name"])
            if kept is None or not kept.is_dynamic:
                sets.append((kind, content["name"]))
    lines = [f"flush table {table}"]  # which takes the rules
    lines += [f"flush {kind} {table} {name}" for kind, name in sets]
    lines += [f"delete chain {table} {name}" for name in chains]
    lines += [f"delete {kind} {table} {name}" for kind, name in sets]
    return "\n".join([*lines, *_changes(table, wanted)])


def script_removed(table: str) -> str:
    """Takes the table away, whether there is one or not."""
    return f"add table {table}\ndelete table {table}\n"


def script_changed(table: str, before: Ruleset, wanted: Ruleset) -> str:
    """Makes the table that holds `before` hold `wanted`; "" where that is nothing to do.

    A chain's hook and a set's type never change under one name.
    """
    return "\n".join(_changes(table, wanted, before))


def _changes(table: str, wanted: Ruleset, before: Ruleset = EMPTY) -> list[str]:
    new_chains = [name for name in wanted.chains if name not in before.chains]
    gone_chains = [name for name in before.chains if name not in wanted.chains]
    changed = [name for name, rules in wanted.chains.items() if rules and rules != before.chains.get(name)]
    emptied = [
        name
        for name, rules in before.chains.items()
        if rules and (name not in wanted.chains or rules != wanted.chains[name])
    ]
    lines = []
    for name in new_chains:
        base = wanted.bases.get(name)
        lines.append(f"add chain {table} {name}" + (f" {{ {base} }}" if base else ""))
    for name, wanted_set in wanted.sets.items():
        if name not in before.sets:
            lines.append(f"add {wanted_set.keyword} {table} {name} {{ {wanted_set.declaration} }}")
    # What leads to a chain or set goes before it does, and comes after it is there.
    lines += [f"flush chain {table} {name}" for name in emptied]
    for name, old in before.sets.items():
        present = wanted.sets.get(name)
        if present is not None:
            gone = [_element(key, value) for key, value in old.elements.items() if present.elements.get(key) != value]
            lines += _element_lines("delete", table, name, gone)
        elif old.keyword == "map":
            lines.append(f"flush map {table} {name}")
    for name, present in wanted.sets.items():
        had = before.sets[name].elements if name in before.sets else {}
        added = [_element(key, value) for key, value in present.elements.items() if had.get(key) != value]
        lines += _element_lines("add", table, name, added)
    lines += [f"add rule {table} {name} {rule}" for name in changed for rule in wanted.chains[name]]
    lines += [f"delete chain {table} {name}" for name in gone_chains]
    lines += [f"delete {old.keyword} {table} {name}" for name, old in before.sets.items() if name not in wanted.sets]
    return [*lines, ""] if lines else []


def _element(key: str, value: str) -> str:
    return f"{key} : {value}" if value else key


def _element_lines(verb: str, table: str, name: str, elements: Sequence[str]) -> Iterable[str]:
    for first in range(0, len(elements), ELEMENTS_A_LINE):
        yield f"{verb} element {table} {name} {{ {', '.join(elements[first : first + ELEMENTS_A_LINE])} }}"


def shape_of(ruleset: Ruleset) -> dict[str, int]:
    """How many rules each chain has, and how many elements each set: {"chain ingress": 6, "set p4-…": 20}."""
    return {
        **{f"chain {name}": len(rules) for name, rules in ruleset.chains.items()},
        **{f"set {name}": 0 if kept.is_dynamic else len(kept.elements) for name, kept in ruleset.sets.items()},
    }


def listed_shape(listing: Mapping[str, Any]) -> dict[str, int]:
    """The same of what `nft -j list table` tells."""
    shape: dict[str, int] = {}
    for item in listing.get("nftables", ()):
        ((kind, content),) = item.items()
        if kind == "chain":
            shape.setdefault(f"chain {content['name']}", 0)
        elif kind in ("set", "map"):
            is_dynamic = "dynamic" in content.get("flags", ())
            shape[f"set {content['name']}"] = 0 if is_dynamic else len(content.get("elem", ()))
        elif kind == "rule":
            name = f"chain {content['chain']}"
            shape[name] = shape.get(name, 0) + 1
    return shape
