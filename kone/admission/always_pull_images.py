"""AlwaysPullImages: every image is pulled with its pod's own secrets, so nobody runs what only others may pull."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kone.admission.plugin import Attributes, Plugin
from kone.apimachinery.errors import StatusError, aggregate, not_supported
from kone.apimachinery.objects import Object

ALWAYS = "Always"
CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


class AlwaysPullImages(Plugin):
    name = "AlwaysPullImages"
    resources = frozenset({("", "pods")})

    async def mutate(self, a: Attributes) -> None:
        if _brings_no_image(a):
            return
        spec = a.object["spec"]
        for kind in CONTAINERS:
            if spec.get(kind):
                spec[kind] = [{**container, "imagePullPolicy": ALWAYS} for container in spec[kind]]
        if any(_image_volumes(a.object)):
            spec["volumes"] = [
                {**volume, "image": {**volume["image"], "pullPolicy": ALWAYS}} if volume.get("image") else volume
                for volume in spec["volumes"]
            ]

    async def validate(self, a: Attributes) -> None:
        if _brings_no_image(a):
            return
        wrong = [
            *((f"{at}.imagePullPolicy", c.get("imagePullPolicy", "")) for at, c in _containers(a.object)),
            *((f"{at}.pullPolicy", image.get("pullPolicy", "")) for at, image in _image_volumes(a.object)),
        ]
        texts = [str(a.refuse(str(not_supported(at, policy, (ALWAYS,))))) for at, policy in wrong if policy != ALWAYS]
        if texts:
            raise StatusError(500, "", aggregate(texts))  # upstream's list of errors is no API error


def _brings_no_image(a: Attributes) -> bool:
    """An update whose pod has no image that it did not have."""
    if a.operation != "UPDATE" or a.old is None:
        return False
    had = {container.get("image") for _, container in _containers(a.old)}
    return all(container.get("image") in had for _, container in _containers(a.object))


def _containers(pod: Object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it is, the container), of every kind."""
    for kind in CONTAINERS:
        for i, container in enumerate(pod["spec"].get(kind) or ()):
            yield f"spec.{kind}[{i}]", container


def _image_volumes(pod: Object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for i, volume in enumerate(pod["spec"].get("volumes") or ()):
        if volume.get("image") is not None:
            yield f"spec.volumes[{i}].image", volume["image"]
