"""What a kubelet writes down of CSI volumes, in upstream's places, and reads again when it knows nothing else: a data
file beside each published and each staged volume says whose it is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kone.runtime import csi_rules as rules
from kone.runtime import mounts
from kone.runtime.csi_rules import CsiVolume

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """A volume that was published for a pod, as its data file tells."""

    pod_uid: str
    name: str
    driver: str
    handle: str
    target: Path
    """Where the driver published it."""
    left: tuple[Path, ...]
    """What remains of it when the driver has taken it back: files, links and directories, in the order of removal."""
    inline: bool = False


@dataclass(frozen=True, slots=True)
class Staged:
    driver: str
    handle: str
    path: Path
    left: tuple[Path, ...]


def published(root: Path, pod_uid: str = "*") -> Iterator[Published]:
    """What is published for a pod, or for all."""
    for data in root.glob(f"pods/{pod_uid}/volumes/{rules.ESCAPED}/*/{rules.DATA_FILE}"):
        if (found := _load(data)) is not None:
            folder = data.parent
            uid = folder.parents[2].name
            inline = found.get("volumeLifecycleMode") == "Ephemeral"
            yield Published(uid, found["specVolID"], *_whose(found), folder / "mount", (data, folder), inline)
    for link in root.glob(f"pods/{pod_uid}/volumeDevices/{rules.ESCAPED}/*"):
        device = CsiVolume(link.name, "", "", block=True)
        found = _load(root / rules.data_path(device))
        if link.is_symlink() and found is not None:
            uid = link.parents[2].name
            target = root / rules.target_path(device, uid)
            yield Published(uid, link.name, *_whose(found), target, (link, target.parent))


def staged(root: Path) -> Iterator[Staged]:
    top = root / "plugins" / "kubernetes.io" / "csi"
    for data in top.glob(f"*/*/{rules.DATA_FILE}"):
        if (found := _load(data)) is not None:
            yield Staged(*_whose(found), data.parent / "globalmount", (data, data.parent))
    for data in top.glob(f"volumeDevices/*/data/{rules.DATA_FILE}"):
        if (found := _load(data)) is not None:
            device = CsiVolume(found["specVolID"], "", "", block=True)
            place = root / rules.staging_path(device)
            yield Staged(*_whose(found), place, (data, data.parent, data.parent.parent))


def pod_data(volume: CsiVolume, node_name: str) -> dict[str, str]:
    return {
        "attachmentID": volume.attachment(node_name),
        "driverName": volume.driver,
        "nodeName": node_name,
        "specVolID": volume.name,
        "volumeHandle": volume.handle,
        "volumeLifecycleMode": "Ephemeral" if volume.inline else "Persistent",
    }


def _whose(data: Mapping[str, str]) -> tuple[str, str]:
    return data["driverName"], data["volumeHandle"]


def save(path: Path, data: Mapping[str, str]) -> None:
    """Written aside and renamed: there is no half of it. Raises OSError."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(json.dumps(data, sort_keys=True, separators=(",", ":")) + "\n")
    fresh.rename(path)


def _load(path: Path) -> dict[str, str] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"driverName", "volumeHandle"} <= found.keys() else None


def parents(data: Path, place: Path) -> Iterator[Path]:
    """The directories made for a staged volume alone."""
    yield data.parent
    if data.parent != place.parent:
        yield data.parent.parent


def tidy(place: Path, left: tuple[Path, ...]) -> None:
    """Remove a mount point that drivers should have removed, and what the kubelet left beside it; never more than
    empty directories. What is still mounted stays."""
    if mounts.is_mount_point(os.path.realpath(place)):
        log.warning("the driver left %s mounted", place)
        return
    for path in (place, *left):
        try:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            log.debug("%s stays: %s", path, error)
