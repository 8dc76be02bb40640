"""Image names as Docker and upstream read them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed image name: "registry/repository", tag ("" with a digest), digest."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """Without tag and digest: "docker.io/library/busybox"."""
        return f"{self.registry}/{self.repository}"

    @property
    def full(self) -> str:
        """As a runtime pulls it: "docker.io/library/busybox:latest"."""
        if self.digest:
            return f"{self.name}@{self.digest}"
        return f"{self.name}:{self.tag}"


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


def without_tag(name: str) -> str:
    """An image name as it is written, without its tag and digest."""
    name = name.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"
