"""What is done to pods by a POST: bound to a node, evicted as disruption budgets allow.

Rules and texts: kubernetes/pkg/registry/core/pod/storage.
"""

from __future__ import annotations

from typing import Final

from kone.apimachinery.errors import (
    FieldError,
    StatusError,
    bad_request,
    conflict,
    forbidden,
    invalid_value,
    not_supported,
    required,
    too_many_requests,
)
from kone.apimachinery.kinds import PODDISRUPTIONBUDGETS, PODS
from kone.apimachinery.names import is_dns1123_subdomain
from kone.apimachinery.objects import (
    Object,
    deep_copy,
    dig,
    find_condition,
    generation_of,
    is_deleting,
    is_pod_ready,
    is_pod_terminal,
    labels_of,
    metadata,
    name_of,
    other_conditions,
)
from kone.apimachinery.selectors import from_label_selector
from kone.apimachinery.timestamps import format_time
from kone.apiserver.context import Answer, DeleteOptions, RequestContext
from kone.apiserver.options import parse_delete_body
from kone.apiserver.verbs import Verbs
from kone.registry.resource import Resource

DISRUPTED_PODS_MAX: Final = 2000
SUCCESS: Final[Object] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
_REFUSED: Final = "Cannot evict pod as it would violate the pod's disruption budget."


async def bind(
    verbs: Verbs, ctx: RequestContext, resource: Resource, namespace: str, name: str, binding: Object
) -> Answer:
    """Give the pod the node that the Binding names. Raises 409 where it has one, is being deleted or is gated."""
    meta = metadata(binding)
    if resource.gvr.resource == PODS.resource and name != meta.get("name", ""):
        raise bad_request("name in URL does not match name in Binding object")
    name = meta.get("name", "")
    errors = list(_binding_errors(binding))
    if errors:
        raise StatusError(500, "", str(errors[0]) if len(errors) == 1 else f"[{', '.join(map(str, errors))}]")
    node = binding["target"]["name"]

    def change(pod: Object) -> Object:
        for field in ("uid", "resourceVersion"):
            if meta.get(field) and meta[field] != metadata(pod).get(field):
                label = "UID" if field == "uid" else "ResourceVersion"
                why = f"Precondition failed: {label} in precondition: {meta[field]}, {label} in object meta: "
                raise conflict("pods", name, why + str(metadata(pod).get(field, "")))
        refuse_binding(pod)
        bound: Object = deep_copy(pod)
        bound["spec"]["nodeName"] = node
        for field in ("annotations", "labels"):
            if meta.get(field):
                bound["metadata"][field] = {**(bound["metadata"].get(field) or {}), **meta[field]}
        status = bound.setdefault("status", {})
        status.pop("nominatedNodeName", None)
        set_condition(status, {"type": "PodScheduled", "status": "True"}, verbs.clock.now())
        return bound

    pods = verbs.registry.get(PODS)
    assert pods is not None
    await verbs.overwrite(ctx, pods, name, change, namespace=namespace)
    return Answer(dict(SUCCESS), code=201)


def _binding_errors(binding: Object) -> list[FieldError]:
    target: Object = binding.get("target") or {}
    found: list[FieldError] = []
    kind, node = target.get("kind", ""), target.get("name", "")
    if kind not in ("", "Node"):
        found.append(not_supported("target.kind", kind, ("Node", "<empty>")))
    if not node:
        found.append(required("target.name"))
    elif kind in ("", "Node"):
        found.extend(invalid_value("target.name", node, text) for text in is_dns1123_subdomain(node))
    return found


def refuse_binding(pod: Object) -> None:
    """Raises 409 where the pod may not be bound."""
    name = name_of(pod)
    if is_deleting(pod):
        why = f"pod {name} is being deleted, cannot be assigned to a host"
    elif dig(pod, "spec", "nodeName"):
        why = f'pod {name} is already assigned to node "{pod["spec"]["nodeName"]}"'
    elif dig(pod, "spec", "schedulingGates"):
        why = f"pod {name} has non-empty .spec.schedulingGates"
    else:
        return
    raise conflict("pods/binding", name, why)


