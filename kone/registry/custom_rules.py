"""x-kubernetes-validations: rules in CEL that a custom resource's schema puts on its values.

A definition's rules are compiled when they are judged, and once more when its first object is written; each is asked of
the value that it stands at, and of what that was before. Order and texts: k8s.io/apiextensions-apiserver,
pkg/apiserver/schema/cel (KEP-2876, KEP-4008).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any, Final

from kone.apimachinery import cel, cel_values
from kone.apimachinery.cel import Environment, FieldTable, Program, Type
from kone.apimachinery.cel_cost import Extent
from kone.apimachinery.errors import (
    OMITTED,
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
)
from kone.apimachinery.structural_schema import Structural
from kone.registry.rule_costs import Budget, extent, times_below, total_cost
from kone.registry.rules import Errors

WORD: Final = "x-kubernetes-validations"
MESSAGE_MAX: Final = 5120
NOT_CHECKED: Final = (
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation"
)
REASONS: Final = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")
_BLOCKING: Final = frozenset(("FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"))
_RESERVED: Final = frozenset(
    (
        *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if"),
        *("import", "let", "loop", "package", "namespace", "return", "var", "void", "while"),
    )
)
_PARTS: Final = (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__"))


def escaped(name: str) -> str:
    """A field's name as expressions write it: "a-b" is a__dash__b, "in" is __in__."""
    if name in _RESERVED:
        return f"__{name}__"
    pieces = re.split(r"(__|\.|-|/)", name)
    return "".join(dict(_PARTS).get(piece, piece) for piece in pieces)


# -- types and values -------------------------------------------------------------------------------------------------


class _Types:
    """The CEL type of each node; structs are named by their place."""

    def __init__(self) -> None:
        self.structs: dict[str, dict[str, Type]] = {}

    def of(self, node: Structural, place: str, *, root: bool = False) -> Type | None:
        """None for what expressions cannot see: values that nothing is known of."""
        if node.int_or_string:
            return cel.DYN
        if node.type == "array":
            element = self.of(node.items, f"{place}.@idx") if node.items is not None else None
            return cel.list_of(element) if element is not None else None
        if node.type == "object":
            return self._object(node, place, named=root or node.embedded)
        return _SCALARS.get((node.type, str(node.raw.get("format", "")))) or _SCALARS.get((node.type, ""))

    def _object(self, node: Structural, place: str, *, named: bool) -> Type | None:
        if node.additional is not None and node.additional is not False:
            value = self.of(node.values, f"{place}.@elem") if node.values is not None else None
            return cel.map_of(cel.STRING, value) if value is not None else None
        fields: dict[str, Type] = {}
        self.structs[place] = fields
        for name, below in node.properties.items():
            found = self.of(below, f"{place}.{name}")
            if found is not None:
                fields[escaped(name)] = found
        if named:
            self.structs[f"{place}.metadata"] = {"name": cel.STRING, "generateName": cel.STRING}
            fields |= {
                "apiVersion": cel.STRING,
                "kind": cel.STRING,
                "metadata": cel.struct_type(f"{place}.metadata"),
            }
        return cel.struct_type(place)


_SCALARS: Final[Mapping[tuple[str, str], Type]] = {
    ("string", ""): cel.STRING,
    ("string", "byte"): cel.BYTES,
    ("string", "date"): cel.TIMESTAMP,
    ("string", "date-time"): cel.TIMESTAMP,
    ("string", "duration"): cel.DURATION,
    ("boolean", ""): cel.BOOL,
    ("integer", ""): cel.INT,
    ("number", ""): cel.DOUBLE,
}


def to_cel(value: Any, node: Structural | None, *, named: bool = False) -> Any:
    """A JSON value as expressions see it: times and durations by their formats, fields by their escaped names."""
    if node is None or value is None:
        return value
    if isinstance(value, dict):
        if node.additional is not None and node.additional is not False:
            return {name: to_cel(item, node.values) for name, item in value.items()}
        shown = {
            escaped(name): to_cel(item, node.properties[name])
            for name, item in value.items()
            if name in node.properties and not ((named or node.embedded) and name == "metadata")
        }
        if named or node.embedded:
            shown |= {name: value[name] for name in ("apiVersion", "kind") if name in value}
            if isinstance(meta := value.get("metadata"), dict):
                shown["metadata"] = {name: meta[name] for name in ("name", "generateName") if name in meta}
        return shown
    if isinstance(value, list):
        items = [to_cel(item, node.items) for item in value]
        if node.list_type == "set":
            return cel_values.SetList(items)
        if node.list_type == "map":
            return cel_values.MapList(items, tuple(map(escaped, node.map_keys)))
        return items
    if isinstance(value, str):
        read = _READERS.get(str(node.raw.get("format", ""))) if node.type == "string" else None
        return value if read is None else read(value)
    return float(value) if node.type == "number" and not isinstance(value, bool) else value


