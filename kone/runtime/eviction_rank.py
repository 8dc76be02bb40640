"""Who must go when the node is short of something, and what they are told. Pure.

The order: pods that use more than they asked for first; of those the one of least priority; of those the one that
exceeds its request by most. Rules and texts: kubernetes/pkg/kubelet/eviction/helpers.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object, dig, name_of
from kone.apimachinery.pod_resources import pod_limits, pod_requests
from kone.apimachinery.quantity import Quantity, parse_quantity
from kone.runtime.disk_usage import DiskUsage
from kone.runtime.eviction_signals import IMAGE_DISK, IMAGE_INODES, MEMORY, NODE_DISK, NODE_INODES, PIDS, RESOURCES
from kone.runtime.static_pods import is_mirror, is_static
from kone.runtime.stats import ContainerUse, PodUse

CRITICAL_PRIORITY_MIN = 2_000_000_000  # system-cluster-critical and above


def is_critical(pod: Object) -> bool:
    """Pods that the node itself needs are never evicted, and admitted under pressure (types.IsCriticalPod)."""
    return is_static(pod) or is_mirror(pod) or dig(pod, "spec", "priority", default=0) >= CRITICAL_PRIORITY_MIN


def ranked(pods: Iterable[PodUse], signal: str, *, own_image_fs: bool) -> list[PodUse]:
    """Those to evict first come first. `own_image_fs`: images and writable layers lie on a disk of their own."""
    if signal == PIDS:
        return sorted(pods, key=lambda use: (_priority(use), -use.usage.processes))
    used = _measure(signal, own_image_fs=own_image_fs)
    resource = RESOURCES[signal]

    def order(use: PodUse) -> tuple[bool, int, int]:
        amount, request = used(use), pod_requests(use.pod).get(resource, 0)
        return amount <= request, _priority(use), request - amount

    return sorted(pods, key=order)


def _priority(use: PodUse) -> int:
    return int(dig(use.pod, "spec", "priority", default=0))


def _measure(signal: str, *, own_image_fs: bool) -> Callable[[PodUse], int]:
    """What a pod uses of the thing that a signal is about."""
    if signal == MEMORY:
        return lambda use: use.usage.working_set_bytes
    inodes = signal in (NODE_INODES, IMAGE_INODES)

    def used(use: PodUse) -> int:
        logs = [container.log for container in use.containers]
        layers = [container.layer for container in use.containers]
        volumes = list(use.volumes.values())
        if not own_image_fs:
            parts = [*logs, *layers, *volumes]
        elif signal in (NODE_DISK, NODE_INODES):
            parts = [*logs, *volumes]
        else:
            assert signal in (IMAGE_DISK, IMAGE_INODES)
            parts = layers
        total = sum(parts, DiskUsage())
        return total.inodes if inodes else total.bytes

    return used


def low_on(signal: str, shortage: str, use: PodUse) -> tuple[str, dict[str, str]]:
    """The message of an eviction under pressure, and the annotations of its event."""
    resource = RESOURCES[signal]
    message = f"The node was low on resource: {resource}. {shortage}"
    annotations: dict[str, str] = {}
    pod_request = dig(use.pod, "spec", "resources", "requests", resource)
    if resource == "memory" and pod_request is not None:
        used = _bytes(use.usage.working_set_bytes)
        message += _exceeds("Pod", name_of(use.pod), used, pod_request, resource)
        annotations |= {"offending_pod": name_of(use.pod), "offending_pod_usage": used}
    requests = _requests(use.pod, resource)
    exceeding: list[tuple[str, str]] = []
    for container in use.containers:
        name = container.status.name
        amount = _amount(container, resource)
        if amount is None or name not in requests or amount <= parse_quantity(requests[name]).value():
            continue
        exceeding.append((name, _bytes(amount)))
        message += _exceeds("Container", name, _bytes(amount), requests[name], resource)
    annotations["offending_containers"] = ",".join(name for name, _ in exceeding)
    annotations["offending_containers_usage"] = ",".join(amount for _, amount in exceeding)
    annotations["starved_resource"] = resource
    return message, annotations


def _exceeds(what: str, name: str, used: str, request: str, resource: str) -> str:
    asked = parse_quantity(request).canonical()
    return f"{what} {name} was using {used}, request is {asked}, has larger consumption of {resource}. "


def _amount(container: ContainerUse, resource: str) -> int | None:
    if resource == "memory":
        return container.usage.working_set_bytes
    return container.layer.bytes + container.log.bytes if resource == "ephemeral-storage" else None


def _requests(pod: Object, resource: str) -> dict[str, str]:
    """What each container asks for, "0" where it does not say; ephemeral ones can ask for nothing and do not count."""
    spec = pod["spec"]
    containers: Sequence[Object] = [*spec["containers"], *(spec.get("initContainers") or ())]
    return {c["name"]: str(dig(c, "resources", "requests", resource, default="0")) for c in containers}


def _bytes(amount: int) -> str:
    return Quantity.of(amount, "BinarySI").canonical()


# ---- limits of local storage


def has_storage_limit(pod: Object) -> bool:
    """Whether anything of the pod's local storage is limited, so that it must be counted."""
    spec = pod["spec"]
    holders = (spec, *spec["containers"], *(spec.get("initContainers") or ()))
    if any("ephemeral-storage" in dig(holder, "resources", "limits", default=()) for holder in holders):
        return True
    return any(_size_limit(volume) for volume in spec.get("volumes") or ())


def over_limit(use: PodUse, *, own_image_fs: bool) -> str | None:
    """Why a pod that uses more local storage than it may is evicted; None for one that keeps to its limits."""
    for volume in use.pod["spec"].get("volumes") or ():
        limit = _size_limit(volume)
        taken = use.volumes.get(volume["name"])
        if limit and taken is not None and taken.bytes > limit.value():
            name, size = go_quote(volume["name"]), go_quote(limit.canonical())
            return f"Usage of EmptyDir volume {name} exceeds the limit {size}. "
    total = pod_limits(use.pod).get("ephemeral-storage")
    if total is not None and use.ephemeral_storage.bytes > total:
        return f"Pod ephemeral local storage usage exceeds the total limit of containers {_bytes(total)}. "
    limits = _storage_limits(use.pod)
    for container in use.containers:
        name = container.status.name
        used = container.log.bytes + (0 if own_image_fs else container.layer.bytes)
        if name in limits and used > limits[name].value():
            return f"Container {name} exceeded its local ephemeral storage limit {go_quote(limits[name].canonical())}. "
    return None


def _size_limit(volume: Object) -> Quantity | None:
    """The limit that is watched here: that of memory is the kernel's."""
    empty = volume.get("emptyDir")
    if empty is None or empty.get("medium") or not empty.get("sizeLimit"):
        return None
    limit = parse_quantity(empty["sizeLimit"])
    return limit if limit.nanos > 0 else None


def _storage_limits(pod: Object) -> Mapping[str, Quantity]:
    spec = pod["spec"]
    sidecars = (c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")
    found = {}
    for container in (*spec["containers"], *sidecars):
        text = dig(container, "resources", "limits", "ephemeral-storage")
        if text and not (limit := parse_quantity(text)).is_zero:
            found[container["name"]] = limit
    return found
