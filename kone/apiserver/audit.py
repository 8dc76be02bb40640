"""The audit log: who asked for what and how it was answered, as far as a policy wants it recorded.

A request that is recorded has a `Record`, which those who serve it tell what they see: the object it brought, whether
it was allowed, what admission notes. It becomes a line of JSON (audit.k8s.io/v1 Event) at each stage: when it was
received, when a long answer began, when it was complete, or when it failed with an error of the server's own.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson
from aiohttp import web
from multidict import CIMultiDictProxy

from kone.aio.clock import Clock
from kone.apimachinery import protobuf
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import format_micro_time
from kone.apimachinery.users import User
from kone.apiserver import codec, yaml_text
from kone.apiserver.audit_policy import (
    PANIC,
    REQUEST_RECEIVED,
    RESPONSE_COMPLETE,
    RESPONSE_STARTED,
    Policy,
    Recording,
)
from kone.apiserver.requests import RequestInfo
from kone.auth.authentication import user_info

log = logging.getLogger(__name__)

USER_AGENT_MAX: Final = 1024
DECISION: Final = "authorization.k8s.io/decision"
REASON: Final = "authorization.k8s.io/reason"
_LONG_VERBS: Final = frozenset(("watch", "proxy"))
_LONG_SUBRESOURCES: Final = frozenset(("attach", "exec", "log", "portforward", "proxy"))


class Sink(Protocol):
    """Where the lines go (aio.rotating_file)."""

    def write(self, line: bytes) -> None: ...
    def close(self) -> None: ...


def is_long_running(info: RequestInfo) -> bool:
    """Whether a request may last: its answer's beginning is a stage of its own, and no time limit holds for it."""
    return info.verb in _LONG_VERBS or info.subresource in _LONG_SUBRESOURCES


class Audit:
    """The policy, and where events are written."""

    def __init__(self, policy: Policy, sink: Sink, clock: Clock) -> None:
        self._policy, self._sink, self._clock = policy, sink, clock
        self.events = 0
        """Events written so far."""

    def begin(
        self, request: web.BaseRequest, audit_id: str, info: RequestInfo, access: AccessRequest, user: User
    ) -> Record | None:
        """Record a request whose user is known. None where the policy does not want it."""
        recording = self._policy.recording(user, access)
        if recording is None:
            return None
        record = Record(self, request, audit_id, info, recording, user)
        record.write(REQUEST_RECEIVED)
        return record

    def refused(
        self, request: web.BaseRequest, audit_id: str, info: RequestInfo, access: AccessRequest, tried: str
    ) -> None:
        """Record a request whose user could not be told from the credentials that it brought ("bearer", "x509")."""
        nobody = User("")
        recording = self._policy.recording(nobody, access)
        if recording is not None:
            record = Record(self, request, audit_id, info, recording, nobody)
            why = f"attempted: {tried}" if tried else "no credentials provided"
            record.status = {"metadata": {}, "message": f"Authentication failed, {why}", "code": 401}
            record.write(RESPONSE_STARTED)

    def now(self) -> float:
        return self._clock.now()

    def write(self, event: Mapping[str, Any]) -> None:
        self.events += 1
        try:
            self._sink.write(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE))
        except (OSError, TypeError) as error:
            log.error("audit event %s of %s is lost: %s", event["auditID"], event["requestURI"], error)

    def close(self) -> None:
        self._sink.close()


