"""The parser of CEL expressions: the one door to `cel-expr-python`, Google's own runtime.

Its parser (grammar, macros, ANTLR's own words for syntax errors) is what kone takes from it; the tree comes as
cel.expr.ParsedExpr (field numbers: cel-spec, syntax.proto) and is made into the nodes below. Types are checked and
expressions evaluated by cel_checker and cel_eval, because quantities, URLs, optionals and the authorizer cannot cross
the library's boundary, and because it neither counts nor bounds what an evaluation costs (docs/adr). The library is
imported with the first expression.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from kone.apimachinery import protowire

_PREFIX, _SUFFIX = "INVALID_ARGUMENT: ", " [INVALID_ARGUMENT]"
_EXTENSIONS = "name: kone\nextensions:\n- name: optional\n- name: two-var-comprehensions\n"
_GO_WORDS = (  # cel-cpp's words for what cel-go, which upstream uses, says in others
    (re.compile(r"has\(\) argument must be a field selection"), "invalid argument to has() macro"),
    (re.compile(r"\w+\(\) variable name must be a simple identifier"), "argument must be a simple name"),
)


class CelSyntaxError(Exception):
    """An expression is not CEL; the text is upstream's, one or more lines "ERROR: <input>:line:column: …"."""


@dataclass(slots=True)
class Node:
    """One node of the tree. `id` finds its position and its type."""

    id: int


@dataclass(slots=True)
class Literal(Node):
    value: Any
    kind: str  # null, bool, int, uint, double, string, bytes


@dataclass(slots=True)
class Ident(Node):
    name: str


@dataclass(slots=True)
class Select(Node):
    operand: Node
    field: str
    test: bool  # has(operand.field)


@dataclass(slots=True)
class Call(Node):
    function: str
    target: Node | None
    args: list[Node]


@dataclass(slots=True)
class ListNode(Node):
    elements: list[Node]
    optional: frozenset[int]


@dataclass(slots=True)
class Entry:
    """Of a map (`key`) or a message (`name`)."""

    id: int
    name: str
    key: Node | None
    value: Node
    optional: bool


@dataclass(slots=True)
class MapNode(Node):
    entries: list[Entry]


@dataclass(slots=True)
class Struct(Node):
    name: str
    entries: list[Entry]


@dataclass(slots=True)
class Comprehension(Node):
    iter_var: str
    iter_var2: str
    range: Node
    accu_var: str
    accu_init: Node
    condition: Node
    step: Node
    result: Node


@dataclass(slots=True)
class Parsed:
    source: str
    root: Node
    positions: dict[int, int] = field(default_factory=dict)  # node id -> offset in characters

    def error_text(self, found: Sequence[tuple[int, str]]) -> str:
        """Upstream's display of errors at nodes, in the order of their places."""
        placed = sorted((self._place(id), text) for id, text in found)
        return "\n".join(self._display(place, text) for place, text in placed)

    def _place(self, id: int) -> tuple[int, int]:
        at = self.positions.get(id, 0)
        line = self.source.count("\n", 0, at)
        return line, at - (self.source.rfind("\n", 0, at) + 1)

    def _display(self, place: tuple[int, int], text: str) -> str:
        line, column = place
        shown = self.source.split("\n")[line].replace("\t", " ")
        dots = "".join("．" if unicodedata.east_asian_width(c) in "WF" else "." for c in shown[:column])
        return f"ERROR: <input>:{line + 1}:{column + 1}: {text}\n | {shown}\n | {dots}^"


@cache
def _environment() -> Any:
    from cel_expr_python import cel

    return cel.NewEnv(config=cel.NewEnvConfigFromYaml(_EXTENSIONS))


def parse(source: str) -> Parsed:
    """The tree of an expression, its macros expanded. Raises CelSyntaxError."""
    try:
        encoded = _environment().compile(source, disable_check=True).serialize()
    except RuntimeError as error:
        text = str(error).removeprefix(_PREFIX).removesuffix(_SUFFIX)
        if not source:
            text = text.replace("<input>:1:1:", "<input>:1:0:")
        for pattern, words in _GO_WORDS:
            text = pattern.sub(words, text)
        text = text.replace("'\\u003F'", "'?'")
        raise CelSyntaxError(text) from None
    message = _one(encoded, 2)  # google.protobuf.Any of cel.expr.ParsedExpr
    info = _one(message, 3)
    positions: dict[int, int] = {}
    for pair in _many(info, 4):
        entry = dict(_fields(pair))
        positions[entry.get(1, 0)] = entry.get(2, 0)
    return Parsed(source, _Reader(source, positions).node(_one(message, 2)), positions)


# -- the tree as protobuf ---------------------------------------------------------------------------------------------


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """By the number of a field one knows which it is: an integer or bytes."""
    return [*protowire.read_parts(data, 0, len(data))]


def _many(data: bytes, number: int) -> list[Any]:
    return [value for found, value in _fields(data) if found == number]


def _one(data: bytes, number: int) -> bytes:
    found = _many(data, number)
    return found[-1] if found else b""


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_LITERALS = {1: "null", 2: "bool", 3: "int", 4: "uint", 5: "double", 6: "string", 7: "bytes"}


class _Reader:
    def __init__(self, source: str, positions: dict[int, int]) -> None:
        self.source, self.positions = source, positions

    def node(self, data: bytes) -> Node:
        id, kind, body = 0, 0, b""
        for number, value in _fields(data):
            if number == 2:
                id = value
            else:
                kind, body = number, value
        match kind:
            case 3:
                return _literal(id, body)
            case 4:
                return Ident(id, _one(body, 1).decode())
            case 5:
                parts = dict(_fields(body))
                return Select(id, self.node(parts.get(1, b"")), parts.get(2, b"").decode(), bool(parts.get(3)))
            case 6:
                target = _many(body, 1)
                args = [self.node(each) for each in _many(body, 3)]
                return Call(id, _one(body, 2).decode(), self.node(target[0]) if target else None, args)
            case 7:
                optional = frozenset(_one(body, 2))  # packed varints, each an index below 128
                return ListNode(id, [self.node(each) for each in _many(body, 1)], optional)
            case 8:
                name = _one(body, 1).decode()
                entries = [self.entry(each) for each in _many(body, 2)]
                if not name:
                    return MapNode(id, entries)
                # cel-go points at the brace, cel-cpp at the name.
                self.positions[id] = max(self.source.find("{", self.positions.get(id, 0)), 0)
                return Struct(id, name, entries)
        return self.comprehension(id, body)

    def entry(self, data: bytes) -> Entry:
        parts = dict(_fields(data))
        key = self.node(parts[3]) if 3 in parts else None
        return Entry(parts.get(1, 0), parts.get(2, b"").decode(), key, self.node(parts.get(4, b"")), bool(parts.get(5)))

    def comprehension(self, id: int, data: bytes) -> Node:
        parts = dict(_fields(data))
        return Comprehension(
            id,
            parts.get(1, b"").decode(),
            parts.get(8, b"").decode(),
            self.node(parts[2]),
            parts[3].decode(),
            *(self.node(parts[number]) for number in (4, 5, 6, 7)),
        )


def _literal(id: int, data: bytes) -> Literal:
    for number, raw in _fields(data):
        value: Any = raw
        if number == 1:
            value = None
        elif number == 2:
            value = bool(raw)
        elif number == 3:
            value = _signed(raw)
        elif number == 5:
            (value,) = struct.unpack("<d", raw)
        elif number == 6:
            value = raw.decode()
        elif number == 7:
            value = bytes(raw)
        return Literal(id, value, _LITERALS[number])
    return Literal(id, None, "null")
