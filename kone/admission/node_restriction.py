"""NodeRestriction: a kubelet writes its own node, its own lease and the status of its own pods, and opens no doors.

What it may ask for at all is the Node authorizer's matter; here is what its writes may contain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kone.admission.plugin import Attributes, Authorizer, Caches, Plugin
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import internal_error, not_found
from kone.apimachinery.objects import (
    Object,
    annotations_of,
    dig,
    labels_of,
    name_of,
    namespace_of,
    owner_references,
    uid_of,
)
from kone.apimachinery.pod_references import api_object_reference, claim_names
from kone.apimachinery.users import node_identity

MIRROR_POD = "kubernetes.io/config.mirror"
LEASE_NAMESPACE = "kube-node-lease"
RESTRICTED_NAMESPACE = "node-restriction.kubernetes.io"
# Labels under kubernetes.io and k8s.io that a kubelet may put on its node (kubelet/pkg/apis/well_known_labels.go).
KUBELET_LABELS = frozenset(
    {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
    }
)
KUBELET_LABEL_NAMESPACES = ("kubelet.kubernetes.io", "node.kubernetes.io")

AUDIENCE_VERB = "request-serviceaccounts-token-audience"
"""Who is granted it on a resource of the audience's name may have tokens for it that no pod's volume asks for."""

Check = Callable[[str, Attributes], None]


class NodeRestriction(Plugin):
    name = "NodeRestriction"
    operations = frozenset({"CREATE", "UPDATE", "DELETE"})
    subresources = None

    def __init__(self, caches: Caches, authorizer: Authorizer) -> None:
        self._authorizer = authorizer
        self._pods = caches.of("", "pods")
        self._nodes = caches.of("", "nodes")
        self._accounts = caches.of("", "serviceaccounts")
        self._claims = caches.of("", "persistentvolumeclaims")
        self._volumes = caches.of("", "persistentvolumes")
        self._drivers = caches.of("storage.k8s.io", "csidrivers")
        self._checks: Mapping[tuple[str, str], Check] = {
            ("", "pods"): self._pod,
            ("", "nodes"): self._node,
            ("", "persistentvolumeclaims"): self._claim,
            ("", "serviceaccounts"): self._token,
            ("coordination.k8s.io", "leases"): self._lease,
            ("storage.k8s.io", "csinodes"): self._csi_node,
            ("resource.k8s.io", "resourceslices"): self._resource_slice,
            ("certificates.k8s.io", "podcertificaterequests"): self._pod_certificate,
        }

    def handles(self, a: Attributes) -> bool:
        return super().handles(a) and a.group_resource in self._checks

    async def mutate(self, a: Attributes) -> None:
        node = node_identity(a.user)
        if node is None:
            return
        if not node:
            raise a.refuse(f'could not determine node from user "{a.user.name}"')
        self._checks[a.group_resource](node, a)

    # -- pods ----------------------------------------------------------------------------------------------------

    def _pod(self, node: str, a: Attributes) -> None:
        if a.subresource == "status":
            self._pod_status(node, a)
        elif a.subresource == "eviction":
            if dig(self._existing_pod(a, a.name), "spec", "nodeName") != node:
                raise a.refuse(f"node {node} can only evict pods with spec.nodeName set to itself")
        elif a.subresource:
            raise a.refuse(f"unexpected pod subresource \"{a.subresource}\", only 'status' and 'eviction' are allowed")
        elif a.operation == "CREATE":
            self._new_pod(node, a)
        elif a.operation == "DELETE":
            if dig(self._existing_pod(a, a.name), "spec", "nodeName") != node:
                raise a.refuse(f'node "{node}" can only delete pods with spec.nodeName set to itself')
        else:
            raise a.refuse(
                f'unexpected operation "{a.operation}", node "{node}" can only create and delete mirror pods'
            )

    def _pod_status(self, node: str, a: Attributes) -> None:
        old = a.old or {}
        if dig(old, "spec", "nodeName") != node:
            raise a.refuse(f'node "{node}" can only update pod status for pods with spec.nodeName set to itself')
        if labels_of(old) != labels_of(a.object):
            raise a.refuse(f'node "{node}" cannot update labels through pod status')
        for key, words in (
            ("resourceClaimStatuses", "resource claim statues"),
            ("extendedResourceClaimStatus", "extended resource claim status"),
            ("nodeAllocatableResourceClaimStatuses", "node allocatable resource claim statuses"),
        ):
            if (dig(old, "status", key) or None) != (dig(a.obj, "status", key) or None):
                raise a.refuse(f'node "{node}" cannot update {words}')

    def _new_pod(self, node: str, a: Attributes) -> None:
        pod = a.object
        if MIRROR_POD not in annotations_of(pod):
            raise a.refuse(f'pod does not have "{MIRROR_POD}" annotation, node "{node}" can only create mirror pods')
        if dig(pod, "spec", "nodeName") != node:
            raise a.refuse(f'node "{node}" can only create pods with spec.nodeName set to itself')
        owners = owner_references(pod)
        if len(owners) > 1:
            raise a.refuse(f'node "{node}" can only create pods with a single owner reference set to itself')
        if not owners or (owners[0].get("apiVersion"), owners[0].get("kind"), owners[0].get("name")) != (
            "v1",
            "Node",
            node,
        ):
            raise a.refuse(f'node "{node}" can only create pods with an owner reference set to itself')
        owner = owners[0]
        if not owner.get("controller"):
            raise a.refuse(f'node "{node}" can only create pods with a controller owner reference set to itself')
        if owner.get("blockOwnerDeletion"):
            raise a.refuse(f'node "{node}" must not set blockOwnerDeletion on an owner reference')
        entry = self._nodes.get("", node)
        if entry is None:
            raise not_found("nodes", node)
        if owner.get("uid") != uid_of(entry.obj):
            raise a.refuse(f"node {node} UID mismatch: expected {owner.get('uid', '')} got {uid_of(entry.obj)}")
        if referenced := api_object_reference(pod):
            raise a.refuse(f'node "{node}" can not create pods that reference {referenced}')

    def _existing_pod(self, a: Attributes, name: str) -> Object:
        entry = self._pods.get(a.namespace, name)
        if entry is None:
            raise not_found("pods", name)
        return entry.obj

    # -- nodes ---------------------------------------------------------------------------------------------------

    def _node(self, node: str, a: Attributes) -> None:
        if a.name != node:
            raise a.refuse(f'node "{node}" is not allowed to modify node "{a.name}"')
        if a.operation == "CREATE":
            if forbidden := _forbidden_labels(labels_of(a.object), {}):
                raise a.refuse(f'node "{node}" is not allowed to set the following labels: {", ".join(forbidden)}')
        elif a.operation == "UPDATE":
            old = a.old or {}
            if (dig(a.obj, "spec", "taints") or []) != (dig(old, "spec", "taints") or []):
                raise a.refuse(f'node "{node}" is not allowed to modify taints')
            if owner_references(a.object) != owner_references(old):
                raise a.refuse(f'node "{node}" is not allowed to modify ownerReferences')
            if forbidden := _forbidden_labels(labels_of(a.object), labels_of(old)):
                raise a.refuse(f"is not allowed to modify labels: {', '.join(forbidden)}")

    # -- the rest ------------------------------------------------------------------------------------------------

    def _claim(self, node: str, a: Attributes) -> None:
        if a.subresource != "status":
            raise a.refuse("may only update PVC status")
        writable = ("capacity", "conditions", "allocatedResources", "allocatedResourceStatuses")

        def rest(claim: Object) -> Object:
            meta = {k: v for k, v in claim["metadata"].items() if k not in ("resourceVersion", "managedFields")}
            status = {k: v for k, v in (claim.get("status") or {}).items() if k not in writable}
            return {**claim, "metadata": meta, "status": status}

        if rest(a.object) != rest(a.old or {"metadata": {}}):
            raise a.refuse(
                f'node "{node}" is not allowed to update fields other than status.quantity and status.conditions'
            )

    def _token(self, node: str, a: Attributes) -> None:
        if a.operation != "CREATE" or a.subresource != "token":
            return
        ref = dig(a.obj, "spec", "boundObjectRef", default={})
        if ref.get("apiVersion") != "v1" or ref.get("kind") != "Pod" or not ref.get("name"):
            raise a.refuse("node requested token not bound to a pod")
        if not ref.get("uid"):
            raise a.refuse("node requested token with a pod binding without a uid")
        pod = self._existing_pod(a, ref["name"])
        if ref["uid"] != uid_of(pod):
            raise a.refuse(
                f"the UID in the bound object reference ({ref['uid']}) does not match the UID in record. "
                "The object might have been deleted and then recreated"
            )
        if dig(pod, "spec", "nodeName") != node:
            raise a.refuse("node requested token bound to a pod scheduled on a different node")
        audiences = dig(a.obj, "spec", "audiences", default=[])
        if len(audiences) > 1:
            raise a.refuse("node may only request 0 or 1 audiences")
        audience = audiences[0] if audiences else ""
        if audience in _audiences_of(pod) or self._driver_wants(pod, audience):
            return
        grant = AccessRequest(AUDIENCE_VERB, "", "v1", audience, "", a.namespace, a.name)
        if not self._authorizer.allowed(a.user, grant)[0]:
            raise a.refuse(f'{a.user.name} is not authorized to request tokens for audience "{audience}"')

    def _driver_wants(self, pod: Object, audience: str) -> bool:
        """Whether a CSI driver of one of the pod's volumes asks for such tokens."""
        for driver in self._csi_drivers_of(pod):
            found = self._drivers.get("", driver)
            requests = dig(found.obj, "spec", "tokenRequests", default=()) if found is not None else ()
            if any(request.get("audience", "") == audience for request in requests):
                return True
        return False

    def _csi_drivers_of(self, pod: Object) -> Iterator[str]:
        for volume in dig(pod, "spec", "volumes", default=()):
            if driver := dig(volume, "csi", "driver"):
                yield driver
        for name in claim_names(pod):
            claim = self._claims.get(namespace_of(pod), name)
            bound_to = dig(claim.obj, "spec", "volumeName", default="") if claim is not None else ""
            found = self._volumes.get("", bound_to) if bound_to else None
            if found is not None and (driver := dig(found.obj, "spec", "csi", "driver")):
                yield driver

    def _pod_certificate(self, node: str, a: Attributes) -> None:
        """A kubelet asks for a pod of its own, by what that pod is and for a signer that the pod names."""
        if a.operation != "CREATE":
            raise a.refuse(f"unexpected operation {a.operation}")
        if a.subresource:
            raise a.refuse(f"unexpected subresource {a.subresource}")
        spec = a.object["spec"]
        if spec.get("nodeName") != node:
            raise a.refuse(
                f'PodCertificateRequest.Spec.NodeName="{spec.get("nodeName", "")}", which is not the requesting node '
                f'"{node}"'
            )
        subject = f'PodCertificateRequest for pod "{a.namespace}/{spec.get("podName", "")}"'
        entry = self._nodes.get("", node)
        if entry is None:
            raise not_found("nodes", node)
        if uid_of(entry.obj) != spec.get("nodeUID"):
            raise internal_error(
                f'{subject} names node UID "{spec.get("nodeUID", "")}", inconsistent with the running node '
                f'("{uid_of(entry.obj)}")'
            )
        pod = self._existing_pod(a, spec.get("podName", ""))
        if uid_of(pod) != spec.get("podUID"):
            raise internal_error(
                f'{subject} contains pod UID ("{spec.get("podUID", "")}") which differs from running pod '
                f'"{uid_of(pod)}"'
            )
        self._asks_for_pod(a, pod, subject)

    def _asks_for_pod(self, a: Attributes, pod: Object, subject: str) -> None:
        spec, named = a.object["spec"], f'pod "{a.namespace}/{name_of(pod)}"'
        if dig(pod, "spec", "nodeName") != spec["nodeName"]:
            raise a.refuse(f'{named} is not running on node "{spec["nodeName"]}" named in the PodCertificateRequest')
        if MIRROR_POD in annotations_of(pod):
            raise a.refuse(f"{named} is a mirror pod")
        account, own = spec.get("serviceAccountName", ""), dig(pod, "spec", "serviceAccountName", default="")
        if account != own:
            raise a.refuse(
                f'{subject} contains serviceAccountName ("{account}") that differs from running pod ("{own}")'
            )
        entry = self._accounts.get(a.namespace, account)
        if entry is None:
            raise not_found("serviceaccounts", account)
        if uid_of(entry.obj) != spec.get("serviceAccountUID"):
            raise internal_error(
                f'{subject} names service account UID "{spec.get("serviceAccountUID", "")}", which differs from the '
                f'running service account ("{uid_of(entry.obj)}")'
            )
        if spec.get("signerName") not in _signers_of(pod):
            raise a.refuse(
                f'{named} does not mount a podCertificate projected volume for signer "{spec.get("signerName", "")}"'
            )

    def _lease(self, node: str, a: Attributes) -> None:
        if a.namespace != LEASE_NAMESPACE:
            raise a.refuse(f'can only access leases in the "{LEASE_NAMESPACE}" system namespace')
        if _name(a) != node:
            raise a.refuse("can only access node lease with the same name as the requesting node")

    def _csi_node(self, node: str, a: Attributes) -> None:
        if _name(a) != node:
            raise a.refuse("can only access CSINode with the same name as the requesting node")

    def _resource_slice(self, node: str, a: Attributes) -> None:
        obj = a.obj if a.operation == "CREATE" else a.old if a.operation == "DELETE" else None
        if obj is not None and dig(obj, "spec", "nodeName") != node:
            verb = "create" if a.operation == "CREATE" else "delete"
            raise a.refuse(f"can only {verb} ResourceSlice with the same NodeName as the requesting node")


