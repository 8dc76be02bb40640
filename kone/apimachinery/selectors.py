"""Label and field selectors: their text forms, their object form, and whether they match.

The grammar and the texts of its errors are those of k8s.io/apimachinery (pkg/labels, pkg/fields). A selector is parsed
once and asked often, so each requirement is a small tuple that `matches` walks without further calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kone.apimachinery.errors import aggregate, go_quote
from kone.apimachinery.names import is_qualified_name, is_valid_label_value

EXISTS, DOES_NOT_EXIST = "exists", "!"
EQUALS, DOUBLE_EQUALS, NOT_EQUALS = "=", "==", "!="
IN, NOT_IN = "in", "notin"
GREATER_THAN, LESS_THAN = "gt", "lt"

_POSITIVE = frozenset((IN, EQUALS, DOUBLE_EQUALS))
_NEGATIVE = frozenset((NOT_IN, NOT_EQUALS))


class Requirement(NamedTuple):
    """One condition on one label; `values` is empty for exists and "!"."""

    key: str
    operator: str
    values: frozenset[str]

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        operator = self.operator
        if operator in _POSITIVE:
            return value is not None and value in self.values
        if operator in _NEGATIVE:
            return value is None or value not in self.values
        if operator == EXISTS:
            return value is not None
        if operator == DOES_NOT_EXIST:
            return value is None
        bound = int(next(iter(self.values)))
        number = _int64(value) if value is not None else None
        if number is None:
            return False
        return number > bound if operator == GREATER_THAN else number < bound

    def __str__(self) -> str:
        if self.operator == EXISTS:
            return self.key
        if self.operator == DOES_NOT_EXIST:
            return f"!{self.key}"
        values = ",".join(sorted(self.values))
        if self.operator in (IN, NOT_IN):
            return f"{self.key} {self.operator} ({values})"
        sign = {GREATER_THAN: ">", LESS_THAN: "<"}.get(self.operator, self.operator)
        return f"{self.key}{sign}{values}"


class LabelSelector:
    """A conjunction of requirements. Prints as labels.Selector.String() does: sorted by key."""

    __slots__ = ("_equal", "nothing", "requirements")

    def __init__(self, requirements: Iterable[Requirement] = (), *, nothing: bool = False) -> None:
        self.requirements: tuple[Requirement, ...] = tuple(sorted(requirements, key=lambda r: r.key))
        self.nothing = nothing
        """A null selector: matches no object at all."""
        # Most selectors are plain equalities (services, replica sets): these are compared without a call each.
        plain = all(r.operator in _POSITIVE and len(r.values) == 1 for r in self.requirements)
        self._equal = tuple((r.key, next(iter(r.values))) for r in self.requirements) if plain else None

    @property
    def empty(self) -> bool:
        """Whether it selects everything."""
        return not self.nothing and not self.requirements

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        if self.nothing:
            return False
        labels = labels or {}
        if self._equal is not None:
            return all(labels.get(key) == value for key, value in self._equal)
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))

    def __repr__(self) -> str:
        return "LabelSelector(nothing)" if self.nothing else f"LabelSelector({str(self)!r})"


EVERYTHING: Final = LabelSelector()
NOTHING: Final = LabelSelector(nothing=True)


def _int64(text: str) -> int | None:
    """strconv.ParseInt(text, 10, 64), or None."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not (digits.isascii() and digits.isdigit()):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


def make_requirement(key: str, operator: str, values: Iterable[str], path: str = "<nil>") -> Requirement:
    """A checked requirement (labels.NewRequirement); `path` names the field in errors. Raises ValueError."""
    chosen = sorted(set(values))
    errors: list[str] = []
    shown = "[" + ",".join(map(go_quote, chosen)) + "]" if chosen else "[]"
    wrong = is_qualified_name(key)
    if wrong:
        errors.append(f"{_child(path, 'key')}: Invalid value: {go_quote(key)}: {'; '.join(wrong)}")
    where = _child(path, "values")
    if operator in (IN, NOT_IN):
        if not chosen:
            errors.append(f"{where}: Invalid value: {shown}: for 'in', 'notin' operators, values set can't be empty")
    elif operator in (EQUALS, DOUBLE_EQUALS, NOT_EQUALS):
        if len(chosen) != 1:
            errors.append(f"{where}: Invalid value: {shown}: exact-match compatibility requires one single value")
    elif operator in (EXISTS, DOES_NOT_EXIST):
        if chosen:
            errors.append(f"{where}: Invalid value: {shown}: values set must be empty for exists and does not exist")
    elif operator in (GREATER_THAN, LESS_THAN):
        if len(chosen) != 1:
            errors.append(f"{where}: Invalid value: {shown}: for 'Gt', 'Lt' operators, exactly one value is required")
        for i, value in enumerate(chosen):
            if _int64(value) is None:
                errors.append(
                    f"{where}[{i}]: Invalid value: {go_quote(value)}: "
                    "for 'Gt', 'Lt' operators, the value must be an integer"
                )
    for value in chosen:
        wrong = is_valid_label_value(value)
        if wrong:
            errors.append(f"{where}[0][{key}]: Invalid value: {go_quote(value)}: {'; '.join(wrong)}")
    if errors:
        raise ValueError(aggregate(errors))
    return Requirement(key, operator, frozenset(chosen))


