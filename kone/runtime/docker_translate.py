"""Between CRI's words and Docker's: configurations to request bodies, inspect answers to statuses, errors to
upstream's texts.

Pure. What a pod's sandbox and containers are is kept in Docker's labels, so that a new kone finds everything an old
one made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kone.runtime.docker_host import HostLimits
from kone.runtime.pause_image import PAUSE_IMAGE
from kone.runtime.runtime import (
    ContainerConfig,
    ContainerState,
    ContainerStatus,
    Image,
    Mount,
    PodMeta,
    Resources,
    Sandbox,
    SandboxConfig,
)

Body = dict[str, Any]

INSTANCE = "kone.instance"
POD_NAME = "io.kubernetes.pod.name"
POD_NAMESPACE = "io.kubernetes.pod.namespace"
POD_UID = "io.kubernetes.pod.uid"
CONTAINER_NAME = "io.kubernetes.container.name"
CONTAINER_TYPE = "io.kubernetes.container.type"  # "podsandbox" or "container"
RESTART_COUNT = "io.kubernetes.container.restartCount"
SANDBOX_ID = "io.kubernetes.sandbox.id"
SANDBOX_ATTEMPT = "io.kubernetes.sandbox.attempt"
IMAGE_NAME = "io.kubernetes.container.image"
IMAGE_REF = "kone.image-ref"
OOM_SCORE_ADJ = "kone.oom-score-adj"

UNMASKED: Body = {"MaskedPaths": [], "ReadonlyPaths": []}
UNCONFINED = ("seccomp=unconfined", "apparmor=unconfined", "label=disable")

_NEVER = "0001-01-01T00:00:00Z"


def sandbox_name(config: SandboxConfig) -> str:
    return f"k8s_POD_{config.pod.name}_{config.pod.namespace}_{config.pod.uid}_{config.attempt}"


def container_name(config: ContainerConfig) -> str:
    pod = config.pod
    return f"k8s_{config.name}_{pod.name}_{pod.namespace}_{pod.uid}_{config.restart_count}"


def sandbox_body(config: SandboxConfig, *, instance: str, limits: HostLimits) -> Body:
    """The body of Docker's create for a sandbox."""
    host: Body = {
        "NetworkMode": "host" if config.host_network else "none",
        "IpcMode": "host" if config.host_ipc else "shareable",
        "PidMode": "host" if config.host_pid else "",
        "UTSMode": "host" if config.host_network else "",
        "ReadonlyRootfs": True,
        "OomScoreAdj": -998
        if limits.may_protect
        else 0,  # as kubelet's PodInfraOOMAdj: the pod dies before its sandbox does
        "CpuShares": 2,
        "SecurityOpt": ["no-new-privileges"],
        "LogConfig": {"Type": "none"},
        "Sysctls": dict(config.sysctls),
    }
    if config.privileged:
        host |= _privileged(host, limits)
    if config.cgroup_parent:
        host["CgroupParent"] = config.cgroup_parent
    if config.shm_size_bytes and not config.host_ipc:
        host["ShmSize"] = config.shm_size_bytes
    body: Body = {
        "Image": PAUSE_IMAGE,
        "Labels": {
            **config.labels,
            **_pod_labels(config.pod, instance),
            CONTAINER_TYPE: "podsandbox",
            SANDBOX_ATTEMPT: str(config.attempt),
        },
        "HostConfig": host,
    }
    if config.hostname:
        body["Hostname"] = config.hostname
    if not config.host_network:
        # runc makes the network namespace, kone wires it: without Docker's own part (a hook that starts dockerd once
        # more) a sandbox is there in half the time
        body["NetworkDisabled"] = True
    return body


