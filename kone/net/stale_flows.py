"""Which UDP flows a change of Services makes stale, for every proxier that relies on connection tracking."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from kone.net.conntrack import Address, forget_stale_udp
from kone.net.service_map import ServicePort, ServicePortName

log = logging.getLogger(__name__)

Frontends = dict[Address, frozenset[Address]]


def frontends(ports: Mapping[ServicePortName, ServicePort], node_ips: Iterable[str]) -> Frontends:
    """The addresses of UDP ports, with the endpoints that a flow to them may have."""
    found: Frontends = {}
    for port in ports.values():
        if port.protocol == "UDP":
            endpoints = frozenset(Address(e.ip, e.port) for e in (*port.cluster_endpoints, *port.local_endpoints))
            for ip in port.addresses:
                found[Address(ip, port.port)] = endpoints
            if port.node_port:
                for ip in ("", *node_ips):
                    found[Address(ip, port.node_port)] = endpoints
    return found


async def forget(
    before: Mapping[ServicePortName, ServicePort],
    now: Mapping[ServicePortName, ServicePort | None],
    node_ips: Iterable[str],
    family: int,
) -> None:
    """Forget flows to where these ports led `before` or lead `now` (None: nowhere) that their endpoints do not answer.

    What cannot be done is logged.
    """
    ips = list(node_ips)
    looked_at: Frontends = {
        **dict.fromkeys(frontends(before, ips), frozenset()),
        **frontends({name: port for name, port in now.items() if port}, ips),
    }
    if not looked_at:
        return
    try:
        gone = await asyncio.get_running_loop().run_in_executor(None, forget_stale_udp, looked_at, family)
    except OSError as error:
        log.warning("stale UDP flows could not be looked for: %s", error)
        return
    if gone:
        log.debug("forgot %d UDP flows to endpoints that are gone", gone)
