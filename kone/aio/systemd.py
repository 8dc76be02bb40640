"""What a service tells systemd: sd_notify(3) messages and the watchdog, on the socket that NOTIFY_SOCKET names.

Where no systemd listens every call does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(*assignments: str) -> None:
    """Send assignments such as "READY=1" or "STATUS=serving"; never raises."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket: its name begins with a zero byte
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(address)
            channel.sendall("\n".join(assignments).encode())
    except OSError as error:
        log.warning("systemd did not take %s: %s", assignments, error)


def watchdog_interval_s() -> float | None:
    """Half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises; None where no watchdog is asked for."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000


async def watchdog(interval_s: float) -> None:
    """Keep telling systemd that the event loop turns. A blocked loop misses its turn and is restarted."""
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)
