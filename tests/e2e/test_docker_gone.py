"""Docker goes and comes back: the API serves on, the node says what is wrong, pods go on, and it mends itself.

A dockerd of the test's own is stopped and started, so that nobody else's containers notice.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node_process import BIN, NodeProcess, eventually, run
from tests.e2e.test_pods import pod_manifest

pytestmark = pytest.mark.ring4

INSTANCE = "e2e-gone"


BRIDGE = "kone-test-dck0"


class OwnDocker:
    """A dockerd with its own data, socket, state and bridge, and no rules.

    Without a bridge of its own (--bridge=none) it would delete docker0, which is the host's Docker's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if BRIDGE not in run("ip", "-br", "link"):
            run("ip", "link", "add", BRIDGE, "type", "bridge")
            run("ip", "address", "add", "172.31.254.1/24", "dev", BRIDGE)
        flags = [f"--bridge={BRIDGE}", "--iptables=false", "--ip6tables=false", "--live-restore"]
        places = [f"--{name}={self.folder / name}" for name in ("data-root", "exec-root")]
        with open(self.folder / "dockerd.log", "a") as log:
            self.process = subprocess.Popen(
                ["dockerd", "-H", self.url, *flags, *places, f"--pidfile={self.folder}/pid"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(lambda: "Server Version" in self.docker("info", check=False))

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def docker(self, *words: str, check: bool = True) -> str:
        return run("docker", "-H", self.url, *words, check=check)


@pytest.fixture
def own_docker(image: str) -> Iterator[OwnDocker]:
    folder = Path(tempfile.mkdtemp(prefix="kone-docker-"))
    docker = OwnDocker(folder)
    docker.start()
    try:
        saved = folder / "image.tar"
        run("docker", "save", "-o", saved, image)
        docker.docker("load", "-i", str(saved))
        yield docker
    finally:
        docker.docker("rm", "--force", *docker.docker("ps", "-aq").split(), check=False)
        docker.stop()
        run("ip", "link", "delete", BRIDGE, check=False)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            point = line.split()[4]
            if point.startswith(str(folder)):
                run("umount", "-l", point, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def ready(node: NodeProcess) -> tuple[str, str]:
    """(status, message) of the node's Ready condition."""
    for condition in node.get("nodes")["items"][0]["status"]["conditions"]:
        if condition["type"] == "Ready":
            return condition["status"], condition["message"]
    return "", ""


def test_the_node_says_that_docker_is_gone_and_recovers_by_itself(own_docker: OwnDocker, image: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="kone-e2e-"))
    node = NodeProcess(folder / "d", "--secure-port", "0", "--instance", INSTANCE, "--docker-host", own_docker.url)
    try:
        node.start()
        eventually(lambda: ready(node)[0] == "True")
        eventually(lambda: node.kubectl("get", "serviceaccount", "default", check=False).startswith("NAME"))
        node.apply(pod_manifest("p", image))
        node.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
        before = node.get("pod", "p")["status"]["containerStatuses"][0]

        own_docker.stop()
        eventually(lambda: ready(node)[0] == "False")
        assert "container runtime is down" in ready(node)[1]
        node.kubectl("create", "configmap", "while-docker-is-gone")

        own_docker.start()
        eventually(lambda: ready(node)[0] == "True")
        after = node.get("pod", "p")["status"]["containerStatuses"][0]
        assert (after["containerID"], after["restartCount"]) == (before["containerID"], before["restartCount"])
        node.apply(pod_manifest("q", image))
        node.kubectl("wait", "--for=condition=Ready", "pod/q", "--timeout=60s")
    finally:
        node.stop()
        flags = ["--data-dir", node.data, "--instance", INSTANCE, "--docker-host", own_docker.url]
        run(BIN / "kone", "cleanup", *flags)
        shutil.rmtree(folder)


def test_the_api_serves_where_docker_never_was() -> None:
    folder = Path(tempfile.mkdtemp(prefix="kone-e2e-"))
    flags = ["--instance", INSTANCE, "--docker-host", "unix:///nowhere/docker.sock"]
    node = NodeProcess(folder / "d", "--secure-port", "0", *flags)
    try:
        node.start()
        eventually(lambda: ready(node)[0] == "False")
        node.kubectl("create", "configmap", "served")
        assert "not ready" in run(BIN / "kone", "status", "--data-dir", node.data, check=False)
    finally:
        node.stop()
        run(BIN / "kone", "cleanup", "--data-dir", node.data, *flags)
        shutil.rmtree(folder)
