"""Image names as Docker and upstream read them, and the credentials that fit a name. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kone.apimachinery.objects import Object
from kone.runtime.runtime import RegistryAuth

DOCKER_HUB = ("docker.io", "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed image name: "registry/repository", tag ("" with a digest), digest."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def full(self) -> str:
        """As a runtime pulls it: "docker.io/library/busybox:latest"."""
        name = f"{self.registry}/{self.repository}"
        if self.digest:
            return f"{name}@{self.digest}"
        return f"{name}:{self.tag}"


_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::\d+)?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")


def parse_reference(name: str) -> Reference:
    """An image name as Docker and upstream read it. Raises ValueError with the reference package's words."""
    rest, at, digest = name.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError("invalid reference format")
    head, slash, tail = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
        registry, path = head, tail
    else:
        registry, path = "docker.io", rest
    path, colon, tag = path.partition(":")
    if registry == "docker.io" and path and "/" not in path:
        path = f"library/{path}"
    if (colon and not _TAG.fullmatch(tag)) or not _HOST.fullmatch(registry):
        raise ValueError("invalid reference format")
    if not _REPOSITORY.fullmatch(path):
        if _REPOSITORY.fullmatch(path.lower()):
            raise ValueError(f"invalid reference format: repository name ({path}) must be lowercase")
        raise ValueError("invalid reference format")
    return Reference(registry, path, tag or ("" if digest else "latest"), digest)


def credentials_for(reference: Reference, configs: Iterable[Mapping[str, Any]]) -> list[RegistryAuth]:
    """The credentials in Docker configurations ("auths" by registry) that are for this image's registry, most exact
    first.
    """
    found: list[tuple[int, RegistryAuth]] = []
    for config in configs:
        for server, entry in config.items():
            host, _, path = re.sub(r"^https?://", "", server).rstrip("/").partition("/")
            same = host == reference.registry or (reference.registry == "docker.io" and host in DOCKER_HUB)
            inside = path in ("", "v1", "v2") or f"{reference.repository}/".startswith(f"{path}/")
            if same and inside and isinstance(entry, Mapping) and (auth := _auth_of(server, entry)):
                found.append((len(path), auth))
    return [auth for _, auth in sorted(found, key=lambda item: -item[0])]


def _auth_of(server: str, entry: Mapping[str, Any]) -> RegistryAuth | None:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            decoded = base64.b64decode(entry["auth"]).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        username, _, password = decoded.partition(":")
    if not username and not entry.get("identitytoken"):
        return None
    return RegistryAuth(username, password, server, str(entry.get("identitytoken") or ""))


def docker_auths(secret: Object) -> Mapping[str, Any]:
    """The "auths" of an image pull secret, of either of its two types; {} where there are none to be read."""
    data = secret.get("data") or {}
    try:
        if ".dockerconfigjson" in data:
            found = json.loads(base64.b64decode(data[".dockerconfigjson"])).get("auths")
        else:
            found = json.loads(base64.b64decode(data[".dockercfg"]))
    except (KeyError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