def set_condition(status: Object, condition: Object, now: float) -> None:
    """Put a condition into a pod's status, in place; its transition time moves with its status only."""
    conditions: list[Object] = status.setdefault("conditions", [])
    stamped = {"lastProbeTime": None, "lastTransitionTime": format_time(now), **condition}
    for i, present in enumerate(conditions):
        if present.get("type") == condition["type"]:
            if present.get("status") == condition["status"] and "lastTransitionTime" in present:
                stamped["lastTransitionTime"] = present["lastTransitionTime"]
            conditions[i] = stamped
            return
    conditions.append(stamped)


async def evict(
    verbs: Verbs, ctx: RequestContext, resource: Resource, namespace: str, name: str, eviction: Object
) -> Answer:
    """Delete the pod if no disruption budget forbids it: 429 where one does."""
    if name != metadata(eviction).get("name", ""):
        raise bad_request("name in URL does not match name in Eviction object")
    options, dry_run = parse_delete_body(eviction.get("deleteOptions") or {})
    ctx.dry_run = ctx.dry_run or dry_run
    pod = (await verbs.get(resource, name, namespace)).obj
    version = options.resource_version
    if _needs_no_budget(pod):
        # A pending pod may become ready meanwhile: then it is guarded after all.
        if version is None and not (is_pod_terminal(pod) or is_deleting(pod)):
            options = _at_version(options, pod)
        await _mark_and_delete(verbs, ctx, resource, namespace, name, options)
        return Answer(dict(SUCCESS), code=201)
    budgets = [budget for budget in _budgets(verbs, namespace) if _guards(budget, pod)]
    if len(budgets) > 1:
        why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
        raise StatusError(500, "", why)
    if budgets:
        if _unhealthy_may_go(budgets[0], pod):
            options = options if version is not None else _at_version(options, pod)
        else:
            await _spend(verbs, ctx, namespace, name, name_of(budgets[0]))
    try:
        await _mark_and_delete(verbs, ctx, resource, namespace, name, options)
    except StatusError as error:
        if error.reason == "Conflict" and version is None and options.resource_version is not None:
            raise _still_processed(name_of(budgets[0])) from error
        raise
    return Answer(dict(SUCCESS), code=201)


def _needs_no_budget(pod: Object) -> bool:
    return is_pod_terminal(pod) or dig(pod, "status", "phase") == "Pending" or is_deleting(pod)


def _at_version(options: DeleteOptions, pod: Object) -> DeleteOptions:
    return DeleteOptions(
        options.grace_s,
        options.uid,
        metadata(pod)["resourceVersion"],
        options.propagation,
        options.orphan_dependents,
    )


def _budgets(verbs: Verbs, namespace: str) -> list[Object]:
    return [entry.obj for entry in verbs.caches.of(*_PDB).list(namespace)]


_PDB: Final = (PODDISRUPTIONBUDGETS.group, PODDISRUPTIONBUDGETS.resource)


def _guards(budget: Object, pod: Object) -> bool:
    try:
        return from_label_selector(dig(budget, "spec", "selector")).matches(labels_of(pod))
    except ValueError:
        return False  # an invalid selector matches nothing


