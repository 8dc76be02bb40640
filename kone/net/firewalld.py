"""The host's firewalld: what kone has accepted is accepted by it too.

firewalld judges in a table of its own after kone's chains and rejects what its zones do not know, and no verdict of
another table can prevent that. So a few rules, each named by a comment, stand first in two of its base chains: of pods'
traffic, which NetworkPolicies judge, and of what carries the mark that kone gives to what it accepted (rule_config.py).
It writes its table anew when it starts and reloads, which netlink tells; then they are put back.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence

from kone.aio.one_thread import OneThread
from kone.aio.tasks import TaskGroup
from kone.net.commands import CommandError, run
from kone.net.names import Names
from kone.net.nft_table import NftError
from kone.net.rule_config import ACCEPTED_BIT
from kone.net.rules_watch import Changes, keep_mended, watch_nft

log = logging.getLogger(__name__)

TABLE = "inet firewalld"
INPUT, FORWARD = "filter_INPUT", "filter_FORWARD"
MEND_INTERVAL_S = 1.0


class Firewalld:
    """One instance's rules in firewalld's table, while there is one. `pod_cidrs` are this node's pods."""

    def __init__(self, names: Names, pod_cidrs: Sequence[str]) -> None:
        self._tag = f"{names.bridge}:"
        self._rules = accepting(names.bridge, pod_cidrs)
        self._changes = Changes()
        self._thread = OneThread("kone-firewalld")
        self._tasks = TaskGroup("firewalld")
        self.mended = 0

    async def start(self) -> None:
        """Put the rules there, and again whenever they are gone."""
        if shutil.which("nft") is None:
            return  # then firewalld has none either
        self._changes.set()
        self._tasks.guard(lambda: watch_nft(self._changes), name="firewalld-watch")
        self._tasks.guard(
            lambda: keep_mended(self._changes, self.verify, NftError, f"table {TABLE}", MEND_INTERVAL_S),
            name="firewalld-mend",
        )

    async def stop(self) -> None:
        """Let go; the rules stay."""
        await self._tasks.cancel()
        self._thread.end()

    async def verify(self) -> None:
        """Make the rules right, where firewalld runs. Raises NftError."""
        if await self._thread.call(lambda: self._bring(self._rules)):
            self.mended += 1
            log.info("firewalld accepts what kone does: rules are in table %s", TABLE)

    async def cleanup(self) -> None:
        """Take the rules away, started or not. Raises NftError."""
        if shutil.which("nft") is not None:
            await self._thread.call(lambda: self._bring({}))

    # In the thread

    def _bring(self, rules: Mapping[str, Sequence[str]]) -> bool:
        """Have these rules, and no others of kone's, first in each chain; whether anything had to be done."""
        script: list[str] = []
        for chain in (INPUT, FORWARD):
            try:
                listing = json.loads(self._run(["nft", "-j", "list", "chain", *TABLE.split(), chain]))
            except NftError:
                return False  # firewalld does not run, or with iptables, where the first accept decides
            script += to_stand_first(chain, listing, rules.get(chain, ()), self._tag)
        if script:
            try:
                self._run(["nft", "-f", "-"], "\n".join(script) + "\n")
            except NftError as error:
                if "Operation not permitted" in str(error):
                    log.error(
                        "firewalld owns its table and rejects pods' traffic: set NftablesTableOwner=no in "
                        "/etc/firewalld/firewalld.conf and restart it"
                    )
                    return False
                raise
        return bool(script)

    def _run(self, command: Sequence[str], text: str | None = None) -> str:
        try:
            return run(command, text, self._changes.own, "nftables")
        except CommandError as error:
            raise NftError(str(error)) from error


def accepting(bridge: str, pod_cidrs: Sequence[str]) -> dict[str, list[str]]:
    """What is accepted, by firewalld's chain."""
    return {
        INPUT: [
            *(f'iifname "{bridge}" {"ip6" if ":" in cidr else "ip"} saddr {cidr}' for cidr in pod_cidrs),
            f"meta mark & {ACCEPTED_BIT:#x} == {ACCEPTED_BIT:#x}",
        ],
        FORWARD: [f'iifname "{bridge}"', f'oifname "{bridge}"'],
    }


def to_stand_first(
    chain: str, listing: Mapping[str, list[Mapping[str, dict[str, object]]]], matches: Sequence[str], tag: str
) -> list[str]:
    """What makes `nft -j list chain`'s chain begin with rules that accept these: [] where it does."""
    present = [item["rule"] for item in listing["nftables"] if "rule" in item]
    comments = [str(rule.get("comment", "")) for rule in present]
    wanted = [f"{tag} {match.replace(chr(34), '')}" for match in matches]
    if comments[: len(wanted)] == wanted and not any(c.startswith(tag) for c in comments[len(wanted) :]):
        return []
    script = [
        f"delete rule {TABLE} {chain} handle {rule['handle']}"
        for rule, comment in zip(present, comments, strict=True)
        if comment.startswith(tag)
    ]
    return script + [
        f'insert rule {TABLE} {chain} {match} accept comment "{comment}"'
        for match, comment in reversed(list(zip(matches, wanted, strict=True)))
    ]
