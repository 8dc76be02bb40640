"""Asks webhooks over HTTPS: admission webhooks and those that convert custom resources.

A clientConfig names a URL, or a Service: its ready endpoint is dialled, or its cluster IP, and its certificate is
verified as <service>.<namespace>.svc. Connections are kept. Errors read as Go's HTTP client words them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
import socket
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from kone.admission.webhooks import CallFailed
from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object, dig
from kone.apiserver.kubeconfig_backend import KubeconfigBackend
from kone.apiserver.webhook_users import WebhookUsers
from kone.apiserver.webhook_words import answer_words, connection_words
from kone.cache.watch_cache import Caches
from kone.client.kubeconfig import Identity, KubeconfigError, load_pair

MAX_ANSWER_BYTES: Final = 16 * 2**20
_CONTEXTS: Final = 64  # how many CA bundles' contexts are kept


class ServiceMissing(Exception):
    """A service is not there, or has no such port or no endpoints."""


class WebhookClient:
    """`caches` are where services and their endpoints are looked up, `users` who the server is to whom."""

    def __init__(self, caches: Caches, users: WebhookUsers | None = None) -> None:
        self._caches = caches
        self._resolver = ServiceResolver(caches)
        self._users = users or WebhookUsers({})
        self._contexts: dict[tuple[str, Identity], ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None
        self._others: list[WebhookClient | KubeconfigBackend] = []

    def identified(self, kubeconfig: str) -> WebhookClient:
        """The same, showing the identities of a kubeconfig; closed with this one. Raises ValueError."""
        try:
            found = WebhookClient(self._caches, WebhookUsers.read(kubeconfig))
        except KubeconfigError as error:
            raise ValueError(str(error)) from None
        self._others.append(found)
        return found

    def backend(self, kubeconfig: str) -> KubeconfigBackend:
        """The program that a kubeconfig names; closed with this client. Raises ValueError."""
        found = KubeconfigBackend(kubeconfig)
        self._others.append(found)
        return found

    async def close(self) -> None:
        for each in self._others:
            await each.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, config: Mapping[str, Any], body: Object, *, timeout_s: float) -> Any:
        """POST the body as JSON, decode the answer. Raises CallFailed, also when `timeout_s` is over."""
        text = webhook_url(config, timeout_s)
        url, shown = URL(text), f"Post {go_quote(text)}"
        try:
            async with asyncio.timeout(timeout_s):
                return await self._post(url, config, body)
        except TimeoutError:
            raise CallFailed(f"{shown}: context deadline exceeded") from None
        except (aiohttp.ClientError, OSError, ssl.SSLError, ValueError, ServiceMissing) as error:
            at = self._resolver.last.get(url.host or "", f"{url.host}:{url.port}")
            raise CallFailed(f"{shown}: {connection_words(error, url, at)}") from None

    async def _post(self, url: URL, config: Mapping[str, Any], body: Object) -> Any:
        if (service := config.get("service")) is not None:
            self._resolver.check(service)
        session = self._opened()
        user = self._users.of(url.host or "", url.port or 443)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if user.token:
            headers["Authorization"] = f"Bearer {user.token}"
        elif user.username:
            headers["Authorization"] = aiohttp.BasicAuth(user.username, user.password, "utf-8").encode()
        async with session.post(
            url,
            data=orjson.dumps(body),
            headers=headers,
            ssl=self._context(config.get("caBundle") or "", user),
            allow_redirects=False,
        ) as answer:
            data = await answer.content.read(MAX_ANSWER_BYTES)
            if not 200 <= answer.status < 300:
                raise CallFailed(answer_words(answer.status, data))
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise CallFailed(f"couldn't get version/kind; json parse error: {error}") from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None), cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _context(self, bundle: str, user: Identity) -> ssl.SSLContext:
        key = bundle, user
        found = self._contexts.get(key)
        if found is None:
            try:
                pem = base64.b64decode(bundle).decode("ascii").strip() or None
                found = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=pem)
            except (binascii.Error, UnicodeDecodeError, ssl.SSLError):
                raise ValueError("unable to load root certificates: unable to parse bytes as PEM block") from None
            # Go's verifier takes test CAs that lack the extensions of RFC 5280; OpenSSL 3 in Python 3.13 would not.
            found.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", ssl.VerifyFlags(0))
            if user.client_cert_pem:
                load_pair(found, user.client_cert_pem, user.client_key_pem)
            if len(self._contexts) >= _CONTEXTS:
                self._contexts.clear()
            self._contexts[key] = found
        return found


def webhook_url(config: Mapping[str, Any], timeout_s: float) -> str:
    """Where a webhook is asked, as errors show it: the port of a service is named, also where it is HTTPS' own."""
    query = f"timeout={timeout_s:g}s"
    service = config.get("service")
    if service is None:
        return f"{config['url']}?{query}"
    path = service.get("path") or "/"
    return f"https://{service['name']}.{service['namespace']}.svc:{service.get('port', 443)}{path}?{query}"


