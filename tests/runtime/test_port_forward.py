"""port-forward: connections to ports of a pod, through SPDY in a tunnel and through channels."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kone.auth.pki import Names, Pki
from kone.runtime import pod_dial, port_forward
from kone.runtime.pod_dial import DialError
from tests.runtime.server_world import World, until
from tests.runtime.test_remote_command import Tunnel, rest


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


@pytest.fixture
async def echo(world: World) -> AsyncIterator[World]:
    """In the pod, port 7 says everything again when its input has ended, with a mark."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"[" + await reader.read() + b"]")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    world.inside[7] = server.sockets[0].getsockname()[1]
    yield world
    server.close()


@pytest.mark.parametrize(
    ("query", "ports"),
    [(["80"], [80]), (["80,81", "82"], [80, 81, 82])],
)
def test_ports_of_the_query(query: list[str], ports: list[int]) -> None:
    assert port_forward.ports_of(query) == ports


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ([], 'query parameter "port" is required'),
        ([""], 'query parameter "port" cannot be empty'),
        (["80,x"], 'unable to parse "80,x" as a port: strconv.ParseUint: parsing "x": invalid syntax'),
        (["0"], 'port "0" must be > 0'),
    ],
)
def test_ports_that_cannot_be(query: list[str], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        port_forward.ports_of(query)
    assert str(caught.value) == text


async def tunnel_to(world: World) -> Tunnel:
    return Tunnel(await world.session.ws_connect("/portForward/n/p", protocols=(port_forward.TUNNEL,)))


async def pair(tunnel: Tunnel, request: str, port: str = "7") -> tuple[int, int]:
    """(error stream, data stream) as kubectl opens them."""
    error = await tunnel.client.open(streamType="error", port=port, requestID=request)
    return error, await tunnel.client.open(streamType="data", port=port, requestID=request)


async def test_many_connections_share_one_tunnel(echo: World) -> None:
    tunnel = await tunnel_to(echo)
    pairs = [await pair(tunnel, str(number)) for number in range(3)]
    for number, (_, data) in enumerate(pairs):
        await tunnel.client.data(data, f"hello {number}".encode(), fin=True)
    streams = tunnel.client.streams
    await tunnel.client.until(lambda: all(streams[data].ended and streams[error].ended for error, data in pairs))
    assert [streams[data].data for _, data in pairs] == [b"[hello 0]", b"[hello 1]", b"[hello 2]"]
    assert [streams[error].data for error, _ in pairs] == [b""] * 3
    assert echo.dialed == [(4711, 7)] * 3
    await tunnel.socket.close()


async def test_a_port_that_nobody_listens_on_is_told_of_and_harms_no_other(echo: World) -> None:
    tunnel = await tunnel_to(echo)
    error, data = await pair(tunnel, "0", port="8")
    streams = tunnel.client.streams
    await tunnel.client.until(lambda: bool(streams[error].reset and streams[data].reset))
    told = b"error forwarding port 8 to pod p, uid u: failed to connect to localhost:8"
    assert streams[error].data == told
    _, other = await pair(tunnel, "1")
    await tunnel.client.data(other, b"x", fin=True)
    await tunnel.client.until(lambda: streams[other].data == b"[x]")
    await tunnel.socket.close()


async def test_old_clients_name_no_request(echo: World) -> None:
    tunnel = await tunnel_to(echo)
    await tunnel.client.open(streamType="error", port="7")
    data = await tunnel.client.open(streamType="data", port="7")
    await tunnel.client.data(data, b"x", fin=True)
    await tunnel.client.until(lambda: tunnel.client.streams[data].data == b"[x]")
    await tunnel.socket.close()


async def test_streams_that_are_no_part_of_a_connection_are_refused(echo: World) -> None:
    tunnel = await tunnel_to(echo)
    one = await tunnel.client.open(streamType="else", port="7")
    two = await tunnel.client.open(streamType="data")
    streams = tunnel.client.streams
    await tunnel.client.until(lambda: bool(streams[one].reset and streams[two].reset))
    await tunnel.socket.close()


async def test_a_client_that_goes_takes_its_connections_along(world: World) -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    world.inside[7] = server.sockets[0].getsockname()[1]
    tunnel = await tunnel_to(world)
    await pair(tunnel, "0")
    await until(lambda: bool(world.dialed))
    await tunnel.socket.close()
    await asyncio.wait_for(ended.wait(), 30)
    server.close()


async def test_channels(world: World) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello " + await reader.readexactly(3))
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    world.inside[7] = server.sockets[0].getsockname()[1]
    path = "/portForward/n/p?port=7,8"
    async with world.session.ws_connect(path, protocols=("v4.channel.k8s.io",)) as socket:
        await socket.send_bytes(b"\x00you")
        found = await rest(socket)
    by_channel: dict[int, bytes] = {}
    for channel, data in found:
        by_channel[channel] = by_channel.get(channel, b"") + data
    assert by_channel[0] == b"\x07\x00hello you"
    assert by_channel[1] == b"\x07\x00"
    assert by_channel[2] == b"\x08\x00"
    assert by_channel[3] == b"\x08\x00error forwarding port 8 to pod p, uid u: failed to connect to localhost:8"
    server.close()


async def test_a_pod_that_has_ended_has_no_ports(world: World) -> None:
    world.runtime.sandbox = replace(world.runtime.sandbox, ready=False)
    assert await world.get("/portForward/n/p?port=7") == (500, 'pod not found ("p_n")')


# Into a network namespace


@pytest.mark.ring3
async def test_dialing_reaches_the_localhost_of_another_network() -> None:
    inside = await asyncio.create_subprocess_exec(
        "unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 60", stdout=asyncio.subprocess.PIPE
    )
    assert inside.stdout is not None
    assert await inside.stdout.readline() == b"up\n"
    own = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = own.sockets[0].getsockname()[1]
    try:
        with pytest.raises(DialError) as caught:
            await pod_dial.dial(inside.pid, port)
        assert str(caught.value).startswith(
            f'failed to connect to localhost:{port} inside namespace "/proc/{inside.pid}/ns/net", '
            f"IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused"
        )
        reader, writer = await pod_dial.dial(os.getpid(), port)
        assert await reader.read() == b""
        writer.close()
        before = os.readlink("/proc/self/ns/net")
        assert os.readlink("/proc/thread-self/ns/net") == before
    finally:
        own.close()
        inside.kill()
        await inside.wait()


async def test_dialing_a_process_that_is_gone() -> None:
    with pytest.raises(DialError, match="failed to enter network namespace"):
        await pod_dial.dial(2**22 + 1, 80)
