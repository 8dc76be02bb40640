"""Aggregated APIs: APIServices whose group-version another server has. Requests go on to it under the front proxy's
identity; whether it answers is the APIService's condition Available; what it offers joins discovery.

Source of the rules: kube-aggregator's proxy handler and remote availability controller.
"""

from __future__ import annotations

import base64
import binascii
import logging
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.aio.workqueue import WorkQueue
from kone.apimachinery.errors import StatusError, go_quote
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import (
    Object,
    dig,
    find_condition,
    labels_of,
    name_of,
    namespace_of,
    other_conditions,
    replace_in,
)
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import SYSTEM_MASTERS, User
from kone.apiserver.discovery import Discovery
from kone.apiserver.kubelet_client import ClientTls
from kone.apiserver.relays import end_to_end, forwarded, passed_on, relayed, upgraded
from kone.apiserver.webhook_client import ServiceMissing, ServiceResolver
from kone.cache.watch_cache import Caches
from kone.client.client import Client
from kone.store.store import Event

log = logging.getLogger(__name__)

APISERVICES = GVR("apiregistration.k8s.io", "v1", "apiservices")
CHECK_TIMEOUT_S: Final = 5.0
CHECK_EVERY_S: Final = 30.0
GET_TIMEOUT_S: Final = 30.0  # of what loops of this process ask
CHECK_AGAIN_S: Final = 2.0  # after a failure
CHECKER = User("system:kube-aggregator", groups=(SYSTEM_MASTERS,))
Verdict = tuple[str, str, str]
"""Status, reason and message of the condition Available."""