def container_body(
    sandbox_id: str, config: ContainerConfig, *, instance: str, limits: HostLimits, oci_runtime: str = ""
) -> Body:
    """The body of Docker's create for a container that joins `sandbox_id`. `oci_runtime` "" is Docker's own."""
    security, resources = config.security, config.resources
    oom_score_adj = resources.oom_score_adj if limits.may_protect else max(0, resources.oom_score_adj)
    host: Body = {
        "NetworkMode": f"container:{sandbox_id}",
        "IpcMode": "host" if config.host_ipc else f"container:{sandbox_id}",
        "PidMode": _pid_mode(sandbox_id, config),
        "Mounts": [_mount(mount) for mount in config.mounts],
        "Devices": [
            {"PathOnHost": d.host_path, "PathInContainer": d.container_path, "CgroupPermissions": d.permissions}
            for d in config.devices
        ],
        "GroupAdd": [str(group) for group in security.supplemental_groups],
        "CapAdd": list(security.capabilities_add),
        "CapDrop": list(security.capabilities_drop),
        "ReadonlyRootfs": security.read_only_rootfs,
        "SecurityOpt": _security_options(config),
        "OomScoreAdj": oom_score_adj,
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(config.log_max_bytes), "max-file": str(config.log_max_files)},
        },
        **_resources_body(resources),
    }
    if security.privileged:
        host |= _privileged(host, limits)
    elif not security.masked_paths:
        host |= UNMASKED
    if config.cgroup_parent:
        host["CgroupParent"] = config.cgroup_parent
    if oci_runtime:
        host["Runtime"] = oci_runtime
    body: Body = {
        "Image": config.image_id,
        "Env": [f"{name}={value}" for name, value in config.env],
        "Labels": {
            **config.labels,
            **_pod_labels(config.pod, instance),
            CONTAINER_TYPE: "container",
            CONTAINER_NAME: config.name,
            RESTART_COUNT: str(config.restart_count),
            SANDBOX_ID: sandbox_id,
            IMAGE_NAME: config.image,
            **({IMAGE_REF: config.image_ref} if config.image_ref else {}),
            OOM_SCORE_ADJ: str(resources.oom_score_adj),
        },
        "Tty": config.tty,
        "OpenStdin": config.stdin,
        "StdinOnce": config.stdin_once,
        "Healthcheck": {"Test": ["NONE"]},  # the kubelet's probes are the only ones
        "HostConfig": host,
    }
    if config.command is not None:
        body["Entrypoint"] = list(config.command)
    if config.args is not None:
        body["Cmd"] = list(config.args)
    if config.working_dir:
        body["WorkingDir"] = config.working_dir
    if security.user:
        body["User"] = security.user
    if config.stop_signal:
        body["StopSignal"] = config.stop_signal
    return body


def _privileged(host: Body, limits: HostLimits) -> Body:
    """What makes a container privileged. Docker's own way asks for every capability, which fails where one is lacking:
    then all others, all devices, and no confinement are asked for by name. /sys stays read-only in that case.
    """
    if not limits.lacking:
        return {"Privileged": True}
    everything = {"PathOnHost": "/dev", "PathInContainer": "/dev", "CgroupPermissions": "rwm"}
    return {
        "CapAdd": ["ALL"],
        "CapDrop": list(limits.lacking),
        "Devices": [*host.get("Devices", ()), everything],
        "DeviceCgroupRules": ["a *:* rwm"],
        "SecurityOpt": list(dict.fromkeys([*host["SecurityOpt"], *UNCONFINED])),
        **UNMASKED,
    }


def resources_update(resources: Resources) -> Body:
    """The body of Docker's update."""
    body = {key: value for key, value in _resources_body(resources).items() if key != "PidsLimit"}
    if not resources.cpu_quota:
        body["CpuQuota"] = -1
    return body


def _resources_body(resources: Resources) -> Body:
    found: Body = {
        "CpuShares": resources.cpu_shares,
        "CpuQuota": resources.cpu_quota,
        "CpuPeriod": resources.cpu_period,
        "Memory": resources.memory_bytes,
        # no swap for pods (kubelet's NoSwap): memory and swap together may be what memory alone may be
        "MemorySwap": resources.memory_swap_bytes or resources.memory_bytes,
        "MemoryReservation": resources.memory_reservation_bytes,
        "CpusetCpus": resources.cpuset_cpus,
        "CpusetMems": resources.cpuset_mems,
        "PidsLimit": resources.pids_limit,
    }
    return {key: value for key, value in found.items() if value}


def _pod_labels(pod: PodMeta, instance: str) -> dict[str, str]:
    return {INSTANCE: instance, POD_NAME: pod.name, POD_NAMESPACE: pod.namespace, POD_UID: pod.uid}


