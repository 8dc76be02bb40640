"""What to do for a pod: observe, decide (here), act. Pure: a pod, what the runtime has of it and its probes, to a plan.

The rules are those of the kubelet's computePodActions: a pod whose sandbox is gone starts from its first init
container; init containers run one after another, sidecars among them stay; regular containers run at once after them;
who has ended is started again as the restart policies say; and when nothing runs and nothing is to be started, the pod
is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from kone.apimachinery.objects import Object, is_deleting
from kone.runtime.observed import (
    PodObserved,
    has_active_regular_container,
    has_regular_container,
    restart_all_sources,
    sandbox_problem,
)
from kone.runtime.parts import ProbeResults
from kone.runtime.pod_spec import (
    ContainerKind,
    all_containers,
    ephemeral_containers,
    init_containers,
    is_sidecar,
    regular_containers,
    restart_policy,
    should_restart,
)
from kone.runtime.runtime import ContainerState, ContainerStatus, Resources

KillReason = Literal["", "liveness", "startup", "changed", "resize"]

ProbesOf = Callable[[Object, str], ProbeResults]
"""The probes' results of a container (spec, runtime id)."""

ResourcesOf = Callable[[ContainerKind, Object], Resources]
"""What a container is to have now, as the kernel takes it."""

DEAD_KEPT = 1  # ended containers of one name that are kept, for their logs (kubelet's MaxPerPodContainer)


@dataclass(frozen=True, slots=True)
class Start:
    kind: ContainerKind
    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """A running container that must end, with the text of its Killing event."""

    container_id: str
    name: str
    message: str
    reason: KillReason = ""


@dataclass(frozen=True, slots=True)
class Resize:
    """A running container whose limits change under it."""

    container_id: str
    name: str
    resources: Resources


@dataclass(frozen=True, slots=True)
class PodActions:
    """The plan. `kill_pod` ends every container and the sandbox first; with `create_sandbox` a new one follows."""

    kill_pod: bool = False
    create_sandbox: bool = False
    sandbox_changed: bool = False  # there was one before: worth an event
    attempt: int = 0
    kill: tuple[Kill, ...] = ()
    resize: tuple[Resize, ...] = ()
    start: tuple[Start, ...] = ()  # ephemeral, then init, then regular containers, in the spec's order
    remove: tuple[str, ...] = ()  # ids of ended containers that nobody needs any more
    reset: tuple[str, ...] = ()  # ids of containers to end at once and remove, in this order: all start anew
    initialized: bool = False

    @property
    def pod_is_over(self) -> bool:
        """Nothing runs and nothing will."""
        return self.kill_pod and not self.create_sandbox


@dataclass(slots=True)
class _Plan:
    resources_of: ResourcesOf
    kill: list[Kill] = field(default_factory=list)
    resize: list[Resize] = field(default_factory=list)
    start: list[Start] = field(default_factory=list)
    kill_pod: bool = False


def compute_actions(pod: Object, observed: PodObserved, probes: ProbesOf, resources_of: ResourcesOf) -> PodActions:
    """What to do now. Never starts anything for a pod that is being deleted."""
    if sandbox_problem(pod, observed):
        return _without_sandbox(pod, observed)
    if not is_deleting(pod) and (reset := _reset(pod, observed)):
        return PodActions(attempt=observed.sandboxes[0].attempt, reset=reset)
    plan = _Plan(resources_of)
    if not is_deleting(pod):
        # ephemeral containers run once, whatever the state of initialization
        plan.start += [
            Start("ephemeral", c["name"]) for c in ephemeral_containers(pod) if not observed.newest(c["name"])
        ]
    initialized = _init_actions(pod, observed, probes, plan)
    if initialized and not plan.kill_pod:
        _regular_actions(pod, observed, probes, plan)
    return PodActions(
        kill_pod=plan.kill_pod,
        attempt=observed.sandboxes[0].attempt,
        kill=() if plan.kill_pod else tuple(plan.kill),
        resize=() if plan.kill_pod else tuple(plan.resize),
        start=() if plan.kill_pod else tuple(plan.start),
        remove=_removable(pod, observed),
        initialized=initialized,
    )


