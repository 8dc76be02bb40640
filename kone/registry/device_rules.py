"""Rules that claims, classes, slices and taint rules of resource.k8s.io share.

Many of upstream's rules for this group are declared rather than written, and what those find comes after all else:
`later` takes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from kone.apimachinery.device_expressions import compiled_selector, is_too_complex
from kone.apimachinery.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
    too_long,
    too_many,
)
from kone.apimachinery.names import (
    is_c_identifier,
    is_dns1123_label,
    is_dns1123_subdomain,
    is_qualified_name,
    is_valid_label_value,
)
from kone.apimachinery.objects import Object
from kone.registry.core.pod_volumes import csi_driver_name
from kone.registry.rules import Errors, check

TAINT_EFFECTS = ("NoExecute", "NoSchedule", "None")
_TOLERATION_OPERATORS = ("Equal", "Exists")
_MAX_EXPRESSION = _MAX_PARAMETERS = 10 * 1024
_MAX_POOL_NAME, _MAX_DRIVER_NAME, _MAX_ID = 253, 63, 32
_MAX_SELECTORS, _MAX_BINDING_CONDITIONS = 32, 4
_LOWERCASE = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters"
_ANY_CASE = "an RFC 1123 subdomain must consist of alphanumeric characters"
_DRIVER = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.I)

driver_name = csi_driver_name


def declared(texts: Iterable[str]) -> list[str]:
    """What a rule on names says, as declared rules word it."""
    return [text.replace(" characters", " bytes") if text.startswith("must be no more") else text for text in texts]


Rule = Callable[[Errors, str, Any], None]


def declared_driver_name(later: Errors, path: str, name: str) -> None:
    """A driver's name where the rule is a declared one, which words it its own way."""
    if not name:
        later.append(required(path))
        return
    texts = is_dns1123_subdomain(name.lower()) if len(name) > 253 or not _DRIVER.fullmatch(name) else []
    for text in declared(texts):
        text = text.replace(_LOWERCASE, _ANY_CASE).replace("(e.g. 'example.com'", "(e.g. 'Example.com'")
        later.append(invalid_value(path, name, text))
    if len(name) > _MAX_DRIVER_NAME:
        later.append(FieldError("FieldValueTooLong", path, f"may not be more than {_MAX_DRIVER_NAME} characters"))


def pool_name(errors: Errors, path: str, name: str) -> None:
    if not name:
        errors.append(required(path))
        return
    if len(name) > _MAX_POOL_NAME:
        errors.append(too_long(path, _MAX_POOL_NAME))
    for part in name.split("/"):
        check(errors, path, part, is_dns1123_subdomain(part))


def declared_pool_name(later: Errors, path: str, name: str) -> None:
    if not name:
        later.append(required(path))
        return
    if len(name) > _MAX_POOL_NAME:
        later.append(too_long(path, _MAX_POOL_NAME))
    for i, part in enumerate(name.split("/")):
        texts = declared(is_dns1123_subdomain(part)) if part else ["must not be empty"]
        check(later, path, part or name, [f"segment {i}: {text}" for text in texts])


def label(errors: Errors, path: str, name: str) -> None:
    check(errors, path, name, is_dns1123_label(name))


def declared_label(later: Errors, path: str, name: str) -> None:
    check(later, path, name, declared(is_dns1123_label(name)))


def label_key(errors: Errors, path: str, key: str) -> None:
    check(errors, path, key, is_qualified_name(key))


def qualified_name(errors: Errors, path: str, name: str) -> None:
    """A C identifier, with or without a domain in front."""
    domain, slash, identifier = name.rpartition("/")
    if name.count("/") > 1:
        return
    if slash and not domain:
        errors.append(invalid_value(path, "", "the domain must not be empty"))
    elif slash:
        driver_name(errors, path, domain)
    if slash and not identifier:
        errors.append(invalid_value(path, "", "the name must not be empty"))
    else:
        _identifier(errors, path, identifier)


def declared_full_name(later: Errors, path: str, name: str) -> None:
    """A C identifier with a domain in front."""
    domain, slash, identifier = name.rpartition("/")
    if name.count("/") <= 1:
        if slash and not domain:
            later.append(invalid_value(path, "", "prefix must not be empty"))
        elif slash:
            if len(domain) > _MAX_DRIVER_NAME:
                later.append(too_long(path, _MAX_DRIVER_NAME))
            check(later, path, domain, [f"prefix: {text}" for text in declared(is_dns1123_subdomain(domain))])
        if slash and not identifier:
            later.append(invalid_value(path, "", "name must not be empty"))
        else:
            _identifier(later, path, identifier)
    if not slash:
        why = "a fully qualified name must be a domain and a name separated by a slash"
        later.append(invalid_value(path, name, why))


def _identifier(errors: Errors, path: str, value: str) -> None:
    if len(value) > _MAX_ID:
        errors.append(too_long(path, _MAX_ID))
    check(errors, path, value, is_c_identifier(value))


