"""What a ValidatingAdmissionPolicy's expressions get wrong of the kinds that it is for: warnings for its status.

Only rules without wildcards are looked at, ten kinds at the most. Source: k8s.io/apiserver,
pkg/admission/plugin/policy/validating/typechecking.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kone.apimachinery.cel import CelSyntaxError
from kone.apimachinery.cel_schema import SchemaStructs
from kone.apimachinery.cel_types import Type
from kone.apimachinery.kinds import GVK, parse_api_version
from kone.apimachinery.objects import Object
from kone.registry.policy_expressions import Expressions
from kone.registry.resource import Registry

MAX_KINDS = 10
FindSchema = Callable[[GVK], Mapping[str, Any] | None]
"""The OpenAPI schema of a custom kind; None where there is none."""


class TypeChecker:
    def __init__(self, registry: Registry, schema_of: FindSchema) -> None:
        self._registry, self._schema_of = registry, schema_of

    def warnings(self, policy: Object) -> list[Object]:
        """status.typeChecking.expressionWarnings."""
        spec = policy["spec"]
        structs = SchemaStructs()
        kinds = [(gvk, found) for gvk in self._kinds(spec) if (found := self._type(structs, gvk)) is not None]
        kind = spec.get("paramKind")
        params = self._type(structs, GVK(*parse_api_version(kind["apiVersion"]), kind["kind"])) if kind else None
        environments = []
        for gvk, found in kinds:
            overwritten = {"object": found, "oldObject": found, **({"params": params} if params is not None else {})}
            environments.append((gvk, Expressions(spec, types=overwritten, structs=structs)))
        warnings = []
        for i, validation in enumerate(spec.get("validations") or ()):
            for field in ("expression", "messageExpression"):
                source = validation.get(field)
                found_issues = self._issues(environments, source) if source else ""
                if found_issues:
                    warnings.append({"fieldRef": f"spec.validations[{i}].{field}", "warning": found_issues})
        return warnings

    def _issues(self, environments: Iterable[tuple[GVK, Expressions]], source: str) -> str:
        found = []
        for gvk, expressions in environments:
            try:
                expressions.anything(source)
            except CelSyntaxError as error:
                found.append(f"{gvk.api_version}, Kind={gvk.kind}: compilation failed: {error}\n")
        return "\n".join(found)

    def _type(self, structs: SchemaStructs, gvk: GVK) -> Type | None:
        builtin = structs.of_kind(gvk)
        if builtin is not None:
            return builtin
        found = self._schema_of(gvk)
        return structs.add(gvk.kind, found, resource=True) if found else None

    def _kinds(self, spec: Mapping[str, Any]) -> list[GVK]:
        found: set[GVK] = set()
        for rule in (spec.get("matchConstraints") or {}).get("resourceRules") or ():
            parts = [sorted(rule.get(name) or ()) for name in ("apiGroups", "apiVersions", "resources")]
            if any("*" in part for part in parts) or any("/" in each or "*" in each for each in parts[2]):
                continue
            for group in parts[0]:
                for version in parts[1]:
                    for resource in parts[2]:
                        known = self._registry.find(group, version, resource)
                        if known is not None and len(found) < MAX_KINDS:
                            found.add(known.gvk)
        return sorted(found, key=lambda gvk: (gvk.group, gvk.version, gvk.kind))
