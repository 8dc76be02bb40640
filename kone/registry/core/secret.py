"""Secrets, and what each of their well-known types must hold."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence

import orjson

from kone.apimachinery.errors import FieldError, invalid_value, json_word, required, too_long
from kone.apimachinery.json_text import syntax_error
from kone.apimachinery.kinds import SECRETS as GVR_SECRETS
from kone.apimachinery.names import is_config_map_key
from kone.apimachinery.objects import Object
from kone.registry import pem
from kone.registry.core.configmap import MAX_BYTES, base64_size, frozen
from kone.registry.generic import IMMUTABLE
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check
from kone.registry.strategy import Strategy

SERVICE_ACCOUNT_NAME = "kubernetes.io/service-account.name"
_REDACTED = "<secret contents redacted>"
_DOCKER = {"kubernetes.io/dockercfg": ".dockercfg", "kubernetes.io/dockerconfigjson": ".dockerconfigjson"}


class _Secret(Strategy):
    def default(self, obj: Object) -> None:
        texts = obj.pop("stringData", None)
        if texts:
            data = obj["data"] = dict(obj.get("data") or {})
            for key, text in texts.items():
                data[key] = base64.b64encode(text.encode()).decode()
        if not obj.get("type"):
            obj["type"] = "Opaque"

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        if old is not None:
            if obj["type"] != old.get("type"):
                errors.append(invalid_value("type", obj["type"], IMMUTABLE))
            frozen(errors, obj, old, "data")
        data, size = obj.get("data") or {}, 0
        for key, value in data.items():
            check(errors, f"data[{key}]", key, is_config_map_key(key))
            size += base64_size(value)
        if size > MAX_BYTES:
            errors.append(too_long("data", MAX_BYTES))
        _of_type(errors, obj["type"], data, obj["metadata"].get("annotations") or {})
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if obj["type"] == "kubernetes.io/tls":
            data = obj.get("data") or {}
            wrong = _key_pair_problem(base64.b64decode(data["tls.crt"]), base64.b64decode(data["tls.key"]))
            if wrong:
                yield f"tls: {wrong}"

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return {"type": obj.get("type", "")}


def _of_type(errors: Errors, kind: str, data: Mapping[str, str], annotations: Mapping[str, str]) -> None:
    if kind == "kubernetes.io/service-account-token":
        if not annotations.get(SERVICE_ACCOUNT_NAME):
            errors.append(required(f"metadata.annotations[{SERVICE_ACCOUNT_NAME}]"))
    elif kind in _DOCKER:
        key = _DOCKER[kind]
        if key not in data:
            errors.append(required(f"data[{key}]"))
        elif wrong := _json_object_problem(base64.b64decode(data[key])):
            errors.append(invalid_value(f"data[{key}]", _REDACTED, wrong))
    elif kind == "kubernetes.io/basic-auth":
        if "username" not in data and "password" not in data:
            errors += required("data[username]"), required("data[password]")
    elif kind == "kubernetes.io/ssh-auth":
        if not data.get("ssh-privatekey"):
            errors.append(required("data[ssh-privatekey]"))
    elif kind == "kubernetes.io/tls":
        errors.extend(required(f"data[{key}]") for key in ("tls.crt", "tls.key") if key not in data)


def _json_object_problem(text: bytes) -> str:
    """Why the text is not a JSON object, in the words of Go's encoding/json; "" where it is one (or null)."""
    wrong = syntax_error(text)
    if wrong:
        return wrong
    value = orjson.loads(text)
    if value is None or isinstance(value, dict):
        return ""
    return f"json: cannot unmarshal {json_word(value)} into Go value of type map[string]interface {{}}"


def _key_pair_problem(certificate: bytes, key: bytes) -> str:
    """What keeps the two PEM texts from being a certificate and its key, as crypto/tls says it; "" for nothing.

    It looks at the PEM blocks only: whether the key fits the certificate is for those who serve with them.
    """
    found = _block_types(certificate)
    if not found:
        return "failed to find any PEM data in certificate input"
    if "CERTIFICATE" not in found:
        if len(found) == 1 and found[0].endswith("PRIVATE KEY"):
            text = "failed to find certificate PEM data in certificate input, but did find a private key"
            return f"{text}; PEM inputs may have been switched"
        text = 'failed to find "CERTIFICATE" PEM block in certificate input after skipping PEM blocks'
        return f"{text} of the following types: [{' '.join(found)}]"
    found = _block_types(key)
    if not found:
        return "failed to find any PEM data in key input"
    if not any(kind == "PRIVATE KEY" or kind.endswith(" PRIVATE KEY") for kind in found):
        if found == ["CERTIFICATE"]:
            return "found a certificate rather than a key in the PEM for the private key"
        text = 'failed to find PEM block with type ending in "PRIVATE KEY" in key input after skipping PEM blocks'
        return f"{text} of the following types: [{' '.join(found)}]"
    return ""


def _block_types(text: bytes) -> Sequence[str]:
    return [block.kind for block in pem.blocks(text.decode(errors="replace"))]


SECRETS = Resource(
    gvr=GVR_SECRETS,
    kind="Secret",
    strategy=_Secret(),
    columns=(
        NAME,
        Column("Type", lambda obj, now: obj.get("type", "")),
        Column("Data", lambda obj, now: len(obj.get("data") or ())),
        AGE,
    ),
)
