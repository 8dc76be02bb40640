"""ServiceAccounts."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.kinds import SERVICEACCOUNTS as GVR_SERVICEACCOUNTS
from kone.apimachinery.objects import Object, annotations_of
from kone.apimachinery.users import User
from kone.registry.resource import AGE, NAME, Resource, Subresource
from kone.registry.strategy import Strategy

_MOUNTABLE = "kubernetes.io/enforce-mountable-secrets"


class _ServiceAccount(Strategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if obj.get("secrets"):
            obj["secrets"] = [{"name": secret["name"]} if secret.get("name") else {} for secret in obj["secrets"]]

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if _MOUNTABLE in annotations_of(obj) and (old is None or _MOUNTABLE not in annotations_of(old)):
            text = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
            yield f"metadata.annotations[{_MOUNTABLE}]: {text}"


SERVICEACCOUNTS = Resource(
    gvr=GVR_SERVICEACCOUNTS,
    kind="ServiceAccount",
    short_names=("sa",),
    strategy=_ServiceAccount(),
    columns=(NAME, AGE),
    subresources={"token": Subresource("TokenRequest", ("create",), "authentication.k8s.io", "v1")},
)
