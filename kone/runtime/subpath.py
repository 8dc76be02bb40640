"""subPath mounts: a part of a volume for a container, and never anything beyond the volume, whatever its links say.

The part is opened step by step without following links, and what was opened is bound to a place of kone's own, which
the runtime is given. So a pod that swaps a directory for a link between the check and the mount gains nothing
(CVE-2017-1002101, CVE-2021-25741). The same part is bound once; when it became another file (a configMap's was
renewed) it is bound anew for the next container, and the binding before that is let go.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Literal

from kone.runtime import mounts
from kone.runtime.parts import SubPathFailed, VolumeError

FOLDER = "volume-subpaths"

Step = Literal["create subPath directory", "prepare subPath"]


def check(sub_path: str) -> None:
    """Raises VolumeError, in the kubelet's words, for a path that no volume may have."""
    if sub_path.startswith("/"):
        raise VolumeError(f"error SubPath `{sub_path}` must not be an absolute path")
    if ".." in sub_path.split("/"):
        raise VolumeError(f"unable to provision SubPath `{sub_path}`: must not contain '..'")


def bind(pod_folder: Path, volume_path: str, sub_path: str) -> str:
    """Where on the host `sub_path` of a volume is bound; it is made as a directory where nothing is there.

    Raises SubPathFailed: it leads out of the volume, or the kernel says no.
    """
    top = os.path.realpath(volume_path)
    found = os.path.realpath(os.path.join(top, sub_path))
    create = not os.path.exists(found)
    step: Step = "create subPath directory" if create else "prepare subPath"
    if found != top and not found.startswith(top.rstrip("/") + "/"):
        raise SubPathFailed(step, f'subpath "{found}" not within volume path "{volume_path}"')
    try:
        opened = _open(top, os.path.relpath(found, top), create=create)
        try:
            return _bind(pod_folder / FOLDER / _name(volume_path, sub_path), opened)
        finally:
            os.close(opened)
    except OSError as error:
        raise SubPathFailed(step, str(error)) from error


def read_inside(volume_path: str, path: str, max_bytes: int) -> bytes:
    """The content of a file of a volume. Raises OSError, also for what leads out of it, is no file, or is larger."""
    top = os.path.realpath(volume_path)
    found = os.path.realpath(os.path.join(top, path.lstrip("/")))
    if not found.startswith(top.rstrip("/") + "/"):
        raise OSError(errno.ELOOP, "leads out of the volume", path)
    opened = _open(top, os.path.relpath(found, top), create=False)
    try:
        state = os.fstat(opened)
        if not stat.S_ISREG(state.st_mode) or state.st_size > max_bytes:
            raise OSError(errno.EFBIG if stat.S_ISREG(state.st_mode) else errno.EINVAL, "is no file to be read", path)
        with open(f"/proc/self/fd/{opened}", "rb") as file:
            return file.read(max_bytes)
    finally:
        os.close(opened)


def remove(pod_folder: Path) -> None:
    """The folder of a pod's bindings, which must be unmounted."""
    for folder, names, files in os.walk(pod_folder / FOLDER, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        for name in names:
            os.rmdir(os.path.join(folder, name))  # never rmtree: it is empty, or it is not ours
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(pod_folder / FOLDER)


def _name(volume_path: str, sub_path: str) -> str:
    return hashlib.sha256(f"{volume_path}\0{sub_path}".encode()).hexdigest()[:16]


def _open(top: str, path: str, *, create: bool) -> int:
    """A descriptor (O_PATH) of a path below `top` that has no links in it. Missing directories get the mode of top."""
    here = os.open(top, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(here).st_mode)
        for part in () if path == "." else path.split("/"):
            if create:
                _make(here, part, mode)
            step = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = step
            if stat.S_ISLNK(os.fstat(here).st_mode):
                raise SubPathFailed("prepare subPath", f'"{part}" of subpath "{path}" has become a link')
    except BaseException:
        os.close(here)
        raise
    return here


def _make(parent: int, name: str, mode: int) -> None:
    """mkdir with a mode that the umask does not change."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fchmod(made, mode)
    finally:
        os.close(made)


def _bind(folder: Path, opened: int) -> str:
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    wanted = os.fstat(opened)
    numbers = sorted(int(name) for name in os.listdir(folder))
    if numbers:
        newest = folder / str(numbers[-1])
        if os.path.samestat(wanted, os.lstat(newest)):
            return str(newest)
    target = folder / str(numbers[-1] + 1 if numbers else 0)
    if stat.S_ISDIR(wanted.st_mode):
        target.mkdir(mode=0o750)
    else:
        target.touch(mode=0o640)
    mounts.bind(f"/proc/self/fd/{opened}", str(target))
    for number in numbers[:-1]:
        _let_go(folder / str(number))
    return str(target)


def _let_go(target: Path) -> None:
    if mounts.is_mount_point(str(target)):
        mounts.unmount(str(target))
    if target.is_dir():
        target.rmdir()
    else:
        target.unlink()
