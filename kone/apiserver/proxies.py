"""The proxy subresources: HTTP through the API server to a pod, to a service's endpoint, or to a node's kubelet.

The name may carry a scheme and a port, "https:web:8443". Bodies stream both ways; WebSockets pass; what a backend
says of its own address (Location, links of a page) is turned back into the proxy's path.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import socket
import ssl
import zlib
from collections.abc import Callable, Iterable
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from kone.apimachinery.errors import bad_request, go_quote, not_found, service_unavailable
from kone.apimachinery.objects import Object, dig, labels_of
from kone.apiserver.kubelet_client import KubeletClient
from kone.apiserver.proxied_html import rewritten, through_proxy
from kone.apiserver.reads import Reads
from kone.apiserver.relays import end_to_end, forwarded, passed_on, relayed, upgraded
from kone.registry.resource import Resource

log = logging.getLogger(__name__)

_SCHEMES: Final = ("", "http", "https")
_UNVERIFIED: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_UNVERIFIED.check_hostname = False
_UNVERIFIED.verify_mode = ssl.CERT_NONE


class Proxies:
    """Serves pods/proxy, services/proxy and nodes/proxy."""

    def __init__(self, reads: Reads, kubelets: KubeletClient) -> None:
        self._reads = reads
        self._kubelets = kubelets
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """For pods and services: their certificates are not judged, as upstream's proxy does not."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=False, limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def serve(
        self, request: web.BaseRequest, resource: Resource, namespace: str, name: str
    ) -> web.StreamResponse:
        """Pass the request on, its path below …/proxy as it was written."""
        kind = resource.gvr.resource
        if kind == "nodes":
            base, session = self._node(name), self._kubelets.session
        else:
            base = self._pod(namespace, name) if kind == "pods" else self._service(namespace, name)
            session = self.session
        raw_path, _, raw_query = request.raw_path.partition("?")
        prefix, below = split_path(raw_path)
        url = URL(f"{base}{below or '/'}{'?' + raw_query if raw_query else ''}", encoded=True)
        if "Upgrade" in request.headers:
            return await self._tunnel(request, url, self._kubelets.tls if kind == "nodes" else _UNVERIFIED)
        if not below and request.method in ("GET", "HEAD"):
            # Relative links of a page at the root need the slash (kubernetes issue 4958).
            return web.Response(status=301, headers={"Location": f"{prefix}/{'?' + raw_query if raw_query else ''}"})
        return await self._http(request, session, url, prefix)

    async def _http(
        self, request: web.BaseRequest, session: aiohttp.ClientSession, url: URL, prefix: str
    ) -> web.StreamResponse:
        try:
            answer = await passed_on(session, request, url, forwarded(request))
        except (aiohttp.ClientError, OSError) as error:
            raise service_unavailable(f"error trying to reach service: {error}") from error
        async with answer:
            headers = end_to_end(answer.headers)

            def turn(address: str) -> str:
                return through_proxy(address, prefix=prefix, backend=url.authority, asked_of=request.host)

            if "Location" in headers:
                headers["Location"] = turn(headers["Location"])
            elif answer.content_type == "text/html" and request.method != "HEAD":
                return await _page(answer, headers, turn)
            return await relayed(request, answer, headers)

    async def _tunnel(self, request: web.BaseRequest, url: URL, tls: ssl.SSLContext | None) -> web.StreamResponse:
        """An upgrade, to whatever protocol; what the backend says instead is passed on."""
        try:
            return await upgraded(request, url, forwarded(request), tls)
        except OSError as error:
            raise service_unavailable(f"error trying to reach service: {error}") from error

    # -- where to ----------------------------------------------------------------------------------------------------

    def _node(self, text: str) -> str:
        scheme, name, port = split_name(text, "node")
        url = self._kubelets.url(name, "/")
        return _base(scheme or url.scheme, str(url.host), port or str(url.port))

    def _pod(self, namespace: str, text: str) -> str:
        scheme, name, port = split_name(text, "pod")
        entry = self._reads.caches.of("", "pods").get(namespace, name)
        if entry is None:
            raise not_found("pods", name)
        pod = entry.obj
        if not port:
            declared = (p for c in dig(pod, "spec", "containers", default=()) for p in c.get("ports") or ())
            port = str(next((p["containerPort"] for p in declared), ""))
        ip = dig(pod, "status", "podIP", default="")
        if not _is_global(ip):
            raise bad_request("address not allowed")
        return _base(scheme, ip, _number(port))

    def _service(self, namespace: str, text: str) -> str:
        scheme, name, port = split_name(text, "service")
        entry = self._reads.caches.of("", "services").get(namespace, name)
        ports: list[Object] = dig(entry.obj, "spec", "ports", default=[]) if entry is not None else []
        if entry is not None and not port and len(ports) == 1:
            port = str(ports[0].get("name", ""))
            candidates = ports
        else:
            candidates = [p for p in ports if port in (p.get("name", ""), str(p.get("port")))]
        addresses = list(self._endpoints(namespace, name, {p.get("name", "") for p in candidates}))
        if not addresses:
            raise service_unavailable(f"no endpoints available for service {go_quote(text)}")
        ip, number = random.choice(addresses)
        return _base(scheme, ip, str(number))

    def _endpoints(self, namespace: str, service: str, port_names: set[str]) -> Iterable[tuple[str, int]]:
        """The ready addresses and target ports of a service."""
        for entry in self._reads.caches.of("discovery.k8s.io", "endpointslices").list(namespace):
            slice_ = entry.obj
            if labels_of(slice_).get("kubernetes.io/service-name") != service:
                continue
            numbers = [p["port"] for p in slice_.get("ports") or () if (p.get("name") or "") in port_names]
            for endpoint in slice_.get("endpoints") or ():
                if dig(endpoint, "conditions", "ready", default=True):
                    yield from ((address, number) for address in endpoint["addresses"] for number in numbers)


