"""Tokens of OpenID Connect providers: found by their issuer, verified by its published keys, mapped to users.

A provider's configuration and keys are fetched when its first token comes, and its keys again when a token names one
that is not known. A provider that does not answer is asked again after 10 s. Source: k8s.io/apiserver,
plugin/pkg/authenticator/token/oidc, and github.com/coreos/go-oidc.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from kone.aio.clock import Clock
from kone.apimachinery.errors import go_quote
from kone.auth.authentication_config import Issuer
from kone.auth.tokens import DEFAULT_ISSUER, SIGNATURE_ONLY, TokenUser, unverified_issuer

if TYPE_CHECKING:
    from jwt import PyJWK

log = logging.getLogger(__name__)

AGAIN_S: Final = 10.0
NOT_BEFORE_LEEWAY_S: Final = 300.0
_GOOGLE: Final = "accounts.google.com"  # whose tokens leave "https://" out


class Fetch(Protocol):
    """GET over HTTPS: the body of a 200. `ca_pem` "" means the host's CAs. Raises ValueError for anything else."""

    async def __call__(self, url: str, ca_pem: str, *, bearer: str = "") -> bytes: ...


class OidcTokens:
    """Tokens of one issuer; they stand for users at the API server's own audiences."""

    def __init__(
        self, issuer: Issuer, fetch: Fetch, clock: Clock, api_audiences: Sequence[str] = (DEFAULT_ISSUER,)
    ) -> None:
        self._issuer, self._fetch, self._clock = issuer, fetch, clock
        self._audiences = tuple(api_audiences)
        self._keys_url = ""
        self._keys: tuple[PyJWK, ...] = ()
        self._failed_at: float | None = None
        self._problem = ""
        self._fetching: asyncio.Task[None] | None = None

    async def verify(self, token: str, audiences: Sequence[str] = ()) -> TokenUser | None:
        """The user of a token, None where it is none of this issuer's. Raises ValueError for a bad one."""
        if _issuer_of(token) != self._issuer.url:
            return None
        good = tuple(each for each in self._audiences if not audiences or each in audiences)
        if not good:
            return None
        claims = await self._verified(token)
        await self._expand(claims)
        return TokenUser(self._issuer.rules.user(claims), good)

    async def _verified(self, token: str) -> dict[str, Any]:
        """The claims of a token that is this issuer's, for one of its audiences, and in time."""
        import jwt

        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise ValueError(f"oidc: verify token: oidc: malformed jwt: {error}") from None
        if (algorithm := header.get("alg")) not in self._issuer.algorithms:
            wanted = " ".join(go_quote(each) for each in self._issuer.algorithms)
            raise ValueError(
                "oidc: verify token: oidc: malformed jwt: go-jose/go-jose: unexpected signature algorithm "
                f"{go_quote(str(algorithm))}; expected [{wanted}]"
            )
        key_id = str(header.get("kid") or "")
        if not self._keys_url:
            await self._refresh()
        claims = self._checked(token, key_id)
        if claims is None:
            await self._refresh()
            claims = self._checked(token, key_id)
        if claims is None:
            why = "failed to verify signature: failed to verify id token signature"
            raise ValueError(f"oidc: verify token: {why}")
        self._check_claims(claims)
        return claims

    def _checked(self, token: str, key_id: str) -> dict[str, Any] | None:
        """The claims, where one of the known keys has signed them."""
        import jwt

        for key in self._keys:
            if key_id and key.key_id != key_id:
                continue
            try:
                found: dict[str, Any] = jwt.decode(
                    token, key, algorithms=list(self._issuer.algorithms), options=SIGNATURE_ONLY
                )
            except (jwt.InvalidTokenError, TypeError):  # the latter: a key of another kind
                continue
            return found
        return None

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        said = claims.get("aud", [])
        audiences = [said] if isinstance(said, str) else list(said)
        if not set(audiences) & set(self._issuer.audiences):
            shown = " ".join(go_quote(str(each)) for each in audiences)
            if len(self._issuer.audiences) == 1:
                wanted = go_quote(self._issuer.audiences[0])
                raise ValueError(f"oidc: verify token: oidc: expected audience {wanted} got [{shown}]")
            wanted = " ".join(go_quote(each) for each in sorted(self._issuer.audiences))
            raise ValueError(f"oidc: verify token: oidc: expected audience in [{wanted}] got [{shown}]")
        now, expires = self._clock.now(), claims.get("exp")
        if not isinstance(expires, (int, float)) or expires < now:
            moment = float(expires) if isinstance(expires, (int, float)) else 0.0
            shown_time = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
            raise ValueError(f"oidc: verify token: oidc: token is expired (Token Expiry: {shown_time})")
        not_before = claims.get("nbf")
        if isinstance(not_before, (int, float)) and now + NOT_BEFORE_LEEWAY_S < not_before:
            raise ValueError("oidc: verify token: oidc: current time before the nbf (not before) time")

    # -- what the provider says of itself ------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        """Fetch the keys; who comes meanwhile waits for the same answer. Raises ValueError."""
        failed_at = self._failed_at
        if failed_at is not None and not self._keys_url and self._clock.monotonic() - failed_at < AGAIN_S:
            raise ValueError("oidc: authenticator not initialized")
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch_keys(), name=f"keys of {self._issuer.url}")
        fetching = self._fetching
        try:
            await asyncio.shield(fetching)
        finally:
            if fetching.done():
                self._fetching = None

    async def _fetch_keys(self) -> None:
        import jwt

        issuer = self._issuer
        try:
            if not self._keys_url:
                found = _json(await self._fetch(issuer.discovery_url, issuer.ca_pem), "configuration")
                if found.get("issuer") != issuer.url:
                    theirs = go_quote(str(found.get("issuer", "")))
                    raise ValueError(
                        "oidc: issuer did not match the issuer returned by provider, expected "
                        f"{go_quote(issuer.url)} got {theirs}"
                    )
                keys_url = found.get("jwks_uri")
                if not isinstance(keys_url, str) or not keys_url:
                    raise ValueError("provider did not return JWKS URL")
                self._keys_url = keys_url
            listed = _json(await self._fetch(self._keys_url, issuer.ca_pem), "keys").get("keys")
            keys: list[PyJWK] = []
            for each in listed if isinstance(listed, list) else ():
                try:
                    keys.append(jwt.PyJWK(each))
                except (jwt.PyJWTError, TypeError, AttributeError):
                    continue  # of a kind that is not for signatures, or unknown
            self._keys = tuple(keys)
            self._failed_at = None
        except ValueError as error:
            self._failed_at = self._clock.monotonic()
            log.error("oidc: keys of %s: %s", issuer.url, error)
            raise ValueError(f"oidc: verify token: failed to verify signature: fetching keys {error}") from None

    # -- distributed claims --------------------------------------------------------------------------------------------

    async def _expand(self, claims: dict[str, Any]) -> None:
        """Fetch the groups where the token only says who has them (OpenID Connect Core 1.0, 5.6.2)."""
        claim = self._issuer.rules.groups.claim
        if not claim or claim in claims or "_claim_names" not in claims:
            return
        names, sources = claims["_claim_names"], claims.get("_claim_sources")
        if not isinstance(names, dict):
            raise ValueError("oidc: could not expand distributed claims: oidc: error parsing distributed claim names")
        if not isinstance(sources, dict):
            raise ValueError("oidc: could not expand distributed claims: oidc: no claim sources")
        if (source := names.get(claim)) is None:
            return
        if not isinstance(where := sources.get(source), dict):
            why = f"id token _claim_names contained a source {source} missing in _claims_sources"
            raise ValueError(f"oidc: could not expand distributed claims: {why}")
        if not (endpoint := where.get("endpoint")):
            return
        bearer = str(where.get("access_token") or "")
        try:
            answer = await self._fetch(str(endpoint), self._issuer.ca_pem, bearer=bearer)
            token = answer.decode()
            if _issuer_of(token) != self._issuer.url:
                raise ValueError(f"verifying untrusted issuer {_issuer_of(token)} failed")
            found = await self._verified(token)
        except ValueError as error:
            why = f"while getting distributed claim {go_quote(claim)}: {error}"
            raise ValueError(f"oidc: could not expand distributed claims: {why}") from None
        if claim not in found:
            why = f"jwt returned by distributed claim endpoint {go_quote(str(endpoint))} did not contain claim: {claim}"
            raise ValueError(f"oidc: could not expand distributed claims: {why}")
        claims[claim] = found[claim]


def _issuer_of(token: str) -> str:
    found = unverified_issuer(token)
    return f"https://{_GOOGLE}" if found == _GOOGLE else found


def _json(body: bytes, what: str) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"the provider's {what} is no JSON object")
    return found
