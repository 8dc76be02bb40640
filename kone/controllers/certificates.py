"""CertificateSigningRequests: those of kubelets approved, what is approved signed, and all cleared away in time; and
PodCertificateRequests that nobody needs any more."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Key, Object, dig, key_of, name_of, namespace_of, replace_in, uid_of
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, NotYet, Reconciler, Result, Watch, for_object

REQUESTS = GVR("certificates.k8s.io", "v1", "certificatesigningrequests")
POD_REQUESTS = GVR("certificates.k8s.io", "v1", "podcertificaterequests")
REVIEWS = GVR("authorization.k8s.io", "v1", "subjectaccessreviews")

SERVING = "kubernetes.io/kubelet-serving"
KUBELET_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"
CLIENT = "kubernetes.io/kube-apiserver-client"
LEGACY = "kubernetes.io/legacy-unknown"

VALID_S = 365 * 86400.0
SHORTEST_S = 600.0
BACKDATED_S = 300.0
SHORT_S = 8 * 3600.0  # certificates that live less are not ended early for being backdated
DECIDED_KEPT_S, WAITING_KEPT_S = 3600.0, 86400.0
POD_REQUEST_KEPT_S = 900.0


# The request inside the request


@dataclass(frozen=True, slots=True)
class Subject:
    """What a PKCS#10 request says of its holder."""

    common_name: str = ""
    organizations: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()


def pem_of(request: Object) -> bytes:
    return base64.b64decode(dig(request, "spec", "request", default=""))


def read_subject(request_pem: bytes) -> Subject:
    """Raises ValueError."""
    from cryptography import x509  # slow to import, and seldom needed
    from cryptography.x509.oid import NameOID

    parsed = x509.load_pem_x509_csr(request_pem)

    def of(oid: x509.ObjectIdentifier) -> tuple[str, ...]:
        return tuple(str(attribute.value) for attribute in parsed.subject.get_attributes_for_oid(oid))

    names: dict[str, tuple[str, ...]] = {"dns": (), "ips": (), "emails": (), "uris": ()}
    try:
        found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        names = {
            "dns": tuple(found.get_values_for_type(x509.DNSName)),
            "ips": tuple(str(ip) for ip in found.get_values_for_type(x509.IPAddress)),
            "emails": tuple(found.get_values_for_type(x509.RFC822Name)),
            "uris": tuple(found.get_values_for_type(x509.UniformResourceIdentifier)),
        }
    common = of(NameOID.COMMON_NAME)
    return Subject(common[-1] if common else "", of(NameOID.ORGANIZATION_NAME), **names)


# Decide

_KUBELET_USAGES = ("digital signature", "key encipherment")


def _usages_fault(usages: Sequence[str], purpose: str) -> str:
    """A kubelet's key signs and serves one purpose; one of RSA may encipher keys, too."""
    required = {*_KUBELET_USAGES, purpose}
    if set(usages) in (required, required - {"key encipherment"}):
        return ""
    return f"usages did not match [{' '.join(sorted(required))}]"


def kubelet_client_fault(subject: Subject, usages: Sequence[str]) -> str:
    """Why this is no request of a kubelet for its client certificate; "" where it is one."""
    if subject.organizations != ("system:nodes",):
        return "subject organization is not system:nodes"
    for names, kind in (
        (subject.dns, "DNS"),
        (subject.emails, "Email"),
        (subject.ips, "IP"),
        (subject.uris, "URI"),
    ):
        if names:
            return f"{kind} subjectAltNames are not allowed"
    if not subject.common_name.startswith("system:node:"):
        return "subject common name does not begin with system:node:"
    return _usages_fault(usages, "client auth")


def kubelet_serving_fault(subject: Subject, usages: Sequence[str]) -> str:
    if subject.organizations != ("system:nodes",):
        return "subject organization is not system:nodes"
    if not subject.dns and not subject.ips:
        return "DNS or IP subjectAltName is required"
    if subject.emails:
        return "Email subjectAltNames are not allowed"
    if subject.uris:
        return "URI subjectAltNames are not allowed"
    if fault := _usages_fault(usages, "server auth"):
        return fault
    if not subject.common_name.startswith("system:node:"):
        return "subject common name does not begin with system:node:"
    return ""