def _pid_mode(sandbox_id: str, config: ContainerConfig) -> str:
    match config.pid_mode:
        case "host":
            return "host"
        case "pod":
            return f"container:{sandbox_id}"
        case "target":
            return f"container:{config.target_container_id}"
        case _:
            return ""


def _mount(mount: Mount) -> Body:
    options: Body = {} if mount.propagation == "private" else {"Propagation": mount.propagation}
    # Private is what Docker takes when nothing is said, but for what holds its own root (the host's "/"): that it
    # mounts as a slave, and refuses "rprivate". Only a deep read-only mount must say it.
    if mount.read_only and mount.recursive_read_only:
        options = {"Propagation": "rprivate", **options, "ReadOnlyForceRecursive": True}
    elif mount.read_only:
        # newer Dockers make read-only mounts so all the way down, unless told; Kubernetes asks for that by name only
        options["ReadOnlyNonRecursive"] = True
    return {
        "Type": "bind",
        "Source": mount.host_path,
        "Target": mount.container_path,
        "ReadOnly": mount.read_only,
        "BindOptions": options,
    }


def can_mount_read_only_deeply(docker: str, kernel: str) -> bool:
    """By the versions of Docker (25 has the option) and of the kernel (5.12 has mount_setattr)."""
    return _version(docker) >= (25, 0) and _version(kernel) >= (5, 12)


