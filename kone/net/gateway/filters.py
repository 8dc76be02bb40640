"""What one rule of a route matches and does to requests: pure, from its JSON to values that can be served.

What is not served (mirrors, CORS, extensions, expressions that Caddy would refuse) raises UnsupportedError: the route
is refused as a whole, since serving it without would not be what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.objects import Object, dig

# Go's time.Duration as the Gateway API writes it (GEP-2257), e.g. "1h30m", "500ms"
UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# What Python's expressions have and RE2's have not: references back, looking around, possessive repeats, some escapes.
NOT_RE2 = re.compile(r"\\[1-9ZuUN]|\(\?P[=>]|\(\?[=!<#(>]|[*+?}]\+|\{,")


class UnsupportedError(ValueError):
    """The route asks for what is not served here; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class Field:
    """A header or a query parameter and what it has to be: text, or an expression for all of it."""

    name: str
    value: str
    is_expression: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """All of it has to hold. A PathPrefix has no slash at its end; "" is every path."""

    path_kind: str = "PathPrefix"
    path: str = ""
    method: str = ""
    headers: tuple[Field, ...] = ()
    queries: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """Headers to change: (name, value) to set and to add, names to remove."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PathEdit:
    """Another path, or another beginning of it."""

    whole: bool
    value: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a client is sent; what is empty (or 0) stays as the request has it."""

    status: int = 302
    scheme: str = ""
    hostname: str = ""
    port: int = 0
    path: PathEdit | None = None


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What the backend is asked instead."""

    hostname: str = ""
    path: PathEdit | None = None


@dataclass(frozen=True, slots=True)
class Filters:
    """All filters of a rule or of a backendRef."""

    request: HeaderEdit | None = None
    response: HeaderEdit | None = None
    redirect: Redirect | None = None
    rewrite: Rewrite | None = None


def matches_of(rule: Object, kind: str) -> list[Match]:
    """Each is enough by itself; none given means every request. `kind` is that of the route."""
    specs: Iterable[Object] = rule.get("matches") or ({},)
    return [_grpc_match(spec) if kind == "GRPCRoute" else _match(spec) for spec in specs]


def _grpc_match(spec: Object) -> Match:
    """A call of gRPC is a request for "/SERVICE/METHOD"."""
    asked: Object = spec.get("method") or {}
    service, method = str(asked.get("service") or ""), str(asked.get("method") or "")
    headers = _fields(spec.get("headers") or (), lower=True)
    if asked.get("type", "Exact") == "RegularExpression":
        parts = [f"(?:{_expression(part)})" if part else "[^/]+" for part in (service, method)]
        return Match("RegularExpression", f"/{'/'.join(parts)}", headers=headers)
    if service and method:
        return Match("Exact", f"/{service}/{method}", headers=headers)
    if method:
        return Match("RegularExpression", f"/[^/]+/{re.escape(method)}", headers=headers)
    return Match("PathPrefix", f"/{service}" if service else "", headers=headers)


def _match(spec: Object) -> Match:
    kind = dig(spec, "path", "type", default="PathPrefix")
    path = str(dig(spec, "path", "value", default="/"))
    if kind not in ("Exact", "PathPrefix", "RegularExpression"):
        raise UnsupportedError(f"path type {kind} is not served")
    if kind == "RegularExpression":
        path = _expression(path)
    elif kind == "PathPrefix":
        path = path.rstrip("/")
    return Match(
        kind,
        path,
        str(spec.get("method") or ""),
        _fields(spec.get("headers") or (), lower=True),
        _fields(spec.get("queryParams") or (), lower=False),
    )


def _fields(specs: Iterable[Object], *, lower: bool) -> tuple[Field, ...]:
    """Of several with the same name only the first counts."""
    found: dict[str, Field] = {}
    for spec in specs:
        name, value = str(spec.get("name", "")), str(spec.get("value", ""))
        is_expression = spec.get("type", "Exact") == "RegularExpression"
        made = Field(name, _expression(value) if is_expression else value, is_expression)
        found.setdefault(name.lower() if lower else name, made)
    return tuple(found.values())


def _expression(text: str) -> str:
    """An expression that both Python and RE2 understand; Caddy would refuse a whole configuration for another one."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UnsupportedError(f"{text!r} is not an expression: {error}") from None
    if NOT_RE2.search(text) or any(int(n) > 1000 for n in re.findall(r"\{(?:\d*,)?(\d+)", text)):
        raise UnsupportedError(f"{text!r} is not an expression of RE2")
    return text


def filters_of(specs: Iterable[Object]) -> Filters:
    found: dict[str, Any] = {}
    for spec in specs:
        match spec["type"]:
            case "RequestHeaderModifier":
                found["request"] = _header_edit(spec.get("requestHeaderModifier") or {})
            case "ResponseHeaderModifier":
                found["response"] = _header_edit(spec.get("responseHeaderModifier") or {})
            case "RequestRedirect":
                found["redirect"] = _redirect(spec.get("requestRedirect") or {})
            case "URLRewrite":
                rewrite = spec.get("urlRewrite") or {}
                found["rewrite"] = Rewrite(str(rewrite.get("hostname") or ""), _path_edit(rewrite.get("path")))
            case kind:
                raise UnsupportedError(f"filter {kind} is not served")
    return Filters(**found)


def _header_edit(spec: Object) -> HeaderEdit:
    def pairs(entries: Iterable[Object] | None) -> tuple[tuple[str, str], ...]:
        return tuple((str(entry["name"]), str(entry.get("value", ""))) for entry in entries or ())

    return HeaderEdit(pairs(spec.get("set")), pairs(spec.get("add")), tuple(spec.get("remove") or ()))


def _redirect(spec: Object) -> Redirect:
    return Redirect(
        int(spec.get("statusCode") or 302),
        str(spec.get("scheme") or ""),
        str(spec.get("hostname") or ""),
        int(spec.get("port") or 0),
        _path_edit(spec.get("path")),
    )


def _path_edit(spec: Object | None) -> PathEdit | None:
    if not spec:
        return None
    if spec.get("type") == "ReplaceFullPath":
        return PathEdit(True, str(spec.get("replaceFullPath") or "/"))
    if spec.get("type") == "ReplacePrefixMatch":
        return PathEdit(False, str(spec.get("replacePrefixMatch") or "/"))
    raise UnsupportedError(f"path modifier {spec.get('type')} is not served")


def timeout_of(rule: Object) -> float:
    """Seconds until an answer has to begin; 0 where there is no limit."""
    asked = [seconds(str(text)) for text in (rule.get("timeouts") or {}).values()]
    return min((each for each in asked if each), default=0.0)


def seconds(duration: str) -> float:
    """ "1h30m" -> 5400.0."""
    return sum(float(number) * UNITS_S[unit] for number, unit in re.findall(r"(\d+)(ms|h|m|s)", duration))