def each(errors: Errors, later: Errors, path: str, found: Sequence[Any], most: int, rule: Rule) -> bool:
    """Every item by `rule`, unless there are too many, which a declared rule counts. False where there are."""
    if len(found) > most:
        later.append(too_many(path, len(found), most))
        return False
    for i, item in enumerate(found):
        rule(errors, f"{path}[{i}]", item)
    return True


def distinct(errors: Errors, path: str, found: Sequence[Any], *fields: str) -> None:
    """No two items alike, in these fields or altogether; upstream shows the whole item that comes again."""
    seen: set[Any] = set()
    for i, item in enumerate(found):
        key = tuple(item.get(field) or "" for field in fields) if fields else item
        if key in seen:
            errors.append(duplicate(f"{path}[{i}]", {"name": "", **item} if fields == ("name",) else item))
        seen.add(key)


def selectors(
    errors: Errors, later: Errors, path: str, found: Sequence[Mapping[str, Any]], *, stored: bool = False
) -> None:
    """`stored`: they are as they were, and so are taken as they are."""
    each(errors, later, path, found, _MAX_SELECTORS, partial(_selector, stored))


def _selector(stored: bool, errors: Errors, path: str, selector: Mapping[str, Any]) -> None:
    cel = selector.get("cel")
    if cel is None:
        errors.append(required(f"{path}.cel"))
    elif not stored:
        _expression(errors, f"{path}.cel.expression", cel.get("expression", ""))


def _expression(errors: Errors, path: str, expression: str) -> None:
    if len(expression.encode()) > _MAX_EXPRESSION:
        errors.append(too_long(path, _MAX_EXPRESSION))
        return
    program = compiled_selector(expression)
    if isinstance(program, str):
        errors.append(invalid_value(path, expression, program))
    elif is_too_complex(program):
        errors.append(forbidden_field(path, "too complex, exceeds cost limit"))


def configuration(errors: Errors, later: Errors, path: str, config: Mapping[str, Any]) -> None:
    """What a driver is told: one `opaque` at the time being."""
    opaque = config.get("opaque")
    if opaque is None:
        errors.append(required(f"{path}.opaque"))
        return
    declared_driver_name(later, f"{path}.opaque.driver", opaque.get("driver", ""))
    json_object(errors, f"{path}.opaque.parameters", opaque.get("parameters"))


def json_object(errors: Errors, path: str, value: Any) -> None:
    import json

    if value is None:
        errors.append(required(path))
    elif len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()) > _MAX_PARAMETERS:
        errors.append(too_long(path, _MAX_PARAMETERS))
    elif not isinstance(value, dict):
        errors.append(invalid_value(path, "<value omitted>", "must be a valid JSON object"))


def taint(errors: Errors, later: Errors, path: str, found: Mapping[str, Any], effect_before: str | None = None) -> None:
    key, value, effect = found.get("key", ""), found.get("value", ""), found.get("effect", "")
    label_key(errors, f"{path}.key", key)
    check(errors, f"{path}.value", value, is_valid_label_value(value))
    if not effect:
        later.append(required(f"{path}.effect"))
    elif effect not in TAINT_EFFECTS and effect != effect_before:
        later.append(not_supported(f"{path}.effect", effect, TAINT_EFFECTS))


def tolerations(errors: Errors, later: Errors, path: str, found: Sequence[Mapping[str, Any]]) -> None:
    for i, toleration in enumerate(found):
        at = f"{path}[{i}]"
        key, value, effect = toleration.get("key", ""), toleration.get("value", ""), toleration.get("effect", "")
        operator = toleration.get("operator", "")
        if key:
            label_key(later, f"{at}.key", key)
        if operator == "Exists":
            if value:
                errors.append(invalid_value(f"{at}.value", value, "must be empty for operator `Exists`"))
        elif operator == "Equal":
            check(errors, f"{at}.value", value, is_valid_label_value(value))
        elif not operator:
            later.append(required(f"{at}.operator"))
        else:
            later.append(not_supported(f"{at}.operator", operator, _TOLERATION_OPERATORS))
        if effect and effect not in TAINT_EFFECTS:
            later.append(not_supported(f"{at}.effect", effect, TAINT_EFFECTS))


def binding_conditions(errors: Errors, later: Errors, path: str, found: Object) -> None:
    """The conditions that a device waits for after its claim is bound, and those that end the wait as failed."""
    conditions, failures = found.get("bindingConditions") or (), found.get("bindingFailureConditions") or ()
    wait, fail = f"{path}.bindingConditions", f"{path}.bindingFailureConditions"
    each(errors, later, wait, conditions, _MAX_BINDING_CONDITIONS, label_key)
    each(errors, later, fail, failures, _MAX_BINDING_CONDITIONS, label_key)
    distinct(errors, wait, conditions)
    distinct(errors, fail, failures)
    for i, failure in enumerate(failures):
        if failure in conditions:
            why = "bindingFailureConditions must not overlap with bindingConditions"
            errors.append(invalid_value(f"{fail}[{i}]", failure, why))
    if failures and not conditions:
        why = "bindingConditions are required to use bindingFailureConditions"
        errors.append(invalid_value(wait, None, why))
    if conditions and not failures:
        why = "bindingFailureConditions are required to use bindingConditions"
        errors.append(invalid_value(fail, None, why))
