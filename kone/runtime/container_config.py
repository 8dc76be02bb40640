"""What a container and a sandbox are made of: a pod's spec in the runtime's words. Pure; the files are written by
pod_files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from kone.apimachinery.objects import Object, dig, name_of, namespace_of
from kone.apimachinery.pod_resources import qos_class
from kone.runtime.environment import ConfigError, expand
from kone.runtime.image_names import parse_reference
from kone.runtime.pod_spec import ContainerKind, is_host_network, is_sidecar, pod_meta, quantity, regular_containers
from kone.runtime.runtime import (
    ContainerConfig,
    Device,
    Image,
    Mount,
    Resources,
    SandboxConfig,
    SecurityContext,
)
from kone.runtime.static_pods import is_static

CPU_PERIOD_US = 100_000
CPU_QUOTA_MIN_US = 1_000
CPU_SHARES_MIN, CPU_SHARES_MAX = 2, 262_144
HOSTNAME_MAX = 63
FQDN_MAX = 64

# labels by which a container is ended properly when its pod is no more to be read
TERMINATION_MESSAGE_FILE = "kone.termination-message-file"
TERMINATION_MESSAGE_POLICY = "io.kubernetes.container.terminationMessagePolicy"
GRACE_PERIOD = "io.kubernetes.pod.terminationGracePeriod"

SYSTEM_PRIORITY_MIN = 2_000_000_000  # system-cluster-critical and above


def container_config(
    pod: Object,
    kind: ContainerKind,
    container: Object,
    *,
    image: Image,
    restart_count: int,
    env: Mapping[str, str],
    mounts: Sequence[Mount],
    security: SecurityContext,
    cgroup_parent: str,
    node_memory_bytes: int,
    termination_file: str,
    target_container_id: str = "",
    devices: Sequence[Device] = (),
) -> ContainerConfig:
    """The container. `mounts` are the volumes' and the pod's own files, `devices` volumes of mode Block;
    `target_container_id` is an ephemeral container's.
    """
    command = [expand(word, env.get) for word in container.get("command") or ()]
    args = [expand(word, env.get) for word in container.get("args") or ()]
    spec = pod["spec"]
    pid_mode: Literal["container", "pod", "host", "target"]
    if spec.get("hostPID"):
        pid_mode = "host"
    elif spec.get("shareProcessNamespace"):
        pid_mode = "pod"
    else:
        pid_mode = "target" if target_container_id else "container"
    policy = container.get("terminationMessagePolicy", "File")
    return ContainerConfig(
        pod=pod_meta(pod),
        name=container["name"],
        image=container.get("image", ""),
        image_id=image.id,
        image_ref=next((parse_reference(digest).full for digest in image.digests), ""),
        restart_count=restart_count,
        command=command or None,
        args=args or None,
        working_dir=container.get("workingDir", ""),
        env=tuple(env.items()),
        mounts=tuple(mounts),
        devices=tuple(devices),
        resources=container_resources(pod, kind, container, node_memory_bytes=node_memory_bytes),
        security=security,
        cgroup_parent=cgroup_parent,
        labels={
            TERMINATION_MESSAGE_FILE: termination_file,
            TERMINATION_MESSAGE_POLICY: policy,
            GRACE_PERIOD: str(dig(pod, "spec", "terminationGracePeriodSeconds", default=30)),
        },
        stdin=bool(container.get("stdin")),
        stdin_once=bool(container.get("stdinOnce")),
        tty=bool(container.get("tty")),
        stop_signal=dig(container, "lifecycle", "stopSignal", default=""),
        pid_mode=pid_mode,
        target_container_id=target_container_id,
        host_ipc=bool(spec.get("hostIPC")),
    )


def sandbox_config(
    pod: Object, *, attempt: int, cluster_domain: str, cgroup_parent: str, labels: Mapping[str, str] | None = None
) -> SandboxConfig:
    """The sandbox. Raises ConfigError where the host name cannot be had."""
    spec = pod["spec"]
    return SandboxConfig(
        pod=pod_meta(pod),
        attempt=attempt,
        hostname="" if is_host_network(pod) else hostname(pod, cluster_domain),
        host_network=is_host_network(pod),
        host_pid=bool(spec.get("hostPID")),
        host_ipc=bool(spec.get("hostIPC")),
        sysctls={s["name"].replace("/", "."): s["value"] for s in dig(spec, "securityContext", "sysctls", default=())},
        cgroup_parent=cgroup_parent,
        labels={GRACE_PERIOD: str(spec.get("terminationGracePeriodSeconds", 30)), **(labels or {})},
    )


def short_hostname(pod: Object) -> str:
    """The pod's host name without a domain: at most 63 characters, not ending in a dash or dot."""
    chosen = dig(pod, "spec", "hostnameOverride") or dig(pod, "spec", "hostname") or name_of(pod)
    return str(chosen)[:HOSTNAME_MAX].rstrip("-.")


