"""Device plugins: programs that offer devices of this host as extended resources, over gRPC on Unix sockets.

A plugin calls Register on <kubelet>/device-plugins/kubelet.sock (or makes itself known in plugins_registry), and is
then watched for its devices. What it lists is the node's capacity, what of that is healthy its allocatable. A pod that
is admitted is given devices by their ids, which it keeps until it has ended, also over a restart of the kubelet; the
plugin says what they need in a container. One that goes leaves its devices unhealthy, and after five minutes none.
Rules and texts: kubernetes/pkg/kubelet/cm/devicemanager.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.objects import Object, dig, uid_of
from kone.apimachinery.pod_resources import amounts
from kone.runtime import cdi
from kone.runtime.cdi import Allotment, CdiError
from kone.runtime.grpc_status import INVALID_ARGUMENT, RpcError
from kone.runtime.plugin_watcher import PluginRefused
from kone.runtime.pod_spec import all_containers, is_sidecar
from kone.runtime.runtime import Device, Mount

log = logging.getLogger(__name__)

PLUGIN_TYPE: Final = "DevicePlugin"
FOLDER: Final = "device-plugins"
SOCKET: Final = "kubelet.sock"
CHECKPOINT: Final = "kone_devices.json"
CALL_S: Final = 30.0
STOPPED_S: Final = 300.0  # for so long the devices of a plugin that is gone are still told of, as unhealthy
API_VERSION: Final = "v1beta1"


class Unavailable(Exception):
    """A pod cannot have the devices that it asks for."""


class NotFreeYet(Exception):
    """A pod will have them when others, whose containers are being ended, have let go of theirs."""


def is_extended_name(resource: str) -> bool:
    """Whether a name may be an extended resource's: of a domain that is not Kubernetes' own."""
    return "/" in resource and not resource.startswith("requests.") and "kubernetes.io/" not in resource


@dataclass(slots=True)
class _Plugin:
    """One resource: its plugin's socket, what it needs, and its devices, healthy or not, by id."""

    client: Any
    pre_start: bool = False
    prefers: bool = False
    devices: dict[str, bool] = field(default_factory=dict)
    stopped_at: float | None = None


# pod UID -> container -> resource -> device ids
_Given = dict[str, dict[str, dict[str, list[str]]]]


