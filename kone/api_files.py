"""Files that the API server is given in kube-apiserver's own formats: what is recorded, encrypted, admitted, and who is
let in.

Each function makes of a setting the part that it configures. All raise ConfigError, one line that says what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from kone.admission.choice import choose
from kone.admission.configuration import Configurations, parse_configurations
from kone.admission.webhooks import CallFailed
from kone.aio.clock import Clock
from kone.aio.rotating_file import RotatingFile
from kone.apimachinery.objects import Object
from kone.apiserver.audit import Audit, Sink
from kone.apiserver.audit_policy import parse_policy
from kone.apiserver.audit_webhook import AuditWebhook, Sinks
from kone.apiserver.webhook_client import WebhookClient
from kone.auth.encryption import Encryption, parse_encryption
from kone.auth.static_tokens import StaticTokens, parse_token_file
from kone.config import ConfigError, Settings
from kone.store.store import StoreError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0  # how often files that may change are looked at
ADMISSION = "--admission-control-config-file"
ENCRYPTION = "--encryption-provider-config"
Made = TypeVar("Made")
MEGABYTE = 2**20


class ReloadedFile:
    """A file that is read again when it has changed; what cannot be in it changes nothing. `apply` raises ValueError or
    StoreError."""

    def __init__(self, flag: str, path: str, apply: Callable[[str], Awaitable[None]]) -> None:
        self._flag, self._path, self._apply = flag, Path(path), apply
        self._seen = self._stamp()

    async def look(self) -> None:
        """Read the file where it is not the one that was read last."""
        stamp = self._stamp()
        if stamp == self._seen or stamp is None:
            return
        try:
            text = self._path.read_text()
            self._seen = stamp
            await self._apply(text)
        except StoreError as error:
            self._seen = None  # tried again
            log.error("%s %s is not in force: %s", self._flag, self._path, error)
        except (OSError, ValueError) as error:
            log.error("%s %s stays as it was: %s", self._flag, self._path, error)
        else:
            log.info("%s %s is in force", self._flag, self._path)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def read(flag: str, path: str, parse: Callable[[str], Made]) -> Made:
    """What a file says; `parse` raises ValueError for what it cannot be."""
    try:
        return parse(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{flag} {path}: {error}") from None


def audit_of(settings: Settings, clock: Clock, webhook: AuditWebhook | None = None) -> Audit | None:
    """The audit log, in a file or sent to a webhook; None where it is off."""
    if not settings.audit_policy_file or not (settings.audit_log_path or webhook):
        return None
    policy = read("--audit-policy-file", settings.audit_policy_file, parse_policy)
    sinks: list[Sink] = [] if webhook is None else [webhook]
    if settings.audit_log_path:
        sinks.append(_log_file(settings, clock))
    return Audit(policy, sinks[0] if len(sinks) == 1 else Sinks(*sinks), clock)


def _log_file(settings: Settings, clock: Clock) -> RotatingFile:
    try:
        return RotatingFile(
            settings.audit_log_path,
            clock,
            max_bytes=settings.audit_log_maxsize * MEGABYTE,
            max_backups=settings.audit_log_maxbackup,
            max_age_days=settings.audit_log_maxage,
        )
    except OSError as error:
        raise ConfigError(f"--audit-log-path {settings.audit_log_path}: {error.strerror}") from None


def audit_webhook_of(settings: Settings, webhooks: WebhookClient, clock: Clock) -> AuditWebhook | None:
    """Where audit events are sent, None where no webhook is named."""
    path = settings.audit_webhook_config_file
    if not path or not settings.audit_policy_file:
        return None
    try:
        backend = webhooks.backend(path)
    except ValueError as error:
        raise ConfigError(f"--audit-webhook-config-file {path}: {error}") from None

    async def send(events: Object) -> None:
        try:
            await backend.tell(events)
        except CallFailed as error:
            raise ValueError(str(error)) from None

    return AuditWebhook(
        send,
        clock,
        batch=settings.audit_webhook_batch_max_size,
        max_wait_s=settings.audit_webhook_batch_max_wait_s,
    )


def admission_plugins_of(settings: Settings) -> tuple[str, ...]:
    """The names of the admission plugins that are on, in order."""
    try:
        return choose(_names(settings.enable_admission_plugins), _names(settings.disable_admission_plugins))
    except ValueError as error:
        raise ConfigError(f"{error}: docs/admission.md names them all") from None


def admission_configurations_of(settings: Settings) -> Configurations:
    """How admission plugins are configured."""
    path = settings.admission_control_config_file
    if not path:
        return {}
    return read(ADMISSION, path, lambda text: parse_configurations(text, Path(path).parent))


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def encryption_of(settings: Settings) -> Encryption | None:
    """How the store encrypts, None where it does not."""
    path = settings.encryption_provider_config
    return read(ENCRYPTION, path, parse_encryption) if path else None


def token_file_of(settings: Settings) -> StaticTokens | None:
    """The tokens of a file, None where none is given."""
    path = settings.token_auth_file
    return StaticTokens(read("--token-auth-file", path, parse_token_file)) if path else None