class Record:
    """What is known of one request so far. `annotations` are those of authorization and admission."""

    def __init__(
        self,
        audit: Audit,
        request: web.BaseRequest,
        audit_id: str,
        info: RequestInfo,
        recording: Recording,
        user: User,
    ) -> None:
        self._audit, self._recording = audit, recording
        self._received = audit.now()
        self._long = is_long_running(info)
        self._begun = self._ended = False
        self.annotations: dict[str, str] = {}
        self.status: Object | None = None
        self.id = audit_id
        self._request: Object = {
            "requestURI": request.raw_path,
            "verb": info.verb,
            "user": user_info(user) if user.name else {},
        }
        agent = request.headers.get("User-Agent", "")
        self._origin: Object = {
            "sourceIPs": source_ips(request.headers, request.remote),
            "userAgent": agent if len(agent) <= USER_AGENT_MAX else agent[:USER_AGENT_MAX] + "...TRUNCATED",
        }
        self._reference: Object | None = None
        if info.resource:
            named = {
                "resource": info.resource,
                "namespace": info.namespace,
                "name": info.name,
                "uid": "",
                "apiGroup": info.group,
                "apiVersion": info.version,
                "resourceVersion": "",
                "subresource": info.subresource,
            }
            self._reference = named
        self._bodies: Object = {}

    def impersonates(self, user: User) -> None:
        self._request["impersonatedUser"] = user_info(user)

    def authorized(self, allowed: bool, reason: str) -> None:
        self.annotations[DECISION] = "allow" if allowed else "forbid"
        self.annotations[REASON] = reason

    def brings(self, obj: Any) -> None:
        """The request's object, or its patch."""
        meta = obj.get("metadata") if isinstance(obj, dict) else None
        if isinstance(meta, dict) and self._reference is not None:
            for key in ("namespace", "name", "uid", "resourceVersion"):
                if not self._reference[key] and isinstance(meta.get(key), str):
                    self._reference[key] = meta[key]
        if self._recording.takes_requests:
            self._bodies["requestObject"] = orjson.Fragment(orjson.dumps(self._kept(obj)))

    def answer_begins(self, response: web.StreamResponse) -> None:
        """The head of the answer is about to be sent."""
        if self._long and not self._begun:
            self._begun = True
            self.status = self.status or {"metadata": {}, "code": response.status}
            self.write(RESPONSE_STARTED)

    def ends(self, response: web.StreamResponse | None) -> None:
        """The request was answered; None: the client left before. Only its first end counts."""
        if self._ended:
            return
        self._ended = True
        if response is None:
            early = {"metadata": {}, "status": "Success", "message": "Connection closed early", "code": 200}
            self.status = self.status or early
        else:
            self._see(response)
        if self._long and not self._begun:
            self._begun = True
            self.write(RESPONSE_STARTED)
        self.write(RESPONSE_COMPLETE)

    def panics(self, error: Exception) -> None:
        """The request failed by an error of the server's own."""
        self._ended = True
        text = f"APIServer panic'd: {type(error).__name__}: {error}"
        self.status = {"metadata": {}, "status": "Failure", "message": text, "reason": "InternalError", "code": 500}
        self.write(PANIC)

    def _see(self, response: web.StreamResponse) -> None:
        """Read what was answered: a Status, and the object where it is wanted."""
        if self.status is None or "code" not in self.status:
            self.status = {"metadata": {}, "code": response.status}
        body = response.body if isinstance(response, web.Response) else None
        if not isinstance(body, bytes) or not body:
            return
        wanted = self._recording.takes_responses
        if not wanted and response.status < 400 and not body.startswith(b'{"kind":"Status"'):
            return
        packed = response.headers.get("Content-Encoding") == "gzip"
        answered = _decoded(gzip.decompress(body) if packed else body, response.content_type)
        if not isinstance(answered, dict):
            return
        if answered.get("kind") == "Status" and answered.get("apiVersion") == "v1":
            said = {key: answered[key] for key in ("status", "message", "reason", "details") if answered.get(key)}
            self.status = {"metadata": {}, **said, "code": response.status}
        if wanted:
            self._bodies["responseObject"] = self._kept(answered)

    def _kept(self, obj: Any) -> Any:
        """An object, list or table without managedFields, where the policy leaves them out."""
        if not self._recording.omit_managed_fields or not isinstance(obj, dict):
            return obj
        kept = _without_managed_fields(obj)
        if isinstance(items := obj.get("items"), list):
            kept["items"] = [_without_managed_fields(item) for item in items]
        if obj.get("kind") == "Table" and isinstance(rows := obj.get("rows"), list):
            kept["rows"] = [{**row, "object": _without_managed_fields(row.get("object"))} for row in rows]
        return kept

    def write(self, stage: str) -> None:
        if stage in self._recording.omit_stages:
            return
        reference = self._reference
        event: Object = {
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": self._recording.level,
            "auditID": self.id,
            "stage": stage,
            **self._request,
            **self._origin,
        }
        if reference is not None:
            event["objectRef"] = {key: value for key, value in reference.items() if value}
        if self.status is not None:
            event["responseStatus"] = self.status
        event |= self._bodies
        moment = self._received if stage == REQUEST_RECEIVED else self._audit.now()
        event["requestReceivedTimestamp"] = format_micro_time(self._received)
        event["stageTimestamp"] = format_micro_time(moment)
        if self.annotations:
            event["annotations"] = dict(sorted(self.annotations.items()))
        self._audit.write(event)


def _without_managed_fields(obj: Any) -> Any:
    if not isinstance(obj, dict) or not isinstance(meta := obj.get("metadata"), dict):
        return obj
    return {**obj, "metadata": {key: value for key, value in meta.items() if key != "managedFields"}}


def _decoded(body: bytes, content_type: str) -> Any:
    """An answer's object, whatever form it has; None where it is none."""
    try:
        if content_type == codec.JSON:
            return orjson.loads(body)
        if content_type == codec.PROTOBUF:
            return protobuf.decode(body)
        return yaml_text.load(body)[0] if content_type == codec.YAML else None
    except (ValueError, StatusError):
        return None


def source_ips(headers: CIMultiDictProxy[str], remote: str | None) -> list[str]:
    """Where a request comes from, through proxies: X-Forwarded-For, X-Real-Ip, and who is connected."""
    found = [part.strip() for part in headers.get("X-Forwarded-For", "").split(",") if part.strip()]
    real = headers.get("X-Real-Ip", "").strip()
    if real and real not in found:
        found.append(real)
    if remote and (not found or found[-1] != remote):
        found.append(remote)
    return found
