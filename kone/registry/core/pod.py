"""Pods, and what their subresources may change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kone.apimachinery.errors import FieldError
from kone.apimachinery.kinds import PODS as GVR_PODS
from kone.apimachinery.names import is_dns1123_label
from kone.apimachinery.objects import Object
from kone.apimachinery.pod_resources import qos_class
from kone.apimachinery.users import User
from kone.registry.core import pod_printing, pod_spec, pod_status, pod_update, pod_warnings
from kone.registry.core.pod_defaults import default_pod
from kone.registry.core.pod_gates import drop_disabled, drop_disabled_status
from kone.registry.core.pod_parts import containers_with_path, pod_affinity_terms
from kone.registry.core.pod_security import APPARMOR_CONTAINER, apparmor_from_annotation, apparmor_profile
from kone.registry.core.resource_rules import is_huge_page, is_overcommit_allowed, is_pod_level, quantity
from kone.registry.equality import same
from kone.registry.resource import Resource, Subresource
from kone.registry.rules import Errors
from kone.registry.strategy import ALL_METADATA, SpecStrategy, StatusStrategy, keep_field

_PROXY_VERBS = ("create", "delete", "get", "patch", "update")


class PodStrategy(SpecStrategy):
    def default(self, obj: Object) -> None:
        default_pod(obj)

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> Sequence[str]:
        super().prepare(obj, old, user=user)
        if old is not None:
            return ()
        spec = obj["spec"]
        merge_label_keys(spec, obj["metadata"].get("labels") or {})
        warnings = _apparmor_fields(obj)
        if spec.get("resources"):
            default_pod_resources(spec)
        obj["status"]["qosClass"] = qos_class(obj)
        return warnings

    def initial_status(self, obj: Object) -> Object:
        drop_disabled(obj["spec"])
        status: Object = {"phase": "Pending"}
        if obj["spec"].get("schedulingGates"):
            status["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "lastProbeTime": None,
                    "lastTransitionTime": obj["metadata"].get("creationTimestamp"),
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                }
            ]
        return status

    def keep(self, obj: Object, old: Object) -> None:
        # Clients that do not know pod-level resources leave them out without meaning it.
        if obj["spec"].get("resources") is None and old["spec"].get("resources") is not None:
            obj["spec"]["resources"] = old["spec"]["resources"]
        drop_disabled(obj["spec"])

    def is_changed(self, obj: Object, old: Object) -> bool:
        return not same(obj["spec"], old["spec"])

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        if old is None:
            pod_spec.new_pod(errors, obj)
        else:
            pod_update.update(errors, obj, old)
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        if old is not None:
            return
        metadata = obj["metadata"]
        wrong = is_dns1123_label(metadata.get("name", ""))
        if wrong:
            why = "this is used in the Pod's hostname, which can result in surprising behavior"
            yield f"metadata.name: {why}; a DNS label is recommended: [{' '.join(wrong)}]"
        yield from pod_warnings.pod_warnings(obj["spec"], metadata.get("annotations") or {})

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        ips = status.get("podIPs") or ()
        return {
            "spec.nodeName": spec.get("nodeName", ""),
            "spec.restartPolicy": spec.get("restartPolicy", ""),
            "spec.schedulerName": spec.get("schedulerName", ""),
            "spec.serviceAccountName": spec.get("serviceAccountName", ""),
            "spec.hostNetwork": "true" if spec.get("hostNetwork") else "false",
            "status.phase": status.get("phase", ""),
            "status.podIP": ips[0].get("ip", "") if ips else "",
            "status.nominatedNodeName": status.get("nominatedNodeName", ""),
        }

    def graceful_deletion_s(self, obj: Object, requested: int | None) -> int | None:
        """The grace asked for, else the pod's own; none for a pod that no node runs (any more)."""
        spec, phase = obj["spec"], (obj.get("status") or {}).get("phase")
        if not spec.get("nodeName") or phase in ("Failed", "Succeeded"):
            return 0
        grace_s = requested if requested is not None else spec.get("terminationGracePeriodSeconds") or 0
        return 1 if grace_s < 0 else int(grace_s)


