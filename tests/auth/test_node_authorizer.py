"""A kubelet reads what its own pods name and writes its own node, lease and pods."""

from __future__ import annotations

import pytest

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.kinds import GVR, PERSISTENTVOLUMECLAIMS, PERSISTENTVOLUMES, PODS
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.auth.bootstrap import node_rules
from kone.auth.node_authorizer import NodeAuthorizer
from tests.memory_caches import MemoryCaches

POD_CERTIFICATE_REQUESTS = GVR("certificates.k8s.io", "v1", "podcertificaterequests")
N1 = User("system:node:n1", groups=("system:nodes", "system:authenticated"))

SPEC: Object = {
    "nodeName": "n1",
    "serviceAccountName": "sa",
    "imagePullSecrets": [{"name": "pull"}],
    "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "env-all"}}]}],
    "containers": [
        {
            "name": "c",
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "env-one", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "k"}}},
            ],
        }
    ],
    "volumes": [
        {"name": "v", "secret": {"secretName": "mounted"}},
        {"name": "w", "projected": {"sources": [{"secret": {"name": "part"}}, {"configMap": {"name": "root-ca"}}]}},
        {"name": "x", "persistentVolumeClaim": {"claimName": "claim"}},
    ],
}


@pytest.fixture
def authorizer() -> NodeAuthorizer:
    caches = MemoryCaches()
    caches.put(PODS, {"metadata": {"name": "p", "namespace": "ns"}, "spec": SPEC})
    caches.put(
        PODS, {"metadata": {"name": "q", "namespace": "ns"}, "spec": {"nodeName": "n2", "serviceAccountName": "q"}}
    )
    mirror = {"name": "m", "namespace": "ns", "annotations": {"kubernetes.io/config.mirror": "x"}}
    volume = [{"name": "v", "secret": {"secretName": "stolen"}}]
    caches.put(PODS, {"metadata": mirror, "spec": {"nodeName": "n1", "volumes": volume}})
    for node in ("n1", "n2"):
        meta = {"name": f"r{node[1]}", "namespace": "ns"}
        caches.put(POD_CERTIFICATE_REQUESTS, {"metadata": meta, "spec": {"nodeName": node}})
    claim = {"metadata": {"name": "claim", "namespace": "ns"}, "spec": {"volumeName": "pv"}}
    caches.put(PERSISTENTVOLUMECLAIMS, claim)
    csi = {"nodePublishSecretRef": {"name": "csi-secret", "namespace": "ns"}}
    spec = {"claimRef": {"name": "claim", "namespace": "ns"}, "csi": csi}
    caches.put(PERSISTENTVOLUMES, {"metadata": {"name": "pv"}, "spec": spec})
    return NodeAuthorizer(caches, node_rules())


@pytest.mark.parametrize("name", ["pull", "env-all", "env-one", "mounted", "part", "csi-secret"])
def test_secrets_that_its_pods_name(authorizer: NodeAuthorizer, name: str) -> None:
    assert authorizer.allowed(N1, AccessRequest("get", resource="secrets", namespace="ns", name=name)) == (True, "")
    other = User("system:node:n2", groups=("system:nodes",))
    assert not authorizer.allowed(other, AccessRequest("get", resource="secrets", namespace="ns", name=name))[0]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (
            AccessRequest("get", resource="secrets", namespace="ns", name="foreign"),
            "no relationship found between node 'n1' and this object",
        ),
        (
            AccessRequest("get", resource="secrets", namespace="ns", name="stolen"),
            "no relationship found between node 'n1' and this object",
        ),
        (AccessRequest("list", resource="secrets", namespace="ns"), "No Object name found"),
        (
            AccessRequest("delete", resource="secrets", namespace="ns", name="pull"),
            "can only read resources of this type",
        ),
        (AccessRequest("list", resource="nodes"), "node 'n1' cannot read all nodes, only its own Node object"),
        (
            AccessRequest("get", resource="nodes", name="n2"),
            "node 'n1' cannot read 'n2', only its own Node object",
        ),
        (AccessRequest("list", resource="pods"), "can only list/watch pods with spec.nodeName field selector"),
        (
            AccessRequest("update", "coordination.k8s.io", resource="leases", namespace="kube-node-lease", name="n2"),
            "can only access node lease with the same name as the requesting node",
        ),
        (
            AccessRequest("get", "coordination.k8s.io", resource="leases", namespace="kube-system", name="n1"),
            'can only access leases in the "kube-node-lease" system namespace',
        ),
        (
            AccessRequest("create", resource="serviceaccounts", subresource="token", namespace="ns", name="q"),
            "no relationship found between node 'n1' and this object",
        ),
        (AccessRequest("delete", resource="nodes", name="n1"), ""),
        (
            AccessRequest("get", "certificates.k8s.io", resource="podcertificaterequests", namespace="ns", name="r2"),
            "no relationship found between node 'n1' and this object",
        ),
        (
            AccessRequest("list", "certificates.k8s.io", resource="podcertificaterequests"),
            "can only list/watch podcertificaterequests with nodeName field selector",
        ),
        (
            AccessRequest("update", "certificates.k8s.io", resource="podcertificaterequests", subresource="status"),
            "nodes may not access the status subresource of PodCertificateRequests",
        ),
        (
            AccessRequest("delete", "certificates.k8s.io", resource="podcertificaterequests"),
            "nodes may not delete podcertificaterequests",
        ),
    ],
)
def test_refused(authorizer: NodeAuthorizer, request_: AccessRequest, why: str) -> None:
    assert authorizer.allowed(N1, request_) == (False, why)


@pytest.mark.parametrize(
    "request_",
    [
        AccessRequest("watch", resource="configmaps", namespace="ns", name="root-ca"),
        AccessRequest("get", resource="configmaps", namespace="ns", name="conf"),
        AccessRequest("get", resource="persistentvolumeclaims", namespace="ns", name="claim"),
        AccessRequest("get", resource="persistentvolumes", name="pv"),
        AccessRequest("create", resource="serviceaccounts", subresource="token", namespace="ns", name="sa"),
        AccessRequest("patch", resource="nodes", subresource="status", name="n1"),
        AccessRequest("create", resource="nodes"),
        AccessRequest("watch", resource="nodes", name="n1"),
        AccessRequest("list", resource="pods", fields=(("spec.nodeName", "=", "n1"),)),
        AccessRequest("get", resource="pods", namespace="ns", name="p"),
        AccessRequest("patch", resource="pods", subresource="status", namespace="ns", name="p"),
        AccessRequest("update", "coordination.k8s.io", resource="leases", namespace="kube-node-lease", name="n1"),
        AccessRequest("create", resource="events", namespace="ns"),
        AccessRequest("list", resource="services"),
        AccessRequest("create", "certificates.k8s.io", resource="podcertificaterequests", namespace="ns"),
        AccessRequest("get", "certificates.k8s.io", resource="podcertificaterequests", namespace="ns", name="r1"),
        AccessRequest(
            "watch",
            "certificates.k8s.io",
            resource="podcertificaterequests",
            fields=(("spec.nodeName", "=", "n1"),),
        ),
    ],
)
def test_allowed(authorizer: NodeAuthorizer, request_: AccessRequest) -> None:
    assert authorizer.allowed(N1, request_)[0]


def test_others_are_not_its_matter(authorizer: NodeAuthorizer) -> None:
    request = AccessRequest("get", resource="nodes", name="n1")
    assert authorizer.allowed(User("ann"), request) == (False, "")
    nameless = User("kubelet", groups=("system:nodes",))
    assert authorizer.allowed(nameless, request) == (False, 'unknown node for user "kubelet"')
