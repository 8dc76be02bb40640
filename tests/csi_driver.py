"""A CSI driver for tests: its node service and its registration, on Unix sockets, with directories for volumes.

A volume is a directory (or a file, for a block device) of the driver's own; staging notes it down, publishing binds it
to the target. `refuse` makes calls fail; `calls` remembers each with what it was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kone.apimachinery.messages import Message
from kone.runtime import csi_messages, mounts, plugin_watcher
from kone.runtime.grpc import GrpcServer, Method
from kone.runtime.grpc_status import INTERNAL, RpcError

Content = dict[str, Any]


@dataclass
class CsiDriver:
    """`start` serves; `register` makes the driver known to the kubelet whose directory that is."""

    folder: Path
    """The driver's own: its sockets and volumes."""
    name: str = "test.csi.kone.dev"
    node_id: str = "node-1"
    abilities: tuple[int, ...] = (csi_messages.STAGE_UNSTAGE_VOLUME,)
    topology: dict[str, str] = field(default_factory=dict)
    max_volumes: int = 0
    versions: tuple[str, ...] = ("1.0.0",)
    root: Path | None = None
    """Where paths that it is told are found; None: where they say."""
    calls: list[tuple[str, Content]] = field(default_factory=list)
    refuse: dict[str, RpcError] = field(default_factory=dict)
    told: list[Content] = field(default_factory=list)
    """What came of its registrations."""

    def __post_init__(self) -> None:
        m = csi_messages
        self._server = GrpcServer(
            {
                m.GET_INFO: self._get_info,
                m.GET_CAPABILITIES: self._get_capabilities,
                m.STAGE: self._stage,
                m.UNSTAGE: self._unstage,
                m.PUBLISH: self._publish,
                m.UNPUBLISH: self._unpublish,
                m.EXPAND: self._expand,
                m.GET_STATS: self._stats,
            }
        )
        w = plugin_watcher
        self._registrar = GrpcServer(
            {
                Method(w.GET_INFO, w.INFO_REQUEST, w.PLUGIN_INFO): self._info,
                Method(w.NOTIFY, w.REGISTRATION_STATUS, Message({})): self._notified,
            }
        )

    @property
    def socket(self) -> Path:
        return self.folder / "csi.sock"

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        await self._server.start(self.socket)

    async def register(self, kubelet_root: Path) -> None:
        registry = kubelet_root / plugin_watcher.FOLDER
        registry.mkdir(parents=True, exist_ok=True)
        await self._registrar.start(registry / f"{self.name}-reg.sock")
        self._registration = registry / f"{self.name}-reg.sock"

    async def unregister(self) -> None:
        """As when the registrar's container ends: its socket is gone."""
        await self._registrar.stop()
        self._registration.unlink(missing_ok=True)

    async def stop(self) -> None:
        await self._server.stop()

    def called(self, method: str) -> list[Content]:
        return [request for name, request in self.calls if name == method]

    def volume(self, handle: str) -> Path:
        return self.folder / "volumes" / handle

    def _note(self, method: str, request: Content) -> None:
        self.calls.append((method, request))
        if (error := self.refuse.get(method)) is not None:
            raise error

    def _at(self, path: str) -> Path:
        return Path(path) if self.root is None else self.root / path.lstrip("/")

    # Registration

    async def _info(self, request: Content) -> Content:
        return {
            "type": "CSIPlugin",
            "name": self.name,
            "endpoint": str(self.socket),
            "supported_versions": list(self.versions),
        }

    async def _notified(self, request: Content) -> Content:
        self.told.append(request)
        return {}

    # Node

    async def _get_info(self, request: Content) -> Content:
        self._note("NodeGetInfo", request)
        answer: Content = {"node_id": self.node_id, "max_volumes_per_node": self.max_volumes}
        if self.topology:
            answer["accessible_topology"] = {"segments": self.topology}
        return answer

    async def _get_capabilities(self, request: Content) -> Content:
        return {"capabilities": [{"rpc": {"type": ability}} for ability in self.abilities]}

    async def _stage(self, request: Content) -> Content:
        self._note("NodeStageVolume", request)
        if not self._at(request["staging_target_path"]).is_dir():
            raise RpcError(INTERNAL, "the staging path is not there")
        return {}

    async def _unstage(self, request: Content) -> Content:
        self._note("NodeUnstageVolume", request)
        return {}

    async def _publish(self, request: Content) -> Content:
        self._note("NodePublishVolume", request)
        target = self._at(request["target_path"])
        source = self.volume(request["volume_id"])
        if "block" in request["volume_capability"]:
            if not target.exists():
                target.touch()
                mounts.bind(str(source), str(target))
            return {}
        source.mkdir(parents=True, exist_ok=True)
        for key, value in request.get("volume_context", {}).items():
            (source / key.replace("/", "_")).write_text(value)
        target.mkdir(exist_ok=True)
        if not mounts.is_mount_point(str(target)):
            mounts.bind(str(source), str(target))
        return {}

    async def _unpublish(self, request: Content) -> Content:
        self._note("NodeUnpublishVolume", request)
        target = self._at(request["target_path"])
        if mounts.is_mount_point(str(target)):
            mounts.unmount(str(target))
        with contextlib.suppress(FileNotFoundError):
            if target.is_dir():
                target.rmdir()
            else:
                target.unlink()
        return {}

    async def _expand(self, request: Content) -> Content:
        self._note("NodeExpandVolume", request)
        return {"capacity_bytes": request.get("capacity_range", {}).get("required_bytes", 0)}

    async def _stats(self, request: Content) -> Content:
        self._note("NodeGetVolumeStats", request)
        disk = os.statvfs(self._at(request["volume_path"]))
        return {
            "usage": [
                {"unit": csi_messages.BYTES, "total": 1000, "used": 100, "available": 900},
                {"unit": csi_messages.INODES, "total": disk.f_files, "used": 1, "available": disk.f_ffree},
            ]
        }


async def serve(kubelet_root: Path, folder: Path, name: str) -> None:
    """A driver as a process of its own, until it is ended."""
    driver = CsiDriver(folder, name=name)
    await driver.start()
    await driver.register(kubelet_root)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