def _bytes(text: str) -> Any:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return cel.CelError("illegal base64 data")


def _date(text: str) -> Any:
    try:
        return cel_values.parse_timestamp(f"{date.fromisoformat(text).isoformat()}T00:00:00Z")
    except ValueError:
        return cel.CelError(f"invalid date {text}")


_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "byte": _bytes,
    "date": _date,
    "date-time": lambda text: cel_values.parse_timestamp(text) or cel.CelError(f"invalid timestamp {text}"),
    "duration": lambda text: cel_values.parse_duration(text) or cel.CelError(f"invalid duration {text}"),
}


# -- compiled ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, ready to be asked."""

    text: str
    program: Program
    message: str
    message_program: Program | None
    reason: str
    field_path: str
    optional_old: bool

    @property
    def of_transition(self) -> bool:
        return "oldSelf" in self.program.variables

    @property
    def shown(self) -> str:
        return self.message or self.text


@dataclass(slots=True)
class RuleNode:
    """The rules at a place in a schema, and those below it; None stands for a part without any."""

    schema: Structural
    named: bool
    rules: list[Rule] = field(default_factory=list)
    properties: dict[str, RuleNode] = field(default_factory=dict)
    items: RuleNode | None = None
    values: RuleNode | None = None

    @property
    def empty(self) -> bool:
        return not (self.rules or self.properties or self.items or self.values)


class _Compiler:
    """Compiles the rules of a schema and notes what is wrong with them."""

    def __init__(self, budget: Budget | None = None) -> None:
        """`budget` is what the rules may cost, where that is judged."""
        self.findings: Errors = []
        self._budget = budget

    def node(
        self,
        schema: Structural,
        path: str,
        *,
        root: bool = False,
        uncorrelated: str = "",
        times: int | None = 1,
    ) -> RuleNode | None:
        """`uncorrelated` is the place from which on old and new cannot be told to belong together; `times`, how often
        the value can be there, None for without limit."""
        named = root or schema.embedded
        made = RuleNode(schema, named)
        below = times_below(schema, times)
        if schema.raw.get(WORD):
            types = _Types()
            own = types.of(schema, "selfType", root=root)
            size = extent(schema, root=named) if self._budget is not None else None
            for i, raw in enumerate(schema.raw[WORD]):
                spending = None if size is None else partial(self._spend, size, times)
                rule = self._rule(raw, f"{path}.{WORD}[{i}]", own, types, uncorrelated, schema, spending)
                if rule is not None:
                    made.rules.append(rule)
        for name, each in sorted(schema.properties.items()):
            found = self.node(each, f"{path}.properties[{name}]", uncorrelated=uncorrelated, times=below)
            if found is not None:
                made.properties[name] = found
        if schema.values is not None:
            made.values = self.node(
                schema.values, f"{path}.additionalProperties", uncorrelated=uncorrelated, times=below
            )
        if schema.items is not None:
            cut = uncorrelated or ("" if schema.list_type == "map" else path)
            made.items = self.node(schema.items, f"{path}.items", uncorrelated=cut, times=below)
        return None if made.empty else made

    def _spend(self, size: Extent, times: int | None, program: Program, path: str, *, of_message: bool) -> None:
        """Note what an expression on a value of that size costs; a message is made once."""
        assert self._budget is not None
        once = program.estimated_cost(lambda path: size.reach(path[1:]))
        cost, what = (once, "messageExpression") if of_message else (total_cost(once, times, size), "rule")
        if (finding := self._budget.spend(cost, path, what)) is not None:
            self.findings.append(finding)

    def _rule(
        self,
        raw: Mapping[str, Any],
        path: str,
        own: Type | None,
        types: _Types,
        uncorrelated: str,
        schema: Structural,
        spend: Callable[..., None] | None,
    ) -> Rule | None:
        text, message = str(raw.get("rule", "")).strip(), str(raw.get("message", "")).strip()
        expression = str(raw.get("messageExpression", "")).strip()
        before = len(self.findings)
        self._words(raw, path, text, message, schema)
        if len(self.findings) > before or not text or own is None:
            return None
        optional = bool(raw.get("optionalOldSelf"))
        variables = {"self": own, "oldSelf": cel.optional_of(own) if optional else own}
        environment = Environment(variables, structs=FieldTable(types.structs))
        shown = _internal_rule(raw)
        program = self._compiled(environment, text, f"{path}.rule", shown, "compilation failed: ")
        if program is not None and program.type != cel.BOOL:
            self.findings.append(invalid_value(f"{path}.rule", shown, "cel expression must evaluate to a bool"))
            program = None
        if program is not None and spend is not None:
            spend(program, f"{path}.rule", of_message=False)
        message_program = None
        if expression and program is not None:
            at = f"{path}.messageExpression"
            message_program = self._compiled(
                environment, expression, at, shown, "messageExpression compilation failed: "
            )
            if message_program is not None and message_program.type != cel.STRING:
                self.findings.append(invalid_value(at, shown, "messageExpression must evaluate to a string"))
            elif message_program is not None and spend is not None:
                spend(message_program, at, of_message=True)
        if program is None or "oldSelf" not in program.variables:
            if raw.get("optionalOldSelf") is not None:
                why = "may not be set if oldSelf is not used in rule"
                self.findings.append(invalid_value(f"{path}.optionalOldSelf", raw["optionalOldSelf"], why))
        elif uncorrelated:
            why = f"oldSelf cannot be used on the uncorrelatable portion of the schema within {uncorrelated}"
            self.findings.append(invalid_value(f"{path}.rule", raw["rule"], why))
        if program is None:
            return None
        return Rule(
            text,
            program,
            message,
            message_program,
            str(raw.get("reason") or "FieldValueInvalid"),
            _normalized(str(raw.get("fieldPath", ""))),
            optional,
        )

    def _compiled(self, environment: Environment, text: str, at: str, shown: Any, head: str) -> Program | None:
        try:
            return environment.compile(text)
        except cel.CelSyntaxError as error:
            self.findings.append(invalid_value(at, shown, f"{head}{error}"))
            return None

    def _words(self, raw: Mapping[str, Any], path: str, text: str, message: str, schema: Structural) -> None:
        add = self.findings.append
        if not text:
            add(required(f"{path}.rule", "rule is not specified"))
        elif raw.get("message") and not message:
            add(invalid_value(f"{path}.message", raw["message"], "must be non-empty if specified"))
        elif "\n" in message:
            add(invalid_value(f"{path}.message", raw["message"], "must not contain line breaks"))
        elif "\n" in text and not message:
            add(required(f"{path}.message", "message must be specified if rule contains line breaks"))
        if raw.get("messageExpression") and not str(raw["messageExpression"]).strip():
            add(required(f"{path}.messageExpression", "messageExpression must be non-empty if specified"))
        if raw.get("reason") is not None and raw["reason"] not in REASONS:
            add(not_supported(f"{path}.reason", raw["reason"], REASONS))
        if place := raw.get("fieldPath"):
            if not place.strip():
                add(invalid_value(f"{path}.fieldPath", place, "must be non-empty if specified"))
            if "\n" in place:
                add(invalid_value(f"{path}.fieldPath", place, "must not contain line breaks"))
            if not _leads_somewhere(schema, place):
                add(invalid_value(f"{path}.fieldPath", place, "must be a valid path"))


