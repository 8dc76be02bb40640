"""Images for containers: whether one is here, whether it is to be pulled, and what to say while it cannot be had."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kone.aio.clock import Clock
from kone.apimachinery.errors import go_quote
from kone.apimachinery.objects import Object, uid_of
from kone.runtime.backoff import Backoff
from kone.runtime.image_names import Reference, credentials_for, docker_auths, parse_reference
from kone.runtime.runtime import Image, NotFound, Runtime, RuntimeFault, RuntimeUnavailable

log = logging.getLogger(__name__)

PULLS_AT_ONCE = 5
HOST_CREDENTIALS = Path("/root/.docker/config.json")  # what `docker login` on this host knows

Tell = Callable[[Literal["Normal", "Warning"], str, str], None]
"""Records an event about the container: (type, reason, message)."""


class ImageError(Exception):
    """The image cannot be had (now): the reason and message of the container's waiting state."""

    def __init__(self, reason: str, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.retry_s = reason, message, retry_s


class ImageManager:
    """Makes sure that a container's image is here, by its pull policy, with back-off for what cannot be pulled.

    `on_pull` is told of each image that is here because of us: it was pulled, and was not there before.
    """

    def __init__(
        self, runtime: Runtime, clock: Clock, *, on_pull: Callable[[Image], None] = lambda image: None
    ) -> None:
        self._runtime = runtime
        self._on_pull = on_pull
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
            if failure := self._failures.get(key):
                message = f"{message}: {failure}"
            raise ImageError("ImagePullBackOff", message, remaining)
        tell("Normal", "Pulling", f"Pulling image {quoted}")
        asked = self._clock.monotonic()
        configs = [docker_auths(secret) for secret in pull_secrets]
        async with self._limit:
            began = self._clock.monotonic()
            try:
                auth = credentials_for(reference, [*configs, _host_auths()])
                before = {image.id for image in await self._runtime.images()}
                image = await self._runtime.pull_image(reference.full, auth)
            except RuntimeUnavailable as fault:
                raise ImageError("ErrImagePull", str(fault)) from fault
            except RuntimeFault as fault:
                tell("Warning", "Failed", f"Failed to pull image {quoted}: {fault}")
                self._failed_at[key] = self._clock.now()
                self._backoff.next(key, self._clock.now())
                self._failures[key] = f"ErrImagePull: {fault}"
                raise ImageError("ErrImagePull", str(fault)) from fault
        if image.id not in before:
            self._on_pull(image)
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
