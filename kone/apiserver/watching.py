"""Watches as streams: JSON lines (or protobuf frames) in chunks over HTTP, or a message an event over a WebSocket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

from aiohttp import web
from multidict import CIMultiDict

from kone.apimachinery.errors import StatusError
from kone.apiserver.connections import Request, ends_with_client
from kone.apiserver.reads import Watch
from kone.apiserver.responses import WatchWriter
from kone.apiserver.tunnels import is_web_socket

BOOKMARK_EVERY_S: Final = 60.0
WATCH_MIN_S: Final = 1800.0  # without timeoutSeconds a watch ends after a random time from this to twice this


class Watching:
    """Serves watches and knows which run."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def end(self) -> None:
        """Let every client watch elsewhere, or again: the server stops."""
        for task in self._tasks:
            task.cancel()

    async def serve(
        self, request: Request, watch: Watch, writer: WatchWriter, *, timeout_s: int, bookmarks: bool
    ) -> web.StreamResponse:
        """Stream until the time is over (0: half an hour or more), the client goes, or the server stops."""
        task = asyncio.current_task()
        assert task is not None
        out = await _open(request, writer.content_type)
        self._tasks.add(task)
        try:
            with ends_with_client(request):
                lasts_s = timeout_s or WATCH_MIN_S * (1 + random.random())
                await _stream(out, watch, writer, lasts_s, bookmarks, request.begun)
        except ConnectionError:
            pass  # the client is gone
        except asyncio.CancelledError:
            if not task.cancelling() or request.transport is None or request.transport.is_closing():
                raise
            task.uncancel()  # the server stops: end the stream in good order
        finally:
            self._tasks.discard(task)
            watch.close()
            await out.close()
        return out.response


async def _stream(
    out: _Output, watch: Watch, writer: WatchWriter, timeout_s: float, bookmarks: bool, begun: Callable[[], None] | None
) -> None:
    if watch.error is not None:
        await out.write(writer.error(watch.error))
        return
    try:
        await _begin(out, watch, writer)
        if begun is not None:
            begun()
        await _follow(out, watch, writer, timeout_s, bookmarks)
    except StatusError as error:  # a state that cannot be converted
        await out.write(writer.error(error))


async def _begin(out: _Output, watch: Watch, writer: WatchWriter) -> None:
    """Send what there is already."""
    if initial := await watch.initial():
        await out.write(writer.events(initial))
    if watch.marks_end:
        await out.write(writer.bookmark(watch.revision, ends_initial=True))


async def _follow(out: _Output, watch: Watch, writer: WatchWriter, timeout_s: float, bookmarks: bool) -> None:
    clock = asyncio.get_running_loop().time
    deadline, next_bookmark = clock() + timeout_s, clock() + BOOKMARK_EVERY_S
    while (now := clock()) < deadline and not watch.ended:
        wait_s = min(deadline, next_bookmark) - now if bookmarks else deadline - now
        events = await watch.next(max(wait_s, 0.0))
        if events:
            await out.write(writer.events(events))
        elif bookmarks and clock() >= next_bookmark:
            await out.write(writer.bookmark(watch.revision))
            next_bookmark = clock() + BOOKMARK_EVERY_S


class _Output(Protocol):
    """Where the lines of a watch go."""

    response: web.StreamResponse

    async def write(self, lines: bytes) -> None: ...

    async def close(self) -> None: ...


async def _open(request: web.BaseRequest, content_type: str) -> _Output:
    if is_web_socket(request):
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        return _Messages(socket)
    headers = CIMultiDict({"Content-Type": content_type, "Cache-Control": "no-cache, private"})
    response = web.StreamResponse(headers=headers)
    response.enable_chunked_encoding()
    await response.prepare(request)
    return _Chunks(response)


class _Chunks:
    def __init__(self, response: web.StreamResponse) -> None:
        self.response = response
        self.write = response.write

    async def close(self) -> None:
        """aiohttp writes the last chunk."""


class _Messages:
    """A text message for each line. What the client says is of no interest, but for its goodbye."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.response: web.StreamResponse = socket
        self._socket = socket
        self._listener = asyncio.create_task(self._listen(), name="goodbye of a watch")

    async def write(self, lines: bytes) -> None:
        for line in lines.splitlines(keepends=True):
            await self._socket.send_str(line.decode())

    async def close(self) -> None:
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        await self._socket.close()

    async def _listen(self) -> None:
        while not self._socket.closed:
            await self._socket.receive()  # a goodbye is answered and closes the connection
