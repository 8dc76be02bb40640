"""Writing every object of a resource anew, and saying how far that has come."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import CONFIGMAPS, GVR
from kone.apimachinery.objects import Object, dig, find_condition, name_of
from kone.controllers.controller import Settings
from kone.controllers.storage_version_migrator import (
    MIGRATIONS,
    STORAGE_VERSION_MIGRATOR_CONTROLLER,
    running_message,
    to_migrate,
)
from tests.controllers.world import World, conditions


async def newest(path: str, query: Mapping[str, str]) -> Object:
    assert path == "/api/v1/configmaps"
    return {"metadata": {"resourceVersion": "5000"}}


SETTINGS = Settings(collectable_resources=lambda: (CONFIGMAPS,), get_path=newest)
DONE = {
    "Running": ("True", "MigrationRunning"),
    "Succeeded": ("True", "StorageVersionMigrationSucceeded"),
}


def migration(resource: str = "configmaps", group: str = "") -> Object:
    return {
        "apiVersion": "storagemigration.k8s.io/v1",
        "kind": "StorageVersionMigration",
        "metadata": {"name": "m"},
        "spec": {"resource": {"group": group, "resource": resource}},
    }


def config_map(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "ns"}}


def message(world: World, made: Object, kind: str) -> str:
    return str((find_condition(world.client.look(MIGRATIONS, made), kind) or {}).get("message", ""))


async def test_every_object_is_written_once(world: World) -> None:
    for name in ("a", "b", "c"):
        world.client.put(CONFIGMAPS, config_map(name))
    written: list[str] = []
    patch = world.client.patch

    async def noting(resource: GVR, name: str, change: Object, **more: object) -> Object:
        written.append(name)
        return await patch(resource, name, change, **more)  # type: ignore[arg-type]

    world.client.patch = noting  # type: ignore[method-assign]
    async with world.running(STORAGE_VERSION_MIGRATOR_CONTROLLER, settings=SETTINGS):
        made = await world.put(MIGRATIONS, migration())
        await world.advance(1)
    assert written == ["a", "b", "c"]
    found = world.client.look(MIGRATIONS, made)
    assert conditions(found) == DONE
    assert dig(found, "status", "resourceVersion") == "5000"
    assert message(world, made, "Running") == "The migration is running, 3 objects verified migrated"
    assert message(world, made, "Succeeded") == "Migration completed"


async def test_what_others_write_or_delete_meanwhile_is_done(world: World) -> None:
    world.client.put(CONFIGMAPS, config_map("a"))
    world.client.refuse = lambda verb, resource, obj: (
        StatusError(409, "Conflict", "changed") if (verb, resource) == ("patch", CONFIGMAPS) else None
    )
    async with world.running(STORAGE_VERSION_MIGRATOR_CONTROLLER, settings=SETTINGS):
        made = await world.put(MIGRATIONS, migration())
        await world.advance(1)
    assert conditions(world.client.look(MIGRATIONS, made)) == DONE


async def test_an_api_that_is_busy_is_asked_again(world: World) -> None:
    world.client.put(CONFIGMAPS, config_map("a"))
    busy = [StatusError(429, "TooManyRequests", "later")]
    world.client.refuse = lambda verb, resource, obj: (
        busy.pop() if busy and (verb, resource) == ("patch", CONFIGMAPS) else None
    )
    async with world.running(STORAGE_VERSION_MIGRATOR_CONTROLLER, settings=SETTINGS):
        made = await world.put(MIGRATIONS, migration())
        await world.advance(60)
    assert conditions(world.client.look(MIGRATIONS, made)) == DONE


async def test_an_object_that_cannot_be_written_ends_the_migration(world: World) -> None:
    for name in ("a", "b"):
        world.client.put(CONFIGMAPS, config_map(name))
    world.client.refuse = lambda verb, resource, obj: (
        StatusError(422, "Invalid", "no")
        if verb == "patch" and resource == CONFIGMAPS and name_of(obj) == "b"
        else None
    )
    async with world.running(STORAGE_VERSION_MIGRATOR_CONTROLLER, settings=SETTINGS):
        made = await world.put(MIGRATIONS, migration())
        await world.advance(1)
    assert conditions(world.client.look(MIGRATIONS, made))["Failed"] == ("True", "StorageVersionMigrationFailed")
    assert message(world, made, "Failed") == "1/2 not yet migrated. migration encountered unhandled error: no"


async def test_a_resource_that_never_comes_is_given_a_minute(world: World) -> None:
    async with world.running(STORAGE_VERSION_MIGRATOR_CONTROLLER, settings=SETTINGS):
        made = await world.put(MIGRATIONS, migration("things", "example.com"))
        await world.advance(50)
        assert conditions(world.client.look(MIGRATIONS, made)) == {}
        await world.advance(120)
    assert message(world, made, "Failed") == (
        "migration encountered unhandled error: unable to obtain GVR from discovery"
    )


def test_who_is_still_to_be_written() -> None:
    objects = [{"metadata": {"name": name, "resourceVersion": version}} for name, version in (("a", "9"), ("b", "11"))]
    assert [name_of(obj) for obj in to_migrate(objects, "10")] == ["a"]


@pytest.mark.parametrize(
    ("left", "total", "error", "expected"),
    [
        (0, 0, "", "The migration is running"),
        (2, 3, "", "The migration is running, 2/3 objects not yet migrated"),
        (0, 3, "", "The migration is running, 3 objects verified migrated"),
        (1, 3, "later", "The migration is running, 1/3 objects not yet migrated; transient error: later"),
    ],
)
def test_how_far_it_has_come(left: int, total: int, error: str, expected: str) -> None:
    assert running_message(left, total, error) == expected
