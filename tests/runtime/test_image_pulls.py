"""A container's image: by its pull policy, by what its pod may use, and what is said of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.objects import Object
from kone.runtime.images import ImageError, ImageManager
from kone.runtime.pull_records import Policy, PullRecords, Verification
from kone.runtime.runtime import Image
from tests.fakes_runtime import FakeRuntime
from tests.runtime.kubelet_world import make_container, make_pod

NAME = "r.example.com/app:1"
APP = Image("sha256:app", (NAME,), size_bytes=10)


def secret(password: str, name: str = "s") -> Object:
    auths = {"r.example.com": {"username": "u", "password": password}}
    return {
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(json.dumps({"auths": auths}).encode()).decode()},
    }


class World:
    """A registry that has one image, for those who know the password "right"."""

    def __init__(self, path: Path, policy: Policy | None = None) -> None:
        self.clock = FakeClock()
        self.runtime = FakeRuntime(self.clock)
        self.runtime.registry[NAME] = APP
        self.runtime.passwords[NAME] = "right"
        records = PullRecords(path, self.clock, policy or Policy())
        records.load([])
        self.images = ImageManager(self.runtime, self.clock, records)
        self.told: list[tuple[str, str]] = []

    async def ensure(self, policy: str, *secrets: Object, pod: str = "p") -> str:
        """ "here", or the reason why not; what was told is in `told`."""
        self.told = []
        made = make_pod(pod)
        made["metadata"]["uid"] = pod
        container = make_container(image=NAME, imagePullPolicy=policy)
        try:
            await self.images.ensure(
                made, container, secrets, lambda kind, reason, text: self.told.append((reason, text))
            )
        except ImageError as error:
            return error.reason
        return "here"

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.told]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_an_image_is_pulled_with_the_pods_secret(world: World) -> None:
    assert await world.ensure("IfNotPresent", secret("right")) == "here"
    assert world.told == [
        ("Pulling", f'Pulling image "{NAME}"'),
        ("Pulled", f'Successfully pulled image "{NAME}" in 0s (0s including waiting). Image size: 10 bytes.'),
    ]


async def test_the_second_secret_is_tried_where_the_first_does_not_do(world: World) -> None:
    assert await world.ensure("Always", secret("wrong", "a"), secret("right", "b")) == "here"


async def test_without_the_right_secret_it_is_not_pulled_and_backs_off(world: World) -> None:
    denied = f"pull access denied for {NAME}, repository does not exist or may require login"
    assert await world.ensure("IfNotPresent", secret("wrong")) == "ErrImagePull"
    assert world.told[1:] == [("Failed", f'Failed to pull image "{NAME}": {denied}')]
    assert await world.ensure("IfNotPresent", secret("wrong")) == "ImagePullBackOff"
    assert world.told == [("BackOff", f'Back-off pulling image "{NAME}"')]
    await world.clock.advance(10)
    assert await world.ensure("IfNotPresent", secret("right")) == "here"


async def test_what_a_secret_has_brought_is_not_for_a_pod_without_it(world: World) -> None:
    await world.ensure("IfNotPresent", secret("right"))
    assert await world.ensure("IfNotPresent", pod="q") == "ErrImagePull"
    assert world.reasons == ["Pulling", "Failed"]
    assert await world.ensure("Never", pod="q") == "ErrImageNeverPull"
    assert world.told == [("ErrImageNeverPull", f'Container image "{NAME}" is not present with pull policy of Never')]


async def test_a_pod_that_has_the_secret_uses_it_as_it_is(world: World) -> None:
    await world.ensure("IfNotPresent", secret("right"))
    for policy in ("IfNotPresent", "Never"):
        assert await world.ensure(policy, secret("right"), pod="q") == "here"
        assert world.told == [
            ("Pulled", f'Container image "{NAME}" already present on machine and can be accessed by the pod')
        ]
    assert len(world.runtime.pulls) == 1


async def test_a_pod_shows_at_the_registry_that_its_other_secret_does_too(world: World) -> None:
    world.runtime.passwords[NAME] = "right"
    await world.ensure("IfNotPresent", secret("right"))
    world.runtime.passwords[NAME] = "new"
    assert await world.ensure("IfNotPresent", secret("new", "other"), pod="q") == "here"
    assert world.reasons == ["Pulling", "Pulled"]
    assert await world.ensure("IfNotPresent", secret("new", "other"), pod="r") == "here"
    assert world.reasons == ["Pulled"]


async def test_an_image_that_the_host_had_is_for_everybody_unless_all_are_verified(tmp_path: Path) -> None:
    for policy, expected in ((Policy(), "here"), (Policy(Verification.ALWAYS), "ErrImageNeverPull")):
        world = World(tmp_path, policy)
        world.runtime.known_images[NAME] = APP
        assert await world.ensure("Never") == expected
        assert (await world.images.peek(make_container(image=NAME)) is None) is (expected != "here")


async def test_a_pull_without_secrets_is_for_everybody(world: World) -> None:
    world.runtime.passwords = {}
    await world.ensure("Always")
    assert await world.ensure("Never", pod="q") == "here"
