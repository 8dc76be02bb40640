"""HTTP upgrades passed through: once a backend has switched protocols, its connection and the client's are one.

WebSockets go through byte for byte and are not looked into: who proves the handshake to the client is the backend.
Clients that still speak SPDY (kubectl before 1.31) get their bytes put into the messages of a WebSocket, which is what
kone's kubelet takes (`SPDY/3.1+…` subprotocols, as upstream's port-forward does).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from kone.apiserver.connections import Connection

CONNECT_TIMEOUT_S: Final = 5.0
HANDSHAKE_TIMEOUT_S: Final = 30.0
CHUNK_BYTES: Final = 64 * 1024
REFUSAL_MAX_BYTES: Final = 1 << 20
SPDY: Final = "SPDY/3.1"
# RFC 6455, section 5.2
_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x2, 0x8, 0x9, 0xA
_FINAL: Final = 0x80
_MASKED: Final = 0x80

Source = Callable[[], Awaitable[bytes]]
"""The next bytes; none at the end."""
Sink = Callable[[bytes], Awaitable[None]]


class Malformed(OSError):
    """A backend does not speak HTTP."""


@dataclass(slots=True)
class Backend:
    """A connection and the answer to the request for an upgrade. `switched` where it was granted."""

    status: int
    reason: str
    headers: CIMultiDict[str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def switched(self) -> bool:
        return self.status == HTTPStatus.SWITCHING_PROTOCOLS

    async def refusal(self) -> bytes:
        """The body of an answer that is no upgrade."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return await _chunked(self.reader)
        length = self.headers.get("Content-Length", "")
        if length.isdigit():
            with contextlib.suppress(asyncio.IncompleteReadError):
                return await self.reader.readexactly(min(int(length), REFUSAL_MAX_BYTES))
            return b""
        return await self.reader.read(REFUSAL_MAX_BYTES)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


async def dial(
    url: URL,
    *,
    tls: ssl.SSLContext | None,
    method: str,
    headers: CIMultiDict[str],
    server_name: str | None = None,
) -> Backend:
    """Send a request for an upgrade and read the head of the answer; `server_name` is whom the certificate must name,
    where that is not the URL's host. Raises OSError, TimeoutError included."""
    context = tls if url.scheme in ("https", "wss") else None
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(
            url.host, url.port, ssl=context, server_hostname=server_name if context is not None else None
        )
    try:
        lines = [f"{method} {url.raw_path_qs} HTTP/1.1", f"Host: {url.authority}"]
        lines += (f"{name}: {value}" for name, value in headers.items())
        writer.write("\r\n".join((*lines, "\r\n")).encode("latin-1"))
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            return Backend(*await _head(reader), reader, writer)
    except BaseException:
        writer.close()
        raise


async def _head(reader: asyncio.StreamReader) -> tuple[int, str, CIMultiDict[str]]:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise Malformed("EOF" if isinstance(error, asyncio.IncompleteReadError) else "header too large") from error
    first, *lines = head.split("\r\n")[:-2]
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise Malformed("malformed HTTP response")
    headers = CIMultiDict[str]()
    for line in lines:
        name, _, value = line.partition(":")
        headers.add(name.strip(), value.strip())
    return int(words[1]), words[2] if len(words) > 2 else "", headers


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    with contextlib.suppress(asyncio.IncompleteReadError, ValueError):
        while (size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)) and len(body) < REFUSAL_MAX_BYTES:
            body += await reader.readexactly(size)
            await reader.readexactly(2)
    return bytes(body)


# ---- the client's side


class Spliced(web.StreamResponse):
    """Stands for an answer that went around aiohttp: there is nothing left to write."""

    def __init__(self) -> None:
        super().__init__(status=HTTPStatus.SWITCHING_PROTOCOLS)
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def is_web_socket(request: web.BaseRequest) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"


def _client(request: web.BaseRequest) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection.take_over()


async def splice(request: web.BaseRequest, backend: Backend) -> web.StreamResponse:
    """Answer as the backend did, then pass bytes both ways until either side ends. The backend is closed."""
    reader, writer = _client(request)
    writer.write(_answer(backend.headers))
    await _join(
        (_reading(reader), _writing(backend.writer)),
        (_reading(backend.reader), _writing(writer)),
        (writer, backend.writer),
    )
    return Spliced()


async def splice_spdy(request: web.BaseRequest, backend: Backend, protocol: str) -> web.StreamResponse:
    """The same for a client that speaks SPDY and a backend that takes its bytes in messages of a WebSocket."""
    reader, writer = _client(request)
    headers = CIMultiDict({"Connection": "Upgrade", "Upgrade": SPDY, "X-Stream-Protocol-Version": protocol})
    writer.write(_answer(headers))
    messages = Messages(backend.reader, backend.writer)
    await _join((_reading(reader), messages.send), (messages.receive, _writing(writer)), (writer, backend.writer))
    return Spliced()


def _answer(headers: CIMultiDict[str]) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(("HTTP/1.1 101 Switching Protocols", *lines, "\r\n")).encode("latin-1")


def _reading(reader: asyncio.StreamReader) -> Source:
    return lambda: reader.read(CHUNK_BYTES)


def _writing(writer: asyncio.StreamWriter) -> Sink:
    async def write(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    return write


async def _join(up: tuple[Source, Sink], down: tuple[Source, Sink], writers: tuple[asyncio.StreamWriter, ...]) -> None:
    """Pass both ways until one way ends; what it has written is still sent."""
    tasks = [asyncio.create_task(_pass(*way), name="tunnel") for way in (up, down)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()


async def _pass(source: Source, sink: Sink) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while data := await source():
            await sink(data)


# ---- WebSocket


def handshake(protocol: str) -> CIMultiDict[str]:
    """The headers that ask for a WebSocket of this subprotocol."""
    return CIMultiDict(
        {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Protocol": protocol,
        }
    )


class Messages:
    """The client's side of a WebSocket whose binary messages are a stream of bytes.

    The mask that RFC 6455 asks of clients is zero: it protects careless intermediaries from scripts in browsers, and
    there is neither here.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(_frame(_BINARY, data))
        await self._writer.drain()

    async def receive(self) -> bytes:
        """The bytes of the next frame that has any; none once the backend closes. Raises IncompleteReadError."""
        read = self._reader.readexactly
        while True:
            first, second = await read(2)
            length = second & 0x7F
            if length >= 126:
                length = int.from_bytes(await read(2 if length == 126 else 8), "big")
            data = await read(length)
            kind = first & 0x0F
            if kind == _CLOSE:
                return b""
            if kind == _PING:
                self._writer.write(_frame(_PONG, data))
            elif kind in (_BINARY, _CONTINUATION) and data:
                return data


def _frame(kind: int, data: bytes) -> bytes:
    length = len(data)
    if length < 126:
        head = bytes((_FINAL | kind, _MASKED | length))
    elif length < 1 << 16:
        head = bytes((_FINAL | kind, _MASKED | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | kind, _MASKED | 127)) + length.to_bytes(8, "big")
    return head + b"\0\0\0\0" + data
