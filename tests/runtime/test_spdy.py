"""SPDY/3.1 as a byte stream: streams in both directions, their ends, and a client that breaks the rules."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator

import pytest

from kone.aio.clock import settle
from kone.runtime.spdy import DICTIONARY, WAITING_MAX_BYTES, Connection, SpdyError, Stream
from tests.runtime.spdy_client import CONTROL, SpdyClient


class Pipe:
    """The bytes between a client and the connection under test."""

    def __init__(self) -> None:
        self.up: asyncio.Queue[bytes] = asyncio.Queue()
        self.client = SpdyClient(self.up.put)

    async def read(self) -> bytes:
        return await self.up.get()

    async def write(self, data: bytes) -> None:
        self.client.feed(data)


class World:
    def __init__(self) -> None:
        self.pipe = Pipe()
        self.client = self.pipe.client
        self.connection = Connection(self.pipe)
        self.streams: list[Stream] = []
        self.serving = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        async for stream in self.connection.streams():
            self.streams.append(stream)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.serving.cancel()
    await asyncio.gather(made.serving, return_exceptions=True)


def test_the_dictionary_is_the_specifications() -> None:
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


async def test_streams_are_accepted_with_their_headers(world: World) -> None:
    one = await world.client.open(streamType="data", port="80")
    two = await world.client.open(streamType="error", port="80")
    await settle()
    assert [s.headers for s in world.streams] == [
        {"streamtype": "data", "port": "80"},
        {"streamtype": "error", "port": "80"},
    ]
    assert world.client.streams[one].replied
    assert world.client.streams[two].replied


async def test_data_goes_both_ways_until_both_have_ended(world: World) -> None:
    number = await world.client.open(streamType="data")
    await world.client.data(number, b"hel")
    await world.client.data(number, b"lo", fin=True)
    await settle()
    [stream] = world.streams
    assert await stream.read() == b"hello"
    assert await stream.read() == b""
    big = bytes(range(256)) * 1000
    await stream.write(big)
    await stream.finish()
    await stream.finish()
    answer = world.client.streams[number]
    assert (answer.data, answer.ended) == (big, True)
    with pytest.raises(BrokenPipeError):
        await stream.write(b"more")


async def test_a_reader_that_waits_gets_what_comes(world: World) -> None:
    number = await world.client.open(streamType="data")
    await settle()
    reading = asyncio.create_task(world.streams[0].read())
    await settle()
    await world.client.data(number, b"x")
    assert await reading == b"x"


async def test_a_stream_that_the_client_resets_is_gone_both_ways(world: World) -> None:
    number = await world.client.open(streamType="data")
    await settle()
    [stream] = world.streams
    await world.client.reset(number)
    assert await stream.read() == b""
    with pytest.raises(BrokenPipeError):
        await stream.write(b"x")


async def test_a_stream_that_we_reset(world: World) -> None:
    number = await world.client.open(streamType="data")
    await settle()
    await world.streams[0].reset()
    await world.streams[0].reset()
    assert world.client.streams[number].reset == 5


async def test_pings_are_answered(world: World) -> None:
    await world.client.ping(1)
    await world.client.ping(2)  # an answer to one of ours, of which there are none
    await settle()
    assert world.client.pings == [1]


async def test_frames_may_come_in_any_pieces(world: World) -> None:
    sent: list[bytes] = []

    async def keep(data: bytes) -> None:
        sent.append(data)

    client = world.pipe.client = SpdyClient(keep)
    number = await client.open(streamType="data")
    await client.data(number, b"abc", fin=True)
    for byte in b"".join(sent):
        await world.pipe.up.put(bytes((byte,)))
    await settle()
    assert await world.streams[0].read() == b"abc"


async def test_a_stream_that_nobody_reads_holds_the_client_up(world: World) -> None:
    number = await world.client.open(streamType="data")
    piece = b"x" * 100_000
    for _ in range(20):
        await world.client.data(number, piece)
    await settle()
    assert world.pipe.up.qsize() > 0
    total = 0
    while total < 20 * len(piece):
        data = await world.streams[0].read()
        assert len(data) <= WAITING_MAX_BYTES + len(piece)
        total += len(data)
    assert total == 20 * len(piece)


async def test_a_stream_that_we_gave_up_holds_nobody_up(world: World) -> None:
    number = await world.client.open(streamType="data")
    for _ in range(20):
        await world.client.data(number, b"x" * 100_000)
    await settle()
    await world.streams[0].reset()
    other = await world.client.open(streamType="data")
    await settle()
    assert world.client.streams[other].replied


async def test_the_end_of_the_connection_ends_all(world: World) -> None:
    await world.client.open(streamType="data")
    await settle()
    await world.pipe.up.put(b"")
    assert await world.streams[0].read() == b""
    await world.serving


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">II", 1 << 31 | 2 << 16 | 1, 0),
        struct.pack(">II", CONTROL | 1, 12) + struct.pack(">IIH", 1, 0, 0) + b"??",
        struct.pack(">II", CONTROL | 6, 0),
    ],
    ids=["another version", "headers that are no zlib", "a ping without a number"],
)
async def test_a_client_that_breaks_the_rules(world: World, frame: bytes) -> None:
    await world.pipe.up.put(frame)
    with pytest.raises(SpdyError):
        await world.serving
