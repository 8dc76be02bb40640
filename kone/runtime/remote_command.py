"""exec and attach: a client's terminal joined to a process in a container.

Two wires carry the same five streams (stdin, stdout, stderr, error, resize): channels of a WebSocket, which kubectl and
all current clients speak, and SPDY inside a WebSocket, into which the API server puts what older clients send. The
last word, on the error stream, is a Status that tells the exit code. Behaviour and texts:
k8s.io/cri-streaming/pkg/streaming/remotecommand.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Literal, Protocol

from aiohttp import web

from kone.apimachinery.objects import Object
from kone.runtime.channels import CLOSE_CHANNEL, Channels
from kone.runtime.runtime import RuntimeFault, Session
from kone.runtime.spdy import Connection, SpdyError, Stream
from kone.runtime.tunnel import Tunnel

log = logging.getLogger(__name__)

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
TUNNEL: Final = "SPDY/3.1+v4.channel.k8s.io"
CHANNEL_PROTOCOLS: Final = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
)
PROTOCOLS: Final = (*CHANNEL_PROTOCOLS, TUNNEL)
STREAMS_S: Final = 30.0  # how long a SPDY client may take to open its streams (streamCreationTimeout)

OpenSession = Callable[[], Awaitable[Session]]
Input = tuple[Literal["stdin", "resize"], bytes]


def success() -> Object:
    return {"metadata": {}, "status": "Success"}


def exit_status(code: int) -> Object:
    """What the error stream says at the end of a command."""
    if code == 0:
        return success()
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: command terminated with exit code {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failure(what: str, why: Exception) -> Object:
    """`what` is "error executing command in container" or "error attaching to container"."""
    message = f"Internal error occurred: {what}: {why}"
    return {"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500}


class Wire(Protocol):
    """A client's streams."""

    async def send(self, stream: Literal["stdout", "stderr"], data: bytes) -> None: ...

    async def finish(self, status: Object) -> None:
        """The last word."""

    async def receive(self) -> Input | None:
        """The next input; ("stdin", b"") when stdin has ended, None when the client is gone."""


class ChannelWire:
    """Channels 0 to 4 of a WebSocket."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def greet(self, *, stdout: bool, stderr: bool) -> None:
        """An empty message tells the client that its streams are open."""
        await self._channels.send(STDOUT if stdout else STDERR if stderr else ERROR, b"")

    async def send(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        await self._channels.send(STDOUT if stream == "stdout" else STDERR, data)

    async def finish(self, status: Object) -> None:
        """Before version 4 it was a text, and nothing in case of success."""
        if self._channels.protocol.startswith(("v4", "v5")):
            await self._channels.send(ERROR, json.dumps(status).encode())
        elif status["status"] != "Success":
            await self._channels.send(ERROR, status["message"].encode())

    async def receive(self) -> Input | None:
        while (message := await self._channels.receive()) is not None:
            channel, data = message
            if channel == STDIN and data:
                return "stdin", data
            if channel == RESIZE:
                return "resize", data
            if channel == CLOSE_CHANNEL and data[:1] == bytes((STDIN,)):
                return "stdin", b""
        return None


class SpdyWire:
    """SPDY streams named by their `streamtype` header."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._streams: dict[str, Stream] = {}
        self._arrived = asyncio.Event()
        self._input: asyncio.Queue[Input | None] = asyncio.Queue(16)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, wanted: set[str]) -> None:
        """Wait until the client has opened its streams. Raises TimeoutError."""
        self._tasks.append(asyncio.create_task(self._serve(), name="streams"))
        async with asyncio.timeout(STREAMS_S):
            while not wanted <= self._streams.keys():
                self._arrived.clear()
                await self._arrived.wait()
        if (stdin := self._streams.get("stdin")) is not None:
            self._tasks.append(asyncio.create_task(self._read(stdin), name="stdin"))
        if (resize := self._streams.get("resize")) is not None:
            self._tasks.append(asyncio.create_task(self._read_sizes(resize), name="resize"))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(ConnectionError):
            await self._connection.close()

    async def send(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        await self._streams[stream].write(data)

    async def finish(self, status: Object) -> None:
        await self._streams["error"].write(json.dumps(status).encode())
        for kind in ("stdout", "stderr", "error"):
            if kind in self._streams:
                await self._streams[kind].finish()

    async def receive(self) -> Input | None:
        return await self._input.get()

    async def _serve(self) -> None:
        try:
            async for stream in self._connection.streams():
                self._streams[stream.headers.get("streamtype", "")] = stream
                self._arrived.set()
        except SpdyError as error:
            log.info("remote command: %s", error)
        await self._input.put(None)

    async def _read(self, stdin: Stream) -> None:
        while data := await stdin.read():
            await self._input.put(("stdin", data))
        await self._input.put(("stdin", b""))

    async def _read_sizes(self, resize: Stream) -> None:
        """A size is a line of JSON."""
        rest = b""
        while data := await resize.read():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                await self._input.put(("resize", line))


async def serve(
    socket: web.WebSocketResponse,
    open_session: OpenSession,
    *,
    what: str,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool = False,
) -> None:
    """Join a client and a session until the session's output ends or the client goes. `what` see `failure`."""
    if socket.ws_protocol != TUNNEL:
        wire = ChannelWire(Channels(socket))
        with contextlib.suppress(ConnectionError):
            await wire.greet(stdout=stdout, stderr=stderr)
            await _join(wire, open_session, what=what, stdin=stdin, stdout=stdout, stderr=stderr)
        return
    spdy = SpdyWire(Connection(Tunnel(socket)))
    flags = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "resize": tty}
    try:
        await spdy.open({"error", *(kind for kind, wanted in flags.items() if wanted)})
        await _join(spdy, open_session, what=what, stdin=stdin, stdout=stdout, stderr=stderr)
    except TimeoutError:
        log.info("remote command: timed out waiting for the client's streams")
    except ConnectionError:
        pass  # the client went in the middle of the last word
    finally:
        await spdy.close()


