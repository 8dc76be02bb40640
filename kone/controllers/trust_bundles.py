"""The ClusterTrustBundle of the API server's own CA, under a name that tells its content; older ones go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CLUSTERTRUSTBUNDLES
from kone.apimachinery.objects import Key, Object, dig, name_of, replace_in
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch

SIGNER = "kubernetes.io/kube-apiserver-serving"


def bundle_name(signer: str, pem: str) -> str:
    digest = hashlib.sha256(pem.encode()).hexdigest()[:24]
    return f"{signer.replace('/', ':')}:{digest}"


class ServingBundles(Reconciler):
    """There is one key: the bundle that should be."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(CLUSTERTRUSTBUNDLES)
        self._key = Key("", bundle_name(SIGNER, ctx.settings.ca_pem))

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, bundle: Object, previous: Object | None) -> Iterable[Key]:
        return (self._key,) if dig(bundle, "spec", "signerName") == SIGNER else ()

    def started(self) -> Iterable[Key]:
        return (self._key,) if self._ctx.settings.ca_pem else ()

    async def reconcile(self, key: Key) -> Result | None:
        client, pem = self._ctx.client, self._ctx.settings.ca_pem
        bundle = self.primary.get(*key)
        if bundle is None:
            made = {
                "apiVersion": "certificates.k8s.io/v1",
                "kind": "ClusterTrustBundle",
                "metadata": {"name": key.name},
                "spec": {"signerName": SIGNER, "trustBundle": pem},
            }
            await client.create(CLUSTERTRUSTBUNDLES, made)
        elif dig(bundle, "spec", "trustBundle") != pem:
            await client.update(CLUSTERTRUSTBUNDLES, replace_in(bundle, ("spec", "trustBundle"), pem))
        for other in self.primary.list():
            if dig(other, "spec", "signerName") == SIGNER and name_of(other) != key.name:
                try:
                    await client.delete(CLUSTERTRUSTBUNDLES, name_of(other))
                except StatusError as error:
                    if error.code != 404:
                        raise
        return None


SERVING_BUNDLE_PUBLISHER = Controller(
    "kube-apiserver-serving-clustertrustbundle-publisher-controller",
    ServingBundles,
    account="kube-apiserver-serving-clustertrustbundle-publisher",
)
