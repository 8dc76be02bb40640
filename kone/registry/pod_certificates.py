"""PodCertificateRequests (certificates.k8s.io): what a node's kubelet asks a signer for one of its pods.

Keys and certificates are judged by what a cryptographic library reads in them; that is auth's (`auth/x509_checks.py`),
and the registry is handed it. Rules and texts: kubernetes/pkg/apis/certificates/validation.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kone.apimachinery.errors import OMITTED, FieldError, invalid_value, not_supported, required, too_long
from kone.apimachinery.kinds import GVR
from kone.apimachinery.names import is_dns1123_subdomain
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.timestamps import parse_time
from kone.apimachinery.users import User
from kone.registry import conditions, pem
from kone.registry.core.signer_names import is_kubernetes_signer, signer_name
from kone.registry.core.volume_files import user_annotations
from kone.registry.generic import IMMUTABLE
from kone.registry.printing import selector_text
from kone.registry.resource import NAME, Column, Resource
from kone.registry.rules import Errors, check
from kone.registry.strategy import ALL_METADATA, StatusStrategy, Strategy

PODCERTIFICATEREQUESTS = GVR("certificates.k8s.io", "v1", "podcertificaterequests")

_MIN_LIFE_S, _MAX_LIFE_S, _MAX_KUBERNETES_LIFE_S = 3600, 91 * 86400, 86400
_MAX_UID, _MAX_KEY, _MAX_CHAIN = 128, 10 * 1024, 100 * 1024
_NEAR_S, _MARGIN_S = 300, 600  # of a certificate's beginning to now; of its refresh to its beginning and end
_ENDS = ("Issued", "Denied", "Failed")
_CURVES = ("P-256", "P-384", "P-521")
_RSA_BITS = (3072, 4096)
_ANOTHER_KEY = "unknown public key type; supported types are Ed25519, ECDSA, and RSA"
_UNPROVEN = "could not verify proof-of-possession signature"


@dataclass(frozen=True, slots=True)
class Key:
    """A public key: `kind` is "Ed25519", "ECDSA", "RSA" or "" for another; `der` its PKIX form."""

    kind: str
    der: bytes
    curve: str = ""
    bits: int = 0


@dataclass(frozen=True, slots=True)
class Leaf:
    """What the rules look at in a certificate; times are Unix seconds."""

    key: Key
    not_before: float
    not_after: float
    dns_names: Sequence[str] = ()
    emails: Sequence[str] = ()


class X509(Protocol):
    """What a cryptographic library says of DER. All but `proves` and `check_request` raise ValueError."""

    def check_request(self, der: bytes) -> str:
        """What is wrong with a PKCS#10 request, its signature included; "" where nothing is."""

    def request_key(self, der: bytes) -> Key: ...
    def public_key(self, der: bytes) -> Key: ...
    def leaf(self, der: bytes) -> Leaf: ...
    def proves(self, der: bytes, message: bytes, signature: bytes) -> bool:
        """Whether a key of PKIX form has signed the message."""


