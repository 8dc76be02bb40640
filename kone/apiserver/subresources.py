"""What lies under an object's URL, and the kinds of which nothing is stored: who answers which.

status, resize, ephemeralcontainers, approval and finalize write the object itself under rules of their own; scale
shows a part of it; the rest are actions.
"""

from __future__ import annotations

from typing import Final

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVK
from kone.apimachinery.objects import Object, deep_copy, dig, metadata, replace_in
from kone.apimachinery.patch import Patch
from kone.apiserver import pod_actions
from kone.apiserver.context import Answer, RequestContext
from kone.apiserver.ownership import check_config
from kone.apiserver.reviews import Reviews
from kone.apiserver.scale import SCALE, check_replicas, not_applied, scale_of, scale_spec, scaled
from kone.apiserver.verbs import Actions, Verbs
from kone.registry.resource import Resource

AUTHENTICATION: Final = "authentication.k8s.io"
AUTHORIZATION: Final = "authorization.k8s.io"


def actions(reviews: Reviews) -> Actions:
    """Every POST that is no creation of an object."""
    return {
        ("", "bindings", ""): pod_actions.bind,
        ("", "pods", "binding"): pod_actions.bind,
        ("", "pods", "eviction"): pod_actions.evict,
        ("", "serviceaccounts", "token"): reviews.token_request,
        (AUTHENTICATION, "tokenreviews", ""): reviews.token_review,
        (AUTHENTICATION, "selfsubjectreviews", ""): reviews.self_subject,
        (AUTHORIZATION, "subjectaccessreviews", ""): reviews.subject_access,
        (AUTHORIZATION, "localsubjectaccessreviews", ""): reviews.subject_access,
        (AUTHORIZATION, "selfsubjectaccessreviews", ""): reviews.self_subject_access,
        (AUTHORIZATION, "selfsubjectrulesreviews", ""): reviews.self_subject_rules,
    }


def body_kind(resource: Resource, subresource: str) -> GVK:
    """The kind that a request's body is of."""
    part = resource.all_subresources().get(subresource) if subresource else None
    if part is None or not part.kind:
        return resource.gvk
    if part.version:
        return GVK(part.group, part.version, part.kind)
    return GVK(resource.gvr.group, resource.gvr.version, part.kind)


async def read(verbs: Verbs, resource: Resource, subresource: str, name: str, namespace: str, version: str) -> Answer:
    """GET of an object or of what lies under it."""
    if resource.virtual:
        return await verbs.computed_answer(resource, name, namespace)
    answer = await verbs.get(resource, name, namespace, version)
    if subresource == "scale":
        spec = scale_spec(resource)
        check_replicas(spec, answer.obj)
        return Answer(scale_of(spec, answer.obj))
    return answer


async def act(
    verbs: Verbs,
    ctx: RequestContext,
    resource: Resource,
    subresource: str,
    obj: Object,
    *,
    namespace: str,
    name: str,
) -> Answer:
    """POST to a subresource, or of a kind of which nothing is stored."""
    action = verbs.actions.get((resource.gvr.group, resource.gvr.resource, subresource))
    if action is None:
        raise StatusError(404, "NotFound", "the server could not find the requested resource", details={})
    gvk = body_kind(resource, subresource)
    obj = verbs.decoded_as(ctx, gvk, obj)
    if resource.virtual:
        for field in ("creationTimestamp", "uid", "resourceVersion", "selfLink", "managedFields"):
            obj["metadata"].pop(field, None)
        if resource.namespaced:
            verbs.check_namespace(resource, obj, namespace)
    attributes = verbs.attributes(ctx, resource, "CREATE", subresource, namespace, name, obj, None)
    await verbs.admission.mutate(attributes)
    await verbs.admission.validate(attributes)
    return await action(verbs, ctx, resource, namespace, name, attributes.obj or obj)


async def replace(
    verbs: Verbs,
    ctx: RequestContext,
    resource: Resource,
    subresource: str,
    name: str,
    obj: Object,
    *,
    namespace: str,
) -> Answer:
    """PUT of an object or of what lies under it."""
    if subresource != "scale":
        return await verbs.update(ctx, resource, name, obj, namespace=namespace, subresource=subresource)
    scale = verbs.decoded_as(ctx, SCALE, obj)
    verbs.check_names(resource, scale, name, namespace)
    spec = scale_spec(resource)

    async def make(live: Object | None) -> Object:
        changed: Object = deep_copy(scaled(spec, live or {}, scale))
        return changed

    answer = await verbs.write(
        ctx,
        resource,
        name,
        make,
        namespace=namespace,
        subresource=subresource,
        uid=metadata(scale).get("uid", ""),
    )
    return Answer(scale_of(spec, answer.obj))


async def amend(
    verbs: Verbs,
    ctx: RequestContext,
    resource: Resource,
    subresource: str,
    name: str,
    patch: Patch,
    *,
    namespace: str,
) -> Answer:
    """PATCH of an object or of what lies under it."""
    if subresource != "scale":
        return await verbs.patch(ctx, resource, name, patch, namespace=namespace, subresource=subresource)
    spec = scale_spec(resource)

    async def make(live: Object | None) -> Object:
        assert live is not None
        scale = verbs.patched(ctx, SCALE, scale_of(spec, live), patch)
        verbs.check_names(resource, scale, name, namespace)
        changed: Object = deep_copy(scaled(spec, live, scale))
        return changed

    answer = await verbs.write(ctx, resource, name, make, namespace=namespace, subresource=subresource)
    return Answer(scale_of(spec, answer.obj))


async def apply(
    verbs: Verbs,
    ctx: RequestContext,
    resource: Resource,
    subresource: str,
    name: str,
    config: Object,
    *,
    namespace: str,
) -> Answer:
    """Server-side apply to an object or to what lies under it."""
    if subresource != "scale":
        return await verbs.apply(ctx, resource, name, config, namespace=namespace, subresource=subresource)
    check_config(config, SCALE)
    if resource.custom is not None:
        raise not_applied(config)
    spec = scale_spec(resource)
    parent: Object = {"apiVersion": resource.gvr.api_version, "kind": resource.kind, "metadata": {"name": name}}
    if (replicas := dig(config, "spec", "replicas")) is not None:
        parent = replace_in(parent, spec.spec_replicas, replicas)

    async def make(live: Object | None) -> Object:
        assert live is not None
        scale = verbs.decoded_as(ctx, SCALE, config)
        verbs.check_names(resource, scale, name, namespace)
        scaled(spec, live, scale)
        return await verbs.applied_scale(ctx, resource, live, parent)

    answer = await verbs.write(ctx, resource, name, make, namespace=namespace, subresource=subresource, applied=True)
    return Answer(scale_of(spec, answer.obj))
