"""Rules on security contexts of pods and containers, and on what differs by operating system."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import (
    duplicate,
    forbidden_field,
    go_quote,
    invalid_value,
    not_supported,
    required,
    too_long,
)
from kone.apimachinery.names import is_dns1123_subdomain, is_valid_group_id, is_valid_user_id
from kone.apimachinery.objects import Object
from kone.registry.core.pod_parts import containers_with_path
from kone.registry.core.volume_files import descending_path
from kone.registry.internal import internal
from kone.registry.rules import Errors, check

PROFILE_TYPES = ("Localhost", "RuntimeDefault", "Unconfined")
SECCOMP_POD = "seccomp.security.alpha.kubernetes.io/pod"
SECCOMP_CONTAINER = "container.seccomp.security.alpha.kubernetes.io/"
APPARMOR_CONTAINER = "container.apparmor.security.beta.kubernetes.io/"
_PROC_MOUNTS = ("Default", "Unmasked")
_MAX_PATH = 4095
_SYSCTL_SEGMENT = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
_SYSCTL = rf"^({_SYSCTL_SEGMENT}[\./])*{_SYSCTL_SEGMENT}$"
_sysctl = re.compile(_SYSCTL.replace("$", r"\Z"))
_MAX_SYSCTL = 253

_MAX_CREDENTIAL_SPEC = 64 * 1024
_control = re.compile(r"[\x00-\x1f\x7f]")
_net_bios = re.compile(r"[^\\/:*?\"<>|.][^\\/:*?\"<>|]{0,14}\Z")
_dns_part = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_dns_domain = re.compile(rf"{_dns_part}(?:\.{_dns_part})*\Z")
_bad_user = re.compile(r"[\"/\\:;|=,+*?<>@\[\]]")
_dots_and_spaces = re.compile(r"[. ]+\Z")


def security_context(errors: Errors, path: str, context: Mapping[str, Any], host_users: bool) -> None:
    """A container's. `host_users`: the pod shares the host's user namespace."""
    if context.get("runAsUser") is not None:
        check(errors, f"{path}.runAsUser", context["runAsUser"], is_valid_user_id(context["runAsUser"]))
    if context.get("runAsGroup") is not None:
        check(errors, f"{path}.runAsGroup", context["runAsGroup"], is_valid_group_id(context["runAsGroup"]))
    proc_mount = context.get("procMount")
    if proc_mount is not None:
        if proc_mount not in _PROC_MOUNTS:
            errors.append(not_supported(f"{path}.procMount", proc_mount, _PROC_MOUNTS))
        if host_users and proc_mount == "Unmasked":
            text = "`hostUsers` must be false to use `Unmasked`"
            errors.append(invalid_value(f"{path}.procMount", proc_mount, text))
    _seccomp(errors, f"{path}.seccompProfile", context.get("seccompProfile"))
    if context.get("allowPrivilegeEscalation") is False:
        if context.get("privileged"):
            text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
            errors.append(invalid_value(path, internal("#core.SecurityContext", context), text))
        added = (context.get("capabilities") or {}).get("add") or ()
        if "CAP_SYS_ADMIN" in added:
            text = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"
            errors.append(invalid_value(path, internal("#core.SecurityContext", context), text))
    _windows_options(errors, f"{path}.windowsOptions", context.get("windowsOptions"))
    apparmor_profile(errors, f"{path}.appArmorProfile", context.get("appArmorProfile"))


_POD_IDS = (("fsGroup", is_valid_group_id), ("runAsUser", is_valid_user_id), ("runAsGroup", is_valid_group_id))


def pod_security_context(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    """spec.securityContext, at `path`."""
    context = spec.get("securityContext")
    if not context:
        return
    for field, rule in (
        ("fsGroup", is_valid_group_id),
        ("runAsUser", is_valid_user_id),
        ("runAsGroup", is_valid_group_id),
    ):
        if context.get(field) is not None:
            check(errors, f"{path}.{field}", context[field], rule(context[field]))
    for i, group in enumerate(context.get("supplementalGroups") or ()):
        check(errors, f"{path}.supplementalGroups[{i}]", group, is_valid_group_id(group))
    if context.get("sysctls"):
        _sysctls(errors, f"{path}.sysctls", context["sysctls"], spec)
    _optional(errors, f"{path}.fsGroupChangePolicy", context.get("fsGroupChangePolicy"), ("Always", "OnRootMismatch"))
    _seccomp(errors, f"{path}.seccompProfile", context.get("seccompProfile"))
    _windows_options(errors, f"{path}.windowsOptions", context.get("windowsOptions"))
    apparmor_profile(errors, f"{path}.appArmorProfile", context.get("appArmorProfile"))
    _optional(errors, f"{path}.supplementalGroupsPolicy", context.get("supplementalGroupsPolicy"), ("Merge", "Strict"))
    _optional(errors, f"{path}.seLinuxChangePolicy", context.get("seLinuxChangePolicy"), ("MountOption", "Recursive"))


def _optional(errors: Errors, path: str, value: str | None, supported: Sequence[str]) -> None:
    if value is not None and value not in supported:
        errors.append(not_supported(path, value, supported))


def _sysctls(errors: Errors, path: str, sysctls: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> None:
    names: set[str] = set()
    for i, sysctl in enumerate(sysctls):
        at, name = f"{path}[{i}].name", sysctl.get("name", "")
        if not name:
            errors.append(required(at))
        elif len(name) > _MAX_SYSCTL or not _sysctl.match(name):
            text = f"must have at most {_MAX_SYSCTL} characters and match regex {_SYSCTL}"
            errors.append(invalid_value(at, name, text))
        elif name in names:
            errors.append(duplicate(at, name))
        problem = _host_sysctl_problem(name, spec)
        if problem:
            errors.append(invalid_value(at, name, problem))
        names.add(name)


_IPC_SYSCTLS = frozenset(
    (
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.shm",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.msg",
    )
)


def _host_sysctl_problem(name: str, spec: Mapping[str, Any]) -> str:
    """Why the sysctl cannot be set as the pod shares the host's namespace, or ""."""
    dot, slash = name.find("."), name.find("/")
    if slash >= 0 and (dot < 0 or slash < dot):
        name = name.translate(str.maketrans("./", "/."))  # the slash notation swaps both signs
    name = name.partition("*")[0]
    if spec.get("hostNetwork") and name.startswith("net."):
        return "may not be specified when 'hostNetwork' is true"
    if spec.get("hostIPC") and (name in _IPC_SYSCTLS or name.startswith("fs.mqueue.")):
        return "may not be specified when 'hostIPC' is true"
    return ""


