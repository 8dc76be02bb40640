"""certificates.k8s.io: requests of users for certificates, and bundles of trusted roots."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from kone.apimachinery.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.errors import too_long as _too_long
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.registry import pem, pod_certificates
from kone.registry.core.signer_names import signer_name, trust_bundle_name
from kone.registry.generic import IMMUTABLE
from kone.registry.pod_certificates import X509
from kone.registry.printing import human_duration
from kone.registry.resource import AGE, NAME, Column, Resource, Subresource
from kone.registry.rules import Errors, check
from kone.registry.strategy import StatusStrategy, Strategy

GROUP = "certificates.k8s.io"
CERTIFICATESIGNINGREQUESTS = GVR(GROUP, "v1", "certificatesigningrequests")
CLUSTERTRUSTBUNDLES = GVR(GROUP, "v1", "clustertrustbundles")

RequestCheck = Callable[[bytes], str]
"""A PKCS#10 request in DER -> what is wrong with it, its signature included; "" where nothing is."""


def looks_like_request(der: bytes) -> str:
    """The check without a cryptographic library: the outline only."""
    return "" if pem.is_der(der) else "asn1: structure error"


def _any_name(name: str, prefix: bool) -> Sequence[str]:
    return ()


# -- certificate signing requests -------------------------------------------------------------------------------------

_LEGACY_SIGNER = "kubernetes.io/legacy-unknown"
_USAGES = (
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
)
_TRUE_ONLY = ("Approved", "Denied", "Failed")
_STATUSES = ("False", "True", "Unknown")
_IDENTITY = ("username", "uid", "groups", "extra")
_MIN_EXPIRATION_S = 600

Door = Literal["", "status", "approval"]
"""Which of the three ways to write a request: the object, /status or /approval."""


