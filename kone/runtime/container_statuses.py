"""The statuses of a pod's containers as the API shows them, from what the runtime has and what was said before.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from kone.apimachinery.objects import Object, dig, is_deleting
from kone.apimachinery.quantity import Quantity
from kone.apimachinery.timestamps import format_time
from kone.runtime.observed import PodObserved, has_regular_container, restart_all_sources
from kone.runtime.pod_actions import ProbesOf, container_should_start
from kone.runtime.pod_spec import ContainerKind, init_containers, is_sidecar, quantity
from kone.runtime.runtime import ContainerState, ContainerStatus

SCHEME = "docker://"
LOST = "ContainerStatusUnknown"  # exit code 137 stands for a container that nobody saw end
LOST_WHEN_TERMINATED = "The container could not be located when the pod was terminated"
RESTARTING_ALL = "RestartingAllContainers"
REMOVED = "The container is removed because RestartAllContainers in place"
LOST_WHEN_DELETED = "The container could not be located when the pod was deleted.  The container used to be Running"


def container_statuses(
    pod: Object, kind: ContainerKind, containers: Sequence[Object], observed: PodObserved, probes: ProbesOf, old: Object
) -> list[Object]:
    """status.containerStatuses, initContainerStatuses or ephemeralContainerStatuses; `old` is the status before.

    Regular containers come sorted by name, as upstream shows them; the others in the spec's order.
    """
    field = {"init": "initContainerStatuses", "regular": "containerStatuses", "ephemeral": "ephemeralContainerStatuses"}
    before = {status["name"]: status for status in old.get(field[kind]) or ()}
    found = [_status(pod, kind, c, observed, probes, old, before.get(c["name"])) for c in containers]
    return sorted(found, key=lambda status: str(status["name"])) if kind == "regular" else found


def _status(
    pod: Object,
    kind: ContainerKind,
    container: Object,
    observed: PodObserved,
    probes: ProbesOf,
    before: Object,
    old: Object | None,
) -> Object:
    name = container["name"]
    attempts = [c for c in observed.containers if c.name == name][:2]
    if attempts:
        newest = attempts[0]
        status = _from_runtime(container, newest, old, observed)
        if len(attempts) > 1:
            status["lastState"] = _state(attempts[1])
    else:
        status = _without_container(pod, kind, container, observed, before, old)
    newest_or_none = attempts[0] if attempts else None
    failure = observed.failures.get(name)
    if failure and _will_start(pod, kind, container, newest_or_none):
        if "terminated" in status["state"]:
            status["lastState"] = status["state"]
        waiting = {"reason": failure.reason}
        if failure.message:
            waiting["message"] = failure.message
        status["state"] = {"waiting": waiting}
    _add_readiness(kind, container, newest_or_none, probes, status)
    return status


def _will_start(pod: Object, kind: ContainerKind, container: Object, newest: ContainerStatus | None) -> bool:
    if kind == "ephemeral":
        return newest is None
    if kind == "init" and newest and newest.state is ContainerState.EXITED and newest.exit_code == 0:
        return is_sidecar(container)
    return container_should_start(pod, container, newest)


def _from_runtime(container: Object, newest: ContainerStatus, old: Object | None, observed: PodObserved) -> Object:
    status: Object = {
        "name": newest.name,
        "state": _state(newest),
        "lastState": (old or {}).get("lastState") or {},
        "ready": False,
        "restartCount": newest.restart_count,
        "image": newest.image or container.get("image", ""),
        "imageID": newest.image_ref or newest.image_id,
        "containerID": SCHEME + newest.id,
    }
    if (
        old
        and old.get("containerID") not in (None, "", status["containerID"])
        and "terminated" in (old.get("state") or {})
    ):
        status["lastState"] = old["state"]
    resources = _resources(container, newest)
    status["resources"] = resources
    if requests := dig(container, "resources", "requests"):
        status["allocatedResources"] = requests
    _add_mounts(container, status, observed)
    return status


def _without_container(
    pod: Object, kind: ContainerKind, container: Object, observed: PodObserved, before: Object, old: Object | None
) -> Object:
    """Nothing in the runtime: not yet made, or made and gone."""
    if (
        old
        and kind != "ephemeral"
        and "waiting" not in (old.get("state") or {})
        and is_restarting_all(pod, observed, before)
    ):
        return {
            **old,
            "state": {"waiting": {"reason": RESTARTING_ALL, "message": REMOVED}},
            "lastState": {"terminated": _terminated(137, RESTARTING_ALL, REMOVED)},
            "restartCount": int(old.get("restartCount", 0)) + 1,
            "containerID": "",
        }
    if old and "terminated" in (old.get("state") or {}):
        return dict(old)
    waiting = "PodInitializing" if init_containers(pod) else "ContainerCreating"
    status: Object = {
        "name": container["name"],
        "state": {"waiting": {"reason": waiting}},
        "lastState": (old or {}).get("lastState") or {},
        "ready": False,
        "restartCount": (old or {}).get("restartCount", 0),
        "image": container.get("image", ""),
        "imageID": "",
    }
    _add_mounts(container, status, observed)
    if kind == "init" and not is_sidecar(container) and has_regular_container(pod, observed):
        # it was removed after its work: regular containers exist, so it must have succeeded
        message = (
            "Unable to get init container status from container runtime and pod has been initialized, "
            "treat it as exited normally"
        )
        status["state"] = {"terminated": _terminated(0, "Completed", message)}
    elif old and "running" in (old.get("state") or {}) and not status["lastState"]:
        status["lastState"] = {"terminated": _terminated(137, LOST, LOST_WHEN_DELETED)}
        if not is_deleting(pod):
            status["restartCount"] += 1
    return status


def _terminated(exit_code: int, reason: str, message: str) -> Object:
    return {"exitCode": exit_code, "reason": reason, "message": message}


def is_restarting_all(pod: Object, observed: PodObserved, before: Object) -> bool:
    """Whether all containers are being restarted in place: a container calls for it, or the status says that it
    began.
    """
    begun = any(
        c["type"] == "AllContainersRestarting" and c["status"] == "True" for c in before.get("conditions") or ()
    )
    return begun or bool(restart_all_sources(pod, observed))


def lost_container() -> Object:
    """The state of a container that was gone when the pod ended."""
    return {"terminated": _terminated(137, LOST, LOST_WHEN_TERMINATED)}


def _state(status: ContainerStatus) -> Object:
    match status.state:
        case ContainerState.RUNNING:
            return {"running": {"startedAt": format_time(status.started_at)}}
        case ContainerState.EXITED:
            found: Object = {
                "exitCode": status.exit_code,
                "reason": status.reason,
                "startedAt": format_time(status.started_at),
                "finishedAt": format_time(status.finished_at),
                "containerID": SCHEME + status.id,
            }
            if status.message:
                found["message"] = status.message
            return {"terminated": found}
        case _:
            return {"waiting": {}}


def _resources(container: Object, newest: ContainerStatus) -> Object:
    """What the container may use: the kernel's figures for what is resizable and running, the spec's for the rest."""
    spec: Object = dig(container, "resources", default={})
    resources: Object = {key: dict(value) for key in ("limits", "requests") if (value := spec.get(key))}
    if newest.state is not ContainerState.RUNNING:
        return resources
    actual = newest.resources
    if "limits" in resources:
        if actual.cpu_quota and actual.cpu_period:
            milli = Quantity.of_milli(-(-actual.cpu_quota * 1000 // actual.cpu_period))
            if _above(container, "limits", 10, milli):
                resources["limits"]["cpu"] = milli.canonical()
        if actual.memory_bytes:
            resources["limits"]["memory"] = Quantity.of(actual.memory_bytes, "BinarySI").canonical()
    if "requests" in resources and actual.cpu_shares:
        milli = Quantity.of_milli(-(-actual.cpu_shares * 1000 // 1024))
        asked = quantity(container, "requests", "cpu")
        # shares are coarser than thousandths: what comes back to the same shares is what was asked for
        same = asked is not None and max(2, asked.milli() * 1024 // 1000) == actual.cpu_shares
        if not same and _above(container, "requests", 2, milli):
            resources["requests"]["cpu"] = milli.canonical()
    return resources


def _above(container: Object, kind: str, floor_milli: int, actual: Quantity) -> bool:
    """Whether asked or actual is above what the kernel can tell apart at all."""
    asked = quantity(container, "limits" if kind == "limits" else "requests", "cpu")
    return actual.milli() > floor_milli or (asked is not None and asked.milli() > floor_milli)


def _add_mounts(container: Object, status: Object, observed: PodObserved) -> None:
    mounts = []
    for mount in container.get("volumeMounts") or ():
        found: Object = {"name": mount["name"], "mountPath": mount["mountPath"]}
        if mount.get("readOnly"):
            found["readOnly"] = True
            recursive = mount.get("recursiveReadOnly")
            deep = recursive == "Enabled" or (recursive == "IfPossible" and observed.recursive_read_only)
            found["recursiveReadOnly"] = "Enabled" if deep else "Disabled"
        mounts.append(found)
    if mounts:
        status["volumeMounts"] = mounts


def _add_readiness(
    kind: ContainerKind, container: Object, newest: ContainerStatus | None, probes: ProbesOf, status: Object
) -> None:
    if kind == "ephemeral":
        return
    running = newest is not None and "running" in status["state"]
    results = probes(container, newest.id) if running and newest is not None else None
    status["started"] = bool(results and results.started)
    if kind == "init" and not is_sidecar(container):
        status["ready"] = dig(status, "state", "terminated", "exitCode") == 0
    else:
        status["ready"] = bool(results and results.started and results.ready)
