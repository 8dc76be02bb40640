"""v1.37's defaults of pods and of the pod templates inside workloads."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from kone.apimachinery.objects import Object
from kone.apimachinery.quantity import parse_quantity

_CONTAINER_LISTS = ("containers", "initContainers", "ephemeralContainers")
_VOLUME_MODE = 0o644  # of secret, config map, downward API and projected volumes

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<name>(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    rf"(?::(?P<tag>[\w][\w.-]{{0,127}}))?(?:@(?P<digest>{_DIGEST}))?\Z",
    re.ASCII,
)
_BARE_ID = re.compile(r"[a-f0-9]{64}\Z")


@lru_cache(maxsize=1024)
def image_tag(image: str) -> str:
    """The tag that a pull would use; "latest" where none is named, "" with a digest alone or for no valid image."""
    shape = _REFERENCE.match(image)
    if shape is None or _BARE_ID.match(image) or len(shape["name"]) > 255:
        return ""
    if shape["tag"]:
        return str(shape["tag"])
    return "" if shape["digest"] else "latest"


def _pull_policy(image: str) -> str:
    return "Always" if image_tag(image) == "latest" else "IfNotPresent"


@lru_cache(maxsize=4096)
def _to_milli(text: str) -> str:
    quantity = parse_quantity(text)
    if quantity.nanos % 1_000_000:
        return type(quantity).of_milli(quantity.milli(), quantity.notation).canonical()
    return quantity.canonical()


def round_resources(resources: Object | None) -> None:
    """Quantities are kept to the thousandth, finer ones rounded up (SetDefaults_ResourceList); in place."""
    if resources:
        for name, value in resources.items():
            try:
                resources[name] = _to_milli(value if isinstance(value, str) else str(value))
            except ValueError:
                continue  # it is refused by validation, in its own words


def round_requirements(requirements: Object | None) -> None:
    if requirements:
        round_resources(requirements.get("limits"))
        round_resources(requirements.get("requests"))


def default_pod(pod: Object) -> None:
    """SetDefaults_Pod and all below it, in place."""
    spec = pod.setdefault("spec", {})
    if spec.get("terminationGracePeriodSeconds") is not None and spec["terminationGracePeriodSeconds"] < 0:
        spec["terminationGracePeriodSeconds"] = 1
    host_network = spec.get("hostNetwork")
    for kind in ("containers", "initContainers"):
        for container in spec.get(kind) or ():
            _requests_from_limits(container.get("resources"))
            if host_network:
                for port in container.get("ports") or ():
                    if not port.get("hostPort") and port.get("containerPort"):
                        port["hostPort"] = port["containerPort"]
    spec.setdefault("enableServiceLinks", True)
    default_pod_spec(spec)
    _default_status(pod.setdefault("status", {}))


def _requests_from_limits(resources: Object | None) -> None:
    limits = resources.get("limits") if resources else None
    if resources and limits:
        resources["requests"] = {**limits, **(resources.get("requests") or {})}


def _default_status(status: Object) -> None:
    ip, ips = status.get("podIP"), status.get("podIPs")
    if ip and (not ips or ips[0].get("ip") != ip):
        # Where both are given and differ, the single field is older clients' word and wins.
        status["podIPs"] = [{"ip": ip}]
    elif ips and not ip:
        status["podIP"] = ips[0].get("ip", "")
    for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        for container in status.get(kind) or ():
            round_resources(container.get("allocatedResources"))
            round_requirements(container.get("resources"))
    round_resources(status.get("allocatedResources"))
    round_requirements(status.get("resources"))


def default_template(template: Object) -> None:
    """A PodTemplateSpec inside a workload, in place."""
    template.setdefault("metadata", {})
    default_pod_spec(template.setdefault("spec", {}))


def default_pod_spec(spec: Object) -> None:
    """SetDefaults_PodSpec and all below it, in place."""
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    if not spec.get("dnsPolicy"):
        spec["dnsPolicy"] = "ClusterFirst"
    if not spec.get("restartPolicy"):
        spec["restartPolicy"] = "Always"
    if spec.get("securityContext") is None:
        spec["securityContext"] = {}
    if spec.get("terminationGracePeriodSeconds") is None:
        spec["terminationGracePeriodSeconds"] = 30
    if not spec.get("schedulerName"):
        spec["schedulerName"] = "default-scheduler"
    for kind in _CONTAINER_LISTS:
        for container in spec.get(kind) or ():
            default_container(container)
    for volume in spec.get("volumes") or ():
        default_volume(volume)
    round_resources(spec.get("overhead"))
    round_requirements(spec.get("resources"))


def default_container(container: Object) -> None:
    if not container.get("imagePullPolicy"):
        container["imagePullPolicy"] = _pull_policy(container.get("image") or "")
    if not container.get("terminationMessagePath"):
        container["terminationMessagePath"] = "/dev/termination-log"
    if not container.get("terminationMessagePolicy"):
        container["terminationMessagePolicy"] = "File"
    for port in container.get("ports") or ():
        if not port.get("protocol"):
            port["protocol"] = "TCP"
    for variable in container.get("env") or ():
        source = variable.get("valueFrom")
        if source:
            default_field_ref(source.get("fieldRef"))
            if source.get("fileKeyRef") is not None:
                source["fileKeyRef"].setdefault("optional", False)
    if container.get("resources"):
        round_requirements(container["resources"])
    else:
        container["resources"] = {}
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(kind)
        if probe is not None:
            default_probe(probe)
    lifecycle = container.get("lifecycle")
    if lifecycle:
        for hook in ("postStart", "preStop"):
            if lifecycle.get(hook):
                _default_http_get(lifecycle[hook].get("httpGet"))


def default_field_ref(ref: Object | None) -> None:
    if ref is not None and not ref.get("apiVersion"):
        ref["apiVersion"] = "v1"


_PROBE_DEFAULTS = (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3))


def default_probe(probe: Object) -> None:
    for field, value in (
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ):
        if not probe.get(field):
            probe[field] = value
    _default_http_get(probe.get("httpGet"))
    grpc = probe.get("grpc")
    if grpc is not None and grpc.get("service") is None:
        grpc["service"] = ""


def _default_http_get(action: Object | None) -> None:
    if action is not None:
        if not action.get("path"):
            action["path"] = "/"
        if not action.get("scheme"):
            action["scheme"] = "HTTP"


def _default_mode(source: Object) -> None:
    if source.get("defaultMode") is None:
        source["defaultMode"] = _VOLUME_MODE


def _default_downward_api(source: Object) -> None:
    _default_mode(source)
    for item in source.get("items") or ():
        default_field_ref(item.get("fieldRef"))


def _default_projected(source: Object) -> None:
    _default_mode(source)
    source.setdefault("sources", None)
    for part in source["sources"] or ():
        if part.get("downwardAPI"):
            for item in part["downwardAPI"].get("items") or ():
                default_field_ref(item.get("fieldRef"))
        token = part.get("serviceAccountToken")
        if token is not None and token.get("expirationSeconds") is None:
            token["expirationSeconds"] = 3600


def _default_image_volume(source: Object) -> None:
    if not source.get("pullPolicy"):
        source["pullPolicy"] = _pull_policy(source.get("reference") or "")


def _default_ephemeral(source: Object) -> None:
    if source.get("volumeClaimTemplate") is not None:
        template = source["volumeClaimTemplate"]
        template.setdefault("metadata", {})
        default_claim_spec(template.setdefault("spec", {}))


def default_claim_spec(spec: Object) -> None:
    """SetDefaults_PersistentVolumeClaimSpec, in place."""
    spec.setdefault("resources", {})
    round_requirements(spec["resources"])
    if spec.get("volumeMode") is None:
        spec["volumeMode"] = "Filesystem"


def _filler(**defaults: Any) -> Callable[[Object], None]:
    def fill(source: Object) -> None:
        for field, value in defaults.items():
            if source.get(field) in (None, ""):
                source[field] = value

    return fill


def _default_host_path(source: Object) -> None:
    source.setdefault("type", "")


def _default_azure_disk(source: Object) -> None:
    for field, value in (("cachingMode", "ReadWrite"), ("fsType", "ext4"), ("readOnly", False), ("kind", "Shared")):
        if source.get(field) is None:
            source[field] = value


SOURCE_DEFAULTS: dict[str, Callable[[Object], None]] = {
    "hostPath": _default_host_path,
    "secret": _default_mode,
    "configMap": _default_mode,
    "downwardAPI": _default_downward_api,
    "projected": _default_projected,
    "ephemeral": _default_ephemeral,
    "image": _default_image_volume,
    "iscsi": _filler(iscsiInterface="default"),
    "rbd": _filler(pool="rbd", user="admin", keyring="/etc/ceph/keyring"),
    "scaleIO": _filler(storageMode="ThinProvisioned", fsType="xfs"),
    "azureDisk": _default_azure_disk,
}
"""By volume type; persistent volumes have the last four and hostPath in common with pods."""


def default_volume(volume: Object) -> None:
    """In place. A volume without a type is an emptyDir."""
    if not any(key != "name" and value is not None for key, value in volume.items()):
        volume["emptyDir"] = {}
        return
    for kind, source in volume.items():
        fill = SOURCE_DEFAULTS.get(kind)
        if fill is not None and source is not None:
            fill(source)
