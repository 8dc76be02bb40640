"""What goes wrong, in Kubernetes' words: metav1.Status with reason, code and causes, and the field errors behind it.

StatusError is the only exception that verbs, admission and clients raise for a refused request; the API server writes
it as it is. The texts are those of k8s.io/apimachinery (api/errors, util/validation/field).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = dict[str, Any]


class StatusError(Exception):
    """A request that the API refuses. `status` is the metav1.Status body; its code is the HTTP status."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        self._has_details = details is not None  # upstream answers an empty "details" for some errors, none for others
        self.headers = dict(headers or {})
        self.warnings: Sequence[str] = ()
        """What the request was warned of before it was refused."""

    @property
    def status(self) -> Status:
        body: Status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        if self.message:
            body["message"] = self.message
        if self.reason:
            body["reason"] = self.reason
        if self._has_details:
            body["details"] = self.details
        body["code"] = self.code
        return body

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> StatusError:
        """The error that a server's Status answer stands for."""
        return cls(
            int(status.get("code") or 500),
            str(status.get("reason") or ""),
            str(status.get("message") or ""),
            details=status.get("details"),
        )


def _details(group_resource: str, name: str = "", **more: Any) -> dict[str, Any]:
    resource, _, group = group_resource.partition(".")
    found: dict[str, Any] = {"name": name, "group": group, "kind": resource, **more}
    return {k: v for k, v in found.items() if v not in ("", None)}


def not_found(group_resource: str, name: str) -> StatusError:
    """404 NotFound; group_resource as "pods" or "deployments.apps"."""
    return StatusError(
        404, "NotFound", f"{group_resource} {go_quote(name)} not found", details=_details(group_resource, name)
    )


def already_exists(group_resource: str, name: str) -> StatusError:
    return StatusError(
        409,
        "AlreadyExists",
        f"{group_resource} {go_quote(name)} already exists",
        details=_details(group_resource, name),
    )


def conflict(group_resource: str, name: str, why: str) -> StatusError:
    message = f"Operation cannot be fulfilled on {group_resource} {go_quote(name)}: {why}"
    return StatusError(409, "Conflict", message, details=_details(group_resource, name))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def forbidden(group_resource: str, name: str, why: str) -> StatusError:
    """403; the text differs with what is known, as apierrors.NewForbidden."""
    if not group_resource:
        message = f"forbidden: {why}"
    elif not name:
        message = f"{group_resource} is forbidden: {why}"
    else:
        message = f"{group_resource} {go_quote(name)} is forbidden: {why}"
    return StatusError(403, "Forbidden", message, details=_details(group_resource, name))


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def method_not_supported(group_resource: str, verb: str) -> StatusError:
    message = f"{verb} is not supported on resources of kind {go_quote(group_resource)}"
    return StatusError(405, "MethodNotAllowed", message, details=_details(group_resource))


def expired(message: str) -> StatusError:
    """410 Expired: a resourceVersion or continue token that history no longer covers."""
    return StatusError(410, "Expired", message)


def too_many_requests(message: str, retry_after_s: int) -> StatusError:
    details: dict[str, Any] = {"retryAfterSeconds": retry_after_s} if retry_after_s else {}
    return StatusError(
        429, "TooManyRequests", message, details=details, headers={"Retry-After": str(retry_after_s or 1)}
    )


def internal_error(why: str) -> StatusError:
    return StatusError(500, "InternalError", f"Internal error occurred: {why}", details={"causes": [{"message": why}]})


def service_unavailable(why: str) -> StatusError:
    return StatusError(503, "ServiceUnavailable", why)


def aggregate(texts: Iterable[str]) -> str:
    """Several errors as one text (utilerrors.NewAggregate): each once, in brackets where there are more."""
    found = list(dict.fromkeys(texts))
    return found[0] if len(found) == 1 else "[" + ", ".join(found) + "]"


def invalid(group_kind: str, name: str, errors: Sequence[FieldError]) -> StatusError:
    """422 Invalid with one cause a field error; group_kind as "Pod" or "Deployment.apps"."""
    causes = [{"reason": e.kind, "message": e.body(), "field": e.field} for e in errors]
    why = aggregate(map(str, errors))
    message = f"{group_kind} {go_quote(name)} is invalid: {why}"
    details = _details(group_kind, name)
    if causes:
        details["causes"] = causes
    return StatusError(422, "Invalid", message, details=details)


