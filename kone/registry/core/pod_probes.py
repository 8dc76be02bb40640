"""Rules on probes, lifecycle hooks and what they do: commands, HTTP and gRPC calls, sockets, sleeping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kone.apimachinery.errors import forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.names import is_http_header_name, is_valid_port_name, is_valid_port_num
from kone.registry.rules import Errors, at_least_0, check

_SCHEMES = ("HTTP", "HTTPS")


def port_number_or_name(errors: Errors, path: str, port: int | str) -> None:
    if isinstance(port, str):
        check(errors, path, port, is_valid_port_name(port))
    else:
        check(errors, path, port, is_valid_port_num(port))


def _exec(errors: Errors, path: str, action: Mapping[str, Any], grace_s: int | None) -> None:
    if not action.get("command"):
        errors.append(required(f"{path}.command"))


def _http_get(errors: Errors, path: str, action: Mapping[str, Any], grace_s: int | None) -> None:
    if not action.get("path"):
        errors.append(required(f"{path}.path"))
    port_number_or_name(errors, f"{path}.port", action.get("port", 0))
    scheme = action.get("scheme", "")
    if scheme not in _SCHEMES:
        errors.append(not_supported(f"{path}.scheme", scheme, _SCHEMES))
    for header in action.get("httpHeaders") or ():
        name = header.get("name", "")
        check(errors, f"{path}.httpHeaders", name, is_http_header_name(name))


def _tcp_socket(errors: Errors, path: str, action: Mapping[str, Any], grace_s: int | None) -> None:
    port_number_or_name(errors, f"{path}.port", action.get("port", 0))


def _grpc(errors: Errors, path: str, action: Mapping[str, Any], grace_s: int | None) -> None:
    port_number_or_name(errors, f"{path}.port", action.get("port", 0))


def _sleep(errors: Errors, path: str, action: Mapping[str, Any], grace_s: int | None) -> None:
    seconds = action.get("seconds", 0)
    if grace_s is not None and not 0 <= seconds <= grace_s:
        text = f"must be non-negative and less than terminationGracePeriodSeconds ({grace_s})"
        errors.append(invalid_value(path, seconds, text))


_Action = Callable[[Errors, str, Mapping[str, Any], int | None], None]
_PROBE_ACTIONS: tuple[tuple[str, _Action], ...] = (
    ("exec", _exec),
    ("httpGet", _http_get),
    ("tcpSocket", _tcp_socket),
    ("grpc", _grpc),
)
_HOOK_ACTIONS: tuple[tuple[str, _Action], ...] = (*_PROBE_ACTIONS[:3], ("sleep", _sleep))


def _handler(
    errors: Errors, path: str, handler: Mapping[str, Any], actions: tuple[tuple[str, _Action], ...], grace_s: int | None
) -> None:
    found = False
    for kind, rule in actions:
        action = handler.get(kind)
        if action is None:
            continue
        if found:
            errors.append(forbidden_field(f"{path}.{kind}", "may not specify more than 1 handler type"))
        else:
            found = True
            rule(errors, f"{path}.{kind}", action, grace_s)
    if not found:
        errors.append(required(path, "must specify a handler type"))


def probe(errors: Errors, path: str, found: Mapping[str, Any], kind: str, grace_s: int | None) -> None:
    """`kind` is the field's name: livenessProbe, readinessProbe or startupProbe."""
    _handler(errors, path, found, _PROBE_ACTIONS, grace_s)
    for field in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        at_least_0(errors, f"{path}.{field}", found.get(field))
    own_grace_s, at = found.get("terminationGracePeriodSeconds"), f"{path}.terminationGracePeriodSeconds"
    if own_grace_s is not None and own_grace_s <= 0:
        errors.append(invalid_value(at, own_grace_s, "must be greater than 0"))
    if kind == "readinessProbe":
        if own_grace_s is not None:
            errors.append(invalid_value(at, own_grace_s, "must not be set for readinessProbes"))
    elif found.get("successThreshold", 0) != 1:
        errors.append(invalid_value(f"{path}.successThreshold", found.get("successThreshold", 0), "must be 1"))


def lifecycle_hooks(errors: Errors, path: str, found: Mapping[str, Any], grace_s: int | None) -> None:
    for hook in ("postStart", "preStop"):
        if found.get(hook) is not None:
            _handler(errors, f"{path}.{hook}", found[hook], _HOOK_ACTIONS, grace_s)
