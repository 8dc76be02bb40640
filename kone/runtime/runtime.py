"""The container runtime, in CRI's words: the one contract between the kubelet and whatever runs containers.

Nobody beyond `docker.py` sees a Docker dict: what crosses this line are the frozen dataclasses below. A pod is a
sandbox (a container that does nothing but hold the pod's namespaces) and containers that join it. Whatever the runtime
made outlives the process that asked for it; `sandboxes()` and `containers()` are how a new process finds it again.

Every method raises RuntimeUnavailable when the runtime cannot be reached, NotFound for an id that is gone (except
where it says "idempotent"), and RuntimeFault with the runtime's own words for everything else. Durations are in
seconds, times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol


class RuntimeFault(Exception):
    """The runtime refused or failed. `str(error)` is its own message, worded for a pod's events and status."""


class RuntimeUnavailable(RuntimeFault):
    """The runtime does not answer at all."""


class NotFound(RuntimeFault):
    """No such sandbox, container or image."""


class StartFailed(RuntimeFault):
    """The container was made but its process could not be started; it is now EXITED with reason StartError."""


class PullFailed(RuntimeFault):
    """An image could not be pulled."""


class ContainerState(Enum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """Is the runtime there? `ready` False comes with a `reason` (CamelCase) and a `message` for the node's Ready
    condition.
    """

    ready: bool
    reason: str = ""
    message: str = ""
    name: str = ""  # "docker"
    version: str = ""  # "28.2.2"
    cgroup_version: int = 0  # 1 or 2
    cgroup_driver: str = ""  # "cgroupfs" or "systemd"
    root_dir: str = ""  # where images and writable layers lie
    pid: int = 0  # of its daemon, where it is on this host
    recursive_read_only: bool = False  # it can make a mount read-only with all that is mounted below it


@dataclass(frozen=True, slots=True)
class PodMeta:
    """Which pod a sandbox or container belongs to; kept in the runtime's labels."""

    name: str
    namespace: str
    uid: str


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """What a pod's sandbox is made of.

    `attempt` counts the pod's sandboxes from 0. `hostname` is "" with host_network: the node's own name is seen then.
    `cgroup_parent` is a cgroup path such as "/kubepods/burstable/pod1234" ("" = the runtime's default).
    """

    pod: PodMeta
    attempt: int = 0
    hostname: str = ""
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    privileged: bool = False
    shm_size_bytes: int = 0  # 0: the runtime's default


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox as it is. `pid` is the holding process (0 when it does not run): /proc/<pid>/ns/net is the pod's
    network.
    """

    id: str
    pod: PodMeta
    attempt: int
    ready: bool
    created_at: float
    pid: int = 0
    host_network: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mount:
    """One bind mount. `host_path` exists before the container is created."""

    container_path: str
    host_path: str
    read_only: bool = False
    recursive_read_only: bool = False
    propagation: Literal["private", "rslave", "rshared"] = "private"


@dataclass(frozen=True, slots=True)
class Device:
    host_path: str
    container_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits as the kernel takes them; 0 means "not set" (memory_bytes: no limit; cpu_quota: no quota)."""

    cpu_shares: int = 0
    cpu_quota: int = 0  # microseconds of CPU per cpu_period
    cpu_period: int = 0
    memory_bytes: int = 0
    memory_swap_bytes: int = 0
    memory_reservation_bytes: int = 0
    oom_score_adj: int = 0
    pids_limit: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepages: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SecurityContext:
    """How a container's process is confined. `user` is "" (the image's), "uid" or "uid:gid"; names are for images only.

    `seccomp` is "" (unconfined), "runtime/default" or the JSON of a profile. `masked_paths` False means procMount
    Unmasked.
    """

    user: str = ""
    supplemental_groups: Sequence[int] = ()
    capabilities_add: Sequence[str] = ()
    capabilities_drop: Sequence[str] = ()
    privileged: bool = False
    read_only_rootfs: bool = False
    no_new_privileges: bool = False
    seccomp: str = ""
    apparmor: str = ""
    selinux: Sequence[str] = ()  # Docker-like "label=" values: "user:…", "role:…", "type:…", "level:…"
    masked_paths: bool = True


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """What a container is made of (see container_config.py, which decides it).

    `command` None keeps the image's entrypoint; `args` None keeps the image's arguments unless `command` replaces the
    entrypoint. `env` is ordered; `restart_count` is the attempt. `labels` come back in ContainerStatus.
    """

    pod: PodMeta
    name: str
    image: str  # what the pod says
    image_id: str  # what the runtime calls it: "sha256:…"
    image_ref: str = ""  # its repository digest, where it has one
    restart_count: int = 0
    command: Sequence[str] | None = None
    args: Sequence[str] | None = None
    working_dir: str = ""
    env: Sequence[tuple[str, str]] = ()
    mounts: Sequence[Mount] = ()
    devices: Sequence[Device] = ()
    resources: Resources = field(default_factory=Resources)
    security: SecurityContext = field(default_factory=SecurityContext)
    cgroup_parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    stop_signal: str = ""
    pid_mode: Literal["container", "pod", "host", "target"] = "container"
    target_container_id: str = ""  # with pid_mode "target"
    host_ipc: bool = False
    log_max_bytes: int = 10 * 1024 * 1024  # containerLogMaxSize: 10Mi (kubelet's default)
    log_max_files: int = 5  # containerLogMaxFiles


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """A container as it is.

    `started_at` and `finished_at` are 0 where it never ran or still runs. `reason` is set for EXITED: "Completed",
    "Error", "OOMKilled", "StartError", "ContainerCannotRun"; `message` explains a start failure. `id` has no scheme
    ("docker://" is for the API). `image_id` is the runtime's id of the image, `image_ref` its repository digest where
    it has one.
    """

    id: str
    sandbox_id: str
    pod: PodMeta
    name: str
    state: ContainerState
    created_at: float
    restart_count: int = 0
    image: str = ""
    image_id: str = ""
    image_ref: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    pid: int = 0
    tty: bool = False
    log_path: str = ""  # the runtime's own file, for whoever may read it; "" where there is none
    resources: Resources = field(default_factory=Resources)
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image on this machine. `user` is what its configuration says: "", a name, "uid" or "uid:gid"."""

    id: str  # "sha256:…"
    tags: Sequence[str] = ()
    digests: Sequence[str] = ()
    size_bytes: int = 0
    user: str = ""
    stop_signal: str = ""
    created_at: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    username: str = ""
    password: str = ""
    server: str = ""
    identity_token: str = ""


PULL_IDLE_S = 300.0  # containerd's image_pull_progress_timeout
PullProgress = Callable[[int, int], None]
"""Is told how many bytes of how many have come, of the layers that are known by now."""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """`exit_code` is the command's own; 126/127 where it could not be run, with the runtime's words in stderr."""

    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""


@dataclass(frozen=True, slots=True)
class LogLine:
    """A piece of a container's output as it was written. `data` ends with b"\\n" unless the line goes on in the next
    piece.
    """

    stream: Literal["stdout", "stderr"]
    time: float  # Unix seconds, for comparing
    timestamp: str  # RFC 3339 with nanoseconds, for printing
    data: bytes


@dataclass(frozen=True, slots=True)
class ContainerStats:
    """Use of one container at `time`; cumulative CPU in nanoseconds."""

    id: str
    time: float
    cpu_ns: int = 0
    memory_usage_bytes: int = 0
    memory_working_set_bytes: int = 0
    memory_rss_bytes: int = 0
    pids: int = 0


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """Something happened to a sandbox or container of ours."""

    kind: Literal["created", "started", "exited", "removed", "oom"]
    id: str
    pod_uid: str
    name: str  # the container's; "" for a sandbox
    time: float
    exit_code: int = 0


class Session(Protocol):
    """A running exec, or an attachment to a container: three streams and, for an exec, an exit code."""

    async def read(self) -> tuple[Literal["stdout", "stderr"], bytes] | None:
        """The next output; None at its end. With a tty everything is "stdout"."""

    async def write(self, data: bytes) -> None:
        """Input for the process. Raises BrokenPipeError when it no longer reads."""

    async def close_stdin(self) -> None: ...

    async def resize(self, width: int, height: int) -> None: ...

    async def exit_code(self) -> int:
        """The command's exit code, once output has ended; 0 for an attachment."""

    async def close(self) -> None:
        """Let go of the streams; the process goes on if it likes. Idempotent."""


class Runtime(Protocol):
    """What the kubelet asks of a container runtime."""

    async def start(self) -> None:
        """Connect, see what the host allows, make the sandbox image; raises RuntimeUnavailable. Safe to call again."""

    async def close(self) -> None:
        """Let go of the connections. Containers run on."""

    async def status(self) -> RuntimeStatus:
        """Never raises."""

    # sandboxes
    async def create_sandbox(self, config: SandboxConfig) -> str:
        """Make the sandbox, not yet running; its id can be given to create_container at once. Idempotent by (uid,
        attempt).
        """

    async def start_sandbox(self, sandbox_id: str) -> Sandbox:
        """Run it; its namespaces exist when this returns. Idempotent."""

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """End it at once. Idempotent, also when it is gone."""

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Remove it, running or not. Idempotent."""

    async def sandboxes(self, pod_uid: str = "") -> list[Sandbox]:
        """All of ours, or one pod's; also those whose creation was asked for and not awaited to its end."""

    # containers
    async def create_container(self, sandbox_id: str, config: ContainerConfig) -> str:
        """Idempotent by (uid, name, restart_count): a leftover of that name that does not run is replaced."""

    async def start_container(self, container_id: str) -> ContainerStatus:
        """Run it. Raises StartFailed when the process cannot be started."""

    async def stop_container(self, container_id: str, grace_s: float, signal: str = "") -> None:
        """Send `signal` (the image's or SIGTERM) and after `grace_s` SIGKILL; returns when it has ended. Idempotent."""

    async def remove_container(self, container_id: str) -> None:
        """Remove it, running or not. Idempotent."""

    async def containers(self, pod_uid: str = "") -> list[ContainerStatus]:
        """All of ours, or one pod's, in full; as `sandboxes` those that nobody waits for."""

    async def container(self, container_id: str) -> ContainerStatus: ...

    async def update_resources(self, container_id: str, resources: Resources) -> None: ...

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout_s: float) -> ExecResult:
        """Run a command to its end. Raises TimeoutError after `timeout_s` (0: no limit); the process is killed then."""

    async def exec(self, container_id: str, command: Sequence[str], *, tty: bool, stdin: bool) -> Session: ...

    async def attach(self, container_id: str, *, stdin: bool) -> Session: ...

    def logs(
        self,
        container_id: str,
        *,
        follow: bool = False,
        tail_lines: int | None = None,
        since: float = 0.0,
        stdout: bool = True,
        stderr: bool = True,
    ) -> AsyncIterator[LogLine]:
        """What it wrote, oldest first; with `follow` until it ends."""

    async def stats(self, container_id: str) -> ContainerStats: ...

    # images
    async def pull_image(
        self, reference: str, auth: RegistryAuth | None = None, progress: PullProgress | None = None
    ) -> Image:
        """Raises PullFailed with the registry's words, and where nothing comes for PULL_IDLE_S."""

    async def image(self, reference: str) -> Image:
        """By name or id. Raises NotFound."""

    async def images(self) -> list[Image]: ...

    async def remove_image(self, image_id: str) -> None: ...

    async def image_layers(self, image_id: str) -> Sequence[str]:
        """The directories of the image's layers on this host, topmost first; none where they are kept otherwise."""

    # change
    def events(self) -> AsyncIterator[ContainerEvent | None]:
        """What happens from now on, in order. The first item is None: "you are subscribed, list now".

        Ends by raising RuntimeUnavailable when the connection is lost; then subscribe and list again.
        """