class ServiceResolver(AbstractResolver):
    """ "<service>.<namespace>.svc" is an endpoint of the service; other names are the host's to resolve."""

    def __init__(self, caches: Caches) -> None:
        self._services = caches.of("", "services")
        self._slices = caches.of("discovery.k8s.io", "endpointslices")
        self._others: ThreadedResolver | None = None
        self.last: dict[str, str] = {}

    def check(self, service: Mapping[str, Any]) -> None:
        """Raises ServiceMissing."""
        if self._services.get(service["namespace"], service["name"]) is None:
            raise ServiceMissing(f"service {go_quote(service['name'])} not found")
        port = service.get("port", 443)
        self._target(service["namespace"], service["name"], port)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        parts = host.split(".")
        if len(parts) != 3 or parts[2] != "svc":
            return await self._elsewhere(host, port, family)
        address, at = self._target(parts[1], parts[0], port)
        try:
            version = ip_address(address).version
        except ValueError:
            return await self._elsewhere(address, at, family)
        self.last[host] = f"[{address}]:{at}" if version == 6 else f"{address}:{at}"
        found = socket.AF_INET6 if version == 6 else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=at, family=found, proto=0, flags=socket.AI_NUMERICHOST)]

    async def _elsewhere(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        if self._others is None:
            self._others = ThreadedResolver()
        return await self._others.resolve(host, port, family)

    def _target(self, namespace: str, name: str, port: int) -> tuple[str, int]:
        entry = self._services.get(namespace, name)
        if entry is None:
            raise ServiceMissing(f"service {go_quote(name)} not found")
        spec = entry.obj.get("spec") or {}
        if spec.get("type") == "ExternalName":
            return spec.get("externalName", ""), port
        wanted = next((each for each in spec.get("ports") or () if each.get("port") == port), None)
        if wanted is None:
            raise ServiceMissing(f"no service port {port} found for service {go_quote(name)}")
        found = self._endpoints(namespace, name, wanted.get("name", ""))
        if found:
            return random.choice(found)
        address = spec.get("clusterIP", "")
        if address in ("", "None"):
            raise ServiceMissing(f"no endpoints available for service {go_quote(name)}")
        return address, port

    def _endpoints(self, namespace: str, name: str, port_name: str) -> list[tuple[str, int]]:
        found = []
        for entry in self._slices.list(namespace):
            slice_ = entry.obj
            if dig(slice_, "metadata", "labels", "kubernetes.io/service-name") != name:
                continue
            ports = [p["port"] for p in slice_.get("ports") or () if p.get("name", "") == port_name and p.get("port")]
            for endpoint in slice_.get("endpoints") or ():
                if dig(endpoint, "conditions", "ready") is not False:
                    found += [(address, port) for address in endpoint.get("addresses") or () for port in ports]
        return found

    async def close(self) -> None:
        """Nothing is held open."""
