"""Looking whether someone else changed what the ipvs proxier keeps in the kernel, beside its work.

Neither IPVS nor ipset tells of changes, so all of it is read every other second: with doors of its own, in a thread of
its own, so that a changed Service does not wait for the reading of thousands of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from kone.net.dummy_link import DummyLink
from kone.net.ipset import IpSets
from kone.net.ipvs_table import IpvsTable, Server, Table, shape
from kone.net.names import Names


@dataclass(frozen=True, slots=True)
class Expected:
    """What shall be in the kernel after so many `writes` of kone's own: rows, how much each set has, addresses."""

    writes: int
    table: Table
    counts: Mapping[str, int]
    addresses: AbstractSet[str]


@dataclass(frozen=True, slots=True)
class Differences:
    """What is not as expected: whose rows, and whether sets or addresses."""

    rows: AbstractSet[Server]
    sets: bool


class IpvsLook:
    """The eyes of one family. All of it blocks. Raises OSError where the kernel lacks what it takes."""

    def __init__(self, names: Names, family: int) -> None:
        self._family = family
        self._link = DummyLink(names.dummy, family)
        self._sets = IpSets()
        self._table_door = IpvsTable()
        self._seen: tuple[int, bytes] | None = None  # the table's shape when it was right, after so many writes

    def close(self) -> None:
        for door in (self._link, self._sets, self._table_door):
            door.close()

    def differences(self, expected: Expected) -> Differences:
        """How the kernel is not as expected. Sets are quick to look at, and come first: rows take a while, in which
        kone may write. They are compared one by one after a write, else as text.
        """
        sets = self._has_other_sets(expected)
        return Differences(self._other_rows(expected), sets)

    def _other_rows(self, expected: Expected) -> AbstractSet[Server]:
        if self._seen is not None and self._seen == (expected.writes, shape(self._table_door.text())):
            return frozenset()
        table, raw = self._table_door.read(self._family)
        others = frozenset(server for server, entry in expected.table.items() if table.get(server) != entry)
        if not others:
            self._seen = expected.writes, shape(raw)
        return others

    def _has_other_sets(self, expected: Expected) -> bool:
        counts = self._sets.names()
        return any(counts.get(name) != count for name, count in expected.counts.items()) or not (
            expected.addresses <= self._link.addresses()
        )
