"""Files that configure the server in kube-apiserver's own formats: one object of a versioned kind, read strictly.

A shape says what the file may hold, in Python's words:

    POLICY = {"omitStages": [str], "rules": [{"level": str, "verbs": [str]}]}
    load(text, "Policy", ("audit.k8s.io/v1",), POLICY)

`ANY` takes everything; a mapping with the single key "*" takes any keys, all of one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from kone.apimachinery.errors import FieldError, go_quote
from kone.apimachinery.objects import Object

ANY: Final = object
Shape = Any
"""A type (str, bool, int, float, ANY), a list of one shape, or a mapping of names to shapes."""


class ConfigFileError(ValueError):
    """What is wrong with a file, on one line, without the file's name."""


def load(text: str, kind: str, api_versions: Sequence[str], shape: Mapping[str, Shape]) -> Object:
    """The object in `text` (YAML or JSON). Raises ConfigFileError: no such kind, an unknown field, a wrong type."""
    import yaml  # only where such a file is given: start-up time is imports

    try:
        found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ConfigFileError(" ".join(str(error).split())) from None
    if not isinstance(found, dict):
        raise ConfigFileError(f"give one object of kind {kind}")
    if found.get("kind") != kind or found.get("apiVersion") not in api_versions:
        shown = f"{found.get('apiVersion', '')}, Kind={found.get('kind', '')}"
        raise ConfigFileError(f"unsupported kind {shown}: give kind {kind} of {' or '.join(api_versions)}")
    whole = {"kind": str, "apiVersion": str, "metadata": ANY, **shape}
    fits(found, whole)
    return found


def fits(value: Any, shape: Shape) -> None:
    """Raises ConfigFileError where the value has an unknown field or a wrong type."""
    if problems := list(_problems(value, shape, "")):
        raise ConfigFileError("strict decoding error: " + ", ".join(problems))


def refuse(errors: Sequence[FieldError]) -> None:
    """Raises ConfigFileError for what validation found, if anything."""
    if errors:
        texts = [str(error) for error in errors]
        raise ConfigFileError(texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]")


def _problems(value: Any, shape: Shape, path: str) -> Iterator[str]:
    if value is None or shape is ANY:
        return
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            yield f"{path or 'the file'}: expected an object"
            return
        every = shape.get("*")
        for key, inner in value.items():
            at = f"{path}.{key}" if path else str(key)
            if every is None and key not in shape:
                yield f"unknown field {go_quote(at)}"
            else:
                yield from _problems(inner, shape[key] if every is None else every, at)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{path}: expected a list"
            return
        for i, inner in enumerate(value):
            yield from _problems(inner, shape[0], f"{path}[{i}]")
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        yield f"{path}: expected {_WORDS[shape]}"


_WORDS: Final[Mapping[type, str]] = {str: "a string", bool: "true or false", int: "a number", float: "a number"}