class Aggregator:
    """`tls` holds the front proxy's client certificate, by which backends believe the X-Remote headers."""

    def __init__(self, caches: Caches, discovery: Discovery, tls: ClientTls | None, clock: Clock) -> None:
        self._caches = caches
        self._discovery = discovery
        self._tls = tls
        self._clock = clock
        self._remote: dict[tuple[str, str], Object] = {}
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._resolver = ServiceResolver(caches)
        self._session: aiohttp.ClientSession | None = None
        self._queue: WorkQueue[str] = WorkQueue(clock)
        self._tasks = TaskGroup("aggregation")
        self._unsubscribe: list[Callable[[], None]] = []

    def start(self, client: Client) -> None:
        """Follow APIServices and what they lead to; `client` writes their conditions."""
        services = self._caches.of(APISERVICES.group, APISERVICES.resource)
        for entry in services.list():
            self._take(entry.obj)
        slices = self._caches.of("discovery.k8s.io", "endpointslices")
        self._unsubscribe = [
            services.subscribe(self._on_api_service),
            self._caches.of("", "services").subscribe(lambda e: self._touched(namespace_of(e.obj), name_of(e.obj))),
            slices.subscribe(
                lambda e: self._touched(namespace_of(e.obj), labels_of(e.obj).get("kubernetes.io/service-name", ""))
            ),
        ]
        self._tasks.guard(lambda: self._work(client), name="apiservice-availability")

    async def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        self._queue.close()
        await self._tasks.cancel()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def reload_certificates(self) -> None:
        self._contexts.clear()

    # -- requests ----------------------------------------------------------------------------------------------------

    def backend(self, path: str) -> Object | None:
        """The APIService that has a decoded path of the API, where another server serves it."""
        if not self._remote or not path.startswith("/apis/"):
            return None
        parts = path.split("/")
        return self._remote.get((parts[2], parts[3])) if len(parts) > 3 else None

    async def serve(self, request: web.BaseRequest, user: User, api_service: Object) -> web.StreamResponse:
        """Pass the request on; 503 where the condition Available is not true or nobody answers."""
        condition = find_condition(api_service, "Available")
        if condition is None or condition.get("status") != "True":
            return _unavailable("service unavailable")
        url = URL(_base(api_service) + request.raw_path, encoded=True)
        headers = forwarded(request)
        for name in [key for key in headers if key.lower().startswith("x-remote-")]:
            headers.popall(name, None)
        headers.extend(identity(user))
        try:
            context = self._context(api_service)
            if "Upgrade" in request.headers:
                return await self._upgrade(request, url, headers, context)
            self._resolver.check(api_service["spec"]["service"])
            answer = await passed_on(self._opened(), request, url, headers, tls=context)
        except (aiohttp.ClientError, OSError, ValueError, ServiceMissing) as error:
            log.info("%s does not answer: %s", name_of(api_service), error)
            return _unavailable(f"error trying to reach service: {error}")
        async with answer:
            return await relayed(request, answer, end_to_end(answer.headers))

    async def get(self, api_service: Object, path: str, query: Mapping[str, str], user: User) -> Object:
        """GET, for a loop of this process, of what another server has. Raises StatusError: as it answers, or 503."""
        condition = find_condition(api_service, "Available")
        if condition is None or condition.get("status") != "True":
            raise StatusError(503, "ServiceUnavailable", "service unavailable")
        headers = identity(user)
        headers["Accept"] = "application/json"
        headers["Accept-Encoding"] = "identity"
        url = URL(_base(api_service)).with_path(path).with_query({key: text for key, text in query.items() if text})
        timeout = aiohttp.ClientTimeout(total=GET_TIMEOUT_S)
        try:
            self._resolver.check(api_service["spec"]["service"])
            context = self._context(api_service)
            async with self._opened().get(url, headers=headers, ssl=context, timeout=timeout) as answer:
                code, body = answer.status, await answer.read()
            document: Any = orjson.loads(body) if code == 200 or body.startswith(b"{") else {}
        except (aiohttp.ClientError, OSError, ValueError, ServiceMissing) as error:
            why = str(error) or "context deadline exceeded"
            raise StatusError(503, "ServiceUnavailable", f"error trying to reach service: {why}") from None
        if 200 <= code < 300 and isinstance(document, dict):
            return document
        if isinstance(document, dict) and document.get("kind") == "Status":
            raise StatusError.from_status(document)
        unknown = "the server could not find the requested resource" if code == 404 else f"the server answered {code}"
        raise StatusError(code, "NotFound" if code == 404 else "", unknown)

    async def _upgrade(
        self, request: web.BaseRequest, url: URL, headers: CIMultiDict[str], context: ssl.SSLContext
    ) -> web.StreamResponse:
        host, port = url.host or "", url.port or 443
        found = (await self._resolver.resolve(host, port))[0]
        at = url.with_host(found["host"]).with_port(found["port"])
        return await upgraded(request, at, headers, context, server_name=host)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CHECK_TIMEOUT_S),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _context(self, api_service: Object) -> ssl.SSLContext:
        """Raises ValueError for a caBundle that holds no certificates."""
        spec = api_service["spec"]
        key = (spec.get("caBundle") or "", bool(spec.get("insecureSkipTLSVerify")))
        found = self._contexts.get(key)
        if found is None:
            bundle, insecure = key
            try:
                pem = base64.b64decode(bundle).decode("ascii") if bundle else None
                found = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=pem)
            except (binascii.Error, UnicodeDecodeError, ssl.SSLError):
                raise ValueError("unable to load root certificates: unable to parse bytes as PEM block") from None
            if insecure:
                found.check_hostname = False
                found.verify_mode = ssl.CERT_NONE
            if self._tls is not None:
                found.load_cert_chain(self._tls.certificate, self._tls.key)
            self._contexts[key] = found
        return found

    # -- availability ------------------------------------------------------------------------------------------------

    def _on_api_service(self, event: Event) -> None:
        obj = event.obj
        spec = obj.get("spec") or {}
        if event.type != "DELETED":
            self._take(obj)
        else:
            self._remote.pop((spec.get("group", ""), spec.get("version", "")), None)
            self._discovery.leave(spec.get("group", ""), spec.get("version", ""))

    def _take(self, obj: Object) -> None:
        spec = obj.get("spec") or {}
        key = (spec.get("group", ""), spec.get("version", ""))
        before = self._remote.get(key)
        if spec.get("service") is None:
            self._remote.pop(key, None)
            self._discovery.leave(*key)
        else:
            self._remote[key] = obj
        if before is None or before.get("spec") != spec:
            self._queue.add(name_of(obj))

    def _touched(self, namespace: str, name: str) -> None:
        for api_service in self._remote.values():
            service = api_service["spec"]["service"]
            if (service.get("namespace"), service.get("name")) == (namespace, name):
                self._queue.add(name_of(api_service))

    async def _work(self, client: Client) -> None:
        while True:
            name = await self._queue.get()
            try:
                await self._check(client, name)
            except StatusError as error:
                if error.code != 404:
                    log.info("the condition of APIService %s is written again later: %s", name, error)
                    self._queue.add_after(name, CHECK_AGAIN_S)
            finally:
                self._queue.done(name)

    async def _check(self, client: Client, name: str) -> None:
        entry = self._caches.of(APISERVICES.group, APISERVICES.resource).get("", name)
        if entry is None:
            return
        obj = entry.obj
        verdict = await self.judge(obj)
        condition = find_condition(obj, "Available")
        if condition is None or tuple(condition.get(k) for k in ("status", "reason", "message")) != verdict:
            await client.update(APISERVICES, with_verdict(obj, verdict, self._clock.now()), subresource="status")
        if dig(obj, "spec", "service") is not None:
            self._queue.add_after(name, CHECK_EVERY_S if verdict[0] == "True" else CHECK_AGAIN_S)

    async def judge(self, api_service: Object) -> Verdict:
        """Whether the backend is there and answers; what it offers is taken into discovery, or out of it."""
        service = dig(api_service, "spec", "service")
        if service is None:
            return "True", "Local", "Local APIServices are always available"
        spec = api_service["spec"]
        verdict = self._missing(service)
        if verdict is None:
            url = f"{_base(api_service)}/apis/{spec['group']}/{spec['version']}"
            try:
                document = await self._discover(url, api_service)
            except (aiohttp.ClientError, OSError, ValueError, ServiceMissing) as error:
                why = str(error) or "context deadline exceeded"
                verdict = "False", "FailedDiscoveryCheck", f"failing or missing response from {url}: {why}"
            else:
                self._discovery.join(spec["group"], spec["version"], document)
                return "True", "Passed", "all checks passed"
        self._discovery.leave(spec["group"], spec["version"])
        return verdict

    async def _discover(self, url: str, api_service: Object) -> Object:
        """The backend's APIResourceList. Raises ValueError for a bad answer."""
        headers = identity(CHECKER)
        headers["Accept"] = "application/json"
        timeout = aiohttp.ClientTimeout(total=CHECK_TIMEOUT_S)
        context = self._context(api_service)
        headers["Accept-Encoding"] = "identity"
        async with self._opened().get(url, headers=headers, ssl=context, timeout=timeout) as answer:
            body = await answer.read()
            if not 200 <= answer.status < 300:
                raise ValueError(f"bad status from {url}: {answer.status}")
        document: Any = orjson.loads(body)
        if not isinstance(document, dict) or not isinstance(document.get("resources"), list):
            raise ValueError(f"no APIResourceList from {url}")
        return document

    def _missing(self, reference: Object) -> Verdict | None:
        """What lacks before anybody could be asked; None where nothing does."""
        name, namespace, port = reference["name"], reference["namespace"], reference.get("port", 443)
        where = f"service/{name} in {go_quote(namespace)}"
        entry = self._caches.of("", "services").get(namespace, name)
        if entry is None:
            return "False", "ServiceNotFound", f"{where} is not present"
        spec = entry.obj.get("spec") or {}
        if spec.get("type", "ClusterIP") != "ClusterIP":
            return None
        wanted = next((each for each in spec.get("ports") or () if each.get("port") == port), None)
        if wanted is None:
            return "False", "ServicePortError", f"{where} is not listening on port {port}"
        slices = [
            each.obj
            for each in self._caches.of("discovery.k8s.io", "endpointslices").list(namespace)
            if labels_of(each.obj).get("kubernetes.io/service-name") == name
        ]
        if not slices:
            return "False", "EndpointsNotFound", f"cannot find endpointslices for {where}"
        port_name = wanted.get("name", "")
        if not any(_has_address(each, port_name) for each in slices):
            text = f"endpointslices for {where} have no addresses with port name {go_quote(port_name)}"
            return "False", "MissingEndpoints", text
        return None