def _without_sandbox(pod: Object, observed: PodObserved) -> PodActions:
    """The sandbox is missing, dead or wrong: everything starts anew, unless the pod has done its work."""
    attempt = observed.sandboxes[0].attempt + 1 if observed.sandboxes else 0
    over = PodActions(kill_pod=True, attempt=attempt)
    if is_deleting(pod):
        return over
    if restart_policy(pod) == "Never" and attempt and observed.containers:
        return over
    start = [c for c in regular_containers(pod) if not (_runs_once(pod, c) and _succeeded(c, observed))]
    if not start and has_regular_container(pod, observed):
        return over
    first = init_containers(pod)[:1]
    return PodActions(
        kill_pod=True,
        create_sandbox=True,
        sandbox_changed=bool(observed.sandboxes),
        attempt=attempt,
        start=tuple(Start("init", c["name"]) for c in first) or tuple(Start("regular", c["name"]) for c in start),
        remove=tuple(c.id for c in observed.containers if c.name in {i["name"] for i in init_containers(pod)}),
        initialized=not first,
    )


def _reset(pod: Object, observed: PodObserved) -> tuple[str, ...]:
    """What a restart of all containers in place removes: the containers that call for it last, so that a restart that
    is cut off is taken up again."""
    sources = restart_all_sources(pod, observed)
    if not sources:
        return ()
    names = [c["name"] for c in (*regular_containers(pod), *init_containers(pod))]
    last = {status.id for status in sources}
    others = [s.id for name in names for s in observed.containers if s.name == name and s.id not in last]
    return (*others, *reversed([status.id for status in sources]))


def _init_actions(pod: Object, observed: PodObserved, probes: ProbesOf, plan: _Plan) -> bool:
    """Plan for init containers and sidecars; answers whether initialization is over.

    From the last to the first: the last one that has a container tells how far initialization came, since earlier ones
    may have been removed meanwhile. Worked case: i1 (exited 0), s (sidecar, running, started), i3: starts i3.
    """
    containers = init_containers(pod)
    if not containers:
        return True
    initialized = seen = has_active_regular_container(pod, observed)
    starts: list[int] = []
    for index in range(len(containers) - 1, -1, -1):
        container = containers[index]
        status = observed.active(container["name"])
        if status is None:
            if seen and is_sidecar(container):
                starts.append(index)
            continue
        if seen and not is_sidecar(container):
            continue
        done = False
        match status.state:
            case ContainerState.RUNNING if is_sidecar(container):
                done = _running_sidecar(container, status, probes, plan, starts, index)
            case ContainerState.RUNNING:
                pass
            case ContainerState.EXITED if is_sidecar(container):
                starts.append(index)
            case ContainerState.EXITED if status.exit_code == 0:
                done = True
            case ContainerState.EXITED:
                if is_deleting(pod) or not should_restart(pod, container, status.exit_code):
                    plan.kill_pod = True
                    return False
                starts.append(index)
            case _:  # created but never started, or unknown: make it anew
                starts.append(index)
        if done and index == len(containers) - 1:
            initialized = True
        elif done and not seen:
            starts.append(index + 1)
        seen = True
    if not seen:
        starts.append(0)
    if not is_deleting(pod):
        plan.start += [Start("init", containers[index]["name"]) for index in sorted(set(starts))]
    return initialized


def _running_sidecar(
    container: Object, status: ContainerStatus, probes: ProbesOf, plan: _Plan, starts: list[int], index: int
) -> bool:
    """Whether this sidecar lets the next container start; plans its restart where a probe has failed."""
    results = probes(container, status.id)
    if results.failed:
        message = f"Init container {container['name']} failed {results.failed} probe"
        plan.kill.append(Kill(status.id, container["name"], message, results.failed))
        starts.append(index)
    elif _image_changed(container, status):
        message = f"Init container {container['name']} definition changed"
        plan.kill.append(Kill(status.id, container["name"], message, "changed"))
        starts.append(index)
    elif _resized(plan, "init", container, status):
        message = f"Container {container['name']} resize requires restart"
        plan.kill.append(Kill(status.id, container["name"], message, "resize"))
        starts.append(index)
    return results.started and results.failed != "startup"


