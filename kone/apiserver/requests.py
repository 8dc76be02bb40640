"""From a URL to what is asked: the verb, the resource, the name. Our own parser, since a router of thousands of
routes is slow.

The rules are those of k8s.io/apiserver's RequestInfo: what authorization, admission and audit see is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, unquote_plus

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.names import is_path_segment_name
from kone.apimachinery.selectors import parse_field_selector

Parameters = dict[str, list[str]]

_VERBS: Final = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_NAMESPACE_SUBRESOURCES: Final = ("status", "finalize")
_NO_PARAMETERS: Final[Parameters] = {}


@dataclass(slots=True)
class RequestInfo:
    """`resource` is "" for a request that is not for a resource; its verb is then the method in lower case.

    `parts` are the path's segments from the resource on, decoded; `watch_path` says that the verb came from the path
    (/api/v1/watch/…). `path` is decoded, too.
    """

    path: str
    verb: str
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    subresource: str = ""
    name: str = ""
    parts: tuple[str, ...] = ()
    watch_path: bool = False

    @property
    def is_resource(self) -> bool:
        return bool(self.resource)

    def access(self, fields: tuple[tuple[str, str, str], ...] = ()) -> AccessRequest:
        """What the authorizer is asked."""
        if not self.resource:
            return AccessRequest(self.verb, path=self.path)
        return AccessRequest(
            self.verb,
            self.group,
            self.version,
            self.resource,
            self.subresource,
            self.namespace,
            self.name,
            self.path,
            fields,
        )


def parse_query(text: str) -> Parameters:
    """The parameters of a raw query string, every value of each in order; pairs that cannot be decoded are skipped."""
    if not text:
        return _NO_PARAMETERS
    found: Parameters = {}
    for pair in text.split("&"):
        if not pair or ";" in pair:
            continue
        name, _, value = pair.partition("=")
        if "%" in name or "+" in name:
            name = unquote_plus(name)
        if "%" in value or "+" in value:
            value = unquote_plus(value)
        found.setdefault(name, []).append(value)
    return found


def parse_request(method: str, raw_path: str, query: Parameters) -> RequestInfo:
    """What a request asks for; `raw_path` is the path as it was sent, without the query."""
    path = unquote(raw_path) if "%" in raw_path else raw_path
    info = RequestInfo(path, method.lower())
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        if len(parts) < 3:
            return info
        info.version, rest = parts[1], parts[2:]
    elif parts[0] == "apis":
        if len(parts) < 4:
            return info
        info.group, info.version, rest = parts[1], parts[2], parts[3:]
    else:
        return info
    if rest[0] in ("watch", "proxy") and len(rest) > 1:
        info.verb, info.watch_path, rest = rest[0], True, rest[1:]
    else:
        info.verb = _VERBS.get(method, "")
    if rest[0] == "namespaces" and len(rest) > 1:
        info.namespace = rest[1]
        if len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:
            rest = rest[2:]
    info.parts = tuple(rest)
    info.resource = rest[0]
    if len(rest) > 1:
        info.name = rest[1]
        if len(rest) > 2 and info.verb != "proxy":
            info.subresource = rest[2]
    if not info.name:
        if info.verb == "get":
            _without_name(info, query)
        elif info.verb == "delete":
            info.verb = "deletecollection"
    return info


def _without_name(info: RequestInfo, query: Parameters) -> None:
    """A get without a name is a list or a watch; a field selector may still name one object."""
    watch = query.get("watch")
    info.verb = "watch" if watch and watch[0] != "0" and watch[0].lower() != "false" else "list"
    fields = query.get("fieldSelector")
    if fields and "metadata.name" in fields[0]:
        for field, operator, value in selected_fields(query):
            if field == "metadata.name" and operator in ("=", "==") and not is_path_segment_name(value):
                info.name = value


def selected_fields(query: Parameters) -> tuple[tuple[str, str, str], ...]:
    """The field selector's requirements, as the authorizer sees them; none where it cannot be parsed."""
    fields = query.get("fieldSelector")
    if not fields or not fields[0]:
        return ()
    try:
        return tuple(
            (field, operator, value) for field, operator, value in parse_field_selector(fields[0]).requirements
        )
    except ValueError:
        return ()
