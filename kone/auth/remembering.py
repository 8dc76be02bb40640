"""Answers of a verifier that has to ask elsewhere, kept for a while: a client shows its token with every request.

Who comes while an answer is on its way waits for the same one. An error is not kept. Source: k8s.io/apiserver,
authentication/token/cache.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from kone.aio.clock import Clock
from kone.auth.authentication import RemoteVerifier
from kone.auth.tokens import TokenUser

REMEMBERED: Final = 4096
OIDC_S: Final = 10.0  # upstream's for all tokens that it verifies

_Key = tuple[bytes, tuple[str, ...]]


class Remembering:
    """A RemoteVerifier that keeps what another says, for `good_s` or, where it says no, for `bad_s` seconds."""

    def __init__(self, verifier: RemoteVerifier, clock: Clock, *, good_s: float, bad_s: float = 0.0) -> None:
        self._verifier, self._clock = verifier, clock
        self._good_s, self._bad_s = good_s, bad_s
        self._known: OrderedDict[_Key, tuple[float, TokenUser | None]] = OrderedDict()
        self._asking: dict[_Key, asyncio.Task[TokenUser | None]] = {}

    async def verify(self, token: str, audiences: Sequence[str] = ()) -> TokenUser | None:
        key = hashlib.sha256(token.encode()).digest(), tuple(audiences)
        known = self._known.get(key)
        if known is not None and self._clock.monotonic() < known[0]:
            return known[1]
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key, token, audiences), name="token review")
        return await asyncio.shield(asking)

    async def _ask(self, key: _Key, token: str, audiences: Sequence[str]) -> TokenUser | None:
        try:
            found = await self._verifier.verify(token, audiences)
        finally:
            del self._asking[key]
        lasts_s = self._good_s if found is not None else self._bad_s
        if lasts_s > 0:
            self._known[key] = self._clock.monotonic() + lasts_s, found
            self._known.move_to_end(key)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return found
