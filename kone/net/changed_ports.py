"""What the proxiers that write rules share: what changed is found, and written so that one bad port stops no other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from kone.net.proxier import Desired, ProxySyncError
from kone.net.rule_config import RuleConfig
from kone.net.service_map import ServicePort, ServicePortName
from kone.net.stale_flows import forget

TURN = 100  # ports whose rules are made before others have a turn: some 3 ms

Changed = Mapping[ServicePortName, ServicePort | None]
"""Ports that are new or another than before; None for those that are gone."""


def changes(served: Desired, desired: Desired) -> dict[ServicePortName, ServicePort | None]:
    """What leads from one to the other. Unchanged ports are the same objects."""
    changed: dict[ServicePortName, ServicePort | None] = {
        name: port for name, port in desired.items() if served.get(name) is not port
    }
    return changed | {name: None for name in served if name not in desired}


class ChangedPorts(ABC):
    """A Proxier's `sync`, for a way to the kernel that takes all of what changed or nothing of it."""

    refusal: ClassVar[type[Exception]]
    """What `write` raises where the kernel refuses."""

    def __init__(self, config: RuleConfig) -> None:
        self._config = config
        self._served: dict[ServicePortName, ServicePort] = {}
        self._first = True
        """Nothing was written yet."""

    @abstractmethod
    async def write(self, changed: Changed) -> None:
        """Bring it to the kernel, the first time with all that others lead to. Raises `refusal`; then the books are as
        before."""

    async def sync(self, desired: Desired) -> None:
        changed = changes(self._served, desired)
        if not changed and not self._first:
            return
        before = {name: self._served[name] for name in changed if name in self._served}
        refused = await self._bring(changed)
        done = {name: port for name, port in changed.items() if name not in refused}
        for name, port in done.items():
            if port is None:
                self._served.pop(name, None)
            else:
                self._served[name] = port
        await forget(before, done, self._config.node_ips, self._config.family)
        if refused:
            first, error = next(iter(refused.items()))
            raise ProxySyncError(f"{len(refused)} ports of Services, first {first}: {error}")

    async def _bring(self, changed: Changed) -> dict[ServicePortName, str]:
        """Write what changed; where the kernel refuses it, its halves."""
        try:
            await self.write(changed)
        except self.refusal as error:
            if len(changed) <= 1:
                return {name: str(error) for name in changed}
            names = list(changed)
            refused: dict[ServicePortName, str] = {}
            for part in (names[: len(names) // 2], names[len(names) // 2 :]):
                refused |= await self._bring({name: changed[name] for name in part})
            return refused
        self._first = False
        return {}
