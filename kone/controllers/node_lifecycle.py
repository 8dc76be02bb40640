"""Nodes that fall silent: their conditions become Unknown, taints keep pods away and drive them off.

A node speaks by renewing its lease or by posting its Ready condition. When each was last heard is remembered on this
process's own clock, so that neither clock skew between hosts nor a jump of the wall clock makes a node seem dead.
Nothing is polled: each node is looked at again when its grace would run out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import LEASES, NODES, PODS
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    find_condition,
    is_condition_true,
    key_of,
    labels_of,
    metadata,
    name_of,
    namespace_of,
    replace_in,
    resource_version_of,
)
from kone.apimachinery.taints import (
    DISK_PRESSURE,
    MEMORY_PRESSURE,
    NETWORK_UNAVAILABLE,
    NOT_READY,
    PID_PRESSURE,
    UNREACHABLE,
    UNSCHEDULABLE,
    taints_of,
)
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch
from kone.controllers.pod_control import index_by_node, on_node, with_condition

GRACE_S = 50.0  # --node-monitor-grace-period
STARTUP_GRACE_S = 60.0  # --node-startup-grace-period: of a node that has never posted a status
EVICTION_QPS, SECONDARY_EVICTION_QPS = 0.1, 0.01  # nodes of a zone that are tainted NoExecute in a second
LARGE_CLUSTER = 50  # nodes of a zone, from which on evictions go on slowly when most of it is silent
UNHEALTHY_ZONE = 0.55
LEASE_NAMESPACE = "kube-node-lease"
EXCLUDED = "node.kubernetes.io/exclude-disruption"
ZONE, REGION = "topology.kubernetes.io/zone", "topology.kubernetes.io/region"

_CONDITIONS = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
_TAINTS: Mapping[tuple[str, str], str] = {
    ("Ready", "False"): NOT_READY,
    ("Ready", "Unknown"): UNREACHABLE,
    ("MemoryPressure", "True"): MEMORY_PRESSURE,
    ("DiskPressure", "True"): DISK_PRESSURE,
    ("NetworkUnavailable", "True"): NETWORK_UNAVAILABLE,
    ("PIDPressure", "True"): PID_PRESSURE,
}
_NO_SCHEDULE_KEYS = {*_TAINTS.values(), UNSCHEDULABLE}
_BETA_LABELS = {"kubernetes.io/os": "beta.kubernetes.io/os", "kubernetes.io/arch": "beta.kubernetes.io/arch"}


# Decide


def ready_status(node: Object) -> str:
    """ "True", "False", "Unknown", or "" where the node has no Ready condition."""
    return str((find_condition(node, "Ready") or {}).get("status", ""))


def with_unknown_conditions(node: Object, now: float) -> Object:
    """The node as it is told to be once it has been silent for too long."""
    conditions = list(dig(node, "status", "conditions", default=[]))
    stamp = format_time(now)
    for kind in _CONDITIONS:
        old = find_condition(node, kind)
        if old is None:
            conditions.append(
                {
                    "type": kind,
                    "status": "Unknown",
                    "lastHeartbeatTime": metadata(node).get("creationTimestamp"),
                    "lastTransitionTime": stamp,
                    "reason": "NodeStatusNeverUpdated",
                    "message": "Kubelet never posted node status.",
                }
            )
        elif old["status"] != "Unknown":
            conditions[conditions.index(old)] = {
                **old,
                "status": "Unknown",
                "lastTransitionTime": stamp,
                "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
            }
    return replace_in(node, ("status", "conditions"), conditions)


def no_schedule_keys(node: Object) -> set[str]:
    """The NoSchedule taints that conditions and spec.unschedulable ask for."""
    conditions = dig(node, "status", "conditions", default=())
    keys = {key for c in conditions if (key := _TAINTS.get((c["type"], c["status"]))) is not None}
    return keys | ({UNSCHEDULABLE} if dig(node, "spec", "unschedulable") else set())


def no_execute_key(node: Object) -> str:
    """The NoExecute taint that the Ready condition asks for; "" for none."""
    return _TAINTS.get(("Ready", ready_status(node)), "")


def with_taints(node: Object, no_schedule: set[str], no_execute: str, now: float) -> list[Object]:
    """The node's taints, of which those that this controller owns are made as given."""
    wanted = {(key, "NoSchedule") for key in no_schedule} | ({(no_execute, "NoExecute")} if no_execute else set())
    owned = {(key, "NoSchedule") for key in _NO_SCHEDULE_KEYS} | {(NOT_READY, "NoExecute"), (UNREACHABLE, "NoExecute")}
    kept = [t for t in taints_of(node) if (t["key"], t["effect"]) in wanted or (t["key"], t["effect"]) not in owned]
    missing = wanted - {(taint["key"], taint["effect"]) for taint in kept}
    stamp = format_time(now)
    return kept + [{"key": key, "effect": effect, "timeAdded": stamp} for key, effect in sorted(missing)]