class DevicePlugins:
    """All device plugins of this node, and who has which of their devices; a PluginHandler.

    `on_change` is called when there is more or less of something; `is_ending` says of a pod's UID whether its
    containers are being ended.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock,
        on_change: Callable[[], None] = lambda: None,
        is_ending: Callable[[str], bool] = lambda uid: False,
    ) -> None:
        self._is_ending = is_ending
        self._folder = root / FOLDER
        self._clock, self._on_change = clock, on_change
        self._plugins: dict[str, _Plugin] = {}
        self._given: _Given = {}
        self._tasks = TaskGroup("device-plugins")
        self._watches: dict[str, Any] = {}
        self._server: Any = None
        self._choosing = asyncio.Lock()

    # ---- life

    async def start(self, live: Iterable[str]) -> None:
        """Listen for plugins. `live` are the UIDs of pods that may still hold devices."""
        from kone.runtime import device_messages
        from kone.runtime.grpc import GrpcServer

        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._given = _read(self._folder / CHECKPOINT)
        self.keep_only(live)
        for path in self._folder.iterdir():  # a plugin that sees its socket go registers again
            if path.is_socket():
                path.unlink(missing_ok=True)
        self._server = GrpcServer({device_messages.REGISTER: self._on_register})
        await self._server.start(self._folder / SOCKET)

    async def stop(self) -> None:
        await self._tasks.cancel()
        if self._server is not None:
            await self._server.stop()
            self._server = None
        for plugin in self._plugins.values():
            plugin.client.close()

    # ---- what there is

    def capacity(self) -> tuple[dict[str, int], dict[str, int]]:
        """What the node has and what of that it can give, by resource; 0 of what it had."""
        now = self._clock.monotonic()
        capacity, allocatable = {}, {}
        for resource, plugin in self._plugins.items():
            gone = plugin.stopped_at is not None and now - plugin.stopped_at >= STOPPED_S
            capacity[resource] = 0 if gone else len(plugin.devices)
            allocatable[resource] = 0 if gone else sum(plugin.devices.values())
        return capacity, allocatable

    # ---- giving

    async def choose(self, pod: Object) -> None:
        """Give a pod devices for all of its containers, once. Raises Unavailable and NotFreeYet, and then gives none.

        An init container's devices are its pod's: those of one that ends are given on to the next.
        """
        async with self._choosing:
            if uid_of(pod) not in self._given:
                await self._choose_for(pod)

    async def _choose_for(self, pod: Object) -> None:
        uid = uid_of(pod)
        given: dict[str, dict[str, list[str]]] = {}
        reusable: dict[str, list[str]] = {}
        for kind, container in all_containers(pod):
            for resource, wanted in self._asked(container).items():
                ids = await self._choose(resource, wanted, reusable.get(resource, []), given)
                given.setdefault(container["name"], {})[resource] = ids
                again = reusable.setdefault(resource, [])
                if kind == "init" and not is_sidecar(container):
                    again += [each for each in ids if each not in again]
                else:
                    reusable[resource] = [each for each in again if each not in ids]
        if given:
            self._given[uid] = given
            self._write()

    def _asked(self, container: Object) -> dict[str, int]:
        limits = amounts(dig(container, "resources", "limits"))
        return {name: count for name, count in limits.items() if count and name in self._plugins}

    async def _choose(
        self, resource: str, wanted: int, reusable: Sequence[str], own: Mapping[str, Mapping[str, Sequence[str]]]
    ) -> list[str]:
        plugin = self._plugins[resource]
        if plugin.devices and not any(plugin.devices.values()):
            raise Unavailable(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
        healthy = {each for each, is_healthy in plugin.devices.items() if is_healthy}
        ids = [each for each in reusable if each in healthy][:wanted]
        taken = {each for given in (*self._given.values(), own) for each in _of(given, resource)}
        free = sorted(healthy - taken)
        needed = wanted - len(ids)
        if needed > len(free):
            ending = {
                each for uid, given in self._given.items() if self._is_ending(uid) for each in _of(given, resource)
            }
            if needed <= len(free) + len(ending & healthy):
                raise NotFreeYet(f"devices of {resource} are let go by pods that are being ended")
            raise Unavailable(
                f"requested number of devices unavailable for {resource}. Requested: {needed}, Available: {len(free)}"
            )
        if needed and plugin.prefers:
            free = await self._preferred(resource, plugin, [*ids, *free], ids, wanted) or free
        return ids + [each for each in free if each not in ids][:needed]

    async def _preferred(
        self, resource: str, plugin: _Plugin, available: Sequence[str], must: Sequence[str], size: int
    ) -> list[str]:
        """Those that the plugin would rather give, of those that can be; none where it does not say. Raises
        Unavailable."""
        from kone.runtime import device_messages as messages

        ask = {"available_deviceIDs": available, "must_include_deviceIDs": must, "allocation_size": size}
        try:
            answer = await plugin.client.call(messages.PREFERRED, {"container_requests": [ask]}, timeout_s=CALL_S)
        except RpcError as error:
            raise Unavailable(f"device plugin GetPreferredAllocation rpc failed with err: {error}") from error
        found = dig(answer, "container_responses", 0, "deviceIDs", default=[])
        return [*(each for each in found if each in available), *(each for each in available if each not in found)]

    async def allotment(self, pod: Object, container: str) -> Allotment:
        """What a container's devices need in it, told by their plugins right before each start. Raises Unavailable."""
        from kone.runtime import device_messages as messages

        total = Allotment()
        for resource, ids in self._given.get(uid_of(pod), {}).get(container, {}).items():
            plugin = self._plugins.get(resource)
            if plugin is None or plugin.stopped_at is not None:
                raise Unavailable(f"endpoint not found in cache for a registered resource: {resource}")
            try:
                request = {"container_requests": [{"devices_ids": ids}]}
                answer = await plugin.client.call(messages.ALLOCATE, request, timeout_s=CALL_S)
                responses = answer.get("container_responses", [])
                if not responses:
                    raise Unavailable(f"no containers return in allocation response for {resource}")
                total += _allotment(responses[0])
                if plugin.pre_start:
                    await plugin.client.call(messages.PRE_START, {"devices_ids": ids}, timeout_s=CALL_S)
            except RpcError as error:
                raise Unavailable(f"rpc error of device plugin {resource}: {error}") from error
            except CdiError as error:
                raise Unavailable(str(error)) from error
        return total

    def given(self, pod_uid: str) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """The devices of a pod: ids by container and resource."""
        return self._given.get(pod_uid, {})

    def release(self, pod_uid: str) -> None:
        """The pod has ended."""
        if self._given.pop(pod_uid, None) is not None:
            self._write()

    def keep_only(self, pod_uids: Iterable[str]) -> None:
        kept = set(pod_uids)
        if gone := self._given.keys() - kept:
            self._given = {uid: given for uid, given in self._given.items() if uid not in gone}
            self._write()

    def _write(self) -> None:
        path = self._folder / CHECKPOINT
        fresh = path.with_name(path.name + ".new")
        try:
            fresh.write_text(json.dumps(self._given))
            fresh.rename(path)
        except OSError as error:
            log.error("which pods have which devices is not written: %s", error)

    # ---- registration

    async def _on_register(self, request: dict[str, Any]) -> dict[str, Any]:
        name, version = request.get("resource_name", ""), request.get("version", "")
        try:
            self.validate(name, "", [version])
        except PluginRefused as error:
            raise RpcError(INVALID_ARGUMENT, str(error)) from None
        endpoint = self._folder / Path(request.get("endpoint", "")).name
        options = request.get("options") or {}
        self._tasks.spawn(self._connect(name, endpoint, options), name=f"device-plugins.connect {name}")
        return {}

    def validate(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        if API_VERSION not in versions:
            said = " ".join(versions)
            raise PluginRefused(
                f"requested API version {said!r} is not supported by kubelet. Supported version is {API_VERSION!r}"
            )
        if not is_extended_name(name):
            raise PluginRefused(f"the ResourceName {name!r} is invalid")

    async def register(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        from kone.runtime import device_messages as messages
        from kone.runtime.grpc import Client

        client = Client(Path(endpoint))
        try:
            options = await client.call(messages.GET_OPTIONS, {}, timeout_s=CALL_S)
        except RpcError as error:
            raise PluginRefused(f"failed to get device plugin options: {error}") from None
        finally:
            client.close()
        await self._connect(name, Path(endpoint), options)

    async def deregister(self, name: str) -> None:
        if (watch := self._watches.pop(name, None)) is not None:
            watch.cancel()
        self._stopped(name)

    async def _connect(self, name: str, endpoint: Path, options: Mapping[str, Any]) -> None:
        from kone.runtime.grpc import Client

        await self.deregister(name)
        before = self._plugins.get(name)
        plugin = _Plugin(
            Client(endpoint),
            bool(options.get("pre_start_required")),
            bool(options.get("get_preferred_allocation_available")),
            {} if before is None else before.devices,
        )
        self._plugins[name] = plugin
        log.info("device plugin registered: resource=%s endpoint=%s", name, endpoint)
        self._watches[name] = self._tasks.spawn(self._watch(name, plugin), name=f"device-plugins.watch {name}")

    async def _watch(self, name: str, plugin: _Plugin) -> None:
        from kone.runtime import device_messages as messages

        try:
            async for answer in plugin.client.stream(messages.LIST_AND_WATCH, {}):
                plugin.devices = {
                    device["ID"]: device.get("health") == messages.HEALTHY for device in answer.get("devices", ())
                }
                self._on_change()
        except RpcError as error:
            log.warning("device plugin of %s is gone: %s", name, error)
        if self._plugins.get(name) is plugin:
            self._stopped(name)
            await self._clock.sleep(STOPPED_S)
            self._on_change()

    def _stopped(self, name: str) -> None:
        plugin = self._plugins.get(name)
        if plugin is None or plugin.stopped_at is not None:
            return
        plugin.client.close()
        plugin.stopped_at = self._clock.monotonic()
        plugin.devices = dict.fromkeys(plugin.devices, False)
        self._on_change()


def _of(given: Mapping[str, Mapping[str, Sequence[str]]], resource: str) -> set[str]:
    """The devices of one resource that a pod has."""
    return {each for resources in given.values() for each in resources.get(resource, ())}


def _allotment(response: Mapping[str, Any]) -> Allotment:
    own = Allotment(
        tuple(
            Device(device["host_path"], device["container_path"], device.get("permissions") or "mrw")
            for device in response.get("devices", ())
        ),
        tuple(
            Mount(mount["container_path"], mount["host_path"], read_only=bool(mount.get("read_only")))
            for mount in response.get("mounts", ())
        ),
        tuple(sorted(response.get("envs", {}).items())),
    )
    return own + cdi.allotment(device["name"] for device in response.get("cdi_devices", ()))


def _read(path: Path) -> _Given:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.error("which pods have which devices cannot be read: %s", error)
        return {}
    return found if isinstance(found, dict) else {}
