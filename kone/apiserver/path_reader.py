"""GET of a path of the API for the loops of this process. They ask by path for what is no resource of this API (metrics
that another server has, which versions a group has), and how far the store is, by the list of a resource."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kone.apimachinery.errors import StatusError
from kone.apimachinery.objects import Object
from kone.apimachinery.users import User
from kone.apiserver.aggregation import Aggregator
from kone.apiserver.discovery import Discovery
from kone.apiserver.options import ListOptions
from kone.apiserver.verbs import Verbs

NOT_FOUND: Final = "the server could not find the requested resource"


class PathReader:
    def __init__(self, verbs: Verbs, discovery: Discovery, aggregator: Aggregator) -> None:
        self._verbs = verbs
        self._discovery = discovery
        self._aggregator = aggregator

    async def get(self, user: User, path: str, query: Mapping[str, str]) -> Object:
        """The answer as JSON; of a list only its items and revision. Raises StatusError."""
        if (api_service := self._aggregator.backend(path)) is not None:
            return await self._aggregator.get(api_service, path, query, user)
        found = None
        match path.strip("/").split("/"):
            case ["apis", group]:
                found = self._discovery.group(group)
            case ["apis", group, version, resource]:
                found = await self._list(group, version, resource, query)
            case ["api", version, resource]:
                found = await self._list("", version, resource, query)
        if found is None:
            raise StatusError(404, "NotFound", NOT_FOUND)
        return found

    async def _list(self, group: str, version: str, resource: str, query: Mapping[str, str]) -> Object | None:
        kind = self._verbs.registry.find(group, version, resource)
        if kind is None:
            return None
        options = ListOptions(labels=query.get("labelSelector", ""), limit=int(query.get("limit", "0")))
        page = await self._verbs.list(kind, options)
        return {
            "metadata": {"resourceVersion": str(page.revision)},
            "items": [entry.obj for entry in page.entries],
        }