def _seccomp(errors: Errors, path: str, profile: Mapping[str, Any] | None) -> None:
    if profile is None:
        return
    kind, local = profile.get("type", ""), profile.get("localhostProfile")
    if not kind:
        errors.append(required(f"{path}.type", "type is required when seccompProfile is set"))
    elif kind not in PROFILE_TYPES:
        errors.append(not_supported(f"{path}.type", kind, PROFILE_TYPES))
    if kind == "Localhost":
        if local is None:
            errors.append(required(f"{path}.localhostProfile", "must be set when seccomp type is Localhost"))
        else:
            descending_path(errors, f"{path}.localhostProfile", local)
    elif local is not None:
        text = "can only be set when seccomp type is Localhost"
        errors.append(invalid_value(f"{path}.localhostProfile", internal("#core.SeccompProfile", profile), text))


def apparmor_profile(errors: Errors, path: str, profile: Mapping[str, Any] | None) -> None:
    if profile is None:
        return
    kind, local, at = profile.get("type", ""), profile.get("localhostProfile"), f"{path}.localhostProfile"
    if kind == "Localhost":
        if local is None:
            errors.append(required(at, "must be set when AppArmor type is Localhost"))
            return
        if local.strip() != local:
            errors.append(invalid_value(at, local, "must not be padded with whitespace"))
        elif not local:
            errors.append(required(at, "must be set when AppArmor type is Localhost"))
        if len(local.encode()) > _MAX_PATH:
            errors.append(too_long(at, _MAX_PATH))
    elif kind in PROFILE_TYPES:
        if local is not None:
            errors.append(invalid_value(at, local, "can only be set when AppArmor type is Localhost"))
    elif not kind:
        errors.append(required(f"{path}.type", "type is required when appArmorProfile is set"))
    else:
        errors.append(not_supported(f"{path}.type", kind, PROFILE_TYPES))


def _windows_options(errors: Errors, path: str, found: Mapping[str, Any] | None) -> None:
    if not found:
        return
    name, spec, user = found.get("gmsaCredentialSpecName"), found.get("gmsaCredentialSpec"), found.get("runAsUserName")
    if name is not None:
        check(errors, f"{path}.gmsaCredentialSpecName", name, is_dns1123_subdomain(name))
    if spec is not None:
        at = f"{path}.gmsaCredentialSpec"
        if not spec:
            errors.append(invalid_value(at, spec, "gmsaCredentialSpec cannot be an empty string"))
        elif len(spec.encode()) > _MAX_CREDENTIAL_SPEC:
            errors.append(invalid_value(at, spec, "gmsaCredentialSpec size must be under 64 KiB"))
    if user is not None:
        check(errors, f"{path}.runAsUserName", user, _windows_user_problems(user))


