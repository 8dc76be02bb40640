"""Request bodies: JSON, YAML and protobuf to objects, and what upstream says of those that cannot be read.

Which fields a kind has and of which type is the schema's (`Verbs.decoded`); here it is only settled that the body is
an object of the kind that the URL wants.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from kone.apimachinery import json_text, schema
from kone.apimachinery.errors import StatusError, bad_request, go_quote
from kone.apimachinery.kinds import GVK, parse_api_version
from kone.apimachinery.objects import Object
from kone.apiserver import yaml_text

JSON: Final = "application/json"
YAML: Final = "application/yaml"
PROTOBUF: Final = "application/vnd.kubernetes.protobuf"
BODY_MAX_BYTES: Final = 3 * 1024 * 1024

_KEY = re.compile(rb'"\s*:')
_SCHEME: Final = 'in scheme "pkg/runtime/scheme.go:111"'
_TYPE_META: Final = (
    'type struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }'
)
# Versions that upstream still knows the types of, though it serves them no more.
_RETIRED: Final = frozenset({("extensions", "v1beta1"), ("apps", "v1beta1"), ("apps", "v1beta2")})


@dataclass(slots=True)
class Body:
    """A decoded body. `strict_errors` are what strict decoding finds wrong with the text itself: fields given twice."""

    obj: Object
    strict_errors: list[str] = field(default_factory=list)


def media_type(content_type: str) -> str:
    """The media type of a Content-Type header, without its parameters; no header means JSON."""
    return content_type.partition(";")[0].strip().lower() if content_type else JSON


def unsupported_media_type() -> StatusError:
    types = ", ".join((JSON, YAML, PROTOBUF))
    return StatusError(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format - accepted media types include: {types}",
    )


def too_large() -> StatusError:
    return StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {BODY_MAX_BYTES}")


def decode(body: bytes, content_type: str, want: GVK, *, also: Sequence[GVK] = ()) -> Body:
    """The object in a body that is to be of kind `want`, or of one that is taken for it. Raises 400 and 415."""
    found = parse(body, content_type, want.kind)
    if not any(found.obj.get("apiVersion") == gvk.api_version and found.obj.get("kind") == gvk.kind for gvk in also):
        _check_kind(found.obj, body, want)
    return found


def parse(body: bytes, content_type: str, kind: str) -> Body:
    """The object in a body, of whatever kind; `kind` is for the error's words. Raises 400 and 415."""
    media = media_type(content_type)
    if media == JSON:
        return _from_json(body, kind)
    if media == YAML:
        try:
            value, strict_errors = yaml_text.load(body)
        except yaml_text.YamlError as error:
            raise unrecognized(kind, f"yaml: {error}", body) from error
        # yaml.v2 tells all of them as one error.
        twice = ["yaml: unmarshal errors:\n  " + "\n  ".join(strict_errors)] if strict_errors else []
        return Body(_as_object(value, kind, body), twice)
    if media == PROTOBUF:
        return Body(_from_protobuf(body))
    raise unsupported_media_type()


def _from_json(body: bytes, kind: str) -> Body:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        why = json_text.syntax_error(body)
        if why:
            raise unrecognized(kind, f"couldn't get version/kind; json parse error: {why}", body) from None
        value = _lenient(body)
    value, twice = _seen_twice(value, body)
    return Body(_as_object(value, kind, body), [f"duplicate field {go_quote(path)}" for path in twice])


def _seen_twice(value: Any, body: bytes) -> tuple[Any, list[str]]:
    """(what the body says, the paths of fields that it gives more than once); `value` is how orjson read it. Raises 400
    for what is nested too deeply."""
    if isinstance(value, (dict, list)) and json_text.too_deep(body, value):
        raise bad_request("couldn't get version/kind; json parse error: exceeded max depth")
    if len(_KEY.findall(body)) > json_text.count_keys(value):
        return json_text.with_duplicates(body)
    return value, []


def _from_protobuf(body: bytes) -> Object:
    from kone.apimachinery.protobuf import decode  # many servers never see such a body

    return decode(body)


def _lenient(body: bytes) -> Any:
    try:
        return json_text.lenient(body)
    except ValueError as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from None


