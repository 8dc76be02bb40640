"""The ways to ask a container something: run a command in it, GET a page from it, open a connection to it, ask its
gRPC health service.

Probes and lifecycle hooks share them. The texts of a failure are the kubelet's, as users see them in events.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import go_duration
from kone.runtime.runtime import ExecResult, Runtime, RuntimeFault

BODY_MAX_BYTES = 10 * 1024  # what the kubelet reads of a probe's answer
REDIRECTS_MAX = 10
Verdict = Literal["success", "warning", "failure", "error"]

PLAIN_HTTP = "http: server gave HTTP response to HTTPS client"
OUT_OF_TIME = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it: "failure" is the container's, "error" means that it could not be asked."""

    verdict: Verdict
    output: str = ""


class NoAnswer(Exception):
    """An HTTP request got no answer; `str(error)` says why in Go's words, which users know from events."""


def resolve_port(container: Object, port: int | str) -> int:
    """A port by number or by the name of a container port. Raises ValueError with the kubelet's text."""
    if isinstance(port, str):
        found = next((p for p in container.get("ports") or () if p.get("name") == port), None)
        if found is None:
            raise ValueError(f"port {go_quote(port)} not found")
        port = int(found["containerPort"])
    if not 0 < port < 65536:
        raise ValueError(f"invalid port number: {port}")
    return port


