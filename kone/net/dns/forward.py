"""Names that are not the cluster's: asked of the servers of their stub domain, of the upstream servers that were
configured, or of the host's own resolvers, and remembered for as long as they say.

Messages are passed on as they came, so that whatever a resolver and a client understand of each other goes through.
Each question has a socket of its own, with a port that nobody can guess. While one is asked, others with the same
question wait for its answer. When no resolver answers, one that was known within the last hour is given again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import struct
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from kone.aio.clock import Clock
from kone.net.dns.config import PORT, DnsConfig, Resolver

log = logging.getLogger(__name__)

TRY_S = 2.0  # a resolver that does not answer for so long is passed over
SICK_S = 10.0  # and asked last for so long
POSITIVE_MAX_S = 300
NEGATIVE_MAX_S = 30
STALE_S = 3600.0  # RFC 8767: better old than none
STALE_TTL_S = 5
ENTRIES_MAX = 10_000
REREAD_S = 5.0
OPT, SOA = 41, 6
TC = 0x02


class ResolversGone(Exception):
    """No resolver answered."""


@dataclass(slots=True)
class _Known:
    answer: bytes
    since: float
    until: float
    ttls: tuple[tuple[int, int], ...]  # (offset, seconds) of each record's time to live


class Forwarder:
    """Asks the resolvers of a resolv.conf, which is read again when it changes. `own` are never asked: that is us.
    `address_of` finds a server that is given by its name; it raises OSError."""

    def __init__(
        self,
        clock: Clock,
        resolv_conf: Path,
        own: Collection[str],
        port: int = PORT,
        address_of: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        self._clock = clock
        self._path = resolv_conf
        self._own = frozenset(own)
        self._port = port
        self._address_of = address_of
        self._config = DnsConfig()
        self._resolvers: Sequence[Resolver] = ()
        self._looked = float("-inf")
        self._stamp: tuple[int, int] | None = None
        self._sick: dict[Resolver, float] = {}
        self._known: dict[bytes, _Known] = {}
        self._asking: dict[bytes, asyncio.Future[bytes]] = {}

    def configure(self, config: DnsConfig) -> None:
        """Ask as this says from now on; what others answered is forgotten."""
        if config != self._config:
            self._config = config
            self._known.clear()

    def remembered(self, query: bytes) -> bytes | None:
        """The answer to a question that was asked before, or None."""
        known = self._known.get(query[2:])
        if known is None or known.until <= (now := self._clock.monotonic()):
            return None
        return query[:2] + _aged(known, int(now - known.since))

    async def ask(self, query: bytes, *, tcp: bool) -> bytes:
        """The answer of the first of the name's resolvers that gives one. Raises ResolversGone."""
        if (answer := self.remembered(query)) is not None and not (tcp and answer[2] & TC):
            return answer
        key = query[2:] + (b"t" if tcp else b"")
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.ensure_future(self._ask(query, tcp))
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        # Shielded: it is asked for all who wait.
        return query[:2] + (await asyncio.shield(asking))[2:]

    async def stop(self) -> None:
        for asking in list(self._asking.values()):
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def _ask(self, query: bytes, tcp: bool) -> bytes:
        now = self._clock.monotonic()
        resolvers = sorted(self._resolvers_for(query), key=lambda r: self._sick.get(r, 0.0) > now)
        for resolver in resolvers:
            try:
                answer = await self._exchange(resolver, query, tcp)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                self._sick[resolver] = self._clock.monotonic() + SICK_S
                continue
            self._sick.pop(resolver, None)
            if answer[3] & 0x0F == 2 and resolver != resolvers[-1]:
                continue  # SERVFAIL: another may do better
            self._remember(query, answer)
            return answer
        known = self._known.get(query[2:])
        if known is not None and known.since + STALE_S > now:
            return query[:2] + _aged(known, None)
        raise ResolversGone(f"none of {', '.join(map(str, resolvers)) or 'no resolvers'} answered")

    def _resolvers_for(self, query: bytes) -> Sequence[Resolver]:
        return self._config.stub_of(_labels(query)) or self._config.upstreams or self._read()

    async def _exchange(self, resolver: Resolver, query: bytes, tcp: bool) -> bytes:
        identity = secrets.token_bytes(2)
        async with asyncio.timeout(TRY_S):
            address = (await self._find(resolver.host), resolver.port)
            if not tcp:
                return await self._exchange_udp(address, identity + query[2:])
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(struct.pack(">H", len(query)) + identity + query[2:])
                (length,) = struct.unpack(">H", await reader.readexactly(2))
                answer = await reader.readexactly(length)
            finally:
                writer.close()
        if answer[:2] != identity or not _answers(answer, query):
            raise OSError(f"resolver {resolver} answered another question")
        return answer

    async def _find(self, host: str) -> str:
        """The address of a server. Raises OSError where its name leads nowhere."""
        try:
            return str(ip_address(host))
        except ValueError:
            if self._address_of is None:
                raise OSError(f"{host} is no address") from None
            return await self._address_of(host)

    async def _exchange_udp(self, address: tuple[str, int], query: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            lambda: _Question(query, loop.create_future()), remote_addr=address
        )
        try:
            return await protocol.answer
        finally:
            transport.close()

    def _read(self) -> Sequence[Resolver]:
        now = self._clock.monotonic()
        if now >= self._looked + REREAD_S:
            self._looked = now
            try:
                stat = os.stat(self._path)
                if (stamp := (stat.st_mtime_ns, stat.st_ino)) != self._stamp:
                    self._stamp = stamp
                    hosts = resolvers_in(self._path.read_text(), self._own)
                    self._resolvers = [Resolver(host, self._port) for host in hosts]
                    if not self._resolvers:
                        log.warning("%s names no resolver: only names of the cluster resolve", self._path)
            except OSError as error:
                log.warning("%s cannot be read (%s): keeping %d resolvers", self._path, error, len(self._resolvers))
        return self._resolvers

    def _remember(self, query: bytes, answer: bytes) -> None:
        try:
            ttls, negative = times_to_live(answer)
        except (IndexError, struct.error):
            return
        if not ttls or answer[3] & 0x0F not in (0, 3) or answer[2] & TC:
            return
        lasts = min(min(seconds for _, seconds in ttls), NEGATIVE_MAX_S if negative else POSITIVE_MAX_S)
        if lasts <= 0:
            return
        if len(self._known) >= ENTRIES_MAX:
            for key in list(self._known)[: ENTRIES_MAX // 10]:  # the oldest
                del self._known[key]
        now = self._clock.monotonic()
        self._known.pop(query[2:], None)
        self._known[query[2:]] = _Known(answer, now, now + lasts, ttls)


class _Question(asyncio.DatagramProtocol):
    """One question to one resolver, on a socket of its own; strangers' datagrams are passed over."""

    def __init__(self, query: bytes, answer: asyncio.Future[bytes]) -> None:
        self._query = query
        self.answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.DatagramTransport, transport).sendto(self._query)

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data[:2] == self._query[:2] and _answers(data, self._query) and not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


