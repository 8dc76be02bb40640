"""How the API server reaches a node's kubelet: its address and port from the Node's status, our client certificate."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from kone.apimachinery.errors import StatusError, internal_error, not_found
from kone.apimachinery.objects import Object, dig
from kone.apiserver.reads import Reads

KUBELET_PORT: Final = 10250
ADDRESS_TYPES: Final = ("InternalIP", "Hostname", "InternalDNS", "ExternalIP", "ExternalDNS")
CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files: the certificate and key that kubelets know us by, and the CA that theirs are of."""

    certificate: Path
    key: Path
    ca: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self.ca))
        context.load_cert_chain(self.certificate, self.key)
        return context


class KubeletClient:
    """One HTTP client for all kubelets. `session` is made at the first use."""

    def __init__(self, reads: Reads, tls: ClientTls | None) -> None:
        self._reads = reads
        self._files = tls
        self._context: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None
        self._retired: list[aiohttp.ClientSession] = []

    @property
    def tls(self) -> ssl.SSLContext:
        """What kubelets are spoken to with."""
        if self._context is None:
            self._context = self._files.context() if self._files is not None else ssl.create_default_context()
        return self._context

    @property
    def session(self) -> aiohttp.ClientSession:
        """Without a total timeout: what goes through it are streams."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self.tls, limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                auto_decompress=False,
            )
        return self._session

    def reload_certificates(self) -> None:
        """The next use reads the files again; streams that run go on."""
        self._context = None
        if self._session is not None:
            self._retired.append(self._session)
            self._session = None

    async def close(self) -> None:
        for session in (*self._retired, self._session):
            if session is not None:
                await session.close()
        self._retired.clear()
        self._session = None

    def url(self, node_name: str, path: str) -> URL:
        """Where a path of the node's kubelet is. Raises 404 for a node that is not there, 500 for one without
        address."""
        entry = self._reads.caches.of("", "nodes").get("", node_name)
        if entry is None:
            raise not_found("nodes", node_name)
        host = node_address(entry.obj)
        if not host:
            raise internal_error(f'no preferred addresses found; known addresses: [] of node "{node_name}"')
        port = dig(entry.obj, "status", "daemonEndpoints", "kubeletEndpoint", "Port", default=0) or KUBELET_PORT
        return URL.build(scheme="https", host=host, port=port, path=path)


def node_address(node: Object) -> str:
    """The address to reach a node by, the first of the kind that is preferred; "" where it has none."""
    listed = reversed(dig(node, "status", "addresses", default=()))
    addresses = {a.get("type"): a.get("address", "") for a in listed}
    return next((str(addresses[kind]) for kind in ADDRESS_TYPES if addresses.get(kind)), "")


def unreachable(error: Exception) -> StatusError:
    """500 in the words that kubectl shows when a node's kubelet does not answer."""
    return StatusError(500, "", f"error dialing backend: {error}")
