"""PersistentVolumes."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kone.apimachinery.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.kinds import PERSISTENTVOLUMES as GVR_PERSISTENTVOLUMES
from kone.apimachinery.names import is_dns1123_label, is_dns1123_subdomain
from kone.apimachinery.objects import Object, annotations_of, is_deleting
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.registry.core import pod_volumes
from kone.registry.core.claim_rules import VOLUME_MODES, access_modes
from kone.registry.core.pod_defaults import SOURCE_DEFAULTS, round_resources
from kone.registry.core.pod_scheduling import node_selector
from kone.registry.core.pod_warnings import node_selector_term_warnings
from kone.registry.core.resource_rules import basic_quantity, positive_quantity
from kone.registry.core.volume_files import needs, no_backsteps
from kone.registry.equality import same
from kone.registry.generic import IMMUTABLE
from kone.registry.internal import internal, internal_diff
from kone.registry.resource import AGE, NAME, Column, Resource
from kone.registry.rules import Errors, check, required_name
from kone.registry.strategy import StatusStrategy, Strategy

BETA_CLASS = "volume.beta.kubernetes.io/storage-class"
_MOUNT_OPTIONS = "volume.beta.kubernetes.io/mount-options"
_ANNOTATIONS = {
    BETA_CLASS: 'deprecated since v1.8; use "storageClassName" attribute instead',
    _MOUNT_OPTIONS: 'deprecated since v1.31; use "mountOptions" attribute instead',
}
_RECLAIM_POLICIES = ("Delete", "Recycle", "Retain")
_RECYCLE = "The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning."
_SECRETS = ("controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef")
_DEFAULTED = ("hostPath", "iscsi", "rbd", "scaleIO", "azureDisk")
_MOUNTABLE_BY_ANNOTATION = (
    *("gcePersistentDisk", "awsElasticBlockStore", "glusterfs", "nfs", "rbd", "quobyte", "iscsi", "cinder", "cephfs"),
    *("azureFile", "vsphereVolume", "azureDisk", "photonPersistentDisk"),
)
_OUTDATED = (
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
)
_GA_LABELS = {
    "failure-domain.beta.kubernetes.io/zone": "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region": "topology.kubernetes.io/region",
    "beta.kubernetes.io/os": "kubernetes.io/os",
    "beta.kubernetes.io/arch": "kubernetes.io/arch",
    "beta.kubernetes.io/instance-type": "node.kubernetes.io/instance-type",
}


class _PersistentVolume(Strategy):
    def default(self, obj: Object) -> None:
        spec, status = obj.setdefault("spec", {}), obj.setdefault("status", {})
        if not status.get("phase"):
            status["phase"] = "Pending"
        if not spec.get("persistentVolumeReclaimPolicy"):
            spec["persistentVolumeReclaimPolicy"] = "Retain"
        if spec.get("volumeMode") is None:
            spec["volumeMode"] = "Filesystem"
        round_resources(spec.get("capacity"))
        for kind in _DEFAULTED:
            if spec.get(kind) is not None:
                SOURCE_DEFAULTS[kind](spec[kind])

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is None:
            obj["status"] = {"phase": "Pending", "lastPhaseTransitionTime": obj["metadata"].get("creationTimestamp")}
        else:
            obj["status"] = old["status"]

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec, annotations = obj["spec"], annotations_of(obj)
        volume_spec(errors, "spec", spec, obj["metadata"].get("name", ""))
        if _MOUNT_OPTIONS in annotations and not any(spec.get(kind) is not None for kind in _MOUNTABLE_BY_ANNOTATION):
            text = "may not specify mount options for this volume type"
            errors.append(forbidden_field(f"metadata.annotations.{_MOUNT_OPTIONS}", text))
        if old is not None:
            _update(errors, spec, old["spec"])
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        spec, annotations = obj["spec"], annotations_of(obj)
        for key, text in _ANNOTATIONS.items():
            if key in annotations:
                yield f"metadata.annotations[{key}]: {text}"
        if spec.get("persistentVolumeReclaimPolicy") == "Recycle":
            yield f"spec.persistentVolumeReclaimPolicy: {_RECYCLE}"
        terms = ((spec.get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or ()
        for i, term in enumerate(terms):
            path = f"spec.nodeAffinity.required.nodeSelectorTerms[{i}]"
            yield from node_selector_term_warnings(path, term, values=False)
        for kind, shown, text in _OUTDATED:
            if spec.get(kind) is not None:
                yield f"spec.{shown}: {text}"


class _PersistentVolumeStatus(StatusStrategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        assert old is not None
        status, before = obj["status"], old["status"]
        since, was = status.get("lastPhaseTransitionTime"), before.get("lastPhaseTransitionTime")
        if status.get("phase") == before.get("phase"):
            if since is None and was is not None:
                status["lastPhaseTransitionTime"] = was
        elif since is None or since == was:
            status["lastPhaseTransitionTime"] = format_time(time.time())


def volume_spec(errors: Errors, path: str, spec: Mapping[str, Any], name: str, *, is_inline: bool = False) -> None:
    """ValidatePersistentVolumeSpec; `is_inline` for that of a VolumeAttachment, which stands for no claim's volume."""
    if is_inline:
        _inline(errors, path, spec)
    if not spec.get("accessModes"):
        errors.append(required(f"{path}.accessModes"))
    access_modes(errors, f"{path}.accessModes", spec.get("accessModes") or ())
    if not is_inline:
        _capacity(errors, f"{path}.capacity", spec.get("capacity"))
    policy = spec.get("persistentVolumeReclaimPolicy")
    if policy and is_inline and policy != "Retain":
        text = "may only be Retain in the context of inline volumes"
        errors.append(forbidden_field(f"{path}.persistentVolumeReclaimPolicy", text))
    elif policy and not is_inline and policy not in _RECLAIM_POLICIES:
        errors.append(not_supported(f"{path}.persistentVolumeReclaimPolicy", policy, _RECLAIM_POLICIES))
    affinity = spec.get("nodeAffinity")
    if affinity is not None and is_inline:
        errors.append(forbidden_field(f"{path}.nodeAffinity", _NOT_INLINE))
    elif affinity is not None and affinity.get("required") is None:
        errors.append(required(f"{path}.nodeAffinity.required", "must specify required node constraints"))
    elif affinity is not None:
        node_selector(errors, f"{path}.nodeAffinity.required", affinity["required"])
    _sources(errors, path, spec, name)
    host = (spec.get("hostPath") or {}).get("path")
    if policy == "Recycle" and host and posixpath.normpath(host) in ("/", "//"):
        text = "may not be 'recycle' for a hostPath mount of '/'"
        errors.append(forbidden_field(f"{path}.persistentVolumeReclaimPolicy", text))
    _classes_and_mode(errors, path, spec, is_inline)


