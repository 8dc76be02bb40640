"""What the runtime has of one pod: the observation from which actions and statuses are decided. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kone.apimachinery.objects import Object
from kone.runtime.pod_spec import all_containers, is_host_network, matching_rule, regular_containers
from kone.runtime.runtime import ContainerState, ContainerStatus, Sandbox


@dataclass(frozen=True, slots=True)
class StartFailure:
    """Why a container could not be started last time: the reason and message of its waiting state."""

    reason: str  # "ErrImagePull", "CrashLoopBackOff", "CreateContainerConfigError", "RunContainerError", …
    message: str = ""


@dataclass(frozen=True, slots=True)
class PodObserved:
    """Sandboxes and containers newest first, the pod's IPs, the start failures that the worker remembers, by name, and
    whether the runtime can make mounts read-only with all that is below them.
    """

    sandboxes: tuple[Sandbox, ...] = ()
    containers: tuple[ContainerStatus, ...] = ()
    ips: tuple[str, ...] = ()
    failures: Mapping[str, StartFailure] = field(default_factory=dict)
    recursive_read_only: bool = False

    @classmethod
    def of(
        cls,
        sandboxes: Iterable[Sandbox] = (),
        containers: Iterable[ContainerStatus] = (),
        ips: Iterable[str] = (),
        failures: Mapping[str, StartFailure] | None = None,
    ) -> PodObserved:
        return cls(
            tuple(sorted(sandboxes, key=lambda s: (s.attempt, s.created_at), reverse=True)),
            tuple(sorted(containers, key=lambda c: (c.restart_count, c.created_at), reverse=True)),
            tuple(ips),
            dict(failures or {}),
        )

    def newest(self, name: str) -> ContainerStatus | None:
        """The newest container of that name, in whatever state."""
        return next((c for c in self.containers if c.name == name), None)

    def active(self, name: str) -> ContainerStatus | None:
        """The newest container of that name in the sandbox that is ready now."""
        sandbox = self.ready_sandbox
        if sandbox is None:
            return None
        return next((c for c in self.containers if c.name == name and c.sandbox_id == sandbox.id), None)

    @property
    def ready_sandbox(self) -> Sandbox | None:
        return self.sandboxes[0] if self.sandboxes and self.sandboxes[0].ready else None

    @property
    def running(self) -> list[ContainerStatus]:
        return [c for c in self.containers if c.state is ContainerState.RUNNING]


def sandbox_problem(pod: Object, observed: PodObserved) -> str:
    """Why the pod needs a (new) sandbox, "" where it has the right one; the text of PodReadyToStartContainers."""
    if not observed.sandboxes:
        return "no pod sandbox exists"
    if sum(s.ready for s in observed.sandboxes) > 1:
        return "multiple pod sandboxes are ready and need to be reconciled"
    newest = observed.sandboxes[0]
    if not newest.ready:
        return "pod sandbox is not ready"
    if newest.host_network != is_host_network(pod):
        return "network namespace mode changed and sandbox needs to be recreated"
    if not is_host_network(pod) and not observed.ips:
        return "pod sandbox has no IP address"
    return ""


def has_regular_container(pod: Object, observed: PodObserved) -> bool:
    """Whether any regular container was ever made, which says that initialization is over."""
    return any(observed.newest(c["name"]) for c in regular_containers(pod))


def has_active_regular_container(pod: Object, observed: PodObserved) -> bool:
    return any(observed.active(c["name"]) for c in regular_containers(pod))


def restart_all_sources(pod: Object, observed: PodObserved) -> list[ContainerStatus]:
    """Ended containers because of which all of the pod's containers are to be restarted in place, by their rules."""
    return [
        status
        for kind, container in all_containers(pod)
        if kind != "ephemeral"
        for status in observed.containers
        if status.name == container["name"]
        and status.state is ContainerState.EXITED
        and matching_rule(container, status.exit_code) == "RestartAllContainers"
    ]