async def _join(wire: Wire, open_session: OpenSession, *, what: str, stdin: bool, stdout: bool, stderr: bool) -> None:
    """Raises ConnectionError where the client went in the middle of the last word."""
    try:
        session = await open_session()
    except RuntimeFault as fault:
        log.info("%s: %s", what, fault)
        await wire.finish(failure(what, fault))
        return
    incoming = asyncio.create_task(_incoming(wire, session, stdin=stdin), name="input")
    outgoing = asyncio.create_task(_outgoing(wire, session, stdout=stdout, stderr=stderr), name="output")
    try:
        await asyncio.wait((incoming, outgoing), return_when=asyncio.FIRST_COMPLETED)
        if outgoing.done():
            await wire.finish(await _last_word(outgoing, session, what))
    finally:
        for task in (incoming, outgoing):
            task.cancel()
        await asyncio.gather(incoming, outgoing, return_exceptions=True)
        await session.close()


async def _last_word(outgoing: asyncio.Task[None], session: Session, what: str) -> Object:
    try:
        outgoing.result()
        return exit_status(await session.exit_code())
    except RuntimeFault as fault:
        log.info("%s: %s", what, fault)
        return failure(what, fault)


async def _outgoing(wire: Wire, session: Session, *, stdout: bool, stderr: bool) -> None:
    wanted = {"stdout": stdout, "stderr": stderr}
    while (output := await session.read()) is not None:
        stream, data = output
        if wanted[stream]:
            await wire.send(stream, data)


async def _incoming(wire: Wire, session: Session, *, stdin: bool) -> None:
    """Ends when the client is gone. A process that no longer reads ends nothing: its output may still come."""
    reads = stdin
    while (message := await wire.receive()) is not None:
        kind, data = message
        if kind == "resize":
            await _resize(session, data)
        elif reads:
            try:
                await (session.write(data) if data else session.close_stdin())
            except ConnectionError:
                reads = False
            reads = reads and bool(data)


async def _resize(session: Session, data: bytes) -> None:
    try:
        size = json.loads(data)
        await session.resize(int(size["Width"]), int(size["Height"]))
    except (ValueError, KeyError, TypeError):
        log.debug("a terminal size that is none: %r", data)
    except RuntimeFault as fault:
        log.debug("the terminal is not resized: %s", fault)
