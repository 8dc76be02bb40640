"""port-forward: connections of a client to ports of a pod, many over one WebSocket.

Two protocols, as upstream's kubelet has them. `SPDY/3.1+portforward.k8s.io` is kubectl's: SPDY frames inside binary
messages, a pair of streams (data and error) a connection. `v4.channel.k8s.io` is for plain WebSocket clients: the
ports are in the query, and port i has channel 2i for data and 2i+1 for errors, each beginning with the port in two
bytes. Behaviour and texts: k8s.io/cri-streaming/pkg/streaming/portforward.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from kone.aio.tasks import TaskGroup
from kone.runtime.channels import Channels
from kone.runtime.pod_dial import DialError, Streams
from kone.runtime.spdy import Connection, SpdyError, Stream
from kone.runtime.tunnel import Tunnel

log = logging.getLogger(__name__)

TUNNEL = "SPDY/3.1+portforward.k8s.io"
CHANNELS = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io")
PROTOCOLS = (TUNNEL, *CHANNELS)
PAIR_S = 30.0  # how long the second stream of a pair may take (streamCreationTimeout)
READ_BYTES = 64 * 1024

Connect = Callable[[int], Awaitable[Streams]]
"""port -> a connection to the pod. Raises DialError."""


def ports_of(query: list[str]) -> list[int]:
    """The ports of `port=80,81&port=82`. Raises ValueError in the kubelet's words."""
    if not query:
        raise ValueError('query parameter "port" is required')
    found = []
    for text in query:
        if not text:
            raise ValueError('query parameter "port" cannot be empty')
        for part in text.split(","):
            if not (part.isascii() and part.isdigit()) or int(part) > 65535:
                raise ValueError(
                    f'unable to parse "{text}" as a port: strconv.ParseUint: parsing "{part}": invalid syntax'
                )
            if int(part) < 1:
                raise ValueError(f'port "{text}" must be > 0')
            found.append(int(part))
    return found


async def serve(socket: web.WebSocketResponse, connect: Connect, ports: list[int], where: str) -> None:
    """Forward until the client goes. `where` is how errors name the pod: "pod web, uid 1234-…"."""
    if socket.ws_protocol == TUNNEL:
        await _serve_tunnel(Connection(Tunnel(socket)), connect, where)
    else:
        await _serve_channels(Channels(socket), connect, ports, where)


def failed(port: int, where: str, why: Exception | str) -> bytes:
    return f"error forwarding port {port} to {where}: {why}".encode()


# ---- SPDY


@dataclass(slots=True)
class _Pair:
    """The two streams of one connection, once both are there."""

    data: Stream | None = None
    error: Stream | None = None


async def _serve_tunnel(connection: Connection, connect: Connect, where: str) -> None:
    tasks = TaskGroup(f"port-forward to {where}")
    pairs: dict[str, _Pair] = {}
    try:
        async for stream in connection.streams():
            if (why := _refusal(stream)) is not None:
                log.info("a stream to %s is refused: %s", where, why)
                await stream.reset()
                connection.forget(stream)
                continue
            key, kind = _request_of(stream), stream.headers["streamtype"]
            if key not in pairs:
                pairs[key] = _Pair()
                tasks.spawn(_expect(pairs, key, connection), name=f"pair {key}")
            pair = pairs[key]
            if getattr(pair, kind) is not None:
                text = f"error processing stream for request {key}: {kind} stream already assigned"
                if pair.error is not None:
                    await pair.error.write(text.encode())
                continue
            setattr(pair, kind, stream)
            if pair.data is not None and pair.error is not None:
                del pairs[key]
                tasks.spawn(_forward(connection, pair.data, pair.error, connect, where), name=f"forward {key}")
    except SpdyError as error:
        log.info("port-forward to %s: %s", where, error)
    except ConnectionError:
        pass  # the client is gone
    finally:
        await tasks.cancel()


def _refusal(stream: Stream) -> str | None:
    """Why a stream cannot be one of a pair."""
    kind = stream.headers.get("streamtype", "")
    if kind not in ("data", "error"):
        return f'invalid stream type "{kind}"'
    try:
        ports_of([stream.headers.get("port", "")])
    except ValueError as error:
        return str(error)
    return None


def _request_of(stream: Stream) -> str:
    """Which streams belong together. Old clients do not say: with them the data stream follows its error stream."""
    if request := stream.headers.get("requestid"):
        return request
    return str(stream.number - 2 if stream.headers["streamtype"] == "data" else stream.number)


async def _expect(pairs: dict[str, _Pair], key: str, connection: Connection) -> None:
    """A pair that is never completed is given up."""
    await asyncio.sleep(PAIR_S)
    pair = pairs.pop(key, None)
    if pair is None:
        return
    with contextlib.suppress(ConnectionError):
        if pair.error is not None:
            await pair.error.write(f"(request={key}) timed out waiting for streams".encode())
    connection.forget(*(stream for stream in (pair.data, pair.error) if stream is not None))


async def _forward(connection: Connection, data: Stream, error: Stream, connect: Connect, where: str) -> None:
    port = ports_of([data.headers["port"]])[0]
    with contextlib.suppress(ConnectionError):
        try:
            await _copy(await connect(port), data.read, data.write)
            await data.finish()
            await error.finish()
        except (DialError, OSError) as why:
            text = failed(port, where, why)
            log.info("%s", text.decode())
            await error.write(text)
            await data.reset()
            await error.reset()
    connection.forget(data, error)


# ---- channels


async def _serve_channels(channels: Channels, connect: Connect, ports: list[int], where: str) -> None:
    tasks = TaskGroup(f"port-forward to {where}")
    inputs: dict[int, asyncio.Queue[bytes]] = {}
    running = []
    for index, port in enumerate(ports):
        inputs[2 * index] = asyncio.Queue(64)
        for channel in (2 * index, 2 * index + 1):
            await channels.send(channel, port.to_bytes(2, "little"))
        work = _forward_channel(channels, 2 * index, inputs[2 * index], port, connect, where)
        running.append(tasks.spawn(work, name=f"forward {port}"))
    reading = tasks.spawn(_read_channels(channels, inputs), name="input")
    try:
        finished = asyncio.gather(*running)
        await asyncio.wait((finished, reading), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await tasks.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _read_channels(channels: Channels, inputs: dict[int, asyncio.Queue[bytes]]) -> None:
    while (message := await channels.receive()) is not None:
        channel, data = message
        if channel in inputs and data:
            await inputs[channel].put(data)


async def _forward_channel(
    channels: Channels, channel: int, incoming: asyncio.Queue[bytes], port: int, connect: Connect, where: str
) -> None:
    async def write(data: bytes) -> None:
        await channels.send(channel, data)

    with contextlib.suppress(ConnectionError):
        try:
            await _copy(await connect(port), incoming.get, write)
        except (DialError, OSError) as why:
            await channels.send(channel + 1, failed(port, where, why))


# ---- both


async def _copy(pod: Streams, read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]) -> None:
    """Pass bytes both ways until the pod's side ends; the end of the client's input is passed on. Raises OSError."""
    reader, writer = pod

    async def upload() -> None:
        with contextlib.suppress(ConnectionError):  # the pod reads no more: its answer may still come
            while data := await read():
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    uploading = asyncio.create_task(upload(), name="to the pod")
    try:
        while data := await reader.read(READ_BYTES):
            await write(data)
    finally:
        uploading.cancel()
        await asyncio.gather(uploading, return_exceptions=True)
        writer.close()