def _internal_rule(raw: Mapping[str, Any]) -> Any:
    """The rule as upstream prints it: its internal type, every field."""
    return {
        "Rule": raw.get("rule", ""),
        "Message": raw.get("message", ""),
        "MessageExpression": raw.get("messageExpression", ""),
        "Reason": raw.get("reason"),
        "FieldPath": raw.get("fieldPath", ""),
        "OptionalOldSelf": raw.get("optionalOldSelf"),
    }


_STEP: Final = re.compile(r"\.(?P<name>[^.\[\]]+)|\['(?P<key>[^']*)'\]")


def _steps(path: str) -> list[tuple[str, bool]] | None:
    """(name, whether it is a key of a map) of each step; None where it cannot be read."""
    found, position = [], 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            return None
        found.append((match["name"], False) if match["name"] is not None else (match["key"], True))
        position = match.end()
    return found


def _leads_somewhere(schema: Structural, path: str) -> bool:
    node: Structural | None = schema
    steps = _steps(path)
    for name, _ in steps or ():
        if node is None:
            return False
        node = node.properties.get(name) or node.values
    return bool(steps) and node is not None


def _normalized(path: str) -> str:
    """A rule's fieldPath as errors write it: ".m['x.y']" is ".m[x.y]"."""
    return "".join(f"[{name}]" if key else f".{name}" for name, key in _steps(path) or ())


def rule_findings(root: Structural, path: str, *, unchanged: bool = False) -> Errors:
    """What is wrong with the rules of a version's schema, which is sound otherwise. `unchanged`: it is as it was, so
    that no rule of it is too dear by itself."""
    budget = Budget(unchanged)
    compiler = _Compiler(budget)
    compiler.node(root, path, root=True)
    return [*compiler.findings, *budget.findings(path)]


def compiled(schema: Structural, *, root: bool = True) -> RuleNode | None:
    """The rules of a schema; None where it has none. Those that cannot be compiled are left out."""
    return _Compiler().node(schema, "", root=root)


