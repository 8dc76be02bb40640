"""Evaluation: a checked tree becomes nested Python closures, once; each evaluation counts what it costs.

Costs are upstream's units (cel-go, interpreter/runtimecost.go): a name or selection costs 1, a list 10, a map 30, a
message 40, a call what its function says or 1. An evaluation that costs more than its limit is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kone.apimachinery.cel_checker import Checked
from kone.apimachinery.cel_functions import Overload
from kone.apimachinery.cel_standard import index, shown
from kone.apimachinery.cel_syntax import (
    Call,
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
    Optional,
    TypeValue,
    UInt,
    mapping_key,
    no_overload,
    walk,
)

LIST_COST, MAP_COST, STRUCT_COST = 10, 30, 40


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


class _Planner:
    def __init__(self, checked: Checked) -> None:
        self.checked = checked

    def plan(self, node: Node) -> Run:
        variable = self.checked.variables.get(node.id)
        if variable is not None:
            return _variable(variable)
        type_ident = self.checked.type_idents.get(node.id)
        if type_ident is not None:
            return _constant(TypeValue(type_ident))
        match node:
            case Literal():
                return _constant(UInt(node.value) if node.kind == "uint" else node.value)
            case Ident():
                return _variable(node.name)
            case Select():
                return _has(self.plan(node.operand), node.field) if node.test else self._select(node)
            case Call():
                return self._call(node)
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

    def _select(self, node: Select) -> Run:
        operand, name = self.plan(node.operand), node.field
        if is_optional(self.checked.types[node.operand.id]):
            return _optional_select(operand, name)
        return _select(operand, name)

    def _call(self, node: Call) -> Run:
        if node.function == "_?._":
            field = node.args[1]
            assert isinstance(field, Literal)
            return _optional_select(self.plan(node.args[0]), field.value)
        resolved = self.checked.functions.get(node.id)
        # "&&" and "||" take any number of operands and have no overloads to choose from.
        _, overloads, member = resolved if resolved is not None else ("", [], False)
        nodes = [node.target, *node.args] if member and node.target is not None else node.args
        args = [self.plan(each) for each in nodes]
        match node.function:
            case "_&&_":
                return _and(args)
            case "_||_":
                return _or(args)
            case "_?_:_":
                return _conditional(*args)
            case "@not_strictly_false":
                return _not_strictly_false(args[0])
            case "or" | "orValue" if member:
                return _otherwise(args[0], args[1], unwrap=node.function == "orValue")
            case "_[_]" if is_optional(self.checked.types[node.args[0].id]):
                return _optional_index(*args)
            case "_[_]":
                return _index(*args)
        return _function(overloads, args)

    def _comprehension(self, node: Comprehension) -> Run:
        over, init = self.plan(node.range), self.plan(node.accu_init)
        condition, step, result = self.plan(node.condition), self.plan(node.step), self.plan(node.result)
        accu, first, second = node.accu_var, node.iter_var, node.iter_var2

        def run(frame: Frame) -> Any:
            found = over(frame)
            values, saved = frame.values, dict(frame.values)
            try:
                values[accu] = init(frame)
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
                frame.values = saved

        return run


def _constant(value: Any) -> Run:
    return lambda frame: value


def _variable(name: str) -> Run:
    def run(frame: Frame) -> Any:
        frame.charge(1)
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
    raise no_overload()


def _select(operand: Run, name: str) -> Run:
    def run(frame: Frame) -> Any:
        found = operand(frame)
        frame.charge(1)
        return read(found, name)

    return run


def _optional_select(operand: Run, name: str) -> Run:
    def run(frame: Frame) -> Optional:
        found = operand(frame)
        frame.charge(1)
        if isinstance(found, Optional):
            if not found.present:
                return NONE
            found = found.value
        if isinstance(found, dict):
            return Optional(found[name]) if name in found else NONE
        if isinstance(found, Lazy):
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


def _index(operand: Run, at: Run) -> Run:
    def run(frame: Frame) -> Any:
        found, key = operand(frame), at(frame)
        frame.charge(1)
        return index(found, key)

    return run


def _optional_index(operand: Run, at: Run) -> Run:
    def run(frame: Frame) -> Optional:
        found, key = operand(frame), at(frame)
        frame.charge(1)
        return Optional(index(found.value, key)) if found.present else NONE

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
    return lambda frame: _boolean(arg, frame) is not False


def _otherwise(left: Run, right: Run, *, unwrap: bool) -> Run:
    def run(frame: Frame) -> Any:
        found = left(frame)
        frame.charge(1)
        if not isinstance(found, Optional):
            raise no_overload()
        if found.present:
            return found.value if unwrap else found
        return right(frame)

    return run


def _function(overloads: list[Overload], args: list[Run]) -> Run:
    def run(frame: Frame) -> Any:
        values = [arg(frame) for arg in args]
        for overload in overloads:
            if overload.takes(values):
                result = overload.implementation(*values)
                frame.charge(overload.cost(values, result) if overload.cost is not None else 1)
                return result
        raise no_overload()

    return run


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
