"""Policies and their bindings, compiled once and kept while they do not change; whom they concern, and their params.

Rules and texts: k8s.io/apiserver, pkg/admission/plugin/policy/generic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kone.admission.plugin import Attributes, Authorizer, Caches
from kone.admission.policy_variables import variables_of
from kone.admission.webhooks_matching import Invocation, Matcher, rule_matches
from kone.apimachinery.cel import MATCH_CONDITIONS_BUDGET, CelError, CelSyntaxError, Lazy, Program
from kone.apimachinery.errors import go_quote
from kone.apimachinery.kinds import GVK, parse_api_version
from kone.apimachinery.objects import Object, labels_of
from kone.apimachinery.selectors import from_label_selector
from kone.registry.policy_expressions import Expressions, WrongResult
from kone.registry.resource import Registry

GROUP = "admissionregistration.k8s.io"
Compiled = TypeVar("Compiled")


NO_ERROR = "no_error"


def error_type(error: BaseException) -> str:
    """What the metrics call an error of an expression."""
    text = str(error)
    if text.startswith("compilation"):
        return "compile_error"
    return "out_of_budget" if "running out of cost budget" in text else "invalid_error"


class ConfigurationError(Exception):
    """A policy or binding cannot be applied to a write as they are."""


@dataclass(frozen=True, slots=True)
class Policy(Generic[Compiled]):
    name: str
    spec: Mapping[str, Any]
    expressions: Expressions
    bindings: tuple[Object, ...]
    conditions: tuple[Program | CelSyntaxError, ...]
    compiled: Compiled

    @property
    def fails_open(self) -> bool:
        return self.spec.get("failurePolicy") == "Ignore"


class Policies(Generic[Compiled]):
    """The policies of one kind that have bindings, by name."""

    def __init__(
        self, caches: Caches, plural: str, compile_: Callable[[Mapping[str, Any], Expressions], Compiled]
    ) -> None:
        self._policies, self._bindings = caches.of(GROUP, plural), caches.of(GROUP, f"{plural[:-3]}ybindings")
        self._compile = compile_
        self._found: list[Policy[Compiled]] | None = None
        self._compiled: dict[str, tuple[Object, Expressions, tuple[Program | CelSyntaxError, ...], Compiled]] = {}
        self._policies.subscribe(self._changed)
        self._bindings.subscribe(self._changed)

    def _changed(self, event: object) -> None:
        self._found = None

    def all(self) -> list[Policy[Compiled]]:
        if self._found is None:
            self._found = self._read()
        return self._found

    def _read(self) -> list[Policy[Compiled]]:
        bindings: dict[str, list[Object]] = {}
        for entry in self._bindings.list():
            bindings.setdefault(entry.obj["spec"].get("policyName", ""), []).append(entry.obj)
        found, kept = [], {}
        for entry in self._policies.list():
            name, spec = entry.obj["metadata"]["name"], entry.obj["spec"]
            if name not in bindings:
                continue
            known = self._compiled.get(name)
            if known is None or known[0] != spec:
                expressions = Expressions(spec)
                conditions = tuple(
                    compiled(expressions.condition, each["expression"]) for each in spec.get("matchConditions") or ()
                )
                known = (spec, expressions, conditions, self._compile(spec, expressions))
            kept[name] = known
            found.append(Policy(name, spec, known[1], tuple(bindings[name]), known[2], known[3]))
        self._compiled = kept
        return found


def compiled(make: Callable[[str], Program], source: str) -> Program | CelSyntaxError:
    """The program, or why there is none, as evaluations tell it."""
    try:
        return make(source)
    except CelSyntaxError as error:
        return CelSyntaxError(f"compilation failed: {error}")
    except WrongResult as error:
        return CelSyntaxError(str(error))


class Evaluation:
    """One policy's variables for one write and one param, and what their evaluation may still cost."""

    def __init__(self, values: dict[str, Any], policy: Policy[Any], budget: int) -> None:
        self.values, self.budget = values, budget
        self._programs = policy.expressions.variables
        self._known: dict[str, Any] = {}
        values["variables"] = Lazy(self._variable)

    def _variable(self, name: str) -> Any:
        if name not in self._known:
            program = self._programs.get(name)
            if program is None:
                raise CelError(f"no such key: {name}")
            try:
                self._known[name] = self._spend(program)
            except CelError as error:
                self._known[name] = CelError(f"composited variable {go_quote(name)} fails to evaluate: {error}")
        value = self._known[name]
        if isinstance(value, CelError):
            raise value
        return value

    def _spend(self, program: Program) -> Any:
        result = program.evaluate(self.values)
        self.budget -= result.cost
        if self.budget < 0:
            raise CelError(
                "validation failed due to running out of cost budget, no further validation rules will be run"
            )
        return result.value

    def evaluate(self, program: Program | CelSyntaxError) -> Any:
        """Raises CelError in the words of a condition's evaluator."""
        if isinstance(program, CelSyntaxError):
            raise CelError(f"compilation error: {program}")
        try:
            return self._spend(program)
        except CelError as error:
            raise CelError(f"expression '{program.source.strip()}' resulted in error: {error}") from None


