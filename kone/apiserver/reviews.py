"""Questions put by a POST: who am I, whose token is this, may they, what may I; and the request for a token.

Nothing is stored. Rules and texts: kubernetes/pkg/registry/authentication and authorization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kone.apimachinery.access import AccessRequest
from kone.apimachinery.errors import (
    FieldError,
    bad_request,
    forbidden_field,
    invalid,
    invalid_value,
    required,
)
from kone.apimachinery.objects import Object, metadata
from kone.apimachinery.selectors import parse_field_selector
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.apiserver.context import Answer, RequestContext
from kone.apiserver.verbs import Verbs
from kone.auth.authentication import Authenticator, user_info
from kone.auth.authorizer import Authorizer
from kone.auth.tokens import ServiceAccountTokens
from kone.registry.resource import Resource

ONE_OF = "exactly one of nonResourceAttributes or resourceAttributes must be specified"


class Reviews:
    """The answers; each method is one kind's."""

    def __init__(self, authenticator: Authenticator, authorizer: Authorizer, tokens: ServiceAccountTokens) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._tokens = tokens

    async def token_request(
        self, verbs: Verbs, ctx: RequestContext, resource: Resource, namespace: str, name: str, body: Object
    ) -> Answer:
        """A token for a service account."""
        given = metadata(body).get("namespace", "")
        if given and given != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        return Answer(self._tokens.request(namespace, name, body), code=201)

    async def token_review(
        self, verbs: Verbs, ctx: RequestContext, resource: Resource, namespace: str, name: str, review: Object
    ) -> Answer:
        spec: Object = review.get("spec") or {}
        if not spec.get("token"):
            raise bad_request("token is required for TokenReview in authentication")
        status = await self._authenticator.review(spec["token"], spec.get("audiences") or ())
        return Answer({**review, "status": status}, code=201)

    async def self_subject(
        self, verbs: Verbs, ctx: RequestContext, resource: Resource, namespace: str, name: str, review: Object
    ) -> Answer:
        answer = {
            "kind": review["kind"],
            "apiVersion": review["apiVersion"],
            "metadata": {"creationTimestamp": format_time(verbs.clock.now())},
            "status": {"userInfo": user_info(ctx.user)},
        }
        return Answer(answer, code=201)

    async def subject_access(
        self, verbs: Verbs, ctx: RequestContext, resource: Resource, namespace: str, name: str, review: Object
    ) -> Answer:
        """SubjectAccessReview, and LocalSubjectAccessReview where the resource is namespaced."""
        spec: Object = review.get("spec") or {}
        errors = _access_errors(spec)
        if not spec.get("user") and not spec.get("groups"):
            at = next((i for i, e in enumerate(errors) if e.field != "spec"), len(errors))
            errors.insert(at, invalid_value("spec.user", "", "at least one of user or group must be specified"))
        errors.extend(_metadata_errors(review, resource, namespace))
        if resource.namespaced:
            errors.extend(_local_errors(spec, namespace))
        if errors:
            raise invalid(".authorization.k8s.io", "", errors)
        user = User(
            spec.get("user", ""),
            spec.get("uid", ""),
            tuple(spec.get("groups") or ()),
            {key: tuple(values) for key, values in (spec.get("extra") or {}).items()},
        )
        return Answer({**review, "status": self._decide(user, spec)}, code=201)

    async def self_subject_access(
        self, verbs: Verbs, ctx: RequestContext, resource: Resource, namespace: str, name: str, review: Object
    ) -> Answer:
        spec: Object = review.get("spec") or {}
        errors = [*_access_errors(spec), *_metadata_errors(review, resource, namespace)]
        if errors:
            raise invalid(".authorization.k8s.io", "", errors)
        return Answer({**review, "status": self._decide(ctx.user, spec)}, code=201)

    async def self_subject_rules(
        self, verbs: Verbs, ctx: RequestContext, resource: Resource, namespace: str, name: str, review: Object
    ) -> Answer:
        wanted = (review.get("spec") or {}).get("namespace", "")
        if not wanted:
            raise bad_request("no namespace on request")
        found = self._authorizer.rules_for(ctx.user, wanted)
        status: Object = {
            "resourceRules": found.resource_rules,
            "nonResourceRules": found.non_resource_rules,
            "incomplete": found.incomplete,
        }
        if found.problem:
            status["evaluationError"] = found.problem
        return Answer({**review, "spec": {}, "status": status}, code=201)

    def _decide(self, user: User, spec: Object) -> Object:
        request, problem = _access_request(spec)
        verdict, reason = self._authorizer.decide(user, request)
        allowed = verdict is True
        status: Object = {"allowed": allowed}
        if verdict is None:
            status["denied"] = True
        if reason and not allowed and reason.startswith("RBAC: "):
            problem, reason = "; ".join(filter(None, (reason.removeprefix("RBAC: "), problem))), ""
        if reason:
            status["reason"] = reason
        if problem:
            status["evaluationError"] = problem
        return status


