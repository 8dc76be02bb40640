"""The three ways to ask a container something: run a command in it, GET a page from it, open a TCP connection to it.

Probes and lifecycle hooks share them. The texts of a failure are the kubelet's, as users see them in events.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import aiohttp
from yarl import URL

from kone.apimachinery.objects import Object
from kone.runtime.runtime import Runtime, RuntimeFault

BODY_MAX_BYTES = 10 * 1024  # what the kubelet reads of a probe's answer
Verdict = Literal["success", "warning", "failure", "error"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it: "failure" is the container's, "error" means that it could not be asked."""

    verdict: Verdict
    output: str = ""


def resolve_port(container: Object, port: int | str) -> int:
    """A port by number or by the name of a container port. Raises ValueError with the kubelet's text."""
    if isinstance(port, int):
        number = port
    elif port.isdigit():
        number = int(port)
    else:
        found = next((p for p in container.get("ports") or () if p.get("name") == port), None)
        if found is None:
            raise ValueError(f"couldn't find port: {port!r} in container")
        number = int(found["containerPort"])
    if not 0 < number < 65536:
        raise ValueError(f"invalid port number: {number}")
    return number


class Handlers:
    """Asks containers. Owns one HTTP client session; `close` it at the end."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def exec(self, container_id: str, command: list[str], timeout_s: float) -> Answer:
        """Run a command in the container; any exit code but 0 is a failure."""
        try:
            result = await self._runtime.exec_sync(container_id, command, timeout_s)
        except TimeoutError:
            return Answer("failure", f"command timed out: {' '.join(command)!r} timed out after {_duration(timeout_s)}")
        except RuntimeFault as fault:
            return Answer("error", str(fault))
        output = (result.stdout + result.stderr)[:BODY_MAX_BYTES].decode("utf-8", "replace")
        return Answer("success" if result.exit_code == 0 else "failure", output)

    async def http_get(self, container: Object, action: Object, pod_ip: str, timeout_s: float, agent: str) -> Answer:
        """GET as httpGet says. 200 to 399 is success; a redirect to another host a warning that counts as success."""
        try:
            port = resolve_port(container, action["port"])
        except ValueError as error:
            return Answer("error", str(error))
        scheme = (action.get("scheme") or "HTTP").lower()
        host = action.get("host") or pod_ip
        path = action.get("path") or "/"
        url = f"{scheme}://{_bracketed(host)}:{port}{path if path.startswith('/') else '/' + path}"
        headers = _headers(action, agent)
        try:
            async with (
                asyncio.timeout(timeout_s or None),
                self._http().get(
                    url,
                    headers=headers,
                    allow_redirects=False,
                    skip_auto_headers=("Accept", "User-Agent", "Accept-Encoding"),
                ) as first,
            ):
                response: aiohttp.ClientResponse = first
                body = await response.content.read(BODY_MAX_BYTES)
                for _ in range(10):
                    location = response.headers.get("Location", "")
                    if not 300 <= response.status < 400 or not location:
                        break
                    target = response.url.join(URL(location))
                    if target.host != response.url.host:
                        return Answer(
                            "warning", f"Probe terminated redirects, Response body: {body.decode('utf-8', 'replace')}"
                        )
                    response = await self._http().get(target, headers=headers, allow_redirects=False)
                    async with response:
                        body = await response.content.read(BODY_MAX_BYTES)
        except TimeoutError:
            return Answer(
                "failure", f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'
            )
        except aiohttp.ClientConnectorError as error:
            return Answer("failure", f'Get "{url}": dial tcp {_bracketed(host)}:{port}: {_connect_text(error)}')
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer("failure", f'Get "{url}": {str(error) or "EOF"}')
        if 200 <= response.status < 400:
            return Answer("success", body.decode("utf-8", "replace"))
        return Answer("failure", f"HTTP probe failed with statuscode: {response.status}")

    async def tcp_connect(self, container: Object, action: Object, pod_ip: str, timeout_s: float) -> Answer:
        try:
            port = resolve_port(container, action["port"])
        except ValueError as error:
            return Answer("error", str(error))
        host = action.get("host") or pod_ip
        try:
            async with asyncio.timeout(timeout_s or None):
                _, writer = await asyncio.open_connection(host, port)
        except TimeoutError:
            return Answer("failure", f"dial tcp {_bracketed(host)}:{port}: i/o timeout")
        except OSError as error:
            return Answer("failure", f"dial tcp {_bracketed(host)}:{port}: {_connect_text(error)}")
        writer.close()
        return Answer("success")

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            trust_all = ssl.create_default_context()
            trust_all.check_hostname = False
            trust_all.verify_mode = ssl.CERT_NONE  # the kubelet does not verify a container's certificate
            connector = aiohttp.TCPConnector(ssl=trust_all, force_close=True, limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
            )
        return self._session


def _headers(action: Object, agent: str) -> Mapping[str, str]:
    """The manifest's headers over the kubelet's own; an empty value takes a default header away."""
    headers = {"User-Agent": agent, "Accept": "*/*"}
    for header in action.get("httpHeaders") or ():
        name = next((known for known in headers if known.lower() == header["name"].lower()), header["name"])
        headers[name] = header.get("value", "")
    return {name: value for name, value in headers.items() if value or name not in ("User-Agent", "Accept")}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _connect_text(error: OSError) -> str:
    number = error.errno if error.errno is not None else getattr(getattr(error, "os_error", None), "errno", None)
    known = {
        errno.ECONNREFUSED: "connect: connection refused",
        errno.EHOSTUNREACH: "connect: no route to host",
        errno.ENETUNREACH: "connect: network is unreachable",
        errno.ETIMEDOUT: "connect: connection timed out",
    }
    return known.get(number or 0, str(error))


def _duration(seconds: float) -> str:
    return f"{seconds:g}s"
