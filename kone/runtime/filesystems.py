"""mount(8), mkfs and blkid: file systems that need the host's helpers, on devices and from servers.

Errors are those of upstream's mount library (k8s.io/mount-utils), command and output included: users meet them in
events.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Sequence
from pathlib import Path
from typing import Final

DEFAULT_TYPE: Final = "ext4"
_UNFORMATTED: Final = 2  # blkid's exit code
_FSCK_CORRECTED, _FSCK_UNCORRECTED = 1, 4
_FORMAT: Final = {"ext3": ("-F", "-m0"), "ext4": ("-F", "-m0"), "xfs": ("-f",)}


class MountFailed(Exception):
    """A file system could not be mounted. `mismatch`: the device holds another type than was asked for."""

    def __init__(self, text: str, *, mismatch: bool = False) -> None:
        super().__init__(text)
        self.mismatch = mismatch


async def mount(source: str, target: Path, fs_type: str, options: Sequence[str]) -> None:
    """Raises MountFailed."""
    words = [
        *(("-t", fs_type) if fs_type else ()),
        *(("-o", ",".join(options)) if options else ()),
        source,
        str(target),
    ]
    code, output = await _run("mount", *words)
    if code:
        raise MountFailed(
            f"mount failed: exit status {code}\nMounting command: mount\nMounting arguments: {' '.join(words)}\n"
            f"Output: {output}"
        )


async def format_and_mount(device: str, target: Path, fs_type: str, options: Sequence[str]) -> None:
    """Mount a device; one without a file system gets one first. Raises MountFailed."""
    fs_type = fs_type or DEFAULT_TYPE
    read_only = "ro" in options
    found = await disk_format(device)
    if not found:
        if read_only:
            why = "as we are manipulating it in read-only mode"
            raise MountFailed(f"cannot mount unformatted disk {device} {why}")
        code, output = await _run(f"mkfs.{fs_type}", *_FORMAT.get(fs_type, ()), device)
        if code:
            raise MountFailed(
                f'format of disk "{device}" failed: type:("{fs_type}") target:("{target}") '
                f'options:("{",".join(options)}") errcode:(exit status {code}) output:({output}) '
            )
    elif not read_only:
        code, output = await _run("fsck", "-a", device)
        if code == _FSCK_UNCORRECTED:
            raise MountFailed(f"'fsck' found errors on device {device} but could not correct them: {output}.")
    try:
        await mount(device, target, fs_type, [*options, "defaults"])
    except MountFailed as error:
        raise MountFailed(str(error), mismatch=bool(found) and found != fs_type) from None


async def disk_format(device: str) -> str:
    """The type of the device's file system, "" where it has none. Raises MountFailed."""
    code, output = await _run("blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device)
    if code == _UNFORMATTED:
        return ""
    if code:
        raise MountFailed(f"failed to get disk format of disk {device}: exit status {code}")
    found = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    return "unknown data, probably partitions" if "PTTYPE" in found else found.get("TYPE", "")


async def _run(*words: str) -> tuple[int, str]:
    """(exit code, output) of a command of the host. Raises MountFailed where it has none."""
    try:
        process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=STDOUT, stdin=DEVNULL)
    except FileNotFoundError:
        raise MountFailed(f'exec: "{words[0]}": executable file not found in $PATH') from None
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace")