def _windows_user_problems(name: str) -> list[str]:
    if not name:
        return ["runAsUserName cannot be an empty string"]
    if _control.search(name):
        return ["runAsUserName cannot contain control characters"]
    parts = name.split("\\")
    if len(parts) > 2:
        return ["runAsUserName cannot contain more than one backslash"]
    domain, user = parts if len(parts) == 2 else (None, name)
    found = []
    if domain is not None and len(domain) >= 256:
        found.append("runAsUserName's Domain length must be under 256 characters")
    if domain is not None and not (_net_bios.match(domain) or _dns_domain.match(domain)):
        found.append("runAsUserName's Domain doesn't match the NetBios nor the DNS format")
    if not user:
        found.append("runAsUserName's User cannot be empty")
    elif len(user) > 104:
        found.append("runAsUserName's User length must not be longer than 104 characters")
    if _dots_and_spaces.match(user):
        found.append("runAsUserName's User cannot contain only periods or spaces")
    if _bad_user.search(user):
        found.append("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]")
    return found


def windows_host_process(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    """HostProcess is all containers' or none's, and needs the host's network."""
    of_pod = _host_process(spec.get("securityContext"))
    total = privileged = 0
    for container, at in containers_with_path(spec, path):
        total += 1
        own = _host_process(container.get("securityContext"))
        if of_pod is not None and own is not None and of_pod != own:
            text = f"pod hostProcess value must be identical if both are specified, was {str(of_pod).lower()}"
            errors.append(invalid_value(f"{at}.securityContext.windowsOptions.hostProcess", own, text))
        if own or (own is None and of_pod):
            privileged += 1
    if not privileged:
        return
    if privileged != total:
        text = "If pod contains any hostProcess containers then all containers must be HostProcess containers"
        errors.append(invalid_value(path, "", text))
    if not spec.get("hostNetwork"):
        text = "hostNetwork must be true if pod contains any hostProcess containers"
        errors.append(invalid_value(f"{path}.hostNetwork", False, text))


def _host_process(context: Mapping[str, Any] | None) -> bool | None:
    found: bool | None = ((context or {}).get("windowsOptions") or {}).get("hostProcess")
    return found


_WINDOWS_POD_FORBIDDEN = (
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
)
_WINDOWS_CONTAINER_FORBIDDEN = (
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
)
_NOT_ON_WINDOWS = "cannot be set for a windows pod"
_NOT_ON_LINUX = "windows options cannot be set for a linux pod"


def operating_system(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    """spec.os, and what may not be set on that system."""
    if spec.get("os") is None:
        return
    name = spec["os"].get("name")
    if not name:
        errors.append(required(f"{path}.os.name"))
    elif name == "linux":
        if (spec.get("securityContext") or {}).get("windowsOptions") is not None:
            errors.append(forbidden_field(f"{path}.securityContext.windowsOptions", _NOT_ON_LINUX))
        for container, at in containers_with_path(spec, path):
            if (container.get("securityContext") or {}).get("windowsOptions") is not None:
                errors.append(forbidden_field(f"{at}.securityContext.windowsOptions", _NOT_ON_LINUX))
    elif name == "windows":
        _windows(errors, path, spec)
    else:
        errors.append(not_supported(f"{path}.os", name, ("linux", "windows")))


def _windows(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    context = spec.get("securityContext") or {}
    for field in _WINDOWS_POD_FORBIDDEN:
        if context.get(field) is not None:
            errors.append(forbidden_field(f"{path}.securityContext.{field}", _NOT_ON_WINDOWS))
    if spec.get("hostUsers") is not None:
        errors.append(forbidden_field(f"{path}.hostUsers", _NOT_ON_WINDOWS))
    for field in ("hostPID", "hostIPC"):
        if spec.get(field):
            errors.append(forbidden_field(f"{path}.{field}", _NOT_ON_WINDOWS))
    if spec.get("shareProcessNamespace") is not None:
        errors.append(forbidden_field(f"{path}.shareProcessNamespace", _NOT_ON_WINDOWS))
    for container, at in containers_with_path(spec, path):
        own = container.get("securityContext") or {}
        for field in _WINDOWS_CONTAINER_FORBIDDEN:
            if own.get(field) is not None:
                errors.append(forbidden_field(f"{at}.securityContext.{field}", _NOT_ON_WINDOWS))


def host_users(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    """A user namespace of its own goes with no other namespace of the host."""
    if spec.get("hostUsers") is not False:
        return
    text = "when `hostUsers` is false"
    if spec.get("hostNetwork"):
        errors.append(forbidden_field(f"{path}.hostNetwork", text))
    for field, printed in (("hostPID", "HostPID"), ("hostIPC", "HostIPC")):
        if spec.get(field):
            errors.append(forbidden_field(f"{path}.{printed}", text))
    for container, at in containers_with_path(spec, path):
        if container.get("volumeDevices"):
            errors.append(forbidden_field(f"{at}.volumeDevices", text))


# The annotations that these fields once were.


def security_annotations(errors: Errors, path: str, annotations: Mapping[str, str], spec: Mapping[str, Any]) -> None:
    """`path` is that of the annotations."""
    if SECCOMP_POD in annotations:
        _seccomp_annotation(errors, f"{path}.{SECCOMP_POD}", annotations[SECCOMP_POD])
    for key, value in sorted(annotations.items()):
        if key.startswith(SECCOMP_CONTAINER):
            _seccomp_annotation(errors, f"{path}.{key}", value)
    for key, value in sorted(annotations.items()):
        if not key.startswith(APPARMOR_CONTAINER):
            continue
        name = key.removeprefix(APPARMOR_CONTAINER)
        if not any(container.get("name") == name for container, _ in containers_with_path(spec, "spec")):
            errors.append(invalid_value(f"{path}[{key}]", name, "container not found"))
        if value not in ("", "runtime/default", "unconfined") and not value.startswith("localhost/"):
            errors.append(invalid_value(f"{path}[{key}]", value, f"invalid AppArmor profile name: {go_quote(value)}"))


def _seccomp_annotation(errors: Errors, path: str, value: str) -> None:
    if value in ("runtime/default", "docker/default", "unconfined"):
        return
    if value.startswith("localhost/"):
        descending_path(errors, path, value.removeprefix("localhost/"))
    else:
        errors.append(invalid_value(path, value, "must be a valid seccomp profile"))


def seccomp_agrees(errors: Errors, path: str, annotations: Mapping[str, str], spec: Mapping[str, Any]) -> None:
    """Where annotation and field both say something, it is the same; `path` is that of the spec."""
    profile = (spec.get("securityContext") or {}).get("seccompProfile")
    if profile is not None and SECCOMP_POD in annotations:
        at = f"{path}.securityContext.seccompProfile"
        _agrees(errors, at, annotations[SECCOMP_POD], profile, "seccomp", ("runtime/default", "docker/default"))
    for container, container_path in containers_with_path(spec, path):
        profile = (container.get("securityContext") or {}).get("seccompProfile")
        value = annotations.get(f"{SECCOMP_CONTAINER}{container.get('name', '')}")
        if profile is not None and value is not None:
            at = f"{container_path}.securityContext.seccompProfile"
            _agrees(errors, at, value, profile, "seccomp", ("runtime/default", "docker/default"))


def apparmor_agrees(errors: Errors, path: str, annotations: Mapping[str, str], spec: Mapping[str, Any]) -> None:
    if (spec.get("os") or {}).get("name") == "windows":
        return
    of_pod = (spec.get("securityContext") or {}).get("appArmorProfile")
    for container, container_path in containers_with_path(spec, path):
        profile = (container.get("securityContext") or {}).get("appArmorProfile") or of_pod
        value = annotations.get(f"{APPARMOR_CONTAINER}{container.get('name', '')}")
        if profile is not None and value is not None:
            at = f"{container_path}.securityContext.appArmorProfile"
            _agrees(errors, at, value, profile, "apparmor", ("runtime/default",))


def _agrees(
    errors: Errors, path: str, value: str, profile: Mapping[str, Any], what: str, runtime_default: Sequence[str]
) -> None:
    kind, differ = profile.get("type"), f"{what} type in annotation and field must match"
    if kind == "Unconfined":
        if value != "unconfined":
            errors.append(forbidden_field(f"{path}.type", differ))
    elif kind == "RuntimeDefault":
        if value not in runtime_default:
            errors.append(forbidden_field(f"{path}.type", differ))
    elif kind == "Localhost":
        if not value.startswith("localhost/"):
            errors.append(forbidden_field(f"{path}.type", differ))
        elif value.removeprefix("localhost/") != profile.get("localhostProfile"):
            text = f"{what} profile in annotation and field must match"
            errors.append(forbidden_field(f"{path}.localhostProfile", text))


def apparmor_from_annotation(value: str) -> Object | None:
    """The profile that an annotation stands for; None where it stands for none."""
    if value == "unconfined":
        return {"type": "Unconfined"}
    if value == "runtime/default":
        return {"type": "RuntimeDefault"}
    if value.startswith("localhost/") and value != "localhost/":
        return {"type": "Localhost", "localhostProfile": value.removeprefix("localhost/")}
    return None
