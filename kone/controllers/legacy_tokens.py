"""Old tokens of service accounts: secrets that clusters before v1.24 made by themselves go when nobody has used them
for a year. They are marked invalid first, and deleted a year after that.

Secrets that users ask for by hand are not named by their service account and stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, PODS, SECRETS, SERVICEACCOUNTS
from kone.apimachinery.objects import (
    Key,
    Object,
    annotations_of,
    dig,
    is_deleting,
    labels_of,
    name_of,
    resource_version_of,
    uid_of,
)
from kone.apimachinery.pod_references import secret_names
from kone.apimachinery.timestamps import parse_time
from kone.client.client import Informer
from kone.controllers.controller import Context, Controller, Reconciler, Result, Watch, for_object

TRACKING = Key("kube-system", "kube-apiserver-legacy-service-account-token-tracking")
SINCE = "since"
LAST_USED = "kubernetes.io/legacy-token-last-used"
INVALID_SINCE = "kubernetes.io/legacy-token-invalid-since"
UNUSED = timedelta(days=365)
EVERY_S = 24 * 3600.0


def day_in(text: str) -> date | None:
    """A day as labels have it, "2026-11-25"."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        return None


def is_disused(secret: Object, today: date) -> bool:
    """A service account's token that is older than a year and has not been used within one."""
    created = datetime.fromtimestamp(parse_time(secret["metadata"]["creationTimestamp"]), UTC).date()
    if secret.get("type") != "kubernetes.io/service-account-token" or is_deleting(secret):
        return False
    if created >= today - UNUSED:
        return False
    used = labels_of(secret).get(LAST_USED)
    if used is None:
        return True  # not since uses are written down
    last = day_in(used)
    return last is not None and last < today - UNUSED


class LegacyTokens(Reconciler):
    """The one key is the ConfigMap that says since when uses are written down: all tokens are looked at once a day."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(CONFIGMAPS, fields=f"metadata.name={TRACKING.name}")
        self._secrets: Informer = ctx.client.informer(SECRETS)
        self._accounts: Informer = ctx.client.informer(SERVICEACCOUNTS)
        self._pods: Informer = ctx.client.informer(PODS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, for_object)

    async def reconcile(self, key: Key) -> Result | None:
        tracking = self.primary.get(*TRACKING)
        since = day_in(dig(tracking, "data", SINCE, default=""))
        if key != TRACKING or since is None:
            return None
        today = datetime.fromtimestamp(self._ctx.clock.now(), UTC).date()
        # The day on which tracking began is not whole.
        if today >= since + timedelta(days=1) + UNUSED:
            for secret in self._secrets.list():
                if is_disused(secret, today) and self._was_made_by_itself(secret) and not self._is_mounted(secret):
                    await self._retire(secret, today)
        return Result(after_s=EVERY_S)

    def _was_made_by_itself(self, secret: Object) -> bool:
        """Whether the service account, still the same, names the secret among its own."""
        annotations = annotations_of(secret)
        namespace = secret["metadata"]["namespace"]
        account = self._accounts.get(namespace, annotations.get("kubernetes.io/service-account.name", ""))
        if account is None or annotations.get("kubernetes.io/service-account.uid") not in (None, "", uid_of(account)):
            return False
        return any(reference.get("name") == name_of(secret) for reference in account.get("secrets") or ())

    def _is_mounted(self, secret: Object) -> bool:
        pods = self._pods.list(secret["metadata"]["namespace"])
        return any(name_of(secret) in secret_names(pod) for pod in pods)

    async def _retire(self, secret: Object, today: date) -> None:
        namespace = secret["metadata"]["namespace"]
        invalid = day_in(labels_of(secret).get(INVALID_SINCE, ""))
        try:
            if invalid is None:
                label = {"uid": uid_of(secret), "labels": {INVALID_SINCE: today.isoformat()}}
                await self._ctx.client.patch(SECRETS, name_of(secret), {"metadata": label}, namespace=namespace)
            elif invalid < today - UNUSED:
                version = resource_version_of(secret)
                await self._ctx.client.delete(SECRETS, name_of(secret), namespace=namespace, resource_version=version)
        except StatusError as error:
            if error.code not in (404, 409):
                raise


LEGACY_TOKEN_CLEANER_CONTROLLER = Controller(
    "legacy-serviceaccount-token-cleaner-controller",
    LegacyTokens,
    account="legacy-service-account-token-cleaner",
    workers=1,
)