def _version(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match is not None else (0, 0)


def _security_options(config: ContainerConfig) -> list[str]:
    security = config.security
    options = []
    if security.no_new_privileges:
        options.append("no-new-privileges")
    if security.privileged or not security.seccomp:
        options.append("seccomp=unconfined")
    elif security.seccomp != "runtime/default":
        options.append(f"seccomp={security.seccomp}")
    if security.apparmor:
        options.append(f"apparmor={security.apparmor}")
    options.extend(f"label={value}" for value in security.selinux)
    return options


def sandbox_from_inspect(found: Mapping[str, Any]) -> Sandbox:
    labels = _labels(found)
    state = found["State"]
    return Sandbox(
        id=found["Id"],
        pod=_pod(labels),
        attempt=int(labels.get(SANDBOX_ATTEMPT, "0")),
        ready=bool(state.get("Running")),
        created_at=parse_docker_time(found.get("Created", _NEVER)),
        pid=int(state.get("Pid") or 0),
        host_network=found.get("HostConfig", {}).get("NetworkMode") == "host",
        labels=labels,
    )


def container_from_inspect(found: Mapping[str, Any]) -> ContainerStatus:
    labels = _labels(found)
    state, config, host = found["State"], found["Config"], found.get("HostConfig", {})
    created_at = parse_docker_time(found.get("Created", _NEVER))
    exit_code = int(state.get("ExitCode") or 0)
    started_at = parse_docker_time(state.get("StartedAt") or _NEVER)
    finished_at = parse_docker_time(state.get("FinishedAt") or _NEVER)
    if finished_at:  # Docker notes the start when it hears of it, which may be after a short process has ended
        finished_at = max(finished_at, started_at)
    reason = message = ""
    if state.get("Running") or state.get("Restarting") or state.get("Paused"):
        kind, finished_at, exit_code = ContainerState.RUNNING, 0.0, 0
    elif state.get("Status") == "created" and state.get("Error"):
        # Docker leaves a container whose process could not be started as "created"; CRI calls it exited
        kind, reason, message = ContainerState.EXITED, "StartError", start_error(state["Error"])
        exit_code, finished_at = 128, created_at
    elif state.get("Status") == "created":
        kind = ContainerState.CREATED
    else:
        kind = ContainerState.EXITED
        if state.get("OOMKilled"):
            reason = "OOMKilled"
        elif exit_code == 0:
            reason = "Completed"
        else:
            reason = "Error"
        if state.get("Error"):
            message = start_error(state["Error"])
            if exit_code in (126, 127, 128):
                reason, exit_code = "StartError", 128
    return ContainerStatus(
        id=found["Id"],
        sandbox_id=labels.get(SANDBOX_ID, ""),
        pod=_pod(labels),
        name=labels.get(CONTAINER_NAME, ""),
        state=kind,
        created_at=created_at,
        restart_count=int(labels.get(RESTART_COUNT, "0")),
        image=labels.get(IMAGE_NAME) or config.get("Image", ""),
        image_id=found.get("Image", ""),
        image_ref=labels.get(IMAGE_REF, ""),
        started_at=started_at,
        finished_at=finished_at,
        exit_code=exit_code,
        reason=reason,
        message=message,
        pid=int(state.get("Pid") or 0),
        tty=bool(config.get("Tty")),
        log_path=found.get("LogPath", ""),
        resources=_resources_from(host, labels),
        labels=labels,
        mounts=tuple(
            Mount(m["Target"], m["Source"], bool(m.get("ReadOnly")))
            for m in host.get("Mounts") or ()
            if m.get("Type") == "bind"
        ),
        stop_signal=config.get("StopSignal") or "",
    )


def _resources_from(host: Mapping[str, Any], labels: Mapping[str, str]) -> Resources:
    return Resources(
        cpu_shares=int(host.get("CpuShares") or 0),
        cpu_quota=max(0, int(host.get("CpuQuota") or 0)),
        cpu_period=int(host.get("CpuPeriod") or 0),
        memory_bytes=int(host.get("Memory") or 0),
        oom_score_adj=int(labels.get(OOM_SCORE_ADJ) or host.get("OomScoreAdj") or 0),
    )


def image_from_inspect(found: Mapping[str, Any]) -> Image:
    config = found.get("Config") or {}
    return Image(
        id=found["Id"],
        tags=tuple(found.get("RepoTags") or ()),
        digests=tuple(found.get("RepoDigests") or ()),
        size_bytes=int(found.get("Size") or 0),
        user=config.get("User") or "",
        stop_signal=config.get("StopSignal") or "",
        created_at=parse_docker_time(found["Created"]) if found.get("Created") else 0.0,
        labels=config.get("Labels") or {},
    )


def layers_from_inspect(found: Mapping[str, Any]) -> tuple[str, ...]:
    """An image's directories by the storage driver overlay2, topmost first; () for other drivers."""
    driver = found.get("GraphDriver") or {}
    if driver.get("Name") != "overlay2":
        return ()
    data = driver.get("Data") or {}
    lower = data.get("LowerDir") or ""
    return tuple(filter(None, (data.get("UpperDir"), *lower.split(":"))))


def image_from_list(found: Mapping[str, Any]) -> Image:
    def named(key: str) -> tuple[str, ...]:
        return tuple(name for name in found.get(key) or () if not name.startswith("<none>"))

    return Image(
        id=found["Id"],
        tags=named("RepoTags"),
        digests=named("RepoDigests"),
        size_bytes=int(found.get("Size") or 0),
        created_at=float(found.get("Created") or 0),
        labels=found.get("Labels") or {},
    )


def _labels(found: Mapping[str, Any]) -> dict[str, str]:
    return found["Config"].get("Labels") or {}


def _pod(labels: Mapping[str, str]) -> PodMeta:
    return PodMeta(labels.get(POD_NAME, ""), labels.get(POD_NAMESPACE, ""), labels.get(POD_UID, ""))


def parse_docker_time(text: str) -> float:
    """RFC 3339 with up to nine digits of a second, to Unix seconds; Docker's "never" is 0."""
    moment = datetime.fromisoformat(text)
    return max(0.0, moment.timestamp()) if moment.year > 1 else 0.0


_PREFIXES = re.compile(
    r"^(failed to create task for container: |failed to create shim task: |Cannot start service.*?: )+"
)


def start_error(message: str) -> str:
    """Docker's words for a process that could not be started, in those of the runtime that upstream's texts know.

    Docker: `failed to create task for container: failed to create shim task: OCI runtime create failed: runc create
    failed: …: exec: "nope": executable file not found in $PATH: unknown`; containerd under CRI says `failed to create
    containerd task: …`.
    """
    text = _PREFIXES.sub("", message.strip()).removesuffix(": unknown")
    return f"failed to create containerd task: failed to create shim task: {text}"
