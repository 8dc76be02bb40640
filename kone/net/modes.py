"""How Services reach the kernel: the mode that was asked for, or the best that this host has.

A new mode is one more entry of KINDS. Modes stand there from best to last; "auto" takes the first whose `why_not` has
no objection. What another mode left behind (a restart with another --proxy-mode) is removed when the chosen one serves.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from kone.net import dummy_link, ipset, ipvs_table
from kone.net.firewall import Firewall, FirewallError
from kone.net.iptables import IptablesProxier
from kone.net.ipvs import IpvsProxier
from kone.net.nftables import NftablesProxier
from kone.net.proxier import Proxier, ProxySyncError
from kone.net.rule_config import RuleConfig
from kone.net.userspace import UserspaceProxier

log = logging.getLogger(__name__)

Mode = Literal["ipvs", "nftables", "iptables", "userspace"]
PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One mode: how its Proxier is made, and why this host cannot have it ("" where it can; may block for a moment)."""

    make: Callable[[Firewall, RuleConfig], Proxier]
    why_not: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Choice:
    """The mode, and what stands against each better one that "auto" passed by."""

    mode: Mode
    passed_by: Mapping[str, str]

    def __str__(self) -> str:
        return "; ".join([self.mode, *(f"not {mode}: {why}" for mode, why in self.passed_by.items())])


class NoMode(Exception):
    """The mode that was asked for cannot be had here; the text says why."""


def iptables_why_not() -> str:
    """What keeps iptables from serving Services."""
    if shutil.which("iptables-restore") is None:
        return "iptables is not installed"
    try:
        done = subprocess.run(
            ["iptables", "-w", "10", "-t", "nat", "-S", "POSTROUTING"],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else " ".join(done.stderr.split())


def ipvs_why_not() -> str:
    """What keeps IPVS, ipset, dummy links or the rules beside them from serving Services."""
    return ipvs_table.why_not() or ipset.why_not() or dummy_link.why_not() or iptables_why_not()


def nftables_why_not() -> str:
    """What keeps nftables from serving Services: the program, or a kernel without one of the expressions it needs."""
    if shutil.which("nft") is None:
        return "nftables is not installed"
    script = (
        "add table ip kone-probe\nadd chain ip kone-probe p { type nat hook output priority 0; }\n"
        "add rule ip kone-probe p fib daddr type local ct status dnat meta l4proto tcp numgen random mod 2 0 "
        "dnat to 192.0.2.1:80\nadd rule ip kone-probe p meta l4proto tcp return\n"
    )
    try:
        done = subprocess.run(
            ["nft", "--check", "-f", "-"], input=script, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else " ".join(done.stderr.split())


KINDS: Mapping[Mode, Kind] = {
    "ipvs": Kind(IpvsProxier, ipvs_why_not),
    "nftables": Kind(NftablesProxier, nftables_why_not),
    "iptables": Kind(IptablesProxier, iptables_why_not),
    "userspace": Kind(UserspaceProxier, lambda: ""),
}


async def choose(wanted: str, kinds: Mapping[Mode, Kind] = KINDS) -> Choice:
    """The mode for `wanted`, a mode's name or "auto". Raises NoMode."""
    loop = asyncio.get_running_loop()
    passed_by: dict[str, str] = {}
    for mode, kind in kinds.items():
        if wanted in (mode, "auto"):
            why = await loop.run_in_executor(None, kind.why_not)
            if not why:
                return Choice(mode, passed_by)
            passed_by[mode] = why
    if not passed_by:
        raise NoMode(f"--proxy-mode {wanted}: choose from auto, {', '.join(kinds)}")
    raise NoMode("; ".join(f"--proxy-mode {mode} cannot be had here: {why}" for mode, why in passed_by.items()))


def make(mode: Mode, firewall: Firewall, config: RuleConfig) -> Proxier:
    """The mode's Proxier for the family of `config`; `firewall`, of the same family, is started by its owner."""
    return KINDS[mode].make(firewall, config)


async def remove_others(mode: Mode | None, firewall: Firewall, config: RuleConfig) -> None:
    """Take away what every mode but this one left in the kernel; None is all of them. Logs what cannot be removed."""
    for other, kind in KINDS.items():
        if other != mode:
            proxier = kind.make(firewall, config)
            try:
                await proxier.cleanup()
            except (OSError, FirewallError, ProxySyncError) as error:
                log.debug("nothing of proxy mode %s could be removed: %s", other, error)
            finally:
                await proxier.stop()
