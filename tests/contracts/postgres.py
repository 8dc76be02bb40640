"""A PostgreSQL server of its own for the tests: in a temporary directory, on a unix socket, as user postgres."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_S = 30.0


class PostgresServer:
    """One server and its data. `url` names its database, which is empty at first."""

    def __init__(self, directory: Path) -> None:
        self.url = f"postgresql://postgres@/postgres?host={directory}"
        self._directory = directory
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(directory, self._user)
        self._run("initdb", "-D", str(directory / "data"), "-A", "trust", "-U", "postgres", "--no-sync").wait()

    def start(self) -> None:
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", str(self._directory)]
        self._server = self._run("postgres", "-D", str(self._directory / "data"), *options)
        deadline = time.monotonic() + READY_S
        while self._run("pg_isready", "-q", "-h", str(self._directory)).wait():
            assert self._server.poll() is None, "PostgreSQL does not start"
            assert time.monotonic() < deadline, "PostgreSQL is not ready"
            time.sleep(0.02)

    def crash(self) -> None:
        """Immediate shutdown: every connection breaks."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait()

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [_path(program), *arguments]
        null = subprocess.DEVNULL
        return subprocess.Popen(command, user=self._user, cwd=self._directory, stdout=null, stderr=null)


def _path(program: str) -> str:
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"))
    path = found[-1] if found else shutil.which(program)
    assert path, f"{program} is missing: apt-get install postgresql"
    return path


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server, gone with its data at the end."""
    directory = tempfile.mkdtemp(prefix="kone-postgres-")
    try:
        server = PostgresServer(Path(directory))
        server.start()
        yield server
        server.crash()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
