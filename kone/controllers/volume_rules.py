"""Claims and volumes: which belong together, and what becomes of each. Nothing here acts.

A claim is bound in four writes: the volume names the claim, the volume is Bound, the claim names the volume, the claim
is Bound. After any of them the next look goes on from what is stored.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kone.apimachinery.objects import (
    Object,
    annotations_of,
    dig,
    is_deleting,
    name_of,
    namespace_of,
    replace_in,
    resource_version_of,
    uid_of,
)
from kone.apimachinery.quantity import ZERO, Quantity, parse_quantity
from kone.apimachinery.volume_claims import (
    BIND_COMPLETED,
    BOUND_BY_CONTROLLER,
    SELECTED_NODE,
    class_of,
    find_volume,
    is_bound_to,
    waits_for_consumer,
)

CLASS_ANNOTATION = "volume.beta.kubernetes.io/storage-class"
PROVISIONER = "volume.kubernetes.io/storage-provisioner"
BETA_PROVISIONER = "volume.beta.kubernetes.io/storage-provisioner"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
MIGRATED_TO = "pv.kubernetes.io/migrated-to"
PRE_RESIZE_CAPACITY = "volume.alpha.kubernetes.io/pre-resize-capacity"
_DEFAULT_CLASS = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
_IN_TREE = "kubernetes.io/"

EventKind = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class Telling:
    """An event."""

    kind: EventKind
    reason: str
    message: str


# Claims


@dataclass(frozen=True, slots=True)
class ClaimPlan:
    """What to do with a claim; of the first four at most one is set."""

    bind: Object | None = None
    """The volume to bind it to."""
    phase: str = ""
    """Pending or Lost, without a volume."""
    assign_class: str = ""
    provisioner: str = ""
    """Who is asked to make a volume."""
    tell: Telling | None = None
    tell_once: bool = False
    """Only when the phase changes."""
    refuse: str = ""
    """Something that must not be; try again later."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """What a claim may be given, by name."""

    volumes: Mapping[str, Object]
    classes: Mapping[str, Object]


def plan_claim(claim: Object, shelf: Shelf, waiting_pods: Sequence[str]) -> ClaimPlan:
    """`waiting_pods` names the pods that use the claim and have no node yet."""
    if BIND_COMPLETED in annotations_of(claim):
        return _plan_bound(claim, shelf)
    if name := dig(claim, "spec", "volumeName"):
        return _plan_for_named(claim, name, shelf.volumes.get(name))
    return _plan_for_any(claim, shelf, waiting_pods)


def _plan_bound(claim: Object, shelf: Shelf) -> ClaimPlan:
    name = dig(claim, "spec", "volumeName")
    if not name:
        return _lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
    volume = shelf.volumes.get(name)
    if volume is None:
        return _lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
    reference = dig(volume, "spec", "claimRef")
    if reference is None or reference.get("uid") == uid_of(claim):
        return ClaimPlan(bind=volume)
    return _lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")


def _lost(reason: str, message: str) -> ClaimPlan:
    return ClaimPlan(phase="Lost", tell=Telling("Warning", reason, message), tell_once=True)


def _plan_for_named(claim: Object, name: str, volume: Object | None) -> ClaimPlan:
    if volume is None:
        return ClaimPlan(phase="Pending")
    if dig(volume, "spec", "claimRef") is None:
        if why := mismatch(volume, claim):
            message = f'Cannot bind to requested volume "{name}": {why}'
            return ClaimPlan(phase="Pending", tell=Telling("Warning", "VolumeMismatch", message))
        return ClaimPlan(bind=volume)
    if is_bound_to(volume, claim):
        return ClaimPlan(bind=volume)
    tell = Telling("Warning", "FailedBinding", f'volume "{name}" already bound to a different claim.')
    if BOUND_BY_CONTROLLER in annotations_of(claim):
        return ClaimPlan(tell=tell, refuse=f'invalid binding of claim to volume "{name}": already claimed by another')
    return ClaimPlan(phase="Pending", tell=tell)


def _plan_for_any(claim: Object, shelf: Shelf, waiting_pods: Sequence[str]) -> ClaimPlan:
    class_name = class_of(claim)
    storage_class = shelf.classes.get(class_name)
    delayed = waits_for_consumer(storage_class)
    volume = best_match(claim, shelf.volumes.values(), only_promised=delayed)
    if volume is not None:
        return ClaimPlan(bind=volume)
    if not has_class(claim) and (default := default_class(shelf.classes.values())):
        return ClaimPlan(assign_class=default)
    if delayed and SELECTED_NODE not in annotations_of(claim):
        return ClaimPlan(phase="Pending", tell=_waiting(waiting_pods))
    if class_name:
        return _plan_provisioning(class_name, storage_class)
    message = "no persistent volumes available for this claim and no storage class is set"
    return ClaimPlan(phase="Pending", tell=Telling("Normal", "FailedBinding", message))


def _waiting(pods: Sequence[str]) -> Telling:
    if not pods:
        message = "waiting for first consumer to be created before binding"
        return Telling("Normal", "WaitForFirstConsumer", message)
    noun = "pod" if len(pods) == 1 else "pods"
    return Telling("Normal", "WaitForPodScheduled", f"waiting for {noun} {','.join(pods)} to be scheduled")


def _plan_provisioning(class_name: str, storage_class: Object | None) -> ClaimPlan:
    """kone makes no volumes itself: it names the provisioner in the claim, and whoever that is makes one."""
    if storage_class is None:
        message = f'storageclass.storage.k8s.io "{class_name}" not found'
        return ClaimPlan(tell=Telling("Warning", "ProvisioningFailed", message))
    provisioner = str(storage_class.get("provisioner", ""))
    if provisioner.startswith(_IN_TREE):
        message = f"no volume plugin matched name: {provisioner}"
        return ClaimPlan(tell=Telling("Warning", "ProvisioningFailed", message))
    message = (
        f"Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the "
        "system administrator. If volume creation is delayed, please verify that the provisioner is running and "
        "correctly registered."
    )
    return ClaimPlan(provisioner=provisioner, tell=Telling("Normal", "ExternalProvisioning", message))


def has_class(claim: Object) -> bool:
    """Whether the claim says something of a class; that may be "", for none."""
    return CLASS_ANNOTATION in annotations_of(claim) or dig(claim, "spec", "storageClassName") is not None


def default_class(classes: Iterable[Object]) -> str:
    """The newest class with the mark; of several made in the same second the first by name."""
    marked = [c for c in classes if any(annotations_of(c).get(mark) == "true" for mark in _DEFAULT_CLASS)]
    newest = max((dig(c, "metadata", "creationTimestamp", default="") for c in marked), default="")
    of_then = (name_of(c) for c in marked if dig(c, "metadata", "creationTimestamp", default="") == newest)
    return min(of_then, default="")


def modes_of(claim_or_volume: Object) -> frozenset[str]:
    return frozenset(dig(claim_or_volume, "spec", "accessModes", default=()))


def best_match(claim: Object, volumes: Iterable[Object], *, only_promised: bool) -> Object | None:
    """The volume that allows what is asked for, and of other accesses as few as may be; then the smallest."""
    groups: dict[frozenset[str], list[Object]] = {}
    for volume in volumes:
        groups.setdefault(modes_of(volume), []).append(volume)
    for modes in sorted(groups, key=lambda modes: (len(modes), sorted(modes))):
        if modes_of(claim) <= modes:
            found = find_volume(claim, groups[modes], only_promised=only_promised)
            if found is not None:
                return found
    return None


def mismatch(volume: Object, claim: Object) -> str:
    """Why a volume cannot be the claim's; "" where it can."""
    if is_deleting(volume):
        return f'the volume is marked for deletion "{name_of(volume)}"'
    if _capacity(volume) < _storage(dig(claim, "spec", "resources", "requests")):
        return "requested PV is too small"
    if class_of(volume) != class_of(claim):
        return "storageClassName does not match"
    if _attributes_class(volume) != _attributes_class(claim):
        return "volumeAttributesClassName does not match"
    if volume_mode(volume) != volume_mode(claim):
        return "incompatible volumeMode"
    return "" if modes_of(claim) <= modes_of(volume) else "incompatible accessMode"