def _unhealthy_may_go(budget: Object, pod: Object) -> bool:
    """Whether a pod that is not ready may go without spending the budget: it does not count as available anyhow."""
    if is_pod_ready(pod):
        return False
    if dig(budget, "spec", "unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    desired = dig(budget, "status", "desiredHealthy", default=0)
    return bool(dig(budget, "status", "currentHealthy", default=0) >= desired > 0)


async def _spend(verbs: Verbs, ctx: RequestContext, namespace: str, pod_name: str, budget_name: str) -> None:
    """Take one disruption from the budget. Raises 429 where there is none, 403 where its state is broken."""
    resource = verbs.registry.get(PODDISRUPTIONBUDGETS)
    assert resource is not None
    now = format_time(verbs.clock.now())

    def spent(budget: Object) -> Object:
        check_budget(budget)
        changed: Object = deep_copy(budget)
        status = changed["status"]
        status["disruptionsAllowed"] -= 1
        status["disruptedPods"] = {**(status.get("disruptedPods") or {}), pod_name: now}
        if status["disruptionsAllowed"] == 0:
            _tell_that_none_is_left(changed, now)
        return changed

    await verbs.overwrite(ctx, resource, budget_name, spent, namespace=namespace)


def _tell_that_none_is_left(budget: Object, now: str) -> None:
    """Set the condition DisruptionAllowed in place, so that nobody waits for the controller to read it."""
    status, before = budget["status"], find_condition(budget, "DisruptionAllowed")
    was_false = before is not None and before.get("status") == "False"
    condition = {
        "type": "DisruptionAllowed",
        "status": "False",
        "observedGeneration": status.get("observedGeneration", 0),
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and was_false else now,
        "reason": "InsufficientPods",
        "message": "",
    }
    status["conditions"] = [*other_conditions(budget, "DisruptionAllowed"), condition]


def check_budget(budget: Object) -> None:
    """Raises what an eviction is told that the budget does not allow."""
    name, status = name_of(budget), budget.get("status") or {}
    if status.get("observedGeneration", 0) < generation_of(budget):
        raise _still_processed(name)
    allowed = status.get("disruptionsAllowed", 0)
    currently = f"The disruption budget {name} does not allow evicting pods currently"
    if allowed < 0:
        why = "pdb disruptions allowed is negative"
        raise _with_cause(forbidden("poddisruptionbudget.policy", name, why), f"{currently}: {why}")
    if len(status.get("disruptedPods") or {}) > DISRUPTED_PODS_MAX:
        why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller"
        more = f"{currently}: too many pending evictions not confirmed by PDB controller"
        raise _with_cause(forbidden("poddisruptionbudget.policy", name, why), more)
    if allowed == 0:
        raise _with_cause(too_many_requests(_REFUSED, 0), _why_none(budget, currently))


def _why_none(budget: Object, currently: str) -> str:
    status = budget.get("status") or {}
    condition = find_condition(budget, "DisruptionAllowed")
    told = ""
    if condition is not None and condition.get("status") == "False":
        told = condition.get("message", "")
    if told and condition is not None and condition.get("reason") == "SyncFailed":
        return f"{currently} because it failed sync: {told}"
    desired, current = status.get("desiredHealthy", 0), status.get("currentHealthy", 0)
    if current <= desired:
        return f"The disruption budget {name_of(budget)} needs {desired} healthy pods and has {current} currently"
    if told and condition is not None:
        return f"{currently} ({condition.get('reason', '')}): {told}"
    return currently


def _with_cause(error: StatusError, message: str) -> StatusError:
    error.details["causes"] = [{"reason": "DisruptionBudget", "message": message}]
    return error


def _still_processed(budget_name: str) -> StatusError:
    why = f"The disruption budget {budget_name} is still being processed by the server."
    return _with_cause(too_many_requests(_REFUSED, 10), why)


async def _mark_and_delete(
    verbs: Verbs, ctx: RequestContext, resource: Resource, namespace: str, name: str, options: DeleteOptions
) -> None:
    """Say on the pod why it goes, then delete it."""
    if not ctx.dry_run:

        def marked(pod: Object) -> Object:
            for label, wanted, field in (
                ("UID", options.uid, "uid"),
                ("ResourceVersion", options.resource_version, "resourceVersion"),
            ):
                have = metadata(pod).get(field, "")
                if wanted and wanted != have:
                    what = "deleted and then recreated" if field == "uid" else "modified"
                    raise conflict(
                        "Pod",
                        name,
                        f"the {label} in the precondition ({wanted}) does not match the {label} in record ({have}). "
                        f"The object might have been {what}",
                    )
            changed: Object = deep_copy(pod)
            condition = {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting",
            }
            set_condition(changed.setdefault("status", {}), condition, verbs.clock.now())
            return changed

        answer = await verbs.overwrite(ctx, resource, name, marked, namespace=namespace)
        if options.resource_version is not None:
            options = _at_version(options, answer.obj)
    await verbs.delete(ctx, resource, name, options, namespace=namespace)
