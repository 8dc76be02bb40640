"""Rules on the volumes of a pod, one function a volume type; persistent volumes share most of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import (
    duplicate,
    forbidden_field,
    go_quote,
    invalid_value,
    not_supported,
    required,
    too_long,
)
from kone.apimachinery.names import is_dns1123_label, is_dns1123_subdomain
from kone.apimachinery.objects import Object
from kone.registry.core.resource_rules import quantity
from kone.registry.core.volume_files import (
    descending_path,
    downward_api,
    keyed_items,
    needs,
    no_backsteps,
    projected,
)
from kone.registry.generic import validate_annotations
from kone.registry.rules import Errors, check, labels, one_of

PULL_POLICIES = ("Always", "IfNotPresent", "Never")
HOST_PATH_TYPES = ("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket")
_ISCSI_SIZE = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters"
_ISCSI_TOO_LONG = f"{_ISCSI_SIZE} if iscsi.initiatorName is specified."
_ISCSI_NAMES = (
    ("iqn", re.compile(r"iqn\.\d{4}-\d{2}\.([A-Za-z0-9.\-]+)(:[^,;*&$|\s]+)\Z")),
    ("eui", re.compile(r"eui.[A-Za-z0-9]{16}\Z")),
    ("naa", re.compile(r"naa.[A-Za-z0-9]{32}\Z")),
)


def _secret_ref(errors: Errors, path: str, source: Mapping[str, Any], *fields: str) -> None:
    ref = source.get("secretRef")
    if ref is not None:
        needs(errors, f"{path}.secretRef", ref, *fields)


def empty_dir(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    if source.get("sizeLimit") is not None and quantity(source["sizeLimit"]).nanos < 0:
        errors.append(forbidden_field(f"{path}.sizeLimit", "SizeLimit field must be a valid resource quantity"))


def host_path(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    if not source.get("path"):
        errors.append(required(f"{path}.path"))
        return
    no_backsteps(errors, f"{path}.path", source["path"])
    kind = source.get("type")
    if kind is not None and kind not in HOST_PATH_TYPES:
        errors.append(not_supported(f"{path}.type", kind, HOST_PATH_TYPES))


def _git_repo(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "repository")
    descending_path(errors, f"{path}.directory", source.get("directory", ""))


def _partition(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    partition = source.get("partition", 0)
    if not 0 <= partition <= 255:
        errors.append(invalid_value(f"{path}.partition", partition, "must be between 1 and 255, inclusive"))


def gce_disk(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "pdName")
    _partition(errors, path, source)


def aws_disk(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "volumeID")
    _partition(errors, path, source)


def _secret(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "secretName")
    keyed_items(errors, path, source)


def _config_map(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "name")
    keyed_items(errors, path, source)


def nfs(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "server", "path")
    if not source.get("path", "").startswith("/"):
        errors.append(invalid_value(f"{path}.path", source.get("path", ""), "must be an absolute path"))


def _iscsi_name(errors: Errors, path: str, name: str, unknown: str) -> None:
    for prefix, shape in _ISCSI_NAMES:
        if name.startswith(prefix):
            found = shape.search(name) if prefix == "iqn" else shape.match(name)
            if not found:
                errors.append(invalid_value(path, name, "must be valid format"))
            return
    errors.append(invalid_value(path, name, unknown))


def _iscsi_common(errors: Errors, path: str, source: Mapping[str, Any], unknown: str) -> None:
    if not source.get("iqn"):
        errors.append(required(f"{path}.iqn"))
    else:
        _iscsi_name(errors, f"{path}.iqn", source["iqn"], unknown)
    lun = source.get("lun", 0)
    if not 0 <= lun <= 255:
        errors.append(invalid_value(f"{path}.lun", lun, "must be between 0 and 255, inclusive"))
    if (source.get("chapAuthDiscovery") or source.get("chapAuthSession")) and source.get("secretRef") is None:
        errors.append(required(f"{path}.secretRef"))


def _iscsi(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    unknown = "must be valid format starting with iqn, eui, or naa"
    needs(errors, path, source, "targetPortal")
    _iscsi_common(errors, path, source, unknown)
    if source.get("initiatorName") is not None:
        _iscsi_name(errors, f"{path}.initiatorname", source["initiatorName"], unknown)


def iscsi_persistent(errors: Errors, path: str, source: Mapping[str, Any], volume_name: str) -> None:
    unknown = "must be valid format"
    needs(errors, path, source, "targetPortal")
    portal = source.get("targetPortal", "")
    if source.get("initiatorName") is not None and len(f"{volume_name}:{portal}") > 64:
        errors.append(invalid_value(f"{path}.targetportal", portal, _ISCSI_TOO_LONG))
    _iscsi_common(errors, path, source, unknown)
    _secret_ref(errors, path, source, "name")
    if source.get("initiatorName") is not None:
        _iscsi_name(errors, f"{path}.initiatorname", source["initiatorName"], unknown)


def _glusterfs(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "endpoints", "path")


def glusterfs_persistent(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    _glusterfs(errors, path, source)
    namespace = source.get("endpointsNamespace")
    if namespace == "":
        text = "if the endpointnamespace is set, it must be a valid namespace name"
        errors.append(invalid_value(f"{path}.endpointsNamespace", namespace, text))
    elif namespace is not None:
        check(errors, f"{path}.endpointsNamespace", namespace, is_dns1123_label(namespace))


def flocker(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    name, uuid = source.get("datasetName", ""), source.get("datasetUUID", "")
    if not name and not uuid:
        errors.append(required(path, "one of datasetName and datasetUUID is required"))
    if name and uuid:
        text = "datasetName and datasetUUID can not be specified simultaneously"
        errors.append(invalid_value(path, "resource", text))
    if "/" in name:
        errors.append(invalid_value(f"{path}.datasetName", name, "must not contain '/'"))


def _claim(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "claimName")


def rbd(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "monitors", "image")


def _cinder(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "volumeID")
    _secret_ref(errors, path, source, "name")


def cinder_persistent(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "volumeID")
    _secret_ref(errors, path, source, "name", "namespace")


def cephfs(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "monitors")


def quobyte(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    registry, text = source.get("registry", ""), "must be a host:port pair or multiple pairs separated by commas"
    if not registry:
        errors.append(required(f"{path}.registry", text))
    elif len(source.get("tenant", "")) >= 65:
        why = "must be a UUID and may not exceed a length of 64 characters"
        errors.append(required(f"{path}.tenant", why))
    else:
        for pair in registry.split(","):
            if not re.match(r"(\[[^\[\]]*\]|[^:\[\]]*):[^:\[\]]*\Z", pair):
                errors.append(invalid_value(f"{path}.registry", registry, text))
    needs(errors, path, source, "volume")


def fibre_channel(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    wwns, wwids, lun = source.get("targetWWNs"), source.get("wwids"), source.get("lun")
    at = f"{path}.targetWWNs"
    if not wwns and not wwids:
        errors.append(required(at, "must specify either targetWWNs or wwids, but not both"))
    if wwns and wwids:
        errors.append(invalid_value(at, wwns, "targetWWNs and wwids can not be specified simultaneously"))
    if wwns:
        if lun is None:
            errors.append(required(f"{path}.lun", "lun is required if targetWWNs is specified"))
        elif not 0 <= lun <= 255:
            errors.append(invalid_value(f"{path}.lun", lun, "must be between 0 and 255, inclusive"))


def flex(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "driver")
    for key in sorted(source.get("options") or ()):
        domain = "." + key.partition("/")[0].lower()
        if domain.endswith((".kubernetes.io", ".k8s.io")):
            text = "kubernetes.io and k8s.io namespaces are reserved"
            errors.append(invalid_value(f"{path}.options[{key}]", key, text))


def _azure_file(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "secretName", "shareName")


def azure_file_persistent(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    _azure_file(errors, path, source)
    if source.get("secretNamespace") == "":
        errors.append(required(f"{path}.secretNamespace"))


def azure_disk(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "diskName", "diskURI")
    uri, caching, kind = source.get("diskURI", ""), source.get("cachingMode"), source.get("kind")
    if caching is not None and caching not in ("None", "ReadOnly", "ReadWrite"):
        errors.append(not_supported(f"{path}.cachingMode", caching, ("None", "ReadOnly", "ReadWrite")))
    if kind is not None and kind not in ("Dedicated", "Managed", "Shared"):
        errors.append(not_supported(f"{path}.kind", kind, ("Dedicated", "Managed", "Shared")))
    if kind == "Managed" and not uri.startswith("/subscriptions/"):
        shape = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
        errors.append(not_supported(f"{path}.diskURI", uri, (shape,)))
    if kind is not None and kind != "Managed" and not uri.startswith("https://"):
        shape = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"
        errors.append(not_supported(f"{path}.diskURI", uri, (shape,)))


def vsphere(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "volumePath")


def photon(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "pdID")


def portworx(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "volumeID")


def scale_io(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "gateway", "system", "volumeName")


def _storage_os_names(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    name, namespace = source.get("volumeName", ""), source.get("volumeNamespace", "")
    if not name:
        errors.append(required(f"{path}.volumeName"))
    else:
        check(errors, f"{path}.volumeName", name, is_dns1123_label(name))
    if namespace:
        check(errors, f"{path}.volumeNamespace", namespace, is_dns1123_label(namespace))


def _storage_os(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    _storage_os_names(errors, path, source)
    _secret_ref(errors, path, source, "name")


def storage_os_persistent(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    _storage_os_names(errors, path, source)
    _secret_ref(errors, path, source, "name", "namespace")


def csi_driver_name(errors: Errors, path: str, name: str) -> None:
    if not name:
        errors.append(required(path))
        return
    if len(name.encode()) > 63:
        errors.append(too_long(path, 63))
    check(errors, path, name, is_dns1123_subdomain(name.lower()))


def _csi(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    csi_driver_name(errors, f"{path}.driver", source.get("driver", ""))
    ref = source.get("nodePublishSecretRef")
    if ref is not None:
        if not ref.get("name"):
            errors.append(required(f"{path}.nodePublishSecretRef.name"))
        else:
            check(errors, f"{path}.name", ref["name"], is_dns1123_subdomain(ref["name"]))


def _image(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    needs(errors, path, source, "reference")
    one_of(errors, f"{path}.pullPolicy", source.get("pullPolicy"), PULL_POLICIES)


_Source = Callable[[Errors, str, Mapping[str, Any]], None]
# (JSON name, what the path says when it is one too many, what the path says of its own errors, rule). The odd spellings
# in the middle columns are upstream's.
_SOURCES: tuple[tuple[str, str, str, _Source], ...] = (
    ("emptyDir", "emptyDir", "emptyDir", empty_dir),
    ("hostPath", "hostPath", "hostPath", host_path),
    ("gitRepo", "gitRepo", "gitRepo", _git_repo),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk", gce_disk),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore", aws_disk),
    ("secret", "secret", "secret", _secret),
    ("nfs", "nfs", "nfs", nfs),
    ("iscsi", "iscsi", "iscsi", _iscsi),
    ("glusterfs", "glusterfs", "glusterfs", _glusterfs),
    ("flocker", "flocker", "flocker", flocker),
    ("persistentVolumeClaim", "persistentVolumeClaim", "persistentVolumeClaim", _claim),
    ("rbd", "rbd", "rbd", rbd),
    ("cinder", "cinder", "cinder", _cinder),
    ("cephfs", "cephFS", "cephfs", cephfs),
    ("quobyte", "quobyte", "quobyte", quobyte),
    ("downwardAPI", "downwarAPI", "downwardAPI", downward_api),
    ("fc", "fc", "fc", fibre_channel),
    ("flexVolume", "flexVolume", "flexVolume", flex),
    ("configMap", "configMap", "configMap", _config_map),
    ("azureFile", "azureFile", "azureFile", _azure_file),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume", vsphere),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk", photon),
    ("portworxVolume", "portworxVolume", "portworxVolume", portworx),
    ("azureDisk", "azureDisk", "azureDisk", azure_disk),
    ("storageos", "storageos", "storageos", _storage_os),
    ("projected", "projected", "projected", projected),
    ("scaleIO", "scaleIO", "scaleIO", scale_io),
    ("csi", "csi", "csi", _csi),
)
_BY_NAME = {entry[0]: entry for entry in _SOURCES}
_ORDER = {entry[0]: i for i, entry in enumerate(_SOURCES)} | {"ephemeral": 100, "image": 101}


def volumes(
    errors: Errors,
    path: str,
    found: Sequence[Object],
    pod_name: str,
    claim_template: Callable[[Errors, str, Mapping[str, Any]], None],
) -> dict[str, Object]:
    """The rules of all volumes; returns those without errors by name, which mounts may refer to.

    `pod_name` is "" in templates, where the names of claims to come are unknown. `claim_template` is the rule of a
    PersistentVolumeClaimTemplate's spec and metadata.
    """
    created = {f"{pod_name}-{v.get('name', '')}" for v in found if v.get("ephemeral") is not None} if pod_name else ()
    good: dict[str, Object] = {}
    for i, volume in enumerate(found):
        at, name, before = f"{path}[{i}]", volume.get("name", ""), len(errors)
        _source(errors, at, volume, pod_name, claim_template)
        if not name:
            errors.append(required(f"{at}.name"))
        else:
            check(errors, f"{at}.name", name, is_dns1123_label(name))
        if name in good:
            errors.append(duplicate(f"{at}.name", name))
        if len(errors) == before:
            good[name] = volume
        claim = volume.get("persistentVolumeClaim")
        if claim is not None and claim.get("claimName") in created:
            text = "must not reference a PVC that gets created for an ephemeral volume"
            errors.append(invalid_value(f"{at}.persistentVolumeClaim.claimName", claim["claimName"], text))
    return good


def _source(
    errors: Errors,
    path: str,
    volume: Object,
    pod_name: str,
    claim_template: Callable[[Errors, str, Mapping[str, Any]], None],
) -> None:
    kinds = [kind for kind, source in volume.items() if source is not None and kind in _ORDER]
    if not kinds:
        errors.append(required(path, "must specify a volume type"))
        return
    if len(kinds) > 1:
        kinds.sort(key=_ORDER.__getitem__)
    name = volume.get("name", "")
    for position, kind in enumerate(kinds):
        source = volume[kind]
        too_many_name = _BY_NAME[kind][1] if kind in _BY_NAME else kind
        if position:
            errors.append(forbidden_field(f"{path}.{too_many_name}", "may not specify more than 1 volume type"))
        elif kind == "ephemeral":
            _ephemeral(errors, path, source, name, pod_name, claim_template)
        elif kind == "image":
            _image(errors, f"{path}.image", source)
        else:
            entry = _BY_NAME[kind]
            entry[3](errors, f"{path}.{entry[2]}", source)
        if kind == "iscsi" and source.get("initiatorName") is not None and len(f"{name}:{_portal(source)}") > 64:
            errors.append(invalid_value(f"{path}.name", name, _ISCSI_TOO_LONG))


def _portal(source: Mapping[str, Any]) -> str:
    return str(source.get("targetPortal", ""))


def _ephemeral(
    errors: Errors,
    path: str,
    source: Mapping[str, Any],
    name: str,
    pod_name: str,
    claim_template: Callable[[Errors, str, Mapping[str, Any]], None],
) -> None:
    at = f"{path}.ephemeral.volumeClaimTemplate"
    if source.get("volumeClaimTemplate") is None:
        errors.append(required(at))
    else:
        claim_template(errors, at, source["volumeClaimTemplate"])
    if pod_name and name:
        claim = f"{pod_name}-{name}"
        for text in is_dns1123_subdomain(claim):
            errors.append(invalid_value(f"{path}.name", name, f"PVC name {go_quote(claim)}: {text}"))


_TEMPLATE_FIELDS = (
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uID",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
)


def template_metadata(errors: Errors, path: str, metadata: Mapping[str, Any]) -> None:
    """ValidateTemplateObjectMeta: only labels and annotations may be set."""
    errors.extend(validate_annotations(metadata.get("annotations") or {}, f"{path}.annotations"))
    labels(errors, f"{path}.labels", metadata.get("labels"))
    for field in _TEMPLATE_FIELDS:
        if metadata.get("uid" if field == "uID" else field):
            errors.append(forbidden_field(f"{path}.{field}", "cannot be set"))
