"""Ingress: throughput beside a plain Caddy in front of the same backend, and what a hundred changes under load lose."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import load
from benchmarks.report import Figure
from kone.aio.clock import SystemClock
from kone.apimachinery.kinds import ENDPOINTSLICES, INGRESSES, SERVICES
from kone.client.events import EventRecorder
from kone.net.ingress.caddy import end_caddy, find_caddy
from kone.net.ingress.controller import COMPONENT, IngressConfig, IngressController
from tests.fakes import FakeClient
from tests.net.objects import endpoint, endpoint_slice, ingress, service

HERE = "127.0.0.1"
CONNECTIONS = 32
SECONDS = 2
TURNS = 3
CHANGES = 100
AMONG = 200  # other hosts


def measure() -> Iterator[Figure]:
    load.ensure_wrk()
    yield from uvloop.run(_measure())


async def _measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backends, plain, port, tls_port = (_free_port() for _ in range(4))
        answer = {"handler": "static_response", "body": "x" * 200}
        proxy = {"handler": "reverse_proxy", "upstreams": [{"dial": f"{HERE}:{backends}"}]}
        async with _caddy(folder, "backend", backends, answer), _caddy(folder, "plain", plain, proxy):
            client = FakeClient()
            client.put(SERVICES, service("web"))
            client.put(ENDPOINTSLICES, endpoint_slice("web", endpoint(HERE), ports=[("http", backends)]))
            for number in range(AMONG):
                client.put(INGRESSES, ingress(f"other-{number}", [(f"{number}.test", "/", "Prefix", "web")]))
            client.put(INGRESSES, ingress("web", [("x.test", "/", "Prefix", "web")]))
            clock = SystemClock()
            recorder = EventRecorder(client, COMPONENT, clock=clock)
            config = IngressConfig(folder, ["192.0.2.2"], port, tls_port)
            controller = IngressController(client, recorder, clock, config)
            await controller.start()
            try:
                return await _figures(client, plain, port)
            finally:
                await controller.stop()
                await recorder.stop()
                await end_caddy(folder)


async def _figures(client: FakeClient, plain: int, port: int) -> list[Figure]:
    await _until_served(port)
    beside, ours = 0.0, 0.0
    for _ in range(TURNS):  # in turns, so that what else the machine does falls on both
        beside = max(beside, _rate(await _wrk(plain)))
        ours = max(ours, _rate(await _wrk(port)))
    asking = asyncio.create_task(_wrk(port, seconds=CHANGES * 0.05 + 2))
    began = time.perf_counter()
    for number in range(CHANGES):
        await asyncio.sleep(max(0.0, 0.5 + number * 0.05 - (time.perf_counter() - began)))
        if number % 2:
            name = f"added-{number}"
            client.put(INGRESSES, ingress(name, [(f"{name}.test", "/", "Prefix", "web")]))
        else:
            found = client.of(ENDPOINTSLICES)[0]
            client.overwrite(ENDPOINTSLICES, {**found, "endpoints": [endpoint(f"127.0.0.{1 + number % 3}")]})
    answer = await asking
    return [
        Figure("ingress, 201 hosts", ours, "1/s", 0.8 * beside, baseline=beside, baseline_name="plain Caddy"),
        Figure("ingress, 100 changes under load: lost", _lost(answer), "requests", 0, "less"),
        Figure("ingress, 100 changes under load: rate", _rate(answer), "1/s", baseline=ours, baseline_name="unchanged"),
    ]


async def _wrk(port: int, seconds: float = SECONDS) -> str:
    process = await asyncio.create_subprocess_exec(
        "wrk",
        *("-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "-H", "Host: x.test", f"http://{HERE}:{port}/"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return output.decode()


def _rate(answer: str) -> float:
    found = re.search(r"Requests/sec:\s+([\d.]+)", answer)
    assert found is not None, answer
    return float(found[1])


def _lost(answer: str) -> int:
    """Requests without an answer, or with one that is not 2xx."""
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", answer)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", answer)
    return sum(map(int, errors.groups() if errors else ())) + (int(refused[1]) if refused else 0)


@asynccontextmanager
async def _caddy(folder: Path, name: str, port: int, handler: dict[str, Any]) -> AsyncIterator[None]:
    """A Caddy on the port that does one thing."""
    server = {
        "listen": [f"0.0.0.0:{port}"],
        "automatic_https": {"disable": True},
        "routes": [{"handle": [handler]}],
    }
    config = {
        "admin": {"disabled": True},
        "logging": {"logs": {"default": {"level": "ERROR"}}},
        "storage": {"module": "file_system", "root": str(folder / name)},
        "apps": {"http": {"servers": {name: server}}},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    command = (str(find_caddy()), "run", "--config", str(path))
    # In a session of its own, as kone starts its Caddy: the kernel shares out the processors by session.
    process = await asyncio.create_subprocess_exec(*command, stderr=-3, start_new_session=True)
    try:
        await _until_open(port)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


async def _until_open(port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection(HERE, port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise AssertionError(f"nothing listens on {port}")


async def _until_served(port: int) -> None:
    for _ in range(100):
        try:
            reader, writer = await asyncio.open_connection(HERE, port)
        except OSError:
            pass
        else:
            writer.write(b"GET / HTTP/1.0\r\nHost: x.test\r\n\r\n")
            answer = await reader.read()
            writer.close()
            if b" 200 " in answer[:20]:
                return
        await asyncio.sleep(0.1)
    raise AssertionError("x.test is not served")


def _free_port() -> int:
    with socket.create_server((HERE, 0)) as probe:
        return int(probe.getsockname()[1])