class Handlers:
    """Asks containers. Owns one HTTP client session; `close` it at the end."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def run(self, container_id: str, command: Sequence[str]) -> ExecResult:
        """Run a command to its end, however long it takes. Raises RuntimeFault."""
        return await self._runtime.exec_sync(container_id, command, 0)

    async def exec(self, container_id: str, command: Sequence[str], timeout_s: float) -> Answer:
        """Run a command in the container; any exit code but 0 is a failure."""
        try:
            result = await self._runtime.exec_sync(container_id, command, timeout_s)
        except TimeoutError:
            text = f"command timed out: {go_quote(' '.join(command))} timed out after {go_duration(timeout_s)}"
            return Answer("failure", text)
        except RuntimeFault as fault:
            return Answer("error", str(fault))
        output = (result.stdout + result.stderr)[:BODY_MAX_BYTES].decode("utf-8", "replace")
        return Answer("success" if result.exit_code == 0 else "failure", output)

    async def http_get(self, container: Object, action: Object, pod_ip: str, timeout_s: float, agent: str) -> Answer:
        """GET as httpGet says. 200 to 299 is success; a redirect that is not followed a warning, which counts as one.

        Redirects are followed within the same host.
        """
        try:
            status, body = await self.fetch(container, action, pod_ip, timeout_s, agent)
        except ValueError as error:
            return Answer("error", str(error))
        except NoAnswer as error:
            return Answer("failure", str(error))
        if 200 <= status < 300:
            return Answer("success", body)
        if 300 <= status < 400:
            return Answer("warning", f"Probe terminated redirects, Response body: {body}")
        return Answer("failure", f"HTTP probe failed with statuscode: {status}")

    async def fetch(
        self, container: Object, action: Object, pod_ip: str, timeout_s: float, agent: str, *, scheme: str = ""
    ) -> tuple[int, str]:
        """The status and body of the page that an httpGet names; `timeout_s` 0 is no limit.

        Raises NoAnswer, and ValueError for a port that cannot be.
        """
        port = resolve_port(container, action["port"])
        scheme = scheme or (action.get("scheme") or "HTTP").lower()
        url = _url(scheme, action.get("host") or pod_ip, port, action.get("path") or "")
        headers = _headers(action, agent)
        first = url
        try:
            async with asyncio.timeout(timeout_s or None):
                for _ in range(REDIRECTS_MAX + 1):
                    async with self._http().get(
                        url,
                        headers=headers,
                        allow_redirects=False,
                        skip_auto_headers=("Accept", "User-Agent", "Accept-Encoding"),
                    ) as response:
                        body = await _beginning(response.content)
                    target = _redirection(response)
                    if target is None or target.host != first.host:
                        return response.status, body
                    url = target
        except TimeoutError:
            raise NoAnswer(f'Get "{url}": {OUT_OF_TIME}') from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NoAnswer(f'Get "{url}": {_failure_text(error, url)}') from None
        raise NoAnswer(f'Get "{url}": stopped after {REDIRECTS_MAX} redirects')

    async def tcp_connect(self, container: Object, action: Object, pod_ip: str, timeout_s: float) -> Answer:
        """Success is a connection; nothing is sent over it."""
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

    async def grpc_health(self, action: Object, pod_ip: str, timeout_s: float, agent: str) -> Answer:
        """Ask grpc.health.v1.Health of the pod: SERVING is success, all else failure."""
        from kone.runtime import grpc_health  # HTTP/2 is imported with the first gRPC probe

        address = f"{_bracketed(pod_ip)}:{action['port']}"
        within = go_duration(timeout_s)
        try:
            status = await grpc_health.check(
                pod_ip, int(action["port"]), action.get("service") or "", address, agent, timeout_s
            )
        except grpc_health.NotConnected:
            text = f"timeout: failed to connect service {go_quote(address)} within {within}: context deadline exceeded"
            return Answer("failure", text)
        except grpc_health.RpcFailed as error:
            return Answer("failure", error.explain(within))
        if status != "SERVING":
            return Answer("failure", f"service unhealthy (responded with {go_quote(status)})")
        return Answer("success", "service healthy")

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


def _url(scheme: str, host: str, port: int, path: str) -> URL:
    """The path may bring a query; it is kept as it is written, but for characters that no URL may have."""
    safe = quote(path, safe="/%?=&#+,;:@!$'()*~[]-._")
    return URL(f"{scheme}://{_bracketed(host)}:{port}{safe if safe.startswith('/') else '/' + safe}", encoded=True)


def _headers(action: Object, agent: str) -> CIMultiDict[str]:
    """The manifest's headers over the kubelet's own; an empty value takes a default header away."""
    headers: CIMultiDict[str] = CIMultiDict()
    for header in action.get("httpHeaders") or ():
        headers.add(header["name"], header.get("value", ""))
    for name, value in (("User-Agent", agent), ("Accept", "*/*")):
        if not headers.setdefault(name, value):
            del headers[name]
    return headers


async def _beginning(content: aiohttp.StreamReader) -> str:
    """As much of a body as the kubelet looks at."""
    body = b""
    while len(body) < BODY_MAX_BYTES and (more := await content.read(BODY_MAX_BYTES - len(body))):
        body += more
    return body.decode("utf-8", "replace")


def _redirection(response: aiohttp.ClientResponse) -> URL | None:
    location = response.headers.get("Location", "")
    if response.status not in (301, 302, 303, 307, 308) or not location:
        return None
    return response.url.join(URL(location))


def _failure_text(error: Exception, url: URL) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, ssl.SSLError) or isinstance(error, aiohttp.ClientConnectorSSLError):
            return _tls_text(cause)
        return f"dial tcp {_bracketed(url.host or '')}:{url.port}: {_connect_text(cause)}"
    if isinstance(error, ssl.SSLError):
        return _tls_text(error)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "EOF"
    if isinstance(error, OSError) and error.errno == errno.ECONNRESET:
        return "read: connection reset by peer"
    return str(error) or "EOF"


def _tls_text(error: OSError) -> str:
    reason = getattr(error, "reason", "") or str(error)
    if "WRONG_VERSION_NUMBER" in reason or "HTTP_REQUEST" in reason or "RECORD_LAYER_FAILURE" in reason:
        return PLAIN_HTTP
    return f"tls: {reason.lower().replace('_', ' ')}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _connect_text(error: OSError) -> str:
    known = {
        errno.ECONNREFUSED: "connect: connection refused",
        errno.ECONNRESET: "connect: connection reset by peer",
        errno.EHOSTUNREACH: "connect: no route to host",
        errno.ENETUNREACH: "connect: network is unreachable",
        errno.ETIMEDOUT: "connect: connection timed out",
    }
    return known.get(error.errno or 0, str(error))
