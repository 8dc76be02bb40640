"""The ConfigMap kube-root-ca.crt that every namespace has, so that its pods can trust the API server."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, NAMESPACES
from kone.apimachinery.objects import Key, Object, annotations_of, dig, name_of, namespace_of, replace_in
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch

NAME = "kube-root-ca.crt"
DESCRIPTION = "kubernetes.io/description"
TEXT = (
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the "
    "internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes "
    "clusters."
)


class RootCAs(Reconciler):
    """Makes and mends the ConfigMap; keys are namespaces."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(NAMESPACES)
        self._config_maps: Informer = ctx.client.informer(CONFIGMAPS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys_of_namespace)
        yield Watch(self._config_maps, self._keys_of_config_map)

    def _keys_of_namespace(self, event: EventType, namespace: Object, previous: Object | None) -> Iterable[Key]:
        active = dig(namespace, "status", "phase") == "Active"
        return (Key("", name_of(namespace)),) if active and event != "DELETED" else ()

    def _keys_of_config_map(self, event: EventType, config_map: Object, previous: Object | None) -> Iterable[Key]:
        return (Key("", namespace_of(config_map)),) if name_of(config_map) == NAME and event != "ADDED" else ()

    async def reconcile(self, key: Key) -> Result | None:
        data = {"ca.crt": self._ctx.settings.ca_pem}
        current = self._config_maps.get(key.name, NAME)
        if current is None:
            await self._create(key.name, data)
        elif current.get("data") != data or not annotations_of(current).get(DESCRIPTION):
            mended = replace_in({**current, "data": data}, ("metadata", "annotations", DESCRIPTION), TEXT)
            await self._ctx.client.update(CONFIGMAPS, mended)
        return None

    async def _create(self, namespace: str, data: dict[str, str]) -> None:
        meta = {"name": NAME, "namespace": namespace, "annotations": {DESCRIPTION: TEXT}}
        made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
        try:
            await self._ctx.client.create(CONFIGMAPS, made, namespace=namespace)
        except StatusError as error:
            if error.code != 404:  # the namespace has gone
                raise


ROOT_CA_PUBLISHER = Controller("root-ca-certificate-publisher-controller", RootCAs, account="root-ca-cert-publisher")