class Applier:
    """Says which policies and bindings concern a write, and makes their evaluations."""

    def __init__(self, caches: Caches, matcher: Matcher, registry: Registry, authorizer: Authorizer) -> None:
        self._caches, self._matcher, self._registry, self._authorizer = caches, matcher, registry, authorizer

    def policy_invocation(self, a: Attributes, spec: Mapping[str, Any]) -> Invocation | None:
        """As what the write is shown to a policy that its constraints match; else None."""
        match = spec.get("matchConstraints") or {}
        found = self._matcher.invocation(a, match, match.get("resourceRules") or ())
        return None if found is None or self._excluded(a, match) else found

    def binding_matches(self, a: Attributes, binding: Object) -> bool:
        match = binding["spec"].get("matchResources")
        if match is None:
            return True
        if not match.get("resourceRules"):
            everything = {"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*", "*/*"]}
            rules: Sequence[Mapping[str, Any]] = (everything,)
        else:
            rules = match["resourceRules"]
        return self._matcher.invocation(a, match, rules) is not None and not self._excluded(a, match)

    def _excluded(self, a: Attributes, match: Mapping[str, Any]) -> bool:
        return any(rule_matches(rule, a, a.resource) for rule in match.get("excludeResourceRules") or ())

    async def params(self, a: Attributes, spec: Mapping[str, Any], binding: Object) -> list[Object | None]:
        """The params to judge with, one after the other; [None] where the policy takes none.

        Raises ConfigurationError.
        """
        kind, ref = spec.get("paramKind"), binding["spec"].get("paramRef")
        if kind is None or ref is None:
            return [None]
        resource = self._registry.by_kind(GVK(*parse_api_version(kind["apiVersion"]), kind["kind"]))
        if resource is None:
            shown = f"&ParamKind{{APIVersion:{kind['apiVersion']},Kind:{kind['kind']},}}"
            raise ConfigurationError(f"failed to find resource referenced by paramKind: '{shown}'")
        namespace = ref.get("namespace", "")
        if not resource.namespaced:
            if namespace:
                raise ConfigurationError("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
        else:
            namespace = namespace or a.namespace
            if not namespace:
                raise ConfigurationError(
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                )
        cache = self._caches.of(*resource.storage_key)
        if ref.get("name"):
            entry = cache.get(namespace, ref["name"])
            entries = [entry] if entry is not None else []
        else:
            selector = from_label_selector(ref.get("selector"))
            entries = [entry for entry in cache.list(namespace) if selector.matches(labels_of(entry.obj))]
        if not entries and ref.get("parameterNotFoundAction") == "Deny":
            raise ConfigurationError("no params found for policy binding with `Deny` parameterNotFoundAction")
        shown_as = {"kind": resource.kind, "apiVersion": resource.gvr.api_version}
        if resource.conversion is None:
            return [{**entry.obj, **shown_as} for entry in entries]
        return [{**await resource.conversion.from_storage(entry.obj), **shown_as} for entry in entries]

    async def evaluation(
        self, a: Attributes, policy: Policy[Any], invocation: Invocation, param: Object | None, budget: int
    ) -> Evaluation:
        values = variables_of(
            a,
            invocation,
            obj=await self._matcher.converted(a.obj, invocation, a.resource),
            old=await self._matcher.converted(a.old, invocation, a.resource),
            namespace=self._matcher.namespace(a) if a.namespace else None,
            authorizer=self._authorizer,
        )
        values["params"] = param
        return Evaluation(values, policy, budget)

    def conditions_hold(self, policy: Policy[Any], evaluation: Evaluation) -> bool:
        """Raises CelError where none is false and one cannot be judged."""
        error: CelError | None = None
        conditions = Evaluation(dict(evaluation.values), policy, MATCH_CONDITIONS_BUDGET)
        for program in policy.conditions:
            try:
                if conditions.evaluate(program) is not True:
                    return False
            except CelError as problem:
                error = error or problem
        if error is not None:
            raise error
        return True