def _regular_actions(pod: Object, observed: PodObserved, probes: ProbesOf, plan: _Plan) -> None:
    kept = 0
    starts: list[str] = []
    for container in regular_containers(pod):
        name = container["name"]
        status = observed.newest(name)
        if status is None or status.state is not ContainerState.RUNNING:
            if not is_deleting(pod) and container_should_start(pod, container, status):
                starts.append(name)
            continue
        failed = probes(container, status.id).failed
        reason: KillReason
        if _image_changed(container, status):
            message, reason, restart = f"Container {name} definition changed", "changed", True
        elif failed:
            message, reason = f"Container {name} failed {failed} probe", failed
            restart = (container.get("restartPolicy") or restart_policy(pod)) != "Never"
        elif _resized(plan, "regular", container, status):
            plan.kill.append(Kill(status.id, name, f"Container {name} resize requires restart", "resize"))
            starts.append(name)
            continue
        else:
            kept += 1
            continue
        if restart and not is_deleting(pod):
            message += ", will be restarted"
            starts.append(name)
        plan.kill.append(Kill(status.id, name, message, reason))
    plan.start += [Start("regular", name) for name in starts]
    if not kept and not starts:
        plan.kill_pod = True


def _resized(plan: _Plan, kind: ContainerKind, container: Object, status: ContainerStatus) -> bool:
    """Whether new limits mean a new container, as its resizePolicy may say; plans the change under it otherwise."""
    wanted, now = plan.resources_of(kind, container), status.resources
    cpu = (wanted.cpu_shares, wanted.cpu_quota) != (now.cpu_shares, now.cpu_quota)
    memory = wanted.memory_bytes != now.memory_bytes
    changed = {name for name, differs in (("cpu", cpu), ("memory", memory)) if differs}
    if not changed:
        return False
    policies = {p["resourceName"]: p["restartPolicy"] for p in container.get("resizePolicy") or ()}
    if any(policies.get(name) == "RestartContainer" for name in changed):
        return True
    plan.resize.append(Resize(status.id, container["name"], wanted))
    return False


def container_should_start(pod: Object, container: Object, status: ContainerStatus | None) -> bool:
    """Whether a container that does not run is to be started (kubecontainer.ShouldContainerBeRestarted)."""
    if is_deleting(pod):
        return False
    if status is None or status.state in (ContainerState.CREATED, ContainerState.UNKNOWN):
        return True
    if status.state is ContainerState.RUNNING:
        return False
    return should_restart(pod, container, status.exit_code)


def _runs_once(pod: Object, container: Object) -> bool:
    return (container.get("restartPolicy") or restart_policy(pod)) == "OnFailure"


def _succeeded(container: Object, observed: PodObserved) -> bool:
    status = observed.newest(container["name"])
    return status is not None and status.state is ContainerState.EXITED and status.exit_code == 0


def _image_changed(container: Object, status: ContainerStatus) -> bool:
    """A container's image is what may be changed of a living pod, and only that calls for a new container."""
    return bool(status.image) and status.image != container.get("image")


def _removable(pod: Object, observed: PodObserved) -> tuple[str, ...]:
    """Ended containers beyond the newest of each name and the one before it."""
    known = {c["name"] for _, c in all_containers(pod)}
    counts: dict[str, int] = {}
    removable = []
    for status in observed.containers:
        if status.name not in known:
            continue
        position = counts.get(status.name, 0)
        counts[status.name] = position + 1
        if position > DEAD_KEPT and status.state is not ContainerState.RUNNING:
            removable.append(status.id)
    return tuple(removable)