def parse_patch(body: bytes) -> tuple[Any, list[str]]:
    """(the JSON of a patch, the paths of members that it gives more than once). Raises 400."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        if json_text.syntax_error(body):
            raise bad_request("invalid JSON patch") from None
        value = _lenient(body)
    return _seen_twice(value, body)


def parse_delete_options(body: bytes, content_type: str) -> Object:
    """A DeleteOptions body, of whichever group. Raises 400 and 415."""
    media = media_type(content_type)
    if media == JSON:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            if why := json_text.syntax_error(body):
                raise bad_request(f"couldn't get version/kind; json parse error: {why}") from None
            value = _lenient(body)
    elif media == YAML:
        try:
            value, _ = yaml_text.load(body)
        except yaml_text.YamlError as error:
            raise bad_request(f"yaml: {error}") from error
    elif media == PROTOBUF:
        value = _from_protobuf(body)
    else:
        raise unsupported_media_type()
    if value is None:
        return {}
    value, _ = _seen_twice(value, body)
    if not isinstance(value, dict):
        raise bad_request(f"couldn't get version/kind; json parse error: json: cannot unmarshal {go_type(value)}")
    if value.get("kind", "DeleteOptions") != "DeleteOptions":
        raise bad_request("decoded object cannot be converted to DeleteOptions")
    decoded, _ = schema.strict_decode(value, GVK("", "v1", "DeleteOptions"))
    return decoded


def unrecognized(kind: str, why: str, body: bytes) -> StatusError:
    return bad_request(f"the object provided is unrecognized (must be of type {kind}): {why} ({_summary(body)})")


def _summary(body: bytes, length: int = 30) -> str:
    if not body:
        return "<empty>"
    shown = body[:length]
    text = shown.decode("utf-8", "replace") if body[:1] == b"{" else shown.hex()
    return text + " ..." if len(body) > length else text


def _as_object(value: Any, kind: str, body: bytes) -> Object:
    if value is None:
        return {}
    prefix = "couldn't get version/kind; json parse error: json: cannot unmarshal"
    if not isinstance(value, dict):
        raise unrecognized(kind, f"{prefix} {go_type(value)} into Go value of {_TYPE_META}", body)
    for name in ("apiVersion", "kind"):
        given = value.get(name)
        if given is not None and not isinstance(given, str):
            raise unrecognized(kind, f"{prefix} {go_type(given)} into Go struct field .{name} of type string", body)
    return value


def go_type(value: Any) -> str:
    """What encoding/json calls a value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _check_kind(obj: Object, body: bytes, want: GVK) -> None:
    """Raises 400 where the body says that it is of another kind; what it leaves out is what the URL says."""
    api_version, kind = obj.get("apiVersion") or "", obj.get("kind") or want.kind
    if (not api_version or api_version == want.api_version) and kind == want.kind:
        return
    if api_version.count("/") > 1:
        raise unrecognized(want.kind, f"unexpected GroupVersion string: {api_version}", body)
    group, version = parse_api_version(api_version) if api_version else (want.group, want.version)
    given = GVK(group, version, kind)
    if not version:
        why = f"Object 'apiVersion' is missing in '{body.decode('utf-8', 'replace')}'"
    elif not _is_known(given):
        why = f"no kind {go_quote(kind)} is registered for version {go_quote(given.api_version)} {_SCHEME}"
    elif kind != want.kind:
        why = f"converting ({version}.{kind}) to ({internal_type(want)}): unknown conversion"
    else:
        raise bad_request(
            f"the API version in the data ({given.api_version}) does not match the expected API version "
            f"({want.api_version})"
        )
    raise bad_request(f"{kind} in version {go_quote(version)} cannot be handled as a {want.kind}: {why}")


def internal_type(gvk: GVK) -> str:
    """A kind as upstream's internal Go type, which some of its errors name: "core.Pod", "apps.Deployment"."""
    package = "core" if gvk.group in ("", "events.k8s.io") else gvk.group.partition(".")[0]
    return f"{package}.{gvk.kind}"


def _is_known(gvk: GVK) -> bool:
    if (gvk.group, gvk.version) in _RETIRED:
        return gvk.kind in ("Deployment", "ReplicaSet", "DaemonSet", "StatefulSet", "Ingress", "NetworkPolicy")
    return schema.definition_of(gvk) is not None or (gvk.group == "" and gvk.kind in ("List", "Status"))
