"""What a volume is to its CSI driver: names, paths, capabilities and attributes. Pure.

Rules: kubernetes/pkg/volume/csi (csi_plugin.go, csi_client.go, csi_mounter.go). Paths are relative to the kubelet's
directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final

from kone.apimachinery.objects import Object, dig, name_of, namespace_of, uid_of
from kone.apimachinery.volume_attachments import attachment_name
from kone.runtime.grpc_status import ABORTED, CANCELED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE, RpcError

PLUGIN: Final = "kubernetes.io/csi"
ESCAPED: Final = "kubernetes.io~csi"
DATA_FILE: Final = "vol_data.json"
_PLUGIN_DIR: Final = PurePath("plugins", "kubernetes.io", "csi")
_DEVICES: Final = _PLUGIN_DIR / "volumeDevices"

SINGLE_NODE_WRITER, MULTI_NODE_READER_ONLY, MULTI_NODE_MULTI_WRITER = 1, 3, 5
SINGLE_NODE_SINGLE_WRITER, SINGLE_NODE_MULTI_WRITER = 6, 7

_PENDING: Final = frozenset((CANCELED, DEADLINE_EXCEEDED, UNAVAILABLE, RESOURCE_EXHAUSTED, ABORTED))

Secret = tuple[str, str]
"""(namespace, name)"""


@dataclass(frozen=True, slots=True)
class CsiVolume:
    """A volume of a pod, as its driver is told of it."""

    name: str
    """The persistent volume's; an inline volume's in the pod."""
    driver: str
    handle: str
    inline: bool = False
    """It lives with the pod: CSI calls it ephemeral."""
    block: bool = False
    read_only: bool = False
    fs_type: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    access_modes: tuple[str, ...] = ()
    mount_options: tuple[str, ...] = ()
    stage_secret: Secret | None = None
    publish_secret: Secret | None = None
    expand_secret: Secret | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.driver, self.handle

    @property
    def access_mode(self) -> str:
        """The one that counts: CSI has one, and the first is taken."""
        return self.access_modes[0] if self.access_modes else "ReadWriteOnce"

    def attachment(self, node_name: str) -> str:
        return attachment_name(self.handle, self.driver, node_name)


def of_persistent(volume: Object, *, read_only: bool) -> CsiVolume:
    """A PersistentVolume with a csi source."""
    spec = volume["spec"]
    source = spec["csi"]
    return CsiVolume(
        name=name_of(volume),
        driver=source["driver"],
        handle=source["volumeHandle"],
        block=spec.get("volumeMode") == "Block",
        read_only=read_only,
        fs_type=source.get("fsType", ""),
        attributes=source.get("volumeAttributes") or {},
        access_modes=tuple(spec.get("accessModes") or ()),
        mount_options=tuple(spec.get("mountOptions") or ()),
        stage_secret=_secret(source.get("nodeStageSecretRef")),
        publish_secret=_secret(source.get("nodePublishSecretRef")),
        expand_secret=_secret(source.get("nodeExpandSecretRef")),
    )


def of_inline(pod: Object, volume: Object) -> CsiVolume:
    """A volume of the pod with a csi source of its own."""
    source = volume["csi"]
    digest = hashlib.sha256(f"{uid_of(pod)}{volume['name']}".encode()).hexdigest()
    secret = dig(source, "nodePublishSecretRef", "name")
    return CsiVolume(
        name=volume["name"],
        driver=source["driver"],
        handle=f"csi-{digest}",
        inline=True,
        read_only=bool(source.get("readOnly")),
        fs_type=source.get("fsType") or "",
        attributes=source.get("volumeAttributes") or {},
        publish_secret=(namespace_of(pod), secret) if secret else None,
    )


def _secret(reference: Object | None) -> Secret | None:
    return None if reference is None else (reference.get("namespace", ""), reference.get("name", ""))


# Paths


def staging_path(volume: CsiVolume) -> PurePath:
    if volume.block:
        return _DEVICES / "staging" / volume.name
    return _PLUGIN_DIR / volume.driver / hashlib.sha256(volume.handle.encode()).hexdigest() / "globalmount"


def data_path(volume: CsiVolume) -> PurePath:
    """Where it is written down whose the staged volume is, for a kubelet that knows nothing else of it."""
    return _DEVICES / volume.name / "data" / DATA_FILE if volume.block else staging_path(volume).parent / DATA_FILE


def pod_folder(volume: CsiVolume, pod_uid: str) -> PurePath:
    """The volume's own folder among its pod's, with its data file."""
    return PurePath("pods", pod_uid, "volumes", ESCAPED, volume.name)


def device_link(volume: CsiVolume, pod_uid: str) -> PurePath:
    """Where a pod's block device is found: a link to what the driver published."""
    return PurePath("pods", pod_uid, "volumeDevices", ESCAPED, volume.name)


