"""Bootstrap tokens that have expired go, and those that sign do: who joins a cluster by a token can tell from
kube-public/cluster-info, which is for everybody, that it is the right one.

The ConfigMap is made by whoever sets a cluster up for joining (as kubeadm does); here only its signatures are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kone.apimachinery import bootstrap_tokens
from kone.apimachinery.bootstrap_tokens import NAMESPACE, SECRET_TYPE, SIGNING
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, SECRETS
from kone.apimachinery.objects import Key, Object, dig, key_of, name_of, namespace_of, uid_of
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch

CLUSTER_INFO = Key("kube-public", "cluster-info")
KUBECONFIG = "kubeconfig"  # what is signed of its data
SIGNATURE_PREFIX = "jws-kubeconfig-"


def _is_token(secret: Object) -> bool:
    return namespace_of(secret) == NAMESPACE and secret.get("type") == SECRET_TYPE


class ExpiredTokens(Reconciler):
    """Keys are Secrets of tokens."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(SECRETS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, secret: Object, previous: Object | None) -> Iterable[Key]:
        return (key_of(secret),) if event != "DELETED" and _is_token(secret) else ()

    async def reconcile(self, key: Key) -> Result | None:
        secret = self.primary.get(*key)
        end = bootstrap_tokens.expires_at(secret) if secret is not None else None
        if secret is None or end is None:
            return None
        left_s = end - self._ctx.clock.now()
        if left_s > 0:
            return Result(after_s=left_s)
        try:
            await self._ctx.client.delete(SECRETS, key.name, namespace=key.namespace, uid=uid_of(secret))
        except StatusError as error:
            if error.code not in (404, 409):
                raise
        return None


def signed(info: Object, secrets: Iterable[Object], now: float) -> Mapping[str, str]:
    """The data of cluster-info with the signature of each token that may sign now, and no other."""
    data: dict[str, str] = info.get("data") or {}
    content = data.get(KUBECONFIG)
    kept = {key: text for key, text in data.items() if not key.startswith(SIGNATURE_PREFIX)}
    if content is None:
        return data
    for secret in secrets:
        if (token := bootstrap_tokens.usable(secret, SIGNING, now)) is not None:
            kept[SIGNATURE_PREFIX + token[0]] = bootstrap_tokens.detached_signature(content, *token)
    return kept


class ClusterInfo(Reconciler):
    """The one key is the ConfigMap cluster-info."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(CONFIGMAPS, fields=f"metadata.name={CLUSTER_INFO.name}")
        self._secrets: Informer = ctx.client.informer(SECRETS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, lambda event, info, previous: (key_of(info),) if key_of(info) == CLUSTER_INFO else ())
        yield Watch(self._secrets, self._keys_of_secret)

    def _keys_of_secret(self, event: EventType, secret: Object, previous: Object | None) -> Iterable[Key]:
        return (CLUSTER_INFO,) if _is_token(secret) else ()

    async def reconcile(self, key: Key) -> Result | None:
        info = self.primary.get(*key)
        if info is None:
            return None
        tokens = sorted(filter(_is_token, self._secrets.list(NAMESPACE)), key=name_of)
        now = self._ctx.clock.now()
        data = signed(info, tokens, now)
        if data != dig(info, "data", default={}):
            await self._ctx.client.update(CONFIGMAPS, {**info, "data": data})
        ends = [end for token in tokens if (end := bootstrap_tokens.expires_at(token)) is not None and end > now]
        return Result(after_s=min(ends) - now) if ends else None


TOKEN_CLEANER = Controller("token-cleaner-controller", ExpiredTokens, account="token-cleaner")
BOOTSTRAP_SIGNER = Controller("bootstrap-signer-controller", ClusterInfo, account="bootstrap-signer", workers=1)
