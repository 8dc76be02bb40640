"""The Cluster: a node without its node-bound parts, started in the running event loop."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kone.aio.clock import Clock
from kone.client.client import Client
from kone.config import Settings, resolve
from kone.node import Node


class Cluster:
    """An async context manager. `client` acts as an administrator; `kubeconfig` is for programs that speak HTTPS.

    `settings` are further settings of the node by their names, e.g. `audit_policy_file=…` (docs/configuration.md).
    """

    def __init__(
        self, *, controllers: bool = True, scheduler: bool = True, clock: Clock | None = None, **settings: Any
    ) -> None:
        self._settings = settings
        self._disable = ["kubelet", "proxy", "dns"]
        if not controllers:
            self._disable.append("controllers")
        if not scheduler:
            self._disable.append("scheduler")
        self._clock = clock
        self._folder: Path | None = None
        self._node: Node | None = None

    @property
    def node(self) -> Node:
        """The running node. Raises RuntimeError outside the context."""
        if self._node is None:
            raise RuntimeError("the cluster runs only inside `async with`")
        return self._node

    @property
    def client(self) -> Client:
        return self.node.client

    @property
    def url(self) -> str:
        return self.node.url

    @property
    def kubeconfig(self) -> Path:
        return self.node.settings.kubeconfig_path

    async def __aenter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="kone-cluster-"))
        given: dict[str, Any] = {
            "data_dir": str(self._folder),
            "bind_address": "127.0.0.1",
            "secure_port": 0,
            "node_ip": "127.0.0.1",
            "datastore": "memory://",
            "disable": ",".join(self._disable),
        } | self._settings
        try:
            node = Node(resolve(Settings(**given)), clock=self._clock)
            await node.start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._node = node
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        node, self._node = self._node, None
        if node is not None:
            await node.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
