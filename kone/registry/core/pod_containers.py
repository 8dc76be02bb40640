"""Rules on containers: main, init and ephemeral ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import (
    duplicate,
    field_not_found,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
    too_many,
)
from kone.apimachinery.names import (
    is_config_map_key,
    is_dns1123_label,
    is_dns1123_subdomain,
    is_relaxed_env_var_name,
    is_valid_port_name,
    is_valid_port_num,
)
from kone.apimachinery.objects import Object
from kone.registry.core.pod_probes import lifecycle_hooks, probe
from kone.registry.core.pod_security import security_context
from kone.registry.core.pod_volumes import PULL_POLICIES
from kone.registry.core.resource_rules import requirements
from kone.registry.core.volume_files import container_resource_ref, descending_path, no_backsteps, object_field_ref
from kone.registry.internal import internal
from kone.registry.rules import Errors, check, one_of
from kone.registry.strategy import dns_subdomain

PROTOCOLS = ("SCTP", "TCP", "UDP")
_MESSAGE_POLICIES = ("File", "FallbackToLogsOnError")
_RESTART_POLICIES = ("Always", "Never", "OnFailure")
_RESTART_ACTIONS = ("Restart", "RestartAllContainers")
_PROPAGATIONS = ("Bidirectional", "HostToContainer", "None")
_RECURSIVE_READ_ONLY = ("Disabled", "Enabled", "IfPossible")
_ENV_PATHS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
_ENV_SOURCES = "`fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
_ONE_FIELD = "may not have more than one field specified at a time"
_NOT_FOR_INIT = "may not be set for init containers without restartPolicy=Always"
_NOT_FOR_EPHEMERAL = "cannot be set for an Ephemeral Container"


class Surroundings:
    """What the rules of a container must know of its pod."""

    __slots__ = ("claims", "grace_s", "host_users", "restart_policy", "volumes")

    def __init__(self, spec: Mapping[str, Any], volumes: Mapping[str, Object]) -> None:
        self.volumes = volumes
        self.claims = [claim["name"] for claim in spec.get("resourceClaims") or () if claim.get("name")]
        self.grace_s: int | None = spec.get("terminationGracePeriodSeconds")
        self.restart_policy: str = spec.get("restartPolicy", "")
        self.host_users = spec.get("hostUsers") is not False


def containers(errors: Errors, path: str, found: Sequence[Object], pod: Surroundings) -> None:
    """spec.containers: at least one."""
    if not found:
        errors.append(required(path))
        return
    names: set[str] = set()
    for i, container in enumerate(found):
        at, name = f"{path}[{i}]", container.get("name", "")
        _common(errors, at, container, pod)
        if name in names:
            errors.append(duplicate(f"{at}.name", name))
        names.add(name)
        _probes(errors, at, container, pod)
        _restart_policy(errors, at, container)
    _host_ports(errors, path, found)


def init_containers(
    errors: Errors, path: str, found: Sequence[Object], main: Sequence[Object], pod: Surroundings
) -> None:
    """spec.initContainers; those with restartPolicy Always are sidecars and may have probes."""
    names = {container.get("name", "") for container in main}
    for i, container in enumerate(found):
        at, name, is_sidecar = f"{path}[{i}]", container.get("name", ""), container.get("restartPolicy") == "Always"
        _common(errors, at, container, pod)
        _restart_policy(errors, at, container)
        if name in names:
            errors.append(duplicate(f"{at}.name", name))
        elif name:
            names.add(name)
        _host_ports(errors, path, (container,))
        if is_sidecar:
            _probes(errors, at, container, pod)
            continue
        for field in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe"):
            if container.get(field) is not None:
                errors.append(forbidden_field(f"{at}.{field}", _NOT_FOR_INIT))
        for j, policy in enumerate(container.get("resizePolicy") or ()):
            if policy.get("restartPolicy") == "RestartContainer":
                text = "must not be set to 'RestartContainer' for non-sidecar initContainers"
                errors.append(invalid_value(f"{at}.resizePolicy[{j}].restartPolicy", "RestartContainer", text))


# In the order of the internal struct; what else an ephemeral container has is allowed.
_FORBIDDEN_IN_EPHEMERAL = (
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
)


def ephemeral_containers(
    errors: Errors, path: str, found: Sequence[Object], others: Iterable[Object], pod: Surroundings
) -> None:
    other_names = {container.get("name", "") for container in others}
    names = set(other_names)
    for i, container in enumerate(found):
        at, name = f"{path}[{i}]", container.get("name", "")
        _common(errors, at, container, pod)
        trimmed_image(errors, at, container)
        if name in names:
            errors.append(duplicate(f"{at}.name", name))
        names.add(name)
        target = container.get("targetContainerName")
        if target and target not in other_names:
            errors.append(field_not_found(f"{at}.targetContainerName", target))
        for field in _FORBIDDEN_IN_EPHEMERAL:
            value = container.get(field)
            if value is not None and (value or field != "resources"):
                errors.append(forbidden_field(f"{at}.{field}", _NOT_FOR_EPHEMERAL))
        for j, mount in enumerate(container.get("volumeMounts") or ()):
            for field in ("subPath", "subPathExpr"):
                if mount.get(field):
                    errors.append(forbidden_field(f"{at}.volumeMounts[{j}].{field}", _NOT_FOR_EPHEMERAL))


def trimmed_image(errors: Errors, path: str, container: Mapping[str, Any]) -> None:
    """Pods, unlike templates, may not have spaces around an image."""
    image = container.get("image", "")
    if image != image.strip():
        errors.append(invalid_value(f"{path}.image", image, "must not have leading or trailing whitespace"))


def _common(errors: Errors, path: str, container: Object, pod: Surroundings) -> None:
    name = container.get("name")
    if not name:
        errors.append(required(f"{path}.name"))
    else:
        check(errors, f"{path}.name", name, is_dns1123_label(name))
    if not container.get("image"):
        errors.append(required(f"{path}.image"))
    one_of(errors, f"{path}.terminationMessagePolicy", container.get("terminationMessagePolicy"), _MESSAGE_POLICIES)
    if container.get("ports"):
        _ports(errors, f"{path}.ports", container["ports"])
    if container.get("env"):
        _environment(errors, f"{path}.env", container["env"])
    if container.get("envFrom"):
        _environment_from(errors, f"{path}.envFrom", container["envFrom"])
    mounts, devices = container.get("volumeMounts") or (), container.get("volumeDevices") or ()
    if mounts:
        _mounts(errors, f"{path}.volumeMounts", mounts, devices, container, pod.volumes)
    if devices:
        _devices(errors, f"{path}.volumeDevices", devices, mounts, pod.volumes)
    one_of(errors, f"{path}.imagePullPolicy", container.get("imagePullPolicy"), PULL_POLICIES)
    if container.get("resources"):
        requirements(errors, f"{path}.resources", container["resources"], pod.claims)
    if container.get("resizePolicy"):
        _resize_policy(errors, f"{path}.resizePolicy", container["resizePolicy"], pod.restart_policy)
    context = container.get("securityContext")
    if context is not None:
        security_context(errors, f"{path}.securityContext", context, pod.host_users)


def _probes(errors: Errors, path: str, container: Object, pod: Surroundings) -> None:
    if container.get("lifecycle") is not None:
        lifecycle_hooks(errors, f"{path}.lifecycle", container["lifecycle"], pod.grace_s)
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(kind) is not None:
            probe(errors, f"{path}.{kind}", container[kind], kind, pod.grace_s)


def _ports(errors: Errors, path: str, ports: Sequence[Mapping[str, Any]]) -> None:
    names: set[str] = set()
    for i, port in enumerate(ports):
        at, name = f"{path}[{i}]", port.get("name")
        if name:
            wrong = is_valid_port_name(name)
            if wrong:
                check(errors, f"{at}.name", name, wrong)
            elif name in names:
                errors.append(duplicate(f"{at}.name", name))
            names.add(name)
        number, host = port.get("containerPort", 0), port.get("hostPort", 0)
        if not number:
            errors.append(required(f"{at}.containerPort"))
        else:
            check(errors, f"{at}.containerPort", number, is_valid_port_num(number))
        if host:
            check(errors, f"{at}.hostPort", host, is_valid_port_num(host))
        one_of(errors, f"{at}.protocol", port.get("protocol"), PROTOCOLS)


def _host_ports(errors: Errors, path: str, found: Sequence[Object]) -> None:
    seen: set[str] = set()
    for i, container in enumerate(found):
        for j, port in enumerate(container.get("ports") or ()):
            if port.get("hostPort"):
                key = f"{port.get('protocol', '')}/{port.get('hostIP', '')}/{port['hostPort']}"
                if key in seen:
                    errors.append(duplicate(f"{path}[{i}].ports[{j}].hostPort", key))
                seen.add(key)


def _environment(errors: Errors, path: str, variables: Sequence[Mapping[str, Any]]) -> None:
    for i, variable in enumerate(variables):
        name = variable.get("name")
        if not name:
            errors.append(required(f"{path}[{i}].name"))
        else:
            check(errors, f"{path}[{i}].name", name, is_relaxed_env_var_name(name))
        if variable.get("valueFrom") is not None:
            _value_from(errors, f"{path}[{i}].valueFrom", variable["valueFrom"], variable.get("value"))


def _value_from(errors: Errors, path: str, source: Mapping[str, Any], value: str | None) -> None:
    count = 0
    if source.get("fieldRef") is not None:
        count += 1
        object_field_ref(errors, f"{path}.fieldRef", source["fieldRef"], _ENV_PATHS)
    if source.get("resourceFieldRef") is not None:
        count += 1
        container_resource_ref(errors, f"{path}.resourceFieldRef", source["resourceFieldRef"], in_volume=False)
    for kind in ("configMapKeyRef", "secretKeyRef"):
        if source.get(kind) is not None:
            count += 1
            _key_ref(errors, f"{path}.{kind}", source[kind])
    if source.get("fileKeyRef") is not None:
        count += 1
        _file_key_ref(errors, f"{path}.fileKeyRef", source["fileKeyRef"])
    if not count:
        errors.append(invalid_value(path, "", f"must specify one of: {_ENV_SOURCES}"))
    elif value:
        errors.append(invalid_value(path, "", "may not be specified when `value` is not empty"))
    elif count > 1:
        errors.append(invalid_value(path, "", _ONE_FIELD))


def _key_ref(errors: Errors, path: str, ref: Mapping[str, Any]) -> None:
    name, key = ref.get("name", ""), ref.get("key")
    check(errors, f"{path}.name", name, is_dns1123_subdomain(name))
    if not key:
        errors.append(required(f"{path}.key"))
    else:
        check(errors, f"{path}.key", key, is_config_map_key(key))


def _file_key_ref(errors: Errors, path: str, ref: Mapping[str, Any]) -> None:
    for field, rule in (("key", is_relaxed_env_var_name), ("volumeName", is_dns1123_label)):
        if not ref.get(field):
            errors.append(required(f"{path}.{field}"))
        else:
            check(errors, f"{path}.{field}", ref[field], rule(ref[field]))
    if not ref.get("path"):
        errors.append(required(f"{path}.path"))
    else:
        no_backsteps(errors, f"{path}.path", ref["path"])


def _environment_from(errors: Errors, path: str, sources: Sequence[Mapping[str, Any]]) -> None:
    for i, source in enumerate(sources):
        at, prefix = f"{path}[{i}]", source.get("prefix")
        if prefix:
            check(errors, f"{at}.prefix", prefix, is_relaxed_env_var_name(prefix))
        count = 0
        for kind in ("configMapRef", "secretRef"):
            ref = source.get(kind)
            if ref is not None:
                count += 1
                if not ref.get("name"):
                    errors.append(required(f"{at}.{kind}.name"))
                else:
                    check(errors, f"{at}.{kind}.name", ref["name"], dns_subdomain(ref["name"], True))
        if not count:
            errors.append(invalid_value(path, "", "must specify one of: `configMapRef` or `secretRef`"))
        elif count > 1:
            errors.append(invalid_value(path, "", _ONE_FIELD))


def _mounts(
    errors: Errors,
    path: str,
    mounts: Sequence[Mapping[str, Any]],
    devices: Sequence[Mapping[str, Any]],
    container: Mapping[str, Any],
    volumes: Mapping[str, Object],
) -> None:
    targets: set[str] = set()
    device_paths = {device.get("name", ""): device.get("devicePath", "") for device in devices}
    for i, mount in enumerate(mounts):
        at, name, target = f"{path}[{i}]", mount.get("name", ""), mount.get("mountPath", "")
        if not name:
            errors.append(required(f"{at}.name"))
        if name not in volumes:
            errors.append(field_not_found(f"{at}.name", name))
        if not target:
            errors.append(required(f"{at}.mountPath"))
        if target in targets:
            errors.append(invalid_value(f"{at}.mountPath", target, "must be unique"))
        targets.add(target)
        if device_paths:
            if name in device_paths:
                errors.append(invalid_value(f"{at}.name", name, "must not already exist in volumeDevices"))
            if target in device_paths.values():
                text = "must not already exist as a path in volumeDevices"
                errors.append(invalid_value(f"{at}.mountPath", target, text))
        # Upstream leaves the index out of the following paths.
        if mount.get("subPath"):
            descending_path(errors, f"{path}.subPath", mount["subPath"])
        if mount.get("subPathExpr"):
            if mount.get("subPath"):
                text = "subPathExpr and subPath are mutually exclusive"
                errors.append(invalid_value(f"{at}.subPathExpr", mount["subPathExpr"], text))
            descending_path(errors, f"{path}.subPathExpr", mount["subPathExpr"])
        if mount.get("mountPropagation") is not None:
            _propagation(errors, f"{path}.mountPropagation", mount["mountPropagation"], container)
        if mount.get("recursiveReadOnly") is not None:
            _recursive_read_only(errors, f"{path}.recursiveReadOnly", mount)


def _propagation(errors: Errors, path: str, value: str, container: Mapping[str, Any]) -> None:
    if value not in _PROPAGATIONS:
        errors.append(not_supported(path, value, _PROPAGATIONS))
    if value == "Bidirectional" and not (container.get("securityContext") or {}).get("privileged"):
        text = "Bidirectional mount propagation is available only to privileged containers"
        errors.append(forbidden_field(path, text))


def _recursive_read_only(errors: Errors, path: str, mount: Mapping[str, Any]) -> None:
    value = mount["recursiveReadOnly"]
    if value not in _RECURSIVE_READ_ONLY:
        errors.append(not_supported(path, value, _RECURSIVE_READ_ONLY))
    elif value != "Disabled":
        if not mount.get("readOnly"):
            errors.append(forbidden_field(path, "may only be specified when readOnly is true"))
        if mount.get("mountPropagation") not in (None, "None"):
            text = "may only be specified when mountPropagation is None or not specified"
            errors.append(forbidden_field(path, text))


def _devices(
    errors: Errors,
    path: str,
    devices: Sequence[Mapping[str, Any]],
    mounts: Sequence[Mapping[str, Any]],
    volumes: Mapping[str, Object],
) -> None:
    names: set[str] = set()
    paths: set[str] = set()
    mount_paths = {mount.get("name", ""): mount.get("mountPath", "") for mount in mounts}
    for i, device in enumerate(devices):
        at, name, target = f"{path}[{i}]", device.get("name", ""), device.get("devicePath", "")
        volume = volumes.get(name)
        if not name:
            errors.append(required(f"{at}.name"))
        if name in names:
            errors.append(invalid_value(f"{at}.name", name, "must be unique"))
        if volume is None:
            errors.append(field_not_found(f"{at}.name", name))
        elif volume.get("persistentVolumeClaim") is None and volume.get("ephemeral") is None:
            text = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"
            errors.append(invalid_value(f"{at}.name", name, text))
        if not target:
            errors.append(required(f"{at}.devicePath"))
        if target in paths:
            errors.append(invalid_value(f"{at}.devicePath", target, "must be unique"))
        if ".." in target.split("/"):
            errors.append(invalid_value(f"{at}.devicePath", target, "can not contain backsteps ('..')"))
        else:
            paths.add(target)
        if name in mount_paths:
            errors.append(invalid_value(f"{at}.name", name, "must not already exist in volumeMounts"))
        if target in mount_paths.values():
            text = "must not already exist as a path in volumeMounts"
            errors.append(invalid_value(f"{at}.devicePath", target, text))
        if name:
            names.add(name)


def _resize_policy(errors: Errors, path: str, policies: Sequence[Mapping[str, Any]], restart_policy: str) -> None:
    seen: set[str] = set()
    for i, policy in enumerate(policies):
        resource, restart = policy.get("resourceName", ""), policy.get("restartPolicy", "")
        if resource in seen:
            errors.append(duplicate(f"{path}[{i}]", resource))
        seen.add(resource)
        one_of(errors, path, resource, ("cpu", "memory"))
        one_of(errors, path, restart, ("NotRequired", "RestartContainer"))
        if restart_policy == "Never" and restart != "NotRequired":
            text = "must be 'NotRequired' when pod `restartPolicy` is 'Never'"
            errors.append(invalid_value(path, restart, text))


def _restart_policy(errors: Errors, path: str, container: Mapping[str, Any]) -> None:
    """validateContainerRestartPolicy: of the container itself, with rules by exit code (KEP-5307)."""
    policy, rules = container.get("restartPolicy"), container.get("restartPolicyRules") or ()
    if policy is None:
        if rules:
            text = "must specify restartPolicy when restart rules are used"
            errors.append(required(f"{path}.restartPolicy", text))
            if "initContainers" in path:
                return
    elif policy not in _RESTART_POLICIES:
        errors.append(not_supported(f"{path}.restartPolicy", policy, _RESTART_POLICIES))
    if len(rules) > 20:
        errors.append(too_many(f"{path}.restartPolicyRules", len(rules), 20))
    for i, rule in enumerate(rules):
        at, codes = f"{path}.restartPolicyRules[{i}]", rule.get("exitCodes")
        if rule.get("action", "") not in _RESTART_ACTIONS:
            errors.append(not_supported(f"{at}.action", rule.get("action", ""), _RESTART_ACTIONS))
        if codes is None:
            errors.append(required(f"{at}.exitCodes", "must be specified"))
            continue
        if codes.get("operator", "") not in ("In", "NotIn"):
            errors.append(not_supported(f"{at}.exitCodes.operator", codes.get("operator", ""), ("In", "NotIn")))
        if len(codes.get("values") or ()) > 255:
            errors.append(too_many(f"{at}.exitCodes.values", len(codes["values"]), 255))


def resource_claims(errors: Errors, path: str, claims: Sequence[Mapping[str, Any]], is_mirror: bool) -> None:
    """spec.resourceClaims (dynamic resource allocation)."""
    names: set[str] = set()
    for i, claim in enumerate(claims):
        if is_mirror:
            errors.append(forbidden_field("", "static pods do not support resource claims"))
            continue
        at, name = f"{path}[{i}]", claim.get("name", "")
        if not name:
            errors.append(required(f"{at}.name"))
        elif name in names:
            errors.append(duplicate(f"{at}.name", name))
        else:
            check(errors, f"{at}.name", name, is_dns1123_label(name))
            names.add(name)
        direct, template = claim.get("resourceClaimName"), claim.get("resourceClaimTemplateName")
        if direct is not None and template is not None:
            text = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            errors.append(invalid_value(at, internal("#core.PodResourceClaim", claim), text))
        if direct is None and template is None:
            text = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"
            errors.append(invalid_value(at, internal("#core.PodResourceClaim", claim), text))
        for field in ("resourceClaimName", "resourceClaimTemplateName"):
            if claim.get(field) is not None:
                check(errors, f"{at}.{field}", claim[field], is_dns1123_subdomain(claim[field]))
