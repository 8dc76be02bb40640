"""Asks the webhook of a CustomResourceDefinition to convert objects, and takes from its answer what it may decide.

Of the metadata that are labels and annotations; all else stays as it was, and an answer that names another object is
refused. Review, rules and error texts: k8s.io/apiextensions-apiserver, pkg/apiserver/conversion/webhook_converter.go.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from kone.admission.webhooks import CallFailed
from kone.apimachinery.errors import FieldError, StatusError, aggregate, go_quote, go_type
from kone.apimachinery.objects import Object, deep_copy, gvk_of, metadata
from kone.registry.generic import validate_annotations, validate_labels

GROUP: Final = "apiextensions.k8s.io"
VERSIONS: Final = ("v1", "v1beta1")
TIMEOUT_S: Final = 30.0


class Caller(Protocol):
    """The part of WebhookClient that is needed."""

    async def call(self, config: Mapping[str, Any], body: Object, *, timeout_s: float) -> Any: ...


class BadAnswer(Exception):
    """What the webhook said cannot be used; the text says why."""


class ConversionWebhook:
    """The webhook that a definition's spec.conversion.webhook names."""

    def __init__(self, caller: Caller, webhook: Mapping[str, Any]) -> None:
        self._caller = caller
        self._config: Mapping[str, Any] = webhook["clientConfig"]
        self._versions: Sequence[str] = webhook.get("conversionReviewVersions") or ()

    async def ask(self, objects: Sequence[Object], api_version: str) -> list[Object]:
        """The objects in another version, in their order. Raises StatusError 500."""
        kind = gvk_text(objects[0])
        version = next((each for each in self._versions if each in VERSIONS), "")
        if not version:
            raise _failure("no supported conversion review versions")
        sent = review(objects, api_version, version, str(uuid.uuid4()))
        try:
            answer = await self._caller.call(self._config, sent, timeout_s=TIMEOUT_S)
            converted = converted_objects(answer, sent)
        except (CallFailed, BadAnswer) as error:
            raise _failure(f"conversion webhook for {kind} failed: {error}") from None
        if len(converted) != len(objects):
            text = f"returned {len(converted)} objects, expected {len(objects)}"
            raise _failure(f"conversion webhook for {kind} {text}")
        found = []
        for original, made in zip(objects, converted, strict=True):
            try:
                found.append(accepted(original, made, api_version))
            except BadAnswer as error:
                raise _failure(f"conversion webhook for {gvk_text(original)} returned invalid {error}") from None
        return found


def _failure(text: str) -> StatusError:
    return StatusError(500, "", text)


def gvk_text(obj: Mapping[str, Any]) -> str:
    """As errors name a kind: "example.com/v1, Kind=Widget"."""
    gvk = gvk_of(obj)
    return f"{gvk.group}/{gvk.version}, Kind={gvk.kind}"


def review(objects: Sequence[Object], api_version: str, version: str, uid: str) -> Object:
    """The ConversionReview that is sent."""
    request = {"uid": uid, "desiredAPIVersion": api_version, "objects": list(objects)}
    return {"kind": "ConversionReview", "apiVersion": f"{GROUP}/{version}", "request": request}


def converted_objects(answer: Any, sent: Object) -> list[Any]:
    """The objects of an answer, not looked at yet. Raises BadAnswer: with the webhook's own text where it says that it
    failed."""
    if not isinstance(answer, dict):
        text = f"json: cannot unmarshal {go_type(answer)} into Go value of type v1.ConversionReview"
        raise BadAnswer(f"couldn't get version/kind; json parse error: {text}")
    response = answer.get("response")
    if sent["apiVersion"] == f"{GROUP}/v1":
        wanted, given = gvk_text(sent), gvk_text(answer)
        if given != wanted:
            raise BadAnswer(f"expected webhook response of {wanted}, got {given}")
    if not isinstance(response, dict):
        raise BadAnswer("no response provided")
    uid = response.get("uid", "")
    if sent["apiVersion"] == f"{GROUP}/v1" and uid != sent["request"]["uid"]:
        raise BadAnswer(f"expected response.uid={go_quote(sent['request']['uid'])}, got {go_quote(uid)}")
    result = response.get("result") or {}
    if result.get("status") != "Success":
        status = result.get("status", "")
        raise BadAnswer(result.get("message") or f"response.result.status was '{status}', not 'Success'")
    found: list[Any] = response.get("convertedObjects") or []
    return found


def accepted(original: Object, made: Any, api_version: str) -> Object:
    """A converted object with the metadata that it may have. Raises BadAnswer; its text goes on after "invalid"."""
    if not isinstance(made, dict) or not made.get("kind"):
        raise BadAnswer("object at index 0: Object 'Kind' is missing")
    if made.get("apiVersion") != api_version:
        given = made.get("apiVersion", "")
        text = f"invalid groupVersion (expected {api_version}, received {given})"
        raise BadAnswer(f"object at index 0: {text}")
    if made["kind"] != original.get("kind"):
        text = f"invalid kind (expected {original.get('kind')}, received {made['kind']})"
        raise BadAnswer(f"object at index 0: {text}")
    about = made.get("metadata")
    before, after = metadata(original), about if isinstance(about, dict) else {}
    for field, name in (("name", "name"), ("namespace", "namespace"), ("uid", "UID")):
        if before.get(field, "") != after.get(field, ""):
            was, is_ = before.get(field, ""), after.get(field, "")
            raise BadAnswer(f"object: must have the same {name}: {was} != {is_}")
    if "metadata" not in made:
        raise BadAnswer("metadata: missing metadata in converted object")
    if not isinstance(about, dict):
        raise BadAnswer(f"metadata: invalid metadata of type {go_type(about)} in converted object")
    return {**made, "metadata": _restored(before, about)}


def _restored(before: Mapping[str, Any], after: Mapping[str, Any]) -> Object:
    found: Object = deep_copy(before)
    for field in ("labels", "annotations"):
        given = after.get(field)
        if given is None:
            found.pop(field, None)
            continue
        if not isinstance(given, dict):
            raise BadAnswer(f"metadata: invalid metadata.{field} of type {go_type(given)} in converted object")
        for key, value in given.items():
            if not isinstance(value, str):
                text = f"metadata.{field}[{key}] must be a string, but is {go_type(value)} in converted object"
                raise BadAnswer(f"metadata: {text}")
        if given != (found.get(field) or {}) and (errors := _findings(field, given)):
            raise BadAnswer(f"metadata: {aggregate(map(str, errors))}")
        found[field] = given
    return found


def _findings(field: str, given: Mapping[str, str]) -> list[FieldError]:
    if field == "labels":
        return list(validate_labels(given, "metadata.labels"))
    return list(validate_annotations(given, "metadata.annotation"))
