"""The iptables proxier: only the chains that a change touches are written, all in one `iptables-restore`."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from kone.net.changed_ports import TURN, Changed, ChangedPorts
from kone.net.firewall import ChainId, Firewall, FirewallError
from kone.net.iptables_rules import Chains, Rules, loopback_network, loopback_rules, rules_of
from kone.net.rule_config import RuleConfig
from kone.net.service_map import ServicePortName

log = logging.getLogger(__name__)


class IptablesProxier(ChangedPorts):
    """A Proxier on iptables, legacy or nf_tables. The Firewall, which mends, is started and stopped by its owner."""

    refusal = FirewallError

    def __init__(self, firewall: Firewall, config: RuleConfig) -> None:
        super().__init__(config)
        self._firewall = firewall
        self._chains = Chains(config)
        self._rules: dict[ServicePortName, Rules] = {}
        self._shared: dict[ChainId, dict[ServicePortName, tuple[str, ...]]] = {}
        self._own: dict[ChainId, tuple[str, ...]] = {}
        self._loopbacks: dict[str, Counter[str]] = {}  # how many ports have that endpoint, by its small network
        self._leading: frozenset[ChainId] | None = None  # of the chains last written, those that others lead to

    async def start(self) -> None:
        """Nothing to do: what an earlier run left serves until the first sync."""

    async def stop(self) -> None:
        """The rules stay."""

    async def cleanup(self) -> None:
        await self._firewall.cleanup(self._chains.is_mine)
        for books in (self._served, self._rules, self._shared, self._own, self._loopbacks):
            books.clear()
        self._leading = None
        self._first = True

    async def write(self, changed: Changed) -> None:
        # In the legacy tables, which are written as a whole, a comment is larger than the rule it is on.
        remarks = self._firewall.backend == "nft"
        wanted: dict[ServicePortName, Rules | None] = {}
        for number, (name, port) in enumerate(changed.items(), 1):
            wanted[name] = rules_of(name, port, self._config, self._chains, remarks=remarks) if port else None
            if number % TURN == 0:
                await asyncio.sleep(0)
        before = {name: self._rules.get(name) for name in wanted}
        touched = self._stage(wanted)
        try:
            await self._write(touched)
        except BaseException:
            self._stage(before)
            raise

    def _stage(self, wanted: Mapping[ServicePortName, Rules | None]) -> set[ChainId]:
        """Take the rules into the books; the chains that they touch."""
        touched: set[ChainId] = set()
        for name, rules in wanted.items():
            if (old := self._rules.pop(name, None)) is not None:
                touched |= self._book(name, old, -1)
            if rules is not None:
                self._rules[name] = rules
                touched |= self._book(name, rules, 1)
        return touched

    def _book(self, name: ServicePortName, rules: Rules, sign: int) -> set[ChainId]:
        touched = {*rules.shared, *rules.own}
        for chain, lines in rules.shared.items():
            if sign > 0:
                self._shared.setdefault(chain, {})[name] = lines
            else:
                del self._shared[chain][name]
        for chain, lines in rules.own.items():
            if sign > 0:
                self._own[chain] = lines
            else:
                del self._own[chain]
        for ip in rules.loopbacks:
            network = loopback_network(ip)
            counts = self._loopbacks.setdefault(network, Counter())
            counts[ip] += sign
            if not counts[ip]:
                del counts[ip]
                touched.add(self._chains.by_loopback(network))
            elif counts[ip] == sign:
                touched.add(self._chains.by_loopback(network))
        return touched

    async def _write(self, touched: Iterable[ChainId]) -> None:
        chains = self._chains
        loopbacks = {chains.by_loopback(network): counts for network, counts in self._loopbacks.items() if counts}
        buckets = [chain for chain, ports in self._shared.items() if ports and chain != chains.reject]
        refused = [line for lines in self._shared.get(chains.reject, {}).values() for line in lines]
        written: dict[ChainId, Sequence[str]] = {chains.reject: chains.reject_rules(refused)}
        leading = frozenset(buckets) | loopbacks.keys()
        if leading != self._leading:  # the chains that lead to others
            written[chains.services] = chains.services_rules(buckets)
            written[chains.node_ports] = chains.node_ports_rules(buckets)
            written[chains.postrouting] = chains.postrouting_rules()
            written[chains.hairpin] = chains.hairpin_rules(n for n, counts in self._loopbacks.items() if counts)
        removed = []
        for chain in touched:
            if chain in self._own:
                written[chain] = self._own[chain]
            elif chain in loopbacks:
                written[chain] = loopback_rules(loopbacks[chain])
            elif self._shared.get(chain):
                written.setdefault(chain, [line for lines in self._shared[chain].values() for line in lines])
            elif chain not in written:
                removed.append(chain)
        await self._firewall.apply(
            written,
            jumps=chains.jumps() if self._first else (),
            removed=removed,
            prune=chains.is_mine if self._first else None,
        )
        self._leading = leading