def _storage(amounts: Mapping[str, str] | None) -> Quantity:
    return parse_quantity(amounts["storage"]) if amounts and "storage" in amounts else ZERO


def _capacity(volume: Object) -> Quantity:
    return _storage(dig(volume, "spec", "capacity"))


def volume_mode(claim_or_volume: Object) -> str:
    return str(dig(claim_or_volume, "spec", "volumeMode", default="Filesystem"))


def _attributes_class(claim_or_volume: Object) -> str:
    return str(dig(claim_or_volume, "spec", "volumeAttributesClassName", default=""))


# The four writes


def bound_volume(volume: Object, claim: Object) -> Object:
    """The volume with a reference to the claim; unchanged where it has it."""
    reference = dig(volume, "spec", "claimRef", default={})
    ours = (namespace_of(claim), name_of(claim), uid_of(claim))
    if (reference.get("namespace"), reference.get("name"), reference.get("uid")) == ours:
        return volume
    by_user = is_bound_to(volume, claim)
    made = {
        "kind": "PersistentVolumeClaim",
        "namespace": namespace_of(claim),
        "name": name_of(claim),
        "uid": uid_of(claim),
        "apiVersion": "v1",
        "resourceVersion": resource_version_of(claim),
    }
    volume = replace_in(volume, ("spec", "claimRef"), made)
    return volume if by_user else annotated(volume, BOUND_BY_CONTROLLER)