class _Request(Strategy):
    name_rule = staticmethod(_any_name)

    def __init__(self, check_request: RequestCheck) -> None:
        self.check_request = check_request

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is not None:
            obj["spec"], obj["status"] = old["spec"], old.get("status") or {}
            return
        spec = obj["spec"]
        for name in _IDENTITY:
            spec.pop(name, None)
        extra = {key: list(values) for key, values in user.extra.items()}
        identity: Object = {"username": user.name, "uid": user.uid, "groups": list(user.groups), "extra": extra}
        spec.update({name: value for name, value in identity.items() if value})
        obj["status"] = {}

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        return self.rules(obj, old, "")

    def rules(self, obj: Object, old: Object | None, door: Door) -> Errors:
        errors: Errors = []
        later: Errors = []
        self._spec(errors, obj.get("spec") or {}, (old or {}).get("spec") or {})
        found = dig(obj, "status", "conditions", default=())
        _conditions(errors, later, "status.conditions", found, dig(old, "status", "conditions", default=()))
        certificate = dig(obj, "status", "certificate", default="")
        if old is None or certificate != dig(old, "status", "certificate", default=""):
            text = _certificate_text(certificate)
            if text:
                errors.append(invalid_value("status.certificate", "<certificate data>", text))
        if old is not None:
            _changes(errors, obj, old, door)
        return errors + later

    def _spec(self, errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        text = self._request_text(spec.get("request") or "")
        if text:
            errors.append(invalid_value("spec.request", spec.get("request"), text))
        usages: Sequence[str] = spec.get("usages") or ()
        if not usages:
            errors.append(required("spec.usages"))
        if set(before.get("usages") or ()) <= set(_USAGES):
            for i, usage in enumerate(usages):
                if usage not in _USAGES:
                    errors.append(not_supported(f"spec.usages[{i}]", usage, _USAGES))
        for i, usage in enumerate(usages):
            if usage in usages[:i]:
                errors.append(duplicate(f"spec.usages[{i}]", usage))
        signer, seconds = spec.get("signerName", ""), spec.get("expirationSeconds")
        if signer == _LEGACY_SIGNER and before.get("signerName") != _LEGACY_SIGNER:
            text = "the legacy signerName is not allowed via this API version"
            errors.append(invalid_value("spec.signerName", signer, text))
        else:
            signer_name(errors, "spec.signerName", signer)
        if seconds is not None and seconds < _MIN_EXPIRATION_S:
            text = "may not specify a duration less than 600 seconds (10 minutes)"
            errors.append(invalid_value("spec.expirationSeconds", seconds, text))

    def _request_text(self, encoded: str) -> str:
        block = next(pem.blocks(base64.b64decode(encoded).decode("latin-1")), None)
        if block is None or block.kind != "CERTIFICATE REQUEST":
            return "PEM block type must be CERTIFICATE REQUEST"
        return self.check_request(block.der)

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return {"spec.signerName": dig(obj, "spec", "signerName", default="")}


def _certificate_text(encoded: str) -> str:
    """What is wrong with an issued certificate chain; "" where nothing is."""
    if not encoded:
        return ""
    found = list(pem.blocks(base64.b64decode(encoded).decode("latin-1")))
    for block in found:
        if block.kind != "CERTIFICATE":
            return f'only CERTIFICATE PEM blocks are allowed, found "{block.kind}"'
        if block.headers:
            return "no PEM block headers are permitted"
        if not pem.is_der(block.der):
            return "x509: malformed certificate"
    return "" if found else "must contain at least one CERTIFICATE PEM block"


def _conditions(
    errors: Errors, later: Errors, path: str, found: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> None:
    known = [condition.get("type", "") for condition in before]
    seen: set[str] = set()
    for i, condition in enumerate(found):
        kind, status = condition.get("type", ""), condition.get("status", "")
        allowed = ("True",) if kind in _TRUE_ONLY else _STATUSES
        if not kind and "" not in known:
            errors.append(required(f"{path}[{i}].type"))
        if not status:
            errors.append(required(f"{path}[{i}].status"))
        elif status not in allowed:
            errors.append(not_supported(f"{path}[{i}].status", status, allowed))
        if kind in seen and len(known) == len(set(known)):
            errors.append(duplicate(f"{path}[{i}].type", kind))
        seen.add(kind)
    if {"Approved", "Denied"} <= seen and not {"Approved", "Denied"} <= set(known):
        both = [f'conditions[{{"type": "{kind}"}}]' for kind in ("Approved", "Denied")]
        shown = "{" + ", ".join(both) + "}"
        text = f"must specify at most one of: `{both[0]}`, `{both[1]}`"
        later.append(invalid_value(path, shown, text))


def _changes(errors: Errors, obj: Object, old: Object, door: Door) -> None:
    """What each door may not change."""
    path = "status.conditions"

    def of(request: Object, kind: str) -> list[Object]:
        return [c for c in dig(request, "status", "conditions", default=()) if c.get("type") == kind]

    for kind in _TRUE_ONLY:
        if len(of(obj, kind)) < len(of(old, kind)):
            errors.append(forbidden_field(path, f'updates may not remove a condition of type "{kind}"'))
    if door != "approval":
        for kind in ("Approved", "Denied"):
            now, before = of(obj, kind), of(old, kind)
            if len(now) > len(before):
                errors.append(forbidden_field(path, f'updates may not add a condition of type "{kind}"'))
            elif len(now) == len(before) and now != before:
                errors.append(forbidden_field(path, f'updates may not modify a condition of type "{kind}"'))
    before_, certificate = (dig(each, "status", "certificate", default="") for each in (old, obj))
    if certificate != before_:
        if door != "status":
            errors.append(forbidden_field("status.certificate", "updates may not set certificate content"))
        elif before_:
            errors.append(forbidden_field("status.certificate", "updates may not modify existing certificate content"))


class _RequestDoor(StatusStrategy):
    """/status and /approval."""

    def __init__(self, main: _Request, door: Door) -> None:
        super().__init__(main)
        self.requests = main
        self.door = door

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        assert old is not None, "a subresource is only ever updated"
        super().prepare(obj, old, user=user)
        before: Sequence[Object] = dig(old, "status", "conditions", default=())
        status = obj.setdefault("status", {})
        if self.door == "status":
            status["conditions"] = _keep_verdicts(status.get("conditions") or [], before)
        else:
            obj["status"] = status = {**(old.get("status") or {}), "conditions": status.get("conditions") or []}
        now = format_time(time.time())
        for condition in status["conditions"]:
            _set_times(condition, before, now)
        if not status["conditions"]:
            del status["conditions"]

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        return self.requests.rules(obj, old, self.door)


def _keep_verdicts(found: list[Object], before: Sequence[Object]) -> list[Object]:
    """The Approved and Denied conditions stay as they were, where there are as many of them as before."""
    kept = list(found)
    for kind in ("Approved", "Denied"):
        old = [condition for condition in before if condition.get("type") == kind]
        places = [i for i, condition in enumerate(kept) if condition.get("type") == kind]
        if len(places) == len(old):
            for i, condition in zip(places, old, strict=True):
                kept[i] = condition
    return kept


def _set_times(condition: Object, before: Sequence[Object], now: str) -> None:
    if not condition.get("lastUpdateTime"):
        condition["lastUpdateTime"] = now
    if not condition.get("lastTransitionTime"):
        same = (
            old["lastTransitionTime"]
            for old in before
            if old.get("type") == condition.get("type")
            and old.get("status") == condition.get("status")
            and old.get("lastTransitionTime")
        )
        condition["lastTransitionTime"] = next(same, now)


def _request_condition(obj: Object, now: float) -> str:
    kinds = {condition.get("type") for condition in dig(obj, "status", "conditions", default=())}
    verdict = "Denied" if "Denied" in kinds else "Approved" if "Approved" in kinds else "Pending"
    failed = ",Failed" if "Failed" in kinds else ""
    return f"{verdict}{failed}{',Issued' if dig(obj, 'status', 'certificate') else ''}"


def _requested_duration(obj: Object, now: float) -> str:
    seconds = dig(obj, "spec", "expirationSeconds")
    return human_duration(seconds) if seconds is not None else "<none>"


# -- trust bundles ----------------------------------------------------------------------------------------------------

_MAX_BUNDLE_BYTES = 1 << 20
_OMITTED = "<value omitted>"


class _TrustBundle(Strategy):
    name_rule = staticmethod(_any_name)  # the rule depends on the signer: see validate
    unconditional_update = False

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        name, spec = obj["metadata"].get("name", ""), obj.get("spec") or {}
        signer, bundle = spec.get("signerName", ""), spec.get("trustBundle", "")
        check(errors, "metadata.name", name, trust_bundle_name(name, signer))
        if signer:
            signer_name(errors, "spec.signerName", signer)
        if old is None or bundle != dig(old, "spec", "trustBundle"):
            _bundle(errors, "spec.trustBundle", bundle)
        if old is not None and signer != dig(old, "spec", "signerName", default=""):
            later.append(invalid_value("spec.signerName", signer, IMMUTABLE))
        return errors + later

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return {"spec.signerName": dig(obj, "spec", "signerName", default="")}


def _bundle(errors: Errors, path: str, text: str) -> None:
    if len(text.encode()) > _MAX_BUNDLE_BYTES:
        errors.append(_too_long(path, _MAX_BUNDLE_BYTES))
        return
    places: dict[bytes, list[int]] = {}
    wrong: list[str] = []
    for i, block in enumerate(pem.blocks(text)):
        if block.kind != "CERTIFICATE":
            wrong.append(f"entry {i} has bad block type: {block.kind}")
        elif block.headers:
            wrong.append(f"entry {i} has PEM block headers")
        elif not pem.is_der(block.der):
            wrong.append(f"entry {i} does not parse as X.509")
        elif not pem.is_ca(block.der):
            wrong.append(f"entry {i} does not have the CA bit set")
        else:
            places.setdefault(block.der, []).append(i)
    if not wrong and not places:
        wrong.append("at least one trust anchor must be provided")
    if not wrong:
        twice = (found for found in places.values() if len(found) > 1)
        wrong = [f"duplicate trust anchor (indices [{' '.join(map(str, found))}])" for found in twice]
    check(errors, path, _OMITTED, wrong)


def _spec_text(name: str, field: str, default: str = "") -> Column:
    return Column(name, lambda obj, now: dig(obj, "spec", field) or default)


def resources(x509: X509 | None = None) -> Sequence[Resource]:
    """The group's resources; `x509` judges keys, requests and certificates."""
    requests = _Request(x509.check_request if x509 is not None else looks_like_request)
    return (
        Resource(
            CERTIFICATESIGNINGREQUESTS,
            "CertificateSigningRequest",
            requests,
            namespaced=False,
            short_names=("csr",),
            status=_RequestDoor(requests, "status"),
            subresources={"approval": Subresource(strategy=_RequestDoor(requests, "approval"))},
            columns=(
                NAME,
                AGE,
                _spec_text("SignerName", "signerName", "<none>"),
                _spec_text("Requestor", "username"),
                Column("RequestedDuration", _requested_duration),
                Column("Condition", _request_condition),
            ),
        ),
        Resource(
            CLUSTERTRUSTBUNDLES,
            "ClusterTrustBundle",
            _TrustBundle(),
            namespaced=False,
            columns=(NAME, _spec_text("SignerName", "signerName", "<none>")),
        ),
        pod_certificates.resource(x509),
    )


RESOURCES: Sequence[Resource] = resources()
