"""Bootstrap tokens: Secrets in kube-system by which whoever joins a cluster is known, and knows the cluster. Pure.

A token is "<id>.<secret>"; its Secret is named bootstrap-token-<id> and says what the token is good for and until when.
Source of the rules: k8s.io/cluster-bootstrap, token/util and util/secrets.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Sequence
from typing import Final

from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object, dig, name_of
from kone.apimachinery.timestamps import parse_time

NAMESPACE: Final = "kube-system"
SECRET_TYPE: Final = "bootstrap.kubernetes.io/token"
NAME_PREFIX: Final = "bootstrap-token-"
USER_PREFIX: Final = "system:bootstrap:"
GROUP: Final = "system:bootstrappers"
AUTHENTICATION: Final = "usage-bootstrap-authentication"
SIGNING: Final = "usage-bootstrap-signing"
_TOKEN: Final = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_GROUP: Final = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")


def parse_token(text: str) -> tuple[str, str] | None:
    """(id, secret), None where it is no bootstrap token."""
    found = _TOKEN.fullmatch(text)
    return (found[1], found[2]) if found else None


def value(secret: Object, key: str) -> str:
    """A text of the Secret's data, "" where it has none."""
    try:
        return base64.b64decode(dig(secret, "data", key, default="")).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def expires_at(secret: Object) -> float | None:
    """Unix seconds; None for never. What cannot be read has expired: 0."""
    text = value(secret, "expiration")
    if not text:
        return None
    try:
        return parse_time(text)
    except ValueError:
        return 0.0


def usable(secret: Object, usage: str, now: float) -> tuple[str, str] | None:
    """The (id, secret) of a token that is good for the usage now. None where it is not, or is not of its name."""
    if secret.get("type") != SECRET_TYPE or secret["metadata"].get("deletionTimestamp"):
        return None
    token = parse_token(f"{value(secret, 'token-id')}.{value(secret, 'token-secret')}")
    if token is None or name_of(secret) != NAME_PREFIX + token[0] or value(secret, usage) != "true":
        return None
    end = expires_at(secret)
    return token if end is None or now < end else None


def groups(secret: Object) -> Sequence[str]:
    """Whom the token stands for beyond system:bootstrappers, that group first. Raises ValueError."""
    extra = [name for name in value(secret, "auth-extra-groups").split(",") if name]
    for name in extra:
        if not _GROUP.fullmatch(name):
            rule = go_quote(rf"\A{_GROUP.pattern}\z")
            raise ValueError(f"bootstrap group {go_quote(name)} is invalid (must match {rule[1:-1]})")
    return [GROUP, *sorted(set(extra))]


def detached_signature(content: str, token_id: str, token_secret: str) -> str:
    """A JWS of the content by HS256 under the token, without the content itself (RFC 7515, appendix F)."""
    header = _base64url(f'{{"alg":"HS256","kid":"{token_id}"}}'.encode())
    signed = f"{header}.{_base64url(content.encode())}"
    return f"{header}..{_base64url(hmac.digest(token_secret.encode(), signed.encode(), 'sha256'))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
