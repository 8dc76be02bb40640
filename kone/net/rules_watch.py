"""Noticing that someone else changed packet filter rules, without asking the kernel over and over.

nf_tables tells of each transaction by netlink, with the process that made it; a socket filter lets only that one
message through, so an idle node does nothing. The legacy tables tell nothing: they are read once a second, by two
system calls each.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import socket
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from kone.net.netlink import NETLINK_NETFILTER, listen

log = logging.getLogger(__name__)

NFNLGRP_NFTABLES = 7
NFT_MSG_NEWGEN = 10 << 8 | 15  # subsystem nf_tables, message 15
NFTA_GEN_PROC_PID = 2
SO_ATTACH_FILTER = 26
IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES = 64, 65  # the same numbers for both families
INFO_SIZE, ENTRIES_HEADER = 84, 40  # struct ipt_getinfo and what stands before the rules in struct ipt_get_entries
ADDRESSING = {4: 84, 6: 136}  # the size of struct ipt_ip and ip6t_ip6, with which a rule begins
LEGACY_INTERVAL_S = 1.0
SETTLE_S = 0.1  # someone else's change is usually several transactions: look when they are through
MEND_INTERVAL_MAX_S = 30.0
_libc = ctypes.CDLL(None, use_errno=True)


class Changes:
    """A flag that somebody else's change raises. Processes that any part of kone named as `own` raise nothing."""

    _own: ClassVar[deque[int]] = deque(maxlen=256)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def own(self, pid: int) -> None:
        """The rules that this process changes are kone's."""
        self._own.append(pid)

    def seen(self, pid: int) -> None:
        if pid not in self._own:
            self._event.set()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()


async def watch_nft(changes: Changes) -> None:
    """Run for ever, raising the flag at each transaction of another process in nf_tables."""
    await listen(
        NETLINK_NETFILTER,
        1 << NFNLGRP_NFTABLES - 1,
        lambda message: changes.seen(_generation_pid(message)),
        changes.set,  # some were lost: then there were some
        prepare=lambda events: _only(events, NFT_MSG_NEWGEN),
    )


async def keep_mended(
    changes: Changes, mend: Callable[[], Awaitable[object]], failure: type[Exception], what: str, interval_s: float
) -> None:
    """Run for ever, mending what somebody else's change may have broken, not more often than each `interval_s`: two
    programs that both want to be first must not spin. After a `failure` it is tried again, ever less often.
    """
    wait_s = interval_s
    while True:
        await changes.wait()
        await asyncio.sleep(SETTLE_S)
        changes.clear()
        try:
            await mend()
            wait_s = interval_s
        except failure as error:
            log.error("%s that someone else changed could not be mended, trying again: %s", what, error)
            changes.set()
            wait_s = min(wait_s * 2, MEND_INTERVAL_MAX_S)
        await asyncio.sleep(wait_s)


class LegacyShapes:
    """The legacy tables of one family as kone last left them; a difference is somebody else's doing."""

    def __init__(self, tables: Sequence[str], family: int = 4) -> None:
        self._tables = tables
        self._family = family
        self._left: int | None = None

    def changed(self) -> bool:
        return self._left is not None and self._left != self._now()

    def leave(self) -> None:
        """What they are now is as it shall be."""
        self._left = self._now()

    def _now(self) -> int:
        """A number that stands for all rules, their counters left out."""
        inet, level = (socket.AF_INET, socket.SOL_IP) if self._family == 4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
        number = 0
        with socket.socket(inet, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as raw:
            for table in self._tables:
                name = table.encode().ljust(32, b"\0")
                info = _option(raw, level, IPT_SO_GET_INFO, name, INFO_SIZE)
                if info is not None:
                    (size,) = struct.unpack_from("I", info, INFO_SIZE - 4)
                    asked = name + struct.pack("I", size)
                    rules = _option(raw, level, IPT_SO_GET_ENTRIES, asked, ENTRIES_HEADER + size)
                    number = zlib.crc32(without_counters(rules or bytearray(), ADDRESSING[self._family]), number)
        return number


def _option(raw: socket.socket, level: int, option: int, asked: bytes, size: int) -> bytearray | None:
    """getsockopt with a question in the buffer; None where there is no answer."""
    buffer = ctypes.create_string_buffer(asked, size)
    length = ctypes.c_uint32(size)
    done = _libc.getsockopt(raw.fileno(), level, option, buffer, ctypes.byref(length))
    return bytearray(buffer.raw) if done == 0 else None


def without_counters(rules: bytearray, addressing: int) -> bytearray:
    """The rules of struct ipt_get_entries with their packet and byte counters made zero, in place."""
    offset, nothing = ENTRIES_HEADER, bytes(16)
    while offset + addressing + 28 <= len(rules):
        (step,) = struct.unpack_from("H", rules, offset + addressing + 6)  # next_offset
        counters = offset + (addressing + 12 + 7 & ~7)
        rules[counters : counters + 16] = nothing
        offset += max(step, 1)
    return rules


async def watch_legacy(changes: Changes, shapes: LegacyShapes) -> None:
    """Run for ever, raising the flag when the tables are not what kone left."""
    while True:
        if shapes.changed():
            changes.set()
        await asyncio.sleep(LEGACY_INTERVAL_S)


def _only(events: socket.socket, message_type: int) -> None:
    """Have the kernel drop every message but those of one type (classic BPF on the netlink header's second field)."""
    program = [
        (0x28, 0, 0, 4),  # load the half-word at 4, in network order
        (0x15, 0, 1, socket.htons(message_type)),
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    events.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))


def _generation_pid(message: bytes) -> int:
    """The process that made the transaction; 0 where the message does not say."""
    offset = 20  # nlmsghdr and nfgenmsg
    while offset + 4 <= len(message):
        length, kind = struct.unpack_from("HH", message, offset)
        if kind & 0x3FFF == NFTA_GEN_PROC_PID:
            return int(struct.unpack_from(">I", message, offset + 4)[0])
        offset += max(4, (length + 3) & ~3)
    return 0
