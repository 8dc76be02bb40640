"""What CEL expressions of webhooks and policies speak of, filled in for one write: object, oldObject, request,
namespaceObject, authorizer and authorizer.requestResource (declared in registry/policy_expressions.py).
"""

from __future__ import annotations

from typing import Any

from kone.admission.plugin import Attributes, Authorizer
from kone.admission.webhooks_matching import Invocation
from kone.apimachinery.access import AccessRequest
from kone.apimachinery.cel_values import parse_timestamp
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User, service_account_user


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
