"""DaemonSets: one pod on every node that fits, replaced where it failed, renewed node after node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import DAEMONSETS, NODES, PODS
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    is_deleting,
    key_of,
    labels_of,
    replace_in,
    uid_of,
)
from kone.apimachinery.selectors import LabelSelector, from_label_selector
from kone.apimachinery.taints import taints_of
from kone.client.client import EventType, Informer, Objects
from kone.controllers import daemon_rules as rules
from kone.controllers.controller import (
    NAMESPACE_TERMINATING,
    Context,
    Controller,
    Reconciler,
    Result,
    Watch,
    for_members,
    for_object,
    has_cause,
)
from kone.controllers.daemon_rules import Plan, View
from kone.controllers.history import REVISION_LABEL, History
from kone.controllers.pod_control import (
    PodControl,
    claim,
    controlled_by,
    first_error,
    index_by_controller,
    next_availability_s,
    orphans_in,
    pod_from_template,
    slow_start,
)

BURST = 250  # pods that one pass makes, and deletes, at most
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 900.0


@dataclass(slots=True)
class _Backoff:
    delay_s: float
    since: float


class FailedPods:
    """How long a failed pod of a set stays on its node before the next is tried."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int, str], _Backoff] = {}

    def wait_s(self, owner: Object, node: str, now: float) -> float:
        """0: replace it now, and the next one later."""
        key = (uid_of(owner), int(dig(owner, "status", "observedGeneration", default=0)), node)
        known = self._of.get(key)
        if known is not None and now - known.since < known.delay_s:
            return known.since + known.delay_s - now
        for old in [k for k, backoff in self._of.items() if now - backoff.since > 2 * BACKOFF_MAX_S]:
            del self._of[old]
        known = self._of.get(key)
        delay_s = BACKOFF_FIRST_S if known is None else min(2 * known.delay_s, BACKOFF_MAX_S)
        self._of[key] = _Backoff(delay_s, now)
        return 0.0


class DaemonSets(Reconciler):
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._pod_control = PodControl(ctx.client, ctx.recorder)
        self.primary: Informer = ctx.client.informer(DAEMONSETS)
        self._pods: Informer = ctx.client.informer(PODS)
        self._nodes: Informer = ctx.client.informer(NODES)
        self._history = History(ctx.client, DAEMONSETS, REVISION_LABEL)
        self._failed_pods = FailedPods()
        index_by_controller(self._pods)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)
        yield Watch(self._pods, for_members(self.primary, "DaemonSet"))
        yield Watch(self._nodes, self._keys_of_node)

    def _keys_of_node(self, event: EventType, node: Object, previous: Object | None) -> Iterable[Key]:
        if event == "MODIFIED" and previous is not None and _fit(node) == _fit(previous):
            return ()
        return [key_of(owner) for owner in self.primary.list()]

    async def reconcile(self, key: Key) -> Result | None:
        owner = self.primary.get(*key)
        # Of a set that is being deleted, revisions may be gone before pods, so nothing true can be said of it.
        if owner is None or is_deleting(owner):
            return None
        selector = from_label_selector(dig(owner, "spec", "selector"))
        if selector.empty:
            message = "This daemon set is selecting all pods. A non-empty selector is required."
            self._ctx.recorder.event(owner, "Warning", "SelectingAll", message)
            return None
        client = self._ctx.client
        revisions = await self._history.of(owner, selector)
        newest, collisions = await self._history.latest(owner, revisions)
        digest = labels_of(newest).get(REVISION_LABEL, "")
        candidates = [*controlled_by(self._pods, owner), *orphans_in(self._pods, key.namespace)]
        await claim(client, PODS, DAEMONSETS, owner, candidates, selector)

        failed_wait_s, failure = await self._cover(owner, selector, digest)
        if failure is None and rules.is_rolling(owner):
            plan = rules.plan_rolling_update(self._view(owner, selector, digest))
            failure = await self._carry_out(owner, plan, digest)
        if failure is None:
            pods = self._own_pods(owner, selector)
            await self._history.forget(rules.revisions_to_forget(owner, revisions, newest, pods))

        view = self._view(owner, selector, digest)
        status = rules.make_status(view, collisions)
        if status != (owner.get("status") or {}):
            await client.update(DAEMONSETS, replace_in(owner, ("status",), status), subresource="status")
        if failure is not None:
            raise failure
        min_ready_s = rules.min_ready_of(owner)
        available_s = next_availability_s(self._own_pods(owner, selector), min_ready_s, view.now)
        waits = [wait for wait in (available_s, failed_wait_s) if wait]
        return Result(after_s=min(waits)) if waits else None

    def _own_pods(self, owner: Object, selector: LabelSelector) -> Objects:
        return [pod for pod in controlled_by(self._pods, owner) if selector.matches(labels_of(pod))]

    def _view(self, owner: Object, selector: LabelSelector, digest: str) -> View:
        pods = rules.by_node(self._own_pods(owner, selector))
        return View(owner, self._nodes.list(), pods, digest, self._ctx.clock.now())

    async def _cover(
        self, owner: Object, selector: LabelSelector, digest: str
    ) -> tuple[float | None, StatusError | None]:
        """Returns how long the next failed pod must wait to be replaced, and the first error."""
        waits: list[float] = []
        view = self._view(owner, selector, digest)

        def may_replace(pod: Object, node: str) -> bool:
            if wait_s := self._failed_pods.wait_s(owner, node, view.now):
                waits.append(wait_s)
            return not wait_s

        plan = rules.plan_coverage(view, may_replace)
        for pod, node in plan.failed:
            kind, reason, message = rules.failure_text(pod, node)
            self._ctx.recorder.event(owner, cast("Literal['Normal', 'Warning']", kind), reason, message)
        return min(waits, default=None), await self._carry_out(owner, plan, digest)

    async def _carry_out(self, owner: Object, plan: Plan, digest: str) -> StatusError | None:
        nodes, doomed = plan.create[:BURST], plan.delete[:BURST]
        create_error = await slow_start(len(nodes), lambda number: self._create(owner, nodes[number], digest))
        delete_error = await first_error(self._delete(owner, pod) for pod in doomed)
        return create_error or delete_error

    async def _create(self, owner: Object, node: str, digest: str) -> None:
        pod = pod_from_template(rules.template_for(owner, node, digest), owner)
        try:
            await self._pod_control.create(pod, owner)
        except StatusError as error:
            if not has_cause(error, NAMESPACE_TERMINATING):
                raise

    async def _delete(self, owner: Object, pod: Object) -> None:
        try:
            await self._pod_control.delete(pod, owner)
        except StatusError as error:
            if error.code != 404:
                raise


def _fit(node: Object) -> tuple[dict[str, str], list[Object]]:
    """What decides of a node whether daemons run there."""
    return labels_of(node), taints_of(node)


DAEMONSET_CONTROLLER = Controller("daemonset-controller", DaemonSets, account="daemon-set-controller")
