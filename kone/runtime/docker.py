"""Docker as a container runtime: the only module that speaks to dockerd, through aiodocker.

Steps are ordered so that a kill between any two leaves something the next start can go on from, and round trips are
few: a pod's start is one create and one start for each container, and one inspect to learn what was started.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal as signals
import struct
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

import aiodocker
import aiohttp
from aiodocker.execs import Exec
from aiodocker.stream import Stream

from kone.apimachinery.timestamps import go_duration
from kone.runtime import docker_translate as translate
from kone.runtime import uts_runtime
from kone.runtime.docker_host import HostLimits, read_limits
from kone.runtime.pause_image import PAUSE_IMAGE, pause_image
from kone.runtime.runtime import (
    PULL_IDLE_S,
    ContainerConfig,
    ContainerEvent,
    ContainerStats,
    ContainerStatus,
    ExecResult,
    Image,
    LogLine,
    NotFound,
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

log = logging.getLogger(__name__)

EXEC_OUTPUT_LIMIT_BYTES = 16 * 1024 * 1024  # as CRI's ExecSync
INSPECTS_AT_ONCE = 16
ANSWER_S = 5.0  # how long status() waits for dockerd
NO_LIMIT = aiohttp.ClientTimeout()  # for what takes as long as it takes: an image, a log, a container's end
LIMIT = aiohttp.ClientTimeout(total=120.0)  # kubelet's runtimeRequestTimeout
_EXEC_FAILED = b"OCI runtime exec failed: "

_EVENT_KINDS: Mapping[str, Literal["created", "started", "exited", "removed", "oom"]] = {
    "create": "created",
    "start": "started",
    "die": "exited",
    "destroy": "removed",
    "oom": "oom",
}


class DockerRuntime:
    """See runtime.Runtime. `host` is a URL such as "unix:///var/run/docker.sock"; `instance` marks what is ours."""

    def __init__(self, host: str = "unix:///var/run/docker.sock", *, instance: str = "default") -> None:
        self._host = host
        self._instance = instance
        self._docker: aiodocker.Docker | None = None
        self._connector: aiohttp.UnixConnector | None = None
        self._info: Mapping[str, Any] = {}
        self._limits = HostLimits()
        self._told = False
        self._starting = asyncio.Lock()
        self._limit = asyncio.Semaphore(INSPECTS_AT_ONCE)
        self._creating: dict[asyncio.Task[str], str] = {}  # with the pod's uid

    # Life

    async def start(self) -> None:
        async with self._starting:
            docker = self._connect()
            try:
                self._info = await _answer(docker._query_json("info"))
                self._limits = await asyncio.to_thread(read_limits, self._host)
                if not self._told and (said := str(self._limits)):
                    self._told = True
                    log.warning("dockerd lacks capabilities on this host: %s", said)
                await self._ensure_pause_image(docker)
            except RuntimeUnavailable:
                self._info = {}
                raise

    async def close(self) -> None:
        for creation in self._creating:
            creation.cancel()
        await asyncio.gather(*self._creating, return_exceptions=True)
        if self._docker is not None:
            await self._docker.close()
            self._docker = None
        if self._connector is not None:
            await self._connector.close()
            self._connector = None

    async def status(self) -> RuntimeStatus:
        try:
            async with asyncio.timeout(ANSWER_S):
                if not self._info:
                    await self.start()
                else:
                    await _answer(self._connect()._query_json("version"))
        except TimeoutError:
            return RuntimeStatus(False, "DockerNotResponding", f"Docker at {self._host} does not answer")
        except RuntimeFault as fault:
            return RuntimeStatus(False, "DockerNotReady", str(fault))
        info = self._info
        return RuntimeStatus(
            True,
            name="docker",
            version=str(info.get("ServerVersion", "")),
            cgroup_version=int(info.get("CgroupVersion") or 1),
            cgroup_driver=str(info.get("CgroupDriver", "")),
            root_dir=str(info.get("DockerRootDir", "")),
            pid=self._limits.pid,
            recursive_read_only=translate.can_mount_read_only_deeply(
                str(info.get("ServerVersion", "")), str(info.get("KernelVersion", ""))
            ),
        )

    @property
    def _oci_runtime(self) -> str:
        """That by which a pod's containers share their host name, where dockerd has it; else "", Docker's own."""
        return uts_runtime.NAME if uts_runtime.NAME in (self._info.get("Runtimes") or {}) else ""

    def _connect(self) -> aiodocker.Docker:
        if self._docker is None:
            url = self._host
            if url.startswith("unix://"):
                # log followers and exec sessions hold a connection each: there is no limit that would be right
                self._connector = aiohttp.UnixConnector(url.removeprefix("unix://"), limit=0)
                url = "http://docker"  # any name will do: the connector goes to the socket
            self._docker = aiodocker.Docker(url, connector=self._connector, timeout=NO_LIMIT)
        return self._docker

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout: aiohttp.ClientTimeout = LIMIT,
    ) -> Any:
        """One request; its JSON answer, or None where the answer is empty."""
        docker = self._connect()
        data = json.dumps(body) if body is not None else None
        response = await _answer(
            docker._do_query(path, method, params=dict(params) if params else None, data=data, timeout=timeout)
        )
        content = await _answer(response.read())
        return json.loads(content) if content.strip() else None

    async def _ensure_pause_image(self, docker: aiodocker.Docker) -> None:
        try:
            await _answer(docker.images.inspect(PAUSE_IMAGE))
        except NotFound:
            machine = str(self._info.get("Architecture", ""))
            arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
            await _answer(docker.images.import_image(pause_image(arch)))
            log.info("made the sandbox image %s for %s", PAUSE_IMAGE, arch)

    # Sandboxes

    async def create_sandbox(self, config: SandboxConfig) -> str:
        body = translate.sandbox_body(config, instance=self._instance, limits=self._limits)
        name = translate.sandbox_name(config)
        try:
            return await self._create(name, body, config.pod.uid)
        except NotFound:  # someone pruned the image
            await self._ensure_pause_image(self._connect())
            return await self._create(name, body, config.pod.uid)

    async def start_sandbox(self, sandbox_id: str) -> Sandbox:
        await self._call("POST", f"containers/{sandbox_id}/start")
        return translate.sandbox_from_inspect(await self._inspect(sandbox_id))

    async def stop_sandbox(self, sandbox_id: str) -> None:
        await self._kill(sandbox_id, "SIGKILL")
        await self._gone_or_ended(sandbox_id)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        await self._remove(sandbox_id)

    async def sandboxes(self, pod_uid: str = "") -> list[Sandbox]:
        found = await self._inspect_all("podsandbox", pod_uid)
        return [translate.sandbox_from_inspect(one) for one in found]

    # Containers

    async def create_container(self, sandbox_id: str, config: ContainerConfig) -> str:
        body = translate.container_body(
            sandbox_id, config, instance=self._instance, limits=self._limits, oci_runtime=self._oci_runtime
        )
        return await self._create(translate.container_name(config), body, config.pod.uid)

    async def start_container(self, container_id: str) -> ContainerStatus:
        try:
            await self._call("POST", f"containers/{container_id}/start")
        except (NotFound, RuntimeUnavailable):
            # Docker answers 404 for a missing command, too
            if not await self._exists(container_id):
                raise
            raise StartFailed((await self.container(container_id)).message) from None
        except RuntimeFault as fault:
            raise StartFailed(translate.start_error(str(fault))) from fault
        return await self.container(container_id)

    async def stop_container(self, container_id: str, grace_s: float, signal: str = "") -> None:
        if grace_s > 0:
            if not signal:
                try:
                    signal = (await self.container(container_id)).stop_signal or "SIGTERM"
                except NotFound:
                    return
            ended = asyncio.ensure_future(self._gone_or_ended(container_id))
            try:
                await self._kill(container_id, signal)
                await asyncio.wait_for(asyncio.shield(ended), grace_s)
                return
            except TimeoutError:
                pass
            finally:
                ended.cancel()
        await self._kill(container_id, "SIGKILL")
        await self._gone_or_ended(container_id)

    async def remove_container(self, container_id: str) -> None:
        await self._remove(container_id)

    async def containers(self, pod_uid: str = "") -> list[ContainerStatus]:
        found = await self._inspect_all("container", pod_uid)
        return [translate.container_from_inspect(one) for one in found]

    async def container(self, container_id: str) -> ContainerStatus:
        return translate.container_from_inspect(await self._inspect(container_id))

    async def update_resources(self, container_id: str, resources: Resources) -> None:
        await self._call("POST", f"containers/{container_id}/update", body=translate.resources_update(resources))

    # What runs in them

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout_s: float) -> ExecResult:
        session = await self._exec(container_id, command, tty=False, stdin=False)
        out: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        try:
            async with asyncio.timeout(timeout_s or None):
                while (piece := await session.read()) is not None:
                    stream, data = piece
                    out[stream] += data[: EXEC_OUTPUT_LIMIT_BYTES - len(out[stream])]
                code = await session.exit_code()
        except TimeoutError:
            await session.kill()
            raise
        finally:
            await session.close()
        return ExecResult(code, bytes(out["stdout"]), bytes(out["stderr"]))

    async def exec(self, container_id: str, command: Sequence[str], *, tty: bool, stdin: bool) -> Session:
        return await self._exec(container_id, command, tty=tty, stdin=stdin)

    async def _exec(self, container_id: str, command: Sequence[str], *, tty: bool, stdin: bool) -> DockerSession:
        container = self._connect().containers.container(container_id)
        execution = await _answer(container.exec(list(command), stdin=stdin, tty=tty))
        stream = execution.start(detach=False)
        await _answer(stream._init())
        return DockerSession(stream, execution=execution)

    async def attach(self, container_id: str, *, stdin: bool) -> Session:
        container = self._connect().containers.container(container_id)
        stream = container.attach(stdin=stdin, stdout=True, stderr=True)
        await _answer(stream._init())
        return DockerSession(stream, resize=container.resize)

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
        tty = (await self.container(container_id)).tty
        params: dict[str, Any] = {
            "follow": follow,
            "stdout": stdout,
            "stderr": stderr,
            "timestamps": True,
            "tail": "all" if tail_lines is None else str(tail_lines),
            "since": f"{since:.9f}" if since else "0",
        }
        response = await _answer(
            self._connect()._do_query(f"containers/{container_id}/logs", "GET", params=params, timeout=NO_LIMIT)
        )
        try:
            if tty:
                while line := await response.content.readline():
                    yield _log_line("stdout", line)
                return
            while True:
                try:
                    header = await response.content.readexactly(8)
                    kind, length = struct.unpack(">BxxxL", header)
                    frame = await response.content.readexactly(length)
                except asyncio.IncompleteReadError:
                    return
                yield _log_line("stderr" if kind == 2 else "stdout", frame)
        except aiohttp.ClientError as error:
            raise RuntimeUnavailable(f"Docker at {self._host} broke off: {error}") from error
        finally:
            response.close()

    async def stats(self, container_id: str) -> ContainerStats:
        found = await self._call("GET", f"containers/{container_id}/stats", params={"stream": "0", "one-shot": "1"})
        memory = found.get("memory_stats") or {}
        detail = memory.get("stats") or {}
        usage = int(memory.get("usage") or 0)
        inactive = int(detail.get("total_inactive_file") or detail.get("inactive_file") or 0)
        return ContainerStats(
            id=container_id,
            time=time.time(),
            cpu_ns=int((found.get("cpu_stats") or {}).get("cpu_usage", {}).get("total_usage") or 0),
            memory_usage_bytes=usage,
            memory_working_set_bytes=max(0, usage - inactive),
            memory_rss_bytes=int(detail.get("total_rss") or detail.get("anon") or 0),
            pids=int((found.get("pids_stats") or {}).get("current") or 0),
        )

    # Images

    async def pull_image(
        self, reference: str, auth: RegistryAuth | None = None, progress: PullProgress | None = None
    ) -> Image:
        pulling: Any = self._connect().images.pull(reference, auth=_auth(auth), stream=True)
        layers: dict[str, tuple[int, int]] = {}
        try:
            async with asyncio.timeout(PULL_IDLE_S) as idle:
                while (said := await _answer(anext(pulling, None))) is not None:
                    idle.reschedule(asyncio.get_running_loop().time() + PULL_IDLE_S)
                    detail = said.get("progressDetail") or {}
                    if detail.get("total") and said.get("status") == "Downloading":
                        layers[said["id"]] = (int(detail["current"]), int(detail["total"]))
                        if progress is not None:
                            progress(sum(done for done, _ in layers.values()), sum(all_ for _, all_ in layers.values()))
        except TimeoutError:
            raise PullFailed(f"pull of {reference} made no progress in {go_duration(PULL_IDLE_S)}") from None
        except RuntimeUnavailable:
            raise
        except RuntimeFault as fault:
            raise PullFailed(str(fault)) from fault
        finally:
            await pulling.aclose()
        return await self.image(reference)

    async def image(self, reference: str) -> Image:
        return translate.image_from_inspect(await _answer(self._connect().images.inspect(reference)))

    async def images(self) -> list[Image]:
        return [translate.image_from_list(one) for one in await self._call("GET", "images/json")]

    async def image_layers(self, image_id: str) -> Sequence[str]:
        found = await _answer(self._connect().images.inspect(image_id))
        return translate.layers_from_inspect(found)

    async def remove_image(self, image_id: str) -> None:
        await _answer(self._connect().images.delete(image_id))

    # Change

    async def events(self) -> AsyncIterator[ContainerEvent | None]:
        # "since" closes the gap between the answer's headers and the moment Docker subscribes us
        params = {
            "since": f"{time.time() - 0.5:.9f}",
            "filters": json.dumps(
                {
                    "type": ["container"],
                    "label": [f"{translate.INSTANCE}={self._instance}"],
                    "event": list(_EVENT_KINDS),
                }
            ),
        }
        response = await _answer(self._connect()._do_query("events", "GET", params=params, timeout=NO_LIMIT))
        try:
            yield None
            while line := await response.content.readline():
                if event := _event(json.loads(line)):
                    yield event
        except aiohttp.ClientError as error:
            raise RuntimeUnavailable(f"Docker at {self._host} broke off its events: {error}") from error
        finally:
            response.close()
        raise RuntimeUnavailable(f"Docker at {self._host} ended its events")

    # Inside

    async def _create(self, name: str, body: translate.Body, pod_uid: str) -> str:
        """Docker makes it even when the caller gives up meanwhile; then the next list waits for it, to know it."""
        creation = asyncio.create_task(self._create_anew(name, body), name=f"create {name}")
        self._creating[creation] = pod_uid
        creation.add_done_callback(self._created)
        return await asyncio.shield(creation)

    def _created(self, creation: asyncio.Task[str]) -> None:
        del self._creating[creation]
        if not creation.cancelled():
            creation.exception()  # nobody may be left to see it

    async def _create_anew(self, name: str, body: translate.Body) -> str:
        """Of that name; one that was made before and does not run is replaced."""
        try:
            answer = await self._call("POST", "containers/create", params={"name": name}, body=body)
        except RuntimeFault as fault:
            if not isinstance(fault, _Conflict):
                raise
            found = await self._inspect(name)
            if found["State"].get("Running") or found["Config"]["Labels"].get(translate.INSTANCE) != self._instance:
                raise
            await self._remove(found["Id"])
            answer = await self._call("POST", "containers/create", params={"name": name}, body=body)
        return str(answer["Id"])

    async def _exists(self, container_id: str) -> bool:
        try:
            await self._inspect(container_id)
        except NotFound:
            return False
        return True

    async def _inspect(self, container_id: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._call("GET", f"containers/{container_id}/json")
        return found

    async def _inspect_all(self, kind: str, pod_uid: str) -> list[Mapping[str, Any]]:
        if creating := [task for task, uid in self._creating.items() if pod_uid in ("", uid)]:
            await asyncio.wait(creating)
        labels = [f"{translate.INSTANCE}={self._instance}", f"{translate.CONTAINER_TYPE}={kind}"]
        if pod_uid:
            labels.append(f"{translate.POD_UID}={pod_uid}")
        listed = await self._call(
            "GET", "containers/json", params={"all": "1", "filters": json.dumps({"label": labels})}
        )

        async def inspect(container_id: str) -> Mapping[str, Any] | None:
            async with self._limit:
                try:
                    return await self._inspect(container_id)
                except NotFound:
                    return None

        found = await asyncio.gather(*(inspect(one["Id"]) for one in listed))
        return [one for one in found if one is not None]

    async def _kill(self, container_id: str, signal: str) -> None:
        try:
            await self._call("POST", f"containers/{container_id}/kill", params={"signal": signal})
        except (NotFound, _Conflict):  # gone, or not running
            pass

    async def _gone_or_ended(self, container_id: str) -> None:
        try:
            params = {"condition": "not-running"}
            await self._call("POST", f"containers/{container_id}/wait", params=params, timeout=NO_LIMIT)
        except NotFound:
            pass

    async def _remove(self, container_id: str) -> None:
        try:
            await self._call("DELETE", f"containers/{container_id}", params={"force": "1", "v": "1"})
        except NotFound:
            pass
        except _Conflict as conflict:
            if "already in progress" not in str(conflict):
                raise


class DockerSession:
    """An exec or an attachment (see runtime.Session)."""

    def __init__(self, stream: Stream, *, execution: Exec | None = None, resize: Any = None) -> None:
        self._stream = stream
        self._exec = execution
        self._resize = execution.resize if execution else resize
        self._failure = ""
        self._first = True

    async def read(self) -> tuple[Literal["stdout", "stderr"], bytes] | None:
        message = await self._stream.read_out()
        if message is None:
            return None
        if self._first and self._exec is not None and message.data.startswith(_EXEC_FAILED):
            # Docker writes it where the command's own output would be
            self._failure = message.data.decode(errors="replace").strip()
            return await self.read()
        self._first = False
        return ("stderr" if message.stream == 2 else "stdout"), message.data

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write_in(data)
        except (ConnectionError, RuntimeError, AssertionError) as error:
            raise BrokenPipeError("the process reads no more") from error

    async def close_stdin(self) -> None:
        # aiodocker closes both ways at once; a process that reads to the end of its input answers only after that
        response = self._stream._resp
        connection = response.connection if response is not None else None
        transport = connection.transport if connection is not None else None
        if transport is not None and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()

    async def resize(self, width: int, height: int) -> None:
        await _answer(self._resize(w=width, h=height))

    async def exit_code(self) -> int:
        """Raises RuntimeFault where the command could not be run at all."""
        if self._exec is None:
            return 0
        code = int((await _answer(self._exec.inspect()))["ExitCode"] or 0)
        if self._failure:
            raise RuntimeFault(self._failure.removesuffix(": unknown"))
        return code

    async def kill(self) -> None:
        """End the command of an exec; Docker has no call for that, but says which process it is."""
        if self._exec is not None and (pid := int((await _answer(self._exec.inspect())).get("Pid") or 0)):
            try:
                os.kill(pid, signals.SIGKILL)
            except ProcessLookupError:
                pass

    async def close(self) -> None:
        try:
            await self._stream.close()
        except AssertionError:  # aiodocker asserts a connection that its end has taken away
            self._stream._closed = True


class _Conflict(RuntimeFault):
    """Docker's 409: the name is taken, or the container is not in the state for that."""


