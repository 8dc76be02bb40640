"""Files that the API server is given in kube-apiserver's own formats: what is recorded, encrypted, admitted, and who is
let in.

Each function makes of a setting the part that it configures. All raise ConfigError, one line that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kone.aio.clock import Clock
from kone.aio.rotating_file import RotatingFile
from kone.apiserver.audit import Audit
from kone.apiserver.audit_policy import parse_policy
from kone.config import ConfigError, Settings

Made = TypeVar("Made")
MEGABYTE = 2**20


def read(flag: str, path: str, parse: Callable[[str], Made]) -> Made:
    """What a file says; `parse` raises ValueError for what it cannot be."""
    try:
        return parse(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{flag} {path}: {error}") from None


def audit_of(settings: Settings, clock: Clock) -> Audit | None:
    """The audit log, None where it is off."""
    if not settings.audit_policy_file or not settings.audit_log_path:
        return None
    policy = read("--audit-policy-file", settings.audit_policy_file, parse_policy)
    try:
        sink = RotatingFile(
            settings.audit_log_path,
            clock,
            max_bytes=settings.audit_log_maxsize * MEGABYTE,
            max_backups=settings.audit_log_maxbackup,
            max_age_days=settings.audit_log_maxage,
        )
    except OSError as error:
        raise ConfigError(f"--audit-log-path {settings.audit_log_path}: {error.strerror}") from None
    return Audit(policy, sink, clock)
