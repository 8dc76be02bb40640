"""Certificates of this node's pods: a key made here, a PodCertificateRequest for it, the bundle once its signer has
issued, and another in good time before that one ends.

One record a podCertificate source of a volume. It is moved on whenever its volume is looked at (at mount, when its
request changes, once a minute), so there is no queue of its own. Nothing is kept over a restart: every source is asked
for again, as upstream does. Rules, events and texts: kubernetes/pkg/kubelet/podcertificate.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError, go_quote
from kone.apimachinery.kinds import GVR, NODES, SERVICEACCOUNTS
from kone.apimachinery.objects import Object, dig, name_of, namespace_of, uid_of
from kone.apimachinery.timestamps import parse_time
from kone.client.client import Client, EventType, Unsubscribe
from kone.client.events import EventRecorder
from kone.runtime.parts import VolumeError

log = logging.getLogger(__name__)

PODCERTIFICATEREQUESTS = GVR("certificates.k8s.io", "v1", "podcertificaterequests")
ASSUME_DELETED_S: Final = 600.0  # a request that is not seen for that long was deleted
OVERDUE_S: Final = 600.0  # a certificate is overdue that long after it should have been refreshed
JITTER_S: Final = 300.0  # so that not all certificates of a node are asked for at once

NewKey = Callable[[str], tuple[bytes, bytes]]
"""Key type -> (private key in PEM, PKCS#10 request in DER). May take seconds; raises ValueError."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a pod gets: PEM of its private key and of the certificates."""

    key: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate in use; times are Unix seconds."""

    bundle: Bundle
    refresh_at: float
    not_after: float
    told_overdue: bool = False
    told_expired: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that waits for its signer."""

    key: bytes
    name: str
    abandon_at: float


@dataclass(frozen=True, slots=True)
class Record:
    """Where one source stands. `refused` says why there will never be (another) certificate."""

    issued: Issued | None = None
    asked: Asked | None = None
    refused: str = ""


Event = tuple[str, str]
"""Reason and message of a warning."""


def judge(record: Record, request: Object | None, now: float, jitter_s: float) -> tuple[Record, list[Event]]:
    """What a request has become of; None where it is not seen."""
    asked = record.asked
    if asked is None:
        return record, []
    if request is None:
        return (replace(record, asked=None), []) if now > asked.abandon_at else (record, [])
    for condition in dig(request, "status", "conditions", default=()):
        kind, reason, message = (condition.get(field, "") for field in ("type", "reason", "message"))
        why = f"reason={go_quote(reason)} message={go_quote(message)}"
        name = f"{namespace_of(request)}/{name_of(request)}"
        told = f"reason={go_quote(reason)}, message={go_quote(message)}"
        match kind:
            case "Denied":
                text = f"PodCertificateRequest was permanently denied: {why}"
                return Record(refused=text), [("Denied", f"PodCertificateRequest {name} was denied, {told}")]
            case "Failed":
                text = f"PodCertificateRequest was permanently failed: {why}"
                return Record(refused=text), [("Failed", f"PodCertificateRequest {name} failed, {told}")]
            case "Issued":
                status = request["status"]
                bundle = Bundle(asked.key, clean_chain(status["certificateChain"]))
                refresh_at = parse_time(status["beginRefreshAt"]) + jitter_s
                return Record(Issued(bundle, refresh_at, parse_time(status["notAfter"]))), []
    return record, []


def remind(record: Record, now: float) -> tuple[Record, list[Event]]:
    """What is to be said, once, of a certificate that should have been followed by another."""
    issued, events = record.issued, list[Event]()
    if issued is None:
        return record, events
    if now > issued.refresh_at + OVERDUE_S and not issued.told_overdue:
        issued = replace(issued, told_overdue=True)
        events.append(("CertificateOverdueForRefresh", "PodCertificate refresh overdue"))
    if now > issued.not_after and not issued.told_expired:
        issued = replace(issued, told_expired=True)
        events.append(("CertificateExpired", "PodCertificate expired"))
    return replace(record, issued=issued), events


def clean_chain(text: str) -> bytes:
    """The certificates alone, without what stands between them or in their headers."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        inside = inside or line.startswith("-----BEGIN ")
        if inside and ":" not in line and line.strip():
            lines.append(line.strip())
        inside = inside and not line.startswith("-----END ")
    return "".join(f"{line}\n" for line in lines).encode()


def _is_open(record: Record, now: float) -> bool:
    issued = record.issued
    return not record.refused and (record.asked is not None or issued is None or now >= issued.refresh_at)


_Key = tuple[str, str, int]
"""Pod UID, volume, index of the source."""


class PodCertificates:
    """`changed(pod UID)` is called when a request of the pod's has changed."""

    def __init__(
        self,
        client: Client,
        recorder: EventRecorder,
        clock: Clock,
        node_name: str,
        new_key: NewKey,
    ) -> None:
        self._client, self._recorder, self._clock = client, recorder, clock
        self._node_name, self._new_key = node_name, new_key
        self._records: dict[_Key, Record] = {}
        self._requests = client.informer(PODCERTIFICATEREQUESTS, fields=f"spec.nodeName={node_name}")
        self.changed: Callable[[str], None] = lambda uid: None

    async def start(self) -> Unsubscribe:
        await self._requests.wait_synced()
        return self._requests.subscribe(self._on_request)

    def _on_request(self, event: EventType, request: Object, previous: Object | None) -> None:
        uid = dig(request, "spec", "podUID", default="")
        if any(key[0] == uid for key in self._records):
            self.changed(uid)

    async def get(self, pod: Object, volume: str, index: int, source: Object) -> Bundle:
        """The bundle for a pod's source. Raises VolumeError while there is none."""
        key = (uid_of(pod), volume, index)
        record = await self._advance(pod, self._records.get(key, Record()), source, key)
        if record.refused:
            raise VolumeError(record.refused)
        if record.issued is None:
            raise VolumeError("credential bundle is not issued yet")
        return record.issued.bundle

    async def _advance(self, pod: Object, record: Record, source: Object, key: _Key) -> Record:
        now = self._clock.now()
        if record.asked is not None:
            request = self._requests.get(namespace_of(pod), record.asked.name)
            record, events = judge(record, request, now, random.uniform(0, JITTER_S))
            self._tell(pod, events)
        record, events = remind(record, now)
        self._tell(pod, events)
        self._records[key] = record
        due = record.issued is None or now >= record.issued.refresh_at
        if due and record.asked is None and not record.refused:
            try:
                record = replace(record, asked=await self._ask(pod, source))
            except (StatusError, ValueError) as error:
                if record.issued is None:
                    raise VolumeError(f"credential bundle is not issued yet: {error}") from None
                log.warning("pod %s/%s: no new certificate: %s", namespace_of(pod), name_of(pod), error)
            self._records[key] = record
        return record

    def _tell(self, pod: Object, events: list[Event]) -> None:
        for reason, message in events:
            self._recorder.event(pod, "Warning", reason, message)

    async def _ask(self, pod: Object, source: Object) -> Asked:
        """Raises StatusError, and ValueError for a key type that there is not."""
        namespace, account = namespace_of(pod), dig(pod, "spec", "serviceAccountName", default="default")
        known = await self._client.get(SERVICEACCOUNTS, account, namespace)
        node = await self._client.get(NODES, self._node_name)
        private, proof = await asyncio.to_thread(self._new_key, source.get("keyType", ""))
        request = _request(pod, source, proof)
        request["spec"] |= {
            "serviceAccountName": account,
            "serviceAccountUID": uid_of(known),
            "nodeName": self._node_name,
            "nodeUID": uid_of(node),
        }
        made = await self._client.create(PODCERTIFICATEREQUESTS, request, namespace=namespace)
        log.info("pod %s/%s asks %s by %s", namespace, name_of(pod), source["signerName"], name_of(made))
        patience_s = ASSUME_DELETED_S + random.uniform(0, JITTER_S)
        return Asked(private, name_of(made), self._clock.now() + patience_s)

    def due(self) -> Iterator[str]:
        """UIDs of pods that have a certificate to be asked for or a request to be looked at."""
        now = self._clock.now()
        yield from {key[0] for key, record in self._records.items() if _is_open(record, now)}

    def forget(self, pod_uid: str) -> None:
        for key in [key for key in self._records if key[0] == pod_uid]:
            del self._records[key]


def _request(pod: Object, source: Object, proof: bytes) -> Object:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": name_of(pod), "uid": uid_of(pod)}
    spec: Object = {
        "signerName": source.get("signerName", ""),
        "podName": name_of(pod),
        "podUID": uid_of(pod),
        "stubPKCS10Request": base64.b64encode(proof).decode(),
    }
    if (seconds := source.get("maxExpirationSeconds")) is not None:
        spec["maxExpirationSeconds"] = seconds
    if annotations := source.get("userAnnotations"):
        spec["unverifiedUserAnnotations"] = dict(annotations)
    metadata = {"generateName": "req-", "namespace": namespace_of(pod), "ownerReferences": [owner]}
    return {
        "apiVersion": PODCERTIFICATEREQUESTS.api_version,
        "kind": "PodCertificateRequest",
        "metadata": metadata,
        "spec": spec,
    }
