"""CSI drivers of this node: registered by their sockets, told to the API by the node's CSINode, called when volumes
need them.

A driver's answer to NodeGetInfo becomes its entry in the CSINode (id, topology, how many volumes), labels of the node
for its topology, and the node's annotation of ids. Rules and texts: kubernetes/pkg/volume/csi (csi_plugin.go) and its
nodeinfomanager.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CSIDRIVERS, CSINODES, NODES
from kone.apimachinery.objects import Object, annotations_of, dig, labels_of, uid_of
from kone.client.client import Client
from kone.runtime.grpc_status import RpcError
from kone.runtime.plugin_watcher import PluginRefused

log = logging.getLogger(__name__)

PLUGIN_TYPE: Final = "CSIPlugin"
CALL_TIMEOUT_S: Final = 120.0
NODE_IDS: Final = "csi.volume.kubernetes.io/nodeid"
MIGRATED: Final = "storage.alpha.kubernetes.io/migrated-plugins"
MIGRATED_PLUGINS: Final = (
    "kubernetes.io/aws-ebs",
    "kubernetes.io/azure-disk",
    "kubernetes.io/azure-file",
    "kubernetes.io/cinder",
    "kubernetes.io/gce-pd",
    "kubernetes.io/portworx-volume",
    "kubernetes.io/vsphere-volume",
)
"""In-tree kinds that only exist as CSI drivers any more."""
MAX_COUNT: Final = (1 << 31) - 1
RETRY_S: Final = 2.0
TRIES: Final = 5  # of a write that somebody else was faster with

Request = Mapping[str, Any]


class DriverMissing(Exception):
    """No driver of that name is registered."""

    def __init__(self, name: str) -> None:
        super().__init__(f"driver name {name} not found in the list of registered CSI drivers")


class Driver:
    """The node service of one driver. Its calls raise RpcError."""

    def __init__(self, name: str, endpoint: str, version: tuple[int, ...]) -> None:
        from kone.runtime.grpc import Client as GrpcClient  # few nodes have plugins

        self.name, self.version = name, version
        self._client = GrpcClient(Path(endpoint))

    def close(self) -> None:
        self._client.close()

    async def call(self, method: str, request: Request) -> dict[str, Any]:
        """A call of the method of that constant in csi_messages: "STAGE", "PUBLISH", ..."""
        from kone.runtime import csi_messages

        return await self._client.call(getattr(csi_messages, method), request, timeout_s=CALL_TIMEOUT_S)

    async def capabilities(self) -> frozenset[int]:
        """The numbers of csi_messages' node capabilities that the driver has."""
        answer = await self.call("GET_CAPABILITIES", {})
        return frozenset(dig(capability, "rpc", "type", default=0) for capability in answer.get("capabilities", ()))


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What a driver says of itself and this node."""

    node_id: str
    max_volumes: int
    topology: Mapping[str, str]


def parse_versions(caller: str, name: str, versions: Sequence[str]) -> tuple[int, ...]:
    """The highest version that a kubelet of v1.37 speaks: 1.x. Raises PluginRefused."""
    what = f"kubernetes.io/csi: {caller} for CSI driver {json.dumps(name)} failed."
    if not versions:
        raise PluginRefused(f"{what} Plugin returned an empty list for supported versions")
    found = []
    for version in versions:
        match = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-+].*)?", version)
        if match is not None and match[1] == "1":
            found.append(tuple(int(part or 0) for part in match.groups()))
    if not found:
        shown = "[" + " ".join(json.dumps(version) for version in versions) + "]"
        why = "no supported versions reported"
        raise PluginRefused(f"{what} None of the versions specified {shown} are supported. err={why}")
    return max(found)


class CsiDrivers:
    """The drivers that are registered, by name; a PluginHandler. `on_change` is called after each change."""

    def __init__(self, client: Client, node_name: str, clock: Clock) -> None:
        self._client, self._node_name, self._clock = client, node_name, clock
        self._drivers: dict[str, Driver] = {}
        self._tasks = TaskGroup("csi-drivers")
        self.on_change: Callable[[], None] = lambda: None

    async def start(self) -> None:
        await self._client.informer(CSIDRIVERS).wait_synced()
        self._tasks.spawn(self._ensure_csi_node(), name="csi-drivers.csinode")

    async def stop(self) -> None:
        await self._tasks.cancel()
        for driver in self._drivers.values():
            driver.close()
        self._drivers.clear()

    def get(self, name: str) -> Driver:
        """Raises DriverMissing."""
        found = self._drivers.get(name)
        if found is None:
            raise DriverMissing(name)
        return found

    def spec_of(self, name: str) -> Object | None:
        """The spec of the driver's CSIDriver object, where there is one."""
        found = self._client.informer(CSIDRIVERS).get("", name)
        return found["spec"] if found is not None else None

    # ---- PluginHandler

    def validate(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        try:
            self._accept("ValidatePlugin", name, versions)
        except PluginRefused as error:
            what = f"validation failed for CSI Driver {name} at endpoint {endpoint}"
            raise PluginRefused(f"{what}: {error}") from None

    async def register(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        version = self._accept("RegisterPlugin", name, versions)
        driver = Driver(name, endpoint, version)
        try:
            answer = await self._ask(driver)
            await self._install(name, answer)
        except (RpcError, StatusError, PluginRefused) as error:
            driver.close()
            raise PluginRefused(str(error)) from None
        if (before := self._drivers.pop(name, None)) is not None:
            before.close()
        self._drivers[name] = driver
        self._tasks.spawn(self._keep_count(driver), name=f"csi-drivers.count/{name}")
        self.on_change()

    async def deregister(self, name: str) -> None:
        driver = self._drivers.pop(name, None)
        if driver is None:
            return
        driver.close()
        try:
            await self._write_csi_node(lambda csi_node: without_driver(csi_node, name))
            await self._patch_node(lambda node: forgotten(node, name))
        except StatusError as error:
            log.warning("CSI driver %s is gone, and the API still names it: %s", name, error)
        self.on_change()

    def _accept(self, caller: str, name: str, versions: Sequence[str]) -> tuple[int, ...]:
        version = parse_versions(caller, name, versions)
        known = self._drivers.get(name)
        if known is not None and known.version >= version:
            shown = json.dumps(".".join(str(part) for part in known.version))
            raise PluginRefused(
                f"kubernetes.io/csi: {caller} for CSI driver {json.dumps(name)} failed. Another driver with the same "
                f"name is already registered with a higher supported version: {shown}"
            )
        return version

    async def _ask(self, driver: Driver) -> NodeAnswer:
        answer = await driver.call("GET_INFO", {})
        topology = dig(answer, "accessible_topology", "segments", default={})
        return NodeAnswer(answer.get("node_id", ""), answer.get("max_volumes_per_node", 0), topology)

    async def _install(self, name: str, answer: NodeAnswer) -> None:
        if not answer.node_id:
            raise PluginRefused("error adding CSI driver node info: driverNodeID must not be empty")
        await self._patch_node(lambda node: introduced(node, name, answer))
        await self._write_csi_node(lambda csi_node: with_driver(csi_node, name, answer))

    async def _keep_count(self, driver: Driver) -> None:
        """Ask again how many volumes the node may have, as often as the CSIDriver says (0: never)."""
        while self._drivers.get(driver.name) is driver:
            period_s = (self.spec_of(driver.name) or {}).get("nodeAllocatableUpdatePeriodSeconds") or 0
            await self._clock.sleep(period_s or 60.0)
            if period_s and self._drivers.get(driver.name) is driver:
                await self.refresh_count(driver.name)

    async def refresh_count(self, name: str) -> None:
        """Ask the driver anew how many volumes the node may have, and tell the API."""
        try:
            answer = await self._ask(self.get(name))
            await self._write_csi_node(lambda csi_node: with_driver(csi_node, name, answer))
        except (DriverMissing, RpcError, StatusError) as error:
            log.warning("CSI driver %s: the CSINode is not renewed: %s", name, error)

    # ---- the API

    async def _ensure_csi_node(self) -> None:
        while True:
            try:
                return await self._write_csi_node(lambda csi_node: csi_node)
            except StatusError as error:
                log.warning("the node's CSINode is not there yet: %s", error)
            await self._clock.sleep(RETRY_S)

    async def _write_csi_node(self, change: Callable[[Object], Object]) -> None:
        """Make the node's CSINode what `change` makes of it; it is the node's of now, not of one of the same name."""
        for left in reversed(range(TRIES)):
            try:
                await self._try_csi_node(change)
                break
            except StatusError as error:
                if error.code != 409 or not left:
                    raise

    async def _try_csi_node(self, change: Callable[[Object], Object]) -> None:
        node = await self._client.get(NODES, self._node_name)
        try:
            found = await self._client.get(CSINODES, self._node_name)
            if not any(ref.get("uid") == uid_of(node) for ref in dig(found, "metadata", "ownerReferences", default=())):
                await self._client.delete(CSINODES, self._node_name, uid=uid_of(found))
                found = await self._client.create(CSINODES, new_csi_node(node))
        except StatusError as error:
            if error.code != 404:
                raise
            found = await self._client.create(CSINODES, new_csi_node(node))
        changed = change(found)
        if changed != found:
            await self._client.update(CSINODES, changed)

    async def _patch_node(self, change: Callable[[Object], Object]) -> None:
        node = await self._client.get(NODES, self._node_name)
        if patch := change(node):
            await self._client.patch(NODES, self._node_name, {"metadata": patch})


# ---- pure


def new_csi_node(node: Object) -> Object:
    owner = {"apiVersion": "v1", "kind": "Node", "name": node["metadata"]["name"], "uid": uid_of(node)}
    metadata = {
        "name": node["metadata"]["name"],
        "annotations": {MIGRATED: ",".join(MIGRATED_PLUGINS)},
        "ownerReferences": [owner],
    }
    return {"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": metadata, "spec": {"drivers": []}}


def with_driver(csi_node: Object, name: str, answer: NodeAnswer) -> Object:
    """The CSINode with the driver's entry; the same where it has it."""
    entry: dict[str, Any] = {"name": name, "nodeID": answer.node_id, "topologyKeys": sorted(answer.topology)}
    if answer.max_volumes > 0:
        entry["allocatable"] = {"count": min(answer.max_volumes, MAX_COUNT)}
    drivers = csi_node["spec"].get("drivers") or []
    before = next((driver for driver in drivers if driver["name"] == name), None)
    if before is not None and {**before, "topologyKeys": sorted(before.get("topologyKeys") or ())} == entry:
        return csi_node
    kept = [driver for driver in drivers if driver["name"] != name]
    return {**csi_node, "spec": {**csi_node["spec"], "drivers": [*kept, entry]}}


def without_driver(csi_node: Object, name: str) -> Object:
    drivers = csi_node["spec"].get("drivers") or []
    kept = [driver for driver in drivers if driver["name"] != name]
    return csi_node if kept == drivers else {**csi_node, "spec": {**csi_node["spec"], "drivers": kept}}


def introduced(node: Object, name: str, answer: NodeAnswer) -> Object:
    """The patch of the node's metadata that names the driver; empty where nothing is to change.

    Raises PluginRefused where the driver's topology contradicts the node's labels.
    """
    patch: dict[str, Any] = {}
    ids = _node_ids(node)
    if ids.get(name) != answer.node_id:
        patch["annotations"] = {NODE_IDS: _compact({**ids, name: answer.node_id})}
    labels = labels_of(node)
    for key, value in answer.topology.items():
        if labels.get(key, value) != value:
            told, there = f'"{key}":"{value}"', f'"{key}":"{labels[key]}"'
            raise PluginRefused(
                f"error updating Node object with CSI driver node info: detected topology value collision: driver "
                f"reported {told} but existing label is {there}"
            )
    if missing := {key: value for key, value in answer.topology.items() if key not in labels}:
        patch["labels"] = missing
    return patch


def forgotten(node: Object, name: str) -> Object:
    """The patch of the node's metadata that takes the driver's id back; its topology stays, as upstream leaves it."""
    ids = _node_ids(node)
    if name not in ids:
        return {}
    left = {key: value for key, value in ids.items() if key != name}
    return {"annotations": {NODE_IDS: _compact(left) if left else None}}


def _node_ids(node: Object) -> dict[str, str]:
    try:
        found = json.loads(annotations_of(node).get(NODE_IDS) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _compact(ids: Mapping[str, str]) -> str:
    """As Go writes a map: sorted, without spaces."""
    return json.dumps(dict(sorted(ids.items())), separators=(",", ":"))
