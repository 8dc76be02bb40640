"""JSON patch (RFC 6902), JSON merge patch (RFC 7386) and what they share with strategic merge patch: errors and
answers.

Patches never write to the object they are applied to: what they change is copied, the rest is shared. Where
upstream's library departs from the RFC, so does this: a path's first segment is skipped whatever it holds, array
indexes may be negative, and a missing member of an object may be replaced, copied and tested as if it were null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from kone.apimachinery import json_text, schema
from kone.apimachinery.errors import StatusError, bad_request, go_format, go_quote, invalid, invalid_value, json_word
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object
from kone.apimachinery.strategic_merge import strategic_merge_patch

__all__ = ["Patch", "PatchKind", "Patched", "apply", "json_patch", "merge_patch", "strategic_merge_patch"]

PatchKind = Literal["json", "merge", "strategic"]

Read = Callable[[Object], tuple[Object, list[str]]]
"""(an object as a client sent it) -> (as its kind has it, the paths of unknown fields)."""

MAX_OPERATIONS: Final = 10_000
MAX_COPIED_BYTES: Final = 3 * 1024 * 1024
"""What all "copy" operations of one patch may add up to (upstream's limit on a request's size)."""


@dataclass(frozen=True, slots=True)
class Patch:
    """What a client asks to change. `twice` are the paths of members that its JSON gave more than once."""

    kind: PatchKind
    content: Any
    twice: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Patched:
    """A patched and decoded object. `findings` are what strict validation complains of: 'unknown field "spec.foo"'."""

    obj: Object
    findings: list[str]
    shown: str
    """What upstream prints in an error about the outcome: the patched object, or of strategic patches the patch."""

    def strict_error(self) -> StatusError:
        """422 of fieldValidation=Strict."""
        return _invalid_patch(self.shown, f"strict decoding error: {', '.join(self.findings)}")


def apply(patch: Patch, obj: Object, gvk: GVK, read: Read | None = None) -> Patched:
    """`obj` with the patch applied, decoded by its kind's schema, or by `read` for kinds that are not built in.

    Raises StatusError as upstream's handler does.
    """
    kind, content = patch.kind, patch.content
    findings = [f"duplicate field {go_quote(path)}" for path in patch.twice]
    if kind == "json":
        findings = [f"json patch {finding}" for finding in findings] + json_patch_findings(content)
        patched = json_patch(obj, content)
    elif kind == "merge":
        patched = merge_patch(obj, content)
    else:
        patched = strategic_merge_patch(obj, content, gvk)

    def shown() -> str:
        return go_format(content) if kind == "strategic" else json.dumps(patched, separators=(",", ":"))

    if not isinstance(patched, dict):
        raise _invalid_patch(shown(), f"json: cannot unmarshal array into Go value of type {gvk.version}.{gvk.kind}")
    try:
        decoded, unknown = schema.decode(patched, gvk) if read is None else read(patched)
    except schema.DecodeError as error:
        raise _invalid_patch(shown(), error.converter_text if kind == "strategic" else str(error)) from None
    findings += [f"unknown field {go_quote(path)}" for path in unknown]
    return Patched(decoded, findings, shown() if findings else "")


def _invalid_patch(shown: str, why: str) -> StatusError:
    return invalid("", "", [invalid_value("patch", shown, why)])


def _not_applicable() -> StatusError:
    """422 without the reason: upstream keeps the library's own words to itself."""
    return StatusError(422, "Invalid", "the server rejected our request due to an error in our request", details={})


def _decoding_error(value: Any, where: str) -> StatusError:
    return bad_request(f"error decoding patch: json: cannot unmarshal {json_word(value)} into Go {where}")


def json_patch_findings(operations: Any) -> list[str]:
    """Unknown members of operations, as strict validation words them. Raises 400 for what is no list of operations."""
    if operations is None:
        return []
    if not isinstance(operations, list):
        raise _decoding_error(operations, "value of type []handlers.jsonPatchOp")
    findings = []
    for i, operation in enumerate(operations):
        if operation is None:
            continue
        if not isinstance(operation, dict):
            raise _decoding_error(operation, "value of type handlers.jsonPatchOp")
        for name, value in operation.items():
            if name not in ("op", "path", "from", "value"):
                findings.append(f"json patch unknown field {go_quote(f'[{i}].{name}')}")
            elif name != "value" and value is not None and not isinstance(value, str):
                raise _decoding_error(value, f"struct field jsonPatchOp.{name} of type string")
    return findings


class _CannotApply(Exception):
    """An operation that does not fit the document."""


class _Differs(_CannotApply):
    """A test operation does not hold."""


class PatchTestFailed(StatusError):
    """A JSON patch was not applied because one of its test operations does not hold."""


_MISSING: Final = object()


def json_patch(obj: Object, operations: Any) -> Any:
    """The outcome of the operations, all or nothing. Raises StatusError 400, 413 or 422."""
    json_patch_findings(operations)
    operations = operations or []
    if len(operations) > MAX_OPERATIONS:
        raise StatusError(
            413,
            "RequestEntityTooLarge",
            "Request entity too large: The allowed maximum operations in a JSON patch is "
            f"{MAX_OPERATIONS}, got {len(operations)}",
        )
    document = _JSONDocument(obj)
    try:
        for operation in operations:
            document.apply(operation or {})
    except _Differs:
        plain = _not_applicable()
        raise PatchTestFailed(plain.code, plain.reason, plain.message, details={}) from None
    except _CannotApply:
        raise _not_applicable() from None
    if isinstance(document.root, (dict, list)) and json_text.deeper(document.root):
        raise _not_applicable()  # copies put deep things into deep places
    return document.root


