"""What the scheduler knows of the cluster: nodes with the pods on them, every amount parsed once, kept by single steps.

A scheduling cycle runs without awaiting, so it reads these very objects: there is nothing to copy. Only preemption,
which asks what would be if, works on a `clone` of one node.

What plugins would count again for each pod is kept as pods come and go, so that placing a pod costs the same however
many are placed already: sums, ports, claims, groups of pods with affinity, and tallies of whatever a plugin counts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kone.apimachinery.objects import Key, Object, dig, labels_of, name_of
from kone.apimachinery.pod_resources import Amounts, amounts
from kone.scheduler.extended_devices import classes_by_resource
from kone.scheduler.pod_info import ANY_ADDRESS, HostPort, PodInfo

REMEMBERED = 64  # tallies and judgements per node; then all are made anew


@dataclass(slots=True)
class Tally:
    """How much the pods on a node add up to; `counts` says what one pod adds."""

    counts: Callable[[PodInfo], int]
    total: int


@dataclass(slots=True)
class AffineGroup:
    """Pods on one node whose terms of pod affinity are the same: `pod` speaks for all."""

    pod: PodInfo
    size: int


@dataclass(slots=True)
class NodeInfo:
    """A node (None: pods are bound to it, but it is not there) and the sums over the pods on it.

    `judged` is for what was found out about the node as it is now; it is emptied when anything changes.
    """

    name: str
    node: Object | None = None
    pods: dict[str, PodInfo] = field(default_factory=dict)  # by uid
    requested: Amounts = field(default_factory=dict)
    scored: Amounts = field(default_factory=dict)
    ports: dict[HostPort, int] = field(default_factory=dict)  # how many pods use it
    claims: dict[Key, int] = field(default_factory=dict)  # how many pods use it
    allocatable: Amounts = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Object, ...] = ()
    images: dict[str, int] = field(default_factory=dict)  # size in bytes by name
    affine: dict[bytes, AffineGroup] = field(default_factory=dict)  # by PodInfo.affinity_sign
    judged: dict[Hashable, Any] = field(default_factory=dict)
    tallies: dict[Hashable, Tally] = field(default_factory=dict)

    @property
    def max_pods(self) -> int:
        return self.allocatable.get("pods", 0)

    @property
    def is_unschedulable(self) -> bool:
        return bool(dig(self.node, "spec", "unschedulable"))

    def set_node(self, node: Object | None) -> None:
        self.judged.clear()
        self.node = node
        self.allocatable = amounts(dig(node, "status", "allocatable"))
        self.labels = labels_of(node or {})
        self.taints = tuple(dig(node, "spec", "taints", default=()))
        self.images = {
            name: image.get("sizeBytes") or 0
            for image in dig(node, "status", "images", default=())
            for name in image.get("names") or ()
        }

    def add(self, pod: PodInfo) -> None:
        self.pods[pod.uid] = pod
        self._count(pod, 1)

    def remove(self, uid: str) -> None:
        pod = self.pods.pop(uid, None)
        if pod is not None:
            self._count(pod, -1)

    def _count(self, pod: PodInfo, sign: int) -> None:
        self.judged.clear()
        _sum(self.requested, pod.requests, sign)
        _sum(self.scored, pod.scored_requests, sign)
        for port in pod.host_ports:
            _step(self.ports, port, sign)
        for claim in pod.claims:
            _step(self.claims, Key(pod.namespace, claim), sign)
        for tally in self.tallies.values():
            tally.total += sign * tally.counts(pod)
        if pod.has_pod_affinity:
            group = self.affine.setdefault(pod.affinity_sign, AffineGroup(pod, 0))
            group.size += sign
            if not group.size:
                del self.affine[pod.affinity_sign]

    def tally(self, key: Hashable, counts: Callable[[PodInfo], int]) -> int:
        """The sum of `counts` over the pods here. Equal keys must mean equal `counts`: it is worked out once, then
        kept as pods come and go."""
        found = self.tallies.get(key)
        if found is None:
            if len(self.tallies) >= REMEMBERED:
                self.tallies.clear()
            found = self.tallies[key] = Tally(counts, sum(map(counts, self.pods.values())))
        return found.total

    def forget_tallies(self) -> None:
        """Something else that they read has changed."""
        self.tallies.clear()

    def has_conflict(self, wanted: HostPort) -> bool:
        """Whether a pod here uses the port on an address that overlaps."""
        return any(
            used.port == wanted.port
            and used.protocol == wanted.protocol
            and (ANY_ADDRESS in (used.address, wanted.address) or used.address == wanted.address)
            for used in self.ports
        )

    def clone(self) -> NodeInfo:
        """A copy to try things on: its sums are its own, the pods and the node are shared."""
        return NodeInfo(
            self.name,
            self.node,
            dict(self.pods),
            dict(self.requested),
            dict(self.scored),
            dict(self.ports),
            dict(self.claims),
            self.allocatable,
            self.labels,
            self.taints,
            self.images,
            {sign: AffineGroup(group.pod, group.size) for sign, group in self.affine.items()},
        )


def _sum(total: Amounts, part: Amounts, sign: int) -> None:
    for name, amount in part.items():
        total[name] = total.get(name, 0) + sign * amount


def _step(counts: dict[Any, int], key: Hashable, sign: int) -> None:
    counts[key] = counts.get(key, 0) + sign
    if not counts[key]:
        del counts[key]


def _node_of(attachment: Object) -> str:
    return str(dig(attachment, "spec", "nodeName", default=""))


class Cluster:
    """Nodes and the pods bound to them, with those that are assumed: bound in thought, while the API is being told."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        self._where: dict[str, str] = {}  # node by pod uid
        self._assumed: set[str] = set()
        self._affine: dict[str, NodeInfo] = {}  # nodes with such pods
        self._ready: list[NodeInfo] | None = None
        self.namespaces: dict[str, Mapping[str, str]] = {}  # labels by namespace
        self.budgets: dict[Key, Object] = {}  # PodDisruptionBudgets
        self.claims: dict[Key, Object] = {}  # PersistentVolumeClaims
        self.volumes: dict[str, Object] = {}  # PersistentVolumes
        self.storage_classes: dict[str, Object] = {}
        self.csi_nodes: dict[str, Object] = {}
        self.csi_drivers: dict[str, Object] = {}
        self.storage_capacities: dict[Key, Object] = {}  # CSIStorageCapacities
        self.services: dict[str, dict[str, Mapping[str, str]]] = {}  # selectors by namespace, by name
        self.selectors: dict[str, Object] = {}  # of ReplicaSets, ReplicationControllers and StatefulSets, by uid
        self._attachments: dict[str, dict[str, Object]] = {}  # VolumeAttachments by node, by name
        self.resource_claims: dict[Key, Object] = {}
        self.resource_slices: dict[str, Object] = {}
        self.device_classes: dict[str, Object] = {}
        self.extended_classes: dict[str, Object] = {}  # those of device_classes that serve extended resources, by these
        self.device_taint_rules: dict[str, Object] = {}
        self.claim_users: dict[Key, int] = {}  # how many pods use the claim, on all nodes
        self.image_nodes: dict[str, int] = {}  # how many nodes have the image

    def nodes(self) -> list[NodeInfo]:
        """The nodes that are there, by name."""
        if self._ready is None:
            self._ready = [self._nodes[name] for name in sorted(self._nodes) if self._nodes[name].node is not None]
        return self._ready

    def node(self, name: str) -> NodeInfo | None:
        found = self._nodes.get(name)
        return found if found is not None and found.node is not None else None

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        return self.namespaces.get(namespace, {})

    def set_namespace(self, namespace: str, labels: Mapping[str, str]) -> None:
        changed = self.namespaces.get(namespace, labels) != labels
        self.namespaces[namespace] = labels
        if changed:
            for info in self._nodes.values():
                info.forget_tallies()

    def set_device_class(self, name: str, device_class: Object | None) -> None:
        """None: it is gone."""
        if device_class is None:
            self.device_classes.pop(name, None)
        else:
            self.device_classes[name] = device_class
        self.extended_classes = classes_by_resource(self.device_classes.values())
        for info in self._nodes.values():
            info.judged.clear()

    def set_attachment(self, attachment: Object) -> None:
        self._attachments.setdefault(_node_of(attachment), {})[name_of(attachment)] = attachment

    def remove_attachment(self, attachment: Object) -> None:
        self._attachments.get(_node_of(attachment), {}).pop(name_of(attachment), None)

    def attachments_on(self, node: str) -> Iterable[Object]:
        return self._attachments.get(node, {}).values()

    def set_node(self, node: Object) -> None:
        info = self._nodes.setdefault(name_of(node), NodeInfo(name_of(node)))
        if info.node is None:
            self._ready = None
        self._set(info, node)

    def remove_node(self, name: str) -> None:
        info = self._nodes.get(name)
        if info is None:
            return
        self._ready = None
        self._set(info, None)
        if not info.pods:
            del self._nodes[name]

    def _set(self, info: NodeInfo, node: Object | None) -> None:
        for image in info.images:
            _step(self.image_nodes, image, -1)
        info.set_node(node)
        for image in info.images:
            _step(self.image_nodes, image, 1)

    def set_pod(self, pod: PodInfo) -> None:
        """A pod that is bound: new, changed, or assumed until now."""
        known = self.pod(pod.uid)
        if known is not None and known.weighs_like(pod):
            self._assumed.discard(pod.uid)
            pod.take_over(known)
            self._nodes[pod.node_name].pods[pod.uid] = pod
            return
        self.remove_pod(pod.uid)
        info = self._nodes.setdefault(pod.node_name, NodeInfo(pod.node_name))
        info.add(pod)
        self._where[pod.uid] = pod.node_name
        self._index(info, pod, 1)

    def remove_pod(self, uid: str) -> None:
        self._assumed.discard(uid)
        name = self._where.pop(uid, None)
        if name is None:
            return
        info = self._nodes[name]
        pod = info.pods[uid]
        info.remove(uid)
        self._index(info, pod, -1)
        if info.node is None and not info.pods:
            del self._nodes[name]

    def _index(self, info: NodeInfo, pod: PodInfo, sign: int) -> None:
        for claim in pod.claims:
            _step(self.claim_users, Key(pod.namespace, claim), sign)
        if info.affine:
            self._affine[info.name] = info
        else:
            self._affine.pop(info.name, None)

    def assume(self, pod: PodInfo) -> None:
        """Count the pod on its node before the API knows of it."""
        self.set_pod(pod)
        self._assumed.add(pod.uid)

    def forget(self, uid: str) -> None:
        """The binding failed: the pod is on no node."""
        if uid in self._assumed:
            self.remove_pod(uid)

    def is_assumed(self, uid: str) -> bool:
        return uid in self._assumed

    def pod(self, uid: str) -> PodInfo | None:
        name = self._where.get(uid)
        return self._nodes[name].pods.get(uid) if name is not None else None

    def affine_groups(self) -> Iterator[tuple[NodeInfo, Iterable[AffineGroup]]]:
        """Each node that is there with the groups of pods on it that have terms of pod affinity."""
        for info in self._affine.values():
            if info.node is not None:
                yield info, info.affine.values()
