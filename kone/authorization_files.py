"""Who is asked whether a user may, by kube-apiserver's own files and flags.

Read at the start, where anything wrong raises ConfigError, and again when a file changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kone import api_files
from kone.aio.clock import Clock
from kone.apiserver.webhook_client import WebhookClient
from kone.auth.authorizer import Always, Authorizer, Link
from kone.authentication_files import webhook_of
from kone.config import ConfigError, Settings

if TYPE_CHECKING:
    from kone.auth.authorization_config import Mode

FLAG = "--authorization-config"
WEBHOOK_FLAG = "--authorization-webhook-config-file"
WEBHOOK_TIMEOUT_S = 30.0
_Chain = tuple[tuple[str, Link], ...]


class AuthorizationFiles:
    """What the settings say of authorization, put into an Authorizer."""

    def __init__(self, settings: Settings, webhooks: WebhookClient, clock: Clock, authorizer: Authorizer) -> None:
        self._settings, self._webhooks, self._clock = settings, webhooks, clock
        self._authorizer = authorizer

    def apply(self) -> Iterable[api_files.ReloadedFile]:
        """Build the chain; returns the file to follow. Raises ConfigError."""
        settings = self._settings
        if path := settings.authorization_config:
            self._authorizer.chain = self._chain(api_files.read(FLAG, path, _parsed))
            return [api_files.ReloadedFile(FLAG, path, self._reload)]
        self._authorizer.chain = tuple(self._of_flags(mode) for mode in settings.authorization_modes)
        return []

    async def _reload(self, text: str) -> None:
        try:
            self._authorizer.chain = self._chain(_parsed(text))
        except ConfigError as error:
            raise ValueError(str(error)) from None

    def _chain(self, modes: Iterable[Mode]) -> _Chain:
        return tuple((mode.name, self._link(mode)) for mode in modes)

    def _link(self, mode: Mode) -> Link:
        if mode.webhook is None:
            return self._plain(mode.type)
        from kone.auth.review_webhook import ReviewWebhook
        from kone.auth.webhook_authorizer import GROUP, WebhookAuthorizer

        webhook = mode.webhook
        post = webhook_of(FLAG, webhook.kubeconfig, self._webhooks, webhook.timeout_s)
        asked = ReviewWebhook(post, GROUP, webhook.version, "SubjectAccessReview", self._clock)
        return WebhookAuthorizer(asked, webhook.rules, self._clock)

    def _plain(self, kind: str) -> Link:
        if kind == "Node":
            return self._authorizer.node
        return self._authorizer.rbac if kind == "RBAC" else Always(allows=kind == "AlwaysAllow")

    def _of_flags(self, mode: str) -> tuple[str, Link]:
        if mode != "Webhook":
            return mode.lower(), self._plain(mode)
        from kone.auth.review_webhook import ReviewWebhook
        from kone.auth.webhook_authorizer import GROUP, WebhookAuthorizer, WebhookRules

        settings = self._settings
        path = settings.authorization_webhook_config_file
        post = webhook_of(WEBHOOK_FLAG, path, self._webhooks, WEBHOOK_TIMEOUT_S)
        version = settings.authorization_webhook_version
        asked = ReviewWebhook(post, GROUP, version, "SubjectAccessReview", self._clock)
        rules = WebhookRules(
            settings.authorization_webhook_cache_authorized_ttl_s,
            settings.authorization_webhook_cache_unauthorized_ttl_s,
        )
        return "webhook", WebhookAuthorizer(asked, rules, self._clock)


def _parsed(text: str) -> tuple[Mode, ...]:
    from kone.auth.authorization_config import parse_config  # CEL: only where such a file is given

    return parse_config(text)