def client_fault(subject: Subject, usages: Sequence[str]) -> str:
    for usage in usages:
        if usage not in (*_KUBELET_USAGES, "client auth"):
            return f"invalid usage for client certificate: {usage}"
    return "" if "client auth" in usages else "missing required usage for client certificate: client auth"


SIGNERS: Mapping[str, Callable[[Subject, Sequence[str]], str]] = {
    SERVING: kubelet_serving_fault,
    KUBELET_CLIENT: kubelet_client_fault,
    CLIENT: client_fault,
    LEGACY: lambda subject, usages: "",
}
"""What each signer of the cluster refuses."""


def is_a(request: Object, kind: str) -> bool:
    return any(c.get("type") == kind for c in dig(request, "status", "conditions", default=()))


def is_issued(request: Object) -> bool:
    return bool(dig(request, "status", "certificate"))


def lifetime_s(request: Object) -> float:
    asked = dig(request, "spec", "expirationSeconds")
    return VALID_S if asked is None else min(VALID_S, max(SHORTEST_S, float(asked)))


def validity(request: Object, now: float) -> tuple[float, float]:
    lives = lifetime_s(request)
    return now - BACKDATED_S, now + lives - (0.0 if lives < SHORT_S else BACKDATED_S)


def end_of(request: Object) -> float | None:
    """When the request has served its purpose; None for never."""
    ends: list[float] = []
    conditions = dig(request, "status", "conditions", default=())
    if not conditions:
        ends.append(parse_time(request["metadata"]["creationTimestamp"]) + WAITING_KEPT_S)
    for condition in conditions:
        stamp = condition.get("lastUpdateTime")
        if stamp is None:
            continue
        if condition["type"] in ("Denied", "Failed"):
            ends.append(parse_time(stamp) + DECIDED_KEPT_S)
        elif condition["type"] == "Approved":
            ends.append(parse_time(stamp) + (DECIDED_KEPT_S if is_issued(request) else WAITING_KEPT_S))
            if is_issued(request):
                ends.append(_expiry(base64.b64decode(request["status"]["certificate"])))
    return min(ends, default=None)


def _expiry(certificate_pem: bytes) -> float:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc.timestamp()
    except ValueError:
        return float("inf")


# Act


