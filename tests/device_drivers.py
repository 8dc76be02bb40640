"""A device plugin and a driver of dynamic resources for tests, each with its service and registration on Unix sockets.

Their devices are the host's /dev/null under other names, so that they are there everywhere. `calls` remembers each call
with what it was told, `refuse` makes calls fail.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kone.apimachinery.messages import Message
from kone.runtime import device_messages, dra_messages, plugin_watcher
from kone.runtime.grpc import Client, GrpcServer, Method
from kone.runtime.grpc_status import INTERNAL, RpcError

Content = dict[str, Any]


@dataclass
class DevicePlugin:
    """`start` serves and registers with the kubelet whose directory that is; `show` changes what it has."""

    kubelet: Path
    resource: str = "kone.test/widget"
    devices: dict[str, str] = field(default_factory=lambda: {"w0": "Healthy", "w1": "Healthy"})
    options: Content = field(default_factory=dict)
    calls: list[tuple[str, Content]] = field(default_factory=list)
    refuse: dict[str, str] = field(default_factory=dict)
    watchers: int = 0

    def __post_init__(self) -> None:
        m = device_messages
        self._changed = asyncio.Event()
        self._server = GrpcServer(
            {
                m.GET_OPTIONS: self._options,
                m.LIST_AND_WATCH: self._list_and_watch,
                m.PREFERRED: self._preferred,
                m.ALLOCATE: self._allocate,
                m.PRE_START: self._pre_start,
            }
        )

    @property
    def socket(self) -> Path:
        return self.kubelet / "device-plugins" / "widget.sock"

    async def start(self) -> None:
        await self._server.start(self.socket)
        await self.register()

    async def register(self, version: str = "v1beta1") -> None:
        """Raises RpcError."""
        kubelet = Client(self.kubelet / "device-plugins" / "kubelet.sock")
        request = {
            "version": version,
            "endpoint": self.socket.name,
            "resource_name": self.resource,
            "options": self.options,
        }
        try:
            await kubelet.call(device_messages.REGISTER, request, timeout_s=10)
        finally:
            kubelet.close()

    async def stop(self) -> None:
        await self._server.stop()

    def show(self, **devices: str) -> None:
        self.devices = devices
        self._changed.set()

    def _told(self, name: str, request: Content) -> None:
        self.calls.append((name, request))
        if name in self.refuse:
            raise RpcError(INTERNAL, self.refuse[name])

    async def _options(self, request: Content) -> Content:
        return self.options

    async def _list_and_watch(self, request: Content) -> AsyncIterator[Content]:
        self.watchers += 1
        while True:
            self._changed.clear()
            yield {"devices": [{"ID": name, "health": health} for name, health in self.devices.items()]}
            await self._changed.wait()

    async def _preferred(self, request: Content) -> Content:
        """The last ones."""
        self._told("preferred", request)
        [ask] = request["container_requests"]
        best = sorted(ask["available_deviceIDs"], reverse=True)[: ask["allocation_size"]]
        return {"container_responses": [{"deviceIDs": best}]}

    async def _allocate(self, request: Content) -> Content:
        self._told("allocate", request)
        [ask] = request["container_requests"]
        ids = ask["devices_ids"]
        nodes = [
            {"host_path": "/dev/null", "container_path": f"/dev/widget-{name}", "permissions": "rw"} for name in ids
        ]
        mount = {"container_path": "/widgets", "host_path": str(self.kubelet), "read_only": True}
        return {"container_responses": [{"envs": {"WIDGETS": ",".join(ids)}, "devices": nodes, "mounts": [mount]}]}

    async def _pre_start(self, request: Content) -> Content:
        self._told("pre_start", request)
        return {}


@dataclass
class DraDriver:
    """A driver whose devices are CDI devices of `cdi`, a directory for specifications."""

    folder: Path
    cdi: Path
    name: str = "dra.kone.test"
    version: str = "v1"
    calls: list[tuple[str, Content]] = field(default_factory=list)
    refuse: dict[str, str] = field(default_factory=dict)
    told: list[Content] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = GrpcServer(
            {
                dra_messages.prepare(self.version): self._prepare,
                dra_messages.unprepare(self.version): self._unprepare,
            }
        )
        self._registration = GrpcServer(
            {
                Method(plugin_watcher.GET_INFO, plugin_watcher.INFO_REQUEST, plugin_watcher.PLUGIN_INFO): self._info,
                Method(plugin_watcher.NOTIFY, plugin_watcher.REGISTRATION_STATUS, Message({})): self._status,
            }
        )

    @property
    def socket(self) -> Path:
        return self.folder / "dra.sock"

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        await self._server.start(self.socket)

    async def register(self, kubelet: Path) -> None:
        folder = kubelet / plugin_watcher.FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        await self._registration.start(folder / f"{self.name}.sock")

    async def unregister(self, kubelet: Path) -> None:
        await self._registration.stop()
        (kubelet / plugin_watcher.FOLDER / f"{self.name}.sock").unlink(missing_ok=True)

    async def stop(self) -> None:
        await self._server.stop()

    async def _info(self, request: Content) -> Content:
        service = f"{self.version}.DRAPlugin"
        return {"type": "DRAPlugin", "name": self.name, "endpoint": str(self.socket), "supported_versions": [service]}

    async def _status(self, request: Content) -> Content:
        self.told.append(request)
        return {}

    def _spec(self, uid: str) -> Path:
        return self.cdi / f"kone.test-{uid}.json"

    async def _prepare(self, request: Content) -> Content:
        self.calls.append(("prepare", request))
        answers = []
        for claim in request["claims"]:
            uid = claim["uid"]
            if why := self.refuse.get("prepare"):
                answers.append({"key": uid, "value": {"error": why}})
                continue
            edits = {
                "env": [f"CLAIM={claim['name']}"],
                "deviceNodes": [{"path": "/dev/claimed", "hostPath": "/dev/null", "permissions": "rw"}],
                "additionalGids": [4242],
            }
            spec = {
                "cdiVersion": "0.6.0",
                "kind": "kone.test/claim",
                "devices": [{"name": uid, "containerEdits": edits}],
            }
            self.cdi.mkdir(parents=True, exist_ok=True)
            self._spec(uid).write_text(json.dumps(spec))
            device = {"pool_name": "p", "device_name": "d", "cdi_device_ids": [f"kone.test/claim={uid}"]}
            answers.append({"key": uid, "value": {"devices": [device]}})
        return {"claims": answers}

    async def _unprepare(self, request: Content) -> Content:
        self.calls.append(("unprepare", request))
        why = self.refuse.get("unprepare", "")
        for claim in request["claims"]:
            if not why:
                self._spec(claim["uid"]).unlink(missing_ok=True)
        return {"claims": [{"key": claim["uid"], "value": {"error": why}} for claim in request["claims"]]}


async def serve(kubelet: Path, folder: Path) -> None:
    """Both, for the kubelet of that directory, until it is killed; calls are printed."""
    plugin, driver = DevicePlugin(kubelet), DraDriver(folder, Path("/var/run/cdi"))
    await plugin.start()
    await driver.start()
    await driver.register(kubelet)
    shown = 0
    while True:
        for name, request in driver.calls[shown:]:
            print(name, json.dumps(request), flush=True)
        shown = len(driver.calls)
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