async def _answer(call: Any) -> Any:
    """Await one of aiodocker's calls, with its errors told apart."""
    try:
        return await call
    except aiodocker.DockerError as error:
        match error.status:
            case 900:
                raise RuntimeUnavailable("Cannot connect to the Docker daemon. Is it running?") from error
            case 404:
                raise NotFound(error.message) from error
            case 409:
                raise _Conflict(error.message) from error
            case _:
                raise RuntimeFault(error.message) from error
    except TimeoutError as error:
        raise RuntimeUnavailable("Docker does not answer") from error
    except (aiohttp.ClientError, OSError) as error:
        raise RuntimeUnavailable(f"Docker broke off: {error}") from error


def _auth(credentials: RegistryAuth | None) -> dict[str, str] | None:
    if credentials is None:
        return None
    if credentials.identity_token:
        return {"identitytoken": credentials.identity_token}
    return {"username": credentials.username, "password": credentials.password}


def _log_line(stream: Literal["stdout", "stderr"], frame: bytes) -> LogLine:
    timestamp, _, data = frame.partition(b" ")
    text = timestamp.decode()
    return LogLine(stream, translate.parse_docker_time(text), text, data)


def _event(found: Mapping[str, Any]) -> ContainerEvent | None:
    kind = _EVENT_KINDS.get(found.get("Action", ""))
    if kind is None:
        return None
    attributes = found["Actor"]["Attributes"]
    return ContainerEvent(
        kind=kind,
        id=found["Actor"]["ID"],
        pod_uid=attributes.get(translate.POD_UID, ""),
        name=attributes.get(translate.CONTAINER_NAME, ""),
        time=found.get("timeNano", 0) / 1e9,
        exit_code=int(attributes.get("exitCode") or 0),
    )
