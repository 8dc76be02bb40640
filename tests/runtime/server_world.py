"""A kubelet's server on loopback over real TLS, a runtime of few words behind it, and clients of all kinds."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import aiohttp

from kone.aio.clock import FakeClock
from kone.apimachinery.objects import Object, name_of, namespace_of, uid_of
from kone.auth.pki import CA, Pki
from kone.client.client import Client
from kone.runtime.kubelet_config import KubeletConfig
from kone.runtime.pod_dial import DialError, Streams
from kone.runtime.runtime import (
    ContainerState,
    ContainerStatus,
    ExecResult,
    LogLine,
    NotFound,
    PodMeta,
    RuntimeFault,
    RuntimeStatus,
    Sandbox,
)
from kone.runtime.server import KubeletServer, Tls

META = PodMeta("p", "n", "u")
POD: Object = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u"},
    "spec": {"containers": [{"name": "c"}, {"name": "t", "tty": True}, {"name": "done"}]},
    "status": {
        "startTime": "2023-11-14T22:13:20Z",
        "containerStatuses": [
            {"name": "c", "state": {"running": {}}, "containerID": "docker://c1"},
            {"name": "done", "state": {"terminated": {"containerID": "docker://gone"}}},
        ],
    },
}
RUNNING = ContainerStatus("c1", "s1", META, "c", ContainerState.RUNNING, 0.0, image="img")


class EchoSession:
    """Says on stdout what it reads, says on stderr how large its terminal is; ends with its input, or says "quit"."""

    def __init__(self, command: Sequence[str], *, stdin: bool) -> None:
        self.command = command
        self.output: asyncio.Queue[tuple[Literal["stdout", "stderr"], bytes] | None] = asyncio.Queue()
        self.code = 0
        self.closed = False
        match command[0] if command else "":
            case "exit":
                self.code = int(command[1])
                self.output.put_nowait(("stderr", b"bye"))
                self.output.put_nowait(None)
            case "nope":
                self.output.put_nowait(None)

    async def read(self) -> tuple[Literal["stdout", "stderr"], bytes] | None:
        return await self.output.get()

    async def write(self, data: bytes) -> None:
        self.output.put_nowait(("stdout", data))
        if data == b"quit":
            self.output.put_nowait(None)

    async def close_stdin(self) -> None:
        self.output.put_nowait(("stdout", b"<eof>"))
        self.output.put_nowait(None)

    async def resize(self, width: int, height: int) -> None:
        self.output.put_nowait(("stderr", f"{width}x{height}".encode()))

    async def exit_code(self) -> int:
        if self.command and self.command[0] == "nope":
            raise RuntimeFault('exec: "nope": executable file not found in $PATH')
        return self.code

    async def close(self) -> None:
        self.closed = True


class FakeRuntime:
    """One pod with a sandbox of process 4711. `sessions` are those that were opened."""

    def __init__(self) -> None:
        self.sessions: list[EchoSession] = []
        self.sandbox = Sandbox("s1", META, 0, True, 0.0, pid=4711)
        self.log = [b"one\n", b"two\n"]
        self.following = asyncio.Event()
        self.let_go = asyncio.Event()

    async def status(self) -> RuntimeStatus:
        return RuntimeStatus(True, name="fake", version="1", root_dir="/")

    async def containers(self, pod_uid: str = "") -> list[ContainerStatus]:
        return [RUNNING]

    async def container(self, container_id: str) -> ContainerStatus:
        if container_id != RUNNING.id:
            raise NotFound(f"No such container: {container_id}")
        return RUNNING

    async def sandboxes(self, pod_uid: str = "") -> list[Sandbox]:
        return [self.sandbox]

    async def exec(self, container_id: str, command: Sequence[str], *, tty: bool, stdin: bool) -> EchoSession:
        if command[0] == "broken":
            raise RuntimeFault("the container is not running")
        self.sessions.append(EchoSession(command, stdin=stdin))
        return self.sessions[-1]

    async def attach(self, container_id: str, *, stdin: bool) -> EchoSession:
        self.sessions.append(EchoSession((), stdin=stdin))
        return self.sessions[-1]

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout_s: float) -> ExecResult:
        return ExecResult(0 if command[0] != "false" else 1, " ".join(command).encode())

    async def logs(self, container_id: str, *, follow: bool = False, **options: Any) -> AsyncIterator[LogLine]:
        try:
            for line in self.log:
                yield LogLine("stdout", 0.0, "2023-11-14T22:13:20.000000000Z", line)
            if follow:
                self.following.set()
                await asyncio.Event().wait()
        finally:
            self.let_go.set()


class FakeSource:
    """The PodSource of parts.py with that one pod."""

    def pods(self) -> list[Object]:
        return [POD]

    def pod(self, namespace: str, name: str, uid: str = "") -> Object | None:
        known = (namespace, name) == (namespace_of(POD), name_of(POD)) and uid in ("", uid_of(POD))
        return POD if known else None

    def containers(self, pod_uid: str) -> list[ContainerStatus]:
        return [RUNNING, replace(RUNNING, id="t1", name="t")]

    def container(self, pod_uid: str, name: str, *, previous: bool = False) -> ContainerStatus | None:
        return next((c for c in self.containers(pod_uid) if c.name == name), None)

    def pod_ip(self, pod_uid: str) -> str:
        return "10.0.0.1"

    async def evict(self, pod_uid: str, reason: str, message: str, grace_s: int | None = None) -> None: ...


class World:
    """`start` it; `session` is a client with the API server's certificate."""

    def __init__(self, pki: Pki, path: Path, client: Client | None = None) -> None:
        self.pki = pki
        self.runtime, self.clock = FakeRuntime(), FakeClock()
        self.dialed: list[tuple[int, int]] = []
        self.inside: dict[int, int] = {}  # port in the pod -> port on loopback
        config = KubeletConfig("n1", ("127.0.0.1",), path)
        config.pods_dir.mkdir(parents=True)
        tls = Tls(pki.certificate("kubelet-serving"), pki.key("kubelet-serving"), pki.certificate(CA))
        self.server = KubeletServer(
            FakeSource(),
            self.runtime,  # type: ignore[arg-type]
            self.clock,
            config,
            tls,
            client=client,
            configz=lambda: {"kubeletconfig": {}},
            dial=self.dial,
        )
        self._sessions: list[aiohttp.ClientSession] = []

    async def start(self) -> None:
        await self.server.start("127.0.0.1", 0)
        self.session = self.connect("apiserver-kubelet-client")

    async def stop(self) -> None:
        for session in self._sessions:
            await session.close()
        await self.server.stop()

    def connect(self, certificate: str = "") -> aiohttp.ClientSession:
        """A client with one of the cluster's certificates, or with none."""
        context = ssl.create_default_context(cafile=str(self.pki.certificate(CA)))
        if certificate:
            context.load_cert_chain(self.pki.certificate(certificate), self.pki.key(certificate))
        made = aiohttp.ClientSession(
            f"https://127.0.0.1:{self.server.port}", connector=aiohttp.TCPConnector(ssl=context)
        )
        self._sessions.append(made)
        return made

    async def get(self, path: str, **more: Any) -> tuple[int, str]:
        async with self.session.get(path, **more) as response:
            return response.status, await response.text()

    async def dial(self, pid: int, port: int) -> Streams:
        self.dialed.append((pid, port))
        if port not in self.inside:
            raise DialError(f"failed to connect to localhost:{port}")
        return await asyncio.open_connection("127.0.0.1", self.inside[port])


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that comes over a socket."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a server without events
            await asyncio.sleep(0.005)
