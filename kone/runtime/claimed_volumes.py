"""The persistent volume behind a claim: what a pod's volume leads to, and whether this node may mount it.

A claim that was found good once stays so while the pod runs, although it may be on its way out by then: only a pod that
starts is refused. Rules and texts: kubernetes/pkg/kubelet/volumemanager (desired state of world), pkg/volume/local.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        step = "MapVolume" if mode == "Block" else "MountVolume"
        raise VolumeError(f'{step}.NodeAffinity check failed for volume "{name}" : no matching NodeSelectorTerms')
    read_only = bool(dig(volume, "persistentVolumeClaim", "readOnly"))
    return Claimed(found, read_only)


def place(claimed: Claimed) -> MountedVolume:
    """Where a hostPath volume's content lies on this host. Raises VolumeError."""
    source = claimed.volume["spec"]["hostPath"]
    try:
        host_path.prepare(source.get("path", ""), source.get("type") or "")
    except (VolumeError, OSError) as error:
        raise VolumeError(f'MountVolume.SetUp failed for volume "{name_of(claimed.volume)}" : {error}') from None
    return MountedVolume(source["path"], claimed.read_only)


def kind_of(volume: Object) -> str:
    """The name of a persistent volume's source: "hostPath", "csi", ..."""
    return next((key for key in volume["spec"] if key not in _NOT_SOURCES), "")


def no_plugin(volume: Object, spec_name: str) -> VolumeError:
    """For a volume of a kind that this node has no plugin for; `spec_name` is its name, or its persistent volume's."""
    why = f'failed to get Plugin from volumeSpec for volume "{spec_name}" err=no volume plugin matched'
    return VolumeError(f"{_all_unmounted(volume)}: {why}")


def in_use_by_another(volume: Object) -> VolumeError:
    """For a volume of access mode ReadWriteOncePod that another pod of this node has."""
    is_block = dig(volume, "spec", "volumeMode") == "Block"
    step, reason = ("MapVolume.SetUpDevice", "FailedMapVolume") if is_block else ("MountVolume.SetUp", "FailedMount")
    why = "volume uses the ReadWriteOncePod access mode and is already in use by another pod"
    return VolumeError(f'{step} failed for volume "{name_of(volume)}" : {why}', reason)


def no_devices(volume: Object) -> VolumeError:
    """For a volume of mode Block of a kind that has no block devices."""
    text = "MapVolume.FindMapperPluginBySpec failed to find BlockVolumeMapper plugin. Volume plugin is nil."
    return VolumeError(f'{text} for volume "{name_of(volume)}" ', "FailedMapVolume")


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
