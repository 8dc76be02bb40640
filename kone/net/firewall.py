"""kone's chains in iptables: what they shall hold, written as it changes, and made right when someone else changed it.

Parts (the bridge, host ports, the iptables proxier) say what their chains hold; only chains that differ from what was
written last go to the kernel, by one `iptables-restore --noflush`, which replaces each table's named chains in one
step. Built-in chains get nothing but jumps to kone's own, so that removal is total and nobody else's rule is touched.

iptables has two kernels behind one command line, legacy and nf_tables; kone takes the one that Docker's chains are in,
else the one that `iptables` stands for. Tables and built-in chains that are not there before kone (nf_tables makes them
at the first rule) are noted in the kernel itself, as empty chains KONE-MADE-…, and removed with the rest.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from kone.aio.one_thread import OneThread
from kone.aio.tasks import TaskGroup
from kone.net.commands import CommandError, run
from kone.net.names import Names, chain_prefix_of
from kone.net.rules_watch import Changes, LegacyShapes, keep_mended, watch_legacy, watch_nft

log = logging.getLogger(__name__)

Backend = Literal["nft", "legacy"]
MEND_INTERVAL_S = 2.0
MADE = {"PREROUTING": "PRE", "INPUT": "IN", "FORWARD": "FWD", "OUTPUT": "OUT", "POSTROUTING": "POST", "": "TABLE"}


class FirewallError(Exception):
    """The kernel or iptables refused rules; the text holds the rule."""


class ChainId(NamedTuple):
    """A chain in a table ("nat", "filter"); `chain` is its full name."""

    table: str
    chain: str


@dataclass(frozen=True, slots=True)
class Jump:
    """From a built-in chain to one of kone's; several in one built-in chain stand in the order of `rank`."""

    table: str
    builtin: str
    chain: str
    rank: int = 0


@dataclass(slots=True)
class Saved:
    """What iptables-save tells of one table."""

    counts: dict[str, int] = field(default_factory=dict)  # rules of each chain that is not built in
    prints: dict[str, int] = field(default_factory=dict)  # a number that stands for the text of its rules
    builtin: dict[str, list[str]] = field(default_factory=dict)  # rules of each built-in chain, without "-A NAME "
    policies: dict[str, str] = field(default_factory=dict)


def parse_save(text: str) -> dict[str, Saved]:
    """Tables by name from the text of iptables-save."""
    tables: dict[str, Saved] = {}
    table = Saved()
    for line in text.splitlines():
        if line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            if chain in table.builtin:
                table.builtin[chain].append(rule)
            else:
                table.counts[chain] = table.counts.get(chain, 0) + 1
                table.prints[chain] = hash((table.prints.get(chain, 0), rule))
        elif line.startswith(":"):
            chain, policy = line[1:].split(" ")[:2]
            if policy == "-":
                table.counts.setdefault(chain, 0)
            else:
                table.builtin.setdefault(chain, [])
                table.policies[chain] = policy
        elif line.startswith("*"):
            table = tables.setdefault(line[1:].strip(), Saved())
    return tables


def restore_text(
    chains: Mapping[ChainId, Sequence[str]],
    lines: Mapping[str, Sequence[str]],
    removed: Iterable[ChainId] = (),
) -> str:
    """Input for `iptables-restore --noflush`: chains replaced as a whole, then `lines` of each table, then removals."""
    removed = list(removed)
    tables = sorted({c.table for c in chains} | {c.table for c in removed} | set(lines))
    text = []
    for table in tables:
        mine = [(c.chain, rules) for c, rules in chains.items() if c.table == table]
        gone = [c.chain for c in removed if c.table == table]
        text.append(f"*{table}")
        text += [f":{chain} - [0:0]" for chain, _ in mine]
        text += [f":{chain} - [0:0]" for chain in gone]  # emptied first: they may lead to one another
        text += [f"-A {chain} {rule}" for chain, rules in mine for rule in rules]
        text += lines.get(table, ())
        text += [f"-X {chain}" for chain in gone]
        text.append("COMMIT")
    return "\n".join(text) + "\n"