class _JSONDocument:
    """A document under change. Containers are copied when first written to, so the original stays as it was."""

    def __init__(self, root: Object) -> None:
        self.root: Any = root
        self.own: dict[int, Any] = {}  # by id; holding the containers keeps their ids theirs
        self.copied_bytes = 0

    def apply(self, operation: Mapping[str, Any]) -> None:
        path = operation.get("path")
        if not isinstance(path, str):
            raise _CannotApply
        match operation.get("op"):
            case "add":
                self.add(path, operation.get("value"))
            case "replace":
                self.replace(path, operation.get("value"))
            case "remove":
                self.remove(path)
            case "move":
                source = self.source(operation)
                value = self.get(source)
                self.remove(source)  # which fails where there is nothing
                self.add(path, value)
            case "copy":
                value = self.get(self.source(operation))
                self.copied_bytes += len(json.dumps(value))
                if self.copied_bytes > MAX_COPIED_BYTES:
                    raise _CannotApply
                self.add(path, value)
            case "test":
                self.test(path, operation.get("value"))
            case _:
                raise _CannotApply

    @staticmethod
    def source(operation: Mapping[str, Any]) -> str:
        source = operation.get("from")
        if not isinstance(source, str):
            raise _CannotApply
        return source

    def parent(self, path: str, *, writable: bool) -> tuple[Any, str]:
        """(the container, the last key) of a path."""
        steps = [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]
        if not steps:
            raise _CannotApply
        if writable:
            self.root = container = self.writable(self.root)
        else:
            container = self.root
        for step in steps[:-1]:
            key: Any = _index(step, len(container)) if isinstance(container, list) else step
            inner = self.lookup(container, step)
            if not isinstance(inner, (dict, list)):
                raise _CannotApply
            if writable:
                inner = self.writable(inner)
                container[key] = inner
            container = inner
        return container, steps[-1]

    def writable(self, container: Any) -> Any:
        if id(container) in self.own:
            return container
        copy = container.copy()
        self.own[id(copy)] = copy
        return copy

    @staticmethod
    def lookup(container: Any, key: str) -> Any:
        if isinstance(container, dict):
            return container.get(key, _MISSING)
        index = _index(key, len(container))
        return container[index] if 0 <= index < len(container) else _MISSING

    def get(self, path: str) -> Any:
        """The value at a path; a member that an object does not have counts as null."""
        container, key = self.parent(path, writable=False)
        value = self.lookup(container, key)
        if value is _MISSING:
            if isinstance(container, list):
                raise _CannotApply
            return None
        # A value that is about to stand in two places must not be written to through one of them.
        self.disown(value)
        return value

    def disown(self, value: Any) -> None:
        if isinstance(value, (dict, list)):
            self.own.pop(id(value), None)
            for inner in value.values() if isinstance(value, dict) else value:
                self.disown(inner)

    def replace(self, path: str, value: Any) -> None:
        if not path and isinstance(value, (dict, list)):
            self.root = value
            return
        container, key = self.parent(path, writable=True)
        if isinstance(container, dict):
            container[key] = value
        elif self.lookup(container, key) is _MISSING:
            raise _CannotApply
        else:
            container[_index(key, len(container))] = value

    def add(self, path: str, value: Any) -> None:
        container, key = self.parent(path, writable=True)
        if isinstance(container, dict):
            container[key] = value
        elif key == "-":
            container.append(value)
        else:
            index = _index(key, len(container) + 1)
            if not 0 <= index <= len(container):
                raise _CannotApply
            container.insert(index, value)

    def remove(self, path: str) -> None:
        container, key = self.parent(path, writable=True)
        if self.lookup(container, key) is _MISSING:
            raise _CannotApply
        if isinstance(container, dict):
            del container[key]
        else:
            del container[_index(key, len(container))]

    def test(self, path: str, wanted: Any) -> None:
        container, key = self.parent(path, writable=False)
        value = self.lookup(container, key)
        if value is _MISSING:
            if isinstance(container, list) or wanted is not None:
                raise _Differs
        elif not _equal(value, wanted):
            raise _Differs


def _index(key: str, size: int) -> int:
    """An array index; negative ones count from the end."""
    sign, digits = key[:1] in ("-", "+"), key.lstrip("+-")
    if not (digits.isascii() and digits.isdigit()) or len(key) - len(digits) > sign:
        raise _CannotApply
    index = int(key)
    return index + size if index < 0 else index


def _equal(left: Any, right: Any) -> bool:
    """JSON equality: true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right)


def merge_patch(obj: Object, patch: Any) -> Object:
    """The outcome of a JSON merge patch: nulls delete, lists are replaced. Raises StatusError 400."""
    if patch is None:
        return obj
    if not isinstance(patch, dict):
        raise _decoding_error(patch, "value of type map[string]interface {}")
    return _merge(obj, patch)


def _merge(original: Object, patch: Mapping[str, Any]) -> Object:
    merged = dict(original)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif not isinstance(merged.get(key), dict):
            merged[key] = _without_nulls(value)
        elif isinstance(value, dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value