def split_path(raw_path: str) -> tuple[str, str]:
    """What leads to the proxy, and what is below it: ("/api/v1/nodes/n/proxy", "/a/proxy") of the two joined.

    Namespaces and names may hold "proxy" too, so it is found by its place.
    """
    parts = raw_path.split("/")  # "", "api", "v1", ...
    place = 7 if parts[3] == "namespaces" else 5
    prefix = "/".join(parts[: place + 1])
    return prefix, raw_path[len(prefix) :]


def split_name(text: str, what: str) -> tuple[str, str, str]:
    """(scheme, name, port) of "name", "name:port" or "scheme:name:port". Raises 400."""
    parts = text.split(":")
    if len(parts) == 1:
        return "", text, ""
    if len(parts) == 2 and parts[0]:
        return "", parts[0], parts[1]
    if len(parts) == 3 and parts[0] in _SCHEMES and parts[1]:
        return parts[0], parts[1], parts[2]
    raise bad_request(f"invalid {what} request {go_quote(text)}")


def _base(scheme: str, host: str, port: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme or 'http'}://{shown}:{port}" if port else f"{scheme or 'http'}://{shown}"


def _number(port: str) -> str:
    """A port that is a name is the host's, as Go's dialer understands it; pods' names of ports are not asked."""
    if not port or port.isdigit():
        return port
    try:
        return str(socket.getservbyname(port, "tcp"))
    except OSError:
        raise service_unavailable(f"error trying to reach service: dial tcp: lookup tcp/{port}: unknown port") from None


def _is_global(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)


async def _page(
    answer: aiohttp.ClientResponse, headers: CIMultiDict[str], turn: Callable[[str], str]
) -> web.StreamResponse:
    """A page with its links turned. One whose encoding or letters are not understood passes as it is."""
    body = await answer.read()
    encoding = headers.get("Content-Encoding", "")
    try:
        plain = zlib.decompress(body, wbits=zlib.MAX_WBITS | 32) if encoding in ("gzip", "deflate") else body
        if encoding in ("gzip", "deflate", ""):
            body = rewritten(plain.decode(), turn).encode()
            headers.popall("Content-Encoding", None)
    except (zlib.error, UnicodeDecodeError):
        log.debug("a proxied page of %s is not understood", answer.url)
    headers.popall("Content-Length", None)
    return web.Response(status=answer.status, reason=answer.reason, headers=headers, body=body)
