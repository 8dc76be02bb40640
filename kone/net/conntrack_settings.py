"""How long the kernel remembers connections, and how many: kube-proxy's settings, given back by `kone cleanup`.

A connection that was half closed for a minute would be forgotten (the kernel's default), and what its slow end still
says would leave with an address that its peer does not know. What there was before is in a file, written first.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = Path("/proc/sys/net/netfilter")
FILE = Path("net") / "conntrack.json"
MAX, ESTABLISHED, CLOSE_WAIT = (
    "nf_conntrack_max",
    "nf_conntrack_tcp_timeout_established",
    "nf_conntrack_tcp_timeout_close_wait",
)
# KubeProxyConntrackConfiguration's defaults.
MAX_PER_CPU, MIN, LIMIT = 32 * 1024, 128 * 1024, 1 << 20
ESTABLISHED_S, CLOSE_WAIT_S = 24 * 3600, 3600


def wanted(now: Mapping[str, int], cpus: int) -> dict[str, int]:
    """What is to be set, of what the kernel has now: only ever more connections, and times as kube-proxy has them."""
    most = min(max(MAX_PER_CPU * cpus, MIN), LIMIT)
    every = {MAX: max(most, now.get(MAX, 0)), ESTABLISHED: ESTABLISHED_S, CLOSE_WAIT: CLOSE_WAIT_S}
    return {name: value for name, value in every.items() if name in now and now[name] != value}


def apply(data_dir: Path, folder: Path = FOLDER) -> None:
    """Set them. Where this host does not let kone, that is told of: Services work without."""
    before = {
        name: int(path.read_text()) for name in (MAX, ESTABLISHED, CLOSE_WAIT) if (path := folder / name).exists()
    }
    try:
        changes = wanted(before, os.cpu_count() or 1)
        known = _read(data_dir / FILE)
        for name, value in changes.items():
            known.setdefault(name, [before[name], value])
            known[name][1] = value
        if changes:
            (data_dir / FILE).parent.mkdir(parents=True, exist_ok=True)
            (data_dir / FILE).write_text(json.dumps(known))
        for name, value in changes.items():
            (folder / name).write_text(str(value))
    except OSError as error:
        log.info("connection tracking stays as this host has it: %s", error)


def give_back(data_dir: Path, folder: Path = FOLDER) -> list[str]:
    """Set what there was before, unless someone else set it since; the names of what was. Raises OSError."""
    given = []
    for name, (before, mine) in _read(data_dir / FILE).items():
        if (folder / name).exists() and int((folder / name).read_text()) == mine:
            (folder / name).write_text(str(before))
            given.append(name)
    return given


def _read(path: Path) -> dict[str, list[int]]:
    """By name, what there was before kone and what kone set."""
    try:
        return {str(name): [int(before), int(mine)] for name, (before, mine) in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read (%s): settings of connection tracking are not given back", path, error)
        return {}
