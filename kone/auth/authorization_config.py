"""Files of kind AuthorizationConfiguration (apiserver.config.k8s.io): who is asked whether a user may, in which order.

Source: k8s.io/apiserver, apis/apiserver/validation and authorization/cel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kone.apimachinery import config_files
from kone.apimachinery.cel import (
    BOOL,
    STRING,
    CelSyntaxError,
    Environment,
    FieldTable,
    Program,
    Type,
    list_of,
    map_of,
    struct_type,
)
from kone.apimachinery.errors import FieldError, duplicate, invalid_value, not_supported, required, too_many
from kone.apimachinery.names import is_dns1123_subdomain
from kone.apimachinery.timestamps import parse_go_duration
from kone.auth.webhook_authorizer import WebhookRules

API_VERSIONS: Final = (
    "apiserver.config.k8s.io/v1",
    "apiserver.config.k8s.io/v1beta1",
    "apiserver.config.k8s.io/v1alpha1",
)
MODES: Final = ("AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook")
MAX_CONDITIONS: Final = 64
MAX_TIMEOUT_S: Final = 30.0
_SHAPE: Final = {
    "authorizers": [
        {
            "type": str,
            "name": str,
            "webhook": {
                "authorizedTTL": str,
                "cacheAuthorizedRequests": bool,
                "unauthorizedTTL": str,
                "cacheUnauthorizedRequests": bool,
                "timeout": str,
                "subjectAccessReviewVersion": str,
                "matchConditionSubjectAccessReviewVersion": str,
                "failurePolicy": str,
                "connectionInfo": {"type": str, "kubeConfigFile": str},
                "matchConditions": [{"expression": str}],
            },
        }
    ]
}
_TEXTS: Final = list_of(STRING)
_REQUIREMENTS: Final[dict[str, Type]] = {
    "rawSelector": STRING,
    "requirements": list_of(struct_type("kubernetes.SelectorRequirement")),
}
_STRUCTS: Final[dict[str, dict[str, Type]]] = {
    "kubernetes.SubjectAccessReviewSpec": {
        "resourceAttributes": struct_type("kubernetes.ResourceAttributes"),
        "nonResourceAttributes": struct_type("kubernetes.NonResourceAttributes"),
        "user": STRING,
        "groups": _TEXTS,
        "extra": map_of(STRING, _TEXTS),
        "uid": STRING,
    },
    "kubernetes.ResourceAttributes": {
        **dict.fromkeys(("namespace", "verb", "group", "version", "resource", "subresource", "name"), STRING),
        "fieldSelector": struct_type("kubernetes.FieldSelectorAttributes"),
        "labelSelector": struct_type("kubernetes.LabelSelectorAttributes"),
    },
    "kubernetes.NonResourceAttributes": {"path": STRING, "verb": STRING},
    "kubernetes.FieldSelectorAttributes": _REQUIREMENTS,
    "kubernetes.LabelSelectorAttributes": _REQUIREMENTS,
    "kubernetes.SelectorRequirement": {"key": STRING, "operator": STRING, "values": _TEXTS},
}
_CONDITIONS: Final = Environment(
    {"request": struct_type("kubernetes.SubjectAccessReviewSpec")}, structs=FieldTable(_STRUCTS)
)


@dataclass(frozen=True, slots=True)
class WebhookMode:
    """A webhook of the chain: where its kubeconfig is, and its rules."""

    kubeconfig: str
    version: str
    timeout_s: float
    rules: WebhookRules


@dataclass(frozen=True, slots=True)
class Mode:
    """One link of the chain; `webhook` where its type is Webhook."""

    type: str
    name: str
    webhook: WebhookMode | None = None


def parse_config(text: str) -> tuple[Mode, ...]:
    """The chain. Raises ValueError."""
    found = config_files.load(text, "AuthorizationConfiguration", API_VERSIONS, _SHAPE)
    given: list[Mapping[str, Any]] = found.get("authorizers") or []
    errors: list[FieldError] = []
    if not given:
        errors.append(required("authorizers", "at least one authorization mode must be defined"))
    modes: list[Mode] = []
    seen_types: set[str] = set()
    seen_names: set[str] = set()
    for i, one in enumerate(given):
        path, kind, name = f"authorizers[{i}]", one.get("type", ""), one.get("name", "")
        if wrong := _type_error(kind, path, seen_types):
            errors.append(wrong)
            continue
        seen_types.add(kind)
        errors += _name_errors(name, f"{path}.name", seen_names)
        seen_names.add(name)
        webhook = one.get("webhook")
        if kind == "Webhook":
            if webhook is None:
                errors.append(required(f"{path}.webhook", "required when type=Webhook"))
                continue
            mode, wrong_ones = _webhook(webhook, path)
            errors += wrong_ones
            modes.append(Mode(kind, name, mode))
        else:
            if webhook is not None:
                errors.append(invalid_value(f"{path}.webhook", "non-null", "may only be specified when type=Webhook"))
            modes.append(Mode(kind, name))
    config_files.refuse(errors)
    return tuple(modes)


def _type_error(kind: str, path: str, seen: set[str]) -> FieldError | None:
    if not kind:
        return required(f"{path}.type")
    if kind not in MODES:
        return not_supported(f"{path}.type", kind, MODES)
    return duplicate(f"{path}.type", kind) if kind in seen and kind != "Webhook" else None


def _name_errors(name: str, path: str, seen: set[str]) -> Iterator[FieldError]:
    if not name:
        yield required(path)
    elif name in seen:
        yield duplicate(path, name)
    elif wrong := is_dns1123_subdomain(name):
        yield invalid_value(path, name, f"authorizer name is invalid: {', '.join(wrong)}")


def _webhook(webhook: Mapping[str, Any], path: str) -> tuple[WebhookMode, list[FieldError]]:
    errors: list[FieldError] = []
    timeout_s = _duration(errors, f"{path}.timeout", webhook.get("timeout", ""), most_s=MAX_TIMEOUT_S)
    authorized_s = _duration(errors, f"{path}.authorizedTTL", webhook.get("authorizedTTL") or "5m0s")
    unauthorized_s = _duration(errors, f"{path}.unauthorizedTTL", webhook.get("unauthorizedTTL") or "30s")
    version = webhook.get("subjectAccessReviewVersion", "")
    _one_of(errors, f"{path}.subjectAccessReviewVersion", version, ("v1", "v1beta1"))
    conditions = webhook.get("matchConditions") or ()
    in_version = webhook.get("matchConditionSubjectAccessReviewVersion", "")
    at = f"{path}.matchConditionSubjectAccessReviewVersion"
    if not in_version and conditions:
        errors.append(required(at, "required if match conditions are specified"))
    elif in_version not in ("", "v1"):
        errors.append(not_supported(at, in_version, ("v1",)))
    policy = webhook.get("failurePolicy", "")
    _one_of(errors, f"{path}.failurePolicy", policy, ("NoOpinion", "Deny"))
    kubeconfig = _connection(errors, f"{path}.connectionInfo", webhook.get("connectionInfo") or {})
    rules = WebhookRules(
        authorized_s if webhook.get("cacheAuthorizedRequests", True) is not False else 0.0,
        unauthorized_s if webhook.get("cacheUnauthorizedRequests", True) is not False else 0.0,
        policy == "Deny",
        _conditions(errors, f"{path}.matchConditions", conditions),
    )
    return WebhookMode(kubeconfig, version, timeout_s, rules), errors


def _duration(errors: list[FieldError], path: str, text: str, *, most_s: float = 0.0) -> float:
    if not text:
        errors.append(required(path))
        return 0.0
    limit = f"must be > 0s and <= {most_s:g}s" if most_s else "must be > 0s"
    try:
        seconds = parse_go_duration(text)
    except ValueError as error:
        errors.append(invalid_value(path, text, str(error)))
        return 0.0
    if seconds == 0:
        errors.append(required(path))
    elif seconds < 0 or (most_s and seconds > most_s):
        errors.append(invalid_value(path, text, limit))
    return seconds


def _one_of(errors: list[FieldError], path: str, value: str, allowed: Sequence[str]) -> None:
    if not value:
        errors.append(required(path))
    elif value not in allowed:
        errors.append(not_supported(path, value, allowed))


def _connection(errors: list[FieldError], path: str, info: Mapping[str, Any]) -> str:
    kind, file = info.get("type", ""), info.get("kubeConfigFile", "")
    if not kind:
        errors.append(required(f"{path}.type"))
    elif kind != "KubeConfigFile":
        errors.append(not_supported(f"{path}.type", kind, ("KubeConfigFile",)))
    elif not file:
        errors.append(required(f"{path}.kubeConfigFile"))
    elif not Path(file).is_absolute():
        errors.append(invalid_value(f"{path}.kubeConfigFile", file, "must be an absolute path"))
    elif not Path(file).exists():
        why = f"error loading file: stat {file}: no such file or directory"
        errors.append(invalid_value(f"{path}.kubeConfigFile", file, why))
    elif not Path(file).is_file():
        errors.append(invalid_value(f"{path}.kubeConfigFile", file, "must be a regular file"))
    return str(file)


def _conditions(errors: list[FieldError], path: str, given: Sequence[Mapping[str, Any]]) -> tuple[Program, ...]:
    if len(given) > MAX_CONDITIONS:
        errors.append(too_many(path, len(given), MAX_CONDITIONS))
        return ()
    programs: list[Program] = []
    seen: set[str] = set()
    for i, condition in enumerate(given):
        at, source = f"{path}[{i}].expression", condition.get("expression", "")
        if not source.strip():
            errors.append(required(at))
            continue
        if source in seen:
            errors.append(duplicate(at, source))
            continue
        seen.add(source)
        try:
            program = _CONDITIONS.compile(source)
        except CelSyntaxError as error:
            errors.append(invalid_value(at, source, f"compilation failed: {error}"))
            continue
        if program.type != BOOL:
            errors.append(invalid_value(at, source, "must evaluate to bool"))
        programs.append(program)
    return tuple(programs)
