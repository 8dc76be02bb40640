"""The process: `kone server` in the foreground. Event loop, signals, systemd, and one line when it is ready.

SIGTERM and SIGINT stop it in stages; SIGHUP reloads certificates, the API server's files and the log level.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
import sys
import time

from kone import config
from kone.aio import systemd
from kone.aio.tasks import TaskGroup
from kone.config import ConfigError, Settings
from kone.node import Node, StartError

__all__ = ["StartError", "run"]

log = logging.getLogger(__name__)

STOP_BUDGET_S = 60.0
GC_THRESHOLDS = (10_000, 20, 20)
LARGE_BUFFER_BYTES = 32 << 20
KEPT_MEMORY_BYTES = 64 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def run(settings: Settings) -> None:
    """Run a node until a signal stops it. Raises StartError where it cannot start."""
    began = time.monotonic()
    _log_to_stderr(settings.log_level)
    try:
        import uvloop
    except ImportError:  # not on this platform: asyncio's own loop does
        asyncio.run(_serve(settings, began))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, began))


async def _serve(settings: Settings, began: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    background = TaskGroup("server")
    node = Node(settings)
    systemd.notify("STATUS=starting")
    await node.start()
    loop.add_signal_handler(signal.SIGHUP, lambda: background.spawn(_reload(node, settings), name="reload"))
    _tune_memory()
    took_ms = (time.monotonic() - began) * 1000
    print(f"kone is ready: {node.url} in {took_ms:.0f} ms", flush=True)
    systemd.notify("READY=1", f"STATUS=serving {node.url}")
    if (interval_s := systemd.watchdog_interval_s()) is not None:
        background.guard(lambda: systemd.watchdog(interval_s), name="watchdog")
    await stop.wait()
    systemd.notify("STOPPING=1", "STATUS=stopping")
    log.info("stopping")
    await background.cancel()
    await node.stop()


def _tune_memory() -> None:
    """For a process that makes and drops answers of some megabytes, of thousands of objects."""
    # What start-up made lives as long as the process: keep the collector from walking it again and again. And a list
    # of a few thousand objects is no reason to look for garbage.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # no glibc: it has its own ways
        return
    # By default glibc gives every large buffer back at once; to fault it in again takes longer than to fill it.
    mallopt(_M_MMAP_THRESHOLD, LARGE_BUFFER_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY_BYTES)


async def _reload(node: Node, settings: Settings) -> None:
    systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
    try:
        level = config.reload_log_level(settings)
    except ConfigError as error:
        log.warning("the log level stays: %s", error)
    else:
        logging.getLogger("kone").setLevel(level.upper())
    await node.reload_certificates()
    await node.reload_files()
    systemd.notify("READY=1", f"STATUS=serving {node.url}")
    log.info("certificates and log level reloaded")


def _log_to_stderr(level: str) -> None:
    """kone's own loggers at `level`; libraries only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("kone"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("kone").setLevel(level.upper())
