"""What the kubelet asks of the pod network. `net/bridge.py` implements it; node.py brings the two together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the node that leads into a pod; host_ip "" is every address of the node."""

    protocol: str  # "TCP", "UDP", "SCTP"
    host_ip: str
    host_port: int
    container_port: int


class PodNetwork(Protocol):
    """Gives pods addresses and ways. Everything is idempotent, since a kubelet may be killed between any two steps."""

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Let go; what pods use stays in the kernel."""

    async def restore(self, live_pod_uids: set[str]) -> None:
        """After a restart: keep what these pods have, free the rest."""

    async def attach(
        self,
        *,
        pod_uid: str,
        pod_name: str,
        namespace: str,
        netns: str,
        host_ports: Sequence[HostPort],
        annotations: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Wire the pod's network namespace ("/proc/<pid>/ns/net"); answers its IPs, IPv4 first, the same on every
        call.
        """

    async def detach(self, *, pod_uid: str) -> None:
        """Free the pod's address, link and host ports; works when the namespace is gone."""
