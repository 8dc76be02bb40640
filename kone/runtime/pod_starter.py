"""Starting: a sandbox with its network, and containers in it, in as few round trips as can be.

A start is a budget of one `docker run`: containers are created while the sandbox starts, images are looked up while it
is created, and the pod's files are written meanwhile. Each step may be cut off and is simply done again by the next
sync.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, SECRETS
from kone.apimachinery.objects import Object, annotations_of, dig, name_of, namespace_of, uid_of
from kone.client.events import EventKind
from kone.runtime.cdi import Allotment
from kone.runtime.container_config import container_config, sandbox_config
from kone.runtime.device_plugins import NotFreeYet, Unavailable
from kone.runtime.dra import NotPrepared
from kone.runtime.environment import (
    ConfigError,
    Found,
    PodFacts,
    Reference,
    environment,
    expand_sub_path,
    needs_files,
    needs_pod_ip,
    no_files,
    references,
)
from kone.runtime.image_volumes import ImageVolumeFailed
from kone.runtime.images import ImageError, Tell
from kone.runtime.kubelet_parts import KubeletParts
from kone.runtime.observed import PodObserved, StartFailure
from kone.runtime.parts import HookError, MountedVolume, SubPathFailed, VolumeError
from kone.runtime.pod_actions import PodActions, Start
from kone.runtime.pod_admit import claimed_ports
from kone.runtime.pod_killer import PodKiller, field_path, kill_grace_s
from kone.runtime.pod_spec import ContainerKind, find_container, format_pod, is_host_network
from kone.runtime.runtime import (
    ContainerConfig,
    ContainerState,
    ContainerStatus,
    Device,
    Image,
    Mount,
    RuntimeFault,
    RuntimeUnavailable,
    StartFailed,
)
from kone.runtime.security_context import localhost_seccomp, security_context
from kone.runtime.subpath import read_inside

log = logging.getLogger(__name__)

ENV_FILE_MAX_BYTES = 1 << 20  # as much as a configMap
SECCOMP_DIR = Path("/var/lib/kubelet/seccomp")
_METER_KINDS: Mapping[ContainerKind, str] = {
    "init": "init_container",
    "regular": "container",
    "ephemeral": "ephemeral_container",
}
_PROPAGATIONS: Mapping[str, Literal["rslave", "rshared"]] = {"HostToContainer": "rslave", "Bidirectional": "rshared"}


class _Early(NamedTuple):
    """A container that is created while its sandbox starts."""

    image: Image
    container_id: asyncio.Task[str]


class StartProblem(Exception):
    """A container was not started: what its waiting state says, and when to try again (None: as for any failure)."""

    def __init__(self, failure: StartFailure, retry_s: float | None = None) -> None:
        super().__init__(failure.message)
        self.failure, self.retry_s = failure, retry_s


class SandboxProblem(Exception):
    """The pod has no usable sandbox yet; its events say why."""


class PodStarter:
    """Acts for one pod. `failures` is what became of the last try, by container name; `ips` what the pod was given."""

    def __init__(self, parts: KubeletParts, killer: PodKiller) -> None:
        self._parts = parts
        self._killer = killer
        self.ips: tuple[str, ...] = ()
        self.failures: dict[str, StartFailure] = {}
        self._volumes: Mapping[str, MountedVolume] = {}
        self._volume_images: Mapping[str, Image | ImageError] = {}

    # The sandbox

    async def attach(self, pod: Object, pid: int) -> None:
        """Give the sandbox its network, or learn what it has. Raises SandboxProblem."""
        if is_host_network(pod):
            self.ips = self._parts.config.node_ips
            return
        try:
            self.ips = tuple(
                await self._parts.network.attach(
                    pod_uid=uid_of(pod),
                    pod_name=name_of(pod),
                    namespace=namespace_of(pod),
                    netns=f"/proc/{pid}/ns/net",
                    host_ports=claimed_ports(pod),
                    annotations=annotations_of(pod),
                )
            )
        except Exception as error:  # whatever a network says: the pod has no sandbox, and is tried again
            log.exception("network of pod %s cannot be set up", format_pod(pod))
            self._tell(pod, "", "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {error}")
            raise SandboxProblem(str(error)) from error

    async def start_pod(
        self, pod: Object, actions: PodActions, observed: PodObserved, told: Callable[[], None]
    ) -> None:
        """Make a sandbox and start the containers of the plan. `told` is called when the sandbox is ready.

        Raises SandboxProblem, VolumeError, RuntimeUnavailable, StartProblem, and Unavailable for devices that the pod
        will never have.
        """
        self.ips = ()
        await self._prepare_devices(pod)
        self._parts.meters.started_pods.add()
        try:
            self._check_user_namespace(pod)
            self._parts.files.prepare(pod)
            parent = await self._parts.cgroups.ensure(pod)
            config = sandbox_config(
                pod,
                attempt=actions.attempt,
                cluster_domain=self._parts.config.cluster_domain,
                cgroup_parent=parent,
            )
        except (ConfigError, OSError) as error:
            self._tell(pod, "", "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {error}")
            raise SandboxProblem(str(error)) from error
        creating = asyncio.ensure_future(self._parts.runtime.create_sandbox(config))
        peeking = [asyncio.ensure_future(self._peek(pod, start)) for start in actions.start]
        try:
            self._volumes = await self._parts.volumes.mount(pod)
        except VolumeError:
            # a pod whose volumes are missing has no sandbox
            await self._abandon(creating)
            raise
        finally:
            if not creating.done():
                await asyncio.wait({creating})
        early: dict[str, _Early] = {}
        try:
            sandbox_id = creating.result()
            with self._parts.pleg.working_on(sandbox_id):
                starting = asyncio.ensure_future(self._parts.runtime.start_sandbox(sandbox_id))
                for start, peek in zip(actions.start, peeking, strict=True):
                    if (image := await peek) is not None:
                        made = self._create_early(pod, start, image, sandbox_id, observed, parent)
                        early[start.name] = _Early(image, asyncio.create_task(made))
                sandbox = await starting
                self._parts.pleg.put_sandbox(sandbox)
            await self.attach(pod, sandbox.pid)
            self._parts.files.write_hosts(pod, self.ips)
            told()
            await self.start_containers(pod, actions.start, sandbox_id, observed, parent, early)
        except RuntimeUnavailable:
            raise
        except RuntimeFault as fault:
            self._tell(pod, "", "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {fault}")
            raise SandboxProblem(str(fault)) from fault
        finally:
            # what was created and not started is found by its name and made anew
            await asyncio.gather(*(made.container_id for made in early.values()), return_exceptions=True)

    async def _prepare_devices(self, pod: Object) -> None:
        """Raises Unavailable, SandboxProblem."""
        try:
            await self._parts.devices.choose(pod)
        except NotFreeYet as error:
            raise SandboxProblem(str(error)) from error
        try:
            await self._parts.dra.prepare(pod)
        except NotPrepared as error:
            reason = "FailedPrepareDynamicResources"
            self._tell(pod, "", "Warning", reason, f"Failed to prepare dynamic resources: {error}")
            raise SandboxProblem(str(error)) from error

    def _check_user_namespace(self, pod: Object) -> None:
        """Raises ConfigError where the pod wants one: Docker has one for all of its containers or none."""
        if dig(pod, "spec", "hostUsers", default=True) is False:
            raise ConfigError("can't set `spec.hostUsers: false`, runtime does not support user namespaces")

    async def _abandon(self, creating: asyncio.Future[str]) -> None:
        try:
            await self._parts.runtime.remove_sandbox(await creating)
        except RuntimeFault as fault:
            log.warning("a sandbox without volumes cannot be removed: %s", fault)

    # Containers

    async def prepare(self, pod: Object) -> str:
        """What a further start of containers needs: files, volumes, the cgroup parent. Raises VolumeError."""
        self._parts.files.prepare(pod)
        self._parts.files.write_hosts(pod, self.ips)
        self._volumes = await self._parts.volumes.mount(pod)
        return await self._parts.cgroups.ensure(pod)

    async def start_containers(
        self,
        pod: Object,
        starts: Sequence[Start],
        sandbox_id: str,
        observed: PodObserved,
        cgroup_parent: str,
        early: Mapping[str, _Early] | None = None,
    ) -> None:
        """Start them in order, each with its postStart hook before the next. A failure does not keep the others back,
        except that of an init container, which ends the start. Raises StartProblem with the soonest time to try
        again."""
        problems: list[StartProblem] = []
        self._volume_images = await self._pull_volumes(pod) if starts else {}
        for start in starts:
            container = find_container(pod, start.name)
            if container is None:
                continue
            try:
                await self._start(
                    pod, start, container, sandbox_id, observed, cgroup_parent, (early or {}).get(start.name)
                )
                self.failures.pop(start.name, None)
            except StartProblem as problem:
                self.failures[start.name] = problem.failure
                problems.append(problem)
                if start.kind == "init" and container.get("restartPolicy") != "Always":
                    break
        if problems:
            times = [problem.retry_s for problem in problems]
            known = [time for time in times if time is not None]
            raise StartProblem(problems[0].failure, min(known) if len(known) == len(times) else None)

    async def _start(
        self,
        pod: Object,
        start: Start,
        container: Object,
        sandbox_id: str,
        observed: PodObserved,
        cgroup_parent: str,
        early: _Early | None,
    ) -> None:
        parts, name = self._parts, start.name
        self._check_restart(pod, name, observed)

        def tell(kind: EventKind, reason: str, message: str) -> None:
            self._tell(pod, name, kind, reason, message)

        def fail(reason: str, message: str) -> StartProblem:
            parts.meters.started_containers_errors.add(_METER_KINDS[start.kind], reason)
            tell("Warning", "Failed", f"Error: {message}")
            return StartProblem(StartFailure(reason, message))

        self._check_volumes(container, tell)
        try:
            secrets = await self._pull_secrets(pod)
            known = early.image if early is not None else None
            image = await parts.images.ensure(pod, container, secrets, tell, known=known)
        except ImageError as error:
            parts.meters.started_containers_errors.add(_METER_KINDS[start.kind], error.reason)
            tell("Warning", "Failed", f"Error: {error.reason}")
            raise StartProblem(StartFailure(error.reason, error.message), error.retry_s) from error
        parts.meters.started_containers.add(_METER_KINDS[start.kind])
        try:
            if early is not None:
                container_id = await early.container_id
            else:
                container_id = await self._create(pod, start, container, image, sandbox_id, observed, cgroup_parent)
        except (ConfigError, VolumeError) as error:
            if error.__cause__ is not None:
                log.info("container %s of pod %s: %s", name, format_pod(pod), error.__cause__)
            raise fail("CreateContainerConfigError", str(error)) from error
        except RuntimeUnavailable:
            raise
        except RuntimeFault as fault:
            raise fail("CreateContainerError", str(fault)) from fault
        tell("Normal", "Created", "Container created")
        try:
            with parts.pleg.working_on(container_id):
                status = await parts.runtime.start_container(container_id)
        except StartFailed as fault:
            await parts.pleg.refresh_container(uid_of(pod), container_id)
            raise fail("RunContainerError", str(fault)) from fault
        except RuntimeUnavailable:
            raise
        except RuntimeFault as fault:
            raise fail("RunContainerError", str(fault)) from fault
        if status.pid:
            parts.cgroups.kill_as_one(status.pid)
        await parts.pleg.put_ended(status)
        tell("Normal", "Started", "Container started")
        await self._post_start(pod, container, status)

    async def _pull_volumes(self, pod: Object) -> dict[str, Image | ImageError]:
        """The images of all image volumes, by volume; one that cannot be had fails only containers that mount it."""
        found: dict[str, Image | ImageError] = {}
        wanted = {v["name"]: v["image"] for v in dig(pod, "spec", "volumes", default=()) if v.get("image") is not None}
        secrets = await self._pull_secrets(pod) if wanted else []
        for name, source in wanted.items():
            image = {"image": source.get("reference", ""), "imagePullPolicy": source.get("pullPolicy", "")}
            try:
                found[name] = await self._parts.images.ensure(pod, image, secrets, partial(self._tell, pod, ""))
            except ImageError as error:
                found[name] = error
        return found

    def _check_volumes(self, container: Object, tell: Tell) -> None:
        """Raises StartProblem where the container mounts an image that cannot be had."""
        for mount in container.get("volumeMounts") or ():
            if isinstance(error := self._volume_images.get(mount["name"]), ImageError):
                tell("Warning", "Failed", f"Error: {error.reason}")
                raise StartProblem(StartFailure(error.reason, error.message), error.retry_s)

    async def _post_start(self, pod: Object, container: Object, status: ContainerStatus) -> None:
        handler = dig(container, "lifecycle", "postStart")
        if not handler:
            return
        try:
            await self._parts.hooks.run(pod, container, status.id, handler, next(iter(self.ips), ""))
        except HookError as error:
            self._tell(pod, status.name, "Warning", "FailedPostStartHook", "PostStartHook failed")
            await self._killer.kill(
                pod,
                status,
                message="FailedPostStartHook",
                grace_s=kill_grace_s(pod, container, ""),
                pod_ip=next(iter(self.ips), ""),
            )
            raise StartProblem(StartFailure("PostStartHookError", str(error))) from error

    def _check_restart(self, pod: Object, name: str, observed: PodObserved) -> None:
        """Raises StartProblem while the container's back-off lasts."""
        last = next((c for c in observed.containers if c.name == name and c.state is ContainerState.EXITED), None)
        if last is None:
            return
        key = f"{uid_of(pod)}/{name}"
        remaining = self._parts.restarts.remaining_s(key, last.finished_at)
        if remaining > 0:
            where = format_pod(pod)
            delay = _go_seconds(self._parts.restarts.delay_s(key))
            self._tell(pod, name, "Warning", "BackOff", f"Back-off restarting failed container {name} in pod {where}")
            message = f"back-off {delay} restarting failed container={name} pod={where}"
            raise StartProblem(StartFailure("CrashLoopBackOff", message), remaining)
        self._parts.restarts.next(key, last.finished_at)

    async def _peek(self, pod: Object, start: Start) -> Image | None:
        """The image of a container that can be created before the pod has its address."""
        container = find_container(pod, start.name)
        if container is None or start.kind == "ephemeral" or needs_pod_ip(container) or needs_files(container):
            return None
        images = {v["name"] for v in dig(pod, "spec", "volumes", default=()) if v.get("image") is not None}
        if any(mount["name"] in images for mount in container.get("volumeMounts") or ()):
            return None
        return await self._parts.images.peek(container)

    async def _create_early(
        self, pod: Object, start: Start, image: Image, sandbox_id: str, observed: PodObserved, cgroup_parent: str
    ) -> str:
        container = find_container(pod, start.name)
        assert container is not None
        return await self._create(pod, start, container, image, sandbox_id, observed, cgroup_parent)

    async def _create(
        self,
        pod: Object,
        start: Start,
        container: Object,
        image: Image,
        sandbox_id: str,
        observed: PodObserved,
        cgroup_parent: str,
    ) -> str:
        attempt = self._attempt(pod, start.name, observed)
        config = await self._config(pod, start, container, image, attempt, observed, cgroup_parent)
        return await self._parts.runtime.create_container(sandbox_id, config)

    def _attempt(self, pod: Object, name: str, observed: PodObserved) -> int:
        """One more than the last; where that was removed, the pod's status remembers it."""
        newest = observed.newest(name)
        if newest is not None:
            return newest.restart_count + (newest.state is not ContainerState.CREATED)
        status = self._parts.statuses.get(uid_of(pod)) or pod.get("status") or {}
        for field in ("containerStatuses", "initContainerStatuses"):
            for found in status.get(field) or ():
                if found["name"] == name:
                    return int(found.get("restartCount", 0)) + bool(found.get("containerID"))
        return 0

    async def _config(
        self,
        pod: Object,
        start: Start,
        container: Object,
        image: Image,
        attempt: int,
        observed: PodObserved,
        cgroup_parent: str,
    ) -> ContainerConfig:
        parts = self._parts
        found = await self._find(pod, references(container))
        facts = PodFacts(parts.config.node_name, parts.config.node_ips, self.ips, parts.allocatable())
        env = environment(
            pod, container, facts=facts, found=found, services=parts.services.list(), read_file=self._read_file
        )
        security = security_context(pod, container, image, seccomp_profile=_seccomp_json(pod, container))
        extra = await self._allotment(pod, container)
        env |= dict(extra.env)
        groups = (*security.supplemental_groups, *extra.groups)
        security = replace(security, supplemental_groups=tuple(dict.fromkeys(groups)))
        termination_file = str(parts.files.termination_file(uid_of(pod), start.name, attempt))
        mounts = [
            *await self._mounts(pod, container, env),
            *parts.files.mounts(pod, container),
            *extra.mounts,
            Mount(container.get("terminationMessagePath") or "/dev/termination-log", termination_file),
        ]
        return container_config(
            pod,
            start.kind,
            container,
            image=image,
            restart_count=attempt,
            env=env,
            mounts=mounts,
            security=security,
            cgroup_parent=cgroup_parent,
            node_memory_bytes=parts.allocatable().get("memory", 0),
            termination_file=termination_file,
            target_container_id=_target(container, observed),
            devices=[*self._devices(container), *extra.devices],
        )

    async def _allotment(self, pod: Object, container: Object) -> Allotment:
        """What device plugins and drivers of claims give the container. Raises ConfigError."""
        try:
            given = await self._parts.devices.allotment(pod, container["name"])
            return given + self._parts.dra.allotment(pod, container)
        except (Unavailable, NotPrepared) as error:
            raise ConfigError(str(error)) from error

    def _read_file(self, volume_name: str, path: str) -> str:
        """A file of one of the pod's volumes, wherever links in it lead within the volume. Raises ConfigError."""
        volume = self._volumes.get(volume_name)
        if volume is None or volume.is_device:
            return no_files(volume_name, path)
        try:
            return read_inside(volume.host_path, path, ENV_FILE_MAX_BYTES).decode(errors="surrogateescape")
        except OSError as error:
            raise ConfigError("couldn't parse env file") from error

    async def _mounts(self, pod: Object, container: Object, env: Mapping[str, str]) -> list[Mount]:
        """The container's volume mounts, in order. Raises ConfigError, VolumeError."""
        mounts = []
        for mount in container.get("volumeMounts") or ():
            image = self._volume_images.get(mount["name"])
            if isinstance(image, Image):
                volume: MountedVolume | None = await self._parts.image_volumes.mount(pod, mount["name"], image)
            else:
                volume = self._volumes.get(mount["name"])
            if volume is None or volume.is_device:
                raise ConfigError(f'cannot find volume "{mount["name"]}" to mount into container "{container["name"]}"')
            path = volume.host_path
            sub_path = mount.get("subPath", "")
            if expression := mount.get("subPathExpr"):
                sub_path = expand_sub_path(expression, env)
            if sub_path:
                path = await self._sub_path(pod, container, mount, volume, sub_path)
            target = mount["mountPath"]
            recursive = self._is_deeply_read_only(mount)
            mounts.append(
                Mount(
                    container_path=target if target.startswith("/") else f"/{target}",
                    host_path=path,
                    read_only=bool(mount.get("readOnly")) or volume.read_only,
                    recursive_read_only=recursive,
                    propagation=_PROPAGATIONS.get(mount.get("mountPropagation", ""), "private"),
                )
            )
        return mounts

    def _is_deeply_read_only(self, mount: Object) -> bool:
        """Whether what is mounted below is to be read-only too. Raises ConfigError where the runtime cannot."""
        mode = mount.get("recursiveReadOnly")
        if mode == "Enabled" and not self._parts.recursive_read_only:
            why = "requested recursive read-only mode, but it is not supported by the runtime"
            raise ConfigError(f'volume "{mount["name"]}" {why}')
        return mode in ("Enabled", "IfPossible") and self._parts.recursive_read_only

    def _devices(self, container: Object) -> list[Device]:
        """The container's block devices. Raises ConfigError."""
        devices = []
        for use in container.get("volumeDevices") or ():
            volume, path = self._volumes.get(use["name"]), use["devicePath"]
            if not path.startswith("/"):
                raise ConfigError(f"error DevicePath `{path}` must be an absolute path")
            if volume is None or not volume.is_device:
                raise ConfigError(f'cannot find volume "{use["name"]}" to pass into container "{container["name"]}"')
            devices.append(Device(volume.host_path, path, "r" if volume.read_only else "mrw"))
        return devices

    async def _sub_path(
        self, pod: Object, container: Object, mount: Object, volume: MountedVolume, sub_path: str
    ) -> str:
        """Raises VolumeError; what it tells says nothing of the host's files."""
        try:
            return await self._parts.volumes.subpath(pod, volume, sub_path)
        except SubPathFailed as error:
            log.warning("pod %s, container %s: %s", format_pod(pod), container["name"], error)
            names = f'volumeMount "{mount["name"]}" of container "{container["name"]}"'
            if mount["name"] in self._volume_images:  # nothing is made in an image; upstream's runtime fails there
                raise ImageVolumeFailed(f"subPath {sub_path} of {names} is not there") from error
            raise VolumeError(f"failed to {error.step} for {names}") from error

    async def _find(self, pod: Object, wanted: Sequence[Reference]) -> Found:
        async def get(reference: Reference) -> Object | None:
            resource = CONFIGMAPS if reference.kind == "configmap" else SECRETS
            try:
                return await self._parts.client.get(resource, reference.name, namespace_of(pod))
            except StatusError as error:
                if error.code == 404:
                    return None
                raise ConfigError(error.message) from error

        return dict(zip(wanted, await asyncio.gather(*(get(reference) for reference in wanted)), strict=True))

    async def _pull_secrets(self, pod: Object) -> list[Object]:
        secrets = []
        for reference in dig(pod, "spec", "imagePullSecrets", default=()):
            try:
                secrets.append(await self._parts.client.get(SECRETS, reference["name"], namespace_of(pod)))
            except (StatusError, KeyError):
                log.debug("image pull secret not found: pod=%s secret=%s", format_pod(pod), reference.get("name"))
        return secrets

    def _tell(self, pod: Object, container: str, kind: EventKind, reason: str, message: str) -> None:
        path = field_path(pod, container) if container else ""
        self._parts.recorder.event(pod, kind, reason, message, field_path=path)


def _target(container: Object, observed: PodObserved) -> str:
    """The container whose processes an ephemeral container wants to see. Raises ConfigError."""
    name = container.get("targetContainerName", "")
    if not name:
        return ""
    target = observed.newest(name)
    if target is None:
        raise ConfigError(f'unable to find target container "{name}"')
    return target.id


def _seccomp_json(pod: Object, container: Object) -> str:
    name = localhost_seccomp(pod, container)
    if not name:
        return ""
    path = SECCOMP_DIR / name
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(f'cannot load seccomp profile "{path}": {error.strerror}') from error


def _go_seconds(seconds: float) -> str:
    """Whole seconds as Go prints a duration: "10s", "1m20s", "5m0s"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