# -- asked ------------------------------------------------------------------------------------------------------------


def is_blocked(findings: Errors) -> bool:
    """Whether what is wrong already keeps the rules from being asked."""
    return any(finding.kind in _BLOCKING for finding in findings)


class _Missing:
    """The old value of something that was not there, or cannot be told to belong to the new one."""


_MISSING: Final = _Missing()


def value_findings(rules: RuleNode, value: Any, old: Any = None) -> Errors:
    """What the rules say of an object; `old` is what it was, None at its creation."""
    budget = _Budget(cel.RUNTIME_BUDGET)
    found: Errors = []
    _ask(rules, value, _MISSING if old is None else old, "", found, budget)
    return found


@dataclass(slots=True)
class _Budget:
    left: int


def _ask(node: RuleNode, value: Any, old: Any, path: str, found: Errors, budget: _Budget) -> None:
    if value is None:
        return
    kind = node.schema.type or ("object" if isinstance(value, dict) else "")
    for rule in node.rules:
        if rule.of_transition and not rule.optional_old and old is _MISSING:
            continue
        if old is not _MISSING and old == value and not rule.of_transition:
            continue  # it is as it was: not this write's fault
        finding = _answer(rule, node, value, old, path, kind, budget)
        if finding is not None:
            found.append(finding)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, below in node.properties.items():
            if name in value:
                where = f"{path}.{name}" if path else name
                _ask(below, value[name], before.get(name, _MISSING), where, found, budget)
        if node.values is not None:
            for name in sorted(value):
                _ask(node.values, value[name], before.get(name, _MISSING), f"{path}[{name}]", found, budget)
    elif isinstance(value, list) and node.items is not None:
        known = _by_keys(old, node.schema)
        for i, item in enumerate(value):
            before_item = known.get(_keys_of(item, node.schema), _MISSING) if known else _MISSING
            _ask(node.items, item, before_item, f"{path}[{i}]", found, budget)


def _by_keys(old: Any, schema: Structural) -> dict[Any, Any]:
    if not isinstance(old, list) or schema.list_type != "map":
        return {}
    return {_keys_of(item, schema): item for item in old}


def _keys_of(item: Any, schema: Structural) -> Any:
    if not isinstance(item, dict):
        return None
    return tuple(repr(item.get(key)) for key in schema.map_keys)


def _answer(
    rule: Rule, node: RuleNode, value: Any, old: Any, path: str, kind: str, budget: _Budget
) -> FieldError | None:
    place = path or "<nil>"
    own = to_cel(value, node.schema, named=node.named)
    variables: dict[str, Any] = {"self": own}
    if rule.of_transition:
        was = None if old is _MISSING else to_cel(old, node.schema, named=node.named)
        variables["oldSelf"] = cel_values.Optional(was, present=old is not _MISSING) if rule.optional_old else was
    if budget.left <= 0:
        why = "validation failed due to running out of cost budget, no further validation rules will be run"
        return invalid_value(place, kind, why)
    try:
        result = rule.program.evaluate(variables, limit=min(cel.PER_CALL_LIMIT, budget.left))
    except cel.CostExceeded:
        why = "no further validation rules will be run due to call cost exceeds limit for rule"
        text = "operation cancelled: actual cost limit exceeded"
        return invalid_value(place, kind, f"'{text}': {why}: {rule.shown}")
    except cel.CelError as error:
        if str(error).startswith("no such overload"):
            why = "call arguments did not match a supported operator, function or macro signature for rule"
            return invalid_value(place, kind, f"'{error}': {why}: {rule.shown}")
        return invalid_value(place, kind, f"{error} evaluating rule: {rule.shown}")
    budget.left -= result.cost
    if result.value is True:
        return None
    detail = _message(rule, variables)
    at = (path + rule.field_path).lstrip(".") if rule.field_path else place
    return _of_reason(rule.reason, at, OMITTED if kind in ("object", "array") else value, detail)


def _message(rule: Rule, variables: Mapping[str, Any]) -> str:
    """What the rule's expression says; what it is written to say where that is nothing fit to print."""
    default = rule.message or f"failed rule: {rule.text}"
    if rule.message_program is None:
        return default
    try:
        text = rule.message_program.evaluate(variables).value
    except cel.CelError:
        return default
    if not isinstance(text, str) or not text.strip() or "\n" in text.strip() or len(text) > MESSAGE_MAX:
        return default
    return text.strip()


def _of_reason(reason: str, path: str, value: Any, detail: str) -> FieldError:
    if reason == "FieldValueForbidden":
        return forbidden_field(path, detail)
    if reason == "FieldValueRequired":
        return required(path, detail)
    if reason == "FieldValueDuplicate":
        return duplicate(path, value)
    return invalid_value(path, value, detail)
