"""Certificates that the cluster's CA signs on request: what the request says of subject, names and key, and what the
caller says of use and time. Everything else that a request asks for, to be a CA above all, is left out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from kone.auth.pki import CA, Pki

_KEY_USAGES = {
    "signing": "digital_signature",
    "digital signature": "digital_signature",
    "content commitment": "content_commitment",
    "key encipherment": "key_encipherment",
    "key agreement": "key_agreement",
    "data encipherment": "data_encipherment",
    "cert sign": "key_cert_sign",
    "crl sign": "crl_sign",
    "encipher only": "encipher_only",
    "decipher only": "decipher_only",
}
_EXTENDED_USAGES = {
    "any": "2.5.29.37.0",
    "server auth": "1.3.6.1.5.5.7.3.1",
    "client auth": "1.3.6.1.5.5.7.3.2",
    "code signing": "1.3.6.1.5.5.7.3.3",
    "email protection": "1.3.6.1.5.5.7.3.4",
    "s/mime": "1.3.6.1.5.5.7.3.4",
    "ipsec end system": "1.3.6.1.5.5.7.3.5",
    "ipsec tunnel": "1.3.6.1.5.5.7.3.6",
    "ipsec user": "1.3.6.1.5.5.7.3.7",
    "timestamping": "1.3.6.1.5.5.7.3.8",
    "ocsp signing": "1.3.6.1.5.5.7.3.9",
    "microsoft sgc": "1.3.6.1.4.1.311.10.3.3",
    "netscape sgc": "2.16.840.1.113730.4.1",
}


def sign_request(pki: Pki, request_pem: bytes, usages: Sequence[str], not_before: float, not_after: float) -> str:
    """The certificate in PEM; it never outlives the CA. Raises ValueError, OSError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    ca = x509.load_pem_x509_certificate(pki.certificate(CA).read_bytes())
    ca_key: Any = load_pem_private_key(pki.key(CA).read_bytes(), None)
    request = x509.load_pem_x509_csr(request_pem)
    last = min(not_after, ca.not_valid_after_utc.timestamp())
    if not_before >= last:
        raise ValueError(f"the signer has expired: NotAfter={ca.not_valid_after_utc}")
    authority: Any = ca_key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(request.subject)
        .issuer_name(ca.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(not_before, UTC))
        .not_valid_after(datetime.fromtimestamp(last, UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
    )
    if key_usage := _key_usage(usages):
        builder = builder.add_extension(key_usage, critical=True)
    if extended := sorted({_EXTENDED_USAGES[usage] for usage in usages if usage in _EXTENDED_USAGES}):
        uses = [x509.ObjectIdentifier(oid) for oid in extended]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        pass
    else:
        builder = builder.add_extension(names.value, critical=False)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _key_usage(usages: Sequence[str]) -> Any:
    from cryptography import x509

    wanted = {_KEY_USAGES[usage] for usage in usages if usage in _KEY_USAGES}
    if not wanted:
        return None
    if "key_agreement" not in wanted:
        wanted -= {"encipher_only", "decipher_only"}  # they only say something of an agreement
    return x509.KeyUsage(**{name: name in wanted for name in set(_KEY_USAGES.values())})
