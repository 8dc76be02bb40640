"""Private keys of pods' certificates, and the proof that whoever asks for a certificate has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    _Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

RSA_EXPONENT: Final = 65537


def new_key(key_type: str) -> tuple[bytes, bytes]:
    """(a new private key as PKCS#8 in PEM, an empty PKCS#10 request signed with it in DER).

    `key_type` is as in a podCertificate volume source. An RSA key takes a second or more: call it in a thread. Raises
    ValueError for a type that there is not.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    make = _makers().get(key_type)
    if make is None:
        raise ValueError(f'unknown key type "{key_type}"')
    key = make()
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, digest)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, request.public_bytes(Encoding.DER)


def _makers() -> dict[str, Callable[[], _Private]]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    return {
        "RSA3072": lambda: rsa.generate_private_key(RSA_EXPONENT, 3072),
        "RSA4096": lambda: rsa.generate_private_key(RSA_EXPONENT, 4096),
        "ECDSAP256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ECDSAP384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ECDSAP521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "ED25519": ed25519.Ed25519PrivateKey.generate,
    }
