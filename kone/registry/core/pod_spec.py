"""Rules on a whole pod spec, of a pod or of a workload's template (ValidatePodSpec), in upstream's order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kone.apimachinery.errors import (
    field_not_found,
    forbidden_field,
    go_quote,
    invalid_value,
    required,
    too_long,
)
from kone.apimachinery.names import (
    is_dns1123_label,
    is_dns1123_subdomain,
    is_dns1123_subdomain_with_underscore,
    is_valid_ip_legacy,
)
from kone.apimachinery.objects import Object
from kone.apimachinery.quantity import Quantity
from kone.registry.core import pod_containers, pod_scheduling, pod_security
from kone.registry.core.claim_rules import claim_template
from kone.registry.core.pod_parts import containers_with_path
from kone.registry.core.pod_volumes import volumes
from kone.registry.core.resource_rules import (
    container_resource_name,
    is_huge_page,
    pod_resource_name,
    quantity,
    requirements,
)
from kone.registry.generic import validate_annotations
from kone.registry.rules import Errors, at_least_0, check, in_range, labels, one_of

MIRROR = "kubernetes.io/config.mirror"
_TOLERATIONS = "scheduler.alpha.kubernetes.io/tolerations"
_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
RESTART_POLICIES = ("Always", "OnFailure", "Never")
_DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_PREEMPTION_POLICIES = ("PreemptLowerPriority", "Never")
_MAX_INT32 = 2**31 - 1
_MAX_NAMESERVERS, _MAX_SEARCHES, _MAX_SEARCH_CHARS = 3, 32, 2048  # of Linux' resolver


def pod_spec(
    errors: Errors,
    path: str,
    spec: Mapping[str, Any],
    *,
    is_pod: bool = False,
    pod_name: str = "",
    is_mirror: bool = False,
) -> None:
    """`is_pod`: of a pod rather than a template. `pod_name` as far as it is known."""
    if spec.get("terminationGracePeriodSeconds") is None:
        errors.append(required(f"{path}.terminationGracePeriodSeconds"))
    good_volumes: dict[str, Object] = {}
    if spec.get("volumes"):
        good_volumes = volumes(errors, f"{path}.volumes", spec["volumes"], pod_name, claim_template)
    if spec.get("resourceClaims"):
        pod_containers.resource_claims(errors, f"{path}.resourceClaims", spec["resourceClaims"], is_mirror)
    main, init = spec.get("containers") or (), spec.get("initContainers") or ()
    surroundings = pod_containers.Surroundings(spec, good_volumes)
    pod_containers.containers(errors, f"{path}.containers", main, surroundings)
    if init:
        pod_containers.init_containers(errors, f"{path}.initContainers", init, main, surroundings)
    if spec.get("ephemeralContainers"):
        at = f"{path}.ephemeralContainers"
        pod_containers.ephemeral_containers(errors, at, spec["ephemeralContainers"], (*main, *init), surroundings)
    if spec.get("resources") is not None:
        _pod_resources(errors, path, spec, surroundings)
    if spec.get("hostNetwork"):
        _host_network_ports(errors, f"{path}.containers", main, is_pod)
    one_of(errors, f"{path}.restartPolicy", spec.get("restartPolicy"), RESTART_POLICIES)
    one_of(errors, f"{path}.dnsPolicy", spec.get("dnsPolicy"), _DNS_POLICIES)
    labels(errors, f"{path}.nodeSelector", spec.get("nodeSelector"))
    pod_security.pod_security_context(errors, f"{path}.securityContext", spec)
    if spec.get("shareProcessNamespace") and spec.get("hostPID"):
        text = "ShareProcessNamespace and HostPID cannot both be enabled"
        errors.append(invalid_value(f"{path}.shareProcessNamespace", True, text))
    if spec.get("affinity") is not None:
        pod_scheduling.affinity(errors, f"{path}.affinity", spec["affinity"])
    _dns_config(errors, f"{path}.dnsConfig", spec)
    if spec.get("readinessGates"):
        pod_scheduling.readiness_gates(errors, f"{path}.readinessGates", spec["readinessGates"])
    if spec.get("schedulingGates"):
        pod_scheduling.scheduling_gates(errors, f"{path}.schedulingGates", spec["schedulingGates"])
    if spec.get("topologySpreadConstraints"):
        at = f"{path}.topologySpreadConstraints"
        pod_scheduling.topology_spread(errors, at, spec["topologySpreadConstraints"])
    pod_security.windows_host_process(errors, path, spec)
    pod_security.host_users(errors, path, spec)
    if spec.get("hostnameOverride") is not None:
        _hostname_override(errors, path, spec)
    _names(errors, path, spec)
    if spec.get("tolerations"):
        pod_scheduling.tolerations(errors, f"{path}.tolerations", spec["tolerations"])
    for i, alias in enumerate(spec.get("hostAliases") or ()):
        _host_alias(errors, f"{path}.hostAliases[{i}]", alias)
    for field in ("priorityClassName", "runtimeClassName"):
        if spec.get(field) or (field == "runtimeClassName" and spec.get(field) is not None):
            check(errors, f"{path}.{field}", spec[field], is_dns1123_subdomain(spec[field]))
    if spec.get("preemptionPolicy") is not None:
        one_of(errors, f"{path}.preemptionPolicy", spec["preemptionPolicy"], _PREEMPTION_POLICIES)
    if spec.get("overhead"):
        requirements(errors, f"{path}.overhead", {"limits": spec["overhead"]}, (), container_resource_name)
    pod_security.operating_system(errors, path, spec)
    _file_key_volumes(errors, path, spec)


def _names(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    account, old_account = spec.get("serviceAccountName", ""), spec.get("serviceAccount", "")
    if account:
        check(errors, f"{path}.serviceAccountName", account, is_dns1123_subdomain(account))
    if account != old_account:
        text = f"must be the same as serviceAccountName: {go_quote(account)}"
        errors.append(invalid_value(f"{path}.deprecatedServiceAccount", old_account, text))
    if spec.get("nodeName"):
        check(errors, f"{path}.nodeName", spec["nodeName"], is_dns1123_subdomain(spec["nodeName"]))
    if spec.get("activeDeadlineSeconds") is not None:
        in_range(errors, f"{path}.activeDeadlineSeconds", spec["activeDeadlineSeconds"], 1, _MAX_INT32)
    for field in ("hostname", "subdomain"):
        if spec.get(field):
            check(errors, f"{path}.{field}", spec[field], is_dns1123_label(spec[field]))


def _host_network_ports(errors: Errors, path: str, containers: Any, is_pod: bool) -> None:
    for i, container in enumerate(containers):
        for j, port in enumerate(container.get("ports") or ()):
            host = port.get("hostPort", 0)
            # A template may leave the host port out: the pod made from it gets it by default.
            if (is_pod or host) and host != port.get("containerPort", 0):
                text = "must match `containerPort` when `hostNetwork` is true"
                errors.append(invalid_value(f"{path}[{i}].ports[{j}].hostPort", host, text))


def _dns_config(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    config = spec.get("dnsConfig")
    if spec.get("dnsPolicy") == "None":
        if config is None:
            errors.append(required(path, "must provide `dnsConfig` when `dnsPolicy` is None"))
            return
        if not config.get("nameservers"):
            text = "must provide at least one DNS nameserver when `dnsPolicy` is None"
            errors.append(required(f"{path}.nameservers", text))
            return
    if config is None:
        return
    servers, searches = config.get("nameservers") or [], config.get("searches") or []
    if len(servers) > _MAX_NAMESERVERS:
        text = f"must not have more than {_MAX_NAMESERVERS} nameservers"
        errors.append(invalid_value(f"{path}.nameservers", servers, text))
    for i, server in enumerate(servers):
        check(errors, f"{path}.nameservers[{i}]", server, is_valid_ip_legacy(server))
    if len(searches) > _MAX_SEARCHES:
        text = f"must not have more than {_MAX_SEARCHES} search paths"
        errors.append(invalid_value(f"{path}.searches", searches, text))
    if len(" ".join(searches)) > _MAX_SEARCH_CHARS:
        text = f"must not have more than {_MAX_SEARCH_CHARS} characters (including spaces) in the search list"
        errors.append(invalid_value(f"{path}.searches", searches, text))
    for i, search in enumerate(searches):
        if search != ".":
            search = search.removesuffix(".")
            check(errors, f"{path}.searches[{i}]", search, is_dns1123_subdomain_with_underscore(search))
    for i, option in enumerate(config.get("options") or ()):
        if not option.get("name"):
            errors.append(required(f"{path}.options[{i}]", "must not be empty"))


def _hostname_override(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    at, name = f"{path}.hostnameOverride", spec["hostnameOverride"]
    if spec.get("setHostnameAsFQDN"):
        errors.append(forbidden_field(at, "may not be specified when setHostnameAsFQDN is true"))
    if spec.get("hostNetwork"):
        errors.append(forbidden_field(at, "may not be specified when hostNetwork is true"))
    if len(name.encode()) > 64:
        errors.append(too_long(at, 64))
    check(errors, at, name, is_dns1123_subdomain(name))


def _host_alias(errors: Errors, path: str, alias: Mapping[str, Any]) -> None:
    ip = alias.get("ip", "")
    check(errors, f"{path}.ip", ip, is_valid_ip_legacy(ip))
    for i, name in enumerate(alias.get("hostnames") or ()):
        check(errors, f"{path}.hostnames[{i}]", name, is_dns1123_subdomain(name))


def _file_key_volumes(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    sources: dict[str, Object] | None = None
    for container, at in containers_with_path(spec, path):
        for i, variable in enumerate(container.get("env") or ()):
            ref = (variable.get("valueFrom") or {}).get("fileKeyRef")
            if ref is None:
                continue
            if sources is None:
                sources = {volume.get("name", ""): volume for volume in spec.get("volumes") or ()}
            name, field = ref.get("volumeName", ""), f"{at}.env[{i}].valueFrom.fileKeyRef.volumeName"
            if name not in sources:
                errors.append(field_not_found(field, name))
            elif sources[name].get("emptyDir") is None:
                errors.append(invalid_value(field, name, "referenced volume must be of type emptyDir"))


def _pod_resources(
    errors: Errors, path: str, spec: Mapping[str, Any], surroundings: pod_containers.Surroundings
) -> None:
    """spec.resources: what the pod as a whole may use (KEP-2837)."""
    at, found = f"{path}.resources", spec["resources"]
    if (spec.get("os") or {}).get("name") == "windows":
        errors.append(forbidden_field(at, "may not be set for a windows pod"))
        return
    if found.get("claims"):
        errors.append(forbidden_field(f"{at}.claims", "claims may not be set for Resources at pod-level"))
    requirements(errors, at, found, surroundings.claims, pod_resource_name)
    limits = found.get("limits") or {}
    for name, total in sorted(aggregate(spec, "requests").items()):
        asked = (found.get("requests") or {}).get(name)
        if asked is not None and total > quantity(asked):
            text = f"must be greater than or equal to aggregate container requests of {total.canonical()}"
            errors.append(invalid_value(f"{at}.requests[{name}]", quantity(asked).canonical(), text))
    for name, total in sorted(aggregate(spec, "limits").items()):
        if is_huge_page(name) and limits.get(name) is not None and total > quantity(limits[name]):
            text = f"must be greater than or equal to aggregate container limits of {total.canonical()}"
            errors.append(invalid_value(f"{at}.limits[{name}]", quantity(limits[name]).canonical(), text))
    for i, container in enumerate(spec.get("containers") or ()):
        for name, value in sorted(((container.get("resources") or {}).get("limits") or {}).items()):
            if limits.get(name) is not None and quantity(value) > quantity(limits[name]):
                text = f"must be less than or equal to pod limits of {quantity(limits[name]).canonical()}"
                field = f"{at}.containers[{i}][{name}].limits"
                errors.append(invalid_value(field, quantity(value).canonical(), text))


def aggregate(spec: Mapping[str, Any], side: str) -> dict[str, Quantity]:
    """The sum over containers of what they ask ("requests") or may use ("limits"), init containers in their turn."""
    total: dict[str, Quantity] = {}
    sidecars: dict[str, Quantity] = {}
    peak: dict[str, Quantity] = {}
    for container in spec.get("containers") or ():
        _add(total, container, side)
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            _add(total, container, side)
            _add(sidecars, container, side)
            _raise(peak, sidecars)
        else:
            during = dict(sidecars)
            _add(during, container, side)
            _raise(peak, during)
    _raise(total, peak)
    return total


def _add(total: dict[str, Quantity], container: Mapping[str, Any], side: str) -> None:
    for name, value in ((container.get("resources") or {}).get(side) or {}).items():
        total[name] = total[name] + quantity(value) if name in total else quantity(value)


def _raise(total: dict[str, Quantity], least: dict[str, Quantity]) -> None:
    for name, value in least.items():
        if name not in total or total[name] < value:
            total[name] = value


def pod_annotations(errors: Errors, path: str, annotations: Mapping[str, str], spec: Mapping[str, Any]) -> None:
    """ValidatePodSpecificAnnotations; `path` is that of the annotations."""
    if not annotations:
        return
    if MIRROR in annotations and not spec.get("nodeName"):
        text = "must set spec.nodeName if mirror pod annotation is set"
        errors.append(invalid_value(f"{path}[{MIRROR}]", annotations[MIRROR], text))
    if annotations.get(_TOLERATIONS):
        _tolerations_annotation(errors, path, annotations[_TOLERATIONS])
    cost = annotations.get(_DELETION_COST)
    if cost is not None and not _is_deletion_cost(cost):
        errors.append(invalid_value(f"{path}[{_DELETION_COST}]", cost, "must be a 32bit integer"))
    pod_security.security_annotations(errors, path, annotations, spec)


def _is_deletion_cost(value: str) -> bool:
    """A 32 bit integer without a plus and without leading zeros."""
    if value.startswith("+") or (value.startswith("0") and value != "0"):
        return False
    digits = value.removeprefix("-")
    return digits.isascii() and digits.isdigit() and -(2**31) <= int(value) < 2**31


def _tolerations_annotation(errors: Errors, path: str, text: str) -> None:
    try:
        found = json.loads(text)
    except ValueError as error:
        errors.append(invalid_value(path, _TOLERATIONS, str(error)))
        return
    if isinstance(found, list) and all(isinstance(toleration, dict) for toleration in found):
        pod_scheduling.tolerations(errors, f"{path}.{_TOLERATIONS}", found)


def pod_template(errors: Errors, path: str, template: Mapping[str, Any]) -> None:
    """ValidatePodTemplateSpec; `path` is that of the template."""
    metadata, spec = template.get("metadata") or {}, template.get("spec") or {}
    annotations = metadata.get("annotations") or {}
    template_metadata(errors, path, template)
    pod_spec(errors, f"{path}.spec", spec)
    if annotations:
        pod_security.seccomp_agrees(errors, f"{path}.spec", annotations, spec)
        pod_security.apparmor_agrees(errors, f"{path}.spec", annotations, spec)
    if spec.get("ephemeralContainers"):
        text = "ephemeral containers not allowed in pod template"
        errors.append(forbidden_field(f"{path}.spec.ephemeralContainers", text))


def template_metadata(errors: Errors, path: str, template: Mapping[str, Any]) -> None:
    """What the labels and annotations of a template are held to, be its spec looked at or not."""
    metadata = template.get("metadata") or {}
    labels(errors, f"{path}.labels", metadata.get("labels"))
    annotations = metadata.get("annotations") or {}
    if annotations:
        errors.extend(validate_annotations(annotations, f"{path}.annotations"))
        pod_annotations(errors, f"{path}.annotations", annotations, template.get("spec") or {})


def pod(errors: Errors, found: Mapping[str, Any]) -> None:
    """validatePodMetadataAndSpec, but for the rules of metadata that all kinds share."""
    metadata, spec = found["metadata"], found["spec"]
    annotations = metadata.get("annotations") or {}
    pod_annotations(errors, "metadata.annotations", annotations, spec)
    pod_spec(errors, "spec", spec, is_pod=True, pod_name=metadata.get("name", ""), is_mirror=MIRROR in annotations)
    if not spec.get("serviceAccountName"):
        for i, volume in enumerate(spec.get("volumes") or ()):
            for j, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
                if source.get("serviceAccountToken") is not None:
                    text = "must not be specified when serviceAccountName is not set"
                    at = f"spec.volumes[{i}].projected.sources[{j}].serviceAccountToken"
                    errors.append(forbidden_field(at, text))
    at_least_0(errors, "spec.terminationGracePeriodSeconds", spec.get("terminationGracePeriodSeconds"))
    for kind in ("containers", "initContainers"):
        for i, container in enumerate(spec.get(kind) or ()):
            pod_containers.trimmed_image(errors, f"spec.{kind}[{i}]", container)


def new_pod(errors: Errors, found: Mapping[str, Any]) -> None:
    """ValidatePodCreate."""
    pod(errors, found)
    spec, annotations = found["spec"], found["metadata"].get("annotations") or {}
    if spec.get("ephemeralContainers"):
        errors.append(forbidden_field("spec.ephemeralContainers", "cannot be set on create"))
    if spec.get("nodeName") and spec.get("schedulingGates"):
        errors.append(forbidden_field("spec.nodeName", "cannot be set until all schedulingGates have been cleared"))
    if annotations:
        pod_security.seccomp_agrees(errors, "spec", annotations, spec)
        pod_security.apparmor_agrees(errors, "spec", annotations, spec)
