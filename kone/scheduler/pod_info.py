"""A pod as the plugins see it: every amount and every selector parsed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import orjson

from kone.apimachinery.declared_features import needed_to_run
from kone.apimachinery.objects import Object, dig, labels_of, name_of, namespace_of, replace_in, uid_of
from kone.apimachinery.pod_references import claim_names
from kone.apimachinery.pod_resources import Amounts, pod_requests
from kone.apimachinery.selectors import LabelSelector, from_label_selector, make_requirement

# What a container that asks for nothing is taken to use when nodes are scored (scheduler/util/pod_resources.go).
DEFAULT_CPU_MILLI = 100
DEFAULT_MEMORY_BYTES = 200 * 1024 * 1024

LABEL_KEYS = {"matchLabelKeys": "in", "mismatchLabelKeys": "notin"}

ANY_ADDRESS = "0.0.0.0"


class HostPort(NamedTuple):
    protocol: str
    port: int
    address: str


@dataclass(frozen=True, slots=True)
class AffinityTerm:
    """One term of pod affinity: which pods, in which namespaces, over which node label. `weight` of preferred ones.
    Terms with equal `sign` mean the same pods."""

    namespaces: frozenset[str]
    selector: LabelSelector
    namespace_selector: LabelSelector
    topology_key: str
    weight: int = 0
    sign: bytes = b""

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
        self.signatures: dict[object, int] = {}  # what a framework knows it by

    def __repr__(self) -> str:
        return f"PodInfo({self.namespace}/{self.name})"

    @property
    def labels(self) -> Mapping[str, str]:
        return labels_of(self.pod)

    @property
    def node_name(self) -> str:
        return str(self.spec.get("nodeName") or "")

    @property
    def scheduler_name(self) -> str:
        return str(self.spec.get("schedulerName") or "default-scheduler")

    @property
    def priority(self) -> int:
        return int(self.spec.get("priority") or 0)

    @property
    def tolerations(self) -> list[Object]:
        return self.spec.get("tolerations") or []

    @cached_property
    def tolerations_sign(self) -> bytes:
        """Equal for pods that tolerate the same."""
        return orjson.dumps(self.tolerations)

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

    @cached_property
    def needed_features(self) -> list[str]:
        """What its node must declare."""
        return needed_to_run(self.spec)

    @property
    def uses_resource_claims(self) -> bool:
        return bool(self.spec.get("resourceClaims"))

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

    @cached_property
    def affinity_sign(self) -> bytes:
        """Equal for pods whose terms of pod affinity are the same."""
        affinity = self.spec.get("affinity") or {}
        terms = [affinity.get("podAffinity"), affinity.get("podAntiAffinity")]
        sign = orjson.dumps([self.namespace, terms])
        return orjson.dumps([self.namespace, terms, self.labels]) if b"atchLabelKeys" in sign else sign

    def weighs_like(self, other: PodInfo) -> bool:
        """Whether plugins cannot tell the two apart: on the same node, with the same spec, labels and end in sight."""
        return self.spec == other.spec and self.labels == other.labels and self.is_terminating == other.is_terminating

    def take_over(self, other: PodInfo) -> None:
        """Share what was worked out of a pod that weighs alike."""
        self.__dict__ |= {k: v for k, v in other.__dict__.items() if k not in ("pod", "spec")}

    def on(self, node_name: str) -> PodInfo:
        """The same pod as if it were bound to the node; shares what was worked out."""
        moved = PodInfo(replace_in(self.pod, ("spec", "nodeName"), node_name))
        moved.take_over(self)
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
        values = {key: self.labels.get(key) for name in LABEL_KEYS for key in term.get(name) or ()}
        meant = [sorted(namespaces), term.get("labelSelector"), namespace_selector]
        return AffinityTerm(
            namespaces,
            with_label_keys(term, self.labels),
            from_label_selector(namespace_selector),
            term.get("topologyKey", ""),
            weight,
            orjson.dumps([*meant, [term.get(name) for name in LABEL_KEYS], values] if values else meant),
        )


def with_label_keys(holder: Mapping[str, Any], labels: Mapping[str, str]) -> LabelSelector:
    """The holder's labelSelector, narrowed by matchLabelKeys and mismatchLabelKeys to the pod's own values."""
    selector = from_label_selector(holder.get("labelSelector"))
    if holder.get("labelSelector") is None:
        return selector
    more = [
        make_requirement(key, operator, [labels[key]])
        for keys, operator in LABEL_KEYS.items()
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