_NOT_INLINE = "may not be specified in the context of inline volumes"


def _inline(errors: Errors, path: str, spec: Mapping[str, Any]) -> None:
    if spec.get("claimRef") is not None:
        errors.append(forbidden_field(f"{path}.claimRef", _NOT_INLINE))
    if spec.get("capacity"):
        errors.append(forbidden_field(f"{path}.capacity", _NOT_INLINE))
    if spec.get("csi") is None:
        errors.append(required(f"{path}.csi", "has to be specified in the context of inline volumes"))


def _capacity(errors: Errors, path: str, capacity: Mapping[str, Any] | None) -> None:
    if not capacity:
        errors.append(required(path))
    if not capacity or "storage" not in capacity or len(capacity) > 1:
        errors.append(not_supported(path, internal("{q", capacity), ("storage",)))
    for name, amount in (capacity or {}).items():
        basic_quantity(errors, f"{path}[{name}]", amount)
        positive_quantity(errors, f"{path}[{name}]", amount)


def _csi(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    pod_volumes.csi_driver_name(errors, f"{path}.driver", source.get("driver", ""))
    needs(errors, path, source, "volumeHandle")
    for field in _SECRETS:
        if source.get(field) is not None:
            _csi_secret(errors, f"{path}.{field}", source[field])


def _csi_secret(errors: Errors, path: str, ref: Mapping[str, Any]) -> None:
    required_name(errors, f"{path}.name", ref.get("name"), is_dns1123_subdomain)
    required_name(errors, f"{path}.namespace", ref.get("namespace"), is_dns1123_label)


def _local(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    if source.get("path"):
        no_backsteps(errors, f"{path}.path", source["path"])
    else:
        errors.append(required(f"{path}.path"))


_Rule = Callable[[Errors, str, Mapping[str, Any]], None]

_SOURCES: tuple[tuple[str, str, str, _Rule], ...] = (
    # (field, what upstream calls it where there are two, what it calls it elsewhere, its rules)
    ("hostPath", "hostPath", "hostPath", pod_volumes.host_path),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk", pod_volumes.gce_disk),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore", pod_volumes.aws_disk),
    ("glusterfs", "glusterfs", "glusterfs", pod_volumes.glusterfs_persistent),
    ("flocker", "flocker", "flocker", pod_volumes.flocker),
    ("nfs", "nfs", "nfs", pod_volumes.nfs),
    ("rbd", "rbd", "rbd", pod_volumes.rbd),
    ("quobyte", "quobyte", "quobyte", pod_volumes.quobyte),
    ("cephfs", "cephFS", "cephfs", pod_volumes.cephfs),
    ("iscsi", "iscsi", "iscsi", lambda errors, path, source: None),  # needs the volume's name too
    ("cinder", "cinder", "cinder", pod_volumes.cinder_persistent),
    ("fc", "fc", "fc", pod_volumes.fibre_channel),
    ("flexVolume", "", "flexVolume", pod_volumes.flex),
    ("azureFile", "azureFile", "azureFile", pod_volumes.azure_file_persistent),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume", pod_volumes.vsphere),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk", pod_volumes.photon),
    ("portworxVolume", "portworxVolume", "portworxVolume", pod_volumes.portworx),
    ("azureDisk", "azureDisk", "azureDisk", pod_volumes.azure_disk),
    ("scaleIO", "scaleIO", "scaleIO", pod_volumes.scale_io),
    ("local", "local", "local", _local),
    ("storageos", "storageos", "storageos", pod_volumes.storage_os_persistent),
    ("csi", "csi", "csi", _csi),
)


