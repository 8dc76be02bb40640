"""An APIService for each group-version that this server itself has, built in or by definition.

`kubectl get apiservices` shows them as Local; another for such a group-version is refused as existing already.

Source of the rules: kube-aggregator's autoregister controller, and upstream's table of priorities.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.aio.workqueue import WorkQueue
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CUSTOMRESOURCEDEFINITIONS
from kone.apimachinery.objects import Object, dig, labels_of, name_of, replace_in
from kone.apiserver.aggregation import APISERVICES
from kone.cache.watch_cache import Caches
from kone.client.client import Client
from kone.store.store import Event

log = logging.getLogger(__name__)

MANAGED: Final = "kube-aggregator.kubernetes.io/automanaged"
AT_START, ALWAYS = "onstart", "true"
"""Values of that label: of what is built in, which may be deleted until the next start; of what is defined."""
PRIORITIES: Final = {
    ("", "v1"): (18000, 1),
    ("apps", "v1"): (17800, 15),
    ("events.k8s.io", "v1"): (17750, 15),
    ("authentication.k8s.io", "v1"): (17700, 15),
    ("authorization.k8s.io", "v1"): (17600, 15),
    ("autoscaling", "v1"): (17500, 15),
    ("autoscaling", "v2"): (17500, 30),
    ("batch", "v1"): (17400, 15),
    ("certificates.k8s.io", "v1"): (17300, 15),
    ("networking.k8s.io", "v1"): (17200, 15),
    ("policy", "v1"): (17100, 15),
    ("rbac.authorization.k8s.io", "v1"): (17000, 15),
    ("storage.k8s.io", "v1"): (16800, 15),
    ("apiextensions.k8s.io", "v1"): (16700, 15),
    ("admissionregistration.k8s.io", "v1"): (16700, 15),
    ("scheduling.k8s.io", "v1"): (16600, 15),
    ("coordination.k8s.io", "v1"): (16500, 15),
    ("node.k8s.io", "v1"): (16300, 15),
    ("discovery.k8s.io", "v1"): (16200, 15),
    ("resource.k8s.io", "v1"): (16200, 21),
    ("flowcontrol.apiserver.k8s.io", "v1"): (16100, 21),
    ("storagemigration.k8s.io", "v1"): (15800, 15),
}
"""Of a group among groups, and of a version within its group."""
DEFINED_PRIORITY: Final = (1000, 100)


class LocalApiServices:
    """Keeps them; `start` writes those of what is built in."""

    def __init__(self, caches: Caches, clock: Clock) -> None:
        self._services = caches.of(APISERVICES.group, APISERVICES.resource)
        self._definitions = caches.of(CUSTOMRESOURCEDEFINITIONS.group, CUSTOMRESOURCEDEFINITIONS.resource)
        self._built_in = {name(*key): _made(*key, priority, AT_START) for key, priority in PRIORITIES.items()}
        self._at_start = set(self._built_in)
        self._queue: WorkQueue[str] = WorkQueue(clock)
        self._tasks = TaskGroup("local-apiservices")
        self._unsubscribe: list[Callable[[], None]] = []

    def start(self, client: Client) -> None:
        self._unsubscribe = [
            self._definitions.subscribe(self._on_definition),
            self._services.subscribe(lambda event: self._queue.add(name_of(event.obj))),
        ]
        for key in {*self._built_in, *self._defined(), *(name_of(entry.obj) for entry in self._services.list())}:
            self._queue.add(key)
        self._tasks.guard(lambda: self._work(client), name="local-apiservices")

    async def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe.clear()
        self._queue.close()
        await self._tasks.cancel()

    def _on_definition(self, event: Event) -> None:
        for obj in (event.obj, event.previous):
            for key in _group_versions(obj or {}):
                self._queue.add(name(*key))

    def _defined(self) -> dict[str, Object]:
        keys = {key for entry in self._definitions.list() for key in _group_versions(entry.obj)}
        return {name(*key): _made(*key, DEFINED_PRIORITY, ALWAYS) for key in keys - set(PRIORITIES)}

    async def _work(self, client: Client) -> None:
        while True:
            key = await self._queue.get()
            try:
                await self._sync(client, key)
            except StatusError as error:
                log.info("the APIService %s is looked at again later: %s", key, error)
                self._queue.add_backing_off(key)
            else:
                self._queue.forget(key)
            finally:
                self._queue.done(key)

    async def _sync(self, client: Client, key: str) -> None:
        wanted = self._built_in.get(key) or self._defined().get(key)
        entry = self._services.get("", key)
        if entry is None:
            if wanted is not None and (key not in self._built_in or key in self._at_start):
                await client.create(APISERVICES, wanted)
            self._at_start.discard(key)
            return
        self._at_start.discard(key)
        managed = labels_of(entry.obj).get(MANAGED)
        if managed not in (AT_START, ALWAYS):
            return  # somebody's own
        if wanted is None:
            await client.delete(APISERVICES, key)
        elif entry.obj.get("spec") != wanted["spec"]:
            await client.update(APISERVICES, replace_in(entry.obj, ("spec",), wanted["spec"]))


def name(group: str, version: str) -> str:
    return f"{version}.{group}"


def _group_versions(definition: Object) -> set[tuple[str, str]]:
    versions = dig(definition, "spec", "versions", default=())
    group = dig(definition, "spec", "group", default="")
    return {(group, version["name"]) for version in versions if version.get("served")}


def _made(group: str, version: str, priority: tuple[int, int], managed: str) -> Object:
    spec: Object = {"version": version, "groupPriorityMinimum": priority[0], "versionPriority": priority[1]}
    if group:
        spec["group"] = group
    return {
        "kind": "APIService",
        "apiVersion": APISERVICES.api_version,
        "metadata": {"name": name(group, version), "labels": {MANAGED: managed}},
        "spec": spec,
    }
