"""The door to grpclib: calls to plugins on this host by gRPC over Unix sockets, and answering theirs.

grpclib is asyncio's own gRPC on the h2 that probes use already: no thread pool, and a codec of one's own, so that
messages are those of `apimachinery/messages.py`. Errors read as Go's clients print them, since users meet them in
events.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from grpclib.client import Channel
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.protocol import H2Protocol
from grpclib.server import Server, Stream

from kone.apimachinery.messages import Message
from kone.apimachinery.protowire import Malformed
from kone.runtime.grpc_status import DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, RpcError

Content = dict[str, Any]

SOCKET_PATH_MAX: Final = 107  # bytes, unix(7)

_UNARY: Final = Cardinality.UNARY_UNARY
_STREAMING: Final = Cardinality.UNARY_STREAM


class Method(NamedTuple):
    """One method of a service: its path "/package.Service/Name", and the messages that go and come."""

    path: str
    request: Message
    answer: Message
    streams: bool = False
    """Whether the server answers with a stream."""


class _Codec(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        encoded: bytes = message_type.encode(message)
        return encoded

    def decode(self, data: bytes, message_type: Any) -> Any:
        return message_type.decode(data)


class Client:
    """A client of the plugin that listens on a socket. It connects with the first call, and again when it must."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._channel: Channel | None = None
        self._folder: int | None = None  # of a socket whose path is too long to be connected to by name

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    async def call(self, method: Method, request: Mapping[str, Any], *, timeout_s: float) -> Content:
        """The answer. Raises RpcError; one of code Unavailable where nobody listens."""
        try:
            async with self._request(method, timeout_s) as stream:
                await stream.send_message(dict(request), end=True)
                answer: Content | None = await stream.recv_message()
                if answer is not None:
                    await stream.recv_trailing_metadata()
                    return answer
        except (*_FAILURES, TimeoutError) as error:
            raise self._explained(error) from None
        raise RpcError(INTERNAL, "the server ended the call without an answer")

    async def stream(self, method: Method, request: Mapping[str, Any]) -> AsyncIterator[Content]:
        """The answers as they come, until the server ends. Raises RpcError."""
        try:
            async with self._request(method, None) as stream:
                await stream.send_message(dict(request), end=True)
                async for answer in stream:
                    yield answer
        except _FAILURES as error:
            raise self._explained(error) from None

    def _request(self, method: Method, timeout_s: float | None) -> Any:
        if self._channel is None:
            self._channel = Channel(path=self._path(), codec=_Codec())
        cardinality = _STREAMING if method.streams else _UNARY
        request: Any = method.request  # grpclib names message classes by `type`; ours are values
        answer: Any = method.answer
        return self._channel.request(method.path, cardinality, request, answer, timeout=timeout_s)

    def _path(self) -> str:
        """A name of the socket that the kernel takes. Raises OSError where the folder is not there."""
        path, self._folder = _short(self.socket)
        return path

    def _explained(self, error: BaseException) -> RpcError:
        match error:
            case GRPCError():
                return RpcError(error.status.value, error.message or "")
            case TimeoutError():
                return RpcError(DEADLINE_EXCEEDED, "context deadline exceeded")
            case Malformed() | ProtocolError():
                return RpcError(INTERNAL, f"grpc: failed to unmarshal the received message: {error}")
            case StreamTerminatedError():
                return RpcError(UNAVAILABLE, f"error reading from server: {error}")
        why = (getattr(error, "strerror", None) or str(error)).lower()
        dial = f'"transport: Error while dialing: dial unix {self.socket}: connect: {why}"'
        return RpcError(UNAVAILABLE, f"connection error: desc = {dial}")


def _short(socket: Path) -> tuple[str, int | None]:
    """A name of the socket that the kernel takes, and the descriptor of its folder while the name is of use, where it
    needs one. Raises OSError where the folder is not there."""
    if len(os.fsencode(socket)) <= SOCKET_PATH_MAX:
        return str(socket), None
    folder = os.open(socket.parent, os.O_PATH | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}/{socket.name}", folder


_FAILURES: Final = (GRPCError, ProtocolError, StreamTerminatedError, Malformed, OSError)


class _Server(Server):
    """grpclib's, which when it is closed lets go of its connections too."""

    def __init__(self, servable: GrpcServer) -> None:
        super().__init__([servable], codec=_Codec())
        self._protocols: weakref.WeakSet[H2Protocol] = weakref.WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._protocols.add(protocol)
        return protocol

    def close(self) -> None:
        super().close()
        for protocol in list(self._protocols):
            if hasattr(protocol, "processor"):  # it is connected
                protocol.processor.close()


Answerer = Callable[[Content], Awaitable[Content]]
Streamer = Callable[[Content], AsyncIterator[Content]]


class GrpcServer:
    """Answers calls on a Unix socket. An answerer of a streaming method is an async generator. What they raise as
    RpcError is the caller's to see."""

    def __init__(self, methods: Mapping[Method, Answerer | Streamer]) -> None:
        self._handlers = {method.path: _handler(method, answer) for method, answer in methods.items()}
        self._server: _Server | None = None

    def __mapping__(self) -> dict[str, Handler]:
        return self._handlers

    async def start(self, socket: Path) -> None:
        """Listen; a socket that was left there is replaced."""
        socket.unlink(missing_ok=True)
        self._server = _Server(self)
        path, folder = _short(socket)
        try:
            await self._server.start(path=path)
        finally:
            if folder is not None:
                os.close(folder)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None


def _handler(method: Method, answer: Any) -> Handler:
    async def serve(stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        if request is None:
            return
        try:
            if method.streams:
                async for message in answer(request):
                    await stream.send_message(message)
            else:
                await stream.send_message(await answer(request))
        except RpcError as error:
            raise GRPCError(Status(error.code), error.message) from None

    request: Any = method.request
    reply: Any = method.answer
    return Handler(serve, _STREAMING if method.streams else _UNARY, request, reply)
