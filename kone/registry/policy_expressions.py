"""The CEL expressions of admission policies: which variables each may speak of, and what it must give.

Used twice: where a policy is written, to refuse what does not compile, and where it is applied.
Source: kubernetes/pkg/apis/admissionregistration/validation, k8s.io/apiserver pkg/admission/plugin/cel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kone.apimachinery.cel import (
    BOOL,
    DYN,
    INT,
    NULL,
    STRING,
    TIMESTAMP,
    UNSPECIFIED,
    CelProgramError,
    CelSyntaxError,
    Environment,
    FieldTable,
    Program,
    Type,
    list_of,
    map_of,
    struct_type,
)
from kone.apimachinery.cel import Structs as StructsOf
from kone.apimachinery.cel_functions import Functions

_TEXTS = map_of(STRING, STRING)
_STRUCTS: dict[str, dict[str, Type]] = {
    "kubernetes.AdmissionRequest": {
        "kind": struct_type("kubernetes.GroupVersionKind"),
        "resource": struct_type("kubernetes.GroupVersionResource"),
        "subResource": STRING,
        "requestKind": struct_type("kubernetes.GroupVersionKind"),
        "requestResource": struct_type("kubernetes.GroupVersionResource"),
        "requestSubResource": STRING,
        "name": STRING,
        "namespace": STRING,
        "operation": STRING,
        "userInfo": struct_type("kubernetes.UserInfo"),
        "dryRun": BOOL,
        "options": DYN,
    },
    "kubernetes.GroupVersionKind": {"group": STRING, "version": STRING, "kind": STRING},
    "kubernetes.GroupVersionResource": {"group": STRING, "version": STRING, "resource": STRING},
    "kubernetes.UserInfo": {
        "username": STRING,
        "uid": STRING,
        "groups": list_of(STRING),
        "extra": map_of(STRING, list_of(STRING)),
    },
    "kubernetes.Namespace": {
        "metadata": struct_type("kubernetes.NamespaceMetadata"),
        "spec": struct_type("kubernetes.NamespaceSpec"),
        "status": struct_type("kubernetes.NamespaceStatus"),
    },
    "kubernetes.NamespaceMetadata": {
        "name": STRING,
        "generateName": STRING,
        "namespace": STRING,
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "UID": STRING,
        "creationTimestamp": TIMESTAMP,
        "deletionGracePeriodSeconds": INT,
        "deletionTimestamp": TIMESTAMP,
        "generation": INT,
        "resourceVersion": STRING,
        "finalizers": list_of(STRING),
    },
    "kubernetes.NamespaceSpec": {"finalizers": list_of(STRING)},
    "kubernetes.NamespaceStatus": {"phase": STRING},
}
VARIABLES_TYPE = "kubernetes.variables"


class Structs(FieldTable):
    """The structs above, the policy's own variables, and where a policy mutates, what it makes."""

    def __init__(self, variables: Mapping[str, Type] | None = None, made: StructsOf | None = None) -> None:
        super().__init__(_STRUCTS)
        if variables is not None:
            self.structs[VARIABLES_TYPE] = variables
        self._made = made

    def has(self, name: str) -> bool:
        return super().has(name) or (self._made is not None and self._made.has(name))

    def field(self, name: str, field: str) -> Type | None:
        if self._made is not None and self._made.has(name):
            return self._made.field(name, field)
        return super().field(name, field)


def environment(
    *,
    params: bool = False,
    authorizer: bool = True,
    variables: Mapping[str, Type] | None = None,
    made: StructsOf | None = None,
    functions: Functions | None = None,
) -> Environment:
    """The environment of one expression; `variables` are those of the policy that come before it."""
    declared = {
        "object": DYN,
        "oldObject": DYN,
        "request": struct_type("kubernetes.AdmissionRequest"),
        "namespaceObject": struct_type("kubernetes.Namespace"),
    }
    if params:
        declared["params"] = DYN
    if authorizer:
        declared["authorizer"] = struct_type("kubernetes.authorization.Authorizer")
        declared["authorizer.requestResource"] = struct_type("kubernetes.authorization.ResourceCheck")
    if variables is not None:
        declared["variables"] = struct_type(VARIABLES_TYPE)
    return Environment(declared, structs=Structs(variables, made), functions=functions)


