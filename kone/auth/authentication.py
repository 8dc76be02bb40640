"""Who makes a request: the local socket's peer, a client certificate, a bearer token, or nobody known.

Tried in upstream's order: front-proxy headers, certificate, bearer token. A request without any of them is
system:anonymous, which RBAC lets see health and version only; a token that is given and wrong is 401, never anonymous.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kone.apimachinery.errors import aggregate, unauthorized
from kone.apimachinery.objects import Object
from kone.apimachinery.users import ANONYMOUS, AUTHENTICATED, SYSTEM_MASTERS, UNAUTHENTICATED, User
from kone.auth.tokens import TokenUser

log = logging.getLogger(__name__)

CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
INVALID_TOKEN = "invalid bearer token"
FRONT_PROXY_ISSUER = "kone-front-proxy"
FRONT_PROXY_CLIENTS = frozenset({"front-proxy-client"})
CERTIFICATES_REMEMBERED = 256

_ANONYMOUS_USER = User(ANONYMOUS, groups=(UNAUTHENTICATED,))


class Headers(Protocol):
    """A request's headers, names in any case; aiohttp's CIMultiDict has this shape."""

    def get(self, name: str, default: str = "", /) -> str: ...
    def getall(self, name: str, default: list[str], /) -> list[str]: ...
    def keys(self) -> Iterable[str]: ...


@dataclass(frozen=True, slots=True)
class UnixPeer:
    """SO_PEERCRED of a connection to the local socket."""

    pid: int
    uid: int
    gid: int


class TokenVerifier(Protocol):
    """Says whose bearer token it is; None: not a token of this kind. Raises ValueError for a bad one."""

    def verify(self, token: str, audiences: Sequence[str] = ()) -> TokenUser | None:
        """`audiences` that the token must be for, at least one of them; () means the API server's own."""


class RemoteVerifier(Protocol):
    """A TokenVerifier that has to ask somebody else first."""

    async def verify(self, token: str, audiences: Sequence[str] = ()) -> TokenUser | None: ...


@dataclass(frozen=True, slots=True)
class Anonymous:
    """Whether requests without credentials are served; where `paths` are given, for these only."""

    enabled: bool = True
    paths: frozenset[str] = frozenset()

    def allows(self, path: str) -> bool:
        return self.enabled and (not self.paths or path in self.paths)


class Authenticator:
    """`verifiers` are asked in order for the user of a bearer token, then `remote` ones, whose answers are remembered
    for a moment. Both, and who is anonymous, may be changed at any time."""

    def __init__(
        self,
        verifiers: Iterable[TokenVerifier],
        remote: Iterable[RemoteVerifier] = (),
        anonymous: Anonymous | None = None,
    ) -> None:
        self._verifiers = tuple(verifiers)
        self.remote = tuple(remote)
        self.anonymous = anonymous or Anonymous()
        self._certificates: OrderedDict[bytes, Certificate] = OrderedDict()

    async def authenticate(
        self, peer_cert_der: bytes | None, headers: Headers, unix_peer: UnixPeer | None = None, path: str = ""
    ) -> User:
        """The user of a request for `path`, with system:authenticated among its groups unless anonymous.

        `peer_cert_der` must have been verified by the TLS layer against the cluster's or the front proxy's CA.
        Raises StatusError 401 for a bearer token that is not valid, for a local peer that is neither root nor the
        server's own user and shows no credentials, and where nobody may be anonymous.
        """
        if unix_peer is not None and unix_peer.uid in (0, os.geteuid()):
            return local_user(unix_peer)
        if peer_cert_der is not None:
            certificate = self._parsed(peer_cert_der)
            if certificate.issuer == FRONT_PROXY_ISSUER:
                if certificate.user.name in FRONT_PROXY_CLIENTS and (user := front_proxy_user(headers)):
                    return user
            elif certificate.user.name:
                return certificate.user
        if token := bearer_token(headers):
            return await self.token_user(token)
        if not self.anonymous.allows(path):
            raise unauthorized()
        return _ANONYMOUS_USER

    async def token_user(self, token: str) -> User:
        """The user of a bearer token. Raises StatusError 401."""
        found, problems = await self._verify(token, ())
        if problems:
            log.info("a bearer token was refused: %s", "; ".join(problems))
        if found is None:
            raise unauthorized()
        return found.user

    async def review(self, token: str, audiences: Sequence[str] = ()) -> Object:
        """The status of a TokenReview of this token."""
        found, problems = await self._verify(token, audiences)
        if found is None:
            return {"user": {}, "error": aggregate([INVALID_TOKEN, *problems])}
        return {"authenticated": True, "user": user_info(found.user), "audiences": list(found.audiences)}

    async def _verify(self, token: str, audiences: Sequence[str]) -> tuple[TokenUser | None, Sequence[str]]:
        """Whose token it is, and what those said of it who refused it."""
        problems: list[str] = []
        for verifier in self._verifiers:
            try:
                found = verifier.verify(token, audiences)
            except ValueError as error:
                problems.append(str(error))
                continue
            if found is not None:
                return found, ()
        for remote in self.remote:
            try:
                found = await remote.verify(token, audiences)
            except ValueError as error:
                problems.append(str(error))
                continue
            if found is not None:
                return found, ()
        return None, problems

    def _parsed(self, der: bytes) -> Certificate:
        digest = hashlib.sha256(der).digest()
        found = self._certificates.get(digest)
        if found is None:
            found = self._certificates[digest] = parse_certificate(der)
            if len(self._certificates) > CERTIFICATES_REMEMBERED:
                self._certificates.popitem(last=False)
        return found


