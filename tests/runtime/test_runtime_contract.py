"""What a container runtime promises, tried on Docker (ring 3) and on the fake that the other tests stand on."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from kone.aio.clock import SystemClock
from kone.runtime.docker import DockerRuntime
from kone.runtime.runtime import (
    ContainerConfig,
    ContainerEvent,
    ContainerState,
    NotFound,
    PodMeta,
    Runtime,
    SandboxConfig,
    SecurityContext,
    StartFailed,
)
from tests.fakes_runtime import FakeRuntime

IMAGE = "kone-test/busybox:1"
TERM_OK = "trap 'exit 7' TERM; while true; do sleep 0.1; done"


def make_busybox() -> None:
    """An image with a shell, made from the host's static busybox: no registry is needed."""
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode == 0:
        return
    script = (
        "d=$(mktemp -d) && mkdir -p $d/bin $d/tmp && cp $(command -v busybox) $d/bin/busybox && "
        "for a in sh sleep echo cat true false; do ln -s busybox $d/bin/$a; done && "
        f"tar -C $d -c . | docker import - {IMAGE} && rm -rf $d"
    )
    subprocess.run(["sh", "-c", script], check=True, capture_output=True)


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.ring3)])
async def runtime(request: pytest.FixtureRequest) -> AsyncIterator[Runtime]:
    made: Runtime
    if request.param == "fake":
        fake = FakeRuntime(SystemClock())
        fake.known_images[IMAGE] = await fake.image("busybox:test")
        made = fake
    else:
        make_busybox()
        made = DockerRuntime(instance=f"test-{uuid.uuid4().hex[:8]}")
    await made.start()
    try:
        yield made
    finally:
        for container in await made.containers():
            await made.remove_container(container.id)
        for sandbox in await made.sandboxes():
            await made.remove_sandbox(sandbox.id)
        await made.close()


def pod(name: str = "p") -> PodMeta:
    return PodMeta(name, "ns", f"uid-{name}-{uuid.uuid4().hex[:8]}")


async def sandbox_of(runtime: Runtime, meta: PodMeta, attempt: int = 0) -> str:
    sandbox_id = await runtime.create_sandbox(SandboxConfig(meta, attempt, hostname=meta.name))
    await runtime.start_sandbox(sandbox_id)
    return sandbox_id


async def container_config(
    runtime: Runtime, meta: PodMeta, *command: str, name: str = "c", attempt: int = 0
) -> ContainerConfig:
    image = await runtime.image(IMAGE)
    return ContainerConfig(
        meta,
        name,
        IMAGE,
        image.id,
        restart_count=attempt,
        command=command,
        labels={"who": "test"},
        security=SecurityContext(seccomp="runtime/default"),
    )


async def ended(runtime: Runtime, container_id: str) -> None:
    while (await runtime.container(container_id)).state is not ContainerState.EXITED:  # noqa: ASYNC110 (no wait in it)
        await asyncio.sleep(0.01)