JSON_PATCH = struct_type("JSONPatch")
_JSON_PATCH_FIELDS: dict[str, Type] = {"op": STRING, "path": STRING, "from": STRING, "value": DYN}


class Made(FieldTable):
    """What mutations make: Object and Object.<path>, of any fields, and JSONPatch."""

    def has(self, name: str) -> bool:
        return name in ("JSONPatch", "Object") or name.startswith("Object.")

    def field(self, name: str, field: str) -> Type | None:
        if name == "JSONPatch":
            return _JSON_PATCH_FIELDS.get(field, UNSPECIFIED)
        return DYN


class Expressions:
    """Compiles the expressions of one policy's spec. `variables` are those that compile, in their order.

    `types` says better than dyn what some variables are, in terms of `structs`.
    """

    def __init__(
        self, spec: Mapping[str, Any], *, types: Mapping[str, Type] | None = None, structs: StructsOf | None = None
    ) -> None:
        self._params = spec.get("paramKind") is not None
        self._overwritten, self._structs = types, structs
        self._declared = bool(spec.get("variables"))
        self.variables: dict[str, Program] = {}
        self._types: dict[str, Type] = {}
        self.errors: dict[int, CelSyntaxError] = {}
        """Of variables, by their place."""
        for i, variable in enumerate(spec.get("variables") or ()):
            try:
                program = self._environment().compile(variable.get("expression", "").strip())
            except CelSyntaxError as error:
                self.errors[i] = error
                continue
            self.variables[variable.get("name", "")] = program
            self._types[variable.get("name", "")] = program.type

    def _environment(
        self,
        *,
        authorizer: bool = True,
        made: StructsOf | None = None,
        functions: Functions | None = None,
        variables: bool = True,
    ) -> Environment:
        types = dict(self._types) if variables and self._declared else None
        found = environment(
            params=self._params,
            authorizer=authorizer,
            variables=types,
            made=made if made is not None else self._structs,
            functions=functions,
        )
        found.variables.update(self._overwritten or {})
        return found

    def anything(self, source: str) -> Program:
        """An expression that may give anything. Raises CelSyntaxError."""
        return self._environment().compile(source.strip())

    def condition(self, source: str) -> Program:
        """A match condition; it knows no variables. Raises CelSyntaxError."""
        return checked(self._environment(variables=False).compile(source.strip()), BOOL)

    def validation(self, source: str) -> Program:
        return checked(self._environment().compile(source.strip()), BOOL)

    def message(self, source: str) -> Program:
        program = self._environment(authorizer=False).compile(source.strip())
        return checked(program, STRING)

    def annotation(self, source: str) -> Program:
        program = self._environment().compile(source.strip())
        return checked(program, STRING, NULL)

    def apply_configuration(self, source: str) -> Program:
        from kone.apimachinery.cel_kubernetes import JSON_PATCH as LIBRARY

        program = self._environment(made=Made(), functions=LIBRARY).compile(source.strip())
        return checked(program, struct_type("Object"))

    def json_patch(self, source: str) -> Program:
        from kone.apimachinery.cel_kubernetes import JSON_PATCH as LIBRARY

        program = self._environment(made=Made(), functions=LIBRARY).compile(source.strip())
        return checked(program, list_of(JSON_PATCH))


class WrongResult(Exception):
    """An expression compiles and gives something else than it must."""


def checked(program: Program, *wanted: Type) -> Program:
    """Raises WrongResult where the program's type is none of those."""
    if program.type in wanted:
        return program
    shown = str(wanted[0]) if len(wanted) == 1 else f"one of [{' '.join(_NAMES.get(t.kind, str(t)) for t in wanted)}]"
    raise WrongResult(f"must evaluate to {shown} but got {program.type}")


_NAMES = {"null": "null_type"}


def finding(compile_: Callable[[str], Program], source: str) -> str:
    """What is wrong with an expression, in upstream's words; "" where nothing is."""
    try:
        compile_(source)
    except CelProgramError as error:
        return f"program instantiation failed: {error}"
    except CelSyntaxError as error:
        return f"compilation failed: {error}"
    except WrongResult as error:
        return str(error)
    return ""