def _sources(errors: Errors, path: str, spec: Mapping[str, Any], name: str) -> None:
    """Exactly one."""
    found = False
    for field, shown_twice, shown, rule in _SOURCES:
        source = spec.get(field)
        if source is None:
            continue
        if found and shown_twice:
            errors.append(forbidden_field(f"{path}.{shown_twice}", "may not specify more than 1 volume type"))
            continue
        found = True
        rule(errors, f"{path}.{shown}", source)
        if field == "iscsi":
            pod_volumes.iscsi_persistent(errors, f"{path}.iscsi", source, name)
        elif field == "local" and spec.get("nodeAffinity") is None:
            errors.append(required(f"{path}.nodeAffinity", "Local volume requires node affinity"))
    if not found:
        errors.append(required(path, "must specify a volume type"))


def _classes_and_mode(errors: Errors, path: str, spec: Mapping[str, Any], is_inline: bool) -> None:
    storage_class, mode, attributes = (
        spec.get("storageClassName"),
        spec.get("volumeMode"),
        spec.get("volumeAttributesClassName"),
    )
    if storage_class and is_inline:
        errors.append(forbidden_field(f"{path}.storageClassName", _NOT_INLINE))
    elif storage_class:
        check(errors, f"{path}.storageClassName", storage_class, is_dns1123_subdomain(storage_class))
    if mode is not None and is_inline and mode != "Filesystem":
        text = "may not specify volumeMode other than Filesystem in the context of inline volumes"
        errors.append(forbidden_field(f"{path}.volumeMode", text))
    elif mode is not None and not is_inline and mode not in VOLUME_MODES:
        errors.append(not_supported(f"{path}.volumeMode", mode, VOLUME_MODES))
    if attributes is None:
        return
    if attributes:
        check(errors, f"{path}.volumeAttributesClassName", attributes, is_dns1123_subdomain(attributes))
    else:
        errors.append(required(f"{path}.volumeAttributesClassName", "an empty string is disallowed"))
    if spec.get("csi") is None:
        errors.append(required(f"{path}.csi", "has to be specified when using volumeAttributesClassName"))


