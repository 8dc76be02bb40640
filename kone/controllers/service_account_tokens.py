"""Secrets of the type kubernetes.io/service-account-token: filled with a lasting token, gone with their account."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import SECRETS, SERVICEACCOUNTS
from kone.apimachinery.objects import (
    Key,
    Object,
    annotations_of,
    dig,
    key_of,
    name_of,
    namespace_of,
    replace_in,
    uid_of,
)
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch

TYPE = "kubernetes.io/service-account-token"
NAME = "kubernetes.io/service-account.name"
UID = "kubernetes.io/service-account.uid"
_BY_ACCOUNT = "service account"


def is_token(secret: Object) -> bool:
    return secret.get("type") == TYPE


def account_of(secret: Object) -> Key:
    return Key(namespace_of(secret), annotations_of(secret).get(NAME, ""))


def belongs_to(secret: Object, account: Object) -> bool:
    """A secret may name an account of any uid, until it was filled for one."""
    uid = annotations_of(secret).get(UID, "")
    return account_of(secret) == key_of(account) and uid in ("", uid_of(account))


def missing(secret: Object, ca_pem: str) -> dict[str, str]:
    """What the secret lacks, but for the token itself; encoded."""
    wanted = {"namespace": _encode(namespace_of(secret))}
    if ca_pem:
        wanted["ca.crt"] = _encode(ca_pem)
    data = secret.get("data") or {}
    kept = data.get("namespace")
    return {key: value for key, value in wanted.items() if data.get(key) != value and not (key == "namespace" and kept)}


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class ServiceAccountTokens(Reconciler):
    """Keys are secrets."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(SECRETS)
        self._accounts: Informer = ctx.client.informer(SERVICEACCOUNTS)
        self.primary.add_index(_BY_ACCOUNT, lambda s: ["/".join(account_of(s))] if is_token(s) else [])

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._accounts, self._keys_of_account)
        yield Watch(self.primary, self._keys_of_secret)

    def _keys_of_account(self, event: EventType, account: Object, previous: Object | None) -> Iterable[Key]:
        if event == "MODIFIED":
            return ()
        return [key_of(secret) for secret in self.primary.by_index(_BY_ACCOUNT, "/".join(key_of(account)))]

    def _keys_of_secret(self, event: EventType, secret: Object, previous: Object | None) -> Iterable[Key]:
        if is_token(secret):
            yield key_of(secret)

    async def reconcile(self, key: Key) -> Result | None:
        secret = self.primary.get(*key)
        if secret is None:
            await self._forget(key)
        elif is_token(secret):
            account = self._accounts.get(*account_of(secret))
            if account is None or not belongs_to(secret, account):
                await self._delete(secret)
            else:
                await self._fill(secret, account)
        return None

    async def _fill(self, secret: Object, account: Object) -> None:
        lacking = missing(secret, self._ctx.settings.ca_pem)
        if not dig(secret, "data", "token"):
            lacking["token"] = _encode(self._ctx.settings.sign_account_token(account, secret))
        if not lacking:
            return
        changed = replace_in(secret, ("data",), {**(secret.get("data") or {}), **lacking})
        annotations = {**annotations_of(secret), NAME: name_of(account), UID: uid_of(account)}
        await self._ctx.client.update(SECRETS, replace_in(changed, ("metadata", "annotations"), annotations))

    async def _delete(self, secret: Object) -> None:
        try:
            await self._ctx.client.delete(SECRETS, name_of(secret), namespace=namespace_of(secret), uid=uid_of(secret))
        except StatusError as error:
            if error.code not in (404, 409):
                raise

    async def _forget(self, key: Key) -> None:
        """No account may list a secret that has gone."""
        for account in self._accounts.list(key.namespace):
            listed = account.get("secrets") or []
            kept = [reference for reference in listed if reference.get("name") != key.name]
            if len(kept) != len(listed):
                await self._ctx.client.update(SERVICEACCOUNTS, {**account, "secrets": kept})


TOKENS_CONTROLLER = Controller("serviceaccount-token-controller", ServiceAccountTokens, account="tokens-controller")
