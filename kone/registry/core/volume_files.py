"""The files that volumes put into a container: paths, modes, keys, the downward API, and projections of all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kone.apimachinery.errors import forbidden_field, invalid_value, not_supported, required, too_long
from kone.apimachinery.names import is_qualified_name
from kone.registry.core.resource_rules import quantity
from kone.registry.core.signer_names import is_kubernetes_signer, signer_name, trust_bundle_name
from kone.registry.generic import MAX_ANNOTATIONS_BYTES
from kone.registry.internal import internal
from kone.registry.rules import Errors, check, label_selector

MODE_TEXT = "must be a number between 0 and 0777 (octal), both inclusive"
_DOWNWARD_PATHS = ("metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid")
_KEY_TYPES = ("RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519")
_DAY_S = 86400


def descending_path(errors: Errors, path: str, value: str) -> None:
    """Relative, and without ".." (validateLocalDescendingPath)."""
    if value.startswith("/"):
        errors.append(invalid_value(path, value, "must be a relative path"))
    no_backsteps(errors, path, value)


def no_backsteps(errors: Errors, path: str, value: str) -> None:
    if ".." in value and ".." in value.split("/"):
        errors.append(invalid_value(path, value, "must not contain '..'"))


def non_reserved_path(errors: Errors, path: str, value: str) -> None:
    """A descending path whose first part does not start with ".."."""
    descending_path(errors, path, value)
    if value.startswith("..") and not value.startswith("../"):
        errors.append(invalid_value(path, value, "must not start with '..'"))


def file_mode(errors: Errors, path: str, value: int | None) -> None:
    if value is not None and not 0 <= value <= 0o777:
        errors.append(invalid_value(path, value, MODE_TEXT))


def needs(errors: Errors, path: str, source: Mapping[str, Any], *fields: str) -> None:
    for field in fields:
        if not source.get(field):
            errors.append(required(f"{path}.{field}"))


def _key_to_path(errors: Errors, path: str, item: Mapping[str, Any]) -> None:
    needs(errors, path, item, "key", "path")
    non_reserved_path(errors, f"{path}.path", item.get("path", ""))
    file_mode(errors, f"{path}.mode", item.get("mode"))


def keyed_items(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    file_mode(errors, f"{path}.defaultMode", source.get("defaultMode"))
    for i, item in enumerate(source.get("items") or ()):
        _key_to_path(errors, f"{path}.items[{i}]", item)


def _downward_file(errors: Errors, path: str, item: Mapping[str, Any]) -> None:
    needs(errors, path, item, "path")
    non_reserved_path(errors, f"{path}.path", item.get("path", ""))
    field_ref, resource_ref = item.get("fieldRef"), item.get("resourceFieldRef")
    if field_ref is not None:
        object_field_ref(errors, f"{path}.fieldRef", field_ref, _DOWNWARD_PATHS)
        if resource_ref is not None:
            text = "fieldRef and resourceFieldRef can not be specified simultaneously"
            errors.append(invalid_value(path, "resource", text))
    elif resource_ref is not None:
        container_resource_ref(errors, f"{path}.resourceFieldRef", resource_ref, in_volume=True)
    else:
        errors.append(required(path, "one of fieldRef and resourceFieldRef is required"))
    file_mode(errors, f"{path}.mode", item.get("mode"))


def downward_api(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    file_mode(errors, f"{path}.defaultMode", source.get("defaultMode"))
    for item in source.get("items") or ():
        _downward_file(errors, path, item)


_FIELD_LABELS = frozenset(
    (
        *_DOWNWARD_PATHS,
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    )
)
_SUBSCRIPT = re.compile(r"(.+)\['(.+)'\]\Z", re.S)


def object_field_ref(errors: Errors, path: str, ref: Mapping[str, Any], expressions: Sequence[str]) -> None:
    """validateObjectFieldSelector; `expressions` sorted."""
    version, field = ref.get("apiVersion", ""), ref.get("fieldPath", "")
    if not version or not field:
        errors.append(required(f"{path}.{'fieldPath' if version else 'apiVersion'}"))
        return
    subscript = _SUBSCRIPT.match(field)
    if version != "v1":
        problem = f"unsupported pod version: {version}"
    elif subscript and subscript[1] not in ("metadata.annotations", "metadata.labels"):
        problem = f"field label does not support subscript: {field}"
    elif not subscript and field not in _FIELD_LABELS and field != "spec.host":
        problem = f"field label not supported: {field}"
    else:
        problem = ""
    if problem:
        errors.append(invalid_value(f"{path}.fieldPath", field, f"error converting fieldPath: {problem}"))
    elif subscript:
        key = subscript[2].lower() if subscript[1] == "metadata.annotations" else subscript[2]
        check(errors, path, key, is_qualified_name(key))
    else:
        field = "spec.nodeName" if field == "spec.host" else field
        if field not in expressions:
            errors.append(not_supported(f"{path}.fieldPath", field, expressions))


_RESOURCE_FIELDS = (
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
)
_BYTE_DIVISORS = ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")
_DIVISORS = {
    "cpu": (("1m", "1"), "1m and 1", "cpu"),
    "memory": (_BYTE_DIVISORS, ", ".join(_BYTE_DIVISORS), "memory"),
    "ephemeral-storage": (_BYTE_DIVISORS, ", ".join(_BYTE_DIVISORS), "local ephemeral storage"),
    "hugepages": (_BYTE_DIVISORS, ", ".join(_BYTE_DIVISORS), "hugepages"),
}


def container_resource_ref(errors: Errors, path: str, ref: Mapping[str, Any], *, in_volume: bool) -> None:
    """validateContainerResourceFieldSelector."""
    resource = ref.get("resource", "")
    huge = resource.startswith(("requests.hugepages-", "limits.hugepages-"))
    if in_volume and not ref.get("containerName"):
        errors.append(required(f"{path}.containerName"))
    elif not resource:
        errors.append(required(f"{path}.resource"))
    elif resource not in _RESOURCE_FIELDS and not huge:
        errors.append(not_supported(f"{path}.resource", resource, _RESOURCE_FIELDS))
    divisor = quantity(ref.get("divisor"))
    known = _DIVISORS.get("hugepages" if huge else resource.partition(".")[2])
    if not divisor.is_zero and known and (huge or resource in _RESOURCE_FIELDS):
        allowed, listed, name = known
        if divisor.canonical() not in allowed:
            text = f"only divisor's values {listed} are supported with the {name} resource"
            errors.append(invalid_value(f"{path}.divisor", resource, text))


def projected(errors: Errors, path: str, source: Mapping[str, Any]) -> None:
    file_mode(errors, f"{path}.defaultMode", source.get("defaultMode"))
    paths: set[str] = set()
    for i, part in enumerate(source.get("sources") or ()):
        at = f"{path}.sources[{i}]"
        kinds = [kind for kind in _PROJECTIONS if part.get(kind) is not None]
        for kind in kinds:
            _PROJECTIONS[kind](errors, path, f"{at}.{kind}", part[kind], paths)
        if len(kinds) > 1:
            errors.append(forbidden_field(at, "may not specify more than 1 volume type per source"))


def _claim_path(errors: Errors, path: str, value: str, paths: set[str], shown: str) -> None:
    if value in paths:
        errors.append(invalid_value(path, shown, "conflicting duplicate paths"))
    paths.add(value)


def _projected_keys(errors: Errors, path: str, at: str, source: Mapping[str, Any], paths: set[str]) -> None:
    needs(errors, at, source, "name")
    for i, item in enumerate(source.get("items") or ()):
        _key_to_path(errors, f"{at}.items[{i}]", item)
        if item.get("path"):
            _claim_path(errors, path, item["path"], paths, source.get("name", ""))


def _projected_downward(errors: Errors, path: str, at: str, source: Mapping[str, Any], paths: set[str]) -> None:
    for item in source.get("items") or ():
        _downward_file(errors, at, item)
        if item.get("path"):
            _claim_path(errors, path, item["path"], paths, item["path"])


def _projected_token(errors: Errors, path: str, at: str, source: Mapping[str, Any], paths: set[str]) -> None:
    expiration, field = source.get("expirationSeconds"), f"{at}.expirationSeconds"
    if expiration is None:
        errors.append(required(field))
    elif expiration < 600:
        errors.append(invalid_value(field, expiration, "may not specify a duration less than 10 minutes"))
    elif expiration > 1 << 32:
        errors.append(invalid_value(field, expiration, "may not specify a duration larger than 2^32 seconds"))
    if not source.get("path"):
        errors.append(required(f"{path}.path"))
    else:
        non_reserved_path(errors, f"{path}.path", source["path"])


def _projected_trust(errors: Errors, path: str, at: str, source: Mapping[str, Any], paths: set[str]) -> None:
    name, signer, selector = source.get("name"), source.get("signerName"), source.get("labelSelector")
    if name is not None and signer is not None:
        shown = internal("*#core.ClusterTrustBundleProjection", source)
        errors.append(invalid_value(at, shown, "only one of name and signerName may be used"))
    elif name is not None:
        if not name:
            errors.append(required(f"{at}.name", "must be a valid object name"))
        for text in trust_bundle_name(name):
            errors.append(invalid_value(f"{at}.name", name, f"not a valid clustertrustbundlename: {text}"))
        if selector is not None:
            text = "labelSelector must be unset if name is specified"
            errors.append(invalid_value(f"{at}.labelSelector", internal("*#metav1.LabelSelector", selector), text))
    elif signer is not None:
        if not signer:
            errors.append(required(f"{at}.signerName", "must be a valid signer name"))
        signer_name(errors, f"{at}.signerName", signer)
        label_selector(errors, f"{at}.labelSelector", selector)
    else:
        errors.append(required(at, "either name or signerName must be specified"))
    target = source.get("path", "")
    if not target:
        errors.append(required(f"{at}.path"))
    non_reserved_path(errors, f"{at}.path", target)
    _claim_path(errors, path, target, paths, target)


def _domain_prefixed_key(errors: Errors, path: str, key: str) -> None:
    wrong = is_qualified_name(key) if key else []
    if not key:
        errors.append(required(path))
    elif wrong:
        check(errors, path, key, wrong)
    elif "/" not in key:
        errors.append(invalid_value(path, key, 'must be a domain-prefixed key (such as "acme.io/foo")'))


def user_annotations(errors: Errors, path: str, annotations: Mapping[str, str]) -> None:
    """What a pod tells a signer: domain-prefixed keys, not more in all than annotations may be."""
    for key in sorted(annotations):
        _domain_prefixed_key(errors, path, key.lower())
    if sum(len(key.encode()) + len(text.encode()) for key, text in annotations.items()) > MAX_ANNOTATIONS_BYTES:
        errors.append(too_long(path, MAX_ANNOTATIONS_BYTES))


def _projected_certificate(errors: Errors, path: str, at: str, source: Mapping[str, Any], paths: set[str]) -> None:
    signer = source.get("signerName", "")
    signer_name(errors, f"{at}.signerName", signer)
    user_annotations(errors, f"{at}.userAnnotations", source.get("userAnnotations") or {})
    if source.get("keyType") not in _KEY_TYPES:
        errors.append(not_supported(f"{at}.keyType", source.get("keyType", ""), _KEY_TYPES))
    most = _DAY_S if is_kubernetes_signer(signer) else 91 * _DAY_S
    expiration = source.get("maxExpirationSeconds")
    if expiration is not None:
        field, start = f"{at}.maxExpirationSeconds", "if provided, maxExpirationSeconds must be"
        if expiration < 3600:
            errors.append(invalid_value(field, expiration, f"{start} >= 3600"))
        if expiration > most:
            errors.append(invalid_value(field, expiration, f"{start} <= {most}"))
    targets = ("credentialBundlePath", "keyPath", "certificateChainPath")
    for field in targets:
        if source.get(field):
            non_reserved_path(errors, f"{at}.{field}", source[field])
            _claim_path(errors, path, source[field], paths, source[field])
    if not any(source.get(field) for field in targets):
        text = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath"
        errors.append(required(at, text))


_Projection = Callable[[Errors, str, str, Mapping[str, Any], set[str]], None]
_PROJECTIONS: dict[str, _Projection] = {
    "secret": _projected_keys,
    "configMap": _projected_keys,
    "downwardAPI": _projected_downward,
    "serviceAccountToken": _projected_token,
    "clusterTrustBundle": _projected_trust,
    "podCertificate": _projected_certificate,
}
