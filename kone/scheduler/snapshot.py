"""What the scheduler knows of the cluster: nodes with the pods on them, every amount parsed once, kept by single steps.

A scheduling cycle runs without awaiting, so it reads these very objects: there is nothing to copy. Only preemption,
which asks what would be if, works on a `clone` of one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from kone.apimachinery.objects import Key, Object, dig, labels_of, name_of, namespace_of, replace_in, uid_of
from kone.apimachinery.pod_references import claim_names
from kone.apimachinery.pod_resources import Amounts, amounts, pod_requests
from kone.apimachinery.selectors import LabelSelector, from_label_selector, make_requirement

# What a container that asks for nothing is taken to use when nodes are scored (scheduler/util/pod_resources.go).
DEFAULT_CPU_MILLI = 100
DEFAULT_MEMORY_BYTES = 200 * 1024 * 1024

ANY_ADDRESS = "0.0.0.0"


class HostPort(NamedTuple):
    protocol: str
    port: int
    address: str


@dataclass(frozen=True, slots=True)
class AffinityTerm:
    """One term of pod affinity: which pods, in which namespaces, over which node label. `weight` of preferred ones."""

    namespaces: frozenset[str]
    selector: LabelSelector
    namespace_selector: LabelSelector
    topology_key: str
    weight: int = 0

    def matches(self, pod: PodInfo, namespace_labels: Mapping[str, str]) -> bool:
        """Whether `pod` is meant; `namespace_labels` are those of its namespace."""
        if pod.namespace not in self.namespaces and not self.namespace_selector.matches(namespace_labels):
            return False
        return self.selector.matches(pod.labels)


class PodInfo:
    """A pod and what the plugins ask of it, worked out when first asked for."""

    def __init__(self, pod: Object) -> None:
        self.pod = pod
        self.uid = uid_of(pod)
        self.name = name_of(pod)
        self.namespace = namespace_of(pod)
        self.spec: Object = pod.get("spec") or {}

    def __repr__(self) -> str:
        return f"PodInfo({self.namespace}/{self.name})"

    @property
    def labels(self) -> Mapping[str, str]:
        return labels_of(self.pod)

    @property
    def node_name(self) -> str:
        return str(self.spec.get("nodeName") or "")

    @property
    def priority(self) -> int:
        return int(self.spec.get("priority") or 0)

    @property
    def tolerations(self) -> list[Object]:
        return self.spec.get("tolerations") or []

    @property
    def nominated_node(self) -> str:
        return str(dig(self.pod, "status", "nominatedNodeName", default=""))

    @property
    def is_terminating(self) -> bool:
        return bool(self.pod["metadata"].get("deletionTimestamp"))

    @cached_property
    def requests(self) -> Amounts:
        return pod_requests(self.pod)

    @cached_property
    def scored_requests(self) -> Amounts:
        """cpu and memory with the defaults for containers that name none."""
        containers = (*(self.spec.get("containers") or ()), *(self.spec.get("initContainers") or ()))
        if all(_names_both(container) for container in containers) or dig(self.spec, "resources", "requests"):
            return self.requests
        filled = {**self.spec, **{kind: _with_defaults(self.spec.get(kind)) for kind in _CONTAINERS}}
        return pod_requests({"spec": filled})

    @cached_property
    def host_ports(self) -> tuple[HostPort, ...]:
        sidecars = (c for c in self.spec.get("initContainers") or () if c.get("restartPolicy") == "Always")
        return tuple(
            HostPort(port.get("protocol") or "TCP", port["hostPort"], port.get("hostIP") or ANY_ADDRESS)
            for container in (*(self.spec.get("containers") or ()), *sidecars)
            for port in container.get("ports") or ()
            if port.get("hostPort")
        )

    @cached_property
    def claims(self) -> frozenset[str]:
        """The names of the persistent volume claims it uses."""
        return frozenset(claim_names(self.pod))

    def uses_claim(self, claim: Object | None) -> bool:
        return claim is not None and namespace_of(claim) == self.namespace and name_of(claim) in self.claims

    @cached_property
    def affinity_terms(self) -> tuple[AffinityTerm, ...]:
        return self._terms("podAffinity", required=True)

    @cached_property
    def anti_affinity_terms(self) -> tuple[AffinityTerm, ...]:
        return self._terms("podAntiAffinity", required=True)

    @cached_property
    def preferred_affinity_terms(self) -> tuple[AffinityTerm, ...]:
        return self._terms("podAffinity", required=False)

    @cached_property
    def preferred_anti_affinity_terms(self) -> tuple[AffinityTerm, ...]:
        return self._terms("podAntiAffinity", required=False)

    @property
    def has_pod_affinity(self) -> bool:
        affinity = self.spec.get("affinity") or {}
        return bool(affinity.get("podAffinity") or affinity.get("podAntiAffinity"))

    def on(self, node_name: str) -> PodInfo:
        """The same pod as if it were bound to the node; shares what was worked out."""
        moved = PodInfo(replace_in(self.pod, ("spec", "nodeName"), node_name))
        moved.__dict__ |= {k: v for k, v in self.__dict__.items() if k not in ("pod", "spec")}
        return moved

    def _terms(self, kind: str, *, required: bool) -> tuple[AffinityTerm, ...]:
        source = dig(self.spec, "affinity", kind, default={})
        if required:
            terms = source.get("requiredDuringSchedulingIgnoredDuringExecution") or ()
            return tuple(self._term(term) for term in terms)
        weighted = source.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        return tuple(self._term(w.get("podAffinityTerm") or {}, w.get("weight", 0)) for w in weighted)

    def _term(self, term: Mapping[str, Any], weight: int = 0) -> AffinityTerm:
        namespaces = frozenset(term.get("namespaces") or ())
        namespace_selector = term.get("namespaceSelector")
        if not namespaces and namespace_selector is None:
            namespaces = frozenset({self.namespace})
        return AffinityTerm(
            namespaces,
            with_label_keys(term, self.labels),
            from_label_selector(namespace_selector),
            term.get("topologyKey", ""),
            weight,
        )


def with_label_keys(holder: Mapping[str, Any], labels: Mapping[str, str]) -> LabelSelector:
    """The holder's labelSelector, narrowed by matchLabelKeys and mismatchLabelKeys to the pod's own values."""
    selector = from_label_selector(holder.get("labelSelector"))
    if holder.get("labelSelector") is None:
        return selector
    more = [
        make_requirement(key, operator, [labels[key]])
        for keys, operator in (("matchLabelKeys", "in"), ("mismatchLabelKeys", "notin"))
        for key in holder.get(keys) or ()
        if key in labels
    ]
    return LabelSelector([*selector.requirements, *more]) if more else selector


_CONTAINERS = ("containers", "initContainers")


def _names_both(container: Object) -> bool:
    requests = dig(container, "resources", "requests", default={})
    return "cpu" in requests and "memory" in requests


def _with_defaults(containers: Iterable[Object] | None) -> list[Object]:
    filled = []
    for container in containers or ():
        requests = dig(container, "resources", "requests", default={})
        more = {"cpu": f"{DEFAULT_CPU_MILLI}m", "memory": str(DEFAULT_MEMORY_BYTES)}
        filled.append(replace_in(container, ("resources", "requests"), {**more, **requests}))
    return filled


@dataclass(slots=True)
class NodeInfo:
    """A node (None: pods are bound to it, but it is not there) and the sums over the pods on it."""

    name: str
    node: Object | None = None
    pods: dict[str, PodInfo] = field(default_factory=dict)  # by uid
    requested: Amounts = field(default_factory=dict)
    scored: Amounts = field(default_factory=dict)
    ports: dict[HostPort, int] = field(default_factory=dict)  # how many pods use it
    allocatable: Amounts = field(default_factory=dict)
    taints: tuple[Object, ...] = ()
    images: dict[str, int] = field(default_factory=dict)  # size in bytes by name

    @property
    def labels(self) -> Mapping[str, str]:
        return labels_of(self.node or {})

    @property
    def max_pods(self) -> int:
        return self.allocatable.get("pods", 0)

    @property
    def is_unschedulable(self) -> bool:
        return bool(dig(self.node, "spec", "unschedulable"))

    def set_node(self, node: Object | None) -> None:
        self.node = node
        self.allocatable = amounts(dig(node, "status", "allocatable"))
        self.taints = tuple(dig(node, "spec", "taints", default=()))
        self.images = {
            name: image.get("sizeBytes") or 0
            for image in dig(node, "status", "images", default=())
            for name in image.get("names") or ()
        }

    def add(self, pod: PodInfo) -> None:
        self.pods[pod.uid] = pod
        _sum(self.requested, pod.requests, 1)
        _sum(self.scored, pod.scored_requests, 1)
        for port in pod.host_ports:
            self.ports[port] = self.ports.get(port, 0) + 1

    def remove(self, uid: str) -> None:
        pod = self.pods.pop(uid, None)
        if pod is None:
            return
        _sum(self.requested, pod.requests, -1)
        _sum(self.scored, pod.scored_requests, -1)
        for port in pod.host_ports:
            self.ports[port] -= 1
            if not self.ports[port]:
                del self.ports[port]

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
            self.allocatable,
            self.taints,
            self.images,
        )


def _sum(total: Amounts, part: Amounts, sign: int) -> None:
    for name, amount in part.items():
        total[name] = total.get(name, 0) + sign * amount


class Cluster:
    """Nodes and the pods bound to them, with those that are assumed: bound in thought, while the API is being told."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        self._where: dict[str, str] = {}  # node by pod uid
        self._assumed: set[str] = set()
        self._ready: list[NodeInfo] | None = None
        self.namespaces: dict[str, Mapping[str, str]] = {}  # labels by namespace
        self.budgets: dict[Key, Object] = {}  # PodDisruptionBudgets
        self.claims: dict[Key, Object] = {}  # PersistentVolumeClaims
        self.volumes: dict[str, Object] = {}  # PersistentVolumes
        self.storage_classes: dict[str, Object] = {}

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

    def set_node(self, node: Object) -> None:
        info = self._nodes.setdefault(name_of(node), NodeInfo(name_of(node)))
        if info.node is None:
            self._ready = None
        info.set_node(node)

    def remove_node(self, name: str) -> None:
        info = self._nodes.get(name)
        if info is None:
            return
        self._ready = None
        info.set_node(None)
        if not info.pods:
            del self._nodes[name]

    def set_pod(self, pod: PodInfo) -> None:
        """A pod that is bound: new, changed, or assumed until now."""
        self.remove_pod(pod.uid)
        self._nodes.setdefault(pod.node_name, NodeInfo(pod.node_name)).add(pod)
        self._where[pod.uid] = pod.node_name

    def remove_pod(self, uid: str) -> None:
        self._assumed.discard(uid)
        name = self._where.pop(uid, None)
        if name is None:
            return
        info = self._nodes[name]
        info.remove(uid)
        if info.node is None and not info.pods:
            del self._nodes[name]

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

    def pods_with_affinity(self) -> Iterator[tuple[NodeInfo, PodInfo]]:
        for info in self.nodes():
            for pod in info.pods.values():
                if pod.has_pod_affinity:
                    yield info, pod
