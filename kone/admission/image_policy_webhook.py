"""ImagePolicyWebhook: another program is asked whether a pod's images may be run (imagepolicy.k8s.io/v1alpha1).

What it said is remembered for a while. Where it cannot be asked, the configuration says what holds.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kone.admission.configuration import unversioned
from kone.admission.plugin import Attributes, Plugin
from kone.admission.webhooks import Backend, CallFailed
from kone.aio.clock import Clock
from kone.apimachinery.config_files import ConfigFileError, fits
from kone.apimachinery.objects import Object, annotations_of

log = logging.getLogger(__name__)

KEY = "imagePolicy"
SHAPE = {"kubeConfigFile": str, "allowTTL": int, "denyTTL": int, "retryBackoff": int, "defaultAllow": bool}
AUDIT = "imagepolicywebhook.image-policy.k8s.io/"
FAILED_OPEN = "alpha.image-policy.k8s.io/failed-open"
REMEMBERED = 1024
ATTEMPTS, FACTOR = 5, 1.5  # webhook.DefaultRetryBackoffWithInitialDelay
_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("containers", "initContainers"),
    "ephemeralcontainers": ("ephemeralContainers",),
}


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """The plugin's configuration, in seconds."""

    kubeconfig: str
    allow_ttl_s: float = 300.0
    deny_ttl_s: float = 30.0
    backoff_s: float = 0.5
    default_allow: bool = False


def parse(text: str | None) -> ImagePolicy:
    """Raises ConfigFileError."""
    if not text:
        raise ConfigFileError("no config specified")
    found = unversioned(text, KEY)
    fits(found, SHAPE)
    return ImagePolicy(
        found.get("kubeConfigFile") or "",
        _seconds(found, "allowTTL", 1.0, (1.0, 1800.0), 300.0),
        _seconds(found, "denyTTL", 1.0, (1.0, 1800.0), 30.0),
        _seconds(found, "retryBackoff", 0.001, (0.0, 300.0), 0.5),
        bool(found.get("defaultAllow")),
    )


def _seconds(found: Object, field: str, scale: float, bounds: tuple[float, float], default: float) -> float:
    """0 stands for the default, -1 for none at all."""
    given = found.get(field) or 0
    if given in (0, -1):
        return default if given == 0 else 0.0
    value = given * scale
    if not bounds[0] <= value <= bounds[1]:
        raise ConfigFileError(f"{field}: valid value is between {bounds[0]:g}s and {bounds[1]:g}s, got {value:g}s")
    return float(value)


class ImagePolicyWebhook(Plugin):
    name = "ImagePolicyWebhook"
    resources = frozenset({("", "pods")})
    subresources = frozenset(_KINDS)

    def __init__(self, policy: ImagePolicy, backend: Backend, clock: Clock) -> None:
        self._policy, self._backend, self._clock = policy, backend, clock
        self._known: OrderedDict[str, tuple[float, Mapping[str, Any]]] = OrderedDict()

    async def validate(self, a: Attributes) -> None:
        pod = a.object
        spec: Object = {
            "containers": [
                {"image": container.get("image", "")}
                for kind in _KINDS[a.subresource]
                for container in pod["spec"].get(kind) or ()
            ],
            "annotations": {k: v for k, v in annotations_of(pod).items() if ".image-policy.k8s.io/" in k},
            "namespace": a.namespace,
        }
        try:
            status = await self._status(spec)
        except CallFailed as error:
            if not self._policy.default_allow:
                raise a.refuse(str(error)) from None
            log.warning("image policy of pod %s/%s cannot be asked, allowed: %s", a.namespace, a.name, error)
            a.annotate(f"{AUDIT}failed-open", "true")
            meta = pod["metadata"]
            meta["annotations"] = {**(meta.get("annotations") or {}), FAILED_OPEN: "true"}
            return
        for key, value in (status.get("auditAnnotations") or {}).items():
            a.annotate(AUDIT + key, value)
        if status.get("allowed"):
            return
        if reason := status.get("reason"):
            raise a.refuse(f"image policy webhook backend denied one or more images: {reason}")
        raise a.refuse("one or more images rejected by webhook backend")

    async def _status(self, spec: Object) -> Mapping[str, Any]:
        """What the backend says of these images, or said a while ago. Raises CallFailed."""
        key = json.dumps(spec, sort_keys=True)
        until, status = self._known.get(key, (0.0, {}))
        if self._clock.monotonic() < until:
            return status
        review = {"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "spec": spec, "status": {}}
        answer = await self._asked(review)
        found = answer.get("status") if isinstance(answer, dict) else None
        status = found if isinstance(found, dict) else {}
        ttl_s = self._policy.allow_ttl_s if status.get("allowed") else self._policy.deny_ttl_s
        self._known[key] = (self._clock.monotonic() + ttl_s, status)
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return status

    async def _asked(self, review: Object) -> Any:
        wait_s = self._policy.backoff_s
        for attempt in range(ATTEMPTS):
            try:
                return await self._backend.post(review)
            except CallFailed as error:
                if not error.is_transient or attempt == ATTEMPTS - 1:
                    raise
            await self._clock.sleep(wait_s)
            wait_s *= FACTOR
        raise AssertionError("the last attempt raises or returns")
