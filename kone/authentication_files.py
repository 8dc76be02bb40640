"""Who is let in, by kube-apiserver's own files and flags: OpenID Connect providers, a webhook that knows tokens, and
who may be anonymous.

Read at the start, where anything wrong raises ConfigError, and again when a file changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kone import api_files
from kone.admission.webhooks import CallFailed
from kone.aio.clock import Clock
from kone.apimachinery.objects import Object
from kone.apiserver.outbound import Outbound
from kone.apiserver.webhook_client import WebhookClient
from kone.auth.authentication import Anonymous, Authenticator, RemoteVerifier
from kone.auth.review_webhook import Post, Trouble
from kone.auth.tokens import DEFAULT_ISSUER
from kone.config import ConfigError, Settings

if TYPE_CHECKING:
    from kone.auth.authentication_config import AuthenticationConfig

FLAG = "--authentication-config"
WEBHOOK_TIMEOUT_S = 10.0


def webhook_of(flag: str, path: str, webhooks: WebhookClient, timeout_s: float) -> Post:
    """What asks where a kubeconfig leads. Raises ConfigError."""
    try:
        backend = webhooks.backend(path)
    except ValueError as error:
        raise ConfigError(f"{flag} {path}: {error}") from None

    async def post(review: Object) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await backend.post(review)
        except TimeoutError:
            raise Trouble(f"the webhook took longer than {timeout_s:g} s") from None
        except CallFailed as error:
            raise (Trouble if error.is_transient else ValueError)(str(error)) from None

    return post


class AuthenticationFiles:
    """What the settings say of authentication, put into an Authenticator."""

    def __init__(self, settings: Settings, outbound: Outbound, webhooks: WebhookClient, clock: Clock) -> None:
        self._settings, self._outbound, self._clients, self._clock = settings, outbound, webhooks, clock
        self._authenticator: Authenticator | None = None
        self._webhooks: list[RemoteVerifier] = []

    def read(self) -> tuple[list[RemoteVerifier], Anonymous]:
        """Raises ConfigError."""
        settings = self._settings
        self._webhooks = self._webhook()
        if settings.authentication_config:
            config = api_files.read(FLAG, settings.authentication_config, self._parsed)
            return [*self._verifiers(config), *self._webhooks], self._anonymous(config)
        found = self._verifiers(self._of_flags()) if settings.oidc_issuer_url else []
        return [*found, *self._webhooks], Anonymous(settings.anonymous_auth == "on")

    def _webhook(self) -> list[RemoteVerifier]:
        settings = self._settings
        if not (path := settings.authentication_token_webhook_config_file):
            return []
        from kone.auth.remembering import Remembering
        from kone.auth.review_webhook import ReviewWebhook
        from kone.auth.webhook_tokens import GROUP, WebhookTokens

        post = webhook_of("--authentication-token-webhook-config-file", path, self._clients, WEBHOOK_TIMEOUT_S)
        version = settings.authentication_token_webhook_version
        tokens = WebhookTokens(ReviewWebhook(post, GROUP, version, "TokenReview", self._clock))
        kept_s = settings.authentication_token_webhook_cache_ttl_s
        return [Remembering(tokens, self._clock, good_s=kept_s, bad_s=kept_s)]

    def follow(self, authenticator: Authenticator) -> Iterable[api_files.ReloadedFile]:
        """Keep an authenticator as the file says."""
        self._authenticator = authenticator
        if path := self._settings.authentication_config:
            yield api_files.ReloadedFile(FLAG, path, self._apply)

    async def _apply(self, text: str) -> None:
        assert self._authenticator is not None
        config = self._parsed(text)
        self._authenticator.remote = (*self._verifiers(config), *self._webhooks)
        self._authenticator.anonymous = self._anonymous(config)

    def _parsed(self, text: str) -> AuthenticationConfig:
        from kone.auth.authentication_config import parse_config  # CEL: only where such a file is given

        return parse_config(text, (DEFAULT_ISSUER,))

    def _anonymous(self, config: AuthenticationConfig) -> Anonymous:
        return config.anonymous or Anonymous(self._settings.anonymous_auth == "on")

    def _verifiers(self, config: AuthenticationConfig) -> list[RemoteVerifier]:
        if not config.issuers:
            return []
        from kone.auth.oidc import OidcTokens
        from kone.auth.remembering import OIDC_S, Remembering

        return [
            Remembering(OidcTokens(issuer, self._outbound.get, self._clock), self._clock, good_s=OIDC_S)
            for issuer in config.issuers
        ]

    def _of_flags(self) -> AuthenticationConfig:
        """The --oidc-* flags, which are one issuer."""
        import dataclasses

        from kone.auth.authentication_config import ALGORITHMS, AuthenticationConfig, issuer_of

        settings = self._settings
        algorithms = tuple(each.strip() for each in settings.oidc_signing_algs.split(",") if each.strip())
        if unknown := next((each for each in algorithms if each not in ALGORITHMS), ""):
            raise ConfigError(f"--oidc-signing-algs {unknown}: choose from {','.join(ALGORITHMS)}")
        issuer, errors = issuer_of(_issuer_config(settings), "oidc", (DEFAULT_ISSUER,))
        if errors:
            raise ConfigError(f"--oidc-issuer-url {settings.oidc_issuer_url}: {errors[0].detail or errors[0]}")
        return AuthenticationConfig((dataclasses.replace(issuer, algorithms=algorithms),))


def _issuer_config(settings: Settings) -> dict[str, Any]:
    prefix = settings.oidc_username_prefix
    if prefix == "" and settings.oidc_username_claim != "email":
        prefix = f"{settings.oidc_issuer_url}#"
    mappings: dict[str, Any] = {
        "username": {"claim": settings.oidc_username_claim, "prefix": "" if prefix == "-" else prefix}
    }
    if settings.oidc_groups_claim:
        mappings["groups"] = {"claim": settings.oidc_groups_claim, "prefix": settings.oidc_groups_prefix}
    rules = []
    for pair in filter(None, (each.strip() for each in settings.oidc_required_claim.split(","))):
        claim, equals, value = pair.partition("=")
        if not equals or not claim:
            raise ConfigError(f"--oidc-required-claim {pair}: give KEY=VALUE")
        rules.append({"claim": claim, "requiredValue": value})
    issuer: dict[str, Any] = {"url": settings.oidc_issuer_url, "audiences": [settings.oidc_client_id]}
    if path := settings.oidc_ca_file:
        try:
            issuer["certificateAuthority"] = Path(path).read_text()
        except OSError as error:
            raise ConfigError(f"--oidc-ca-file {path}: {error.strerror}") from None
    return {"issuer": issuer, "claimMappings": mappings, "claimValidationRules": rules}
