"""kubectl's streams on a real node: port-forward, attach, cp into a pod, clients that speak SPDY, and local storage."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Place
from tests.e2e.node_process import BIN, eventually
from tests.e2e.test_pods import pod

pytestmark = pytest.mark.ring4

SERVE = "mkdir -p /tmp/www; echo page > /tmp/www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /tmp/www"
OLD_CLIENT = {"KUBECTL_PORT_FORWARD_WEBSOCKETS": "false", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false"}


def kubectl(place: Place, *words: str) -> list[str]:
    return [str(BIN / "kubectl"), "--kubeconfig", str(place.node.kubeconfig), "-n", place.namespace, *words]


@contextmanager
def forwarded(place: Place, pod_name: str, port: int, env: dict[str, str]) -> Iterator[int]:
    """A port of the pod at a port of loopback."""
    command = kubectl(place, "port-forward", f"pod/{pod_name}", f":{port}")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | env)
    assert process.stdout is not None
    try:
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found is not None
        yield int(found[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("env", [{}, OLD_CLIENT], ids=["websocket", "spdy"])
def test_port_forward_reaches_the_pods_localhost(place: Place, env: dict[str, str]) -> None:
    place.apply(pod(place, "web", SERVE))
    place.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=30s")
    with forwarded(place, "web", 8080, env) as port:
        for _ in range(5):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                assert answer.read() == b"page\n"
        place.kubectl("exec", "web", "--", "dd", "if=/dev/zero", "of=/tmp/www/big", "bs=1M", "count=20")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/big", timeout=20) as answer:
            assert len(answer.read()) == 20 << 20


def test_port_forward_says_when_nobody_listens(place: Place) -> None:
    place.apply(pod(place, "idle"))
    place.kubectl("wait", "--for=condition=Ready", "pod/idle", "--timeout=30s")
    command = kubectl(place, "port-forward", "pod/idle", ":9999")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
    assert found is not None
    with socket.create_connection(("127.0.0.1", int(found[1])), timeout=5) as client:
        assert client.recv(1) == b""
    _, told = process.communicate(timeout=10)
    assert "connect: connection refused" in told


def test_old_clients_run_commands(place: Place) -> None:
    place.apply(pod(place, "a"))
    place.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    env = os.environ | OLD_CLIENT
    run = kubectl(place, "exec", "-i", "a", "--", "sh", "-c", "cat; echo err >&2; exit 6")
    done = subprocess.run(run, input="through spdy", capture_output=True, text=True, env=env, timeout=30, check=False)
    assert (done.stdout, done.returncode) == ("through spdy", 6)
    assert done.stderr.startswith("err\n")


def test_files_go_in_and_come_out(place: Place, tmp_path: Path) -> None:
    place.apply(pod(place, "a"))
    place.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    (tmp_path / "in").write_bytes(os.urandom(3_000_000))
    place.kubectl("cp", str(tmp_path / "in"), "a:/tmp/file")
    place.kubectl("cp", "a:/tmp/file", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


def test_attach_joins_the_container(place: Place) -> None:
    script = 'while read line; do echo "got $line"; [ "$line" = end ] && exit 0; done'
    container = {"stdin": True, "stdinOnce": True}
    place.apply(pod(place, "a", script, container=container, restartPolicy="Never"))
    place.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    attach = kubectl(place, "attach", "-i", "a")
    done = subprocess.run(attach, input="one\nend\n", capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "got one\ngot end\n"
    eventually(lambda: place.node.get("-n", place.namespace, "pod", "a")["status"]["phase"] == "Succeeded")


def test_a_pod_that_takes_more_than_its_share_of_the_disk_is_evicted(place: Place) -> None:
    volumes = [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]
    container = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    script = "dd if=/dev/zero of=/v/f bs=1M count=5 2>/dev/null; sleep 1000"
    place.apply(pod(place, "greedy", script, volumes=volumes, container=container))
    status = eventually(
        lambda: (
            (found := place.node.get("-n", place.namespace, "pod", "greedy")["status"])["phase"] == "Failed" and found
        )
    )
    message = 'Usage of EmptyDir volume "v" exceeds the limit "1Mi". '
    assert (status["reason"], status["message"]) == ("Evicted", message)
    assert ("Evicted", message) in place.events("greedy")


def test_the_node_describes_itself_and_serves_its_figures(place: Place) -> None:
    place.apply(pod(place, "a"))
    place.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    node = place.node.get("nodes")["items"][0]["metadata"]["name"]
    described = place.kubectl("describe", "node", node)
    assert "kubelet has sufficient memory available" in described
    raw = f"/api/v1/nodes/{node}/proxy"
    labels = f'container="c",namespace="{place.namespace}",pod="a"'
    figures = place.kubectl("get", "--raw", f"{raw}/metrics/resource")
    assert re.search(rf"container_memory_working_set_bytes\{{{re.escape(labels)}\}} [1-9]", figures)
    assert place.kubectl("get", "--raw", f"{raw}/healthz") == "ok"
