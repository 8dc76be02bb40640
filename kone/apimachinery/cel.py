"""CEL expressions, as upstream's API server takes them: declare variables, compile, evaluate on JSON.

    env = Environment({"object": DYN, "request": struct_type("kubernetes.AdmissionRequest")}, structs=…)
    program = env.compile("object.spec.replicas <= 5")      # CelSyntaxError: upstream's "ERROR: <input>:1:1: …"
    result = program.evaluate({"object": obj, "request": request})
    result.value, result.cost                                # CelError: upstream's "no such key: spec"

An environment is made once and kept; so is a program. The functions are those of upstream v1.37's environments
(k8s.io/apiserver, pkg/cel/environment/base.go).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from kone.apimachinery.cel_checker import Checked, Checker, children
from kone.apimachinery.cel_cost import Sizes, estimated_cost
from kone.apimachinery.cel_eval import CostExceeded, Frame, Lazy, plan
from kone.apimachinery.cel_functions import Functions
from kone.apimachinery.cel_syntax import CelProgramError, CelSyntaxError, Node, parse
from kone.apimachinery.cel_types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    NULL,
    STRING,
    TIMESTAMP,
    UNSPECIFIED,
    FieldTable,
    Structs,
    Type,
    list_of,
    map_of,
    optional_of,
    struct_type,
)
from kone.apimachinery.cel_values import CelError, Opaque

__all__ = [
    "BOOL",
    "BYTES",
    "DOUBLE",
    "DURATION",
    "DYN",
    "INT",
    "MATCH_CONDITIONS_BUDGET",
    "NULL",
    "PER_CALL_LIMIT",
    "RUNTIME_BUDGET",
    "STRING",
    "TIMESTAMP",
    "UNSPECIFIED",
    "CelError",
    "CelProgramError",
    "CelSyntaxError",
    "CostExceeded",
    "Environment",
    "FieldTable",
    "Lazy",
    "Opaque",
    "Program",
    "Result",
    "Structs",
    "Type",
    "list_of",
    "map_of",
    "optional_of",
    "struct_type",
]

PER_CALL_LIMIT: Final = 1_000_000  # of one expression
RUNTIME_BUDGET: Final = 10_000_000  # of one policy binding, or of one custom resource
MATCH_CONDITIONS_BUDGET: Final = 2_500_000  # of the match conditions of one webhook or binding


@dataclass(frozen=True, slots=True)
class Result:
    """What an expression gave (JSON values and cel_values'), and what it cost."""

    value: Any
    cost: int


class Program:
    """A compiled expression."""

    def __init__(self, source: str, checked: Checked) -> None:
        self.source = source
        self.type: Type = checked.result
        self._checked = checked
        self._run = plan(checked)

    @property
    def variables(self) -> frozenset[str]:
        """The declared variables that it reads, "oldSelf" as well as "authorizer.requestResource"."""
        return frozenset(self._checked.variables.values())

    def evaluate(self, values: Mapping[str, Any], *, limit: int = PER_CALL_LIMIT) -> Result:
        """Raises CelError, CostExceeded where it costs more than `limit`."""
        frame = Frame(values, limit)
        try:
            return Result(self._run(frame), frame.cost)
        except RecursionError:
            raise CelError("expression recursion limit exceeded") from None

    def estimated_cost(self, sizes: Sizes) -> int:
        """The most that an evaluation costs, where what lies at a path is at most as large as `sizes` says."""
        return estimated_cost(self._checked, sizes)

    def nodes(self) -> Iterator[Node]:
        pending = [self._checked.parsed.root]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(children(node))


@cache
def base_functions() -> Functions:
    from kone.apimachinery.cel_kubernetes import KUBERNETES
    from kone.apimachinery.cel_standard import STANDARD

    return Functions(STANDARD, KUBERNETES)


class Environment:
    """Variables and structs that expressions may speak of; upstream's functions, and `functions` besides."""

    def __init__(
        self, variables: Mapping[str, Type], *, structs: Structs | None = None, functions: Functions | None = None
    ) -> None:
        self.variables = dict(variables)
        self.structs: Structs = structs or FieldTable()
        self._extra = functions

    @property
    def functions(self) -> Functions:
        base = base_functions()
        return base if self._extra is None else Functions(base, self._extra)

    def compile(self, source: str) -> Program:
        """Raises CelSyntaxError."""
        return Program(source, Checker(parse(source), self.variables, self.functions, self.structs).run())
