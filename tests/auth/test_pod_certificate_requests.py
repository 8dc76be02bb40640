"""PodCertificateRequests, with a real library: keys that fit, proofs that hold, certificates that were asked for."""

from __future__ import annotations

import base64
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from kone.apimachinery.errors import FieldError
from kone.apimachinery.objects import Object, deep_copy
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.auth import x509_checks
from kone.auth.pod_keys import new_key
from kone.registry import pod_certificates

RESOURCE = pod_certificates.resource(x509_checks)
HOUR_S = 3600


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def request(**spec: Any) -> Object:
    known: Object = {
        "signerName": "example.com/signer",
        "podName": "p",
        "podUID": "u",
        "serviceAccountName": "default",
        "serviceAccountUID": "s",
        "nodeName": "n1",
        "nodeUID": "n",
    }
    obj = {"metadata": {"name": "r", "namespace": "ns"}, "spec": {**known, **spec}}
    RESOURCE.strategy.default(obj)
    return obj


def errors_of(obj: Object) -> list[str]:
    RESOURCE.strategy.prepare(obj, None, user=User("u"))
    return [str(error) for error in RESOURCE.strategy.validate(obj, None)]


@pytest.mark.parametrize("key_type", ["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072"])
def test_what_a_kubelet_makes_is_accepted(key_type: str) -> None:
    pem, proof = new_key(key_type)
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert errors_of(request(stubPKCS10Request=encoded(proof))) == []
    key = load_pem_private_key(pem, None)
    assert x509.load_der_x509_csr(proof).public_key() == key.public_key()  # type: ignore[union-attr]


def test_a_key_of_no_known_type_is_not_made() -> None:
    with pytest.raises(ValueError, match='unknown key type "DSA"'):
        new_key("DSA")


def stub(key: Any) -> bytes:
    built = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return built.public_bytes(Encoding.DER)


def der(key: Any) -> bytes:
    found: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found


P256 = ec.generate_private_key(ec.SECP256R1())
SMALL_RSA = rsa.generate_private_key(65537, 2048)
STUB = stub(P256)
ONE_OF = "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({}, f"spec: Invalid value: {ONE_OF}"),
        (
            {"stubPKCS10Request": encoded(STUB), "proofOfPossession": encoded(b"x")},
            f"spec: Invalid value: {ONE_OF}",
        ),
        (
            {"stubPKCS10Request": encoded(b"nonsense")},
            "spec.stubPKCS10Request: Invalid value: must be a valid PKCS#10 CSR",
        ),
        (
            {"stubPKCS10Request": encoded(STUB[:-4] + b"abcd")},
            "spec.stubPKCS10Request: Invalid value: invalid signature",
        ),
        (
            {"stubPKCS10Request": encoded(stub(ec.generate_private_key(ec.SECP224R1())))},
            'spec.stubPKCS10Request: Invalid value: "curve P-224": '
            "elliptic public keys must use curve P256, P384, or P521",
        ),
        (
            {"stubPKCS10Request": encoded(stub(SMALL_RSA))},
            'spec.stubPKCS10Request: Invalid value: "2048-bit modulus": RSA keys must have modulus size 3072 or 4096',
        ),
        (
            {"stubPKCS10Request": encoded(b"x" * 10241)},
            "spec.stubPKCS10Request: Too long: may not be more than 10240 bytes",
        ),
        (
            {"pkixPublicKey": encoded(der(P256)), "proofOfPossession": encoded(b"nonsense")},
            "spec.proofOfPossession: Invalid value: could not verify proof-of-possession signature",
        ),
        (
            {"pkixPublicKey": encoded(b"nonsense"), "proofOfPossession": encoded(b"x")},
            "spec.pkixPublicKey: Invalid value: must be a valid PKIX-serialized public key",
        ),
        (
            {"stubPKCS10Request": encoded(STUB), "unverifiedUserAnnotations": {"plain": "x"}},
            'spec.unverifiedUserAnnotations: Invalid value: "plain": must be a domain-prefixed key '
            '(such as "acme.io/foo")',
        ),
    ],
    ids=["nothing", "both", "no request", "forged", "P-224", "small RSA", "long", "unproven", "no key", "annotation"],
)
def test_keys_that_do_not_fit(spec: Object, error: str) -> None:
    assert errors_of(request(**spec)) == [error]


def test_older_kubelets_prove_their_keys_by_signing_the_pods_uid() -> None:
    edwards = ed25519.Ed25519PrivateKey.generate()
    big = rsa.generate_private_key(65537, 3072)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    proofs = [
        (der(P256), P256.sign(b"u", ec.ECDSA(hashes.SHA256()))),
        (der(edwards), edwards.sign(b"u")),
        (der(big), big.sign(b"u", pss, hashes.SHA256())),
    ]
    for key, proof in proofs:
        assert errors_of(request(pkixPublicKey=encoded(key), proofOfPossession=encoded(proof))) == []


