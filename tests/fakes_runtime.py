"""FakeRuntime: a container runtime in a dict. tests/runtime/test_runtime_contract.py holds it to what Docker does.

Its containers run a shell of few words: `exit N`, `sleep N`, `echo WORDS`, and `trap 'exit N' TERM`, split by
semicolons. Without a trap a process ignores SIGTERM, as the first process of a real container does. A command called
"nope" cannot be started.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kone.aio.clock import Clock
from kone.apimachinery.timestamps import format_micro_time
from kone.runtime.runtime import (
    ContainerConfig,
    ContainerEvent,
    ContainerState,
    ContainerStats,
    ContainerStatus,
    ExecResult,
    Image,
    LogLine,
    NotFound,
    PodMeta,
    PullFailed,
    PullProgress,
    RegistryAuth,
    Resources,
    RuntimeFault,
    RuntimeStatus,
    RuntimeUnavailable,
    Sandbox,
    SandboxConfig,
    Session,
    StartFailed,
)

NO_COMMAND = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
    'unable to start container process: exec: "nope": executable file not found in $PATH'
)


@dataclass
class Program:
    """What a script of few words does: its output, how long it runs (None: until it is told), how it ends."""

    output: list[str] = field(default_factory=list)
    runs_s: float | None = 0.0
    exit_code: int = 0
    term_code: int | None = None

    @classmethod
    def of(cls, command: Sequence[str]) -> Program:
        script = command[2] if list(command[:2]) == ["sh", "-c"] else " ".join(command)
        program = cls()
        for word in (part.strip() for part in script.split(";")):
            if found := re.fullmatch(r"trap 'exit (\d+)' TERM", word):
                program.term_code = int(found[1])
            elif found := re.fullmatch(r"sleep (\d+(?:\.\d+)?)", word):
                seconds = float(found[1])
                program.runs_s = None if seconds >= 100 else (program.runs_s or 0) + seconds
            elif found := re.fullmatch(r"exit (\d+)", word):
                program.exit_code = int(found[1])
            elif word.startswith("echo "):
                program.output.append(word.removeprefix("echo ") + "\n")
            elif word.startswith("while true"):
                program.runs_s = None
        return program


@dataclass
class _Container:
    status: ContainerStatus
    config: ContainerConfig
    program: Program
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    log: list[LogLine] = field(default_factory=list)
    timer: asyncio.Task[None] | None = None


class FakeRuntime:
    """`up` False makes it unreachable. `images` are by name. `refuse` is the fault of the next create of that
    container.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.up = True
        self.known_images: dict[str, Image] = {"busybox:test": Image("sha256:busybox", ("busybox:test",))}
        self.registry: dict[str, Image] = {}
        self.pulls: list[str] = []
        self.passwords: dict[str, str] = {}  # of images that the registry does not give to everybody
        self.fail_create: dict[str, str] = {}
        self.exec_codes: dict[str, int] = {}
        self.recursive_read_only = False
        self._sandboxes: dict[str, Sandbox] = {}
        self._containers: dict[str, _Container] = {}
        self._listeners: list[asyncio.Queue[ContainerEvent | RuntimeUnavailable | None]] = []
        self._ids = itertools.count(1)

    # For tests

    def running(self) -> list[str]:
        """Names of the containers that run, in the order of their creation."""
        return [c.status.name for c in self._containers.values() if c.status.state is ContainerState.RUNNING]

    def find(self, name: str) -> ContainerStatus:
        """The newest container of that name."""
        return [c.status for c in self._containers.values() if c.status.name == name][-1]

    def config(self, name: str) -> ContainerConfig:
        return [c.config for c in self._containers.values() if c.status.name == name][-1]

    def end(self, name: str, code: int = 0, *, reason: str = "") -> None:
        """The running container of that name ends by itself."""
        found = next(
            c for c in self._containers.values() if c.status.name == name and c.status.state is ContainerState.RUNNING
        )
        self._end(found, code, reason)

    def kill_sandbox(self, pod_uid: str) -> None:
        for sandbox in self._sandboxes.values():
            if sandbox.pod.uid == pod_uid and sandbox.ready:
                self._sandbox_ends(sandbox.id)

    def go_down(self) -> None:
        """The daemon stops answering; its containers run on."""
        self.up = False
        for listener in self._listeners:
            listener.put_nowait(RuntimeUnavailable("the fake runtime is down"))

    def come_up(self) -> None:
        self.up = True

    # Runtime

    async def start(self) -> None:
        self._check()

    async def close(self) -> None:
        for container in self._containers.values():
            if container.timer is not None:
                container.timer.cancel()

    async def status(self) -> RuntimeStatus:
        if not self.up:
            return RuntimeStatus(False, "DockerNotReady", "the fake runtime is down")
        return RuntimeStatus(
            True,
            name="fake",
            version="1",
            cgroup_version=2,
            cgroup_driver="systemd",
            root_dir="/",
            recursive_read_only=self.recursive_read_only,
        )

    async def create_sandbox(self, config: SandboxConfig) -> str:
        self._check()
        for old in list(self._sandboxes.values()):
            if (old.pod.uid, old.attempt) == (config.pod.uid, config.attempt) and not old.ready:
                del self._sandboxes[old.id]
        sandbox = Sandbox(
            id=f"sandbox-{next(self._ids)}",
            pod=config.pod,
            attempt=config.attempt,
            ready=False,
            created_at=self.clock.now(),
            host_network=config.host_network,
            labels=dict(config.labels),
        )
        self._sandboxes[sandbox.id] = sandbox
        self._tell("created", sandbox.id, sandbox.pod)
        return sandbox.id

    async def start_sandbox(self, sandbox_id: str) -> Sandbox:
        self._check()
        if sandbox_id not in self._sandboxes:
            raise NotFound(f"No such container: {sandbox_id}")
        sandbox = replace(self._sandboxes[sandbox_id], ready=True, pid=1000 + len(self._sandboxes))
        self._sandboxes[sandbox_id] = sandbox
        self._tell("started", sandbox_id, sandbox.pod)
        return sandbox

    async def stop_sandbox(self, sandbox_id: str) -> None:
        self._check()
        if sandbox_id in self._sandboxes and self._sandboxes[sandbox_id].ready:
            self._sandbox_ends(sandbox_id)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        self._check()
        sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is not None:
            self._tell("removed", sandbox_id, sandbox.pod)

    async def sandboxes(self, pod_uid: str = "") -> list[Sandbox]:
        self._check()
        return [s for s in self._sandboxes.values() if pod_uid in ("", s.pod.uid)]

    async def create_container(self, sandbox_id: str, config: ContainerConfig) -> str:
        self._check()
        if config.name in self.fail_create:
            raise RuntimeFault(self.fail_create[config.name])
        for old in list(self._containers.values()):
            s = old.status
            if (s.pod.uid, s.name, s.restart_count) == (config.pod.uid, config.name, config.restart_count):
                if s.state is ContainerState.RUNNING:
                    raise RuntimeFault(f"the container name of {s.name} is in use")
                del self._containers[s.id]
        command = [*(config.command or ()), *(config.args or ())]
        status = ContainerStatus(
            id=f"container-{next(self._ids)}",
            sandbox_id=sandbox_id,
            pod=config.pod,
            name=config.name,
            state=ContainerState.CREATED,
            created_at=self.clock.now(),
            restart_count=config.restart_count,
            image=config.image,
            image_id=config.image_id,
            image_ref=config.image_ref,
            tty=config.tty,
            resources=config.resources,
            labels=dict(config.labels),
            mounts=tuple(config.mounts),
        )
        self._containers[status.id] = _Container(status, config, Program.of(command))
        self._tell("created", status.id, status.pod, status.name)
        return status.id

    async def start_container(self, container_id: str) -> ContainerStatus:
        container = self._get(container_id)
        now = self.clock.now()
        if (container.config.command or [""])[0] == "nope":
            container.status = replace(
                container.status,
                state=ContainerState.EXITED,
                exit_code=128,
                reason="StartError",
                message=NO_COMMAND,
                finished_at=now,
            )
            raise StartFailed(NO_COMMAND)
        container.status = replace(container.status, state=ContainerState.RUNNING, started_at=now, pid=1)
        program = container.program
        container.log = [LogLine("stdout", now, format_micro_time(now), text.encode()) for text in program.output]
        self._tell("started", container_id, container.status.pod, container.status.name)
        if program.runs_s == 0:
            self._end(container, program.exit_code)
        elif program.runs_s is not None:
            container.timer = asyncio.create_task(self._run(container, program.runs_s))
        return container.status

    async def stop_container(self, container_id: str, grace_s: float, signal: str = "") -> None:
        self._check()
        container = self._containers.get(container_id)
        if container is None or container.status.state is not ContainerState.RUNNING:
            return
        if grace_s > 0:
            if container.program.term_code is not None:
                self._end(container, container.program.term_code)
                return
            wait = asyncio.ensure_future(container.ended.wait())
            timer = asyncio.ensure_future(self.clock.sleep(grace_s))
            try:
                await asyncio.wait({wait, timer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                wait.cancel()
                timer.cancel()
            self._check()
        if container.status.state is ContainerState.RUNNING:
            self._end(container, 137)

    async def remove_container(self, container_id: str) -> None:
        self._check()
        container = self._containers.pop(container_id, None)
        if container is not None:
            container.ended.set()
            self._tell("removed", container_id, container.status.pod, container.status.name)

    async def containers(self, pod_uid: str = "") -> list[ContainerStatus]:
        self._check()
        return [c.status for c in self._containers.values() if pod_uid in ("", c.status.pod.uid)]

    async def container(self, container_id: str) -> ContainerStatus:
        return self._get(container_id).status

    async def update_resources(self, container_id: str, resources: Resources) -> None:
        container = self._get(container_id)
        container.status = replace(container.status, resources=resources)

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout_s: float) -> ExecResult:
        self._get(container_id)
        program = Program.of(command)
        if program.runs_s is None or (timeout_s and program.runs_s > timeout_s):
            await self.clock.sleep(timeout_s)
            raise TimeoutError
        await self.clock.sleep(program.runs_s)
        code = self.exec_codes.get(" ".join(command), program.exit_code)
        return ExecResult(code, "".join(program.output).encode())

    async def exec(self, container_id: str, command: Sequence[str], *, tty: bool, stdin: bool) -> Session:
        raise RuntimeFault("the fake runtime has no sessions")

    async def attach(self, container_id: str, *, stdin: bool) -> Session:
        raise RuntimeFault("the fake runtime has no sessions")

    async def logs(
        self,
        container_id: str,
        *,
        follow: bool = False,
        tail_lines: int | None = None,
        since: float = 0.0,
        stdout: bool = True,
        stderr: bool = True,
    ) -> AsyncIterator[LogLine]:
        lines = [line for line in self._get(container_id).log if line.time >= since]
        for line in lines if tail_lines is None else lines[len(lines) - min(tail_lines, len(lines)) :]:
            yield line

    async def stats(self, container_id: str) -> ContainerStats:
        self._get(container_id)
        return ContainerStats(container_id, self.clock.now())

    async def pull_image(
        self, reference: str, auth: RegistryAuth | None = None, progress: PullProgress | None = None
    ) -> Image:
        self._check()
        self.pulls.append(reference)
        if (password := self.passwords.get(reference)) is not None and (auth is None or auth.password != password):
            raise PullFailed(f"pull access denied for {reference}, repository does not exist or may require login")
        if reference not in self.registry:
            raise PullFailed(f"manifest for {reference} not found: manifest unknown")
        image = self.registry[reference]
        for tag in image.tags:
            self.known_images[tag] = image
        return image

    async def image(self, reference: str) -> Image:
        self._check()
        if reference not in self.known_images:
            raise NotFound(f"No such image: {reference}")
        return self.known_images[reference]

    async def images(self) -> list[Image]:
        self._check()
        return list(self.known_images.values())

    async def image_layers(self, image_id: str) -> list[str]:
        return []

    async def remove_image(self, image_id: str) -> None:
        self._check()
        self.known_images = {name: image for name, image in self.known_images.items() if image.id != image_id}

    async def events(self) -> AsyncIterator[ContainerEvent | None]:
        self._check()
        queue: asyncio.Queue[ContainerEvent | RuntimeUnavailable | None] = asyncio.Queue()
        self._listeners.append(queue)
        try:
            yield None
            while True:
                item = await queue.get()
                if isinstance(item, RuntimeUnavailable):
                    raise item
                yield item
        finally:
            self._listeners.remove(queue)

    # Inside

    def _check(self) -> None:
        if not self.up:
            raise RuntimeUnavailable("the fake runtime is down")

    def _get(self, container_id: str) -> _Container:
        self._check()
        if container_id not in self._containers:
            raise NotFound(f"No such container: {container_id}")
        return self._containers[container_id]

    async def _run(self, container: _Container, seconds: float) -> None:
        await self.clock.sleep(seconds)
        if container.status.state is ContainerState.RUNNING:
            self._end(container, container.program.exit_code)

    def _end(self, container: _Container, code: int, reason: str = "") -> None:
        container.status = replace(
            container.status,
            state=ContainerState.EXITED,
            exit_code=code,
            reason=reason or ("Completed" if code == 0 else "Error"),
            finished_at=self.clock.now(),
            pid=0,
        )
        container.ended.set()
        self._tell("exited", container.status.id, container.status.pod, container.status.name, code)

    def _sandbox_ends(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes[sandbox_id]
        self._sandboxes[sandbox_id] = replace(sandbox, ready=False, pid=0)
        self._tell("exited", sandbox_id, sandbox.pod)

    def _tell(
        self,
        kind: Literal["created", "started", "exited", "removed", "oom"],
        some_id: str,
        pod: PodMeta,
        name: str = "",
        code: int = 0,
    ) -> None:
        event = ContainerEvent(kind, some_id, pod.uid, name, self.clock.now(), code)
        for listener in self._listeners:
            if self.up:
                listener.put_nowait(event)


class FakeNetwork:
    """Gives out 10.244.0.2 and up. `fail` is what the next attach says."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.fail = ""
        self.restored: set[str] | None = None
        self._next = itertools.count(2)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def restore(self, live_pod_uids: set[str]) -> None:
        self.restored = set(live_pod_uids)

    async def attach(
        self,
        *,
        pod_uid: str,
        pod_name: str,
        namespace: str,
        netns: str,
        host_ports: Sequence[Any],
        annotations: Mapping[str, str] | None = None,
    ) -> list[str]:
        if self.fail:
            raise OSError(self.fail)
        if pod_uid not in self.addresses:
            self.addresses[pod_uid] = f"10.244.0.{next(self._next)}"
        return [self.addresses[pod_uid]]

    async def detach(self, *, pod_uid: str) -> None:
        self.addresses.pop(pod_uid, None)
