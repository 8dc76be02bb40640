"""storage.k8s.io: classes of volumes and what drivers say of themselves, their nodes and their capacity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import FieldError, duplicate, forbidden_field, invalid_value, not_supported, required
from kone.apimachinery.errors import too_long as _too_long
from kone.apimachinery.kinds import CSIDRIVERS, CSINODES, CSISTORAGECAPACITIES, GVR, STORAGECLASSES, VOLUMEATTACHMENTS
from kone.apimachinery.names import is_dns1123_subdomain, is_qualified_name, max_bytes_error
from kone.apimachinery.objects import Object, dig
from kone.apimachinery.quantity import parse_quantity
from kone.apimachinery.users import User
from kone.registry.core.persistentvolume import volume_spec
from kone.registry.core.pod_volumes import csi_driver_name
from kone.registry.core.pod_warnings import DEPRECATED_NODE_LABELS
from kone.registry.equality import same
from kone.registry.generic import IMMUTABLE, NOT_NEGATIVE
from kone.registry.internal import internal
from kone.registry.resource import AGE, CREATED_AT, NAME, Column, Resource
from kone.registry.rules import Errors, at_least_0, check, has_invalid_selector_value, label_selector
from kone.registry.strategy import ALL_METADATA, StatusStrategy, Strategy

GROUP = "storage.k8s.io"
VOLUMEATTRIBUTESCLASSES = GVR(GROUP, "v1", "volumeattributesclasses")

DEFAULT_CLASS_ANNOTATIONS = (
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
)

# -- storage classes --------------------------------------------------------------------------------------------------

_RECLAIM_POLICIES = ("Delete", "Retain")
_BINDING_MODES = ("Immediate", "WaitForFirstConsumer")
_MAX_PARAMETERS, _MAX_PARAMETER_BYTES = 512, 256 * 1024


def _provisioner(errors: Errors, later: Errors, path: str, name: str) -> None:
    if name:
        check(errors, path, name.lower(), is_qualified_name(name.lower()))
    else:
        later.append(required(path))


def _parameters(errors: Errors, path: str, parameters: Mapping[str, str]) -> None:
    if len(parameters) > _MAX_PARAMETERS:
        errors.append(_too_long(path, _MAX_PARAMETERS))
        return
    if "" in parameters:
        errors.append(invalid_value(path, "", "field can not be empty."))
    if sum(len(key.encode()) + len(value.encode()) for key, value in parameters.items()) > _MAX_PARAMETER_BYTES:
        errors.append(_too_long(path, _MAX_PARAMETER_BYTES))


def _unchanged(obj: Object, old: Object, fields: Iterable[str]) -> Errors:
    """The newer, declarative kind of immutability: its errors do not show the value."""
    return [
        invalid_value(field, None, IMMUTABLE)
        for field in fields
        if (obj.get(field) or None) != (old.get(field) or None)
    ]


class _StorageClass(Strategy):
    def default(self, obj: Object) -> None:
        if obj.get("reclaimPolicy") is None:
            obj["reclaimPolicy"] = "Delete"
        if obj.get("volumeBindingMode") is None:
            obj["volumeBindingMode"] = "Immediate"

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        _provisioner(errors, later, "provisioner", obj.get("provisioner", ""))
        _parameters(errors, "parameters", obj.get("parameters") or {})
        reclaim, mode = obj.get("reclaimPolicy"), obj.get("volumeBindingMode")
        if reclaim and reclaim not in _RECLAIM_POLICIES:
            errors.append(not_supported("reclaimPolicy", reclaim, _RECLAIM_POLICIES))
        if mode not in _BINDING_MODES:
            errors.append(not_supported("volumeBindingMode", mode, _BINDING_MODES))
        _topologies(errors, "allowedTopologies", obj.get("allowedTopologies") or ())
        if old is not None:
            later += _unchanged(obj, old, ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"))
        return errors + later

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        for i, term in enumerate(obj.get("allowedTopologies") or ()):
            for j, expression in enumerate(term.get("matchLabelExpressions") or ()):
                key = expression.get("key", "")
                if key in DEPRECATED_NODE_LABELS:
                    path = f"allowedTopologies[{i}].matchLabelExpressions[{j}].key"
                    yield f"{path}: {DEPRECATED_NODE_LABELS[key]}"


def _topologies(errors: Errors, path: str, terms: Sequence[Mapping[str, Any]]) -> None:
    seen: list[dict[str, set[str]]] = []
    for i, term in enumerate(terms):
        found: dict[str, set[str]] = {}
        at = f"{path}[{i}].matchLabelExpressions"
        for j, expression in enumerate(term.get("matchLabelExpressions") or ()):
            key, values = expression.get("key", ""), expression.get("values") or ()
            if not values:
                errors.append(required(f"{at}[{j}].values"))
            for k, value in enumerate(values):
                if value in values[:k]:
                    errors.append(duplicate(f"{at}[{j}].values[{k}]", value))
            check(errors, f"{at}[{j}].key", key, is_qualified_name(key))
            if key in found:
                errors.append(duplicate(f"{at}[{j}].key", key))
            found[key] = set(values)
        if found in seen or not found:  # upstream finds what is empty among terms that it has not read yet
            errors.append(duplicate(at, ""))
        seen.append(found)


def is_default_class(obj: Object) -> bool:
    annotations = obj["metadata"].get("annotations") or {}
    return any(annotations.get(name) == "true" for name in DEFAULT_CLASS_ANNOTATIONS)


def _class_name(obj: Object, now: float) -> str:
    return f"{obj['metadata'].get('name', '')}{' (default)' if is_default_class(obj) else ''}"


class _VolumeAttributesClass(Strategy):
    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        later: Errors = []
        for field in ("driverName", "parameters") if old is not None else ():
            if obj.get(field) != (old or {}).get(field):
                errors.append(forbidden_field(field, f"updates to {field} are forbidden."))
        _provisioner(errors, later, "driverName", obj.get("driverName", ""))
        parameters = obj.get("parameters") or {}
        _parameters(errors, "parameters", parameters)
        if not parameters:
            errors.append(required("parameters", "must contain at least one key/value pair"))
        return errors + later


# -- drivers ----------------------------------------------------------------------------------------------------------

_FS_GROUP_POLICIES = ("File", "None", "ReadWriteOnceWithFSType")
_LIFECYCLE_MODES = ("Persistent", "Ephemeral")
_MIN_TOKEN_S, _MAX_TOKEN_S = 600, 1 << 32
_MIN_UPDATE_PERIOD_S = 10
_TOKENS_IN_SECRETS = (
    "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible "
    "logging of tokens in volume attributes"
)
_DRIVER_DEFAULTS: Mapping[str, Any] = {
    "attachRequired": True,
    "podInfoOnMount": False,
    "storageCapacity": False,
    "fsGroupPolicy": "ReadWriteOnceWithFSType",
    "requiresRepublish": False,
    "seLinuxMount": False,
    "preventPodSchedulingIfMissing": False,
}


class _CSIDriver(Strategy):
    unconditional_update = False

    def default(self, obj: Object) -> None:
        spec = obj["spec"]
        for name, value in _DRIVER_DEFAULTS.items():
            if spec.get(name) is None:
                spec[name] = value
        if not spec.get("volumeLifecycleModes"):
            spec["volumeLifecycleModes"] = ["Persistent"]

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        if old is not None and obj["spec"] != old["spec"]:
            obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj["spec"]
        if spec["fsGroupPolicy"] not in _FS_GROUP_POLICIES:
            errors.append(not_supported("spec.fsGroupPolicy", spec["fsGroupPolicy"], _FS_GROUP_POLICIES))
        _token_requests(errors, "spec.tokenRequests", spec.get("tokenRequests") or ())
        modes = spec["volumeLifecycleModes"]
        for mode in modes:
            if mode not in _LIFECYCLE_MODES:
                errors.append(not_supported("spec.volumeLifecycleModes", mode, _LIFECYCLE_MODES))
        period = spec.get("nodeAllocatableUpdatePeriodSeconds")
        if period is not None and period < _MIN_UPDATE_PERIOD_S:
            path, text = "spec.nodeAllocatableUpdatePeriodSeconds", "must be greater than or equal to 10 seconds"
            errors.append(invalid_value(path, period, text))
        in_secrets = spec.get("serviceAccountTokenInSecrets")
        if in_secrets is not None and not spec.get("tokenRequests"):
            why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified"
            errors.append(invalid_value("spec.serviceAccountTokenInSecrets", in_secrets, why))
        if old is not None:
            before = old["spec"]
            if spec["attachRequired"] != before.get("attachRequired"):
                errors.append(invalid_value("spec.attachedRequired", spec["attachRequired"], IMMUTABLE))
            if modes != before.get("volumeLifecycleModes"):
                errors.append(invalid_value("spec.volumeLifecycleModes", modes, IMMUTABLE))
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        requests = obj["spec"].get("tokenRequests") or ()
        changed = old is None or requests != (old["spec"].get("tokenRequests") or ())
        if requests and changed and obj["spec"].get("serviceAccountTokenInSecrets") is None:
            yield _TOKENS_IN_SECRETS


def _token_requests(errors: Errors, path: str, requests: Sequence[Mapping[str, Any]]) -> None:
    seen: set[str] = set()
    for i, request in enumerate(requests):
        audience, seconds = request.get("audience", ""), request.get("expirationSeconds")
        if audience in seen:
            errors.append(duplicate(f"{path}[{i}].audience", audience))
            continue
        seen.add(audience)
        if seconds is not None and seconds < _MIN_TOKEN_S:
            text = "may not specify a duration less than 10 minutes"
            errors.append(invalid_value(f"{path}[{i}].expirationSeconds", seconds, text))
        if seconds is not None and seconds > _MAX_TOKEN_S:
            text = "may not specify a duration larger than 2^32 seconds"
            errors.append(invalid_value(f"{path}[{i}].expirationSeconds", seconds, text))


def _tokens(obj: Object, now: float) -> str:
    requests = dig(obj, "spec", "tokenRequests")
    return "<unset>" if requests is None else ",".join(request.get("audience", "") for request in requests)


class _CSINode(Strategy):
    unconditional_update = False

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        obj["status"] = dict((old or {}).get("status") or {})

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        drivers = dig(obj, "spec", "drivers", default=())
        seen: set[str] = set()
        for i, driver in enumerate(drivers):
            _node_driver(errors, f"spec.drivers[{i}]", driver, seen)
        for before in dig(old, "spec", "drivers", default=()):
            for driver in drivers:
                if driver.get("name") == before.get("name") and not same(_fixed(driver), _fixed(before)):
                    shown = internal("#storage.CSINodeDriver", _fixed(driver))
                    errors.append(invalid_value("spec.drivers", shown, IMMUTABLE))
        return errors


def _fixed(driver: Mapping[str, Any]) -> Object:
    return {key: value for key, value in driver.items() if key != "allocatable"}


def _node_driver(errors: Errors, path: str, driver: Mapping[str, Any], seen: set[str]) -> None:
    name, node_id = driver.get("name", ""), driver.get("nodeID", "")
    csi_driver_name(errors, f"{path}.name", name)
    if not node_id:
        errors.append(required(f"{path}.nodeID"))
    elif len(node_id.encode()) > 256:
        errors.append(invalid_value(f"{path}.nodeID", node_id, "must be 256 characters or less"))
    at_least_0(errors, f"{path}.allocatable.count", dig(driver, "allocatable", "count"))
    if name in seen:
        errors.append(duplicate(f"{path}.name", name))
    seen.add(name)
    keys = driver.get("topologyKeys") or ()
    for i, key in enumerate(keys):
        if not key:
            errors.append(required(path))
        if key in keys[:i]:
            errors.append(duplicate(path, key))
        check(errors, path, key, is_qualified_name(key))


class _CSIStorageCapacity(Strategy):
    unconditional_update = False

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        name = obj.get("storageClassName", "")
        any_value = has_invalid_selector_value((old or {}).get("nodeTopology"))
        label_selector(errors, "nodeTopology", obj.get("nodeTopology"), any_value=any_value)
        check(errors, "storageClassName", name, is_dns1123_subdomain(name))
        capacity = obj.get("capacity")
        if capacity is not None and parse_quantity(capacity).nanos < 0:
            errors.append(invalid_value("capacity", capacity, NOT_NEGATIVE))
        if old is not None:
            topology = obj.get("nodeTopology")
            if not same(topology, old.get("nodeTopology")):
                shown = None if topology is None else internal("#metav1.LabelSelector", topology)
                errors.append(invalid_value("nodeTopology", shown, IMMUTABLE))
            if name != old.get("storageClassName", ""):
                errors.append(invalid_value("storageClassName", name, IMMUTABLE))
        return errors

    def warnings(self, obj: Object, old: Object | None) -> Iterable[str]:
        topology = obj.get("nodeTopology") or {}
        for i, expression in enumerate(topology.get("matchExpressions") or ()):
            key = expression.get("key", "")
            if key in DEPRECATED_NODE_LABELS:
                yield f"nodeTopology.matchExpressions[{i}].key: {key} is {DEPRECATED_NODE_LABELS[key]}"
        for key in topology.get("matchLabels") or ():
            if key in DEPRECATED_NODE_LABELS:
                yield f"nodeTopology.matchLabels.{key}: {DEPRECATED_NODE_LABELS[key]}"


# -- attachments ------------------------------------------------------------------------------------------------------

_MAX_METADATA_BYTES, _MAX_ERROR_BYTES = 256 * 1024, 1024
_MAX_DRIVER_NAME = 63
_CASELESS = (
    "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'Example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_ONE_SOURCE = "must specify exactly one of inlineVolumeSpec and persistentVolumeName"


class _VolumeAttachment(Strategy):
    unconditional_update = False

    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        obj["status"] = {"attached": False} if old is None else old.get("status", {"attached": False})

    def validate(self, obj: Object, old: Object | None) -> Iterable[FieldError]:
        errors: Errors = []
        spec = obj.get("spec") or {}
        source = spec.get("source") or {}
        inline, volume, node = (
            source.get("inlineVolumeSpec"),
            source.get("persistentVolumeName"),
            spec.get("nodeName", ""),
        )
        later: Errors = []
        _attacher(later, "spec.attacher", spec.get("attacher", ""))
        if inline is None and volume is None:
            errors.append(required("spec.source", _ONE_SOURCE))
        elif inline is not None and volume is not None:
            errors.append(forbidden_field("spec.source", _ONE_SOURCE))
        elif volume == "":
            why = "must specify non empty persistentVolumeName"
            errors.append(required("spec.source.persistentVolumeName", why))
        elif inline is not None:
            volume_spec(errors, "spec.source.inlineVolumeSpec", inline, "", is_inline=True)
        check(errors, "spec.nodeName", node, is_dns1123_subdomain(node))
        _attachment_status(errors, "status", obj.get("status") or {})
        if volume is not None:
            check(errors, "spec.source.persistentVolumeName", volume, is_dns1123_subdomain(volume))
        if old is not None and not same(spec, old.get("spec")):
            later.append(invalid_value("spec", None, IMMUTABLE))
        return errors + later


def _attacher(errors: Errors, path: str, name: str) -> None:
    """The name of a driver, in the words of upstream's newer validation."""
    if not name:
        errors.append(required(path))
        return
    if len(name.encode()) > 253:
        errors.append(invalid_value(path, name, max_bytes_error(253)))
    elif is_dns1123_subdomain(name.lower()):
        errors.append(invalid_value(path, name, _CASELESS))
    if len(name) > _MAX_DRIVER_NAME:
        text = f"may not be more than {_MAX_DRIVER_NAME} characters"
        errors.append(FieldError("FieldValueTooLong", path, text))