def identity(user: User) -> CIMultiDict[str]:
    """The headers by which the front proxy says who asks."""
    headers: CIMultiDict[str] = CIMultiDict({"X-Remote-User": user.name})
    if user.uid:
        headers["X-Remote-Uid"] = user.uid
    for group in user.groups:
        headers.add("X-Remote-Group", group)
    for key, values in user.extra.items():
        for value in values:
            headers.add(f"X-Remote-Extra-{quote(key, safe='')}", value)
    return headers


def with_verdict(api_service: Object, verdict: Verdict, now: float) -> Object:
    """The APIService with this condition Available; its time moves only with its status."""
    status, reason, message = verdict
    before = find_condition(api_service, "Available")
    since = before["lastTransitionTime"] if before is not None and before.get("status") == status else format_time(now)
    made = {
        "type": "Available",
        "status": status,
        "lastTransitionTime": since,
        "reason": reason,
        "message": message,
    }
    return replace_in(api_service, ("status", "conditions"), [*other_conditions(api_service, "Available"), made])


def _base(api_service: Object) -> str:
    service = api_service["spec"]["service"]
    return f"https://{service['name']}.{service['namespace']}.svc:{service.get('port', 443)}"


def _has_address(slice_: Object, port_name: str) -> bool:
    if not any((port.get("name") or "") == port_name for port in slice_.get("ports") or ()):
        return False
    return any(
        dig(each, "conditions", "ready") is not False and each.get("addresses")
        for each in slice_.get("endpoints") or ()
    )


def _unavailable(text: str) -> web.Response:
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return web.Response(status=503, body=f"{text}\n".encode(), headers=headers)
