"""Images for containers: whether one is here, whether it is to be pulled, and what to say while it cannot be had.

Order of checks, events and texts: kubernetes/pkg/kubelet/images/image_manager.go.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from kone.aio.clock import Clock
from kone.apimachinery.errors import aggregate, go_quote
from kone.apimachinery.objects import Object, uid_of
from kone.runtime.backoff import Backoff
from kone.runtime.credential_providers import CredentialProviders
from kone.runtime.image_names import Reference, parse_reference
from kone.runtime.meters import Histogram, size_bucket
from kone.runtime.pull_records import PullRecords
from kone.runtime.registry_keyring import Credential, Keyring, of_secrets
from kone.runtime.runtime import Image, NotFound, PullFailed, Runtime, RuntimeFault, RuntimeUnavailable

log = logging.getLogger(__name__)

PULLS_AT_ONCE: Final = 5
PROGRESS_S: Final = 10.0  # a pull tells how far it is so often
HOST_CREDENTIALS: Final = Path("/root/.docker/config.json")  # what `docker login` on this host knows

Tell = Callable[[Literal["Normal", "Warning"], str, str], None]
"""Records an event about the container: (type, reason, message)."""


class ImageError(Exception):
    """The image cannot be had (now): the reason and message of the container's waiting state."""

    def __init__(self, reason: str, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.retry_s = reason, message, retry_s


class ImageManager:
    """Makes sure that a container's image is here and is the pod's to use, by its pull policy, with back-off for what
    cannot be pulled.

    `records` say who may use what is here. `providers` know credentials beside those of pods and of the host. `on_pull`
    is told of each image that is here because of us: it was pulled, and was not there before.
    """

    def __init__(
        self,
        runtime: Runtime,
        clock: Clock,
        records: PullRecords,
        *,
        providers: CredentialProviders | None = None,
        on_pull: Callable[[Image], None] = lambda image: None,
        pull_s: Histogram | None = None,
    ) -> None:
        self._runtime = runtime
        self._on_pull, self._pull_s = on_pull, pull_s
        self._records, self._providers = records, providers
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
        credentials: list[Credential] | None = None
        if policy != "Always":
            image = known or await self._present(name, tell)
            if image is not None and not self._records.is_free(name, image.id):
                credentials = await self._credentials(pod, reference, pull_secrets)
                if self._records.must_pull(name, image.id, credentials):
                    image = None
            if image is not None:
                message = f"Container image {quoted} already present on machine and can be accessed by the pod"
                tell("Normal", "Pulled", message)
                return image
            if policy == "Never":
                message = f"Container image {quoted} is not present with pull policy of Never"
                tell("Warning", "ErrImageNeverPull", message)
                raise ImageError("ErrImageNeverPull", message)
        if credentials is None:
            credentials = await self._credentials(pod, reference, pull_secrets)
        return await self._pull(pod, name, reference, credentials, tell)

    async def peek(self, container: Object) -> Image | None:
        """The image where it is here, no pull is called for and any pod may use it; says nothing."""
        policy, name = container.get("imagePullPolicy"), container.get("image", "")
        if policy not in ("IfNotPresent", "Never"):
            return None
        try:
            image = await self._runtime.image(name)
        except RuntimeFault:
            return None
        return image if self._records.is_free(name, image.id) else None

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

    async def _credentials(self, pod: Object, reference: Reference, pull_secrets: Sequence[Object]) -> list[Credential]:
        """What to try, in order: the pod's secrets, what the host knows, what providers say."""
        found = of_secrets(pull_secrets).lookup(reference.name)
        own = Keyring()
        own.add(_host_auths())
        found += own.lookup(reference.name)
        if self._providers is not None:
            found += await self._providers.lookup(reference.name, pod)
        return found

    async def _pull(
        self, pod: Object, name: str, reference: Reference, credentials: Sequence[Credential], tell: Tell
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
        async with self._limit:
            began = self._clock.monotonic()
            try:
                before = {image.id for image in await self._runtime.images()}
                image = await self._pull_on_record(name, reference, credentials, tell)
            except RuntimeUnavailable as fault:
                raise ImageError("ErrImagePull", str(fault)) from fault
            except (RuntimeFault, OSError) as fault:
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
        if self._pull_s is not None:
            self._pull_s.observe(now - asked, size_bucket(image.size_bytes))
        took = f"{_seconds(now - began)} ({_seconds(now - asked)} including waiting)"
        size = f"Image size: {image.size_bytes} bytes."
        tell("Normal", "Pulled", f"Successfully pulled image {quoted} in {took}. {size}")
        return image

    async def _pull_on_record(
        self, name: str, reference: Reference, credentials: Sequence[Credential], tell: Tell
    ) -> Image:
        """Raises RuntimeFault, and OSError where the pull cannot be put on record."""
        self._records.begin(name)
        try:
            image, used = await self._pull_with_any(reference, credentials, self._teller(name, tell))
        except BaseException:  # a pull that is cut off has failed too
            self._records.failed(name)
            raise
        self._records.pulled(name, image.id, used)
        return image

    async def _pull_with_any(
        self, reference: Reference, credentials: Sequence[Credential], progress: Callable[[int, int], None]
    ) -> tuple[Image, Credential | None]:
        """With the first credential that does, or without where there are none. Raises RuntimeFault."""
        if not credentials:
            return await self._runtime.pull_image(reference.full, None, progress), None
        failures = []
        for credential in credentials:
            try:
                return await self._runtime.pull_image(reference.full, credential.auth, progress), credential
            except RuntimeUnavailable:
                raise
            except RuntimeFault as fault:
                failures.append(str(fault))
        raise PullFailed(aggregate(failures))

    def _teller(self, name: str, tell: Tell) -> Callable[[int, int], None]:
        """Tells how far a pull is, now and then: upstream has no such event, and a slow link is no fault."""
        told_at = self._clock.monotonic()

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal told_at
            if self._clock.monotonic() - told_at >= PROGRESS_S:
                told_at = self._clock.monotonic()
                how_far = f"{done_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB"
                tell("Normal", "Pulling", f"Pulling image {go_quote(name)}: {how_far}")

        return progress


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
