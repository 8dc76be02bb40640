"""StorageVersionMigrations: every object of a resource is written anew, so that it is stored in the version that the
API stores now.

An object that was written after the migration was ordered is in that version already; so is one that somebody changes
meanwhile. The order remembers, by resourceVersion, when it was looked at first.
"""

from __future__ import annotations

from collections.abc import Iterable

from kone.apimachinery.errors import StatusError
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import (
    Key,
    Object,
    dig,
    find_condition,
    is_condition_true,
    key_of,
    name_of,
    namespace_of,
    other_conditions,
    replace_in,
    resource_version_of,
    uid_of,
)
from kone.apimachinery.timestamps import format_time, parse_time
from kone.client.client import EventType, Informer
from kone.controllers.controller import Context, Controller, NotYet, Reconciler, Result, Watch

MIGRATIONS = GVR("storagemigration.k8s.io", "v1", "storageversionmigrations")
PATIENCE_S = 60.0  # for a resource that is not there: its definition may be new
TRY_AGAIN = (429, 500, 503, 504)


# Decide


def is_over(migration: Object) -> bool:
    return is_condition_true(migration, "Succeeded") or is_condition_true(migration, "Failed")


def to_migrate(objects: Iterable[Object], version: str) -> list[Object]:
    """Those that were not written after that resourceVersion."""
    return [obj for obj in objects if int(resource_version_of(obj) or 0) <= int(version)]


def running_message(left: int, total: int, error: str = "") -> str:
    text = "The migration is running"
    if total:
        text += f", {left}/{total} objects not yet migrated" if left else f", {total} objects verified migrated"
    return f"{text}; transient error: {error}" if error else text


def with_condition(migration: Object, kind: str, reason: str, message: str, now: float) -> Object:
    """The migration with that condition, true."""
    old = find_condition(migration, kind)
    since = (old or {}).get("lastTransitionTime") or format_time(now)
    new = {"type": kind, "status": "True", "lastTransitionTime": since, "reason": reason, "message": message}
    return replace_in(migration, ("status", "conditions"), [*other_conditions(migration, kind), new])


# Act


class Migrations(Reconciler):
    """Keys are StorageVersionMigrations."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.primary: Informer = ctx.client.informer(MIGRATIONS)

    def watches(self) -> Iterable[Watch]:
        yield Watch(self.primary, self._keys)

    def _keys(self, event: EventType, migration: Object, previous: Object | None) -> Iterable[Key]:
        return () if event == "DELETED" or is_over(migration) else (key_of(migration),)

    async def reconcile(self, key: Key) -> Result | None:
        migration = self.primary.get(*key)
        if migration is None or is_over(migration):
            return None
        resource = self._resource(migration)
        if resource is None:
            if parse_time(migration["metadata"]["creationTimestamp"]) + PATIENCE_S > self._ctx.clock.now():
                raise NotYet("the API has no such resource, perhaps not yet")
            await self._fail(migration, "unable to obtain GVR from discovery")
            return None
        version = dig(migration, "status", "resourceVersion")
        if not version:
            await self._note_version(migration, resource)
            return None
        await self._migrate(migration, resource, version)
        return None

    def _resource(self, migration: Object) -> GVR | None:
        wanted = dig(migration, "spec", "resource", default={})
        named = wanted.get("group", ""), wanted.get("resource", "")
        resources = self._ctx.settings.collectable_resources()
        return next((found for found in resources if (found.group, found.resource) == named), None)

    async def _note_version(self, migration: Object, resource: GVR) -> None:
        prefix = f"/apis/{resource.group}" if resource.group else "/api"
        page = await self._ctx.settings.get_path(f"{prefix}/{resource.version}/{resource.resource}", {"limit": "1"})
        status = {**(migration.get("status") or {}), "resourceVersion": dig(page, "metadata", "resourceVersion")}
        await self._write({**migration, "status": status})

    async def _migrate(self, migration: Object, resource: GVR, version: str) -> None:
        objects = await self._ctx.client.list(resource)
        left = to_migrate(objects, version)
        total = len(objects)
        for done, obj in enumerate(left):
            metadata = {"uid": uid_of(obj), "resourceVersion": resource_version_of(obj)}
            try:
                await self._ctx.client.patch(
                    resource, name_of(obj), {"metadata": metadata}, namespace=namespace_of(obj)
                )
            except StatusError as error:
                if error.code in (404, 409):
                    continue  # somebody else has written it, or it is gone
                message = running_message(len(left) - done, total, str(error) if error.code in TRY_AGAIN else "")
                told = self._running(migration, message)
                if error.code in TRY_AGAIN:
                    await self._write(told)
                    raise
                await self._fail(told, str(error), f"{len(left) - done}/{total} not yet migrated. ")
                return
        told = self._running(migration, running_message(0, total))
        now = self._ctx.clock.now()
        success = "StorageVersionMigrationSucceeded"
        await self._write(with_condition(told, "Succeeded", success, "Migration completed", now))

    def _running(self, migration: Object, message: str) -> Object:
        return with_condition(migration, "Running", "MigrationRunning", message, self._ctx.clock.now())

    async def _fail(self, migration: Object, why: str, how_far: str = "") -> None:
        message = f"{how_far}migration encountered unhandled error: {why}"
        now = self._ctx.clock.now()
        await self._write(with_condition(migration, "Failed", "StorageVersionMigrationFailed", message, now))

    async def _write(self, migration: Object) -> None:
        await self._ctx.client.update(MIGRATIONS, migration, subresource="status")


STORAGE_VERSION_MIGRATOR_CONTROLLER = Controller("storage-version-migrator-controller", Migrations, workers=1)
