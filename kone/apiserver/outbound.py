"""What providers of tokens publish, fetched over HTTPS: their configuration and their keys.

Connections are kept. What answers is trusted by the CAs that are given, else the host's.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import aiohttp

from kone.apimachinery.errors import go_quote

TIMEOUT_S: Final = 30.0
MAX_BYTES: Final = 4 * 2**20


class Outbound:
    """GET."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[str, ssl.SSLContext] = {}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, url: str, ca_pem: str, *, bearer: str = "") -> bytes:
        """The body of a 200. Raises ValueError for anything else, with words for a log."""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        shown = f"Get {go_quote(url)}"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async with self._opened().get(
                    url, headers=headers, ssl=self._context(ca_pem), allow_redirects=False
                ) as answer:
                    body = bytearray()
                    while len(body) < MAX_BYTES and (piece := await answer.content.readany()):
                        body += piece
        except TimeoutError:
            raise ValueError(f"{shown}: context deadline exceeded") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ValueError(f"{shown}: {error}") from None
        if answer.status != 200:
            raise ValueError(f"{answer.status}: {body[:200].decode(errors='replace')}")
        return bytes(body)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _context(self, ca_pem: str) -> ssl.SSLContext:
        found = self._contexts.get(ca_pem)
        if found is None:
            found = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=ca_pem or None)
            # Go's verifier takes CAs that lack the extensions of RFC 5280; OpenSSL 3 in Python 3.13 would not.
            found.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", ssl.VerifyFlags(0))
            self._contexts[ca_pem] = found
        return found
