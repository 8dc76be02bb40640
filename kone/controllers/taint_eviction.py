"""Pods leave nodes with NoExecute taints that they do not tolerate, or when the time is up that they tolerate them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import NODES, PODS
from kone.apimachinery.objects import Key, Object, dig, is_deleting, key_of, name_of, uid_of
from kone.apimachinery.taints import taints_of, tolerated_for_s, with_effect
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch
from kone.controllers.pod_control import add_condition, index_by_node, on_node


@dataclass(frozen=True, slots=True)
class Eviction:
    """A pod that will have to go, since when that is known, and how long it may stay from then."""

    uid: str
    since: float
    """On the monotonic clock."""


class TaintEviction(Reconciler):
    """Keys are pods."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PODS)
        self._nodes: Informer = ctx.client.informer(NODES)
        self._waiting: dict[Key, Eviction] = {}
        index_by_node(self.primary)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_pod)
        yield Watch(self._nodes, self._keys_of_node)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        if event == "MODIFIED" and previous is not None and _matter(pod) == _matter(previous):
            return ()
        return (key_of(pod),)

    def _keys_of_node(self, event: EventType, node: Object, previous: Object | None) -> Iterable[Key]:
        before = with_effect(taints_of(previous), "NoExecute") if previous is not None else []
        if event != "DELETED" and with_effect(taints_of(node), "NoExecute") == before:
            return ()
        return [key_of(pod) for pod in on_node(self.primary, name_of(node))]

    async def reconcile(self, key: Key) -> Result | None:
        pod = self.primary.get(*key)
        waiting = self._waiting.get(key)
        if pod is None or is_deleting(pod) or (waiting is not None and waiting.uid != uid_of(pod)):
            if self._waiting.pop(key, None) is not None and pod is None:
                self._tell(key, f"Cancelling deletion of Pod {key}")
            if pod is None or is_deleting(pod):
                return None
            waiting = None
        node = self._nodes.get("", dig(pod, "spec", "nodeName", default=""))
        taints = with_effect(taints_of(node), "NoExecute") if node is not None else []
        stays_s = tolerated_for_s(dig(pod, "spec", "tolerations", default=()), taints)
        if stays_s == float("inf"):
            if self._waiting.pop(key, None) is not None:
                self._tell(key, f"Cancelling deletion of Pod {key}")
            return None
        now = self._ctx.clock.monotonic()
        if waiting is None:
            waiting = self._waiting[key] = Eviction(uid_of(pod), now)
        left_s = waiting.since + stays_s - now
        if left_s > 0:
            return Result(after_s=left_s)
        await self._evict(key, pod)
        self._waiting.pop(key, None)
        return None

    async def _evict(self, key: Key, pod: Object) -> None:
        self._tell(key, f"Marking for deletion Pod {key}")
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
        }
        try:
            await add_condition(self._ctx.client, pod, condition, self._ctx.clock.now())
            await self._ctx.client.delete(PODS, key.name, namespace=key.namespace)
        except StatusError as error:
            if error.code != 404:
                raise

    def _tell(self, key: Key, message: str) -> None:
        about = {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": key.namespace, "name": key.name}}
        self._ctx.recorder.event(about, "Normal", "TaintManagerEviction", message)


def _matter(pod: Object) -> tuple[object, ...]:
    return dig(pod, "spec", "nodeName"), dig(pod, "spec", "tolerations"), is_deleting(pod)


TAINT_EVICTION_CONTROLLER = Controller("taint-eviction-controller", TaintEviction, account="node-controller")
