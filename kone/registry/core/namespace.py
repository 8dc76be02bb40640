"""Namespaces, which go only when the namespace controller has taken its finalizer off their spec."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import FieldError, invalid_value
from kone.apimachinery.kinds import NAMESPACES as GVR_NAMESPACES
from kone.apimachinery.names import is_qualified_name
from kone.apimachinery.objects import Object, is_deleting
from kone.apimachinery.users import User
from kone.registry.generic import validate_kube_finalizer
from kone.registry.resource import AGE, NAME, Column, Resource, Subresource
from kone.registry.rules import Errors, check
from kone.registry.strategy import StatusStrategy, Strategy, dns_label

NAME_LABEL = "kubernetes.io/metadata.name"
FINALIZER = "kubernetes"
_VERBS = ("create", "delete", "get", "list", "patch", "update", "watch")


class _Namespace(Strategy):
    name_rule = staticmethod(dns_label)

    def default(self, obj: Object) -> None:
        metadata = obj["metadata"]
        if metadata.get("name"):
            metadata["labels"] = {**(metadata.get("labels") or {}), NAME_LABEL: metadata["name"]}
        status = obj.setdefault("status", {})
        if not status.get("phase"):
            status["phase"] = "Active"

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        spec = obj.setdefault("spec", {})
        if old is None:
            self.default(obj)  # a generated name was not known when defaults were given
            obj["status"] = {"phase": "Active"}
            finalizers = spec.get("finalizers") or []
            if FINALIZER not in finalizers:
                spec["finalizers"] = [*finalizers, FINALIZER]
            return
        obj["status"], obj["spec"] = old["status"], old["spec"]

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        for finalizer in obj["spec"].get("finalizers") or ():
            _finalizer(errors, "spec.finalizers", finalizer)
        return errors

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        return {"status.phase": (obj.get("status") or {}).get("phase", "")}

    def mark_deleting(self, obj: Object) -> None:
        obj["status"] = {**obj["status"], "phase": "Terminating"}
        del obj["metadata"]["deletionGracePeriodSeconds"]  # upstream's namespaces never have it

    def has_finalizers(self, obj: Object) -> bool:
        return super().has_finalizers(obj) or bool(obj["spec"].get("finalizers"))


def _finalizer(errors: Errors, path: str, finalizer: str) -> None:
    check(errors, path, finalizer, is_qualified_name(finalizer))
    errors.extend(validate_kube_finalizer(finalizer, path))


class _Finalize(_Namespace):
    """Takes the spec, with what finalizers are left, and keeps the status."""

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        assert old is not None
        obj.setdefault("spec", {})
        obj["status"] = old["status"]

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        for i, finalizer in enumerate(obj["spec"].get("finalizers") or ()):
            _finalizer(errors, f"spec.finalizers[{i}]", finalizer)
        return errors


def _status(obj: Object, old: Object) -> Iterable[FieldError]:
    phase, deleting = obj["status"].get("phase", ""), is_deleting(obj)
    if deleting and phase != "Terminating":
        text = "may only be 'Terminating' if `deletionTimestamp` is not empty"
        yield invalid_value("status.Phase", phase, text)
    if not deleting and phase != "Active":
        yield invalid_value("status.Phase", phase, "may only be 'Active' if `deletionTimestamp` is empty")


_strategy = _Namespace()

NAMESPACES = Resource(
    gvr=GVR_NAMESPACES,
    kind="Namespace",
    namespaced=False,
    short_names=("ns",),
    verbs=_VERBS,
    strategy=_strategy,
    status=StatusStrategy(_strategy, rules=_status),
    subresources={"finalize": Subresource(verbs=("update",), strategy=_Finalize())},
    columns=(NAME, Column("Status", lambda obj, now: (obj.get("status") or {}).get("phase", "")), AGE),
)
