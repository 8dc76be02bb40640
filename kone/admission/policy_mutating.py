"""MutatingAdmissionPolicy: CEL expressions change writes, by apply configurations or JSON patches.

Decisions and texts: k8s.io/apiserver, pkg/admission/plugin/policy/mutating.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from typing import Any

from kone.admission.metrics import AdmissionMetrics
from kone.admission.plugin import Attributes, Authorizer, Caches, Plugin
from kone.admission.policy_merge import CannotMerge, merge
from kone.admission.policy_source import (
    NO_ERROR,
    Applier,
    ConfigurationError,
    Policies,
    Policy,
    compiled,
    error_type,
)
from kone.admission.webhooks import Finish
from kone.admission.webhooks_matching import Invocation, Matcher, is_exempt
from kone.apimachinery.cel import RUNTIME_BUDGET, CelError, CelSyntaxError, Program
from kone.apimachinery.cel_values import Message, Opaque, Optional
from kone.apimachinery.errors import StatusError, go_quote
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object, deep_copy
from kone.apimachinery.patch import PatchTestFailed, json_patch
from kone.registry.policy_expressions import Expressions
from kone.registry.resource import Registry

_Compiled = tuple[tuple[str, Program | CelSyntaxError], ...]
"""Of each mutation: its patchType and its program."""


class _Refused(Exception):
    """A mutation cannot be made; the text is upstream's."""


def _compile(spec: Mapping[str, Any], expressions: Expressions) -> _Compiled:
    found = []
    for mutation in spec.get("mutations") or ():
        if mutation["patchType"] == "JSONPatch":
            program = compiled(expressions.json_patch, mutation["jsonPatch"]["expression"])
        else:
            program = compiled(expressions.apply_configuration, mutation["applyConfiguration"]["expression"])
        found.append((mutation["patchType"], program))
    return tuple(found)


class MutatingAdmissionPolicy(Plugin):
    name = "MutatingAdmissionPolicy"
    reinvoked = True
    operations = frozenset({"CREATE", "UPDATE", "CONNECT"})
    subresources = None

    def __init__(
        self,
        caches: Caches,
        matcher: Matcher,
        registry: Registry,
        authorizer: Authorizer,
        metrics: AdmissionMetrics,
        finish: Finish,
    ) -> None:
        self._metrics = metrics
        self._policies: Policies[_Compiled] = Policies(caches, "mutatingadmissionpolicies", _compile)
        self._applier = Applier(caches, matcher, registry, authorizer)
        self._matcher, self._finish = matcher, finish

    async def mutate(self, a: Attributes) -> None:
        policies = self._policies.all()
        if not policies or is_exempt(a) or a.obj is None:
            return
        denials: list[str] = []
        asked: set[str] = set()
        for policy in policies:
            async for binding, invocation, param in self._invocations(a, policy, denials):
                key = f"{policy.name}/{binding}/{_name(param)}"
                if a.reinvoking and key not in a.reinvoke:
                    continue
                if await self._mutate(a, policy, binding, invocation, param, denials):
                    a.changed = True
                    a.reinvoke |= asked
                if policy.spec.get("reinvocationPolicy") == "IfNeeded":
                    asked.add(key)
        a.left(asked)
        if denials:
            raise _error(a, denials)

    async def _invocations(
        self, a: Attributes, policy: Policy[_Compiled], denials: list[str]
    ) -> AsyncIterator[tuple[str, Invocation, Object | None]]:
        invocation = self._applier.policy_invocation(a, policy.spec)
        if invocation is None:
            return
        for binding in policy.bindings:
            name = binding["metadata"]["name"]
            if not self._applier.binding_matches(a, binding):
                continue
            try:
                params = await self._applier.params(a, policy.spec, binding)
            except ConfigurationError as error:
                if not policy.fails_open:
                    denials.append(_denied(policy, name, f"failed to configure binding: {error}"))
                continue
            for param in params:
                yield name, invocation, param

    async def _mutate(
        self,
        a: Attributes,
        policy: Policy[_Compiled],
        binding: str,
        invocation: Invocation,
        param: Object | None,
        denials: list[str],
    ) -> bool:
        """Whether the object changed."""
        before = a.obj
        try:
            evaluation = await self._applier.evaluation(a, policy, invocation, param, RUNTIME_BUDGET)
            if not self._applier.conditions_hold(policy, evaluation):
                return False
        except CelError as error:
            if not policy.fails_open:
                denials.append(_denied(policy, binding, str(error)))
            return False
        for kind, program in policy.compiled:
            evaluation = await self._applier.evaluation(a, policy, invocation, param, RUNTIME_BUDGET)
            start, failure = self._metrics.now(), NO_ERROR
            try:
                made = evaluation.evaluate(program)
                await self._patch(a, invocation, kind, made)
            except (CelError, _Refused) as error:
                failure = error_type(error)
                if not policy.fails_open:
                    denials.append(_denied(policy, binding, str(error)))
            self._metrics.mutation(policy.name, binding, failure, self._metrics.now() - start)
        return a.obj != before

    async def _patch(self, a: Attributes, invocation: Invocation, kind: str, made: Any) -> None:
        """Raises _Refused; StatusError where what comes out is no object of its kind."""
        shown = await self._matcher.converted(a.obj, invocation, a.resource)
        assert shown is not None
        patched = _json_patched(shown, made) if kind == "JSONPatch" else _applied(shown, made, invocation.kind)
        if patched is None:
            return
        if invocation.resource != a.resource:
            patched = await self._matcher.converted(patched, Invocation(a.resource, a.kind), invocation.resource)
            assert patched is not None
        a.obj = self._finish(a, patched)


