"""ComponentStatuses, which `kubectl get cs` shows still: the parts of the control plane, and whether they answer.

They are deprecated since v1.19. Upstream asks each part's own port; here the parts are of one process, and what does
not run does not listen.
"""

from __future__ import annotations

from typing import Final

from kone.apimachinery.errors import not_found
from kone.apimachinery.kinds import GVR
from kone.apimachinery.objects import Object

COMPONENTSTATUSES: Final = GVR("", "v1", "componentstatuses")
STORE: Final = "etcd-0"
PORTS: Final = {"controller-manager": 10257, "scheduler": 10259}


class ComponentStatuses:
    """Answers get and list (reads.Computed). Who starts a part adds its name to `running`."""

    def __init__(self) -> None:
        self.running: set[str] = {STORE}

    async def get(self, gvr: GVR, name: str, namespace: str) -> Object:
        """Raises 404."""
        if name not in (STORE, *PORTS):
            raise not_found(gvr.group_resource, name)
        return self._status(name)

    async def list(self, gvr: GVR, namespace: str) -> list[Object]:
        return [self._status(name) for name in sorted((STORE, *PORTS))]

    def _status(self, name: str) -> Object:
        runs = name in self.running
        address = f"127.0.0.1:{PORTS.get(name)}"
        silent = f'Get "https://{address}/healthz": dial tcp {address}: connect: connection refused'
        condition = {"type": "Healthy", "status": str(runs), "message": "ok" if runs else silent}
        return {
            "kind": "ComponentStatus",
            "apiVersion": "v1",
            "metadata": {"name": name},
            "conditions": [condition],
        }
