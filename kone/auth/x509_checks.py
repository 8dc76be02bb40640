"""What the registry cannot judge of certificate requests without a cryptographic library: form and signature."""

from __future__ import annotations


def check_request(der: bytes) -> str:
    """What is wrong with a PKCS#10 request; "" where nothing is (certificates.RequestCheck)."""
    from cryptography import x509  # slow to import, and needed by few servers

    try:
        request = x509.load_der_x509_csr(der)
        return "" if request.is_signature_valid else "x509: signature verification failed"
    except ValueError as error:
        return f"asn1: structure error: {error}"