def resolvers_in(text: str, own: Collection[str] = ()) -> list[str]:
    """The name servers of a resolv.conf, without ourselves."""
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) >= 2 and words[0] == "nameserver" and words[1] not in own:
            found.append(words[1])
    return list(dict.fromkeys(found))


def times_to_live(message: bytes) -> tuple[tuple[tuple[int, int], ...], bool]:
    """(offset, seconds) of every record's time to live but OPT's, and whether there is no answer among them.

    A "no" lasts as long as its SOA record says: the lesser of that record's own time and its last field (RFC 2308).
    Raises IndexError or struct.error where the message is broken.
    """
    questions, answers, authorities, additional = struct.unpack_from(">HHHH", message, 4)
    offset = 12
    for _ in range(questions):
        offset = _after_name(message, offset) + 4
    found: list[tuple[int, int]] = []
    for _ in range(answers + authorities + additional):
        offset = _after_name(message, offset)
        kind, _, seconds, length = struct.unpack_from(">HHIH", message, offset)
        if kind == SOA and not answers:
            seconds = min(seconds, struct.unpack_from(">I", message, offset + 10 + length - 4)[0])
        if kind != OPT:
            found.append((offset + 4, seconds))
        offset += 10 + length
    return tuple(found), not answers


def _labels(query: bytes) -> list[str]:
    """The labels of the name that is asked for, in lower case."""
    found, offset = [], 12
    while length := query[offset]:
        found.append(query[offset + 1 : offset + 1 + length].decode("latin-1").lower())
        offset += 1 + length
    return found


def _after_name(message: bytes, offset: int) -> int:
    while length := message[offset]:
        if length >= 0xC0:
            return offset + 2
        offset += 1 + length
    return offset + 1


def _aged(known: _Known, age_s: int | None) -> bytes:
    """The answer without its identity, its times to live counted down; None: it is out of date."""
    message = bytearray(known.answer)
    for offset, seconds in known.ttls:
        left = STALE_TTL_S if age_s is None else max(seconds - age_s, 0)
        struct.pack_into(">I", message, offset, left)
    return bytes(message[2:])


def _answers(answer: bytes, query: bytes) -> bool:
    """Whether it is a response to that very question."""
    if len(answer) < 12 or not answer[2] & 0x80:
        return False
    end = _after_name(query, 12) + 4
    return answer[12:end].lower() == query[12:end].lower()
