"""The channel protocols of Kubernetes' WebSockets: several byte streams in one socket.

A message is one byte of channel and then data. The base64 forms carry the channel as a digit and the data in base64,
in text messages. Protocol: k8s.io/streaming/pkg/httpstream/wsstream.
"""

from __future__ import annotations

import base64
import binascii
import logging

from aiohttp import WSMsgType, web

log = logging.getLogger(__name__)

CLOSE_CHANNEL = 255  # version 5: the client closes the channel whose number follows
_GONE = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class Channels:
    """One WebSocket, framed as its subprotocol says."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self.protocol = socket.ws_protocol or ""
        self._base64 = "base64" in self.protocol

    async def send(self, channel: int, data: bytes) -> None:
        """Raises ConnectionError where the client is gone."""
        if self._base64:
            await self._socket.send_str(str(channel) + base64.b64encode(data).decode())
        else:
            await self._socket.send_bytes(bytes((channel,)) + data)

    async def receive(self) -> tuple[int, bytes] | None:
        """The next (channel, data) of the client; None when it is gone. What is no message is passed over."""
        while True:
            message = await self._socket.receive()
            if message.type in _GONE:
                return None
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT) or not message.data:
                continue
            data: bytes = message.data.encode() if message.type is WSMsgType.TEXT else bytes(message.data)
            if not self._base64:
                return data[0], data[1:]
            try:
                return data[0] - ord("0"), base64.b64decode(data[1:], validate=True)
            except binascii.Error:
                log.info("a message that is no base64 is passed over")
