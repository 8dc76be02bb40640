"""The default plugins in upstream's order, one file each. Pure: no asyncio, no clock, no I/O."""

from __future__ import annotations

from kone.scheduler.framework import Plugin
from kone.scheduler.plugins.balanced_allocation import NodeResourcesBalancedAllocation
from kone.scheduler.plugins.default_preemption import DefaultPreemption
from kone.scheduler.plugins.dynamic_resources import DynamicResources
from kone.scheduler.plugins.image_locality import ImageLocality
from kone.scheduler.plugins.inter_pod_affinity import InterPodAffinity
from kone.scheduler.plugins.node_affinity import NodeAffinity
from kone.scheduler.plugins.node_declared_features import NodeDeclaredFeatures
from kone.scheduler.plugins.node_name import NodeName
from kone.scheduler.plugins.node_ports import NodePorts
from kone.scheduler.plugins.node_resources_fit import NodeResourcesFit
from kone.scheduler.plugins.node_unschedulable import NodeUnschedulable
from kone.scheduler.plugins.node_volume_limits import NodeVolumeLimits
from kone.scheduler.plugins.pod_topology_spread import PodTopologySpread
from kone.scheduler.plugins.scheduling_gates import SchedulingGates
from kone.scheduler.plugins.taint_toleration import TaintToleration
from kone.scheduler.plugins.volume_binding import VolumeBinding
from kone.scheduler.plugins.volume_restrictions import VolumeRestrictions
from kone.scheduler.plugins.volume_zone import VolumeZone

DEFAULT: tuple[type[Plugin], ...] = (
    SchedulingGates,
    NodeName,
    NodeUnschedulable,
    TaintToleration,
    NodeAffinity,
    NodePorts,
    NodeResourcesFit,
    VolumeRestrictions,
    NodeVolumeLimits,
    VolumeBinding,
    VolumeZone,
    PodTopologySpread,
    InterPodAffinity,
    DynamicResources,
    DefaultPreemption,
    NodeResourcesBalancedAllocation,
    ImageLocality,
    NodeDeclaredFeatures,
)
