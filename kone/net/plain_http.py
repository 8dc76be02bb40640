"""The few words of HTTP that load balancers ask with: one GET or HEAD a connection, answered at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

REQUEST_TIMEOUT_S = 5.0
HEAD_MAX = 8192
REASONS = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said."""

    status: int
    body: str
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self, *, head: bool = False) -> bytes:
        """With its header; `head` leaves the body out."""
        content = self.body.encode()
        lines = [
            f"HTTP/1.1 {self.status} {REASONS[self.status]}",
            f"Content-Type: {self.content_type}",
            "X-Content-Type-Options: nosniff",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            f"Content-Length: {len(content)}",
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else content)


async def listen(answer: Callable[[str], Answer], addresses: Sequence[str] | None, port: int) -> asyncio.Server:
    """Answer requests by their path, its query left out, at these addresses (None: everywhere). Raises OSError."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await reader.readuntil(b"\r\n\r\n")
                method, _, rest = request.partition(b"\r\n")[0].decode("latin-1").partition(" ")
                path = rest.partition(" ")[0].partition("?")[0]
                writer.write(answer(path).encoded(head=method == "HEAD"))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # nobody is there to be told
        finally:
            writer.close()

    return await asyncio.start_server(serve, addresses, port, limit=HEAD_MAX)


async def close(server: asyncio.Server) -> None:
    """Listen no more."""
    server.close()
    await server.wait_closed()