def target_path(volume: CsiVolume, pod_uid: str) -> PurePath:
    """Where the driver publishes it."""
    if volume.block:
        return _DEVICES / "publish" / volume.name / pod_uid
    return pod_folder(volume, pod_uid) / "mount"


# What the driver is told


def capability(volume: CsiVolume, *, single_node_multi_writer: bool, group: int | None = None) -> dict[str, Any]:
    """csi.v1.VolumeCapability; `group` where the driver itself gives the volume to a group."""
    modes = {
        "ReadWriteOnce": SINGLE_NODE_MULTI_WRITER if single_node_multi_writer else SINGLE_NODE_WRITER,
        "ReadOnlyMany": MULTI_NODE_READER_ONLY,
        "ReadWriteMany": MULTI_NODE_MULTI_WRITER,
        "ReadWriteOncePod": SINGLE_NODE_SINGLE_WRITER if single_node_multi_writer else SINGLE_NODE_WRITER,
    }
    told: dict[str, Any] = {"access_mode": {"mode": modes.get(volume.access_mode, 0)}}
    if volume.block:
        told["block"] = {}
    else:
        told["mount"] = {
            "fs_type": volume.fs_type,
            "mount_flags": list(volume.mount_options),
            "volume_mount_group": "" if group is None else str(group),
        }
    return told


def pod_attributes(pod: Object, volume: CsiVolume) -> dict[str, str]:
    """What a driver with podInfoOnMount is told of the pod."""
    return {
        "csi.storage.k8s.io/pod.name": name_of(pod),
        "csi.storage.k8s.io/pod.namespace": namespace_of(pod),
        "csi.storage.k8s.io/pod.uid": uid_of(pod),
        "csi.storage.k8s.io/serviceAccount.name": dig(pod, "spec", "serviceAccountName", default=""),
        "csi.storage.k8s.io/ephemeral": "true" if volume.inline else "false",
    }


TOKENS: Final = "csi.storage.k8s.io/serviceAccount.tokens"


def lifecycle_refusal(volume: CsiVolume, driver: Object | None) -> str:
    """Why the driver, by its CSIDriver's spec, has no such volumes; "" where it has."""
    mode = "Ephemeral" if volume.inline else "Persistent"
    if driver is None:
        if not volume.inline:
            return ""
        return f'volume mode "{mode}" not supported by driver {volume.driver} (no CSIDriver object)'
    modes: Collection[str] = driver.get("volumeLifecycleModes") or ("Persistent",)
    if mode in modes:
        return ""
    shown = " ".join(f'"{each}"' for each in modes)
    return f'volume mode "{mode}" not supported by driver {volume.driver} (only supports [{shown}])'


def takes_group(volume: CsiVolume, driver: Object | None) -> bool:
    """Whether the kubelet gives the volume to the pod's fsGroup, by the driver's fsGroupPolicy."""
    policy = (driver or {}).get("fsGroupPolicy") or "ReadWriteOnceWithFSType"
    if volume.read_only or policy == "None":
        return False
    if policy == "File":
        return True
    if not volume.fs_type:
        return False
    return volume.inline or not {"ReadWriteOnce", "ReadWriteOncePod"}.isdisjoint(volume.access_modes)


def is_final(error: RpcError) -> bool:
    """Whether the call has ended at the driver, and nothing of it goes on."""
    return error.code not in _PENDING
