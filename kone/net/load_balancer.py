"""The load balancer of a single host: a Service of type LoadBalancer gets addresses of the node, or of a given pool.

An address of the pool is held on the uplink and announced there (uplink_addresses.py); what arrives is the service
proxy's to lead. The steps, their events and the finalizer are those of upstream's service controller; Services of a
class that is not kone's are left alone.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.aio.workqueue import WorkQueue
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import SERVICES
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    has_finalizer,
    key_of,
    name_of,
    namespace_of,
    other_finalizers,
    resource_version_of,
)
from kone.client.client import Client, EventType
from kone.client.events import EventRecorder

log = logging.getLogger(__name__)

COMPONENT = "service-controller"
CLASS = "kone"
FINALIZER = "service.kubernetes.io/load-balancer-cleanup"
BY_ADDRESS = "net.load-balancer"
RETRY_FIRST_S, RETRY_MAX_S = 5.0, 300.0  # upstream's minRetryDelay and maxRetryDelay

PortId = tuple[str, int]
"""Protocol and number."""


class NoAddress(Exception):
    """The Service cannot have what it asks for; the text says why."""


class Holder(Protocol):
    """Makes addresses the host's own and known to its neighbours."""

    async def hold(self, addresses: Collection[str]) -> None:
        """Exactly these, of those that kone gave. Raises OSError."""


@dataclass(frozen=True, slots=True)
class BalancerConfig:
    """`pool`: networks whose addresses are given, () for the node's own; `reserved`: ports that kone has."""

    node_ips: Sequence[str]
    pool: Sequence[str] = ()
    reserved: Collection[PortId] = ()


def is_mine(service: Object) -> bool:
    """Whether the Service is to have a load balancer, and kone's."""
    spec = service.get("spec") or {}
    return (
        spec.get("type") == "LoadBalancer"
        and spec.get("loadBalancerClass", CLASS) == CLASS
        and not service["metadata"].get("deletionTimestamp")
    )


def addresses_of(service: Object) -> list[str]:
    """The load balancer's addresses that its status tells."""
    ingress = dig(service, "status", "loadBalancer", "ingress", default=())
    return [entry["ip"] for entry in ingress if entry.get("ip")]


def ports_of(service: Object) -> dict[PortId, None]:
    """The ports that it wants of its addresses, in order."""
    return {(port.get("protocol") or "TCP", port["port"]): None for port in service["spec"].get("ports") or ()}


def choose(
    service: Object,
    others: Callable[[str], Iterable[Object]],
    config: BalancerConfig,
    in_use: Callable[[str, PortId], bool],
) -> list[str]:
    """The Service's addresses, those that it has where they will do. Raises NoAddress.

    `others` are the Services that have an address; `in_use` says whether a program of the host listens at a port.
    """
    wanted = service["spec"].get("loadBalancerIP") or ""
    chosen = []
    for family in service["spec"].get("ipFamilies") or ["IPv4"]:
        candidates = _candidates(service, family, wanted, config)
        problem = ""
        for ip in candidates:
            found = _conflict(service, ip, others(ip), config, in_use)
            if not found:
                chosen.append(ip)
                break
            problem = problem or found
        else:
            if problem and (wanted or not config.pool):
                raise NoAddress(problem)
            if problem:
                raise NoAddress(f"all {family} addresses of the pool {', '.join(config.pool)} are taken")
            if service["spec"].get("ipFamilyPolicy") != "PreferDualStack" or not chosen:
                raise NoAddress(f"there is no {family} address to give")
    return chosen


def _candidates(service: Object, family: str, wanted: str, config: BalancerConfig) -> Iterator[str]:
    """Addresses of the family in the order in which they are tried."""

    def fits(ip: str) -> bool:
        return (":" in ip) == (family == "IPv6")

    if not config.pool:
        yield from (ip for ip in config.node_ips if fits(ip))
        return
    networks = [ipaddress.ip_network(text) for text in config.pool]
    if wanted and fits(wanted):
        address = ipaddress.ip_address(wanted)
        if not any(address in network for network in networks):
            raise NoAddress(f"loadBalancerIP {wanted} is not in the pool {', '.join(config.pool)}")
        yield str(address)
        return
    for ip in addresses_of(service):
        if fits(ip) and any(ipaddress.ip_address(ip) in network for network in networks):
            yield ip
    for network in networks:
        if f"IPv{network.version}" == family:
            yield from (str(ip) for ip in network)


def _conflict(
    service: Object,
    ip: str,
    others: Iterable[Object],
    config: BalancerConfig,
    in_use: Callable[[str, PortId], bool],
) -> str:
    """What stands against giving this address, "" where nothing does. Of a pool, each address is one Service's."""
    ports, key = ports_of(service), key_of(service)
    asked_for = service["spec"].get("loadBalancerIP") == ip
    for other in others:
        if key_of(other) != key and is_mine(other):
            if config.pool and not asked_for:
                return f"{ip} is taken by Service {key_of(other)}"
            if shared := [port for port in ports if port in ports_of(other)]:
                return f"port {_text(shared[0])} of {ip} is in use by Service {key_of(other)}"
    if config.pool:
        return ""
    for port in ports:
        if port in config.reserved:
            return f"port {_text(port)} of {ip} is in use by kone itself"
        if ip not in addresses_of(service) and in_use(ip, port):
            return f"port {_text(port)} of {ip} is in use by a program of this host"
    return ""


def _text(port: PortId) -> str:
    return f"{port[1]}/{port[0]}"