class _PodRequest(Strategy):
    unconditional_update = False

    def __init__(self, x509: X509 | None) -> None:
        self._x509 = x509

    def default(self, obj: Object) -> None:
        if dig(obj, "spec", "maxExpirationSeconds") is None:
            obj["spec"]["maxExpirationSeconds"] = _MAX_KUBERNETES_LIFE_S

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        obj["status"] = {} if old is None else old.get("status") or {}

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj.get("spec") or {}
        if old is not None:
            return (invalid_value("spec", spec, IMMUTABLE),) if spec != old.get("spec") else ()
        signer_name(errors, "spec.signerName", spec.get("signerName", ""))
        if spec.get("unverifiedUserAnnotations"):
            user_annotations(errors, "spec.unverifiedUserAnnotations", spec["unverifiedUserAnnotations"])
        for name, uid in (("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")):
            check(errors, f"spec.{name}", spec.get(name, ""), is_dns1123_subdomain(spec.get(name, "")))
            value = spec.get(uid, "")
            if not value:
                errors.append(invalid_value(f"spec.{uid}", value, "must not be empty"))
            elif len(value.encode()) > _MAX_UID:
                errors.append(too_long(f"spec.{uid}", _MAX_UID))
        seconds = spec.get("maxExpirationSeconds")
        if seconds is None:
            errors.append(required("spec.maxExpirationSeconds", "must be set"))
            return errors
        most = _MAX_KUBERNETES_LIFE_S if is_kubernetes_signer(spec.get("signerName", "")) else _MAX_LIFE_S
        if not _MIN_LIFE_S <= seconds <= most:
            text = f"must be in the range [{_MIN_LIFE_S}, {most}]"
            errors.append(invalid_value("spec.maxExpirationSeconds", seconds, text))
        errors.extend(self._key_errors(spec))
        return errors

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return {f"spec.{name}": dig(obj, "spec", name, default="") for name in ("nodeName", "podName", "signerName")}

    # -- keys

    def _key_errors(self, spec: Mapping[str, Any]) -> Iterable[FieldError]:
        """The public key and the proof that whoever asks has the private one."""
        request, key, proof = (
            _bytes(spec.get(field)) for field in ("stubPKCS10Request", "pkixPublicKey", "proofOfPossession")
        )
        if request and not key and not proof:
            yield from self._request_errors(request)
        elif key and proof and not request:
            yield from self._pkix_errors(key, proof, str(spec.get("podUID", "")).encode())
        else:
            text = "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set"
            yield invalid_value("spec", OMITTED, text)

    def _request_errors(self, request: bytes) -> Iterable[FieldError]:
        path = "spec.stubPKCS10Request"
        if len(request) > _MAX_KEY:
            yield too_long(path, _MAX_KEY)
            return
        if self._x509 is None:
            return
        try:
            key = self._x509.request_key(request)
        except ValueError:
            yield invalid_value(path, OMITTED, "must be a valid PKCS#10 CSR")
            return
        if (wrong := _unfit(path, key, "P256, P384, or P521")) is not None:
            yield wrong
        elif self._x509.check_request(request):
            yield invalid_value(path, OMITTED, "invalid signature")

    def _pkix_errors(self, der: bytes, proof: bytes, message: bytes) -> Iterable[FieldError]:
        path, proof_path = "spec.pkixPublicKey", "spec.proofOfPossession"
        if len(der) > _MAX_KEY:
            yield too_long(path, _MAX_KEY)
            return
        if len(proof) > _MAX_KEY:
            yield too_long(proof_path, _MAX_KEY)
            return
        if self._x509 is None:
            return
        try:
            key = self._x509.public_key(der)
        except ValueError:
            yield invalid_value(path, OMITTED, "must be a valid PKIX-serialized public key")
            return
        if (wrong := _unfit(path, key, "P256 or P384")) is not None:
            yield wrong
        elif not self._x509.proves(der, message, proof):
            yield invalid_value(proof_path, OMITTED, _UNPROVEN)

    # -- status

    def status_errors(self, obj: Object, old: Object) -> Iterable[FieldError]:
        """A request ends once: issued, with a certificate that fits it, or denied or failed, with nothing but that."""
        status, before = obj.get("status") or {}, old.get("status") or {}
        found = status.get("conditions") or []
        errors: Errors = []
        _ending_errors(errors, found)
        conditions.conditions(errors, "status.conditions", found)
        if errors:
            return errors
        ended = next((condition["type"] for condition in found), "")
        if before.get("conditions"):
            text = "immutable after PodCertificateRequest is issued, denied, or failed"
            return () if _same(status, before) else (invalid_value("status", OMITTED, text),)
        if ended in ("Denied", "Failed"):
            text = "non-condition status fields must be empty when denying or failing the PodCertificateRequest"
            return () if _same(status, {"conditions": found}) else (invalid_value("status", OMITTED, text),)
        if ended == "Issued":
            return self._issued_errors(status, old["spec"])
        text = 'status is immutable unless transitioning to "Issued", "Denied", or "Failed"'
        return () if _same(status, before) else (invalid_value("status", OMITTED, text),)

    def _issued_errors(self, status: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterable[FieldError]:
        path, chain = "status.certificateChain", status.get("certificateChain", "")
        if len(chain.encode()) > _MAX_CHAIN:
            return (too_long(path, _MAX_CHAIN),)
        blocks = list(pem.blocks(chain))
        if not blocks:
            return (invalid_value(path, chain, "issued certificate chain must contain at least one certificate"),)
        if any(block.kind != "CERTIFICATE" for block in blocks):
            text = "issued certificate chain must consist entirely of CERTIFICATE PEM blocks"
            return (invalid_value(path, chain, text),)
        if self._x509 is None:
            return ()
        try:
            leaf = self._x509.leaf(blocks[0].der)
        except ValueError:
            return (invalid_value(path, chain, "leaf certificate does not parse as valid X.509"),)
        errors: Errors = list(_name_errors(path, leaf))
        if self._asked_for(spec).der != leaf.key.der:
            text = "leaf certificate was not issued to the requested public key"
            errors.append(invalid_value(path, chain, text))
            return errors
        errors.extend(_time_errors(status, leaf, spec["maxExpirationSeconds"]))
        if errors:
            return errors
        for block in blocks[1:]:
            try:
                self._x509.leaf(block.der)
            except ValueError:
                return (invalid_value(path, chain, "intermediate certificate does not parse as valid X.509"),)
        return ()

    def _asked_for(self, spec: Mapping[str, Any]) -> Key:
        assert self._x509 is not None
        request = _bytes(spec.get("stubPKCS10Request"))
        return self._x509.request_key(request) if request else self._x509.public_key(_bytes(spec["pkixPublicKey"]))


def _bytes(text: str | None) -> bytes:
    try:
        return base64.b64decode(text or "")
    except binascii.Error:
        return b""


def _unfit(path: str, key: Key, curves: str) -> FieldError | None:
    """What is wrong with the kind of a key."""
    if key.kind == "ECDSA" and key.curve not in _CURVES:
        return invalid_value(path, f"curve {key.curve}", f"elliptic public keys must use curve {curves}")
    if key.kind == "RSA" and key.bits not in _RSA_BITS:
        return invalid_value(path, f"{key.bits}-bit modulus", "RSA keys must have modulus size 3072 or 4096")
    return None if key.kind else invalid_value(path, OMITTED, _ANOTHER_KEY)


def _ending_errors(errors: Errors, found: Sequence[Mapping[str, Any]]) -> None:
    """At most one known condition, which is true."""
    known = 0
    for i, condition in enumerate(found):
        at, kind = f"status.conditions[{i}]", condition.get("type", "")
        if kind not in _ENDS:
            errors.append(not_supported(f"{at}.type", kind, _ENDS))
            continue
        known += 1
        if known > 1:
            text = 'There may be at most one condition with type "Issued", "Denied", or "Failed"'
            errors.append(invalid_value(f"{at}.type", kind, text))
        if condition.get("status") != "True":
            errors.append(not_supported(f"{at}.status", condition.get("status", ""), ("True",)))


def _same(status: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return {k: v for k, v in status.items() if v} == {k: v for k, v in other.items() if v}


_ADDRESS = re.compile(r"[^@\s<>]+@[^@\s<>]+")


def _name_errors(path: str, leaf: Leaf) -> Iterable[FieldError]:
    for name in leaf.dns_names:
        if not name:
            yield invalid_value(path, name, "leaf certificate should not contain empty DNSName")
        if ".." in name:
            yield invalid_value(path, name, "leaf certificate's DNSName should not contain '..'")
        if name.startswith(".") or name.endswith("."):
            yield invalid_value(path, name, "leaf certificate's DNSName should not start or end with '.'")
    for address in leaf.emails:
        if not _ADDRESS.fullmatch(address):
            yield invalid_value(path, address, "leaf certificate should not contain invalid EmailAddress")


def _time_errors(status: Mapping[str, Any], leaf: Leaf, most_s: int) -> Iterable[FieldError]:
    texts = {
        "notBefore": "must be present and consistent with the issued certificate",
        "notAfter": "must be present and consistent with the issued certificate",
        "beginRefreshAt": "must be present and in the range [notbefore+10min, notafter-10min]",
    }
    missing = [required(f"status.{field}", text) for field, text in texts.items() if not status.get(field)]
    if missing:
        return missing
    begins, ends, refresh = (parse_time(status[field]) for field in texts)
    life_s = int(leaf.not_after - leaf.not_before)

    def wrong(field: str, text: str) -> Iterable[FieldError]:
        return (invalid_value(f"status.{field}", status[field], text),)

    if begins != leaf.not_before:
        return wrong("notBefore", "must be set to the NotBefore time encoded in the leaf certificate")
    if abs(begins - time.time()) > _NEAR_S:
        return wrong("notBefore", "must be set to within 5 minutes of kube-apiserver's current time")
    if ends != leaf.not_after:
        return wrong("notAfter", "must be set to the NotAfter time encoded in the leaf certificate")
    if life_s < _MIN_LIFE_S:
        text = "leaf certificate lifetime must be >= 1 hour"
        return (invalid_value("status.certificateChain", life_s, text),)
    if life_s > most_s:
        text = f"leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most_s})"
        return (invalid_value("status.certificateChain", life_s, text),)
    if refresh < begins + _MARGIN_S:
        return wrong("beginRefreshAt", "must be at least 10 minutes after status.notBefore")
    if refresh > ends - _MARGIN_S:
        return wrong("beginRefreshAt", "must be at least 10 minutes before status.notAfter")
    return ()


def _state(obj: Object, now: float) -> str:
    kinds = [condition.get("type", "") for condition in dig(obj, "status", "conditions", default=())]
    return next((kind for kind in reversed(kinds) if kind in _ENDS), "Pending")


def _spec_text(name: str, field: str) -> Column:
    return Column(name, lambda obj, now: dig(obj, "spec", field) or "")


def resource(x509: X509 | None) -> Resource:
    """The resource; without `x509` keys and certificates are not looked into."""
    strategy = _PodRequest(x509)
    return Resource(
        PODCERTIFICATEREQUESTS,
        "PodCertificateRequest",
        strategy,
        status=StatusStrategy(strategy, kept_metadata=ALL_METADATA, rules=strategy.status_errors),
        columns=(
            NAME,
            _spec_text("PodName", "podName"),
            _spec_text("ServiceAccountName", "serviceAccountName"),
            _spec_text("NodeName", "nodeName"),
            _spec_text("SignerName", "signerName"),
            Column("State", _state),
            Column(
                "UnverifiedUserAnnotations",
                lambda obj, now: selector_text(dig(obj, "spec", "unverifiedUserAnnotations")),
            ),
        ),
    )
