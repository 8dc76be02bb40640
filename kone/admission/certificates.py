"""Who may approve, sign and attest certificates of a signer, and what a client certificate may never say."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from kone.admission.plugin import Attributes, Authorizer, Plugin
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import forbidden_field, invalid
from kone.apimachinery.objects import dig
from kone.apimachinery.users import SYSTEM_MASTERS, User

REQUESTS = ("certificates.k8s.io", "certificatesigningrequests")
POD_REQUESTS = ("certificates.k8s.io", "podcertificaterequests")
BUNDLES = ("certificates.k8s.io", "clustertrustbundles")
CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"


def may_use_signer(authorizer: Authorizer, user: User, verb: str, signer: str) -> bool:
    """By the signer's own name, or by its domain: "example.com/*"."""
    names = (signer, signer.partition("/")[0] + "/*")
    requests = (AccessRequest(verb, "certificates.k8s.io", "*", "signers", name=name) for name in names)
    return any(authorizer.allowed(user, request)[0] for request in requests)


class CertificateApproval(Plugin):
    name = "CertificateApproval"
    operations = frozenset({"UPDATE"})
    resources = frozenset({REQUESTS})
    subresources = frozenset({"approval"})

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def validate(self, a: Attributes) -> None:
        signer = str(dig(a.old, "spec", "signerName", default=""))
        if not may_use_signer(self._authorizer, a.user, "approve", signer):
            raise a.refuse(f'user not permitted to approve requests with signerName "{signer}"')


class CertificateSigning(Plugin):
    """Of pods' requests upstream's registry judges it, so there the refusal reads as that of a field."""

    name = "CertificateSigning"
    operations = frozenset({"UPDATE"})
    resources = frozenset({REQUESTS, POD_REQUESTS})
    subresources = frozenset({"status"})

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def validate(self, a: Attributes) -> None:
        of_pod = a.group_resource == POD_REQUESTS
        old, new = dig(a.old, "status", default={}), dig(a.obj, "status", default={})
        keys = {*old, *new} if of_pod else {"certificate", "conditions"}
        changed = any((old.get(key) or None) != (new.get(key) or None) for key in keys)
        signer = str(dig(a.old, "spec", "signerName", default=""))
        if not changed or may_use_signer(self._authorizer, a.user, "sign", signer):
            return
        if of_pod:
            text = f'User "{a.user.name}" is not permitted to "sign" for signer "{signer}"'
            kind = "PodCertificateRequest.certificates.k8s.io"
            raise invalid(kind, a.name, [forbidden_field("spec.signerName", text)])
        raise a.refuse(f'user not permitted to sign requests with signerName "{signer}"')


class ClusterTrustBundleAttest(Plugin):
    name = "ClusterTrustBundleAttest"
    resources = frozenset({BUNDLES})
    subresources = None

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    async def validate(self, a: Attributes) -> None:
        signer = str(dig(a.obj, "spec", "signerName", default=""))
        unchanged = a.old is not None and a.old.get("spec") == a.object.get("spec")
        if signer and not unchanged and not may_use_signer(self._authorizer, a.user, "attest", signer):
            raise a.refuse(f'user not permitted to attest for signerName "{signer}"')


class CertificateSubjectRestriction(Plugin):
    name = "CertificateSubjectRestriction"
    operations = frozenset({"CREATE"})
    resources = frozenset({REQUESTS})

    async def validate(self, a: Attributes) -> None:
        if dig(a.obj, "spec", "signerName") != CLIENT_SIGNER:
            return
        try:
            pem = base64.b64decode(dig(a.obj, "spec", "request", default=""))
            organizations = set(_organizations(pem))
        except ValueError as error:
            raise a.refuse(f"failed to parse CSR: {error}") from error
        if SYSTEM_MASTERS in organizations:
            raise a.refuse(f"use of {CLIENT_SIGNER} signer with {SYSTEM_MASTERS} group is not allowed")


# A certificate request is DER: tag, length, content. Only subject organizations are read, so that cryptography stays
# behind the auth room's door.
_ORGANIZATION = bytes.fromhex("0603 55040a".replace(" ", ""))  # OID 2.5.4.10


def _organizations(pem: bytes) -> Iterator[str]:
    """The organizations (O) of a PEM certificate request's subject. Raises ValueError."""
    lines = pem.decode("ascii", "replace").strip().splitlines()
    begin = "-----BEGIN CERTIFICATE REQUEST-----"
    if begin not in lines:
        raise ValueError("PEM block type must be CERTIFICATE REQUEST")
    body = lines[lines.index(begin) + 1 :]
    der = base64.b64decode("".join(line for line in body[: _end_of(body)] if ":" not in line))
    request, _ = _element(der, 0)
    info, _ = _element(request, 0)
    _, after_version = _element(info, 0)
    subject, _ = _element(info, after_version)
    position = 0
    while position < len(subject):
        relative_name, position = _element(subject, position)
        inner = 0
        while inner < len(relative_name):
            attribute, inner = _element(relative_name, inner)
            if attribute.startswith(_ORGANIZATION):
                value, _ = _element(attribute, len(_ORGANIZATION))
                yield value.decode("utf-8", "replace")


def _end_of(lines: list[str]) -> int:
    end = "-----END CERTIFICATE REQUEST-----"
    if end not in lines:
        raise ValueError("PEM block type must be CERTIFICATE REQUEST")
    return lines.index(end)


def _element(der: bytes, position: int) -> tuple[bytes, int]:
    """(content, where the next one begins) of the DER element at `position`. Raises ValueError."""
    try:
        length = der[position + 1]
        start = position + 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(der[start : start + count], "big")
            start += count
    except IndexError as error:
        raise ValueError("asn1: syntax error: data truncated") from error
    if start + length > len(der):
        raise ValueError("asn1: syntax error: data truncated")
    return der[start : start + length], start + length
