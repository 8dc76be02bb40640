"""A request that another server answers: what of its head goes on, and how the answer, or the connection, comes back.

For the proxy subresources and for aggregated APIs alike. Bodies stream both ways.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from kone.apiserver.tunnels import dial, splice

HOP_BY_HOP: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "authorization",
    )
)
"""Headers that are meant for the next server only, or for this one."""


def end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers that go on."""
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


def forwarded(request: web.BaseRequest) -> CIMultiDict[str]:
    """The headers that a request goes on with."""
    headers = end_to_end(request.headers)
    for name in [key for key in headers if key.lower().startswith("impersonate-")]:
        headers.popall(name, None)
    if request.remote:
        headers["X-Forwarded-For"] = request.remote
    if request.body_exists and request.content_length is not None:
        headers["Content-Length"] = str(request.content_length)
    return headers


async def _chunks(request: web.BaseRequest) -> AsyncIterator[bytes]:
    while data := await request.content.readany():
        yield data


async def passed_on(
    session: aiohttp.ClientSession,
    request: web.BaseRequest,
    url: URL,
    headers: CIMultiDict[str],
    *,
    tls: ssl.SSLContext | None = None,
) -> aiohttp.ClientResponse:
    """Ask another server the same; `tls` where it is not the session's. Raises aiohttp.ClientError and OSError."""
    return await session.request(
        request.method,
        url,
        headers=headers,
        data=_chunks(request) if request.body_exists else None,
        allow_redirects=False,
        skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        ssl=True if tls is None else tls,
    )


async def relayed(
    request: web.BaseRequest, answer: aiohttp.ClientResponse, headers: CIMultiDict[str]
) -> web.StreamResponse:
    """Hand an answer to the client as it comes, under these headers."""
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    if (length := answer.headers.get("Content-Length")) is not None:
        response.content_length = int(length)
    await response.prepare(request)
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        async for data in answer.content.iter_any():
            await response.write(data)
    return response


async def upgraded(
    request: web.BaseRequest,
    url: URL,
    headers: CIMultiDict[str],
    tls: ssl.SSLContext | None,
    *,
    server_name: str | None = None,
) -> web.StreamResponse:
    """Join the client's connection to another server's, in whatever protocol they agree on; a server that says
    something else instead is heard. Raises OSError."""
    headers["Connection"], headers["Upgrade"] = "Upgrade", request.headers["Upgrade"]
    backend = await dial(url, tls=tls, method=request.method, headers=headers, server_name=server_name)
    try:
        if backend.switched:
            return await splice(request, backend)
        return web.Response(status=backend.status, headers=end_to_end(backend.headers), body=await backend.refusal())
    finally:
        await backend.close()
