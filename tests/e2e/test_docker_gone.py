"""Docker goes and comes back: the API serves on, the node says what is wrong, pods go on, and it mends itself.

A dockerd of the test's own is stopped and started, so that nobody else's containers notice.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node_process import BIN, NodeProcess, eventually, run
from tests.e2e.own_docker import OwnDocker, own_docker
from tests.e2e.test_pods import pod_manifest

pytestmark = pytest.mark.ring4

INSTANCE = "e2e-gone"


@pytest.fixture
def docker(image: str) -> Iterator[OwnDocker]:
    with own_docker(image, live_restore=True) as docker:
        yield docker


def ready(node: NodeProcess) -> tuple[str, str]:
    """(status, message) of the node's Ready condition."""
    for condition in node.get("nodes")["items"][0]["status"]["conditions"]:
        if condition["type"] == "Ready":
            return condition["status"], condition["message"]
    return "", ""


def test_the_node_says_that_docker_is_gone_and_recovers_by_itself(docker: OwnDocker, image: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="kone-e2e-"))
    node = NodeProcess(folder / "d", "--secure-port", "0", "--instance", INSTANCE, "--docker-host", docker.url)
    try:
        node.start()
        eventually(lambda: ready(node)[0] == "True")
        eventually(lambda: node.kubectl("get", "serviceaccount", "default", check=False).startswith("NAME"))
        node.apply(pod_manifest("p", image))
        node.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
        before = node.get("pod", "p")["status"]["containerStatuses"][0]

        docker.stop()
        eventually(lambda: ready(node)[0] == "False")
        assert "container runtime is down" in ready(node)[1]
        node.kubectl("create", "configmap", "while-docker-is-gone")

        docker.start()
        eventually(lambda: ready(node)[0] == "True")
        after = node.get("pod", "p")["status"]["containerStatuses"][0]
        assert (after["containerID"], after["restartCount"]) == (before["containerID"], before["restartCount"])
        node.apply(pod_manifest("q", image))
        node.kubectl("wait", "--for=condition=Ready", "pod/q", "--timeout=60s")
    finally:
        node.stop()
        flags = ["--data-dir", node.data, "--instance", INSTANCE, "--docker-host", docker.url]
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
