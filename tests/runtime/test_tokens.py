"""Service account tokens in time: asked for once, renewed at 80 % of their life or after a day."""

from __future__ import annotations

from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.errors import StatusError, service_unavailable
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import format_time
from kone.runtime.parts import VolumeError
from kone.runtime.tokens import Tokens
from kone.runtime.volume_payloads import Source

POD: Object = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u"},
    "spec": {"serviceAccountName": "robot", "containers": []},
}


class Issuer:
    """Issues tokens "robot-1", "robot-2", ... or refuses."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.count = clock, 0
        self.refusal: StatusError | None = None

    async def create(self, resource: GVR, obj: Object, *, name: str, **more: Any) -> Object:
        if self.refusal is not None:
            raise self.refusal
        self.count += 1
        seconds = obj["spec"]["expirationSeconds"]
        status = {
            "token": f"{name}-{self.count}",
            "expirationTimestamp": format_time(self.clock.now() + seconds),
        }
        return {**obj, "status": status}


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.issuer = Issuer(self.clock)
        self.tokens = Tokens(self.issuer, self.clock)  # type: ignore[arg-type]

    async def get(self, seconds: int = 3600, audience: str = "") -> str:
        spec = {"path": "token", "expirationSeconds": seconds, "audience": audience}
        return (await self.tokens.get(POD, Source("serviceAccountToken", "", spec, 0o644))).text


async def test_a_token_is_asked_for_once_a_purpose() -> None:
    world = World()
    assert [await world.get(), await world.get(), await world.get(audience="vault")] == [
        "robot-1",
        "robot-1",
        "robot-2",
    ]


@pytest.mark.parametrize(
    ("lives_s", "renewed_after_s"),
    [(3600, 2880), (600, 480), (86_400 * 10, 86_400)],
    ids=["1 h: at 48 min", "10 min: at 8 min", "10 days: after a day"],
)
async def test_when_a_token_is_renewed(lives_s: int, renewed_after_s: int) -> None:
    world = World()
    await world.get(lives_s)
    await world.clock.advance(renewed_after_s - 1)
    assert list(world.tokens.due()) == []
    assert await world.get(lives_s) == "robot-1"
    await world.clock.advance(2)
    assert list(world.tokens.due()) == ["u"]
    assert await world.get(lives_s) == "robot-2"
    assert list(world.tokens.due()) == []


async def test_without_an_api_a_token_serves_until_it_expires() -> None:
    world = World()
    await world.get()
    world.issuer.refusal = service_unavailable("starting")
    await world.clock.advance(3500)
    assert await world.get() == "robot-1"
    await world.clock.advance(200)
    with pytest.raises(VolumeError, match="token robot expired and refresh failed: starting"):
        await world.get()


async def test_a_first_token_that_cannot_be_had() -> None:
    world = World()
    world.issuer.refusal = service_unavailable("starting")
    with pytest.raises(VolumeError, match=r"^failed to fetch token: starting$"):
        await world.get()


async def test_a_pod_that_is_gone_leaves_nothing() -> None:
    world = World()
    await world.get()
    world.tokens.forget("u")
    await world.clock.advance(86_400)
    assert list(world.tokens.due()) == []
