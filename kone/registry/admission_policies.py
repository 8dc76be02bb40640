"""admissionregistration.k8s.io: admission policies and what binds them.

What CEL expressions say is judged in policy_expressions.py.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
)
from kone.apimachinery.kinds import GVR
from kone.apimachinery.names import is_dns1035_label, is_dns1123_subdomain, is_path_segment_name, is_qualified_name
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.users import User
from kone.registry.admissionregistration import (
    CATEGORIES,
    FAILURE_POLICIES,
    GROUP,
    MATCH_POLICIES,
    REINVOCATIONS,
    choice,
    count,
    default_match,
    default_scopes,
    match_conditions,
    rule_with_operations,
)
from kone.registry.conditions import conditions
from kone.registry.equality import same
from kone.registry.policy_expressions import Expressions, finding
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check, label_selector
from kone.registry.strategy import ALL_METADATA, SpecStrategy, StatusStrategy, Strategy

_ACTIONS = ("Audit", "Deny", "Warn")
_REASONS = ("Forbidden", "Invalid", "RequestEntityTooLarge")
_PATCH_TYPES = ("ApplyConfiguration", "JSONPatch")
_MUTATED = ("*", "CONNECT", "CREATE", "UPDATE")
_NO_PARAMETER_ACTIONS = ("Deny", "Allow")
_MAX_ANNOTATIONS, _MAX_ANNOTATION = 20, 5 * 1024
_RESERVED = frozenset(
    (
        *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if"),
        *("import", "let", "loop", "package", "namespace", "return", "var", "void", "while"),
    )
)
_IDENTIFIER = re.compile(r"[_a-zA-Z][_a-zA-Z0-9]*")


class _Policy(SpecStrategy, ABC):
    """What both kinds of policy have in common."""

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        if spec.get("failurePolicy") is None:
            spec["failurePolicy"] = "Fail"
        _default_constraints(spec.get("matchConstraints"))

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        choice(errors, "spec.failurePolicy", spec.get("failurePolicy"), FAILURE_POLICIES)
        if spec.get("paramKind") is not None:
            _param_kind(errors, "spec.paramKind", spec["paramKind"])
        match = spec.get("matchConstraints")
        if match is None:
            errors.append(required("spec.matchConstraints"))
        else:
            _constraints(errors, "spec.matchConstraints", match)
            if not match.get("resourceRules"):
                errors.append(required("spec.matchConstraints.resourceRules"))
            self.judge_operations(errors, "spec.matchConstraints", match)
        expressions = Expressions(spec)
        match_conditions(errors, "spec.matchConditions", spec.get("matchConditions") or (), expressions.condition)
        for i, variable in enumerate(spec.get("variables") or ()):
            _variable(errors, f"spec.variables[{i}]", variable, expressions.errors.get(i))
        self.judge(errors, obj, spec, expressions)
        return errors

    def judge_operations(self, errors: Errors, path: str, match: Mapping[str, Any]) -> None:
        """Whether the policy may be asked about all of these."""

    @abstractmethod
    def judge(self, errors: Errors, obj: Object, spec: Mapping[str, Any], expressions: Expressions) -> None:
        """What the kind of policy adds."""


class _ValidatingPolicy(_Policy):
    kube_finalizers = False

    def judge(self, errors: Errors, obj: Object, spec: Mapping[str, Any], expressions: Expressions) -> None:
        validations, annotations = spec.get("validations") or (), spec.get("auditAnnotations") or ()
        if not validations and not annotations:
            text = "validations or auditAnnotations must contain at least one item"
            errors.append(required("spec.validations", text))
            errors.append(required("spec.auditAnnotations", text))
        for i, validation in enumerate(validations):
            _validation(errors, f"spec.validations[{i}]", validation, expressions)
        if len(annotations) > _MAX_ANNOTATIONS:
            why = f"must not have more than {_MAX_ANNOTATIONS} auditAnnotations"
            errors.append(invalid_value("spec.auditAnnotations", annotations, why))
        seen: set[str] = set()
        for i, annotation in enumerate(annotations):
            at, key = f"spec.auditAnnotations[{i}]", annotation.get("key", "")
            _annotation(errors, at, annotation, obj["metadata"].get("name", ""), expressions)
            if key in seen:
                errors.append(duplicate(f"{at}.key", key))
            seen.add(key)


class _MutatingPolicy(_Policy):
    kube_finalizers = False
    has_status = False

    def judge_operations(self, errors: Errors, path: str, match: Mapping[str, Any]) -> None:
        _mutated(errors, path, match)

    def judge(self, errors: Errors, obj: Object, spec: Mapping[str, Any], expressions: Expressions) -> None:
        mutations, again = spec.get("mutations") or (), spec.get("reinvocationPolicy", "")
        if not mutations:
            errors.append(required("spec.mutations", "mutations must contain at least one item"))
        for i, mutation in enumerate(mutations):
            _mutation(errors, f"spec.mutations[{i}]", mutation, expressions)
        if not again:
            errors.append(required("spec.reinvocationPolicy"))
        else:
            choice(errors, "spec.reinvocationPolicy", again, REINVOCATIONS)


def _mutated(errors: Errors, path: str, match: Mapping[str, Any]) -> None:
    for rule in match.get("resourceRules") or ():
        for operation in rule.get("operations") or ():
            choice(errors, f"{path}.resourceRules.operations", operation, _MUTATED)


def _default_constraints(match: Object | None) -> None:
    if match is not None:
        default_match(match)
        for field in ("resourceRules", "excludeResourceRules"):
            default_scopes(match.get(field) or ())


def _param_kind(errors: Errors, path: str, kind: Mapping[str, Any]) -> None:
    text, name = kind.get("apiVersion", ""), kind.get("kind", "")
    at = f"{path}.apiVersion"
    group, _, version = text.rpartition("/")
    if not text:
        errors.append(required(at))
    elif text.count("/") > 1:
        errors.append(invalid_value(at, text, f"unexpected GroupVersion string: {text}"))
    else:
        _joined(errors, at, group, is_dns1123_subdomain(group) if group else ())
        if not version:
            errors.append(invalid_value(at, text, "version must be specified"))
        else:
            _joined(errors, at, version, is_dns1035_label(version))
    if not name:
        errors.append(required(f"{path}.kind"))
    else:
        head = "may have mixed case, but should otherwise match: "
        _joined(errors, f"{path}.kind", name, is_dns1035_label(name.lower()), head)


def _joined(errors: Errors, path: str, value: str, texts: Sequence[str], head: str = "") -> None:
    if texts:
        errors.append(invalid_value(path, value, head + ",".join(texts)))


def _constraints(errors: Errors, path: str, match: Mapping[str, Any]) -> None:
    choice(errors, f"{path}.matchPolicy", match.get("matchPolicy"), MATCH_POLICIES)
    for field in ("namespaceSelector", "objectSelector"):
        label_selector(errors, f"{path}.{field}", match.get(field))
    for field in ("resourceRules", "excludeResourceRules"):
        for i, rule in enumerate(match.get(field) or ()):
            at, names = f"{path}.{field}[{i}]", rule.get("resourceNames") or ()
            for j, name in enumerate(names):
                check(errors, f"{at}.resourceNames[{j}]", name, is_path_segment_name(name))
                if name in names[:j]:
                    errors.append(duplicate(f"{at}.resourceNames[{j}]", name))
            rule_with_operations(errors, at, rule)


# -- expressions, but for what they say -------------------------------------------------------------------------------


def _variable(errors: Errors, path: str, variable: Mapping[str, Any], problem: Exception | None) -> None:
    name = variable.get("name", "")
    if not name.strip():
        errors.append(required(f"{path}.name", "name is not specified"))
    elif not _IDENTIFIER.fullmatch(name) or name in _RESERVED:
        errors.append(invalid_value(f"{path}.name", name, "must be a valid CEL identifier"))
    if not variable.get("expression", "").strip():
        errors.append(required(f"{path}.expression", "expression is not specified"))
    elif problem is not None:
        why = f"compilation failed: {problem}"
        errors.append(invalid_value(f"{path}.expression", variable["expression"].strip(), why))


def _compiles(errors: Errors, path: str, source: str, compile_: Callable[[str], Any]) -> None:
    if text := finding(compile_, source):
        errors.append(invalid_value(path, source.strip(), text))


def _validation(errors: Errors, path: str, validation: Mapping[str, Any], expressions: Expressions) -> None:
    message, expression = validation.get("message", ""), validation.get("messageExpression", "")
    if not validation.get("expression", "").strip():
        errors.append(required(f"{path}.expression", "expression is not specified"))
    else:
        _compiles(errors, f"{path}.expression", validation["expression"], expressions.validation)
    if expression.strip():
        _compiles(errors, f"{path}.messageExpression", expression, expressions.message)
    for field, text in (("messageExpression", expression), ("message", message)):
        if text and not text.strip():
            errors.append(invalid_value(f"{path}.{field}", text, "must be non-empty if specified"))
    if re.search(r"[\n\r]", message.strip()):
        errors.append(invalid_value(f"{path}.message", message, "must not contain line breaks"))
    choice(errors, f"{path}.reason", validation.get("reason"), _REASONS)


def _annotation(errors: Errors, path: str, annotation: Mapping[str, Any], name: str, expressions: Expressions) -> None:
    key, expression = annotation.get("key", ""), annotation.get("valueExpression", "").strip()
    if name:
        check(errors, f"{path}.key", f"{name}/{key}", is_qualified_name(f"{name}/{key}"))
    else:
        errors.append(invalid_value(f"{path}.key", key, "requires metadata.name be non-empty"))
    if not expression:
        errors.append(required(f"{path}.valueExpression", "valueExpression is not specified"))
    elif len(expression.encode()) > _MAX_ANNOTATION:
        why = f"must not exceed {_MAX_ANNOTATION} bytes in length"
        errors.append(required(f"{path}.valueExpression", why))
    else:
        _compiles(errors, f"{path}.valueExpression", expression, expressions.annotation)


def _mutation(errors: Errors, path: str, mutation: Mapping[str, Any], expressions: Expressions) -> None:
    kind = mutation.get("patchType", "")
    if not kind:
        errors.append(required(f"{path}.patchType"))
    elif kind not in _PATCH_TYPES:
        errors.append(not_supported(f"{path}.patchType", kind, _PATCH_TYPES))
    else:
        fields = ("jsonPatch", "applyConfiguration")
        wanted, other = fields if kind == "JSONPatch" else fields[::-1]
        if mutation.get(wanted) is None:
            errors.append(required(f"{path}.{wanted}", f"must be specified when patchType is {kind}"))
        elif not mutation[wanted].get("expression", "").strip():
            errors.append(required(f"{path}.{wanted}.expression"))
        else:
            compile_ = expressions.json_patch if kind == "JSONPatch" else expressions.apply_configuration
            _compiles(errors, f"{path}.{wanted}.expression", mutation[wanted]["expression"], compile_)
        if mutation.get(other) is not None:
            why = f"must not be specified when patchType is {kind}"
            errors.append(invalid_value(f"{path}.{other}", f"{{{other}}}", why))


def _status(obj: Object, old: Object) -> Iterable[FieldError]:
    errors: Errors = []
    for i, warning in enumerate(dig(obj, "status", "typeChecking", "expressionWarnings", default=())):
        for field in ("warning", "fieldRef"):
            if not warning.get(field, "").strip():
                errors.append(required(f"status.typeChecking.expressionWarnings[{i}].{field}"))
    conditions(errors, "status.conditions", dig(obj, "status", "conditions", default=()))
    return errors


# -- bindings ---------------------------------------------------------------------------------------------------------


class _Binding(Strategy):
    kube_finalizers = False

    def __init__(self, *, mutating: bool) -> None:
        self.mutating = mutating

    def default(self, obj: Object) -> None:
        _default_constraints(obj["spec"].get("matchResources"))

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is None:
            obj["metadata"]["generation"] = 1
        elif not same(obj["spec"], old["spec"]):
            obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        name, match = spec.get("policyName", ""), spec.get("matchResources")
        if name:
            check(errors, "spec.policyName", name, is_dns1123_subdomain(name))
        else:
            errors.append(required("spec.policyName"))
        if spec.get("paramRef") is not None:
            _param_ref(errors, "spec.paramRef", spec["paramRef"])
        if match is not None:
            _constraints(errors, "spec.matchResources", match)
        if not self.mutating:
            _actions(errors, "spec.validationActions", spec.get("validationActions") or ())
        elif match is not None:
            _mutated(errors, "spec.matchResources", match)
        return errors


def _actions(errors: Errors, path: str, actions: Sequence[str]) -> None:
    for i, action in enumerate(actions):
        if action not in _ACTIONS:
            errors.append(not_supported(f"{path}[{i}]", action, _ACTIONS))
        if action in actions[:i]:
            errors.append(duplicate(f"{path}[{i}]", action))
    if {"Deny", "Warn"} <= set(actions):
        text = "must not contain both Deny and Warn (repeating the same validation failure information in the API "
        errors.append(invalid_value(path, actions, f"{text}response and headers serves no purpose)"))
    if not actions:
        errors.append(required(path))


def _param_ref(errors: Errors, path: str, ref: Mapping[str, Any]) -> None:
    name, selector = ref.get("name", ""), ref.get("selector")
    if name:
        check(errors, f"{path}.name", name, is_path_segment_name(name))
        if selector is not None:
            errors.append(forbidden_field(f"{path}.name", "name and selector are mutually exclusive"))
    if selector is not None:
        label_selector(errors, f"{path}.selector", selector)
        if name:
            errors.append(forbidden_field(f"{path}.selector", "name and selector are mutually exclusive"))
    if not name and selector is None:
        errors.append(required(path, "one of name or selector must be specified"))
    if not ref.get("parameterNotFoundAction"):
        errors.append(required(f"{path}.parameterNotFoundAction"))
    else:
        choice(errors, f"{path}.parameterNotFoundAction", ref["parameterNotFoundAction"], _NO_PARAMETER_ACTIONS)


# -- resources --------------------------------------------------------------------------------------------------------


def _kind_cell(obj: Object, now: float) -> str:
    kind = dig(obj, "spec", "paramKind")
    return "<unset>" if kind is None else f"{kind.get('apiVersion', '')}/{kind.get('kind', '')}"


def _ref_cell(obj: Object, now: float) -> str:
    ref = dig(obj, "spec", "paramRef")
    if ref is None:
        return "<unset>"
    return f"{ref['namespace']}/{ref.get('name', '')}" if ref.get("namespace") else str(ref.get("name") or "*")


def _policy(plural: str, kind: str, counted: Column, strategy: Strategy, status: StatusStrategy | None) -> Resource:
    gvr = GVR(GROUP, "v1", plural)
    columns = (NAME, counted, Column("ParamKind", _kind_cell), AGE)
    return Resource(gvr, kind, strategy, namespaced=False, categories=CATEGORIES, columns=columns, status=status)


def _binding(plural: str, kind: str, *, mutating: bool) -> Resource:
    gvr, strategy = GVR(GROUP, "v1", plural), _Binding(mutating=mutating)
    name = Column("PolicyName", lambda obj, now: dig(obj, "spec", "policyName", default=""))
    columns = (NAME, name, Column("ParamRef", _ref_cell), AGE)
    return Resource(gvr, kind, strategy, namespaced=False, categories=CATEGORIES, columns=columns)


_validating = _ValidatingPolicy()

RESOURCES: Sequence[Resource] = (
    _policy(
        "mutatingadmissionpolicies",
        "MutatingAdmissionPolicy",
        count("Mutations", "spec", "mutations"),
        _MutatingPolicy(),
        None,
    ),
    _binding("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding", mutating=True),
    _policy(
        "validatingadmissionpolicies",
        "ValidatingAdmissionPolicy",
        count("Validations", "spec", "validations"),
        _validating,
        StatusStrategy(_validating, kept_metadata=ALL_METADATA, rules=_status),
    ),
    _binding("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", mutating=False),
)
