"""What a kubelet may do: read what its own pods name, write its own node, lease and pods (upstream's Node authorizer).

Upstream keeps a graph of every pod's references; here the pods of the asking node, at most a few hundred, are looked
through when a request needs it. What a write may contain is NodeRestriction's matter, in admission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.objects import Object, annotations_of, dig, namespace_of
from kone.apimachinery.pod_references import claim_names, config_map_names, resource_claim_names, secret_names
from kone.apimachinery.users import User, node_identity
from kone.auth.rbac import Entry, Rule, compile_rule

LEASE_NAMESPACE = "kube-node-lease"
MIRROR_POD = "kubernetes.io/config.mirror"
PODS_BY_NODE = "spec.nodeName"


class Cache(Protocol):
    def get(self, namespace: str, name: str) -> Entry | None: ...
    def add_index(self, name: str, keys: Callable[[Object], Iterable[str]]) -> None: ...
    def by_index(self, name: str, key: str) -> Sequence[Entry]: ...


class Caches(Protocol):
    def of(self, group: str, resource: str) -> Cache: ...


def _node_of(pod: Object) -> Iterator[str]:
    if node := dig(pod, "spec", "nodeName"):
        yield node


class NodeAuthorizer:
    """`node_rules`: the rules of the bootstrap ClusterRole system:node, which say what is not decided here."""

    def __init__(self, caches: Caches, node_rules: Iterable[Mapping[str, Any]]) -> None:
        self._caches = caches
        self._rules: tuple[Rule, ...] = tuple(compile_rule(rule) for rule in node_rules)
        self._pods = caches.of("", "pods")
        self._pods.add_index(PODS_BY_NODE, _node_of)
        self._subdivided: dict[tuple[str, str], Callable[[str, AccessRequest], str | None]] = {
            ("", "secrets"): lambda node, r: self._read_namespaced(node, r, self._secrets_of),
            ("", "configmaps"): lambda node, r: self._read_namespaced(node, r, config_map_names),
            ("", "persistentvolumeclaims"): self._claim,
            ("", "persistentvolumes"): self._volume,
            ("resource.k8s.io", "resourceclaims"): self._resource_claim,
            ("storage.k8s.io", "volumeattachments"): self._attachment,
            ("", "serviceaccounts"): self._service_account,
            ("coordination.k8s.io", "leases"): self._lease,
            ("storage.k8s.io", "csinodes"): self._csi_node,
            ("resource.k8s.io", "resourceslices"): self._resource_slice,
            ("certificates.k8s.io", "podcertificaterequests"): self._pod_certificate,
            ("", "nodes"): self._node,
            ("", "pods"): self._pod,
        }

    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]:
        """(True, "") or (False, why); ("" why: no opinion)."""
        node = node_identity(user)
        if node is None:
            return False, ""
        if not node:
            return False, f'unknown node for user "{user.name}"'
        decide = self._subdivided.get((request.group, request.resource))
        if decide is None:
            return any(rule.allows(request) for rule in self._rules), ""
        why = decide(node, request)
        return why is None, why or ""

    # Each of these answers None to allow, else why not ("" where upstream gives no reason).

    def _pods_of(self, node: str) -> Iterator[Object]:
        for entry in self._pods.by_index(PODS_BY_NODE, node):
            yield entry.obj

    def _related(self, node: str, request: AccessRequest, names: Callable[[Object], Iterator[str]]) -> str | None:
        """Allow what a pod of the node, in the request's namespace, names."""
        if not request.name:
            return "No Object name found"
        for pod in self._pods_of(node):
            # A mirror pod is written by the kubelet itself: it must not open doors.
            is_ours = namespace_of(pod) == request.namespace and MIRROR_POD not in annotations_of(pod)
            if is_ours and request.name in names(pod):
                return None
        return f"no relationship found between node '{node}' and this object"

    def _read_namespaced(
        self, node: str, request: AccessRequest, names: Callable[[Object], Iterator[str]]
    ) -> str | None:
        if request.verb not in ("get", "list", "watch"):
            return "can only read resources of this type"
        if request.subresource:
            return "cannot read subresource"
        if not request.namespace:
            return "can only read namespaced object of this type"
        return self._related(node, request, names)

    def _secrets_of(self, pod: Object) -> Iterator[str]:
        yield from secret_names(pod)
        for claim in claim_names(pod):
            volume = self._volume_of(namespace_of(pod), claim)
            if volume is not None:
                yield from _volume_secrets(volume, namespace_of(pod))

    def _volume_of(self, namespace: str, claim: str) -> Object | None:
        entry = self._caches.of("", "persistentvolumeclaims").get(namespace, claim)
        volume_name = dig(entry.obj, "spec", "volumeName") if entry else None
        found = self._caches.of("", "persistentvolumes").get("", volume_name) if volume_name else None
        return found.obj if found else None

    def _get_only(self, request: AccessRequest) -> str | None:
        if request.verb != "get":
            return "can only get individual resources of this type"
        if request.subresource:
            return "cannot get subresource"
        return None

    def _claim(self, node: str, request: AccessRequest) -> str | None:
        if request.subresource == "status":
            if request.verb not in ("update", "patch"):
                return "can only get/update/patch this type"
        elif (why := self._get_only(request)) is not None:
            return why
        return self._related(node, request, claim_names)

    def _resource_claim(self, node: str, request: AccessRequest) -> str | None:
        why = self._get_only(request)
        return self._related(node, request, resource_claim_names) if why is None else why

    def _volume(self, node: str, request: AccessRequest) -> str | None:
        if (why := self._get_only(request)) is not None:
            return why
        entry = self._caches.of("", "persistentvolumes").get("", request.name)
        claim: Object = (dig(entry.obj, "spec", "claimRef") if entry else None) or {}
        for pod in self._pods_of(node) if claim else ():
            if namespace_of(pod) == claim.get("namespace") and str(claim.get("name", "")) in claim_names(pod):
                return None
        return f"no relationship found between node '{node}' and this object"

    def _attachment(self, node: str, request: AccessRequest) -> str | None:
        if (why := self._get_only(request)) is not None:
            return why
        entry = self._caches.of("storage.k8s.io", "volumeattachments").get("", request.name)
        if entry is not None and dig(entry.obj, "spec", "nodeName") == node:
            return None
        return f"no relationship found between node '{node}' and this object"

    def _service_account(self, node: str, request: AccessRequest) -> str | None:
        def names(pod: Object) -> Iterator[str]:
            yield dig(pod, "spec", "serviceAccountName", default="")

        if request.verb == "get" and not request.subresource:
            return self._read_namespaced(node, request, names)
        if request.verb != "create" or not request.name:
            return "can only create tokens for individual service accounts"
        if request.subresource != "token":
            return "can only create token subresource of serviceaccount"
        return self._related(node, request, names)

    def _lease(self, node: str, request: AccessRequest) -> str | None:
        if request.verb not in ("get", "create", "update", "patch", "delete"):
            return "can only get, create, update, patch, or delete a node lease"
        if request.namespace != LEASE_NAMESPACE:
            return f'can only access leases in the "{LEASE_NAMESPACE}" system namespace'
        if request.verb != "create" and request.name != node:
            return "can only access node lease with the same name as the requesting node"
        return None

    def _csi_node(self, node: str, request: AccessRequest) -> str | None:
        if request.subresource:
            return "cannot authorize CSINode subresources"
        if request.verb not in ("get", "create", "update", "patch", "delete"):
            return "can only get, create, update, patch, or delete a CSINode"
        if request.verb != "create" and request.name != node:
            return "can only access CSINode with the same name as the requesting node"
        return None

    def _resource_slice(self, node: str, request: AccessRequest) -> str | None:
        if request.subresource:
            return "cannot authorize ResourceSlice subresources"
        if request.verb == "create":
            return None
        if request.verb in ("get", "update", "patch", "delete"):
            entry = self._caches.of("resource.k8s.io", "resourceslices").get("", request.name)
            if entry is not None and dig(entry.obj, "spec", "nodeName") == node:
                return None
            return f"no relationship found between node '{node}' and this object"
        if request.verb in ("watch", "list", "deletecollection"):
            if _selects(request, "spec.nodeName", node):
                return None
            return "can only list/watch/deletecollection resourceslices with nodeName field selector"
        return (
            "only the following verbs are allowed for a ResourceSlice: "
            "get, watch, list, create, update, patch, delete, deletecollection"
        )

    def _pod_certificate(self, node: str, request: AccessRequest) -> str | None:
        if request.subresource:
            return "nodes may not access the status subresource of PodCertificateRequests"
        if request.verb == "create":
            return None  # what it may contain is for NodeRestriction to say
        if request.verb == "get":
            cache = self._caches.of("certificates.k8s.io", "podcertificaterequests")
            entry = cache.get(request.namespace, request.name)
            if entry is not None and dig(entry.obj, "spec", "nodeName") == node:
                return None
            return f"no relationship found between node '{node}' and this object"
        if request.verb in ("list", "watch"):
            if _selects(request, "spec.nodeName", node):
                return None
            return "can only list/watch podcertificaterequests with nodeName field selector"
        return f"nodes may not {request.verb} podcertificaterequests"

    def _node(self, node: str, request: AccessRequest) -> str | None:
        if request.subresource == "" and request.verb in ("create", "update", "patch"):
            return None
        if request.subresource == "" and request.verb in ("get", "list", "watch"):
            if request.name == node:
                return None
            if not request.name:
                return f"node '{node}' cannot read all nodes, only its own Node object"
            return f"node '{node}' cannot read '{request.name}', only its own Node object"
        if request.subresource == "status" and request.verb in ("update", "patch"):
            return None
        return ""

    def _pod(self, node: str, request: AccessRequest) -> str | None:
        verb = request.verb
        if request.subresource == "status":
            return None if verb in ("update", "patch") else ""
        if request.subresource == "eviction":
            return None if verb == "create" else ""
        if request.subresource:
            return ""
        if verb in ("create", "delete"):
            return None
        if verb not in ("get", "list", "watch"):
            return ""
        if verb != "get" and _selects(request, "spec.nodeName", node):
            return None
        if not request.name:
            return "can only list/watch pods with spec.nodeName field selector"
        entry = self._pods.get(request.namespace, request.name)
        if entry is not None and dig(entry.obj, "spec", "nodeName") == node:
            return None
        return f"no relationship found between node '{node}' and this object"


def _selects(request: AccessRequest, field: str, value: str) -> bool:
    return any(f == field and op in ("=", "==") and v == value for f, op, v in request.fields)


def _volume_secrets(volume: Object, namespace: str) -> Iterator[str]:
    """The secrets of a persistent volume's source that live in the claim's namespace."""
    for source in (volume.get("spec") or {}).values():
        if not isinstance(source, Mapping):
            continue
        for key, ref in source.items():
            if key.lower().endswith("secretref") and isinstance(ref, Mapping):
                if ref.get("namespace", namespace) == namespace:
                    yield ref.get("name", "")
            elif key == "secretName" and source.get("secretNamespace", namespace) == namespace:
                yield ref