class LoadBalancerController:
    """Gives addresses from `start` on. `stop` leaves them given."""

    def __init__(
        self,
        client: Client,
        recorder: EventRecorder,
        clock: Clock,
        config: BalancerConfig,
        holder: Holder,
        in_use: Callable[[str, PortId], bool],
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._config = config
        self._holder = holder
        self._in_use = in_use
        self._services = client.informer(SERVICES)
        self._queue: WorkQueue[Key] = WorkQueue(clock, name="service-lb", first_s=RETRY_FIRST_S, max_s=RETRY_MAX_S)
        self._refused: set[Key] = set()  # a port or address that becomes free may be theirs
        self._balanced: dict[Key, list[str]] = {}
        self._tasks = TaskGroup("load-balancer")
        self._unsubscribe: Callable[[], None] | None = None

    async def start(self) -> None:
        self._services.add_index(BY_ADDRESS, addresses_of)
        self._tasks.guard(self._run, name="load-balancer")

    async def stop(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        await self._tasks.cancel()

    def move(self, node_ips: Sequence[str]) -> None:
        """The host has other addresses: so have the Services that were given its old ones."""
        self._config = replace(self._config, node_ips=node_ips)
        for service in self._services.list():
            if is_mine(service):
                self._queue.add(key_of(service))

    async def _run(self) -> None:
        await self._services.wait_synced()
        if self._unsubscribe is None:
            await self._take_over()
            self._unsubscribe = self._services.subscribe(self._changed)
        while True:
            key = await self._queue.get()
            try:
                await self._reconcile(key)
                self._queue.forget(key)
            except (StatusError, OSError) as error:
                log.warning("load balancer of Service %s, trying again: %s", key, error)
                self._queue.add_backing_off(key)
            except NoAddress:
                self._queue.add_backing_off(key)
            finally:
                self._queue.done(key)

    async def _take_over(self) -> None:
        """Hold at once what an earlier run gave, and nothing else of it."""
        for service in self._services.list():
            if is_mine(service) and (addresses := addresses_of(service)):
                self._balanced[key_of(service)] = addresses
        try:
            await self._holder.hold({ip for held in self._balanced.values() for ip in held if self._is_of_pool(ip)})
        except OSError as error:
            log.warning("addresses of load balancers cannot be held: %s", error)

    def _is_of_pool(self, ip: str) -> bool:
        address = ipaddress.ip_address(ip)
        return any(address in ipaddress.ip_network(text) for text in self._config.pool)

    def _changed(self, kind: EventType, service: Object, previous: Object | None) -> None:
        key = key_of(service)
        if kind == "DELETED" or is_mine(service) or has_finalizer(service, FINALIZER) or key in self._balanced:
            self._queue.add(key)

    async def _reconcile(self, key: Key) -> None:
        service = self._services.get(*key)
        self._refused.discard(key)
        if service is not None and is_mine(service):
            await self._ensure(key, service)
        else:
            await self._withdraw(key, service)

    async def _ensure(self, key: Key, service: Object) -> None:
        try:
            chosen = choose(service, lambda ip: self._services.by_index(BY_ADDRESS, ip), self._config, self._in_use)
        except NoAddress as error:
            self._refused.add(key)
            message = f"Error syncing load balancer: failed to ensure load balancer: {error}"
            self._recorder.event(service, "Warning", "SyncLoadBalancerFailed", message)
            if addresses_of(service):
                await self._write(service, [], finalizer=True)
                await self._hold(key, [])
            raise
        news = chosen != addresses_of(service) or not has_finalizer(service, FINALIZER)
        if news:
            self._recorder.event(service, "Normal", "EnsuringLoadBalancer", "Ensuring load balancer")
        await self._hold(key, chosen)
        if news:
            await self._write(service, chosen, finalizer=True)
            self._recorder.event(service, "Normal", "EnsuredLoadBalancer", "Ensured load balancer")

    async def _withdraw(self, key: Key, service: Object | None) -> None:
        spec_class = dig(service, "spec", "loadBalancerClass", default=CLASS) if service is not None else CLASS
        if service is not None and spec_class == CLASS and (has_finalizer(service, FINALIZER) or key in self._balanced):
            self._recorder.event(service, "Normal", "DeletingLoadBalancer", "Deleting load balancer")
            await self._hold(key, [])
            await self._write(service, [], finalizer=False)
            self._recorder.event(service, "Normal", "DeletedLoadBalancer", "Deleted load balancer")
        else:
            await self._hold(key, [])
        for other in self._refused:
            self._queue.add(other)

    async def _hold(self, key: Key, addresses: list[str]) -> None:
        """Have the uplink hold what Services have of the pool."""
        before = self._balanced.get(key, [])
        if addresses:
            self._balanced[key] = addresses
        else:
            self._balanced.pop(key, None)
        if self._config.pool and before != addresses:
            await self._holder.hold({ip for held in self._balanced.values() for ip in held if self._is_of_pool(ip)})

    async def _write(self, service: Object, addresses: Sequence[str], *, finalizer: bool) -> None:
        """The status and the finalizer in one write of the status, which upstream's controller may do too."""
        finalizers = other_finalizers(service, FINALIZER)
        if finalizer:
            finalizers.append(FINALIZER)
        ingress = [{"ip": ip, "ipMode": "VIP"} for ip in addresses]
        patch: Object = {
            "metadata": {"finalizers": finalizers or None, "resourceVersion": resource_version_of(service)},
            "status": {"loadBalancer": {"ingress": ingress or None}},
        }
        try:
            await self._client.patch(
                SERVICES, name_of(service), patch, namespace=namespace_of(service), subresource="status", kind="merge"
            )
        except StatusError as error:
            if error.reason != "NotFound":
                raise
