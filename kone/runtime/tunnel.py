"""Bytes through a WebSocket: what `SPDY/3.1+…` subprotocols put their frames into."""

from __future__ import annotations

from aiohttp import WSMsgType, web

_CONTROL = (WSMsgType.PING, WSMsgType.PONG)


class Tunnel:
    """The ByteStream of spdy.py: binary messages, whose boundaries mean nothing."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def read(self) -> bytes:
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                if message.data:
                    return bytes(message.data)
            elif message.type not in _CONTROL:
                return b""

    async def write(self, data: bytes) -> None:
        await self._socket.send_bytes(data)
