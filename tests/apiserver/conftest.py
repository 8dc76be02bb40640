"""A write path on a memory store with four small kinds, so that its rules are tested apart from those of real kinds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from multidict import CIMultiDictProxy

from kone.admission.chain import Chain
from kone.admission.metrics import AdmissionMetrics
from kone.aio.clock import FakeClock
from kone.apimachinery.errors import FieldError, invalid_value
from kone.apimachinery.kinds import (
    CONFIGMAPS,
    DEPLOYMENTS,
    GVR,
    LEASES,
    NAMESPACES,
    PODDISRUPTIONBUDGETS,
    PODS,
)
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.users import SYSTEM_MASTERS, User
from kone.apiserver.app import ApiServer
from kone.apiserver.context import RequestContext
from kone.apiserver.local_client import LocalClient
from kone.apiserver.reviews import Reviews
from kone.apiserver.subresources import actions
from kone.apiserver.verbs import Verbs
from kone.auth.authentication import Authenticator
from kone.auth.authorizer import Authorizer
from kone.auth.tokens import ServiceAccountTokens
from kone.cache.watch_cache import Caches
from kone.registry.allocators import Allocators
from kone.registry.registry import builtin
from kone.registry.resource import Registry, Resource, ScaleSpec
from kone.registry.strategy import SpecStrategy, StatusStrategy, Strategy
from kone.store.opening import open_store

ADMIN = User("admin", groups=(SYSTEM_MASTERS, "system:authenticated"))


class PodRules(SpecStrategy):
    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return {
            "status.phase": dig(obj, "status", "phase", default=""),
            "spec.nodeName": dig(obj, "spec", "nodeName", default=""),
        }

    def graceful_deletion_s(self, obj: Object, requested: int | None) -> int | None:
        if not dig(obj, "spec", "nodeName"):
            return 0
        return 30 if requested is None else requested

    def initial_status(self, obj: Object) -> Object:
        return {"phase": "Pending"}


class DeploymentRules(SpecStrategy):
    def default(self, obj: Object) -> None:
        obj.setdefault("spec", {}).setdefault("replicas", 1)

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        if obj["spec"]["replicas"] < 0:
            yield invalid_value("spec.replicas", obj["spec"]["replicas"], "must be greater than or equal to 0")


class NamespaceRules(Strategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is None:
            obj["spec"] = {"finalizers": ["kubernetes"]}
            obj["status"] = {"phase": "Active"}

    def has_finalizers(self, obj: Object) -> bool:
        return super().has_finalizers(obj) or bool(dig(obj, "spec", "finalizers"))

    def mark_deleting(self, obj: Object) -> None:
        obj["metadata"].pop("deletionGracePeriodSeconds", None)
        obj["status"] = {"phase": "Terminating"}


class LeaseRules(Strategy):
    create_on_update = True
    unconditional_update = False


def small_registry() -> Registry:
    registry = Registry()
    deployments, pods = DeploymentRules(), PodRules()
    for resource in (
        Resource(gvr=CONFIGMAPS, kind="ConfigMap", strategy=Strategy()),
        Resource(gvr=PODS, kind="Pod", strategy=pods, status=StatusStrategy(pods)),
        Resource(
            gvr=DEPLOYMENTS,
            kind="Deployment",
            strategy=deployments,
            status=StatusStrategy(deployments),
            scale=ScaleSpec(),
        ),
        Resource(gvr=NAMESPACES, kind="Namespace", strategy=NamespaceRules(), namespaced=False),
        Resource(gvr=LEASES, kind="Lease", strategy=LeaseRules()),
    ):
        registry.add(resource)
    return registry


@dataclass
class Small:
    """The verbs under test and what the tests say to them."""

    verbs: Verbs
    registry: Registry
    clock: FakeClock

    def ctx(self, **options: object) -> RequestContext:
        return RequestContext(ADMIN, **options)  # type: ignore[arg-type]

    def resource(self, gvr: tuple[str, str, str]) -> Resource:
        found = self.registry.find(*gvr)
        assert found is not None
        return found

    async def make(self, gvr: tuple[str, str, str], name: str = "a", namespace: str = "ns", **fields: object) -> Object:
        meta = {"name": name, **fields.pop("metadata", {})}  # type: ignore[dict-item]
        answer = await self.verbs.create(
            self.ctx(), self.resource(gvr), {"metadata": meta, **fields}, namespace=namespace
        )
        assert answer.code == 201
        return answer.obj

    def get(self, gvr: tuple[str, str, str], name: str = "a", namespace: str = "ns") -> Object | None:
        entry = self.verbs.cache(self.resource(gvr)).get(namespace, name)
        return None if entry is None else entry.obj


@pytest.fixture
async def small() -> AsyncIterator[Small]:
    clock = FakeClock()
    store = await open_store("memory://", clock=clock)
    caches = Caches(store)
    await caches.start()
    registry = small_registry()
    verbs = Verbs(
        registry=registry,
        store=store,
        caches=caches,
        admission=Chain([], AdmissionMetrics(clock)),
        authorizer=Authorizer(caches, ()),
        allocators=Allocators(),
        clock=clock,
    )
    yield Small(verbs, registry, clock)
    await store.close()


@dataclass
class Full:
    """Verbs on every built-in kind, without admission, and the client of an administrator."""

    verbs: Verbs
    client: LocalClient

    def find(self, gvr: GVR, name: str) -> Object | None:
        resource = self.verbs.registry.get(gvr)
        assert resource is not None
        entry = self.verbs.cache(resource).get("ns", name)
        return None if entry is None else entry.obj

    def get(self, gvr: GVR, name: str) -> Object:
        found = self.find(gvr, name)
        assert found is not None
        return found

    async def pod(
        self, name: str, *, labels: dict[str, str] | None = None, node: str = "", status: Object | None = None
    ) -> None:
        spec: Object = {"containers": [{"name": "c", "image": "i"}]}
        if node:
            spec["nodeName"] = node
        obj = {"metadata": {"name": name, "labels": labels or {}}, "spec": spec}
        await self.client.create(PODS, obj, namespace="ns")
        if status is not None:
            await self.client.patch(PODS, name, {"status": status}, namespace="ns", subresource="status")

    async def budget(self, name: str = "b", *, allowed: int, **status: object) -> None:
        """One for app=x."""
        spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}
        await self.client.create(PODDISRUPTIONBUDGETS, {"metadata": {"name": name}, "spec": spec}, namespace="ns")
        change = {"status": {"observedGeneration": 1, "disruptionsAllowed": allowed, **status}}
        await self.client.patch(PODDISRUPTIONBUDGETS, name, change, namespace="ns", subresource="status")

    async def evict(self, name: str, eviction: Object) -> None:
        await self.client.create(PODS, eviction, namespace="ns", subresource="eviction", name=name)


@pytest.fixture(scope="session")
def signing_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
async def full(signing_key: bytes) -> AsyncIterator[Full]:
    clock = FakeClock()
    store = await open_store("memory://", clock=clock)
    caches = Caches(store)
    await caches.start()
    authorizer, allocators = Authorizer(caches, ()), Allocators()
    allocators.watch(caches)

    def getter(resource: str, namespace: str, name: str) -> Object | None:
        entry = caches.of("", resource).get(namespace, name)
        return None if entry is None else entry.obj

    tokens = ServiceAccountTokens(signing_key, getter, clock)
    verbs = Verbs(
        registry=builtin(),
        store=store,
        caches=caches,
        admission=Chain([], AdmissionMetrics(clock)),
        authorizer=authorizer,
        allocators=allocators,
        clock=clock,
        actions=actions(Reviews(Authenticator((tokens,)), authorizer, tokens)),
    )
    yield Full(verbs, LocalClient(verbs, ADMIN))
    await store.close()


@dataclass
class Served:
    """A server of the small registry on a unix socket, and a client of it."""

    small: Small
    server: ApiServer
    session: aiohttp.ClientSession

    async def call(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any, CIMultiDictProxy[str]]:
        """(status, the JSON or text of the answer, its headers)."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        async with self.session.request(method, f"http://kone{path}", data=data, headers=sent) as answer:
            raw = await answer.read()
            is_json = answer.headers.get("Content-Type", "").startswith("application/json")
            return answer.status, json.loads(raw) if is_json and raw else raw.decode(), answer.headers


@pytest.fixture
async def served(small: Small, tmp_path: Path) -> AsyncIterator[Served]:
    authorizer = Authorizer(small.verbs.caches, ())
    server = ApiServer(verbs=small.verbs, authenticator=Authenticator(()), authorizer=authorizer, clock=small.clock)
    path = tmp_path / "kone.sock"
    await server.start(unix_path=path)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        yield Served(small, server, session)
    await server.stop(1.0)