def jump_lines(jumps: Sequence[Jump], builtin: str, present: Sequence[str]) -> list[str]:
    """What makes the jumps of one built-in chain right, given its rules: [] where they are.

    Right is: each once, in order, and nothing before them that could decide, which in `filter` is anything but a jump
    to kone's or Docker's own chains. (Docker puts its chains first when it starts; they concern Docker's links only.)
    """
    wanted = [j.chain for j in sorted(jumps, key=lambda j: j.rank)]
    table = jumps[0].table
    targets = [_target(rule) for rule in present]
    if [t for t in targets if t in wanted] == wanted:
        before = targets[: targets.index(wanted[-1])]
        if table != "filter" or all(t.startswith(("KONE-", "DOCKER")) for t in before):
            return []
    deleted = [f"-D {builtin} {rule}" for rule, t in zip(present, targets, strict=True) if t in wanted]
    return deleted + [f"-I {builtin} {number} -j {chain}" for number, chain in enumerate(wanted, 1)]


def jumps_to(chains: Collection[ChainId], table: str, saved: Saved) -> list[str]:
    """What deletes the jumps from a table's built-in chains to these chains."""
    return [
        f"-D {builtin} {rule}"
        for builtin, rules in saved.builtin.items()
        for rule in rules
        if ChainId(table, _target(rule)) in chains
    ]


def _target(rule: str) -> str:
    words = rule.split(" ")
    return words[words.index("-j") + 1] if "-j" in words else ""


