"""An ingress controller with a real Caddy on free ports of this host, and servers behind it that say what they saw."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import itertools
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.x509.oid import NameOID

from kone.aio.clock import SystemClock, settle
from kone.apimachinery.kinds import ENDPOINTSLICES, EVENTS, INGRESSES, SECRETS, SERVICES
from kone.apimachinery.objects import Object, name_of, replace_in
from kone.client.events import EventRecorder
from kone.net.ingress.caddy import find_caddy
from kone.net.ingress.controller import COMPONENT, IngressConfig, IngressController
from kone.net.ingress.rules import Certificate
from tests.fakes import FakeClient
from tests.net.objects import endpoint, endpoint_slice, service

HERE = "127.0.0.1"
NODE_IP = "192.0.2.2"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


_candidates = itertools.count(20_000)


def free_port() -> int:
    """Below what the kernel gives to who asks for any port: a backend that starts first must not get it."""
    for port in _candidates:
        with contextlib.suppress(OSError), socket.create_server((HERE, port)):
            return port
    raise AssertionError("the count does not end")


def issue(*names: str, key: ed448.Ed448PrivateKey | None = None) -> Certificate:
    """A certificate for these names, signed by itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, None if isinstance(key, ed448.Ed448PrivateKey) else hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(built.public_bytes(serialization.Encoding.PEM).decode(), private.decode())


def tls_secret(name: str, certificate: Certificate, namespace: str = "default") -> Object:
    data = {"tls.crt": certificate.chain, "tls.key": certificate.key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
    }


class Setting:
    """A world of objects, their controller, and clients of it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.clock = SystemClock()
        self.client = FakeClient(self.clock)
        self.http_port, self.https_port = free_port(), free_port()
        self.default = issue("default.invalid")
        self.program = find_caddy
        self.own_addresses = False
        self.controllers: list[IngressController] = []
        self._recorders: list[EventRecorder] = []
        self._servers: list[web.Server] = []
        self._sites: list[asyncio.Server] = []
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> IngressController:
        """Another controller, as after a restart of kone."""
        recorder = EventRecorder(self.client, COMPONENT, clock=self.clock)
        controller = IngressController(
            self.client,
            recorder,
            self.clock,
            IngressConfig(self.data_dir, [NODE_IP], self.http_port, self.https_port, own_addresses=self.own_addresses),
            default_certificate=lambda: self.default,
            find=self.program,
        )
        self._recorders.append(recorder)
        self.controllers.append(controller)
        await controller.start()
        return controller

    async def stop(self) -> None:
        for controller in self.controllers:
            await controller.stop()
        for recorder in self._recorders:
            await recorder.stop()
        if self._session is not None:
            await self._session.close()
        for server in self._servers:
            await server.shutdown(0.1)
        for site in self._sites:
            site.close()
            await site.wait_closed()
        await settle()  # closed transports let go of their sockets in the loop's next turns

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        return self._session

    async def listen(self, handler: Handler, *, tls: ssl.SSLContext | None = None) -> int:
        """An HTTP server; its port."""
        server = web.Server(handler, access_log=None)
        site = await asyncio.get_running_loop().create_server(server, HERE, 0, ssl=tls)
        self._servers.append(server)
        self._sites.append(site)
        return int(site.sockets[0].getsockname()[1])

    async def backend(
        self, name: str, handler: Handler | None = None, *, namespace: str = "default", **port: str
    ) -> int:
        """A Service with one endpoint, a server that answers with the Service's name."""

        async def say_name(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(text=name)

        number = await self.listen(handler or say_name)
        await self.expose(name, number, namespace=namespace, **port)
        return number

    async def expose(self, name: str, *numbers: int, namespace: str = "default", **port: str) -> None:
        """The Service and a slice of its endpoints, all on this host: new, or changed."""
        made = service(name, namespace)
        made["spec"]["ports"] = [{"name": "http", "port": 80, "protocol": "TCP"} | port]
        slices = [
            endpoint_slice(name, endpoint(HERE), namespace=namespace, name=f"{name}-{n}", ports=[("http", number)])
            for n, number in enumerate(numbers)
        ]
        if self.client.informer(SERVICES).get(namespace, name) is None:
            self.client.put(SERVICES, made)
        kept = {name_of(each) for each in slices}
        for old in self.client.of(ENDPOINTSLICES, namespace):
            if old["metadata"]["labels"]["kubernetes.io/service-name"] == name and name_of(old) not in kept:
                await self.client.delete(ENDPOINTSLICES, name_of(old), namespace=namespace)
        for each in slices:
            known = self.client.informer(ENDPOINTSLICES).get(namespace, name_of(each))
            if known is None:
                self.client.put(ENDPOINTSLICES, each)
            else:
                self.client.overwrite(ENDPOINTSLICES, each)

    async def stick(self, name: str) -> None:
        """The Service's clients stay with their endpoints."""
        made = self.client.look(SERVICES, service(name))
        await self.client.update(SERVICES, replace_in(made, ("spec", "sessionAffinity"), "ClientIP"))

    def put(self, made: Object) -> None:
        self.client.put(INGRESSES, made)

    def put_secret(self, secret: Object) -> None:
        self.client.put(SECRETS, secret)

    async def get(self, host: str, path: str = "/", **headers: str) -> tuple[int, str]:
        """Status and text over HTTP."""
        url = f"http://{HERE}:{self.http_port}{path}"
        async with self.session.get(url, headers={"Host": host} | headers, allow_redirects=False) as response:
            return response.status, await response.text()

    async def certificate(self, name: str | None) -> bytes:
        """What HTTPS presents to who asks for that name, as DER."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(HERE, self.https_port, ssl=context, server_hostname=name or "")
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return bytes(found)

    async def eventually(self, look: Callable[[], Awaitable[object]], expected: object, within_s: float = 5.0) -> None:
        """Until `look()` gives what is expected."""
        end = self.clock.monotonic() + within_s
        while True:
            try:
                found = await look()
            except (OSError, aiohttp.ClientError) as error:
                found = error
            if found == expected:
                return
            assert self.clock.monotonic() < end, f"{found!r} is not {expected!r}"
            await self.clock.sleep(0.02)

    async def served(self, host: str, path: str = "/", text: str = "web") -> None:
        await self.eventually(lambda: self.get(host, path), (200, text))

    def events(self) -> list[tuple[str, str]]:
        return [(event["reason"], event["message"]) for event in self.client.of(EVENTS)]

    async def told(self, reason: str) -> str:
        """The message of the event with that reason, once it is there."""

        async def look() -> bool:
            return any(found == reason for found, _ in self.events())

        await self.eventually(look, True)
        return next(message for found, message in self.events() if found == reason)


def der(certificate: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.chain)
