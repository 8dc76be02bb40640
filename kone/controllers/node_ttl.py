"""How long kubelets may keep what they read: a note on each node, by the size of the cluster."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.kinds import NODES
from kone.apimachinery.objects import Key, Object, annotations_of, key_of
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch

ANNOTATION = "node.alpha.kubernetes.io/ttl"

_STEPS = ((0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, 2**31, 300))
"""(fewest nodes, most nodes, seconds); they overlap, so that a node more or less does not rewrite all of them."""


def step_for(nodes: int, step: int) -> int:
    """The step that a cluster of so many nodes is on, coming from `step`."""
    while nodes > _STEPS[step][1]:
        step += 1
    while nodes < _STEPS[step][0]:
        step -= 1
    return step


class NodeTtls(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._step = 0
        self.primary: Informer = ctx.client.informer(NODES)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, node: Object, previous: Object | None) -> Iterable[Key]:
        step = self._step
        if event != "MODIFIED":
            self._step = step_for(len(self.primary.list()), step)
        if self._step != step:
            return [key_of(each) for each in self.primary.list()]
        return () if event == "DELETED" or self._is_right(node) else (key_of(node),)

    def _is_right(self, node: Object) -> bool:
        return annotations_of(node).get(ANNOTATION) == str(_STEPS[self._step][2])

    async def reconcile(self, key: Key) -> Result | None:
        node = self.primary.get(*key)
        if node is not None and not self._is_right(node):
            patch = {"metadata": {"annotations": {ANNOTATION: str(_STEPS[self._step][2])}}}
            await self._ctx.client.patch(NODES, key.name, patch, kind="strategic")
        return None


NODE_TTL_CONTROLLER = Controller("ttl-controller", NodeTtls)