# -- status

NOW = int(time.time())


def certificate(key: Any = P256, *, starts: int = NOW, life_s: int = 86400, dns: str = "p.ns") -> str:
    """A certificate in PEM that another key has signed."""
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    begin = time.gmtime(starts)
    moment = datetime(*begin[:6])
    names = x509.SubjectAlternativeName([x509.DNSName(dns)])
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(moment)
        .not_valid_after(moment + timedelta(seconds=life_s))
        .add_extension(names, critical=True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    return built.public_bytes(Encoding.PEM).decode()


def condition(kind: str = "Issued", **more: str) -> Object:
    made = {"type": kind, "status": "True", "reason": "Because", "message": "", **more}
    return {"lastTransitionTime": format_time(NOW), **made}


def issued(chain: str, *, starts: int = NOW, life_s: int = 86400, refresh_s: int = HOUR_S, **more: Any) -> Object:
    return {
        "conditions": [condition()],
        "certificateChain": chain,
        "notBefore": format_time(starts),
        "notAfter": format_time(starts + life_s),
        "beginRefreshAt": format_time(starts + refresh_s),
        **more,
    }


def status_errors(status: Object, old: Object | None = None, **spec: Any) -> list[str]:
    before = {**request(stubPKCS10Request=encoded(STUB), **spec), "status": old or {}}
    assert RESOURCE.status is not None
    found: list[FieldError] = list(RESOURCE.status.validate({**deep_copy(before), "status": status}, before))
    return [f"{error.field}: {error.detail}" for error in found]


GOOD = certificate()


@pytest.mark.parametrize(
    "status",
    [issued(GOOD), issued(GOOD + certificate()), {"conditions": [condition("Denied")]}, {}],
    ids=["issued", "a chain of two", "denied", "as it was"],
)
def test_endings(status: Object) -> None:
    assert status_errors(status) == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (
            issued(certificate(ec.generate_private_key(ec.SECP256R1()))),
            "status.certificateChain: leaf certificate was not issued to the requested public key",
        ),
        (
            issued(GOOD + "-----BEGIN SECRET-----\nAAAA\n-----END SECRET-----\n"),
            "status.certificateChain: issued certificate chain must consist entirely of CERTIFICATE PEM blocks",
        ),
        (issued(""), "status.certificateChain: issued certificate chain must contain at least one certificate"),
        (
            issued("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "status.certificateChain: leaf certificate does not parse as valid X.509",
        ),
        (
            issued(certificate(dns="a..b")),
            "status.certificateChain: leaf certificate's DNSName should not contain '..'",
        ),
        (
            issued(GOOD, notBefore=None),
            "status.notBefore: must be present and consistent with the issued certificate",
        ),
        (
            issued(GOOD, notAfter=format_time(NOW)),
            "status.notAfter: must be set to the NotAfter time encoded in the leaf certificate",
        ),
        (
            issued(certificate(starts=NOW - 400), starts=NOW - 400),
            "status.notBefore: must be set to within 5 minutes of kube-apiserver's current time",
        ),
        (
            issued(certificate(life_s=1800), life_s=1800, refresh_s=900),
            "status.certificateChain: leaf certificate lifetime must be >= 1 hour",
        ),
        (
            issued(certificate(life_s=86401), life_s=86401),
            "status.certificateChain: leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)",
        ),
        (issued(GOOD, refresh_s=60), "status.beginRefreshAt: must be at least 10 minutes after status.notBefore"),
        (issued(GOOD, refresh_s=86300), "status.beginRefreshAt: must be at least 10 minutes before status.notAfter"),
        (
            {**issued(GOOD), "conditions": [condition("Failed")]},
            "status: non-condition status fields must be empty when denying or failing the PodCertificateRequest",
        ),
        (
            {"certificateChain": GOOD},
            'status: status is immutable unless transitioning to "Issued", "Denied", or "Failed"',
        ),
        (
            {"conditions": [condition("Denied"), condition("Failed")]},
            'status.conditions[1].type: There may be at most one condition with type "Issued", "Denied", or "Failed"',
        ),
    ],
)
def test_endings_that_are_none(status: Object, error: str) -> None:
    assert status_errors(status) == [error]


def test_an_ending_is_the_end() -> None:
    denied = {"conditions": [condition("Denied")]}
    assert status_errors(denied, denied) == []
    text = "status: immutable after PodCertificateRequest is issued, denied, or failed"
    assert status_errors({"conditions": [condition("Failed")]}, denied) == [text]


def test_a_private_key_is_no_stub() -> None:
    key = P256.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert errors_of(request(stubPKCS10Request=encoded(key))) != []
