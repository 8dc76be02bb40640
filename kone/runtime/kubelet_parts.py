"""The kubelet's parts in one place, as its pod workers are given them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kone.aio.clock import Clock
from kone.apimachinery.objects import Object
from kone.apimachinery.pod_resources import Amounts
from kone.client.client import Client, Informer
from kone.client.events import EventRecorder
from kone.runtime.backoff import Backoff
from kone.runtime.device_plugins import DevicePlugins
from kone.runtime.dra import DynamicResources
from kone.runtime.image_volumes import ImageVolumes
from kone.runtime.images import ImageManager
from kone.runtime.kubelet_config import KubeletConfig
from kone.runtime.meters import Meters
from kone.runtime.parts import CgroupManager, HookRunner, ProbeManager, VolumeManager
from kone.runtime.pleg import Pleg
from kone.runtime.pod_files import PodFiles
from kone.runtime.pod_network import PodNetwork
from kone.runtime.pod_resize import Pending
from kone.runtime.runtime import Runtime
from kone.runtime.status_manager import StatusManager


@dataclass(frozen=True, slots=True)
class KubeletParts:
    client: Client
    recorder: EventRecorder
    clock: Clock
    config: KubeletConfig
    runtime: Runtime
    network: PodNetwork
    pleg: Pleg
    statuses: StatusManager
    images: ImageManager
    image_volumes: ImageVolumes
    volumes: VolumeManager
    probes: ProbeManager
    hooks: HookRunner
    cgroups: CgroupManager
    devices: DevicePlugins
    dra: DynamicResources
    files: PodFiles
    meters: Meters
    restarts: Backoff  # of containers, by pod UID and name
    services: Informer
    allocatable: Callable[[], Amounts]  # the node's; cpu in thousandths, the rest in its own unit
    recursive_read_only: bool  # what RuntimeStatus says of it
    resize_pending: Callable[[Object], Pending | None]  # why the node cannot give a pod what it asks for now
