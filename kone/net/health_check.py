"""The health check node port of Services with externalTrafficPolicy Local: does this node have endpoints of its own?

A load balancer outside asks each node by HTTP and sends traffic only where the answer is 200. Body, codes and headers
are those of upstream's proxy: load balancers rely on them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kone.apimachinery.objects import Key, Object
from kone.client.events import EventRecorder
from kone.net.plain_http import Answer, close, listen

log = logging.getLogger(__name__)


class Check(NamedTuple):
    """A Service's port on the node, and how many of its ready endpoints are on this node."""

    port: int
    local_endpoints: int


class HealthChecks:
    """One listener for each Service that wants one, everywhere until `move` names addresses.

    `healthy` says whether the proxy itself does its work.
    """

    def __init__(
        self,
        node_name: str,
        healthy: Callable[[], bool],
        recorder: EventRecorder | None = None,
    ) -> None:
        self._node_name = node_name
        self._healthy = healthy
        self._recorder = recorder
        self._addresses: Sequence[str] | None = None
        self._checks: dict[Key, Check] = {}
        self._servers: dict[Key, asyncio.Server] = {}

    @property
    def failed(self) -> list[Key]:
        """Services whose port is not listened on, though there is an address to do it at."""
        return [key for key in self._checks if key not in self._servers and self._addresses != []]

    async def move(self, addresses: Sequence[str]) -> None:
        """Listen at these addresses from the next `update` on."""
        if addresses != self._addresses:
            await self.stop()
            self._addresses = addresses

    async def update(self, changed: Mapping[Key, Check | None], references: Mapping[Key, Object]) -> None:
        """Listen for these from now on (None: no more); those that failed before are tried again.

        A port that is taken is an event on the Service, of which `references` has the object.
        """
        for key, check in changed.items():
            before = self._checks.pop(key, None)
            if before is not None and (check is None or check.port != before.port):
                await self._close(key)
            if check is not None:
                self._checks[key] = check
        for key in self.failed:
            await self._listen(key, self._checks[key].port, references.get(key))

    async def stop(self) -> None:
        for key in list(self._servers):
            await self._close(key)

    async def _listen(self, key: Key, port: int, reference: Object | None) -> None:
        try:
            self._servers[key] = await listen(lambda path: self._answer(key), self._addresses, port)
        except OSError as error:
            message = f'node {self._node_name} failed to start healthcheck "{key}" on port {port}: {error.strerror}'
            log.error("%s", message)
            if self._recorder is not None and reference is not None:
                self._recorder.event(reference, "Warning", "FailedToStartServiceHealthcheck", message)

    async def _close(self, key: Key) -> None:
        if (server := self._servers.pop(key, None)) is not None:
            await close(server)

    def _answer(self, key: Key) -> Answer:
        check = self._checks.get(key)
        count = check.local_endpoints if check else 0
        healthy = self._healthy()
        weight = {"X-Load-Balancing-Endpoint-Weight": str(count)}
        return Answer(200 if count and healthy else 503, body(key, count, healthy), headers=weight)


def body(key: Key, local_endpoints: int, healthy: bool) -> str:
    """What the check says, indented by tabs."""
    service = {"namespace": key.namespace, "name": key.name}
    said = {"service": service, "localEndpoints": local_endpoints, "serviceProxyHealthy": healthy}
    return json.dumps(said, indent="\t")
