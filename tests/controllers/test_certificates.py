"""CertificateSigningRequests: approved for kubelets, signed by the cluster's CA, cleared away."""

import base64
import ipaddress
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from kone.apimachinery.kinds import CLUSTERTRUSTBUNDLES
from kone.apimachinery.objects import Object, dig, find_condition, replace_in
from kone.apimachinery.timestamps import format_time
from kone.controllers.certificates import (
    APPROVING_CONTROLLER,
    CLEANER_CONTROLLER,
    CLIENT,
    KUBELET_CLIENT,
    LEGACY,
    POD_REQUEST_CLEANER_CONTROLLER,
    POD_REQUESTS,
    REQUESTS,
    REVIEWS,
    SERVING,
    SIGNING_CONTROLLER,
    Subject,
    client_fault,
    kubelet_client_fault,
    kubelet_serving_fault,
    read_subject,
    validity,
)
from kone.controllers.controller import Settings
from kone.controllers.trust_bundles import SERVING_BUNDLE_PUBLISHER, bundle_name
from tests.controllers.world import World, conditions

NODE, NODES = "system:node:n1", ("system:nodes",)
CLIENT_USAGES = ["digital signature", "client auth"]
KEY = ec.generate_private_key(ec.SECP256R1())


def pkcs10(common_name: str = NODE, organizations: Sequence[str] = NODES, *, dns: str = "", ip: str = "") -> bytes:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    names: list[x509.GeneralName] = [x509.DNSName(dns)] if dns else []
    if ip:
        names.append(x509.IPAddress(ipaddress.ip_address(ip)))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


def request(pem: bytes | None = None, signer: str = KUBELET_CLIENT, **spec: object) -> Object:
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": "r"},
        "spec": {
            "request": base64.b64encode(pem or pkcs10()).decode(),
            "signerName": signer,
            "usages": CLIENT_USAGES,
            "username": NODE,
            "groups": ["system:nodes"],
            **spec,
        },
    }


def approved(made: Object, now: float) -> Object:
    condition = {"type": "Approved", "status": "True", "reason": "X", "lastUpdateTime": format_time(now)}
    return replace_in(made, ("status", "conditions"), [condition])


class Reviewing(World):
    """A world whose API grants some rights."""

    def __init__(self, *granted: str) -> None:
        super().__init__()
        create = self.client.create

        async def review(resource: object, obj: Object, **more: object) -> Object:
            if resource != REVIEWS:
                return await create(resource, obj, **more)  # type: ignore[arg-type]
            allowed = obj["spec"]["resourceAttributes"]["subresource"] in granted
            return {**obj, "status": {"allowed": allowed}}

        self.client.create = review  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(
    ("granted", "spec", "message"),
    [
        (["selfnodeclient"], {}, "Auto approving self kubelet client certificate after SubjectAccessReview."),
        (
            ["nodeclient"],
            {"username": "bootstrap"},
            "Auto approving kubelet client certificate after SubjectAccessReview.",
        ),
    ],
)
async def test_a_kubelets_request_is_approved_where_it_has_the_right(
    granted: list[str], spec: Object, message: str
) -> None:
    world = Reviewing(*granted)
    async with world.running(APPROVING_CONTROLLER):
        made = await world.put(REQUESTS, request(**spec))
        condition = find_condition(world.client.look(REQUESTS, made), "Approved") or {}
        assert (condition["status"], condition["reason"], condition["message"]) == ("True", "AutoApproved", message)


@pytest.mark.parametrize(
    ("granted", "made"),
    [
        ([], request()),
        (["selfnodeclient"], request(username="someone")),
        (["selfnodeclient", "nodeclient"], request(signer=CLIENT)),
        (["selfnodeclient", "nodeclient"], request(pkcs10(dns="x"))),
        (["selfnodeclient", "nodeclient"], request(usages=["client auth"])),
    ],
)
async def test_what_is_not_approved(granted: list[str], made: Object) -> None:
    world = Reviewing(*granted)
    async with world.running(APPROVING_CONTROLLER):
        stored = await world.put(REQUESTS, made)
        assert conditions(world.client.look(REQUESTS, stored)) == {}


