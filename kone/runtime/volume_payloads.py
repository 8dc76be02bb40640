"""What the files of a configMap, secret, downwardAPI or projected volume are: pure, from objects to bytes.

A volume is first read as a list of sources (a configMap volume is a projected volume of one source), then each source
gives its files. Error texts are the kubelet's, as users see them in FailedMount events.
"""

from __future__ import annotations

import base64
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.objects import Object, dig, labels_of, name_of
from kone.apimachinery.selectors import from_label_selector
from kone.runtime.atomic_writer import File
from kone.runtime.parts import VolumeError

DEFAULT_MODE = 0o644
TOKEN_EXPIRATION_S = 3600


@dataclass(frozen=True, slots=True)
class Source:
    """One source of a volume's files. `kind` is the name of its field: "configMap", "serviceAccountToken", ..."""

    kind: str
    name: str  # of the configMap or secret; "" otherwise
    spec: Object
    default_mode: int
    index: int = 0  # among a projected volume's sources

    @property
    def optional(self) -> bool:
        return bool(self.spec.get("optional"))


def sources_of(volume: Object) -> list[Source] | None:
    """The sources of a volume, or None where its files do not come from the API."""
    if (config := volume.get("configMap")) is not None:
        return [Source("configMap", config.get("name", ""), config, config.get("defaultMode", DEFAULT_MODE))]
    if (secret := volume.get("secret")) is not None:
        return [Source("secret", secret.get("secretName", ""), secret, secret.get("defaultMode", DEFAULT_MODE))]
    if (downward := volume.get("downwardAPI")) is not None:
        return [Source("downwardAPI", "", downward, downward.get("defaultMode", DEFAULT_MODE))]
    if (projected := volume.get("projected")) is not None:
        return list(_projected(projected))
    return None


def _projected(projected: Object) -> Iterator[Source]:
    mode = projected.get("defaultMode", DEFAULT_MODE)
    for index, source in enumerate(projected.get("sources") or ()):
        for kind, spec in source.items():
            yield Source(kind, spec.get("name", "") if kind in ("configMap", "secret") else "", spec, mode, index)


def config_map_files(source: Source, config_map: Object | None) -> dict[str, File]:
    """Raises VolumeError for an absent configMap or key that is not optional."""
    if config_map is None:
        if source.optional:
            return {}
        raise VolumeError(f'configmap "{source.name}" not found')
    data = {key: text.encode() for key, text in (config_map.get("data") or {}).items()}
    data |= {key: base64.b64decode(text) for key, text in (config_map.get("binaryData") or {}).items()}
    return _chosen(source, data, "configmap references non-existent config key: {}")


def secret_files(source: Source, secret: Object | None) -> dict[str, File]:
    """Raises VolumeError for an absent secret or key that is not optional."""
    if secret is None:
        if source.optional:
            return {}
        raise VolumeError(f'secret "{source.name}" not found')
    data = {key: base64.b64decode(text) for key, text in (secret.get("data") or {}).items()}
    return _chosen(source, data, "references non-existent secret key: {}")


def _chosen(source: Source, data: Mapping[str, bytes], missing: str) -> dict[str, File]:
    items = source.spec.get("items")
    if not items:
        return {key: File(value, source.default_mode) for key, value in data.items()}
    files = {}
    for item in items:
        if item["key"] in data:
            files[item["path"]] = File(data[item["key"]], item.get("mode", source.default_mode))
        elif not source.optional:
            raise VolumeError(missing.format(item["key"]))
    return files


def downward_files(source: Source, pod: Object, value_of: Callable[[Object, Object], str]) -> dict[str, File]:
    """`value_of(pod, item)` gives the text of an item's fieldRef or resourceFieldRef. Raises VolumeError."""
    files = {}
    failed = []
    for item in source.spec.get("items") or ():
        try:
            text = value_of(pod, item)
        except ValueError as error:
            failed.append(str(error))
        else:
            files[item["path"]] = File(text.encode(), item.get("mode", source.default_mode))
    if failed:
        raise VolumeError(failed[0] if len(failed) == 1 else f"[{', '.join(dict.fromkeys(failed))}]")
    return files


