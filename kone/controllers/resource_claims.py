"""ResourceClaims: made for pods from templates, reserved for pods that were bound past the scheduler, given free when
nobody uses them any more."""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR, PODS
from kone.apimachinery.objects import (
    Key,
    Object,
    annotations_of,
    controller_of,
    dig,
    has_finalizer,
    is_controlled_by,
    is_deleting,
    is_pod_terminal,
    key_of,
    name_of,
    namespace_of,
    other_finalizers,
    replace_in,
    uid_of,
)
from kone.apimachinery.pod_references import resource_claim_names
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, NotYet, Reconciler, Result, Watch, for_object
from kone.controllers.pod_control import controlled_by, index_by_controller

CLAIMS = GVR("resource.k8s.io", "v1", "resourceclaims")
TEMPLATES = GVR("resource.k8s.io", "v1", "resourceclaimtemplates")
FINALIZER = "resource.kubernetes.io/delete-protection"
POD_CLAIM = "resource.kubernetes.io/pod-claim-name"
RESERVED_MAX = 256
_NAME_MAX = 57  # leaves room for what the API adds
_BY_CLAIM, _BY_TEMPLATE = "resource claim", "resource claim template"


# Decide


def is_done(pod: Object) -> bool:
    """Surely no container of it runs or will run."""
    return is_pod_terminal(pod) or (is_deleting(pod) and not dig(pod, "spec", "nodeName"))


def _needs_claims(pod: Object) -> bool:
    """One that is done must not: its claims are being deleted."""
    return not is_done(pod) and not is_deleting(pod)


def pod_claims(pod: Object) -> list[Object]:
    return list(dig(pod, "spec", "resourceClaims", default=()))


def template_names(pod: Object) -> list[str]:
    return [name for claim in pod_claims(pod) if (name := claim.get("resourceClaimTemplateName"))]


def noted_name(pod: Object, pod_claim: Object) -> str | None:
    """The name in the pod's status of the claim that was made for it; "" where none was needed, None where none was
    made yet."""
    for status in dig(pod, "status", "resourceClaimStatuses", default=()):
        if status.get("name") == pod_claim["name"]:
            return str(status.get("resourceClaimName") or "")
    return None


def generated_prefix(pod_name: str, claim_name: str) -> str:
    """Of names that are too long, both are cut in proportion."""
    whole = f"{pod_name}-{claim_name}-"
    if len(whole) <= _NAME_MAX:
        return whole
    return f"{_cut(pod_name, len(whole))}-{_cut(claim_name, len(whole))}"


def _cut(name: str, whole: int) -> str:
    return name[: len(name) * _NAME_MAX // whole]


def claim_from(template: Object, pod: Object, pod_claim: Object) -> Object:
    inside = dig(template, "spec", "metadata", default={})
    owner = {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": name_of(pod),
        "uid": uid_of(pod),
        "controller": True,
    }
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {
            "generateName": generated_prefix(name_of(pod), pod_claim["name"]),
            "namespace": namespace_of(pod),
            "ownerReferences": [owner],
            "annotations": {**(inside.get("annotations") or {}), POD_CLAIM: pod_claim["name"]},
            "labels": dict(inside.get("labels") or {}),
        },
        "spec": dict(dig(template, "spec", "spec", default={})),
    }


def is_reserved_for(claim: Object, pod: Object) -> bool:
    return any(entry.get("uid") == uid_of(pod) for entry in reservations(claim))


def reservations(claim: Object) -> list[Object]:
    return list(dig(claim, "status", "reservedFor", default=()))


def without_finalizer(claim: Object) -> Object:
    return replace_in(claim, ("metadata", "finalizers"), other_finalizers(claim, FINALIZER))


# Act


