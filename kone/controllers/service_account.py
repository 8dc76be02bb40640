"""The service account "default" that every namespace has."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import NAMESPACES, SERVICEACCOUNTS
from kone.apimachinery.objects import Key, Object, dig, namespace_of
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch, for_object

DEFAULT = "default"


class ServiceAccounts(Reconciler):
    """Makes what is missing; keys are namespaces."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(NAMESPACES)
        self._accounts: Informer = ctx.client.informer(SERVICEACCOUNTS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)
        yield Watch(self._accounts, self._keys_of_deleted)

    def _keys_of_deleted(self, event: EventType, account: Object, previous: Object | None) -> Iterable[Key]:
        return (Key("", namespace_of(account)),) if event == "DELETED" else ()

    async def reconcile(self, key: Key) -> Result | None:
        namespace = self.primary.get(*key)
        if namespace is None or dig(namespace, "status", "phase") != "Active":
            return None
        if self._accounts.get(key.name, DEFAULT) is not None:
            return None
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": DEFAULT, "namespace": key.name}}
        try:
            await self._ctx.client.create(SERVICEACCOUNTS, account, namespace=key.name)
        except StatusError as error:
            if error.reason != "AlreadyExists":
                raise
        return None


SERVICE_ACCOUNT_CONTROLLER = Controller(
    "serviceaccount-controller", ServiceAccounts, account="service-account-controller"
)
