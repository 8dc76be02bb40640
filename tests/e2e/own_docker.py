"""A dockerd of a test's own, and a socket in front of it that is as bad as a test wants.

Nobody else's containers notice what becomes of it.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.e2e.node_process import eventually, run

BRIDGE = "kone-test-dck0"


class OwnDocker:
    """A dockerd with its own data, socket, state and bridge, and no rules.

    Without a bridge of its own (--bridge=none) it would delete docker0, which is the host's Docker's.
    """

    def __init__(self, folder: Path, *, live_restore: bool, flags: Sequence[str] = ()) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self.data = folder / "data-root"
        self.process: subprocess.Popen[bytes] | None = None
        self._flags = [*(["--live-restore"] if live_restore else []), *flags]

    def start(self) -> None:
        """Where it does not run. Returns when it answers."""
        if BRIDGE not in run("ip", "-br", "link"):
            run("ip", "link", "add", BRIDGE, "type", "bridge")
            run("ip", "address", "add", "172.31.254.1/24", "dev", BRIDGE)
        flags = [f"--bridge={BRIDGE}", "--iptables=false", "--ip6tables=false", "--shutdown-timeout=1", *self._flags]
        places = [f"--data-root={self.data}", f"--exec-root={self.folder}/exec-root"]
        command = ["dockerd", "-H", self.url, *flags, *places, f"--pidfile={self.folder}/pid"]

        def answers() -> bool:
            # it gives up where its containerd takes more than 15 s, as on a machine that is very busy
            if self.process is None or self.process.poll() is not None:
                (self.folder / "pid").unlink(missing_ok=True)
                with open(self.folder / "dockerd.log", "a") as log:
                    self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            return "Server Version" in self.docker("info", check=False)

        eventually(answers)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def kill(self) -> None:
        """kill -9 of dockerd alone: its containerd and its containers go on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def docker(self, *words: str, check: bool = True) -> str:
        return run("docker", "-H", self.url, *words, check=check)


@contextlib.contextmanager
def own_docker(
    *images: str, live_restore: bool = False, data_mb: int = 0, flags: Sequence[str] = ()
) -> Iterator[OwnDocker]:
    """It, running, with these images of the host's. With `data_mb` its disk has that many megabytes."""
    folder = Path(tempfile.mkdtemp(prefix="kone-docker-"))
    docker = OwnDocker(folder, live_restore=live_restore, flags=flags)
    try:
        if data_mb:
            docker.data.mkdir()
            run("mount", "-t", "tmpfs", "-o", f"size={data_mb}m", "kone-test-docker", docker.data)
        docker.start()
        if images:
            saved = folder / "images.tar"
            run("docker", "save", "-o", saved, *images)
            docker.docker("load", "-i", str(saved))
            saved.unlink()
        yield docker
    finally:
        docker.start()  # wherever the test left it: only Docker can end its containers
        docker.docker("rm", "--force", *docker.docker("ps", "-aq").split(), check=False)
        docker.stop()
        run("ip", "link", "delete", BRIDGE, check=False)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            point = line.split()[4]
            if point.startswith(str(folder)):
                run("umount", "-l", point, check=False)
        shutil.rmtree(folder, ignore_errors=True)


class BadSocket:
    """A socket before Docker's. `delay_s` passes before each request goes on; `hold` keeps those that match.

    Requests are known by their first line; what follows it is passed on as it comes.
    """

    def __init__(self, path: Path, target: str) -> None:
        self.url = f"unix://{path}"
        self.delay_s = 0.0
        self.held: list[str] = []  # the requests that are kept, "METHOD /path"
        self._target = target.removeprefix("unix://")
        self._gate: re.Pattern[str] | None = None
        self._passes = 0  # so many that match may go on
        self._drops = False
        self._open = threading.Condition()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, pattern: str, *, passes: int = 0) -> None:
        """Keep each request that matches, after the first `passes` of them, until `release`."""
        with self._open:
            self.held.clear()
            self._gate, self._passes, self._drops = re.compile(pattern), passes, False

    def release(self, *, drop: bool = False) -> None:
        """Let those that were kept go on to Docker, even if nobody waits for the answer any more; or forget them."""
        with self._open:
            self._gate, self._drops = None, drop
            self._open.notify_all()

    def close(self) -> None:
        self.release()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        behind = socket.socket(socket.AF_UNIX)
        try:
            behind.connect(self._target)
        except OSError:
            client.close()
            behind.close()
            return
        back = threading.Thread(target=_copy, args=(behind, client), daemon=True)
        back.start()
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                request = re.match(rb"([A-Z]+) (?:/v[0-9.]+)?(/\S*) HTTP/1.1\r\n", data)
                if request and not self._may_go_on(b" ".join(request.groups()).decode()):
                    break
                behind.sendall(data)
        _end(behind, socket.SHUT_WR)
        back.join()
        client.close()
        behind.close()

    def _may_go_on(self, request: str) -> bool:
        time.sleep(self.delay_s)
        with self._open:
            if self._gate is None or not self._gate.search(request):
                return True
            if self._passes:
                self._passes -= 1
                return True
            self.held.append(request)
            self._open.wait_for(lambda: self._gate is None)
            return not self._drops


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _end(target, socket.SHUT_WR)


def _end(one: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(how)