class ClaimsOfPods(Reconciler):
    """Keys are pods."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(PODS)
        self._claims: Informer = ctx.client.informer(CLAIMS)
        self._templates: Informer = ctx.client.informer(TEMPLATES)
        index_by_controller(self._claims)
        _index_by_claim(self.primary)
        self.primary.add_index(_BY_TEMPLATE, lambda p: [f"{namespace_of(p)}/{n}" for n in template_names(p)])

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._templates, self._keys_of_template)
        yield Watch(self._claims, self._keys_of_claim)
        yield Watch(self.primary, self._keys_of_pod)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        if event != "DELETED" and _needs_claims(pod) and pod_claims(pod):
            yield key_of(pod)

    def _keys_of_claim(self, event: EventType, claim: Object, previous: Object | None) -> Iterable[Key]:
        for pod in _users_of(self.primary, claim):
            yield from self._keys_of_pod("MODIFIED", pod, None)

    def _keys_of_template(self, event: EventType, template: Object, previous: Object | None) -> Iterable[Key]:
        if event == "ADDED":
            users = self.primary.by_index(_BY_TEMPLATE, f"{namespace_of(template)}/{name_of(template)}")
            return [key_of(pod) for pod in users]
        return ()

    async def reconcile(self, key: Key) -> Result | None:
        pod = self.primary.get(*key)
        if pod is None or not _needs_claims(pod):
            return None
        made: dict[str, str] = {}
        for pod_claim in pod_claims(pod):
            try:
                name = await self._ensure(pod, pod_claim)
            except (StatusError, NotYet) as error:
                message = f"PodResourceClaim {pod_claim['name']}: {error}"
                self._ctx.recorder.event(pod, "Warning", "FailedResourceClaimCreation", message)
                raise
            if name:
                made[pod_claim["name"]] = name
        if made:
            pod = await self._note(pod, made)
        if dig(pod, "spec", "nodeName"):
            for name in resource_claim_names(pod):
                claim = self._claims.get(key.namespace, name)
                if claim is not None:
                    await self._reserve(claim, pod)
        return None

    async def _ensure(self, pod: Object, pod_claim: Object) -> str:
        """The name of the claim, where it is to be noted in the pod. Raises StatusError, NotYet."""
        template_name = pod_claim.get("resourceClaimTemplateName")
        noted = noted_name(pod, pod_claim)
        if not template_name or noted == "":
            return ""
        if noted is not None:
            claim = self._claims.get(namespace_of(pod), noted)
            if claim is not None and is_controlled_by(claim, pod):
                return ""
        for owned in controlled_by(self._claims, pod):
            # One that was made before, when its name could not be noted.
            if annotations_of(owned).get(POD_CLAIM) == pod_claim["name"] and not is_deleting(owned):
                return name_of(owned)
        template = self._templates.get(namespace_of(pod), template_name)
        if template is None:
            missing = f'resourceclaimtemplate.resource.k8s.io "{template_name}" not found'
            raise NotYet(f'resource claim template "{template_name}": {missing}')
        wanted = claim_from(template, pod, pod_claim)
        return name_of(await self._ctx.client.create(CLAIMS, wanted, namespace=namespace_of(pod)))

    async def _note(self, pod: Object, made: dict[str, str]) -> Object:
        statuses = [{"name": name, "resourceClaimName": made[name]} for name in sorted(made)]
        patch = {"metadata": {"uid": uid_of(pod)}, "status": {"resourceClaimStatuses": statuses}}
        return await self._ctx.client.patch(
            PODS, name_of(pod), patch, namespace=namespace_of(pod), subresource="status", kind="strategic"
        )

    async def _reserve(self, claim: Object, pod: Object) -> None:
        """The scheduler reserves; of a pod that was bound without it, this is left to do."""
        reserved = reservations(claim)
        if dig(claim, "status", "allocation") is None or is_reserved_for(claim, pod) or len(reserved) >= RESERVED_MAX:
            return
        owner = controller_of(claim)
        if owner is not None and owner.get("kind") == "Pod" and owner.get("uid") != uid_of(pod):
            return
        entry = {"resource": "pods", "name": name_of(pod), "uid": uid_of(pod)}
        changed = replace_in(claim, ("status", "reservedFor"), [*reserved, entry])
        await self._ctx.client.update(CLAIMS, changed, subresource="status")


class ClaimsInUse(Reconciler):
    """Keys are claims."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(CLAIMS)
        self._pods: Informer = ctx.client.informer(PODS)
        index_by_controller(self.primary)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self._pods, self._keys_of_pod)
        yield Watch(self.primary, for_object)

    def _keys_of_pod(self, event: EventType, pod: Object, previous: Object | None) -> Iterable[Key]:
        if event != "DELETED" and not is_done(pod):
            return
        for name in resource_claim_names(pod):
            yield Key(namespace_of(pod), name)
        yield from (key_of(claim) for claim in controlled_by(self.primary, pod))

    async def reconcile(self, key: Key) -> Result | None:
        claim = self.primary.get(*key)
        if claim is None:
            return None
        reserved = reservations(claim)
        staying = [entry for entry in reserved if self._is_valid(key.namespace, entry)]
        client = self._ctx.client
        if len(staying) < len(reserved):
            changed = replace_in(claim, ("status", "reservedFor"), staying)
            if not staying and has_finalizer(claim, FINALIZER):
                changed = _deallocated(changed)
            claim = await client.update(CLAIMS, changed, subresource="status")
            if has_finalizer(claim, FINALIZER) and dig(claim, "status", "allocation") is None:
                claim = await client.update(CLAIMS, without_finalizer(claim))
        elif has_finalizer(claim, FINALIZER) and is_deleting(claim) and not staying:
            if dig(claim, "status", "allocation") is not None:
                claim = await client.update(CLAIMS, _deallocated(claim), subresource="status")
            claim = await client.update(CLAIMS, without_finalizer(claim))
        if not staying and not is_deleting(claim):
            await self._delete_if_generated(claim)
        return None

    def _is_valid(self, namespace: str, entry: Object) -> bool:
        """Consumers other than pods are theirs to judge who know them."""
        if entry.get("apiGroup") or entry.get("resource") != "pods":
            return True
        pod = self._pods.get(namespace, entry.get("name", ""))
        return pod is not None and uid_of(pod) == entry.get("uid") and not is_done(pod)

    async def _delete_if_generated(self, claim: Object) -> None:
        """The pod that it was made for may be done long before it is deleted. When the pod is gone, the claim is the
        garbage collector's."""
        owner = controller_of(claim)
        if owner is None or (owner.get("apiVersion"), owner.get("kind")) != ("v1", "Pod"):
            return
        pod = self._pods.get(namespace_of(claim), owner["name"])
        if pod is None or (uid_of(pod) == owner["uid"] and not is_done(pod)):
            return
        try:
            await self._ctx.client.delete(CLAIMS, name_of(claim), namespace=namespace_of(claim), uid=uid_of(claim))
        except StatusError as error:
            if error.code not in (404, 409):
                raise


def _deallocated(claim: Object) -> Object:
    status = {key: value for key, value in (claim.get("status") or {}).items() if key != "allocation"}
    return {**claim, "status": status}


def _index_by_claim(pods: Informer) -> None:
    pods.add_index(_BY_CLAIM, lambda pod: [f"{namespace_of(pod)}/{name}" for name in resource_claim_names(pod)])


def _users_of(pods: Informer, claim: Object) -> list[Object]:
    return pods.by_index(_BY_CLAIM, f"{namespace_of(claim)}/{name_of(claim)}")


RESOURCE_CLAIM_CONTROLLER = Controller(
    "resourceclaim-controller", ClaimsOfPods, account="resource-claim-controller", component="resource_claim"
)
RESOURCE_CLAIM_RELEASE_CONTROLLER = Controller(
    "resourceclaim-release-controller", ClaimsInUse, account="resource-claim-controller", component="resource_claim"
)
