"""Routes of the Gateway API as Caddy's JSON: pure, what routes.py found in the words of ingress/caddy_config.py.

Each rule is one of Caddy's routes. Weights are shares of the request's random number (a UUID's first hexadecimal
digits), so that each backendRef can have filters of its own, and one that cannot be had answers 500 in its share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate
from urllib.parse import unquote

from kone.apimachinery.objects import Object
from kone.net.gateway.filters import Field, Filters, HeaderEdit, Match, PathEdit, Redirect
from kone.net.gateway.routes import Rule, Site, Target, covers
from kone.net.ingress.caddy_config import HOST, NO_ENDPOINTS, Part, proxy, say

UUID = "{http.request.uuid}"
DIGITS = 4  # shares are multiples of 1/65,536
NO_BACKEND = "no backend can be had\n"
NO_ROUTE = "no route serves this\n"
MISDIRECTED = "this host needs a connection of its own\n"
SERVER_NAME = "{http.request.tls.server_name}"
WELL_KNOWN = {"http": 80, "https": 443}


def part_of(site: Site) -> Part:
    """What the server of that port serves for Gateways."""
    hosts = []
    for host in site.hosts:
        routes = [_route(rule, site) for rule in host.rules]
        if host.closed:
            routes.append({"handle": [say(404, NO_ROUTE)]})
        hosts.append((host.pattern, tuple(routes)))
    tls = site.protocol == "HTTPS"
    first = tuple(_misdirected(site.listeners)) if tls else ()
    return Part(site.port, tls, tuple(hosts), site.certificates, site.addresses, first)


def _misdirected(listeners: Sequence[str]) -> Iterable[Object]:
    """421 where the host of a request is of another listener than the name that its connection asked for.

    A client may use one connection for all names of its certificate (RFC 9113, 9.1.2), but TLS was agreed on with one
    listener. Clients that ask for no name are passed on.
    """
    for number, hostname in enumerate(listeners if len(listeners) > 1 else ()):
        narrower = [other for other in listeners[:number] if covers(hostname, other)]
        asked_here: Object = _named(SERVER_NAME, hostname, "|") if hostname else {}
        if narrower:
            asked_here["not"] = [_named(SERVER_NAME, other) for other in narrower]
        others = [*(_named(HOST, other) for other in narrower), asked_here]
        match = {**(_named(HOST, hostname) if hostname else {}), "not": others}
        yield {"match": [match], "handle": [say(421, MISDIRECTED)]}


def _named(variable: str, hostname: str, or_else: str = "") -> Object:
    """Whether a name is of a listener's host; with "|" also whether there is none."""
    pattern = f".+{re.escape(hostname[1:])}" if hostname.startswith("*.") else re.escape(hostname)
    return {"vars_regexp": {variable: {"pattern": f"(?i)^(?:{or_else}{pattern})$"}}}


def _route(rule: Rule, site: Site) -> Object:
    match = _matcher(rule.match)
    handlers = _handlers(rule.filters, rule.match, site)
    if rule.filters.redirect is None:
        handlers += _split(rule, site)
    return {**({"match": [match]} if match else {}), "handle": handlers}


# Matches


def _matcher(match: Match) -> Object:
    made: Object = {}
    if pattern := _path_pattern(match):
        made["path_regexp"] = {"pattern": pattern}
    if match.method:
        made["method"] = [match.method]
    if match.headers:
        made["header_regexp"] = {field.name: {"pattern": _whole(field)} for field in match.headers}
    plain = [field for field in match.queries if not field.is_expression and not re.search(r"[{*\\]", field.value)]
    if plain:
        made["query"] = {_literal(field.name): [field.value] for field in plain}
    if patterns := [field for field in match.queries if field not in plain]:
        # Of several of these Caddy wants any: so not one that does not match.
        made["not"] = [{"not": [_query_pattern(field)]} for field in patterns]
    return made


def _path_pattern(match: Match) -> str:
    """By regular expression: Caddy's own matcher of paths does not tell capital letters from small ones."""
    if match.path_kind == "RegularExpression":
        return f"^(?:{match.path})$"
    quoted = re.escape(unquote(match.path))
    if match.path_kind == "Exact":
        return f"^{quoted}$"
    return f"^{quoted}(?:/|$)" if match.path else ""


def _query_pattern(field: Field) -> Object:
    return {
        "query": {_literal(field.name): ["*"]},
        "vars_regexp": {f"{{http.request.uri.query.{field.name}}}": {"pattern": _whole(field)}},
    }


def _whole(field: Field) -> str:
    return f"^(?:{field.value})$" if field.is_expression else f"^{re.escape(field.value)}$"


# Filters


