"""fsGroup: a volume given to a pod's group, all of it or only where its top is another's (fsGroupChangePolicy)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kone.apimachinery.objects import Object, dig
from kone.runtime import atomic_writer


async def give_to_group(pod: Object, top: Path, group: int) -> None:
    """Raises OSError."""
    policy = dig(pod, "spec", "securityContext", "fsGroupChangePolicy", default="Always")
    if policy == "Always" or not atomic_writer.is_owned(top, group):
        await asyncio.to_thread(atomic_writer.own, top, group, read_only=False)
