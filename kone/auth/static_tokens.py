"""Bearer tokens known by themselves: kone's admin token, those of a file, and bootstrap tokens by their Secrets.

They stand for users at the API server's own audiences, as upstream's do.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import logging
from collections.abc import Mapping, Sequence

from kone.aio.clock import Clock
from kone.apimachinery import bootstrap_tokens
from kone.apimachinery.bootstrap_tokens import AUTHENTICATION, NAME_PREFIX, NAMESPACE, USER_PREFIX
from kone.apimachinery.users import AUTHENTICATED, SYSTEM_MASTERS, User
from kone.auth.authentication import with_authenticated
from kone.auth.tokens import DEFAULT_ISSUER, ObjectGetter, TokenUser

log = logging.getLogger(__name__)

COLUMNS = 3  # token, user name, UID; then groups


class StaticTokens:
    """Tokens that do not change. They are found by their digests, so how long it takes says nothing of a token."""

    def __init__(self, tokens: Mapping[str, User], api_audiences: Sequence[str] = (DEFAULT_ISSUER,)) -> None:
        self._users = {_digest(token): user for token, user in tokens.items()}
        self._audiences = tuple(api_audiences)

    def verify(self, token: str, audiences: Sequence[str] = ()) -> TokenUser | None:
        user = self._users.get(_digest(token))
        good = _common(self._audiences, audiences)
        return TokenUser(user, good) if user is not None and good else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _common(own: tuple[str, ...], asked: Sequence[str]) -> tuple[str, ...]:
    return tuple(audience for audience in own if audience in asked) if asked else own


def admin_tokens(token: str) -> StaticTokens:
    """The token of admin.kubeconfig stands for the same user as the admin certificate."""
    return StaticTokens({token: User("kubernetes-admin", groups=(SYSTEM_MASTERS, AUTHENTICATED))})


def parse_token_file(text: str) -> Mapping[str, User]:
    """Users by token of upstream's --token-auth-file: lines of token, user, UID and "group1,group2".

    Raises ValueError. Source: k8s.io/apiserver, token/tokenfile.
    """
    users: dict[str, User] = {}
    for number, record in enumerate(csv.reader(io.StringIO(text), skipinitialspace=True), 1):
        if not record:
            continue
        if len(record) < COLUMNS:
            raise ValueError(f"must have at least 3 columns (token, user name, user uid), found {len(record)}")
        token, name, uid, *rest = record
        if not token:
            log.warning("an empty token has been found in the token file: record=%d", number)
            continue
        if token in users:
            log.warning("a duplicate token has been found in the token file: record=%d", number)
        groups = [group for group in rest[0].split(",") if group] if rest else []
        users[token] = User(name, uid=uid, groups=with_authenticated(groups))
    return users


class BootstrapTokens:
    """A bootstrap token stands for system:bootstrap:<id> while its Secret says so."""

    def __init__(self, get: ObjectGetter, clock: Clock, api_audiences: Sequence[str] = (DEFAULT_ISSUER,)) -> None:
        self._get = get
        self._clock = clock
        self._audiences = tuple(api_audiences)

    def verify(self, token: str, audiences: Sequence[str] = ()) -> TokenUser | None:
        """None for whatever is no good bootstrap token. Raises ValueError for groups that cannot be."""
        parsed = bootstrap_tokens.parse_token(token)
        if parsed is None:
            return None
        secret = self._get("secrets", NAMESPACE, NAME_PREFIX + parsed[0])
        known = bootstrap_tokens.usable(secret, AUTHENTICATION, self._clock.now()) if secret is not None else None
        good = _common(self._audiences, audiences)
        if secret is None or known is None or not good or not hmac.compare_digest(known[1], parsed[1]):
            return None
        groups = with_authenticated(bootstrap_tokens.groups(secret))
        return TokenUser(User(USER_PREFIX + parsed[0], groups=groups), good)