def _attachment_status(errors: Errors, path: str, status: Mapping[str, Any]) -> None:
    found = status.get("attachmentMetadata") or {}
    if sum(len(key.encode()) + len(value.encode()) for key, value in found.items()) > _MAX_METADATA_BYTES:
        errors.append(_too_long(f"{path}.attachmentMetadata", _MAX_METADATA_BYTES))
    for name in ("attachError", "detachError"):
        error = status.get(name) or {}
        if len(error.get("message", "").encode()) > _MAX_ERROR_BYTES:
            errors.append(_too_long(f"{path}.{name}.message", _MAX_ERROR_BYTES))
        code = error.get("errorCode")
        if code is not None and code < 0:
            errors.append(
                invalid_value(f"{path}.{name}.errorCode", code, "must be between 0 and 2147483647, inclusive")
            )


class _CSINodeStatus(StatusStrategy):
    def prepare(self, obj: Object, old: Object | None, *, user: User) -> None:
        super().prepare(obj, old, user=user)
        (obj.get("status") or {}).pop("storageHealth", None)  # CSIVolumeHealth is alpha


_attachment, _csi_node = _VolumeAttachment(), _CSINode()


def _flag(name: str, field: str) -> Column:
    default = _DRIVER_DEFAULTS[field]
    return Column(name, lambda obj, now: dig(obj, "spec", field, default=default), type="boolean")


