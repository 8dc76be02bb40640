"""A PostgreSQL server of its own for the tests: in a temporary directory, on a unix socket, as user postgres."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager


def _program(name: str) -> str:
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    path = found[-1] if found else shutil.which(name)
    assert path, f"{name} is missing: apt-get install postgresql"
    return path


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yields the URL of an empty database."""
    directory = tempfile.mkdtemp(prefix="kone-postgres-")
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(directory, user)
    data = f"{directory}/data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": directory}
    try:
        subprocess.run(
            [_program("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"],
            check=True,
            user=user,
            **quiet,  # type: ignore[call-overload]
        )
        settings = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", directory]
        server = subprocess.Popen([_program("postgres"), "-D", data, *settings], user=user, **quiet)  # type: ignore[call-overload]
        try:
            _wait_until_ready(directory, server)
            yield f"postgresql://postgres@/postgres?host={directory}"
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait_until_ready(directory: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while subprocess.run([_program("pg_isready"), "-q", "-h", directory], check=False).returncode:
        assert server.poll() is None, "PostgreSQL does not start"
        assert time.monotonic() < deadline, "PostgreSQL is not ready after 30 s"
        time.sleep(0.05)
