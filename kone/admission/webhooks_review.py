"""AdmissionReview, the conversation with a webhook: the request as it is sent, the answer as it is judged.

Texts and rules: k8s.io/apiserver, pkg/admission/plugin/webhook/request and /errors.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from kone.admission.plugin import Attributes
from kone.admission.policy_variables import request_object
from kone.admission.webhooks_matching import Invocation
from kone.apimachinery.errors import StatusError, go_quote
from kone.apimachinery.objects import Object

GROUP = "admission.k8s.io"
VERSIONS = ("v1", "v1beta1")


class BadAnswer(Exception):
    """What a webhook answered is no answer to what it was asked."""


@dataclass(frozen=True, slots=True)
class Response:
    allowed: bool
    status: Mapping[str, Any] | None = None
    patch: list[Any] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


def review(
    a: Attributes, invocation: Invocation, uid: str, versions: list[str], obj: Object | None, old: Object | None
) -> Object:
    """What is sent: in the first of the webhook's versions that there is. Raises BadAnswer where there is none."""
    version = next((each for each in versions if each in VERSIONS), "")
    if not version:
        raise BadAnswer("webhook does not accept known AdmissionReview versions (v1, v1beta1)")
    request: Object = {"uid": uid, **request_object(a, invocation)}
    request["object"] = obj
    request["oldObject"] = old
    request["dryRun"] = a.dry_run
    request["options"] = a.options or None
    return {"kind": "AdmissionReview", "apiVersion": f"{GROUP}/{version}", "request": request}


def read(answer: Any, sent: Object, *, mutating: bool) -> Response:
    """Raises BadAnswer."""
    if not isinstance(answer, dict):
        raise BadAnswer("couldn't get version/kind; json parse error: json: cannot unmarshal answer into Go value")
    response = answer.get("response")
    version = sent["apiVersion"].rpartition("/")[2]
    if version == "v1":
        wanted = f"{GROUP}/v1, Kind=AdmissionReview"
        given = f"{answer.get('apiVersion', '')}, Kind={answer.get('kind', '')}"
        if given != wanted:
            raise BadAnswer(f"expected webhook response of {wanted}, got {given}")
    if not isinstance(response, dict):
        raise BadAnswer("webhook response was absent")
    if version == "v1" and response.get("uid", "") != sent["request"]["uid"]:
        got = go_quote(response.get("uid", ""))
        raise BadAnswer(f"expected response.uid={go_quote(sent['request']['uid'])}, got {got}")
    patch = _patch(response, version) if mutating else []
    return Response(
        bool(response.get("allowed")),
        response.get("status"),
        patch,
        tuple(response.get("warnings") or ()),
        response.get("auditAnnotations") or {},
    )


def _patch(response: Mapping[str, Any], version: str) -> list[Any]:
    text, kind = response.get("patch"), response.get("patchType")
    if version == "v1":
        if text and kind is None:
            raise BadAnswer("webhook returned response.patch but not response.patchType")
        if not text and kind is not None:
            raise BadAnswer("webhook returned response.patchType but not response.patch")
    if not text:
        return []
    if kind not in (None, "JSONPatch"):
        raise BadAnswer(f"invalid response.patchType of {go_quote(str(kind))}")
    try:
        found = orjson.loads(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadAnswer(f"response.patch cannot be decoded: {error}") from None
    if not isinstance(found, list):
        raise BadAnswer("response.patch is no list of operations")
    return found


def denial(name: str, status: Mapping[str, Any] | None) -> StatusError:
    """The refusal that a webhook's status stands for."""
    status = status or {}
    denied = f"admission webhook {go_quote(name)} denied the request"
    why = status.get("message") or status.get("reason") or ""
    code = int(status.get("code") or 0)
    return StatusError(
        code if code >= 400 else 400,
        status.get("reason") or "",
        f"{denied}: {why}" if why else f"{denied} without explanation",
        details=status.get("details"),
    )