def bound_claim(claim: Object, volume: Object) -> Object:
    """The claim with the volume's name, and the note that binding is complete; unchanged where it has both."""
    if dig(claim, "spec", "volumeName") != name_of(volume):
        claim = annotated(replace_in(claim, ("spec", "volumeName"), name_of(volume)), BOUND_BY_CONTROLLER)
    return annotated(claim, BIND_COMPLETED)


def annotated(obj: Object, key: str, value: str = "yes") -> Object:
    if key in annotations_of(obj):
        return obj
    return replace_in(obj, ("metadata", "annotations"), {**annotations_of(obj), key: value})


def with_provisioner(claim: Object, provisioner: str) -> Object:
    if annotations_of(claim).get(PROVISIONER) == provisioner:
        return claim
    annotations = {**annotations_of(claim), BETA_PROVISIONER: provisioner, PROVISIONER: provisioner}
    return replace_in(claim, ("metadata", "annotations"), annotations)


def claim_status(claim: Object, phase: str, volume: Object | None) -> Object:
    """The claim's status in a phase. The capacity is the volume's when the claim becomes Bound, and later what an
    expansion makes of it."""
    status: Object = dict(claim.get("status") or {})
    changes = status.get("phase") != phase
    if volume is None:
        for field in ("accessModes", "capacity", "currentVolumeAttributesClassName"):
            status.pop(field, None)
    else:
        status["accessModes"] = list(dig(volume, "spec", "accessModes", default=[]))
        if changes:
            status["capacity"] = _bound_capacity(volume)
        attributes = dig(volume, "spec", "volumeAttributesClassName")
        if status.get("phase") == "Pending" and attributes:
            status["currentVolumeAttributesClassName"] = attributes
    status["phase"] = phase
    return status


def _bound_capacity(volume: Object) -> Object:
    before_resize = annotations_of(volume).get(PRE_RESIZE_CAPACITY)
    if before_resize is not None:
        try:
            return {"storage": parse_quantity(before_resize).canonical()}
        except ValueError:
            pass
    return dict(dig(volume, "spec", "capacity", default={}))


# Volumes


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """What to do with a volume."""

    phase: str = ""
    unbind: bool = False
    """Take back the reference to a claim that is bound elsewhere."""
    reclaim: bool = False
    """Nobody has it any more: follow its reclaim policy."""
    look_at_claim: bool = False
    """The claim's turn."""
    tell: Telling | None = None
    tell_claim: Telling | None = None


