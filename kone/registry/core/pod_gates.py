"""Fields whose feature gate is off in v1.37: upstream knows them, takes them in requests, and drops them.

Their rules are not written: nothing can come to have them.
"""

from __future__ import annotations

from kone.apimachinery.objects import Object
from kone.registry.core.pod_parts import CONTAINER_LISTS

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_FILE_VOLUMES = ("secret", "configMap", "downwardAPI", "projected")


def drop_disabled(spec: Object) -> None:
    """In place, of a pod or a template."""
    spec.pop("schedulingGroup", None)  # GenericWorkload
    spec.pop("evictionResponders", None)  # EvictionRequestAPI
    for kind in CONTAINER_LISTS:
        for container in spec.get(kind) or ():
            _container(container)
    for volume in spec.get("volumes") or ():
        if volume.get("emptyDir"):
            volume["emptyDir"].pop("mode", None)  # EmptyDirVolumeMode
        for kind in _FILE_VOLUMES:
            if volume.get(kind):
                _file_owners(volume[kind])


def _container(container: Object) -> None:
    for kind in _PROBES:
        probe = container.get(kind)
        if probe:
            if probe.get("httpGet"):
                probe["httpGet"].pop("protocol", None)  # H2CContainerProbe
            if probe.get("grpc"):
                probe["grpc"].pop("mode", None)  # GRPCContainerProbeTLS
    lifecycle = container.get("lifecycle")
    if lifecycle:
        for hook in ("postStart", "preStop"):
            if lifecycle.get(hook) and lifecycle[hook].get("httpGet"):
                lifecycle[hook]["httpGet"].pop("protocol", None)
        if lifecycle.pop("stopSignal", None) is not None and not lifecycle:  # ContainerStopSignals
            del container["lifecycle"]
    for mount in container.get("volumeMounts") or ():
        mount.pop("bindMountOptions", None)  # VolumeBindMountOptions


def _file_owners(source: Object) -> None:
    """AtomicWriteVolumeUserFields."""
    source.pop("defaultUser", None)
    for item in source.get("items") or ():
        item.pop("user", None)
    for part in source.get("sources") or ():
        for projection in part.values():
            if isinstance(projection, dict):
                projection.pop("user", None)
                for item in projection.get("items") or ():
                    item.pop("user", None)


def drop_disabled_status(status: Object) -> None:
    """In place."""
    status.pop("volumeHealth", None)  # CSIVolumeHealth
    status.pop("nodeAllocatableResourceClaimStatuses", None)  # DRANodeAllocatableResources
    for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        for container in status.get(kind) or ():
            container.pop("stopSignal", None)
            for mount in container.get("volumeMounts") or ():
                mount.pop("volumeStatus", None)  # ImageVolumeWithDigest
