"""What the files of a configMap, secret, downwardAPI or projected volume are: pure, from objects to bytes.

A volume is first read as a list of sources (a configMap volume is a projected volume of one source), then each source
gives its files. Error texts are the kubelet's, as users see them in FailedMount events.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.objects import Object, dig
from kone.runtime.atomic_writer import File

DEFAULT_MODE = 0o644
TOKEN_EXPIRATION_S = 3600


class PayloadError(Exception):
    """A source cannot be read; the text is the kubelet's."""


@dataclass(frozen=True, slots=True)
class Source:
    """One source of a volume's files: kind is "configMap", "secret", "downwardAPI" or "serviceAccountToken"."""

    kind: str
    name: str  # of the configMap or secret; "" otherwise
    spec: Object
    default_mode: int

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
    for source in projected.get("sources") or ():
        for kind, spec in source.items():
            yield Source(kind, spec.get("name", "") if kind in ("configMap", "secret") else "", spec, mode)


def config_map_files(source: Source, config_map: Object | None) -> dict[str, File]:
    """Raises PayloadError for an absent configMap or key that is not optional."""
    if config_map is None:
        if source.optional:
            return {}
        raise PayloadError(f'configmap "{source.name}" not found')
    data = {key: text.encode() for key, text in (config_map.get("data") or {}).items()}
    data |= {key: base64.b64decode(text) for key, text in (config_map.get("binaryData") or {}).items()}
    return _chosen(source, data, "references non-existent config key: {}")


def secret_files(source: Source, secret: Object | None) -> dict[str, File]:
    """Raises PayloadError for an absent secret or key that is not optional."""
    if secret is None:
        if source.optional:
            return {}
        raise PayloadError(f'secret "{source.name}" not found')
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
            raise PayloadError(missing.format(item["key"]))
    return files


def downward_files(source: Source, pod: Object, value_of: Callable[[Object, Object], str]) -> dict[str, File]:
    """`value_of(pod, item)` gives the text of an item's fieldRef or resourceFieldRef. Raises PayloadError."""
    files = {}
    for item in source.spec.get("items") or ():
        try:
            text = value_of(pod, item)
        except (ValueError, KeyError) as error:
            raise PayloadError(str(error)) from None
        files[item["path"]] = File(text.encode(), item.get("mode", source.default_mode))
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
    """The token's file. Only its reader may read it where the pod says who that is (the kubelet's rule for tokens)."""
    user, group = common_user(pod), dig(pod, "spec", "securityContext", "fsGroup")
    mode = 0o600 if user is not None or group is not None else source.default_mode
    return {source.spec["path"]: File(token.encode(), mode, user)}


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
