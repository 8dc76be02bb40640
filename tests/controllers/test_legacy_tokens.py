"""Tokens that old clusters made by themselves, and who may lose them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from kone.aio.clock import FakeClock
from kone.apimachinery.kinds import CONFIGMAPS, PODS, SECRETS, SERVICEACCOUNTS
from kone.apimachinery.objects import Object, labels_of, name_of
from kone.apimachinery.timestamps import format_time
from kone.controllers.legacy_tokens import (
    INVALID_SINCE,
    LAST_USED,
    LEGACY_TOKEN_CLEANER_CONTROLLER,
    SINCE,
    TRACKING,
)
from tests.controllers.world import World

DAY_S = 24 * 3600.0


def day(clock: FakeClock, ago: float) -> str:
    return datetime.fromtimestamp(clock.now() - ago * DAY_S, UTC).date().isoformat()


def token(clock: FakeClock, *, age: float = 800, labels: dict[str, str] | None = None, **meta: Any) -> Object:
    annotations = {"kubernetes.io/service-account.name": "app", "kubernetes.io/service-account.uid": "uid-app"}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/service-account-token",
        "metadata": {
            "name": "app-token",
            "namespace": "ns",
            "creationTimestamp": format_time(clock.now() - age * DAY_S),
            "annotations": annotations,
            "labels": labels or {},
            **meta,
        },
    }


def set_up(world: World, *, tracked: float = 800, secrets: tuple[str, ...] = ("app-token",)) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    account["metadata"] = {"name": "app", "namespace": "ns", "uid": "uid-app"}  # type: ignore[assignment]
    account["secrets"] = [{"name": name} for name in secrets]  # type: ignore[assignment]
    world.client.put(SERVICEACCOUNTS, account)
    tracking = {"apiVersion": "v1", "kind": "ConfigMap", "data": {SINCE: day(world.clock, tracked)}}
    world.client.put(CONFIGMAPS, {**tracking, "metadata": {"name": TRACKING.name, "namespace": TRACKING.namespace}})


async def look(world: World) -> Object | None:
    """The secret after one look at all."""
    async with world.running(LEGACY_TOKEN_CLEANER_CONTROLLER):
        pass
    found = world.client.of(SECRETS)
    return found[0] if found else None


async def test_a_disused_token_is_marked_and_goes_a_year_later(world: World) -> None:
    set_up(world)
    world.client.put(SECRETS, token(world.clock))
    async with world.running(LEGACY_TOKEN_CLEANER_CONTROLLER):
        [found] = world.client.of(SECRETS)
        assert labels_of(found) == {INVALID_SINCE: day(world.clock, 0)}
        for _ in range(3):
            await world.advance(100 * DAY_S)
        assert [name_of(secret) for secret in world.client.of(SECRETS)] == ["app-token"]
        await world.advance(70 * DAY_S)
        assert world.client.of(SECRETS) == []


@pytest.mark.parametrize(
    ("changes", "tracked", "secrets"),
    [
        pytest.param({"age": 100}, 800, ("app-token",), id="young"),
        pytest.param({"labels": "used"}, 800, ("app-token",), id="used within a year"),
        pytest.param({"labels": "nonsense"}, 800, ("app-token",), id="used who knows when"),
        pytest.param({}, 300, ("app-token",), id="uses are not written down for a year"),
        pytest.param({}, 800, (), id="asked for by hand"),
        pytest.param(
            {"annotations": {"kubernetes.io/service-account.name": "other"}}, 800, ("app-token",), id="nobody's"
        ),
    ],
)
async def test_who_stays(world: World, changes: dict[str, Any], tracked: float, secrets: tuple[str, ...]) -> None:
    labels = {"used": {LAST_USED: day(world.clock, 30)}, "nonsense": {LAST_USED: "yesterday"}}
    if "labels" in changes:
        changes = {**changes, "labels": labels[changes["labels"]]}
    set_up(world, tracked=tracked, secrets=secrets)
    world.client.put(SECRETS, token(world.clock, **changes))
    found = await look(world)
    assert found is not None
    assert INVALID_SINCE not in labels_of(found)


async def test_a_pod_that_mounts_the_token_keeps_it(world: World) -> None:
    set_up(world)
    world.client.put(SECRETS, token(world.clock))
    volumes = [{"name": "v", "secret": {"secretName": "app-token"}}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ns"},
        "spec": {"volumes": volumes},
    }
    world.client.put(PODS, pod)
    found = await look(world)
    assert found is not None
    assert labels_of(found) == {}