def fqdn(pod: Object, cluster_domain: str) -> str:
    """The pod's full name, "" where it has no subdomain."""
    subdomain = dig(pod, "spec", "subdomain", default="")
    if not subdomain or dig(pod, "spec", "hostnameOverride"):
        return ""
    return f"{short_hostname(pod)}.{subdomain}.{namespace_of(pod)}.svc.{cluster_domain}"


def hostname(pod: Object, cluster_domain: str) -> str:
    """What `hostname` says in the pod. Raises ConfigError when setHostnameAsFQDN asks for more than the kernel
    takes.
    """
    full = fqdn(pod, cluster_domain)
    if full and dig(pod, "spec", "setHostnameAsFQDN", default=False):
        if len(full) > FQDN_MAX:
            raise ConfigError(
                f"Failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long "
                f"({FQDN_MAX} characters is the max, {len(full)} characters requested)"
            )
        return full
    return short_hostname(pod)


def container_resources(pod: Object, kind: ContainerKind, container: Object, *, node_memory_bytes: int) -> Resources:
    """Requests and limits as the kernel takes them (docs, Resource Management for Pods and Containers)."""
    cpu_limit = quantity(container, "limits", "cpu") or quantity(pod["spec"], "limits", "cpu")
    memory_limit = quantity(container, "limits", "memory") or quantity(pod["spec"], "limits", "memory")
    cpu_request = quantity(container, "requests", "cpu") or quantity(container, "limits", "cpu")
    quota = 0
    if cpu_limit is not None and cpu_limit.milli() > 0:
        quota = max(cpu_limit.milli() * CPU_PERIOD_US // 1000, CPU_QUOTA_MIN_US)
    return Resources(
        cpu_shares=cpu_shares(cpu_request.milli() if cpu_request is not None else 0),
        cpu_quota=quota,
        cpu_period=CPU_PERIOD_US if quota else 0,
        memory_bytes=memory_limit.value() if memory_limit is not None else 0,
        oom_score_adj=oom_score_adj(pod, kind, container, node_memory_bytes),
    )


def cpu_shares(milli: int) -> int:
    """A request in thousandths of a core as cpu.shares: 1000 is 1024."""
    return min(max(milli * 1024 // 1000, CPU_SHARES_MIN), CPU_SHARES_MAX)


def oom_score_adj(pod: Object, kind: ContainerKind, container: Object, node_memory_bytes: int) -> int:
    """Who dies first when memory is short: the more of what it uses was not asked for, the sooner (docs, Node out of
    memory).
    """
    is_critical = is_static(pod) or dig(pod, "spec", "priority", default=0) >= SYSTEM_PRIORITY_MIN
    if is_critical and dig(pod, "spec", "priorityClassName") == "system-node-critical":
        return -997
    match qos_class(pod):
        case "Guaranteed":
            return -997
        case "BestEffort":
            return 1000
    adjust = _burstable_score(container, node_memory_bytes)
    if kind == "init" and is_sidecar(container):
        # a sidecar lives as long as the containers it serves
        adjust = min([adjust, *(_burstable_score(c, node_memory_bytes) for c in regular_containers(pod))])
    return adjust


def _burstable_score(container: Object, node_memory_bytes: int) -> int:
    asked = quantity(container, "requests", "memory") or quantity(container, "limits", "memory")
    requested = asked.value() if asked is not None else 0
    adjust = 1000 - 1000 * requested // max(1, node_memory_bytes)
    return min(max(adjust, 3), 999)