def plan_volume(volume: Object, claim: Object | None) -> VolumePlan:
    """`claim` is the one of the name that the volume refers to, whoever it is now."""
    reference = dig(volume, "spec", "claimRef")
    if reference is None or not reference.get("uid"):
        return VolumePlan(phase="Available")
    if claim is None or uid_of(claim) != reference["uid"]:
        return VolumePlan(phase=_released(volume), reclaim=True)
    bound_to = dig(claim, "spec", "volumeName")
    if not bound_to:
        if volume_mode(volume) != volume_mode(claim):
            return _mode_mismatch(volume, claim)
        return VolumePlan(look_at_claim=True)
    if bound_to == name_of(volume):
        return VolumePlan(phase="Bound")
    if PROVISIONED_BY in annotations_of(volume) and dig(volume, "spec", "persistentVolumeReclaimPolicy") == "Delete":
        return VolumePlan(phase=_released(volume), reclaim=True)
    return VolumePlan(unbind=True)


def _released(volume: Object) -> str:
    """A failure stays visible."""
    phase = str(dig(volume, "status", "phase", default=""))
    return phase if phase == "Failed" else "Released"


def _mode_mismatch(volume: Object, claim: Object) -> VolumePlan:
    why = "due to incompatible volumeMode."
    to_volume = f'Cannot bind PersistentVolume to requested PersistentVolumeClaim "{name_of(claim)}" {why}'
    to_claim = f'Cannot bind PersistentVolume "{name_of(volume)}" to requested PersistentVolumeClaim {why}'
    return VolumePlan(
        tell=Telling("Warning", "VolumeMismatch", to_volume),
        tell_claim=Telling("Warning", "VolumeMismatch", to_claim),
    )


def unbound_volume(volume: Object) -> Object:
    """Without the claim that the controller chose; a user's promise stays, without the uid."""
    spec = dict(volume["spec"])
    if BOUND_BY_CONTROLLER in annotations_of(volume):
        spec.pop("claimRef", None)
        annotations = {key: value for key, value in annotations_of(volume).items() if key != BOUND_BY_CONTROLLER}
        return {**replace_in(volume, ("metadata", "annotations"), annotations), "spec": spec}
    spec["claimRef"] = {key: value for key, value in spec["claimRef"].items() if key != "uid"}
    return {**volume, "spec": spec}


def volume_status(volume: Object, phase: str, message: str = "") -> Object:
    status = {key: value for key, value in (volume.get("status") or {}).items() if key != "message"}
    status["phase"] = phase
    return {**status, "message": message} if message else status


@dataclass(frozen=True, slots=True)
class ReclaimPlan:
    failure: Telling | None = None
    """The volume is Failed."""
    remove_path: str = ""
    """A directory of this host to remove; then the volume goes."""


def plan_reclaim(volume: Object) -> ReclaimPlan:
    policy = dig(volume, "spec", "persistentVolumeReclaimPolicy", default="Retain")
    if MIGRATED_TO in annotations_of(volume) or policy == "Retain":
        return ReclaimPlan()
    if policy == "Recycle":
        message = "No recycler plugin found for the volume!"
        return ReclaimPlan(Telling("Warning", "VolumeFailedRecycle", message))
    if policy != "Delete":
        message = "Volume has unrecognized PersistentVolumeReclaimPolicy"
        return ReclaimPlan(Telling("Warning", "VolumeUnknownReclaimPolicy", message))
    if provisioner := annotations_of(volume).get(PROVISIONED_BY):
        if not provisioner.startswith(_IN_TREE):
            return ReclaimPlan()
        return _delete_fails(f"no volume plugin matched name: {provisioner}")
    if dig(volume, "spec", "csi") is not None:
        return ReclaimPlan()
    path = dig(volume, "spec", "hostPath", "path")
    if path is None:
        why = f'error getting deleter volume plugin for volume "{name_of(volume)}": no deletable volume plugin matched'
        return _delete_fails(why)
    if not os.path.normpath(path).startswith("/tmp/"):
        return _delete_fails(f"host_path deleter only supports /tmp/.+ but received provided {path}")
    return ReclaimPlan(remove_path=os.path.normpath(path))


def _delete_fails(message: str) -> ReclaimPlan:
    return ReclaimPlan(Telling("Warning", "VolumeFailedDelete", message))