def _access_request(spec: Object) -> tuple[AccessRequest, str]:
    """(what is asked, what of it could not be understood)."""
    other = spec.get("nonResourceAttributes")
    if other is not None:
        return AccessRequest(other.get("verb", ""), path=other.get("path", "")), ""
    asked: Object = spec["resourceAttributes"]
    fields, problem = _fields(asked.get("fieldSelector") or {})
    request = AccessRequest(
        asked.get("verb", ""),
        asked.get("group", ""),
        asked.get("version") or "*",
        asked.get("resource", ""),
        asked.get("subresource", ""),
        asked.get("namespace", ""),
        asked.get("name", ""),
        fields=fields,
    )
    return request, problem


def _fields(selector: Object) -> tuple[tuple[tuple[str, str, str], ...], str]:
    raw = selector.get("rawSelector", "")
    if raw:
        try:
            return tuple((f, o, v) for f, o, v in parse_field_selector(raw).requirements), ""
        except ValueError as error:
            return (), f"spec.resourceAttributes.fieldSelector ignored: {error}"
    found: list[tuple[str, str, str]] = []
    for requirement in selector.get("requirements") or ():
        values: Sequence[str] = requirement.get("values") or ()
        if len(values) == 1 and requirement.get("operator") in ("In", "NotIn"):
            found.append((requirement["key"], "=" if requirement["operator"] == "In" else "!=", values[0]))
    return tuple(found), ""


def _access_errors(spec: Object) -> list[FieldError]:
    asked, other = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    errors: list[FieldError] = []
    if (asked is None) == (other is None):
        shown = None if other is None else {"Path": other.get("path", ""), "Verb": other.get("verb", "")}
        errors.append(invalid_value("spec", shown, ONE_OF))
    if asked is not None:
        for kind in ("fieldSelector", "labelSelector"):
            errors.extend(_selector_errors(asked.get(kind), f"spec.resourceAttributes.{kind}"))
    return errors


def _selector_errors(selector: Mapping[str, Any] | None, path: str) -> list[FieldError]:
    if selector is None:
        return []
    raw, requirements = selector.get("rawSelector", ""), selector.get("requirements") or []
    errors: list[FieldError] = []
    if raw and requirements:
        why = "may not specified at the same time as requirements"
        errors.append(invalid_value(f"{path}.rawSelector", raw, why))
    if not raw and not requirements:
        why = f"when {path} is specified, requirements or rawSelector is required"
        errors.append(required(f"{path}.requirements", why))
    for i, requirement in enumerate(requirements):
        errors.extend(_requirement_errors(requirement, f"{path}.requirements[{i}]"))
    return errors


def _requirement_errors(requirement: Mapping[str, Any], path: str) -> list[FieldError]:
    operator, values = requirement.get("operator", ""), requirement.get("values") or []
    errors: list[FieldError] = []
    if not requirement.get("key"):
        errors.append(required(f"{path}.key", "must be specified"))
    if operator in ("In", "NotIn") and not values:
        errors.append(required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
    if operator in ("Exists", "DoesNotExist") and values:
        why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
        errors.append(forbidden_field(f"{path}.values", why))
    return errors


def _metadata_errors(review: Object, resource: Resource, namespace: str) -> list[FieldError]:
    given = {k: v for k, v in metadata(review).items() if k != "managedFields"}
    if resource.namespaced:
        given.pop("namespace", None)
    if not given:
        return []
    why = "must be empty except for namespace" if resource.namespaced else "must be empty"
    return [invalid_value("metadata", given, why)]


def _local_errors(spec: Object, namespace: str) -> list[FieldError]:
    errors: list[FieldError] = []
    asked, other = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if asked is not None and asked.get("namespace", "") != namespace:
        where = "spec.resourceAttributes.namespace"
        errors.append(invalid_value(where, asked.get("namespace", ""), "must match metadata.namespace"))
    if other is not None:
        shown = {"Path": other.get("path", ""), "Verb": other.get("verb", "")}
        errors.append(invalid_value("spec.nonResourceAttributes", shown, "disallowed on this kind of request"))
    return errors
