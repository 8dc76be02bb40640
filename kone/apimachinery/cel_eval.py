"""Evaluation: a checked tree becomes nested Python closures, once; each evaluation counts what it costs.

Costs are upstream's units (cel-go, interpreter/runtimecost.go): a name or selection costs 1, a list 10, a map 30, a
message 40, a call what its function says or 1. An evaluation that costs more than its limit is cut off.

What upstream's optimizer works out beforehand costs nothing: lists and maps of constants, conversions of a constant,
and the search in a list of constants (interpreter/decorators.go). A name with what is selected from it is one
attribute, whose root is not counted where it is a branch of a condition or a key, and is where it is no name; a call
whose arguments fail has cost nonetheless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kone.apimachinery.cel_checker import Checked
from kone.apimachinery.cel_functions import Overload
from kone.apimachinery.cel_standard import contains, index, optional_index, shown
from kone.apimachinery.cel_syntax import (
    Call,
    CelProgramError,
    Comprehension,
    Entry,
    Ident,
    ListNode,
    Literal,
    MapNode,
    Node,
    Select,
    Struct,
)
from kone.apimachinery.cel_types import is_optional
from kone.apimachinery.cel_values import (
    NONE,
    CelError,
    Message,
    Opaque,
    Optional,
    TypeValue,
    UInt,
    mapping_key,
    no_overload,
    walk,
)
from kone.apimachinery.go_regexp import compile_go

LIST_COST, MAP_COST, STRUCT_COST = 10, 30, 40
_FOLDING_LIMIT = 1 << 62


class CostExceeded(CelError):
    """An evaluation was cut off."""


class Frame:
    """One evaluation: the variables, what it cost so far, what it may cost."""

    __slots__ = ("cost", "limit", "values")

    def __init__(self, values: Mapping[str, Any], limit: int) -> None:
        self.values: dict[str, Any] = dict(values)
        self.cost, self.limit = 0, limit

    def charge(self, cost: int) -> None:
        self.cost += cost
        if self.cost > self.limit:
            raise CostExceeded("operation cancelled: actual cost limit exceeded")


class Lazy:
    """A struct whose fields are made when first read: `read(field)` answers the value or raises."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self.read = read


Run = Callable[[Frame], Any]


def plan(checked: Checked) -> Run:
    return _Planner(checked).plan(checked.parsed.root)


