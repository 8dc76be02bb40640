"""What the registry cannot judge of keys and certificates without a cryptographic library (pod_certificates.X509).

The library is slow to import and needed by few servers, so it is imported when the first request comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kone.registry import pem
from kone.registry.pod_certificates import Key, Leaf

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes


def check_request(der: bytes) -> str:
    """What is wrong with a PKCS#10 request; "" where nothing is."""
    from cryptography import x509

    if text := pem.no_sequence(der, "certificateRequest"):
        return text
    try:
        request = x509.load_der_x509_csr(der)
        return "" if request.is_signature_valid else "x509: signature verification failed"
    except ValueError as error:
        return f"asn1: structure error: {error}"


def request_key(der: bytes) -> Key:
    """The key that a PKCS#10 request is for. Raises ValueError."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    request = x509.load_der_x509_csr(der)
    try:
        return _key(request.public_key())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error


def public_key(der: bytes) -> Key:
    """A key in its PKIX form. Raises ValueError."""
    return _key(_load(der))


def leaf(der: bytes) -> Leaf:
    """Raises ValueError for what is no certificate."""
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(der)
    names: list[str] = []
    emails: list[str] = []
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = found.get_values_for_type(x509.DNSName)
        emails = found.get_values_for_type(x509.RFC822Name)
    except x509.ExtensionNotFound:
        pass
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Leaf(_key(certificate.public_key()), begins.timestamp(), ends.timestamp(), names, emails)


def proves(der: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the key has signed the message: Ed25519 as it is, ECDSA and RSA-PSS over its SHA-256."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    key = _load(der)
    try:
        match key:
            case ed25519.Ed25519PublicKey():
                key.verify(signature, message)
            case ec.EllipticCurvePublicKey():
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPublicKey():
                pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)
                key.verify(signature, message, pss, hashes.SHA256())
            case _:
                return False
    except InvalidSignature:
        return False
    return True


def _load(der: bytes) -> PublicKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        return load_der_public_key(der)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error


def _key(key: PublicKeyTypes) -> Key:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    match key:
        case ed25519.Ed25519PublicKey():
            return Key("Ed25519", der)
        case ec.EllipticCurvePublicKey():
            # "secp256r1" is what Go calls P-256
            return Key("ECDSA", der, curve=f"P-{key.curve.key_size}")
        case rsa.RSAPublicKey():
            return Key("RSA", der, bits=(key.key_size + 7) // 8 * 8)
    return Key("", der)
