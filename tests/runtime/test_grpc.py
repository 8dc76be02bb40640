"""Calls over a Unix socket, answered by our own server: what comes back, and how failures read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import settle
from kone.apimachinery.messages import Message
from kone.runtime.grpc import Client, GrpcServer, Method
from kone.runtime.grpc_status import DEADLINE_EXCEEDED, FAILED_PRECONDITION, UNAVAILABLE, RpcError

TEXT = Message({1: ("text", str)})
ECHO = Method("/test.Test/Echo", TEXT, TEXT)
COUNT = Method("/test.Test/Count", TEXT, TEXT, streams=True)


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    match request.get("text", ""):
        case "refuse":
            raise RpcError(FAILED_PRECONDITION, "volume 100 % in use: ü")
        case "sleep":
            await asyncio.Event().wait()
    return request


async def count(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for number in range(3):
        yield {"text": f"{request['text']}{number}"}


@pytest.fixture
async def socket(short_path: Path) -> AsyncIterator[Path]:
    server = GrpcServer({ECHO: echo, COUNT: count})
    await server.start(short_path / "s.sock")
    yield short_path / "s.sock"
    await server.stop()


@pytest.fixture
async def client(socket: Path) -> AsyncIterator[Client]:
    made = Client(socket)
    yield made
    made.close()


async def test_a_call_is_answered_and_the_connection_is_kept(client: Client) -> None:
    for text in ("one", "", "x" * 100_000):
        assert (await client.call(ECHO, {"text": text}, timeout_s=10.0)).get("text", "") == text


async def test_a_stream_is_read_to_its_end(client: Client) -> None:
    assert [answer["text"] async for answer in client.stream(COUNT, {"text": "n"})] == ["n0", "n1", "n2"]


async def test_a_refusal_reads_as_go_prints_it(client: Client) -> None:
    with pytest.raises(RpcError) as refused:
        await client.call(ECHO, {"text": "refuse"}, timeout_s=10.0)
    assert refused.value.code == FAILED_PRECONDITION
    assert str(refused.value) == "rpc error: code = FailedPrecondition desc = volume 100 % in use: ü"


async def test_a_call_is_given_up_after_its_time(client: Client) -> None:
    with pytest.raises(RpcError) as late:
        await client.call(ECHO, {"text": "sleep"}, timeout_s=0.05)
    assert (late.value.code, late.value.message) == (DEADLINE_EXCEEDED, "context deadline exceeded")


async def test_nobody_listens(short_path: Path) -> None:
    client = Client(short_path / "none.sock")
    with pytest.raises(RpcError) as refused:
        await client.call(ECHO, {}, timeout_s=10.0)
    client.close()
    assert refused.value.code == UNAVAILABLE
    assert refused.value.message.endswith('none.sock: connect: no such file or directory"')


async def test_a_socket_whose_path_is_longer_than_the_kernel_takes(socket: Path) -> None:
    folder = socket.parent / ("x" * 120)
    folder.mkdir()
    socket.rename(folder / "s.sock")
    client = Client(folder / "s.sock")
    assert await client.call(ECHO, {"text": "a"}, timeout_s=10.0) == {"text": "a"}
    client.close()


async def test_a_server_that_was_started_anew_is_found_again(short_path: Path) -> None:
    client = Client(short_path / "s.sock")
    for _ in range(2):
        server = GrpcServer({ECHO: echo})
        await server.start(short_path / "s.sock")
        assert await client.call(ECHO, {"text": "a"}, timeout_s=10.0) == {"text": "a"}
        await server.stop()
        await settle()  # the client sees that the connection is gone
    client.close()


async def test_a_socket_may_lie_deeper_than_a_name_of_one_is_long(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    server, client = GrpcServer({ECHO: echo}), Client(folder / "s.sock")
    await server.start(folder / "s.sock")
    try:
        assert await client.call(ECHO, {"text": "heard"}, timeout_s=10.0) == {"text": "heard"}
    finally:
        client.close()
        await server.stop()
