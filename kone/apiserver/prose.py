"""What upstream's documentation says of each kind and field, which `kubectl explain` prints.

kone's package holds facts only. The prose is read from the PyPI package kubernetes-validate where that is installed
(the extra `kone[explain]`), when the first OpenAPI document is made; without it documents have no descriptions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import orjson

from kone import KUBERNETES_VERSION

_PACKAGE: Final = "kubernetes_validate"
_ANY_KIND: Final = "io.k8s.api.core.v1.Pod"
TYPE: Final = ""
"""The key of what is said of a type itself, among its fields."""


@cache
def source() -> Path | None:
    """The file of definitions for this version of Kubernetes; None where there is none. The package is not imported:
    its own imports are not needed here."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    minor = ".".join(KUBERNETES_VERSION.split(".")[:2])
    path = Path(spec.origin).parent / "kubernetes-json-schema" / f"{minor}.0-local" / "_definitions.json"
    return path if path.exists() else None


@cache
def _all() -> Mapping[str, Mapping[str, str]]:
    path = source()
    if path is None:
        return {}
    found = {}
    for name, definition in orjson.loads(path.read_bytes())["$defs"].items():
        texts = {field: text for field, of in definition.get("properties", {}).items() if (text := _text(of))}
        if own := _text(definition):
            texts[TYPE] = own
        found[name] = texts
    return found


def _text(schema: Mapping[str, object]) -> str:
    return str(schema.get("description", ""))


def of_type(name: str) -> Mapping[str, str]:
    """The texts of a type's fields by their names, and of the type itself under TYPE; of OpenAPI's name, e.g.
    "io.k8s.api.core.v1.Pod". What is not described is not there."""
    return _all().get(name, {})


def of_every_kind(field: str) -> str:
    """What is said of "apiVersion", "kind" and "metadata", of whichever kind."""
    return of_type(_ANY_KIND).get(field, "")
