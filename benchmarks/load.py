"""Load on an HTTPS server from another process: wrk for requests, raw TLS streams for watches."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 16
SECONDS = 5
MANY = 2000  # how many objects a path with {m} goes round


@dataclass(frozen=True, slots=True)
class Target:
    """A server: where it is and who we are."""

    host: str
    port: int
    token: str = ""

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"


def ensure_wrk() -> None:
    """wrk is Debian's; without root it must be there already."""
    if shutil.which("wrk") is None:
        subprocess.run(["apt-get", "install", "-y", "-qq", "wrk"], check=True, stdout=subprocess.DEVNULL)


def _lua(method: str, path: str, body: str, content_type: str, token: str) -> str:
    """A wrk script: `{n}` in path and body becomes the request's number, `{m}` the same below MANY."""
    return f"""
local n = 0
local headers = {{["Authorization"] = "Bearer {token}", ["Content-Type"] = "{content_type}"}}
local path, body = {json.dumps(path)}, {json.dumps(body)}
bad = 0
request = function()
  n = n + 1
  local p, b = path:gsub("{{n}}", n):gsub("{{m}}", n % {MANY}), body:gsub("{{n}}", n)
  return wrk.format("{method}", p, headers, b)
end
response = function(status) if status >= 400 and status ~= 404 then bad = bad + 1 end end
"""


def requests_per_s(
    target: Target,
    method: str,
    path: str,
    *,
    body: str = "",
    content_type: str = "application/json",
    seconds: float = SECONDS,
) -> float:
    """Requests a second over 16 connections. Raises AssertionError when a request is refused."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        text = _lua(method, path, body, content_type, target.token)
        if method == "GET":
            text = text[: text.index("response =")]
        script.write(text)
        script.flush()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", script.name, target.url]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", answer)
    done = re.search(r"(\d+) requests in", answer)
    if refused and done:
        assert int(refused[1]) < int(done[1]) * 0.01, answer
    rate = re.search(r"Requests/sec:\s+([\d.]+)", answer)
    assert rate is not None, answer
    return float(rate[1])


async def post_many(target: Target, path: str, bodies: Sequence[str]) -> float:
    """POST every body, over 16 connections; how many a second."""
    return await _send_all(target, [_request(target, "POST", path, body.encode()) for body in bodies])


async def delete_many(target: Target, paths: Sequence[str]) -> float:
    """DELETE every path, over 16 connections; how many a second."""
    return await _send_all(target, [_request(target, "DELETE", path) for path in paths])


async def _send_all(target: Target, requests: Sequence[bytes]) -> float:
    left = iter(requests)

    async def send() -> None:
        reader, writer = await _connect(target)
        for request in left:
            writer.write(request)
            await _skip_answer(reader)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    return len(requests) / (time.perf_counter() - began)


async def milliseconds(target: Target, path: str, *, times: int = 20) -> float:
    """The median time of one request alone, in ms, on a kept connection."""
    reader, writer = await _connect(target)
    took = []
    for _ in range(times):
        began = time.perf_counter()
        writer.write(_request(target, "GET", path))
        await _skip_answer(reader)
        took.append((time.perf_counter() - began) * 1000)
    writer.close()
    return sorted(took)[times // 2]


class Asker:
    """One client on a kept connection."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def status(self, path: str) -> int:
        """The status of the answer to GET `path`."""
        if self._streams is None:
            self._streams = await _connect(self._target)
        reader, writer = self._streams
        writer.write(_request(self._target, "GET", path))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        await reader.readexactly(int(length[1]))
        return int(head.split()[1])


async def fan_out(target: Target, path: str, watchers: int, trigger: str, body: str, changes: int) -> float:
    """Events a second that `watchers` watches take together while `changes` patches are made."""
    streams = [await _connect(target) for _ in range(watchers)]
    for _, writer in streams:
        writer.write(_request(target, "GET", path))
    wanted = [changes] * watchers

    async def count(index: int) -> None:
        reader = streams[index][0]
        await reader.readuntil(b"\r\n\r\n")
        while wanted[index] > 0:
            data = await reader.read(1 << 18)
            if not data:
                raise AssertionError("a watch ended")
            wanted[index] -= data.count(b'{"type":"MODIFIED"')

    counters = [asyncio.create_task(count(index)) for index in range(watchers)]
    await asyncio.sleep(0.5)
    began = time.perf_counter()
    senders = [await _connect(target) for _ in range(CONNECTIONS)]

    async def send(index: int) -> None:
        reader, writer = senders[index]
        for number in range(index, changes, CONNECTIONS):
            content = body.replace("{n}", str(number)).encode()
            writer.write(_request(target, "PATCH", trigger, content, "application/merge-patch+json"))
            await _skip_answer(reader)

    await asyncio.gather(*(send(index) for index in range(CONNECTIONS)))
    await asyncio.gather(*counters)
    took = time.perf_counter() - began
    for _, writer in (*streams, *senders):
        writer.close()
    return watchers * changes / took


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return await asyncio.open_connection(target.host, target.port, ssl=context, limit=1 << 26)


def _request(
    target: Target, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: kone\r\nAuthorization: Bearer {target.token}\r\n"
    if body:
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


async def _skip_answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 2"), head
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None, head
    await reader.readexactly(int(length[1]))


def token_of(kubeconfig: Path) -> str:
    match = re.search(r"token: (\S+)", kubeconfig.read_text())
    assert match is not None
    return match[1]