def user_info(user: User) -> Object:
    """A user as authentication.k8s.io writes it: TokenReview, SelfSubjectReview."""
    info: Object = {"username": user.name}
    if user.uid:
        info["uid"] = user.uid
    if user.groups:
        info["groups"] = list(user.groups)
    if user.extra:
        info["extra"] = {key: list(user.extra[key]) for key in sorted(user.extra)}
    return info


@dataclass(frozen=True, slots=True)
class Certificate:
    """What authentication reads of a client certificate: CN is the user, each O a group."""

    user: User
    issuer: str


def parse_certificate(der: bytes) -> Certificate:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    certificate = x509.load_der_x509_certificate(der)
    names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    groups = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    issuers = [str(a.value) for a in certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)]
    extra = {CREDENTIAL_ID: (f"X509SHA256={hashlib.sha256(der).hexdigest()}",)}
    user = User(names[-1] if names else "", groups=with_authenticated(groups), extra=extra)
    return Certificate(user, issuers[-1] if issuers else "")


def local_user(peer: UnixPeer) -> User:
    """Who stands at the local door: root and the server's own user are the cluster's administrators."""
    return User("root" if peer.uid == 0 else f"uid:{peer.uid}", groups=(SYSTEM_MASTERS, AUTHENTICATED))


def front_proxy_user(headers: Headers) -> User | None:
    """X-Remote-User and its kin, which only a certificate of the front-proxy CA may send."""
    name = headers.get("X-Remote-User", "")
    if not name:
        return None
    extra: dict[str, tuple[str, ...]] = {}
    for header in set(headers.keys()):
        if header.lower().startswith("x-remote-extra-"):
            key = urllib.parse.unquote(header[len("x-remote-extra-") :].lower())
            extra[key] = tuple(headers.getall(header, []))
    groups = with_authenticated(headers.getall("X-Remote-Group", []))
    return User(name, headers.get("X-Remote-Uid", ""), groups, extra)


def with_authenticated(groups: Iterable[str]) -> tuple[str, ...]:
    found = tuple(groups)
    return found if AUTHENTICATED in found or UNAUTHENTICATED in found else (*found, AUTHENTICATED)


WEBSOCKET_TOKEN_PROTOCOL = "base64url.bearer.authorization.k8s.io."


def bearer_token(headers: Headers) -> str:
    """The token of "Authorization: Bearer …", or of a WebSocket subprotocol (browsers cannot set the header)."""
    scheme, _, token = headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip().split(" ")[0]
    for line in headers.getall("Sec-WebSocket-Protocol", []):
        for protocol in line.split(","):
            encoded = protocol.strip()
            if encoded.startswith(WEBSOCKET_TOKEN_PROTOCOL):
                return _decoded(encoded[len(WEBSOCKET_TOKEN_PROTOCOL) :])
    return ""


def _decoded(encoded: str) -> str:
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except ValueError as error:
        raise unauthorized() from error
