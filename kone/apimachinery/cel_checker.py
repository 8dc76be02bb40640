"""The type checker: every node's type, names resolved, and upstream's errors where types do not fit.

It follows cel-go's checker (checker/checker.go), and the validators that upstream adds: literals of lists and maps
are of one type, and literal durations, timestamps and regular expressions can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kone.apimachinery.cel_format import format_text
from kone.apimachinery.cel_functions import Function, Functions, Overload
from kone.apimachinery.cel_syntax import (
    Call,
    CelSyntaxError,
    Comprehension,
    Entry,
    Ident,
    ListNode,
    Literal,
    MapNode,
    Node,
    Parsed,
    Select,
    Struct,
)
from kone.apimachinery.cel_types import (
    BOOL,
    DYN,
    ERROR,
    INT,
    NULL,
    SIMPLE,
    UNSPECIFIED,
    Bindings,
    Structs,
    Type,
    all_assignable,
    assignable,
    is_dyn,
    list_of,
    map_of,
    most_general,
    optional_of,
    parse_type,
    struct_type,
    substitute,
    type_of,
    unwrap_optional,
)
from kone.apimachinery.cel_values import CelError, parse_duration, parse_timestamp
from kone.apimachinery.go_regexp import compile_go

_LITERAL_TYPES = {**SIMPLE, "null": NULL}
_TYPE_NAMES = ("bool", "bytes", "double", "duration", "dyn", "int", "null_type", "string", "timestamp", "uint")


@dataclass(slots=True)
class Checked:
    parsed: Parsed
    types: dict[int, Type]
    variables: dict[int, str]  # identifiers and selections that name a variable
    functions: dict[int, tuple[str, list[Overload], bool]] = field(default_factory=dict)
    """Of calls: the function, its overloads that fit, and whether the target is an argument."""
    type_idents: dict[int, str] = field(default_factory=dict)  # identifiers that name a type

    @property
    def result(self) -> Type:
        return self.types[self.parsed.root.id]


class Checker:
    """Checks one expression, in an environment's variables, functions and structs."""

    def __init__(self, parsed: Parsed, variables: Mapping[str, Type], functions: Functions, structs: Structs) -> None:
        self.parsed = parsed
        self.functions, self.structs = functions, structs
        self.scopes: list[Mapping[str, Type]] = [variables]
        self.bound: Bindings = {}
        self.fresh = 0
        self.errors: list[tuple[int, str]] = []
        self.checked = Checked(parsed, {}, {})

    def run(self) -> Checked:
        """Raises CelSyntaxError with every error found."""
        self.check(self.parsed.root)
        types = self.checked.types
        for id, t in types.items():
            types[id] = substitute(self.bound, t, free_to_dyn=True)
        if not self.errors:
            self._validate(self.parsed.root, exempt=False)
        if self.errors:
            raise CelSyntaxError(self.parsed.error_text(self.errors))
        return self.checked

    # -- nodes -----------------------------------------------------------------------------------------------------

    def check(self, node: Node) -> Type:
        match node:
            case Literal():
                found = _LITERAL_TYPES[node.kind]
            case Ident():
                found = self._ident(node)
            case Select():
                found = self._select(node)
            case Call():
                found = self._call(node)
            case ListNode():
                found = self._list(node)
            case MapNode():
                found = self._map(node)
            case Struct():
                found = self._struct(node)
            case Comprehension():
                found = self._comprehension(node)
            case _:
                raise AssertionError(node)
        self.checked.types[node.id] = found
        return found

    def _lookup(self, name: str) -> Type | None:
        name = name.removeprefix(".")
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def _type_ident(self, name: str) -> Type | None:
        if name in _TYPE_NAMES or name in SIMPLE:
            return parse_type(name)
        if name in ("list", "map"):
            return Type(name, name, (DYN,) if name == "list" else (DYN, DYN))
        if name == "type":
            return Type("type")
        if name in self.functions.types:
            return parse_type(name)
        return struct_type(name) if self.structs.has(name) else None

    def _resolve(self, node: Node, name: str) -> Type | None:
        found = self._lookup(name)
        if found is not None:
            name = name.removeprefix(".")
            if not any(name in scope for scope in self.scopes[1:]):
                self.checked.variables[node.id] = name
            return found
        kind = self._type_ident(name)
        if kind is None:
            return None
        named = {"null": "null_type", "timestamp": "google.protobuf.Timestamp", "duration": "google.protobuf.Duration"}
        self.checked.type_idents[node.id] = named.get(kind.kind, kind.name or kind.kind)
        return type_of(kind)

    def _ident(self, node: Ident) -> Type:
        found = self._resolve(node, node.name)
        return found if found is not None else self._undeclared(node, node.name)

    def _undeclared(self, node: Node, name: str) -> Type:
        self._error(node.id, f"undeclared reference to '{name}' (in container '')")
        return ERROR

    def _select(self, node: Select) -> Type:
        if not node.test:
            name = qualified(node)
            root = name.partition(".")[0] if name else ""
            if name and not any(root in scope for scope in self.scopes[1:]):
                found = self._resolve(node, name)
                if found is not None:
                    return found
        result = self._field(node, node.operand, node.field, optional=False)
        return BOOL if node.test else substitute(self.bound, result)

    def _field(self, node: Node, operand: Node, name: str, *, optional: bool) -> Type:
        target, was_optional = unwrap_optional(substitute(self.bound, self.check(operand)))
        result = ERROR
        if target.kind == "map":
            result = target.params[1]
        elif target.kind == "struct" and (not target.name.startswith("kubernetes.") or self.structs.has(target.name)):
            result = self._field_type(node.id, target.name, name)
        elif target.kind == "param":
            self._fits(DYN, target)
            result = DYN
        else:
            if target.kind not in ("dyn", "error"):
                self._error(node.id, f"type '{target}' does not support field selection")
            result = DYN
        return optional_of(result) if was_optional or optional else result

    def _field_type(self, id: int, struct: str, name: str) -> Type:
        found = self.structs.field(struct, name)
        if found is None:
            self._error(id, f"undefined field '{name}'")
            return ERROR
        return found

    def _call(self, node: Call) -> Type:
        if node.function == "_?._":
            field_node = node.args[1]
            assert isinstance(field_node, Literal)
            self.check(field_node)
            return substitute(self.bound, self._field(node, node.args[0], field_node.value, optional=True))
        args = [self.check(arg) for arg in node.args]
        if node.target is None:
            function = self.functions.by_name.get(node.function)
            if function is None:
                return self._undeclared(node, node.function)
            return self._overload(node, function, args, member=False)
        prefix = qualified(node.target)
        if prefix:
            function = self.functions.by_name.get(f"{prefix}.{node.function}")
            if function is not None:
                return self._overload(node, function, args, member=False)
        target = self.check(node.target)
        function = self.functions.by_name.get(node.function)
        if function is None:
            return self._undeclared(node, node.function)
        return self._overload(node, function, [target, *args], member=True)

    def _overload(self, node: Call, function: Function, args: list[Type], *, member: bool) -> Type:
        if function.name in ("_&&_", "_||_"):
            good = True
            for arg, t in zip(node.args, args, strict=True):
                if not self._fits(t, BOOL):
                    good = False
                    self._error(arg.id, f"expected type '{BOOL}' but found '{substitute(self.bound, t)}'")
            return BOOL if good else ERROR
        result: Type | None = None
        fitting = []
        for overload in function.overloads:
            if overload.member != member:
                continue
            wanted, made = self._instantiate(overload)
            trial = dict(self.bound)
            if not all_assignable(trial, tuple(args), wanted):
                continue
            self.bound = trial
            fitting.append(overload)
            found = substitute(self.bound, made)
            if result is None:
                result = found
            elif not is_dyn(result) and found != result:
                result = DYN
        if result is None:
            shown = [str(substitute(self.bound, t, free_to_dyn=True)) for t in args]
            head = f"{shown.pop(0)}." if member else ""
            signature = f"{head}({', '.join(shown)})"
            self._error(node.id, f"found no matching overload for '{function.name}' applied to '{signature}'")
            return ERROR
        self.checked.functions[node.id] = (function.name, fitting, member)
        return result

    def _instantiate(self, overload: Overload) -> tuple[tuple[Type, ...], Type]:
        """The overload's types with parameters of its own."""
        names: dict[Type, Type] = {}

        def own(t: Type) -> Type:
            if t.kind == "param":
                if t not in names:
                    names[t] = self._parameter()
                return names[t]
            return Type(t.kind, t.name, tuple(map(own, t.params))) if t.params else t

        return tuple(map(own, overload.args)), own(overload.result)

    def _parameter(self) -> Type:
        self.fresh += 1
        return Type("param", f"_var{self.fresh - 1}")

    def _list(self, node: ListNode) -> Type:
        joined: Type | None = None
        for i, each in enumerate(node.elements):
            found = self.check(each)
            joined = self._join(each, joined, self._unwrapped(each, found) if i in node.optional else found)
        return list_of(joined or self._parameter())

    def _map(self, node: MapNode) -> Type:
        keys: Type | None = None
        values: Type | None = None
        for entry in node.entries:
            assert entry.key is not None
            keys = self._join(entry.key, keys, self.check(entry.key))
            values = self._join(entry.value, values, self._entry_value(entry))
        return map_of(keys or self._parameter(), values or self._parameter())

    def _entry_value(self, entry: Entry) -> Type:
        found = self.check(entry.value)
        return self._unwrapped(entry.value, found) if entry.optional else found

    def _unwrapped(self, node: Node, t: Type) -> Type:
        inner, is_optional = unwrap_optional(t)
        if not is_optional and not is_dyn(inner):
            self._error(node.id, f"expected type '{optional_of(inner)}' but found '{inner}'")
        return inner

    def _struct(self, node: Struct) -> Type:
        if not self.structs.has(node.name):
            return self._undeclared(node, node.name)
        result = struct_type(node.name)
        for entry in node.entries:
            value = self._entry_value(entry)
            wanted = self.structs.field(node.name, entry.name)
            if wanted is None:
                self._error(entry.id, f"undefined field '{entry.name}'")
            elif not self._fits(wanted, value):
                shown = substitute(self.bound, value)
                text = f"expected type of field '{entry.name}' is '{wanted}' but provided type is '{shown}'"
                self._error(entry.id, text)
        return result

    def _comprehension(self, node: Comprehension) -> Type:
        self.check(node.range)
        accumulator = self.check(node.accu_init)
        range_type = substitute(self.bound, self.checked.types[node.range.id])
        first, second = DYN, DYN
        if range_type.kind == "list":
            first, second = (INT, range_type.params[0]) if node.iter_var2 else (range_type.params[0], DYN)
        elif range_type.kind == "map":
            first, second = range_type.params
        elif range_type.kind in ("dyn", "error", "param"):
            self._fits(DYN, range_type)
        else:
            text = f"expression of type '{range_type}' cannot be range of a comprehension"
            self._error(node.range.id, f"{text} (must be list, map, or dynamic)")
            first = second = ERROR
        self.scopes.append({node.accu_var: accumulator})
        self.scopes.append({node.iter_var: first, **({node.iter_var2: second} if node.iter_var2 else {})})
        self.check(node.condition)
        self._assert(node.condition, BOOL)
        self.check(node.step)
        self._assert(node.step, accumulator)
        self.scopes.pop()
        self.check(node.result)
        self.scopes.pop()
        return substitute(self.bound, self.checked.types[node.result.id])

    # -- types -----------------------------------------------------------------------------------------------------

    def _fits(self, t1: Type, t2: Type) -> bool:
        if t1 == UNSPECIFIED:
            return t2.kind in ("dyn", "error")
        trial = dict(self.bound)
        if assignable(trial, t1, t2):
            self.bound = trial
            return True
        return False

    def _assert(self, node: Node, wanted: Type) -> None:
        found = self.checked.types[node.id]
        if not self._fits(wanted, found):
            self._error(node.id, f"expected type '{substitute(self.bound, wanted)}' but found '{found}'")

    def _join(self, node: Node, previous: Type | None, current: Type) -> Type:
        if previous is None:
            return current
        if self._fits(previous, current):
            return most_general(previous, current)
        return DYN

    def _error(self, id: int, text: str) -> None:
        self.errors.append((id, text))

    # -- literals --------------------------------------------------------------------------------------------------

    def _validate(self, node: Node, *, exempt: bool) -> None:
        """`exempt`: inside the arguments of format, whose lists may mix types."""
        if isinstance(node, Call):
            self._validate_call(node)
            exempt = exempt or node.function == "format"
        elif not exempt and isinstance(node, ListNode):
            self._uniform(node.elements, node.optional, once=True)
        elif not exempt and isinstance(node, MapNode):
            optional = frozenset(i for i, entry in enumerate(node.entries) if entry.optional)
            self._uniform([entry.key for entry in node.entries if entry.key is not None], frozenset())
            self._uniform([entry.value for entry in node.entries], optional)
        for child in children(node):
            self._validate(child, exempt=exempt)

    def _uniform(self, nodes: Sequence[Node], optional: frozenset[int], *, once: bool = False) -> None:
        """Literals of lists and maps are of one type; of a list, the first that is not is told."""
        types = self.checked.types
        found = [unwrap_optional(types[n.id])[0] if i in optional else types[n.id] for i, n in enumerate(nodes)]
        for node, t in zip(nodes, found, strict=True):
            if t != found[0]:
                self._error(node.id, f"expected type '{found[0]}' but found '{t}'")
                if once:
                    break

    def _validate_call(self, node: Call) -> None:
        name = self.checked.functions.get(node.id, (node.function,))[0]
        args = node.args
        if name in ("duration", "timestamp", "matches") and args and isinstance(args[0], Literal):
            value = args[0].value
            good = True
            if isinstance(value, str):
                try:
                    if name == "duration":
                        good = parse_duration(value) is not None
                    elif name == "timestamp":
                        good = parse_timestamp(value) is not None
                    else:
                        compile_go(value)
                except (ValueError, CelError):
                    good = False
            if not good:
                self._error(args[0].id, f"invalid {name} argument")
        elif name == "format" and isinstance(node.target, Literal) and args and isinstance(args[0], ListNode):
            self._validate_format(node, node.target, args[0])

    def _validate_format(self, call: Call, text: Literal, given: ListNode) -> None:
        """What is known of a literal's arguments is tried on it."""
        elements = given.elements
        if not all(isinstance(each, Literal) for each in elements):
            return
        values = [each.value for each in elements if isinstance(each, Literal)]
        try:
            format_text(text.value, values)
        except CelError as error:
            self._error(self._culprit(call, text, elements, values), str(error))

    def _culprit(self, call: Call, text: Literal, elements: Sequence[Node], values: list[object]) -> int:
        """The argument that its clause cannot show; the call where it is none's fault."""
        for i, each in enumerate(elements):
            try:
                format_text(text.value, values[: i + 1])
            except CelError as error:
                if str(error).startswith("error during formatting"):
                    return each.id
        return call.id


def qualified(node: Node) -> str:
    """ "a.b.c" of selections from an identifier; "" of everything else."""
    names: list[str] = []
    while isinstance(node, Select) and not node.test:
        names.append(node.field)
        node = node.operand
    if not isinstance(node, Ident):
        return ""
    return ".".join((node.name, *reversed(names)))


def children(node: Node) -> list[Node]:
    match node:
        case Select():
            return [node.operand]
        case Call():
            return [*([node.target] if node.target is not None else ()), *node.args]
        case ListNode():
            return node.elements
        case MapNode() | Struct():
            return [each for entry in node.entries for each in (entry.key, entry.value) if each is not None]
        case Comprehension():
            return [node.range, node.accu_init, node.condition, node.step, node.result]
    return []
