"""Signing on request: what goes into the certificate, and what does not."""

import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kone.auth.pki import Names, Pki
from kone.auth.signing import sign_request

NOW = 1_700_000_000.0
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    made = Pki(tmp_path / "pki", Names(node_name="n1"))
    made.ensure(NOW)
    return made


def request() -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "me")])
    names = x509.SubjectAlternativeName([x509.DNSName("a.b"), x509.IPAddress(ipaddress.ip_address("10.0.0.1"))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    wish = x509.BasicConstraints(ca=True, path_length=None)
    return builder.add_extension(wish, critical=True).sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_subject_names_and_key_come_from_the_request(pki: Pki) -> None:
    pem = sign_request(pki, request(), ["digital signature", "client auth"], NOW - 300, NOW + 3600)
    found = x509.load_pem_x509_certificate(pem.encode())
    assert found.subject.rfc4514_string() == "CN=me"
    assert found.public_key() == KEY.public_key()
    assert (found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()) == (NOW - 300, NOW + 3600)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.b"]
    found.verify_directly_issued_by(x509.load_pem_x509_certificate(pki.ca_pem.encode()))


def test_usages_come_from_the_caller_and_nobody_becomes_a_ca(pki: Pki) -> None:
    pem = sign_request(pki, request(), ["key encipherment", "server auth", "client auth"], NOW - 300, NOW + 3600)
    extensions = x509.load_pem_x509_certificate(pem.encode()).extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_encipherment, usage.digital_signature, usage.key_cert_sign) == (True, False, False)
    uses = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert uses == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


def test_no_certificate_outlives_the_ca(pki: Pki) -> None:
    ca = x509.load_pem_x509_certificate(pki.ca_pem.encode())
    pem = sign_request(pki, request(), ["client auth"], NOW, NOW + 10**10)
    assert x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc == ca.not_valid_after_utc
    with pytest.raises(ValueError, match="the signer has expired"):
        sign_request(pki, request(), ["client auth"], NOW + 10**10, NOW + 10**10 + 1)
