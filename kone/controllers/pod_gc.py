"""Pods that nobody else will end: on nodes that are gone or out of service, never scheduled, or finished in masses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import NODES, PODS
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    is_condition_true,
    is_deleting,
    is_pod_terminal,
    key_of,
    metadata,
    name_of,
    uid_of,
)
from kone.apimachinery.taints import OUT_OF_SERVICE, taints_of
from kone.client.client import EventType, Informer, Objects
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch
from kone.controllers.pod_control import add_condition, index_by_node, on_node

QUARANTINE_S = 40.0  # a node may come back that long
TERMINATED_MAX = 12_500  # --terminated-pod-gc-threshold
TERMINATED_CHECK_S = 20.0
_TERMINATED = Key("", "")  # names no pod: the pods that have finished, all together


def terminated_to_delete(pods: Iterable[Object], threshold: int) -> Objects:
    """The oldest finished pods beyond the threshold; evicted ones first."""
    finished = [pod for pod in pods if dig(pod, "status", "phase") not in ("Pending", "Running", "Unknown")]

    def order(pod: Object) -> tuple[bool, str, str]:
        evicted = dig(pod, "status", "phase") == "Failed" and dig(pod, "status", "reason") == "Evicted"
        return not evicted, metadata(pod).get("creationTimestamp", ""), name_of(pod)

    return sorted(finished, key=order)[: max(0, len(finished) - threshold)]


class PodGC(Reconciler):
    """Keys are pods, and one that stands for all finished ones."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PODS)
        self._nodes: Informer = ctx.client.informer(NODES)
        index_by_node(self.primary)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_pod)
        yield Watch(self._nodes, self._keys_of_node)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        if event == "DELETED":
            return ()
        if is_pod_terminal(pod) and (previous is None or not is_pod_terminal(previous)):
            self._ctx.queue.add_after(_TERMINATED, TERMINATED_CHECK_S)
        node_name = dig(pod, "spec", "nodeName", default="")
        if node_name and self._nodes.get("", node_name) is None:
            if previous is None or not dig(previous, "spec", "nodeName"):
                self._ctx.queue.add_after(key_of(pod), QUARANTINE_S)
            return ()
        return (key_of(pod),) if is_deleting(pod) else ()

    def _keys_of_node(self, event: EventType, node: Object, previous: Object | None) -> Iterable[Key]:
        pods = [key_of(pod) for pod in on_node(self.primary, name_of(node))]
        if event == "DELETED":
            for key in pods:
                self._ctx.queue.add_after(key, QUARANTINE_S)
            return ()
        return pods if _is_out_of_service(node) else ()

    async def reconcile(self, key: Key) -> Result | None:
        if key == _TERMINATED:
            for finished in terminated_to_delete(self.primary.list(), TERMINATED_MAX):
                await self._end(finished)
            return None
        pod = self.primary.get(*key)
        if pod is None:
            return None
        node_name = dig(pod, "spec", "nodeName", default="")
        if not node_name:
            if is_deleting(pod):
                await self._end(pod)
            return None
        node = self._nodes.get("", node_name)
        if node is None:
            if not await self._exists(node_name):
                gone = {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "DeletionByPodGC",
                    "message": "PodGC: node no longer exists",
                }
                await self._end(pod, gone)
        elif is_deleting(pod) and _is_out_of_service(node):
            await self._end(pod)
        return None

    async def _exists(self, node_name: str) -> bool:
        try:
            await self._ctx.client.get(NODES, node_name)
        except StatusError as error:
            if error.code == 404:
                return False
            raise
        return True

    async def _end(self, pod: Object, condition: Mapping[str, str] | None = None) -> None:
        """Fail the pod, as no kubelet will, and take it away at once."""
        namespace, name = key_of(pod)
        client, now = self._ctx.client, self._ctx.clock.now()
        try:
            if not is_pod_terminal(pod):
                await add_condition(client, pod, condition, now, phase="Failed")
            await client.delete(PODS, name, namespace=namespace, uid=uid_of(pod), grace_s=0)
        except StatusError as error:
            if error.code != 404:
                raise


def _is_out_of_service(node: Object) -> bool:
    return not is_condition_true(node, "Ready") and any(taint["key"] == OUT_OF_SERVICE for taint in taints_of(node))


POD_GC_CONTROLLER = Controller("pod-garbage-collector-controller", PodGC, account="pod-garbage-collector", workers=1)