def merge_label_keys(spec: Object, labels: dict[str, str]) -> None:
    """Write matchLabelKeys and mismatchLabelKeys into the selectors they narrow, in place (KEP-3633, KEP-3243)."""
    for term in pod_affinity_terms(spec.get("affinity") or {}):
        if term.get("labelSelector") is not None:
            _merge(term["labelSelector"], term.get("matchLabelKeys") or (), "In", labels)
            _merge(term["labelSelector"], term.get("mismatchLabelKeys") or (), "NotIn", labels)
    for constraint in spec.get("topologySpreadConstraints") or ():
        if constraint.get("labelSelector") is not None:
            _merge(constraint["labelSelector"], constraint.get("matchLabelKeys") or (), "In", labels)


def _merge(selector: Object, keys: Iterable[str], operator: str, labels: dict[str, str]) -> None:
    added = [{"key": key, "operator": operator, "values": [labels[key]]} for key in keys if key in labels]
    if added:
        selector["matchExpressions"] = [*(selector.get("matchExpressions") or ()), *added]


def _apparmor_fields(pod: Object) -> list[str]:
    """Turn AppArmor's old annotations into fields, in place; returns what to warn of."""
    annotations, spec = pod["metadata"].get("annotations") or {}, pod["spec"]
    if not annotations or (spec.get("os") or {}).get("name") == "windows":
        return []
    warnings = []
    of_pod = (spec.get("securityContext") or {}).get("appArmorProfile")
    for container, _ in containers_with_path(spec, "spec"):
        key = f"{APPARMOR_CONTAINER}{container.get('name', '')}"
        if key not in annotations or (container.get("securityContext") or {}).get("appArmorProfile") is not None:
            continue
        profile = apparmor_from_annotation(annotations[key])
        errors: Errors = []
        apparmor_profile(errors, "", profile)
        if errors:
            profile = None
        if profile is not None and profile != of_pod:
            container.setdefault("securityContext", {})["appArmorProfile"] = profile
        elif profile is not None:
            continue
        warnings.append(pod_warnings.apparmor_warning("", key))
    return warnings


def default_pod_resources(spec: Object) -> None:
    """What spec.resources leaves open is derived from the containers (DefaultPodLevelResources), in place.

    In this order: limits of huge pages, requests (from the containers' where overcommitting is allowed, else from the
    limits), and limits where every container has one.
    """
    found = spec["resources"]
    if not found.get("requests") and not found.get("limits"):
        return
    limits, requests = dict(found.get("limits") or {}), dict(found.get("requests") or {})
    total_limits = pod_spec.aggregate(spec, "limits")
    for name, amount in total_limits.items():
        if is_huge_page(name) and name not in requests and name not in limits:
            limits[name] = amount.canonical()
    for name, amount in pod_spec.aggregate(spec, "requests").items():
        if name not in requests and is_pod_level(name) and is_overcommit_allowed(name):
            requests[name] = amount.canonical()
    for name, value in limits.items():
        if name not in requests and is_pod_level(name):
            requests[name] = value
    containers = [container for container, _ in containers_with_path(spec, "")]
    for name, value in requests.items():
        everywhere = all(name in ((c.get("resources") or {}).get("limits") or {}) for c in containers)
        if is_pod_level(name) and name not in limits and everywhere and name in total_limits:
            limits[name] = max(total_limits[name], quantity(value)).canonical()
    spec["resources"] = {
        **found,
        **({"limits": limits} if limits else {}),
        **({"requests": requests} if requests else {}),
    }


