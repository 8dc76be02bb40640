"""One call of grpc.health.v1.Health/Check, for gRPC probes: HTTP/2 by the h2 library, the two messages by hand.

The service has one request (a string) and one answer (an enumeration); a gRPC library and its thread pool would be
more than the whole kubelet needs. Protocol: grpc/doc/PROTOCOL-HTTP2.md and health-checking.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

from kone.apimachinery.protowire import field_bytes
from kone.runtime.grpc_status import DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, UNIMPLEMENTED, UNKNOWN, RpcError

PATH: Final = "/grpc.health.v1.Health/Check"
RETRY_S: Final = 1.0  # gRPC's first back-off between tries to connect
READ_BYTES: Final = 64 * 1024
STATUSES: Final = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


class NotConnected(Exception):
    """No HTTP/2 server was reached in time."""


class RpcFailed(RpcError):
    """The call ended with a gRPC status that is not OK."""

    def explain(self, within: str) -> str:
        """The kubelet's words; `within` is the probe's time limit as Go prints it."""
        if self.code == UNIMPLEMENTED:
            what = "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
            return f"{what}: {self.message}"
        if self.code == DEADLINE_EXCEEDED:
            return f"timeout: health rpc did not complete within {within}"
        return f"error: health rpc probe failed: {self}"


async def check(host: str, port: int, service: str, authority: str, agent: str, timeout_s: float) -> str:
    """The status that the server tells of a service ("" is the server as a whole), e.g. "SERVING".

    `timeout_s` bounds all of it, tries to connect included. Raises NotConnected and RpcFailed.
    """
    until = asyncio.get_running_loop().time() + timeout_s
    try:
        async with asyncio.timeout_at(until):
            connection = await _connect(host, port)
    except TimeoutError:
        raise NotConnected from None
    try:
        async with asyncio.timeout_at(until):
            return await connection.check(service, authority, agent)
    except TimeoutError:
        raise RpcFailed(DEADLINE_EXCEEDED, "context deadline exceeded") from None
    except ProtocolError as error:
        raise RpcFailed(INTERNAL, str(error)) from None
    except OSError as error:
        raise RpcFailed(UNAVAILABLE, f"error reading from server: {error}") from None
    finally:
        connection.close()


async def _connect(host: str, port: int) -> _Connection:
    """A connection whose server speaks HTTP/2; tried again and again, as gRPC clients do, until the caller cuts it
    off.
    """
    while True:
        with contextlib.suppress(OSError, ProtocolError):
            reader, writer = await asyncio.open_connection(host, port)
            connection = _Connection(reader, writer)
            try:
                await connection.open()
            except BaseException:
                connection.close()
                raise
            return connection
        await asyncio.sleep(RETRY_S)


class _Connection:
    """One HTTP/2 connection, for one call."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))

    def close(self) -> None:
        self._writer.close()

    async def open(self) -> None:
        """Returns with the server's settings, its first word. Raises OSError, ProtocolError."""
        self._h2.initiate_connection()
        self._flush()
        while not any(isinstance(event, RemoteSettingsChanged) for event in await self._read()):
            pass

    async def check(self, service: str, authority: str, agent: str) -> str:
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", PATH),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("user-agent", agent),
            ("te", "trailers"),
        ]
        self._h2.send_headers(stream, headers)
        self._h2.send_data(stream, _framed(_request(service)), end_stream=True)
        self._flush()
        answer = _Answer()
        while not answer.complete:
            for event in await self._read():
                answer.take(event)
        return answer.status()

    async def _read(self) -> list[Event]:
        data = await self._reader.read(READ_BYTES)
        if not data:
            raise ConnectionError("EOF")
        events = self._h2.receive_data(data)
        for event in events:
            if isinstance(event, DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        self._flush()
        return events

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())


@dataclass(slots=True)
class _Answer:
    """What came back: the body, and what headers and trailers say."""

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def take(self, event: Event) -> None:
        match event:
            case ResponseReceived() | TrailersReceived():
                self.headers |= {str(name): str(value) for name, value in event.headers or ()}
            case DataReceived():
                self.body += event.data or b""
            case StreamEnded():
                self.complete = True
            case StreamReset():
                raise RpcFailed(INTERNAL, f"stream terminated by RST_STREAM with error code: {event.error_code}")
            case ConnectionTerminated():
                raise RpcFailed(UNAVAILABLE, "closing transport due to: connection error")

    def status(self) -> str:
        """The health status. Raises RpcFailed."""
        code = self.headers.get("grpc-status")
        if code is None:
            http = self.headers.get(":status", "")
            raise RpcFailed(
                *_HTTP_CODES.get(http, (UNKNOWN, f"unexpected HTTP status code received from server: {http}"))
            )
        if code != "0":
            message = unquote(self.headers.get("grpc-message", ""))
            raise RpcFailed(int(code) if code.isdigit() else UNKNOWN, message)
        return _response(self.body)


_HTTP_CODES: Final[Mapping[str, tuple[int, str]]] = {
    "200": (INTERNAL, "server closed the stream without sending trailers"),
    "404": (UNIMPLEMENTED, "unexpected HTTP status code received from server: 404 (Not Found)"),
}


def _framed(message: bytes) -> bytes:
    """A gRPC message: not compressed, its length, itself."""
    return struct.pack(">BI", 0, len(message)) + message


def _request(service: str) -> bytes:
    """HealthCheckRequest: field 1 is the service's name; the empty one is not written."""
    name = service.encode()
    return field_bytes(1, name) if name else b""


def _response(body: bytes) -> str:
    """HealthCheckResponse: field 1 is the status, absent for 0. Raises RpcFailed."""
    if len(body) < 5 or body[0] != 0 or len(body) != 5 + int.from_bytes(body[1:5], "big"):
        raise RpcFailed(INTERNAL, "cannot parse the health response")
    message = body[5:]
    value = message[1] if len(message) == 2 and message[0] == 0x08 else 0
    return STATUSES[value] if value < len(STATUSES) else str(value)
