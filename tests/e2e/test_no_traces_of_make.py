"""`make up`, `make down`, `make clean` as a new user meets them, beside whatever else runs on this host."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.node_process import BIN, run
from tests.e2e.test_no_traces import traces

pytestmark = pytest.mark.ring4

ROOT = Path(__file__).parent.parent.parent
INSTANCE = "e2e-make"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class Make:
    """make with a node of its own: another data directory, instance and port than a user's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        settings = {"KONE_DATA_DIR": str(self.data), "KONE_INSTANCE": INSTANCE, "KONE_SECURE_PORT": str(_free_port())}
        self.env = os.environ | settings

    def __call__(self, target: str) -> str:
        command = ["make", "--no-print-directory", target, f"RUN={self.folder}/run", f"BIN={BIN}", "SYSTEMD="]
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kubectl(self, *words: str) -> str:
        return run(BIN / "kubectl", "--kubeconfig", self.data / "admin.kubeconfig", *words)


def test_two_commands_do_everything_and_a_third_undoes_it(tmp_path: Path) -> None:
    before = traces()
    make = Make(tmp_path)
    try:
        said = make("up")
        assert said.count("Hello from kone.") == 2
        assert str(make.data / "admin.kubeconfig") in said
        pods = make.kubectl("get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].metadata.uid}")
        assert len(pods.split()) == 2

        began = time.monotonic()
        again = make("up")
        assert time.monotonic() - began < 15  # the promise of a second `make up`, not a measurement
        assert "deployment.apps/hello unchanged" in again
        assert make.kubectl("get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].metadata.uid}") == pods

        running = run("docker", "ps", "-q", "--filter", f"label=kone.instance={INSTANCE}").split()
        make("down")
        assert run("docker", "ps", "-q", "--filter", f"label=kone.instance={INSTANCE}").split() == running
        assert "is not running" in run(BIN / "kone", "status", "--data-dir", make.data, check=False)
    finally:
        make("clean")
    after = traces()
    for kind, found in before.items():
        assert after[kind] == found, kind
    assert not make.data.exists()
