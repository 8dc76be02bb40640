"""SPDY/3.1, as much of it as Kubernetes' streams use: the server's side of one connection, over any byte stream.

`kubectl port-forward` and older exec clients speak it, today inside WebSocket messages. No library for it is kept
alive, and none of its hard parts are needed: streams are opened by the client only, priorities, pushes and windows are
not used (the Go library that all clients share ignores windows too), so a connection is a table of streams, eight
kinds of frames, and one zlib stream each way for headers. Specification: SPDY Protocol Draft 3.1.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Final, Protocol

VERSION: Final = 3
SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY, HEADERS = 1, 2, 3, 6, 7, 8
FIN: Final = 1
PROTOCOL_ERROR, REFUSED_STREAM, CANCEL = 1, 3, 5
FRAME_BYTES: Final = 32 * 1024  # of data in one frame that we send
FRAME_MAX_BYTES: Final = 16 * 1024 * 1024 - 1
WAITING_MAX_BYTES: Final = 1024 * 1024  # for one stream's reader, before the connection is read no further

# The header names and texts that every SPDY/3 compressor starts from (section 2.6.10.1).
_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TEXT: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 "
    "Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 "
    "Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept "
    "Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,"
    "sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">I", len(data)) + data


DICTIONARY: Final = b"".join(_text(word.replace("_", " ")) for word in _WORDS.split()) + _TEXT.encode()


class SpdyError(Exception):
    """The other side does not keep to the protocol; the connection is over."""


class ByteStream(Protocol):
    """What SPDY runs over."""

    async def read(self) -> bytes:
        """The next bytes, however many; b"" at the end."""

    async def write(self, data: bytes) -> None:
        """Raises ConnectionError where nobody reads any more."""


class Stream:
    """One stream that the client opened. `headers` have lower-case names. One task reads it."""

    def __init__(self, connection: Connection, number: int, headers: Mapping[str, str]) -> None:
        self.number, self.headers = number, headers
        self._connection = connection
        self._waiting = bytearray()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._ended = self._finished = False  # theirs, ours

    async def read(self) -> bytes:
        """What the client has sent; b"" when it has ended its side, or the stream is gone."""
        while not self._waiting and not self._ended:
            self._news.clear()
            await self._news.wait()
        data = bytes(self._waiting)
        self._waiting.clear()
        self._room.set()
        return data

    async def write(self, data: bytes) -> None:
        """Raises BrokenPipeError after `finish`, and where the client took the stream away."""
        if self._finished:
            raise BrokenPipeError("the stream is closed")
        for start in range(0, len(data), FRAME_BYTES):
            await self._connection.send_data(self.number, data[start : start + FRAME_BYTES])

    async def finish(self) -> None:
        """Nothing more from us; the client may still send. Idempotent."""
        if not self._finished:
            self._finished = True
            await self._connection.send_data(self.number, b"", fin=True)

    async def reset(self, status: int = CANCEL) -> None:
        """The stream is gone, both ways. Idempotent."""
        if not (self._ended and self._finished):
            self.end(both_ways=True)
            await self._connection.send_reset(self.number, status)

    async def take(self, data: bytes) -> None:
        """Data of the client; waits while too much of it is not read."""
        if not self._ended:
            self._waiting += data
            self._news.set()
        while len(self._waiting) > WAITING_MAX_BYTES and not self._ended:
            self._room.clear()
            await self._room.wait()

    def end(self, *, both_ways: bool = False) -> None:
        self._ended = True
        self._finished = self._finished or both_ways
        self._news.set()
        self._room.set()


class Connection:
    """Serves one client: `streams` gives each stream that it opens, and ends with the connection."""

    def __init__(self, bytes_: ByteStream) -> None:
        self._bytes = bytes_
        self._buffer = bytearray()
        self._streams: dict[int, Stream] = {}
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    async def streams(self) -> AsyncIterator[Stream]:
        """Each new stream, already accepted. Data of the others is passed on while the next is awaited, so this must
        be iterated all the time. Raises SpdyError.
        """
        try:
            while (frame := await self._frame()) is not None:
                first, flags, body = frame
                if not first >> 31:
                    await self._on_data(first, flags, body)
                elif first >> 16 & 0x7FFF != VERSION:
                    raise SpdyError(f"not SPDY/3: {first:08x}")
                elif first & 0xFFFF == SYN_STREAM:
                    yield await self._on_open(flags, body)
                else:
                    await self._on_control(first & 0xFFFF, flags, body)
        except (struct.error, zlib.error, IndexError) as error:
            raise SpdyError(f"broken frame: {error}") from error
        finally:
            for stream in self._streams.values():
                stream.end(both_ways=True)
            self._streams.clear()

    def forget(self, *streams: Stream) -> None:
        """These streams are done with."""
        for stream in streams:
            self._streams.pop(stream.number, None)

    async def send_data(self, number: int, data: bytes, *, fin: bool = False) -> None:
        await self._send(number, FIN if fin else 0, data)

    async def send_reset(self, number: int, status: int) -> None:
        await self._send(_control(RST_STREAM), 0, struct.pack(">II", number, status))

    async def close(self) -> None:
        """Say goodbye: no further streams."""
        last = max(self._streams, default=0)
        await self._send(_control(GOAWAY), 0, struct.pack(">II", last, 0))

    async def _send(self, first: int, flags: int, body: bytes) -> None:
        await self._bytes.write(struct.pack(">II", first, flags << 24 | len(body)) + body)

    async def _frame(self) -> tuple[int, int, bytes] | None:
        """(first word, flags, body); None at the end of the connection."""
        while True:
            if len(self._buffer) >= 8:
                first, rest = struct.unpack_from(">II", self._buffer)
                length = rest & 0xFFFFFF
                if len(self._buffer) >= 8 + length:
                    body = bytes(self._buffer[8 : 8 + length])
                    del self._buffer[: 8 + length]
                    return first, rest >> 24, body
            data = await self._bytes.read()
            if not data:
                return None
            self._buffer += data

    async def _on_open(self, flags: int, body: bytes) -> Stream:
        number = struct.unpack_from(">I", body)[0] & 0x7FFFFFFF
        stream = Stream(self, number, self._headers(body[10:]))
        if number in self._streams:
            raise SpdyError(f"stream {number} is open already")
        self._streams[number] = stream
        if flags & FIN:
            stream.end()
        await self._send(_control(SYN_REPLY), 0, struct.pack(">I", number) + self._packed({}))
        return stream

    async def _on_data(self, number: int, flags: int, body: bytes) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        await stream.take(body)
        if flags & FIN:
            stream.end()

    async def _on_control(self, kind: int, flags: int, body: bytes) -> None:
        if kind == PING:
            if struct.unpack_from(">I", body)[0] % 2:  # the client's; even ones would be answers to ours
                await self._send(_control(PING), 0, body[:4])
        elif kind == RST_STREAM:
            stream = self._streams.pop(struct.unpack_from(">I", body)[0] & 0x7FFFFFFF, None)
            if stream is not None:
                stream.end(both_ways=True)
        elif kind == HEADERS:
            self._headers(body[4:])  # the compressor's state goes on, whatever they say
            stream = self._streams.get(struct.unpack_from(">I", body)[0] & 0x7FFFFFFF)
            if stream is not None and flags & FIN:
                stream.end()

    def _headers(self, packed: bytes) -> dict[str, str]:
        block = self._inflate.decompress(packed, FRAME_MAX_BYTES)
        count, position = struct.unpack_from(">I", block)[0], 4
        found = {}
        for _ in range(count):
            pair = []
            for _ in range(2):
                length = struct.unpack_from(">I", block, position)[0]
                if position + 4 + length > len(block):
                    raise SpdyError("a header reaches beyond its block")
                pair.append(block[position + 4 : position + 4 + length].decode("utf-8", "replace"))
                position += 4 + length
            found[pair[0].lower()] = pair[1].partition("\0")[0]
        return found

    def _packed(self, headers: Mapping[str, str]) -> bytes:
        block = struct.pack(">I", len(headers)) + b"".join(_text(n) + _text(v) for n, v in headers.items())
        return self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def _control(kind: int) -> int:
    return 1 << 31 | VERSION << 16 | kind
