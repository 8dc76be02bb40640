"""The ipvs proxier: the kernel's load balancer, some twenty static rules, and work that only a change makes.

IPVS and ipset tell nobody when they are changed, so what they hold is compared every two seconds (ipvs_look.py: under
a millisecond for a hundred Services, some 10 ms for 5,000); links, addresses and rules are watched by netlink.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TypeVar

from kone.aio.one_thread import OneThread
from kone.aio.tasks import TaskGroup
from kone.net.changed_ports import TURN, changes
from kone.net.firewall import ChainId, Firewall, FirewallError
from kone.net.ipvs_kernel import Change, IpvsKernel
from kone.net.ipvs_look import IpvsLook
from kone.net.ipvs_rules import IpvsRules, Member, Wanted
from kone.net.ipvs_table import Entry, Server
from kone.net.netlink import NETLINK_ROUTE, address_text, attributes, listen
from kone.net.proxier import Desired, ProxySyncError
from kone.net.rule_config import RuleConfig
from kone.net.service_map import ServicePort, ServicePortName
from kone.net.stale_flows import forget

log = logging.getLogger(__name__)

Key = TypeVar("Key", Member, str)
CHECK_S = 2.0
SETTLE_S = 0.1
DRAIN_S = 5.0
LINKS_AND_ADDRESSES = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR = 17, 20, 21
IFA_ADDRESS, IFA_LOCAL = 1, 2


class IpvsProxier:
    """A Proxier on IPVS. The Firewall, which mends the rules, is started and stopped by its owner."""

    def __init__(self, firewall: Firewall, config: RuleConfig) -> None:
        self._firewall = firewall
        self._config = config
        self._rules = IpvsRules(config)
        self._kernel: IpvsKernel | None = None
        self._host_ips: frozenset[str] = frozenset()
        self._served: dict[ServicePortName, ServicePort] = {}
        self._wanted: dict[ServicePortName, Wanted] = {}
        self._servers: dict[Server, dict[ServicePortName, Entry]] = {}
        self._members: Counter[Member] = Counter()
        self._addresses: Counter[str] = Counter()
        self._lines: dict[ChainId, dict[ServicePortName, tuple[str, ...]]] = {}
        self._touched: set[ChainId] = set()
        self._first = True
        self._lock = asyncio.Lock()
        self._look = asyncio.Event()
        self._thread = OneThread("kone-ipvs")
        self._look_thread = OneThread("kone-ipvs-look")
        self._eyes: IpvsLook | None = None
        self._tasks = TaskGroup("ipvs")
        self.mended = 0

    async def start(self) -> None:
        """Watch; what an earlier run left serves until the first sync."""
        self._tasks.guard(self._watch, name="ipvs-watch")
        self._tasks.guard(self._mend, name="ipvs-mend")
        self._tasks.guard(self._drain, name="ipvs-drain")

    async def sync(self, desired: Desired) -> None:
        async with self._lock:
            if self._first:
                await self._prepare()
            changed = changes(self._served, desired)
            before = {name: self._served[name] for name in changed if name in self._served}
            touched = await self._stage(changed)
            refused = await self._bring(touched if not self._first else self._everything())
            self._first = False
            for name, port in changed.items():
                if port is None:
                    self._served.pop(name, None)
                elif name not in refused:
                    self._served[name] = port
            await forget(before, changed, self._host_ips, self._config.family)
            if refused:
                first, error = next(iter(refused.items()))
                raise ProxySyncError(f"{len(refused)} ports of Services, first {first}: {error}")

    async def stop(self) -> None:
        """Let go; what is in the kernel serves on."""
        await self._tasks.cancel()
        if self._kernel is not None:
            await self._thread.call(self._kernel.close)
            self._kernel = None
        if self._eyes is not None:
            await self._look_thread.call(self._eyes.close)
            self._eyes = None
        self._thread.end()
        self._look_thread.end()

    async def cleanup(self) -> None:
        """Remove everything, started or not. Raises FirewallError, OSError."""
        async with self._lock:
            await self._firewall.cleanup(self._rules.is_mine)
            try:
                kernel = await self._thread.call(self._open) if self._kernel is None else self._kernel
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                    return  # a kernel without IPVS has nothing of it
                raise
            self._kernel = None
            try:
                await self._thread.call(kernel.remove)
            finally:
                await self._thread.call(kernel.close)
            self._served.clear()
            self._wanted.clear()
            self._servers.clear()
            self._members.clear()
            self._addresses.clear()
            self._lines.clear()
            self._touched.clear()
            self._first = True

    def _open_eyes(self) -> None:
        """Whoever is cancelled meanwhile leaves them to be closed."""
        self._eyes = IpvsLook(self._config.names, self._config.family)

    def _open(self) -> IpvsKernel:
        config = self._config
        return IpvsKernel(config.names, self._rules, config.family, strict_arp=config.strict_arp)

    async def _prepare(self) -> None:
        try:
            if self._kernel is None:
                self._kernel = await self._thread.call(self._open)
            await self._thread.call(self._kernel.prepare)
            self._host_ips = frozenset(await self._thread.call(self._kernel.host_addresses))
            await self._firewall.apply(self._rules.static_chains(), jumps=self._rules.jumps())
        except (OSError, FirewallError) as error:
            raise ProxySyncError(f"ipvs cannot be had: {error}") from error

    async def _stage(self, changed: Mapping[ServicePortName, ServicePort | None]) -> Change:
        """Take the ports into the books; what that touches, as it shall be."""
        servers: set[Server] = set()
        members: set[Member] = set()
        addresses: set[str] = set()
        for number, (name, port) in enumerate(changed.items(), 1):
            old = self._wanted.pop(name, Wanted())
            new = self._rules.wanted(name, port, self._host_ips) if port else Wanted()
            if port:
                self._wanted[name] = new
            for server in old.servers:
                self._servers[server].pop(name, None)
            for server, entry in new.servers.items():
                self._servers.setdefault(server, {})[name] = entry
            servers |= {*old.servers, *new.servers}
            members |= _recount(self._members, old.members, new.members)
            addresses |= _recount(self._addresses, old.addresses, new.addresses)
            for chain in old.localhost:
                del self._lines[chain][name]
            for chain, lines in new.localhost.items():
                self._lines.setdefault(chain, {})[name] = lines
            self._touched |= {*old.localhost, *new.localhost}
            if number % TURN == 0:
                await asyncio.sleep(0)
        for server in servers:
            if not self._servers[server]:
                del self._servers[server]
        return self._change(servers, members, addresses)

    def _change(self, servers: Iterable[Server], members: Iterable[Member], addresses: Iterable[str]) -> Change:
        return Change(
            {server: next(iter(self._servers.get(server, {}).values()), None) for server in servers},
            {member: member in self._members for member in members},
            {ip: ip in self._addresses for ip in addresses},
        )

    def _everything(self) -> Change:
        """All that shall be, and that nothing else of kone's shall."""
        assert self._kernel is not None
        servers, members, addresses = self._kernel.contents()
        return self._change({*servers, *self._servers}, {*members, *self._members}, {*addresses, *self._addresses})

    async def _bring(self, change: Change) -> dict[ServicePortName, str]:
        """Write it; what was refused, by port. Raises ProxySyncError."""
        kernel = self._kernel
        assert kernel is not None
        try:
            refused = await self._thread.call(lambda: kernel.bring(change))
            await self._write_lines()
        except (OSError, FirewallError) as error:
            self._look.set()
            raise ProxySyncError(str(error)) from error
        return {
            name: f"{server}: {os.strerror(number)}"
            for server, number in refused.items()
            for name in self._servers.get(server, {})
        }

    async def _write_lines(self) -> None:
        """The chains of node ports at localhost that were touched."""
        if self._config.family == 6 or not (self._touched or self._first):
            return
        gone = [chain for chain in self._touched if not self._lines.get(chain)]
        written: dict[ChainId, list[str]] = {
            chain: [line for lines in self._lines[chain].values() for line in lines]
            for chain in self._touched.difference(gone)
        }
        written[self._rules.localhost] = self._rules.localhost_rules(c for c, ports in self._lines.items() if ports)
        prune = self._rules.is_mine if self._first else None
        await self._firewall.apply(written, jumps=self._rules.localhost_jumps(), removed=gone, prune=prune)
        for chain in gone:
            self._lines.pop(chain, None)
        self._touched.clear()

    # Watching

    async def _mend(self) -> None:
        while True:
            noticed = await self._noticed()
            self._look.clear()
            if self._first:
                continue
            try:
                if noticed or await self._sees_another():
                    async with self._lock:
                        await self._make_right(noticed)
            except (OSError, ProxySyncError) as error:
                log.error("what someone else changed of IPVS could not be mended, trying again: %s", error)

    async def _noticed(self) -> bool:
        """Whether netlink told of something; the time to look has come anyway."""
        try:
            await asyncio.wait_for(self._look.wait(), CHECK_S)
        except TimeoutError:
            return False
        await asyncio.sleep(SETTLE_S)
        return True

    async def _sees_another(self) -> bool:
        """Whether the kernel is not what kone made it."""
        if self._eyes is None:
            await self._look_thread.call(self._open_eyes)
        if (kernel := self._kernel) is None or (eyes := self._eyes) is None:
            return False
        expected = await self._thread.call(kernel.expected)
        found = await self._look_thread.call(partial(eyes.differences, expected))
        return kernel.is_other(found, expected)

    async def _make_right(self, noticed: bool) -> None:
        kernel = self._kernel
        if kernel is None:
            return
        if noticed:
            host_ips = frozenset(await self._thread.call(kernel.host_addresses))
            if host_ips != self._host_ips:
                self._host_ips = host_ips
                log.info("the host's addresses changed: node ports follow")
                await self._bring(await self._stage({n: p for n, p in self._served.items() if p.externally_accessible}))
        await self._thread.call(kernel.load)
        change = self._everything()
        if kernel.differs(change):
            await self._bring(change)
            self.mended += 1
            log.warning("mended what someone else changed of IPVS")

    async def _drain(self) -> None:
        while True:
            await asyncio.sleep(DRAIN_S)
            if (kernel := self._kernel) is not None and kernel.draining:
                async with self._lock:
                    await self._thread.call(kernel.finish)

    async def _watch(self) -> None:
        """Run for ever, raising the flag when addresses of the host, or Services' ones, come or go."""
        await listen(NETLINK_ROUTE, LINKS_AND_ADDRESSES, self._heard, self._look.set)

    def _heard(self, message: bytes) -> None:
        _, kind = struct.unpack_from("IH", message)
        if kind in (RTM_NEWADDR, RTM_DELADDR):
            parts = attributes(message, 24)
            ip = address_text(parts.get(IFA_LOCAL) or parts[IFA_ADDRESS])
            at_link = self._kernel is not None and self._kernel.has_address(ip)
            # On the link: only a loss matters. Elsewhere, link-local addresses serve nobody.
            if at_link == (kind == RTM_DELADDR) and not ip.startswith("fe80:"):
                self._look.set()
        elif kind == RTM_DELLINK and self._kernel is not None and not self._kernel.link_index:
            self._look.set()


def _recount(books: Counter[Key], old: AbstractSet[Key], new: AbstractSet[Key]) -> set[Key]:
    """Count what went and came; which of it that was."""
    touched = set(old ^ new)
    for key in touched:
        books[key] += 1 if key in new else -1
        if not books[key]:
            del books[key]
    return touched
