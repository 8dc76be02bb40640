"""JSONPath as Kubernetes writes it: what a custom resource's columns, scale and selectable fields point at.

The dialect is Kubernetes' own (k8s.io/client-go/util/jsonpath): a leading dot without "$", dots in keys behind a
backslash, filters with one comparison. No library speaks it. Example: `.status.conditions[?(@.type=="Ready")].status`.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_STEP = re.compile(
    r"""\.\.(?P<deep>(?:\\.|[^.\[\]])+)
      | \.(?P<name>(?:\\.|[^.\[\]])+)
      | \[\s*(?P<index>-?\d+)\s*\]
      | \[\s*(?P<slice>-?\d*:-?\d*(?::-?\d*)?)\s*\]
      | \[\s*(?P<all>\*)\s*\]
      | \[\s*(?P<quote>['"])(?P<key>.*?)(?P=quote)\s*\]
      | \[\?\(\s*@(?P<left>[^=!<>\s)]*)\s*(?:(?P<op>==|!=|<=|>=|<|>)\s*(?P<right>.+?))?\s*\)\]""",
    re.VERBOSE,
)
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Step = Callable[[Any], Iterator[Any]]


class JsonPathError(ValueError):
    """A path that cannot be read."""


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A compiled path."""

    steps: tuple[Step, ...]

    def find(self, obj: Any) -> list[Any]:
        """Every value it points at, in order; [] where there is none."""
        found = [obj]
        for step in self.steps:
            found = [value for item in found for value in step(item)]
        return found


@lru_cache(maxsize=1024)
def compile_path(text: str) -> JsonPath:
    """The path, with or without braces. Raises JsonPathError."""
    body = text.strip()
    if body.startswith("{") and body.endswith("}"):
        body = body[1:-1]
    body = body.removeprefix("$")
    steps: list[Step] = []
    position = 0
    while position < len(body):
        match = _STEP.match(body, position)
        if match is None:
            raise JsonPathError(f"unrecognized path {text!r} at {position}")
        steps.append(_step(match))
        position = match.end()
    return JsonPath(tuple(steps))


def simple_path(text: str) -> tuple[str, ...]:
    """The keys of a path of plain fields, as scale paths are: ".spec.replicas" is ("spec", "replicas")."""
    return tuple(re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\)\.", text.lstrip(".")) if part)


def _step(match: re.Match[str]) -> Step:
    if (name := match["name"]) is not None:
        return _all if name == "*" else _field(re.sub(r"\\(.)", r"\1", name))
    if (deep := match["deep"]) is not None:
        return _anywhere(re.sub(r"\\(.)", r"\1", deep))
    if match["key"] is not None:
        return _field(match["key"])
    if match["index"] is not None:
        return _index(int(match["index"]))
    if match["slice"] is not None:
        parts = [int(part) if part else None for part in match["slice"].split(":")]
        return _slice(slice(*parts))
    if match["all"] is not None:
        return _all
    return _filter(match["left"], match["op"] or "", match["right"] or "")


def _field(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]

    return step


def _anywhere(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            if name in value:
                yield value[name]
            for item in value.values():
                yield from step(item)
        elif isinstance(value, list):
            for item in value:
                yield from step(item)

    return step


def _index(number: int) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and -len(value) <= number < len(value):
            yield value[number]

    return step


def _slice(part: slice) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from value[part]

    return step


def _all(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value
    elif isinstance(value, dict):
        yield from (value[key] for key in sorted(value))


def _filter(left: str, sign: str, right: str) -> Step:
    path = compile_path(left)
    wanted = _literal(right) if sign else None

    def step(value: Any) -> Iterator[Any]:
        for item in value if isinstance(value, list) else ():
            found = path.find(item)
            if found and (not sign or _holds(found[0], sign, wanted)):
                yield item

    return step


def _literal(text: str) -> Any:
    quoted = re.fullmatch(r"'(.*)'|\"(.*)\"", text, re.DOTALL)
    if quoted:
        return quoted[1] if quoted[1] is not None else quoted[2]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _holds(left: Any, sign: str, right: Any) -> bool:
    try:
        return bool(_COMPARISONS[sign](left, right))
    except TypeError:
        return False


def shown(values: Sequence[Any]) -> str:
    """Values as upstream prints them: texts as they are, objects and lists as JSON, in one line."""
    return " ".join(_shown(value) for value in values)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
