"""What the ipvs proxier keeps in the kernel, of one family: rows, sets and addresses, and a mirror of what is there.

All of it blocks, and is called in one thread. A change is given as what a few things shall be; the mirror says what
has to be done for it. Real servers that go are given weight 0 first and removed when their last connection is over.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from socket import IPPROTO_UDP

from kone.net.dummy_link import DummyLink
from kone.net.ipset import Element, IpSets
from kone.net.ipvs_look import Differences, Expected
from kone.net.ipvs_rules import TYPES, IpvsRules, Member
from kone.net.ipvs_table import Entry, IpvsTable, Real, Server, Table, shape
from kone.net.names import Names

log = logging.getLogger(__name__)

SETTINGS = Path("/proc/sys/net/ipv4/vs")
# Tracked, so that the nat table can masquerade; what leads to a removed real server ends at once.
NEEDED = {"conntrack": "1", "expire_nodest_conn": "1", "expire_quiescent_template": "1"}

# A link answers for its own addresses only, and asks by its own: others may announce the Services' ones.
ARP = Path("/proc/sys/net/ipv4/conf/all")
STRICT_ARP = {"arp_ignore": "1", "arp_announce": "2"}


@dataclass(slots=True)
class Change:
    """What shall be: rows by server (None: none), which members sets have, which addresses the link has."""

    servers: dict[Server, Entry | None] = field(default_factory=dict)
    members: dict[Member, bool] = field(default_factory=dict)
    addresses: dict[str, bool] = field(default_factory=dict)


class IpvsKernel:
    """Raises OSError where the kernel lacks what it takes."""

    def __init__(self, names: Names, rules: IpvsRules, family: int, *, strict_arp: bool = False) -> None:
        self._rules = rules
        self._family = family
        self._settings = {SETTINGS / name: value for name, value in NEEDED.items()}
        if strict_arp:
            self._settings |= {ARP / name: value for name, value in STRICT_ARP.items()}
        self._link = DummyLink(names.dummy, family)
        self._sets = IpSets()
        self._table_door = IpvsTable()
        self._table: Table = {}
        self._members: set[Member] = set()
        self._addresses: set[str] = set()
        self._finishing: dict[Server, Entry | None] = {}  # with real servers that drain: what is wanted of the row
        self._late: set[str] = set()  # addresses that go when what drains at them has
        self._counts: Counter[str] = Counter()  # members of each set
        self._written: dict[Server, int] = {}  # the write that touched a row last
        self.writes = 0

    def close(self) -> None:
        for door in (self._link, self._sets, self._table_door):
            door.close()

    @property
    def draining(self) -> bool:
        return bool(self._finishing)

    @property
    def link_index(self) -> int:
        return self._link.index

    def has_address(self, ip: str) -> bool:
        """Whether the link shall have it, as far as kone did anything about it."""
        return ip in self._addresses

    def prepare(self) -> None:
        """Settings, link and sets; then what an earlier run left is read."""
        for path, value in self._settings.items():
            try:
                if path.read_text().strip() != value:
                    path.write_text(value)
            except OSError as error:
                log.warning("%s cannot be set to %s: %s", path, value, error.strerror)
        self.load()

    def load(self) -> None:
        """Make what was taken away as a whole, and take the mirror from what is there."""
        self._link.ensure()
        self._sets.ensure(self._rules.sets())
        self._members = {(role, e) for role in TYPES for e in self._sets.elements(self._rules.set_name(role))}
        mine = {Server(e.protocol, e.ip, e.port) for role, e in self._members if role in ("SERVED", "DRAIN")}
        table, _ = self._table_door.read(self._family)
        self._table = {server: entry for server, entry in table.items() if server in mine}
        self._addresses = self._link.addresses()
        self._counts = Counter(self._rules.set_name(role) for role, _ in self._members)
        self.writes += 1

    def contents(self) -> tuple[set[Server], set[Member], set[str]]:
        """What is there, but for what is the drain's own."""
        return set(self._table), {member for member in self._members if member[0] != "DRAIN"}, set(self._addresses)

    def differs(self, change: Change) -> bool:
        """Whether anything is to do for the change."""
        return (
            any(not _is_right(self._table.get(server), entry) for server, entry in change.servers.items())
            or any((member in self._members) != wanted for member, wanted in change.members.items())
            or any(
                (ip in self._addresses) != wanted and ip not in self._late for ip, wanted in change.addresses.items()
            )
        )

    def host_addresses(self) -> set[str]:
        """The host's own addresses of the family, but for those of Services."""
        return self._link.host_addresses()

    def expected(self) -> Expected:
        """What shall be in the kernel now."""
        self._written = {server: write for server, write in self._written.items() if server in self._table}
        counts = {name: self._counts[name] for name in map(self._rules.set_name, TYPES)}
        return Expected(self.writes, dict(self._table), counts, frozenset(self._addresses))

    def is_other(self, found: Differences, expected: Expected) -> bool:
        """Whether what was found is somebody else's doing, not what kone itself wrote meanwhile."""
        return any(self._written.get(server, 0) <= expected.writes for server in found.rows) or (
            found.sets and self.writes == expected.writes
        )

    def bring(self, change: Change) -> dict[Server, int]:
        """Do what the change asks for; the errno of each server that the kernel refused. Raises OSError."""
        self.writes += 1
        self._settle_addresses({ip for ip, wanted in change.addresses.items() if wanted}, ())
        self._settle_members((m for m, wanted in change.members.items() if wanted), ())
        refused = self._settle_servers(change.servers)
        self._settle_members((), (m for m, wanted in change.members.items() if not wanted))
        self._settle_addresses((), {ip for ip, wanted in change.addresses.items() if not wanted})
        return refused

    def finish(self) -> None:
        """Remove the real servers whose last connection is over."""
        if self._finishing:
            self.writes += 1
            self._settle_servers(dict(self._finishing))
            self._settle_addresses((), set(self._late))

    def remove(self) -> None:
        """Every row, set and address; the rules that ask the sets must be gone."""
        names = self._sets.names()
        own = {role: self._rules.set_name(role) for role in TYPES}
        members = [e for role in ("SERVED", "DRAIN") for e in self._sets.elements(own[role])]
        servers = {Server(e.protocol, e.ip, e.port) for e in members}
        table, raw = self._table_door.read(self._family)
        self._table_door.change((server, entry, None) for server, entry in table.items() if server in servers)
        self._sets.destroy(name for name in own.values() if name in names)
        self._link.change((), self._link.addresses())
        self._link.delete_unused()
        if len(shape(raw).splitlines()) > 3 and len(shape(self._table_door.text()).splitlines()) <= 3:
            for setting in NEEDED:  # nobody uses IPVS any more: as the kernel has it
                with contextlib.suppress(OSError):
                    (SETTINGS / setting).write_text("0")

    def _settle_servers(self, wanted: Mapping[Server, Entry | None]) -> dict[Server, int]:
        steps: list[tuple[Server, Entry | None, Entry | None]] = []
        leaving: list[Server] = []
        for server, entry in wanted.items():
            before = self._table.get(server)
            after = entry
            if before is not None and server.protocol != IPPROTO_UDP:
                going = [real for real in before.weights if entry is None or real not in entry.weights]
                if going:
                    after = _with(entry or Entry(before.scheduler, before.affinity_s), going)
                    leaving.append(server)
            if before != after:
                steps.append((server, before, after))
        refused = self._write(steps)
        last: list[tuple[Server, Entry | None, Entry | None]] = []
        for server in leaving:
            if server in refused:
                continue
            now, entry = self._table[server], wanted[server]
            counts = self._table_door.connections(server)
            keep = [real for real in now.weights if (entry is None or real not in entry.weights) and counts.get(real)]
            if keep:
                self._finishing[server] = entry
                last.append((server, now, _with(entry or Entry(now.scheduler, now.affinity_s), keep)))
            else:
                last.append((server, now, entry))
        refused |= self._write([step for step in last if step[1] != step[2]])
        for server, entry in wanted.items():
            there = self._table.get(server)
            if there is None or (entry is not None and there == entry):
                self._finishing.pop(server, None)
            member: Member = ("DRAIN", Element(server.ip, server.protocol, server.port))
            if there is not None and entry is None:
                self._settle_members([member], ())
            elif member in self._members:
                self._settle_members((), [member])
        return refused

    def _write(self, steps: Iterable[tuple[Server, Entry | None, Entry | None]]) -> dict[Server, int]:
        steps = list(steps)
        refused = self._table_door.change(steps)
        for server, _, after in steps:
            self._written[server] = self.writes
            if after is None:
                self._table.pop(server, None)
            else:
                self._table[server] = after
        if refused:  # in part, perhaps: what is there is looked up
            table, _ = self._table_door.read(self._family)
            for server in refused:
                self._table.pop(server, None)
                if server in table and ("SERVED", Element(server.ip, server.protocol, server.port)) in self._members:
                    self._table[server] = table[server]
        return refused

    def _settle_members(self, added: Iterable[Member], removed: Iterable[Member]) -> None:
        new = [member for member in added if member not in self._members]
        gone = [member for member in removed if member in self._members]
        if new or gone:
            self._sets.change(self._by_set(new), self._by_set(gone))
            self._members |= set(new)
            self._members -= set(gone)
            self._counts.update(self._rules.set_name(role) for role, _ in new)
            self._counts.subtract(self._rules.set_name(role) for role, _ in gone)

    def _by_set(self, members: Iterable[Member]) -> dict[str, list[Element]]:
        found: dict[str, list[Element]] = {}
        for role, element in members:
            found.setdefault(self._rules.set_name(role), []).append(element)
        return found

    def _settle_addresses(self, added: Iterable[str], removed: Iterable[str]) -> None:
        busy = {server.ip for server, entry in self._finishing.items() if entry is None}
        new = [ip for ip in added if ip not in self._addresses]
        wanted_gone = [ip for ip in removed if ip in self._addresses]
        self._late -= set(added)
        self._late = {ip for ip in self._late | set(wanted_gone) if ip in busy}
        gone = [ip for ip in wanted_gone if ip not in busy]
        if new or gone:
            self._addresses -= set(gone)
            refused = self._link.change(new, gone)
            self._addresses |= set(new) - refused.keys()
            if refused:
                ip, number = next(iter(refused.items()))
                raise OSError(number, f"giving {self._link.name} address {ip}: {os.strerror(number)}")


def _is_right(row: Entry | None, wanted: Entry | None) -> bool:
    """Whether the row is as wanted, apart from real servers that only finish."""
    if row is None or wanted is None:
        return wanted is None and (row is None or not any(row.weights.values()))
    serving = {real: weight for real, weight in row.weights.items() if weight or real in wanted.weights}
    return Entry(row.scheduler, row.affinity_s, serving) == wanted


def _with(entry: Entry, going: Iterable[Real]) -> Entry:
    """The entry, and these real servers, which get no new connections."""
    return Entry(entry.scheduler, entry.affinity_s, {**entry.weights, **dict.fromkeys(going, 0)})
