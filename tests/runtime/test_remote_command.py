"""exec and attach over real WebSockets: every channel protocol, and SPDY in a tunnel."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kone.auth.pki import Names, Pki
from kone.runtime import remote_command
from tests.runtime.server_world import World
from tests.runtime.spdy_client import SpdyClient


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"), Names("n1", node_ips=("127.0.0.1",)))
    made.ensure(time.time())
    return made


@pytest.fixture
async def world(pki: Pki, tmp_path: Path) -> AsyncIterator[World]:
    made = World(pki, tmp_path)
    await made.start()
    yield made
    await made.stop()


async def rest(socket: aiohttp.ClientWebSocketResponse) -> list[tuple[int, bytes]]:
    """All messages until the server closes."""
    found = []
    async with asyncio.timeout(5):
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                found.append((int(message.data[0]), base64.b64decode(message.data[1:])))
            else:
                found.append((message.data[0], message.data[1:]))
    return found


def connect(world: World, path: str, protocol: str) -> Any:
    return world.session.ws_connect(path, protocols=(protocol,) if protocol else ())


async def test_version_5_ends_stdin_by_itself(world: World) -> None:
    async with connect(world, "/exec/n/p/c?command=cat&input=1&output=1", "v5.channel.k8s.io") as socket:
        assert socket.protocol == "v5.channel.k8s.io"
        await socket.send_bytes(b"\x00hello")
        await socket.send_bytes(b"\xff\x00")
        await socket.send_bytes(b"\x00too late")
        assert await rest(socket) == [
            (1, b""),
            (1, b"hello"),
            (1, b"<eof>"),
            (3, b'{"metadata": {}, "status": "Success"}'),
        ]


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_the_exit_code_is_the_last_word(world: World, protocol: str) -> None:
    async with connect(world, "/exec/n/p/c?command=exit&command=3&error=1", protocol) as socket:
        greeting, output, last = await rest(socket)
    assert (greeting, output) == ((2, b""), (2, b"bye"))
    status = json.loads(last[1])
    assert (last[0], status["reason"]) == (3, "NonZeroExitCode")
    assert status["details"] == {"causes": [{"reason": "ExitCode", "message": "3"}]}


@pytest.mark.parametrize("protocol", ["channel.k8s.io", "base64.channel.k8s.io", ""])
async def test_old_protocols_say_nothing_of_success_and_a_text_of_failure(world: World, protocol: str) -> None:
    async with connect(world, "/exec/n/p/c?command=exit&command=0&error=1", protocol) as socket:
        assert await rest(socket) == [(2, b""), (2, b"bye")]
    async with connect(world, "/exec/n/p/c?command=exit&command=3&error=1", protocol) as socket:
        found = await rest(socket)
    text = b"command terminated with non-zero exit code: command terminated with exit code 3"
    assert found[-1] == (3, text)


async def test_base64_both_ways(world: World) -> None:
    path = "/exec/n/p/c?command=cat&input=1&output=1"
    async with connect(world, path, "v4.base64.channel.k8s.io") as socket:
        await socket.send_str("0!!! no base64")
        await socket.send_str("0" + base64.b64encode(b"quit").decode())
        assert (1, b"quit") in await rest(socket)


async def test_text_messages_of_a_binary_protocol_are_bytes_too(world: World) -> None:
    async with connect(world, "/exec/n/p/c?command=cat&input=1&output=1", "v4.channel.k8s.io") as socket:
        await socket.send_str("\x00quit")
        assert (1, b"quit") in await rest(socket)


async def test_only_the_streams_that_were_asked_for(world: World) -> None:
    async with connect(world, "/exec/n/p/c?command=exit&command=1&output=1", "v4.channel.k8s.io") as socket:
        found = await rest(socket)
    assert [channel for channel, _ in found] == [1, 3]
    async with connect(world, "/exec/n/p/c?command=cat&output=1", "v4.channel.k8s.io") as socket:
        await socket.send_bytes(b"\x00ignored")
        await world.runtime.sessions[-1].close_stdin()
        found = await rest(socket)
    assert (1, b"ignored") not in found


async def test_a_terminal_has_a_size(world: World) -> None:
    async with connect(world, "/attach/n/p/c?input=1&output=1&error=1", "v4.channel.k8s.io") as socket:
        await socket.send_bytes(b"\x04no size")
        await socket.send_bytes(b'\x04{"Width":80,"Height":24}')
        await socket.send_bytes(b"\x00quit")
        assert (2, b"80x24") in await rest(socket)


async def test_attached_to_a_terminal_there_is_no_stderr(world: World) -> None:
    async with connect(world, "/attach/n/p/t?input=1&output=1&error=1", "v4.channel.k8s.io") as socket:
        await socket.send_bytes(b'\x04{"Width":80,"Height":24}')
        await socket.send_bytes(b"\x00quit")
        assert {channel for channel, _ in await rest(socket)} == {1, 3}


@pytest.mark.parametrize(
    ("command", "why"),
    [("broken", "the container is not running"), ("nope", 'exec: "nope": executable file not found in $PATH')],
    ids=["before it began", "found out at its end"],
)
async def test_a_command_that_cannot_be_run(world: World, command: str, why: str) -> None:
    async with connect(world, f"/exec/n/p/c?command={command}&output=1", "v5.channel.k8s.io") as socket:
        status = json.loads((await rest(socket))[-1][1])
    message = f"Internal error occurred: error executing command in container: {why}"
    assert (status["reason"], status["code"], status["message"]) == ("InternalError", 500, message)


# SPDY


class Tunnel:
    """A SPDY client inside a WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.client = SpdyClient(socket.send_bytes)
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.socket:
            self.client.feed(message.data)

    async def streams(self, *kinds: str) -> dict[str, int]:
        return {kind: await self.client.open(streamType=kind) for kind in kinds}


async def test_spdy_in_a_tunnel(world: World) -> None:
    path = "/exec/n/p/c?command=cat&input=1&output=1&tty=1"
    async with connect(world, path, remote_command.TUNNEL) as socket:
        tunnel = Tunnel(socket)
        numbers = await tunnel.streams("error", "stdin", "stdout", "resize")
        await tunnel.client.data(numbers["resize"], b'{"Width":80,"Height":24}\n{"Width":90,"He')
        await tunnel.client.data(numbers["resize"], b'ight":25}\n')
        await tunnel.client.data(numbers["stdin"], b"hello")
        await tunnel.client.data(numbers["stdin"], b"", fin=True)
        await tunnel.client.until(lambda: tunnel.client.goodbye)
        assert tunnel.client.streams[numbers["stdout"]].data == b"hello<eof>"
        assert tunnel.client.streams[numbers["stdout"]].ended
        assert json.loads(tunnel.client.streams[numbers["error"]].data)["status"] == "Success"
        await tunnel.reading


async def test_spdy_tells_the_exit_code(world: World) -> None:
    async with connect(world, "/exec/n/p/c?command=exit&command=7&error=1", remote_command.TUNNEL) as socket:
        tunnel = Tunnel(socket)
        numbers = await tunnel.streams("error", "stderr")
        await tunnel.client.until(lambda: tunnel.client.goodbye)
        assert tunnel.client.streams[numbers["stderr"]].data == b"bye"
        status = json.loads(tunnel.client.streams[numbers["error"]].data)
        assert status["details"]["causes"][0]["message"] == "7"
        await tunnel.reading