def _child(path: str, name: str) -> str:
    return name if path == "<nil>" else f"{path}.{name}"


_OPERATORS: Mapping[str, str] = {"In": IN, "NotIn": NOT_IN, "Exists": EXISTS, "DoesNotExist": DOES_NOT_EXIST}


def from_label_selector(selector: Mapping[str, Any] | None) -> LabelSelector:
    """The selector that a metav1.LabelSelector object stands for: None matches nothing, {} everything.

    Raises ValueError (metav1.LabelSelectorAsSelector).
    """
    if selector is None:
        return NOTHING
    requirements = [Requirement(k, EQUALS, frozenset((v,))) for k, v in (selector.get("matchLabels") or {}).items()]
    for expression in selector.get("matchExpressions") or ():
        operator = _OPERATORS.get(expression.get("operator", ""))
        if operator is None:
            raise ValueError(f"{go_quote(expression.get('operator', ''))} is not a valid label selector operator")
        requirements.append(make_requirement(expression.get("key", ""), operator, expression.get("values") or ()))
    return LabelSelector(requirements)


def from_labels(labels: Mapping[str, str] | None) -> LabelSelector:
    """The selector of objects that carry all these labels (a Service's spec.selector); empty matches everything."""
    return LabelSelector(Requirement(k, EQUALS, frozenset((v,))) for k, v in (labels or {}).items())


_END = "end"
_IDENTIFIER = "identifier"
_SYMBOLS = frozenset((")", ",", "!", "(", "=", "==", "!=", ">", "<"))
_SPECIAL = frozenset("=!(),><")
_WHITESPACE = frozenset(" \t\r\n")
_BINARY = "in, notin, =, ==, !=, gt, lt"


class _Token(NamedTuple):
    kind: str
    text: str


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    i = 0
    while i < len(text):
        char = text[i]
        if char in _WHITESPACE:
            i += 1
        elif char in _SPECIAL:
            width = 2 if text[i : i + 2] in _SYMBOLS else 1
            symbol = text[i : i + width]
            found.append(_Token(symbol, symbol))
            i += width
        else:
            start = i
            while i < len(text) and text[i] not in _SPECIAL and text[i] not in _WHITESPACE:
                i += 1
            word = text[start:i]
            found.append(_Token(word if word in (IN, NOT_IN) else _IDENTIFIER, word))
    found.append(_Token(_END, ""))
    return found


