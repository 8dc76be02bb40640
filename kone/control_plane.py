"""The API and its loops without a node: store, cache, certificates, API server, controllers, scheduler.

`node.py` starts these as stages; `kone.testing.Cluster` is nothing but them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kone import api_files
from kone.admission.chain import Chain, Doors, default_chain
from kone.aio.clock import Clock
from kone.aio.stages import Stage
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.ip_addresses import family_of
from kone.apimachinery.kinds import GVK, GVR, NAMESPACES, parse_api_version
from kone.apimachinery.objects import Object
from kone.apimachinery.users import AUTHENTICATED, SYSTEM_MASTERS, User, service_account_user
from kone.apiserver import kubernetes_endpoints
from kone.apiserver.app import ApiServer, Limits, TlsFiles
from kone.apiserver.audit import Audit
from kone.apiserver.audit_webhook import AuditWebhook
from kone.apiserver.custom_resources import CustomResources
from kone.apiserver.kubelet_client import ClientTls
from kone.apiserver.local_api_services import LocalApiServices
from kone.apiserver.local_client import LocalClient
from kone.apiserver.outbound import Outbound
from kone.apiserver.reviews import Reviews
from kone.apiserver.subresources import actions
from kone.apiserver.verbs import Verbs
from kone.apiserver.webhook_client import WebhookClient
from kone.auth import bootstrap, flow_objects, pki, x509_checks
from kone.auth.authentication import Authenticator, TokenVerifier
from kone.auth.authorizer import Authorizer
from kone.auth.encryption import parse_encryption
from kone.auth.signing import sign_request
from kone.auth.static_tokens import BootstrapTokens, admin_tokens
from kone.auth.tokens import ObjectGetter, ServiceAccountTokens
from kone.authentication_files import AuthenticationFiles
from kone.authorization_files import AuthorizationFiles
from kone.cache.watch_cache import Caches
from kone.client.client import Client
from kone.config import ConfigError, Settings, node_ports
from kone.registry import metrics
from kone.registry.allocators import AllocationError, Allocators
from kone.registry.registry import builtin
from kone.registry.resource import Registry
from kone.store.opening import open_store
from kone.store.store import Store, StoreError

if TYPE_CHECKING:
    from kone.controllers.controller import Manager
    from kone.scheduler.scheduler import Scheduler

log = logging.getLogger(__name__)

RENEW_LOOK_S = 12 * 3600.0
ADMINISTRATOR = User("kubernetes-admin", groups=(SYSTEM_MASTERS, AUTHENTICATED))
API_SERVER = User("system:apiserver", groups=(SYSTEM_MASTERS, AUTHENTICATED))
SCHEDULER = User("system:kube-scheduler", groups=(AUTHENTICATED,))


class StartError(Exception):
    """A node cannot start; the text is one line that says what to do."""


class ControlPlane:
    """Built from settings, started by its `stages`, in order. `client_for(user)` acts without HTTP."""

    def __init__(self, settings: Settings, node_ips: Sequence[str], clock: Clock) -> None:
        self.settings, self.clock = settings, clock
        self.node_ip = _api_ip(settings, node_ips)
        self.registry: Registry = builtin(x509_checks)
        self._measures = settings.runs("kubelet") and settings.runs("metrics")
        if self._measures:
            for resource in metrics.RESOURCES:
                self.registry.add(resource)
        names = pki.Names(
            settings.node_name,
            os.uname().nodename,
            (*node_ips, *_specific(settings.bind_address)),
            str(ip_network(settings.service_cidrs[0])[1]),
            settings.cluster_domain,
        )
        self.pki = pki.Pki(settings.data / "pki", names)
        self.api: ApiServer | None = None
        self._store: Store | None = None
        self._verbs: Verbs | None = None
        self._allocators: Allocators | None = None
        self._webhooks: WebhookClient | None = None
        self._outbound: Outbound | None = None
        self._audit: Audit | None = None
        self._audit_webhook: AuditWebhook | None = None
        self._upkeep: Manager | None = None
        self._files: list[api_files.ReloadedFile] = []
        self._manager: Manager | None = None
        self._scheduler: Scheduler | None = None
        self._custom: CustomResources | None = None
        self._local_api_services: LocalApiServices | None = None
        self._tasks = TaskGroup("control-plane")
        self.on_new_certificates: list[Callable[[], None]] = []

    async def move(self, node_ips: Sequence[str]) -> None:
        """The host has other addresses: certificates name them, and `kubernetes.default` leads there."""
        self.node_ip = _api_ip(self.settings, node_ips)
        ips = (*node_ips, *_specific(self.settings.bind_address))
        self.pki.names = dataclasses.replace(self.pki.names, node_ips=ips)
        await self.reload_certificates()
        if self.api is not None:
            await kubernetes_endpoints.reconcile(self.client_for(API_SERVER), self.node_ip, self.api.port)

    @property
    def url(self) -> str:
        bind = ip_address(self.settings.bind_address)
        host = ("127.0.0.1" if bind.version == 4 else "::1") if bind.is_unspecified else str(bind)
        port = self.api.port if self.api is not None else self.settings.secure_port
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    @property
    def ca_pem(self) -> str:
        return self.pki.ca_pem

    def client_for(self, user: User) -> Client:
        """A client in this process that acts as `user`."""
        assert self._verbs is not None, "the API is not up yet"
        return LocalClient(self._verbs, user)

    @property
    def stages(self) -> list[Stage]:
        found = [
            Stage("store", self._open, self._close, 10.0),
            Stage("api", self._serve, self._stop_serving, 10.0),
        ]
        if self.settings.runs("controllers"):
            found.append(Stage("controllers", self._start_controllers, self._stop_controllers, 5.0))
        if self.settings.runs("scheduler"):
            found.append(Stage("scheduler", self._start_scheduler, self._stop_scheduler, 5.0))
        return found

    # ---- store and certificates

    async def _open(self) -> None:
        """Certificates are looked at in a thread while the database opens."""
        settings = self.settings
        encryption = api_files.encryption_of(settings)
        try:
            self._store, _ = await asyncio.gather(
                open_store(settings.datastore, clock=self.clock, sealer=encryption),
                asyncio.to_thread(self._ensure_certificates),
            )
        except StoreError as error:
            raise StartError(str(error)) from None
        except pki.PkiError as error:
            raise StartError(str(error)) from None
        except OSError as error:
            raise StartError(
                f"{error.filename or self.settings.data_dir}: {error.strerror}; choose another --data-dir"
            ) from None
        if encryption is not None:
            path = settings.encryption_provider_config
            self._files.append(api_files.ReloadedFile(api_files.ENCRYPTION, path, self._encrypt))

    async def _encrypt(self, text: str) -> None:
        """Store everything as the changed file says."""
        assert self._store is not None
        count = await self._store.reseal(parse_encryption(text))
        log.info("encryption at rest: values stored anew=%d", count)

    def _ensure_certificates(self) -> frozenset[str]:
        issued = self.pki.ensure(self.clock.now())
        bundle = self.pki.certificate(pki.CA).read_text() + self.pki.certificate(pki.FRONT_PROXY_CA).read_text()
        if not self._client_ca.exists() or self._client_ca.read_text() != bundle:
            self._client_ca.write_text(bundle)
        return issued

    @property
    def _client_ca(self) -> Path:
        """One file of the CAs that client certificates come from: the cluster's and the front proxy's."""
        return self.pki.directory / "client-ca.crt"

    async def _close(self) -> None:
        if self._store is not None:
            await self._store.close()
            self._store = None

    # ---- the API

    async def _serve(self) -> None:
        settings, store = self.settings, self._store
        assert store is not None
        caches = Caches(store)
        await caches.start()
        ports = node_ports(settings)
        allocators = Allocators(settings.service_cidrs, (ports[0], ports[-1]))
        allocators.watch(caches)
        self._allocators = allocators
        if settings.runs("dns"):
            self.hold_dns_address()
        authorizer = Authorizer(caches, bootstrap.node_rules())
        get = _getter(caches)
        tokens = ServiceAccountTokens(self.pki.service_account_key_pem, get, self.clock)
        self._account_tokens = tokens
        self._webhooks = WebhookClient(caches)
        verifiers: list[TokenVerifier] = [admin_tokens(self.pki.admin_token)]
        if (listed := api_files.token_file_of(settings)) is not None:
            verifiers.append(listed)
        self._outbound = Outbound()
        files = AuthenticationFiles(settings, self._outbound, self._webhooks, self.clock)
        remote, anonymous = files.read()
        authenticator = Authenticator((*verifiers, tokens, BootstrapTokens(get, self.clock)), remote, anonymous)
        self._files += files.follow(authenticator)
        self._files += AuthorizationFiles(settings, self._webhooks, self.clock, authorizer).apply()
        self._verbs = Verbs(
            registry=self.registry,
            store=store,
            caches=caches,
            admission=self._admission(caches, authorizer),
            authorizer=authorizer,
            allocators=allocators,
            clock=self.clock,
            actions=actions(Reviews(authenticator, authorizer, tokens)),
        )
        kubelet_client = "apiserver-kubelet-client"
        self._audit_webhook = api_files.audit_webhook_of(settings, self._webhooks, self.clock)
        if self._audit_webhook is not None:
            self._audit_webhook.start()
        self._audit = api_files.audit_of(settings, self.clock, self._audit_webhook)
        self.api = ApiServer(
            verbs=self._verbs,
            authenticator=authenticator,
            authorizer=authorizer,
            kubelet_tls=ClientTls(
                self.pki.certificate(kubelet_client), self.pki.key(kubelet_client), self.pki.certificate(pki.CA)
            ),
            front_proxy_tls=ClientTls(
                self.pki.certificate("front-proxy-client"),
                self.pki.key("front-proxy-client"),
                self.pki.certificate(pki.FRONT_PROXY_CA),
            ),
            tokens=tokens,
            audit=self._audit,
            clock=self.clock,
            limits=Limits(settings.server_seats, settings.request_timeout_s),
        )
        await self._bootstrap(caches)
        self.api.flow.start(LocalClient(self._verbs, API_SERVER))
        await self._start_upkeep()
        self.api.aggregator.start(self.client_for(API_SERVER))
        self._custom = CustomResources(self._verbs, self.clock, API_SERVER, self._webhooks)
        self._custom.start()
        self._local_api_services = LocalApiServices(caches, self.clock)
        self._local_api_services.start(self.client_for(API_SERVER))
        tls = TlsFiles(self.pki.certificate("apiserver"), self.pki.key("apiserver"), self._client_ca)
        try:
            await self.api.start(
                host=settings.bind_address, port=settings.secure_port, tls=tls, unix_path=settings.socket_path
            )
        except OSError as error:
            raise StartError(_listen_problem(settings, error)) from None
        await kubernetes_endpoints.reconcile(self.client_for(API_SERVER), self.node_ip, self.api.port)
        self._write_kubeconfig()
        self._tasks.guard(self._renew_certificates, name="renew-certificates")
        if self._files:
            self._tasks.guard(self._watch_files, name="watch-files")

    def _admission(self, caches: Caches, authorizer: Authorizer) -> Chain:
        """The admission plugins, as the settings choose and configure them."""
        settings = self.settings

        async def make_namespace(name: str) -> None:
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            await self.client_for(API_SERVER).create(NAMESPACES, namespace)

        try:
            return default_chain(
                caches,
                self.clock,
                authorizer,
                Doors(self.registry, self._webhooks, make_namespace),
                names=api_files.admission_plugins_of(settings),
                configurations=api_files.admission_configurations_of(settings),
            )
        except ValueError as error:
            raise ConfigError(f"{api_files.ADMISSION} {settings.admission_control_config_file}: {error}") from None

    async def _start_upkeep(self) -> None:
        """The loops that upstream runs in its API server: they are there without the other controllers too."""
        from kone.controllers.controller import Manager
        from kone.controllers.controller import Settings as ControllerSettings
        from kone.controllers.ip_addresses import ADDRESS_REPAIR, SERVICE_ADDRESS_REPAIR
        from kone.controllers.service_cidrs import DEFAULT_SERVICE_CIDR_CONTROLLER

        settings = ControllerSettings(service_cidrs=self.settings.service_cidrs)
        loops = (DEFAULT_SERVICE_CIDR_CONTROLLER, SERVICE_ADDRESS_REPAIR, ADDRESS_REPAIR)
        self._upkeep = Manager(lambda name: self.client_for(API_SERVER), self.clock, settings, loops)
        await self._upkeep.start()

    def hold_dns_address(self) -> None:
        """Cluster DNS answers at an address of the service range that no Service may have, but for kube-dns."""
        address = self.settings.cluster_dns
        if self._allocators is not None:
            with contextlib.suppress(AllocationError):
                self._allocators.hold_ip(family_of(address), address)

    def release_dns_address(self) -> None:
        """Now the Service kube-dns may claim it."""
        if self._allocators is not None:
            self._allocators.release_ip(self.settings.cluster_dns)

    async def _bootstrap(self, caches: Caches) -> None:
        """Upstream's own objects; a start on an existing database writes nothing."""

        def get(resource: GVR, namespace: str, name: str) -> Object | None:
            kind = self.registry.get(resource)
            entry = caches.of(*kind.storage_key).get(namespace, name) if kind is not None else None
            return entry.obj if entry is not None else None

        def listed(resource: GVR) -> list[Object]:
            return [entry.obj for entry in caches.of(resource.group, resource.resource).list()]

        objects = bootstrap.bootstrap_objects(self.settings.service_cidrs, self.settings.secure_port, self.clock.now())
        flow_control = [one for one in objects if one.resource in bootstrap.FLOW_CONTROL]
        front_proxy_ca = self.pki.certificate(pki.FRONT_PROXY_CA).read_text()
        objects.append(bootstrap.extension_authentication(self.ca_pem, front_proxy_ca))
        if self._measures:
            objects.append(bootstrap.metrics_reader())
        written = await bootstrap.reconcile(self.client_for(API_SERVER), get, objects)
        log.debug("bootstrap: objects=%d written=%d", len(objects), written)
        self._tasks.guard(lambda: self._keep_flow_control(get, listed, flow_control), name="flow-control-upkeep")

    async def _keep_flow_control(
        self, get: bootstrap.Getter, listed: Callable[[GVR], list[Object]], objects: Sequence[bootstrap.Bootstrap]
    ) -> None:
        while True:
            try:
                await bootstrap.keep_flow_control(self.client_for(API_SERVER), get, listed, objects)
            except StatusError as error:
                log.warning("upkeep of flow control's objects: %s", error)
            await self.clock.sleep(flow_objects.UPKEEP_EVERY_S)

    def _write_kubeconfig(self) -> None:
        text = pki.kubeconfig(self.url, self.ca_pem, user="kubernetes-admin", token=self.pki.admin_token)
        path = self.settings.kubeconfig_path
        if path.exists() and path.read_text() == text:
            return
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(text)
        fresh.rename(path)

    async def announce_stop(self) -> None:
        """Say in /readyz that the server stops, and serve on for --shutdown-delay-duration."""
        if self.api is not None:
            self.api.health.stopping = True
            await self.clock.sleep(self.settings.shutdown_delay_s)

    async def _stop_serving(self) -> None:
        await self._tasks.cancel()
        if self._upkeep is not None:
            await self._upkeep.stop()
            self._upkeep = None
        if self._local_api_services is not None:
            await self._local_api_services.stop()
            self._local_api_services = None
        if self._custom is not None:
            await self._custom.stop()
            self._custom = None
        if self.api is not None:
            await self.api.stop()
        if self._audit_webhook is not None:
            await self._audit_webhook.stop()
            self._audit_webhook = None
        if self._webhooks is not None:
            await self._webhooks.close()
        if self._outbound is not None:
            await self._outbound.close()
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    async def _renew_certificates(self) -> None:
        while True:
            await self.clock.sleep(RENEW_LOOK_S)
            await self.reload_certificates()

    async def _watch_files(self) -> None:
        while True:
            await self.clock.sleep(api_files.LOOK_EVERY_S)
            await self.reload_files()

    async def reload_files(self) -> None:
        """Take over what has changed in the API server's files."""
        for file in self._files:
            await file.look()

    async def reload_certificates(self) -> None:
        """Issue what expires soon and serve with what is on disk."""
        issued = await asyncio.to_thread(self._ensure_certificates)
        if issued:
            log.info("certificates renewed: %s", ", ".join(sorted(issued)))
        if self.api is not None:
            self.api.reload_certificates()
        for tell in self.on_new_certificates:
            tell()

    # ---- the loops

    async def _start_controllers(self) -> None:
        from kone.controllers.catalogue import all_controllers
        from kone.controllers.controller import Manager
        from kone.controllers.controller import Settings as ControllerSettings

        settings = ControllerSettings(
            ca_pem=self.ca_pem,
            namespaced_resources=lambda: [
                r.gvr for r in self.registry if r.namespaced and {"list", "create"} <= set(r.verbs)
            ],
            collectable_resources=lambda: [r.gvr for r in self.registry if {"list", "watch", "delete"} <= set(r.verbs)],
            resource_of_kind=self._resource_of_kind,
            get_path=self._get_path,
            sign_request=self._sign_request,
            policy_warnings=self._policy_warnings,
            sign_account_token=self._account_tokens.of_secret,
            local_storage=self._local_storage,
            node_name=self.settings.node_name if self.settings.runs("kubelet") else "",
        )
        self._manager = Manager(
            lambda name: self.client_for(service_account_user("kube-system", name)),
            self.clock,
            settings,
            all_controllers(),
        )
        await self._manager.start()
        if self.api is not None:
            self.api.components.running.add("controller-manager")

    @property
    def _local_storage(self) -> str:
        """Where volumes of the class local-path lie; "" where no pod of this process could use them."""
        wanted = self.settings.runs("kubelet") and self.settings.runs("local-storage")
        return str(self.settings.data.absolute() / "storage") if wanted else ""

    def _policy_warnings(self, policy: Object) -> list[Object]:
        from kone.registry.policy_type_checks import TypeChecker

        return TypeChecker(self.registry, self._custom_schema).warnings(policy)

    def _custom_schema(self, gvk: GVK) -> Mapping[str, Any] | None:
        """The OpenAPI schema that a definition gives its kind."""
        assert self._verbs is not None
        for entry in self._verbs.caches.of("apiextensions.k8s.io", "customresourcedefinitions").list():
            spec = entry.obj["spec"]
            if (spec["group"], spec["names"]["kind"]) == (gvk.group, gvk.kind):
                for version in spec["versions"]:
                    if version["name"] == gvk.version:
                        found: Mapping[str, Any] = (version.get("schema") or {}).get("openAPIV3Schema") or {}
                        return found
        return None

    async def _sign_request(
        self, request_pem: bytes, usages: Sequence[str], not_before: float, not_after: float
    ) -> str:
        return await asyncio.to_thread(sign_request, self.pki, request_pem, usages, not_before, not_after)

    def _resource_of_kind(self, api_version: str, kind: str) -> tuple[GVR, bool] | None:
        found = self.registry.by_kind(GVK(*parse_api_version(api_version), kind))
        return (found.gvr, found.namespaced) if found is not None else None

    async def _get_path(self, path: str, query: Mapping[str, str]) -> Object:
        """Other servers are asked for metrics alone, so what they see is the autoscaler. Raises StatusError."""
        if self.api is None:
            raise StatusError(503, "ServiceUnavailable", "the API server has not started")
        return await self.api.paths.get(service_account_user("kube-system", "horizontal-pod-autoscaler"), path, query)

    async def _stop_controllers(self) -> None:
        if self._manager is not None:
            await self._manager.stop()

    async def _start_scheduler(self) -> None:
        from kone.client.events import EventRecorder
        from kone.scheduler.configuration import default_configuration, parse_configuration
        from kone.scheduler.scheduler import Scheduler

        found = default_configuration()
        if path := self.settings.scheduler_config_file:
            found = api_files.read("--scheduler-config-file", path, parse_configuration)
        client = self.client_for(SCHEDULER)
        recorders = {profile.name: EventRecorder(client, profile.name, clock=self.clock) for profile in found.profiles}
        self._scheduler = Scheduler(client, recorders, self.clock, found)
        await self._scheduler.start()
        if self.api is not None:
            self.api.components.running.add("scheduler")

    async def _stop_scheduler(self) -> None:
        if self._scheduler is not None:
            await self._scheduler.stop()


def _api_ip(settings: Settings, node_ips: Sequence[str]) -> str:
    """Where `kubernetes.default` leads: the node's address of the default family of Services."""
    family = family_of(settings.service_cidrs[0])
    return next((ip for ip in node_ips if family_of(ip) == family), node_ips[0])


def _specific(address: str) -> tuple[str, ...]:
    return () if ip_address(address).is_unspecified else (address,)


def _getter(caches: Caches) -> ObjectGetter:
    def get(resource: str, namespace: str, name: str) -> Object | None:
        entry = caches.of("", resource).get(namespace, name)
        return entry.obj if entry is not None else None

    return get


def _listen_problem(settings: Settings, error: OSError) -> str:
    where = f"port {settings.secure_port} of {settings.bind_address}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: give another with --secure-port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{settings.bind_address} is no address of this host: give another with --bind-address"
    if error.errno == errno.EACCES:
        return f"{where} needs root: give a port above 1023 with --secure-port"
    return f"{where}: {error.strerror}"
