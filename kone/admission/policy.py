"""ValidatingAdmissionPolicy: CEL expressions refuse writes, warn of them, or note them for the audit.

Decisions and texts: k8s.io/apiserver, pkg/admission/plugin/policy/validating. The first refusal is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kone.admission.metrics import AdmissionMetrics
from kone.admission.plugin import Attributes, Authorizer, Caches, Plugin
from kone.admission.policy_source import (
    NO_ERROR,
    Applier,
    ConfigurationError,
    Evaluation,
    Policies,
    Policy,
    compiled,
    error_type,
)
from kone.admission.webhooks_matching import Matcher, is_exempt
from kone.apimachinery.cel import RUNTIME_BUDGET, CelError, CelSyntaxError, Program
from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object
from kone.registry.policy_expressions import Expressions
from kone.registry.resource import Registry

MAX_MESSAGE = 5 * 1024
MAX_ANNOTATION = 10 * 1024
_CODES = {"Forbidden": 403, "Unauthorized": 401, "RequestEntityTooLarge": 413, "Invalid": 422}
FAILURES = "validation.policy.admission.k8s.io/validation_failure"
MAX_FAILURES = 50


@dataclass(frozen=True, slots=True)
class _Validation:
    spec: Mapping[str, Any]
    program: Program | CelSyntaxError
    message: Program | CelSyntaxError | None


@dataclass(frozen=True, slots=True)
class _Compiled:
    validations: tuple[_Validation, ...]
    annotations: tuple[tuple[str, Program | CelSyntaxError], ...]


@dataclass(frozen=True, slots=True)
class _Denial:
    policy: str
    binding: str
    message: str
    reason: str = "Invalid"

    def error(self, a: Attributes) -> StatusError:
        where = f" with binding '{self.binding}'" if self.binding else ""
        text = f"ValidatingAdmissionPolicy '{self.policy}'{where} denied request: {self.message}"
        refused = a.refuse(text)
        details = {**(refused.details or {}), "causes": [{"message": text}]}
        return StatusError(_CODES.get(self.reason, 422), self.reason, refused.status["message"], details=details)


@dataclass(frozen=True, slots=True)
class _Decision:
    """Of one validation that did not hold: its place in the policy, and what to say."""

    index: int
    message: str
    reason: str = "Invalid"
    error: str = NO_ERROR
    seconds: float = 0.0


def _compile(spec: Mapping[str, Any], expressions: Expressions) -> _Compiled:
    validations = tuple(
        _Validation(
            each,
            compiled(expressions.validation, each["expression"]),
            compiled(expressions.message, each["messageExpression"]) if each.get("messageExpression") else None,
        )
        for each in spec.get("validations") or ()
    )
    annotations = tuple(
        (each["key"], compiled(expressions.annotation, each["valueExpression"]))
        for each in spec.get("auditAnnotations") or ()
    )
    return _Compiled(validations, annotations)


class ValidatingAdmissionPolicy(Plugin):
    name = "ValidatingAdmissionPolicy"
    operations = frozenset({"CREATE", "UPDATE", "DELETE", "CONNECT"})
    subresources = None

    def __init__(
        self,
        caches: Caches,
        matcher: Matcher,
        registry: Registry,
        authorizer: Authorizer,
        metrics: AdmissionMetrics,
    ) -> None:
        self._metrics = metrics
        self._policies: Policies[_Compiled] = Policies(caches, "validatingadmissionpolicies", _compile)
        self._applier = Applier(caches, matcher, registry, authorizer)

    async def validate(self, a: Attributes) -> None:
        policies = self._policies.all()
        if not policies or is_exempt(a):
            return
        denials: list[_Denial] = []
        failures: list[Object] = []
        for policy in policies:
            await self._apply(a, policy, denials, failures)
        if failures:
            a.annotate(FAILURES, json.dumps(failures[:MAX_FAILURES], separators=(",", ":")))
        if denials:
            raise denials[0].error(a)

    async def _apply(
        self, a: Attributes, policy: Policy[_Compiled], denials: list[_Denial], failures: list[Object]
    ) -> None:
        invocation = self._applier.policy_invocation(a, policy.spec)
        if invocation is None:
            return
        for binding in policy.bindings:
            bound = binding["metadata"]["name"]
            try:
                if not self._applier.binding_matches(a, binding):
                    continue
                params = await self._applier.params(a, policy.spec, binding)
            except ConfigurationError as error:
                if not policy.fails_open:
                    denials.append(_Denial(policy.name, bound, f"failed to configure binding: {error}"))
                continue
            for param in params:
                evaluation = await self._applier.evaluation(a, policy, invocation, param, RUNTIME_BUDGET)
                for decision in self._decisions(policy, bound, evaluation):
                    self._act(a, policy, binding, decision, denials, failures)
                for text in self._annotate(a, policy, evaluation):
                    denials.append(_Denial(policy.name, bound, text))

    def _decisions(self, policy: Policy[_Compiled], bound: str, evaluation: Evaluation) -> Iterator[_Decision]:
        try:
            if not self._applier.conditions_hold(policy, evaluation):
                evaluation.budget = -1  # its annotations are not wanted either
                return
        except CelError as error:
            if not policy.fails_open:
                yield _Decision(0, str(error), error=error_type(error))
            return
        now = self._metrics.now
        for i, validation in enumerate(policy.compiled.validations):
            start = now()
            try:
                held = evaluation.evaluate(validation.program) is True
            except CelError as error:
                kind, seconds = error_type(error), now() - start
                if policy.fails_open:
                    self._metrics.validation(policy.name, bound, kind, "allow", seconds)
                else:
                    yield _Decision(i, str(error), error=kind, seconds=seconds)
                continue
            if not held:
                reason = validation.spec.get("reason") or "Invalid"
                yield _Decision(i, _message(validation, evaluation), reason, seconds=now() - start)

    def _act(
        self,
        a: Attributes,
        policy: Policy[_Compiled],
        binding: Object,
        decision: _Decision,
        denials: list[_Denial],
        failures: list[Object],
    ) -> None:
        bound, actions = binding["metadata"]["name"], binding["spec"].get("validationActions") or ()
        for action in actions:
            self._metrics.validation(policy.name, bound, decision.error, action.lower(), decision.seconds)
            if action == "Deny":
                denials.append(_Denial(policy.name, bound, decision.message, decision.reason))
            elif action == "Warn":
                head = f"Validation failed for ValidatingAdmissionPolicy '{policy.name}' with binding '{bound}'"
                a.warn(f"{head}: {decision.message}")
            elif action == "Audit":
                failure = {
                    "message": decision.message,
                    "policy": policy.name,
                    "binding": bound,
                    "expressionIndex": decision.index,
                    "validationActions": list(actions),
                }
                failures.append(failure)

    def _annotate(self, a: Attributes, policy: Policy[_Compiled], evaluation: Evaluation) -> Iterator[str]:
        """Notes what the policy's audit annotations give; yields why one could not be made, where that refuses."""
        if evaluation.budget < 0:
            return
        evaluation.budget = RUNTIME_BUDGET
        for key, program in policy.compiled.annotations:
            try:
                value = evaluation.evaluate(program)
            except CelError as error:
                if not policy.fails_open:
                    yield str(error)
                continue
            if isinstance(value, str) and value.strip():
                a.annotate(f"{policy.name}/{key}", value.strip()[:MAX_ANNOTATION])


def _message(validation: _Validation, evaluation: Evaluation) -> str:
    if validation.message is not None:
        try:
            text = evaluation.evaluate(validation.message)
        except CelError:
            text = ""
        text = text.strip() if isinstance(text, str) else ""
        if text and len(text.encode()) <= MAX_MESSAGE and "\n" not in text:
            return text
    expression = validation.spec["expression"].strip()
    return (validation.spec.get("message") or "").strip() or f"failed expression: {expression}"
