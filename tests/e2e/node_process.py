"""A `kone server` of a test's own: its process, its kubectl, its Docker, and what a test asks of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kone.status import UnixConnection

BIN = Path(sys.executable).parent
API_ONLY = "kubelet,proxy,dns"
BARE_API = "controllers,scheduler,kubelet,proxy,dns"


def run(*command: str | Path, check: bool = True, input: str | None = None, timeout_s: float = 120) -> str:
    """stdout of a command; with check=False stdout and stderr together, whatever its code."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, input=input, timeout=timeout_s, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))} exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout if check else done.stdout + done.stderr


def eventually(look: Callable[[], Any], *, within_s: float = 60.0, every_s: float = 0.1) -> Any:
    """The first true value that `look()` gives; AssertionError with the last one when none comes within the time."""
    end = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s:.0f} s: {found!r}")
        time.sleep(every_s)
    return found


class NodeProcess:
    """`kone server` with a data directory of its own. `start` returns once it is ready, `kill` is kill -9."""

    def __init__(self, data: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.flags = flags
        self.env = dict(env or {})
        self.process: subprocess.Popen[str] | None = None
        self.ready_line = ""

    @property
    def log(self) -> Path:
        return self.data.with_suffix(".log")

    @property
    def kubeconfig(self) -> Path:
        return self.data / "admin.kubeconfig"

    def start(self, *, within_s: float = 60.0) -> None:
        command = [BIN / "kone", "server", "--data-dir", self.data, *self.flags]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | self.env,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        if not self.ready_line.startswith("kone is ready"):
            self.process.wait(within_s)
            raise AssertionError(f"kone did not start: {self.log.read_text()[-4000:]}")

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(90)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        return code

    def kubectl(self, *words: str, check: bool = True, input: str | None = None, timeout_s: float = 120) -> str:
        kubectl = [BIN / "kubectl", "--kubeconfig", self.kubeconfig]
        return run(*kubectl, *words, check=check, input=input, timeout_s=timeout_s)

    def get(self, *words: str) -> Any:
        """`kubectl get … -o json`."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """One request by the local door, without the seconds that kubectl takes where the machine is emulated."""
        connection = UnixConnection(str(self.data / "kone.sock"), timeout_s=60)
        with contextlib.closing(connection):
            data = json.dumps(body) if body is not None else None
            connection.request(method, path, data, {"Content-Type": kind})
            answer = connection.getresponse()
            content = answer.read()
        assert answer.status < 300, f"{method} {path}: {answer.status} {content[:500]!r}"
        return json.loads(content)

    def apply(self, manifest: str) -> str:
        return self.kubectl("apply", "-f", "-", input=manifest)


@contextlib.contextmanager
def node(*flags: str) -> Iterator[NodeProcess]:
    """A node on a temporary data directory, stopped and cleaned up at the end."""
    with tempfile.TemporaryDirectory(prefix="kone-e2e-") as folder:
        process = NodeProcess(Path(folder) / "data", "--bind-address", "127.0.0.1", "--secure-port", "0", *flags)
        try:
            process.start()
            yield process
        finally:
            process.stop()
