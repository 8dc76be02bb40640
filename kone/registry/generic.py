"""The rules that hold for every kind: its metadata, and what stays across an update.

These are pure; `apiserver/verbs.py` calls them around the kind's own strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from kone.apimachinery.errors import (
    FieldError,
    forbidden_field,
    go_quote,
    invalid_value,
    not_supported,
    required,
    too_long,
)
from kone.apimachinery.kinds import parse_api_version
from kone.apimachinery.names import is_dns1123_label, is_qualified_name, is_valid_label_value
from kone.apimachinery.objects import Object
from kone.registry.strategy import Strategy, path_segment

IMMUTABLE = "field is immutable"
NOT_NEGATIVE = "must be greater than or equal to 0"
MAX_ANNOTATIONS_BYTES = 256 * 1024  # apimachinery/pkg/api/validation, TotalAnnotationSizeLimitB
MAX_FIELD_MANAGER = 128
MAX_SUBRESOURCE_NAME = 256

_STANDARD_FINALIZERS = frozenset(("kubernetes", "orphan", "foregroundDeletion"))
_SYSTEM_FIELDS = ("creationTimestamp", "uid", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink")


ERRORS_MAX: Final = 1000
"""Of each list or map no more errors are told: upstream tells all, in tens of megabytes where there are many, which
nobody reads and everybody waits for."""


def fill_system_fields(obj: Object, *, uid: str, creation_timestamp: str) -> None:
    """Give a new object its identity in place, wiping what the client pretended (rest.FillObjectMetaSystemFields)."""
    metadata = obj.setdefault("metadata", {})
    for field in _SYSTEM_FIELDS:
        metadata.pop(field, None)
    metadata["uid"] = uid
    metadata["creationTimestamp"] = creation_timestamp


def keep_system_fields(obj: Object, old: Object) -> None:
    """Carry over in place what an update cannot change or clear (rest.BeforeUpdate). Runs after `prepare`."""
    metadata, before = obj["metadata"], old["metadata"]
    if not metadata.get("uid") and "uid" in before:
        metadata["uid"] = before["uid"]
    if "creationTimestamp" in before:
        metadata["creationTimestamp"] = before["creationTimestamp"]
    if before.get("deletionTimestamp"):
        metadata["deletionTimestamp"] = before["deletionTimestamp"]
    if before.get("deletionGracePeriodSeconds") is not None and metadata.get("deletionGracePeriodSeconds") is None:
        metadata["deletionGracePeriodSeconds"] = before["deletionGracePeriodSeconds"]


def keep_generation(obj: Object, old: Object) -> None:
    """A request never sets the generation (in place). Runs before `prepare`, which may raise it."""
    generation = old["metadata"].get("generation")
    if generation:
        obj["metadata"]["generation"] = generation
    else:
        obj["metadata"].pop("generation", None)


def validate_create(obj: Object, strategy: Strategy, *, namespaced: bool) -> list[FieldError]:
    """Every error of a new object: metadata by the kind's name rule, the kind's own, then names as URL path parts."""
    metadata = obj["metadata"]
    errors: list[FieldError] = []
    _names(metadata, strategy.name_rule, errors)
    _common_metadata(metadata, namespaced, errors)
    if strategy.kube_finalizers and metadata.get("finalizers"):
        errors.extend(_kube_finalizers(metadata["finalizers"]))
    errors.extend(islice(strategy.validate(obj, None), ERRORS_MAX))
    if not errors:
        _names(metadata, path_segment, errors)
    return _distinct(errors) if errors else errors


def validate_update(obj: Object, old: Object, strategy: Strategy, *, namespaced: bool) -> list[FieldError]:
    """Every error of a changed object, metadata's first."""
    metadata = obj["metadata"]
    errors: list[FieldError] = []
    _names(metadata, path_segment, errors)
    _common_metadata(metadata, namespaced, errors)
    _metadata_update(metadata, old["metadata"], errors)
    if strategy.kube_finalizers and metadata.get("finalizers"):
        errors.extend(_kube_finalizers(metadata["finalizers"]))
    errors.extend(islice(strategy.validate(obj, old), ERRORS_MAX))
    if errors and strategy.metadata_twice:
        again: list[FieldError] = []
        _metadata_update(metadata, old["metadata"], again)
        return again + _distinct(errors)
    return _distinct(errors) if errors else errors


