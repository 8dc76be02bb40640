"""exec and attach over WebSocket: the channel protocols of k8s.io/streaming that kubectl and client-go speak.

A message is one byte of channel and then data: 0 stdin, 1 stdout, 2 stderr, 3 the final Status, 4 the terminal's size
as JSON. Version 5 adds 255: the client closes the channel that follows. The base64 forms carry the channel as a digit
and the data in base64, in text messages.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import WSMsgType, web

from kone.apimachinery.objects import Object
from kone.runtime.runtime import Session

log = logging.getLogger(__name__)

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
)
HEARTBEAT_S = 30.0


def success() -> Object:
    return {"metadata": {}, "status": "Success"}


def exit_status(code: int) -> Object:
    """What the error channel says at the end of a command (remotecommand protocol v4)."""
    if code == 0:
        return success()
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: command terminated with exit code {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failure(message: str) -> Object:
    return {
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    }


class Channels:
    """One WebSocket, framed as its subprotocol says."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        protocol = socket.ws_protocol or ""
        self._base64 = "base64" in protocol
        self._structured = protocol.startswith(("v4", "v5"))  # the last word is a Status, not a text

    async def send(self, channel: int, data: bytes) -> None:
        if self._base64:
            await self._socket.send_str(str(channel) + base64.b64encode(data).decode())
        else:
            await self._socket.send_bytes(bytes((channel,)) + data)

    async def finish(self, status: Object) -> None:
        """The last word on the error channel; the older protocols say nothing of success."""
        if self._structured:
            await self.send(ERROR, json.dumps(status).encode())
        elif status["status"] != "Success":
            await self.send(ERROR, status["message"].encode())

    async def receive(self) -> tuple[int, bytes] | None:
        """The next (channel, data) of the client; None when it is gone."""
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY and message.data:
                return message.data[0], message.data[1:]
            if message.type is WSMsgType.TEXT and message.data:
                if not self._base64:
                    return int(message.data[0]), message.data[1:].encode()
                return int(message.data[0]), base64.b64decode(message.data[1:])
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                return None


async def serve(
    request: web.Request,
    open_session: Callable[[], Awaitable[Session]],
    *,
    stdin: bool,
    stdout: bool,
    stderr: bool,
) -> web.WebSocketResponse:
    """Join a WebSocket and a session until the session's output ends or the client goes."""
    socket = web.WebSocketResponse(protocols=PROTOCOLS, heartbeat=HEARTBEAT_S, max_msg_size=0, compress=False)
    await socket.prepare(request)
    channels = Channels(socket)
    # An empty message tells the client that its streams are open (k8s.io/streaming's wsstream does the same).
    await channels.send(STDOUT if stdout else STDERR if stderr else ERROR, b"")
    try:
        session = await open_session()
    except Exception as error:
        log.info("%s: %s", request.path, error)
        await channels.finish(failure(str(error)))
        await socket.close()
        return socket
    incoming = asyncio.create_task(_incoming(channels, session, stdin=stdin), name=f"stdin of {request.path}")
    outgoing = asyncio.create_task(
        _outgoing(channels, session, stdout=stdout, stderr=stderr), name=f"output of {request.path}"
    )
    try:
        await asyncio.wait((incoming, outgoing), return_when=asyncio.FIRST_COMPLETED)
        if outgoing.done() and not outgoing.cancelled() and outgoing.exception() is None:
            await channels.finish(exit_status(await session.exit_code()))
    except ConnectionError:
        pass  # the client went in the middle of the last word
    finally:
        for task in (incoming, outgoing):
            task.cancel()
        await asyncio.gather(incoming, outgoing, return_exceptions=True)
        await session.close()
        with contextlib.suppress(ConnectionError):
            await socket.close()
    return socket


async def _outgoing(channels: Channels, session: Session, *, stdout: bool, stderr: bool) -> None:
    while (output := await session.read()) is not None:
        stream, data = output
        if stream == "stdout" and stdout:
            await channels.send(STDOUT, data)
        elif stream == "stderr" and stderr:
            await channels.send(STDERR, data)


async def _incoming(channels: Channels, session: Session, *, stdin: bool) -> None:
    """Ends when the client is gone. A process that no longer reads ends nothing: its output may still come."""
    reads = stdin
    while (message := await channels.receive()) is not None:
        channel, data = message
        if channel == STDIN and reads:
            try:
                await session.write(data)
            except (BrokenPipeError, ConnectionError):
                reads = False
        elif channel == RESIZE:
            try:
                size = json.loads(data)
                await session.resize(int(size["Width"]), int(size["Height"]))
            except (ValueError, KeyError, TypeError):
                log.debug("a terminal size that is none: %r", data)
        elif channel == CLOSE and data[:1] == bytes((STDIN,)) and reads:
            reads = False
            await session.close_stdin()
