"""Rules on the spec of PersistentVolumeClaims, which pods and stateful sets carry too, as templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.names import is_dns1123_label, is_dns1123_subdomain
from kone.registry.core.pod_volumes import template_metadata
from kone.registry.core.resource_rules import quantity, resource_quantity
from kone.registry.rules import NOT_ABOVE_ZERO, Errors, check, label_selector

ACCESS_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
VOLUME_MODES = ("Block", "Filesystem")


def access_modes(errors: Errors, path: str, modes: Sequence[str]) -> None:
    """Known ones; ReadWriteOncePod stands alone."""
    alone = others = False
    for mode in modes:
        if mode not in ACCESS_MODES:
            errors.append(not_supported(path, mode, ACCESS_MODES))
        elif mode == "ReadWriteOncePod":
            alone = True
        else:
            others = True
    if alone and others:
        errors.append(forbidden_field(path, "may not use ReadWriteOncePod with other access modes"))


def claim_spec(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    """ValidatePersistentVolumeClaimSpec."""
    modes = spec.get("accessModes") or ()
    if not modes:
        errors.append(required(f"{path}.accessModes", "at least 1 access mode is required"))
    label_selector(errors, f"{path}.selector", spec.get("selector"))
    access_modes(errors, f"{path}.accessModes", modes)
    _storage(errors, f"{path}.resources[storage]", spec)
    if spec.get("storageClassName"):
        check(
            errors, f"{path}.storageClassName", spec["storageClassName"], is_dns1123_subdomain(spec["storageClassName"])
        )
    mode = spec.get("volumeMode")
    if mode is not None and mode not in VOLUME_MODES:
        errors.append(not_supported(f"{path}.volumeMode", mode, VOLUME_MODES))
    source, ref = spec.get("dataSource"), spec.get("dataSourceRef")
    if source is not None:
        _data_source(errors, f"{path}.dataSource", source)
    if ref is not None:
        _data_source(errors, f"{path}.dataSourceRef", ref)
        if ref.get("namespace"):
            check(errors, f"{path}.dataSourceRef.namespace", ref["namespace"], is_dns1123_label(ref["namespace"]))
    if source is not None and ref is not None:
        if ref.get("namespace"):
            text = "may not be specified when dataSourceRef.namespace is specified"
            errors.append(invalid_value(path, {}, text))
        elif any(source.get(field) != ref.get(field) for field in ("apiGroup", "kind", "name")):
            errors.append(invalid_value(path, {}, "must match dataSourceRef"))
    if spec.get("volumeAttributesClassName"):
        name = spec["volumeAttributesClassName"]
        check(errors, f"{path}.volumeAttributesClassName", name, is_dns1123_subdomain(name))


def _storage(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    storage = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if storage is None:
        errors.append(required(path))
    elif quantity(storage).nanos <= 0:
        errors.append(invalid_value(path, quantity(storage).canonical(), NOT_ABOVE_ZERO))
    else:
        resource_quantity(errors, path, "storage", storage)


def _data_source(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    for field in ("name", "kind"):
        if not source.get(field):
            errors.append(required(f"{path}.{field}"))
    group, kind = source.get("apiGroup") or "", source.get("kind", "")
    if not group and kind != "PersistentVolumeClaim":
        text = "must be 'PersistentVolumeClaim' when referencing the default apiGroup"
        errors.append(invalid_value(path, kind, text))
    if group:
        check(errors, f"{path}.apiGroup", group, is_dns1123_subdomain(group))


def claim_template(errors: Errors, path: str, template: Mapping[str, Any]) -> None:
    """ValidatePersistentVolumeClaimTemplate, of an ephemeral volume."""
    template_metadata(errors, f"{path}.metadata", template.get("metadata") or {})
    claim_spec(errors, f"{path}.spec", template.get("spec") or {})


def claim_warnings(path: str, spec: Mapping[str, Any]) -> Iterator[str]:
    """GetWarningsForPersistentVolumeClaimSpec."""
    for side in ("requests", "limits"):
        storage = ((spec.get("resources") or {}).get(side) or {}).get("storage")
        if storage is not None and quantity(storage).milli() % 1000:
            amount = quantity(storage).canonical()
            yield f'{path}.resources.{side}[storage]: fractional byte value "{amount}" is invalid, must be an integer'
