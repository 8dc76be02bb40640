"""How a container's process is confined: the pod's and the container's security contexts in one. Pure."""

from __future__ import annotations

from typing import Any

from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object, dig
from kone.runtime.environment import ConfigError
from kone.runtime.pod_spec import format_pod
from kone.runtime.runtime import Image, SecurityContext

LOCALHOST_SECCOMP = "localhost/"


def effective(pod: Object, container: Object, field: str) -> Any:
    """A field of the container's security context, or the pod's where the container says nothing."""
    own = dig(container, "securityContext", field)
    return own if own is not None else dig(pod, "spec", "securityContext", field)


def security_context(pod: Object, container: Object, image: Image, *, seccomp_profile: str = "") -> SecurityContext:
    """The confinement. `seccomp_profile` is the JSON of a Localhost profile, read beforehand. Raises ConfigError."""
    verify_non_root(pod, container, image)
    own: Object = container.get("securityContext") or {}
    escalation = own.get("allowPrivilegeEscalation")
    capabilities = own.get("capabilities") or {}
    return SecurityContext(
        user=_user(pod, container, image),
        supplemental_groups=_groups(pod),
        capabilities_add=tuple(capabilities.get("add") or ()),
        capabilities_drop=tuple(capabilities.get("drop") or ()),
        privileged=bool(own.get("privileged")),
        read_only_rootfs=bool(own.get("readOnlyRootFilesystem")),
        no_new_privileges=escalation is False,
        seccomp=_seccomp(pod, container, seccomp_profile),
        apparmor=_apparmor(pod, container),
        selinux=_selinux(pod, container),
        masked_paths=own.get("procMount") != "Unmasked",
    )


def localhost_seccomp(pod: Object, container: Object) -> str:
    """The file name of the Localhost seccomp profile that is asked for, "" where none is."""
    profile = effective(pod, container, "seccompProfile") or {}
    return str(profile.get("localhostProfile", "")) if profile.get("type") == "Localhost" else ""


def verify_non_root(pod: Object, container: Object, image: Image) -> None:
    """runAsNonRoot, as far as numbers tell. Raises ConfigError with upstream's text."""
    if not effective(pod, container, "runAsNonRoot"):
        return
    where = f"(pod: {go_quote(format_pod(pod))}, container: {container['name']})"
    user = effective(pod, container, "runAsUser")
    if user is not None:
        if int(user) == 0:
            raise ConfigError(f"container's runAsUser breaks non-root policy {where}")
        return
    name = image.user.partition(":")[0]
    if name in ("", "0"):
        raise ConfigError(f"container has runAsNonRoot and image will run as root {where}")
    if not name.isdigit():
        raise ConfigError(
            f"container has runAsNonRoot and image has non-numeric user ({name}), "
            f"cannot verify user is non-root {where}"
        )


def _user(pod: Object, container: Object, image: Image) -> str:
    user, group = effective(pod, container, "runAsUser"), effective(pod, container, "runAsGroup")
    if user is None and group is None:
        return ""
    name = str(user) if user is not None else image.user.partition(":")[0] or "0"
    return f"{name}:{group}" if group is not None else name


def _groups(pod: Object) -> tuple[int, ...]:
    own = dig(pod, "spec", "securityContext", default={})
    groups = [int(group) for group in own.get("supplementalGroups") or ()]
    if own.get("fsGroup") is not None:
        groups.append(int(own["fsGroup"]))
    return tuple(dict.fromkeys(groups))


def _seccomp(pod: Object, container: Object, profile: str) -> str:
    kind = (effective(pod, container, "seccompProfile") or {}).get("type")
    if kind == "RuntimeDefault":
        return "runtime/default"
    return profile if kind == "Localhost" else ""


def _apparmor(pod: Object, container: Object) -> str:
    found = effective(pod, container, "appArmorProfile") or {}
    match found.get("type"):
        case "Unconfined":
            return "unconfined"
        case "Localhost":
            return str(found.get("localhostProfile", ""))
        case _:
            return ""


def _selinux(pod: Object, container: Object) -> tuple[str, ...]:
    options = effective(pod, container, "seLinuxOptions") or {}
    return tuple(f"{key}:{options[key]}" for key in ("user", "role", "type", "level") if options.get(key))