class Approver(Reconciler):
    """Approves what kubelets ask for, where their right to it says so."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(REQUESTS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)

    async def reconcile(self, key: Key) -> Result | None:
        request = self.primary.get(*key)
        if request is None or is_issued(request) or is_a(request, "Approved") or is_a(request, "Denied"):
            return None
        spec = request["spec"]
        if spec.get("signerName") != KUBELET_CLIENT:
            return None
        try:
            subject = read_subject(pem_of(request))
        except ValueError as error:
            raise NotYet(f'unable to parse csr "{key.name}": {error}') from error
        if kubelet_client_fault(subject, spec.get("usages") or ()):
            return None
        rights = [("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")]
        if spec.get("username") == subject.common_name:
            message = "Auto approving self kubelet client certificate after SubjectAccessReview."
            rights.insert(0, ("selfnodeclient", message))
        for subresource, message in rights:
            if await self._may(spec, subresource):
                await self._approve(request, message)
                return None
        tried = " ".join(subresource for subresource, _ in rights)
        raise NotYet(f'recognized csr "{key.name}" as [{tried}] but subject access review was not approved')

    async def _may(self, spec: Object, subresource: str) -> bool:
        attributes = {
            "group": "certificates.k8s.io",
            "version": "*",
            "resource": "certificatesigningrequests",
            "subresource": subresource,
            "verb": "create",
        }
        asked: Object = {"resourceAttributes": attributes, "user": spec.get("username", "")}
        asked |= {field: spec[field] for field in ("uid", "groups", "extra") if field in spec}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": asked}
        answer = await self._ctx.client.create(REVIEWS, review)
        return bool(dig(answer, "status", "allowed", default=False))

    async def _approve(self, request: Object, message: str) -> None:
        approval = {"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message}
        approval["lastUpdateTime"] = format_time(self._ctx.clock.now())
        conditions = [*dig(request, "status", "conditions", default=()), approval]
        changed = replace_in(request, ("status", "conditions"), conditions)
        await self._ctx.client.update(REQUESTS, changed, subresource="approval")


class Signer(Reconciler):
    """Signs what is approved, for the four signers that the cluster's CA stands for."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(REQUESTS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)

    async def reconcile(self, key: Key) -> Result | None:
        request = self.primary.get(*key)
        if request is None or is_issued(request) or not is_a(request, "Approved"):
            return None
        if is_a(request, "Denied") or is_a(request, "Failed"):
            return None
        usages = dig(request, "spec", "usages", default=[])
        fault_of = SIGNERS.get(request["spec"].get("signerName", ""))
        if fault_of is None:
            return None
        now = self._ctx.clock.now()
        try:
            fault = fault_of(read_subject(pem_of(request)), usages)
            if not fault:
                pem = await self._ctx.settings.sign_request(pem_of(request), usages, *validity(request, now))
        except (ValueError, OSError) as error:
            raise NotYet(f'unable to sign csr "{key.name}": {error}') from error
        if fault:
            failure = {"type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": fault}
            failure["lastUpdateTime"] = format_time(now)
            conditions = [*dig(request, "status", "conditions", default=()), failure]
            changed = replace_in(request, ("status", "conditions"), conditions)
        else:
            encoded = base64.b64encode(pem.encode()).decode()
            changed = replace_in(request, ("status", "certificate"), encoded)
        await self._ctx.client.update(REQUESTS, changed, subresource="status")
        return None


class Cleaner(Reconciler):
    """Deletes requests that are decided, expired, or have waited for too long."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(REQUESTS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)

    async def reconcile(self, key: Key) -> Result | None:
        request = self.primary.get(*key)
        end = end_of(request) if request is not None else None
        if request is None or end is None or end == float("inf"):
            return None
        wait_s = end - self._ctx.clock.now()
        if wait_s > 0:
            return Result(after_s=wait_s)
        await _delete(self._ctx, REQUESTS, request)
        return None


class PodRequestCleaner(Reconciler):
    """Deletes the requests of pods: whoever made one has its certificate long before."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(POD_REQUESTS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, request: Object, previous: Object | None) -> Iterable[Key]:
        return (key_of(request),) if event == "ADDED" else ()

    async def reconcile(self, key: Key) -> Result | None:
        request = self.primary.get(*key)
        if request is None:
            return None
        created = parse_time(request["metadata"]["creationTimestamp"])
        wait_s = created + POD_REQUEST_KEPT_S - self._ctx.clock.now()
        if wait_s > 0:
            return Result(after_s=wait_s)
        await _delete(self._ctx, POD_REQUESTS, request)
        return None


async def _delete(ctx: Context, resource: GVR, obj: Object) -> None:
    try:
        await ctx.client.delete(resource, name_of(obj), namespace=namespace_of(obj), uid=uid_of(obj))
    except StatusError as error:
        if error.code not in (404, 409):
            raise


APPROVING_CONTROLLER = Controller(
    "certificatesigningrequest-approving-controller", Approver, account="certificate-controller", backoff_s=0.2
)
SIGNING_CONTROLLER = Controller(
    "certificatesigningrequest-signing-controller", Signer, account="certificate-controller", backoff_s=0.2
)
CLEANER_CONTROLLER = Controller(
    "certificatesigningrequest-cleaner-controller", Cleaner, account="certificate-controller"
)
POD_REQUEST_CLEANER_CONTROLLER = Controller(
    "podcertificaterequest-cleaner-controller", PodRequestCleaner, account="podcertificaterequestcleaner"
)
