"""What an expression may cost at most, told before it runs: the sizes of what it reads come from schemas.

A rule whose estimate is over a limit is refused when it is written, so that no object is ever too dear to judge. The
estimate is cel-go's (checker/cost.go), in the units of cel_eval; what functions cost is in cel_call_costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kone.apimachinery.cel_call_costs import Argument, call_cost
from kone.apimachinery.cel_checker import Checked
from kone.apimachinery.cel_ranges import ONE, UNKNOWN, ZERO, Range, fixed
from kone.apimachinery.cel_syntax import (
    Call,
    Comprehension,
    Ident,
    ListNode,
    Literal,
    MapNode,
    Node,
    Select,
    Struct,
)
from kone.apimachinery.cel_types import Type

LIST_COST, MAP_COST, STRUCT_COST = fixed(10), fixed(30), fixed(40)
ITEMS, KEYS, VALUES, INDICES = "@items", "@keys", "@values", "@indices"
_ACCUMULATORS = ("__result__", "@result")
_FIXED = frozenset(("bool", "double", "duration", "int", "timestamp", "uint"))


@dataclass(slots=True)
class Extent:
    """How large a value can be: `most` characters, bytes, items or entries, and at the least `least_bytes` of JSON."""

    most: int = 0
    least_bytes: int = 2
    element: Extent | None = None
    key: Extent | None = None
    fields: Mapping[str, Extent] = field(default_factory=dict)
    selectable: bool = False
    """Of a map: whether its entries are selected like fields."""

    def reach(self, path: Sequence[str]) -> int | None:
        """The size of what lies at a path of fields and @items, @keys, @values; None where that is not known."""
        found = self
        for step in path:
            if step in (ITEMS, VALUES):
                below = found.element
            elif step == KEYS:
                below = found.key
            else:
                below = found.fields.get(step) or (found.element if found.selectable else None)
            if below is None:
                return None
            found = below
        return found.most


Sizes = Callable[[Sequence[str]], int | None]
"""The size of what lies at a path, whose first step is a variable; None where that is not known."""


def estimated_cost(checked: Checked, sizes: Sizes) -> int:
    """The most that one evaluation costs, 2^64-1 at the most."""
    return _Estimator(checked, sizes).cost(checked.parsed.root).most


@dataclass(frozen=True, slots=True)
class _Entries:
    """The sizes of a container's keys and values."""

    is_list: bool
    key: Range
    value: Range

    def union(self, other: _Entries | None) -> _Entries | None:
        if other is None:
            return None
        return _Entries(self.is_list, self.key.union(other.key), self.value.union(other.value))


@dataclass(frozen=True, slots=True)
class _Local:
    path: tuple[str, ...]
    size: Range | None
    entries: _Entries | None