FieldErrorKind = Literal[
    "FieldValueRequired",
    "FieldValueInvalid",
    "FieldValueDuplicate",
    "FieldValueNotSupported",
    "FieldValueForbidden",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
    "FieldValueNotFound",
    "InternalError",
]

_TITLES: Mapping[str, str] = {
    "FieldValueRequired": "Required value",
    "FieldValueInvalid": "Invalid value",
    "FieldValueDuplicate": "Duplicate value",
    "FieldValueNotSupported": "Unsupported value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueTooLong": "Too long",
    "FieldValueTooMany": "Too many",
    "FieldValueTypeInvalid": "Invalid value",
    "FieldValueNotFound": "Not found",
    "InternalError": "Internal error",
}
_VALUELESS = {"FieldValueRequired", "FieldValueForbidden", "FieldValueTooLong", "FieldValueTooMany", "InternalError"}


OMITTED: Any = object()
"""The value of an error that does not show it (field.OmitValueType)."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One finding about one field (field.Error). `field` is its path, e.g. "spec.containers[0].name"."""

    kind: FieldErrorKind
    field: str
    detail: str = ""
    value: Any = None

    def body(self) -> str:
        """The error without its path: "Invalid value: \\"x\\": must be …"."""
        text = _TITLES[self.kind]
        if self.kind not in _VALUELESS and self.value is not OMITTED:
            text += f": {go_value(self.value)}"
        return f"{text}: {self.detail}" if self.detail else text

    def __str__(self) -> str:
        return f"{self.field}: {self.body()}"


def required(field: str, detail: str = "") -> FieldError:
    return FieldError("FieldValueRequired", field, detail)


def invalid_value(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("FieldValueInvalid", field, detail, value)


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueDuplicate", field, "", value)


def not_supported(field: str, value: Any, supported: Iterable[str]) -> FieldError:
    """`supported` in upstream's order: sorted where upstream sorts its set."""
    return FieldError(
        "FieldValueNotSupported", field, "supported values: " + ", ".join(go_quote(v) for v in supported), value
    )


def forbidden_field(field: str, detail: str) -> FieldError:
    return FieldError("FieldValueForbidden", field, detail)


def too_long(field: str, max_bytes: int) -> FieldError:
    return FieldError(
        "FieldValueTooLong", field, f"may not be more than {max_bytes} {'byte' if max_bytes == 1 else 'bytes'}"
    )


def too_many(field: str, actual: int, max_items: int) -> FieldError:
    noun = "item" if max_items == 1 else "items"
    return FieldError("FieldValueTooMany", field, f"{actual}: must have at most {max_items} {noun}")


def type_invalid(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("FieldValueTypeInvalid", field, detail, value)


def field_not_found(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueNotFound", field, "", value)


_GO_ESCAPES: Mapping[str, str] = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}


def go_quote(text: str) -> str:
    """A string as Go's %q writes it."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_GO_ESCAPES.get(c) or (c if c.isprintable() else _go_escape(ord(c))) for c in text) + '"'


def _go_escape(code: int) -> str:
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def go_value(value: Any) -> str:
    """A value as field errors print it: strings quoted, structures as JSON, nothing as null."""
    if isinstance(value, str):
        return go_quote(value)
    return go_json(value)


def go_json(value: Any, indent: int | None = None) -> str:
    """A value as encoding/json writes it: compact, or with `indent` spaces a level."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False)
    return text.translate(_JSON_ESCAPED)


_JSON_ESCAPED = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
"""What encoding/json escapes though JSON does not ask for it."""


def json_word(value: Any) -> str:
    """What Go's JSON decoder calls a decoded value: "string", "number", "bool", "array", "object"."""
    match value:
        case str():
            return "string"
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case list():
            return "array"
    return "object"


def go_type(value: Any) -> str:
    """What Go's %T says of decoded JSON: "map[string]interface {}", "int64"."""
    match value:
        case None:
            return "<nil>"
        case str():
            return "string"
        case bool():
            return "bool"
        case int():
            return "int64"
        case float():
            return "float64"
        case list():
            return "[]interface {}"
    return "map[string]interface {}"


def go_format(value: Any) -> str:
    """A value as Go's %v prints decoded JSON: map[a:1 b:[x y]], <nil>."""
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{go_format(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + " ".join(map(go_format, value)) + "]"
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
