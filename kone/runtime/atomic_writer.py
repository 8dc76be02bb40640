"""Files that change all at once: how configMap, secret, projected and downwardAPI volumes are updated under a reader.

The layout is that of upstream's volumes, which programs rely on: the files lie in a directory named after the time,
`..data` is a link to it, and each visible name is a link through `..data`. An update makes a new directory and renames
one link, so a reader sees the old files or the new ones, never a mixture.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DATA = "..data"
PATH_MAX, NAME_MAX = 4096, 255
# What fsGroup adds to a file, and to a directory besides (kubelet's VolumeOwnership).
READ_ONLY_BITS, READ_WRITE_BITS, DIRECTORY_BITS = 0o440, 0o660, 0o2110


@dataclass(frozen=True, slots=True)
class File:
    """One file of a payload. `mode` are its permission bits; `user` owns it where set."""

    data: bytes
    mode: int
    user: int | None = None


def write(target: Path, files: Mapping[str, File], stamp: str, group: int | None = None) -> bool:
    """Make `target` hold exactly `files`, by relative path. Whether anything changed.

    `stamp` names the new directory, e.g. "2026_11_25_03_36_32"; `group` owns everything where set (fsGroup). What else
    lies in `target` (mount points of volumes inside this one) is left alone. Raises ValueError for a path that leads
    out of it.
    """
    wanted = {_checked(path): file for path, file in files.items()}
    group_bits = 0 if group is None else READ_ONLY_BITS
    if _current(target) == {path: (file.data, file.mode & 0o7777 | group_bits) for path, file in wanted.items()}:
        _link_names(target, {path.split("/")[0] for path in wanted})
        return False
    new = Path(tempfile.mkdtemp(prefix=f"..{stamp}.", dir=target))
    new.chmod(0o755)
    for path, file in wanted.items():
        place = new / path
        _make_folders(new, path)
        place.write_bytes(file.data)
        if file.user is not None:
            os.chown(place, file.user, -1)
        place.chmod(file.mode)
    if group is not None:
        own(target, group, read_only=True)
    link = target / f"{DATA}_tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(new.name)
    old = target / DATA
    previous = old.readlink() if old.is_symlink() else None
    link.rename(old)
    _link_names(target, {path.split("/")[0] for path in wanted})
    if previous is not None:
        shutil.rmtree(target / previous, ignore_errors=True)
    return True


def own(top: Path, group: int, *, read_only: bool) -> None:
    """Give a tree to a group as fsGroup does: readable (and writable unless read_only), directories setgid."""
    for folder, names, files in os.walk(top):
        for path in (folder, *(os.path.join(folder, name) for name in (*names, *files))):
            state = os.lstat(path)
            if state.st_gid != group:
                os.chown(path, -1, group, follow_symlinks=False)
            if stat.S_ISLNK(state.st_mode):
                continue
            mode = state.st_mode & 0o7777 | (READ_ONLY_BITS if read_only else READ_WRITE_BITS)
            if stat.S_ISDIR(state.st_mode):
                mode |= DIRECTORY_BITS
            if state.st_gid != group or state.st_mode & 0o7777 != mode:  # chown takes setuid bits away
                os.chmod(path, mode)


def is_owned(top: Path, group: int) -> bool:
    """Whether the top of a tree is the group's already: what fsGroupChangePolicy OnRootMismatch looks at."""
    state = top.stat()
    wanted = READ_WRITE_BITS | DIRECTORY_BITS
    return state.st_gid == group and state.st_mode & wanted == wanted


def _checked(path: str) -> str:
    """A payload's path without detours. Raises ValueError in the kubelet's words."""
    if not path:
        raise ValueError('invalid path: must not be empty: ""')
    if path.startswith("/"):
        raise ValueError(f"invalid path: must be relative path: {path}")
    if len(path) > PATH_MAX:
        raise ValueError(f"invalid path: must be less than or equal to {PATH_MAX} characters")
    parts = path.split("/")
    if ".." in parts:
        raise ValueError(f"invalid path: must not contain '..': {path}")
    if any(len(part) > NAME_MAX for part in parts):
        raise ValueError(f"invalid path: filenames must be less than or equal to {NAME_MAX} characters")
    if parts[0].startswith(".."):
        raise ValueError(f"invalid path: must not start with '..': {path}")
    return os.path.normpath(path)


def _make_folders(top: Path, path: str) -> None:
    """The directories above a file, readable by all whatever the umask says."""
    place = top
    for part in path.split("/")[:-1]:
        place /= part
        if not place.is_dir():
            place.mkdir()
            place.chmod(0o755)


def _current(target: Path) -> dict[str, tuple[bytes, int]] | None:
    """What is there now, by path; None before the first write."""
    data = target / DATA
    if not data.is_symlink():
        return None
    found = {}
    for folder, _, names in os.walk(data):
        for name in names:
            path = Path(folder, name)
            found[str(path.relative_to(data))] = (path.read_bytes(), path.stat().st_mode & 0o7777)
    return found


def _link_names(target: Path, wanted: set[str]) -> None:
    for name in wanted:
        if not os.path.lexists(target / name):
            (target / name).symlink_to(f"{DATA}/{name}")
    for name in os.listdir(target):
        link = target / name
        if not name.startswith("..") and name not in wanted and link.is_symlink():
            link.unlink()
