"""The Gateway API's controller: watches its kinds while they are installed, and writes what became of them.

Where the definitions are not installed it costs nothing but a look at each definition that comes. The ingress
controller (ingress.py) asks it what is to be served, serves it beside its Ingresses, and says how that went.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS, GVR, NAMESPACES
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    is_condition_true,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    resource_version_of,
)
from kone.apimachinery.timestamps import format_time
from kone.client.client import Client, EventType, Informer
from kone.net.gateway_listeners import (
    CONTROLLER,
    GATEWAYCLASSES,
    GATEWAYS,
    GROUP,
    HTTPROUTES,
    GatewayWorld,
    Listeners,
    is_ours,
    listeners_of,
)
from kone.net.gateway_routes import Routes, routes_of
from kone.net.gateway_status import class_status, gateway_status, route_parents
from kone.net.ingress_rules import Certificate, Problem, World

log = logging.getLogger(__name__)

CLASS = "kone"
NEEDED = {"gatewayclasses": ("v1",), "gateways": ("v1",), "httproutes": ("v1",), "referencegrants": ("v1", "v1beta1")}


class Gateways:
    """`changed` is called with what came, was changed or went; `follow` before each look at the world."""

    def __init__(self, client: Client, clock: Clock, world: World, changed: Callable[[GVR, Object], None]) -> None:
        self._client = client
        self._clock = clock
        self._changed = changed
        self._definitions = client.informer(CUSTOMRESOURCEDEFINITIONS)
        self._world = _Informed(client, world)
        self._followed: Mapping[str, GVR] = {}
        self._unsubscribe: list[Callable[[], None]] = []
        self._leave_definitions: Callable[[], None] | None = None

    async def wait_synced(self) -> None:
        await self._definitions.wait_synced()

    def subscribe(self) -> None:
        """Look at definitions from now on."""

        def told(kind: EventType, obj: Object, previous: Object | None) -> None:
            if dig(obj, "spec", "group") == GROUP:
                self._changed(CUSTOMRESOURCEDEFINITIONS, obj)

        self._leave_definitions = self._definitions.subscribe(told)

    def leave(self) -> None:
        self._stop()
        if self._leave_definitions is not None:
            self._leave_definitions()
            self._leave_definitions = None

    async def follow(self) -> None:
        """Begin with the kinds that are installed now, or end."""
        served = self._served()
        if served == self._followed:
            return
        self._stop()
        if not served:
            return
        try:
            await self._world.begin(served)
            await self._ensure_class()
        except StatusError as error:
            log.warning("the Gateway API's kinds cannot be watched yet: %s", error)
            return
        self._followed = served
        for resource, informer in self._world.watched.items():
            self._unsubscribe.append(informer.subscribe(self._told(resource)))
        log.info("the Gateway API is served: %s", ", ".join(sorted(map(str, served))))

    def _told(self, resource: GVR) -> Callable[[EventType, Object, Object | None], None]:
        return lambda kind, obj, previous: self._changed(resource, obj)

    def _served(self) -> dict[str, GVR]:
        """The kinds by their plural; none where one of them is not installed."""
        found: dict[str, GVR] = {}
        for definition in self._definitions.list():
            spec = definition.get("spec") or {}
            plural = dig(spec, "names", "plural", default="")
            if spec.get("group") != GROUP or not is_condition_true(definition, "Established"):
                continue
            versions = {version.get("name") for version in spec.get("versions") or () if version.get("served")}
            for version in NEEDED.get(plural, ()):
                if version in versions:
                    found[plural] = GVR(GROUP, version, plural)
                    break
        return found if len(found) == len(NEEDED) else {}

    def _stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        self._world.end()
        self._followed = {}

    async def _ensure_class(self) -> None:
        """Create the class unless there is one of its name, whoever made it."""
        made = {
            "apiVersion": GATEWAYCLASSES.api_version,
            "kind": "GatewayClass",
            "metadata": {"name": CLASS},
            "spec": {"controllerName": CONTROLLER},
        }
        try:
            await self._client.create(GATEWAYCLASSES, made)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                raise

    # What is to be served

    def listeners(
        self, node_ips: Sequence[str], taken: Mapping[int, str], unusable: Mapping[int, str] | None = None
    ) -> Listeners:
        return listeners_of(
            self._world.list("gateways"),
            self._world.list("gatewayclasses"),
            self._world,
            node_ips=node_ips,
            taken=taken,
            unusable=unusable or {},
        )

    def routes(self, listeners: Listeners) -> Routes:
        return routes_of(self._world.list("httproutes"), listeners, self._world)

    def gateway(self, key: Key) -> Object | None:
        return next((obj for obj in self._world.list("gateways") if key_of(obj) == key), None)

    # What became of it

    async def report(self, listeners: Listeners, routes: Routes, node_ips: Sequence[str], problem: str) -> None:
        """Write the status of everything of ours that has another one."""
        now = format_time(self._clock.now())
        for obj in self._world.list("gatewayclasses"):
            if is_ours(obj):
                await self._write(GATEWAYCLASSES, obj, class_status(obj, now))
        for gateway in listeners.gateways.values():
            await self._write(GATEWAYS, gateway.obj, gateway_status(gateway, routes, node_ips, problem, now))
        for route in self._world.list("httproutes"):
            parents = route_parents(route, routes.parents.get(key_of(route), ()), now)
            if parents or dig(route, "status", "parents", default=()):
                await self._write(HTTPROUTES, route, {"parents": parents})

    async def _write(self, resource: GVR, obj: Object, status: Object) -> None:
        """Unless somebody wrote it meanwhile: that wakes the controller again."""
        if (obj.get("status") or {}) == status:
            return
        patch = {"metadata": {"resourceVersion": resource_version_of(obj)}, "status": status}
        try:
            await self._client.patch(resource, name_of(obj), patch, namespace=namespace_of(obj), subresource="status")
        except StatusError as error:
            if error.reason not in ("NotFound", "Conflict"):
                log.warning("status not written: %s=%s error=%s", resource.resource, key_of(obj), error)


class _Informed(GatewayWorld):
    """The rules' world, from informers; what Ingresses speak of too is asked of theirs."""

    def __init__(self, client: Client, base: World) -> None:
        self._client = client
        self._base = base
        self.watched: dict[GVR, Informer] = {}
        self._by_plural: dict[str, Informer] = {}

    async def begin(self, served: Mapping[str, GVR]) -> None:
        """Raises StatusError where a kind is not served after all."""
        watched = {resource: self._client.informer(resource) for resource in (*served.values(), NAMESPACES)}
        for informer in watched.values():
            await informer.wait_synced()
        self.watched = watched
        self._by_plural = {resource.resource: informer for resource, informer in watched.items()}

    def end(self) -> None:
        self.watched, self._by_plural = {}, {}

    def list(self, plural: str, namespace: str = "") -> Sequence[Object]:
        informer = self._by_plural.get(plural)
        return informer.list(namespace) if informer is not None else ()

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        informer = self._by_plural.get("namespaces")
        found = informer.get("", namespace) if informer is not None else None
        return labels_of(found) if found is not None else {}

    def grants(self, namespace: str) -> Iterable[Object]:
        return self.list("referencegrants", namespace)

    def service(self, namespace: str, name: str) -> Object | None:
        return self._base.service(namespace, name)

    def slices(self, namespace: str, service: str) -> Iterable[Object]:
        return self._base.slices(namespace, service)

    def certificate(self, secret: Key) -> Certificate | Problem:
        return self._base.certificate(secret)
