"""An object in another version of its resource: which versions there are, and the ways between them."""

from __future__ import annotations

from kone.apimachinery.kinds import GVR, parse_api_version
from kone.apimachinery.objects import Object
from kone.registry.resource import Registry, Resource
from kone.store.store import Entry


async def shown(resource: Resource, entries: list[Entry]) -> list[Entry]:
    """Stored states in the version of the resource. Raises StatusError."""
    return entries if resource.conversion is None else await resource.conversion.shown(entries)


async def converted(obj: Object, source: Resource, target: Resource) -> Object:
    """An object of one version in another version of the same resource. Raises StatusError."""
    if source.gvr == target.gvr:
        return obj
    if source.conversion is not None and source.custom is None:
        obj = await source.conversion.to_storage(obj)
    return obj if target.conversion is None else await target.conversion.from_storage(obj)


def version_of(registry: Registry, resource: Resource, api_version: str) -> Resource | None:
    """The resource in another of its versions; None where there is no such version."""
    group, version = parse_api_version(api_version)
    if api_version in resource.versions:
        return resource.versions[api_version]
    found = registry.get(GVR(group, version, resource.gvr.resource))
    return found if found is not None and found.storage_key == resource.storage_key else None
