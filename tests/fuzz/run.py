"""Sends generated requests and judges what comes back: no 5xx, every refusal a Status, nobody kept waiting."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import aiohttp
from yarl import URL

from tests.fuzz.requests import NAMESPACE, Request, Requests

ANSWER_MAX_S: Final = 30.0
SHOWN: Final = 20
SENDERS: Final = 8


@dataclass(slots=True)
class Report:
    """What was found. `faults` are what the server must never do, at most SHOWN of them; `faulty` counts them all."""

    codes: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    faulty: int = 0
    slowest_s: float = 0.0
    slowest: str = ""

    @property
    def sent(self) -> int:
        return self.codes.total()

    def fault(self, text: str) -> None:
        self.faulty += 1
        if len(self.faults) < SHOWN:
            self.faults.append(text)


async def documents(session: aiohttp.ClientSession, url: str) -> dict[str, Mapping[str, Any]]:
    """Every document of OpenAPI v3 that lists operations on objects."""
    async with session.get(f"{url}/openapi/v3") as answer:
        paths = (await answer.json())["paths"]
    found = {}
    for path, where in paths.items():
        if path.startswith(("api/", "apis/")):
            async with session.get(url + where["serverRelativeURL"]) as answer:
                found[path] = json.loads(await answer.read())
    return found


async def fuzz(session: aiohttp.ClientSession, url: str, *, requests: int, seed: int) -> Report:
    """Send so many requests, made from `seed`, by SENDERS at once. `session` is an administrator's."""
    report = Report()
    made = iter(Requests(Random(seed), await documents(session, url)))
    numbered = iter(range(requests))
    async with asyncio.TaskGroup() as group:
        for _ in range(SENDERS):
            group.create_task(_send_all(session, url, made, numbered, report))
    return report


async def _send_all(
    session: aiohttp.ClientSession, url: str, made: Iterator[Request], numbered: Iterator[int], report: Report
) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    for number in numbered:
        if number % 200 == 0:  # which some request may have removed
            await session.post(f"{url}/api/v1/namespaces", json=namespace)
        request = next(made)
        began = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                code, body = await _send(session, url, request)
        except (TimeoutError, aiohttp.ClientError) as error:
            report.fault(f"{type(error).__name__} {error}: {request}")
            continue
        took_s = time.monotonic() - began
        if took_s > report.slowest_s:
            report.slowest_s, report.slowest = took_s, str(request)
        report.codes[code] += 1
        if (why := _wrong(request, code, body)) is not None:
            report.fault(f"{why}: {request}: {body[:600].decode(errors='replace')}")


async def _send(session: aiohttp.ClientSession, url: str, request: Request) -> tuple[int, bytes]:
    target = URL(url + request.target, encoded=True)
    headers = request.headers
    async with session.request(request.method, target, headers=headers, data=request.body or None) as answer:
        if "watch" in answer.url.query and answer.status == 200:
            return answer.status, b""
        return answer.status, await answer.read()


def _wrong(request: Request, code: int, body: bytes) -> str | None:
    """What is wrong with an answer; None if nothing is. That a pod or a service cannot be reached is no fault, nor is
    what upstream itself answers by 500 (an apply that does not fit the schema, a merge key that is missing): that has
    no reason, where an accident of ours is an InternalError."""
    if (
        code >= 500
        and not (request.tunnelled and code in (500, 502, 503, 504))
        and not (code == 500 and b'"reason":' not in body.partition(b'"message":')[2][-2000:])
    ):
        return f"answered {code}"
    if code >= 400 and request.headers.get("Accept", "application/json") == "application/json":
        try:
            status = json.loads(body)
        except ValueError:
            return None if body == b"404 page not found\n" else f"answered {code} without a Status"
        if status.get("kind") != "Status" or status.get("code") != code:
            return f"answered {code} with another Status"
    return None


async def clean(session: aiohttp.ClientSession, url: str) -> None:
    """Delete what the requests made: the namespace, and what stands outside of namespaces under the short names."""
    await session.delete(f"{url}/api/v1/namespaces/{NAMESPACE}")
    for document in (await documents(session, url)).values():
        for path, item in document["paths"].items():
            if path.endswith("/{name}") and "{namespace}" not in path and "delete" in item:
                for name in ("a", "b", "c"):
                    await session.delete(url + path.replace("{name}", name))
    for _ in range(600):
        async with session.get(f"{url}/api/v1/namespaces/{NAMESPACE}") as answer:
            if answer.status == 404:
                return
        await asyncio.sleep(0.1)
