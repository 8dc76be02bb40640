"""Bearer tokens that a webhook knows the users of (--authentication-token-webhook-config-file).

Source: k8s.io/apiserver, plugin/pkg/authenticator/token/webhook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.auth.authentication import with_authenticated
from kone.auth.review_webhook import ReviewWebhook
from kone.auth.tokens import DEFAULT_ISSUER, TokenUser

GROUP: Final = "authentication.k8s.io"
VERSIONS: Final = ("v1", "v1beta1")


class WebhookTokens:
    """A webhook that does not speak of audiences answers for the API server's own."""

    def __init__(self, webhook: ReviewWebhook, api_audiences: Sequence[str] = (DEFAULT_ISSUER,)) -> None:
        self._webhook = webhook
        self._audiences = tuple(api_audiences)

    async def verify(self, token: str, audiences: Sequence[str] = ()) -> TokenUser | None:
        """Raises ValueError where the webhook does, or does not answer."""
        wanted = tuple(audiences) or self._audiences
        status = await self._webhook.ask({"token": token, "audiences": list(wanted)})
        if not status.get("authenticated"):
            if error := status.get("error"):
                raise ValueError(str(error))
            return None
        theirs = status.get("audiences") or self._audiences
        good = tuple(audience for audience in wanted if audience in theirs)
        return TokenUser(_user(status.get("user") or {}), good) if good else None


def _user(info: Object) -> User:
    extra = {key: tuple(values) for key, values in (info.get("extra") or {}).items()}
    groups = with_authenticated(info.get("groups") or ())
    return User(info.get("username", ""), info.get("uid", ""), groups, extra)
