"""What the API server asks of others by the words of its own files: providers of tokens, webhooks named by kubeconfig.

One session, over HTTPS. Connections are kept. What answers is trusted by the CAs that a file names, else the host's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from kone.apimachinery.errors import go_quote

TIMEOUT_S: Final = 30.0
MAX_BYTES: Final = 4 * 2**20
USER_AGENT: Final = "kube-apiserver/v1.37.2"


class Outbound:
    """GET and POST. Raises ValueError for what is no good answer, with words for a log."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, url: str, ca_pem: str, *, bearer: str = "") -> bytes:
        """The body of a 200."""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        status, body = await self._ask("GET", url, self._context(ca_pem), headers, None, TIMEOUT_S)
        if status != 200:
            raise ValueError(f"{status}: {body[:200].decode(errors='replace')}")
        return body

    async def post(
        self, url: str, tls: ssl.SSLContext | None, body: Any, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, bytes]:
        """(status, body) of the answer to a body of JSON. `tls` None: the URL is plain HTTP."""
        sent = {"Content-Type": "application/json", "Accept": "application/json", **headers}
        return await self._ask("POST", url, tls, sent, orjson.dumps(body), timeout_s)

    async def _ask(
        self,
        method: str,
        url: str,
        tls: ssl.SSLContext | None,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
    ) -> tuple[int, bytes]:
        shown = f"{method.capitalize()} {go_quote(url)}"
        try:
            async with asyncio.timeout(timeout_s):
                async with self._opened().request(
                    method, url, data=body, headers=headers, ssl=tls if tls is not None else True, allow_redirects=False
                ) as answer:
                    found = await answer.content.read(MAX_BYTES)
                    while not answer.content.at_eof() and len(found) < MAX_BYTES:
                        found += await answer.content.read(MAX_BYTES)
                    return answer.status, found
        except TimeoutError:
            raise ValueError(f"{shown}: context deadline exceeded") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ValueError(f"{shown}: {error}") from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT},
            )
        return self._session

    def _context(self, ca_pem: str) -> ssl.SSLContext:
        found = self._contexts.get(ca_pem)
        if found is None:
            found = self._contexts[ca_pem] = client_context(ca_pem)
        return found


def client_context(ca_pem: str, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """Trusts these CAs, "" the host's; shows the certificate, if there is one. Raises OSError, ssl.SSLError."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=ca_pem or None)
    # Go's verifier takes CAs that lack the extensions of RFC 5280; OpenSSL 3 in Python 3.13 would not.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", ssl.VerifyFlags(0))
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context