def _text(name: str, *path: str, default: str = "", format: str = "") -> Column:
    return Column(name, lambda obj, now: dig(obj, *path, default=default), format=format)


RESOURCES: Sequence[Resource] = (
    Resource(
        CSIDRIVERS,
        "CSIDriver",
        _CSIDriver(),
        namespaced=False,
        columns=(
            NAME,
            _flag("AttachRequired", "attachRequired"),
            _flag("PodInfoOnMount", "podInfoOnMount"),
            _flag("StorageCapacity", "storageCapacity"),
            Column("TokenRequests", _tokens),
            _flag("RequiresRepublish", "requiresRepublish"),
            Column(
                "Modes", lambda obj, now: ",".join(dig(obj, "spec", "volumeLifecycleModes", default=())) or "<none>"
            ),
            AGE,
        ),
    ),
    Resource(
        CSINODES,
        "CSINode",
        _csi_node,
        namespaced=False,
        status=_CSINodeStatus(_csi_node, kept_metadata=ALL_METADATA),
        columns=(
            NAME,
            Column("Drivers", lambda obj, now: len(dig(obj, "spec", "drivers", default=())), type="integer"),
            AGE,
        ),
    ),
    Resource(
        CSISTORAGECAPACITIES,
        "CSIStorageCapacity",
        _CSIStorageCapacity(),
        singular="csistoragecapacity",
        columns=(NAME, CREATED_AT),
    ),
    Resource(
        STORAGECLASSES,
        "StorageClass",
        _StorageClass(),
        namespaced=False,
        short_names=("sc",),
        columns=(
            Column("Name", _class_name, format="name"),
            _text("Provisioner", "provisioner"),
            _text("ReclaimPolicy", "reclaimPolicy", default="Delete"),
            _text("VolumeBindingMode", "volumeBindingMode", default="<unset>"),
            # The type is a text upstream, the cell a boolean.
            Column("AllowVolumeExpansion", lambda obj, now: bool(obj.get("allowVolumeExpansion"))),
            AGE,
        ),
    ),
    Resource(
        VOLUMEATTACHMENTS,
        "VolumeAttachment",
        _attachment,
        namespaced=False,
        status=StatusStrategy(_attachment, kept_metadata=ALL_METADATA, rules=_attachment.validate),
        columns=(
            NAME,
            _text("Attacher", "spec", "attacher", format="name"),
            _text("PV", "spec", "source", "persistentVolumeName"),
            _text("Node", "spec", "nodeName"),
            Column("Attached", lambda obj, now: bool(dig(obj, "status", "attached")), type="boolean"),
            AGE,
        ),
    ),
    Resource(
        VOLUMEATTRIBUTESCLASSES,
        "VolumeAttributesClass",
        _VolumeAttributesClass(),
        namespaced=False,
        short_names=("vac",),
        columns=(NAME, _text("DriverName", "driverName"), AGE),
    ),
)
