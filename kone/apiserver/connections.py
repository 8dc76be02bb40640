"""A client's connection: what it says of its peer, who hears when it ends, and how it is taken over for a tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong
from aiohttp.web_protocol import RequestHandler
from multidict import istr

from kone.apimachinery.errors import StatusError, internal_error
from kone.apiserver import codec
from kone.apiserver.audit import Record
from kone.apiserver.flowcontrol.levels import Flow
from kone.apiserver.flowcontrol.queues import Ticket
from kone.apiserver.identity import new_uid
from kone.apiserver.responses import no_such_method, status_reply
from kone.auth.authentication import UnixPeer

log = logging.getLogger(__name__)

HEADER_MAX_BYTES: Final = 32 * 1024
IDLE_MAX_S: Final = 90.0  # a connection without a whole request for so long is closed
STREAM_BYTES: Final = 128 * 1024
_AUDIT_ID: Final = istr("Audit-Id")
_SCHEMA_UID: Final = istr("X-Kubernetes-PF-FlowSchema-UID")
_LEVEL_UID: Final = istr("X-Kubernetes-PF-PriorityLevel-UID")


class Connection(RequestHandler):
    """aiohttp's side of a connection. `certificate` (DER) or `peer` are read once, when it is made."""

    certificate: bytes | None = None
    peer: UnixPeer | None = None
    on_lost: Callable[[], object] | None = None
    """Called when the client goes; for requests that wait for something else than the client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.certificate = tls.getpeercert(binary_form=True)
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_UNIX:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.peer = UnixPeer(*struct.unpack("3i", credentials))

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """End the connection. A client that has everything is not waited for: TLS would ask it to say goodbye."""
        transport = self.transport
        await super().shutdown(timeout)
        if transport is not None and not transport.get_write_buffer_size():
            transport.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What the parser refuses is answered as a Status, too."""
        if isinstance(exc, BadHttpMethod):
            return status_reply(no_such_method())
        if isinstance(exc, LineTooLong) or "Too many headers" in str(exc):
            return status_reply(StatusError(431, "", "Request Header Fields Too Large"))
        if status >= 500:
            log.error("a request could not be served", exc_info=exc)
            return status_reply(internal_error(str(exc)))
        return status_reply(StatusError(status, "BadRequest", message or str(exc)))

    def take_over(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The bytes of the connection: from here on it is no longer HTTP. Raises ConnectionError if it is gone."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=STREAM_BYTES, loop=loop)
        protocol = _Bytes(reader, self)
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        early, self._message_tail = self._message_tail, b""
        if early:
            reader.feed_data(early)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _Bytes(asyncio.StreamReaderProtocol):
    """A connection that was taken over. Its first owner hears only of its end."""

    def __init__(self, reader: asyncio.StreamReader, owner: Connection) -> None:
        super().__init__(reader)
        self._owner = owner

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._owner.connection_lost(exc)


@contextlib.contextmanager
def ends_with_client(request: web.BaseRequest) -> Iterator[None]:
    """Cancel the current task when the client goes: otherwise a request that only waits would never know."""
    task = asyncio.current_task()
    assert task is not None
    connection = request.protocol
    assert isinstance(connection, Connection)
    connection.on_lost = task.cancel
    try:
        yield
    finally:
        connection.on_lost = None


class Request(web.BaseRequest):
    """A request, and what is recorded of it where that is wanted."""

    audit_id = ""
    """What its answer and the audit log call it."""
    record: Record | None = None
    flow: Flow | None = None
    """What flow control has found it to be."""
    ticket: Ticket | None = None
    """Its seat while it holds one."""
    deadline = 0.0
    timed_out = False
    answered = False
    """The head of the answer is on its way."""
    begun: Callable[[], None] | None = None
    """Called by a watch that has sent what there was when it came."""
    ended: Callable[[], None] | None = None
    """Called at the end of a watch."""

    def named(self) -> str:
        """Give it its audit ID, the client's if it has one."""
        self.audit_id = self.headers.get(_AUDIT_ID) or new_uid()
        return self.audit_id

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Called before the head of any answer is sent."""
        self.answered = True
        headers = response.headers
        headers[_AUDIT_ID] = self.audit_id or self.named()
        if (flow := self.flow) is not None:
            headers[_SCHEMA_UID] = flow.schema_uid
            headers[_LEVEL_UID] = flow.level_uid
        if self.record is not None:
            self.record.answer_begins(response)


class Server(web.Server):
    """aiohttp's low-level server with our connections, and bodies as large as upstream takes them."""

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # what aiohttp documents for "none"
            keepalive_timeout=IDLE_MAX_S,
            auto_decompress=False,  # upstream takes a body as it is, whatever it says of its encoding
            max_field_size=HEADER_MAX_BYTES,
            max_line_size=HEADER_MAX_BYTES,
        )

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return Request(message, payload, protocol, writer, task, self._loop, client_max_size=codec.BODY_MAX_BYTES)
