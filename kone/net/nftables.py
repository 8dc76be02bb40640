"""The nftables proxier: the elements that a change touches are written, all in one transaction (`nft -f -`)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from kone.net.changed_ports import TURN, Changed, ChangedPorts
from kone.net.firewall import Firewall
from kone.net.nft_ruleset import NftSet, Ruleset, script_changed
from kone.net.nft_table import NftError, NftTable
from kone.net.nftables_rules import ElementId, Elements, Table, chain_to, elements_of, shared_chain_of
from kone.net.proxier import ProxySyncError
from kone.net.rule_config import RuleConfig
from kone.net.service_map import ServicePortName

Rank = tuple[bool, ServicePortName]
"""Who has an element that several want: a cluster IP's own (False), then the first by name."""


class NftablesProxier(ChangedPorts):
    """A Proxier on one nftables table of its own. It needs nothing of the Firewall, which serves the pods' bridge."""

    refusal = NftError

    def __init__(self, firewall: Firewall, config: RuleConfig) -> None:
        super().__init__(config)
        self._table = NftTable(config.names.service_table(config.family))
        self._books = Books(Table(config), config.names.service_table(config.family))

    async def start(self) -> None:
        """Watch; what an earlier run left serves until the first sync."""
        await self._table.start()

    async def stop(self) -> None:
        """The table stays."""
        await self._table.stop()

    async def cleanup(self) -> None:
        try:
            await self._table.remove()
        except NftError as error:
            raise ProxySyncError(str(error)) from error
        self._books = Books(Table(self._config), self._config.names.service_table(self._config.family))
        self._served.clear()
        self._first = True

    async def write(self, changed: Changed) -> None:
        wanted: dict[ServicePortName, Elements | None] = {}
        for number, (name, port) in enumerate(changed.items(), 1):
            wanted[name] = elements_of(name, port, self._config, self._books.table) if port else None
            if number % TURN == 0:
                await asyncio.sleep(0)
        before = {name: self._books.ports.get(name) for name in wanted}
        await self._table.change(
            self._books.ruleset, lambda: self._books.take(wanted), lambda: self._books.take(before)
        )


