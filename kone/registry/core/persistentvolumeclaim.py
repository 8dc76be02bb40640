"""PersistentVolumeClaims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kone.apimachinery.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS as GVR_PERSISTENTVOLUMECLAIMS
from kone.apimachinery.names import is_qualified_name
from kone.apimachinery.objects import Object, annotations_of
from kone.apimachinery.users import User
from kone.registry.core.claim_rules import claim_spec, claim_warnings
from kone.registry.core.persistentvolume import BETA_CLASS, class_cell, or_unset, phase_cell, short_modes
from kone.registry.core.pod_defaults import default_claim_spec, round_resources
from kone.registry.core.resource_rules import basic_quantity, is_native, quantity, resource_quantity
from kone.registry.equality import same
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal_diff
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check
from kone.registry.strategy import StatusStrategy, Strategy

_RESIZES = (
    *("ControllerResizeInProgress", "ControllerResizeInfeasible"),
    *("NodeResizeInProgress", "NodeResizeInfeasible", "NodeResizePending"),
)
_SOURCE_FIELDS = ("apiGroup", "kind", "name")
_OLD_SOURCES = (("PersistentVolumeClaim", ""), ("VolumeSnapshot", "snapshot.storage.k8s.io"))
_FIXED = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"


class _PersistentVolumeClaim(Strategy):
    def default(self, obj: Object) -> None:
        default_claim_spec(obj.setdefault("spec", {}))
        status = obj.setdefault("status", {})
        if not status.get("phase"):
            status["phase"] = "Pending"
        round_resources(status.get("capacity"))
        round_resources(status.get("allocatedResources"))

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        obj["status"] = {"phase": "Pending"} if old is None else old["status"]
        _data_sources(obj["spec"], old["spec"] if old is not None else {})

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        claim_spec(errors, "spec", obj["spec"])
        if old is not None:
            _update(errors, obj, old)
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if BETA_CLASS in annotations_of(obj):
            text = 'deprecated since v1.8; use "storageClassName" attribute instead'
            yield f"metadata.annotations[{BETA_CLASS}]: {text}"
        yield from claim_warnings("spec", obj["spec"])


def _data_sources(spec: Object, before: Mapping[str, Any]) -> None:
    """dataSource, which knows claims and snapshots only, and dataSourceRef say the same (KEP-1495); in place."""
    if (spec.get("dataSourceRef") or {}).get("namespace") and before.get("dataSourceRef") is None:
        del spec["dataSourceRef"]  # CrossNamespaceVolumeDataSource is alpha
    source, ref = spec.get("dataSource"), spec.get("dataSourceRef")
    if source is not None and ref is None:
        known = (source.get("kind"), source.get("apiGroup") or "") in _OLD_SOURCES
        if known or before.get("dataSource") is not None or before.get("dataSourceRef") is not None:
            spec["dataSourceRef"] = dict(source)
        else:
            del spec["dataSource"]
    elif ref is not None and source is None and not ref.get("namespace"):
        spec["dataSource"] = {field: ref[field] for field in _SOURCE_FIELDS if field in ref}


def _update(errors: Errors, obj: Object, old: Object) -> None:
    """ValidatePersistentVolumeClaimUpdate."""
    spec, before = obj["spec"], old["spec"]
    now, was = dict(spec), dict(before)
    if not was.get("volumeName") and now.get("volumeName"):
        was["volumeName"] = now["volumeName"]  # the controller binds it, once
    _storage_class(errors, obj, old, now)
    bound = obj["status"].get("phase") == "Bound"
    asked, old_asked = (((each.get("resources") or {}).get("requests") or {}) for each in (spec, before))
    if bound:
        if asked and "storage" in old_asked:
            now["resources"] = {**now["resources"], "requests": {**asked, "storage": old_asked["storage"]}}
        now["volumeAttributesClassName"] = was.get("volumeAttributesClassName")
    if not same(now, was):
        difference = internal_diff("#core.PersistentVolumeClaimSpec", was, now)
        errors.append(forbidden_field("spec", f"{_FIXED}\n{difference}"))
    size, capacity = quantity(asked.get("storage")), (obj["status"].get("capacity") or {}).get("storage")
    if size < quantity(old_asked.get("storage")) and not size > quantity(capacity):
        path = "spec.resources.requests.storage"
        errors.append(forbidden_field(path, "field can not be less than status.capacity"))
    if spec.get("volumeMode") != before.get("volumeMode"):
        errors.append(invalid_value("volumeMode", spec.get("volumeMode"), IMMUTABLE))
    attributes = spec.get("volumeAttributesClassName")
    changed = attributes != before.get("volumeAttributesClassName")
    if changed and not attributes and old["status"].get("currentVolumeAttributesClassName") is not None:
        to = "nil" if attributes is None else "empty string"
        text = f"update to {to} is forbidden when status.currentVolumeAttributesClassName is not nil"
        errors.append(forbidden_field("spec.volumeAttributesClassName", text))


def _storage_class(errors: Errors, obj: Object, old: Object, now: Object) -> None:
    """The class may move from its old annotation to the field, or be given where there was none; `now` forgets it."""
    new_class, old_class = obj["spec"].get("storageClassName"), old["spec"].get("storageClassName")
    annotation, before = annotations_of(obj).get(BETA_CLASS), annotations_of(old).get(BETA_CLASS)
    moved = before is not None and old_class is None and new_class == before and annotation in (None, before)
    if moved:
        now.pop("storageClassName", None)
        return
    if (annotation or "") != (before or ""):
        errors.append(invalid_value(f"metadata.annotations.{BETA_CLASS}", annotation or "", IMMUTABLE))
    if new_class is not None and old_class is None and before in (None, new_class):
        now.pop("storageClassName", None)


def _status(obj: Object, old: Object) -> Iterable[FieldError]:
    """ValidatePersistentVolumeClaimStatusUpdate."""
    errors: Errors = []
    status = obj.get("status") or {}
    if not obj["spec"].get("accessModes"):
        errors.append(required("Spec.accessModes"))
    for name, amount in (status.get("capacity") or {}).items():
        basic_quantity(errors, f"status.capacity[{name}]", amount)
    path = "status.allocatedResourceStatuses"
    for name, value in (status.get("allocatedResourceStatuses") or {}).items():
        _resource_key(errors, path, name)
        if value not in _RESIZES:
            errors.append(not_supported(path, name, _RESIZES))
    path = "status.allocatedResources"
    for name, amount in (status.get("allocatedResources") or {}).items():
        before = len(errors)
        _resource_key(errors, path, name)
        if len(errors) == before:
            basic_quantity(errors, f"{path}[{name}]", amount)
        if len(errors) == before:
            resource_quantity(errors, f"{path}[{name}]", "storage", amount)
    return errors


def _resource_key(errors: Errors, path: str, name: str) -> None:
    wrong = is_qualified_name(name)
    check(errors, path, name, wrong)
    if not wrong and is_native(name) and name != "storage":
        errors.append(not_supported(path, name, ("storage",)))


class _ClaimStatus(StatusStrategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        obj["status"].pop("healthStatus", None)  # CSIVolumeHealth is alpha


def _capacity(obj: Object, now: float) -> str:
    if not (obj.get("spec") or {}).get("volumeName"):
        return ""
    return str(((obj.get("status") or {}).get("capacity") or {}).get("storage", "0"))


def _modes(obj: Object, now: float) -> str:
    bound = (obj.get("spec") or {}).get("volumeName")
    return short_modes((obj.get("status") or {}).get("accessModes")) if bound else ""


_strategy = _PersistentVolumeClaim()

PERSISTENTVOLUMECLAIMS = Resource(
    gvr=GVR_PERSISTENTVOLUMECLAIMS,
    kind="PersistentVolumeClaim",
    short_names=("pvc",),
    strategy=_strategy,
    status=_ClaimStatus(_strategy, rules=_status),
    columns=(
        NAME,
        Column("Status", phase_cell),
        Column("Volume", lambda obj, now: (obj.get("spec") or {}).get("volumeName", "")),
        Column("Capacity", _capacity),
        Column("Access Modes", _modes),
        Column("StorageClass", class_cell),
        Column("VolumeAttributesClass", or_unset("volumeAttributesClassName")),
        AGE,
        Column("VolumeMode", or_unset("volumeMode"), priority=1),
    ),
)