def missing_labels(node: Object) -> dict[str, str]:
    """The beta labels that should say what the stable ones say."""
    labels = labels_of(node)
    return {
        beta: labels[stable]
        for stable, beta in _BETA_LABELS.items()
        if stable in labels and labels.get(beta) != labels[stable]
    }


def zone_of(node: Object) -> tuple[str, str]:
    return labels_of(node).get(REGION, ""), labels_of(node).get(ZONE, "")


def eviction_qps(zone: Iterable[Object]) -> float:
    """How many nodes of the zone may be tainted NoExecute in a second, given how many of them are silent."""
    ready = [is_condition_true(node, "Ready") for node in zone]
    silent = ready.count(False)
    if any(ready) and silent > 2 and silent / len(ready) >= UNHEALTHY_ZONE:
        return SECONDARY_EVICTION_QPS if len(ready) > LARGE_CLUSTER else 0.0
    return EVICTION_QPS


# Act


@dataclass(slots=True)
class _Bucket:
    """One token at most."""

    tokens: float = 1.0
    filled_at: float = 0.0

    def take(self, qps: float, now: float) -> float:
        """0 when a token was there, else the seconds until one will be (infinite at qps 0)."""
        self.tokens = min(1.0, self.tokens + (now - self.filled_at) * qps)
        self.filled_at = now
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return 0.0
        return (1.0 - self.tokens) / qps if qps > 0 else float("inf")


@dataclass(slots=True)
class _Known:
    """A node since this process knows it."""

    node: Object
    heard_at: float
    """On the monotonic clock."""


@dataclass(slots=True)
class _State:
    """What this process knows of all nodes together."""

    known: dict[str, _Known] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    """Nodes whose silence counts: all but those with the label exclude-disruption."""
    ready: set[str] = field(default_factory=set)
    """Those of the counted that are ready."""
    waiting: set[str] = field(default_factory=set)
    """Nodes that wait for leave to evict."""
    buckets: dict[tuple[str, str], _Bucket] = field(default_factory=dict)
    disrupted: bool = False

    def note(self, node: Object, *, gone: bool) -> None:
        name = name_of(node)
        self.counted.discard(name)
        self.ready.discard(name)
        if not gone and EXCLUDED not in labels_of(node):
            self.counted.add(name)
            if is_condition_true(node, "Ready"):
                self.ready.add(name)

    @property
    def all_silent(self) -> bool:
        """No node is ready: more likely it is us who hear nothing, so nobody is evicted."""
        return bool(self.counted) and not self.ready


