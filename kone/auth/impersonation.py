"""Acting as somebody else: the Impersonate-* headers, by constrained impersonation first, then by the old verb.

v1.37 asks in this order: may the requester do *this* request as a node, a service account or another user
(impersonate-on:<mode>:<verb> and impersonate:<mode>), and if not, may it impersonate at all (verb impersonate). The
first refusal is the one that is answered.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from kone.apimachinery.access import AccessRequest, access_denied
from kone.apimachinery.errors import StatusError, bad_request, go_quote
from kone.apimachinery.users import (
    ANONYMOUS,
    AUTHENTICATED,
    NODE_USER_PREFIX,
    NODES_GROUP,
    SERVICE_ACCOUNT_PREFIX,
    SYSTEM_MASTERS,
    UNAUTHENTICATED,
    User,
)
from kone.auth.authentication import Headers

AUTHENTICATION_GROUP = "authentication.k8s.io"
MANY = 4  # from so many groups or extras on, one check for all of them is tried first
NODE_NAME_EXTRA = "authentication.kubernetes.io/node-name"


class Authorizer(Protocol):
    def allowed(self, user: User, request: AccessRequest) -> tuple[bool, str]: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the headers ask for."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]]

    @property
    def only_name(self) -> bool:
        return not (self.uid or self.groups or self.extra)


def wanted_user(headers: Headers) -> Wanted | None:
    """Whom the request wants to be; None where it does not ask. Raises StatusError 400 where no name is given."""
    name, uid = headers.get("Impersonate-User", ""), headers.get("Impersonate-Uid", "")
    groups = tuple(headers.getall("Impersonate-Group", []))
    extra: dict[str, tuple[str, ...]] = {}
    for header in headers.keys():  # noqa: SIM118 - a multi-dict: iterating it is not promised
        lowered = header.lower()
        if lowered.startswith("impersonate-extra-"):
            key = urllib.parse.unquote(lowered.removeprefix("impersonate-extra-"))
            extra[key] = tuple(headers.getall(header, []))
    if name:
        return Wanted(name, uid, groups, extra)
    if uid or groups or extra:
        shown = _go_user(uid, groups, extra)
        raise bad_request(f"requested {shown} without impersonating a user name")
    return None


def impersonate(user: User, headers: Headers, request: AccessRequest, authorizer: Authorizer) -> User:
    """The user that the request acts as: `user` itself where no header asks for another.

    Raises StatusError 403 where the user may not, 400 for headers that name no user.
    """
    wanted = wanted_user(headers)
    if wanted is None:
        return user
    refusal: StatusError | None = None
    for mode in _modes(user, wanted):
        try:
            if mode:
                on = replace(request, verb=f"impersonate-on:{mode}:{request.verb}")
                _require(authorizer, user, on)
            return _check(authorizer, user, wanted, mode)
        except StatusError as error:
            refusal = refusal or error
    assert refusal is not None  # the last mode is always tried
    raise refusal


def _modes(user: User, wanted: Wanted) -> Iterator[str]:
    """The modes that fit whom is wanted; "" is the old verb."""
    node = _node_name(wanted.name)
    account = _service_account(wanted.name)
    if node and wanted.only_name:
        is_account = _service_account(user.name) is not None
        if is_account and tuple(user.extra.get(NODE_NAME_EXTRA, ())) == (node,):
            yield "associated-node"
        yield "arbitrary-node"
    elif account and wanted.only_name:
        yield "serviceaccount"
    elif not node and not account:
        yield "user-info"
    yield ""


def _check(authorizer: Authorizer, user: User, wanted: Wanted, mode: str) -> User:
    verb = f"impersonate:{mode}" if mode else "impersonate"
    group = AUTHENTICATION_GROUP if mode else ""
    groups = wanted.groups
    ask = AccessRequest(verb, group, "v1", "users", name=wanted.name)
    if mode and (node := _node_name(wanted.name)):
        ask = replace(ask, resource="nodes", name="*" if mode == "associated-node" else node)
        groups = (NODES_GROUP,)
    if account := _service_account(wanted.name):
        namespace, name = account
        ask = replace(ask, resource="serviceaccounts", namespace=namespace, name=name)
        if not wanted.groups:
            groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    _require(authorizer, user, ask)
    if wanted.uid:
        _require(authorizer, user, AccessRequest(verb, AUTHENTICATION_GROUP, "v1", "uids", name=wanted.uid))
    _check_groups(authorizer, user, wanted.groups, AccessRequest(verb, group, "v1", "groups"), constrained=bool(mode))
    extras = AccessRequest(verb, AUTHENTICATION_GROUP, "v1", "userextras")
    _check_extra(authorizer, user, wanted.extra, extras, constrained=bool(mode))
    if wanted.name == ANONYMOUS:
        groups = groups if UNAUTHENTICATED in groups else (*groups, UNAUTHENTICATED)
    elif UNAUTHENTICATED not in groups and AUTHENTICATED not in groups:
        groups = (*groups, AUTHENTICATED)
    return User(wanted.name, wanted.uid, groups, wanted.extra)


def _check_groups(
    authorizer: Authorizer, user: User, groups: tuple[str, ...], ask: AccessRequest, *, constrained: bool
) -> None:
    if constrained:
        if "" in groups:
            raise access_denied(user, ask, "impersonating the empty string group is not allowed")
        if SYSTEM_MASTERS in groups:
            named = replace(ask, name=SYSTEM_MASTERS)
            raise access_denied(user, named, "impersonating the system:masters group is not allowed")
        if len(groups) >= MANY and authorizer.allowed(user, replace(ask, name="*"))[0]:
            return
    for group in groups:
        _require(authorizer, user, replace(ask, name=group))


def _check_extra(
    authorizer: Authorizer,
    user: User,
    extra: Mapping[str, tuple[str, ...]],
    ask: AccessRequest,
    *,
    constrained: bool,
) -> None:
    if constrained and extra:
        for key, values in extra.items():
            if not key:
                raise access_denied(user, ask, "impersonating the empty string key in extra is not allowed")
            if "" in values:
                raise access_denied(user, ask, "impersonating the empty string value in extra is not allowed")
        many = sum(len(values) for values in extra.values()) >= MANY
        if many and authorizer.allowed(user, replace(ask, subresource="*", name="*"))[0]:
            return
    for key, values in extra.items():
        for value in values:
            _require(authorizer, user, replace(ask, subresource=key, name=value))


def _require(authorizer: Authorizer, user: User, ask: AccessRequest) -> None:
    good, reason = authorizer.allowed(user, ask)
    if not good:
        raise access_denied(user, ask, reason)


def _node_name(user_name: str) -> str:
    return user_name.removeprefix(NODE_USER_PREFIX) if user_name.startswith(NODE_USER_PREFIX) else ""


def _service_account(user_name: str) -> tuple[str, str] | None:
    if not user_name.startswith(SERVICE_ACCOUNT_PREFIX):
        return None
    namespace, colon, name = user_name.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")
    return (namespace, name) if colon and namespace and name and ":" not in name else None


def _go_user(uid: str, groups: tuple[str, ...], extra: Mapping[str, tuple[str, ...]]) -> str:
    """A user.DefaultInfo as Go's %#v prints it."""

    def strings(values: tuple[str, ...]) -> str:
        return "[]string{" + ", ".join(go_quote(v) for v in values) + "}" if values else "[]string(nil)"

    pairs = ", ".join(f"{go_quote(key)}:{strings(extra[key])}" for key in sorted(extra))
    shown = f"map[string][]string{{{pairs}}}" if extra else "map[string][]string(nil)"
    return f'&user.DefaultInfo{{Name:"", UID:{go_quote(uid)}, Groups:{strings(groups)}, Extra:{shown}}}'
