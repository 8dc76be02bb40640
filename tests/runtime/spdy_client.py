"""The client's side of SPDY/3.1, for tests: opens streams, sends and collects frames."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from kone.runtime.spdy import DICTIONARY

CONTROL = 1 << 31 | 3 << 16


@dataclass
class Received:
    """What came for one stream."""

    data: bytes = b""
    replied: bool = False
    ended: bool = False
    reset: int = 0


@dataclass
class SpdyClient:
    """`write` sends bytes to the server; `feed` takes what came from it."""

    write: Callable[[bytes], Awaitable[None]]
    streams: dict[int, Received] = field(default_factory=dict)
    pings: list[int] = field(default_factory=list)
    goodbye: bool = False
    _buffer: bytes = b""
    _next: int = 1
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    async def open(self, *, fin: bool = False, **headers: str) -> int:
        number, self._next = self._next, self._next + 2
        self.streams[number] = Received()
        block = struct.pack(">I", len(headers))
        for name, value in headers.items():
            for text in (name, value):
                block += struct.pack(">I", len(text)) + text.encode()
        packed = self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        await self.frame(CONTROL | 1, int(fin), struct.pack(">IIH", number, 0, 0) + packed)
        return number

    async def data(self, number: int, data: bytes, *, fin: bool = False) -> None:
        await self.frame(number, int(fin), data)

    async def reset(self, number: int) -> None:
        await self.frame(CONTROL | 3, 0, struct.pack(">II", number, 5))

    async def ping(self, number: int) -> None:
        await self.frame(CONTROL | 6, 0, struct.pack(">I", number))

    async def frame(self, first: int, flags: int, body: bytes) -> None:
        await self.write(struct.pack(">II", first, flags << 24 | len(body)) + body)

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 8:
            first, rest = struct.unpack_from(">II", self._buffer)
            length = rest & 0xFFFFFF
            if len(self._buffer) < 8 + length:
                break
            body, self._buffer = self._buffer[8 : 8 + length], self._buffer[8 + length :]
            self._take(first, rest >> 24, body)
        self._changed.set()

    def _take(self, first: int, flags: int, body: bytes) -> None:
        if not first >> 31:
            self.streams[first].data += body
            self.streams[first].ended |= bool(flags & 1)
            return
        match first & 0xFFFF:
            case 2:
                self.streams[struct.unpack_from(">I", body)[0]].replied = True
            case 3:
                number, status = struct.unpack(">II", body)
                self.streams[number].reset = status
            case 6:
                self.pings.append(struct.unpack(">I", body)[0])
            case 7:
                self.goodbye = True

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._changed.clear()
                await self._changed.wait()