class NodeLifecycle(Reconciler):
    """Keys are nodes."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(NODES)
        self._leases: Informer = ctx.client.informer(LEASES)
        self._pods: Informer = ctx.client.informer(PODS)
        self._state = _State()
        index_by_node(self._pods)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_node)
        yield Watch(self._leases, self._hear_lease)

    def _keys_of_node(self, event: EventType, node: Object, previous: Object | None) -> Iterable[Key]:
        state = self._state
        known, was_silent = state.known.get(name_of(node)), state.all_silent
        state.note(node, gone=event == "DELETED")
        if known is not None and previous is not None and _heartbeat(node) != _heartbeat(previous):
            known.heard_at = self._ctx.clock.monotonic()
        # Whether a node may be evicted depends on how the others are.
        others = state.known.keys() if state.all_silent != was_silent else state.waiting
        if previous is not None and ready_status(node) == ready_status(previous) and event != "DELETED":
            others = set()
        return [key_of(node), *(Key("", name) for name in others)]

    def _hear_lease(self, event: EventType, lease: Object, previous: Object | None) -> Iterable[Key]:
        known = self._state.known.get(name_of(lease))
        renewed = previous is None or dig(lease, "spec", "renewTime") != dig(previous, "spec", "renewTime")
        if known is not None and renewed and namespace_of(lease) == LEASE_NAMESPACE and event != "DELETED":
            known.heard_at = self._ctx.clock.monotonic()
        return ()

    async def reconcile(self, key: Key) -> Result | None:
        node = self.primary.get(*key)
        known = self._state.known.get(key.name)
        if node is None:
            if known is not None:
                del self._state.known[key.name]
                self._tell_about(known.node, "RemovingNode", f"Removing Node {key.name} from Controller")
            return None
        if known is None:
            self._tell_about(node, "RegisteredNode", f"Registered Node {key.name} in Controller")
            known = self._state.known[key.name] = _Known(node, self._first_heard_at(node))
        elif not ready_status(known.node) and ready_status(node):
            known.heard_at = self._ctx.clock.monotonic()
        known.node = node

        grace_s = GRACE_S if ready_status(node) else STARTUP_GRACE_S
        left_s = known.heard_at + grace_s - self._ctx.clock.monotonic()
        if left_s <= 0:
            node = await self._give_up(node)
        self._notice_disruption()
        wait_s = await self._taint(node)
        waits = [wait for wait in (left_s, wait_s) if 0 < wait < float("inf")]
        return Result(after_s=min(waits)) if waits else None

    def _first_heard_at(self, node: Object) -> float:
        """A node with a status is given its whole grace from now; one without has been silent since it was made."""
        clock = self._ctx.clock
        if ready_status(node):
            return clock.monotonic()
        age_s = max(0.0, clock.now() - parse_time(metadata(node)["creationTimestamp"]))
        return clock.monotonic() - age_s

    async def _give_up(self, node: Object) -> Object:
        """The node's grace is over: say so, and that its pods are not ready."""
        silent = with_unknown_conditions(node, self._ctx.clock.now())
        if find_condition(silent, "Ready") == find_condition(node, "Ready"):
            return node
        updated = await self._ctx.client.update(NODES, silent, subresource="status")
        if ready_status(node) == "True":
            message = f"Node {name_of(node)} status is now: NodeNotReady"
            self._ctx.recorder.event(_bare(node), "Normal", "NodeNotReady", message)
            for pod in on_node(self._pods, name_of(node)):
                await self._mark_not_ready(pod)
        return updated

    async def _mark_not_ready(self, pod: Object) -> None:
        condition = find_condition(pod, "Ready")
        if condition is None or condition["status"] == "False":
            return
        changed = with_condition(pod, {**condition, "status": "False"}, self._ctx.clock.now())
        try:
            await self._ctx.client.update(PODS, changed, subresource="status")
        except StatusError as error:
            if error.code not in (404, 409):
                raise
        self._ctx.recorder.event(pod, "Warning", "NodeNotReady", "Node is not ready")

    def _notice_disruption(self) -> None:
        """When the first node speaks again, all get their whole grace anew."""
        was, self._state.disrupted = self._state.disrupted, self._state.all_silent
        if was and not self._state.disrupted:
            for known in self._state.known.values():
                known.heard_at = self._ctx.clock.monotonic()

    async def _taint(self, node: Object) -> float:
        """Make taints and labels right. Returns the seconds to wait for leave to evict, 0 where there is none to."""
        no_execute = "" if self._state.disrupted else no_execute_key(node)
        present = {t["key"] for t in taints_of(node) if t["effect"] == "NoExecute"} & {NOT_READY, UNREACHABLE}
        wait_s = self._leave_to_evict(node) if no_execute and not present else 0.0
        if wait_s > 0:
            no_execute = ""
            self._state.waiting.add(name_of(node))
        else:
            self._state.waiting.discard(name_of(node))
        taints = with_taints(node, no_schedule_keys(node), no_execute, self._ctx.clock.now())
        labels = missing_labels(node)
        if taints != taints_of(node) or labels:
            meta: Object = {"resourceVersion": resource_version_of(node)}
            if labels:
                meta["labels"] = labels
            patch = {"metadata": meta, "spec": {"taints": taints or None}}
            await self._ctx.client.patch(NODES, name_of(node), patch)
        return wait_s

    def _leave_to_evict(self, node: Object) -> float:
        zone = zone_of(node)
        qps = eviction_qps(other for other in self.primary.list() if zone_of(other) == zone)
        bucket = self._state.buckets.setdefault(zone, _Bucket())
        return bucket.take(qps, self._ctx.clock.monotonic())

    def _tell_about(self, node: Object, reason: str, what: str) -> None:
        self._ctx.recorder.event(_bare(node), "Normal", reason, f"Node {name_of(node)} event: {what}")


def _heartbeat(node: Object) -> object:
    return (find_condition(node, "Ready") or {}).get("lastHeartbeatTime")


def _bare(node: Object) -> Object:
    """The node as events name it: without a revision."""
    meta = {key: value for key, value in metadata(node).items() if key in ("name", "uid")}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta}


NODE_LIFECYCLE_CONTROLLER = Controller("node-lifecycle-controller", NodeLifecycle, "node-controller", "node-controller")
