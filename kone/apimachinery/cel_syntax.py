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
    (
        re.compile(r"\w+\(\) (?:(?:first|second) )?variable name must be a simple identifier"),
        "argument must be a simple name",
    ),
    (
        re.compile(r"\w+\(\) (?:(?:first|second) )?variable name cannot be __result__"),
        "iteration variable overwrites accumulator variable",
    ),
)


class CelSyntaxError(Exception):
    """An expression is not CEL; the text is upstream's, one or more lines "ERROR: <input>:line:column: …"."""


class CelProgramError(CelSyntaxError):
    """An expression is CEL, but a constant part of it fails; the text is upstream's, without a place."""


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


_ACCUMULATOR, _SORTED = "@result", "@__sortBy_input__"
_LITERALS = {1: "null", 2: "bool", 3: "int", 4: "uint", 5: "double", 6: "string", 7: "bytes"}


class _Reader:
    def __init__(self, source: str, positions: dict[int, int]) -> None:
        self.source, self.positions = source, positions
        self._next = 0  # ids of nodes that macros make go down from here

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
                # A leading dot names a function of no container, as all of ours are.
                name = _one(body, 2).decode().removeprefix(".")
                return self._expanded(Call(id, name, self.node(target[0]) if target else None, args))
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

    def _expanded(self, call: Call) -> Node:
        """What cel-go's macros that cel-cpp does not have make of a call."""
        names = [arg.name if isinstance(arg, Ident) else "" for arg in call.args]
        if call.target is None:
            return call
        if call.function == "sortBy" and len(names) == 2 and names[0]:
            return self._sort_by(call.target, call, names[0])
        if call.function == "exists_one" and len(names) == 3 and names[0] and names[1]:
            return self._exists_one(call.target, call, names[0], names[1])
        return call

    def _made(self, origin: Node) -> int:
        """The id of a node that a macro made, shown where its call is."""
        self._next -= 1
        self.positions[self._next] = self.positions.get(origin.id, 0)
        return self._next

    def _call(self, origin: Node, function: str, *args: Node) -> Call:
        return Call(self._made(origin), function, None, list(args))

    def _exists_one(self, over: Node, call: Call, first: str, second: str) -> Node:
        """over.exists_one(first, second, condition) counts."""

        def count() -> Ident:
            return Ident(self._made(call), _ACCUMULATOR)

        def number(value: int) -> Literal:
            return Literal(self._made(call), value, "int")

        step = self._call(call, "_?_:_", call.args[2], self._call(call, "_+_", count(), number(1)), count())
        result = self._call(call, "_==_", count(), number(1))
        true = Literal(self._made(call), True, "bool")
        return Comprehension(call.id, first, second, over, _ACCUMULATOR, number(0), true, step, result)

    def _sort_by(self, over: Node, call: Call, each: str) -> Node:
        """over.sortBy(each, key) sorts by a list of the keys; `over` is evaluated once, as a variable."""

        def bound() -> Ident:
            return Ident(self._made(call), _SORTED)

        one = ListNode(self._made(call), [call.args[1]], frozenset())
        step = self._call(call, "_+_", Ident(self._made(call), _ACCUMULATOR), one)
        keys = Comprehension(
            self._made(call),
            each,
            "",
            bound(),
            _ACCUMULATOR,
            ListNode(self._made(call), [], frozenset()),
            Literal(self._made(call), True, "bool"),
            step,
            Ident(self._made(call), _ACCUMULATOR),
        )
        sorted_ = Call(self._made(call), "@sortByAssociatedKeys", bound(), [keys])
        nothing = ListNode(self._made(call), [], frozenset())
        false = Literal(self._made(call), False, "bool")
        return Comprehension(call.id, "#unused", "", nothing, _SORTED, over, false, bound(), sorted_)

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