def _name(a: Attributes) -> str:
    return name_of(a.object) if a.operation == "CREATE" else a.name


def _audiences_of(pod: Object) -> set[str]:
    """The audiences that the pod's projected tokens name; "" is the API server's own."""
    return {
        source["serviceAccountToken"].get("audience", "")
        for volume in dig(pod, "spec", "volumes", default=())
        for source in dig(volume, "projected", "sources", default=())
        if source.get("serviceAccountToken") is not None
    }


def _forbidden_labels(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    """Of the labels that differ, those that a kubelet may not touch."""
    changed = {key for key in new.keys() | old.keys() if new.get(key) != old.get(key)}
    return sorted(key for key in changed if _is_forbidden(key))


def _is_forbidden(key: str) -> bool:
    namespace = key.partition("/")[0] if "/" in key else ""
    if _is_within(namespace, RESTRICTED_NAMESPACE):
        return True
    if not (_is_within(namespace, "kubernetes.io") or _is_within(namespace, "k8s.io")):
        return False
    return key not in KUBELET_LABELS and not any(_is_within(namespace, n) for n in KUBELET_LABEL_NAMESPACES)


def _is_within(namespace: str, domain: str) -> bool:
    return namespace == domain or namespace.endswith("." + domain)


def _signers_of(pod: Object) -> set[str]:
    """Whose certificates a pod's volumes want."""
    return {
        source["podCertificate"].get("signerName", "")
        for volume in pod["spec"].get("volumes") or ()
        for source in dig(volume, "projected", "sources", default=())
        if source.get("podCertificate")
    }
