"""Which other objects of its namespace a pod names: secrets, config maps, claims (podutil.VisitPodSecretNames)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kone.apimachinery.objects import Object, name_of

_CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")


def containers_of(spec: Mapping[str, Any]) -> Iterator[Object]:
    """Every container of a pod spec: init, main, ephemeral, in this order."""
    for kind in _CONTAINER_LISTS:
        yield from spec.get(kind) or ()


def secret_names(pod: Mapping[str, Any]) -> Iterator[str]:
    """Each secret named anywhere in the pod; a name may come twice."""
    spec = pod.get("spec") or {}
    for ref in spec.get("imagePullSecrets") or ():
        yield ref.get("name", "")
    yield from _environment_names(spec, "secretRef", "secretKeyRef")
    for volume in spec.get("volumes") or ():
        yield from _volume_secret_names(volume)


def config_map_names(pod: Mapping[str, Any]) -> Iterator[str]:
    """Each config map named anywhere in the pod; a name may come twice."""
    spec = pod.get("spec") or {}
    yield from _environment_names(spec, "configMapRef", "configMapKeyRef")
    for volume in spec.get("volumes") or ():
        if source := volume.get("configMap"):
            yield source.get("name", "")
        for part in (volume.get("projected") or {}).get("sources") or ():
            if source := part.get("configMap"):
                yield source.get("name", "")


def claim_names(pod: Mapping[str, Any]) -> Iterator[str]:
    """Each persistent volume claim of the pod; an ephemeral volume's claim is <pod>-<volume>."""
    for volume in (pod.get("spec") or {}).get("volumes") or ():
        if source := volume.get("persistentVolumeClaim"):
            yield source.get("claimName", "")
        elif volume.get("ephemeral") is not None:
            yield f"{name_of(pod)}-{volume.get('name', '')}"


def resource_claim_names(pod: Mapping[str, Any]) -> Iterator[str]:
    """Each ResourceClaim of the pod that exists: named by it, or made for it from a template."""
    made = {
        status.get("name"): status.get("resourceClaimName")
        for status in (pod.get("status") or {}).get("resourceClaimStatuses") or ()
    }
    for claim in (pod.get("spec") or {}).get("resourceClaims") or ():
        if name := claim.get("resourceClaimName") or made.get(claim.get("name")):
            yield name


_VOLUME_REFERENCES = (
    ("csi", "csidrivers (via CSI volumes)"),
    ("glusterfs", "endpoints (via glusterFS volumes)"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
)
_PROJECTED_REFERENCES = (
    ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
    ("clusterTrustBundle", "clustertrustbundles"),
    ("podCertificate", "podcertificates"),
)


def api_object_reference(pod: Mapping[str, Any]) -> str:
    """The first kind of object that the pod needs of the API, in upstream's words; "" for none.

    What a node runs by itself may need nothing (podutil.HasAPIObjectReference).
    """
    spec = pod.get("spec") or {}
    if spec.get("serviceAccountName"):
        return "serviceaccounts"
    if any(True for _ in secret_names(pod)):
        return "secrets"
    if any(True for _ in config_map_names(pod)):
        return "configmaps"
    if spec.get("resourceClaims"):
        return "resourceclaims"
    for volume in spec.get("volumes") or ():
        for key, words in _VOLUME_REFERENCES:
            if volume.get(key) is not None:
                return words
        for source in (volume.get("projected") or {}).get("sources") or ():
            for key, words in _PROJECTED_REFERENCES:
                if source.get(key) is not None:
                    return words
    return ""


def _environment_names(spec: Mapping[str, Any], whole: str, single: str) -> Iterator[str]:
    for container in containers_of(spec):
        for source in container.get("envFrom") or ():
            if ref := source.get(whole):
                yield ref.get("name", "")
        for variable in container.get("env") or ():
            if ref := (variable.get("valueFrom") or {}).get(single):
                yield ref.get("name", "")


def _volume_secret_names(volume: Mapping[str, Any]) -> Iterator[str]:
    for kind, source in volume.items():
        if not isinstance(source, Mapping):
            continue
        if kind in ("secret", "azureFile"):
            yield source.get("secretName", "")
        elif kind == "projected":
            for part in source.get("sources") or ():
                if secret := part.get("secret"):
                    yield secret.get("name", "")
        else:
            for ref in ("secretRef", "nodePublishSecretRef"):
                if (found := source.get(ref)) is not None:
                    yield found.get("name", "")
