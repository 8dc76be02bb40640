"""The Container Device Interface: files by which vendors say what a device needs in a container.

Docker of before 25 knows nothing of it, and later ones only if they are told; so what the files say is given to Docker
as devices, variables, mounts and groups. What Docker's API has no word for (OCI hooks) is refused. Specification:
cncf-tags/container-device-interface, SPEC.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kone.runtime.runtime import Device, Mount

FOLDERS: Final = (Path("/etc/cdi"), Path("/var/run/cdi"))  # the later ones win
_QUALIFIED: Final = re.compile(r"(?P<kind>[^=/]+/[^=/]+)=(?P<device>[^=]+)")


class CdiError(Exception):
    """A device cannot be had as its file says."""


@dataclass(frozen=True, slots=True)
class Allotment:
    """What a container is given beyond its spec."""

    devices: tuple[Device, ...] = ()
    mounts: tuple[Mount, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    groups: tuple[int, ...] = ()

    def __add__(self, other: Allotment) -> Allotment:
        return Allotment(
            tuple(dict.fromkeys((*self.devices, *other.devices))),
            tuple(dict.fromkeys((*self.mounts, *other.mounts))),
            tuple((dict(self.env) | dict(other.env)).items()),
            tuple(dict.fromkeys((*self.groups, *other.groups))),
        )


def allotment(names: Iterable[str], folders: Sequence[Path] = FOLDERS) -> Allotment:
    """What devices need, by their full names ("vendor.com/class=name"). Raises CdiError."""
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return Allotment()
    specs = _read(folders)
    total = Allotment()
    used_kinds: set[str] = set()
    for name in wanted:
        match = _QUALIFIED.fullmatch(name)
        spec = specs.get((match["kind"], match["device"])) if match is not None else None
        if match is None or spec is None:
            raise CdiError(f"unresolvable CDI devices {name}")
        content, device = spec
        if match["kind"] not in used_kinds:
            used_kinds.add(match["kind"])
            total += _edits(name, content.get("containerEdits") or {})
        total += _edits(name, device.get("containerEdits") or {})
    return total


_Found = tuple[Mapping[str, Any], Mapping[str, Any]]


def _read(folders: Sequence[Path]) -> dict[tuple[str, str], _Found]:
    """(specification, device) by kind and name. Raises CdiError for a file that cannot be read."""
    found: dict[tuple[str, str], _Found] = {}
    for folder in folders:
        for path in sorted(folder.glob("*")):
            if path.suffix not in (".json", ".yaml", ".yml"):
                continue
            content = _load(path)
            for device in content.get("devices") or ():
                found[content.get("kind", ""), device.get("name", "")] = (content, device)
    return found


def _load(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text()
        if path.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml  # few nodes have such files

            content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}  # it went while we looked
    except Exception as error:  # json, yaml and the file system each say it in their own way
        raise CdiError(f"CDI specification {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CdiError(f"CDI specification {path} is no object")
    return content


def _edits(name: str, edits: Mapping[str, Any]) -> Allotment:
    if edits.get("hooks"):
        raise CdiError(f"CDI device {name} needs OCI hooks, which Docker's API does not take")
    return Allotment(
        tuple(
            Device(node.get("hostPath") or node["path"], node["path"], node.get("permissions") or "rwm")
            for node in edits.get("deviceNodes") or ()
        ),
        tuple(_mount(mount) for mount in edits.get("mounts") or ()),
        tuple((key, value) for key, _, value in (entry.partition("=") for entry in edits.get("env") or ())),
        tuple(int(group) for group in edits.get("additionalGids") or ()),
    )


def _mount(mount: Mapping[str, Any]) -> Mount:
    options = mount.get("options") or ()
    return Mount(mount["containerPath"], mount["hostPath"], read_only="ro" in options)