class Firewall:
    """All of one instance's chains of one address family."""

    def __init__(self, names: Names, *, family: int = 4, backend: Backend | None = None) -> None:
        self.names = names
        self._tool = "iptables" if family == 4 else "ip6tables"
        self._nft_family = "ip" if family == 4 else "ip6"
        self._family = family
        self._forced = backend
        self._variant = ""  # "-nft", "-legacy" or "" for what the plain name stands for
        self.backend: Backend = "nft"
        self._desired: dict[ChainId, tuple[str, ...]] = {}
        self._jumps: list[Jump] = []
        self._installed: dict[ChainId, tuple[str, ...]] = {}
        self._prints: dict[ChainId, int] = {}  # how iptables-save tells of chains since they were last written
        self._known: set[ChainId] = set()  # own chains in the kernel, ours of now or left by an earlier run
        self._checked: set[tuple[str, str]] = set()  # built-in chains whose jumps are in place
        self._missing: set[tuple[str, str]] | None = None  # (table, built-in or "") that nf_tables did not have
        self._lock = asyncio.Lock()
        self._thread = OneThread("kone-iptables")
        self._tasks = TaskGroup("firewall")
        self._changes = Changes()
        self._shapes = LegacyShapes(("nat", "filter"), family)
        self.mended = 0

    @property
    def family(self) -> int:
        """4 or 6."""
        return self._family

    async def start(self) -> None:
        """Find the backend and what an earlier run left, and begin to watch. Raises FirewallError."""
        tables = await self._thread.call(self._begin)
        self._known = {
            ChainId(name, chain) for name, t in tables.items() for chain in t.counts if self.names.owns_chain(chain)
        }
        self._tasks.guard(self._watch, name="firewall-watch")
        self._tasks.guard(
            lambda: keep_mended(self._changes, self.verify, FirewallError, "rules", MEND_INTERVAL_S),
            name="firewall-mend",
        )

    async def stop(self) -> None:
        """Let go; the rules stay."""
        await self._tasks.cancel()
        self._thread.end()

    async def apply(
        self,
        chains: Mapping[ChainId, Sequence[str]],
        *,
        jumps: Iterable[Jump] = (),
        removed: Iterable[ChainId] = (),
        prune: Callable[[ChainId], bool] | None = None,
    ) -> None:
        """Make these chains hold these rules and the jumps be there, in one transaction of each table.

        `removed` chains must be led to by none that stays. `prune` names the caller's chains: those of an earlier run
        that nobody asks for any more are removed too. Idempotent; chains that have not changed cost nothing.
        Raises FirewallError; then what was asked is forgotten, and the kernel is as before in each table that refused.
        """
        async with self._lock:
            before, jumps_before = dict(self._desired), list(self._jumps)
            self._desired |= {chain: tuple(rules) for chain, rules in chains.items()}
            gone = set(removed)
            if prune is not None:
                gone |= {c for c in self._known if c not in self._desired and prune(c)}
            for chain in gone:
                self._desired.pop(chain, None)
            for jump in jumps:
                if jump not in self._jumps:
                    self._jumps.append(jump)
                    self._checked.discard((jump.table, jump.builtin))
            try:
                await self._write(list(chains), gone & self._known)
            except BaseException:
                self._desired, self._jumps = before, jumps_before
                raise

    def knows(self, chain: ChainId) -> bool:
        """Whether the chain is in the kernel, of this run or an earlier one."""
        return chain in self._known

    async def verify(self) -> int:
        """Compare the kernel with what it shall be and mend it; how many chains were wrong. Raises FirewallError.

        iptables-save words rules in its own way: how it words a chain is learned after the chain was written, when
        someone else changes something for the first time. Until then the chain is written again, right or wrong.
        """
        async with self._lock:
            tables = await self._thread.call(self._look)
            found = {chain: tables.get(chain.table) or Saved() for chain in self._desired}
            counts = {chain: saved.counts.get(chain.chain, -1) for chain, saved in found.items()}
            prints = {chain: saved.prints.get(chain.chain, 0) for chain, saved in found.items()}
            wrong = [
                chain
                for chain, rules in self._desired.items()
                if counts[chain] != len(rules) or self._prints.get(chain, prints[chain]) != prints[chain]
            ]
            unlearned = [c for c, rules in self._desired.items() if rules and c not in self._prints]
            broken = {(j.table, j.builtin) for j in self._jumps if self._jump_lines(j.table, j.builtin, tables)}
            if wrong or unlearned or broken:
                for chain in {*wrong, *unlearned}:
                    self._installed.pop(chain, None)
                self._checked -= broken
                await self._write([*dict.fromkeys([*wrong, *unlearned])], set(), tables)
                await self._learn([*wrong, *unlearned])
            if wrong or broken:
                self.mended += 1
                log.warning(
                    "mended rules that someone else changed: chains=%d jumps=%d first=%s",
                    len(wrong),
                    len(broken),
                    wrong[0].chain if wrong else next(iter(broken))[1],
                )
            return len(wrong) + len(broken)

    async def _learn(self, chains: Iterable[ChainId]) -> None:
        """Note how the kernel tells of chains that were just written, unless someone else wrote since.

        Then the flag is up, and stays so: there is more to mend.
        """
        if self.backend == "legacy" and self._shapes.changed():
            self._changes.set()
        tables = await self._thread.call(self._look)
        if not self._changes.is_set():
            for chain in chains:
                self._prints[chain] = (tables.get(chain.table) or Saved()).prints.get(chain.chain, 0)

    async def cleanup(self, which: Callable[[ChainId], bool] = lambda chain: True) -> None:
        """Remove the instance's chains for which `which` holds, jumps to them, and what nf_tables made for them.

        Started or not. Raises FirewallError.
        """
        async with self._lock:
            for chain in [c for c in self._desired if which(c)]:
                del self._desired[chain]
            self._jumps = [jump for jump in self._jumps if not which(ChainId(jump.table, jump.chain))]
            self._installed = {c: rules for c, rules in self._installed.items() if not which(c)}
            self._prints = {c: number for c, number in self._prints.items() if not which(c)}
            self._known = {c for c in self._known if not which(c)}
            self._checked.clear()
            await self._thread.call(lambda: self._remove_everywhere(which))

    # Writing

    async def _write(
        self, candidates: Sequence[ChainId], removed: set[ChainId], tables: Mapping[str, Saved] | None = None
    ) -> None:
        changed = {c: self._desired[c] for c in candidates if self._installed.get(c) != self._desired[c]}
        builtins = {(j.table, j.builtin) for j in self._jumps} - self._checked
        lines: dict[str, list[str]] = {}
        if builtins:
            if tables is None:
                tables = await self._thread.call(self._save)
            changed |= self._notes(builtins | {(c.table, "") for c in changed})
            for table, builtin in sorted(builtins):
                lines.setdefault(table, []).extend(self._jump_lines(table, builtin, tables))
            for table, saved in tables.items():  # jumps of an earlier run to what nobody asks for any more
                lines.setdefault(table, []).extend(jumps_to(removed, table, saved))
        if not changed and not removed and not any(lines.values()):
            self._checked |= builtins
            return
        text = restore_text(changed, lines, removed)
        try:
            await self._thread.call(lambda: self._restore(text))
        except BaseException:
            # One table may have taken its part: what is in the kernel of these chains is no longer known.
            for chain in changed:
                self._installed.pop(chain, None)
            raise
        self._installed |= changed
        self._known |= set(changed)
        for chain in changed:
            self._prints.pop(chain, None)
        for chain in removed:
            self._installed.pop(chain, None)
            self._prints.pop(chain, None)
            self._known.discard(chain)
        self._checked |= builtins

    def _jump_lines(self, table: str, builtin: str, tables: Mapping[str, Saved]) -> list[str]:
        wanted = [j for j in self._jumps if (j.table, j.builtin) == (table, builtin)]
        present = (tables.get(table) or Saved()).builtin.get(builtin, [])
        return jump_lines(wanted, builtin, present)

    def _notes(self, places: Iterable[tuple[str, str]]) -> dict[ChainId, tuple[str, ...]]:
        """The empty chains that say which tables and built-in chains kone's rules brought about."""
        notes: dict[ChainId, tuple[str, ...]] = {}
        for table, builtin in places:
            if (table, builtin) in (self._missing or ()):
                notes[ChainId(table, self.names.chain(f"MADE-{MADE[builtin]}"))] = ()
        self._desired |= notes
        return notes

    # Watching

    async def _watch(self) -> None:
        if self.backend == "nft":
            await watch_nft(self._changes)
        else:
            await watch_legacy(self._changes, self._shapes)

    # In the thread

    def _begin(self) -> dict[str, Saved]:
        self._variant, self.backend = self._choose()
        for variant, backend in self._others():
            self._remove(variant, backend, lambda chain: True)  # of an earlier run that chose otherwise
        if self.backend == "nft":
            self._missing = self._absent()
        return self._look()

    def _choose(self) -> tuple[str, Backend]:
        if self._forced is not None:
            return f"-{self._forced}", self._forced
        default: Backend = "nft" if "nf_tables" in self._run([self._tool, "-V"]) else "legacy"
        other: Backend = "legacy" if default == "nft" else "nft"
        if shutil.which(f"{self._tool}-{other}-save") is not None and (other == "nft" or _legacy_tables()):
            here, there = self._run([f"{self._tool}-save"]), self._run([f"{self._tool}-{other}-save"])
            if ":DOCKER" in there and ":DOCKER" not in here:
                return f"-{other}", other
        return "", default

    def _absent(self) -> set[tuple[str, str]]:
        """The tables and built-in chains that are not in the kernel, except those that an earlier run noted."""
        every = {(table, builtin) for table in ("nat", "filter") for builtin in MADE}
        if shutil.which("nft") is None:
            return set()  # then nothing can tell, nor remove them
        there: set[tuple[str, str]] = set()
        noted: set[tuple[str, str]] = set()
        roles = {self.names.chain(f"MADE-{short}"): builtin for builtin, short in MADE.items()}
        for item in json.loads(self._run(["nft", "-j", "list", "chains", self._nft_family]))["nftables"]:
            chain = item.get("chain") or {}
            if chain.get("hook"):
                there.add((chain["table"], chain["name"]))
            elif chain.get("name") in roles:
                noted.add((chain["table"], roles[chain["name"]]))
        for item in json.loads(self._run(["nft", "-j", "list", "tables", self._nft_family]))["nftables"]:
            if "table" in item:
                there.add((item["table"]["name"], ""))
        return every - there | noted

    def _look(self) -> dict[str, Saved]:
        """What is there; what changes from here on is somebody else's doing, or kone's next write."""
        if self.backend == "legacy":
            self._shapes.leave()
        return self._save()

    def _save(self, variant: str | None = None) -> dict[str, Saved]:
        return parse_save(self._run([f"{self._tool}{self._variant if variant is None else variant}-save"]))

    def _restore(self, text: str) -> None:
        meddled = self.backend == "legacy" and self._shapes.changed()
        self._run([f"{self._tool}{self._variant}-restore", "--noflush", "-w", "10"], text)
        if self.backend == "legacy" and not meddled:
            self._shapes.leave()

    def _run(self, command: Sequence[str], text: str | None = None) -> str:
        try:
            return run(command, text, self._changes.own, "iptables")
        except CommandError as error:
            said = f"{command[0]}: {_explain(error.said, text or '')}" if error.said else str(error)
            raise FirewallError(said) from error

    def _others(self) -> list[tuple[str, Backend]]:
        """The back end that is not in use, where it can hold rules at all."""
        other: Backend = "legacy" if self.backend == "nft" else "nft"
        there = shutil.which(f"{self._tool}-{other}-save") is not None and (other == "nft" or _legacy_tables())
        return [(f"-{other}", other)] if there else []

    def _remove_everywhere(self, which: Callable[[ChainId], bool]) -> None:
        self._variant, self.backend = self._choose()
        for variant, backend in [(self._variant, self.backend), *self._others()]:
            self._remove(variant, backend, which)

    def _remove(self, variant: str, backend: Backend, which: Callable[[ChainId], bool]) -> None:
        tables = self._save(variant)
        mine = {ChainId(n, c) for n, t in tables.items() for c in t.counts if self.names.owns_chain(c)}
        notes = {c for c in mine if c.chain.startswith(self.names.chain("MADE-"))}
        removed = {c for c in mine - notes if which(c)}
        if mine - notes == removed:
            removed |= notes  # the last to go tidies up
        else:
            notes = set()
        if not removed:
            return
        lines = {name: jumps_to(removed, name, table) for name, table in tables.items()}
        text = restore_text({}, {n: ls for n, ls in lines.items() if ls}, sorted(removed))
        self._run([f"{self._tool}{variant}-restore", "--noflush", "-w", "10"], text)
        self._shapes.leave()
        if notes and backend == "nft" and shutil.which("nft") is not None:
            self._remove_made(variant, notes)

    def _remove_made(self, variant: str, notes: set[ChainId]) -> None:
        """Take away the built-in chains and tables that kone brought about, unless someone uses them by now.

        Where another instance does, it inherits the notes, and with them the duty.
        """
        tables = self._save(variant)
        made = {f"{self.names.chain('MADE-')}{short}": builtin for builtin, short in MADE.items()}
        script: list[str] = []
        for table in sorted({note.table for note in notes}):
            saved = tables.get(table) or Saved()
            mine = {made[note.chain] for note in notes if note.table == table}
            if heir := next((prefix for chain in saved.counts if (prefix := chain_prefix_of(chain))), ""):
                script += [
                    f"add chain {self._nft_family} {table} {heir}MADE-{MADE[builtin]}" for builtin in sorted(mine)
                ]
                continue
            used = {b for b, rules in saved.builtin.items() if rules or saved.policies[b] != "ACCEPT"}
            if "" in mine and not saved.counts and not used:
                script.append(f"delete table {self._nft_family} {table}")
            else:
                script += [f"delete chain {self._nft_family} {table} {b}" for b in sorted(mine - used - {""})]
        if script:
            self._run(["nft", "-f", "-"], "\n".join(script) + "\n")


def _legacy_tables() -> bool:
    try:
        return bool(Path("/proc/net/ip_tables_names").read_text().strip())
    except OSError:
        return False


def _explain(err: str, text: str) -> str:
    """iptables-restore's complaint with the line it speaks of."""
    message = " ".join(err.split())
    lines = text.splitlines()
    for word, number in zip(message.split(), message.split()[1:], strict=False):
        digits = number.rstrip(":.")
        if word.lower().rstrip(":") == "line" and digits.isdigit() and 0 < int(digits) <= len(lines):
            return f"{message} [{lines[int(digits) - 1]}]"
    return message
