"""ConfigMaps."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import FieldError, forbidden_field, invalid_value, too_long
from kone.apimachinery.kinds import CONFIGMAPS as GVR_CONFIGMAPS
from kone.apimachinery.names import is_config_map_key
from kone.apimachinery.objects import Object
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check
from kone.registry.strategy import Strategy

MAX_BYTES = 1024 * 1024
FROZEN = "field is immutable when `immutable` is set"


def base64_size(text: str) -> int:
    """How many bytes the base64 text stands for."""
    return len(text) // 4 * 3 - text[-2:].count("=")


def frozen(errors: Errors, obj: Object, old: Object, *fields: str) -> None:
    """What does not change once `immutable` is true, which itself stays."""
    if not old.get("immutable"):
        return
    if not obj.get("immutable"):
        errors.append(forbidden_field("immutable", FROZEN))
    for field in fields:
        if (obj.get(field) or {}) != (old.get(field) or {}):
            errors.append(forbidden_field(field, FROZEN))


class _ConfigMap(Strategy):
    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        if old is not None:
            frozen(errors, obj, old, "data", "binaryData")
        data, binary, size = obj.get("data") or {}, obj.get("binaryData") or {}, 0
        for key, value in data.items():
            check(errors, f"data[{key}]", key, is_config_map_key(key))
            if key in binary:
                errors.append(invalid_value(f"data[{key}]", key, "duplicate of key present in binaryData"))
            size += len(value) if value.isascii() else len(value.encode())
        for key, value in binary.items():
            check(errors, f"binaryData[{key}]", key, is_config_map_key(key))
            size += base64_size(value)
        if size > MAX_BYTES:
            errors.append(too_long("[]", MAX_BYTES))  # so upstream writes the path of the whole object
        return errors


CONFIGMAPS = Resource(
    gvr=GVR_CONFIGMAPS,
    kind="ConfigMap",
    short_names=("cm",),
    strategy=_ConfigMap(),
    columns=(
        NAME,
        Column("Data", lambda obj, now: len(obj.get("data") or ()) + len(obj.get("binaryData") or ())),
        AGE,
    ),
)
