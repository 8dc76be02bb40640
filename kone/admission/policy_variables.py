"""What CEL expressions of webhooks and policies may speak of, declared and filled in for one write.

object, oldObject, request, namespaceObject, authorizer, authorizer.requestResource, and of policies params and
variables. Declarations: k8s.io/apiserver, pkg/admission/plugin/cel/compile.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from kone.admission.chain import Attributes, Authorizer
from kone.admission.webhooks_matching import Invocation
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.cel import (
    BOOL,
    DYN,
    INT,
    STRING,
    TIMESTAMP,
    Environment,
    FieldTable,
    Type,
    list_of,
    map_of,
    struct_type,
)
from kone.apimachinery.cel_functions import Functions
from kone.apimachinery.cel_values import parse_timestamp
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User, service_account_user

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

    def __init__(self, variables: Mapping[str, Type] | None = None, made: FieldTable | None = None) -> None:
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
    made: FieldTable | None = None,
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


@cache
def webhook_environment() -> Environment:
    """Of a webhook's match conditions."""
    return environment()


def user_info(user: User) -> Object:
    """authentication.k8s.io/v1 UserInfo."""
    info: Object = {"username": user.name} if user.name else {}
    if user.uid:
        info["uid"] = user.uid
    if user.groups:
        info["groups"] = list(user.groups)
    if user.extra:
        info["extra"] = {key: list(values) for key, values in user.extra.items()}
    return info


def request_object(a: Attributes, invocation: Invocation) -> Object:
    """The AdmissionRequest of a write, but for its uid and the objects."""
    kind, resource = invocation.kind, invocation.resource
    request: Object = {
        "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "resource": {"group": resource.group, "version": resource.version, "resource": resource.resource},
    }
    if a.subresource:
        request["subResource"] = a.subresource
    request["requestKind"] = {"group": a.kind.group, "version": a.kind.version, "kind": a.kind.kind}
    own = a.resource
    request["requestResource"] = {"group": own.group, "version": own.version, "resource": own.resource}
    if a.subresource:
        request["requestSubResource"] = a.subresource
    name = a.name or ((a.obj or {}).get("metadata") or {}).get("name", "")
    if name:
        request["name"] = name
    if a.namespace:
        request["namespace"] = a.namespace
    request["operation"] = a.operation
    request["userInfo"] = user_info(a.user)
    return request


def variables_of(
    a: Attributes,
    invocation: Invocation,
    *,
    obj: Object | None,
    old: Object | None,
    namespace: Object | None,
    authorizer: Authorizer,
) -> dict[str, Any]:
    """The values of the declared variables, but for params and variables."""
    # Here and not on top: cel_kubernetes is imported with the first expression.
    from kone.apimachinery.cel_kubernetes import Question, resource_check
    from kone.apimachinery.cel_kubernetes import authorizer as authorizer_value

    request = request_object(a, invocation)
    request["dryRun"] = a.dry_run
    request["options"] = a.options

    def decide(question: Question) -> tuple[bool, str]:
        return authorizer.allowed(*_asked(a.user, question))

    own = Question(
        group=a.resource.group,
        resource=a.resource.resource,
        subresource=a.subresource,
        namespace=a.namespace,
        name=a.name,
    )
    return {
        "object": obj,
        "oldObject": old,
        "request": request,
        "namespaceObject": _namespace_value(namespace),
        "authorizer": authorizer_value(decide),
        "authorizer.requestResource": resource_check(decide, own),
    }


def _asked(user: User, question: Any) -> tuple[User, AccessRequest]:
    if question.service_account is not None:
        user = service_account_user(*question.service_account)
    if question.path:
        return user, AccessRequest(question.verb, path=question.path)
    return user, AccessRequest(
        question.verb,
        question.group,
        "*",
        question.resource,
        question.subresource,
        question.namespace,
        question.name,
    )


def _namespace_value(namespace: Object | None) -> Object | None:
    if namespace is None:
        return None
    meta = dict(namespace["metadata"])
    if "uid" in meta:
        meta["UID"] = meta.pop("uid")
    for field in ("creationTimestamp", "deletionTimestamp"):
        if field in meta:
            meta[field] = parse_timestamp(meta[field])
    return {**{key: namespace[key] for key in ("spec", "status") if key in namespace}, "metadata": meta}
