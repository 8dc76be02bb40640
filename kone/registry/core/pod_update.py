"""What an update may change of a pod: little of its spec, by subresource more, and never its history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import forbidden_field, go_quote, invalid_value, required
from kone.apimachinery.objects import Object
from kone.apimachinery.pod_resources import qos_class
from kone.registry.core import pod_scheduling, pod_spec
from kone.registry.core.pod_containers import trimmed_image
from kone.registry.core.pod_security import APPARMOR_CONTAINER
from kone.registry.equality import same
from kone.registry.internal import internal, internal_diff, sorted_map
from kone.registry.rules import Errors

_UPDATABLE = (
    "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` "
    "(only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
    "previously negative)"
)
_REQUIRED_AFFINITY = "requiredDuringSchedulingIgnoredDuringExecution"
_MAX_INT32 = 2**31 - 1


def annotation_updates(errors: Errors, obj: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """ValidatePodSpecificAnnotationUpdates."""
    annotations = obj["metadata"].get("annotations") or {}
    before = old["metadata"].get("annotations") or {}
    if annotations != before:
        for key in sorted(before):
            if annotations.get(key) != before[key]:
                _fixed_annotation(errors, key, "remove or update")
        for key in sorted(annotations):
            if key not in before:
                _fixed_annotation(errors, key, "add")
    pod_spec.pod_annotations(errors, "metadata.annotations", annotations, obj["spec"])


def _fixed_annotation(errors: Errors, key: str, what: str) -> None:
    if key.startswith(APPARMOR_CONTAINER):
        errors.append(forbidden_field(f"metadata.annotations[{key}]", f"may not {what} AppArmor annotations"))
    elif key == pod_spec.MIRROR:
        errors.append(forbidden_field(f"metadata.annotations[{key}]", f"may not {what} mirror pod annotation"))


def update(errors: Errors, obj: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """ValidatePodUpdate: an update of the pod itself."""
    pod_spec.pod(errors, obj)
    annotation_updates(errors, obj, old)
    spec, before = obj["spec"], old["spec"]
    if not _images(errors, spec, before) or not _deadline(errors, spec, before):
        return
    _tolerations(errors, spec, before)
    _gates(errors, spec.get("schedulingGates") or (), before.get("schedulingGates") or ())
    if spec == before:
        return
    munged = _with_updatable_fields_of(spec, before)
    if before.get("schedulingGates"):
        _gated(errors, munged, before)
    if not same(munged, before):
        text = f"pod updates may not change fields other than {_UPDATABLE}"
        diff = internal_diff("#core.PodSpec", before, munged)
        errors.append(forbidden_field("spec", f"{text}\n{diff}"))


def _images(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """False where the lists differ in length, so that nothing further can be compared."""
    for kind in ("containers", "initContainers"):
        found = spec.get(kind) or ()
        if len(found) != len(before.get(kind) or ()):
            errors.append(forbidden_field(f"spec.{kind}", "pod updates may not add or remove containers"))
            return False
        for i, container in enumerate(found):
            if not container.get("image"):
                errors.append(required(f"spec.{kind}[{i}].image"))
            trimmed_image(errors, f"spec.{kind}[{i}]", container)
    return True


def _deadline(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """It may be set, and may fall. False where upstream stops looking."""
    deadline, was, at = (
        spec.get("activeDeadlineSeconds"),
        before.get("activeDeadlineSeconds"),
        "spec.activeDeadlineSeconds",
    )
    if deadline is None:
        if was is not None:
            errors.append(invalid_value(at, None, "must not update from a positive integer to nil value"))
        return True
    if not 0 <= deadline <= _MAX_INT32:
        errors.append(invalid_value(at, deadline, f"must be between 0 and {_MAX_INT32}, inclusive"))
        return False
    if was is not None and was < deadline:
        errors.append(invalid_value(at, deadline, "must be less than or equal to previous value"))
        return False
    return True


def _tolerations(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    found, was = spec.get("tolerations") or [], before.get("tolerations") or []
    if found == was:
        return
    known = [_without_seconds(toleration) for toleration in found]
    if any(_without_seconds(toleration) not in known for toleration in was):
        text = "existing toleration can not be modified except its tolerationSeconds"
        errors.append(forbidden_field("spec.tolerations", text))
        return
    pod_scheduling.tolerations(errors, "spec.tolerations", found)


def _without_seconds(toleration: Mapping[str, Any]) -> Object:
    return {key: value for key, value in toleration.items() if key != "tolerationSeconds"}


def _gates(errors: Errors, gates: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> None:
    added = {gate.get("name", ""): i for i, gate in enumerate(gates)}
    for gate in before:
        added.pop(gate.get("name", ""), None)
    for name, i in added.items():
        text = f"only deletion is allowed, but found new scheduling gate '{name}'"
        errors.append(forbidden_field(f"spec.schedulingGates[{i}].name", text))


def _put(spec: Object, field: str, before: Mapping[str, Any]) -> None:
    if field in before:
        spec[field] = before[field]
    else:
        spec.pop(field, None)


def _with_updatable_fields_of(spec: Mapping[str, Any], before: Mapping[str, Any]) -> Object:
    """A copy in which what an update may change stands as it was: what differs still was not allowed."""
    munged = dict(spec)
    for kind in ("containers", "initContainers"):
        if munged.get(kind):
            munged[kind] = [
                {**container, "image": was.get("image", "")}
                for container, was in zip(munged[kind], before[kind], strict=True)
            ]
    for field in ("activeDeadlineSeconds", "schedulingGates", "tolerations"):
        _put(munged, field, before)
    grace_s = before.get("terminationGracePeriodSeconds")
    if grace_s is not None and grace_s < 0 and munged.get("terminationGracePeriodSeconds") == 1:
        munged["terminationGracePeriodSeconds"] = grace_s
    return munged


def _gated(errors: Errors, munged: Object, before: Mapping[str, Any]) -> None:
    """A gated pod's node selector and required node affinity may become narrower. Changes `munged` in place."""
    selector, was = munged.get("nodeSelector") or {}, before.get("nodeSelector") or {}
    if selector != was:
        if any(selector.get(key) != value for key, value in was.items()):
            text = "only additions to spec.nodeSelector are allowed (no mutations or deletions)"
            errors.append(invalid_value("spec.nodeSelector", sorted_map(munged.get("nodeSelector")), text))
        _put(munged, "nodeSelector", before)
    affinity, old_affinity = munged.get("affinity"), before.get("affinity")
    node, old_node = (affinity or {}).get("nodeAffinity"), (old_affinity or {}).get("nodeAffinity")
    if same(node, old_node):
        return
    _node_affinity(errors, node or {}, old_node or {})
    if affinity is None:
        munged["affinity"] = {"nodeAffinity": old_node}
    elif old_affinity is None and affinity.get("podAffinity") is None and affinity.get("podAntiAffinity") is None:
        del munged["affinity"]
    else:
        munged["affinity"] = {**affinity, "nodeAffinity": old_node}
        if old_node is None:
            del munged["affinity"]["nodeAffinity"]


