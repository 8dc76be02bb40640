"""Images for containers: whether one is here, whether it is to be pulled, and what to say while it cannot be had."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kone.aio.clock import Clock
from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object, uid_of
from kone.runtime.backoff import Backoff
from kone.runtime.runtime import Image, NotFound, RegistryAuth, Runtime, RuntimeFault, RuntimeUnavailable

log = logging.getLogger(__name__)

PULLS_AT_ONCE = 5
DOCKER_HUB = ("docker.io", "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io")
HOST_CREDENTIALS = Path("/root/.docker/config.json")  # what `docker login` on this host knows

Tell = Callable[[Literal["Normal", "Warning"], str, str], None]
"""Records an event about the container: (type, reason, message)."""


class ImageError(Exception):
    """The image cannot be had (now): the reason and message of the container's waiting state."""

    def __init__(self, reason: str, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.retry_s = reason, message, retry_s


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


class ImageManager:
    """Makes sure that a container's image is here, by its pull policy, with back-off for what cannot be pulled."""

    def __init__(self, runtime: Runtime, clock: Clock) -> None:
        self._runtime = runtime
        self._clock = clock
        self._backoff = Backoff(clock)
        self._failed_at: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._limit = asyncio.Semaphore(PULLS_AT_ONCE)

    async def ensure(
        self,
        pod: Object,
        container: Object,
        pull_secrets: Sequence[Object],
        tell: Tell,
        *,
        known: Image | None = None,
    ) -> Image:
        """The image, pulled where the policy says so; `known` is what `peek` has found. Raises ImageError."""
        name = container.get("image", "")
        quoted = go_quote(name)
        try:
            reference = parse_reference(name)
        except ValueError as error:
            message = f"Failed to apply default image tag {quoted}: couldn't parse image name {quoted}: {error}"
            tell("Warning", "InspectFailed", message)
            raise ImageError("InvalidImageName", message) from error
        policy = container.get("imagePullPolicy") or ("Always" if reference.tag == "latest" else "IfNotPresent")
        if policy != "Always":
            if image := known or await self._present(name, tell):
                message = f"Container image {quoted} already present on machine and can be accessed by the pod"
                tell("Normal", "Pulled", message)
                return image
            if policy == "Never":
                message = f"Container image {quoted} is not present with pull policy of Never"
                tell("Warning", "ErrImageNeverPull", message)
                raise ImageError("ErrImageNeverPull", message)
        return await self._pull(pod, name, reference, pull_secrets, tell)

    async def peek(self, container: Object) -> Image | None:
        """The image where it is here and no pull is called for; says nothing."""
        policy = container.get("imagePullPolicy")
        if policy not in ("IfNotPresent", "Never"):
            return None
        try:
            return await self._runtime.image(container.get("image", ""))
        except RuntimeFault:
            return None

    def forget(self, pod_uid: str) -> None:
        """The pod is gone."""
        self._backoff.forget(f"{pod_uid}_")
        for memory in (self._failed_at, self._failures):
            for key in [key for key in memory if key.startswith(f"{pod_uid}_")]:
                del memory[key]

    async def _present(self, name: str, tell: Tell) -> Image | None:
        try:
            return await self._runtime.image(name)
        except NotFound:
            return None
        except RuntimeFault as fault:
            message = f"Failed to inspect image {go_quote(name)}: {fault}"
            tell("Warning", "InspectFailed", message)
            raise ImageError("ImageInspectError", message) from fault

    async def _pull(
        self, pod: Object, name: str, reference: Reference, pull_secrets: Sequence[Object], tell: Tell
    ) -> Image:
        quoted = go_quote(name)
        key = f"{uid_of(pod)}_{name}"
        remaining = self._backoff.remaining_s(key, self._failed_at.get(key, 0.0)) if key in self._failed_at else 0.0
        if remaining > 0:
            message = f"Back-off pulling image {quoted}"
            tell("Normal", "BackOff", message)
            if before := self._failures.get(key):
                message = f"{message}: {before}"
            raise ImageError("ImagePullBackOff", message, remaining)
        tell("Normal", "Pulling", f"Pulling image {quoted}")
        asked = self._clock.monotonic()
        configs = [docker_auths(secret) for secret in pull_secrets]
        async with self._limit:
            began = self._clock.monotonic()
            try:
                auth = credentials_for(reference, [*configs, _host_auths()])
                image = await self._runtime.pull_image(reference.full, auth)
            except RuntimeUnavailable as fault:
                raise ImageError("ErrImagePull", str(fault)) from fault
            except RuntimeFault as fault:
                tell("Warning", "Failed", f"Failed to pull image {quoted}: {fault}")
                self._failed_at[key] = self._clock.now()
                self._backoff.next(key, self._clock.now())
                self._failures[key] = f"ErrImagePull: {fault}"
                raise ImageError("ErrImagePull", str(fault)) from fault
        self._failed_at.pop(key, None)
        self._failures.pop(key, None)
        now = self._clock.monotonic()
        took = f"{_seconds(now - began)} ({_seconds(now - asked)} including waiting)"
        size = f"Image size: {image.size_bytes} bytes."
        tell("Normal", "Pulled", f"Successfully pulled image {quoted} in {took}. {size}")
        return image


def _seconds(duration_s: float) -> str:
    """A duration as Go prints one that is cut to milliseconds: "0s", "350ms", "1.2s", "1m3.5s"."""
    milli = int(duration_s * 1000)
    if milli == 0:
        return "0s"
    if milli < 1000:
        return f"{milli}ms"
    minutes, rest = divmod(milli, 60_000)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _host_auths() -> Mapping[str, Any]:
    try:
        found = json.loads(HOST_CREDENTIALS.read_bytes()).get("auths")
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
