"""Who may use the kubelet's own API: certificates and tokens, and the API server's word on what they may.

As upstream's kubelet with webhook authentication and authorization: a client certificate of the cluster's CA says who,
or the API server does by a TokenReview; a SubjectAccessReview on the node says whether. Anonymous callers are refused.
Members of system:masters, the API server among them, may everything without asking, as everywhere.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError, unauthorized
from kone.apimachinery.kinds import SUBJECTACCESSREVIEWS, TOKENREVIEWS
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.users import AUTHENTICATED, User
from kone.client.client import Client

log = logging.getLogger(__name__)

MASTERS: Final = "system:masters"
# Defaults of KubeletConfiguration's authentication.webhook and authorization.webhook.
TOKEN_S: Final = 120.0
ALLOWED_S: Final = 300.0
REFUSED_S: Final = 30.0
REMEMBERED_MAX: Final = 1024

_VERBS: Final = {"POST": "create", "GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
# The first path that fits says which subresources of the node are asked for; any of them will do.
_SUBRESOURCES: Final[Sequence[tuple[str, tuple[str, ...]]]] = (
    ("/pods", ("pods", "proxy")),
    ("/runningpods", ("pods", "proxy")),
    ("/healthz", ("healthz", "proxy")),
    ("/configz", ("configz", "proxy")),
    ("/flagz", ("configz", "proxy")),
    ("/statusz", ("statusz",)),
    ("/stats", ("stats",)),
    ("/metrics", ("metrics",)),
    ("/logs", ("log",)),
    ("/checkpoint", ("checkpoint",)),
)

V = TypeVar("V")


@dataclass(slots=True)
class _Known(Generic[V]):
    value: V
    until: float


class _Memory(Generic[V]):
    """Answers that hold for a while; the oldest are forgotten first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[Hashable, _Known[V]] = {}

    def get(self, key: Hashable) -> V | None:
        known = self._known.get(key)
        return known.value if known is not None and self._clock.monotonic() < known.until else None

    def put(self, key: Hashable, value: V, for_s: float) -> None:
        self._known.pop(key, None)
        self._known[key] = _Known(value, self._clock.monotonic() + for_s)
        while len(self._known) > REMEMBERED_MAX:
            del self._known[next(iter(self._known))]


class ServerAuth:
    """Decides about requests to one node's kubelet. Without a `client` only system:masters are let in."""

    def __init__(self, clock: Clock, node_name: str, client: Client | None = None) -> None:
        self._client, self._node_name = client, node_name
        self._users: _Memory[User] = _Memory(clock)
        self._decisions: _Memory[bool] = _Memory(clock)

    async def admit(self, certificate: Mapping[str, Any] | None, authorization: str, method: str, path: str) -> User:
        """Who it is, who may do that. `certificate` is ssl's decoded peer certificate, `authorization` the header.

        Raises StatusError 401, 403, and 500 where the API server does not answer.
        """
        user = await self._user(certificate, authorization)
        if user is None:
            raise unauthorized()
        verb, subresources = _VERBS.get(method, ""), subresources_of(path)
        if MASTERS in user.groups:
            return user
        for subresource in subresources:
            if await self._may(user, verb, subresource):
                return user
        asked = f"user={user.name}, verb={verb}, resource=nodes, subresource(s)=[{' '.join(subresources)}]"
        raise StatusError(403, "Forbidden", f"Forbidden ({asked})\n")

    async def _user(self, certificate: Mapping[str, Any] | None, authorization: str) -> User | None:
        if certificate and (user := user_of_certificate(certificate)) is not None:
            return user
        scheme, _, token = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None
        return await self._user_of_token(token.strip())

    async def _user_of_token(self, token: str) -> User | None:
        if self._client is None:
            return None
        key = hashlib.sha256(token.encode()).digest()
        if (known := self._users.get(key)) is not None:
            return known
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        try:
            answer = await self._client.create(TOKENREVIEWS, review)
        except (StatusError, OSError) as error:
            log.warning("a token cannot be checked: %s", error)
            return None
        if not dig(answer, "status", "authenticated", default=False):
            return None
        user = _user_of(dig(answer, "status", "user", default={}))
        self._users.put(key, user, TOKEN_S)
        return user

    async def _may(self, user: User, verb: str, subresource: str) -> bool:
        if self._client is None:
            return False
        key = (user.name, user.groups, verb, subresource)
        if (known := self._decisions.get(key)) is not None:
            return known
        spec: Object = {
            "user": user.name,
            "groups": list(user.groups),
            "resourceAttributes": {
                "verb": verb,
                "version": "v1",
                "resource": "nodes",
                "subresource": subresource,
                "name": self._node_name,
            },
        }
        if user.uid:
            spec["uid"] = user.uid
        if user.extra:
            spec["extra"] = {name: list(values) for name, values in user.extra.items()}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        try:
            answer = await self._client.create(SUBJECTACCESSREVIEWS, review)
        except (StatusError, OSError) as error:
            log.warning("access of %s cannot be checked: %s", user.name, error)
            asked = f"user={user.name}, verb={verb}, resource=nodes, subresource={subresource}"
            raise StatusError(500, "InternalError", f"Authorization error ({asked})") from None
        allowed = bool(dig(answer, "status", "allowed", default=False))
        self._decisions.put(key, allowed, ALLOWED_S if allowed else REFUSED_S)
        return allowed


def subresources_of(path: str) -> tuple[str, ...]:
    """The node's subresources that a path stands for: "/metrics/cadvisor" -> ("metrics",)."""
    for prefix, found in _SUBRESOURCES:
        if path == prefix or path.startswith(prefix + "/"):
            return found
    return ("proxy",)


def user_of_certificate(certificate: Mapping[str, Any]) -> User | None:
    """The common name is the user, the organizations are its groups."""
    names = [(key, value) for part in certificate.get("subject", ()) for key, value in part]
    name = next((str(value) for key, value in names if key == "commonName"), "")
    if not name:
        return None
    groups = tuple(str(value) for key, value in names if key == "organizationName")
    return User(name, groups=(*groups, AUTHENTICATED))


def _user_of(info: Object) -> User:
    return User(
        info.get("username", ""),
        info.get("uid", ""),
        tuple(info.get("groups") or ()),
        {name: tuple(values) for name, values in (info.get("extra") or {}).items()},
    )