def _node_affinity(errors: Errors, node: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    if before.get(_REQUIRED_AFFINITY) is None:
        return
    was = before[_REQUIRED_AFFINITY].get("nodeSelectorTerms") or []
    terms = (node.get(_REQUIRED_AFFINITY) or {}).get("nodeSelectorTerms") or []
    at = f"spec.affinity.nodeAffinity.{_REQUIRED_AFFINITY}.nodeSelectorTerms"
    if was and len(was) != len(terms):
        text = "no additions/deletions to non-empty NodeSelectorTerms list are allowed"
        errors.append(invalid_value(at, internal("[#core.NodeSelectorTerm", terms or None), text))
        return
    for i, (term, old_term) in enumerate(zip(terms, was, strict=False)):
        if not _has_only_additions(term, old_term):
            text = "only additions are allowed (no mutations or deletions)"
            errors.append(invalid_value(f"{at}[{i}]", internal("#core.NodeSelectorTerm", term), text))


def _has_only_additions(term: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    kinds = ("matchExpressions", "matchFields")
    if not any(before.get(kind) for kind in kinds):
        return not any(term.get(kind) for kind in kinds)
    return all((term.get(kind) or [])[: len(before.get(kind) or ())] == (before.get(kind) or []) for kind in kinds)


def ephemeral_containers(errors: Errors, obj: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """ValidatePodEphemeralContainersUpdate: new ones may come, none may change or go."""
    if pod_spec.MIRROR in (old["metadata"].get("annotations") or {}):
        errors.clear()
        errors.append(forbidden_field("", "static pods do not support ephemeral containers"))
        return
    pod_spec.pod(errors, obj)
    annotation_updates(errors, obj, old)
    at = "spec.ephemeralContainers"
    found = {container.get("name"): container for container in obj["spec"].get("ephemeralContainers") or ()}
    for was in old["spec"].get("ephemeralContainers") or ():
        name = was.get("name", "")
        if name not in found:
            text = f"existing ephemeral containers {go_quote(name)} may not be removed\n"
            errors.append(forbidden_field(at, text))
        elif not same(was, found[name]):
            diff = internal_diff("#core.EphemeralContainer", was, found[name])
            text = f"existing ephemeral containers {go_quote(name)} may not be changed\n{diff}"
            errors.append(forbidden_field(at, text))


def resize(errors: Errors, obj: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """ValidatePodResize: only cpu and memory of containers and of the pod, and neither may be taken away."""
    if pod_spec.MIRROR in (old["metadata"].get("annotations") or {}):
        errors.append(forbidden_field("", "static pods cannot be resized"))
        return
    if (old["spec"].get("os") or {}).get("name") == "windows":
        errors.append(forbidden_field("", "windows pods cannot be resized"))
        return
    pod_spec.pod(errors, obj)
    spec, before = obj["spec"], old["spec"]
    qos = (old.get("status") or {}).get("qosClass") or qos_class(dict(old))
    if qos != qos_class(dict(obj)):
        text = "Pod QOS Class may not change as a result of resizing"
        errors.append(invalid_value("spec", (obj.get("status") or {}).get("qosClass", ""), text))
    if not _node_can_resize(old):
        errors.append(forbidden_field("spec", "Pod running on node without support for resize"))
    if _has_resources(spec) or _has_resources(before):
        _pod_level_resize(errors, spec.get("resources"), before.get("resources"))
    if not _same_containers(errors, spec, before):
        return
    for kind in ("initContainers", "containers"):
        for i, (container, was) in enumerate(_pairs(spec, before, kind)):
            _nothing_removed(errors, f"spec.{kind}[{i}].resources", container, was)
    for container, was in _pairs(spec, before, "containers"):
        if not _same_but_for_compute(container, was):
            errors.append(forbidden_field("spec", "only cpu and memory resources are mutable"))
    for i, (container, was) in enumerate(
        zip(spec.get("initContainers") or (), before.get("initContainers") or (), strict=True)
    ):
        _init_container_resize(errors, f"spec.initContainers[{i}]", container, was)
    if not same(spec.get("volumes"), before.get("volumes")):
        gate = "InPlacePodVerticalScalingMemoryBackedVolumes feature gate is disabled"
        errors.append(forbidden_field("spec.volumes", f"volumes are immutable on resize when {gate}"))


def _pairs(spec: Mapping[str, Any], before: Mapping[str, Any], kind: str) -> Iterator[tuple[Object, Object]]:
    return zip(spec.get(kind) or (), before.get(kind) or (), strict=True)


def _has_resources(spec: Mapping[str, Any]) -> bool:
    found = spec.get("resources") or {}
    return bool(found.get("requests") or found.get("limits"))


def _node_can_resize(pod: Mapping[str, Any]) -> bool:
    """A node of an old version does not report the resources of running containers."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if (status.get("state") or {}).get("running") is not None:
            return status.get("resources") is not None
    return True


def _removed(found: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> bool:
    return any(name not in (found or {}) for name in before or ())


def _pod_level_resize(errors: Errors, found: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> None:
    if before is not None and found is None:
        errors.append(forbidden_field("spec.resources", "pod-level resources cannot be removed"))
        return
    for side in ("requests", "limits"):
        if before is not None and _removed((found or {}).get(side), before.get(side)):
            errors.append(forbidden_field(f"spec.resources.{side}", f"pod-level resource {side} cannot be removed"))
    if not same(_without_compute(found), _without_compute(before)):
        errors.append(forbidden_field("spec", "only cpu and memory resources are mutable at pod-level"))


def _without_compute(resources: Mapping[str, Any] | None) -> Object:
    found = dict(resources or {})
    for side in ("requests", "limits"):
        kept = {name: value for name, value in (found.get(side) or {}).items() if name not in ("cpu", "memory")}
        found.pop(side, None)
        if kept:
            found[side] = kept
    return found


def _same_containers(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    count = len(errors)
    for kind in ("containers", "initContainers"):
        found, was = spec.get(kind) or (), before.get(kind) or ()
        if len(found) != len(was):
            errors.append(forbidden_field(f"spec.{kind}", f"{kind} may not be added or removed on resize"))
            continue
        for i, (container, old) in enumerate(zip(found, was, strict=True)):
            if container.get("name") != old.get("name"):
                text = f"{kind} may not be renamed or reordered on resize"
                errors.append(forbidden_field(f"spec.{kind}[{i}].name", text))
    return len(errors) == count


def _nothing_removed(errors: Errors, path: str, container: Mapping[str, Any], was: Mapping[str, Any]) -> None:
    found, before = container.get("resources") or {}, was.get("resources") or {}
    for side in ("requests", "limits"):
        if _removed(found.get(side), before.get(side)):
            errors.append(forbidden_field(f"{path}.{side}", f"resource {side} cannot be removed"))


def _same_but_for_compute(container: Mapping[str, Any], was: Mapping[str, Any]) -> bool:
    return same(
        {**container, "resources": _without_compute(container.get("resources"))},
        {**was, "resources": _without_compute(was.get("resources"))},
    )


def _init_container_resize(errors: Errors, path: str, container: Mapping[str, Any], was: Mapping[str, Any]) -> None:
    if not _same_but_for_compute(container, was):
        text = "only cpu and memory resources for init or sidecar containers are mutable"
        errors.append(forbidden_field(path, text))
    if container.get("restartPolicy") == "Always" or same(container, was):
        return
    for policy in container.get("resizePolicy") or ():
        if policy.get("restartPolicy") == "RestartContainer":
            text = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized"
            errors.append(forbidden_field(path, text))
