"""Cluster DNS, beside Debian's dnsmasq in the same run: each server a process, asked the same by the same clients.

`python -m benchmarks.dns` is kone's server with a hundred Services and no API; it prints its port when it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import dns.message
import dns.rrset
import uvloop

from benchmarks.report import Figure
from kone.apimachinery.kinds import NAMESPACES, SERVICES
from kone.net.dns.server import DnsServer
from tests.fakes import FakeClient
from tests.net.objects import namespace, service

HERE, DNSMASQ, OUTSIDE = "127.53.0.1", "127.53.0.3", "127.53.0.4"
NAMES = 100
QUESTIONS = 40_000
CLIENTS = 16  # each waits for its answer before it asks again
RATE, WORST_MS = 10_000, 5.0  # budgets: answers a second, and their 99th percentile
TIMEOUT_S = 10.0


def measure() -> Iterator[Figure]:
    inside = [f"web-{number}.default.svc.cluster.local" for number in range(NAMES)]
    outside = [f"host-{number}.example.com" for number in range(NAMES)]
    beside: tuple[float, float] | None = None
    if shutil.which("dnsmasq") is not None:
        with _dnsmasq([*inside, *outside]) as port:
            beside = _ask(DNSMASQ, port, inside)
    with _kone() as port:
        for what, names in (("names of the cluster", inside), ("names of others, remembered", outside)):
            _ask(HERE, port, names, questions=NAMES)
            rate, worst_ms = _ask(HERE, port, names)
            yield _figure(f"DNS, {what}", rate, "/s", RATE, beside and beside[0])
            yield _figure(f"DNS, {what}, 99th percentile", worst_ms, "ms", WORST_MS, beside and beside[1])


def _figure(name: str, value: float, unit: str, budget: float, baseline: float | None) -> Figure:
    return Figure(name, value, unit, budget, "more" if unit == "/s" else "less", baseline, "dnsmasq")


def _ask(host: str, port: int, names: list[str], questions: int = QUESTIONS) -> tuple[float, float]:
    """Answers a second, and the milliseconds within which 99 of 100 came."""
    queries = [dns.message.make_query(name, "A", use_edns=0).to_wire() for name in names]
    took: list[float] = []
    selector = selectors.DefaultSelector()
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(CLIENTS)]
    asked: dict[socket.socket, float] = {}
    began = time.perf_counter()
    for number, client in enumerate(sockets):
        client.connect((host, port))
        selector.register(client, selectors.EVENT_READ, client)
        asked[client] = time.perf_counter()
        client.send(queries[number % len(queries)])
    while len(took) < questions:
        if not (ready := selector.select(TIMEOUT_S)):
            raise RuntimeError(f"no answer from {host} within {TIMEOUT_S:.0f} s")
        for key, _ in ready:
            client = key.data
            client.recv(4096)
            took.append(time.perf_counter() - asked[client])
            asked[client] = time.perf_counter()
            client.send(queries[len(took) % len(queries)])
    rate = len(took) / (time.perf_counter() - began)
    for client in sockets:
        client.close()
    took.sort()
    return rate, took[int(len(took) * 0.99)] * 1000


@contextlib.contextmanager
def _kone() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.dns"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _dnsmasq(names: list[str]) -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((DNSMASQ, 0))
        port = int(probe.getsockname()[1])
    addresses = [f"--address=/{name}/10.96.1.{number % 250}" for number, name in enumerate(names)]
    options = ["--conf-file=/dev/null", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces"]
    where = [f"--listen-address={DNSMASQ}", f"--port={port}", "--pid-file", "--user=", "--cache-size=10000"]
    process = subprocess.Popen(["dnsmasq", *options, *where, *addresses], stderr=subprocess.DEVNULL)
    try:
        _wait(DNSMASQ, port, names[0])
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait(host: str, port: int, name: str) -> None:
    """Until the server answers."""
    for _ in range(100):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.1)
            client.connect((host, port))
            client.send(dns.message.make_query(name, "A").to_wire())
            client.recv(4096)
            return
        time.sleep(0.05)
    raise RuntimeError(f"no server at {host}:{port}")


class _Outside(asyncio.DatagramProtocol):
    """A resolver that knows every name."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = dns.message.make_response(query := dns.message.from_wire(data))
        response.answer = [dns.rrset.from_text(query.question[0].name, 300, "IN", "A", "192.0.2.7")]
        self._transport.sendto(response.to_wire(), addr)


async def _serve() -> None:
    client = FakeClient()
    client.put(NAMESPACES, namespace("default"))
    for number in range(NAMES):
        client.put(SERVICES, service(f"web-{number}", clusterIP=f"10.96.1.{number}"))
    loop = asyncio.get_running_loop()
    outside, _ = await loop.create_datagram_endpoint(_Outside, local_addr=(OUTSIDE, 0))
    port = outside.get_extra_info("sockname")[1]
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder) / "resolv.conf"
        conf.write_text(f"nameserver {OUTSIDE}\n")
        server = DnsServer(client, "cluster.local", [HERE], port=0, resolv_conf=conf, resolver_port=port)
        await server.start()
        print(server.ports[0], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve())