class _PodStatus(StatusStrategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        assert old is not None
        status, before = obj.setdefault("status", {}), old.get("status") or {}
        if not status.get("qosClass") and before.get("qosClass"):
            status["qosClass"] = before["qosClass"]  # old kubelets drop it
        for field in ("resourceClaimStatuses", "extendedResourceClaimStatus"):
            if status.get(field) is None and before.get(field) is not None:
                status[field] = before[field]
        if not status.get("observedGeneration") and before.get("observedGeneration"):
            status["observedGeneration"] = before["observedGeneration"]
        seen: dict[str, list[int]] = {}
        for condition in before.get("conditions") or ():
            seen.setdefault(condition.get("type", ""), []).append(condition.get("observedGeneration", 0))
        for condition in status.get("conditions") or ():
            generations = seen.get(condition.get("type", ""))
            was = generations.pop(0) if generations else 0
            if was and not condition.get("observedGeneration"):
                condition["observedGeneration"] = was
        drop_disabled_status(status)

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        assert old is not None
        pod_status.status_update(errors, obj, old)
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        status = obj.get("status") or {}
        for field in ("podIPs", "hostIPs"):
            for i, entry in enumerate(status.get(field) or ()):
                yield from pod_warnings.ip_warnings(f"status.{field}[{i}].ip", entry.get("ip", ""))


class _PodPart(PodStrategy):
    """An update that may change one part of the spec, and no metadata."""

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> Sequence[str]:
        assert old is not None, "the subresource is only ever updated"
        spec, before = obj["spec"], old["spec"]
        keep_field(obj, old, "status")
        for field in ALL_METADATA:
            keep_field(obj["metadata"], old["metadata"], field)
        drop_disabled(spec)
        obj["spec"] = self.merged(spec, before)
        if not same(obj["spec"], before):
            obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        return ()

    def merged(self, spec: Object, before: Object) -> Object:
        raise AssertionError("each subresource says what it may change")

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        return ()


class _EphemeralContainers(_PodPart):
    def merged(self, spec: Object, before: Object) -> Object:
        merged = {**before}
        keep_field(merged, spec, "ephemeralContainers")
        return merged

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        assert old is not None
        pod_update.ephemeral_containers(errors, obj, old)
        return errors


class _Resize(_PodPart):
    def merged(self, spec: Object, before: Object) -> Object:
        merged = {**before}
        for kind in ("containers", "initContainers"):
            found, was = spec.get(kind) or [], before.get(kind) or []
            if len(found) != len(was):
                return spec  # validation says that containers may not come or go
            if not found:
                continue
            if any(container.get("name") != old.get("name") for container, old in zip(found, was, strict=True)):
                merged[kind] = found  # as it says of other names
                continue
            merged[kind] = [_with_resources(old, container) for container, old in zip(found, was, strict=True)]
        if spec.get("resources") is not None:
            merged["resources"] = spec["resources"]
        if merged.get("resources") is not None:
            default_pod_resources(merged)
        return merged

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        assert old is not None
        pod_update.resize(errors, obj, old)
        return errors


def _with_resources(old: Object, new: Object) -> Object:
    merged = {**old}
    for field in ("resources", "resizePolicy"):
        keep_field(merged, new, field)
    return merged


_strategy = PodStrategy()

PODS = Resource(
    gvr=GVR_PODS,
    kind="Pod",
    short_names=("po",),
    categories=("all",),
    strategy=_strategy,
    status=_PodStatus(_strategy, kept=("spec",), kept_metadata=("deletionTimestamp", "ownerReferences")),
    columns=pod_printing.COLUMNS,
    subresources={
        "attach": Subresource("PodAttachOptions", verbs=("create", "get")),
        "binding": Subresource("Binding", verbs=("create",)),
        "ephemeralcontainers": Subresource(strategy=_EphemeralContainers()),
        "eviction": Subresource("Eviction", verbs=("create",), group="policy", version="v1"),
        "exec": Subresource("PodExecOptions", verbs=("create", "get")),
        "log": Subresource(verbs=("get",)),
        "portforward": Subresource("PodPortForwardOptions", verbs=("create", "get")),
        "proxy": Subresource("PodProxyOptions", verbs=_PROXY_VERBS),
        "resize": Subresource(strategy=_Resize()),
    },
)
