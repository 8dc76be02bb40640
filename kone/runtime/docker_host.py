"""What dockerd cannot give to containers on this host, because its own process may not do it (a container in a
virtual machine or another container, often). Read once from the kernel; docker_translate.py asks for less then.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, replace

# include/uapi/linux/capability.h, in the order of their numbers.
CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)


@dataclass(frozen=True, slots=True)
class HostLimits:
    """`may_protect`: containers may have a negative oom_score_adj. `lacking`: capabilities that none can have. `pid` is
    dockerd's, 0 where it is elsewhere."""

    may_protect: bool = True
    lacking: tuple[str, ...] = ()
    pid: int = 0

    def __str__(self) -> str:
        """What follows for containers; "" where nothing is lacking."""
        told = []
        if not self.may_protect:
            told.append("no container gets a negative oom_score_adj")
        if self.lacking:
            told.append(f"privileged containers go without CAP_{', CAP_'.join(self.lacking)} and with /sys read-only")
        return "; ".join(told)


def limits_of(status: str) -> HostLimits:
    """The limits of a dockerd by its /proc/<pid>/status. Raises ValueError where that says nothing."""
    for line in status.splitlines():
        if line.startswith("CapBnd:"):
            bounding = int(line.split()[1], 16)
            lacking = tuple(name for bit, name in enumerate(CAPABILITIES) if not bounding >> bit & 1)
            return HostLimits("SYS_RESOURCE" not in lacking, lacking)
    raise ValueError("no CapBnd in the status of a process")


def listener(host: str) -> int:
    """The process that made the socket: dockerd, or systemd for it; 0 where it is elsewhere. Raises OSError."""
    if not host.startswith("unix://"):
        return 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.connect(host.removeprefix("unix://"))
        pid: int = struct.unpack("3i", door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def read_limits(host: str) -> HostLimits:
    """The limits of the dockerd behind a socket. One that is elsewhere is not trusted to protect, nor known to lack."""
    if host.startswith("unix://"):
        try:
            pid = listener(host)
            with open(f"/proc/{pid}/status") as status:
                return replace(limits_of(status.read()), pid=pid)
        except (OSError, ValueError):
            pass
    return HostLimits(may_protect=False)
