"""The pods that this node is to run: those that the API binds to it, and its own static pods with their mirrors.

The API's mirror pods are not among them. They are kept as the static pods are: made, made again when somebody deletes
or replaces them, deleted when the manifest is gone and the last container has ended. Deleting a mirror ends nothing.
Rules: kubernetes/pkg/kubelet/kubelet.go (tryReconcileMirrorPods) and kubelet_pods.go (deleteOrphanedMirrorPods).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import PODS
from kone.apimachinery.objects import Object, is_deleting, name_of, namespace_of, replace_in, uid_of
from kone.client.client import Client, EventType, Handler, Informer, Unsubscribe
from kone.runtime.manifests import Manifests
from kone.runtime.static_pods import is_mirror, is_mirror_of, is_static, mirror_of

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0

PodKey = tuple[str, str]  # namespace and name


def pod_key(pod: Object) -> PodKey:
    return namespace_of(pod), name_of(pod)


class NodePods:
    """Like an informer of the pods that are to run here. `nodes` shows this node.

    `is_here` says whether anything of a static pod of that name is still on the node; whoever says so calls `look` when
    that ends. `mirrored` is told of a static pod's UID when its mirror is there or has changed.
    """

    def __init__(
        self,
        client: Client,
        nodes: Informer,
        node_name: str,
        clock: Clock,
        *,
        is_here: Callable[[PodKey], bool],
        mirrored: Callable[[str], None],
    ) -> None:
        self._client, self._nodes, self._node_name, self._clock = client, nodes, node_name, clock
        self._is_here, self._mirrored = is_here, mirrored
        self._api: Informer = client.informer(PODS, fields=f"spec.nodeName={node_name}")
        self._static: dict[PodKey, Object] = {}
        self._handlers: list[Handler] = []
        self._manifests: Manifests | None = None
        self._dirty: set[PodKey] = set()
        self._busy: set[PodKey] = set()
        self._unsubscribe: list[Unsubscribe] = []
        self._tasks = TaskGroup("static-pods")

    async def start(self, manifests: Manifests | None) -> None:
        """All pods are known when this returns. `manifests` tells them to `set_static`."""
        await self._api.wait_synced()
        self._manifests = manifests
        if manifests is not None:
            await manifests.start()
        self._unsubscribe = [self._api.subscribe(self._on_api), self._nodes.subscribe(self._on_node)]

    async def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        if self._manifests is not None:
            await self._manifests.stop()
        await self._tasks.cancel()

    # The pods

    def list(self) -> list[Object]:
        return [*(pod for pod in self._api.list() if not is_mirror(pod)), *self._static.values()]

    def get(self, namespace: str, name: str) -> Object | None:
        static = self._static.get((namespace, name))
        if static is not None:
            return static
        found = self._api.get(namespace, name)
        return None if found is None or is_mirror(found) else found

    def stored(self, pod: Object) -> Object | None:
        """The API's object that bears this pod's status: the pod of that name, or a static pod's mirror."""
        found = self._api.get(*pod_key(pod))
        if found is not None and is_static(pod) and not is_mirror_of(found, pod):
            return None
        return found

    def subscribe(self, handler: Handler) -> Unsubscribe:
        """Call `handler` as an informer does."""
        self._handlers.append(handler)
        for pod in self._static.values():
            handler("ADDED", pod, None)

        def of_api(event: EventType, pod: Object, previous: Object | None) -> None:
            if not is_mirror(pod):
                handler(event, pod, previous)

        unsubscribe = self._api.subscribe(of_api)

        def end() -> None:
            self._handlers.remove(handler)
            unsubscribe()

        return end

    # Static pods

    def set_static(self, pods: Sequence[Object]) -> None:
        """The manifests say this now. Of two pods of one name the first counts."""
        wanted: dict[PodKey, Object] = {}
        for pod in pods:
            if wanted.setdefault(pod_key(pod), pod) is not pod:
                log.error("static pod %s/%s: another manifest has that name too", *pod_key(pod))
        before, self._static = self._static, {}
        for key, pod in wanted.items():
            old = before.get(key)
            same = old is not None and uid_of(old) == uid_of(pod)
            self._static[key] = old if old is not None and same else self._as_told(pod)
        for key, old in before.items():
            now = self._static.get(key)
            if now is not old:
                self._tell("DELETED", old)
        for key, pod in self._static.items():
            if before.get(key) is not pod:
                self._tell("ADDED", pod)
        for key in before.keys() | wanted.keys():
            if before.get(key) is not self._static.get(key):
                self.look(key)

    def _as_told(self, pod: Object) -> Object:
        """With the status that its mirror tells, where this is not the first kone that runs it."""
        mirror = self.stored(pod)
        return pod if mirror is None else replace_in(pod, ("status",), mirror.get("status") or {})

    def _tell(self, event: EventType, pod: Object) -> None:
        for handler in tuple(self._handlers):
            handler(event, pod, None)

    # Mirrors

    def look(self, key: PodKey) -> None:
        """Make the mirror of that name right, soon."""
        self._dirty.add(key)
        if key not in self._busy:
            self._busy.add(key)
            self._tasks.spawn(self._keep_right(key), name=f"mirror {key[0]}/{key[1]}")

    def _on_api(self, event: EventType, pod: Object, previous: Object | None) -> None:
        key = pod_key(pod)
        static = self._static.get(key)
        if is_mirror(pod) or static is not None:
            self.look(key)
        if static is not None and event != "DELETED" and is_mirror_of(pod, static):
            self._mirrored(uid_of(static))

    def _on_node(self, event: EventType, node: Object, previous: Object | None) -> None:
        if event == "ADDED":
            for key in self._static:
                self.look(key)

    async def _keep_right(self, key: PodKey) -> None:
        delay_s = RETRY_FIRST_S
        try:
            while key in self._dirty:
                self._dirty.discard(key)
                try:
                    await self._make_right(key)
                    delay_s = RETRY_FIRST_S
                except StatusError as error:
                    log.warning("mirror pod %s/%s: %s", *key, error)
                    await self._clock.sleep(delay_s)
                    delay_s = min(delay_s * 2, RETRY_MAX_S)
                    self._dirty.add(key)
        finally:
            self._busy.discard(key)

    async def _make_right(self, key: PodKey) -> None:
        """Raises StatusError: try again."""
        namespace, name = key
        static, there = self._static.get(key), self._api.get(namespace, name)
        if there is not None and is_mirror(there) and self._is_wrong(there, static, key):
            try:
                await self._client.delete(PODS, name, namespace=namespace, uid=uid_of(there), grace_s=0)
            except StatusError as error:
                if error.code not in (404, 409):
                    raise
            there = self._api.get(namespace, name)
        node = self._nodes.get("", self._node_name)
        if static is None or node is None or is_deleting(node):
            return
        if there is None or not is_mirror(there):
            await self._client.create(PODS, mirror_of(static, node), namespace=namespace)

    def _is_wrong(self, mirror: Object, static: Object | None, key: PodKey) -> bool:
        if static is None:
            return not self._is_here(key)
        return is_deleting(mirror) or not is_mirror_of(mirror, static)
