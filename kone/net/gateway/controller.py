"""The Gateway API's controller: watches its kinds while they are installed, and writes what became of them.

Where the definitions are not installed it costs nothing but a look at each definition that comes. The ingress
controller (ingress.py) asks it what is to be served, serves it beside its Ingresses, and says how that went.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS, GVR, NAMESPACES, SERVICES
from kone.apimachinery.objects import (
    Key,
    Object,
    controller_reference,
    dig,
    is_condition_true,
    is_deleting,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    resource_version_of,
)
from kone.apimachinery.timestamps import format_time
from kone.client.client import Client, EventType, Informer
from kone.net.gateway.listeners import (
    CONTROLLER,
    GATEWAYCLASSES,
    GATEWAYS,
    GROUP,
    GRPCROUTES,
    HTTPROUTES,
    Gateway,
    GatewayWorld,
    Listeners,
    is_ours,
    listeners_of,
)
from kone.net.gateway.routes import Routes, route_id, routes_of
from kone.net.gateway.status import class_status, gateway_status, route_parents
from kone.net.ingress.rules import Certificate, Problem, World
from kone.net.service_map import PROXY_NAME

log = logging.getLogger(__name__)

CLASS = "kone"
MANAGED_BY = "app.kubernetes.io/managed-by"
NAME_MAX = 63  # of a Service (RFC 1035)
GATEWAY_NAME = f"{GROUP}/gateway-name"  # label of what is made for a Gateway (GEP-1762)
NOT_PROXIED = "kone-gateway"  # whose Service it is: requests go to Caddy, not to endpoints
NEEDED = {"gatewayclasses": ("v1",), "gateways": ("v1",), "httproutes": ("v1",), "referencegrants": ("v1", "v1beta1")}
SERVED = {**NEEDED, "grpcroutes": ("v1",)}
ROUTES = (HTTPROUTES, GRPCROUTES)


class Gateways:
    """`changed` is called with what came, was changed or went; `follow` before each look at the world."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        world: World,
        changed: Callable[[GVR, Object], None],
        *,
        own_addresses: bool = False,
    ) -> None:
        """With `own_addresses` each Gateway has a Service to which the load balancer gives an address."""
        self._client = client
        self._clock = clock
        self._changed = changed
        self._own_addresses = own_addresses
        self._services = client.informer(SERVICES)
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
            for version in SERVED.get(plural, ()):
                if version in versions:
                    found[plural] = GVR(GROUP, version, plural)
                    break
        return found if found.keys() >= NEEDED.keys() else {}

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
            "metadata": {"name": CLASS, "labels": {MANAGED_BY: "kone"}},
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
            given=self._given if self._own_addresses else None,
        )

    def _given(self, gateway: Key) -> Sequence[str]:
        service = self._services.get(gateway.namespace, service_name(gateway.name))
        entries: Sequence[Object] = dig(service, "status", "loadBalancer", "ingress", default=())
        return [entry["ip"] for entry in entries if entry.get("ip")]

    async def ensure_services(self, listeners: Listeners) -> None:
        """A Service for each Gateway that is to have addresses of its own, and none for others."""
        wanted: dict[Key, Object] = {}
        for gateway in listeners.gateways.values() if self._own_addresses else ():
            if service := service_for(gateway):
                wanted[key_of(service)] = service
        for found in self._services.list():
            if not is_of_gateway(found) or is_deleting(found):
                continue
            service = wanted.pop(key_of(found), None)
            try:
                if service is None:
                    await self._client.delete(SERVICES, name_of(found), namespace=namespace_of(found))
                elif _asked_of(service) != _asked_of(found):
                    spec = {"ports": service["spec"]["ports"], "loadBalancerIP": service["spec"]["loadBalancerIP"]}
                    await self._client.patch(
                        SERVICES, name_of(found), {"spec": spec}, namespace=namespace_of(found), kind="merge"
                    )
            except StatusError as error:
                log.warning("Service of a Gateway: service=%s error=%s", key_of(found), error)
        for key, service in wanted.items():
            try:
                await self._client.create(SERVICES, service)
            except StatusError as error:
                log.warning("Service of a Gateway not made: service=%s error=%s", key, error)

    def routes(self, listeners: Listeners) -> Routes:
        return routes_of(self._routes(), listeners, self._world)

    def _routes(self) -> Iterator[Object]:
        for resource in ROUTES:
            yield from self._world.list(resource.resource)

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
        for resource in ROUTES:
            for route in self._world.list(resource.resource):
                parents = route_parents(route, routes.parents.get(route_id(route), ()), now)
                if parents or dig(route, "status", "parents", default=()):
                    await self._write(resource, route, {"parents": parents})

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


def is_of_gateway(service: Object) -> bool:
    """Whether the Service was made for a Gateway."""
    return labels_of(service).get(PROXY_NAME) == NOT_PROXIED


def service_name(gateway: str) -> str:
    """The name of a Gateway's Service: its own, as far as Services' names allow."""
    name = f"gateway-{gateway}"
    if "." not in name and len(name) <= NAME_MAX:
        return name
    digest = hashlib.sha256(gateway.encode()).hexdigest()[:10]
    return f"{name.replace('.', '-')[: NAME_MAX - 11]}-{digest}"


def service_for(gateway: Gateway) -> Object | None:
    """The Service by which a Gateway gets addresses; None where no port of it can be served."""
    ports = sorted({listener.port for listener in gateway.listeners if listener.accepted})
    if not ports or is_deleting(gateway.obj):
        return None
    addresses: Sequence[Object] = dig(gateway.obj, "spec", "addresses", default=())
    wanted = next((a["value"] for a in addresses if a.get("type", "IPAddress") == "IPAddress" and a.get("value")), "")
    return {
        "apiVersion": SERVICES.api_version,
        "kind": "Service",
        "metadata": {
            "name": service_name(gateway.key.name),
            "namespace": gateway.key.namespace,
            "labels": {PROXY_NAME: NOT_PROXIED, GATEWAY_NAME: gateway.key.name},
            "ownerReferences": [controller_reference(gateway.obj)],
        },
        "spec": {
            "type": "LoadBalancer",
            "allocateLoadBalancerNodePorts": False,
            "ipFamilyPolicy": "PreferDualStack",
            "loadBalancerIP": wanted,
            "ports": [{"name": f"port-{port}", "port": port, "protocol": "TCP"} for port in ports],
        },
    }


def _asked_of(service: Object) -> tuple[list[int], str]:
    """What a Gateway's Service asks of the load balancer."""
    spec = service["spec"]
    return [port["port"] for port in spec.get("ports") or ()], str(spec.get("loadBalancerIP") or "")


async def withdraw_gateways(client: Client) -> None:
    """Take back the class, and the addresses that Gateways were given. Raises StatusError."""
    for service in await client.list(SERVICES, labels=f"{PROXY_NAME}={NOT_PROXIED}"):
        await client.delete(SERVICES, name_of(service), namespace=namespace_of(service))
    try:
        found = await client.get(GATEWAYCLASSES, CLASS)
        if labels_of(found).get(MANAGED_BY) == "kone":
            await client.delete(GATEWAYCLASSES, CLASS)
    except StatusError as error:
        if error.reason != "NotFound":
            raise


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
