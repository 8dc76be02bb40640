"""The kubelet: pods bound to this node, made so by Docker.

It starts in an order with reasons: the node registers first (the API shows why it is not ready while Docker is away),
then the runtime, then what pods need of the host; the list of what runs comes before any pod is looked at, since a pod
whose containers are not seen would be started twice; the workers come last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kone.aio.clock import Clock
from kone.aio.tasks import TaskGroup
from kone.apimachinery.kinds import NODES, SERVICES
from kone.apimachinery.objects import (
    Object,
    dig,
    is_deleting,
    is_pod_terminal,
    replace_in,
    uid_of,
)
from kone.apimachinery.pod_resources import Amounts, amounts
from kone.client.client import Client, EventType, Informer, Unsubscribe
from kone.client.events import EventRecorder
from kone.runtime import csi_drivers, device_plugins, dra, kubelet_home
from kone.runtime.backoff import Backoff
from kone.runtime.cgroups import Cgroups
from kone.runtime.configz import kubelet_configuration
from kone.runtime.container_config import GRACE_PERIOD
from kone.runtime.credential_providers import CredentialProviders
from kone.runtime.csi_drivers import CsiDrivers
from kone.runtime.csi_expansion import CsiExpansion
from kone.runtime.csi_volumes import CsiVolumes
from kone.runtime.device_plugins import DevicePlugins
from kone.runtime.dra import DynamicResources, NotPrepared
from kone.runtime.environment import PodFacts, field_value, resource_value
from kone.runtime.eviction import Eviction, Host
from kone.runtime.handlers import Handlers
from kone.runtime.image_gc import ImageGc, ImageRecords
from kone.runtime.image_volumes import ImageVolumes
from kone.runtime.images import ImageManager
from kone.runtime.kubelet_config import KubeletConfig
from kone.runtime.kubelet_parts import KubeletParts
from kone.runtime.lifecycle import Hooks
from kone.runtime.manifests import Manifests, ReadPod
from kone.runtime.meters import Meters, metered
from kone.runtime.node_pods import NodePods, PodKey, pod_key
from kone.runtime.node_status import NodeInfo, NodeStatus, host_facts, node_reference
from kone.runtime.parts import VolumeError, VolumeManager
from kone.runtime.pleg import Pleg
from kone.runtime.plugin_watcher import PluginHandler, PluginWatcher
from kone.runtime.pod_admit import REJECTED, refuse
from kone.runtime.pod_certificates import NewKey, PodCertificates
from kone.runtime.pod_files import PodFiles
from kone.runtime.pod_network import PodNetwork
from kone.runtime.pod_resize import Pending, pending
from kone.runtime.pod_spec import find_container, is_host_network
from kone.runtime.pod_status import Verdict, rejected_status
from kone.runtime.pod_worker import Phase, PodWorker
from kone.runtime.probes import Probes
from kone.runtime.pull_records import PullRecords
from kone.runtime.runtime import (
    ContainerState,
    ContainerStatus,
    Image,
    PodMeta,
    Runtime,
    RuntimeFault,
    RuntimeStatus,
    Sandbox,
)
from kone.runtime.server import KubeletServer, Tls
from kone.runtime.static_pods import is_static
from kone.runtime.stats import Stats
from kone.runtime.status_manager import StatusManager
from kone.runtime.termination_message import last_words
from kone.runtime.tokens import Tokens
from kone.runtime.volume_stats import VolumeStats
from kone.runtime.volumes import Volumes

log = logging.getLogger(__name__)

RUNTIME_RETRY_S = 2.0
LEFTOVER_RETRY_FIRST_S, LEFTOVER_RETRY_MAX_S = 1.0, 60.0


class Kubelet:
    """`start` returns once the node is registered and, where Docker answers, its pods are being looked after.

    `stop` leaves every container running. `new_key` makes the keys of pods' certificates; without it there are none.
    `read_pod` reads the manifests of static pods; without it there are none.
    Also the PodSource of parts.py.
    """

    def __init__(
        self,
        client: Client,
        runtime: Runtime,
        network: PodNetwork,
        recorder: EventRecorder,
        clock: Clock,
        config: KubeletConfig,
        *,
        volumes: VolumeManager | None = None,
        host: Callable[[Path, Path], Host] = Host,
        new_key: NewKey | None = None,
        read_pod: ReadPod | None = None,
    ) -> None:
        self._meters = Meters()
        runtime = metered(runtime, self._meters, clock)
        self._client, self._runtime, self._network = client, runtime, network
        self._recorder, self._clock, self._config = recorder, clock, config
        self._nodes = client.informer(NODES, fields=f"metadata.name={config.node_name}")
        self._services: Informer = client.informer(SERVICES)
        self._read_pod = read_pod
        self._pods = NodePods(
            client,
            self._nodes,
            config.node_name,
            clock,
            is_here=self._is_here,
            mirrored=lambda uid: self._statuses.look(uid),
        )
        self._tasks = TaskGroup("kubelet")
        self._workers: dict[str, PodWorker] = {}
        self._rejected: dict[str, Verdict] = {}
        self._held: dict[PodKey, Object] = {}  # static pods that wait for the end of an earlier one of their name
        self._pleg = Pleg(runtime, clock, self.sync_pod, lambda status: last_words(runtime, status))
        self._statuses = StatusManager(client, self._pods, clock, terminated=self._meters.terminated_containers.add)
        self._handlers = Handlers(runtime)
        self._probes = Probes(self._handlers, recorder, clock, self.sync_pod)
        self._drivers = CsiDrivers(client, config.node_name, clock)
        self._csi = CsiVolumes(
            client,
            config.root_dir,
            self._drivers,
            Tokens(client, clock),
            config.node_name,
            clock,
            changed_use=self._look_at_node,
        )
        self._expansion = CsiExpansion(client, recorder, self._csi, config.node_name, clock)
        self._devices = DevicePlugins(config.root_dir, clock, self._look_at_node, self._is_ending)
        self._dra = DynamicResources(client, config.root_dir, config.node_name, clock)
        handlers: dict[str, PluginHandler] = {
            csi_drivers.PLUGIN_TYPE: self._drivers,
            device_plugins.PLUGIN_TYPE: self._devices,
            dra.PLUGIN_TYPE: self._dra,
        }
        self._plugins = PluginWatcher(config.root_dir, clock, handlers)
        self._volumes = volumes or Volumes(
            client,
            config.root_dir,
            clock,
            self._downward_value,
            allocatable_memory=lambda: self.allocatable().get("memory", 0),
            sync_pod=self.sync_pod,
            certificates=PodCertificates(client, recorder, clock, config.node_name, new_key) if new_key else None,
            csi=self._csi,
            tell=lambda obj, reason, message: recorder.event(obj, "Warning", reason, message),
        )
        volume_stats = VolumeStats(client, self._csi, config.root_dir, clock)
        self._stats = Stats(self, runtime, clock, config.node_name, config.root_dir, volume_stats)
        self._make_host = host
        self._eviction: Eviction | None = None
        self._image_gc: ImageGc | None = None
        self._parts: KubeletParts | None = None
        self._node_status: NodeStatus | None = None
        self._server: KubeletServer | None = None
        self._unsubscribe: Unsubscribe = lambda: None
        self._allocatable: tuple[Object, Amounts] = ({}, {})
        self._cgroup_driver = ""

    # Life

    async def start(self) -> None:
        self._config.pods_dir.mkdir(parents=True, exist_ok=True)
        self._csi.public_root = kubelet_home.offer(self._config.root_dir, self._config.public_dir)
        await self._start_server()
        await self._start_node_status()
        for informer in (self._nodes, self._services):
            await informer.wait_synced()
        await self._pods.start(self._manifests())
        if not await self._bring_up():
            self._tasks.spawn(self._bring_up_later(), name="kubelet.wait-for-runtime")

    async def stop(self) -> None:
        """Stop looking after pods and let go; what runs goes on running."""
        self._unsubscribe()
        await self._tasks.cancel()
        for watcher in (self._eviction, self._image_gc):
            if watcher is not None:
                await watcher.stop()
        await self._pleg.stop()
        await self._probes.stop()
        if self._parts is not None:
            await self._plugins.stop()
            await self._devices.stop()
            await self._dra.stop()
            await self._expansion.stop()
            await self._volumes.stop()
        await self._pods.stop()
        await self._statuses.stop()
        if self._node_status is not None:
            await self._node_status.stop()
        if self._server is not None:
            await self._server.stop()
        await self._handlers.close()

    def _manifests(self) -> Manifests | None:
        config = self._config
        if config.manifests is None or self._read_pod is None:
            return None
        return Manifests(config.manifests, config.node_name, self._clock, self._read_pod, self._pods.set_static)

    async def _start_server(self) -> None:
        config = self._config
        if config.server_cert is None or config.server_key is None or config.client_ca is None:
            return
        tls = Tls(config.server_cert, config.server_key, config.client_ca)
        self._server = KubeletServer(
            self,
            self._runtime,
            self._clock,
            config,
            tls,
            client=self._client,
            stats=self._stats,
            probes=self._probes,
            meters=self._meters,
            configz=lambda: kubelet_configuration(replace(config, port=self.port), self._cgroup_driver),
        )
        await self._server.start(config.server_address, config.port)

    @property
    def port(self) -> int:
        """Where the kubelet's server listens."""
        return self._server.port if self._server is not None else self._config.port

    def reload_certificates(self) -> None:
        if self._server is not None:
            self._server.reload_certificates()

    def move(self, node_ips: tuple[str, ...]) -> None:
        """The host has other addresses: the node says so at once, its pods with their next status."""
        self._config.node_ips = node_ips
        if self._node_status is not None:
            self._node_status.move(self._addresses())

    def _addresses(self) -> list[tuple[str, str]]:
        return [*(("InternalIP", ip) for ip in self._config.node_ips), ("Hostname", self._config.node_name)]

    async def _start_node_status(self) -> None:
        config = self._config
        info = NodeInfo(
            name=config.node_name,
            addresses=self._addresses(),
            kubelet_port=self.port,
            pod_cidrs=config.pod_cidrs,
            max_pods=config.max_pods,
            labels=config.node_labels,
            annotations=config.node_annotations,
        )
        self._node_status = NodeStatus(
            self._client,
            self._recorder,
            self._clock,
            info,
            host_facts(config.root_dir),
            self._runtime_status,
            self._images,
            pressures=lambda: self._eviction.pressures if self._eviction is not None else (),
            volumes_in_use=self._csi.in_use,
            devices=self._devices.capacity,
        )
        await self._node_status.start()

    async def _runtime_status(self) -> RuntimeStatus:
        return await self._runtime.status()

    async def _images(self) -> Sequence[Image]:
        try:
            return await self._runtime.images()
        except RuntimeFault:
            return []

    async def _bring_up_later(self) -> None:
        while not await self._bring_up():
            await self._clock.sleep(RUNTIME_RETRY_S)

    async def _bring_up(self) -> bool:
        """Everything that needs the runtime; whether it was there."""
        try:
            await self._runtime.start()
        except RuntimeFault as fault:
            log.warning("pods wait: %s", fault)
            return False
        found = await self._runtime.status()
        self._cgroup_driver = found.cgroup_driver
        records = ImageRecords(self._config.root_dir / "images.json", self._clock)
        pulls = PullRecords(self._config.root_dir, self._clock, self._config.pull_policy)
        pulls.load(await self._images())
        instance = "" if self._config.instance == "default" else self._config.instance
        cgroups = Cgroups(version=found.cgroup_version, driver=found.cgroup_driver, instance=instance)
        await cgroups.start()
        await self._volumes.start()
        image_volumes = ImageVolumes(self._runtime, self._config.pods_dir)
        self._parts = KubeletParts(
            client=self._client,
            recorder=self._recorder,
            clock=self._clock,
            config=self._config,
            runtime=self._runtime,
            network=self._network,
            pleg=self._pleg,
            statuses=self._statuses,
            image_volumes=image_volumes,
            images=ImageManager(
                self._runtime,
                self._clock,
                pulls,
                providers=self._credential_providers(),
                on_pull=records.pulled,
                pull_s=self._meters.image_pull_s,
            ),
            volumes=self._volumes,
            probes=self._probes,
            hooks=Hooks(self._handlers, self._clock, self._recorder),
            cgroups=cgroups,
            devices=self._devices,
            dra=self._dra,
            files=PodFiles(self._config),
            meters=self._meters,
            restarts=Backoff(self._clock),
            services=self._services,
            allocatable=self.allocatable,
            recursive_read_only=found.recursive_read_only,
            resize_pending=self._resize_pending,
        )
        host = self._make_host(self._config.root_dir, Path(found.root_dir or "/"))
        node = node_reference(self._config.node_name)
        self._image_gc = ImageGc(
            self,
            self._runtime,
            records,
            self._recorder,
            self._clock,
            node,
            host.image_fs,
            mounted=image_volumes.in_use,
            seen=pulls.keep_only,
        )
        self._eviction = Eviction(
            self,
            self._stats,
            self._image_gc,
            host,
            self._recorder,
            self._clock,
            node,
            on_change=self._look_at_node,
            count=self._meters.evictions.add,
        )
        await self._pleg.start(self._on_first_list, self._on_list)
        await self._image_gc.start()
        await self._eviction.start()
        await self._expansion.start()
        await self._devices.start({uid_of(pod) for pod in self._pods.list()})
        await self._dra.start()
        await self._plugins.start()
        if self._node_status is not None:
            await self._node_status.report()
        return True

    def _credential_providers(self) -> CredentialProviders | None:
        config = self._config
        if not config.credential_providers:
            return None
        return CredentialProviders(
            config.credential_providers, config.credential_provider_dir, self._client, self._clock
        )

    def _look_at_node(self) -> None:
        if self._node_status is not None:
            self._node_status.look_now()

    async def _on_first_list(self) -> None:
        """What runs is known now: keep its addresses, adopt it, and end what the API knows nothing of."""
        live = {uid for uid in self._pleg.uids() if self._pleg.observed(uid).ready_sandbox is not None}
        await self._network.restore(live)
        self._end_orphans()
        self._unsubscribe = self._pods.subscribe(self._on_pod)
        await self._remove_leftovers()

    def _on_list(self) -> None:
        self._end_orphans()
        for worker in list(self._workers.values()):
            worker.wake()

    def _end_orphans(self) -> None:
        known = {uid_of(pod) for pod in self._pods.list()}
        for uid in self._pleg.uids() - known - self._workers.keys():
            self._end_orphan(uid)

    def _end_orphan(self, uid: str) -> None:
        """Containers of a pod that was deleted while kone was away: their labels tell how to end them."""
        observed = self._pleg.observed(uid)
        found: list[Sandbox | ContainerStatus] = [*observed.sandboxes, *observed.containers]
        some = next(iter(found), None)
        if some is not None:
            log.info("ending pod %s/%s, which is gone", some.pod.namespace, some.pod.name)
            self._worker(_pod_of(some.pod, int(some.labels.get(GRACE_PERIOD, "30")))).gone()

    async def _remove_leftovers(self) -> None:
        """Directories and control groups of pods that neither the API nor the runtime knows."""
        assert self._parts is not None
        known = {uid_of(pod) for pod in self._pods.list()} | self._pleg.uids()
        held = self._volumes.mounted() | self._parts.files.known() | self._parts.cgroups.known() | self._dra.pods()
        for uid in held - known:
            self._tasks.spawn(self._remove_leftover(uid), name=f"kubelet.remove-leftover {uid}")

    async def _remove_leftover(self, uid: str) -> None:
        assert self._parts is not None
        delay_s = LEFTOVER_RETRY_FIRST_S
        while True:
            try:
                await self._volumes.unmount(uid)
                await self._dra.release(uid)
                break
            except (VolumeError, NotPrepared) as error:  # its driver may come yet
                log.warning("what pod %s had, which is gone, stays: %s", uid, error)
            await self._clock.sleep(delay_s)
            delay_s = min(delay_s * 2, LEFTOVER_RETRY_MAX_S)
        await self._parts.cgroups.remove(uid)
        self._parts.files.remove(uid)

    # Pods

    def sync_pod(self, uid: str) -> None:
        """Look at the pod again, now (SyncPod)."""
        if (worker := self._workers.get(uid)) is not None:
            worker.wake()

    def _on_pod(self, event: EventType, pod: Object, previous: Object | None) -> None:
        uid = uid_of(pod)
        worker = self._workers.get(uid)
        if event == "ADDED" and is_static(pod) and self._is_here(pod_key(pod)):
            self._held[pod_key(pod)] = pod
        elif event == "DELETED":
            self._rejected.pop(uid, None)
            if is_static(pod):
                self._held.pop(pod_key(pod), None)
            if worker is not None:
                worker.gone()
        elif worker is not None:
            worker.update(pod)
        elif uid not in self._rejected:
            self._take(pod)

    def _take(self, pod: Object) -> None:
        """A pod that is new here."""
        fresh = not dig(pod, "status", "startTime") and not self._pleg.observed(uid_of(pod)).sandboxes
        if fresh and not is_deleting(pod) and not is_pod_terminal(pod):
            others = self._active_beside(uid_of(pod))
            verdict = self._eviction.refuse(pod) if self._eviction is not None else None
            verdict = verdict or refuse(pod, self._node, others, unsafe_sysctls=self._config.allowed_unsafe_sysctls)
            if verdict is not None:
                self._reject(pod, verdict)
                return
        worker = self._worker(pod)
        if is_deleting(pod) or is_pod_terminal(pod):
            worker.phase = Phase.TERMINATING
        worker.wake()

    @property
    def _node(self) -> Object:
        return self._nodes.get("", self._config.node_name) or {}

    def _active_beside(self, uid: str) -> list[Object]:
        """The other pods that hold resources of the node, as they were given."""
        others = (w for w in self._workers.values() if w.uid != uid and w.exists and not w.ended.is_set())
        return [worker.given for worker in others]

    def _resize_pending(self, pod: Object) -> Pending | None:
        return pending(pod, self._node, self._active_beside(uid_of(pod)))

    def _reject(self, pod: Object, verdict: Verdict) -> None:
        self._rejected[uid_of(pod)] = verdict
        self._recorder.event(pod, "Warning", verdict.reason, verdict.message)
        told = replace(verdict, message=REJECTED + verdict.message)
        status = rejected_status(pod, told, old=pod.get("status") or {}, now=self._clock.now())
        self._statuses.set(pod, status)

    def _worker(self, pod: Object) -> PodWorker:
        assert self._parts is not None
        uid = uid_of(pod)
        if uid not in self._workers:
            self._workers[uid] = PodWorker(self._parts, pod, self._tasks, self._forget)
        return self._workers[uid]

    def _forget(self, uid: str) -> None:
        worker = self._workers.pop(uid, None)
        if worker is None:
            return
        key = pod_key(worker.pod)
        self._pods.look(key)
        if key in self._held and not self._is_here(key):
            self._take(self._held.pop(key))

    def _is_here(self, key: PodKey) -> bool:
        """Whether a pod of that name runs, or is being ended."""
        return any(pod_key(worker.pod) == key for worker in self._workers.values())

    def _is_ending(self, uid: str) -> bool:
        worker = self._workers.get(uid)
        return worker is not None and worker.phase is Phase.TERMINATING

    # PodSource

    def pods(self) -> list[Object]:
        return [self._with_status(pod) for pod in self._pods.list()]

    def pod(self, namespace: str, name: str, uid: str = "") -> Object | None:
        found = self._pods.get(namespace, name)
        if found is None or (uid and uid not in {uid_of(found), uid_of(self._pods.stored(found) or found)}):
            return None
        return self._with_status(found)

    def containers(self, pod_uid: str) -> list[ContainerStatus]:
        return list(self._pleg.observed(pod_uid).containers)

    def container(self, pod_uid: str, name: str, *, previous: bool = False) -> ContainerStatus | None:
        started = [c for c in self.containers(pod_uid) if c.name == name and c.state is not ContainerState.CREATED]
        wanted = 1 if previous else 0
        return started[wanted] if len(started) > wanted else None

    def pod_ip(self, pod_uid: str) -> str:
        worker = self._workers.get(pod_uid)
        return worker.pod_ip if worker is not None else ""

    async def evict(
        self,
        pod_uid: str,
        reason: str,
        message: str,
        grace_s: int | None = None,
        *,
        condition: Object | None = None,
    ) -> None:
        worker = self._workers.get(pod_uid)
        if worker is not None:
            worker.end(Verdict(reason, message, condition), None if grace_s is None else float(grace_s))
            await worker.ended.wait()

    def _with_status(self, pod: Object) -> Object:
        status = self._statuses.get(uid_of(pod))
        return pod if status is None else replace_in(pod, ("status",), status)

    # What pods may ask about themselves and the node

    def allocatable(self) -> Amounts:
        """The node's allocatable resources; cpu in thousandths, the rest in its own unit."""
        node = self._node
        if self._allocatable[0] is not node:
            self._allocatable = (node, amounts(dig(node, "status", "allocatable")))
        return self._allocatable[1]

    def _downward_value(self, pod: Object, item: Object) -> str:
        """The text of a downwardAPI volume's item. Raises ValueError."""
        worker = self._workers.get(uid_of(pod))
        ips = worker.ips if worker is not None else ()
        if is_host_network(pod):
            ips = self._config.node_ips
        if ref := item.get("fieldRef"):
            facts = PodFacts(self._config.node_name, self._config.node_ips, ips, self.allocatable())
            return field_value(pod, ref.get("fieldPath", ""), facts)
        ref = item.get("resourceFieldRef") or {}
        holder = find_container(pod, ref.get("containerName", ""))
        if holder is None:
            raise ValueError(f"container {ref.get('containerName', '')} not found")
        return resource_value(holder, ref, self.allocatable())


def _pod_of(meta: PodMeta, grace_s: int) -> Object:
    """As much of a pod as its containers' labels tell."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
        "spec": {"containers": [], "terminationGracePeriodSeconds": grace_s},
    }
