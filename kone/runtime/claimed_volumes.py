"""The persistent volume behind a claim: what a pod's volume leads to, and whether this node may mount it.

A claim that was found good once stays so while the pod runs, although it may be on its way out by then: only a pod that
starts is refused. Rules and texts: kubernetes/pkg/kubelet/volumemanager (desired state of world), pkg/volume/local.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.objects import Object, controller_of, dig, is_deleting, name_of, namespace_of, uid_of
from kone.apimachinery.volume_claims import is_reachable
from kone.runtime import host_path
from kone.runtime.parts import MountedVolume, VolumeError

_NOT_SOURCES = frozenset(
    (
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    )
)


def claim_name(pod: Object, volume: Object) -> str:
    """The claim that a volume of the pod means; "" where it means none. An ephemeral volume's is <pod>-<volume>."""
    if (source := volume.get("persistentVolumeClaim")) is not None:
        return str(source.get("claimName", ""))
    return f"{name_of(pod)}-{volume['name']}" if volume.get("ephemeral") is not None else ""


def may_use_csi(pod: Object) -> bool:
    """Whether some volume of the pod may be a CSI driver's."""
    volumes = pod["spec"].get("volumes") or ()
    return any(volume.get("csi") is not None or claim_name(pod, volume) for volume in volumes)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A volume that may be mounted."""

    volume: Object
    read_only: bool


def judge_claim(pod: Object, volume: Object, claim: Object | None) -> str:
    """The name of the persistent volume that the claim is bound to. Raises VolumeError where the pod cannot have it."""
    name = claim_name(pod, volume)
    if claim is None:
        raise _refused(pod, volume, f'failed to fetch PVC from API server: persistentvolumeclaims "{name}" not found')
    if is_deleting(claim):
        raise _refused(pod, volume, "PVC is being deleted")
    if dig(claim, "status", "phase") != "Bound":
        raise _refused(pod, volume, "PVC is not bound")
    if not (bound_to := dig(claim, "spec", "volumeName")):
        raise _refused(pod, volume, "PVC has empty pvc.Spec.VolumeName")
    if volume.get("ephemeral") is not None and (controller_of(claim) or {}).get("uid") != uid_of(pod):
        where = f"{namespace_of(pod)}/{name_of(pod)}"
        text = f"PVC {namespace_of(pod)}/{name} was not created for pod {where} (pod is not owner)"
        raise VolumeError(f"{_all_unmounted(volume)}: {text}")
    return str(bound_to)


def judge_volume(pod: Object, volume: Object, claim: Object, found: Object | None, node: Object | None) -> Claimed:
    """What is to be mounted. Raises VolumeError where the volume is another's, of another mode, or of another node."""
    name = dig(claim, "spec", "volumeName")
    if found is None:
        raise _refused(pod, volume, f'failed to fetch PV {name} from API server: persistentvolumes "{name}" not found')
    reference = dig(found, "spec", "claimRef")
    if reference is None:
        text = f"found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        raise _refused(pod, volume, text)
    if reference.get("uid") != uid_of(claim):
        text = (
            f"found PV object {name} but its pv.Spec.ClaimRef.UID {reference.get('uid', '')} does not point to "
            f"claim.UID {uid_of(claim)}"
        )
        raise _refused(pod, volume, text)
    mode = dig(found, "spec", "volumeMode", default="Filesystem")
    wrong = "volumeMounts" if mode == "Block" else "volumeDevices"
    if _is_named_in(pod, wrong, volume):
        text = f"volume {volume['name']} has volumeMode {mode}, but is specified in {wrong}"
        raise VolumeError(f"{_all_unmounted(volume)}: {text}")
    if node is not None and not is_reachable(found, node):
        raise VolumeError(f'MountVolume.NodeAffinity check failed for volume "{name}" : no matching NodeSelectorTerms')
    read_only = bool(dig(volume, "persistentVolumeClaim", "readOnly"))
    return Claimed(found, read_only)


def place(claimed: Claimed) -> MountedVolume:
    """Where the volume's content lies on this host. Raises VolumeError, OSError."""
    spec: dict[str, Any] = claimed.volume["spec"]
    name = name_of(claimed.volume)
    if (source := spec.get("hostPath")) is not None:
        try:
            host_path.prepare(source.get("path", ""), source.get("type") or "")
        except (VolumeError, OSError) as error:
            raise VolumeError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from None
        return MountedVolume(source["path"], claimed.read_only)
    if (source := spec.get("local")) is not None:
        path = source.get("path", "")
        if not os.path.lexists(path):
            why = f'path "{path}" does not exist'
            raise VolumeError(f'MountVolume.NewMounter initialization failed for volume "{name}" : {why}')
        return MountedVolume(path, claimed.read_only)
    plugin = next((key for key in spec if key not in _NOT_SOURCES), "")
    raise VolumeError(
        f'MountVolume.SetUp failed for volume "{name}" : no volume plugin matched: this node has none for {plugin}'
    )


def takes_group(claimed: Claimed) -> bool:
    """Whether the pod's fsGroup is given to the volume: to local ones, never to a host's own directories."""
    return claimed.volume["spec"].get("local") is not None and not claimed.read_only


def _is_named_in(pod: Object, field: str, volume: Object) -> bool:
    spec = pod["spec"]
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    return any(use.get("name") == volume["name"] for c in containers for use in c.get(field) or ())


def _all_unmounted(volume: Object) -> str:
    """How the kubelet begins when it could not even find out what to mount."""
    name = volume["name"]
    return (
        f"Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], "
        f"failed to process volumes=[{name}]"
    )


def _refused(pod: Object, volume: Object, why: str) -> VolumeError:
    where = f"{namespace_of(pod)}/{claim_name(pod, volume)}"
    return VolumeError(f"{_all_unmounted(volume)}: error processing PVC {where}: {why}")