_CONVERSIONS = frozenset(("type", "bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "uint"))


_SELECTORS = frozenset(("_[_]", "_[?_]", "_?._"))
_COST_BY_OVERLOAD = frozenset(
    ("_+_", "_<_", "_<=_", "_>_", "_>=_", "@in", "string", "bytes", "sort", "@sortByAssociatedKeys")
)
"""What costs 1 where the types of its arguments are not known beforehand."""


class _Planner:
    def __init__(self, checked: Checked) -> None:
        self.checked = checked
        self._constants: dict[int, Any] = {}  # by the identity of the node

    def plan(self, node: Node, *, root: int = 1) -> Run:
        """`root` is what the name costs that an attribute begins with."""
        run = self._plan(node, root)
        if self._is_foldable(node):
            try:
                value = run(Frame({}, _FOLDING_LIMIT))
            except CelError as error:
                if isinstance(node, Call):
                    raise CelProgramError(str(error)) from None
                return run  # a map with a key twice fails when it is evaluated
            self._constants[id(node)] = value
            return _constant(value)
        return run

    def _is_foldable(self, node: Node) -> bool:
        """Whether its value is known now."""
        match node:
            case Literal():
                return True
            case Ident() | Select():
                return node.id in self.checked.type_idents and node.id not in self.checked.variables
            case ListNode():
                return all(id(each) in self._constants for each in node.elements)
            case MapNode():
                parts = [part for entry in node.entries for part in (entry.key, entry.value)]
                return all(id(part) in self._constants for part in parts)
            case Call():
                return node.function in _CONVERSIONS and [id(each) in self._constants for each in node.args] == [True]
        return False

    def _plan(self, node: Node, root: int) -> Run:
        variable = self.checked.variables.get(node.id)
        if variable is not None:
            return _variable(variable, root)
        type_ident = self.checked.type_idents.get(node.id)
        if type_ident is not None:
            return _constant(TypeValue(type_ident))
        match node:
            case Literal():
                return _constant(UInt(node.value) if node.kind == "uint" else node.value)
            case Ident():
                return _variable(node.name, root)
            case Select():
                return _has(self.plan(node.operand), node.field) if node.test else self._select(node, root)
            case Call():
                return self._call(node, root)
            case ListNode():
                return _list([(self.plan(each), i in node.optional) for i, each in enumerate(node.elements)])
            case MapNode():
                return _map([(self.plan(e.key), self.plan(e.value), e.optional) for e in node.entries if e.key])
            case Struct():
                return _struct(node.name, [self._field(entry) for entry in node.entries])
            case Comprehension():
                return self._comprehension(node)
        raise AssertionError(node)

    def _field(self, entry: Entry) -> tuple[str, Run, bool]:
        return entry.name, self.plan(entry.value), entry.optional

    def _select(self, node: Select, root: int) -> Run:
        operand, extra = self._operand(node.operand, root)
        if is_optional(self.checked.types[node.operand.id]):
            return _optional_select(operand, node.field, extra)
        return _select(operand, node.field, extra)

    def _operand(self, node: Node, root: int) -> tuple[Run, int]:
        """(what is selected from, what the root costs where it is no name)."""
        if isinstance(node, Ident | Select) or (isinstance(node, Call) and node.function in _SELECTORS):
            return self.plan(node, root=root), 0
        return self.plan(node), root

    def _call(self, node: Call, root: int) -> Run:
        if node.function == "_?._":
            field = node.args[1]
            assert isinstance(field, Literal)
            operand, extra = self._operand(node.args[0], root)
            return _optional_select(operand, field.value, extra)
        if node.function in ("_[_]", "_[?_]"):
            operand, extra = self._operand(node.args[0], root)
            key = self.plan(node.args[1], root=0)
            if node.function == "_[?_]":
                return _index_where_present(operand, key, extra)
            if is_optional(self.checked.types[node.args[0].id]):
                return _optional_index(operand, key, extra)
            return _index(operand, key, extra)
        if node.function == "_?_:_":
            return _conditional(self.plan(node.args[0]), *(self.plan(each, root=0) for each in node.args[1:]))
        resolved = self.checked.functions.get(node.id)
        # "&&" and "||" take any number of operands and have no overloads to choose from.
        _, overloads, member = resolved if resolved is not None else ("", [], False)
        nodes = [node.target, *node.args] if member and node.target is not None else node.args
        args = [self.plan(each) for each in nodes]
        match node.function:
            case "find" | "findAll" if isinstance(node.args[0], Literal):
                try:
                    compile_go(node.args[0].value)
                except ValueError as error:
                    raise CelProgramError(str(error)) from None
            case "_&&_":
                return _and(args)
            case "_||_":
                return _or(args)
            case "@not_strictly_false":
                return _not_strictly_false(args[0])
            case "@in" if (found := self._constants.get(id(node.args[1]))) is not None and isinstance(found, list):
                if not found:
                    return _constant(False)
                if all(isinstance(each, str | int | float | None) for each in found):
                    return _member(args[0], found)
            case "or" | "orValue" if member:
                return _otherwise(args[0], args[1], unwrap=node.function == "orValue")
        is_known = len(overloads) == 1 or node.function not in _COST_BY_OVERLOAD
        return _function(overloads, args, is_known)

    def _comprehension(self, node: Comprehension) -> Run:
        over, init = self.plan(node.range), self.plan(node.accu_init)
        condition, step, result = self.plan(node.condition), self.plan(node.step), self.plan(node.result)
        accu, first, second = node.accu_var, node.iter_var, node.iter_var2

        def run(frame: Frame) -> Any:
            found = over(frame)
            values = frame.values
            shadowed = [(name, values[name]) for name in (accu, first, second) if name in values]
            start = init(frame)
            try:
                values[accu] = start
                for i, each in enumerate(walk(found)):
                    if second:
                        values[first], values[second] = (each, found[each]) if isinstance(found, dict) else (i, each)
                    else:
                        values[first] = each
                    if not condition(frame):
                        break
                    try:
                        values[accu] = step(frame)
                    except CostExceeded:
                        raise
                    except CelError as error:
                        values[accu] = error
                return result(frame)
            finally:
                for name in (accu, first, second):
                    values.pop(name, None)
                values.update(shadowed)

        return run


def _constant(value: Any) -> Run:
    return lambda frame: value


def _variable(name: str, cost: int) -> Run:
    def run(frame: Frame) -> Any:
        frame.charge(cost)
        try:
            value = frame.values[name]
        except KeyError:
            raise CelError(f"no such attribute(s): {name}") from None
        if isinstance(value, CelError):
            raise value
        return value

    return run


def read(found: Any, name: str) -> Any:
    """found.name"""
    if isinstance(found, Optional):
        found = found.value if found.present else {}
    if isinstance(found, dict):
        try:
            return found[name]
        except KeyError:
            raise CelError(f"no such key: {name}") from None
    if isinstance(found, Lazy):
        return found.read(name)
    if isinstance(found, list | Opaque):
        raise no_overload()
    raise CelError(f"no such key: {name}")


def _select(operand: Run, name: str, extra: int) -> Run:
    def run(frame: Frame) -> Any:
        found = operand(frame)
        frame.charge(1 + extra)
        return read(found, name)

    return run


def _optional_select(operand: Run, name: str, extra: int) -> Run:
    """What is not there costs nothing."""

    def run(frame: Frame) -> Optional:
        found = operand(frame)
        frame.charge(extra)
        if isinstance(found, Optional):
            if not found.present:
                return NONE
            found = found.value
        if isinstance(found, dict):
            if name not in found:
                return NONE
            frame.charge(1)
            return Optional(found[name])
        if isinstance(found, Lazy):
            frame.charge(1)
            return Optional(found.read(name))
        raise no_overload()

    return run


def _has(operand: Run, name: str) -> Run:
    def run(frame: Frame) -> bool:
        found = operand(frame)
        if isinstance(found, Optional):
            found = found.value if found.present else {}
        if isinstance(found, Lazy):
            return True
        if not isinstance(found, dict):
            raise no_overload()
        return name in found

    return run


def _index(operand: Run, at: Run, extra: int) -> Run:
    def run(frame: Frame) -> Any:
        found, key = operand(frame), at(frame)
        frame.charge(1 + extra)
        return index(found, key)

    return run


def _optional_index(operand: Run, at: Run, extra: int) -> Run:
    def run(frame: Frame) -> Optional:
        found, key = operand(frame), at(frame)
        frame.charge(1 + extra)
        return Optional(index(found.value, key)) if found.present else NONE

    return run


def _index_where_present(operand: Run, at: Run, extra: int) -> Run:
    def run(frame: Frame) -> Optional:
        found = optional_index(operand(frame), at(frame))
        frame.charge(extra + found.present)
        return found

    return run


def _boolean(run: Run, frame: Frame) -> bool | CelError:
    try:
        value = run(frame)
    except CostExceeded:
        raise
    except CelError as error:
        return error
    return value if isinstance(value, bool) else no_overload()


def _short_circuit(args: list[Run], decisive: bool) -> Run:
    def run(frame: Frame) -> bool:
        error: CelError | None = None
        for arg in args:
            value = _boolean(arg, frame)
            if value is decisive:
                return decisive
            if isinstance(value, CelError) and error is None:
                error = value
        if error is not None:
            raise error
        return not decisive

    return run


def _and(args: list[Run]) -> Run:
    return _short_circuit(args, False)


def _or(args: list[Run]) -> Run:
    return _short_circuit(args, True)


def _conditional(condition: Run, then: Run, otherwise: Run) -> Run:
    def run(frame: Frame) -> Any:
        value = condition(frame)
        if not isinstance(value, bool):
            raise no_overload()
        return then(frame) if value else otherwise(frame)

    return run


def _not_strictly_false(arg: Run) -> Run:
    def run(frame: Frame) -> bool:
        found = _boolean(arg, frame)
        frame.charge(1)
        return found is not False

    return run


def _otherwise(left: Run, right: Run, *, unwrap: bool) -> Run:
    def run(frame: Frame) -> Any:
        found = left(frame)
        if not isinstance(found, Optional):
            raise no_overload()
        if found.present:
            return found.value if unwrap else found
        return right(frame)

    return run


def _function(overloads: list[Overload], args: list[Run], is_known: bool) -> Run:
    """`is_known`: what the call costs does not depend on an overload that is only chosen now."""

    def run(frame: Frame) -> Any:
        values: list[Any] = []
        try:
            for arg in args:
                values.append(arg(frame))
        except CostExceeded:
            raise
        except CelError:
            if len(args) == 2 and not values:
                _boolean(args[1], frame)  # both operands are evaluated, whatever the first gives
            frame.charge(1)
            raise
        for overload in overloads:
            if overload.takes(values):
                cost = overload.cost if is_known else None
                try:
                    result = overload.implementation(*values)
                except CelError:
                    frame.charge(cost(values, None) if cost is not None else 1)
                    raise
                frame.charge(cost(values, result) if cost is not None else 1)
                return result
        raise no_overload()

    return run


def _member(item: Run, found: list[Any]) -> Run:
    """Whether a list of simple constants has the value."""
    return lambda frame: contains(item(frame), found)


def _list(elements: list[tuple[Run, bool]]) -> Run:
    def run(frame: Frame) -> list[Any]:
        out = []
        for element, optional in elements:
            value = element(frame)
            if not optional:
                out.append(value)
            elif value.present:
                out.append(value.value)
        frame.charge(LIST_COST)
        return out

    return run


def _map(entries: list[tuple[Run, Run, bool]]) -> Run:
    def run(frame: Frame) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        for key_run, value_run, optional in entries:
            key, value = mapping_key(key_run(frame)), value_run(frame)
            if key in out:
                raise CelError(f"Failed with repeated key: {shown(key)}")
            if not optional:
                out[key] = value
            elif value.present:
                out[key] = value.value
        frame.charge(MAP_COST)
        return out

    return run


def _struct(name: str, fields: list[tuple[str, Run, bool]]) -> Run:
    def run(frame: Frame) -> Message:
        out = Message()
        out.name = name
        for field, value_run, optional in fields:
            value = value_run(frame)
            if not optional:
                out[field] = value
            elif value.present:
                out[field] = value.value
        frame.charge(STRUCT_COST)
        return out

    return run
