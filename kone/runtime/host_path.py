"""hostPath volumes: a place of the host as it is, or made, or refused, as the volume's type says.

Rules and texts: kubernetes/pkg/volume/hostpath.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from kone.runtime.parts import VolumeError

# By type: what it must be, in words, and as the type it is called when it is something else.
_WANTED: Mapping[str, tuple[str, str]] = {
    "Directory": ("directory", "Directory"),
    "DirectoryOrCreate": ("directory", "Directory"),
    "File": ("file", "File"),
    "FileOrCreate": ("file", "File"),
    "Socket": ("socket file", "Socket"),
    "CharDevice": ("character device", "CharDevice"),
    "BlockDevice": ("block device", "BlockDevice"),
}
_TYPES: Mapping[int, str] = {
    stat.S_IFSOCK: "Socket",
    stat.S_IFBLK: "BlockDevice",
    stat.S_IFCHR: "CharDevice",
    stat.S_IFDIR: "Directory",
    stat.S_IFREG: "File",
}


def prepare(path: str, kind: str) -> None:
    """See to it that a hostPath is there and of its type ("" means any). Raises VolumeError, OSError.

    A path of no type that does not exist becomes a directory, as container runtimes make it for Kubernetes.
    """
    if ".." in path.split("/"):
        raise VolumeError(f"invalid HostPath `{path}`: must not contain '..'")
    if kind not in ("", *_WANTED):
        raise VolumeError(f"{kind} is an invalid volume type")
    if not os.path.lexists(path):
        if kind in ("", "DirectoryOrCreate"):
            os.makedirs(path, mode=0o755, exist_ok=True)
            return
        if kind == "FileOrCreate":
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644))
            return
    if kind:
        _check(path, *_WANTED[kind])


def _check(path: str, noun: str, wanted: str) -> None:
    refused = f"hostPath type check failed, {path} is not a {noun}, unable to determine its type: "
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise VolumeError(f'{refused}path "{path}" does not exist') from None
    except OSError as error:
        raise VolumeError(f"{refused}stat {path}: {(error.strerror or str(error)).lower()}") from None
    found = _TYPES.get(stat.S_IFMT(mode))
    if found is None:
        raise VolumeError(f"{refused}only recognise file, directory, socket, block device and character device")
    if found != wanted:
        raise VolumeError(f"hostPath type check failed: {path} is not a {noun}, it's a {found}")
