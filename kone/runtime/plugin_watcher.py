"""Plugins of the node make themselves known by a socket in <kubelet>/plugins_registry; this is who looks there.

Each socket is asked who it belongs to (pluginregistration, GetInfo), its handler validates and registers it, and the
plugin is told what came of it. A socket that is gone, or was made anew, ends the registration. What fails is tried
again, 0.5 s doubling to 122 s. Rules and texts: kubernetes/pkg/kubelet/pluginmanager.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.messages import Message
from kone.runtime.grpc_status import RpcError
from kone.runtime.inotify import DirectoryWatch

log = logging.getLogger(__name__)

FOLDER: Final = "plugins_registry"
INFO_TIMEOUT_S: Final = 1.0
NOTIFY_TIMEOUT_S: Final = 5.0
RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 122.0
POLL_S: Final = 5.0

INFO_REQUEST: Final = Message({})
PLUGIN_INFO: Final = Message(
    {1: ("type", str), 2: ("name", str), 3: ("endpoint", str), 4: ("supported_versions", [str])}
)
REGISTRATION_STATUS: Final = Message({1: ("plugin_registered", bool), 2: ("error", str)})
GET_INFO: Final = "/pluginregistration.Registration/GetInfo"
NOTIFY: Final = "/pluginregistration.Registration/NotifyRegistrationStatus"


class PluginRefused(Exception):
    """A plugin cannot be registered; it is told why."""


class PluginHandler(Protocol):
    """What one type of plugins is registered with."""

    def validate(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        """Raises PluginRefused."""

    async def register(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        """Raises PluginRefused."""

    async def deregister(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Registered:
    made: int  # when the socket was made, in ns
    handler: PluginHandler
    name: str


@dataclass(slots=True)
class _Failed:
    made: int
    delay_s: float
    next_at: float  # monotonic


class PluginWatcher:
    """Keeps registrations equal to the sockets that are there. `handlers` are by type: "CSIPlugin"."""

    def __init__(self, root: Path, clock: Clock, handlers: Mapping[str, PluginHandler]) -> None:
        self._folder = root / FOLDER
        self._clock = clock
        self._handlers = handlers
        self._registered: dict[Path, _Registered] = {}
        self._failed: dict[Path, _Failed] = {}
        self._tasks = TaskGroup("plugins")
        self._changed = asyncio.Event()
        self._watch: DirectoryWatch | None = None

    async def start(self) -> None:
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        try:
            self._watch = DirectoryWatch(self._changed.set)
        except OSError as error:  # the host has no inotify instance left
            log.warning("plugins are looked for every %.0f s: inotify: %s", POLL_S, error)
            self._tasks.guard(self._poll, name="plugins.poll")
        self._changed.set()
        self._tasks.guard(self._keep_looking, name="plugins.look")

    async def stop(self) -> None:
        """Stop looking; plugins stay as they are."""
        await self._tasks.cancel()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    async def _keep_looking(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._look()

    async def _poll(self) -> None:
        while True:
            await self._clock.sleep(POLL_S)
            self._changed.set()

    async def _look(self) -> None:
        there = dict(self._sockets())
        for path, known in list(self._registered.items()):
            if there.get(path) != known.made:
                del self._registered[path]
                log.info("plugin %s is gone: %s", known.name, path)
                await known.handler.deregister(known.name)
        now = self._clock.monotonic()
        for path in [path for path, failed in self._failed.items() if there.get(path) != failed.made]:
            del self._failed[path]
        for path, made in there.items():
            failed = self._failed.get(path)
            if path in self._registered or (failed is not None and now < failed.next_at):
                continue
            try:
                await self._register(path, made)
            except (PluginRefused, RpcError) as error:
                self._try_later(path, made, str(error))
            else:
                self._failed.pop(path, None)

    def _sockets(self) -> Iterator[tuple[Path, int]]:
        """Every socket below the folder and when it was made; names that begin with a dot are left out."""
        for place, names, files in os.walk(self._folder):
            names[:] = [name for name in names if not name.startswith(".")]
            try:
                if self._watch is not None:
                    self._watch.add(Path(place))
            except FileNotFoundError:
                continue  # gone meanwhile
            except OSError as error:  # the host has no watch left
                log.warning("plugins in %s are not seen at once: inotify: %s", place, error)
            for name in files:
                path = Path(place, name)
                try:
                    state = path.lstat()
                except FileNotFoundError:
                    continue
                if stat.S_ISSOCK(state.st_mode) and not name.startswith("."):
                    yield path, state.st_ctime_ns

    def _try_later(self, path: Path, made: int, why: str) -> None:
        before = self._failed.get(path)
        delay_s = RETRY_FIRST_S if before is None else min(before.delay_s * 2, RETRY_MAX_S)
        log.warning("no plugin registered at %s: %s; tried again in %.3g s", path, why, delay_s)
        self._failed[path] = _Failed(made, delay_s, self._clock.monotonic() + delay_s)
        self._tasks.spawn(self._look_after(delay_s), name="plugins.retry")

    async def _look_after(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._changed.set()

    async def _register(self, path: Path, made: int) -> None:
        from kone.runtime.grpc import Client, Method  # few nodes have plugins

        client = Client(path)
        try:
            get_info = Method(GET_INFO, INFO_REQUEST, PLUGIN_INFO)
            info = await client.call(get_info, {}, timeout_s=INFO_TIMEOUT_S)
            notify = Method(NOTIFY, REGISTRATION_STATUS, Message({}))
            why = ""
            try:
                self._registered[path] = await self._registration(path, made, info)
            except PluginRefused as error:
                why = str(error)
            status: dict[str, Any] = {"plugin_registered": not why, "error": why}
            try:
                await client.call(notify, status, timeout_s=NOTIFY_TIMEOUT_S)
            except RpcError as error:
                if not why:
                    known = self._registered.pop(path)
                    await known.handler.deregister(known.name)
                raise PluginRefused(f"RegisterPlugin error -- failed to send registration status: {error}") from None
            if why:
                raise PluginRefused(why)
        finally:
            client.close()

    async def _registration(self, path: Path, made: int, info: Mapping[str, Any]) -> _Registered:
        kind, name = info.get("type", ""), info.get("name", "")
        handler = self._handlers.get(kind)
        if handler is None:
            raise PluginRefused(
                f"RegisterPlugin error -- no handler registered for plugin type: {kind} at socket {path}"
            )
        endpoint = info.get("endpoint") or str(path)
        versions = info.get("supported_versions", [])
        try:
            handler.validate(name, endpoint, versions)
        except PluginRefused as error:
            raise PluginRefused(f"RegisterPlugin error -- plugin validation failed with err: {error}") from None
        try:
            await handler.register(name, endpoint, versions)
        except PluginRefused as error:
            raise PluginRefused(f"RegisterPlugin error -- plugin registration failed with err: {error}") from None
        log.info("plugin registered: type=%s name=%s endpoint=%s", kind, name, endpoint)
        return _Registered(made, handler, name)