async def test_a_pod_runs_and_is_found_again(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await runtime.create_sandbox(SandboxConfig(meta, hostname="p"))
    config = await container_config(runtime, meta, "sleep", "1000")
    container_id = await runtime.create_container(sandbox_id, config)  # before the sandbox runs
    assert not (await runtime.sandboxes(meta.uid))[0].ready
    sandbox = await runtime.start_sandbox(sandbox_id)
    assert sandbox.ready
    assert sandbox.pid > 0
    assert (await runtime.container(container_id)).state is ContainerState.CREATED
    started = await runtime.start_container(container_id)
    assert (started.state, started.name, started.restart_count) == (ContainerState.RUNNING, "c", 0)
    assert started.started_at > 0
    [found] = await runtime.containers(meta.uid)
    assert (found.id, found.sandbox_id, found.pod, found.image) == (container_id, sandbox_id, meta, IMAGE)
    assert found.labels["who"] == "test"
    assert [s.id for s in await runtime.sandboxes(meta.uid)] == [sandbox_id]


async def test_what_is_made_though_its_maker_gave_up_is_in_the_next_list(runtime: Runtime) -> None:
    meta = pod()
    making = asyncio.create_task(runtime.create_sandbox(SandboxConfig(meta, hostname="p")))
    await asyncio.sleep(0)
    making.cancel()
    await asyncio.wait({making})
    for sandbox in await runtime.sandboxes(meta.uid):
        await runtime.remove_sandbox(sandbox.id)
    await asyncio.sleep(0.3)
    assert await runtime.sandboxes(meta.uid) == []


async def test_a_container_that_ends_tells_its_exit_code(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    config = await container_config(runtime, meta, "sh", "-c", "exit 3")
    container_id = await runtime.create_container(sandbox_id, config)
    await runtime.start_container(container_id)
    await ended(runtime, container_id)
    status = await runtime.container(container_id)
    assert (status.exit_code, status.reason) == (3, "Error")
    assert status.finished_at >= status.started_at > 0


async def test_a_privileged_container_may_mount_and_has_the_hosts_devices(runtime: Runtime) -> None:
    """On a host that lacks capabilities, too."""
    meta = pod()
    config = await container_config(
        runtime, meta, "sh", "-c", "mkdir /m && mount -t tmpfs none /m && ls /dev/loop-control /dev/kmsg"
    )
    config = replace(config, security=SecurityContext(privileged=True))
    container_id = await runtime.create_container(await sandbox_of(runtime, meta), config)
    await runtime.start_container(container_id)
    await ended(runtime, container_id)
    assert (await runtime.container(container_id)).exit_code == 0


async def test_success_is_called_completed(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    container_id = await runtime.create_container(
        sandbox_id, await container_config(runtime, meta, "sh", "-c", "exit 0")
    )
    await runtime.start_container(container_id)
    await ended(runtime, container_id)
    assert (await runtime.container(container_id)).reason == "Completed"


async def test_a_command_that_is_missing_is_a_start_error(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    container_id = await runtime.create_container(sandbox_id, await container_config(runtime, meta, "nope"))
    with pytest.raises(StartFailed, match=r'exec: "nope": executable file not found in \$PATH$'):
        await runtime.start_container(container_id)
    status = await runtime.container(container_id)
    assert (status.state, status.reason, status.exit_code) == (ContainerState.EXITED, "StartError", 128)
    assert status.message.startswith("failed to create containerd task: failed to create shim task: OCI runtime")


async def test_stopping_sends_the_signal_and_waits(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    container_id = await runtime.create_container(
        sandbox_id, await container_config(runtime, meta, "sh", "-c", TERM_OK)
    )
    await runtime.start_container(container_id)
    await asyncio.sleep(0.2)  # until the shell has set its trap
    await runtime.stop_container(container_id, 10)
    status = await runtime.container(container_id)
    assert (status.state, status.exit_code) == (ContainerState.EXITED, 7)


async def test_who_does_not_listen_is_killed_when_the_grace_is_over(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    container_id = await runtime.create_container(sandbox_id, await container_config(runtime, meta, "sleep", "1000"))
    await runtime.start_container(container_id)
    began = asyncio.get_running_loop().time()
    await runtime.stop_container(container_id, 0.3)
    assert 0.3 <= asyncio.get_running_loop().time() - began < 3
    assert (await runtime.container(container_id)).exit_code == 137


async def test_stopping_and_removing_what_is_gone_is_no_error(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    container_id = await runtime.create_container(sandbox_id, await container_config(runtime, meta, "sleep", "1000"))
    await runtime.start_container(container_id)
    await runtime.stop_container(container_id, 0)
    await runtime.stop_container(container_id, 5)
    await runtime.remove_container(container_id)
    await runtime.remove_container(container_id)
    await runtime.stop_container(container_id, 5)
    await runtime.stop_sandbox(sandbox_id)
    await runtime.stop_sandbox(sandbox_id)
    assert not (await runtime.sandboxes(meta.uid))[0].ready
    await runtime.remove_sandbox(sandbox_id)
    await runtime.remove_sandbox(sandbox_id)
    await runtime.stop_sandbox(sandbox_id)
    assert await runtime.sandboxes(meta.uid) == []
    with pytest.raises(NotFound):
        await runtime.container(container_id)


async def test_creating_again_replaces_what_a_crash_left(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    config = await container_config(runtime, meta, "sleep", "1000")
    first = await runtime.create_container(sandbox_id, config)
    second = await runtime.create_container(sandbox_id, config)
    assert [c.id for c in await runtime.containers(meta.uid)] == [second] != [first]


async def test_starting_a_sandbox_twice_is_starting_it_once(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    assert (await runtime.start_sandbox(sandbox_id)).ready
    assert len(await runtime.sandboxes(meta.uid)) == 1


async def test_commands_run_inside(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    container_id = await runtime.create_container(sandbox_id, await container_config(runtime, meta, "sleep", "1000"))
    await runtime.start_container(container_id)
    result = await runtime.exec_sync(container_id, ["sh", "-c", "echo hi; exit 4"], 10)
    assert (result.exit_code, result.stdout) == (4, b"hi\n")
    with pytest.raises(TimeoutError):
        await runtime.exec_sync(container_id, ["sleep", "1000"], 0.2)


async def test_output_is_kept(runtime: Runtime) -> None:
    meta = pod()
    sandbox_id = await sandbox_of(runtime, meta)
    config = await container_config(runtime, meta, "sh", "-c", "echo one; echo two; echo three")
    container_id = await runtime.create_container(sandbox_id, config)
    await runtime.start_container(container_id)
    await ended(runtime, container_id)
    assert [line.data async for line in runtime.logs(container_id)] == [b"one\n", b"two\n", b"three\n"]
    assert [line.data async for line in runtime.logs(container_id, tail_lines=1)] == [b"three\n"]


async def test_events_tell_what_happens(runtime: Runtime) -> None:
    meta = pod()
    seen: list[ContainerEvent] = []
    listening, removed = asyncio.Event(), asyncio.Event()

    async def listen() -> None:
        async for event in runtime.events():
            if event is None:
                listening.set()
            elif event.pod_uid == meta.uid:
                seen.append(event)
                if event.kind == "removed":
                    removed.set()

    task = asyncio.create_task(listen())
    await listening.wait()
    sandbox_id = await sandbox_of(runtime, meta)
    container_id = await runtime.create_container(
        sandbox_id, await container_config(runtime, meta, "sh", "-c", "exit 5")
    )
    await runtime.start_container(container_id)
    await ended(runtime, container_id)
    await runtime.remove_container(container_id)
    await removed.wait()
    task.cancel()
    assert [e.kind for e in seen if e.id == container_id] == ["created", "started", "exited", "removed"]
    assert [e.kind for e in seen if e.id == sandbox_id] == ["created", "started"]
    assert next(e.exit_code for e in seen if e.kind == "exited") == 5
    assert {e.name for e in seen if e.id == container_id} == {"c"}


async def test_an_unknown_image_is_not_found(runtime: Runtime) -> None:
    with pytest.raises(NotFound):
        await runtime.image("kone-test/none:1")


async def test_the_runtime_says_that_it_is_there(runtime: Runtime) -> None:
    status = await runtime.status()
    assert status.ready
    assert status.cgroup_version in (1, 2)
