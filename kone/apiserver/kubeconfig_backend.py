"""A program that a kubeconfig names, asked by POSTs of JSON: what kube-apiserver's webhook flags and files lead to.

The kubeconfig's current context says where it is, whom to trust, and who the server is to it.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from yarl import URL

from kone.admission.webhooks import CallFailed
from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object
from kone.apiserver.webhook_words import answer_words, connection_words
from kone.client.kubeconfig import KubeconfigError, load_kubeconfig

TIMEOUT_S = 30.0  # upstream's defaultRequestTimeout
MAX_ANSWER_BYTES = 16 * 2**20
TRANSIENT = frozenset({429, 500, 504})


class KubeconfigBackend:
    """Connections are kept. Made with a kubeconfig's path; raises ValueError where it cannot be used."""

    def __init__(self, kubeconfig: str) -> None:
        try:
            self._connection = load_kubeconfig(kubeconfig)
            self._ssl = self._connection.ssl_context()
        except (KubeconfigError, ssl.SSLError) as error:
            raise ValueError(str(error)) from None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, body: Object) -> Any:
        """The decoded answer. Raises CallFailed, also when it takes longer than TIMEOUT_S."""
        data = await self.tell(body)
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise CallFailed(f"couldn't get version/kind; json parse error: {error}") from None

    async def tell(self, body: Object) -> bytes:
        """The answer as it came. Raises CallFailed as `post`."""
        url = URL(self._connection.server).update_query(timeout=f"{TIMEOUT_S:g}s")
        shown = f"Post {go_quote(str(url))}"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._post(url, body)
        except TimeoutError:
            raise CallFailed(f"{shown}: context deadline exceeded", is_transient=True) from None
        except (aiohttp.ClientError, OSError) as error:
            is_reset = isinstance(error, (ConnectionResetError, aiohttp.ServerDisconnectedError))
            words = connection_words(error, url, f"{url.host}:{url.port}")
            raise CallFailed(f"{shown}: {words}", is_transient=is_reset) from None

    async def _post(self, url: URL, body: Object) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), cookie_jar=aiohttp.DummyCookieJar()
            )
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        async with self._session.post(
            url,
            data=orjson.dumps(body),
            headers=headers,
            ssl=self._ssl,
            server_hostname=self._connection.tls_server_name or None,
            allow_redirects=False,
        ) as answer:
            data = await answer.content.read(MAX_ANSWER_BYTES)
            if not 200 <= answer.status < 300:
                is_transient = answer.status in TRANSIENT or "Retry-After" in answer.headers
                raise CallFailed(answer_words(answer.status, data), is_transient=is_transient)
            return data

    def _token(self) -> str:
        """Read again each time: who keeps tokens in files renews them."""
        if self._connection.token or not self._connection.token_file:
            return self._connection.token
        return Path(self._connection.token_file).read_text().strip()