class _Estimator:
    def __init__(self, checked: Checked, sizes: Sizes) -> None:
        self._checked = checked
        self._look_up = sizes
        self._paths: dict[int, tuple[str, ...]] = {}
        self._sizes: dict[int, Range] = {}
        self._entries: dict[int, _Entries] = {}
        self._locals: dict[str, list[_Local]] = {}

    def cost(self, node: Node) -> Range:
        variable = self._checked.variables.get(node.id)
        if variable is not None and isinstance(node, Select):
            self._paths[node.id] = (variable,)
            return ONE
        match node:
            case Literal():
                return ZERO
            case Ident():
                self._paths[node.id] = self._local(node.name).path if self._locals.get(node.name) else (node.name,)
                return ONE
            case Select():
                return self._select(node)
            case Call():
                return self._call(node)
            case ListNode():
                return self._list(node)
            case MapNode():
                return self._map(node)
            case Struct():
                return _sum(self.cost(entry.value) for entry in node.entries) + STRUCT_COST
            case Comprehension():
                return self._bind(node) if _is_bind(node) else self._comprehension(node)
        raise AssertionError(node)

    def _type(self, node: Node) -> Type:
        return self._checked.types[node.id]

    def _select(self, node: Select) -> Range:
        found = self.cost(node.operand)
        if node.test:
            return found  # has() is free
        if self._type(node.operand).kind in ("map", "struct", "param"):
            found = found + ONE
        self._paths[node.id] = (*self._path(node.operand), node.field)
        return found

    # -- calls -----------------------------------------------------------------------------------------------------

    def _call(self, node: Call) -> Range:
        if node.function == "dyn":
            cost = ONE + self.cost(node.args[0])
            self._copy(node, node.args[0])
            return cost
        costs = [self.cost(arg) for arg in node.args]
        if node.function in ("_&&_", "_||_"):
            self._remember(node, self._size(node))
            return Range(costs[0].least, _sum(costs).most)  # the first may decide
        _, overloads, member = self._checked.functions.get(node.id, ("", [], False))
        if not overloads and node.function != "_?._":
            return ZERO
        args = [self._argument(arg) for arg in node.args]
        total, target = ZERO, None
        if member and node.target is not None:
            total, target = self.cost(node.target), self._argument(node.target)
        if node.function == "_?_:_":
            return self._conditional(node, costs, args)
        spread: Range | None = None
        size: Range | None = None
        for overload in overloads:
            called = call_cost(node.function, overload, target, args)
            spread = called.cost if spread is None else spread.union(called.cost)
            if called.size is not None:
                size = called.size if size is None else size.union(called.size)
            size = self._indexed(node, overload.args[0].kind if overload.args else "", size)
            if size is None:
                size = self._size(node)
        if node.function == "_+_" and (joined := self._joined(node.args[0], node.args[1])) is not None:
            self._entries[node.id] = joined
        self._remember(node, size)
        return total + (spread or ONE) + _sum(costs)

    def _indexed(self, node: Call, kind: str, size: Range | None) -> Range | None:
        """Where an index leads, and the size of what is there."""
        if node.function != "_[_]" or kind not in ("list", "map"):
            return size
        entries = self._entries_of(node.args[0])
        self._paths[node.id] = (*self._path(node.args[0]), ITEMS if kind == "list" else VALUES)
        return None if entries is None else entries.value

    def _conditional(self, node: Call, costs: list[Range], args: list[Argument]) -> Range:
        self._remember(node, args[1].size_or_unknown.union(args[2].size_or_unknown))
        if (joined := self._joined(node.args[1], node.args[2])) is not None:
            self._entries[node.id] = joined
        return costs[0] + costs[1].union(costs[2])

    def _joined(self, one: Node, other: Node) -> _Entries | None:
        first = self._entries_of(one)
        return None if first is None else first.union(self._entries_of(other))

    def _argument(self, node: Node) -> Argument:
        path = self._path(node)
        if path and path[0] in _ACCUMULATORS:
            path = ()
        literal = node.value if isinstance(node, Literal) else None
        return Argument(self._type(node), self._size(node), literal, lambda: self._element_size(path))

    def _element_size(self, path: tuple[str, ...]) -> Range:
        most = self._look_up((*path, ITEMS)) if path else None
        return UNKNOWN if most is None else Range(0, most)

    # -- containers ------------------------------------------------------------------------------------------------

    def _list(self, node: ListNode) -> Range:
        cost = _sum(self.cost(each) for each in node.elements)
        self._entries[node.id] = _Entries(True, ONE, self._spread(node.elements))
        return cost + LIST_COST

    def _map(self, node: MapNode) -> Range:
        cost = ZERO
        keys = [entry.key for entry in node.entries if entry.key is not None]
        values = [entry.value for entry in node.entries]
        for key, value in zip(keys, values, strict=True):
            cost = cost + self.cost(key) + self.cost(value)
        self._entries[node.id] = _Entries(False, self._spread(keys), self._spread(values))
        return cost + MAP_COST

    def _spread(self, nodes: Sequence[Node]) -> Range:
        found: Range | None = None
        for node in nodes:
            size = self._size(node) or UNKNOWN
            found = size if found is None else found.union(size)
        return found or ZERO

    # -- comprehensions --------------------------------------------------------------------------------------------

    def _bind(self, node: Comprehension) -> Range:
        cost = self.cost(node.range) + self.cost(node.accu_init)
        self._push_value(node.accu_var, node.accu_init)
        cost = cost + self.cost(node.result)
        self._locals[node.accu_var].pop()
        self._copy(node, node.result)
        return cost

    def _comprehension(self, node: Comprehension) -> Range:
        cost = self.cost(node.range) + self.cost(node.accu_init)
        self._push_value(node.accu_var, node.accu_init)
        entries = self._entries_of(node.range)
        is_list = entries.is_list if entries is not None else self._type(node.range).kind == "list"
        over = self._path(node.range)
        key = _Local((*over, INDICES if is_list else KEYS), entries.key if entries else None, None)
        value = _Local((*over, ITEMS if is_list else VALUES), entries.value if entries else None, None)
        loops = {node.iter_var: key, node.iter_var2: value} if node.iter_var2 else {node.iter_var: value}
        if not node.iter_var2 and not is_list:
            loops = {node.iter_var: key}
        for name, local in loops.items():
            self._locals.setdefault(name, []).append(local)
        once = self.cost(node.condition) + self.cost(node.step)
        for name in loops:
            self._locals[name].pop()
        cost = cost + self.cost(node.result)
        self._locals[node.accu_var].pop()
        count = self._size(node.range) or UNKNOWN
        if isinstance(node.accu_init, Literal):
            self._remember(node, self._size(node.accu_init))
        elif isinstance(node.accu_init, ListNode | MapNode):
            self._remember(node, count)
            if (stepped := self._entries_of(node.step)) is not None:
                self._entries[node.id] = stepped
        return cost + count.times(once)

    def _push_value(self, name: str, node: Node) -> None:
        local = _Local(self._path(node), self._size(node), self._entries_of(node))
        self._locals.setdefault(name, []).append(local)

    # -- what is known of nodes ------------------------------------------------------------------------------------

    def _local(self, name: str) -> _Local:
        return self._locals[name][-1]

    def _path(self, node: Node) -> tuple[str, ...]:
        if isinstance(node, Ident) and self._locals.get(node.name):
            return self._local(node.name).path
        return self._paths.get(node.id, ())

    def _remember(self, node: Node, size: Range | None) -> None:
        if size is not None:
            self._sizes[node.id] = size

    def _copy(self, node: Node, source: Node) -> None:
        self._remember(node, self._size(source))
        if (entries := self._entries_of(source)) is not None:
            self._entries[node.id] = entries

    def _entries_of(self, node: Node) -> _Entries | None:
        if node.id in self._entries:
            return self._entries[node.id]
        return self._local(node.name).entries if isinstance(node, Ident) and self._locals.get(node.name) else None

    def _size(self, node: Node) -> Range | None:
        known = self._sizes.get(node.id)
        if known is not None:
            return known
        if isinstance(node, Literal):
            return fixed(len(node.value) if node.kind in ("string", "bytes") else 1)
        if isinstance(node, ListNode):
            return fixed(len(node.elements))
        if isinstance(node, MapNode):
            return fixed(len(node.entries))
        path = self._path(node)
        most = self._look_up(path) if path else None
        if most is not None:
            found = self._sizes[node.id] = Range(0, most)
            return found
        if _is_fixed(self._type(node)):
            return ONE
        return self._local(node.name).size if isinstance(node, Ident) and self._locals.get(node.name) else None


def _sum(costs: Iterable[Range]) -> Range:
    total = ZERO
    for cost in costs:
        total = total + cost
    return total


def _is_fixed(found: Type) -> bool:
    return found.kind in _FIXED or (found.name == "optional_type" and _is_fixed(found.params[0]))


def _is_bind(node: Comprehension) -> bool:
    """cel.bind(): a comprehension over nothing that only names its start."""
    empty = isinstance(node.range, ListNode) and not node.range.elements
    never = isinstance(node.condition, Literal) and node.condition.value is False
    return empty and never and node.accu_var not in _ACCUMULATORS
