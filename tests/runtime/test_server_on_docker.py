"""The kubelet's server before a real Docker: what kubectl does with a container, over real sockets (ring 3)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kone.aio.clock import SystemClock
from kone.apimachinery.objects import Object
from kone.auth.pki import Names, Pki
from kone.runtime import pod_dial, port_forward
from kone.runtime.docker import DockerRuntime
from kone.runtime.handlers import Answer, Handlers
from kone.runtime.lifecycle import Hooks
from kone.runtime.parts import HookError
from kone.runtime.runtime import ContainerConfig, ContainerStatus, PodMeta, SandboxConfig, SecurityContext
from kone.runtime.stats import Stats
from tests.runtime.server_world import World
from tests.runtime.test_remote_command import Tunnel, rest
from tests.runtime.test_runtime_contract import IMAGE, make_busybox

pytestmark = pytest.mark.ring3

SCRIPT = "echo begun; echo oops >&2; while true; do sleep 0.1; done"


class Source:
    """The PodSource with what the tests started."""

    def __init__(self, runtime: DockerRuntime) -> None:
        self.runtime = runtime
        self.known: dict[str, ContainerStatus] = {}
        self.specs: list[Object] = []

    def pods(self) -> list[Object]:
        statuses = [
            {"name": name, "state": {"running": {}}, "containerID": f"docker://{one.id}"}
            for name, one in self.known.items()
        ]
        return [
            {
                "metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"containers": self.specs},
                "status": {"containerStatuses": statuses},
            }
        ]

    def pod(self, namespace: str, name: str, uid: str = "") -> Object | None:
        return self.pods()[0]

    def containers(self, pod_uid: str) -> list[ContainerStatus]:
        return list(self.known.values())

    def container(self, pod_uid: str, name: str, *, previous: bool = False) -> ContainerStatus | None:
        return self.known.get(name)


class DockerWorld(World):
    """The same server, with Docker behind it."""

    def __init__(self, pki: Pki, path: Path, runtime: DockerRuntime) -> None:
        super().__init__(pki, path)
        self.docker = runtime
        self.source = Source(runtime)
        self.server._runtime = runtime
        self.server._source = self.source  # type: ignore[assignment]
        self.server._dial = pod_dial.dial
        self.meta = PodMeta("p", "n", "u")

    async def run(self, name: str, *command: str, **more: Any) -> ContainerStatus:
        """Start a container in the pod."""
        sandboxes = await self.docker.sandboxes("u")
        sandbox_id = sandboxes[0].id if sandboxes else await self.docker.create_sandbox(SandboxConfig(self.meta))
        await self.docker.start_sandbox(sandbox_id)
        image = await self.docker.image(IMAGE)
        security = SecurityContext(seccomp="runtime/default")
        config = ContainerConfig(self.meta, name, IMAGE, image.id, command=command, security=security, **more)
        status = await self.docker.start_container(await self.docker.create_container(sandbox_id, config))
        self.source.known[name] = status
        self.source.specs.append({"name": name, "tty": more.get("tty", False)})
        return status


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"), Names("n1", node_ips=("127.0.0.1",)))
    made.ensure(time.time())
    return made


@pytest.fixture
async def world(pki: Pki, tmp_path: Path) -> AsyncIterator[DockerWorld]:
    make_busybox()
    runtime = DockerRuntime(instance=f"test-{tmp_path.name[-20:]}")
    await runtime.start()
    made = DockerWorld(pki, tmp_path, runtime)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        for container in await runtime.containers():
            await runtime.remove_container(container.id)
        for sandbox in await runtime.sandboxes():
            await runtime.remove_sandbox(sandbox.id)
        await runtime.close()


def connect(world: DockerWorld, path: str, protocol: str = "v5.channel.k8s.io") -> Any:
    return world.session.ws_connect(path, protocols=(protocol,))


def of(messages: list[tuple[int, bytes]], channel: int) -> bytes:
    return b"".join(data for number, data in messages if number == channel)


async def test_exec_reads_writes_and_tells_the_exit_code(world: DockerWorld) -> None:
    await world.run("c", "sh", "-c", SCRIPT)
    async with connect(world, "/exec/n/p/c?command=cat&input=1&output=1&error=1") as socket:
        await socket.send_bytes(b"\x00hello ")
        await socket.send_bytes(b"\x00world")
        await socket.send_bytes(b"\xff\x00")
        found = await rest(socket)
    assert of(found, 1) == b"hello world"
    assert json.loads(of(found, 3))["status"] == "Success"
    path = "/exec/n/p/c?command=sh&command=-c&command=echo+out;+echo+err+%3E%262;+exit+9&output=1&error=1"
    async with connect(world, path) as socket:
        found = await rest(socket)
    assert (of(found, 1), of(found, 2)) == (b"out\n", b"err\n")
    assert json.loads(of(found, 3))["details"]["causes"][0]["message"] == "9"


async def test_exec_of_a_command_that_is_not_there(world: DockerWorld) -> None:
    await world.run("c", "sh", "-c", SCRIPT)
    async with connect(world, "/exec/n/p/c?command=nope&output=1&error=1") as socket:
        found = await rest(socket)
    status = json.loads(of(found, 3))
    assert status["reason"] == "InternalError"
    assert status["message"].startswith("Internal error occurred: error executing command in container: ")
    assert status["message"].endswith('exec: "nope": executable file not found in $PATH')
    assert of(found, 1) == b""


async def test_exec_with_a_terminal(world: DockerWorld) -> None:
    await world.run("c", "sh", "-c", SCRIPT)
    path = "/exec/n/p/c?command=sh&command=-c&command=read+a;+busybox+stty+size&input=1&output=1&tty=1"
    async with connect(world, path) as socket:
        await socket.send_bytes(b'\x04{"Width":91,"Height":37}')
        await asyncio.sleep(0.3)  # Docker resizes behind our back
        await socket.send_bytes(b"\x00\n")
        found = await rest(socket)
    assert b"37 91" in of(found, 1)


async def test_attach_joins_what_runs(world: DockerWorld) -> None:
    await world.run("c", "sh", "-c", 'while read a; do echo "got $a"; done', stdin=True)
    async with connect(world, "/attach/n/p/c?input=1&output=1") as socket:
        await socket.send_bytes(b"\x00one\n")
        async with asyncio.timeout(5):
            found = b""
            while b"got one\n" not in found:
                message = await socket.receive()
                found += message.data[1:]


async def test_logs(world: DockerWorld) -> None:
    await world.run("c", "sh", "-c", SCRIPT)
    async with world.session.get("/containerLogs/n/p/c?follow=true") as response:
        async with asyncio.timeout(5):
            lines = {await response.content.readline(), await response.content.readline()}
    assert lines == {b"begun\n", b"oops\n"}
    assert await world.get("/containerLogs/n/p/c?stream=Stderr") == (200, "oops\n")
    status, text = await world.get("/containerLogs/n/p/c?timestamps=true&tailLines=1")
    stamp, _, _ = text.partition(" ")
    assert (status, stamp[10], stamp[-1]) == (200, "T", "Z")


async def test_port_forward_reaches_the_pods_own_localhost(world: DockerWorld) -> None:
    await world.run("c", "sh", "-c", "echo page > /page; exec busybox httpd -f -p 127.0.0.1:7000 -h /")
    socket = await world.session.ws_connect("/portForward/n/p", protocols=(port_forward.TUNNEL,))
    tunnel = Tunnel(socket)
    streams = tunnel.client.streams
    for attempt in range(50):  # until it listens
        error = await tunnel.client.open(streamType="error", port="7000", requestID=str(attempt))
        data = await tunnel.client.open(streamType="data", port="7000", requestID=str(attempt))
        await tunnel.client.data(data, b"GET /page HTTP/1.0\r\n\r\n")
        await tunnel.client.until(lambda d=data: streams[d].ended or bool(streams[d].reset))  # type: ignore[misc]
        if streams[data].data:
            break
        assert b"connection refused" in streams[error].data
        await asyncio.sleep(0.05)
    assert streams[data].data.endswith(b"\r\n\r\npage\n")
    await socket.close()


async def test_what_a_container_uses_is_read_from_the_kernel(world: DockerWorld, tmp_path: Path) -> None:
    status = await world.run("c", "sh", "-c", "busybox dd if=/dev/zero of=/f bs=1M count=4; " + SCRIPT)
    stats = Stats(world.source, world.docker, SystemClock(), "n1", tmp_path)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        # Docker writes the log when it comes to it, and the layer's blocks are counted once they are on the disk.
        while (
            not (uses := await stats.pods(disk=True))
            or uses[0].containers[0].layer.bytes < 4 << 20
            or not uses[0].containers[0].log.bytes
        ):
            stats = Stats(world.source, world.docker, SystemClock(), "n1", tmp_path)  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
    [container] = uses[0].containers
    assert container.status.id == status.id
    assert container.usage.memory_bytes > 0
    assert container.log.bytes > 0


async def test_probes_and_hooks_run_commands(world: DockerWorld) -> None:
    status = await world.run("c", "sh", "-c", SCRIPT)
    handlers = Handlers(world.docker)
    assert await handlers.exec(status.id, ["sh", "-c", "echo yes"], 5) == Answer("success", "yes\n")
    assert await handlers.exec(status.id, ["sh", "-c", "echo no; false"], 5) == Answer("failure", "no\n")
    slow = await handlers.exec(status.id, ["sleep", "60"], 0.5)
    assert slow == Answer("failure", 'command timed out: "sleep 60" timed out after 500ms')
    pod = world.source.pods()[0]
    hooks = Hooks(handlers, SystemClock())
    await hooks.run(pod, {"name": "c"}, status.id, {"exec": {"command": ["true"]}}, "")
    with pytest.raises(HookError, match=r"command 'sh -c exit 3' exited with 3"):
        await hooks.run(pod, {"name": "c"}, status.id, {"exec": {"command": ["sh", "-c", "exit 3"]}}, "")
    await handlers.close()
