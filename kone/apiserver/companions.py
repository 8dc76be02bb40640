"""What is committed together with an object: its kind's companions, as a Service's IPAddresses, made whole.

One transaction writes both, so neither is ever there without the other, whenever the process ends.
"""

from __future__ import annotations

from kone.aio.clock import Clock
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import format_time
from kone.apimachinery.users import User
from kone.apiserver.context import RequestContext
from kone.apiserver.identity import new_uid
from kone.apiserver.ownership import Ownership, manager_of_user
from kone.cache.watch_cache import Caches
from kone.registry import generic
from kone.registry.resource import Registry
from kone.registry.strategy import Strategy
from kone.store.store import Write, key_for

_SERVER = User("system:apiserver")


class Companions:
    """Makes the writes that go along with a write."""

    def __init__(self, registry: Registry, caches: Caches, ownership: Ownership, clock: Clock) -> None:
        self._registry = registry
        self._caches = caches
        self._ownership = ownership
        self._clock = clock

    async def writes(self, strategy: Strategy, obj: Object | None, old: Object | None) -> tuple[Write, ...]:
        """What goes along as `old` becomes `obj`. A companion that is there already makes the commit raise KeyExists
        with its key; one that should go and is not there is left out."""
        if not strategy.allocates:
            return ()
        found = []
        for (gvr, name), companion in strategy.companions(obj, old).items():
            key = key_for(gvr.group, gvr.resource, "", name)
            if companion is not None:
                found.append(Write(key, await self._made(gvr, companion), 0))
            elif (entry := self._caches.of(gvr.group, gvr.resource).get("", name)) is not None:
                found.append(Write(key, None, entry.revision))
        return tuple(found)

    async def _made(self, gvr: GVR, companion: Object) -> Object:
        resource, now = self._registry.get(gvr), format_time(self._clock.now())
        assert resource is not None, f"{gvr} goes along with another kind and is none itself"
        ctx = RequestContext(_SERVER, user_agent_manager=manager_of_user(_SERVER.name))
        resource.strategy.default(companion)
        await self._ownership.update(ctx, resource, "", None, companion, None, now)
        generic.fill_system_fields(companion, uid=new_uid(), creation_timestamp=now)
        resource.strategy.prepare(companion, None, user=_SERVER)
        return companion