class _LabelParser:
    """Recursive descent over the tokens. "in" and "notin" are keywords only where an operator may stand."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.position = 0

    def look(self) -> _Token:
        token = self.tokens[min(self.position, len(self.tokens) - 1)]
        return _Token(_IDENTIFIER, token.text) if token.kind in (IN, NOT_IN) else token

    def take(self) -> _Token:
        token = self.look()
        self.position += 1
        return token

    def parse(self) -> list[Requirement]:
        requirements: list[Requirement] = []
        while True:
            token = self.look()
            if token.kind == _END:
                return requirements
            if token.kind not in (_IDENTIFIER, "!"):
                raise ValueError(f"found '{token.text}', expected: !, identifier, or 'end of string'")
            try:
                requirements.append(self.requirement())
            except ValueError as error:
                raise ValueError(f"unable to parse requirement: {error}") from None
            token = self.take()
            if token.kind == _END:
                return requirements
            if token.kind != ",":
                raise ValueError(f"found '{token.text}', expected: ',' or 'end of string'")
            token = self.look()
            if token.kind not in (_IDENTIFIER, "!"):
                raise ValueError(f"found '{token.text}', expected: identifier after ','")

    def requirement(self) -> Requirement:
        token = self.take()
        negated = token.kind == "!"
        if negated:
            token = self.take()
        if token.kind != _IDENTIFIER:
            raise ValueError(f"found '{token.text}', expected: identifier")
        key = token.text
        wrong = is_qualified_name(key)
        if wrong:
            raise ValueError(f"<nil>: Invalid value: {go_quote(key)}: {'; '.join(wrong)}")
        if negated:
            return make_requirement(key, DOES_NOT_EXIST, ())
        if self.look().kind in (_END, ","):
            return make_requirement(key, EXISTS, ())
        operator = self.operator()
        values = self.values() if operator in (IN, NOT_IN) else self.exact_value()
        return make_requirement(key, operator, values)

    def operator(self) -> str:
        token = self.tokens[min(self.position, len(self.tokens) - 1)]
        self.position += 1
        if token.kind in (IN, NOT_IN, EQUALS, DOUBLE_EQUALS, NOT_EQUALS):
            return token.kind
        if token.kind == ">":
            return GREATER_THAN
        if token.kind == "<":
            return LESS_THAN
        raise ValueError(f"found '{token.text}', expected: {_BINARY}")

    def exact_value(self) -> list[str]:
        if self.look().kind in (_END, ","):
            return [""]
        token = self.take()
        if token.kind != _IDENTIFIER:
            raise ValueError(f"found '{token.text}', expected: identifier")
        return [token.text]

    def values(self) -> list[str]:
        token = self.take()
        if token.kind != "(":
            raise ValueError(f"found '{token.text}' expected: '('")
        token = self.look()
        if token.kind == ")":
            self.take()
            return []
        if token.kind not in (_IDENTIFIER, ","):
            raise ValueError(f"found '{token.text}', expected: ',', ')' or identifier")
        values = self.identifiers()
        token = self.take()
        if token.kind != ")":
            raise ValueError(f"found '{token.text}', expected: ')'")
        return values

    def identifiers(self) -> list[str]:
        values: list[str] = []
        while True:
            token = self.take()
            if token.kind == _IDENTIFIER:
                values.append(token.text)
                following = self.look()
                if following.kind == ")":
                    return values
                if following.kind != ",":
                    raise ValueError(f"found '{following.text}', expected: ',' or ')'")
            elif token.kind == ",":
                # An empty place between commas or at an end is the empty value.
                if not values:
                    values.append("")
                following = self.look()
                if following.kind == ")":
                    values.append("")
                    return values
                if following.kind == ",":
                    self.take()
                    values.append("")
            else:
                raise ValueError(f"found '{token.text}', expected: ',', or identifier")


def parse_label_selector(text: str) -> LabelSelector:
    """A selector as ?labelSelector= carries it; "" selects everything. Raises ValueError with upstream's text."""
    return LabelSelector(_LabelParser(text).parse())


class FieldRequirement(NamedTuple):
    field: str
    operator: str
    """"=" or "!="."""
    value: str


class FieldSelector:
    """A conjunction of equalities on fields that the resource offers; a field that is missing counts as ""."""

    __slots__ = ("requirements",)

    def __init__(self, requirements: Sequence[FieldRequirement] = ()) -> None:
        self.requirements: tuple[FieldRequirement, ...] = tuple(requirements)

    @property
    def empty(self) -> bool:
        return not self.requirements

    def exact(self, field: str) -> str | None:
        """The value that the selector requires of the field (fields.Selector.RequiresExactMatch)."""
        return next((r.value for r in self.requirements if r.field == field and r.operator == EQUALS), None)

    def matches(self, fields: Mapping[str, str]) -> bool:
        return all((fields.get(r.field, "") == r.value) is (r.operator == EQUALS) for r in self.requirements)

    def __str__(self) -> str:
        return ",".join(f"{r.field}{r.operator}{_escape_field(r.value)}" for r in self.requirements)


def _escape_field(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")


def parse_field_selector(text: str) -> FieldSelector:
    """A selector as ?fieldSelector= carries it: "a=b,c!=d". Raises ValueError with upstream's text."""
    requirements = []
    for term in sorted(_split_terms(text)):
        if not term:
            continue
        field, operator, value = _split_term(term, text)
        value = _unescape_field(value)
        if field or value:
            requirements.append(FieldRequirement(field, NOT_EQUALS if operator == NOT_EQUALS else EQUALS, value))
    return FieldSelector(requirements)


def _split_terms(text: str) -> list[str]:
    """Split at commas that no backslash precedes."""
    terms, start, escaped = [], 0, False
    for i, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == ",":
            terms.append(text[start:i])
            start = i + 1
    terms.append(text[start:])
    return terms


def _split_term(term: str, whole: str) -> tuple[str, str, str]:
    for i in range(len(term)):
        for operator in (NOT_EQUALS, DOUBLE_EQUALS, EQUALS):
            if term.startswith(operator, i):
                return term[:i], operator, term[i + len(operator) :]
    raise ValueError(f"invalid selector: '{whole}'; can't understand '{term}'")


def _unescape_field(value: str) -> str:
    found, escaped = [], False
    for char in value:
        if escaped:
            if char not in "\\,=":
                raise ValueError(f"invalid field selector: invalid escape sequence: \\{char}")
            found.append(char)
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in ",=":
            raise ValueError(f"invalid field selector: unescaped character in value: {ord(char)}")
        else:
            found.append(char)
    if escaped:
        raise ValueError("invalid field selector: invalid escape sequence: \\")
    return "".join(found)
