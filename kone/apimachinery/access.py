"""What is asked of an authorizer: one verb on one resource, or on a path that is none (authorizer.Attributes)."""

from __future__ import annotations

from dataclasses import dataclass

from kone.apimachinery.errors import StatusError, forbidden, go_quote
from kone.apimachinery.users import User


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """A resource request has `resource`; a non-resource request has `path` and its verb is the lower-case method.

    `fields` holds the field selector's requirements (field, operator, value) of a list or watch.
    """

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    fields: tuple[tuple[str, str, str], ...] = ()

    @property
    def combined_resource(self) -> str:
        """As rules name it: "pods/log"."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


def access_denied(user: User, request: AccessRequest, reason: str = "") -> StatusError:
    """403 in upstream's words (responsewriters.ForbiddenStatusError)."""
    if not request.resource:
        text = f"User {go_quote(user.name)} cannot {request.verb} path {go_quote(request.path)}"
    else:
        where = f"in the namespace {go_quote(request.namespace)}" if request.namespace else "at the cluster scope"
        text = (
            f"User {go_quote(user.name)} cannot {request.verb} resource {go_quote(request.combined_resource)} "
            f"in API group {go_quote(request.group)} {where}"
        )
    # Upstream masks what a browser might take for markup.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    group_resource = f"{request.resource}.{request.group}" if request.group else request.resource
    return forbidden(group_resource, request.name, f"{text}: {reason}" if reason else text)
