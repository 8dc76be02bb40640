"""Service account tokens of this node's pods: asked for at the API, kept, and renewed long before they expire.

Rules: kubernetes/pkg/kubelet/token. A token that cannot be renewed is used until it expires.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from kone.aio.clock import Clock
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import SERVICEACCOUNTS
from kone.apimachinery.objects import Object, dig, name_of, namespace_of, uid_of
from kone.apimachinery.timestamps import parse_time
from kone.client.client import Client
from kone.runtime.parts import VolumeError
from kone.runtime.volume_payloads import Source, token_request

log = logging.getLogger(__name__)

MAX_AGE_S = 24 * 3600.0  # renewed at 80 % of its life or after a day, whichever is sooner
LIFE_SHARE = 0.8

_Key = tuple[str, str, str]  # pod UID, audience, seconds it should live


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    expiration: str  # as the API wrote it
    renew_at: float
    expires_at: float


class Tokens:
    """The tokens of all pods. Times are wall clock: a clock that jumps makes them due, not wrong."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._tokens: dict[_Key, Token] = {}

    async def get(self, pod: Object, source: Source) -> Token:
        """The token for a serviceAccountToken source of a pod. Raises VolumeError."""
        key = (uid_of(pod), source.spec.get("audience", ""), str(source.spec.get("expirationSeconds", "")))
        known = self._tokens.get(key)
        now = self._clock.now()
        if known is not None and now < known.renew_at:
            return known
        account = dig(pod, "spec", "serviceAccountName", default="default")
        try:
            answer = await self._client.create(
                SERVICEACCOUNTS,
                token_request(source, pod),
                namespace=namespace_of(pod),
                name=account,
                subresource="token",
            )
        except StatusError as error:
            if known is None:
                raise VolumeError(f"failed to fetch token: {error}") from None
            if now >= known.expires_at:
                raise VolumeError(f"token {account} expired and refresh failed: {error}") from None
            log.warning("token of pod %s/%s is not renewed: %s", namespace_of(pod), name_of(pod), error)
            return known
        expiration = answer["status"]["expirationTimestamp"]
        expires_at = parse_time(expiration)
        lives_s = float(dig(answer, "spec", "expirationSeconds", default=expires_at - now))
        renew_at = min(expires_at - lives_s * (1 - LIFE_SHARE), expires_at - lives_s + MAX_AGE_S)
        token = Token(answer["status"]["token"], expiration, renew_at, expires_at)
        self._tokens[key] = token
        return token

    def due(self) -> Iterator[str]:
        """UIDs of pods that have a token to be renewed."""
        now = self._clock.now()
        yield from {key[0] for key, token in self._tokens.items() if token.renew_at <= now}

    def forget(self, pod_uid: str) -> None:
        for key in [key for key in self._tokens if key[0] == pod_uid]:
            del self._tokens[key]
