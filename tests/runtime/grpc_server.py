"""A gRPC health server of few words, for probes to ask: it answers every call the same way."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

Headers = list[tuple[str, str]]


@dataclass
class GrpcServer:
    """`body` and `trailers` are the answer; `silent` gives none. `requests` are the messages that came."""

    body: bytes = b"\x00\x00\x00\x00\x02\x08\x01"
    trailers: Headers = field(default_factory=lambda: [("grpc-status", "0")])
    silent: bool = False
    requests: list[bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    _server: asyncio.Server | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in (open_ := list(self._connections)):  # a client may keep its connection for later calls
            connection.cancel()
        await asyncio.gather(*open_, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        h2.initiate_connection()
        writer.write(h2.data_to_send())
        body = b""
        while data := await reader.read(65536):
            for event in h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    self.headers = {str(k): str(v) for k, v in event.headers or ()}
                elif isinstance(event, DataReceived):
                    body += event.data or b""
                elif isinstance(event, StreamEnded) and not self.silent:
                    self.requests.append(body)
                    h2.send_headers(event.stream_id or 0, [(":status", "200"), ("content-type", "application/grpc")])
                    if self.body:
                        h2.send_data(event.stream_id or 0, self.body)
                    h2.send_headers(event.stream_id or 0, self.trailers, end_stream=True)
            writer.write(h2.data_to_send())