@dataclass(slots=True)
class Books:
    """What the table holds, and for whom. Pure: `take` changes it and says how the kernel follows."""

    table: Table
    name: str  # of the table, with its family
    ports: dict[ServicePortName, Elements] = field(default_factory=dict)
    _wishes: dict[ElementId, dict[Rank, str]] = field(default_factory=dict)
    _users: Counter[str] = field(default_factory=Counter)  # elements and rules that lead to each shared chain
    _sets: dict[str, NftSet] = field(init=False)
    _elements: dict[str, dict[str, str]] = field(init=False)
    _chains: dict[str, tuple[str, ...]] = field(init=False)
    ruleset: Ruleset = field(init=False)

    def __post_init__(self) -> None:
        self._elements = {}
        self._sets = {}
        for name, kept in self.table.sets().items():
            self._open(name, kept)
        self._chains = self.table.chains()
        self.ruleset = Ruleset(self._sets, self._chains, self.table.bases())

    def take(self, wanted: Mapping[ServicePortName, Elements | None]) -> str:
        """Make these ports want this (None: nothing any more); the script for a table that held what was before."""
        touched: dict[ElementId, str | None] = {}
        sets: dict[str, NftSet | None] = {}
        chains: dict[str, tuple[str, ...] | None] = {}
        for name, elements in wanted.items():
            old, new = self.ports.pop(name, None) or Elements(), elements or Elements()
            if elements is not None:
                self.ports[name] = elements
            for element in {*old.shared, *new.shared}:
                if element.set not in self._sets:
                    self._open_endpoints(element.set, sets, chains)
                touched.setdefault(element, self._elements[element.set].get(element.key))
                wishes = self._wishes.setdefault(element, {})
                if element in old.shared:
                    del wishes[element not in old.inside, name]
                if element in new.shared:
                    wishes[element not in new.inside, name] = new.shared[element]
            for chain in {*old.chains, *new.chains}:
                chains.setdefault(chain, self._chains.pop(chain, None))
                for rules, sign in ((old.chains.get(chain, ()), -1), (new.chains.get(chain, ()), 1)):
                    for rule in rules:
                        self._lead(rule, sign, chains)
                if chain in new.chains:
                    self._chains[chain] = new.chains[chain]
            for set_name in {*old.sets, *new.sets}:
                sets.setdefault(set_name, self._sets.get(set_name))
                if set_name in new.sets:
                    self._open(set_name, new.sets[set_name])
                else:
                    del self._sets[set_name], self._elements[set_name]
        for element in touched:
            self._settle(element, touched[element], chains)
        for set_name in {element.set for element in touched}:
            if (way := chain_to(set_name)) and not self._elements[set_name]:  # and so no chain leads there any more
                sets.setdefault(set_name, self._sets[set_name])
                chains.setdefault(way, self._chains[way])
                del self._sets[set_name], self._elements[set_name], self._chains[way]
        return self._script(touched, sets, chains)

    def _settle(self, element: ElementId, held: str | None, chains: dict[str, tuple[str, ...] | None]) -> None:
        """Give the element to whom it belongs now, and have the shared chains that are led to."""
        wishes = self._wishes[element]
        elements = self._elements[element.set]
        if wishes:
            elements[element.key] = wishes[min(wishes)]
        else:
            del self._wishes[element]
            elements.pop(element.key, None)
        for verdict, sign in ((held, -1), (elements.get(element.key), 1)):
            if verdict:
                self._lead(verdict, sign, chains)

    def _lead(self, verdict: str, sign: int, chains: dict[str, tuple[str, ...] | None]) -> None:
        """One more, or one less, that leads to a shared chain; it is there while anything does."""
        if not (chain := shared_chain_of(verdict)):
            return
        chains.setdefault(chain, self._chains.get(chain))
        self._users[chain] += sign
        if self._users[chain]:
            self._chains[chain] = self.table.shared_chain(chain)
        else:
            del self._users[chain]
            self._chains.pop(chain, None)

    def _open_endpoints(
        self, name: str, sets: dict[str, NftSet | None], chains: dict[str, tuple[str, ...] | None]
    ) -> None:
        """Have a map of endpoints, and the chain that leads there."""
        sets.setdefault(name, None)
        self._open(name, self.table.endpoint_map(name))
        chain = chain_to(name)
        chains.setdefault(chain, None)
        self._chains[chain] = self.table.shared_chain(chain)

    def _open(self, name: str, kept: NftSet) -> None:
        """Have the set, with elements that are changed in place."""
        self._elements.setdefault(name, dict(kept.elements))
        self._sets[name] = NftSet(kept.type, self._elements[name], kept.flags)

    def _script(
        self,
        touched: Mapping[ElementId, str | None],
        sets: Mapping[str, NftSet | None],
        chains: Mapping[str, tuple[str, ...] | None],
    ) -> str:
        """From what was touched, as it was, to the same as it is."""
        before: dict[str, dict[str, str]] = {}
        now: dict[str, dict[str, str]] = {}
        for element, held in touched.items():
            had, has = before.setdefault(element.set, {}), now.setdefault(element.set, {})
            value = self._elements.get(element.set, {}).get(element.key)
            if held is not None:
                had[element.key] = held
            if value is not None:
                has[element.key] = value
        kept = {name: self._sets[name].type for name in before if name not in sets}
        old_sets = {name: NftSet(kept[name], elements) for name, elements in before.items() if name in kept}
        new_sets = {name: NftSet(kept[name], elements) for name, elements in now.items() if name in kept}
        old_sets |= {name: old for name, old in sets.items() if old is not None}
        new_sets |= {name: self._sets[name] for name in sets if name in self._sets}
        old_chains = {name: rules for name, rules in chains.items() if rules is not None}
        new_chains = {name: self._chains[name] for name in chains if name in self._chains}
        return script_changed(self.name, Ruleset(old_sets, old_chains), Ruleset(new_sets, new_chains))
