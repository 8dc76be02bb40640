"""storagemigration.k8s.io: StorageVersionMigrations, orders to write a resource's objects anew."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import FieldError, invalid_value, required
from kone.apimachinery.kinds import GVR
from kone.apimachinery.names import is_dns1035_label, is_dns1123_subdomain
from kone.apimachinery.objects import Object, dig, name_of
from kone.apimachinery.users import User
from kone.registry.conditions import conditions
from kone.registry.generic import IMMUTABLE
from kone.registry.resource import Column, Resource
from kone.registry.rules import Errors
from kone.registry.strategy import ALL_METADATA, StatusStrategy, Strategy, keep_field

_OUTCOMES = ("Running", "Failed", "Succeeded")
_RESOURCE_VERSION = re.compile(r"[1-9][0-9]*")


class _StorageVersionMigration(Strategy):
    unconditional_update = False

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        keep_field(obj, {"status": {}} if old is None else old, "status")

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        wanted = dig(obj, "spec", "resource", default={})
        group, resource = wanted.get("group", ""), wanted.get("resource", "")
        texts = is_dns1035_label(resource)
        if not resource:
            errors.append(required("spec.resource.resource", "resource is required to be set"))
        elif texts:
            errors.append(invalid_value("spec.resource.resource", resource, ",".join(texts)))
        texts = is_dns1123_subdomain(group) if group else []
        if texts:
            errors.append(invalid_value("spec.resource.group", group, ",".join(texts)))
        if old is not None and dig(old, "spec", "resource", default={}) != wanted:
            shown = {"Resource": {"group": group, "resource": resource}}
            errors.append(invalid_value("spec", shown, IMMUTABLE))
        return errors


def _status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    found = dig(obj, "status", "conditions", default=())
    version, before = dig(obj, "status", "resourceVersion", default=""), dig(old, "status", "resourceVersion")
    if version and not _RESOURCE_VERSION.fullmatch(version):
        why = f"resource version is not well formed: {version}"
        errors.append(invalid_value("status.resourceVersion", version, why))
    conditions(errors, "status.conditions", found)
    if before and before != version:
        errors.append(invalid_value("status.resourceVersion", version, IMMUTABLE))
    if _is(obj, "Succeeded") and _is(obj, "Failed"):
        why = "Both success and failed conditions cannot be true at the same time"
        errors.append(invalid_value("status.conditions", found, why))
    for outcome, word in (("Succeeded", "Success"), ("Failed", "Failed")):
        if _is(old, outcome) and not _is(obj, outcome):
            why = f"{word} condition cannot be set to false once it is true"
            errors.append(invalid_value("status.conditions", found, why))
    return errors


def _is(obj: Object, outcome: str) -> bool:
    return any(
        condition.get("type") == outcome and condition.get("status") == "True"
        for condition in dig(obj, "status", "conditions", default=())
    )


def _resource_cell(obj: Object, now: float) -> str:
    wanted = dig(obj, "spec", "resource", default={})
    return ".".join(part for part in (wanted.get("resource", ""), wanted.get("group", "")) if part)


def _status_cell(obj: Object, now: float) -> str:
    found = dig(obj, "status", "conditions", default=())
    reached = [c["type"] for c in found if c.get("status") == "True" and c.get("type") in _OUTCOMES]
    return reached[-1] if reached else "Unknown"


_migration = _StorageVersionMigration()

RESOURCES: Sequence[Resource] = (
    Resource(
        GVR("storagemigration.k8s.io", "v1", "storageversionmigrations"),
        "StorageVersionMigration",
        _migration,
        namespaced=False,
        status=StatusStrategy(_migration, kept_metadata=ALL_METADATA, rules=_status),
        columns=(
            Column("Name", lambda obj, now: name_of(obj)),
            Column("Resource", _resource_cell),
            Column("Status", _status_cell),
        ),
    ),
)
