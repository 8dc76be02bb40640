"""Pod templates as controllers compare and name them: the hash that names a revision, and equality beside that hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kone.apimachinery.objects import remove_in

HASH_LABEL = "pod-template-hash"

# The letters of generated names: no vowels, so that no words come out (apimachinery/pkg/util/rand).
_SAFE_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def compute_hash(data: Any, collision_count: int | None = None) -> str:
    """A short name-safe hash of JSON data. 32-bit FNV-1a as upstream's, of kone's own dump: stable, but its own."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    if collision_count is not None:
        text += collision_count.to_bytes(8, "little")
    return safe_encode(str(_fnv32a(text)))


def safe_encode(text: str) -> str:
    """Each character as one of the safe letters (rand.SafeEncodeString)."""
    return "".join(_SAFE_LETTERS[ord(letter) % len(_SAFE_LETTERS)] for letter in text)


def equal_ignoring_hash(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two templates make the same pods: equal but for the hash label, empty values counting as missing."""
    a, b = (remove_in(template, ("metadata", "labels", HASH_LABEL)) for template in (a, b))
    return a == b or _pruned(a) == _pruned(b)


def _pruned(value: Any) -> Any:
    """The value without what is null or empty, at any depth: Go writes such fields in several ways."""
    if isinstance(value, Mapping):
        pruned = {key: _pruned(item) for key, item in value.items()}
        return {key: item for key, item in pruned.items() if item not in (None, {}, [], "")}
    if isinstance(value, list):
        return [_pruned(item) for item in value]
    return value


def _fnv32a(data: bytes) -> int:
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value
