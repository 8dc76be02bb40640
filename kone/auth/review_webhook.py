"""Asking a webhook by a review of authentication.k8s.io or authorization.k8s.io: POST it, read its status.

Source: k8s.io/apiserver, pkg/util/webhook (what is asked again, and when).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from kone.aio.clock import Clock
from kone.apimachinery.objects import Object

BACKOFF_S: Final = (0.5, 0.75, 1.125, 1.6875)  # between five tries


class Trouble(ValueError):
    """The webhook did not answer well, but may in a moment."""


Post = Callable[[Object], Awaitable[Any]]
"""Sends a body of JSON to where the webhook is and decodes the answer. Raises Trouble, and ValueError where it is no
use to ask again."""


class ReviewWebhook:
    """`kind` is TokenReview or SubjectAccessReview, `group` its API group, `version` v1 or v1beta1."""

    def __init__(self, post: Post, group: str, version: str, kind: str, clock: Clock) -> None:
        self._post, self._clock = post, clock
        self._head = {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"creationTimestamp": None}}

    async def ask(self, spec: Object) -> Object:
        """The status of the answer. Raises ValueError."""
        found = await self._answer({**self._head, "spec": spec, "status": {}})
        head = {key: found.get(key) for key in ("apiVersion", "kind")} if isinstance(found, dict) else {}
        if head != {key: self._head[key] for key in ("apiVersion", "kind")}:
            raise ValueError(f"the webhook answered with {head}")
        answer = found.get("status")
        return answer if isinstance(answer, dict) else {}

    async def _answer(self, review: Object) -> Any:
        for wait_s in BACKOFF_S:
            try:
                return await self._post(review)
            except Trouble:
                await self._clock.sleep(wait_s)
        return await self._post(review)