def token_request(source: Source, pod: Object) -> Object:
    """The TokenRequest for a serviceAccountToken source: bound to the pod, for the source's audience."""
    spec: dict[str, Any] = {
        "expirationSeconds": source.spec.get("expirationSeconds", TOKEN_EXPIRATION_S),
        "boundObjectRef": {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    }
    if audience := source.spec.get("audience"):
        spec["audiences"] = [audience]
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}


def token_files(source: Source, token: str, pod: Object) -> dict[str, File]:
    return {source.spec["path"]: _private(source, token.encode(), pod)}


def certificate_files(source: Source, key: bytes, chain: bytes, pod: Object) -> dict[str, File]:
    """A pod's private key and certificates, together or each by itself."""
    contents = {"credentialBundlePath": key + chain, "keyPath": key, "certificateChainPath": chain}
    return {source.spec[f]: _private(source, data, pod) for f, data in contents.items() if source.spec.get(f)}


def _private(source: Source, data: bytes, pod: Object) -> File:
    """Only its reader may read it where the pod says who that is (the kubelet's rule for tokens)."""
    user, group = common_user(pod), dig(pod, "spec", "securityContext", "fsGroup")
    mode = 0o600 if user is not None or group is not None else source.default_mode
    return File(data, mode, user)


def common_user(pod: Object) -> int | None:
    """The user that every container of the pod runs as, or None where they differ or do not say."""
    spec = pod["spec"]
    default = dig(spec, "securityContext", "runAsUser")
    users = {
        dig(container, "securityContext", "runAsUser", default=default)
        for field in ("initContainers", "containers", "ephemeralContainers")
        for container in spec.get(field) or ()
    }
    user = next(iter(users)) if len(users) == 1 else None
    return user if isinstance(user, int) else None


def trust_bundle_files(source: Source, bundles: Iterable[Object], pod: Object) -> dict[str, File]:
    """The certificates of one ClusterTrustBundle by name, or of all that a signer and labels select, each once.

    Raises VolumeError where there is none and the source is not optional.
    """
    spec = source.spec
    if name := spec.get("name"):
        chosen = [bundle for bundle in bundles if name_of(bundle) == name]
        missing = f'while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io "{name}" not found'
    elif signer := spec.get("signerName"):
        selector = from_label_selector(spec.get("labelSelector"))
        chosen = [b for b in bundles if dig(b, "spec", "signerName") == signer and selector.matches(labels_of(b))]
        missing = "combination of signerName and labelSelector matched zero ClusterTrustBundles"
    else:
        raise VolumeError("ClusterTrustBundle projection requires either name or signerName to be set")
    if not chosen and not source.optional:
        raise VolumeError(missing)
    return {spec["path"]: _private(source, _certificates(chosen), pod)}


_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")


def _certificates(bundles: Iterable[Object]) -> bytes:
    """PEM without comments and duplicates, in an order that depends on nothing but the certificates."""
    found = {
        "".join(body.split())
        for bundle in bundles
        for body in _PEM.findall(dig(bundle, "spec", "trustBundle", default=""))
    }
    blocks = ("\n".join(textwrap.wrap(body, 64)) for body in sorted(found))
    return "".join(f"-----BEGIN CERTIFICATE-----\n{block}\n-----END CERTIFICATE-----\n" for block in blocks).encode()


def nested_mount_points(pod: Object, volume: str) -> Sequence[str]:
    """Where other volumes are mounted inside this one, relative to it; only the outermost of those.

    Such a volume is read-only in its container, so the directories must be there before (kubelet's nested volumes).
    Worked case: with this volume at /dir and others at /dir/in and /dir/in/deep: ["in"].
    """
    found: dict[str, None] = {}
    spec = pod["spec"]
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(field) or ():
            mounts = [
                (mount["name"], os.path.normpath(mount["mountPath"])) for mount in container.get("volumeMounts") or ()
            ]
            for top in (path for name, path in mounts if name == volume):
                inside: list[str] = []
                for path in sorted(path for _, path in mounts if path.startswith(top.rstrip("/") + "/")):
                    if path != top and not any(path == outer or path.startswith(outer + "/") for outer in inside):
                        inside.append(path)
                        found[os.path.relpath(path, top)] = None
    return list(found)
