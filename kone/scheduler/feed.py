"""What informers say of everything but pods: it is kept in the Cluster, and what may help waiting pods is passed on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from kone.apimachinery.kinds import (
    CSIDRIVERS,
    CSINODES,
    CSISTORAGECAPACITIES,
    DEVICECLASSES,
    DEVICETAINTRULES,
    GVR,
    NAMESPACES,
    NODES,
    PERSISTENTVOLUMECLAIMS,
    PERSISTENTVOLUMES,
    PODDISRUPTIONBUDGETS,
    REPLICASETS,
    REPLICATIONCONTROLLERS,
    RESOURCECLAIMS,
    RESOURCESLICES,
    SERVICES,
    STATEFULSETS,
    STORAGECLASSES,
    VOLUMEATTACHMENTS,
)
from kone.apimachinery.objects import Object, dig, key_of, labels_of, name_of, namespace_of, uid_of
from kone.client.client import EventType, Handler
from kone.scheduler.framework import ClusterEvent, Happened
from kone.scheduler.snapshot import Cluster


class Feed:
    """`happened` is told each change that may make a pod schedulable; `volumes_changed` that of a claim or a volume,
    `claims_changed` that of a ResourceClaim."""

    def __init__(
        self,
        cluster: Cluster,
        happened: Callable[[ClusterEvent], None],
        volumes_changed: Callable[[], None],
        claims_changed: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._happened = happened
        self._volumes_changed = volumes_changed
        self._claims_changed = claims_changed

    def handlers(self) -> Mapping[GVR, Handler]:
        cluster = self._cluster
        return {
            NODES: self._on_node,
            NAMESPACES: self._on_namespace,
            PODDISRUPTIONBUDGETS: self._keep(cluster.budgets, key_of),
            STORAGECLASSES: self._keep(cluster.storage_classes, name_of, Happened.STORAGE_CLASS),
            PERSISTENTVOLUMES: self._keep(cluster.volumes, name_of, Happened.VOLUME, then=self._volumes_changed),
            PERSISTENTVOLUMECLAIMS: self._keep(cluster.claims, key_of, Happened.CLAIM, then=self._volumes_changed),
            CSINODES: self._keep(cluster.csi_nodes, name_of, Happened.CSI_NODE),
            CSIDRIVERS: self._keep(cluster.csi_drivers, name_of, Happened.CSI_DRIVER),
            CSISTORAGECAPACITIES: self._keep(cluster.storage_capacities, key_of, Happened.STORAGE_CAPACITY),
            VOLUMEATTACHMENTS: self._on_attachment,
            DEVICECLASSES: self._on_device_class,
            DEVICETAINTRULES: self._keep(cluster.device_taint_rules, name_of, Happened.RESOURCE_SLICE, gone=True),
            RESOURCESLICES: self._keep(cluster.resource_slices, name_of, Happened.RESOURCE_SLICE, gone=True),
            RESOURCECLAIMS: self._keep(
                cluster.resource_claims, key_of, Happened.RESOURCE_CLAIM, gone=True, then=self._claims_changed
            ),
            SERVICES: self._on_service,
            REPLICATIONCONTROLLERS: self._on_selector,
            REPLICASETS: self._on_selector,
            STATEFULSETS: self._on_selector,
        }

    def _keep(
        self,
        into: dict[Any, Object],
        key: Callable[[Object], Hashable],
        what: Happened | None = None,
        *,
        gone: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> Handler:
        """A handler that keeps objects by a key; `what` has happened when one is new or changed, and where `gone` says
        so when one is deleted, too."""

        def handle(kind: EventType, obj: Object, old: Object | None) -> None:
            if kind == "DELETED":
                into.pop(key(obj), None)
                if what is not None and gone:
                    self._happened(ClusterEvent(what, obj, None))
            else:
                into[key(obj)] = obj
                if what is not None:
                    self._happened(ClusterEvent(what, old, obj))
            then()

        return handle

    def _on_namespace(self, kind: EventType, namespace: Object, old: Object | None) -> None:
        if kind == "DELETED":
            self._cluster.namespaces.pop(name_of(namespace), None)
            return
        self._cluster.set_namespace(name_of(namespace), labels_of(namespace))
        if old is not None and labels_of(old) != labels_of(namespace):
            self._happened(ClusterEvent(Happened.NAMESPACE_LABELS, old, namespace))

    def _on_attachment(self, kind: EventType, attachment: Object, _old: Object | None) -> None:
        if kind == "DELETED":
            self._cluster.remove_attachment(attachment)
            self._happened(ClusterEvent(Happened.DETACHED, attachment, None))
        else:
            self._cluster.set_attachment(attachment)

    def _on_device_class(self, kind: EventType, device_class: Object, old: Object | None) -> None:
        if kind == "DELETED":
            self._cluster.set_device_class(name_of(device_class), None)
        else:
            self._cluster.set_device_class(name_of(device_class), device_class)
            self._happened(ClusterEvent(Happened.DEVICE_CLASS, old, device_class))

    def _on_selector(self, kind: EventType, workload: Object, _old: Object | None) -> None:
        if kind == "DELETED":
            self._cluster.selectors.pop(uid_of(workload), None)
        else:
            self._cluster.selectors[uid_of(workload)] = dig(workload, "spec", "selector") or {}

    def _on_service(self, kind: EventType, service: Object, _old: Object | None) -> None:
        services = self._cluster.services.setdefault(namespace_of(service), {})
        if kind == "DELETED":
            services.pop(name_of(service), None)
        else:
            services[name_of(service)] = dig(service, "spec", "selector") or {}

    def _on_node(self, kind: EventType, node: Object, old: Object | None) -> None:
        if kind == "DELETED":
            self._cluster.remove_node(name_of(node))
            self._happened(ClusterEvent(Happened.NODE_GONE, node, None))
            return
        is_new = self._cluster.node(name_of(node)) is None
        what = Happened.NODE_ADDED if is_new or old is None else node_changes(old, node)
        if not what and old is not None and dig(old, "status", "images") == dig(node, "status", "images"):
            return  # a heartbeat
        self._cluster.set_node(node)
        if what:
            self._happened(ClusterEvent(what, None if is_new else old, node))


def node_changes(old: Object, new: Object) -> Happened:
    """What of the node's change can make a pod schedulable."""
    what = Happened(0)
    if labels_of(old) != labels_of(new):
        what |= Happened.NODE_LABELS
    if dig(old, "spec", "taints") != dig(new, "spec", "taints") or dig(old, "spec", "unschedulable") != dig(
        new, "spec", "unschedulable"
    ):
        what |= Happened.NODE_TAINTS
    if dig(old, "status", "allocatable") != dig(new, "status", "allocatable"):
        what |= Happened.NODE_ALLOCATABLE
    if dig(old, "status", "declaredFeatures") != dig(new, "status", "declaredFeatures"):
        what |= Happened.NODE_FEATURES
    return what