def _distinct(errors: list[FieldError]) -> list[FieldError]:
    """Several layers of upstream's check the same rule; its answer has each finding once."""
    return list({str(error): error for error in errors}.values())


def _names(metadata: Object, rule: Callable[[str, bool], Sequence[str]], errors: list[FieldError]) -> None:
    prefix, name = metadata.get("generateName"), metadata.get("name")
    if prefix:
        errors.extend(invalid_value("metadata.generateName", prefix, text) for text in rule(prefix, True))
    if not name:
        errors.append(required("metadata.name", "name or generateName is required"))
        return
    for text in rule(name, False):
        errors.append(invalid_value("metadata.name", name, text))


def _common_metadata(metadata: Object, namespaced: bool, errors: list[FieldError]) -> None:
    namespace = metadata.get("namespace")
    if namespaced:
        if not namespace:
            errors.append(required("metadata.namespace"))
        else:
            errors.extend(invalid_value("metadata.namespace", namespace, text) for text in is_dns1123_label(namespace))
    elif namespace:
        errors.append(forbidden_field("metadata.namespace", "not allowed on this type"))
    if metadata.get("generation", 0) < 0:
        errors.append(invalid_value("metadata.generation", metadata["generation"], NOT_NEGATIVE))
    if metadata.get("labels"):
        errors.extend(islice(validate_labels(metadata["labels"], "metadata.labels"), ERRORS_MAX))
    if metadata.get("annotations"):
        errors.extend(islice(validate_annotations(metadata["annotations"], "metadata.annotations"), ERRORS_MAX))
    if metadata.get("ownerReferences"):
        errors.extend(islice(_owner_references(metadata["ownerReferences"], "metadata.ownerReferences"), ERRORS_MAX))
    if metadata.get("finalizers"):
        errors.extend(islice(_finalizers(metadata["finalizers"], "metadata.finalizers"), ERRORS_MAX))
    if metadata.get("managedFields"):
        errors.extend(islice(_managed_fields(metadata["managedFields"], "metadata.managedFields"), ERRORS_MAX))


def _metadata_update(metadata: Object, before: Object, errors: list[FieldError]) -> None:
    if before.get("deletionTimestamp"):
        added = sorted(set(metadata.get("finalizers") or ()) - set(before.get("finalizers") or ()))
        if added:
            texts = ", ".join(map(go_quote, added))
            why = "no new finalizers can be added if the object is being deleted, found new finalizers "
            errors.append(forbidden_field("metadata.finalizers", f"{why}[]string{{{texts}}}"))
    if not metadata.get("resourceVersion"):
        errors.append(invalid_value("metadata.resourceVersion", "", "must be specified for an update"))
    generation = metadata.get("generation", 0)
    if generation < before.get("generation", 0):
        errors.append(invalid_value("metadata.generation", generation, "must not be decremented"))
    for field, nothing in _IMMUTABLE_METADATA:
        if metadata.get(field, nothing) != before.get(field, nothing):
            errors.append(invalid_value(f"metadata.{field}", metadata.get(field, nothing), IMMUTABLE))


_IMMUTABLE_METADATA: tuple[tuple[str, Any], ...] = (
    ("name", ""),
    ("namespace", ""),
    ("uid", ""),
    ("creationTimestamp", None),
    ("deletionTimestamp", None),
    ("deletionGracePeriodSeconds", None),
)


def validate_labels(labels: Mapping[str, str], path: str) -> Iterable[FieldError]:
    """Keys are qualified names, values label values."""
    for key, value in labels.items():
        for text in is_qualified_name(key):
            yield invalid_value(path, key, text)
        for text in is_valid_label_value(value):
            yield invalid_value(path, value, text)


def validate_annotations(annotations: Mapping[str, str], path: str) -> Iterable[FieldError]:
    """Keys are qualified names in any case; all together at most 256 KiB."""
    size = 0
    for key, value in annotations.items():
        for text in is_qualified_name(key.lower()):
            yield invalid_value(path, key, text)
        size += len(key) + (len(value) if value.isascii() else len(value.encode()))
    if size > MAX_ANNOTATIONS_BYTES:
        yield too_long(path, MAX_ANNOTATIONS_BYTES)


