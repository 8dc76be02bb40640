"""How full the volumes behind claims are: told by their CSI driver, else by the file system they lie on.

Counted at most once a minute, for those who ask (the summary API, kubelet_volume_stats_*). A hostPath volume is a part
of the node's own disk and says nothing, as upstream's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kone.aio.clock import Clock
from kone.apimachinery.kinds import PERSISTENTVOLUMECLAIMS
from kone.apimachinery.objects import Object, dig, namespace_of, uid_of
from kone.client.client import Client
from kone.runtime import local_volumes, nfs_volumes
from kone.runtime.claimed_volumes import claim_name
from kone.runtime.csi_volumes import CsiVolumes
from kone.runtime.disk_usage import MAX_AGE_S, file_system

_BYTES, _INODES = 1, 2  # csi_messages' units


@dataclass(frozen=True, slots=True)
class ClaimedUse:
    """A mounted volume of a claim. A block device has a capacity only; what is not known is None."""

    volume: str
    """Its name in the pod."""
    namespace: str
    claim: str
    capacity_bytes: int | None = None
    available_bytes: int | None = None
    used_bytes: int | None = None
    inodes: int | None = None
    inodes_free: int | None = None
    inodes_used: int | None = None


class VolumeStats:
    """`root` is the kubelet's directory."""

    def __init__(self, client: Client, csi: CsiVolumes, root: Path, clock: Clock) -> None:
        self._claims = client.informer(PERSISTENTVOLUMECLAIMS)
        self._csi, self._root, self._clock = csi, root, clock
        self._known: dict[tuple[str, str], tuple[float, ClaimedUse | None]] = {}  # (pod UID, volume) -> (when, what)

    async def of(self, pod: Object) -> list[ClaimedUse]:
        """The volumes of a pod that are claimed and counted."""
        found = []
        for volume in pod["spec"].get("volumes") or ():
            if name := claim_name(pod, volume):
                use = await self._use(pod, volume["name"], name)
                if use is not None:
                    found.append(use)
        return found

    def forget_all_but(self, pod_uids: set[str]) -> None:
        self._known = {key: known for key, known in self._known.items() if key[0] in pod_uids}

    async def _use(self, pod: Object, volume: str, claim: str) -> ClaimedUse | None:
        key, now = (uid_of(pod), volume), self._clock.monotonic()
        known = self._known.get(key)
        if known is None or now - known[0] >= MAX_AGE_S:
            known = self._known[key] = (now, await self._count(pod, volume, claim))
        return known[1]

    async def _count(self, pod: Object, volume: str, claim: str) -> ClaimedUse | None:
        namespace = namespace_of(pod)
        name = dig(self._claims.get(namespace, claim), "spec", "volumeName", default="")
        if not name:
            return None
        for path in self._places(uid_of(pod), name):
            try:
                disk = file_system(path)
            except OSError:
                continue
            return ClaimedUse(
                volume,
                namespace,
                claim,
                disk.capacity_bytes,
                disk.available_bytes,
                disk.used_bytes,
                disk.inodes,
                disk.inodes_free,
                disk.inodes_used,
            )
        told = {usage.get("unit", 0): usage for usage in await self._csi.usage(uid_of(pod), name)}
        if not told:
            return None
        return ClaimedUse(volume, namespace, claim, *_counts(told.get(_BYTES)), *_counts(told.get(_INODES)))

    def _places(self, pod_uid: str, name: str) -> Iterator[Path]:
        """Where a volume that is no CSI driver's is mounted for the pod."""
        volumes = self._root / "pods" / pod_uid / "volumes"
        for plugin in (local_volumes.ESCAPED, nfs_volumes.ESCAPED):
            if os.path.isdir(volumes / plugin / name):
                yield volumes / plugin / name


def _counts(usage: dict[str, int] | None) -> tuple[int | None, int | None, int | None]:
    """(total, available, used) of one unit; a zero is not written on the wire."""
    if usage is None:
        return None, None, None
    return usage.get("total", 0), usage.get("available", 0), usage.get("used", 0)
