"""Rules on a pod's status, which the kubelet writes (ValidatePodStatusUpdate)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
    too_long,
)
from kone.apimachinery.names import (
    is_dns1123_label,
    is_dns1123_subdomain,
    is_qualified_name,
    is_valid_group_id,
    is_valid_ip_legacy,
    parse_ip,
)
from kone.registry.core.pod_update import annotation_updates
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal
from kone.registry.rules import Errors, check

_SYSTEM_CONDITIONS = frozenset(("PodScheduled", "Ready", "Initialized"))
_HEALTHS = ("Healthy", "Unhealthy", "Unknown")
_MAX_HEALTH_MESSAGE = 1024  # v1.ResourceHealthMessageMaxLength
_STATUS_LISTS = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
_STATE_TEXT = "may not be transitioned to non-terminated state"


def status_update(errors: Errors, obj: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    annotation_updates(errors, obj, old)
    status, before, spec = obj.get("status") or {}, old.get("status") or {}, obj["spec"]
    _conditions(errors, status.get("conditions") or ())
    _nominated_node(errors, status, before, old["spec"])
    if status.get("observedGeneration", 0) < 0:
        text = "must be a non-negative integer"
        errors.append(invalid_value("status.observedGeneration", status["observedGeneration"], text))
    if status.get("qosClass", "") != before.get("qosClass", ""):
        errors.append(invalid_value("status.qosClass", status.get("qosClass", ""), IMMUTABLE))
    _transitions(errors, status, before, old["spec"])
    _claim_statuses(errors, status.get("resourceClaimStatuses") or (), spec.get("resourceClaims") or ())
    if status.get("extendedResourceClaimStatus") is not None:
        _extended_claim(errors, status["extendedResourceClaimStatus"], spec)
    _pod_ips(errors, status, before)
    _host_ips(errors, status, before)
    os = (spec.get("os") or {}).get("name", "linux")
    for kind in _STATUS_LISTS:
        for i, container in enumerate(status.get(kind) or ()):
            if container.get("user") is not None:
                _user(errors, f"status.{kind}[{i}].user", container["user"], os)
    for kind in _STATUS_LISTS:
        for i, container in enumerate(status.get(kind) or ()):
            if container.get("allocatedResourcesStatus"):
                _allocated(errors, f"status.{kind}[{i}].allocatedResourcesStatus", container, kind, obj)


def _conditions(errors: Errors, conditions: Sequence[Mapping[str, Any]]) -> None:
    for i, condition in enumerate(conditions):
        if condition.get("observedGeneration", 0) < 0:
            at = f"status.conditions[{i}].observedGeneration"
            errors.append(invalid_value(at, condition["observedGeneration"], "must be a non-negative integer"))
        kind = condition.get("type", "")
        if kind not in _SYSTEM_CONDITIONS:
            check(errors, f"status.conditions[{i}].Type", kind, is_qualified_name(kind))


def _nominated_node(
    errors: Errors, status: Mapping[str, Any], before: Mapping[str, Any], spec: Mapping[str, Any]
) -> None:
    name, at = status.get("nominatedNodeName", ""), "status.nominatedNodeName"
    if name and name != before.get("nominatedNodeName", ""):
        check(errors, at, name, is_dns1123_subdomain(name))
        if spec.get("nodeName"):
            errors.append(forbidden_field(at, "may not be set on pods that are already bound to a node"))


def _transitions(errors: Errors, status: Mapping[str, Any], before: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """A container that ended stays so, unless it may restart."""
    restarts_all = any(
        rule.get("action") == "RestartAllContainers"
        for kind in ("containers", "initContainers")
        for container in spec.get(kind) or ()
        for rule in container.get("restartPolicyRules") or ()
    )
    for kind, containers in (("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")):
        if restarts_all:
            break
        for i, name, ended in _revived(status.get(kind) or (), before.get(kind) or ()):
            container = next((c for c in spec.get(containers) or () if c.get("name") == name), None)
            if container is None or not _may_restart(container, spec, ended.get("exitCode", 0)):
                errors.append(forbidden_field(f"status.{kind}[{i}].state", _STATE_TEXT))
    kind = "ephemeralContainerStatuses"
    for i, _, _ in _revived(status.get(kind) or (), before.get(kind) or ()):
        errors.append(forbidden_field(f"status.{kind}[{i}].state", _STATE_TEXT))


def _revived(
    found: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> list[tuple[int, str, Mapping[str, Any]]]:
    """(index before, name, how it had ended) of the containers that were terminated and no longer are."""
    revived = []
    for i, was in enumerate(before):
        ended = (was.get("state") or {}).get("terminated")
        if ended is None:
            continue
        now = next((status for status in found if status.get("name") == was.get("name")), None)
        if now is not None and (now.get("state") or {}).get("terminated") is None:
            revived.append((i, str(was.get("name", "")), ended))
    return revived


def _may_restart(container: Mapping[str, Any], spec: Mapping[str, Any], exit_code: int) -> bool:
    """podutil.ContainerShouldRestart: rules by exit code, then the container's policy, then the pod's."""
    for rule in container.get("restartPolicyRules") or ():
        codes = rule.get("exitCodes") or {}
        listed = exit_code in (codes.get("values") or ())
        if listed == (codes.get("operator") == "In"):
            return True
    policy = container.get("restartPolicy") or spec.get("restartPolicy")
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def _claim_statuses(errors: Errors, statuses: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]]) -> None:
    names: set[str] = set()
    for i, status in enumerate(statuses):
        at, name, claim = f"status.resourceClaimStatuses[{i}]", status.get("name", ""), status.get("resourceClaimName")
        if not any(known.get("name") == name for known in claims):
            text = "must match the name of an entry in `spec.resourceClaims`"
            errors.append(invalid_value(f"{at}.name", name, text))
        if name in names:
            errors.append(duplicate(f"{at}.name", name))
        names.add(name)
        if claim is not None:
            check(errors, f"{at}.resourceClaimName", claim, is_dns1123_subdomain(claim))


def _extended_claim(errors: Errors, status: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    at = "status.extendedResourceClaimStatus"
    containers = {c.get("name"): c for kind in ("initContainers", "containers") for c in spec.get(kind) or ()}
    mappings = status.get("requestMappings") or ()
    if not mappings:
        errors.append(required(f"{at}.requestMappings", "at least one request mapping is required"))
    seen: set[tuple[str, str, str]] = set()
    for i, mapping in enumerate(mappings):
        path, request = f"{at}.requestMappings[{i}]", mapping.get("requestName", "")
        name, resource = mapping.get("containerName", ""), mapping.get("resourceName", "")
        if name not in containers:
            text = "must match the name of an entry in spec.initContainers.name or spec.containers.name"
            errors.append(invalid_value(f"{path}.containerName", name, text))
        elif resource not in ((containers[name].get("resources") or {}).get("requests") or {}):
            places = "spec.initContainers.resources.requests or spec.containers.resources.requests"
            text = f"must match the extended resource name of an entry in {places}"
            errors.append(invalid_value(f"{path}.resourceName", resource, text))
        check(errors, f"{at}.requestName", request, is_dns1123_label(request))
        if (name, resource, request) in seen:
            for field in ("containerName", "resourceName", "requestName"):
                errors.append(duplicate(f"{path}.{field}", mapping.get(field, "")))
        seen.add((name, resource, request))
    claim = status.get("resourceClaimName", "")
    if not claim:
        errors.append(required(f"{at}.resourceClaimName"))
    else:
        check(errors, f"{at}.resourceClaimName", claim, is_dns1123_subdomain(claim))


def _ips(errors: Errors, path: str, found: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> None:
    """Valid, or stored already; two only of two families."""
    known = {entry.get("ip") for entry in before}
    addresses = [entry.get("ip", "") for entry in found]
    for i, address in enumerate(addresses):
        if address not in known:
            check(errors, f"{path}[{i}]", address, is_valid_ip_legacy(address))
    if len(addresses) > 1:
        families = [parsed.version if (parsed := parse_ip(address)) else 0 for address in addresses]
        if 0 in families:
            bad = families.index(0)
            text = f"failed to check for dual stack with error:invalid IP[{bad}]: {addresses[bad]}"
            errors.append(FieldError("InternalError", path, text))
        if 0 in families or len(addresses) > 2 or families[0] == families[1]:
            kind = "[#core.PodIP" if path.endswith("podIPs") else "[#core.HostIP"
            text = "may specify no more than one IP for each IP family"
            errors.append(invalid_value(path, internal(kind, list(found)), text))


def _pod_ips(errors: Errors, status: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    found, single = status.get("podIPs") or [], status.get("podIP", "")
    _ips(errors, "status.podIPs", found, before.get("podIPs") or ())
    if bool(found) != bool(single):
        text = "podIP and podIPs must either both be set or both be unset"
        errors.append(invalid_value("status.podIPs", internal("[#core.PodIP", found or None), text))
    elif found and found[0].get("ip") != single:
        errors.append(invalid_value("status.podIPs[0].ip", found[0].get("ip", ""), "must be equal to `podIP`"))


def _host_ips(errors: Errors, status: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    found = status.get("hostIPs") or []
    if not found:
        return
    if found[0].get("ip") != status.get("hostIP", ""):
        errors.append(invalid_value("status.hostIPs[0].ip", found[0].get("ip", ""), "must be equal to `hostIP`"))
    _ips(errors, "status.hostIPs", found, before.get("hostIPs") or ())


def _user(errors: Errors, path: str, user: Mapping[str, Any], os: str) -> None:
    linux = user.get("linux")
    if linux is None:
        return
    if os == "windows":
        errors.append(forbidden_field(f"{path}.linux", "cannot be set for a windows pod"))
        return
    uid, gid = linux.get("uid", 0), linux.get("gid", 0)
    if not 0 <= uid <= 2**32 - 1:
        errors.append(invalid_value(f"{path}.linux.uid", uid, "must be between 0 and 4294967295, inclusive"))
    check(errors, f"{path}.linux.gid", gid, is_valid_group_id(gid))
    for i, group in enumerate(linux.get("supplementalGroups") or ()):
        check(errors, f"{path}.linux.supplementalGroups[{i}]", group, is_valid_group_id(group))


def _allocated(errors: Errors, path: str, status: Mapping[str, Any], kind: str, pod: Mapping[str, Any]) -> None:
    """Health of devices that the container was given."""
    if kind == "ephemeralContainerStatuses":
        errors.append(forbidden_field(path, "must not be specified in container status"))
        return
    containers = pod["spec"].get(kind.replace("Statuses", "s")) or ()
    container = next((c for c in containers if c.get("name") == status.get("name")), None)
    for i, resource in enumerate(status["allocatedResourcesStatus"]):
        if container is not None:
            _allocated_name(errors, f"{path}[{i}].name", resource.get("name", ""), container, pod)
        seen: set[str] = set()
        for j, device in enumerate(resource.get("resources") or ()):
            at, identity = f"{path}[{i}].resources[{j}]", device.get("resourceID", "")
            health, message = device.get("health", ""), device.get("message")
            if health not in _HEALTHS:
                errors.append(not_supported(f"{at}.health", health, sorted(_HEALTHS)))
            if message == "":
                errors.append(required(f"{at}.message", "must be non-empty if specified"))
            elif message is not None and len(message.encode()) > _MAX_HEALTH_MESSAGE:
                errors.append(too_long(f"{at}.message", _MAX_HEALTH_MESSAGE))
            if identity in seen:
                errors.append(duplicate(f"{at}.resourceID", identity))
            seen.add(identity)


def _allocated_name(errors: Errors, path: str, name: str, container: Mapping[str, Any], pod: Mapping[str, Any]) -> None:
    resources = container.get("resources") or {}
    if not name.startswith("claim:"):
        if name not in (resources.get("requests") or {}):
            errors.append(invalid_value(path, name, "must match one of the container's resource requests"))
        return
    claimed = {
        f"claim:{claim.get('name', '')}" + (f"/{claim['request']}" if claim.get("request") else "")
        for claim in resources.get("claims") or ()
    }
    extended = (pod.get("status") or {}).get("extendedResourceClaimStatus") or {}
    for mapping in extended.get("requestMappings") or ():
        if mapping.get("containerName") == container.get("name"):
            claimed.add(f"claim:{extended.get('resourceClaimName', '')}/{mapping.get('requestName', '')}")
    if name not in claimed:
        text = (
            "must match one of the container's resource claims as 'claim:<claimName>/<requestName>' when "
            "container.resources.claims[*].request is set or 'claim:<claimName>' when it is empty"
        )
        errors.append(invalid_value(path, name, text))
