"""Limits, nodes, storage and ingress classes, certificates, and the chain itself."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from kone.admission.certificates import CertificateApproval, CertificateSigning, CertificateSubjectRestriction
from kone.admission.chain import Doors, default_chain
from kone.admission.choice import ORDER
from kone.admission.default_classes import DefaultIngressClass, DefaultStorageClass
from kone.admission.device_admin_access import DeviceAdminAccess
from kone.admission.limit_ranger import LimitRanger
from kone.admission.node_restriction import AUDIENCE_VERB, NodeRestriction
from kone.admission.persistent_volume_claim_resize import PersistentVolumeClaimResize
from kone.admission.plugin import Attributes
from kone.admission.pod_topology_labels import PodTopologyLabels
from kone.admission.storage_object_in_use_protection import StorageObjectInUseProtection
from kone.admission.taint_nodes_by_condition import TaintNodesByCondition
from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import (
    CLUSTERROLEBINDINGS,
    CLUSTERROLES,
    CSIDRIVERS,
    GVR,
    LEASES,
    LIMITRANGES,
    NAMESPACES,
    NODES,
    PERSISTENTVOLUMECLAIMS,
    PERSISTENTVOLUMES,
    PODS,
    ROLES,
    SERVICEACCOUNTS,
)
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.apiserver.webhook_client import WebhookClient
from kone.auth.authorizer import Authorizer
from kone.registry.resource import Registry
from tests.admission.support import ANN, admit, pod, refusal, write
from tests.memory_caches import MemoryCaches

REQUESTS = GVR("certificates.k8s.io", "v1", "certificatesigningrequests")
POD_REQUESTS = GVR("certificates.k8s.io", "v1", "podcertificaterequests")
STORAGECLASSES = GVR("storage.k8s.io", "v1", "storageclasses")
INGRESSES = GVR("networking.k8s.io", "v1", "ingresses")
N1 = User("system:node:n1", groups=("system:nodes", "system:authenticated"))


@pytest.fixture
def caches() -> MemoryCaches:
    return MemoryCaches()


# -- LimitRanger -------------------------------------------------------------------------------------------------


def limits(caches: MemoryCaches, *items: Object) -> LimitRanger:
    caches.put(LIMITRANGES, {"metadata": {"name": "l", "namespace": "ns"}, "spec": {"limits": list(items)}})
    return LimitRanger(caches)


async def test_containers_get_default_requests_and_limits(caches: MemoryCaches) -> None:
    plugin = limits(
        caches,
        {"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}},
    )
    made = pod(containers=[{"name": "c"}, {"name": "d", "resources": {"limits": {"cpu": "1"}}}])
    admitted = (await admit(plugin, write("CREATE", made))).object
    assert [container["resources"] for container in admitted["spec"]["containers"]] == [
        {"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "1Gi"}},
        {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "1Gi"}},
    ]
    assert admitted["metadata"]["annotations"] == {
        "kubernetes.io/limit-ranger": (
            "LimitRanger plugin set: cpu request for container c; cpu, memory limit for container c; "
            "cpu request for container d; memory limit for container d"
        )
    }


@pytest.mark.parametrize(
    ("item", "resources", "why"),
    [
        (
            {"type": "Container", "max": {"cpu": "1"}},
            {},
            "maximum cpu usage per Container is 1.  No limit is specified",
        ),
        (
            {"type": "Container", "max": {"cpu": "1"}},
            {"limits": {"cpu": "2"}},
            "maximum cpu usage per Container is 1, but limit is 2",
        ),
        (
            {"type": "Container", "min": {"memory": "1Gi"}},
            {"requests": {"memory": "500Mi"}},
            "minimum memory usage per Container is 1Gi, but request is 500Mi",
        ),
        (
            {"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}},
            {"requests": {"cpu": "100m"}, "limits": {"cpu": "300m"}},
            "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
        ),
        (
            {"type": "Pod", "max": {"cpu": "1"}},
            {"limits": {"cpu": "1500m"}},
            "maximum cpu usage per Pod is 1, but limit is 1500m",
        ),
    ],
)
async def test_bounds(caches: MemoryCaches, item: Object, resources: Object, why: str) -> None:
    made = pod(containers=[{"name": "c", "resources": resources}])
    error = await refusal(limits(caches, item), write("CREATE", made))
    assert error.message == f'pods "p" is forbidden: {why}'


async def test_claims_have_bounds_too(caches: MemoryCaches) -> None:
    plugin = limits(caches, {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}})
    claim = {"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": "2Gi"}}}}
    error = await refusal(plugin, write("CREATE", claim, PERSISTENTVOLUMECLAIMS))
    assert error.message.endswith("maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi")


# -- nodes -------------------------------------------------------------------------------------------------------


async def test_a_new_node_is_not_ready() -> None:
    node = {"metadata": {"name": "n1"}}
    taints = (await admit(TaintNodesByCondition(), write("CREATE", node, NODES))).object["spec"]["taints"]
    assert taints == [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
    again = {"metadata": {"name": "n1"}, "spec": {"taints": list(taints)}}
    assert (await admit(TaintNodesByCondition(), write("CREATE", again, NODES))).object["spec"]["taints"] == taints


def node(name: str = "n1", labels: dict[str, str] | None = None, **spec: Any) -> Object:
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": spec}


@pytest.mark.parametrize(
    ("new", "old", "why"),
    [
        (node("n2"), node("n2"), 'nodes "n2" is forbidden: node "n1" is not allowed to modify node "n2"'),
        (
            node(taints=[]),
            node(taints=[{"key": "k"}]),
            'nodes "n1" is forbidden: node "n1" is not allowed to modify taints',
        ),
        (
            node(labels={"node-role.kubernetes.io/control-plane": ""}),
            node(),
            'nodes "n1" is forbidden: is not allowed to modify labels: node-role.kubernetes.io/control-plane',
        ),
        (
            node(labels={"x.node-restriction.kubernetes.io/a": "b"}),
            None,
            'nodes "n1" is forbidden: node "n1" is not allowed to set the following labels: '
            "x.node-restriction.kubernetes.io/a",
        ),
    ],
)
async def test_what_a_node_may_not_write_of_itself(
    caches: MemoryCaches, new: Object, old: Object | None, why: str
) -> None:
    change = write("CREATE" if old is None else "UPDATE", new, NODES, old=old, user=N1, namespace="")
    assert (await refusal(NodeRestriction(caches, Authorizer(caches, [])), change)).message == why


async def test_what_a_node_may_write(caches: MemoryCaches) -> None:
    plugin = NodeRestriction(caches, Authorizer(caches, []))
    labels = {
        "kubernetes.io/hostname": "n1",
        "beta.kubernetes.io/os": "linux",
        "a.kubelet.kubernetes.io/b": "c",
        "x": "y",
    }
    await admit(plugin, write("CREATE", node(labels=labels), NODES, user=N1))
    lease = {"metadata": {"name": "n1"}}
    await admit(plugin, write("UPDATE", lease, LEASES, old=lease, user=N1, namespace="kube-node-lease"))
    mine = pod(nodeName="n1")
    await admit(plugin, write("UPDATE", mine, PODS, old=mine, subresource="status", user=N1))


async def test_nobody_else_is_restricted(caches: MemoryCaches) -> None:
    await admit(
        NodeRestriction(caches, Authorizer(caches, [])),
        write("UPDATE", node(taints=[]), NODES, old=node(taints=[{"key": "k"}])),
    )


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({}, "node requested token not bound to a pod"),
        (
            {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}},
            "node requested token with a pod binding without a uid",
        ),
        (
            {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "q", "uid": "u"}},
            "node requested token bound to a pod scheduled on a different node",
        ),
        (
            {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}, "audiences": ["vault"]},
            'system:node:n1 is not authorized to request tokens for audience "vault"',
        ),
    ],
)
async def test_tokens_that_a_node_may_not_have(caches: MemoryCaches, spec: Object, why: str) -> None:
    source = {"serviceAccountToken": {"path": "t"}}
    mine = pod("p", nodeName="n1", volumes=[{"name": "v", "projected": {"sources": [source]}}])
    for made in (mine, pod("q", nodeName="n2")):
        made["metadata"]["uid"] = "u"
        caches.put(PODS, made)
    request = {"kind": "TokenRequest", "metadata": {}, "spec": spec}
    asked = write("CREATE", request, SERVICEACCOUNTS, subresource="token", name="sa", user=N1)
    error = await refusal(NodeRestriction(caches, Authorizer(caches, [])), asked)
    assert error.message == f'serviceaccounts "sa" is forbidden: {why}'
    good = {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}}
    asked = write("CREATE", {"metadata": {}, "spec": good}, SERVICEACCOUNTS, subresource="token", name="sa", user=N1)
    await admit(NodeRestriction(caches, Authorizer(caches, [])), asked)


async def test_a_node_may_have_tokens_of_an_audience_that_it_is_granted(caches: MemoryCaches) -> None:
    rule = {"apiGroups": [""], "resources": ["vault"], "resourceNames": ["sa"], "verbs": [AUDIENCE_VERB]}
    caches.put(CLUSTERROLES, {"metadata": {"name": "vault"}, "rules": [rule]})
    group = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "vault"}
    caches.put(CLUSTERROLEBINDINGS, {"metadata": {"name": "vault"}, "subjects": [group], "roleRef": role})
    caches.put(PODS, {"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"nodeName": "n1"}})
    plugin = NodeRestriction(caches, Authorizer(caches, []))
    bound = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}

    def asked(account: str) -> Attributes:
        request: Object = {"metadata": {}, "spec": {"boundObjectRef": bound, "audiences": ["vault"]}}
        return write("CREATE", request, SERVICEACCOUNTS, subresource="token", name=account, user=N1)

    await admit(plugin, asked("sa"))
    refused = await refusal(plugin, asked("other"))
    assert refused.message.endswith('system:node:n1 is not authorized to request tokens for audience "vault"')


@pytest.mark.parametrize("by_claim", [False, True], ids=["inline", "by a claim"])
async def test_a_node_may_have_tokens_that_a_csi_driver_of_the_pod_asks_for(
    caches: MemoryCaches, by_claim: bool
) -> None:
    source: Object = {"persistentVolumeClaim": {"claimName": "c"}} if by_claim else {"csi": {"driver": "d"}}
    mine = pod("p", nodeName="n1", volumes=[{"name": "v", **source}])
    mine["metadata"]["uid"] = "u"
    caches.put(PODS, mine)
    claim = {"metadata": {"name": "c", "namespace": mine["metadata"]["namespace"]}, "spec": {"volumeName": "pv"}}
    caches.put(PERSISTENTVOLUMECLAIMS, claim)
    caches.put(PERSISTENTVOLUMES, {"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "d"}}})
    caches.put(CSIDRIVERS, {"metadata": {"name": "d"}, "spec": {"tokenRequests": [{"audience": "vault"}]}})

    def asked(audience: str) -> Attributes:
        reference = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}
        spec = {"boundObjectRef": reference, "audiences": [audience]}
        return write("CREATE", {"metadata": {}, "spec": spec}, SERVICEACCOUNTS, subresource="token", name="sa", user=N1)

    await admit(NodeRestriction(caches, Authorizer(caches, [])), asked("vault"))
    error = await refusal(NodeRestriction(caches, Authorizer(caches, [])), asked("bank"))
    assert error.message.endswith('is not authorized to request tokens for audience "bank"')


GOOD_REQUEST = {
    "nodeName": "n1",
    "nodeUID": "n",
    "podName": "p",
    "podUID": "u",
    "serviceAccountName": "robot",
    "serviceAccountUID": "s",
    "signerName": "example.com/a",
}
SUBJECT = 'PodCertificateRequest for pod "ns/p"'


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"nodeName": "n2"}, 'PodCertificateRequest.Spec.NodeName="n2", which is not the requesting node "n1"'),
        ({"nodeUID": "x"}, f'{SUBJECT} names node UID "x", inconsistent with the running node ("n")'),
        ({"podUID": "x"}, f'{SUBJECT} contains pod UID ("x") which differs from running pod "u"'),
        ({"podName": "q"}, 'pod "ns/q" is not running on node "n1" named in the PodCertificateRequest'),
        ({"podName": "m"}, 'pod "ns/m" is a mirror pod'),
        (
            {"serviceAccountName": "x"},
            f'{SUBJECT} contains serviceAccountName ("x") that differs from running pod ("robot")',
        ),
        (
            {"serviceAccountUID": "x"},
            f'{SUBJECT} names service account UID "x", which differs from the running service account ("s")',
        ),
        (
            {"signerName": "example.com/b"},
            'pod "ns/p" does not mount a podCertificate projected volume for signer "example.com/b"',
        ),
        ({}, ""),
    ],
)
async def test_certificates_that_a_node_may_ask_for(caches: MemoryCaches, change: Object, why: str) -> None:
    caches.put(NODES, {"metadata": {"name": "n1", "uid": "n"}})
    caches.put(SERVICEACCOUNTS, {"metadata": {"name": "robot", "namespace": "ns", "uid": "s"}})
    source = {"podCertificate": {"signerName": "example.com/a", "keyType": "ED25519"}}
    wanted = [{"name": "v", "projected": {"sources": [source]}}]
    for name, node_name in (("p", "n1"), ("m", "n1"), ("q", "n2")):
        made = pod(name, nodeName=node_name, serviceAccountName="robot", volumes=wanted)
        made["metadata"]["uid"] = "u"
        if name == "m":
            made["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
        caches.put(PODS, made)
    request = {"metadata": {"name": "r"}, "spec": {**GOOD_REQUEST, **change}}
    asked = write("CREATE", request, POD_REQUESTS, user=N1)
    if why:
        assert (await refusal(NodeRestriction(caches, Authorizer(caches, [])), asked)).message.endswith(f": {why}")
    else:
        await admit(NodeRestriction(caches, Authorizer(caches, [])), asked)


async def test_a_bound_pod_carries_its_nodes_zone(caches: MemoryCaches) -> None:
    caches.put(NODES, node(labels={"topology.kubernetes.io/zone": "z", "other": "x"}))
    binding = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}}
    bound = await admit(PodTopologyLabels(caches), write("CREATE", binding, PODS, subresource="binding"))
    assert bound.object["metadata"]["labels"] == {"topology.kubernetes.io/zone": "z"}


# -- storage and ingress -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "finalizer"),
    [(PERSISTENTVOLUMES, "kubernetes.io/pv-protection"), (PERSISTENTVOLUMECLAIMS, "kubernetes.io/pvc-protection")],
)
async def test_storage_in_use_is_protected(resource: GVR, finalizer: str) -> None:
    made = {"metadata": {"name": "s", "finalizers": ["example.com/f"]}}
    admitted = await admit(StorageObjectInUseProtection(), write("CREATE", made, resource))
    assert admitted.object["metadata"]["finalizers"] == ["example.com/f", finalizer]


def storage_class(name: str, made: str, mark: str = "true", **more: Any) -> Object:
    annotations = {"storageclass.kubernetes.io/is-default-class": mark}
    return {"metadata": {"name": name, "creationTimestamp": made, "annotations": annotations}, **more}


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "newer"), ({"storageClassName": ""}, ""), ({"storageClassName": "x"}, "x")]
)
async def test_the_newest_default_storage_class(caches: MemoryCaches, given: Object, expected: str) -> None:
    caches.put(STORAGECLASSES, storage_class("older", "2026-01-01T00:00:00Z"))
    caches.put(STORAGECLASSES, storage_class("newer", "2026-02-01T00:00:00Z"))
    caches.put(STORAGECLASSES, storage_class("plain", "2026-03-01T00:00:00Z", "false"))
    claim = {"metadata": {"name": "c"}, "spec": dict(given)}
    admitted = await admit(DefaultStorageClass(caches), write("CREATE", claim, PERSISTENTVOLUMECLAIMS))
    assert admitted.object["spec"]["storageClassName"] == expected


async def test_the_default_ingress_class(caches: MemoryCaches) -> None:
    annotations = {"ingressclass.kubernetes.io/is-default-class": "true"}
    caches.put(
        GVR("networking.k8s.io", "v1", "ingressclasses"), {"metadata": {"name": "ic", "annotations": annotations}}
    )
    admitted = await admit(DefaultIngressClass(caches), write("CREATE", {"metadata": {"name": "i"}}, INGRESSES))
    assert admitted.object["spec"] == {"ingressClassName": "ic"}


@pytest.mark.parametrize(
    ("phase", "grows", "why"),
    [
        ("Pending", True, "Only bound persistent volume claims can be expanded"),
        (
            "Bound",
            False,
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support "
            "resize",
        ),
        ("Bound", True, ""),
    ],
)
async def test_claims_grow_where_their_class_allows_it(caches: MemoryCaches, phase: str, grows: bool, why: str) -> None:
    caches.put(STORAGECLASSES, storage_class("sc", "2026-01-01T00:00:00Z", allowVolumeExpansion=grows))

    def claim(size: str) -> Object:
        spec = {"storageClassName": "sc", "resources": {"requests": {"storage": size}}}
        return {"metadata": {"name": "c"}, "spec": spec, "status": {"phase": phase}}

    change = write("UPDATE", claim("2Gi"), PERSISTENTVOLUMECLAIMS, old=claim("1Gi"))
    if why:
        assert (await refusal(PersistentVolumeClaimResize(caches), change)).message.endswith(why)
    else:
        await admit(PersistentVolumeClaimResize(caches), change)


# -- certificates ------------------------------------------------------------------------------------------------


class Signers:
    """Allows the named verbs on the named signers."""

    def __init__(self, *allowed: tuple[str, str]) -> None:
        self._allowed = allowed

    escalation: Any = None

    def allowed(self, user: User, request: Any) -> tuple[bool, str]:
        return (request.verb, request.name) in self._allowed, ""


@pytest.mark.parametrize(
    ("allowed", "good"),
    [(("approve", "example.com/s"), True), (("approve", "example.com/*"), True), (("sign", "example.com/s"), False)],
)
async def test_who_may_approve(allowed: tuple[str, str], good: bool) -> None:
    request = {"kind": "CertificateSigningRequest", "metadata": {"name": "r"}, "spec": {"signerName": "example.com/s"}}
    approval = write("UPDATE", request, REQUESTS, old=request, subresource="approval")
    plugin = CertificateApproval(Signers(allowed))
    if good:
        await admit(plugin, approval)
    else:
        assert (await refusal(plugin, approval)).message == (
            'certificatesigningrequests.certificates.k8s.io "r" is forbidden: '
            'user not permitted to approve requests with signerName "example.com/s"'
        )


async def test_who_may_sign() -> None:
    old = {"metadata": {"name": "r"}, "spec": {"signerName": "example.com/s"}}
    signed = {**old, "status": {"certificate": "Y2VydA=="}}
    change = write("UPDATE", signed, REQUESTS, old=old, subresource="status")
    assert "not permitted to sign" in (await refusal(CertificateSigning(Signers()), change)).message
    await admit(CertificateSigning(Signers(("sign", "example.com/s"))), change)
    await admit(CertificateSigning(Signers()), write("UPDATE", old, REQUESTS, old=old, subresource="status"))


async def test_who_may_sign_for_pods() -> None:
    old = {"metadata": {"name": "r"}, "spec": {"signerName": "example.com/s"}}
    change = write("UPDATE", {**old, "status": {"notBefore": "x"}}, POD_REQUESTS, old=old, subresource="status")
    assert (await refusal(CertificateSigning(Signers()), change)).message == (
        'PodCertificateRequest.certificates.k8s.io "r" is invalid: spec.signerName: Forbidden: '
        f'User "{change.user.name}" is not permitted to "sign" for signer "example.com/s"'
    )
    await admit(CertificateSigning(Signers(("sign", "example.com/s"))), change)
    await admit(CertificateSigning(Signers()), write("UPDATE", old, POD_REQUESTS, old=old, subresource="status"))


@pytest.mark.parametrize(("group", "good"), [("dev", True), ("system:masters", False)])
async def test_no_certificate_request_makes_a_master(group: str, good: bool) -> None:
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "jane"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, group)]
    )
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = base64.b64encode(csr.public_bytes(Encoding.PEM)).decode()
    spec = {"signerName": "kubernetes.io/kube-apiserver-client", "request": pem}
    made = write("CREATE", {"metadata": {"name": "r"}, "spec": spec}, REQUESTS)
    if good:
        await admit(CertificateSubjectRestriction(), made)
    else:
        assert (await refusal(CertificateSubjectRestriction(), made)).message.endswith(
            "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
        )


# -- the chain ---------------------------------------------------------------------------------------------------


async def test_the_whole_chain_admits_a_pod(caches: MemoryCaches) -> None:
    caches.put(NAMESPACES, {"metadata": {"name": "ns"}, "status": {"phase": "Active"}})
    caches.put(SERVICEACCOUNTS, {"metadata": {"name": "default", "namespace": "ns"}})
    chain = default_chain(caches, FakeClock(), Authorizer(caches, []))
    a = write("CREATE", pod())
    await chain.mutate(a)
    await chain.validate(a)
    spec = a.object["spec"]
    assert (spec["serviceAccountName"], spec["priority"], len(spec["tolerations"])) == ("default", 0, 2)


async def test_the_chain_asks_whether_a_role_grants_too_much(caches: MemoryCaches) -> None:
    caches.put(NAMESPACES, {"metadata": {"name": "ns"}, "status": {"phase": "Active"}})
    chain = default_chain(caches, FakeClock(), Authorizer(caches, []))
    rule = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
    role = {"kind": "Role", "metadata": {"name": "r"}, "rules": [rule]}
    with pytest.raises(Exception, match="attempting to grant RBAC permissions not currently held"):
        await chain.mutate(write("CREATE", role, ROLES, user=ANN))


def test_every_plugin_is_documented() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "admission.md").read_text().partition("## The plugins")[2]
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    assert [(row[0].strip(), row[1].strip() == "on") for row in rows[1:]] == list(ORDER.items())


def test_every_plugin_that_is_on_is_asked_in_order(caches: MemoryCaches) -> None:
    doors = Doors(Registry(), WebhookClient(caches))
    chain = default_chain(caches, FakeClock(), Authorizer(caches, []), doors)
    nothing_to_do = {"PodGroupProtection"}
    assert [plugin.name for plugin in chain.plugins] == [
        name for name, is_on in ORDER.items() if is_on and name not in nothing_to_do
    ]


# -- DeviceAdminAccess -------------------------------------------------------------------------------------------

CLAIMS = GVR("resource.k8s.io", "v1", "resourceclaims")
CLAIM_TEMPLATES = GVR("resource.k8s.io", "v1", "resourceclaimtemplates")


def claim(*, admin: bool, granted: bool = False) -> Object:
    request = {"name": "q", "exactly": {"deviceClassName": "c", "adminAccess": admin}}
    found: Object = {"kind": "ResourceClaim", "metadata": {"name": "c"}, "spec": {"devices": {"requests": [request]}}}
    if granted:
        found["status"] = {"allocation": {"devices": {"results": [{"request": "q", "adminAccess": True}]}}}
    return found


async def test_admin_access_to_devices_is_for_labelled_namespaces(caches: MemoryCaches) -> None:
    plugin = DeviceAdminAccess(caches)
    caches.put(NAMESPACES, {"metadata": {"name": "ns"}})
    error = await refusal(plugin, write("CREATE", claim(admin=True), CLAIMS))
    assert error.message == (
        'ResourceClaim.resource.k8s.io "c" is invalid: spec.devices.requests[0].adminAccess: Forbidden: admin access '
        "to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace"
    )
    template = {"kind": "ResourceClaimTemplate", "metadata": {"name": "t"}, "spec": {"spec": claim(admin=True)["spec"]}}
    assert (await refusal(plugin, write("CREATE", template, CLAIM_TEMPLATES))).code == 422
    granted, before = claim(admin=True, granted=True), claim(admin=True)
    status = write("UPDATE", granted, CLAIMS, old=before, subresource="status")
    assert "status.allocation.devices.results[0].adminAccess" in (await refusal(plugin, status)).message
    await admit(plugin, write("CREATE", claim(admin=False), CLAIMS))
    await admit(plugin, write("UPDATE", granted, CLAIMS, old=granted, subresource="status"))
    caches.put(NAMESPACES, {"metadata": {"name": "ns", "labels": {"resource.kubernetes.io/admin-access": "true"}}})
    await admit(plugin, write("CREATE", claim(admin=True), CLAIMS))