class Signatures:
    """The CA: it notes what it is asked to sign."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[str], float, float]] = []

    async def sign(self, pem: bytes, usages: Sequence[str], not_before: float, not_after: float) -> str:
        self.asked.append((usages, not_before, not_after))
        return "signed"


async def test_what_is_approved_is_signed_once(world: World) -> None:
    ca = Signatures()
    async with world.running(SIGNING_CONTROLLER, settings=Settings(sign_request=ca.sign)):
        made = await world.put(REQUESTS, request())
        assert ca.asked == []
        now = world.clock.now()
        await world.client.update(REQUESTS, approved(made, now), subresource="approval")
        await world.settle()
        found = world.client.look(REQUESTS, made)["status"]
        assert base64.b64decode(found["certificate"]) == b"signed"
        assert ca.asked == [(CLIENT_USAGES, now - 300, now + 365 * 86400 - 300)]


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (request(signer=CLIENT, usages=["server auth"]), "invalid usage for client certificate: server auth"),
        (request(pkcs10("system:node:n1", ())), "subject organization is not system:nodes"),
        (request(signer=SERVING), "DNS or IP subjectAltName is required"),
    ],
)
async def test_what_its_signer_refuses_fails(world: World, made: Object, fault: str) -> None:
    async with world.running(SIGNING_CONTROLLER, settings=Settings(sign_request=Signatures().sign)):
        stored = await world.put(REQUESTS, approved(made, world.clock.now()))
        condition = find_condition(world.client.look(REQUESTS, stored), "Failed") or {}
        assert (condition["reason"], condition["message"]) == ("SignerValidationFailure", fault)
        assert "certificate" not in world.client.look(REQUESTS, stored)["status"]


async def test_other_signers_and_denied_requests_are_left_alone(world: World) -> None:
    ca = Signatures()
    async with world.running(SIGNING_CONTROLLER, settings=Settings(sign_request=ca.sign)):
        await world.put(REQUESTS, approved(request(signer="example.com/mine"), world.clock.now()))
        assert ca.asked == []


@pytest.mark.parametrize(
    ("asked", "lives"), [(None, 365 * 86400 - 300), (7200, 7200), (60, 600), (10**9, 365 * 86400 - 300)]
)
def test_how_long_a_certificate_lives(asked: int | None, lives: int) -> None:
    made = request() if asked is None else request(expirationSeconds=asked)
    assert validity(made, 1000.0) == (700.0, 1000.0 + lives)


# Clearing away


def denied(now: float) -> Object:
    condition = {"type": "Denied", "status": "True", "lastUpdateTime": format_time(now)}
    return replace_in(request(), ("status", "conditions"), [condition])


@pytest.mark.parametrize(("kind", "hours"), [("waiting", 24), ("denied", 1), ("unsigned", 24)])
async def test_requests_go_after_their_time(world: World, kind: str, hours: int) -> None:
    now = world.clock.now()
    made = {"waiting": request(), "denied": denied(now), "unsigned": approved(request(), now)}[kind]
    async with world.running(CLEANER_CONTROLLER):
        await world.put(REQUESTS, made)
        await world.advance(hours * 3600 - 1)
        assert len(world.client.of(REQUESTS)) == 1
        await world.advance(1)
        assert world.client.of(REQUESTS) == []


async def test_requests_of_pods_go_after_a_quarter_of_an_hour(world: World) -> None:
    async with world.running(POD_REQUEST_CLEANER_CONTROLLER):
        made = {"kind": "PodCertificateRequest", "metadata": {"name": "r", "namespace": "shop"}}
        await world.put(POD_REQUESTS, made)
        await world.advance(899)
        assert len(world.client.of(POD_REQUESTS)) == 1
        await world.advance(1)
        assert world.client.of(POD_REQUESTS) == []


# Bundles


async def test_the_bundle_of_the_serving_ca_is_kept_and_older_ones_go(world: World) -> None:
    signer = "kubernetes.io/kube-apiserver-serving"
    async with world.running(SERVING_BUNDLE_PUBLISHER, settings=Settings(ca_pem="PEM")):
        [bundle] = world.client.of(CLUSTERTRUSTBUNDLES)
        assert bundle["metadata"]["name"] == bundle_name(signer, "PEM")
        assert bundle["metadata"]["name"].startswith("kubernetes.io:kube-apiserver-serving:")
        assert bundle["spec"] == {"signerName": signer, "trustBundle": "PEM"}
        old = {"kind": "ClusterTrustBundle", "metadata": {"name": "old"}, "spec": {"signerName": signer}}
        other = {"kind": "ClusterTrustBundle", "metadata": {"name": "other"}, "spec": {"signerName": "x/y"}}
        await world.put(CLUSTERTRUSTBUNDLES, old)
        await world.put(CLUSTERTRUSTBUNDLES, other)
        assert [b["metadata"]["name"] for b in world.client.of(CLUSTERTRUSTBUNDLES)][1:] == ["other"]
        await world.client.delete(CLUSTERTRUSTBUNDLES, bundle["metadata"]["name"])
        await world.settle()
        assert dig(world.client.look(CLUSTERTRUSTBUNDLES, bundle), "spec", "trustBundle") == "PEM"


# Rules


def test_the_subject_of_a_request() -> None:
    assert read_subject(pkcs10(dns="a.b", ip="10.0.0.1")) == Subject(NODE, NODES, dns=("a.b",), ips=("10.0.0.1",))
    with pytest.raises(ValueError, match="PEM"):
        read_subject(b"nonsense")


def test_what_kubelets_and_clients_may_ask_for() -> None:
    serving = ["digital signature", "key encipherment", "server auth"]
    assert kubelet_client_fault(Subject(NODE, NODES), CLIENT_USAGES) == ""
    assert kubelet_client_fault(Subject("n1", NODES), CLIENT_USAGES) == (
        "subject common name does not begin with system:node:"
    )
    assert kubelet_client_fault(Subject(NODE, NODES), serving) == (
        "usages did not match [client auth digital signature key encipherment]"
    )
    assert kubelet_serving_fault(Subject(NODE, NODES, dns=("n1",)), serving) == ""
    assert client_fault(Subject("me"), ["digital signature"]) == (
        "missing required usage for client certificate: client auth"
    )
    assert LEGACY != CLIENT