def _name(param: Object | None) -> str:
    return f"{param['metadata'].get('namespace', '')}/{param['metadata']['name']}" if param is not None else ""


def _denied(policy: Policy[Any], binding: str, text: str) -> str:
    return f"policy '{policy.name}' with binding '{binding}' denied request: {text}"


def _error(a: Attributes, denials: list[str]) -> StatusError:
    refused = a.refuse("admission request denied by policy")
    details = {**(refused.details or {}), "causes": [{"message": text} for text in denials]}
    return StatusError(403, "Invalid", denials[0], details=details)


def _applied(live: Object, made: Any, gvk: GVK) -> Object:
    _check_names(made, ["Object"])
    patch = {**_plain(made), "kind": gvk.kind, "apiVersion": gvk.api_version}
    try:
        return merge(live, patch, gvk)
    except CannotMerge as error:
        raise _Refused(f"error applying patch: {error}") from None


def _json_patched(live: Object, made: list[Message]) -> Object | None:
    """None where a test operation does not hold: then nothing is patched."""
    operations = []
    for item in made:
        if isinstance(item.get("value"), Message):
            _check_names(item["value"], [item["value"].name])
        operation = {name: _plain(value) for name, value in item.items() if name != "from" or value}
        operations.append({"op": "", "path": "", **operation})
    try:
        patched: Object = json_patch(deep_copy(live), operations)
    except PatchTestFailed:
        return None
    except StatusError as error:
        raise _Refused(f"JSON Patch: {error}") from None
    return patched


def _check_names(value: Any, path: list[str]) -> None:
    """A struct in a struct is named after its place: Object.spec in the field spec of Object."""
    errors: list[str] = []
    _collect(value, path, errors)
    if errors:
        raise _Refused("type mismatch: " + "\n".join(errors))


def _collect(value: Any, path: list[str], errors: list[str]) -> None:
    if isinstance(value, Message):
        wanted = ".".join(path)
        if value.name != wanted:
            why = "which matches field name path from root Object type"
            errors.append(f"unexpected type name {go_quote(value.name)}, expected {go_quote(wanted)}, {why}")
        for name, field in value.items():
            _collect(field, [*path, name], errors)
    elif isinstance(value, list | dict):
        for each in value if isinstance(value, list) else value.values():
            _collect(each, path, errors)


def _plain(value: Any) -> Any:
    """As JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Optional):
        return _plain(value.value) if value.present else None
    return str(value) if isinstance(value, Opaque) else value