def _handlers(filters: Filters, match: Match, site: Site) -> list[Object]:
    """Everything that a request passes before it reaches a backend, or its redirect."""
    made: list[Object] = []
    if filters.request is not None:
        made.append({"handler": "headers", "request": _edit(filters.request)})
    if filters.response is not None:
        made.append({"handler": "headers", "response": {**_edit(filters.response), "deferred": True}})
    if filters.rewrite is not None:
        if filters.rewrite.hostname:
            host = {"set": {"Host": [_literal(filters.rewrite.hostname)]}}
            made.append({"handler": "headers", "request": host})
        made += _path_handlers(filters.rewrite.path, match)
    if filters.redirect is not None:
        made += _path_handlers(filters.redirect.path, match)
        made.append(_redirect(filters.redirect, site))
    return made


def _edit(edit: HeaderEdit) -> Object:
    made: Object = {}
    if edit.set:
        made["set"] = {name: [_literal(value)] for name, value in edit.set}
    if edit.add:
        made["add"] = {name: [_literal(value)] for name, value in edit.add}
    if edit.remove:
        made["delete"] = list(edit.remove)
    return made


def _path_handlers(edit: PathEdit | None, match: Match) -> list[Object]:
    if edit is None:
        return []
    if edit.whole:
        return [{"handler": "rewrite", "uri": _literal(edit.value)}]
    # "/a" -> "/b": "/a/x" becomes "/b/x", "/a" becomes "/b"; with "/" "/a/x" becomes "/x", "/a" becomes "/"
    new = edit.value.rstrip("/").replace("$", "$$")
    start = f"^{re.escape(match.path)}"
    edits = [{"find": f"{start}(/.*)?$", "replace": f"{_literal(new)}$1"}]
    if not new:
        edits = [{"find": f"{start}/?$", "replace": "/"}, {"find": f"{start}(/.+)$", "replace": "$1"}]
    return [{"handler": "rewrite", "path_regexp": edits}]


def _redirect(redirect: Redirect, site: Site) -> Object:
    """A port that is not given is that of a given scheme, else the listener's; one that goes without saying is left
    out."""
    scheme = redirect.scheme.lower() or site.protocol.lower()
    number = redirect.port or (WELL_KNOWN.get(redirect.scheme.lower(), 0) if redirect.scheme else site.port)
    port = "" if number in (0, WELL_KNOWN.get(scheme)) else f":{number}"
    host = _literal(redirect.hostname) or "{http.request.host}"
    return {
        "handler": "static_response",
        "status_code": redirect.status,
        "headers": {"Location": [f"{scheme}://{host}{port}{{http.request.uri}}"]},
    }


def _literal(text: str) -> str:
    """Text in which Caddy finds no placeholder."""
    return text.replace("\\", "\\\\").replace("{", "\\{") if "{" in text else text


# Backends


def _split(rule: Rule, site: Site) -> list[Object]:
    """To each backendRef its share of the requests."""
    targets = [target for target in rule.targets if target.weight > 0]
    if len(targets) < 2:
        return _reach(targets[0], rule, site) if targets else [say(rule.refusal, NO_BACKEND)]
    sums = list(accumulate(target.weight for target in targets))
    routes: list[Object] = []
    for target, upto in zip(targets[:-1], sums[:-1], strict=True):
        pattern = below(round(upto * 16**DIGITS / sums[-1]))
        match = {"match": [{"vars_regexp": {UUID: {"pattern": pattern}}}]}
        routes.append({**match, "handle": _reach(target, rule, site)})
    routes.append({"handle": _reach(targets[-1], rule, site)})
    return [{"handler": "subroute", "routes": routes}]


def below(limit: int, digits: int = DIGITS) -> str:
    """An expression for the lower-case hexadecimal numbers of so many digits that are less than `limit`."""
    if limit >= 16**digits:
        return "^"
    text = f"{limit:0{digits}x}"
    options = [f"{text[:at]}[{_up_to(text[at])}]" for at in range(digits) if text[at] != "0"]
    return f"^(?:{'|'.join(options)})" if options else "^$"


def _up_to(digit: str) -> str:
    return "0123456789abcdef"[: int(digit, 16)]


def _reach(target: Target, rule: Rule, site: Site) -> list[Object]:
    if target.backend is None:
        return [say(rule.refusal, NO_BACKEND)]
    handlers = _handlers(target.filters, rule.match, site)
    if target.filters.redirect is not None:
        return handlers
    if not target.backend.dials:
        return [*handlers, say(503, NO_ENDPOINTS)]
    return [*handlers, proxy(target.backend, rule.timeout_s)]


def parts_of(sites: Iterable[Site]) -> Sequence[Part]:
    return tuple(part_of(site) for site in sites)
