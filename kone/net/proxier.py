"""The service proxy: Services and EndpointSlices become a map (service_map.py), and a Proxier brings it to the kernel.

A change is applied at once when nothing was for SYNC_INTERVAL_S, else with all that came in that time: a roll-out of a
hundred pods is a few writes to the kernel, and one pod is not waited for. Only the Services that changed are computed
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from kone.aio.clock import Clock, SystemClock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.kinds import ENDPOINTSLICES, NODES, SERVICES
from kone.apimachinery.objects import Key, Object, key_of, labels_of, namespace_of
from kone.client.client import EventType, Reader
from kone.client.events import EventRecorder
from kone.net.health_check import Check, HealthChecks
from kone.net.host_addresses import host_ips, listening_addresses
from kone.net.link_watch import watch_addresses
from kone.net.proxy_health import ProxyHealth, ProxyServer
from kone.net.service_map import (
    SERVICE_NAME,
    ZONE,
    Family,
    Place,
    ServicePort,
    ServicePortName,
    service_of,
    service_ports,
)

log = logging.getLogger(__name__)

SYNC_INTERVAL_S = 0.05
TURN = 100  # Services that are computed before others have a turn
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0  # kube-proxy's own sync period
BY_SERVICE = "net.service"

Desired = Mapping[ServicePortName, ServicePort]


class ProxySyncError(Exception):
    """Part of the desired state could not be brought to the kernel; the rest was. The text holds the rule."""


class Proxier(Protocol):
    """Makes the kernel serve Services, of one address family.

    - After `sync(desired)` returns, new connections to each address of each ServicePort reach only its endpoints, all
      with the same chance, and connections to anything that is no longer desired do not arrive. Established ones go on.
    - `sync` is idempotent and costs by what changed, not by what there is: unchanged values are given as the same
      objects. It raises ProxySyncError; what it could do it has done, and calling it again tries the rest.
    - From `start` to `stop` whatever someone else undoes is done again within 5 s, without being asked.
    - `start` changes nothing that serves: rules that an earlier run left serve until the first `sync`.
    - `stop` leaves the kernel as it is. `cleanup` removes every trace, started or not, and is idempotent.
    """

    async def start(self) -> None: ...

    async def sync(self, desired: Desired) -> None: ...

    async def stop(self) -> None: ...

    async def cleanup(self) -> None: ...


class ServiceProxy:
    """Keeps one Proxier for each family equal to what the API says. `node_name` is the node whose rules they are.

    `synced` is called once, when the kernel serves for the first time. `node_port_cidrs` are the host's addresses that
    have health check node ports too; () is all of them.
    """

    def __init__(
        self,
        client: Reader,
        proxiers: Mapping[Family, Proxier],
        node_name: str,
        clock: Clock | None = None,
        synced: Callable[[], Awaitable[None]] | None = None,
        recorder: EventRecorder | None = None,
        node_port_cidrs: Sequence[str] = (),
    ) -> None:
        self._client = client
        self._proxiers = proxiers
        self._node_name = node_name
        self._clock = clock or SystemClock()
        self._services = client.informer(SERVICES)
        self._slices = client.informer(ENDPOINTSLICES)
        self._node = client.informer(NODES, fields=f"metadata.name={node_name}")
        self._desired: dict[Family, dict[ServicePortName, ServicePort]] = {family: {} for family in proxiers}
        self._names: dict[Key, set[tuple[Family, ServicePortName]]] = {}
        self._dirty: set[Key] = set()
        self._zone = ""
        self._when_synced = synced
        self._health = ProxyHealth()
        self._health_checks = HealthChecks(node_name, lambda: self._health.is_healthy(self._clock.now()), recorder)
        self._checked: dict[Key, Check] = {}
        self._node_port_cidrs = node_port_cidrs
        self._moved = bool(node_port_cidrs)  # the host's addresses are not what they were when last looked at
        self._wake = asyncio.Event()
        self._synced = asyncio.Event()
        self._tasks = TaskGroup("service-proxy")
        self._unsubscribe: list[Callable[[], None]] = []
        self.last_sync_s = 0.0
        self.errors = 0

    async def start(self) -> None:
        """Begin; the first sync follows as soon as the informers are there (`wait_synced`)."""
        for proxier in self._proxiers.values():
            await proxier.start()
        self._slices.add_index(BY_SERVICE, _service_keys)
        if self._node_port_cidrs:
            self._tasks.guard(lambda: watch_addresses(self._addresses_changed), name="service-proxy-addresses")
        self._tasks.guard(self._run, name="service-proxy")

    async def stop(self) -> None:
        """Let go; Services are served on as they are."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        await self._tasks.cancel()
        await self._health_checks.stop()
        for proxier in self._proxiers.values():
            await proxier.stop()

    async def wait_synced(self) -> None:
        """Return once the kernel serves what the API said at start."""
        await self._synced.wait()

    def server(self, mode: str, *, healthz_port: int, status_port: int) -> ProxyServer:
        """What tells of this proxy by HTTP, once it is started."""
        return ProxyServer(
            self._health,
            lambda: self._node.get("", self._node_name),
            self._clock.now,
            mode,
            healthz_port=healthz_port,
            status_port=status_port,
        )

    async def _run(self) -> None:
        for informer in (self._services, self._slices):
            await informer.wait_synced()
        if not self._unsubscribe:
            self._unsubscribe = [
                self._services.subscribe(self._service_changed),
                self._slices.subscribe(self._slice_changed),
                self._node.subscribe(self._node_changed),
            ]
        retry_s = RETRY_FIRST_S
        while True:
            began = self._clock.monotonic()
            if await self._sync():
                retry_s = RETRY_FIRST_S
                if self._when_synced is not None:
                    await self._when_synced()
                    self._when_synced = None
                self._synced.set()
            else:
                self._tasks.spawn(self._later(retry_s), name="service-proxy-retry")
                retry_s = min(retry_s * 2, RETRY_MAX_S)
            self.last_sync_s = self._clock.monotonic() - began
            await self._wake.wait()
            # The first change after a pause waits for nothing; the next ones gather.
            if (left := began + SYNC_INTERVAL_S - self._clock.monotonic()) > 0:
                await self._clock.sleep(left)

    async def _sync(self) -> bool:
        self._wake.clear()
        dirty, self._dirty = self._dirty, set()
        for number, key in enumerate(dirty, 1):
            self._compute(key)
            if number % TURN == 0:
                await asyncio.sleep(0)
        good = True
        for family, proxier in self._proxiers.items():
            try:
                await proxier.sync(self._desired[family])
                self._health.updated(family, self._clock.now())
            except ProxySyncError as error:
                log.error("services are not all served: family=%s error=%s", family, error)
                self.errors += 1
                good = False
        await self._check_health(dirty)
        return good

    async def _check_health(self, dirty: Iterable[Key]) -> None:
        """Have the health checks of these Services say what is so now, where node ports are by now."""
        if self._moved:
            self._moved = False
            families = {6 if family == "IPv6" else 4 for family in self._proxiers}
            await self._health_checks.move(listening_addresses(self._node_port_cidrs, families, host_ips()))
        changed: dict[Key, Check | None] = {}
        for key in dirty:
            ports = [self._desired[family][name] for family, name in self._names.get(key, ())]
            numbers = {port.health_check_node_port for port in ports if port.health_check_node_port}
            check = Check(min(numbers), len({ip for port in ports for ip in port.local_ready})) if numbers else None
            if check != self._checked.get(key):
                changed[key] = check
                if check is None:
                    del self._checked[key]
                else:
                    self._checked[key] = check
        if changed or self._health_checks.failed:
            keys = {*changed, *self._health_checks.failed}
            await self._health_checks.update(changed, {k: s for k in keys if (s := self._services.get(*k)) is not None})

    def _compute(self, key: Key) -> None:
        service = self._services.get(*key)
        slices = self._slices.by_index(BY_SERVICE, str(key))
        names: set[tuple[Family, ServicePortName]] = set()
        for family, desired in self._desired.items():
            place = Place(self._node_name, self._zone, family)
            for name, port in (service_ports(service, slices, place) if service else {}).items():
                names.add((family, name))
                if desired.get(name) != port:  # equal values stay the same object
                    desired[name] = port
        for family, name in self._names.pop(key, set()) - names:
            del self._desired[family][name]
        if names:
            self._names[key] = names

    async def _later(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._wake.set()

    def _addresses_changed(self) -> None:
        self._moved = True
        self._wake.set()

    def _touch(self, key: Key) -> None:
        self._health.queued(self._proxiers, self._clock.now())
        self._dirty.add(key)
        self._wake.set()

    def _service_changed(self, kind: EventType, service: Object, previous: Object | None) -> None:
        self._touch(key_of(service))

    def _slice_changed(self, kind: EventType, endpoint_slice: Object, previous: Object | None) -> None:
        for state in (endpoint_slice, previous):
            if state is not None and (name := service_of(state)):
                self._touch(Key(namespace_of(state), name))

    def _node_changed(self, kind: EventType, node: Object, previous: Object | None) -> None:
        zone = labels_of(node).get(ZONE, "") if kind != "DELETED" else ""
        if zone != self._zone:
            self._zone = zone
            for service in self._services.list():
                self._touch(key_of(service))


def _service_keys(endpoint_slice: Object) -> list[str]:
    name = labels_of(endpoint_slice).get(SERVICE_NAME)
    return [str(Key(namespace_of(endpoint_slice), name))] if name and service_of(endpoint_slice) else []