def _owner_references(references: Sequence[Object], path: str) -> Iterable[FieldError]:
    controller = ""
    for i, reference in enumerate(references):
        yield from _owner_reference(reference, f"{path}[{i}]")
        if reference.get("controller"):
            name = f"{reference.get('kind', '')}/{reference.get('name', '')}"
            if controller:
                why = f'Only one reference can have Controller set to true. Found "true" in references for {controller}'
                yield invalid_value(path, references, f"{why} and {name}")
            else:
                controller = name


def _owner_reference(reference: Object, path: str) -> Iterable[FieldError]:
    api_version = reference.get("apiVersion", "")
    group, version = parse_api_version(api_version)
    if not api_version:
        yield required(f"{path}.apiVersion", "must not be empty")
    elif api_version.count("/") > 1 or not version:
        yield invalid_value(f"{path}.apiVersion", api_version, "must be <group>/<version> or <version>")
    for field in ("kind", "name", "uid"):
        if not reference.get(field):
            yield required(f"{path}.{field}", "must not be empty")
    if (group, version, reference.get("kind")) == ("", "v1", "Event"):
        yield invalid_value(path, reference, "/v1, Kind=Event is disallowed from being an owner")


def _finalizers(finalizers: Sequence[str], path: str) -> Iterable[FieldError]:
    for finalizer in finalizers:
        for text in is_qualified_name(finalizer):
            yield invalid_value(path, finalizer, text)
    if "orphan" in finalizers and "foregroundDeletion" in finalizers:
        yield invalid_value(path, finalizers, "finalizer orphan and foregroundDeletion cannot be both set")


def _kube_finalizers(finalizers: Sequence[str]) -> Iterable[FieldError]:
    for i, finalizer in enumerate(finalizers):
        yield from validate_kube_finalizer(finalizer, f"metadata.finalizers[{i}]")


def validate_kube_finalizer(finalizer: str, path: str) -> Iterable[FieldError]:
    """A finalizer of a built-in kind is a standard one or has a domain."""
    if "/" not in finalizer and finalizer not in _STANDARD_FINALIZERS:
        yield invalid_value(path, finalizer, "name is neither a standard finalizer name nor is it fully qualified")


def _managed_fields(entries: Sequence[Object], path: str) -> Iterable[FieldError]:
    for i, entry in enumerate(entries):
        operation = entry.get("operation", "")
        if not operation:
            yield required(f"{path}[{i}].operation", "must not be empty")
        elif operation not in ("Apply", "Update"):
            yield not_supported(f"{path}[{i}].operation", operation, ("Apply", "Update"))
        if entry.get("fieldsType") not in (None, "", "FieldsV1"):
            yield invalid_value(f"{path}[{i}].fieldsType", entry["fieldsType"], "must be `FieldsV1`")
        yield from validate_field_manager(entry.get("manager", ""), f"{path}[{i}].manager")
        if len(entry.get("subresource", "").encode()) > MAX_SUBRESOURCE_NAME:
            yield too_long(f"{path}[{i}].subresource", MAX_SUBRESOURCE_NAME)


def validate_field_manager(manager: str, path: str = "fieldManager") -> Iterable[FieldError]:
    """At most 128 bytes of printable characters."""
    if len(manager.encode()) > MAX_FIELD_MANAGER:
        yield too_long(path, MAX_FIELD_MANAGER)
    position = 0
    for char in manager:
        if not char.isprintable():
            yield invalid_value(path, manager, f"invalid character U+{ord(char):04X} (at position {position})")
        position += len(char.encode())


def immutable(value: Any, before: Any, path: str) -> Iterable[FieldError]:
    """The error that the field changed. Missing, null and empty collections count as the same."""
    if value != before and (value or before):
        yield invalid_value(path, value, IMMUTABLE)


def non_negative(value: int, path: str) -> Iterable[FieldError]:
    if value < 0:
        yield invalid_value(path, value, NOT_NEGATIVE)
