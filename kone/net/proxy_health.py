"""Whether the service proxy does its work, as kube-proxy tells it by HTTP: /healthz and /livez on port 10256 for load
balancers, /proxyMode and /healthz on port 10249 of localhost for people.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kone.apimachinery.objects import Object
from kone.apimachinery.timestamps import ZERO_TIME, format_micro_time
from kone.net.plain_http import Answer, close, listen
from kone.net.service_map import Family

log = logging.getLogger(__name__)

HEALTH_TIMEOUT_S = 60.0  # two of kube-proxy's sync periods
TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
PLAIN = "text/plain; charset=utf-8"
LOCALHOST = "127.0.0.1"


@dataclass(slots=True)
class ProxyHealth:
    """When each family was brought to the kernel last, and since when something waits. Pure; times in seconds."""

    updated_at: dict[Family, float] = field(default_factory=dict)
    waiting_since: dict[Family, float] = field(default_factory=dict)

    def queued(self, families: Iterable[Family], now: float) -> None:
        """Something is to be brought to the kernel."""
        for family in families:
            self.waiting_since.setdefault(family, now)

    def updated(self, family: Family, now: float) -> None:
        """The kernel serves what it shall."""
        self.waiting_since.pop(family, None)
        self.updated_at[family] = now

    def is_healthy(self, now: float, family: Family | None = None) -> bool:
        """Whether nothing waits for too long, of that family or of any; a proxy that has just started is healthy."""
        families = self.updated_at if family is None else (family,)
        return all(now - self.waiting_since.get(f, now) < HEALTH_TIMEOUT_S for f in families)


def is_eligible(node: Object | None) -> bool:
    """Whether load balancers may send new traffic to the node: it is there, and about to stay."""
    if node is None or node["metadata"].get("deletionTimestamp"):
        return False
    return all(taint["key"] != TO_BE_DELETED for taint in node.get("spec", {}).get("taints") or ())


def said(health: ProxyHealth, now: float, node_eligible: bool | None) -> Answer:
    """The answer of /healthz, and with None, whatever the node is, of /livez."""
    is_healthy = health.is_healthy(now)
    good = is_healthy and node_eligible is not False
    # One that is healthy is up to date now, also where nothing has changed for long.
    times = [now] if good else list(health.updated_at.values())
    newest = format_micro_time(max(times)) if times else ZERO_TIME
    told: Object = {"lastUpdated": newest, "currentTime": format_micro_time(now)}
    if node_eligible is not None:
        told["nodeEligible"] = node_eligible
    told["healthy"] = is_healthy
    if health.updated_at:
        told["status"] = {
            family: {"lastUpdated": format_micro_time(at), "healthy": health.is_healthy(now, family)}
            for family, at in sorted(health.updated_at.items())
        }
    return Answer(200 if good else 503, json.dumps(told, separators=(",", ":")))


class ProxyServer:
    """Both doors; a port of 0 is none. A port that is taken is told of in the log: the proxy does its work without."""

    def __init__(
        self,
        health: ProxyHealth,
        node: Callable[[], Object | None],
        now: Callable[[], float],
        mode: str,
        *,
        healthz_port: int,
        status_port: int,
    ) -> None:
        self._health = health
        self._node = node
        self._now = now
        self._mode = mode
        self._doors = ((self.answer_all, None, healthz_port), (self.answer_localhost, [LOCALHOST], status_port))
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        for answer, addresses, port in self._doors:
            if port:
                try:
                    self._servers.append(await listen(answer, addresses, port))
                except OSError as error:
                    log.warning("the service proxy cannot tell of itself on port %d: %s", port, error.strerror)

    async def stop(self) -> None:
        for server in self._servers:
            await close(server)
        self._servers.clear()

    def answer_all(self, path: str) -> Answer:
        if path == "/healthz":
            return said(self._health, self._now(), is_eligible(self._node()))
        if path == "/livez":
            return said(self._health, self._now(), None)
        return NOT_FOUND

    def answer_localhost(self, path: str) -> Answer:
        return {"/proxyMode": Answer(200, self._mode, PLAIN), "/healthz": Answer(200, "ok", PLAIN)}.get(path, NOT_FOUND)


NOT_FOUND = Answer(404, "404 page not found\n", PLAIN)
