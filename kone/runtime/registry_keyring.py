"""Which credentials are tried for an image: those whose address fits its name, the most exact first. Pure.

Rules: kubernetes/pkg/credentialprovider (keyring.go). An address is a host, which may hold wildcards within its labels
("*.example.com"), a port, and a path of which the image's name must begin.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from kone.apimachinery.objects import Object, dig, name_of, namespace_of, uid_of
from kone.runtime.runtime import RegistryAuth

DEFAULT_REGISTRY = "index.docker.io"
_SECRET_DATA = {"kubernetes.io/dockerconfigjson": ".dockerconfigjson", "kubernetes.io/dockercfg": ".dockercfg"}


@dataclass(frozen=True, slots=True)
class Source:
    """The object that a credential is from: who may use it, may use what it has pulled."""

    kind: Literal["Secret", "ServiceAccount"]
    uid: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Credential:
    """`source` None: the node's own, for any pod."""

    auth: RegistryAuth
    source: Source | None = None

    @property
    def digest(self) -> str:
        """By which the same user and password are known again, without being kept."""
        told = {"username": self.auth.username, "password": self.auth.password, "token": self.auth.identity_token}
        content = json.dumps({key: value for key, value in told.items() if value}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class Keyring:
    """Credentials by address."""

    def __init__(self) -> None:
        self._credentials: dict[str, list[Credential]] = {}

    def add(self, auths: Mapping[str, Any], source: Source | None = None) -> None:
        """The "auths" of a Docker configuration; what cannot be read of it is left out."""
        for address, entry in auths.items():
            key = _key(address)
            if key and isinstance(entry, Mapping) and (auth := _auth_of(address, entry)) is not None:
                self._credentials.setdefault(key, []).append(Credential(auth, source))

    def lookup(self, repository: str) -> list[Credential]:
        """The credentials to try, in order, for an image's name without tag and digest."""
        keys = sorted((key for key in self._credentials if urls_match(key, repository)), reverse=True)
        found = [credential for key in keys for credential in self._credentials[key]]
        if not found and is_default_registry(repository):
            return list(self._credentials.get(DEFAULT_REGISTRY, ()))
        return found


def of_secrets(secrets: Iterable[Object]) -> Keyring:
    """The credentials in image pull secrets, of either of their two types."""
    keyring = Keyring()
    for secret in secrets:
        keyring.add(secret_auths(secret), Source("Secret", uid_of(secret), namespace_of(secret), name_of(secret)))
    return keyring


def secret_auths(secret: Object) -> Mapping[str, Any]:
    """The "auths" of an image pull secret; {} where there are none to be read."""
    key = _SECRET_DATA.get(secret.get("type", ""), "")
    try:
        found = json.loads(base64.b64decode(dig(secret, "data", key, default="")))
    except ValueError:
        return {}
    if key == ".dockerconfigjson":
        found = dig(found, "auths", default={})
    return found if isinstance(found, dict) else {}


def urls_match(pattern: str, target: str) -> bool:
    """Whether an address without scheme covers another: the same port, every label of the host, the path's beginning.

    "*.docker.io" covers "blah.docker.io", not "not.right.io" and not "a.b.docker.io".
    """
    wanted, found = _split(pattern), _split(target)
    if wanted is None or found is None:
        return False
    labels, port, path = wanted
    target_labels, target_port, target_path = found
    return (
        port == target_port
        and len(labels) == len(target_labels)
        and target_path.startswith(path)
        and all(fnmatch.fnmatchcase(have, want) for want, have in zip(labels, target_labels, strict=True))
    )


def is_url(address: str) -> bool:
    """Whether an address without scheme can be read as one."""
    return _split(address) is not None


def is_default_registry(repository: str) -> bool:
    """Whether an image of that name is Docker Hub's."""
    first, slash, _ = repository.partition("/")
    if not first:
        return False
    return not slash or first in ("docker.io", DEFAULT_REGISTRY) or not ("." in first or ":" in first)


def _split(address: str) -> tuple[list[str], str, str] | None:
    """The host's labels, the port and the path; None where it cannot be read."""
    try:
        parts = urlsplit(f"https://{address}")
        _ = parts.port
    except ValueError:
        return None
    host, port = parts.netloc.rpartition("@")[2], ""
    if not host.endswith("]") and ":" in host:
        host, _, port = host.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
    return host.split("."), port, parts.path


def _key(address: str) -> str:
    """An address as configurations have it, without scheme; "/v1/" and "/v2/" are as good as no path."""
    try:
        parts = urlsplit(address if address.startswith(("https://", "http://")) else f"https://{address}")
    except ValueError:
        return ""
    path = parts.path[3:] if parts.path.startswith(("/v1/", "/v2/")) else parts.path
    return parts.netloc + (path if path != "/" else "")


def _auth_of(address: str, entry: Mapping[str, Any]) -> RegistryAuth | None:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            decoded = base64.b64decode(str(entry["auth"]).rstrip("=") + "==").decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        username, colon, password = decoded.partition(":")
        if not colon:
            return None
    return RegistryAuth(username, password, address, str(entry.get("identitytoken") or ""))