def _update(errors: Errors, spec: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """ValidatePersistentVolumeUpdate: what volume it is does not change."""
    source, was = _source_of(spec), _source_of(before)
    if source.get("csi") and was.get("csi") and was["csi"].get("controllerExpandSecretRef") is None:
        # This one may be added.
        source["csi"] = {k: v for k, v in source["csi"].items() if k != "controllerExpandSecretRef"}
    if not same(source, was):
        difference = internal_diff("#core.PersistentVolumeSource", was, source)
        text = f"spec.persistentvolumesource is immutable after creation\n{difference}"
        errors.append(forbidden_field("spec.persistentvolumesource", text))
    if spec.get("volumeMode") != before.get("volumeMode"):
        errors.append(invalid_value("volumeMode", spec.get("volumeMode"), IMMUTABLE))
    affinity, old_affinity = spec.get("nodeAffinity"), before.get("nodeAffinity")
    if old_affinity is not None and not _same_affinity(affinity, old_affinity):
        shown = None if affinity is None else internal("#core.VolumeNodeAffinity", affinity)
        text = f"{IMMUTABLE}, except for updating from beta label to GA"
        errors.append(invalid_value("nodeAffinity", shown, text))
    if before.get("volumeAttributesClassName") is not None and spec.get("volumeAttributesClassName") is None:
        text = "update from non-nil value to nil is forbidden"
        errors.append(forbidden_field("spec.volumeAttributesClassName", text))


def _source_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {field: spec[field] for field, *_ in _SOURCES if spec.get(field) is not None}


def _same_affinity(affinity: Any, before: Any) -> bool:
    """A requirement may move from a beta label to the one that replaced it."""
    if isinstance(affinity, dict) and isinstance(before, dict):
        if "operator" in before and _GA_LABELS.get(before.get("key", ""), "") == affinity.get("key", ""):
            before = {**before, "key": affinity.get("key", "")}
        fields = affinity.keys() | before.keys()
        return all(_same_affinity(affinity.get(field), before.get(field)) for field in fields)
    if isinstance(affinity, list) and isinstance(before, list):
        return len(affinity) == len(before) and all(map(_same_affinity, affinity, before))
    return same(affinity, before)


_SHORT_MODES = (
    ("ReadWriteOnce", "RWO"),
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOncePod", "RWOP"),
)


def short_modes(modes: Iterable[str] | None) -> str:
    """Access modes as `kubectl get` shows them: "RWO,ROX"."""
    present = set(modes or ())
    return ",".join(short for mode, short in _SHORT_MODES if mode in present)


def phase_cell(obj: Object, now: float) -> str:
    return "Terminating" if is_deleting(obj) else str((obj.get("status") or {}).get("phase", ""))


def class_cell(obj: Object, now: float) -> str:
    annotations = annotations_of(obj)
    return str(annotations[BETA_CLASS] if BETA_CLASS in annotations else _spec(obj).get("storageClassName") or "")


def or_unset(field: str) -> Callable[[Object, float], str]:
    return lambda obj, now: "<unset>" if _spec(obj).get(field) is None else str(_spec(obj)[field])


def _spec(obj: Object) -> Mapping[str, Any]:
    return obj.get("spec") or {}


def _claim(obj: Object, now: float) -> str:
    ref = _spec(obj).get("claimRef")
    return "" if ref is None else f"{ref.get('namespace', '')}/{ref.get('name', '')}"


_strategy = _PersistentVolume()

PERSISTENTVOLUMES = Resource(
    gvr=GVR_PERSISTENTVOLUMES,
    kind="PersistentVolume",
    namespaced=False,
    short_names=("pv",),
    strategy=_strategy,
    status=_PersistentVolumeStatus(_strategy),
    columns=(
        NAME,
        Column("Capacity", lambda obj, now: str((_spec(obj).get("capacity") or {}).get("storage", "0"))),
        Column("Access Modes", lambda obj, now: short_modes(_spec(obj).get("accessModes"))),
        Column("Reclaim Policy", lambda obj, now: _spec(obj).get("persistentVolumeReclaimPolicy", "")),
        Column("Status", phase_cell),
        Column("Claim", _claim),
        Column("StorageClass", class_cell),
        Column("VolumeAttributesClass", or_unset("volumeAttributesClassName")),
        Column("Reason", lambda obj, now: (obj.get("status") or {}).get("reason", "")),
        AGE,
        Column("VolumeMode", or_unset("volumeMode"), priority=1),
    ),
)
